"""What a two-way sync leaves to others, and what it comes back to: paths claimed, failed, disabled, half-carried."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from shared.engine.settling import CLAIM
from shared.errors import AccessDenied, StoreError, Unavailable
from shared.history import Save
from shared.model import Chunk, ConflictPolicy, DeletePolicy, ObjectState, ObjectStatus, RetryPolicy, RunStatus
from tests.unit.test_two_way import KV2, LISTED, Two, either_side, two

SPOKES = ("source", "one", "two")
HASTY = RetryPolicy(max_retries=1)


async def claim(both: Two, path: str) -> ObjectState:
    """Another process takes a path."""
    row = next(row for row in await both.rows() if row.path == path)
    mine = replace(row, claim="another:1", claim_expires_at=both.w.clock.now + CLAIM)
    (kept,) = await both.w.store.save_objects([Save(mine)])
    assert kept is not None
    return kept


async def deliver(both: Two) -> None:
    await both.w.engine.handle(both.w.queues.messages.pop(0)[1])


async def test_a_path_that_another_process_works_on_waits_and_is_carried_then(tmp_path: Path) -> None:
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        both["source"].put("a", "2")
        kept = await claim(both, "a")
        await both.hear("source", "a")
        await deliver(both)
        assert not any(both.writes.values())
        assert both["target"].calls["get"] == 0, "it is not even looked at"
        await both.w.store.save_objects([Save(replace(kept, claim=None, claim_expires_at=None))])
        await both.w.drain()
        assert both.values() == {"a": {"value": "2"}}


async def test_what_a_run_wrote_is_counted_once_though_it_died_before_it_could_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job comes again: it looks at no side, and the run tells of the write as one."""
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        both["source"].put("a", "2")
        run = await both.w.engine.runs.start("s", trigger="manual")
        await deliver(both)
        (_, job, _) = both.w.queues.messages[0]

        async def dies(chunk: Chunk) -> Chunk | None:
            raise StoreError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(both.w.store, "save_chunk", dies)
            with pytest.raises(StoreError):
                await both.w.engine.handle(job)
        assert both.values() == {"a": {"value": "2"}}
        both.forget()
        await both.w.drain()
        assert (await both.w.engine.runs.view(run.run_id)).written == 1
        assert both["target"].calls["get"] == 0


@either_side
async def test_an_event_of_a_paused_sync_writes_nothing_until_it_goes_on(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        await both.hear(here, "a")
        await both.w.engine.runs.pause("s", True)
        await both.w.drain()
        assert not any(both.writes.values())
        await both.w.engine.runs.pause("s", False)
        await both.w.drain()
        assert both.values() == {"a": {"value": "2"}}


async def test_who_lost_its_claim_while_writing_comes_back_to_the_path(tmp_path: Path) -> None:
    """What it knows is old: another process may have recorded something else meanwhile."""
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        both["source"].put("a", "2")

        async def taken(side: str, operation: str, name: str) -> None:
            if operation == "set done":
                both["target"].hook = None
                await claim(both, "a")

        both["target"].hook = taken
        await both.hear("source", "a")
        await deliver(both)
        assert len(both.w.queues.messages) == 1, "the event is put back"
        both.w.clock.advance(seconds=CLAIM.total_seconds())
        await both.w.drain()
        (row,) = await both.rows()
        assert (row.status, row.source_version, row.claim) == (ObjectStatus.IN_SYNC, "2", None)


async def test_an_event_of_a_side_that_is_known_still_settles_one_that_failed(tmp_path: Path) -> None:
    async with two(tmp_path, KV2, names=SPOKES, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["one"].put("a", "2")
        hub["two"].faults.add("set", AccessDenied("no", vault="two"))
        await hub.sync("failed")
        assert [row.target for row in await hub.rows(ObjectStatus.FAILED)] == ["two"]
        await hub.hear("one", "a", 2)
        await hub.w.drain()
        assert hub.values() == {"a": {"value": "2"}}


async def test_an_event_is_not_over_before_the_last_spoke_has_its_value(tmp_path: Path) -> None:
    async with two(tmp_path, KV2, names=SPOKES) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "2")
        hub["two"].faults.add("set", Unavailable("no answer", vault="two"), times=20)
        await hub.hear("source", "a", 2)
        await deliver(hub)
        assert hub["one"].values() == {"a": {"value": "2"}}
        hub["two"].faults.queued.clear()
        await hub.w.drain()
        assert hub.values() == {"a": {"value": "2"}}


async def test_what_failed_is_looked_at_by_the_next_run_though_nothing_changed(tmp_path: Path) -> None:
    async with two(tmp_path, KV2, retry_policy=HASTY) as both:
        await both.agree(a="1")
        both["target"].faults.always = AccessDenied("no", vault="target")
        await both.hear("source", "a")
        await both.w.drain()
        assert len(await both.rows(ObjectStatus.FAILED)) == 1
        both["target"].faults.always = None
        await both.sync()
        assert await both.rows(ObjectStatus.FAILED) == []
        await both.quiet()


async def test_what_is_disabled_in_a_target_counts_for_no_delete(tmp_path: Path) -> None:
    strict = DeletePolicy(propagate=True, max_percent=0, min_count=0)
    async with two(tmp_path, LISTED, delete=strict) as both:
        await both.agree(a="1", b="2")
        both["source"].remove("a")
        both["target"].kept["a"].enabled = False
        run = await both.w.sync()
        assert (run.status, run.deleted) == (RunStatus.SUCCEEDED, 0)
        assert "a" in both["target"].kept


async def test_a_claim_that_runs_out_soon_is_prolonged_before_a_write(tmp_path: Path) -> None:
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        both["source"].put("a", "2")
        left: list[timedelta] = []

        async def slow(side: str, operation: str, name: str) -> None:
            if operation == "get done" and not left:
                both.w.clock.advance(seconds=CLAIM.total_seconds() - 30)
            if operation == "set":
                (row,) = await both.rows()
                left.append(row.claim_left(both.w.clock.now))

        both["target"].hook = slow
        await both.hear("source", "a")
        await deliver(both)
        assert len(left) == 1
        assert left[0] > timedelta(seconds=120)
        assert both.values() == {"a": {"value": "2"}}


async def test_only_the_sides_of_a_conflict_are_listed_with_it(tmp_path: Path) -> None:
    async with two(tmp_path, KV2, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "2")
        hub["one"].put("a", "3")
        await hub.w.sync()
        assert [row.target for row in await hub.rows(ObjectStatus.CONFLICT)] == ["one"]


async def test_what_the_source_refuses_goes_to_no_other_spoke(tmp_path: Path) -> None:
    async with two(tmp_path, KV2, names=SPOKES, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["one"].put("a", "2")
        hub["source"].faults.add("set", AccessDenied("no", vault="source"), times=5)
        await hub.w.sync()
        assert hub["two"].values() == {"a": {"value": "1"}}
        assert hub["two"].writes == []
        hub["source"].faults.queued.clear()
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "2"}}


async def test_what_a_spoke_missed_before_a_deletion_that_is_not_carried_stays_apart(tmp_path: Path) -> None:
    """Nothing is left in the source that could bring it up to date, and no side contradicts another."""
    async with two(tmp_path, KV2, names=SPOKES, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["two"].faults.always = Unavailable("no answer", vault="two")
        hub["source"].put("a", "2")
        await hub.w.sync()
        hub["source"].remove("a")
        hub["two"].faults.always = None
        await hub.w.sync()
        run = await hub.sync()
        assert (run.written, run.deleted, run.conflicts) == (0, 0, 0)
        assert [hub[side].values() for side in SPOKES] == [{}, {"a": {"value": "2"}}, {"a": {"value": "1"}}]
        assert await hub.listed() == set()
        hub["source"].put("a", "3")
        await hub.sync()
        assert hub.values() == {"a": {"value": "3"}}
