"""An account on a Bitwarden server: the login, the keys that it opens, and every call.

    POST /identity/accounts/prelogin   how the master key is made
    POST /identity/connect/token       grant password (by the hash of the master key), client_credentials (the API key;
                                       no two-step login), or refresh_token
    /api/...                           with the access token; renewed before it ends, and once when it is refused

Requests look as those of the official command-line client: https://github.com/bitwarden/clients and, for the server's
side, https://github.com/dani-garcia/vaultwarden (src/api/identity.rs).
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx
from cryptography.exceptions import UnsupportedAlgorithm

from shared import VERSION
from shared.errors import AccessDenied, ConfigError, Conflict, InvalidSecret, Unavailable, VaultError
from shared.vaults.vaultwarden import crypto
from shared.vaults.vaultwarden.crypto import Kdf, KdfKind, SymmetricKey
from shared.vaults.vaultwarden.failures import (
    TokenRefused,
    WrongCredentials,
    breakdown,
    login_refusal,
    not_bitwarden,
    refusal,
)
from shared.vaults.vaultwarden.settings import Settings

T = TypeVar("T")

_CLIENT_VERSION = "2025.12.0"
"""The official client whose requests these are; servers leave out SSH keys for those before 2024.12."""
_DEVICE_TYPE = "25"
"""LinuxCLI."""
_EARLY = 60.0
"""Seconds before its end that a token is renewed."""
_DENIED_FOR = 60.0
"""Seconds that a refused login is not tried again."""
_WRONG_FOR = 3600.0
"""The most for a wrong password or API key: the rest doubles each time, since tries lock accounts and addresses out."""


class Call(Protocol):
    """The vault's pacer."""

    def __call__(self, attempt: Callable[[], Awaitable[T]], *, write: bool = False) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class _Session:
    token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    ends: float
    user_key: SymmetricKey


class Account:
    """Logs in with the first call. `call` is the way through the vault's pacer, `timeout` the seconds of silence."""

    def __init__(self, vault_id: str, settings: Settings, call: Call, *, timeout: float = 30.0) -> None:
        self._settings = settings
        self._call = call
        self._timeout = timeout
        self._tls = _trusting(vault_id, settings.ca_bundle)
        # The same for ever: each new device is told to the account's owner by e-mail.
        self._device = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{settings.url}#{settings.email.lower()}#{vault_id}"))
        self._client: httpx.AsyncClient | None = None
        self._session: _Session | None = None
        self._one_login = asyncio.Lock()
        self._denied: tuple[float, VaultError] | None = None
        self._wrong = 0
        self._clock_ahead: float | None = None

    async def user_key(self) -> SymmetricKey:
        """The key that opens the account. Logs in if need be; raises AccessDenied and Unavailable."""
        return (await self._logged_in()).user_key

    def server_time(self) -> float | None:
        """Seconds since the epoch on the server's clock, by its last `Date` (whole seconds, cut); None: it has not told."""
        return None if self._clock_ahead is None else time.time() + self._clock_ahead

    async def get(self, path: str) -> Any:
        return await self._ask("GET", path)

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: SymmetricKey | None = None,
        answers: bool = True,
    ) -> Any:
        """A write. `key`: the account's that the body is encrypted with; `answers`: JSON is expected back.

        Raises Conflict where the server holds a newer item, or the account has another key by now.
        """
        return await self._ask(method, path, body, key=key, write=True, answers=answers)

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    # Calls.

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: SymmetricKey | None = None,
        write: bool = False,
        answers: bool = True,
    ) -> Any:
        content = None if body is None else json.dumps(body).encode()
        session = _opening(await self._logged_in(), key)
        try:
            return await self._once(session, method, path, content, write, answers)
        except TokenRefused:
            # Nothing was done, so even a write may be sent again.
            session = await self._logged_in(after=session)
        return await self._once(_opening(session, key), method, path, content, write, answers)

    async def _once(
        self, session: _Session, method: str, path: str, content: bytes | None, write: bool, answers: bool
    ) -> Any:
        headers = {"Authorization": f"Bearer {session.token}"}
        if content is not None:
            headers["Content-Type"] = "application/json"

        async def attempt() -> Any:
            response = await self._request(method, f"/api{path}", headers=headers, content=content)
            if not response.is_success:
                raise refusal(response.status_code, response.headers, response.content, write=write)
            return _json(response.content) if answers else None

        return await self._call(attempt, write=write)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        client = self._client or self._open()
        url = self._settings.url
        try:
            async with asyncio.timeout(4 * self._timeout):
                response = await client.request(method, url + path, **options)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            failure = breakdown(error, url)
        else:
            self._read_clock(response.headers.get("Date", ""))
            return response
        # Raised out here, so that nothing of httpx's, which knows the request, hangs on to it.
        raise failure

    def _open(self) -> httpx.AsyncClient:
        self._client = httpx.AsyncClient(
            verify=self._tls,
            timeout=httpx.Timeout(self._timeout, connect=min(10.0, self._timeout)),
            # The pacer bounds the calls; a second bound here would only hide its queue from it.
            # Vaultwarden closes idle connections after five seconds, and a write on one that is being closed is in doubt.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=3.0),
            follow_redirects=False,
            headers={
                "Accept": "application/json",
                "User-Agent": f"Vaultferry/{VERSION}",
                "Device-Type": _DEVICE_TYPE,
                "Bitwarden-Client-Name": "cli",
                "Bitwarden-Client-Version": _CLIENT_VERSION,
            },
        )
        return self._client

    def _read_clock(self, date: str) -> None:
        try:
            self._clock_ahead = parsedate_to_datetime(date).timestamp() - time.time()
        except (ValueError, TypeError):
            self._clock_ahead = None

    # The login.

    async def _logged_in(self, after: _Session | None = None) -> _Session:
        """A session that is good for a while yet, and another one than `after`, which was refused."""
        if (session := self._usable(after)) is not None:
            return session
        async with self._one_login:
            if (session := self._usable(after)) is not None:
                return session
            if self._denied is not None:
                until, error = self._denied
                if time.monotonic() < until:
                    raise copy.copy(error)
            try:
                session = await self._renewed() or await self._logged_in_anew()
            except AccessDenied as error:
                self._wrong = self._wrong + 1 if isinstance(error, WrongCredentials) else 0
                rest = min(_DENIED_FOR * 2 ** max(0, self._wrong - 1), _WRONG_FOR)
                self._denied = (time.monotonic() + rest, copy.copy(error))
                raise
            except Unavailable as error:
                # The same for a server that has had enough of logins: each one more makes it worse.
                if error.retry_after:
                    self._denied = (time.monotonic() + min(error.retry_after, _DENIED_FOR), copy.copy(error))
                raise
            self._session, self._denied, self._wrong = session, None, 0
            return session

    def _usable(self, after: _Session | None) -> _Session | None:
        session = self._session
        return None if session is None or session is after or session.ends <= time.monotonic() else session

    async def _renewed(self) -> _Session | None:
        """By the refresh token, if there is one that the server still takes."""
        if self._session is None or self._session.refresh_token is None:
            return None
        form = {"grant_type": "refresh_token", "client_id": "cli", "refresh_token": self._session.refresh_token}
        try:
            answer = await self._token(form)
        except AccessDenied:
            return None
        return self._opened(answer, self._session.user_key, self._session.refresh_token)

    async def _logged_in_anew(self) -> _Session:
        password = self._settings.password.get_secret_value()
        by_key = self._settings.client_secret is not None
        kdf, email = await self._prelogin(), self._settings.email
        # Seconds of work, which must not hold up the event loop.
        try:
            master = await asyncio.to_thread(crypto.master_key, password, email, kdf)
        except UnsupportedAlgorithm:
            master = None
        if master is None:
            raise AccessDenied("the account uses Argon2id, for which the installed `cryptography` needs OpenSSL 3.2")
        device = {
            "deviceType": _DEVICE_TYPE,
            "deviceIdentifier": self._device,
            "deviceName": "vaultferry",
        }
        headers = {}
        if self._settings.client_secret is not None:
            form = {
                "grant_type": "client_credentials",
                "client_id": self._settings.client_id or "",
                "client_secret": self._settings.client_secret.get_secret_value(),
                "scope": "api",
            }
        else:
            form = {
                "grant_type": "password",
                "client_id": "cli",
                "username": email,
                "password": crypto.login_hash(master, password),
                "scope": "api offline_access",
            }
            # Bitwarden's own server has asked for it; base64url without padding.
            headers["Auth-Email"] = base64.urlsafe_b64encode(email.encode()).decode().rstrip("=")
        answer = await self._token({**form, **device}, headers, by_key=by_key)
        wrapped = answer.get("Key") or answer.get("key")
        if not isinstance(wrapped, str):
            raise AccessDenied("the account has no master password (single sign-on only?), so nothing can be opened")
        try:
            user_key = crypto.unwrap(wrapped, crypto.stretched(master))
        except InvalidSecret as error:
            why = error.message
        else:
            return self._opened(answer, user_key, None)
        if by_key and "MAC" in why:
            raise WrongCredentials(
                "the API key is right, but e-mail or master password are wrong: they do not open the account"
            )
        raise AccessDenied(f"the login worked, but the account's key can not be opened: {why}")

    async def _prelogin(self) -> Kdf:
        async def attempt() -> Any:
            body = {"email": self._settings.email}
            response = await self._request("POST", "/identity/accounts/prelogin", json=body)
            if not response.is_success:
                raise login_refusal(response.status_code, response.headers, response.content, by_key=False)
            return _json(response.content)

        answer = await self._call(attempt)
        if not isinstance(answer, dict):
            raise not_bitwarden()
        numbers = {key.lower(): value for key, value in answer.items()}
        try:
            kdf = Kdf(
                KdfKind(int(numbers.get("kdf", -1))),
                int(numbers.get("kdfiterations") or 0),
                int(numbers.get("kdfmemory") or 0),
                int(numbers.get("kdfparallelism") or 0),
            )
        except (ValueError, TypeError):
            kdf = None
        if kdf is None:
            raise AccessDenied("the server asks for a way to make the master key that is not known here")
        if flaw := kdf.flaw():
            raise AccessDenied(f"the server asks for an unsafe way to make the master key: {flaw}")
        return kdf

    async def _token(
        self, form: Mapping[str, str], headers: Mapping[str, str] | None = None, *, by_key: bool = False
    ) -> dict[str, Any]:
        async def attempt() -> Any:
            response = await self._request(
                "POST", "/identity/connect/token", data=dict(form), headers=dict(headers or {})
            )
            if not response.is_success:
                raise login_refusal(response.status_code, response.headers, response.content, by_key=by_key)
            return _json(response.content)

        answer = await self._call(attempt)
        if not isinstance(answer, dict) or not isinstance(answer.get("access_token"), str):
            raise not_bitwarden()
        return answer

    def _opened(self, answer: Mapping[str, Any], user_key: SymmetricKey, refresh_token: str | None) -> _Session:
        seconds = answer.get("expires_in")
        lasts = float(seconds) if isinstance(seconds, int | float) else 3600.0
        return _Session(
            token=answer["access_token"],
            refresh_token=answer.get("refresh_token") or refresh_token,
            # At least a moment: a token that is refused then is renewed all the same.
            ends=time.monotonic() + max(lasts - _EARLY, lasts / 2),
            user_key=user_key,
        )


def _opening(session: _Session, key: SymmetricKey | None) -> _Session:
    """A person may have rotated the account's key, and nobody could read what is encrypted with the old one."""
    if key is not None and session.user_key != key:
        raise Conflict("the account's key has just been changed")
    return session


def item_path(item_id: str) -> str:
    return f"/ciphers/{quote(item_id, safe='')}"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    raise not_bitwarden()


def _trusting(vault_id: str, ca_bundle: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_bundle is None:
        return context
    try:
        context.load_verify_locations(ca_bundle)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{vault_id}: the ca_bundle {ca_bundle} can not be read: {reason}") from None
    return context
