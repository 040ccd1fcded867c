"""Events, a run's job and an edit of one secret, stepped through in every order, with and without a death in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.model import DeletePolicy, ObjectState
from shared.notices import AuditNotice
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.unit.test_interleavings import Steps, schedules
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED)


async def taken(w: World, version: int | None) -> str:
    """An event's job, taken from its queue."""
    await w.engine.events.take([AuditNotice("source/", "a", version=version)])
    return w.queues.messages.pop()[1]


async def explore(
    folder: Path,
    capabilities: Capabilities,
    kill: tuple[str, int] | None,
    *,
    with_run: bool,
    new: bool = False,
    clock_runs: bool = False,
) -> int:
    runs = 0
    for schedule, report in schedules():
        source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
        place = folder / str(runs)
        place.mkdir()
        async with world(place, [source, target], one_way()) as w:
            source.put("a", "1")
            if not new:
                await w.sync()
                source.put("a", "2")
            first = await taken(w, None if new else 2)
            if with_run:
                await w.engine.runs.start("s", trigger="manual")
                await w.engine.handle(w.queues.messages.pop()[1])
                second = w.queues.messages.pop()[1]
            else:
                second = await taken(w, None)
            steps = Steps()
            source.hook = target.hook = steps.hook

            async def one(w: World = w, job: str = first) -> None:
                await w.engine.handle(job)

            async def two(w: World = w, job: str = second) -> None:
                await w.engine.handle(job)

            async def edit(w: World = w, source: MemoryVault = source) -> None:
                source.put("a", "3")
                await w.engine.events.take([AuditNotice("source/", "a", version=source.kept["a"].version)])
                if clock_runs:
                    w.clock.advance(seconds=400)

            report(await steps.run({"one": one, "two": two, "edit": edit}, schedule, kill))
            source.hook = target.hook = None
            # Whoever was killed has its message delivered again, once its claim has run out.
            w.clock.advance(seconds=400)
            await w.engine.handle(first)
            await w.engine.handle(second)
            await w.drain()
            assert target.values() == {"a": {"value": "3"}}, schedule
            values = [fields["value"] for _, fields in target.writes]
            if not clock_runs:
                assert values == sorted(values), f"an older value after a newer one: {schedule}"
            state = (await w.states())["target", "a"]
            assert isinstance(state, ObjectState)
            assert (state.claim, str(state.status)) == (None, "in_sync"), schedule
            assert state.parts[0].owned
            target.calls.clear()
            assert (await w.sync()).unchanged == 1
            assert target.calls["set"] == 0
        runs += 1
    return runs


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: every order has a store of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


@pytest.mark.parametrize(
    ("capabilities", "with_run", "new"),
    [(KV2, False, False), (KV1, False, True), (LISTED, False, False), (KV2, True, True), (KV1, True, False)],
)
async def test_two_jobs_and_an_edit_in_every_order_leave_the_newest_value(
    folder: Path, capabilities: Capabilities, with_run: bool, new: bool
) -> None:
    assert await explore(folder, capabilities, None, with_run=with_run, new=new) >= 10


@pytest.mark.parametrize(
    ("capabilities", "with_run", "gate"), [(KV2, False, 1), (KV2, False, 3), (KV2, True, 2), (LISTED, False, 2)]
)
async def test_a_job_that_dies_at_any_place_loses_nothing(
    folder: Path, capabilities: Capabilities, with_run: bool, gate: int
) -> None:
    assert await explore(folder, capabilities, ("one", gate), with_run=with_run) >= 3


Edit = Callable[[MemoryVault], int | None]
"""What somebody does at the source; the version that its event tells of."""


async def explore_look(
    folder: Path, reads: Capabilities, writes: Capabilities, prepare: Callable[[World, MemoryVault], Any], edit: Edit
) -> int:
    """A job, and an edit whose own event is dealt with meanwhile, in every order. Nothing else comes to put it right."""
    runs = 0
    for schedule, report in schedules():
        source, target = MemoryVault("source", reads), MemoryVault("target", writes)
        place = folder / str(runs)
        place.mkdir()
        async with world(place, [source, target], one_way(delete=DeletePolicy(propagate=True))) as w:
            first = await prepare(w, source)
            steps = Steps()
            source.hook = target.hook = steps.hook

            async def one(w: World = w, job: str = first) -> None:
                await w.engine.handle(job)

            async def two(w: World = w, source: MemoryVault = source) -> None:
                await w.engine.handle(await taken(w, edit(source)))

            report(await steps.run({"one": one, "two": two}, schedule, None))
            source.hook = target.hook = None
            await w.drain()
            assert target.values() == source.values(), schedule
        runs += 1
    return runs


async def carried(w: World, source: MemoryVault) -> str:
    source.put("a", "right")
    await w.sync()
    source.put("a", "mistake")
    return await taken(w, None)


async def new(w: World, source: MemoryVault) -> str:
    source.put("a", "1")
    return await taken(w, None)


async def once_deleted(w: World, source: MemoryVault) -> str:
    source.put("a", "0")
    await w.sync()
    source.remove("a")
    await w.sync(allow_deletes=True)
    return await new(w, source)


async def wiped(w: World, source: MemoryVault) -> str:
    """The last look at a key that was wiped and written anew: the source is taken at its word that it has version 1."""
    for value in ("1", "2", "3"):
        source.put("a", value)
    await w.sync()
    del source.kept["a"]
    source.put("a", "3")
    job = await taken(w, None)
    while '"attempt":3' not in job:
        await w.engine.handle(job)
        job = w.queues.messages.pop()[1]
    return job


def put_back(source: MemoryVault) -> None:
    source.put("a", "right")


def remove(source: MemoryVault) -> None:
    source.remove("a")


def update(source: MemoryVault) -> int:
    source.put("a", "4")
    return source.kept["a"].version


@pytest.mark.parametrize("writes", [KV1, KV2, LISTED], ids=["to kv1", "to kv2", "to listed"])
@pytest.mark.parametrize("reads", [KV1, KV2, LISTED], ids=["from kv1", "from kv2", "from listed"])
@pytest.mark.parametrize(("prepare", "edit"), [(carried, put_back), (new, remove), (once_deleted, remove)])
async def test_what_somebody_takes_back_while_it_is_carried_does_not_stay(
    folder: Path,
    reads: Capabilities,
    writes: Capabilities,
    prepare: Callable[[World, MemoryVault], Any],
    edit: Edit,
) -> None:
    assert await explore_look(folder, reads, writes, prepare, edit) >= 3


@pytest.mark.parametrize("writes", [KV1, KV2, LISTED], ids=["to kv1", "to kv2", "to listed"])
async def test_an_update_behind_a_wiped_key_is_not_taken_for_old_news(folder: Path, writes: Capabilities) -> None:
    assert await explore_look(folder, KV2, writes, wiped, update) >= 2


async def test_a_job_whose_claim_ran_out_while_it_was_frozen_does_not_have_the_last_word(folder: Path) -> None:
    assert await explore(folder, KV2, None, with_run=False, clock_runs=True) >= 10
