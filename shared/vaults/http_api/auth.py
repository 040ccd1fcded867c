"""How requests say who they are: headers or a query parameter, fixed or with a token that is fetched."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from shared.errors import AccessDenied, Unavailable, VaultError
from shared.vaults.http_api import answers, failures
from shared.vaults.http_api.settings import (
    ApiKeyAuth,
    BasicAuth,
    BearerAuth,
    HeadersAuth,
    OAuth2Auth,
    Settings,
)

if TYPE_CHECKING:
    from shared.vaults.http_api.client import Client

_WITHOUT_EXPIRY = 300.0
"""Seconds that a token is used for whose lifetime was not told."""
_AHEAD = 60.0
"""Seconds before its end at which a token is replaced; a tenth of its life where that is less."""
# The words that a token endpoint may refuse with: https://www.rfc-editor.org/rfc/rfc6749#section-5.2
_CODES = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "access_denied",
    }
)

Paced = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What goes with a request. Its repr tells nothing."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


class Auth:
    """The credentials of one vault. `current` is cheap but for a token that has to be fetched."""

    def __init__(self, settings: Settings, client: Client, paced: Paced) -> None:
        self._auth = settings.auth
        self._client = client
        self._paced = paced
        self._one = asyncio.Lock()
        self._token: Credentials | None = None
        self._fresh_until = 0.0

    @property
    def renewable(self) -> bool:
        return isinstance(self._auth, OAuth2Auth)

    async def current(self, refused: Credentials | None = None) -> Credentials:
        """The credentials to send now; others than `refused`, where there can be others. Raises VaultError."""
        auth = self._auth
        if not isinstance(auth, OAuth2Auth):
            return fixed(auth)
        async with self._one:
            stale = asyncio.get_running_loop().time() >= self._fresh_until
            if self._token is None or stale or (refused is not None and self._token is refused):
                self._token = await self._fetch(auth)
            return self._token

    async def _fetch(self, auth: OAuth2Auth) -> Credentials:
        form = {"grant_type": "client_credentials"}
        form |= {key: value for key in ("scope", "audience") if (value := getattr(auth, key))}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        secret = auth.client_secret.get_secret_value()
        if auth.client_auth == "header":
            # Encoded before they are joined: https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
            headers["Authorization"] = _basic(quote(auth.client_id, safe=""), quote(secret, safe=""))
        else:
            form |= {"client_id": auth.client_id, "client_secret": secret}
        body = urlencode(form).encode()

        async def attempt() -> Any:
            status, got, content = await self._client.fetch("POST", auth.token_url, headers=headers, body=body)
            if status == 200:
                return answers.parse(content)
            raise _refused(status, got, content)

        asked = asyncio.get_running_loop().time()
        try:
            granted = await self._paced(attempt)
        except Unavailable as error:
            # Whatever was on its way to the API itself was not sent.
            error.message = f"no token was fetched: {error.message}"
            error.ambiguous = False
            raise
        token = granted.get("access_token") if isinstance(granted, dict) else None
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise AccessDenied("the answer of auth.token_url holds no access_token: is it a token endpoint?")
        lifetime = _seconds(granted.get("expires_in"))
        self._fresh_until = asked + lifetime - min(_AHEAD, lifetime / 10)
        return Credentials({"Authorization": f"Bearer {token}"})


def fixed(auth: Any) -> Credentials:
    if isinstance(auth, BearerAuth):
        return Credentials({"Authorization": f"Bearer {auth.token.get_secret_value()}"})
    if isinstance(auth, BasicAuth):
        return Credentials({"Authorization": _basic(auth.username, auth.password.get_secret_value())})
    if isinstance(auth, ApiKeyAuth):
        key = auth.key.get_secret_value()
        if auth.query:
            return Credentials(query={auth.query: key})
        return Credentials({auth.header or "X-API-Key": key})
    if isinstance(auth, HeadersAuth):
        return Credentials({name: value.get_secret_value() for name, value in auth.headers.items()})
    return Credentials()


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _seconds(given: Any) -> float:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        return _WITHOUT_EXPIRY
    return seconds if 0 < seconds < 1e9 else _WITHOUT_EXPIRY


def _refused(status: int, headers: Mapping[str, str], content: bytes) -> VaultError:
    failure = failures.refusal(status, headers, operation="auth.token_url")
    if isinstance(failure, Unavailable):
        return failure
    try:
        said = answers.parse(content)
        code = said.get("error") if isinstance(said, dict) else None
    except VaultError:
        code = None
    shown = f" {code}" if isinstance(code, str) and code in _CODES else ""
    return AccessDenied(
        f"no token was given ({status}{shown} from auth.token_url): check client_id, client_secret, scope"
    )
