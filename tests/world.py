"""An installation on in-memory vaults: the real engine and the real SQLite store, and queues that a test controls."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shared import jobs
from shared.engine import Engine, Installation
from shared.histories.sqlite import SqliteStore
from shared.jobs import Message, Queues
from shared.mapping import Digester, owner_mark
from shared.model import Run, Source, Sync, Target
from shared.sqlite import Database
from shared.vault import Vault

KEY = "a-digest-key-of-at-least-thirty-two-characters"


class MemoryQueues(Queues):
    """Messages in a list: a test takes them in any order, as often as it likes. Delays are noted, not waited for."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, float]] = []
        self.sent: list[tuple[str, str, float]] = []

    async def open(self) -> None: ...
    async def aclose(self) -> None: ...
    async def ensure(self, names: Sequence[str]) -> None: ...

    async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
        assert len(body.encode()) <= jobs.MAX_BODY
        self.messages.append((queue, body, delay))
        self.sent.append((queue, body, delay))

    async def receive(self, queue: str, *, limit: int = 16, visibility: float = 300) -> list[Message]:
        raise AssertionError("tests take messages themselves")

    async def wait(self, queue: str, timeout: float) -> None: ...

    async def renew(self, message: Message, visibility: float) -> Message | None:
        return message

    async def delete(self, message: Message) -> None: ...
    async def release(self, message: Message, *, delay: float = 0) -> None: ...

    async def depth(self, queue: str) -> int:
        return sum(name == queue for name, _, _ in self.messages)


@dataclass
class Clock:
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def advance(self, **kwargs: float) -> None:
        self.now += timedelta(**kwargs)


class OpenedVaults:
    def __init__(self, vaults: dict[str, Vault]) -> None:
        self.vaults = vaults

    async def get(self, vault_id: str, resource: str = "secrets") -> Vault:
        return self.vaults[vault_id]


@dataclass
class World:
    store: SqliteStore
    queues: MemoryQueues
    clock: Clock
    vaults: dict[str, Vault]
    syncs: dict[str, Sync]
    key: str = KEY
    errors: list[BaseException] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return Engine(
            Installation(
                syncs=self.syncs,
                store=self.store,
                queues=self.queues,
                vaults=OpenedVaults(self.vaults),
                digester=Digester(self.key),
                owner_marks={sync.id: owner_mark(sync, "memory") for sync in self.syncs.values()},
                clock=self.clock,
            )
        )

    async def drain(self, *, shuffle: random.Random | None = None, copies: int = 1, limit: int = 10_000) -> None:
        """Deliver everything, delayed messages too, until nothing is left. A probe is left where it is."""
        engine = self.engine
        for _ in range(limit):
            waiting = [m for m in self.queues.messages if '"job":"probe"' not in m[1]]
            if not waiting:
                return
            message = shuffle.choice(waiting) if shuffle else waiting[0]
            self.queues.messages.remove(message)
            if message[2]:
                self.clock.advance(seconds=message[2])
            for _ in range(copies):
                await engine.handle(message[1])
        raise AssertionError("the queues never ran dry")

    async def sync(
        self, sync_id: str = "s", *, copies: int = 1, shuffle: random.Random | None = None, **options: object
    ) -> Run:
        """Run a sync to its end."""
        run = await self.engine.runs.start(sync_id, trigger="manual", **options)  # type: ignore[arg-type]
        await self.drain(copies=copies, shuffle=shuffle)
        return await self.engine.runs.view(run.run_id)

    async def states(self, sync_id: str = "s") -> dict[tuple[str, str], object]:
        return {(state.target, state.path): state async for state in self.store.list_objects(sync_id)}

    async def history(self, sync_id: str = "s", path: str | None = None) -> list[str]:
        page = await self.store.page_history(sync_id, path=path, limit=1000)
        return [str(row.action) for row in reversed(page.items)]


@asynccontextmanager
async def world(
    folder: Path, vaults: Sequence[Vault], *syncs: Sync, clock: Clock | None = None
) -> AsyncIterator[World]:
    clock = clock or Clock()
    store = SqliteStore(Database(folder / "test.db"), clock=clock)
    await store.open()
    try:
        yield World(store, MemoryQueues(), clock, {v.id: v for v in vaults}, {s.id: s for s in syncs})
    finally:
        await store.aclose()


def one_way(*targets: str | Target, **options: object) -> Sync:
    """A sync called `s` from the vault `source` to the vaults named (default: `target`)."""
    chosen = tuple(t if isinstance(t, Target) else Target(id=t, vault=t) for t in targets or ("target",))
    return Sync(**{"id": "s", "source": Source("source"), "targets": chosen, **options})  # type: ignore[arg-type]


def two_way(*targets: str | Target, **options: object) -> Sync:
    """A sync called `s` between the vault `source` and the vaults named (default: `target`), both ways."""
    return one_way(*targets, **{"type": "bidirectional", **options})
