"""hvac on aiohttp: an adapter whose `request` is a coroutine.

hvac's API classes build the path and the body, and return what the adapter's `request` returns, so
`await kv.read_secret_version(...)` gives the parsed answer. That fails where hvac 2.4 looks into the answer itself or
builds the path unsafely, so these are not used:

    adapter.login(use_token=True)                      reads the token out of the answer: `login` is overridden here
    kv.v2.patch                                        reads, merges and writes by itself
    kv.v2.read_secret_version(raise_on_deleted_version=False)   expects its own exception
    kv.v1.create_or_update_secret without `method`     reads first
    sys.create_or_update_acl_policy                    puts the name into the path unquoted
    auth.azure.read_config and the other calls that return `.get("data")`

In use: kv.v2 read_secret_version, read_secret_metadata, create_or_update_secret, delete_secret_versions, list_secrets,
read_configuration; kv.v1 read_secret, create_or_update_secret, delete_secret, list_secrets; sys list_acl_policies,
read_acl_policy, delete_acl_policy, read_health_status, get_capabilities; auth approle.login, kubernetes.login,
azure.login, jwt.jwt_login, token.lookup_self, token.renew_self.
"""

from __future__ import annotations

import io
import json
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from hvac.adapters import Adapter
from multidict import CIMultiDict
from yarl import URL

from shared.errors import AccessDenied, InvalidSecret, VaultError
from shared.numbers import InexactNumber, no_number
from shared.vaults.hashicorp.failures import Answer, breakdown, not_vault, refusal
from shared.vaults.hashicorp.numbers import exact_number
from shared.vaults.hashicorp.settings import Settings

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""Vault's default max_request_size. Past it the server hangs up in mid-request, which would look like a bad network."""

_LARGE = 512 * 1024

CLOCK_TOLERANCE = 1.5
"""Seconds by which the server's clock may seem off before it is taken to be."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_float=exact_number, parse_constant=no_number)


class AsyncAdapter(Adapter):  # type: ignore[misc]  # hvac is untyped
    """What hvac's API classes talk to: one aiohttp session, opened with the first request and closed by `aclose`.

    `seconds` bounds one call; `token` may change at any time.
    """

    def __init__(self, vault_id: str, settings: Settings) -> None:
        # Not Adapter.__init__: it would open a session of `requests` that nobody uses.
        self.seconds = 60.0
        self.base_uri = settings.url
        self._server = URL(settings.url)
        self._server_path = self._server.raw_path.rstrip("/")
        self._vault_id = vault_id
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._date = ""
        self._clock_ahead = 0.0
        self.rootwards = CIMultiDict({"X-Vault-Request": "true"})
        self._anonymous = CIMultiDict(self.rootwards)
        if settings.namespace:
            self._anonymous["X-Vault-Namespace"] = settings.namespace
        self._token: str | None = None
        self._headers = self._anonymous

    @property
    def token(self) -> str | None:
        return self._token

    @token.setter
    def token(self, token: str | None) -> None:
        self._token = token
        self._headers = self.headers_for(token) if token else self._anonymous

    def headers_for(self, token: str, namespace: str | None = None) -> CIMultiDict[str]:
        """The headers of a call with this token, in the configured namespace or in another one."""
        headers = CIMultiDict(self._anonymous)
        headers["X-Vault-Token"] = token
        if namespace is not None:
            headers["X-Vault-Namespace"] = namespace
        return headers

    def server_time(self) -> float:
        """Seconds since the epoch on the server's clock, as its newest `Date` header told."""
        return time.time() + self._clock_ahead

    def login(self, url: str, use_token: bool = True, **kwargs: Any) -> Any:
        """A login goes without the token that is being replaced; who asks for it reads the answer."""
        return self.request("post", url, headers=self._anonymous, **kwargs)

    def get_login_token(self, response: Answer) -> str:
        token: str = response["auth"]["client_token"]
        return token

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        wrap_ttl: None = None,
        harmless: bool = False,
    ) -> Answer:
        """Make one call: the parsed answer, {} where there is none. Raises `VaultError`s, never aiohttp's own.

        `harmless` says that the body holds nothing secret, so that Vault's own words about it may be repeated.
        `wrap_ttl` is what hvac passes along where a caller wants an answer wrapped; nobody does here.
        """
        session = self._session or self._open()
        operation = method.upper()
        address = self._server.with_path(self._server_path + url, encoded=True)
        if operation == "LIST":
            # As Vault's own client does: proxies know GET, not LIST.
            method, address = "GET", address.with_query("list=true")
        elif params:
            address = address.with_query({key: str(value).lower() for key, value in params.items()})
        body = None
        headers = self._headers if headers is None else headers
        if json is not None:
            body = encode(json, self._vault_id)
            headers = CIMultiDict(headers)
            headers["Content-Type"] = "application/json"
        failure: VaultError
        try:
            # Never redirected: Vault redirects to cleaned paths, which would leave the prefix, and a standby to its
            # leader, which must not be given a token unless a person wrote down its address.
            response = await session.request(
                method, address, data=_payload(body), headers=headers, allow_redirects=False
            )
            # Read to its end, or closed by what went wrong: the connection is free either way.
            content = await response.read()
            if response.headers.get("Date", "") != self._date:
                self._read_clock(response.headers.get("Date", ""))
            if 200 <= response.status < 300 or not raise_exception:
                return decode(content, self._vault_id) if content else {}
            failure = refusal(
                response.status,
                response.headers,
                content,
                vault_id=self._vault_id,
                call=f"{operation} {url.removeprefix('/v1/')}",
                quotable=body is None or harmless,
            )
        except (aiohttp.ClientError, OSError) as error:
            failure = breakdown(error, self._vault_id, self.base_uri)
        # Outside of the except clause, so that nothing of aiohttp's hangs on to it.
        raise failure

    def _open(self) -> aiohttp.ClientSession:
        context = tls_context(self._settings, self._vault_id) if self.base_uri.startswith("https") else True
        session = aiohttp.ClientSession(
            # The pacer bounds the calls; a second bound here would only hide its queue from it.
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.seconds, sock_connect=min(10.0, self.seconds)),
        )
        # aiohttp sends PUT and DELETE again by itself when a kept connection breaks. Whether a write is repeated is for
        # the caller to decide, who looks first whether it was done; reads are repeated, and counted, by the pacer.
        session._retry_connection = False
        self._session = session
        return session

    def _read_clock(self, date: str) -> None:
        self._date = date
        try:
            ahead = parsedate_to_datetime(date).timestamp() - time.time()
        except (ValueError, TypeError):
            ahead = 0.0
        # The header has whole seconds, and its way here took time: a difference that small is none.
        self._clock_ahead = 0.0 if abs(ahead) < CLOCK_TOLERANCE else ahead

    async def aclose(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


def tls_context(settings: Settings, vault_id: str) -> ssl.SSLContext:
    """Trusts `ca_bundle`, or the system's authorities without one. Raises AccessDenied naming the unusable file."""
    setting = "ca_bundle"
    try:
        context = ssl.create_default_context(cafile=settings.ca_bundle)
        if settings.client_cert:
            setting = "client_cert or client_key"
            # Without a password OpenSSL would ask for one, on the terminal, and wait.
            context.load_cert_chain(settings.client_cert, settings.client_key, password="")
    except (OSError, ValueError) as error:
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
    else:
        return context
    raise AccessDenied(f"the file given as {setting} can not be used: {reason}", vault=vault_id)


def encode(value: Any, vault_id: str) -> bytes:
    """A body. Raises InvalidSecret, without quoting anything, for what is not JSON or too much of it."""
    try:
        body = _ENCODER.encode(value).encode()
    except (ValueError, TypeError, RecursionError):
        body = None
    if body is None:
        raise InvalidSecret(
            "the value is not JSON that Vault takes (text that is not unicode, NaN, too deep?)", vault=vault_id
        )
    if len(body) > MAX_REQUEST_BYTES:
        raise InvalidSecret(
            f"the value takes {len(body)} bytes; Vault takes at most {MAX_REQUEST_BYTES}", vault=vault_id
        )
    return body


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    # aiohttp writes bytes in one go, and warns where that would hold up everything else.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE else body


def decode(content: bytes, vault_id: str) -> Answer:
    """An answer. Raises InvalidSecret for numbers that Python can not hold, Unavailable for what is not Vault's JSON."""
    failure: VaultError
    try:
        answer = _DECODER.decode(content.decode())
        if isinstance(answer, dict):
            return answer
        failure = not_vault(vault_id)
    except (json.JSONDecodeError, UnicodeDecodeError):
        failure = not_vault(vault_id)
    except RecursionError:
        failure = InvalidSecret("the value is nested too deeply to be carried", vault=vault_id)
    except (InexactNumber, ValueError):
        # ValueError: Python's bound on the digits of an integer.
        failure = InvalidSecret("the value holds a number that can not be carried exactly", vault=vault_id)
    raise failure
