"""How much memory a sync of 100,000 secrets takes: planned, written and planned again, in a process of its own.

The vaults are made up on the fly, so that what is measured is Vaultferry and not they.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.throughput import Vaults, drive
from shared.engine import Engine, Installation
from shared.errors import SecretNotFound
from shared.histories.sqlite import SqliteStore
from shared.mapping import Digester
from shared.model import Entry, Expect, Secret, Source, Sync, Target
from shared.pacing import Pacer
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database
from shared.vault import Capabilities, Finding, FingerprintCost, Use, Vault

SECRETS = 100_000
LIMIT_MB = 400


class MadeUp(Vault):
    """`count` secrets whose names and values follow from their number; what is written to it is counted and forgotten."""

    kind = "made_up"

    def __init__(self, vault_id: str, count: int) -> None:
        super().__init__(vault_id, Pacer(vault_id, concurrency=64))
        self.count = count
        self.writes = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(FingerprintCost.LISTED)

    def _entry(self, name: str) -> Entry:
        return Entry(name, fingerprint=f"2026-01-01T00:00:00Z/enabled/{name[-6:]}")

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        for number in range(self.count):
            yield self._entry(f"department-{number % 50:02}/team-{number % 700:03}/some-service-{number:06}")

    async def describe_secret(self, name: str) -> Entry:
        return self._entry(name)

    async def get_secret(self, name: str) -> Secret:
        if not self.count:
            raise SecretNotFound("never written", vault=self.id, path=name)
        return Secret({"username": name, "password": f"not-one-{name}"}, entry=self._entry(name))

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        self.writes += 1
        return self._entry(name)

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        raise SecretNotFound("never written", vault=self.id, path=name)

    async def check(self, uses: list[Use]) -> list[Finding]:
        return []

    async def aclose(self) -> None:
        return None


def peak_mb() -> float:
    divisor = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / divisor


async def measure(folder: Path) -> None:
    source, target = MadeUp("source", SECRETS), MadeUp("target", 0)
    database = Database(folder / "bench.db")
    store, queues = SqliteStore(database), SqliteQueues(database)
    await store.open()
    await queues.open()
    engine = Engine(
        Installation(
            {"bench": Sync("bench", Source("source"), (Target("target", "target"),))},
            store,
            queues,
            Vaults({"source": source, "target": target}),
            Digester("k" * 40),
        )
    )
    print(f"  before:           {peak_mb():5.0f} MB")
    for name in ("first sync", "unchanged sync"):
        begin = time.perf_counter()
        run = await drive(engine, queues, await engine.runs.start("bench", trigger="manual"))
        if run.status != "succeeded" or run.written + run.unchanged != SECRETS:
            raise SystemExit(f"the {name} is not what it should be: {run}")
        target.count = SECRETS
        print(f"  {name + ':':17} {peak_mb():5.0f} MB   {time.perf_counter() - begin:.0f} s", flush=True)
    await queues.aclose()
    await store.aclose()
    await database.aclose()


def main() -> None:
    print(f"{SECRETS:,} secrets, peak memory of the process (the limit is {LIMIT_MB} MB)")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder)))
    if peak_mb() > LIMIT_MB:
        raise SystemExit("too much")


if __name__ == "__main__":
    main()
