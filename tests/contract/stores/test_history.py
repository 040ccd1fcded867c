"""The history that nobody can rewrite, in every store."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.history import Save, Store, chain_hash, history_columns
from shared.model import Action, HistoryRow, ObjectState, ObjectStatus, RunStatus, canonical_json, iso
from tests.contract.stores.conftest import Behind, Clock
from tests.contract.stores.helpers import SYNC, TARGET, all_pages, chunk, event, every, run, saved, state


async def grow(store: Store, clock: Clock, path: str = "a", rows: int = 5, **more: Any) -> ObjectState:
    """An object with so many rows, a minute apart."""
    one = state(path, **more)
    for n in range(rows):
        clock.pass_by(minutes=1)
        one = await saved(store, one, event(attempt=n))
    return one


async def history(store: Store, sync_id: str = SYNC, **filters: Any) -> list[HistoryRow]:
    return await all_pages(lambda cursor: store.page_history(sync_id, limit=4, cursor=cursor, **filters))


async def test_each_event_is_a_row_linked_to_the_one_before(store: Store, clock: Clock) -> None:
    one = await saved(store, state("apps/秘密"), event(Action.CREATE))
    clock.pass_by(seconds=1)
    quiet = await saved(store, replace(one, error="no event"))
    last = event(
        Action.FAIL,
        ObjectStatus.FAILED,
        direction="target_to_source",
        source_version="3",
        target_version="abc",
        attempt=2,
        error='it\'s "denied"',
    )
    two = await saved(store, quiet, last)
    newest, oldest = await history(store)
    assert (oldest.action, oldest.previous_hash) == (Action.CREATE, None)
    assert newest == HistoryRow(
        id=newest.id,
        sync_object_id=one.object_id,
        sync_id=SYNC,
        target=TARGET,
        path="apps/秘密",
        run_id="run-1",
        action=Action.FAIL,
        status=ObjectStatus.FAILED,
        direction="target_to_source",
        source_version="3",
        target_version="abc",
        attempt=2,
        error='it\'s "denied"',
        created_at=clock.now,
        previous_hash=oldest.hash,
        hash=newest.hash,
        detail=None,
    )
    for row in (newest, oldest):
        assert row.hash == chain_hash(row.previous_hash, history_columns(row))
        assert re.fullmatch(rf"{one.object_id}-\d{{10}}", row.id)
    assert oldest.id < newest.id
    assert (two.history_count, two.history_hash, two.history_at) == (2, newest.hash, newest.created_at)
    assert await store.get_objects(SYNC, TARGET, ["apps/秘密"]) == {"apps/秘密": two}


DETAIL = canonical_json(
    {
        "rule": "the newest wins: source at 2026-05-01T12:00:00.000000Z, prod at 2026-05-01T11:00:00.000000Z",
        "taken": "source",
        "sides": [
            {"side": side, "fingerprint": "f", "version": "3", "digest": "d" * 64, "changed_at": None}
            for side in ("source", TARGET, "zweites/ziel 🔑")
        ],
    }
)


@pytest.mark.parametrize("detail", [DETAIL, DETAIL * 200, "{}", ""], ids=["usual", "long", "empty", "no text"])
async def test_what_a_conflict_was_about_is_kept_and_is_part_of_the_chain(
    store: Store, behind: Behind, clock: Clock, detail: str
) -> None:
    one = await saved(store, state("a"), event(Action.CREATE))
    clock.pass_by(hours=1)
    one = await saved(store, one, event(Action.CONFLICT, ObjectStatus.CONFLICT, detail=detail))
    clock.pass_by(hours=1)
    await saved(store, one, event(Action.RESOLVE))
    rows = await history(store)
    assert [row.detail for row in rows] == [None, detail, None]
    assert await history(store, path="a") == rows
    assert await history(store, status=ObjectStatus.CONFLICT) == [rows[1]]
    assert [row.hash for row in rows] == [chain_hash(row.previous_hash, history_columns(row)) for row in rows]
    clock.pass_by(hours=1)
    assert not (await store.verify_history(SYNC)).broken
    if len(detail) < 1000:
        await behind.change(rows[1].id, "detail", detail + " ")
        assert "row 2 was changed" in (await store.verify_history(SYNC)).broken[0].detail


async def test_a_detail_that_was_put_in_or_taken_out_later_is_found(store: Store, behind: Behind, clock: Clock) -> None:
    await grow(store, clock, "a", 3)
    row = (await history(store))[1]
    await behind.change(row.id, "detail", "{}")
    assert "row 2 was changed" in (await store.verify_history(SYNC)).broken[0].detail


async def test_a_row_without_a_detail_has_the_hash_that_it_always_had(store: Store) -> None:
    await saved(store, state("a"), event(Action.CREATE, error="x"))
    (row,) = await history(store)
    columns = history_columns(row)
    assert columns.pop("detail") is None
    assert row.hash == chain_hash(None, columns)
    # Computed when rows had no such column.
    assert row.hash == "5239b872e8be5a5fb831b559e2d0f390cc36eeadeeae60e37c1a3bf573acaa55"


async def test_times_strictly_increase_when_the_clock_stands_still_or_goes_back(store: Store, clock: Clock) -> None:
    one = await saved(store, state("a"), event())
    one = await saved(store, one, event())
    clock.pass_by(hours=-2)
    one = await saved(store, one, event())
    one = await saved(store, replace(one, error="quiet"))
    clock.pass_by(hours=3)
    one = await saved(store, one, event())
    times = [row.created_at for row in reversed(await history(store))]
    assert len(times) == 4
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert times[2] - times[0] == timedelta(microseconds=2)
    assert one.updated_at == one.history_at == clock.now
    assert not (await store.verify_history(SYNC)).broken


async def test_history_is_paged_newest_first_by_path_status_and_time(store: Store, clock: Clock) -> None:
    begin = clock.now
    await grow(store, clock, "a", 6)
    await grow(store, clock, "a", 3, target="backup")
    await grow(store, clock, "b", 2)
    await grow(store, clock, "a", 1, sync_id="second")
    one = state("c")
    for action, status in ((Action.FAIL, ObjectStatus.FAILED), (Action.DELETE, ObjectStatus.DELETED)) * 3:
        clock.pass_by(minutes=1)
        one = await saved(store, replace(one, status=status), event(action, status))
    everything = await history(store)
    assert len(everything) == 17
    assert everything == sorted(everything, key=lambda row: row.created_at, reverse=True)
    assert await history(store, path="a") == [row for row in everything if row.path == "a"]
    assert await history(store, path="nothing") == []
    since = begin + timedelta(minutes=8)
    assert await history(store, since=since) == [row for row in everything if row.created_at >= since]
    assert await history(store, path="a", since=since) == [
        row for row in everything if row.path == "a" and row.created_at >= since
    ]
    for status in (ObjectStatus.FAILED, ObjectStatus.DELETED, ObjectStatus.IN_SYNC, ObjectStatus.SKIPPED):
        assert await history(store, status=status) == [row for row in everything if row.status is status]
    late = clock.now - timedelta(minutes=2)
    assert len(await history(store, status=ObjectStatus.FAILED, since=late)) == 1
    assert len(await history(store, path="c", status=ObjectStatus.FAILED)) == 3
    assert len(await history(store, "second")) == 1


async def test_pages_of_history_are_complete_while_it_grows(store: Store, clock: Clock) -> None:
    await store.save_objects([Save(state(f"p{n}"), event()) for n in range(20)])
    page = await store.page_history(SYNC, limit=6)
    seen = [row.id for row in page.items]
    while page.cursor is not None:
        clock.pass_by(seconds=1)
        await store.save_objects([Save(state(f"{page.cursor}-later"), event())])
        page = await store.page_history(SYNC, limit=6, cursor=page.cursor)
        seen += [row.id for row in page.items]
    assert len(seen) == len(set(seen)) == 20


# --- verify -------------------------------------------------------------------------------------------------------


async def test_what_nobody_touched_fits_together(store: Store, clock: Clock) -> None:
    await grow(store, clock, "a", 5)
    await grow(store, clock, "b", 1)
    await saved(store, state("never written"))
    await grow(store, clock, "x", 2, sync_id="second")
    one = await store.verify_history(SYNC)
    assert (one.objects, one.rows, list(one.broken)) == (3, 6, [])
    everything = await store.verify_history()
    assert (everything.objects, everything.rows, list(everything.broken)) == (4, 8, [])


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize(
    ("column", "value"), [("error", "was never so"), ("created_at", "2020-01-01T00:00:00.000000Z")]
)
async def test_a_changed_row_is_found(
    store: Store, behind: Behind, clock: Clock, number: int, column: str, value: str
) -> None:
    one = await grow(store, clock)
    await grow(store, clock, "untouched")
    await behind.change(f"{one.object_id}-{number:010d}", column, value)
    found = await store.verify_history(SYNC)
    assert {(broken.sync_object_id, broken.path) for broken in found.broken} == {(one.object_id, "a")}
    assert f"row {number} was changed" in found.broken[0].detail


async def test_a_changed_row_with_a_hash_to_match_is_found(store: Store, behind: Behind, clock: Clock) -> None:
    await grow(store, clock)
    for number in (5, 3):
        row = (await history(store))[5 - number]
        forged = replace(row, error="was never so")
        await behind.change(row.id, "error", "was never so")
        await behind.change(row.id, "hash", chain_hash(row.previous_hash, history_columns(forged)))
        assert (await store.verify_history(SYNC)).broken


@pytest.mark.parametrize(
    ("number", "says"), [(1, "row 1 is missing"), (3, "row 3 is missing"), (5, "missing at the end")]
)
async def test_a_removed_row_is_found(store: Store, behind: Behind, clock: Clock, number: int, says: str) -> None:
    one = await grow(store, clock)
    await behind.remove(f"{one.object_id}-{number:010d}")
    (broken,) = (await store.verify_history(SYNC)).broken
    assert says in broken.detail


async def test_a_history_that_was_removed_whole_is_found(store: Store, behind: Behind, clock: Clock) -> None:
    one = await grow(store, clock, rows=2)
    for number in (1, 2):
        await behind.remove(f"{one.object_id}-{number:010d}")
    (broken,) = (await store.verify_history(SYNC)).broken
    assert "rows 1 to 2 are missing at the end" in broken.detail


async def test_a_row_that_was_put_in_is_found(store: Store, behind: Behind, clock: Clock) -> None:
    await grow(store, clock)
    third = (await history(store))[2]
    forged = replace(third, id=f"{third.id}x", error="was never so")
    await behind.insert(history_columns(forged))
    assert any("was put in" in broken.detail for broken in (await store.verify_history(SYNC)).broken)


async def test_a_row_that_took_anothers_place_is_found(store: Store, behind: Behind, clock: Clock) -> None:
    await grow(store, clock)
    third = (await history(store))[2]
    forged = replace(third, error="was never so", previous_hash="0" * 64)
    forged = replace(forged, hash=chain_hash(forged.previous_hash, history_columns(forged)))
    await behind.remove(third.id)
    await behind.insert(history_columns(forged))
    assert (await store.verify_history(SYNC)).broken


# --- archive ------------------------------------------------------------------------------------------------------


async def test_the_archive_takes_what_is_old_and_the_chains_still_hold(store: Store, clock: Clock) -> None:
    finished = await store.save_run(
        run(clock.now, status=RunStatus.SUCCEEDED, finished_at=clock.now + timedelta(minutes=1), calls={"hub": 3})
    )
    unfinished = await store.save_run(run(clock.now + timedelta(microseconds=1), status=RunStatus.RUNNING))
    assert finished is not None
    assert unfinished is not None
    await store.save_chunk(chunk(finished.run_id, 1))
    await store.save_plan_page(finished.run_id, 0, "plan")
    one = await grow(store, clock, "a", 5)
    quiet = await grow(store, clock, "quiet", 3)
    everything = {row.id: row for row in await history(store)}
    before = clock.now + timedelta(days=30)
    clock.now = before + timedelta(days=1)
    recent = await store.save_run(run(clock.now, status=RunStatus.FAILED, finished_at=clock.now))
    for n in range(2):
        one = await saved(store, one, event(attempt=n))
    lines: list[str] = []
    assert await store.archive(before, lines.append) == len(lines) == 1 + 5 + 2
    assert not any("\n" in line for line in lines)
    records = [json.loads(line) for line in lines]
    (old_run,) = [record for record in records if record["record"] == "run"]
    assert old_run["run_id"] == finished.run_id
    rows = [record for record in records if record["record"] == "history"]
    assert {row["id"]: row["hash"] for row in rows} == {
        row.id: row.hash for row in everything.values() if row.id != f"{quiet.object_id}-0000000003"
    }
    for row in rows:
        assert row["hash"] == chain_hash(row["previous_hash"], {k: v for k, v in row.items() if k != "record"})
    assert [row.id for row in await history(store)] == [
        f"{one.object_id}-0000000007",
        f"{one.object_id}-0000000006",
        f"{quiet.object_id}-0000000003",
    ]
    assert list((await store.list_runs()).items) == [recent, unfinished]
    assert list((await store.list_runs(SYNC)).items) == [recent, unfinished]
    assert await store.get_run(finished.run_id) is None
    assert await store.list_chunks(finished.run_id) == []
    assert await every(store.plan_pages(finished.run_id)) == []
    verified = await store.verify_history()
    assert (verified.rows, list(verified.broken)) == (3, [])
    again: list[str] = []
    assert await store.archive(before, again.append) == len(again) == 0
    one = await saved(store, one, event())
    assert one.history_count == 8
    assert not (await store.verify_history(SYNC)).broken


async def test_an_archive_holds_what_conflicts_were_about(store: Store, clock: Clock) -> None:
    one = await saved(store, state("a"), event(Action.CONFLICT, ObjectStatus.CONFLICT, detail=DETAIL))
    one = await saved(store, one, event(Action.RESOLVE, detail=DETAIL * 200))
    await saved(store, one, event())
    lines: list[str] = []
    assert await store.archive(clock.now + timedelta(days=1), lines.append) == 2
    rows = [json.loads(line) for line in lines]
    assert [row["detail"] for row in rows] == [DETAIL, DETAIL * 200]
    for row in rows:
        assert row["hash"] == chain_hash(row["previous_hash"], {k: v for k, v in row.items() if k != "record"})
    assert not (await store.verify_history()).broken


async def test_an_archive_can_follow_another_and_missing_rows_are_still_found(
    store: Store, behind: Behind, clock: Clock
) -> None:
    one = await grow(store, clock, "a", 9)
    for rows in (3, 6):
        await store.archive(clock.now - timedelta(minutes=8 - rows), lambda line: None)
        verified = await store.verify_history(SYNC)
        assert (verified.rows, list(verified.broken)) == (9 - rows, [])
    await behind.remove(f"{one.object_id}-0000000007")
    (broken,) = (await store.verify_history(SYNC)).broken
    assert "row 7 is missing" in broken.detail


async def test_an_archive_that_can_not_be_written_removes_nothing(store: Store, clock: Clock) -> None:
    await store.save_run(run(clock.now, status=RunStatus.SUCCEEDED, finished_at=clock.now))
    await grow(store, clock, "a", 5)
    rows, runs = await history(store), (await store.list_runs()).items
    written = 0

    def write(line: str) -> None:
        nonlocal written
        written += 1
        if written == 5:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await store.archive(clock.now + timedelta(days=1), write)
    assert await history(store) == rows
    assert (await store.list_runs()).items == runs
    assert not (await store.verify_history()).broken


async def test_nothing_to_archive_is_no_error(store: Store) -> None:
    assert await store.archive(datetime(2020, 1, 1, tzinfo=UTC), pytest.fail) == 0
    assert iso(datetime(2020, 1, 1, tzinfo=UTC)) == "2020-01-01T00:00:00.000000Z"
