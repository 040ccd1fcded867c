"""A configuration at the https address of a blob, read with the app's identity; the last good copy when it is away.

The clients are the asynchronous ones that everything else uses, on a thread of their own: this runs while
function_app.py is imported, where the worker's event loop is running already.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from shared.azure_storage import SETTING, blob_service, is_configured
from shared.config.build import parse
from shared.config.problems import InvalidConfig, Problem
from shared.config.result import Config
from shared.config.yaml_source import MAX_BYTES
from shared.errors import ConfigError, SyncError
from shared.resources import CONFIG_CONTAINER

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient

T = TypeVar("T")

LAST_GOOD = "config/last-good.yaml"
# Seconds. An app that has not started after 30 is stopped
# (https://learn.microsoft.com/azure/azure-functions/functions-scale#timeout), so all of this ends well before.
_WAITS = (0.5, 1.5)
_ONE_TRY = 5.0
_LAST_GOOD_READ = 6.0
_LAST_GOOD_WRITE = 4.0
_TIMEOUTS: dict[str, Any] = {"retry_total": 0, "connection_timeout": 3, "read_timeout": 5}


class _Failed(SyncError):
    def __init__(self, reason: str, *, transient: bool) -> None:
        super().__init__(reason)
        self.transient = transient


def load_blob(url: str, env: Mapping[str, str]) -> Config:
    """The configuration at `url`, or the last good copy with a warning that says so.

    Raises InvalidConfig when there is neither, or when what came is not valid.
    """
    origin = _shown(url)
    _check_address(url, origin)
    try:
        raw = _run(_download_patiently(url, env))
    except _Failed as failed:
        reason = f"the configuration could not be read: {failed}"
    else:
        config = parse(raw, env, origin)
        return _with_warning(config, _run(_keep(raw, env)))
    kept, why_not = _run(_last_good(env))
    if kept is None:
        raise InvalidConfig([Problem(origin, None, "", reason, why_not)])
    copy = f"{CONFIG_CONTAINER}/{LAST_GOOD}"
    return _with_warning(parse(kept, env, copy), f"{origin}: {reason}; the last good copy, {copy}, is used instead")


def _with_warning(config: Config, warning: str) -> Config:
    return dataclasses.replace(config, warnings=(*config.warnings, warning)) if warning else config


def _shown(url: str) -> str:
    """The address without what may be a signature or a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_address(url: str, origin: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        raise ConfigError(f"{origin}: expected a path, or the https address of a blob")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run(work: Coroutine[Any, Any, T]) -> T:
    with ThreadPoolExecutor(1, "vaultferry-config") as thread:
        return thread.submit(asyncio.run, work).result()


async def _download_patiently(url: str, env: Mapping[str, str]) -> bytes:
    # Loaded before any clock runs: on a cold machine that alone can take seconds.
    import azure.identity.aio
    import azure.storage.blob.aio  # noqa: F401

    for wait in (*_WAITS, None):
        try:
            async with asyncio.timeout(_ONE_TRY):
                return await _download(url, env)
        except TimeoutError:
            failed = _Failed(f"no answer within {_ONE_TRY:g} seconds", transient=True)
        except _Failed as error:
            failed = error
        if not failed.transient or wait is None:
            break
        await asyncio.sleep(wait)
    raise failed


async def _download(url: str, env: Mapping[str, str]) -> bytes:
    from azure.identity.aio import DefaultAzureCredential
    from azure.storage.blob.aio import BlobClient

    async with contextlib.AsyncExitStack() as stack:
        identity: DefaultAzureCredential | None = None
        if "sig" not in parse_qs(urlsplit(url).query):
            client_id = env.get(f"{SETTING}__clientId") or None
            identity = await stack.enter_async_context(DefaultAzureCredential(managed_identity_client_id=client_id))
        try:
            blob = BlobClient.from_blob_url(url, credential=identity, **_TIMEOUTS)
        except ValueError:
            failed = _Failed("this is not the address of a blob", transient=False)
        else:
            return await _content(await stack.enter_async_context(blob))
    raise failed


async def _content(blob: BlobClient) -> bytes:
    """What a blob holds, or one byte more than a configuration may: that much is enough to refuse it."""
    from azure.core.exceptions import (
        AzureError,
        ClientAuthenticationError,
        HttpResponseError,
        ResourceNotFoundError,
    )

    try:
        download = await blob.download_blob(offset=0, length=MAX_BYTES + 1, max_concurrency=1)
        return await download.readall()
    except ResourceNotFoundError:
        failed = _Failed("there is no such blob (404)", transient=False)
    except HttpResponseError as error:
        status = error.status_code
        if status == 416:
            return b""  # No byte of an empty blob can be asked for.
        if status == 403:
            failed = _Failed("refused (403): the app's identity needs Storage Blob Data Reader there", transient=False)
        elif isinstance(error, ClientAuthenticationError):
            # Without an answer no credential could be had; a managed identity may just not be ready yet.
            failed = _Failed("the app's identity was not accepted", transient=status is None)
        else:
            failed = _Failed(f"HTTP {status}", transient=status is None or status in (408, 429) or status >= 500)
    except AzureError as error:
        failed = _Failed(f"no answer ({type(error).__name__})", transient=True)
    raise failed


async def _last_good(env: Mapping[str, str]) -> tuple[bytes | None, str]:
    """The copy, or why there is none."""
    if not is_configured(env):
        return None, f"{SETTING} is not set, so there is no last good copy"
    try:
        async with asyncio.timeout(_LAST_GOOD_READ), blob_service(env) as service:
            return await _content(service.get_blob_client(CONFIG_CONTAINER, LAST_GOOD)), ""
    except TimeoutError:
        return None, "nor could the last good copy: no answer from the storage account"
    except (_Failed, ConfigError) as error:
        return None, f"nor could the last good copy in the storage account: {error}"


async def _keep(raw: bytes, env: Mapping[str, str]) -> str:
    """Keep a copy of what was valid. Returns a warning where that failed, for it is no reason not to start."""
    from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError

    if not is_configured(env):
        return ""
    try:
        async with asyncio.timeout(_LAST_GOOD_WRITE), blob_service(env) as service:
            container = service.get_container_client(CONFIG_CONTAINER)
            try:
                await container.upload_blob(LAST_GOOD, raw, overwrite=True)
            except ResourceNotFoundError:
                with contextlib.suppress(ResourceExistsError):
                    await container.create_container()
                await container.upload_blob(LAST_GOOD, raw, overwrite=True)
    except (TimeoutError, AzureError, ConfigError) as error:
        return f"no copy of the configuration could be kept in the storage account ({type(error).__name__})"
    return ""
