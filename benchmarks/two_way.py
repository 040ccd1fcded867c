"""The plan of an unchanged two-way sync between two real Vaults, beside the bare calls that fetch both sides' fingerprints.

The bare calls are one listing of each folder and one metadata read of each secret, both sides side by side, with aiohttp
alone and at the same concurrency. The ratio is what comparing, the state and the run's record cost on top; it holds on a
noisy machine where seconds do not.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks.throughput import CONCURRENCY, Bare, Vaults, drive, each, paths
from shared.engine import Engine, Installation
from shared.histories.sqlite import SqliteStore
from shared.mapping import Digester
from shared.model import Run, Source, Sync, Target
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database
from shared.vault import Vault
from shared.vaults import hashicorp
from tests.servers.processes import RealVault, vault

SECRETS = 20_000
ROUNDS = 3


class Listing(Bare):
    async def list(self, folder: str) -> None:
        async with self._session.request("LIST", f"{self._base}/metadata/{folder}", headers=self._headers) as answer:
            answer.raise_for_status()
            await answer.json()


async def seed(side: Bare, count: int) -> None:
    async def put(path: str) -> None:
        await side.put(path, {"username": path, "password": f"{path}-is-no-password", "port": 5432})

    await each(paths(count), put)


async def bare_fingerprints(sides: list[Listing], count: int) -> float:
    async def fetch(side: Listing) -> None:
        async def look(path: str) -> None:
            await side.get("metadata", path)

        folders = sorted({path.split("/")[0] for path in paths(count)})
        await each(["", *folders], side.list)
        await each(paths(count), look)

    begin = time.perf_counter()
    await asyncio.gather(*map(fetch, sides))
    return time.perf_counter() - begin


def connect(vault_id: str, server: RealVault, mount: str) -> Vault:
    auth = {"method": "token", "token": server.token}
    settings = {"kind": "hashicorp", "address": server.url, "mount": mount, "auth": auth, "concurrency": CONCURRENCY}
    return hashicorp.connect(vault_id, hashicorp.Settings.model_validate(settings))


async def measure(servers: tuple[RealVault, RealVault], folder: Path, count: int) -> list[tuple[float, float]]:
    """Seconds of the plan and of the bare calls, one pair a round."""
    mounts = [server.new_mount(2) for server in servers]
    database = Database(folder / "bench.db")
    store, queues = SqliteStore(database), SqliteQueues(database)
    sync = Sync("bench", Source("source"), (Target("target", "target"),), type="bidirectional")
    names = ("source", "target")
    vaults = {name: connect(name, *place) for name, *place in zip(names, servers, mounts, strict=True)}
    engine = Engine(Installation({"bench": sync}, store, queues, Vaults(vaults), Digester("k" * 40)))

    async def run(**options: bool) -> Run:
        return await drive(engine, queues, await engine.runs.start("bench", trigger="manual", **options), "source")

    pairs = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY * 2)) as session:
        sides = [Listing(session, *place) for place in zip(servers, mounts, strict=True)]
        await asyncio.gather(*(seed(side, count) for side in sides))
        await store.open()
        await queues.open()
        try:
            for opened in vaults.values():
                await opened.open()
            first = await run()
            if first.status != "succeeded":
                raise SystemExit(f"the first sync is not what it should be: {first}")
            for _ in range(ROUNDS):
                begin = time.perf_counter()
                plan = await run(dry_run=True)
                took = time.perf_counter() - begin
                if plan.status != "succeeded" or (plan.unchanged, plan.written) != (count, 0):
                    raise SystemExit(f"the plan is not what it should be: {plan}")
                pairs.append((took, await bare_fingerprints(sides, count)))
                print(f"round {len(pairs)}: plan {pairs[-1][0]:.2f} s, bare {pairs[-1][1]:.2f} s", flush=True)
        finally:
            for opened in vaults.values():
                await opened.aclose()
            await queues.aclose()
            await store.aclose()
            await database.aclose()
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("secrets", nargs="?", type=int, default=SECRETS)
    count = parser.parse_args().secrets
    with vault() as source, vault() as target, tempfile.TemporaryDirectory() as folder:
        pairs = asyncio.run(measure((source, target), Path(folder), count))
    ours, bare = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"{count} secrets on two Vaults, {CONCURRENCY} calls at once on each, SQLite; medians of {ROUNDS} rounds")
    print(f"  plan       {ours:6.2f} s   bare calls {bare:6.2f} s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
