"""Two-way syncs where things go wrong together: what is left behind is told, made up for, and in nobody's way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.engine import Engine, planner
from shared.errors import AccessDenied, Refused, Unavailable
from shared.model import (
    ConflictPolicy,
    DeletePolicy,
    RetryPolicy,
    RunStatus,
    Source,
    Target,
)
from shared.notices import AuditNotice, GapNotice
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, two_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
PLAIN = Capabilities(FingerprintCost.VALUE)
PROPAGATE = DeletePolicy(propagate=True, max_percent=100)
HASTY = RetryPolicy(max_retries=1)


def memory(w: World, vault_id: str) -> MemoryVault:
    vault = w.vaults[vault_id]
    assert isinstance(vault, MemoryVault)
    return vault


def vaults(*ids: str, kind: Capabilities = KV2) -> list[MemoryVault]:
    return [MemoryVault(each, kind) for each in ids or ("source", "target")]


async def rows(w: World) -> dict[tuple[str, str], Any]:
    return await w.states()


async def statuses(w: World) -> dict[str, str]:
    return {path: str(row.status) for (_, path), row in (await rows(w)).items()}


async def test_whoever_runs_out_of_time_after_the_note_leaves_the_path_free(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way(conflict=ConflictPolicy.SOURCE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        target.put("a", "3")
        slow = w.clock

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "get" and vault == "source":
                slow.advance(seconds=100)

        source.hook = hook
        await w.engine.runs.start("s", trigger="manual")
        engine = w.engine
        await engine.handle(w.queues.messages.pop(0)[1])
        source.hook = None

        async def late(vault: str, operation: str, name: str) -> None:
            if operation == "get done":
                slow.advance(seconds=200)

        target.hook = late
        await engine.handle(w.queues.messages.pop(0)[1])
        target.hook = None
        (row,) = (await rows(w)).values()
        assert row.claim is None
        await w.drain()
        assert target.values() == {"a": {"value": "2"}}
        assert await w.history() == ["create", "conflict", "update"]


async def test_a_defect_after_the_note_leaves_the_path_free(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way(conflict=ConflictPolicy.SOURCE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        target.put("a", "3")

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "set":
                raise RuntimeError("a defect")

        target.hook = hook
        with pytest.raises(RuntimeError):
            await w.sync()
        (row,) = (await rows(w)).values()
        assert row.claim is None


@pytest.mark.parametrize("propagate", [False, True])
async def test_a_conflict_of_a_first_contact_ends_when_both_sides_delete(tmp_path: Path, propagate: bool) -> None:
    options = {"conflict": ConflictPolicy.MANUAL, "delete": DeletePolicy(propagate=propagate, max_percent=100)}
    async with world(tmp_path, vaults(), two_way(**options)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "2")
        target.put("a", "3")
        await w.sync()
        assert await statuses(w) == {"a": "conflict"}
        source.remove("a")
        target.remove("a")
        run = await w.sync()
        assert await statuses(w) == {"a": "deleted"}
        assert run.status is RunStatus.SUCCEEDED
        run = await w.sync()
        assert run.planned == 0


async def test_what_failed_and_is_nowhere_any_more_is_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way(retry_policy=HASTY)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "2")
        target.faults.add("set", Unavailable("no", vault="target"), times=100)
        await w.sync()
        assert await statuses(w) == {"a": "failed"}
        source.remove("a")
        target.faults.queued.clear()
        await w.sync()
        assert "failed" not in (await statuses(w)).values()


async def test_targets_that_are_not_configured_any_more_do_not_count_for_the_guard(tmp_path: Path) -> None:
    strict = DeletePolicy(propagate=True, max_percent=25, min_count=0)
    async with world(tmp_path, vaults("source", "old", "target"), two_way("old", delete=strict)) as w:
        source = memory(w, "source")
        for n in range(100):
            source.put(f"gone{n:03d}", "1")
        await w.sync()
        for n in range(100):
            source.remove(f"gone{n:03d}")
            memory(w, "old").remove(f"gone{n:03d}")
        for n in range(4):
            source.put(f"s{n}", "1")
        w.syncs["s"] = two_way("target", delete=strict)
        await w.sync()
        source.remove("s0")
        source.remove("s1")
        run = await w.sync()
        assert run.status is RunStatus.BLOCKED, "two of four"


async def test_what_is_remembered_of_another_place_is_forgotten_when_it_is_not_here(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way()) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("x/a", "1")
        w.syncs["s"] = two_way(source=Source("source", "x/"))
        await w.sync()
        target.remove("a")
        w.syncs["s"] = two_way(source=Source("source", "y/"))
        await w.sync()
        await w.sync()
        assert await statuses(w) == {"a": "deleted"}


async def test_a_denied_path_does_not_end_a_planning_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "SLICE", 2)
    async with world(tmp_path, vaults(), two_way(delete=PROPAGATE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        for n in range(6):
            source.put(f"s{n}", "1")
        await w.sync()

        async def hook(vault: str, operation: str, name: str) -> None:
            if name == "s0" and operation in ("get", "describe"):
                raise AccessDenied("no", vault=vault, path=name)

        source.hook = hook
        target.remove("s1")
        target.remove("s5")
        engine = Engine(replace(w.engine.installation, planning_budget=0.0))
        run = await engine.runs.start("s", trigger="manual")
        while w.queues.messages:
            await engine.handle(w.queues.messages.pop(0)[1])
        ended = await engine.runs.view(run.run_id)
        assert (ended.deleted, ended.error) == (2, None)
        assert ended.status is RunStatus.PARTIAL


async def test_a_dead_spoke_does_not_hold_up_hundreds(tmp_path: Path) -> None:
    async with world(tmp_path, vaults("source", "one", "two"), two_way("one", "two")) as w:
        source, one, two = (memory(w, each) for each in ("source", "one", "two"))
        for n in range(200):
            source.put(f"s{n:03d}", "1")
        two.faults.always = Unavailable("down", vault="two")
        run = await w.engine.runs.start("s", trigger="manual")
        await w.engine.handle(w.queues.messages.pop(0)[1])
        for _ in range(len(w.queues.messages)):
            await w.engine.handle(w.queues.messages.pop(0)[1])
        assert len(one.values()) == 200
        assert two.calls["get"] < 600
        await w.drain()
        ended = await w.engine.runs.view(run.run_id)
        assert ended.failed == 200


async def test_what_a_spoke_changed_while_it_could_not_be_listed_is_made_up_for(tmp_path: Path) -> None:
    async with world(tmp_path, vaults("source", "one", "two"), two_way("one", "two", retry_policy=HASTY)) as w:
        source, two = memory(w, "source"), memory(w, "two")
        source.put("a", "1")
        await w.sync()
        two.put("a", "2")
        two.faults.always = Unavailable("down", vault="two")
        await w.engine.events.take([GapNotice("two")])
        await w.drain()
        two.faults.always = None
        for _ in range(20):
            if not w.queues.messages:
                break
            _, body, delay = w.queues.messages.pop(0)
            w.clock.advance(seconds=delay)
            await w.engine.handle(body)
        assert source.values() == {"a": {"value": "2"}}


async def test_a_dead_spoke_is_asked_before_anything_is_replayed(tmp_path: Path) -> None:
    async with world(tmp_path, vaults("source", "one", "two"), two_way("one", "two", retry_policy=HASTY)) as w:
        source, two = memory(w, "source"), memory(w, "two")
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        two.faults.always = Unavailable("down", vault="two")
        await w.sync()
        delays = []
        for _ in range(60):
            if not w.queues.messages:
                break
            _, body, delay = w.queues.messages.pop(0)
            w.clock.advance(seconds=delay)
            if '"job":"probe"' in body:
                delays.append(delay)
            await w.engine.handle(body)
            if len(delays) == 5:
                break
        page = await w.store.list_runs("s", limit=100)
        assert (len(page.items), delays) == (2, [30, 60, 120, 240, 480])
        two.faults.always = None
        _, body, _ = w.queues.messages.pop(0)
        await w.engine.handle(body)
        await w.drain()
        assert two.values() == {"a": {"value": "2"}}
        assert not w.queues.messages


async def assert_quiet(w: World) -> None:
    """Another run has nothing to do."""
    before = len(await w.history())
    run = await w.sync()
    assert (run.status, run.planned) == (RunStatus.SUCCEEDED, 0)
    assert len(await w.history()) == before


@pytest.mark.parametrize("kind", [KV2, LISTED])
@pytest.mark.parametrize("take", ["source", "target"])
@pytest.mark.parametrize("gone", ["source", "target"])
async def test_a_person_may_take_a_deletion_whatever_the_guard_says(
    tmp_path: Path, kind: Capabilities, take: str, gone: str
) -> None:
    strict = DeletePolicy(propagate=True, max_percent=0, min_count=0)
    options = {"conflict": ConflictPolicy.MANUAL, "delete": strict}
    async with world(tmp_path, vaults(kind=kind), two_way(**options)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        source.put("b", "1")
        await w.sync()
        memory(w, gone).remove("a")
        (target if gone == "source" else source).put("a", "2")
        await w.sync()
        assert await statuses(w) == {"a": "conflict", "b": "in_sync"}
        await w.engine.runs.resolve("s", "a", take)
        await w.drain()
        assert source.values() == target.values()
        assert source.values().get("a") == (None if take == gone else {"value": "2"})
        assert await w.history(path="a") == ["create", "conflict", "resolve", "delete" if take == gone else "update"]
        await assert_quiet(w)


@pytest.mark.parametrize("kind", [KV2, PLAIN, LISTED])
async def test_a_sync_becomes_two_way_and_one_way_again(tmp_path: Path, kind: Capabilities) -> None:
    async with world(tmp_path, vaults(kind=kind), one_way(delete=PROPAGATE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        source.put("b", "1")
        target.put("theirs", "x")
        await w.sync()
        w.syncs["s"] = two_way(delete=PROPAGATE)
        await w.sync()
        assert source.values() == target.values()
        assert list(source.values()) == ["a", "b", "theirs"]
        await assert_quiet(w)
        target.put("a", "2")
        source.remove("b")
        await w.sync()
        assert source.values() == target.values() == {"a": {"value": "2"}, "theirs": {"value": "x"}}
        w.syncs["s"] = one_way(delete=PROPAGATE)
        target.writes.clear()
        await w.sync()
        assert not target.writes
        await assert_quiet(w)
        source.put("a", "3")
        await w.sync()
        w.syncs["s"] = two_way(delete=PROPAGATE)
        await w.sync()
        assert source.values() == target.values() == {"a": {"value": "3"}, "theirs": {"value": "x"}}
        await assert_quiet(w)


async def test_a_version_of_a_former_name_makes_no_event_old_news(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way()) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        target.put("a", "2")
        await w.sync()
        target.put("p/a", "2")
        w.syncs["s"] = two_way(Target("target", "target", prefix="p/"))
        await w.engine.events.take([AuditNotice("target/", "p/a", version=1)])
        await w.drain()
        (row,) = (await rows(w)).values()
        assert (row.parts[0].name, row.status) == ("p/a", "in_sync")
        assert source.values() == {"a": {"value": "2"}}


class Folding(MemoryVault):
    """It ignores case, and keeps the first spelling of a name."""

    def _known(self, name: str) -> str:
        return next((known for known in self.kept if known.lower() == name.lower()), name)

    def put(self, name: str, fields: Any) -> None:
        super().put(self._known(name), fields)

    def _find(self, name: str, *, live: bool) -> Any:
        return super()._find(self._known(name), live=live)

    async def set_secret(self, name: str, *args: Any, **options: Any) -> Any:
        return await super().set_secret(self._known(name), *args, **options)

    def remove(self, name: str) -> None:
        super().remove(self._known(name))


@pytest.mark.parametrize("kind", [KV2, LISTED])
@pytest.mark.parametrize("spoke", [Folding, MemoryVault])
async def test_an_event_in_another_spelling_is_of_the_same_secret(
    tmp_path: Path, kind: Capabilities, spoke: type[MemoryVault]
) -> None:
    folds = replace(kind, names=NameRule(ignores_case=True))
    sides = [Folding("source", folds), spoke("target", folds if spoke is Folding else kind)]
    async with world(tmp_path, sides, two_way(delete=PROPAGATE)) as w:
        source, target = sides
        source.put("Db", "1")
        await w.sync()
        source.put("db", "2")
        await w.engine.events.take([AuditNotice("source/", "DB", version=9)])
        await w.drain()
        assert source.values() == target.values() == {"Db": {"value": "2"}}
        assert len(await rows(w)) == 1
        await assert_quiet(w)
        source.remove("dB")
        await w.engine.events.take([AuditNotice("source/", "DB")])
        await w.drain()
        assert target.values() == {}
        assert await statuses(w) == {"Db": "deleted"}


class Killed(BaseException):
    """The process ends here."""


async def test_what_was_decided_after_a_crash_is_recorded_too(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way(conflict=ConflictPolicy.SOURCE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        target.put("a", "3")

        async def killed(vault: str, operation: str, name: str) -> None:
            if operation == "set":
                raise Killed

        target.hook = killed
        with pytest.raises(Killed):
            await w.sync()
        target.hook = None
        w.queues.messages.clear()
        w.clock.advance(seconds=1000)
        await w.engine.runs.cancel(str((await w.store.get_control("s")).active_run))
        await w.engine.runs.resolve("s", "a", "target")
        await w.drain()
        assert source.values() == {"a": {"value": "3"}}
        assert await w.history() == ["create", "conflict", "resolve", "update"]


async def test_events_of_all_sides_at_once_write_once(tmp_path: Path) -> None:
    async with world(tmp_path, vaults("source", "one", "two"), two_way("one", "two", delete=PROPAGATE)) as w:
        source, one, two = (memory(w, each) for each in ("source", "one", "two"))
        source.put("a", "1")
        await w.sync()
        chance = random.Random(7)

        async def yields(vault: str, operation: str, name: str) -> None:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)

        for vault in (source, one, two):
            vault.hook = yields
        for turn in range(2, 22):
            chance.choice((source, one, two)).put("a", str(turn))
            for vault in (source, one, two):
                vault.writes.clear()
            await w.engine.events.take([AuditNotice(f"{each}/", "a") for each in ("one", "source", "two")])
            messages = [body for _, body, _ in w.queues.messages]
            w.queues.messages.clear()
            await asyncio.gather(*(w.engine.handle(body) for body in messages))
            await w.drain()
            assert source.values() == one.values() == two.values() == {"a": {"value": str(turn)}}
            assert len(source.writes) + len(one.writes) + len(two.writes) == 2
        assert "conflict" not in await w.history()
        await assert_quiet(w)


async def test_a_vault_that_takes_longer_than_claims_last_is_brought_up_to_date_all_the_same(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(kind=PLAIN), two_way()) as w:
        source, target = memory(w, "source"), memory(w, "target")
        for n in range(70):
            source.put(f"s{n}", "1")

        async def slow(vault: str, operation: str, name: str) -> None:
            if operation == "get":
                w.clock.advance(seconds=10)

        target.hook = slow
        run = await w.engine.runs.start("s", trigger="manual")
        await w.drain(limit=10)
        ended = await w.engine.runs.view(run.run_id)
        assert (ended.status, ended.written) == (RunStatus.SUCCEEDED, 70)
        assert len(target.writes) == 70


async def test_a_claim_that_somebody_else_has_is_not_prolonged(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way()) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        await w.engine.runs.start("s", trigger="manual")
        engine = w.engine
        await engine.handle(w.queues.messages.pop(0)[1])
        body = w.queues.messages.pop(0)[1]

        async def frozen(vault: str, operation: str, name: str) -> None:
            if operation == "get done" and target.hook is not None:
                target.hook = None
                w.clock.advance(seconds=400)
                source.put("a", "3")
                await engine.handle(body)

        target.hook = frozen
        target.writes.clear()
        await engine.handle(body)
        await w.drain()
        assert target.writes == [("a", {"value": "3"})]
        assert target.values() == {"a": {"value": "3"}}


# --- killed between a write and its record ------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


async def _killed_after_writing(w: World, vault: MemoryVault) -> None:
    async def kill(vault_id: str, operation: str, name: str) -> None:
        if operation == "set done":
            raise _Killed

    vault.hook = kill
    with pytest.raises(_Killed):
        await w.sync()
    vault.hook = None
    w.queues.messages.clear()
    w.clock.advance(seconds=1000)
    await w.engine.runs.cancel(str((await w.store.get_control("s")).active_run))


@pytest.mark.parametrize("kind", [KV2, LISTED, PLAIN])
@pytest.mark.parametrize("policy", list(ConflictPolicy))
@pytest.mark.parametrize(("edited", "written"), [("source", "target"), ("target", "source")])
async def test_what_a_killed_job_wrote_is_nobodys_edit(
    tmp_path: Path, kind: Capabilities, policy: ConflictPolicy, edited: str, written: str
) -> None:
    async with world(tmp_path, vaults(kind=kind), two_way(conflict=policy, delete=PROPAGATE)) as w:
        memory(w, edited).put("a", "1")
        memory(w, edited).put("b", "1")
        await w.sync()
        memory(w, edited).put("a", "2")
        await _killed_after_writing(w, memory(w, written))
        assert memory(w, written).values()["a"] == {"value": "2"}
        memory(w, edited).put("a", "3")
        run = await w.sync()
        assert run.status is RunStatus.SUCCEEDED
        both = {"a": {"value": "3"}, "b": {"value": "1"}}
        assert memory(w, "source").values() == memory(w, "target").values() == both
        assert "conflict" not in await w.history()
        again = await w.sync()
        assert (again.written, again.deleted, again.conflicts) == (0, 0, 0)


@pytest.mark.parametrize("kind", [KV2, LISTED, PLAIN])
async def test_a_deletion_after_a_killed_jobs_write_is_carried(tmp_path: Path, kind: Capabilities) -> None:
    async with world(tmp_path, vaults(kind=kind), two_way(delete=PROPAGATE)) as w:
        source, target = memory(w, "source"), memory(w, "target")
        for name in ("a", "b"):
            source.put(name, "1")
        await w.sync()
        source.put("a", "2")
        await _killed_after_writing(w, target)
        source.remove("a")
        for _ in range(3):
            await w.sync()
        assert source.values() == target.values() == {"b": {"value": "1"}}


async def test_the_history_says_what_a_killed_job_wrote(tmp_path: Path) -> None:
    async with world(tmp_path, vaults(), two_way()) as w:
        memory(w, "source").put("a", "1")
        await _killed_after_writing(w, memory(w, "target"))
        run = await w.sync()
        assert (run.written, run.status) == (1, RunStatus.SUCCEEDED)
        assert await w.history() == ["create"]


# --- decisions that nobody could carry out ------------------------------------------------------------------------------


async def test_a_decision_for_a_deletion_is_refused_where_nothing_is_deleted(tmp_path: Path) -> None:
    sync = two_way(conflict=ConflictPolicy.MANUAL)
    async with world(tmp_path, vaults(), sync) as w:
        source, target = memory(w, "source"), memory(w, "target")
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        target.put("a", "2")
        await w.sync()
        with pytest.raises(Refused, match=r"delete\.propagate is false"):
            await w.engine.runs.resolve("s", "a", "source")
        await w.engine.runs.resolve("s", "a", "target")
        await w.drain()
        assert source.values() == target.values() == {"a": {"value": "2"}}


async def test_a_conflict_of_what_is_excluded_now_can_not_be_settled(tmp_path: Path) -> None:
    sync = two_way(conflict=ConflictPolicy.MANUAL)
    async with world(tmp_path, vaults(), sync) as w:
        memory(w, "source").put("a", "1")
        memory(w, "target").put("a", "2")
        await w.sync()
        w.syncs["s"] = replace(sync, exclude=("a",))
        with pytest.raises(Refused, match="excluded by 'a'"):
            await w.engine.runs.resolve("s", "a", "source")
