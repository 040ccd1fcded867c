"""A saved plan is carried out exactly as it was shown, or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.engine.document import read_whole_plan
from shared.errors import AccessDenied, Refused, Unavailable
from shared.model import DeletePolicy, Granularity, ObjectStatus, OnExisting, Run, RunStatus, Source, Target
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
BY_VALUE = Capabilities(FingerprintCost.VALUE)
DELETES = DeletePolicy(propagate=True, max_percent=10, min_count=0)


@pytest.fixture
def source() -> MemoryVault:
    vault = MemoryVault("source", KV2)
    for name in ("a", "b", "c", "d"):
        vault.put(name, {"user": name, "password": "1"})
    return vault


@pytest.fixture
def target() -> MemoryVault:
    return MemoryVault("target", LISTED)


@pytest.fixture
async def w(tmp_path: Path, source: MemoryVault, target: MemoryVault) -> AsyncIterator[World]:
    async with world(tmp_path, [source, target], one_way(delete=DELETES)) as w:
        yield w


async def planned(w: World) -> dict[str, Any]:
    """A plan, as it comes from a file."""
    run = await w.sync(dry_run=True)
    plan = await read_whole_plan(w.store, run.run_id)
    assert plan is not None
    copy: dict[str, Any] = json.loads(json.dumps(plan))
    return copy


async def carried_out(w: World, plan: dict[str, Any], **options: Any) -> Run:
    run = await w.engine.runs.start("s", trigger="manual", plan=plan)
    await w.drain(**options)
    return await w.engine.runs.view(run.run_id)


async def changed(w: World, source: MemoryVault, target: MemoryVault) -> None:
    """Something of each sort is to be done."""
    await w.sync()
    source.put("a", {"user": "a", "password": "2"})
    source.remove("b")
    source.put("new", "n")
    target.put("c", "by hand")
    target.writes.clear()
    target.calls.clear()


async def test_exactly_the_plan_is_carried_out_deletes_that_would_wait_for_approval_too(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    await changed(w, source, target)
    plan = await planned(w)
    assert {item["path"]: (item["change"], item["held"]) for item in plan["items"]} == {
        "a": ("update", False),
        "b": ("delete", True),
        "c": ("drift", False),
        "new": ("create", False),
    }
    assert plan["blocked"]
    assert target.writes == []
    run = await carried_out(w, plan)
    assert (run.status, run.trigger) == (RunStatus.SUCCEEDED, "plan")
    assert (run.written, run.deleted, run.drifted, run.unchanged) == (3, 1, 1, 1)
    assert target.values() == source.values()
    assert (await w.sync()).written == 0


@pytest.mark.parametrize("copies", [1, 3])
async def test_jobs_that_come_again_write_nothing_again(
    w: World, source: MemoryVault, target: MemoryVault, copies: int
) -> None:
    await changed(w, source, target)
    run = await carried_out(w, await planned(w), copies=copies)
    assert (run.status, run.written, run.deleted) == (RunStatus.SUCCEEDED, 3, 1)
    assert len(target.writes) == 3


MOVES: dict[str, tuple[Callable[[MemoryVault, MemoryVault], None], str]] = {
    "another version": (
        lambda source, target: source.put("a", {"password": "3"}),
        "'a' → target has changed in the source",
    ),
    "the same value again": (
        lambda source, target: source.put("a", {"user": "a", "password": "2"}),
        "'a' → target has changed in the source (from version 2 to 3)",
    ),
    "a new secret": (lambda source, target: source.put("more", "m"), "'more' → target was not in the plan, and is now"),
    "a secret that was in order": (lambda source, target: source.put("d", "2"), "'d' → target was not in the plan"),
    "a secret less": (lambda source, target: source.remove("d"), "'d' → target was not in the plan"),
    "one that came back": (lambda source, target: source.put("b", "2"), "'b' → target was planned as delete"),
    "a new one that went": (lambda source, target: source.remove("new"), "'new' → target was in the plan"),
    "the target of an update": (lambda source, target: target.put("a", "x"), "'a' has changed in the target"),
    "the target of a repair": (lambda source, target: target.put("c", "x"), "'c' has changed in the target"),
    "the target of a create": (lambda source, target: target.put("new", "x"), "'new' → target was planned as create"),
    "the target of a delete": (lambda source, target: target.put("b", "x"), "'b' → target was planned as delete"),
    "a target that was in order": (lambda source, target: target.put("d", "x"), "'d' → target was not in the plan"),
    "disabled": (lambda source, target: setattr(source.kept["a"], "enabled", False), "'a' → target was planned as"),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("costs", [(KV2, LISTED), (LISTED, KV2), (BY_VALUE, BY_VALUE)], ids=["kv2", "listed", "value"])
async def test_nothing_is_written_when_the_world_has_moved(
    tmp_path: Path, move: str, costs: tuple[Capabilities, Capabilities]
) -> None:
    source, target = MemoryVault("source", costs[0]), MemoryVault("target", costs[1])
    for name in ("a", "b", "c", "d"):
        source.put(name, {"user": name, "password": "1"})
    async with world(tmp_path, [source, target], one_way(delete=DELETES)) as w:
        await changed(w, source, target)
        plan = await planned(w)
        happens, told = MOVES[move]
        happens(source, target)
        before, states = target.values(), await w.states()
        run = await carried_out(w, plan)
        if move == "the same value again" and costs[0] is BY_VALUE:
            # Nobody can tell, and nothing is another for it.
            assert run.status is RunStatus.SUCCEEDED
            return
        assert run.status is RunStatus.FAILED
        assert told.partition(" (from")[0] in (run.error or "")
        assert (run.error or "").startswith("nothing was written")
        assert (run.error or "").endswith("Plan again")
        assert target.values() == before
        assert await w.states() == states
        assert target.calls["set"] + target.calls["delete"] == 0
        # What is to be done now is done by the next plan.
        ended = await carried_out(w, await planned(w))
        theirs = move == "the target of a delete"
        assert (ended.status, ended.failed) == (RunStatus.PARTIAL if theirs else RunStatus.SUCCEEDED, theirs)


async def test_another_configuration_is_another_world(w: World, source: MemoryVault, target: MemoryVault) -> None:
    plan = await planned(w)
    for sync in (
        one_way(delete=DELETES, exclude=("a",)),
        one_way(Target("target", "target", prefix="x/"), delete=DELETES),
        one_way(),
    ):
        w.syncs["s"] = sync
        run = await carried_out(w, plan)
        assert run.status is RunStatus.FAILED
        assert "the configuration of the sync" in (run.error or "")
    w.syncs["s"] = one_way(delete=DELETES, schedule="0 0 * * * *")
    assert (await carried_out(w, plan)).status is RunStatus.SUCCEEDED


async def test_what_moves_while_it_is_carried_out_is_left_for_the_next_plan(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    await changed(w, source, target)
    await w.engine.runs.start("s", trigger="manual", plan=await planned(w))
    await w.engine.handle(w.queues.messages.pop(0)[1])
    source.put("a", "3")
    source.put("b", "back")
    target.put("new", "somebody's")
    await w.drain()
    run = (await w.store.list_runs("s", limit=1)).items[0]
    assert (run.status, run.written, run.deleted, run.failed) == (RunStatus.PARTIAL, 1, 0, 3)
    values = target.values()
    assert (values["a"], values["b"]) == ({"user": "a", "password": "1"}, {"user": "b", "password": "1"})
    assert values["new"] == {"value": "somebody's"}
    states = {state.path: state async for state in w.store.list_objects("s", status=ObjectStatus.FAILED)}
    assert {path: "left for the next plan" in (state.error or "") for path, state in states.items()} == {
        "a": True,
        "b": True,
        "new": True,
    }
    assert (await carried_out(w, await planned(w))).status is RunStatus.SUCCEEDED
    assert target.values() == source.values()


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("kill_at", range(1, 14))
async def test_killed_half_way_it_goes_on(tmp_path: Path, granularity: Granularity, kill_at: int) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", LISTED)
    for name in ("a", "b", "c", "d"):
        source.put(name, {"user": name, "password": "1"})
    aim = Target("target", "target", name="{path}-{field}" if granularity is Granularity.FIELD else "{path}")
    aim = Target("target", "target", name=aim.name, granularity=granularity)
    async with world(tmp_path, [source, target], one_way(aim, delete=DELETES)) as w:
        await w.sync()
        source.put("a", {"user": "a", "password": "2"})
        source.remove("b")
        source.put("new", {"user": "n", "password": "1"})
        plan = await planned(w)
        calls = 0

        class Killed(BaseException):
            pass

        async def hook(vault: str, operation: str, name: str) -> None:
            nonlocal calls
            calls += operation in ("set", "set done", "delete", "delete done")
            if calls == kill_at:
                raise Killed

        run = await w.engine.runs.start("s", trigger="manual", plan=plan)
        target.hook = hook
        killed = False
        while w.queues.messages:
            message = w.queues.messages[0]
            try:
                await w.engine.handle(message[1])
            except Killed:
                killed = True
                calls = 1000
                # What it had claimed is free when its claim is over.
                w.clock.advance(seconds=600)
                continue
            w.queues.messages.remove(message)
        ended = await w.engine.runs.view(run.run_id)
        assert killed or calls < kill_at
        assert (ended.status, ended.written, ended.deleted, ended.failed) == (RunStatus.SUCCEEDED, 2, 1, 0)
        assert (await w.sync()).written == 0


async def test_a_plan_that_was_not_seen_whole_is_not_carried_out(w: World, target: MemoryVault) -> None:
    plan = await planned(w)
    plan["items"][0]["basis"] = None
    with pytest.raises(Refused, match="'a' → target could not be looked at"):
        await w.engine.runs.start("s", trigger="manual", plan=plan)
    plan["sync_id"] = "other"
    with pytest.raises(Refused, match="no plan of sync 's'"):
        await w.engine.runs.start("s", trigger="manual", plan=plan)


async def test_a_plan_joins_no_run_and_is_not_joined_by_what_must_see_all(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    plan = await planned(w)
    active = await w.engine.runs.start("s", trigger="timer")
    with pytest.raises(Refused, match=f"run {active.run_id} is on its way"):
        await w.engine.runs.start("s", trigger="manual", plan=plan)
    await w.drain()
    source.put("a", "2")
    plan = await planned(w)
    await w.engine.runs.start("s", trigger="manual", plan=plan)
    await w.engine.runs.rerun("s")
    source.put("more", "m")
    await w.drain()
    runs = (await w.store.list_runs("s", limit=2)).items
    assert [(run.trigger, run.status) for run in runs] == [("event", "succeeded"), ("plan", "failed")]
    assert target.values() == source.values()


async def test_a_target_that_does_not_answer_fails_it_and_nothing_is_begun_in_its_place(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    plan = await planned(w)
    target.faults.always = Unavailable("down", vault="target")
    run = await carried_out(w, plan)
    assert run.status is RunStatus.FAILED
    assert "nobody can tell whether the plan still holds" in (run.error or "")
    target.faults.always = None
    assert not [body for _, body, _ in w.queues.messages if '"probe"' in body]
    assert not (await w.store.get_control("s")).again
    assert target.values() == {}


async def test_what_can_not_be_carried_is_recorded_with_its_reason(tmp_path: Path, target: MemoryVault) -> None:
    source = MemoryVault("source", KV2)
    source.put("a", "1")
    source.put("b", "1")
    target.put("a", "theirs")
    async with world(tmp_path, [source, target], one_way(on_existing=OnExisting.FAIL)) as w:
        plan = await planned(w)
        assert {item["path"]: item["change"] for item in plan["items"]} == {"a": "fail", "b": "create"}
        run = await carried_out(w, plan)
        assert (run.status, run.written, run.failed) == (RunStatus.PARTIAL, 1, 1)
        (failed,) = [state async for state in w.store.list_objects("s", status=ObjectStatus.FAILED)]
        assert "'a' was there before" in (failed.error or "")


async def test_renamed_secrets_lose_their_old_names_as_the_plan_says(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    await w.sync()
    w.syncs["s"] = one_way(Target("target", "target", prefix="x/"), delete=DELETES)
    plan = await planned(w)
    assert [(item["path"], item["change"]) for item in plan["items"]][:2] == [("a", "update"), ("a", "delete")]
    run = await carried_out(w, plan)
    assert (run.status, run.written) == (RunStatus.SUCCEEDED, 4)
    assert sorted(target.values()) == ["x/a", "x/b", "x/c", "x/d"]


async def test_a_target_whose_values_can_not_be_read_is_told_by_its_versions(
    tmp_path: Path, source: MemoryVault
) -> None:
    target = MemoryVault("target", LISTED)
    async with world(tmp_path, [source, target], one_way()) as w:
        await w.sync()
        source.put("a", "2")
        target.faults.add("get", AccessDenied("no", vault="target"), times=100)
        plan = await planned(w)
        assert [(item["path"], item["fields"]) for item in plan["items"]] == [("a", None)]
        assert (await carried_out(w, plan)).written == 1


async def test_several_targets_are_all_looked_at_before_the_first_is_written(
    tmp_path: Path, source: MemoryVault
) -> None:
    one, two = MemoryVault("one", LISTED), MemoryVault("two", KV2)
    async with world(tmp_path, [source, one, two], one_way("one", "two", source=Source("source"))) as w:
        plan = await planned(w)
        two.put("d", "somebody's")
        run = await carried_out(w, plan)
        assert run.status is RunStatus.FAILED
        assert one.values() == {}
        assert (await carried_out(w, await planned(w))).written == 8
