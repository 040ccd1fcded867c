"""A conflict of a two-way sync that a person settles: what is noted, what is refused, and what carries it out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared.engine.runs import RECOVERY
from shared.errors import Refused, StoreError
from shared.history import Save
from shared.model import (
    Action,
    ConflictPolicy,
    Contested,
    DeletePolicy,
    Event,
    ObjectState,
    ObjectStatus,
    Part,
    Run,
    RunStatus,
    Sight,
    Source,
    Sync,
    Target,
)
from tests.memory_vault import MemoryVault
from tests.world import World, world

ALL = ("hub", "east", "west", "north")


def two_way(*targets: str, **options: object) -> Sync:
    chosen = tuple(Target(id=each, vault=each) for each in targets)
    settings = {"type": "bidirectional", "conflict": ConflictPolicy.MANUAL, **options}
    return Sync("s", Source("hub"), chosen, **settings)  # type: ignore[arg-type]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    one_way = Sync("one-way", Source("hub"), (Target("east", "east"),))
    resting = replace(two_way("east"), id="resting", enabled=False)
    async with world(tmp_path, [MemoryVault(name) for name in ALL], two_way("east"), one_way, resting) as w:
        yield w


@pytest.fixture
async def wheel(tmp_path: Path) -> AsyncIterator[World]:
    """A hub with three spokes."""
    async with world(tmp_path, [MemoryVault(name) for name in ALL], two_way("east", "west", "north")) as w:
        yield w


async def contest(w: World, path: str = "db", **held: str | None) -> None:
    """A conflict as the engine records it: what each side held, a row of each target that differed."""
    sides = tuple(
        Sight(side, f"f-{value}", value and value[-1], value and f"digest of {value}") for side, value in held.items()
    )
    for target, value in held.items():
        if target == "source" or value == held["source"]:
            continue
        row = ObjectState(
            "s",
            target,
            path,
            parts=(Part(path, "f", "1", "digest of the base"),),
            source_fingerprint="f",
            status=ObjectStatus.CONFLICT,
            error="changed on several sides (conflict: manual)",
            contested=Contested(sides),
        )
        event = Event(Action.CONFLICT, ObjectStatus.CONFLICT, "run-0", error=row.error)
        assert None not in await w.store.save_objects([Save(row, event)])


async def rows_of(w: World, path: str = "db") -> list[ObjectState]:
    return [state async for state in w.store.list_objects("s") if state.path == path]


async def decisions(w: World, path: str = "db") -> set[str | None]:
    return {row.contested.take for row in await rows_of(w, path) if row.contested is not None}


async def runs(w: World) -> list[Run]:
    return [run for run in (await w.store.list_runs("s")).items if run.status is not RunStatus.CANCELLED]


async def active(w: World, run: Run, status: RunStatus) -> Run:
    """The run, but further on."""
    saved = await w.store.save_run(replace(run, status=status))
    assert saved is not None
    return saved


# --- what is noted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("take", "noted"), [("source", "source"), ("target", "east")])
async def test_a_decision_is_noted_and_a_run_of_that_path_alone_carries_it_out(w: World, take: str, noted: str) -> None:
    await contest(w, source="v1", east="v2")
    await contest(w, "other", source="v1", east="v2")
    (before,) = await rows_of(w)
    run = await w.engine.runs.resolve("s", "db", take)
    (row,) = await rows_of(w)
    assert before.contested is not None
    kept = replace(before, contested=replace(before.contested, take=noted))
    assert row == replace(kept, revision=row.revision, updated_at=row.updated_at)
    assert await decisions(w, "other") == {None}
    assert (run.trigger, run.paths, run.status) == ("resolve", ("db",), RunStatus.QUEUED)
    assert await runs(w) == [run]
    assert [f'"run":"{run.run_id}"' in body for _, body, _ in w.queues.sent] == [True]
    assert await w.history() == ["conflict", "conflict"]


async def test_all_rows_of_the_path_get_the_decision(wheel: World) -> None:
    await contest(wheel, source="v1", east="v2", west="v3", north="v1")
    await wheel.engine.runs.resolve("s", "db", "target", "west")
    assert [(row.target, row.contested and row.contested.take) for row in await rows_of(wheel)] == [
        ("east", "west"),
        ("west", "west"),
    ]


async def test_told_twice_it_is_done_once(w: World) -> None:
    await contest(w, source="v1", east="v2")
    first = await w.engine.runs.resolve("s", "db", "target")
    (row,) = await rows_of(w)
    assert await w.engine.runs.resolve("s", "db", "target") == first
    assert await rows_of(w) == [row]
    assert await runs(w) == [first]
    assert (await w.store.get_control("s")).again is None


async def test_a_changed_mind_counts_while_nothing_was_carried_out(w: World) -> None:
    await contest(w, source="v1", east="v2")
    first = await w.engine.runs.resolve("s", "db", "target")
    assert await w.engine.runs.resolve("s", "db", "source") == first
    assert await decisions(w) == {"source"}


async def test_a_row_that_somebody_else_saves_meanwhile_is_read_again(
    wheel: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await contest(wheel, source="v1", east="v2", west="v3")
    save, times = wheel.store.save_objects, 0

    async def first_elsewhere(saves: list[Save]) -> object:
        nonlocal times
        times += 1
        if times == 1:
            (row, *_) = await rows_of(wheel)
            await save([Save(replace(row, error="told in other words"))])
        return await save(saves)

    monkeypatch.setattr(wheel.store, "save_objects", first_elsewhere)
    await wheel.engine.runs.resolve("s", "db", "source")
    monkeypatch.undo()
    assert await decisions(wheel) == {"source"}
    assert {row.error for row in await rows_of(wheel)} == {
        "told in other words",
        "changed on several sides (conflict: manual)",
    }
    assert len(await runs(wheel)) == 1


async def test_a_conflict_that_was_settled_meanwhile_is_left_so(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await contest(w, source="v1", east="v2")
    save = w.store.save_objects

    async def settled_elsewhere(saves: list[Save]) -> object:
        (row,) = await rows_of(w)
        await save([Save(replace(row, status=ObjectStatus.IN_SYNC, contested=None, error=None))])
        return await save(saves)

    monkeypatch.setattr(w.store, "save_objects", settled_elsewhere)
    with pytest.raises(Refused, match="not in conflict"):
        await w.engine.runs.resolve("s", "db", "source")
    assert [row.status for row in await rows_of(w)] == [ObjectStatus.IN_SYNC]
    assert await runs(w) == []


async def test_what_never_can_be_saved_is_told(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await contest(w, source="v1", east="v2")

    async def never(saves: list[Save]) -> list[None]:
        return [None] * len(saves)

    monkeypatch.setattr(w.store, "save_objects", never)
    with pytest.raises(StoreError, match="'db' of sync 's' could not be settled"):
        await w.engine.runs.resolve("s", "db", "source")


async def test_many_decisions_at_once_end_as_one_of_them(wheel: World) -> None:
    await contest(wheel, source="v1", east="v2", west="v3")
    wanted = [("source", None), ("target", "east"), ("target", "west")]
    await asyncio.gather(*(wheel.engine.runs.resolve("s", "db", *each) for each in wanted * 3))
    # Whoever came last has seen to it that a run begins behind the decision.
    assert len(await decisions(wheel)) == 1
    assert len(await runs(wheel)) == 1


async def test_a_decision_made_while_another_reads_leaves_no_two_of_them(
    wheel: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await contest(wheel, source="v1", east="v2", west="v3")
    await wheel.engine.runs.resolve("s", "db", "target", "west")
    read = wheel.store.get_objects
    between = [lambda: wheel.engine.runs.resolve("s", "db", "target", "east")]

    async def torn(sync_id: str, target: str, paths: Sequence[str]) -> dict[str, ObjectState]:
        found = await read(sync_id, target, paths)
        if target == "east" and between:
            await between.pop()()
        return found

    monkeypatch.setattr(wheel.store, "get_objects", torn)
    await wheel.engine.runs.resolve("s", "db", "target", "west")
    assert await decisions(wheel) == {"west"}


# --- what it is about ---------------------------------------------------------------------------------------------


async def test_several_targets_in_conflict_ask_for_the_one_that_is_meant(wheel: World) -> None:
    await contest(wheel, source="v1", east="v2", west="v3", north="v1")
    with pytest.raises(Refused, match="--target east or --target west"):
        await wheel.engine.runs.resolve("s", "db", "target")
    assert await decisions(wheel) == {None}
    assert await runs(wheel) == []


async def test_of_targets_that_hold_the_same_any_will_do(wheel: World) -> None:
    await contest(wheel, source="v1", east="v2", west="v2", north="v1")
    await wheel.engine.runs.resolve("s", "db", "target")
    assert await decisions(wheel) == {"east"}


async def test_a_deletion_can_be_taken_too(wheel: World) -> None:
    wheel.syncs["s"] = replace(wheel.syncs["s"], delete=DeletePolicy(propagate=True))
    await contest(wheel, source="v1", east=None, west="v3")
    await wheel.engine.runs.resolve("s", "db", "target", "east")
    assert await decisions(wheel) == {"east"}


async def test_a_source_that_lost_its_secret_can_be_taken(w: World) -> None:
    w.syncs["s"] = replace(w.syncs["s"], delete=DeletePolicy(propagate=True))
    await contest(w, source=None, east="v2")
    await w.engine.runs.resolve("s", "db", "source")
    assert await decisions(w) == {"source"}


@pytest.mark.parametrize("target", ["north", "west"])
async def test_a_target_that_held_nothing_else_is_not_taken(wheel: World, target: str) -> None:
    # The north agrees with the source; the west did not answer when the conflict was found.
    await contest(wheel, source="v1", east="v2", north="v1")
    with pytest.raises(Refused, match=f"'{target}' held nothing of its own.*--target east"):
        await wheel.engine.runs.resolve("s", "db", "target", target)


async def test_a_target_that_there_is_not_is_unknown(wheel: World) -> None:
    await contest(wheel, source="v1", east="v2")
    with pytest.raises(Refused, match=r"no target 'south'; there are: east, west, north") as refused:
        await wheel.engine.runs.resolve("s", "db", "target", "south")
    assert refused.value.unknown


async def test_a_sync_that_there_is_not_is_unknown(w: World) -> None:
    with pytest.raises(Refused, match="no sync 'nowhere'") as refused:
        await w.engine.runs.resolve("nowhere", "db", "source")
    assert refused.value.unknown


@pytest.mark.parametrize("status", [None, ObjectStatus.IN_SYNC, ObjectStatus.FAILED, ObjectStatus.CONFLICT])
async def test_what_is_not_in_conflict_is_not_settled(w: World, status: ObjectStatus | None) -> None:
    if status is not None:
        await w.store.save_objects([Save(ObjectState("s", "east", "db", status=status))])
    with pytest.raises(Refused, match=r"'db' of sync 's' is not in conflict; `vaultferry status s --conflicts`"):
        await w.engine.runs.resolve("s", "db", "source")
    assert await runs(w) == []


async def test_a_path_that_a_job_works_on_is_not_decided_behind_its_back(w: World) -> None:
    await contest(w, source="v1", east="v2")
    (row,) = await rows_of(w)
    await w.store.save_objects([Save(replace(row, status=ObjectStatus.PENDING, claim="a:1"))])
    with pytest.raises(Refused, match="being worked on this moment; try again"):
        await w.engine.runs.resolve("s", "db", "source")


async def test_a_one_way_sync_says_what_to_do_there(w: World) -> None:
    with pytest.raises(Refused, match=r"one-way.*'db' is not in conflict"):
        await w.engine.runs.resolve("one-way", "db", "source")
    why = "'db' was changed in the target since it was written, so it is not deleted; delete it by hand"
    await w.store.save_objects([Save(ObjectState("one-way", "east", "db", status=ObjectStatus.CONFLICT, error=why))])
    with pytest.raises(Refused, match=r"one-way.*delete it by hand\), then replay 'db'") as refused:
        await w.engine.runs.resolve("one-way", "db", "target")
    assert not refused.value.unknown


async def test_neither_a_paused_nor_a_disabled_sync_takes_decisions(w: World) -> None:
    await contest(w, source="v1", east="v2")
    await w.engine.runs.pause("s", True)
    with pytest.raises(Refused, match="is paused"):
        await w.engine.runs.resolve("s", "db", "source")
    assert await decisions(w) == {None}
    with pytest.raises(Refused, match="disabled"):
        await w.engine.runs.resolve("resting", "db", "source")


# --- what is on its way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [RunStatus.PLANNING, RunStatus.RUNNING])
@pytest.mark.parametrize("paths", [None, ["db"], ["other"]])
async def test_another_run_follows_the_one_that_may_have_passed_the_path(
    w: World, status: RunStatus, paths: list[str] | None
) -> None:
    await contest(w, source="v1", east="v2")
    before = await active(w, await w.engine.runs.start("s", trigger="timer", paths=paths), status)
    joined = await w.engine.runs.resolve("s", "db", "source")
    assert joined.run_id == before.run_id
    assert (await w.store.get_control("s")).again == "resolve"
    await w.engine.runs.cancel(before.run_id)
    following, _ = (await w.store.list_runs("s")).items
    assert (following.trigger, following.paths, following.status) == ("resolve", None, RunStatus.QUEUED)
    assert (await w.store.get_control("s")).again is None


async def test_a_full_run_that_has_not_begun_does(w: World) -> None:
    await contest(w, source="v1", east="v2")
    queued = await w.engine.runs.start("s", trigger="timer")
    assert (await w.engine.runs.resolve("s", "db", "source")).run_id == queued.run_id
    assert (await w.store.get_control("s")).again is None


async def test_a_run_of_other_paths_that_has_not_begun_is_followed_by_another(w: World) -> None:
    await contest(w, source="v1", east="v2")
    await w.engine.runs.start("s", trigger="replay", paths=["other"])
    await w.engine.runs.resolve("s", "db", "source")
    assert (await w.store.get_control("s")).again == "resolve"


async def test_many_paths_settled_in_a_row_take_two_runs(w: World) -> None:
    paths = [f"p{n}" for n in range(5)]
    for path in paths:
        await contest(w, path, source="v1", east="v2")
    begun = [await w.engine.runs.resolve("s", path, "source") for path in paths]
    assert len({run.run_id for run in begun}) == 1
    await w.engine.runs.cancel(begun[0].run_id)
    assert [run.paths for run in await runs(w)] == [None]


async def test_a_run_that_ended_this_very_moment_is_followed_too(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await contest(w, source="v1", east="v2")
    before = await active(w, await w.engine.runs.start("s", trigger="timer"), RunStatus.RUNNING)
    engine = w.engine
    start = engine.runs.start

    async def joins(sync_id: str, **options: object) -> Run:
        joined = await start(sync_id, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        await engine.runs.cancel(before.run_id)
        return joined

    monkeypatch.setattr(engine.runs, "start", joins)
    run = await engine.runs.resolve("s", "db", "source")
    assert (run.run_id != before.run_id, run.trigger, run.status) == (True, "resolve", RunStatus.QUEUED)


async def test_a_decision_whose_run_was_never_begun_is_carried_out_when_told_again(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await contest(w, source="v1", east="v2")

    async def dies(*arguments: object, **options: object) -> Run:
        raise StoreError("killed here")

    engine = w.engine
    monkeypatch.setattr(engine.runs, "start", dies)
    with pytest.raises(StoreError, match="killed"):
        await engine.runs.resolve("s", "db", "source")
    monkeypatch.undo()
    assert await decisions(w) == {"source"}
    run = await engine.runs.resolve("s", "db", "source")
    assert await runs(w) == [run]


async def test_a_recovery_that_waits_is_done_by_the_full_run_that_follows_a_decision(w: World) -> None:
    await contest(w, source="v1", east="v2")
    running = await active(w, await w.engine.runs.start("s", trigger="timer"), RunStatus.RUNNING)
    await w.engine.runs.recover("s")
    assert (await w.store.get_control("s")).again == RECOVERY
    await w.engine.runs.resolve("s", "db", "source")
    # It waits for no probe any more.
    assert (await w.store.get_control("s")).again == "resolve"
    await w.store.save_run(replace(running, status=RunStatus.SUCCEEDED))
    await w.engine.runs.go_on("s", after_run=True)
    newest = (await runs(w))[0]
    assert (newest.trigger, newest.paths, newest.status) == ("resolve", None, RunStatus.QUEUED)
