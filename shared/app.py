"""The composition root: configuration and environment → store, queues, vaults and the engine that works with them.

`App` is one opened installation: `async with App(config, env) as app`. `LazyApp` is what a Functions worker has: nothing
until the first trigger, then one `App` for each event loop of the process. Importing this module loads neither
SDKs nor pydantic, for function_app.py imports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets as random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigError
from shared.references import WHAT_TO_DO, is_unresolved
from shared.signing import MIN_SECRET

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from shared.config import Config
    from shared.history import Store
    from shared.jobs import Queues
    from shared.relay.relay import Relay
    from shared.settings import VaultSettings
    from shared.sqlite import Database
    from shared.vault import Vault

log = logging.getLogger("vaultferry.app")

STORE = "VAULTFERRY_STORE"
DIGEST_KEY = "VAULTFERRY_DIGEST_KEY"
MIN_KEY_LENGTH = 32
AUDIT_SECRET = "VAULTFERRY_AUDIT_SECRET"  # noqa: S105 - the setting's name
DEFAULT_FILE = "vaultferry.db"
POSTPONED = 60.0
"""Seconds until a job that met a broken configuration is looked at again."""


# --- store and queues ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Storage:
    """A store and the queues that go with it; not opened yet."""

    store: Store
    queues: Queues
    database: Database | None
    """The SQLite file that both share; None: they are in a storage account."""

    async def open(self) -> None:
        await self.store.open()
        try:
            await self.queues.open()
        except BaseException:
            await self.store.aclose()
            raise

    async def aclose(self) -> None:
        await _all([self.queues.aclose(), self.store.aclose()])


def store_file(env: Mapping[str, str]) -> Path | None:
    """Which SQLite file the environment asks for; None: the tables of a storage account. Raises ConfigError."""
    from shared import azure_storage

    given = env.get(STORE, "").strip()
    if not given:
        return None if azure_storage.is_configured(env) else Path(DEFAULT_FILE)
    if given == "tables":
        if not azure_storage.is_configured(env):
            raise ConfigError(f"{STORE} is 'tables', so {azure_storage.SETTING} must name the storage account")
        return None
    path = given.removeprefix("sqlite:///")
    if path == given or not path or path.endswith("/") or "\0" in path:
        # Not quoted: a connection string may have been put here by mistake.
        raise ConfigError(f"{STORE} must be sqlite:///relative.db, sqlite:////absolute.db or tables")
    return Path(path)


def storage(env: Mapping[str, str], clock: Callable[[], datetime]) -> Storage:
    """The store and the queues that the environment asks for. Raises ConfigError."""
    path = store_file(env)
    if path is not None:
        from shared.histories.sqlite import SqliteStore
        from shared.queues.sqlite import SqliteQueues
        from shared.sqlite import Database

        database = Database(path)
        return Storage(SqliteStore(database, clock=clock), SqliteQueues(database), database)
    from shared.azure_storage import table_service
    from shared.histories.table_storage import TableStore
    from shared.queues.storage_queue import StorageQueues

    return Storage(TableStore(lambda: table_service(env), clock=clock), StorageQueues(env), None)


# --- the digest key -----------------------------------------------------------------------------------------------


def digest_key(env: Mapping[str, str]) -> str:
    """The key of all digests: from the environment, or kept beside the SQLite file. Raises ConfigError."""
    if given := env.get(DIGEST_KEY, ""):
        if is_unresolved(given):
            raise ConfigError(f"the Key Vault reference in {DIGEST_KEY} does not resolve: {WHAT_TO_DO}")
        if len(given) < MIN_KEY_LENGTH:
            raise ConfigError(f"{DIGEST_KEY} has {len(given)} characters; at least {MIN_KEY_LENGTH} are needed")
        return given
    path = store_file(env)
    if path is None:
        raise ConfigError(
            f"{DIGEST_KEY} is not set: with a storage account it is required, at least {MIN_KEY_LENGTH} characters "
            "(such as `openssl rand -hex 32` gives), and the same for all that use this account"
        )
    return _kept_key(path.with_name(f"{path.name}.key"), path)


def _kept_key(path: Path, database: Path) -> str:
    """The key in a file, made by whichever process comes first."""
    problem = f"the digest key {path} can not be read or made"
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read_key(path)
        if database.exists():
            log.warning("%s is not there, so a new digest key is made: all values are compared anew", path)
        _make_key(path)
        return _read_key(path)
    except OSError as error:
        problem = f"{problem}: {error.strerror}; set {DIGEST_KEY}, or use a folder that can be written to"
    except ValueError:
        problem = f"{path} does not hold a digest key; set {DIGEST_KEY}, or remove the file so that a new one is made"
    raise ConfigError(problem)


def _read_key(path: Path) -> str:
    key = path.read_text("ascii").strip()
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError
    return key


def _make_key(path: Path) -> None:
    """Whole or not at all: a link is made in one step, and never in place of a file that is there."""
    draft = path.with_name(f"{path.name}.{random.token_hex(6)}")
    file = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        try:
            os.write(file, f"{random.token_hex(32)}\n".encode())
            os.fsync(file)
        finally:
            os.close(file)
        with contextlib.suppress(FileExistsError):
            _publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        # Some shared folders know no links. Two processes that start at the very same moment could each make a key
        # here; the one that lost would only compare values once more than needed.
        if not path.exists():
            draft.rename(path)


# --- the secret that signs audit entries --------------------------------------------------------------------------


def audit_secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    """What POST /audit is signed with: none, one, or the new one and the old one. Raises ConfigError."""
    found = tuple(secret.strip() for secret in env.get(AUDIT_SECRET, "").split(",") if secret.strip())
    if any(is_unresolved(secret) for secret in found):
        raise ConfigError(f"the Key Vault reference in {AUDIT_SECRET} does not resolve: {WHAT_TO_DO}")
    if len(found) > 2:
        raise ConfigError(f"{AUDIT_SECRET} holds {len(found)} secrets; one, or a new and an old one are possible")
    if any(len(secret) < MIN_SECRET for secret in found):
        raise ConfigError(
            f"{AUDIT_SECRET} is too short: each secret in it has at least {MIN_SECRET} characters "
            "(such as `openssl rand -hex 32` gives)"
        )
    return found


# --- vaults -------------------------------------------------------------------------------------------------------


class VaultPool:
    """Opens each vault (and resource of it) once, when it is first needed, whoever asks at the same time."""

    def __init__(self, settings: Mapping[str, VaultSettings]) -> None:
        self._settings = settings
        self._opening: dict[tuple[str, str], asyncio.Task[Vault]] = {}
        self._asked: dict[tuple[str, str], Vault] = {}
        """All that are open or being opened."""

    def silence(self, vault_id: str) -> float:
        """Seconds for which a vault has been asked and has answered nothing; 0: nobody waits for it."""
        return max((vault.pacer.silence() for (each, _), vault in self._asked.items() if each == vault_id), default=0.0)

    async def get(self, vault_id: str, resource: str = "secrets") -> Vault:
        """The vault, opened. Raises any VaultError, and ConfigError; a failure is not remembered."""
        key = (vault_id, resource)
        task = self._opening.get(key)
        if task is None:
            task = asyncio.create_task(self._open(vault_id, resource), name=f"open {vault_id}")
            self._opening[key] = task
            task.add_done_callback(lambda done: _forget_failure(self._opening, key, done))
        # One caller that gives up must not take the vault from the others.
        return await asyncio.shield(task)

    async def _open(self, vault_id: str, resource: str) -> Vault:
        from shared import vaults

        settings: Any = self._settings.get(vault_id)
        if settings is None:
            raise ConfigError(f"there is no vault {vault_id!r} in the configuration")
        vault: Vault = vaults.kinds()[settings.kind].connect(vault_id, settings, resource)
        self._asked[vault_id, resource] = vault
        try:
            await vault.open()
        except BaseException:
            del self._asked[vault_id, resource]
            await vault.aclose()
            raise
        return vault

    async def aclose(self) -> None:
        tasks = list(self._opening.values())
        self._opening.clear()
        for task in tasks:
            task.cancel()
        opened = await asyncio.gather(*tasks, return_exceptions=True)
        await _all([vault.aclose() for vault in opened if not isinstance(vault, BaseException)])


def _forget_failure(tasks: dict[Any, asyncio.Task[Any]], key: Any, task: asyncio.Task[Any]) -> None:
    """Let the next one try anew. Asking for the exception also says that it was seen, if nobody waits any more."""
    if (task.cancelled() or task.exception() is not None) and tasks.get(key) is task:
        del tasks[key]


def vault_address(settings: VaultSettings) -> str:
    """Where a vault's secrets are: what an owner's mark knows of it. The same text for the same place, for good."""
    parts = (getattr(settings, name, None) for name in ("address", "url", "base_url", "path", "namespace", "mount"))
    return " ".join(str(part) for part in parts if part)


# --- the whole ----------------------------------------------------------------------------------------------------


class App:
    """One installation, and the engine on it. Usable between `open` and `aclose`, in one event loop."""

    def __init__(self, config: Config, env: Mapping[str, str], *, clock: Callable[[], datetime] | None = None) -> None:
        """Touches no network. Raises ConfigError for what is wrong with the environment."""
        from shared.engine import Engine, Installation
        from shared.mapping import Digester, owner_mark
        from shared.model import utcnow

        self.config = config
        self.clock = clock or utcnow
        self.audit_secrets = audit_secrets(env)
        self._storage = storage(env, self.clock)
        self.store = self._storage.store
        self.queues = self._storage.queues
        self.database = self._storage.database
        """The SQLite file that store and queues share; None: they are in a storage account."""
        self.relay: Relay | None = None
        """The one that lives in this process, if any: health and metrics tell of it."""
        self.vaults = VaultPool(config.vaults)
        self.engine = Engine(
            Installation(
                syncs=config.syncs,
                store=self.store,
                queues=self.queues,
                vaults=self.vaults,
                digester=Digester(digest_key(env)),
                owner_marks={
                    sync.id: owner_mark(sync, vault_address(config.vaults[sync.source.vault]))
                    for sync in config.syncs.values()
                },
                addresses={vault_id: vault_address(settings) for vault_id, settings in config.vaults.items()},
                clock=self.clock,
            )
        )

    async def open(self) -> None:
        """Open store and queues. Raises StoreError. Vaults are opened when they are needed."""
        await self._storage.open()

    async def aclose(self) -> None:
        await _all([self.vaults.aclose(), self._storage.aclose()])

    async def __aenter__(self) -> App:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class LazyApp:
    """What the functions of one process share: an `App` for each event loop, opened when it is first asked for."""

    def __init__(self, env: Mapping[str, str], *, origin: str | None = None) -> None:
        """`origin` is where the configuration is; None: where the environment says, or the usual places."""
        self.env = env
        self.origin = origin
        self._apps: dict[asyncio.AbstractEventLoop, asyncio.Task[App]] = {}
        self._logs = False

    def start_logging(self) -> None:
        """Hand our log lines to the host, from the first invocation on."""
        if not self._logs:
            from shared.logs import log_to_host

            log_to_host(self.env)
            self._logs = True

    async def get(self) -> App:
        """The app, opened. Raises ConfigError and StoreError; a failure is not remembered."""
        loop = asyncio.get_running_loop()
        task = self._apps.get(loop)
        if task is None:
            # Sockets and locks belong to their loop. What a closed one left behind can not be closed any more.
            self._apps = {other: app for other, app in self._apps.items() if not other.is_closed()}
            task = self._apps[loop] = loop.create_task(self._open(), name="open the app")
            task.add_done_callback(lambda done: _forget_failure(self._apps, loop, done))
        return await asyncio.shield(task)

    async def _open(self) -> App:
        from shared.config import find_config, load

        config = await asyncio.to_thread(lambda: load(find_config(self.origin, self.env), self.env))
        for warning in config.warnings:
            log.warning("%s", warning)
        app = App(config, self.env)
        try:
            await app.open()
        except BaseException:
            await app.aclose()
            raise
        return app

    async def postpone(self, queue: str, body: str) -> None:
        """Put a job back for later without the app, which its broken configuration does not let us have."""
        from shared.model import utcnow

        queues = storage(self.env, utcnow).queues
        await queues.open()
        try:
            await queues.send(queue, body, delay=POSTPONED)
        finally:
            await queues.aclose()

    async def aclose(self) -> None:
        """Close this event loop's app, if there is one."""
        task = self._apps.pop(asyncio.get_running_loop(), None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None:
                await task.result().aclose()


async def _all(steps: list[Coroutine[Any, Any, None]]) -> None:
    """Do each of them, whatever becomes of the others; then raise the first failure."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
