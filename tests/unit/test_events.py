"""Events: what is seen at the source is carried, by the same rules as a run, and without one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared import jobs
from shared.engine.delete_window import DeleteWindow, Reserved
from shared.errors import AccessDenied, InvalidSecret, MountNotFound, Refused, Unavailable
from shared.jobs import EventJob
from shared.model import DeletePolicy, Granularity, ObjectState, ObjectStatus, OnExisting, RunStatus, Source, Target
from shared.notices import AuditNotice, GapNotice, Notice
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
PROPAGATE = DeletePolicy(propagate=True)


def seen(*names: str | tuple[str, int], vault: str = "source") -> list[Notice]:
    """What the relay of a vault tells: names, or names and the versions that updates wrote."""
    notices: list[Notice] = []
    for name in names:
        path, version = name if isinstance(name, tuple) else (name, None)
        notices.append(AuditNotice(f"{vault}/", path, version=version))
    return notices


async def told(w: World, *names: str | tuple[str, int], vault: str = "source") -> list[bool]:
    """Take notices and deal with all that comes of them."""
    useful = await w.engine.events.take(seen(*names, vault=vault))
    await w.drain()
    return useful


async def state(w: World, path: str, target: str = "target") -> ObjectState:
    found = (await w.states())[target, path]
    assert isinstance(found, ObjectState)
    return found


async def runs(w: World, sync_id: str = "s") -> list[Any]:
    return list((await w.store.list_runs(sync_id)).items)


def event_jobs(w: World) -> list[EventJob]:
    decoded = [jobs.decode(body) for _, body, _ in w.queues.messages]
    return [job for job in decoded if isinstance(job, EventJob)]


# --- carried ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [KV2, KV1, LISTED], ids=["kv2", "kv1", "listed"])
@pytest.mark.parametrize("writes", [KV2, KV1, LISTED], ids=["kv2", "kv1", "listed"])
async def test_a_secrets_whole_life_is_carried_without_a_run(
    tmp_path: Path, reads: Capabilities, writes: Capabilities
) -> None:
    source, one, two = MemoryVault("source", reads), MemoryVault("one", writes), MemoryVault("two", writes)
    async with world(tmp_path, [source, one, two], one_way("one", "two", delete=PROPAGATE)) as w:
        source.put("apps/db", "1")
        assert await told(w, "apps/db") == [True]
        assert one.values() == two.values() == {"apps/db": {"value": "1"}}
        source.put("apps/db", "2")
        await told(w, ("apps/db", 2))
        assert one.values() == two.values() == {"apps/db": {"value": "2"}}
        source.remove("apps/db")
        await told(w, "apps/db")
        assert one.values() == two.values() == {}
        source.put("apps/db", "3")
        await told(w, ("apps/db", 3))
        assert one.values() == two.values() == {"apps/db": {"value": "3"}}
        assert await runs(w) == []
        actions = ["create", "update", "delete", "create"]
        assert await w.history(path="apps/db") == [action for action in actions for _ in range(2)]
        assert not (await w.store.verify_history()).broken
        assert (await w.sync()).unchanged == 2


async def test_what_is_known_already_costs_no_call(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.put("a", "2")
        await w.sync()
        source.calls.clear()
        target.calls.clear()
        await told(w, ("a", 1))
        await told(w, ("a", 2))
        assert (source.calls, target.calls) == ({}, {})
        await told(w, "a")
        assert dict(source.calls) == {"get": 1}
        assert dict(target.calls) == {}


async def test_what_is_known_of_another_mapping_or_not_live_is_looked_at(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        w.syncs["s"] = one_way(Target("target", "target", "new/"))
        await told(w, ("a", 1))
        assert target.values()["new/a"] == {"value": "1"}
        # The old name goes when a plan has counted such names.
        assert "a" in target.values()
        await w.sync()
        assert target.values() == {"new/a": {"value": "1"}}


async def test_a_new_secret_takes_one_read_and_one_write(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await told(w, "a")
        assert (dict(source.calls), dict(target.calls)) == ({"get": 1}, {"set": 1})
        source.put("a", "2")
        await told(w, ("a", 2))
        assert (dict(source.calls), dict(target.calls)) == ({"get": 2}, {"set": 2})


async def test_notices_of_other_places_are_of_no_use(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(source=Source("source", "apps/"), exclude=("private/**",))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("apps/a", "1")
        notices = seen("apps/a", "other/b", "apps/private/c", "apps/") + seen("apps/a", vault="elsewhere")
        assert await w.engine.events.take(notices) == [True, False, False, False, False]
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


async def test_a_burst_on_one_path_is_one_look_at_its_newest_version(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        await w.engine.events.take(seen(("a", 3), ("a", 9), ("a", 4), ("b", 2), "b"))
        assert [job.hints for job in event_jobs(w)] == [(("a", "9"), ("b", None))]


async def test_many_paths_are_cut_into_messages_that_fit(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        await w.engine.events.take(seen(*(f"{number}/{'é' * 200}" for number in range(600))))
        hints = [path for job in event_jobs(w) for path, _ in job.hints]
        assert len(hints) == len(set(hints)) == 600
        assert len(event_jobs(w)) >= 3


# --- deletes ----------------------------------------------------------------------------------------------------------


async def test_a_delete_needs_the_sources_own_word(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        for error in (MountNotFound("no mount", vault="source"), AccessDenied("no", vault="source", path="a")):
            source.faults.always = error
            await told(w, "a")
            source.faults.always = None
            assert target.values() == {"a": {"value": "1"}}
            assert (await state(w, "a")).status is ObjectStatus.FAILED
        await told(w, "a")
        assert (await state(w, "a")).status is ObjectStatus.IN_SYNC


async def test_without_propagation_and_for_what_is_not_ours_a_delete_does_nothing(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        await told(w, "a")
        assert target.values() == {"a": {"value": "1"}}
        assert (await state(w, "a")).status is ObjectStatus.IN_SYNC
        w.syncs["s"] = one_way(delete=PROPAGATE)
        source.put("b", "1")
        target.put("b", "1")
        await told(w, "b")
        source.remove("b")
        await told(w, "b")
        assert "b" in target.values()


async def test_a_path_that_never_was_is_known_to_be_gone_and_has_no_history(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        assert await told(w, "a") == [True]
        assert (await state(w, "a")).status is ObjectStatus.DELETED
        assert await w.history() == []


async def test_what_was_changed_in_the_target_is_not_deleted(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        target.put("a", "by hand")
        source.remove("a")
        await told(w, "a")
        assert target.values() == {"a": {"value": "by hand"}}
        assert (await state(w, "a")).status is ObjectStatus.CONFLICT


async def test_deletes_beyond_the_guard_go_to_a_plan_which_counts_them_together(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for number in range(20):
            source.put(f"p{number:02d}", "1")
        await w.sync()
        # 25 % of twenty are five, and five are few anyway.
        for number in range(5):
            source.remove(f"p{number:02d}")
            await told(w, f"p{number:02d}")
        assert len(target.values()) == 15
        assert len(await runs(w)) == 1
        source.remove("p05")
        await told(w, "p05")
        assert len(target.values()) == 15
        blocked = (await runs(w))[0]
        assert (blocked.trigger, blocked.status) == ("event", RunStatus.BLOCKED)
        assert "6 of the 20" in (blocked.error or "")
        await w.engine.runs.approve(blocked.run_id)
        await w.drain()
        assert len(target.values()) == 14


async def test_what_was_carried_since_the_window_began_counts_before_somebody_is_asked(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=DeletePolicy(propagate=True, min_count=0))) as w:
        source.put("a", "1")
        source.put("b", "1")
        source.put("c", "1")
        source.put("d", "1")
        await told(w, *"abcd")
        source.remove("a")
        await told(w, "a")
        # Four were counted; and then there are many more.
        names = [f"new/{number}" for number in range(20)]
        for name in names:
            source.put(name, "1")
        await told(w, *names)
        source.remove("b")
        await told(w, "b")
        assert await runs(w) == []
        assert "b" not in target.values()


async def test_a_new_window_counts_anew_and_keeps_no_old_ones(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for number in range(12):
            source.put(f"p{number:02d}", "1")
        await w.sync()
        for number in range(10):
            if number == 5:
                w.clock.advance(minutes=11)
            source.remove(f"p{number:02d}")
            await told(w, f"p{number:02d}")
        assert len(target.values()) == 2
        assert (await w.store.get_control("s")).event_deletes["target"]["count"] == 5


@pytest.mark.parametrize("other_window", [False, True])
async def test_deletes_that_are_tried_again_are_counted_once(tmp_path: Path, other_window: bool) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for name in "abcd":
            source.put(name, "1")
        await told(w, *"abcd")
        source.remove("a")
        source.remove("b")
        target.faults.always = Unavailable("down", vault="target")
        await w.engine.events.take(seen("a", "b"))
        for _ in range(3):
            (message,) = w.queues.messages
            w.queues.messages.clear()
            await w.engine.handle(message[1])
            if other_window:
                w.clock.advance(minutes=11)
        target.faults.always = None
        await w.drain()
        assert sorted(target.values()) == ["c", "d"]
        assert await runs(w) == []
        assert (await w.store.get_control("s")).event_deletes["target"]["count"] == 2


async def test_what_is_given_back_is_of_its_own_window(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        window = DeleteWindow(w.engine.installation)
        early = await window.reserve(w.syncs["s"], "target", 2)
        w.clock.advance(minutes=11)
        late = await window.reserve(w.syncs["s"], "target", 3)
        assert isinstance(early, Reserved)
        assert isinstance(late, Reserved)
        await window.give_back(early, 2)
        assert (await w.store.get_control("s")).event_deletes["target"]["count"] == 3
        await window.give_back(late, 1)
        assert (await w.store.get_control("s")).event_deletes["target"]["count"] == 2


async def test_many_deletes_at_once_are_counted_before_the_first(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for number in range(100):
            source.put(f"p{number:02d}", "1")
        await w.sync()
        for number in range(40):
            source.remove(f"p{number:02d}")
        await told(w, *(f"p{number:02d}" for number in range(40)))
        assert len(target.values()) == 100
        assert (await runs(w))[0].status is RunStatus.BLOCKED
        source.put("other", "1")
        await told(w, "other")
        assert "other" in target.values()


async def test_a_secret_that_is_there_again_while_it_is_deleted_is_carried(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")

        async def hook(vault: str, operation: str, name: str) -> None:
            if vault == "source" and operation == "describe":
                source.put("a", "2")

        source.hook = hook
        await told(w, "a")
        assert target.values() == {"a": {"value": "2"}}


# --- recreated, behind, disabled --------------------------------------------------------------------------------------


async def test_a_key_that_was_wiped_and_written_anew_is_carried_at_version_one(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for value in "1234":
            source.put("a", value)
        await w.sync()
        del source.kept["a"]
        source.put("a", "new")
        await told(w, "a")
        assert target.values() == {"a": {"value": "new"}}
        assert (await state(w, "a")).source_version == "1"
        source.put("a", "newer")
        await told(w, ("a", 2))
        assert target.values() == {"a": {"value": "newer"}}


async def test_a_source_that_shows_an_older_version_is_asked_again(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        await w.engine.events.take(seen(("a", 2)))
        await w.engine.handle(w.queues.messages.pop()[1])
        (job,) = event_jobs(w)
        assert (job.hints, job.attempt) == ((("a", "2"),), 1)
        source.put("a", "2")
        await w.drain()
        assert target.values() == {"a": {"value": "2"}}
        assert (await state(w, "a")).error is None


async def test_a_source_that_stays_at_an_older_version_is_taken_at_its_word(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        source.put("b", "1")
        await w.sync()
        source.put("a", "2")
        source.remove("b")
        await told(w, ("a", 7), ("b", 7))
        assert target.values() == {"a": {"value": "2"}}
        assert w.queues.messages == []


async def test_a_disabled_secret_is_left_as_it_is(tmp_path: Path) -> None:
    source, target = MemoryVault("source", LISTED), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        for name in ("a", "b"):
            source.put(name, "2")
            source.kept[name].enabled = False
        source.faults.add("get", AccessDenied("disabled", vault="source"), times=2)
        await told(w, "a", "b")
        assert target.values() == {"a": {"value": "1"}}
        assert [(await state(w, name)).status for name in "ab"] == [ObjectStatus.IN_SYNC, ObjectStatus.SKIPPED]
        source.kept["b"].enabled = True
        await told(w, "b")
        assert target.values()["b"] == {"value": "2"}


# --- failing ----------------------------------------------------------------------------------------------------------


async def test_a_target_that_is_down_is_tried_again_then_recorded_and_probed(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        target.faults.always = Unavailable("down", vault="target")
        await told(w, "a")
        failed = await state(w, "a")
        assert (failed.status, failed.transient, failed.claim) == (ObjectStatus.FAILED, True, None)
        assert [jobs.decode(body).attempt for _, body, _ in w.queues.sent if '"job":"event"' in body] == [0, 1, 2, 3]
        target.faults.always = None
        (probe,) = w.queues.messages
        await w.engine.handle(probe[1])
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_call_that_fails_once_is_made_again(tmp_path: Path, after: bool) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.faults.add("get", Unavailable("x", vault="source"), times=3)
        target.faults.add("set", Unavailable("x", vault="target", ambiguous=after), after=after, times=4)
        await told(w, "a")
        assert target.values() == {"a": {"value": "1"}}
        assert (await state(w, "a")).status is ObjectStatus.IN_SYNC
        assert (await state(w, "a")).parts[0].owned


@pytest.mark.parametrize("operation", ["get", "set"])
async def test_some_secrets_that_fail_hold_up_no_other(tmp_path: Path, operation: str) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        names = [f"p{number:03}" for number in range(200)]
        for name in names:
            source.put(name, "1")
        bad = names[::12]
        slow = asyncio.Event()

        async def hook(vault: str, called: str, name: str) -> None:
            if called == operation and name in bad:
                # As a time-out: it ends after all that go well.
                await slow.wait()
                raise Unavailable("no answer for this one", vault=vault, path=name)

        source.hook = target.hook = hook
        await w.engine.events.take(seen(*names))
        (job,) = event_jobs(w)
        w.queues.messages.clear()
        handled = asyncio.create_task(w.engine.handle(jobs.encode(job)))
        for _ in range(1000):
            await asyncio.sleep(0)
        slow.set()
        await handled
        assert sorted(target.values()) == sorted(set(names) - set(bad))
        assert [path for again in event_jobs(w) for path, _ in again.hints] == bad


async def test_a_permanent_failure_is_one_row_of_history_and_heals(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.faults.add("get", InvalidSecret("no", vault="source", path="a"), times=2)
        await told(w, "a")
        await told(w, "a")
        assert await w.history(path="a") == ["fail"]
        await told(w, "a")
        assert await w.history(path="a") == ["fail", "create"]


async def test_a_defect_frees_its_batch_and_ends_in_poison(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for name in ("good", "bad", "worse"):
            source.put(name, "1")

        async def hook(vault: str, operation: str, name: str) -> None:
            if (operation, name) in {("get", "bad"), ("set", "worse")}:
                raise ZeroDivisionError

        source.hook = target.hook = hook
        await w.engine.events.take(seen("good", "bad", "worse"))
        _, body, _ = w.queues.messages.pop()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await w.engine.handle(body)
            assert target.values() == {"good": {"value": "1"}}
        await w.engine.give_up(body)
        _, (_, half, _) = w.queues.messages
        with pytest.raises(ZeroDivisionError):
            await w.engine.handle(half)
        await w.engine.give_up(half)
        assert (await state(w, "bad")).status is ObjectStatus.FAILED
        assert (await state(w, "worse")).status is ObjectStatus.FAILED


async def test_jobs_of_what_is_no_longer_configured_or_covered_do_nothing(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        _, body, _ = w.queues.messages.pop()
        kept = w.syncs["s"]
        for sync in (None, replace(kept, targets=()), replace(kept, exclude=("*",)), replace(kept, enabled=False)):
            w.syncs.clear()
            if sync is not None:
                w.syncs["s"] = sync
            await w.engine.handle(body)
            assert target.values() == {}
            assert w.queues.messages == []


# --- busy, paused, runs -----------------------------------------------------------------------------------------------


async def test_an_event_that_comes_while_its_secret_is_written_is_not_lost(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        writing, go_on = asyncio.Event(), asyncio.Event()

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "set" and not writing.is_set():
                writing.set()
                await go_on.wait()

        target.hook = hook
        first = asyncio.create_task(w.engine.handle(w.queues.messages.pop()[1]))
        await writing.wait()
        source.put("a", "2")
        await w.engine.events.take(seen(("a", 2)))
        await w.engine.handle(w.queues.messages.pop()[1])
        ((_, _, delay),) = w.queues.messages
        assert 0 < delay < 1
        go_on.set()
        await first
        await w.drain()
        assert target.values() == {"a": {"value": "2"}}


async def test_a_runs_own_account_of_a_path_survives_an_event(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        run = await w.engine.runs.start("s", trigger="manual")
        await w.engine.handle(w.queues.messages.pop()[1])
        _, write, _ = w.queues.messages.pop()
        saved = w.store.save_chunk
        w.store.save_chunk = None  # type: ignore[assignment, method-assign]
        with pytest.raises(TypeError):
            await w.engine.handle(write)
        w.store.save_chunk = saved  # type: ignore[method-assign]
        source.put("a", "2")
        await told(w, ("a", 2))
        target.calls.clear()
        await w.engine.handle(write)
        assert target.calls == {}
        ended = await w.engine.runs.view(run.run_id)
        assert (ended.written, ended.status) == (1, RunStatus.SUCCEEDED)
        assert target.values() == {"a": {"value": "2"}}


async def test_of_a_paused_sync_nothing_is_written_until_it_is_resumed(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        await w.engine.runs.pause("s", True)
        await w.drain()
        assert (target.values(), await runs(w)) == ({}, [])
        source.put("b", "1")
        assert await told(w, "b") == [True]
        assert (target.values(), await runs(w)) == ({}, [])
        await w.engine.runs.pause("s", False)
        await w.drain()
        assert target.values() == source.values()
        assert [run.trigger for run in await runs(w)] == ["event"]
        assert (await w.store.get_control("s")).again is None


async def test_a_gap_is_a_run_of_every_sync_that_reads_there(tmp_path: Path) -> None:
    vaults = [MemoryVault(name, KV2) for name in ("source", "other", "target")]
    second = replace(one_way(), id="t", source=Source("other"))
    async with world(tmp_path, vaults, one_way(), second) as w:
        vaults[0].put("a", "1")
        assert await w.engine.events.take([GapNotice("start", "source"), GapNotice("cut", "nowhere")]) == [True, False]
        await w.drain()
        assert vaults[2].values() == {"a": {"value": "1"}}
        assert len(await runs(w, "s")) == 1
        assert await runs(w, "t") == []
        await w.engine.events.take([GapNotice("start")])
        await w.drain()
        assert len(await runs(w, "s")) == 2
        assert len(await runs(w, "t")) == 1


async def test_a_source_that_can_not_be_opened_is_left_to_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        engine = w.engine

        async def closed(vault_id: str, resource: str = "secrets") -> Any:
            raise Unavailable("no answer", vault=vault_id)

        with monkeypatch.context() as patched:
            patched.setattr(engine.installation.vaults, "get", closed)
            assert await engine.events.take([AuditNotice("x/", "y", vault="elsewhere")]) == [False]
            assert await runs(w) == []
            assert await engine.events.take(seen("a")) == [True]
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}
        assert [run.trigger for run in await runs(w)] == ["event"]


async def test_a_source_that_can_not_be_opened_or_was_not_heard_of_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vaults = [MemoryVault(name, KV2) for name in ("source", "other", "target")]
    second = replace(one_way(), id="t", source=Source("other"))
    async with world(tmp_path, vaults, one_way(), second) as w:
        vaults[1].put("b", "1")
        assert await w.engine.events.take([AuditNotice("other/", "b", vault="other")]) == [True]
        await w.drain()
        assert vaults[2].values() == {"b": {"value": "1"}}
        vaults[1].put("b", "2")
        engine = w.engine
        get = engine.installation.vaults.get

        async def closed(vault_id: str, resource: str = "secrets") -> Any:
            if vault_id == "source":
                raise Unavailable("no answer", vault=vault_id)
            return await get(vault_id, resource)

        notices = [AuditNotice(f"{name}/", "b", vault=name) for name in ("source", "other", "nowhere")]
        with monkeypatch.context() as patched:
            patched.setattr(engine.installation.vaults, "get", closed)
            assert await engine.events.take(notices) == [True, True, False]
        assert "what was seen in source is left to a run" in caplog.text
        await w.drain()
        assert vaults[2].values() == {"b": {"value": "2"}}
        assert len(await runs(w, "s")) == 1
        assert await runs(w, "t") == []


async def test_a_rerun_while_a_run_is_on_its_way_begins_when_it_has_ended(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        first = await w.engine.runs.start("s", trigger="manual")
        # Queued still: it will see everything that is there now.
        await w.engine.runs.rerun("s")
        assert (await w.store.get_control("s")).again is None
        await w.engine.handle(w.queues.messages.pop(0)[1])
        for _ in range(3):
            await w.engine.runs.rerun("s")
        assert len(await runs(w)) == 1
        source.put("b", "1")
        await w.drain()
        assert [run.trigger for run in await runs(w)] == ["event", "manual"]
        assert (await w.engine.runs.view(first.run_id)).status is RunStatus.SUCCEEDED
        assert target.values() == source.values()


async def test_a_replay_of_some_paths_does_not_stand_for_a_full_run(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.put("b", "1")
        await w.engine.runs.replay("s", "a")
        await w.engine.runs.rerun("s")
        await w.drain()
        assert target.values() == source.values()
        assert [run.trigger for run in await runs(w)] == ["event", "replay"]


async def test_the_run_that_must_follow_survives_a_death_before_it_was_begun(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.runs.start("s", trigger="manual")
        await w.engine.handle(w.queues.messages.pop(0)[1])
        await w.engine.runs.rerun("s")
        ((_, write, _),) = [m for m in w.queues.messages if '"job":"write"' in m[1]]
        engine = w.engine

        async def dies(sync_id: str, *, after_run: bool = False) -> None:
            raise asyncio.CancelledError

        engine.runs.go_on = dies  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await engine.handle(write)
        assert len(await runs(w)) == 1
        await w.engine.handle(write)
        await w.drain()
        assert [run.trigger for run in await runs(w)] == ["event", "manual"]


async def test_the_plan_job_of_the_run_that_must_follow_is_sent_again_after_a_death(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.runs.rerun("s")
        w.queues.messages.clear()
        await w.engine.runs.rerun("s")
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}
        assert len(await runs(w)) == 1


# --- told by hand -----------------------------------------------------------------------------------------------------


async def test_paths_of_a_sync_can_be_told_by_hand(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(source=Source("source", "apps/"), exclude=("private/**",))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("apps/a", "1")
        await w.engine.events.look("s", ["a"])
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}
        with pytest.raises(Refused):
            await w.engine.events.look("nothing", ["a"])
        with pytest.raises(Refused, match="does not cover"):
            await w.engine.events.look("s", ["private/x"])
        with pytest.raises(InvalidSecret):
            await w.engine.events.look("s", ["../x"])
        source.put("apps/b", "1")
        assert await w.engine.events.touched("source", ["else", "apps/../x", "apps/b"]) == [False, False, True]
        await w.drain()
        assert target.values() == {"a": {"value": "1"}, "b": {"value": "1"}}
        with pytest.raises(Refused):
            await w.engine.events.touched("target", ["a"])
        w.syncs["s"] = replace(w.syncs["s"], enabled=False)
        with pytest.raises(Refused, match="disabled"):
            await w.engine.events.look("s", ["a"])


# --- chains -----------------------------------------------------------------------------------------------------------


async def test_a_pair_of_syncs_in_both_directions_comes_to_rest(tmp_path: Path) -> None:
    left, right = MemoryVault("left", KV2), MemoryVault("right", KV2)
    there = one_way("right", source=Source("left"), id="there")
    back = one_way("left", source=Source("right"), id="back")
    async with world(tmp_path, [left, right], there, back) as w:
        left.put("a", "1")
        for vault_id in ("left", "right", "left", "right"):
            await told(w, "a", vault=vault_id)
        assert (len(left.writes), len(right.writes)) == (0, 1)
        right.put("a", "2")
        for vault_id in ("right", "left", "right", "left"):
            await told(w, "a", vault=vault_id)
        assert left.values() == right.values() == {"a": {"value": "2"}}
        assert (len(left.writes), len(right.writes)) == (1, 1)


async def test_what_arrives_is_carried_on_by_a_sync_that_reads_there(tmp_path: Path) -> None:
    vaults = [MemoryVault(name, KV2) for name in ("source", "middle", "end")]
    second = replace(one_way("end"), id="t", source=Source("middle"))
    async with world(tmp_path, vaults, one_way("middle"), second) as w:
        vaults[0].put("a", "1")
        await told(w, "a")
        await told(w, "a", vault="middle")
        assert vaults[2].values() == {"a": {"value": "1"}}


# --- names and fields -------------------------------------------------------------------------------------------------


async def test_fields_come_and_go_with_events(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(Target("target", "target", "", "{path}-{field}", Granularity.FIELD), delete=PROPAGATE)
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", {"x": "1", "y": "2"})
        await told(w, "a")
        assert target.values() == {"a-x": {"value": "1"}, "a-y": {"value": "2"}}
        source.put("a", {"y": "3", "z": "4"})
        await told(w, ("a", 2))
        assert target.values() == {"a-y": {"value": "3"}, "a-z": {"value": "4"}}
        target.calls.clear()
        await told(w, "a")
        assert target.calls == {}
        source.remove("a")
        await told(w, "a")
        assert target.values() == {}


async def test_two_paths_that_share_a_name_are_left_to_a_plan(tmp_path: Path) -> None:
    narrow = replace(KV2, names=NameRule(re.compile("[a-z-]")))
    source, target = MemoryVault("source", KV2), MemoryVault("target", narrow)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a-b", "1")
        await told(w, "a-b")
        source.put("a/b", "2")
        await told(w, "a/b")
        assert target.values() == {"a-b": {"value": "1"}}
        assert (await state(w, "a/b")).status is ObjectStatus.FAILED
        source.put("a-b", "3")
        await told(w, ("a-b", 2))
        assert target.values() == {"a-b": {"value": "1"}}
        del source.kept["a/b"]
        await told(w, ("a-b", 3))
        assert target.values() == {"a-b": {"value": "3"}}


@pytest.mark.parametrize("policy", list(OnExisting))
@pytest.mark.parametrize("writes", [KV2, KV1], ids=["kv2", "kv1"])
async def test_what_was_there_before_is_treated_as_the_sync_says(
    tmp_path: Path, policy: OnExisting, writes: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", writes)
    async with world(tmp_path, [source, target], one_way(on_existing=policy)) as w:
        source.put("a", "new")
        target.put("a", "old")
        source.put("b", "same")
        target.put("b", "same")
        await told(w, "a", "b")
        over = policy is OnExisting.OVERWRITE
        assert target.values()["a"] == {"value": "new" if over else "old"}
        wanted = {"overwrite": "in_sync", "skip": "skipped", "fail": "failed"}[policy]
        assert (await state(w, "a")).status == wanted
        assert not (await state(w, "b")).parts[0].owned


def test_hints_of_one_path_become_one() -> None:
    from shared.notices import merged

    hints: Sequence[tuple[str, str | None]] = [("a", "9"), ("a", "10"), ("b", "1"), ("b", None), ("c", "x"), ("c", "y")]
    assert merged(hints) == {"a": "10", "b": None, "c": None}


async def test_a_replay_that_begins_leaves_the_run_that_must_follow(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.put("b", "1")
        # As after a death between the note and the run's beginning.
        await w.store.save_control(replace(await w.store.get_control("s"), again="event"))
        await w.engine.runs.replay("s", "a")
        await w.drain()
        assert target.values() == source.values()


async def test_another_installations_newer_value_is_not_overwritten_by_what_was_read_before_it(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await told(w, "a")
        source.remove("a")
        await told(w, "a")
        source.put("a", "2")

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "get":
                target.hook = None
                source.put("a", "3")
                target.put("a", "3")

        target.hook = hook
        target.writes.clear()
        await told(w, "a")
        assert target.values() == {"a": {"value": "3"}}
        assert target.writes == []
