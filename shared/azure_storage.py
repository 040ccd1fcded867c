"""The storage account behind `AzureWebJobsStorage`: the one the Functions host itself works with.

A connection string, or an identity, told in the host's own settings
(https://learn.microsoft.com/azure/azure-functions/functions-reference#connecting-to-host-storage-with-an-identity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from shared.errors import ConfigError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.data.tables.aio import TableServiceClient
    from azure.storage.blob.aio import BlobServiceClient
    from azure.storage.queue.aio import QueueServiceClient

SETTING = "AzureWebJobsStorage"

# A call that gets no answer is given up within the time a queue message stays invisible, and a few quick tries are all:
# what still fails is delivered again.
_TIMEOUTS: dict[str, Any] = {"connection_timeout": 10, "read_timeout": 30}
_STORAGE_RETRIES: dict[str, Any] = {
    "retry_total": 2,
    "initial_backoff": 1,
    "increment_base": 2,
    "random_jitter_range": 1,
}
_TABLE_RETRIES: dict[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.5, "retry_backoff_max": 5}

ClientT = TypeVar("ClientT")


def is_configured(env: Mapping[str, str]) -> bool:
    """Whether the environment names a storage account at all."""
    return any(value and (name == SETTING or name.startswith(f"{SETTING}__")) for name, value in env.items())


def table_service(env: Mapping[str, str]) -> TableServiceClient:
    """The account's tables. Raises ConfigError. Close it: its credential is closed with it."""
    from azure.data.tables.aio import TableServiceClient

    return _client(
        env,
        "table",
        lambda text: TableServiceClient.from_connection_string(text, **_TABLE_RETRIES, **_TIMEOUTS),
        lambda url, identity: TableServiceClient(url, **identity, **_TABLE_RETRIES),
    )


def queue_service(env: Mapping[str, str]) -> QueueServiceClient:
    """The account's queues. Raises ConfigError. Close it: its credential is closed with it."""
    from azure.storage.queue.aio import QueueServiceClient

    return _client(
        env,
        "queue",
        lambda text: QueueServiceClient.from_connection_string(text, **_STORAGE_RETRIES, **_TIMEOUTS),
        lambda url, identity: QueueServiceClient(url, **identity, **_STORAGE_RETRIES),
    )


def blob_service(env: Mapping[str, str]) -> BlobServiceClient:
    """The account's blobs. Raises ConfigError. Close it: its credential is closed with it."""
    from azure.storage.blob.aio import BlobServiceClient

    return _client(
        env,
        "blob",
        lambda text: BlobServiceClient.from_connection_string(text, **_STORAGE_RETRIES, **_TIMEOUTS),
        lambda url, identity: BlobServiceClient(url, **identity, **_STORAGE_RETRIES),
    )


def _client(
    env: Mapping[str, str],
    service: str,
    by_connection_string: Callable[[str], ClientT],
    by_identity: Callable[[str, dict[str, Any]], ClientT],
) -> ClientT:
    if text := env.get(SETTING, "").strip().rstrip(";"):
        # The SDKs differ in how they want this one written.
        text = "UseDevelopmentStorage=true" if text.lower() == "usedevelopmentstorage=true" else text
        try:
            return by_connection_string(text)
        except ValueError:
            # The SDK's own message may repeat a part of the connection string, and that holds the account's key.
            problem = f"{SETTING} is not a connection string of a storage account with a {service} endpoint and a key"
        raise ConfigError(problem)
    url = _endpoint(env, service)
    credential = _credential(env)
    try:
        return by_identity(url, {"credential": credential, "transport": _transport(credential)})
    except ValueError:
        problem = f"{SETTING}__{service}ServiceUri is not the https address of a storage account's {service} endpoint"
    raise ConfigError(problem)


def _endpoint(env: Mapping[str, str], service: str) -> str:
    setting = f"{SETTING}__{service}ServiceUri"
    if url := env.get(setting, "").strip():
        # A token would be sent along: never in the clear.
        if not url.startswith("https://"):
            raise ConfigError(f"{setting} must start with https://")
        return url
    if account := env.get(f"{SETTING}__accountName", "").strip():
        return f"https://{account}.{service}.core.windows.net"
    if not is_configured(env):
        raise ConfigError(f"{SETTING} is not set: give a connection string, or {SETTING}__accountName for an identity")
    raise ConfigError(f"{setting} is not set, nor is {SETTING}__accountName: one of them must name the account")


def _credential(env: Mapping[str, str]) -> AsyncTokenCredential:
    from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

    client_id = env.get(f"{SETTING}__clientId") or None
    kind = env.get(f"{SETTING}__credential", "").strip().lower()
    if kind == "managedidentity":
        return ManagedIdentityCredential(client_id=client_id)
    if kind:
        raise ConfigError(f'{SETTING}__credential must be "managedidentity", or absent')
    return DefaultAzureCredential(managed_identity_client_id=client_id)


def _transport(credential: AsyncTokenCredential) -> Any:
    from azure.core.pipeline.transport import AioHttpTransport

    class ClosesCredential(AioHttpTransport):  # type: ignore[misc]  # the package loads it late, untyped
        """The SDKs' clients close their transport, but never the credential that they were given."""

        async def close(self) -> None:
            await credential.close()
            await super().close()

    return ClosesCredential(**_TIMEOUTS)
