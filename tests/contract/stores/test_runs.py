"""Runs, their chunks and progress, plans, controls and leases, in every store."""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import replace
from datetime import timedelta

import pytest

from shared.errors import StoreError
from shared.history import Store
from shared.model import Control, Op, Progress, RunStatus
from tests.contract.stores.conftest import Clock, Storage
from tests.contract.stores.helpers import HOSTILE, SYNC, TARGET, all_pages, chunk, every, run


async def test_a_run_comes_back_as_it_was_saved(store: Store, clock: Clock) -> None:
    new = run(
        clock.now,
        trigger="replay",
        status=RunStatus.PARTIAL,
        dry_run=True,
        allow_deletes=True,
        started_at=clock.now + timedelta(microseconds=1),
        finished_at=clock.now + timedelta(days=1),
        planned=1,
        written=2,
        unchanged=3,
        deleted=4,
        failed=5,
        conflicts=6,
        drifted=7,
        error="it's the vault's fault",
        calls={"hub": 8, "prod": 9},
        paths=tuple(HOSTILE),
    )
    saved = await store.save_run(new)
    assert saved is not None
    assert saved.revision is not None
    assert replace(saved, revision=None) == new
    assert await store.get_run(new.run_id) == saved
    assert await store.get_run("20200101-000000-000000-000000") is None


@pytest.mark.parametrize("paths", [None, (), tuple(f"team/{n:06d}/{'x' * 60}" for n in range(2_000))])
async def test_a_replays_paths_come_back(store: Store, clock: Clock, paths: tuple[str, ...] | None) -> None:
    new = run(clock.now, paths=paths)
    await store.save_run(new)
    found = await store.get_run(new.run_id)
    assert found is not None
    assert found.paths == paths


async def test_of_two_writers_of_a_run_one_loses(store: Store, other: Store, clock: Clock) -> None:
    first = await store.save_run(run(clock.now))
    assert first is not None
    assert await other.save_run(replace(first, revision=None)) is None
    answers = await asyncio.gather(
        *(one.save_run(replace(first, planned=n)) for n, one in enumerate((store, other, store, other), 1))
    )
    winners = [answer for answer in answers if answer is not None]
    assert len(winners) == 1
    assert await store.get_run(first.run_id) == winners[0]
    again = await other.save_run(replace(winners[0], status=RunStatus.RUNNING))
    assert again is not None
    assert await store.get_run(first.run_id) == again


async def test_runs_are_listed_newest_first_page_by_page(store: Store, clock: Clock) -> None:
    runs = []
    for n in range(25):
        clock.pass_by(seconds=1)
        runs.append(await store.save_run(run(clock.now, f"sync-{n % 2}")))
    newest = list(reversed(runs))
    assert await all_pages(lambda cursor: store.list_runs(limit=4, cursor=cursor)) == newest
    assert await all_pages(lambda cursor: store.list_runs("sync-1", limit=4, cursor=cursor)) == newest[1::2]
    assert (await store.list_runs("sync-0", limit=13)).cursor is None
    assert list((await store.list_runs(limit=1)).items) == [newest[0]]
    assert (await store.list_runs("nothing")).items == []


async def test_pages_of_runs_are_complete_while_new_ones_begin(store: Store, clock: Clock) -> None:
    old = []
    for _ in range(7):
        clock.pass_by(seconds=1)
        old.append(await store.save_run(run(clock.now)))
    page = await store.list_runs(SYNC, limit=3)
    seen = list(page.items)
    while page.cursor is not None:
        clock.pass_by(seconds=1)
        await store.save_run(run(clock.now))
        page = await store.list_runs(SYNC, limit=3, cursor=page.cursor)
        seen += page.items
    assert seen == list(reversed(old))


async def test_a_cursor_of_somebody_else_is_refused(store: Store) -> None:
    for cursor in ("", "x", "bm90aGluZw", "%%%", "WyJhIl0x"):
        with pytest.raises(StoreError, match="cursor"):
            await store.list_runs(cursor=cursor)
        with pytest.raises(StoreError, match="cursor"):
            await store.page_objects(SYNC, cursor=cursor)
        with pytest.raises(StoreError, match="cursor"):
            await store.page_history(SYNC, cursor=cursor)


# --- slices, chunks, plans ----------------------------------------------------------------------------------------


async def test_a_slice_is_saved_with_its_chunks_or_not_at_all(store: Store, other: Store) -> None:
    first = await store.save_slice(Progress("run-1", TARGET, cursor="b", slices=1), [chunk("run-1", 1)])
    assert first is not None
    stale = replace(first, revision=None, slices=9)
    assert await other.save_slice(stale, [chunk("run-1", 2)]) is None
    second = await other.save_slice(replace(first, cursor="d", slices=2), [chunk("run-1", 2), chunk("run-1", 3)])
    assert second is not None
    assert await store.save_slice(replace(first, slices=9), [chunk("run-1", 4)]) is None
    assert await store.save_slice(replace(second, slices=9), [chunk("run-1", 4), chunk("run-1", 3)]) is None
    assert [c.chunk for c in await store.list_chunks("run-1")] == ["000001", "000002", "000003"]
    assert await store.list_progress("run-1") == [second]


async def test_a_slice_may_have_no_chunks_and_progress_is_kept_by_target(store: Store) -> None:
    full = Progress("run-1", "b", "it's/秘密", 3, 4, 5, 6, True, "blocked: why", "error: why", {"hub": 3})
    one = await store.save_slice(full)
    two = await store.save_slice(Progress("run-1", "a"))
    assert one is not None
    assert replace(one, revision=None) == full
    assert await store.list_progress("run-1") == [two, one]
    assert await store.list_progress("run-2") == []


@pytest.mark.parametrize("kind", ["ascii", "unicode", "random"])
async def test_ninety_full_chunks_are_one_slice(store: Store, kind: str) -> None:
    dice = random.Random(1)
    paths = {
        "ascii": [f"team-{n}/service/{'x' * 170}" for n in range(250)],
        "unicode": [f"{n:04d}/" + "秘" * 60 for n in range(250)],
        "random": ["".join(chr(dice.randrange(33, 0x3000)) for _ in range(63)) for _ in range(250)],
    }[kind]
    assert 45_000 < sum(len(path.encode()) + 3 for path in paths) < 49_152
    chunks = [chunk("run-1", n, paths=tuple(paths)) for n in range(90)]
    assert await store.save_slice(Progress("run-1", TARGET, slices=1), chunks) is not None
    found = await store.list_chunks("run-1")
    assert [replace(one, revision=None) for one in found] == chunks
    done = await store.save_chunk(replace(found[3], outcomes="w" * 250))
    assert await store.get_chunk("run-1", "000003") == done
    assert [one.complete for one in await store.list_chunks("run-1")].count(True) == 1


async def test_a_chunk_comes_back_as_it_was_saved_and_of_two_writers_one_loses(store: Store, other: Store) -> None:
    new = replace(
        chunk("run-1", 1, paths=tuple(HOSTILE)),
        op=Op.DELETE,
        held=True,
        cleanup=False,
        calls={"prod": 3},
        outcomes="." * 13,
    )
    saved = await store.save_chunk(new)
    assert saved is not None
    assert replace(saved, revision=None) == new
    assert await store.get_chunk("run-1", "000001") == saved
    assert await other.save_chunk(new) is None
    answers = await asyncio.gather(
        store.save_chunk(replace(saved, outcomes="w" * 13)), other.save_chunk(replace(saved, outcomes="f" * 13))
    )
    assert sum(answer is not None for answer in answers) == 1
    assert await store.get_chunk("run-1", "000002") is None
    assert await store.list_chunks("run-2") == []


async def test_a_plans_pages_come_back_in_order(store: Store) -> None:
    large = secrets.token_hex(250_000)
    for page, document in ((11, "eleven"), (2, large), (0, "first: 秘密"), (2, large + "!")):
        await store.save_plan_page("run-1", page, document)
    await store.save_plan_page("run-10", 0, "of another run")
    assert await every(store.plan_pages("run-1")) == ["first: 秘密", large + "!", "eleven"]
    assert await every(store.plan_pages("run-2")) == []


# --- controls and leases ------------------------------------------------------------------------------------------


async def test_a_control_is_fresh_until_saved_and_of_two_writers_one_loses(
    store: Store, other: Store, clock: Clock
) -> None:
    assert await store.get_control(SYNC) == Control(SYNC)
    totals = {"runs": {"succeeded": 3}, "targets": {"prod": {"written": 4}}, "seconds": 1.25}
    deletes = {"prod": {"count": 7, "since": "2026-05-01T12:00:00.000000Z"}}
    new = Control(SYNC, True, "run-2", "run-1", clock.now, totals, again="gap", event_deletes=deletes)
    saved = await store.save_control(new)
    assert saved is not None
    assert replace(saved, revision=None) == new
    assert await other.get_control(SYNC) == saved
    assert await other.save_control(new) is None
    answers = await asyncio.gather(*(one.save_control(replace(saved, paused=False)) for one in (store, other)))
    assert sum(answer is not None for answer in answers) == 1


async def test_a_lease_is_one_owners_until_it_expires(store: Store, other: Store, clock: Clock) -> None:
    one, two = f"{store.owner}:1", f"{other.owner}:2"
    name = "run/of 'hub'"
    assert await store.acquire_lease(name, one, 60)
    assert not await other.acquire_lease(name, two, 60)
    clock.pass_by(seconds=59)
    assert await store.acquire_lease(name, one, 60)
    clock.pass_by(seconds=59)
    assert not await other.acquire_lease(name, two, 60)
    clock.pass_by(seconds=2)
    assert await other.acquire_lease(name, two, 60)
    assert not await store.acquire_lease(name, one, 60)
    await store.release_lease(name, one)
    assert not await store.acquire_lease(name, one, 60)
    await other.release_lease(name, two)
    assert await store.acquire_lease(name, one, 60)
    await store.release_lease("never taken", one)


async def test_of_many_who_want_a_lease_one_gets_it(store: Store, other: Store, clock: Clock) -> None:
    for _ in range(2):
        answers = await asyncio.gather(
            *(s.acquire_lease("x", f"{s.owner}:{n}", 5) for n in range(8) for s in (store, other))
        )
        assert answers.count(True) == 1
        clock.pass_by(seconds=6)


WORDS = ["batch:1", "batch:2", "batch:ünïcödé/秘密 🔑", "batch:" + "🔑" * 194, "!x|y", "batch:" + "x" * 194]


async def test_a_word_is_remembered_until_its_time(store: Store, other: Store, clock: Clock) -> None:
    for number, word in enumerate(WORDS):
        assert not await store.remembers(word)
        await store.remember(word, clock.now + timedelta(hours=12 + number))
    clock.pass_by(hours=12, microseconds=-1)
    assert all([await other.remembers(word) for word in WORDS])
    clock.pass_by(microseconds=1)
    assert [await other.remembers(word) for word in WORDS] == [False] + [True] * 5
    assert not await other.remembers("batch:3")
    assert not await other.remembers("BATCH:2")


async def test_a_word_is_remembered_for_as_long_as_was_said_last(store: Store, other: Store, clock: Clock) -> None:
    await store.remember("batch:1", clock.now + timedelta(hours=1))
    clock.pass_by(minutes=30)
    await asyncio.gather(*(one.remember("batch:1", clock.now + timedelta(days=1)) for one in (store, other)))
    clock.pass_by(hours=23, minutes=59)
    assert await store.remembers("batch:1")
    clock.pass_by(minutes=1)
    assert not await store.remembers("batch:1")


async def test_opening_again_keeps_everything(storage: Storage, store: Store, clock: Clock) -> None:
    saved = await store.save_run(run(clock.now))
    assert saved is not None
    await store.open()
    await store.aclose()
    await store.aclose()
    again = storage.make()
    await again.open()
    assert await again.get_run(saved.run_id) == saved
    await again.aclose()


async def test_stores_have_owners_of_their_own(store: Store, other: Store) -> None:
    assert store.owner
    assert store.owner != other.owner
    assert ":" not in store.owner


async def test_a_run_has_open_chunks_until_each_path_of_each_chunk_that_is_not_held_has_an_outcome(
    store: Store,
) -> None:
    assert not await store.has_open_chunks("run-1")
    chunks = [chunk("run-1", 1, paths=("a", "b")), replace(chunk("run-1", 2, paths=("c",)), held=True)]
    await store.save_slice(Progress("run-1", TARGET, slices=1), chunks)
    assert await store.has_open_chunks("run-1")
    first, second = await store.list_chunks("run-1")
    half = await store.save_chunk(replace(first, outcomes="w."))
    assert half is not None
    assert await store.has_open_chunks("run-1")
    await store.save_chunk(replace(half, outcomes="wf"))
    assert not await store.has_open_chunks("run-1")
    await store.save_chunk(replace(second, held=False))
    assert await store.has_open_chunks("run-1")
