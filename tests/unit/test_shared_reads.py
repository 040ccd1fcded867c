"""One read for all targets, and never an older value after a newer one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.engine.shared_reads import LARGEST, MOST, SharedReads
from shared.errors import Unavailable
from shared.model import Secret, utcnow
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.unit.test_events import seen
from tests.world import Clock, World, one_way, world

KV1 = Capabilities(FingerprintCost.VALUE)


def vaults() -> list[MemoryVault]:
    return [MemoryVault(name, KV1) for name in ("source", "one", "two")]


def jobs_by_vault(w: World) -> dict[str, str]:
    taken = {queue.rpartition("-")[2]: body for queue, body, _ in w.queues.messages}
    w.queues.messages.clear()
    return taken


async def test_two_targets_share_one_read(tmp_path: Path) -> None:
    source, one, two = vaults()
    async with world(tmp_path, [source, one, two], one_way("one", "two")) as w:
        engine = w.engine
        for at_once in (True, False):
            name = f"at-once-{at_once}"
            source.put(name, "1")
            source.calls.clear()
            await engine.events.take(seen(name))
            bodies = jobs_by_vault(w).values()
            if at_once:
                await asyncio.gather(*(engine.handle(body) for body in bodies))
            else:
                for body in bodies:
                    await engine.handle(body)
            assert source.calls["get"] == 1
            assert one.values()[name] == two.values()[name] == {"value": "1"}


async def test_a_read_that_began_before_an_event_does_not_answer_it(tmp_path: Path) -> None:
    source, one, two = vaults()
    async with world(tmp_path, [source, one, two], one_way("one", "two")) as w:
        engine = w.engine
        source.put("a", "1")
        await engine.events.take(seen("a"))
        await engine.handle(jobs_by_vault(w)["one"])
        source.put("a", "2")
        await engine.events.take(seen("a"))
        await engine.handle(jobs_by_vault(w)["two"])
        assert two.values() == {"a": {"value": "2"}}


async def test_a_target_that_another_process_has_settled_since_the_read_reads_anew(tmp_path: Path) -> None:
    source, one, two = vaults()
    async with world(tmp_path, [source, one, two], one_way("one", "two")) as w:
        engine, other = w.engine, w.engine
        source.put("a", "1")
        await engine.events.take(seen("a"))
        first = jobs_by_vault(w)
        await engine.handle(first["one"])
        source.put("a", "2")
        await other.events.take(seen("a"))
        await other.handle(jobs_by_vault(w)["two"])
        await engine.handle(first["two"])
        assert [fields["value"] for _, fields in two.writes] == ["2"]


async def test_jobs_of_another_process_and_jobs_that_come_again_read_for_themselves(tmp_path: Path) -> None:
    source, one, two = vaults()
    async with world(tmp_path, [source, one, two], one_way("one", "two")) as w:
        engine = w.engine
        source.put("a", "1")
        await engine.events.take(seen("a"))
        told = f'["{w.store.owner}",'
        elsewhere = {queue: body.replace(told, '["another",') for queue, body in jobs_by_vault(w).items()}
        assert all('["another",' in body for body in elsewhere.values())
        for body in elsewhere.values():
            await engine.handle(body)
        assert source.calls["get"] == 2


async def read(reads: SharedReads, key: str, value: str | Unavailable, told: int = 0, others: int = 1) -> Secret:
    async def fetch() -> Secret:
        if isinstance(value, Unavailable):
            raise value
        return Secret({"value": value})

    return await reads.read(("s", key), fetch, told=told, settled_at=None, others=others)


async def test_a_read_that_fails_or_is_cancelled_is_made_by_whoever_waits() -> None:
    reads = SharedReads(utcnow)
    begun = asyncio.Event()

    async def never() -> Secret:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    first = asyncio.create_task(reads.read(("s", "a"), never, told=0, settled_at=None, others=2))
    await begun.wait()
    second = asyncio.create_task(read(reads, "a", "mine"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).fields == {"value": "mine"}
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(Unavailable):
        await read(reads, "b", Unavailable("x"))
    assert (await read(reads, "b", "2")).fields == {"value": "2"}


async def test_what_is_kept_is_bounded_and_says_nothing() -> None:
    reads = SharedReads(Clock())
    for number in range(MOST + 10):
        await read(reads, str(number), f"canary-{number}")
    assert len(reads._reads) == MOST
    assert "canary" not in repr(reads._reads)
    assert (await read(reads, "0", "newer")).fields == {"value": "newer"}
    await read(reads, "large", "x" * (LARGEST + 1))
    assert (await read(reads, "large", "newer")).fields == {"value": "newer"}
    # Whoever was the last to want it leaves nothing behind.
    await read(reads, "taken", "1")
    await read(reads, "taken", "2")
    assert ("s", "taken") not in reads._reads
    assert (await read(reads, "later", "1")).fields == {"value": "1"}
    assert (await read(reads, "later", "2", told=reads.tell())).fields == {"value": "2"}


async def test_numbers_are_kept_as_text_is_and_what_nests_is_not() -> None:
    reads = SharedReads(utcnow)

    async def version_read_at_last(key: str, value: object) -> object:
        for version in (1, 2):

            async def fetch(version: int = version) -> Secret:
                return Secret({"value": value, "version": version})

            secret = await reads.read(("s", key), fetch, told=0, settled_at=None, others=1)
        return secret.fields["version"]

    kept: list[object] = [5432, 0.5, True, None, "text"]
    read_anew: list[object] = [["x" * LARGEST], {"x": "x" * LARGEST}, "x" * (LARGEST + 1)]
    assert [await version_read_at_last(f"kept-{n}", value) for n, value in enumerate(kept)] == [1] * len(kept)
    assert [await version_read_at_last(f"anew-{n}", value) for n, value in enumerate(read_anew)] == [2] * len(read_anew)
