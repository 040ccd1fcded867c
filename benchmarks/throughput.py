"""Vault → Vault on real servers: a first and an unchanged sync, beside a bare loop that makes the same calls.

The bare loop runs in the same process, at the same concurrency, with aiohttp alone, and records nothing. The ratio is what
planning, comparing, the durable queue, the state and the history cost; it holds on a noisy machine where seconds do not.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from shared import jobs
from shared.engine import Engine, Installation
from shared.histories.sqlite import SqliteStore
from shared.mapping import Digester
from shared.model import Run, Source, Sync, Target
from shared.queue_loop import QueueLoop
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database
from shared.vault import Vault
from shared.vaults import hashicorp
from tests.servers.processes import RealVault, vault

SECRETS = 2000
CONCURRENCY = 32
ROUNDS = 3


class Vaults:
    def __init__(self, vaults: dict[str, Vault]) -> None:
        self._vaults = vaults

    async def get(self, vault_id: str, resource: str = "secrets") -> Vault:
        return self._vaults[vault_id]


def paths(count: int) -> list[str]:
    return [f"team{n % 40:02}/service{n:05}" for n in range(count)]


async def each(items: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """The bare loop: so many workers, one list."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


class Bare:
    """A KV v2 mount and nothing else."""

    def __init__(self, session: aiohttp.ClientSession, server: RealVault, mount: str) -> None:
        self._session = session
        self._base = f"{server.url}/v1/{mount}"
        self._headers = {"X-Vault-Token": server.token}

    async def get(self, what: str, path: str) -> Any:
        async with self._session.get(f"{self._base}/{what}/{path}", headers=self._headers) as answer:
            answer.raise_for_status()
            return (await answer.json())["data"]

    async def put(self, path: str, data: Any) -> None:
        body = {"data": data, "options": {"cas": 0}}
        async with self._session.post(f"{self._base}/data/{path}", json=body, headers=self._headers) as answer:
            answer.raise_for_status()
            await answer.read()


async def seed(source: Bare, count: int) -> None:
    async def put(path: str) -> None:
        await source.put(path, {"username": path, "password": f"{path}-is-no-password", "port": 5432})

    await each(paths(count), put)


async def bare_first(source: Bare, target: Bare, count: int) -> float:
    async def copy(path: str) -> None:
        await target.put(path, (await source.get("data", path))["data"])

    begin = time.perf_counter()
    await each(paths(count), copy)
    return time.perf_counter() - begin


async def bare_unchanged(source: Bare, target: Bare, count: int) -> float:
    async def look(path: str) -> None:
        await source.get("metadata", path)
        await target.get("metadata", path)

    begin = time.perf_counter()
    await each(paths(count), look)
    return time.perf_counter() - begin


async def drive(engine: Engine, queues: SqliteQueues, run: Run, written: str = "target") -> Run:
    """Deliver jobs until the run has ended, as `vaultferry sync` does."""
    ended = asyncio.Event()

    async def handle(message: jobs.Message) -> None:
        await engine.handle(message.body)
        if not (await engine.runs.view(run.run_id)).status.active:
            ended.set()

    loops = [QueueLoop(queues, name, handle) for name in (jobs.PLAN_QUEUE, jobs.write_queue(written))]
    for loop in loops:
        loop.start()
    await ended.wait()
    for loop in loops:
        await loop.stop()
    return await engine.runs.view(run.run_id)


async def one_round(source: RealVault, target: RealVault, folder: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    mounts = [target.new_mount(2) for _ in range(2)]
    origin = source.new_mount(2)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY * 2)) as session:
        here, there = Bare(session, source, origin), Bare(session, target, mounts[0])
        await seed(here, SECRETS)
        figures["bare first"] = await bare_first(here, there, SECRETS)
        figures["bare unchanged"] = await bare_unchanged(here, there, SECRETS)

    def connect(vault_id: str, server: RealVault, mount: str) -> Vault:
        settings = hashicorp.Settings.model_validate(
            {
                "kind": "hashicorp",
                "address": server.url,
                "mount": mount,
                "auth": {"method": "token", "token": server.token},
                "concurrency": CONCURRENCY,
            }
        )
        return hashicorp.connect(vault_id, settings)

    vaults = {"source": connect("source", source, origin), "target": connect("target", target, mounts[1])}
    database = Database(folder / "bench.db")
    store, queues = SqliteStore(database), SqliteQueues(database)
    await store.open()
    await queues.open()
    sync = Sync("bench", Source("source"), (Target("target", "target"),))
    engine = Engine(Installation({"bench": sync}, store, queues, Vaults(vaults), Digester("k" * 40)))
    try:
        for opened in vaults.values():
            await opened.open()
        for name in ("first", "unchanged"):
            begin = time.perf_counter()
            run = await drive(engine, queues, await engine.runs.start("bench", trigger="manual"))
            figures[name] = time.perf_counter() - begin
            expected = run.written if name == "first" else run.unchanged
            if run.status != "succeeded" or expected != SECRETS:
                raise SystemExit(f"the benchmark's {name} sync is not what it should be: {run}")
    finally:
        for opened in vaults.values():
            await opened.aclose()
        await queues.aclose()
        await store.aclose()
        await database.aclose()
    return figures


def main() -> None:
    """Print secrets a second and ratios, medians over the rounds."""
    rounds: list[dict[str, float]] = []
    with vault() as source, vault() as target:
        for number in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                rounds.append(asyncio.run(one_round(source, target, Path(folder))))
            print(f"round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in rounds[-1].items()), flush=True)
    print(f"{SECRETS} secrets, Vault → Vault, {CONCURRENCY} calls at once, SQLite; medians of {ROUNDS} rounds")
    for name in ("first", "unchanged"):
        ours = statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r[f"bare {name}"] / r[name] for r in rounds)
        bare = statistics.median(r[f"bare {name}"] for r in rounds)
        print(f"  {name:10} {SECRETS / ours:6.0f} secrets/s   bare loop {SECRETS / bare:6.0f}/s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
