"""The engine where two things go wrong at once: a crash beside an edit by hand, a fault in the middle of several fields."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shared import jobs
from shared.engine import Engine
from shared.engine.tally import SILENT
from shared.errors import AccessDenied, Unavailable
from shared.model import (
    DeletePolicy,
    Granularity,
    ObjectState,
    OnExisting,
    RetryPolicy,
    Run,
    RunStatus,
    Source,
    Target,
)
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
KINDS = [pytest.param(KV2, id="kv2"), pytest.param(KV1, id="kv1"), pytest.param(LISTED, id="listed")]
BY_FIELD = Target("target", "target", name="{path}-{field}", granularity=Granularity.FIELD)
PROPAGATE = DeletePolicy(propagate=True)


class Killed(BaseException):
    """What a job sees of kill -9."""


async def one(w: World, path: str, sync: str = "s") -> ObjectState:
    return (await w.store.get_objects(sync, "target", [path]))[path]


async def planned(w: World, sync: str = "s") -> None:
    """Begin a run and plan it: its write jobs are in the queues."""
    await w.engine.runs.start(sync, trigger="manual")
    await w.engine.handle(w.queues.messages.pop()[1])


async def killed(w: World, vault: MemoryVault, moment: str) -> str:
    """Deliver the next job to a worker that dies at `moment`. The message, which is still there."""

    async def hook(vault: str, operation: str, name: str) -> None:
        if operation == moment:
            raise Killed

    body = w.queues.messages[0][1]
    vault.hook = hook
    with pytest.raises(Killed):
        await w.engine.handle(body)
    vault.hook = None
    w.clock.advance(seconds=400)
    return body


# what of several fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("503", vault="target"), AccessDenied("no", vault="target")])
async def test_a_field_that_fails_gives_its_claim_back_at_once(tmp_path: Path, error: Exception) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, retry_policy=RetryPolicy(max_retries=1))) as w:
        source.put("db", {"user": "u", "password": "p"})
        await planned(w)
        target.faults.add("set", error, times=3)  # type: ignore[arg-type]
        await w.engine.handle(w.queues.messages.pop()[1])
        assert (await one(w, "db")).claim is None


async def test_a_source_that_goes_while_two_write_does_not_make_us_forget_what_was_written(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, delete=PROPAGATE)) as w:
        source.put("db", {"a": "1", "b": "1"})
        await planned(w)

        async def hook(vault: str, operation: str, name: str) -> None:
            if (operation, name) == ("set", "db-b"):
                target.hook = None
                target.put("db-b", "by hand")
                source.remove("db")

        target.hook = hook
        await w.drain()
        await w.sync()
        assert target.values() == {"db-b": {"value": "by hand"}}


async def test_a_field_that_is_skipped_holds_up_no_other(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, on_existing=OnExisting.SKIP)) as w:
        target.put("db-b", "theirs")
        source.put("db", {"a": "1", "b": "1", "c": "1"})
        await w.sync()
        assert target.values() == {"db-a": {"value": "1"}, "db-b": {"value": "theirs"}, "db-c": {"value": "1"}}
        source.put("db", {"a": "1", "b": "1", "c": "2"})
        await w.sync()
        assert target.values()["db-c"] == {"value": "2"}
        run = await w.sync()
        assert (run.unchanged, run.planned) == (1, 0)


async def test_a_name_that_a_field_no_longer_needs_is_free_for_another_path(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, delete=PROPAGATE)) as w:
        source.put("a", {"x": "1", "b-c": "1"})
        await w.sync()
        source.put("a", {"x": "1"})
        await w.sync()
        source.put("a-b", {"c": "2"})
        run = await w.sync()
        assert run.status is RunStatus.SUCCEEDED
        assert target.values() == {"a-x": {"value": "1"}, "a-b-c": {"value": "2"}}


# whose is it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [OnExisting.SKIP, OnExisting.FAIL])
@pytest.mark.parametrize("capabilities", KINDS)
async def test_what_somebody_put_there_after_a_crash_is_not_overwritten_unasked(
    tmp_path: Path, capabilities: Capabilities, policy: OnExisting
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(on_existing=policy)) as w:
        source.put("a", "ours")
        await planned(w)
        await killed(w, target, "set")
        target.put("a", "theirs")
        await w.drain()
        await w.sync()
        assert target.values() == {"a": {"value": "theirs"}}


@pytest.mark.parametrize("capabilities", KINDS)
async def test_a_name_that_a_changed_mapping_wrote_is_ours_though_its_job_was_killed(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))
        await planned(w)
        await killed(w, target, "set done")
        await w.drain()
        source.remove("a")
        await w.sync()
        assert target.values() == {}


@pytest.mark.parametrize("capabilities", KINDS)
async def test_a_secret_whose_second_try_was_killed_is_still_ours(tmp_path: Path, capabilities: Capabilities) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await planned(w)
        target.faults.add("set", Unavailable("503", vault="target"), times=3)
        await w.engine.handle(w.queues.messages.pop()[1])
        await killed(w, target, "set done")
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}
        source.remove("a")
        await w.sync()
        assert target.values() == {}


@pytest.mark.parametrize("capabilities", KINDS)
async def test_a_field_that_came_later_is_ours_though_its_job_was_killed(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, delete=PROPAGATE)) as w:
        source.put("db", {"a": "1"})
        await w.sync()
        source.put("db", {"a": "1", "b": "1"})
        await planned(w)
        await killed(w, target, "set done")
        await w.drain()
        source.put("db", {"a": "1"})
        await w.sync()
        assert target.values() == {"db-a": {"value": "1"}}


@pytest.mark.parametrize("capabilities", KINDS)
async def test_an_equal_value_put_there_while_nobody_wrote_is_adopted_after_a_crash_too(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        target.put("a", "theirs")
        source.put("a", "ours")
        await planned(w)
        await killed(w, target, "set")
        source.put("a", "theirs")
        await w.drain()
        await w.sync()
        source.remove("a")
        await w.sync()
        assert target.values() == {"a": {"value": "theirs"}}


async def test_an_adopted_secret_of_another_sync_is_not_taken_over_when_ours_changes(tmp_path: Path) -> None:
    one_, other = MemoryVault("source", KV2), MemoryVault("other", KV2)
    target = MemoryVault("target", LISTED)
    rival = replace(one_way(source=Source("other")), id="rival")
    async with world(tmp_path, [one_, other, target], one_way(), rival) as w:
        one_.put("a", "same")
        other.put("a", "same")
        await w.sync("rival")
        await w.sync()
        one_.put("a", "ours")
        run = await w.sync()
        assert run.conflicts == 1
        assert target.values() == {"a": {"value": "same"}}


# runs that must end, and say what happened ----------------------------------------------------------------------------


async def test_a_path_that_raises_what_nobody_expects_frees_its_batch_and_ends_in_poison(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for name in "abc":
            source.put(name, "1")
        run = await w.engine.runs.start("s", trigger="manual")
        await w.engine.handle(w.queues.messages.pop()[1])

        async def hook(vault: str, operation: str, name: str) -> None:
            if (operation, name) == ("get", "b"):
                raise RuntimeError("a defect")

        source.hook = hook
        _, body, _ = w.queues.messages.pop()
        for _ in range(5):
            with pytest.raises(RuntimeError):
                await w.engine.handle(body)
        assert not w.queues.messages
        await w.engine.give_up(body)
        while w.queues.messages:
            await w.engine.give_up(w.queues.messages.pop()[1])
        ended = await w.engine.runs.view(run.run_id)
        assert ended.status is RunStatus.PARTIAL
        assert (ended.planned, ended.written, ended.failed) == (3, 2, 1)


async def test_the_same_failure_is_said_once_however_often_it_is_retried(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=2))) as w:
        source.put("a", "1")
        target.faults.always = Unavailable("connection refused", vault="target")
        for _ in range(3):
            assert (await w.sync()).failed == 1
        assert await w.history() == ["fail"]


async def test_the_cleanup_of_an_old_name_is_retried_like_anything_else(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(delete=DeletePolicy(propagate=True, max_percent=0, min_count=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        await w.sync()
        w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))
        blocked = await w.sync()
        assert blocked.status is RunStatus.BLOCKED
        target.faults.add("delete", Unavailable("503", vault="target"), times=4)
        await w.engine.runs.approve(blocked.run_id)
        await w.drain()
        assert target.values() == {"new/a": {"value": "1"}}
        assert (await w.engine.runs.view(blocked.run_id)).deleted == 1
        assert (await w.sync()).unchanged == 1


async def test_an_approval_that_was_interrupted_can_be_given_again(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(delete=DeletePolicy(propagate=True, max_percent=0, min_count=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        blocked = await w.sync()
        send = w.queues.send

        async def dies(*args: object, **kwargs: object) -> None:
            raise Killed

        w.queues.send = dies  # type: ignore[method-assign,assignment]
        with pytest.raises(Killed):
            await w.engine.runs.approve(blocked.run_id)
        w.queues.send = send  # type: ignore[method-assign]
        await w.engine.runs.approve(blocked.run_id)
        await w.drain()
        ended = await w.engine.runs.view(blocked.run_id)
        assert (ended.status, ended.deleted) == (RunStatus.SUCCEEDED, 1)
        assert target.values() == {}


# a target that is planned blindly ----------------------------------------------------------------------------------


async def test_a_run_that_could_not_look_at_a_target_did_not_succeed(tmp_path: Path) -> None:
    source, up, down = MemoryVault("source"), MemoryVault("up"), MemoryVault("down")
    async with world(tmp_path, [source, up, down], one_way("up", "down", verify_targets=True)) as w:
        source.put("a", "1")
        assert (await w.sync()).status is RunStatus.SUCCEEDED
        down.faults.always = Unavailable("sealed", vault="down")
        run = await w.sync()
        assert (run.status, run.unchanged, run.failed) == (RunStatus.PARTIAL, 2, 0)
        assert run.error == f"down: {SILENT}"
        assert (await w.sync(dry_run=True)).status is RunStatus.SUCCEEDED, "a plan tells it where it tells the rest"
        down.faults.always = None
        assert (await w.sync()).status is RunStatus.SUCCEEDED


async def planned_while_down(w: World, target: MemoryVault) -> Run:
    """A run whose target answers again as soon as it is planned, at its end."""
    target.faults.always = Unavailable("sealed", vault="target")
    await planned(w)
    target.faults.always = None
    await w.drain()
    return (await w.store.list_runs("s")).items[0]


async def test_a_run_that_wrote_to_a_target_and_could_not_look_at_the_rest_did_not_succeed(tmp_path: Path) -> None:
    source, target = MemoryVault("source"), MemoryVault("target")
    async with world(tmp_path, [source, target], one_way(verify_targets=True)) as w:
        source.put("a", "1")
        source.put("b", "1")
        await w.sync()
        source.put("a", "2")
        target.put("b", "changed by hand")
        ended = await planned_while_down(w, target)
        assert (ended.status, ended.written, ended.error) == (RunStatus.PARTIAL, 1, f"target: {SILENT}")


async def test_a_run_whose_target_answers_in_time_for_its_writes_did_succeed(tmp_path: Path) -> None:
    source, target = MemoryVault("source"), MemoryVault("target")
    async with world(tmp_path, [source, target], one_way(verify_targets=True)) as w:
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        assert (await planned_while_down(w, target)).status is RunStatus.SUCCEEDED
        assert target.values() == {"a": {"value": "2"}}


async def test_a_target_that_is_down_while_it_is_planned_gets_no_two_paths_on_one_name(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(Target("target", "target", name="fixed"))) as w:
        source.put("a", "1")
        source.put("b", "2")
        target.faults.add("list", Unavailable("503", vault="target"), times=3)
        run = await w.sync()
        assert (run.written, run.failed) == (0, 2)


async def test_a_target_that_is_down_while_it_is_planned_keeps_its_old_names_until_they_are_counted(
    tmp_path: Path,
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for n in range(10):
            source.put(f"s{n}", "1")
        await w.sync()
        w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))
        target.faults.add("list", Unavailable("503", vault="target"), times=3)
        for n in range(10):
            source.put(f"s{n}", "2")
        await w.sync()
        assert len(target.values()) == 20
        assert (await w.sync()).status is RunStatus.BLOCKED


# the probe ----------------------------------------------------------------------------------------------------------


def probes(w: World) -> list[str]:
    found = [body for _, body, _ in w.queues.messages if '"job":"probe"' in body]
    w.queues.messages = [message for message in w.queues.messages if message[1] not in found]
    return found


DOWN = Unavailable("connection refused", vault="target")


async def test_a_vault_that_goes_down_again_soon_is_probed_again(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        (first,) = probes(w)
        w.clock.advance(seconds=30)
        target.faults.always = None
        await w.engine.handle(first)
        target.faults.always = DOWN
        await w.drain()
        assert len(probes(w)) == 1


async def test_a_vault_that_stays_down_for_long_is_probed_by_one_at_a_time(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        for _ in range(5):
            (probe,) = probes(w)
            w.clock.advance(seconds=600)
            await w.engine.handle(probe)
            await w.sync()


async def test_a_probe_whose_worker_died_too_often_goes_on(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        (probe,) = probes(w)
        await w.engine.give_up(probe)
        assert len(probes(w)) == 1


async def test_a_probe_asks_for_no_more_than_the_sync_may_see(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(Target("target", "target", prefix="team/"), retry_policy=RetryPolicy(max_retries=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        target.faults.always = None

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "list" and not name.startswith("team/"):
                raise AccessDenied("no", vault=vault, path=name)

        target.hook = hook
        (probe,) = probes(w)
        await w.engine.handle(probe)
        await w.drain()
        assert target.values() == {"team/a": {"value": "1"}}


# a worker that was frozen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", [pytest.param(KV1, id="kv1"), pytest.param(LISTED, id="listed")])
async def test_what_a_frozen_worker_overwrote_is_put_right_without_verifying_targets(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(verify_targets=False)) as w:
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        await planned(w)
        body = w.queues.messages[0][1]

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "set":
                target.hook = None
                source.put("a", "3")
                w.clock.advance(seconds=400)
                await w.engine.handle(body)

        target.hook = hook
        await w.engine.handle(body)
        w.queues.messages.pop(0)
        await w.drain()
        await w.sync()
        assert target.values() == {"a": {"value": "3"}}


async def test_a_run_whose_planning_fails_half_way_ends_when_what_it_sent_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.engine.planner.SLICE", 2)
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for name in "abcd":
            source.put(name, "1")
        hurried = Engine(replace(w.engine.installation, planning_budget=0.0))
        run = await hurried.runs.start("s", trigger="manual")
        await hurried.handle(w.queues.messages.pop(0)[1])
        at = next(n for n, message in enumerate(w.queues.messages) if message[0] == jobs.PLAN_QUEUE)
        plan = w.queues.messages.pop(at)
        source.faults.add("list", AccessDenied("no", vault="source"))
        await hurried.handle(plan[1])
        await w.drain()
        ended = await w.engine.runs.view(run.run_id)
        assert (ended.status, ended.written) == (RunStatus.PARTIAL, 2)
        assert "source" in (ended.error or "")


# what only a plan has seen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [OnExisting.SKIP, OnExisting.FAIL])
@pytest.mark.parametrize("capabilities", KINDS)
async def test_what_somebody_put_there_after_the_plan_is_not_overwritten_unasked(
    tmp_path: Path, capabilities: Capabilities, policy: OnExisting
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(on_existing=policy)) as w:
        source.put("a", "ours")
        await planned(w)
        target.put("a", "theirs")
        await w.drain()
        assert target.values() == {"a": {"value": "theirs"}}


async def test_a_removed_field_that_a_new_digest_key_makes_unknowable_is_told_and_not_forgotten(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV1)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, delete=PROPAGATE)) as w:
        source.put("db", {"a": "1", "b": "1"})
        await w.sync()
        source.put("db", {"a": "2"})
        w.key = "another-digest-key-of-more-than-thirty-two-characters"
        for _ in range(2):
            run = await w.sync()
            assert run.conflicts == 1
            assert target.values() == {"db-a": {"value": "2"}, "db-b": {"value": "1"}}
            assert "'db-b'" in ((await one(w, "db")).error or "")
        target.remove("db-b")
        assert (await w.sync()).status is RunStatus.SUCCEEDED


# between a look and what follows it ---------------------------------------------------------------------------------


async def test_a_frozen_worker_can_not_write_where_the_vault_compares(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        await planned(w)
        body = w.queues.messages[0][1]

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "set":
                target.hook = None
                source.put("a", "3")
                w.clock.advance(seconds=400)
                await w.engine.handle(body)

        target.hook = hook
        await w.engine.handle(body)
        assert [fields["value"] for _, fields in target.writes] == ["1", "3"]


@pytest.mark.parametrize("capabilities", KINDS)
async def test_what_was_changed_by_hand_is_not_deleted_and_said_so(tmp_path: Path, capabilities: Capabilities) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        target.put("a", "by hand")
        source.remove("a")
        run = await w.sync()
        assert (run.deleted, run.conflicts) == (0, 1)
        assert target.values() == {"a": {"value": "by hand"}}
        assert "changed in the target" in ((await one(w, "a")).error or "")


async def test_what_is_changed_by_hand_in_the_moment_of_its_deletion_stays(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "delete":
                target.hook = None
                target.put("a", "by hand")

        target.hook = hook
        assert (await w.sync()).conflicts == 1
        assert target.values() == {"a": {"value": "by hand"}}


async def test_a_change_on_both_sides_is_settled_at_once(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        source.put("a", "2")
        target.put("a", "by hand")
        assert (await w.sync()).written == 1
        assert target.values() == {"a": {"value": "2"}}
        assert not any('"attempt":1' in body for _, body, _ in w.queues.sent), "a conflict is no failure"


@pytest.mark.parametrize("capabilities", KINDS)
async def test_a_deletion_that_timed_out_after_its_effect_needs_no_second_try(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        target.faults.add("delete", Unavailable("time-out", vault="target", ambiguous=True), after=True)
        assert (await w.sync()).deleted == 1
        assert not any('"attempt":1' in body for _, body, _ in w.queues.sent)


async def test_a_deletion_that_was_forbidden_after_it_was_planned_is_not_made(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        await planned(w)
        w.syncs["s"] = replace(w.syncs["s"], delete=DeletePolicy(propagate=False))
        await w.drain()
        assert target.values() == {"a": {"value": "1"}}


async def test_an_approved_cleanup_leaves_an_old_name_whose_new_one_is_not_there(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(delete=DeletePolicy(propagate=True, max_percent=0, min_count=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        source.put("b", "1")
        await w.sync()
        w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))

        async def hook(vault: str, operation: str, name: str) -> None:
            if (operation, name) == ("set", "new/a"):
                raise AccessDenied("no", vault=vault, path=name)

        target.hook = hook
        blocked = await w.sync()
        await w.engine.runs.approve(blocked.run_id)
        await w.drain()
        assert sorted(target.values()) == ["a", "new/b"]


@pytest.mark.parametrize("capabilities", KINDS)
async def test_a_write_that_nobody_could_look_at_is_still_known_for_ours(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    sync = one_way(delete=PROPAGATE, retry_policy=RetryPolicy(max_retries=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        w.syncs["s"] = replace(sync, on_existing=OnExisting.FAIL)
        target.faults.add("set", Unavailable("time-out", vault="target", ambiguous=True), after=True)

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "get" and target.writes:
                raise Unavailable("connection refused", vault=vault, path=name)

        target.hook = hook
        assert (await w.sync()).failed == 1
        target.hook = None
        w.queues.messages.clear()
        assert (await w.sync()).status is RunStatus.SUCCEEDED
        source.remove("a")
        assert (await w.sync()).deleted == 1
        assert target.values() == {}


async def test_a_worker_that_dies_before_it_can_count_is_counted_as_it_wrote(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        run = await w.engine.runs.start("s", trigger="manual")
        await w.engine.handle(w.queues.messages.pop()[1])
        save = w.store.save_chunk

        async def dies(*args: object) -> None:
            raise Killed

        w.store.save_chunk = dies  # type: ignore[method-assign,assignment]
        with pytest.raises(Killed):
            await w.engine.handle(w.queues.messages[0][1])
        w.store.save_chunk = save  # type: ignore[method-assign]
        await w.drain()
        ended = await w.engine.runs.view(run.run_id)
        assert (ended.written, ended.unchanged) == (1, 0)


async def test_a_server_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await planned(w)
        target.faults.add("set", Unavailable("429", vault="target", retry_after=77))
        await w.engine.handle(w.queues.messages.pop()[1])
        ((_, _, delay),) = w.queues.messages
        assert delay >= 77


async def test_what_needs_no_answer_does_not_hide_that_a_vault_is_down(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        names = [f"p{number:03}" for number in range(250)]
        for name in names:
            source.put(name, "1")
        await planned(w)
        for name in names[::60]:
            source.remove(name)

        async def hook(vault: str, operation: str, name: str) -> None:
            # As a time-out: it ends after all that needs no answer.
            for _ in range(100):
                await asyncio.sleep(0)
            raise Unavailable("no answer", vault="target", path=name)

        target.hook = hook
        (write,) = w.queues.messages
        w.queues.messages.clear()
        await w.engine.handle(write[1])
        assert target.calls.total() <= 3 * 64, "one batch, each path with its quick tries"


async def test_a_vault_that_is_down_is_not_asked_for_every_path(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for n in range(200):
            source.put(f"s{n:03}", "1")
        await planned(w)
        target.faults.always = DOWN
        source.calls.clear()
        await w.engine.handle(w.queues.messages.pop()[1])
        assert source.calls["get"] < 100


async def test_a_job_that_comes_twice_at_once_is_done_once(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await planned(w)
        body = w.queues.messages[0][1]

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "get":
                source.hook = None
                await w.engine.handle(body)

        source.hook = hook
        await w.engine.handle(body)
        assert (source.calls["get"], len(target.writes)) == (1, 1)


async def test_a_run_whose_end_was_interrupted_is_counted_once(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await planned(w)
        save = w.store.save_run

        async def dies(*args: object) -> None:
            raise Killed

        w.store.save_run = dies  # type: ignore[method-assign,assignment]
        with pytest.raises(Killed):
            await w.engine.handle(w.queues.messages[0][1])
        w.store.save_run = save  # type: ignore[method-assign]
        await w.drain()
        (run,) = (await w.store.list_runs("s")).items
        assert (run.status, run.written) == (RunStatus.SUCCEEDED, 1)
        totals = (await w.store.get_control("s")).totals
        assert totals["runs"] == {"succeeded": 1}
        assert totals["targets"]["target"]["written"] == 1
