"""The SDK's client on one session: who signs in, over which TLS."""

from __future__ import annotations

import ssl
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
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.keyvault.secrets.aio import SecretClient

_CONNECT_TIMEOUT = 10
"""Seconds."""


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
            return _credential(self._settings, transport)
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
