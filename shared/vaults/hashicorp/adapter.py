"""hvac on aiohttp: an adapter whose `request` is a coroutine, and the translation of all that can go wrong.

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
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
import hvac.exceptions
from hvac.adapters import Adapter
from multidict import CIMultiDict
from yarl import URL

from shared.errors import (
    AccessDenied,
    Conflict,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.vaults.hashicorp.numbers import InexactNumber, exact_number, no_number
from shared.vaults.hashicorp.settings import Settings

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""Vault's default max_request_size. Past it the server hangs up in mid-request, which would look like a bad network."""

_LARGE = 512 * 1024

CLOCK_TOLERANCE = 1.5
"""Seconds by which the server's clock may seem off before it is taken to be."""

_DECODER = json.JSONDecoder(parse_float=exact_number, parse_constant=no_number)

Answer = dict[str, Any]


class Forbidden(AccessDenied):
    """The server knows the token, and its policies do not allow the call."""


class TokenRefused(AccessDenied):
    """The server says that the token itself is not (or no longer) valid."""


class AsyncAdapter(Adapter):  # type: ignore[misc]  # hvac is untyped
    """What hvac's API classes talk to: one aiohttp session, opened with the first request and closed by `aclose`.

    `seconds` bounds one call; `token` may change at any time.
    """

    def __init__(self, vault_id: str, settings: Settings) -> None:
        # Not Adapter.__init__: it would open a session of `requests` that nobody uses.
        self.seconds = 60.0
        self.base_uri = settings.url
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
    ) -> Answer:
        """Make one call: the parsed answer, {} where there is none. Raises `VaultError`s, never aiohttp's own.

        `wrap_ttl` is what hvac passes along where a caller wants an answer wrapped; nobody does here.
        """
        session = self._session or self._open()
        operation = method.upper()
        full = url
        if operation == "LIST":
            # As Vault's own client does: proxies know GET, not LIST.
            method, full = "GET", f"{url}?list=true"
        elif params:
            full = f"{url}?{urlencode({key: str(value).lower() for key, value in params.items()})}"
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
            async with session.request(
                method,
                URL(self.base_uri + full, encoded=True),
                data=_payload(body),
                headers=headers,
                allow_redirects=False,
            ) as response:
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
                quotable=body is None,
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
            context.load_cert_chain(settings.client_cert, settings.client_key)
    except (OSError, ValueError) as error:
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
    else:
        return context
    raise AccessDenied(f"the file given as {setting} can not be used: {reason}", vault=vault_id)


def encode(value: Any, vault_id: str) -> bytes:
    """A body. Raises InvalidSecret, without quoting anything, for what is not JSON or too much of it."""
    try:
        body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
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


def not_vault(vault_id: str) -> Unavailable:
    """For an answer that reads like success and is not Vault's. A write may well have had its effect."""
    message = "the answer was cut short, or is not Vault's: check the address and the proxies on the way"
    return Unavailable(message, vault=vault_id, ambiguous=True)


# --- what the server refused --------------------------------------------------------------------------------------

# Phrases by which Vault says more than its status does; seen on 1.21, and in the sources of OpenBao 2.
_PHRASES: tuple[tuple[str, type[VaultError], str], ...] = (
    ("check-and-set parameter did not match", Conflict, "the secret is not in the version that was expected"),
    (
        "check-and-set parameter required",
        Unsupported,
        "this secret or its mount demands check-and-set, and the write named no version",
    ),
    ("no handler for route", MountNotFound, "there is no such mount: check `mount` (and `namespace`)"),
    ("key being too large", InvalidSecret, "the name is longer than this Vault's storage takes"),
    ("too large", InvalidSecret, "the value is larger than this Vault or its storage takes"),
    ("Value exceeds", InvalidSecret, "the value is larger than this Vault's storage takes"),
    ("exceeds allowed", InvalidSecret, "the value passes one of this Vault's limits on JSON (depth, length, entries)"),
    ("malformed JSON", InvalidSecret, "this Vault does not take the value as JSON"),
    ("Upgrading from non-versioned", Unavailable, "the mount is being upgraded to KV version 2"),
    ("Vault is sealed", Unavailable, "Vault is sealed: unseal it"),
    ("HTTP request to an HTTPS server", AccessDenied, "this server speaks TLS: write https:// in its address"),
    ("invalid token", TokenRefused, "the token is not valid, expired or revoked"),
)

# https://developer.hashicorp.com/vault/api-docs#http-status-codes
_STATUSES: dict[int, tuple[type[VaultError], str]] = {
    400: (InvalidSecret, "Vault refused the request as invalid"),
    401: (AccessDenied, "something before Vault asks for other credentials"),
    403: (Forbidden, "the token's policies do not allow it"),
    405: (Unsupported, "this Vault can not do that"),
    412: (Unavailable, "this node has not caught up with its leader"),
    413: (InvalidSecret, "the value is larger than this Vault takes"),
    414: (InvalidSecret, "the name is longer than this Vault takes"),
    429: (Unavailable, "Vault asks for fewer requests"),
    431: (InvalidSecret, "the name is longer than this Vault takes"),
    472: (Unavailable, "this node is a disaster-recovery standby"),
    473: (Unavailable, "this node is a performance standby"),
    501: (Unavailable, "Vault is not initialised"),
    503: (Unavailable, "Vault is sealed, or down for maintenance"),
}
# Vault answers 500 when it could not log a call that it has carried out; a gateway may give up on one under way.
_AMBIGUOUS = frozenset({500, 502, 504})


def refusal(
    status: int, headers: Mapping[str, str], content: bytes, *, vault_id: str, call: str, quotable: bool
) -> VaultError:
    """The error for an answer that is not a success.

    Vault's own words are repeated only where the request had no body (`quotable`): parsers like to quote their input.
    """
    answer = _parsed(content)
    errors = _errors(answer, content)
    for phrase, kind, message in _PHRASES:
        if phrase in errors:
            return _build(kind, f"{message} ({status} on {call})", vault_id, status, headers)
    if status == 404:
        return _not_found(answer, errors if quotable else "", vault_id, call)
    if 300 <= status < 400:
        return AccessDenied(
            f"the server sends {call} elsewhere ({status}), and tokens are not sent after: check the address",
            vault=vault_id,
        )
    kind, message = _STATUSES.get(
        status, (Unavailable, "Vault failed") if status >= 500 else (InvalidSecret, "Vault refused the request")
    )
    words = " ".join(errors.split())[:300] if quotable else ""
    return _build(kind, f"{message} ({status} on {call}){f': {words}' if words else ''}", vault_id, status, headers)


def _build(kind: type[VaultError], message: str, vault_id: str, status: int, headers: Mapping[str, str]) -> VaultError:
    if issubclass(kind, Unavailable):
        return kind(message, vault=vault_id, retry_after=_retry_after(headers), ambiguous=status in _AMBIGUOUS)
    return kind(message, vault=vault_id)


def _not_found(answer: Answer | None, errors: str, vault_id: str, call: str) -> VaultError:
    """Only Vault's own way of saying so means that a secret is gone: the secrets of others are deleted after it."""
    if answer is None:
        return not_vault(vault_id)
    data = answer.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        state = "destroyed" if metadata.get("destroyed") else "deleted"
        return SecretNotFound(f"its newest version, {metadata.get('version')}, is {state}", vault=vault_id)
    if answer.get("errors") == []:
        return SecretNotFound(f"there is no such secret (404 on {call})", vault=vault_id)
    if answer.get("warnings"):
        # KV v2 answers so to the paths of version 1.
        return MountNotFound(
            f"the mount is not of the expected KV version: check kv_version (404 on {call})", vault=vault_id
        )
    return MountNotFound(
        f"nothing there answers: check `mount` and `namespace` (404 on {call}): {errors[:300]}", vault=vault_id
    )


def _parsed(content: bytes) -> Answer | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _errors(answer: Answer | None, content: bytes) -> str:
    """The strings in `errors`, or a proxy's text."""
    if answer is None:
        return content[:2000].decode(errors="replace")
    errors = answer.get("errors")
    return "; ".join(str(each) for each in errors) if isinstance(errors, list) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    asked = headers.get("Retry-After")
    if not asked:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


# --- what never came to an answer ---------------------------------------------------------------------------------

_REFUSED_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
    "CERTIFICATE_EXPIRED",
    "HANDSHAKE_FAILURE",
)


def breakdown(error: Exception, vault_id: str, address: str) -> VaultError:
    """The error for what aiohttp or the system raised."""
    for kind, translate in BREAKDOWNS:
        if isinstance(error, kind):
            return translate(error, vault_id, address)
    raise AssertionError(f"nothing is known about {type(error).__name__}") from None


def _certificate(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = getattr(error, "verify_message", None) or getattr(
        getattr(error, "certificate_error", None), "verify_message", None
    )
    return AccessDenied(
        f"the certificate of {address} can not be verified ({reason or 'wrong name or authority'}): "
        "give the authority's PEM file as ca_bundle",
        vault=vault_id,
    )


def _tls(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = str(getattr(error, "reason", "") or getattr(error, "os_error", ""))
    return AccessDenied(
        f"TLS with {address} failed ({reason[:100] or 'no reason given'}): does it speak https?", vault=vault_id
    )


def _not_reached(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = "in time" if isinstance(error, TimeoutError) else f"({getattr(error, 'strerror', None) or 'refused'})"
    return Unavailable(f"{address} can not be reached {reason}", vault=vault_id)


def _no_answer(error: Exception, vault_id: str, address: str) -> VaultError:
    return Unavailable(f"{address} did not answer in time", vault=vault_id, ambiguous=True)


def _torn(error: Exception, vault_id: str, address: str) -> VaultError:
    # With TLS 1.3 a server turns a client's certificate down only after the handshake.
    cause = error.__cause__ or error.__context__ or error
    reason = str(getattr(cause, "reason", None) or error)
    if any(each in reason.upper().replace(" ", "_") for each in _REFUSED_CERTIFICATE):
        return AccessDenied(f"{address} wants another client certificate: see client_cert, client_key", vault=vault_id)
    return Unavailable(f"the connection to {address} broke ({type(error).__name__})", vault=vault_id, ambiguous=True)


def _bad_url(error: Exception, vault_id: str, address: str) -> VaultError:
    return InvalidSecret("no URL can be made of this name and the vault's address", vault=vault_id)


# The first that fits: the closer kinds come before those that they derive from.
BREAKDOWNS: tuple[tuple[type[Exception], Callable[[Exception, str, str], VaultError]], ...] = (
    (aiohttp.ClientConnectorCertificateError, _certificate),
    (aiohttp.ServerFingerprintMismatch, _certificate),
    (ssl.SSLCertVerificationError, _certificate),
    (aiohttp.ClientConnectorSSLError, _tls),
    (aiohttp.ClientSSLError, _tls),
    (aiohttp.ClientConnectorError, _not_reached),
    (aiohttp.ConnectionTimeoutError, _not_reached),
    (aiohttp.InvalidURL, _bad_url),
    (aiohttp.NonHttpUrlClientError, _bad_url),
    (TimeoutError, _no_answer),
    (aiohttp.ClientError, _torn),
    (OSError, _torn),
)

HVAC_ERRORS: dict[type[Exception], type[VaultError]] = {
    hvac.exceptions.InvalidRequest: InvalidSecret,
    hvac.exceptions.ParamValidationError: InvalidSecret,
    hvac.exceptions.Unauthorized: AccessDenied,
    hvac.exceptions.Forbidden: AccessDenied,
    hvac.exceptions.InvalidPath: SecretNotFound,
    hvac.exceptions.UnsupportedOperation: Unsupported,
    hvac.exceptions.PreconditionFailed: Unavailable,
    hvac.exceptions.RateLimitExceeded: Unavailable,
    hvac.exceptions.InternalServerError: Unavailable,
    hvac.exceptions.VaultNotInitialized: Unavailable,
    hvac.exceptions.VaultDown: Unavailable,
    hvac.exceptions.BadGateway: Unavailable,
    hvac.exceptions.UnexpectedError: Unavailable,
    hvac.exceptions.VaultError: Unavailable,
}
"""hvac raises by itself only where it dislikes a parameter: the adapter's own errors go past it. All the same."""


def hvac_failure(error: hvac.exceptions.VaultError, vault_id: str) -> VaultError:
    """The error for what hvac raised. Its text is left out: it may quote a parameter."""
    kind = HVAC_ERRORS[type(error)]
    return kind(f"the client library refused the call ({type(error).__name__})", vault=vault_id)
