"""The SDK's client on one session: who signs in, over which TLS."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any

from shared.errors import AccessDenied, ConfigError
from shared.vaults.azure_key_vault.settings import (
    AUTHORITIES,
    ManagedIdentityAuth,
    ServicePrincipalAuth,
    Settings,
    suffix,
)

if TYPE_CHECKING:
    import aiohttp
    from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.keyvault.secrets.aio import SecretClient

_CONNECT_TIMEOUT = 10
"""Seconds."""
_FRESH = 300
"""Seconds that a token must still be good for; azure-identity's own measure."""


class Client:
    """Opens on first use, in the event loop that uses it. `timeout`: seconds of silence of the server."""

    def __init__(self, vault_id: str, settings: Settings, timeout: float) -> None:
        self._vault_id = vault_id
        self._settings = settings
        self._timeout = timeout
        self._tls = _trusting(vault_id, settings.ca_bundle)
        self._session: aiohttp.ClientSession | None = None
        self._credential: AsyncTokenCredential | None = None
        self._client: SecretClient | None = None

    def get(self) -> SecretClient:
        """Raises AccessDenied when the credential can not even be made."""
        if self._client is None:
            import aiohttp
            from azure.core.pipeline.transport import AioHttpTransport
            from azure.keyvault.secrets.aio import SecretClient

            # One session and one TLS context: the SDK would load a CA bundle, and open a connection, for every request.
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._tls or True, limit=0),
                    auto_decompress=False,
                    trust_env=True,
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
                # aiohttp would send a PUT or DELETE again when its connection is torn: a write is never sent twice
                # here. There is no public switch; a test notices when this one is gone.
                self._session._retry_connection = False

            def transport() -> AioHttpTransport:
                return AioHttpTransport(
                    session=self._session,
                    session_owner=False,
                    connection_timeout=_CONNECT_TIMEOUT,
                    read_timeout=self._timeout,
                )

            self._credential = self._signed_in_by(transport())
            self._client = SecretClient(
                self._settings.url,
                self._credential,
                # The SDK refuses to send a token to a host that is not of the challenge's domain. A private stand-in
                # (sandbox, proxy, air-gapped cloud) never is.
                verify_challenge_resource=suffix(self._settings.url) is not None,
                retry_total=0,
                transport=transport(),
            )
        return self._client

    def _signed_in_by(self, transport: AioHttpTransport) -> AsyncTokenCredential:
        try:
            return OneSignIn(_credential(self._settings, transport))
        except ValueError:
            pass
        raise AccessDenied(
            "the credential can not be made; look at tenant_id, client_id and the AZURE_* variables",
            vault=self._vault_id,
        )

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._credential is not None:
            await self._credential.close()
        if self._session is not None:
            await self._session.close()


class OneSignIn:
    """A credential that many may ask at once while it signs in once.

    The first calls to a vault all begin without a token; behind the default credential may be the Azure CLI, which
    takes a process and a second each time.
    """

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._one = asyncio.Lock()
        self._tokens: dict[tuple[tuple[str, ...], str | None], AccessTokenInfo] = {}

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        wanted = scopes, (options or {}).get("tenant_id")
        async with self._one:
            token = self._tokens.get(wanted)
            # Claims are what the vault asks for beyond the token it was shown.
            if token is None or _stale(token) or (options or {}).get("claims"):
                token = await self._credential.get_token_info(*scopes, options=options)
                self._tokens[wanted] = token
            return token

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """The older way to ask, which the protocol wants and the SDK does not use when it finds the other."""
        token: AccessToken = await self._credential.get_token(*scopes, **options)
        return token

    async def close(self) -> None:
        await self._credential.close()

    async def __aenter__(self) -> OneSignIn:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


def _stale(token: AccessTokenInfo) -> bool:
    now = time.time()
    return token.expires_on - now < _FRESH or (token.refresh_on is not None and token.refresh_on <= now)


def _trusting(vault_id: str, ca_bundle: str | None) -> ssl.SSLContext | None:
    if ca_bundle is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_bundle)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{vault_id}: the ca_bundle {ca_bundle} can not be read: {reason}") from None
    return context


def _credential(settings: Settings, transport: Any) -> AsyncTokenCredential:
    from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential, ManagedIdentityCredential

    auth = settings.auth
    authority = settings.authority or AUTHORITIES.get(suffix(settings.url) or "")
    options: dict[str, Any] = {"transport": transport} | ({"authority": authority} if authority else {})
    if isinstance(auth, ServicePrincipalAuth):
        return ClientSecretCredential(
            auth.tenant_id, auth.client_id, auth.client_secret.get_secret_value(), retry_total=0, **options
        )
    # Two tries more: a managed identity's endpoint answers 404 and 410 while it starts.
    if isinstance(auth, ManagedIdentityAuth):
        return ManagedIdentityCredential(client_id=auth.client_id, retry_total=2, transport=transport)
    return DefaultAzureCredential(retry_total=2, **options)
