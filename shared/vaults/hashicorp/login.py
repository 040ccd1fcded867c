"""The token of a hashicorp vault: got by logging in, renewed in good time, got again when it is gone.

Lazily: whoever makes a call first looks whether the token is due. One task renews, the others go on with the old token
for as long as it is valid and wait only when it is not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from copy import copy
from pathlib import Path
from typing import Any

from hvac.api.auth_methods import JWT, AppRole, Azure, Kubernetes, Token

from shared.errors import AccessDenied, MountNotFound, Unavailable, VaultError
from shared.vaults.hashicorp.adapter import AsyncAdapter
from shared.vaults.hashicorp.failures import Answer, Forbidden, TokenRefused
from shared.vaults.hashicorp.settings import AppRoleAuth, Auth, AzureAuth, JwtAuth, KubernetesAuth, TokenAuth

RENEW_AT = 2 / 3
"""Of the token's lifetime, so that a server that is away for a while does not cost the token."""
RETRY_SECONDS = 30.0
"""How long a renewal that failed is left alone while the token is still good."""
TRUST_SECONDS = 10.0
"""How long a token that was found to be valid is not asked about again, however many paths are denied."""

_HINTS = {
    "approle": "check auth.role_id, auth.secret_id (it may have expired or been used up) and auth.mount",
    "kubernetes": "check auth.role with its bound service accounts and namespaces, auth.token_path and auth.mount",
    "jwt": "check auth.jwt (it may have expired), auth.role with its bound claims, and auth.mount",
    "azure": "check the managed identity (auth.client_id), auth.role with its bound ids, auth.resource and auth.mount",
}

Paced = Callable[[Callable[[], Awaitable[Answer]]], Awaitable[Answer]]


class Login:
    """Keeps `adapter.token` valid. `paced` makes a call at the vault's pace; `clock` counts seconds."""

    def __init__(
        self,
        vault_id: str,
        auth: Auth,
        adapter: AsyncAdapter,
        paced: Paced,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vault_id = vault_id
        self._auth = auth
        self._adapter = adapter
        self._paced = paced
        self._clock = clock
        self._lock = asyncio.Lock()
        self._due = -math.inf
        self._expires = -math.inf
        self._ttl = 0.0
        self._renewable = False
        self._valid_at = -math.inf
        self._failures = 0
        self._failure: VaultError | None = None

    @property
    def method(self) -> str:
        return self._auth.method

    def due(self) -> bool:
        """Whether `refresh` should be awaited before the next call."""
        return self._clock() >= self._due

    async def refresh(self) -> None:
        """Log in or renew, unless another task does. Raises AccessDenied saying what to check, or Unavailable."""
        if self._lock.locked() and self._clock() < self._expires:
            return
        await self._alone(self.due, self._bring_about)

    async def again(self, refused: str | None, error: AccessDenied) -> bool:
        """After a call was denied with the token `refused`: whether there is another token to try it with.

        Raises AccessDenied where the token is gone for good.
        """
        if isinstance(error, TokenRefused):
            gone = True
        elif isinstance(self._auth, TokenAuth) or self._clock() - self._valid_at < TRUST_SECONDS:
            return self._adapter.token != refused
        else:
            # Older servers call a dead token "permission denied" as well.
            gone = not await self._is_valid(refused)
        if not gone:
            return False
        if isinstance(self._auth, TokenAuth):
            raise self._denied("the token is not valid: it never was, has expired, or was revoked")

        def still_refused() -> bool:
            return self._adapter.token == refused

        await self._alone(still_refused, self._log_in)
        return True

    async def lookup(self) -> dict[str, Any]:
        """What the server knows about the token."""
        answer = await self._paced(lambda: Token(self._adapter).lookup_self())
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    async def _alone(self, needed: Callable[[], bool], act: Callable[[], Awaitable[None]]) -> None:
        """Do it once for all that ask at the same time; they also share its failure, which keeps accounts unlocked."""
        failures = self._failures
        async with self._lock:
            if not needed():
                return
            if failures != self._failures and self._failure is not None:
                raise copy(self._failure)
            try:
                await act()
                return
            except (AccessDenied, Unavailable) as error:
                failure: VaultError = error
            except VaultError as error:
                # What is missing here is a mount or a namespace, and must not be taken for a missing secret.
                failure = self._denied(error.message)
            self._failures += 1
            self._failure = copy(failure)
            raise failure

    async def _bring_about(self) -> None:
        if self._adapter.token is None:
            await self._log_in()
            return
        if self._clock() >= self._expires and not isinstance(self._auth, TokenAuth):
            await self._log_in()
            return
        try:
            await self._renew()
        except Unavailable:
            if self._clock() >= self._expires:
                raise
            self._due = self._clock() + RETRY_SECONDS

    async def _renew(self) -> None:
        if self._renewable:
            before = self._ttl
            try:
                answer = await self._paced(lambda: Token(self._adapter).renew_self())
            except Unavailable:
                raise
            except VaultError:
                # Denied, or at the end of what may be renewed: a new login decides.
                self._renewable = False
            else:
                self._accept(answer)
                # Near its max_ttl a token is given less and less.
                if self._ttl >= before / 2 or isinstance(self._auth, TokenAuth):
                    return
        if isinstance(self._auth, TokenAuth):
            # Nothing more can be done for it; the server will say when it is over.
            self._due = self._expires = math.inf
            return
        await self._log_in()

    async def _log_in(self) -> None:
        auth = self._auth
        if isinstance(auth, TokenAuth):
            await self._adopt(auth)
            return
        credential = await self._credential(auth)
        try:
            self._accept(await self._paced(lambda: self._send(auth, credential)))
            return
        except Unavailable:
            raise
        except MountNotFound:
            failure = self._denied(f"there is no auth method at {auth.mount!r}")
        except VaultError as error:
            failure = self._denied(error.message)
        raise failure

    async def _adopt(self, auth: TokenAuth) -> None:
        self._adapter.token = auth.token.get_secret_value() if auth.token else None
        failure: AccessDenied
        try:
            data = await self.lookup()
        except TokenRefused:
            self._adapter.token = None
            failure = self._denied("the token is not valid: it never was, has expired, or was revoked")
        except Forbidden:
            # It may do things, but not look at itself: so nothing is known about its lifetime.
            self._due = self._expires = math.inf
            return
        except BaseException:
            self._adapter.token = None
            raise
        else:
            self._live_for(data.get("ttl"), data.get("renewable"))
            return
        raise failure

    def _send(self, auth: Auth, credential: str) -> Awaitable[Answer]:
        adapter = self._adapter
        call: Awaitable[Answer]
        match auth:
            case AppRoleAuth():
                call = AppRole(adapter).login(auth.role_id, credential or None, use_token=False, mount_point=auth.mount)
            case KubernetesAuth():
                call = Kubernetes(adapter).login(auth.role, credential, use_token=False, mount_point=auth.mount)
            case JwtAuth():
                call = JWT(adapter).jwt_login(auth.role, credential, use_token=False, path=auth.mount)
            case AzureAuth():
                call = Azure(adapter).login(auth.role, credential, use_token=False, mount_point=auth.mount)
            case TokenAuth():
                raise AssertionError("a token is not logged in with")
        return call

    async def _credential(self, auth: Auth) -> str:
        match auth:
            case AppRoleAuth():
                return auth.secret_id.get_secret_value() if auth.secret_id else ""
            case JwtAuth():
                return auth.jwt.get_secret_value()
            case KubernetesAuth():
                return self._read(auth.token_path)
            case AzureAuth():
                return await self._identity_token(auth)
            case TokenAuth():
                raise AssertionError("a token is not logged in with")

    def _read(self, path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = type(error).__name__
        raise self._denied(f"the service account's token at {path} can not be read ({reason})")

    async def _identity_token(self, auth: AzureAuth) -> str:
        from azure.core.exceptions import AzureError, ClientAuthenticationError, ServiceRequestError
        from azure.identity.aio import ManagedIdentityCredential

        failure: VaultError
        try:
            async with ManagedIdentityCredential(client_id=auth.client_id, retry_total=0) as credential:
                token: str = (await credential.get_token(f"{auth.resource}/.default")).token
                return token
        except ClientAuthenticationError:
            failure = self._denied("there is no managed identity here, or it was refused a token")
        except (ServiceRequestError, AzureError) as error:
            failure = Unavailable(
                f"no token from the managed identity endpoint ({type(error).__name__})", vault=self._vault_id
            )
        raise failure

    async def _is_valid(self, token: str | None) -> bool:
        if self._adapter.token != token:
            return False
        try:
            await self.lookup()
        except Unavailable:
            raise
        except VaultError:
            return False
        self._valid_at = self._clock()
        return True

    def _accept(self, answer: Answer) -> None:
        auth = answer.get("auth")
        if not isinstance(auth, dict) or not isinstance(auth.get("client_token"), str) or not auth["client_token"]:
            raise Unavailable("the answer to the login holds no token", vault=self._vault_id)
        self._adapter.token = auth["client_token"]
        self._valid_at = self._clock()
        self._live_for(auth.get("lease_duration"), auth.get("renewable"))

    def _live_for(self, seconds: Any, renewable: Any) -> None:
        now = self._clock()
        self._ttl = float(seconds) if isinstance(seconds, int | float) else 0.0
        self._renewable = bool(renewable)
        # A lifetime of 0 has no end.
        self._expires = now + self._ttl if self._ttl else math.inf
        self._due = now + self._ttl * RENEW_AT if self._ttl else math.inf

    def _denied(self, why: str) -> AccessDenied:
        auth = self._auth
        if isinstance(auth, TokenAuth):
            where = "auth.token of this vault" if "token" in auth.model_fields_set else "VAULT_TOKEN"
            hint = f"issue a new token for {where}"
        else:
            hint = _HINTS[auth.method]
        return AccessDenied(f"login by {auth.method}: {why}; {hint}", vault=self._vault_id)
