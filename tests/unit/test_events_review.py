"""What a second look at events found: each of these once went wrong."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from shared import jobs
from shared.engine import delete_window, shared_reads
from shared.engine.path_work import PathWork
from shared.engine.shared_reads import SharedReads
from shared.errors import AccessDenied, ConfigError, StoreError, Unavailable
from shared.jobs import EventJob
from shared.model import ObjectStatus, OnExisting, RetryPolicy, RunStatus, Secret, Source
from shared.notices import GapNotice
from shared.vault import NameRule, Vault
from tests.memory_vault import MemoryVault
from tests.unit.test_events import KV2, LISTED, PROPAGATE, event_jobs, runs, seen, state, told
from tests.world import Clock, World, one_way, world

NARROW = replace(KV2, names=NameRule(re.compile("[a-z-]")))


async def probed(w: World) -> int:
    """Deliver the probes that wait, and all that comes of them."""
    probes = [message for message in w.queues.messages if '"job":"probe"' in message[1]]
    for message in probes:
        w.queues.messages.remove(message)
        w.clock.advance(seconds=message[2])
        await w.engine.handle(message[1])
    await w.drain()
    return len(probes)


# --- one path's failure is its own -----------------------------------------------------------------------------------


async def test_paths_that_may_not_be_read_do_not_condemn_the_others(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        names = [f"p{number:03d}" for number in range(100)]
        for name in names:
            source.put(name, "1")
        denied = names[:10]

        async def hook(vault: str, operation: str, name: str) -> None:
            if name in denied:
                raise AccessDenied("not this one", vault="source", path=name)

        source.hook = hook
        await w.engine.events.take(seen(*names))
        (job,) = event_jobs(w)
        w.queues.messages.clear()
        await w.engine.handle(jobs.encode(job))
        assert sorted(target.values()) == names[10:]
        assert w.queues.messages == []


# --- what a row that failed is worth ----------------------------------------------------------------------------------


async def test_a_value_that_goes_back_after_a_write_nobody_saw_the_end_of_is_carried(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    retry = RetryPolicy(max_retries=0)
    async with world(tmp_path, [source, target], one_way(retry_policy=retry)) as w:
        source.put("a", "1")
        await told(w, "a")
        source.put("a", "2")
        target.faults.add("set", Unavailable("time-out", vault="target", ambiguous=True), after=True)
        target.faults.add("get", Unavailable("time-out", vault="target"), times=4)
        await told(w, ("a", 2))
        assert target.values() == {"a": {"value": "2"}}
        assert (await state(w, "a")).status is ObjectStatus.FAILED
        source.put("a", "1")
        target.faults.queued.clear()
        await told(w, ("a", 3))
        assert target.values() == {"a": {"value": "1"}}


# --- names that two paths share ---------------------------------------------------------------------------------------


async def test_a_name_that_is_another_paths_is_not_taken_over_because_the_values_are_equal(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", NARROW)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a-b", "same")
        await told(w, "a-b")
        source.put("a/b", "same")
        await told(w, "a/b")
        source.put("a/b", "other")
        await told(w, ("a/b", 2))
        assert target.values() == {"a-b": {"value": "same"}}
        source.remove("a/b")
        await told(w, "a/b")
        assert target.values() == {"a-b": {"value": "same"}}


async def test_a_name_that_stays_taken_does_not_start_a_run_for_each_event(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", NARROW)
    async with world(tmp_path, [source, target], one_way(on_existing=OnExisting.FAIL)) as w:
        target.put("a-b", "somebody else's")
        for number in range(1, 6):
            source.put("a/b", str(number))
            await told(w, ("a/b", number) if number > 1 else "a/b")
        assert target.values() == {"a-b": {"value": "somebody else's"}}
        assert (await state(w, "a/b")).status is ObjectStatus.FAILED
        assert len(await runs(w)) <= 1


# --- a source that does not answer ------------------------------------------------------------------------------------


async def test_what_was_told_while_the_source_was_down_is_carried_once_it_answers(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.faults.always = Unavailable("down", vault="source")
        await told(w, "a")
        assert (await state(w, "a")).transient
        for _ in range(3):
            assert await probed(w) == 1
            assert await runs(w) == []
        source.faults.always = None
        assert await probed(w) == 1
        assert target.values() == {"a": {"value": "1"}}
        assert await probed(w) == 0


async def test_a_gap_that_is_told_while_the_source_is_down_is_made_up_for_once_it_answers(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.faults.always = Unavailable("down", vault="source")
        await w.engine.events.take([GapNotice("cut", "source")])
        await w.drain()
        assert [run.status for run in await runs(w)] == [RunStatus.FAILED]
        for _ in range(3):
            assert await probed(w) == 1
        assert len(await runs(w)) == 1
        source.faults.always = None
        assert await probed(w) == 1
        assert target.values() == {"a": {"value": "1"}}
        assert await probed(w) == 0
        assert (await w.store.get_control("s")).again is None


# --- lag --------------------------------------------------------------------------------------------------------------


async def test_a_hint_without_a_version_does_not_bring_an_older_value_back(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        source.put("a", "2")
        await told(w, "a")
        newest = source.kept["a"]
        source.kept["a"] = replace(newest, fields={"value": "1"}, version=1)
        await w.engine.events.take(seen("a"))
        await w.engine.handle(w.queues.messages.pop()[1])
        assert target.values() == {"a": {"value": "2"}}
        source.kept["a"] = newest
        await w.drain()
        assert target.values() == {"a": {"value": "2"}}
        assert len(target.writes) == 1


# --- poison -----------------------------------------------------------------------------------------------------------


async def test_a_value_that_breaks_the_mapping_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for name in ("bad", "good"):
            source.put(name, "1")
        whole = PathWork.wanted

        def wanted(self: PathWork, path: str, secret: object) -> object:
            if path == "bad":
                raise ZeroDivisionError
            return whole(self, path, secret)  # type: ignore[arg-type]

        monkeypatch.setattr(PathWork, "wanted", wanted)
        await w.engine.events.take(seen("bad", "good"))
        with pytest.raises(ZeroDivisionError):
            await w.engine.handle(w.queues.messages.pop()[1])
        assert target.values() == {"good": {"value": "1"}}


async def test_what_a_poison_message_left_undone_is_left_to_a_run(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        _, body, _ = w.queues.messages.pop()
        await w.engine.give_up(body)
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


# --- a vault that can not even be opened -----------------------------------------------------------------------------


async def test_a_vault_that_is_configured_wrongly_spoils_no_other_syncs_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vaults = [MemoryVault(name, KV2) for name in ("source", "broken", "target")]
    second = replace(one_way(), id="t", source=Source("broken"))
    async with world(tmp_path, vaults, one_way(), second) as w:
        vaults[0].put("a", "1")
        engine = w.engine
        whole = engine.installation.vaults.get

        async def get(vault_id: str, resource: str = "secrets") -> Vault:
            if vault_id == "broken":
                raise ConfigError("broken: its ca_bundle can not be read")
            return await whole(vault_id, resource)

        monkeypatch.setattr(engine.installation.vaults, "get", get)
        assert await engine.events.take(seen("a")) == [True]
        for _, body, _ in list(w.queues.messages):
            await engine.handle(body)
        assert vaults[2].values() == {"a": {"value": "1"}}
        assert [run.status for run in await runs(w, "t")] == [RunStatus.FAILED]


async def test_an_event_whose_vault_is_configured_wrongly_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        engine = w.engine

        async def get(vault_id: str, resource: str = "secrets") -> Vault:
            raise ConfigError("target: its ca_bundle can not be read")

        with monkeypatch.context() as patched:
            patched.setattr(engine.installation.vaults, "get", get)
            await engine.handle(w.queues.messages.pop()[1])
        assert (await state(w, "a")).error == "target: its ca_bundle can not be read"
        await told(w, "a")
        assert target.values() == {"a": {"value": "1"}}


# --- many deletes -----------------------------------------------------------------------------------------------------


async def test_deletes_that_are_held_back_one_by_one_share_a_run_and_a_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    counted = 0
    whole = delete_window.owned_by

    async def owned_by(*args: str) -> int:
        nonlocal counted
        counted += 1
        return await whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(delete_window, "owned_by", owned_by)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        for number in range(40):
            source.put(f"p{number:02d}", "1")
        await w.sync()
        for number in range(10):
            source.remove(f"p{number:02d}")
        await told(w, *(f"p{number:02d}" for number in range(10)))
        assert len(target.values()) == 30
        for number in range(10, 30):
            source.remove(f"p{number:02d}")
            await told(w, f"p{number:02d}")
        # One by hand, and one at once for the first that was held back.
        assert len(await runs(w)) == 2
        assert counted == 2, "once when there were some, and once before somebody was asked"
        assert await probed(w) == 1
        blocked = (await runs(w))[0]
        assert [run.trigger for run in await runs(w)] == ["event", "event", "manual"]
        assert "30 of the 40" in (blocked.error or "")
        assert await probed(w) == 0
        await w.engine.runs.approve(blocked.run_id)
        await w.drain()
        assert target.values() == source.values()


async def test_deletes_that_can_not_be_counted_do_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("p", "1")
        await w.sync()
        source.remove("p")

        async def taken_by_others(_: object) -> None:
            return None

        with monkeypatch.context() as busy:
            busy.setattr(w.store, "save_control", taken_by_others)
            with pytest.raises(StoreError, match="keeps changing"):
                await told(w, "p")
        assert set(target.values()) == {"p"}


async def test_a_run_that_was_put_off_is_begun_by_the_next_event_too(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.runs.recover("s")
        await w.engine.runs.replay("s", "b")
        await w.drain()
        assert [run.trigger for run in await runs(w)] == ["replay"]
        await w.engine.runs.rerun("s")
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


# --- in mid-flight ----------------------------------------------------------------------------------------------------


async def test_what_waited_in_a_queue_while_its_sync_was_paused_is_caught_up_when_it_is_resumed(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        await w.engine.runs.pause("s", True)
        await w.drain()
        await w.engine.runs.pause("s", False)
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


async def test_a_claim_that_has_run_out_keeps_nobody_away(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        body = w.queues.messages.pop()[1]

        async def hook(vault: str, operation: str, name: str) -> None:
            raise asyncio.CancelledError

        target.hook = hook
        with pytest.raises(asyncio.CancelledError):
            await w.engine.handle(body)
        target.hook = None
        await w.engine.handle(body)
        ((_, again, _),) = w.queues.messages
        assert target.values() == {}
        w.clock.advance(minutes=6)
        w.queues.messages.clear()
        await w.engine.handle(again)
        assert w.queues.messages == []
        assert target.values() == {"a": {"value": "1"}}


async def test_a_source_that_fails_again_and_again_is_not_asked_for_the_rest_of_a_job(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        names = [f"p{number:03d}" for number in range(200)]
        for name in names:
            source.put(name, "1")
        await w.engine.events.take(seen(*names))
        source.faults.always = Unavailable("down", vault="source")
        source.calls.clear()
        await w.engine.handle(w.queues.messages.pop()[1])
        tried = source.calls["get"]
        source.faults.always = None
        await w.drain()
        assert target.values() == source.values()
        # One batch of 64, and its quick tries.
        assert tried <= 64 * 4


async def test_a_secret_that_is_told_with_a_version_and_not_there_is_asked_for_again_before_it_is_deleted(
    tmp_path: Path,
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await told(w, "a")
        source.remove("a")
        await w.engine.events.take(seen(("a", 2)))
        await w.engine.handle(w.queues.messages.pop()[1])
        assert target.values() == {"a": {"value": "1"}}
        assert [job.attempt for job in event_jobs(w)] == [1]
        await w.drain()
        assert target.values() == {}
        source.calls.clear()
        await told(w, "never")
        assert source.calls["get"] == 1


async def test_deletes_that_are_not_propagated_count_for_nothing(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        names = [f"p{number:02d}" for number in range(20)]
        for name in names:
            source.put(name, "1")
        await told(w, *names)
        for name in names:
            source.remove(name)
        await told(w, *names)
        assert len(target.values()) == 20
        assert await runs(w) == []
        assert (await w.store.get_control("s")).event_deletes == {}
        for name in names:
            source.put(name, "2")
        await told(w, *names)
        assert target.values() == source.values()


async def test_what_stays_busy_is_looked_at_less_and_less_often(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.engine.events.take(seen("a"))
        body = w.queues.messages.pop()[1]

        async def hook(vault: str, operation: str, name: str) -> None:
            raise asyncio.CancelledError

        target.hook = hook
        with pytest.raises(asyncio.CancelledError):
            await w.engine.handle(body)
        delays = []
        for _ in range(4):
            w.clock.advance(seconds=2)
            await w.engine.handle(body)
            delays.append(w.queues.messages.pop()[2])
        assert delays == sorted(delays)
        assert 2 <= delays[0] < 3
        assert delays[-1] == 5


# --- shared reads -----------------------------------------------------------------------------------------------------


async def reads_of_two(w_clock: Clock, *, settled_before: float) -> int:
    """How often a source is read for two targets, the second of which was settled so many seconds before the first read."""
    reads = SharedReads(w_clock)
    fetched = 0

    async def fetch() -> Secret:
        nonlocal fetched
        fetched += 1
        return Secret({"value": "1"})

    told = reads.tell()
    settled = w_clock() - timedelta(seconds=settled_before)
    await reads.read(("s", "a"), fetch, told=told, settled_at=None, others=1)
    await reads.read(("s", "a"), fetch, told=told, settled_at=settled, others=1)
    return fetched


async def test_a_read_is_not_shared_with_a_target_that_was_settled_by_a_clock_that_may_be_off() -> None:
    assert await reads_of_two(Clock(), settled_before=shared_reads.SKEW.total_seconds() - 1) == 2
    assert await reads_of_two(Clock(), settled_before=shared_reads.SKEW.total_seconds() + 1) == 1


async def test_a_read_is_shared_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads, "KEPT", -1.0)
    assert await reads_of_two(Clock(), settled_before=1000) == 2


async def test_what_was_only_found_in_a_target_is_forgotten_without_being_counted(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        names = [f"p{number:02d}" for number in range(20)]
        for name in names:
            source.put(name, "1")
            target.put(name, "1")
        await told(w, *names)
        for name in names:
            source.remove(name)
        await told(w, *names)
        assert len(target.values()) == 20
        assert await runs(w) == []
        assert (await w.store.get_control("s")).event_deletes == {}


# --- in between -------------------------------------------------------------------------------------------------------


async def test_a_job_that_is_given_up_keeps_nobody_from_a_living_jobs_claim(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", LISTED)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await told(w, "a")
        source.put("a", "2")
        reached, go = asyncio.Event(), asyncio.Event()

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "set" and not reached.is_set():
                reached.set()
                await go.wait()

        target.hook = hook
        engine = w.engine
        await engine.events.take(seen(("a", 2)))
        slow = asyncio.create_task(engine.handle(w.queues.messages.pop()[1]))
        await reached.wait()
        # Another message names it as well, and ends in poison for a neighbour's sake.
        await engine.give_up(jobs.encode(EventJob("s", "target", "target", (("a", None),), split=True)))
        assert (await state(w, "a")).status is ObjectStatus.FAILED
        source.put("a", "3")
        await engine.events.take(seen(("a", 3)))
        (event,) = [message for message in w.queues.messages if '"job":"event"' in message[1]]
        w.queues.messages.remove(event)
        await engine.handle(event[1])
        go.set()
        await slow
        await w.drain()
        written = [fields["value"] for _, fields in target.writes]
        assert written == sorted(written), "an older value after a newer one"
        assert target.values() == {"a": {"value": "3"}}
        settled = await state(w, "a")
        assert (settled.status, settled.claim) == (ObjectStatus.IN_SYNC, None)


async def test_a_gap_while_source_and_first_target_are_down_is_made_up_for_where_it_can_be(tmp_path: Path) -> None:
    source, down, up = MemoryVault("source", KV2), MemoryVault("down", KV2), MemoryVault("up", KV2)
    async with world(tmp_path, [source, down, up], one_way("down", "up")) as w:
        source.put("a", "1")
        source.faults.always = Unavailable("no answer", vault="source")
        down.faults.always = Unavailable("no answer", vault="down")
        await w.engine.events.take([GapNotice("reconnected", "source")])
        await w.drain()
        source.faults.always = None
        await probed(w)
        assert up.values() == {"a": {"value": "1"}}
        down.faults.always = None
        await probed(w)
        assert down.values() == {"a": {"value": "1"}}


async def test_a_gap_does_not_wait_for_the_probe_that_a_held_delete_waits_for(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("there", "1")
        await w.engine.runs.start("s", trigger="manual")
        # Planned: it has seen all that it will see of the source.
        await w.engine.handle(w.queues.messages.pop()[1])
        await w.engine.runs.recover("s")
        source.put("lost", "1")
        await w.engine.events.take([GapNotice("reconnected", "source")])
        await w.drain()
        assert target.values() == source.values()
