"""The engine on in-memory vaults: what a run does, counts and records."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared import jobs
from shared.errors import AccessDenied, InvalidSecret, MountNotFound, Refused, Unavailable
from shared.model import DeletePolicy, Granularity, ObjectStatus, OnExisting, RetryPolicy, RunStatus, Source, Target
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
FILE = Capabilities(FingerprintCost.LISTED, compare_and_set=True, tags=True)
KINDS = {"kv2": KV2, "kv1": KV1, "listed": LISTED, "file": FILE}


@pytest.fixture(params=list(KINDS))
def target(request: pytest.FixtureRequest) -> MemoryVault:
    return MemoryVault("target", KINDS[request.param])


@pytest.fixture(params=list(KINDS))
def source(request: pytest.FixtureRequest) -> MemoryVault:
    return MemoryVault("source", KINDS[request.param])


@pytest.fixture
async def w(tmp_path: Path, source: MemoryVault, target: MemoryVault) -> AsyncIterator[World]:
    async with world(tmp_path, [source, target], one_way(delete=DeletePolicy(propagate=True))) as made:
        yield made


def counts(run: object) -> dict[str, int]:
    names = ("planned", "written", "unchanged", "deleted", "failed", "conflicts")
    return {name: getattr(run, name) for name in names if getattr(run, name)}


async def test_a_first_sync_carries_everything_over(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    source.put("b/c", {"user": "x", "port": 5, "tags": ["y"]})
    run = await w.sync()
    assert run.status is RunStatus.SUCCEEDED
    assert counts(run) == {"planned": 2, "written": 2}
    assert target.values() == source.values()
    assert await w.history() == ["create", "create"]
    assert source.calls == {"list": 1, "get": 2}
    assert target.calls == {"list": 1, "set": 2}


async def test_an_unchanged_second_sync_writes_nothing_and_adds_no_history(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    await w.sync()
    source.calls.clear(), target.calls.clear()
    run = await w.sync()
    assert counts(run) == {"unchanged": 1}
    assert target.calls["set"] == 0
    assert await w.history() == ["create"]
    if source.capabilities.fingerprint is not FingerprintCost.VALUE:
        assert source.calls["get"] == 0
        assert source.calls["describe"] == (source.capabilities.fingerprint is FingerprintCost.PER_SECRET)
    if target.capabilities.fingerprint is not FingerprintCost.VALUE:
        assert target.calls["get"] == 0
        assert target.calls["describe"] == (target.capabilities.fingerprint is FingerprintCost.PER_SECRET)


async def test_a_changed_secret_costs_one_read_and_one_write(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    source.put("b", "1")
    await w.sync()
    source.put("a", "2")
    source.calls.clear(), target.calls.clear()
    run = await w.sync()
    assert counts(run) == {"planned": 1, "written": 1, "unchanged": 1}
    assert target.values()["a"] == {"value": "2"}
    assert target.calls["set"] == 1
    if source.capabilities.fingerprint is not FingerprintCost.VALUE:
        assert source.calls["get"] == 1
    assert await w.history(path="a") == ["create", "update"]


async def test_drift_is_found_and_repaired(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    await w.sync()
    target.put("a", "by hand")
    run = await w.sync()
    assert (run.written, run.drifted) == (1, 1)
    assert target.values() == {"a": {"value": "1"}}
    assert counts(await w.sync()) == {"unchanged": 1}


async def test_a_name_that_vanished_from_the_target_is_written_again(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    await w.sync()
    target.remove("a")
    run = await w.sync()
    assert run.written == 1
    assert target.values() == {"a": {"value": "1"}}


async def test_a_delete_follows_when_it_shall_and_recreation_too(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    source.put("b", "1")
    await w.sync()
    source.remove("a")
    run = await w.sync()
    assert counts(run) == {"planned": 1, "deleted": 1, "unchanged": 1}
    assert target.values() == {"b": {"value": "1"}}
    assert counts(await w.sync()) == {"unchanged": 1}
    source.put("a", "3")
    run = await w.sync()
    assert counts(run) == {"planned": 1, "written": 1, "unchanged": 1}
    assert target.values() == {"a": {"value": "3"}, "b": {"value": "1"}}
    assert await w.history(path="a") == ["create", "delete", "create"]


async def test_without_propagate_nothing_is_deleted(tmp_path: Path, source: MemoryVault, target: MemoryVault) -> None:
    async with world(tmp_path, [source, target], one_way()) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        run = await w.sync()
        assert counts(run) == {}
        assert target.values() == {"a": {"value": "1"}}


async def test_an_equal_value_is_adopted_and_not_deleted_as_ours(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    target.put("a", "1")
    target.calls.clear()
    run = await w.sync()
    assert counts(run) == {"planned": 1, "unchanged": 1}
    assert target.calls["set"] == 0
    assert await w.history() == ["adopt"]
    source.remove("a")
    await w.sync()
    assert target.values() == {"a": {"value": "1"}}


@pytest.mark.parametrize(
    ("policy", "status", "expected"),
    [
        (OnExisting.OVERWRITE, RunStatus.SUCCEEDED, "new"),
        (OnExisting.SKIP, RunStatus.SUCCEEDED, "theirs"),
        (OnExisting.FAIL, RunStatus.PARTIAL, "theirs"),
    ],
)
async def test_what_is_there_already_is_treated_as_configured(
    tmp_path: Path, source: MemoryVault, target: MemoryVault, policy: OnExisting, status: RunStatus, expected: str
) -> None:
    async with world(tmp_path, [source, target], one_way(on_existing=policy)) as w:
        source.put("a", "new")
        source.put("b", "new")
        target.put("a", "theirs")
        for _ in range(2):
            run = await w.sync()
            assert run.status is status
            assert target.values() == {"a": {"value": expected}, "b": {"value": "new"}}


async def test_a_skipped_secret_costs_no_read_while_nobody_changes_it(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(on_existing=OnExisting.SKIP)) as w:
        source.put("a", "new")
        target.put("a", "theirs")
        await w.sync()
        source.calls.clear(), target.calls.clear()
        assert counts(await w.sync()) == {"unchanged": 1}
        assert (source.calls["get"], target.calls["get"]) == (0, 0)
        target.put("a", "new")
        await w.sync()
        assert await w.history() == ["adopt"]


async def test_two_names_on_one_are_both_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    import re

    rule = NameRule(re.compile("[0-9a-zA-Z-]"), 127, ignores_case=True, wording="letters, digits and -")
    source = MemoryVault("source", KV2)
    target = MemoryVault("target", replace(LISTED, names=rule, fields=False))
    async with world(tmp_path, [source, target], one_way()) as w:
        for name in ("A_B", "a-b", "fine"):
            source.put(name, "1")
        run = await w.sync()
        assert run.status is RunStatus.PARTIAL
        assert counts(run) == {"planned": 3, "written": 1, "failed": 2}
        assert list(target.values()) == ["fine"]
        errors = {state.path: state.error async for state in w.store.list_objects("s", status=ObjectStatus.FAILED)}
        assert "'A_B'" in errors["a-b"]
        assert "'a-b'" in errors["A_B"]


async def test_a_transient_fault_is_retried_and_the_run_is_complete(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    for n in range(20):
        source.put(f"s{n}", "1")
    target.faults.add("set", Unavailable("503", vault="target"), times=9)
    run = await w.sync()
    assert run.status is RunStatus.SUCCEEDED
    assert counts(run) == {"planned": 20, "written": 20}
    assert len(target.writes) == 20


async def test_a_write_that_timed_out_after_its_effect_is_not_written_twice(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    target.faults.add("set", Unavailable("time-out", vault="target", ambiguous=True), after=True)
    run = await w.sync()
    assert counts(run) == {"planned": 1, "written": 1}
    assert len(target.writes) == 1
    source.remove("a")
    assert (await w.sync()).deleted == 1


async def test_a_permanent_error_fails_that_secret_only(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    source.put("b", "1")
    target.faults.add("set", AccessDenied("no", vault="target"))
    run = await w.sync()
    assert run.status is RunStatus.PARTIAL
    assert counts(run) == {"planned": 2, "written": 1, "failed": 1}
    assert sorted(await w.history()) == ["create", "fail"]
    run = await w.sync()
    assert counts(run) == {"planned": 1, "written": 1, "unchanged": 1}
    assert target.values() == source.values()


async def test_what_never_got_there_is_never_taken_for_ours(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    target.faults.add("set", InvalidSecret("too long", vault="target"))
    assert counts(await w.sync()) == {"planned": 1, "failed": 1}
    target.put("a", "theirs")
    source.remove("a")
    assert counts(await w.sync()) == {}
    assert target.values() == {"a": {"value": "theirs"}}


async def test_a_dead_target_holds_up_no_other_and_is_caught_up(tmp_path: Path) -> None:
    source = MemoryVault("source", KV2)
    alive, dead = MemoryVault("alive", KV2), MemoryVault("dead", KV2)
    sync = one_way("alive", "dead", retry_policy=RetryPolicy(max_retries=2))
    async with world(tmp_path, [source, alive, dead], sync) as w:
        for n in range(30):
            source.put(f"s{n}", "1")
        dead.faults.always = Unavailable("connection refused", vault="dead")
        run = await w.sync()
        assert run.status is RunStatus.PARTIAL
        assert counts(run) == {"planned": 60, "written": 30, "failed": 30}
        assert alive.values() == source.values()
        probes = [m for m in w.queues.messages if '"job":"probe"' in m[1]]
        assert len(probes) == 1

        w.queues.messages.clear()
        await w.engine.handle(probes[0][1])
        assert [m[1].count('"attempt":1') for m in w.queues.messages] == [1], "still down: asked again later"

        dead.faults.always = None
        again = w.queues.messages.pop()
        await w.engine.handle(again[1])
        await w.drain()
        assert dead.values() == source.values()
        latest = (await w.store.list_runs("s")).items[0]
        assert (latest.trigger, latest.status) == ("replay", RunStatus.SUCCEEDED)


async def test_a_target_that_falls_silent_while_it_is_verified_gets_what_changed_in_the_source(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    for n in range(5):
        source.put(f"s{n}", "1")
    await w.sync()
    source.put("s3", "2")
    for operation in ("describe", "get"):
        target.faults.add(operation, Unavailable("time-out", vault="target"), times=3)
    run = await w.sync()
    assert run.status is RunStatus.SUCCEEDED
    assert run.written == 1
    assert target.values() == source.values()


async def test_a_source_that_stays_silent_ends_the_run_and_says_so(w: World, source: MemoryVault) -> None:
    source.put("a", "1")
    await w.sync()
    source.faults.always = Unavailable("connection refused", vault="source")
    run = await w.sync()
    assert run.status is RunStatus.FAILED
    assert "connection refused" in (run.error or "")


async def test_one_secret_that_the_source_never_answers_for_fails_alone(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(retry_policy=RetryPolicy(max_retries=1))
    async with world(tmp_path, [source, target], sync) as w:
        for n in range(5):
            source.put(f"s{n}", "1")
        await w.sync()
        source.put("s0", "2")

        async def broken(vault: str, operation: str, name: str) -> None:
            if name == "s3":
                raise Unavailable("500 for ever", vault=vault, path=name)

        source.hook = broken
        run = await w.sync()
        assert run.status is RunStatus.PARTIAL
        assert counts(run) == {"planned": 2, "written": 1, "failed": 1, "unchanged": 3}
        assert target.values()["s0"] == {"value": "2"}
        source.hook = None
        assert counts(await w.sync()) == {"planned": 1, "unchanged": 5}


async def test_a_missing_mount_or_a_lost_permission_never_deletes(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    await w.sync()
    for error in (MountNotFound("no such mount", vault="source"), AccessDenied("no", vault="source")):
        source.faults.always = error
        run = await w.sync()
        assert run.status is RunStatus.FAILED
        assert "source" in (run.error or "")
        source.faults.always = None
    kept = source.kept.pop("a")
    for operation in ("get", "describe"):
        source.faults.add(operation, AccessDenied("no", vault="source"), times=9)
    run = await w.sync()
    assert target.values() == {"a": {"value": "1"}}
    source.faults.queued.clear()
    source.kept["a"] = kept
    await w.sync()
    assert target.values() == {"a": {"value": "1"}}


async def test_too_many_deletes_wait_for_an_approval_of_exactly_those(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(delete=DeletePolicy(propagate=True, max_percent=25, min_count=2))
    async with world(tmp_path, [source, target], sync) as w:
        for n in range(10):
            source.put(f"s{n}", "1")
        await w.sync()
        for n in range(5):
            source.remove(f"s{n}")
        source.put("s9", "2")
        run = await w.sync()
        assert run.status is RunStatus.BLOCKED
        assert "5 of the 10" in (run.error or "")
        assert run.written == 1
        assert len(target.values()) == 10
        source.remove("s5")
        source.put("s0", "back again")
        await w.engine.runs.approve(run.run_id)
        await w.drain()
        run = await w.engine.runs.view(run.run_id)
        assert run.status is RunStatus.SUCCEEDED
        assert run.deleted == 4, "what came back meanwhile is not deleted"
        assert sorted(target.values()) == ["s0", "s5", "s6", "s7", "s8", "s9"]
        totals = (await w.store.get_control("s")).totals
        assert totals["targets"]["target"]["deleted"] == 4
        assert totals["targets"]["target"]["written"] == 11


async def test_allow_deletes_goes_past_the_guard(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(delete=DeletePolicy(propagate=True, max_percent=0, min_count=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        await w.sync()
        source.remove("a")
        assert (await w.sync()).status is RunStatus.BLOCKED
        assert (await w.sync(allow_deletes=True)).deleted == 1


async def test_a_changed_mapping_moves_what_it_wrote(w: World, source: MemoryVault, target: MemoryVault) -> None:
    for n in range(4):
        source.put(f"s{n}", "1")
    await w.sync()
    w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))
    run = await w.sync()
    assert run.status is RunStatus.SUCCEEDED
    assert sorted(target.values()) == ["new/s0", "new/s1", "new/s2", "new/s3"]
    assert counts(await w.sync()) == {"unchanged": 4}


async def test_a_changed_mapping_of_very_many_waits_for_approval_of_the_cleanup(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way()) as w:
        for n in range(10):
            source.put(f"s{n}", "1")
        await w.sync()
        w.syncs["s"] = replace(w.syncs["s"], targets=(Target("target", "target", prefix="new/"),))
        run = await w.sync()
        assert run.status is RunStatus.BLOCKED
        assert len(target.values()) == 20, "the new names are there; the old ones wait"
        await w.engine.runs.approve(run.run_id)
        await w.drain()
        assert sorted(target.values()) == [f"new/s{n}" for n in range(10)]


async def test_a_changed_digest_key_causes_no_write(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    await w.sync()
    w.key = "another-digest-key-of-more-than-thirty-two-characters"
    for _ in range(2):
        run = await w.sync()
        assert run.written == 0
        assert run.status is RunStatus.SUCCEEDED
    source.put("a", "2")
    assert (await w.sync()).written == 1
    assert len(target.writes) == 2


async def test_fields_become_secrets_and_only_the_changed_one_is_written(
    tmp_path: Path, source: MemoryVault, target: MemoryVault
) -> None:
    by_field = Target("target", "target", name="{path}-{field}", granularity=Granularity.FIELD)
    async with world(tmp_path, [source, target], one_way(by_field)) as w:
        source.put("db", {"user": "u", "password": "p", "port": 5})
        run = await w.sync()
        assert counts(run) == {"planned": 1, "written": 1}
        assert target.values() == {
            "db-password": {"value": "p"},
            "db-port": {"value": 5},
            "db-user": {"value": "u"},
        }
        target.writes.clear()
        source.put("db", {"user": "u", "password": "new"})
        await w.sync()
        assert target.writes == [("db-password", {"value": "new"})]
        assert sorted(target.values()) == ["db-password", "db-user"]
        assert counts(await w.sync()) == {"unchanged": 1}


async def test_two_paths_whose_fields_share_a_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    by_field = Target("target", "target", name="{path}-{field}", granularity=Granularity.FIELD)
    async with world(tmp_path, [source, target], one_way(by_field)) as w:
        source.put("a", {"b-c": "first"})
        source.put("a-b", {"c": "second"})
        run = await w.sync()
        assert run.failed == 1
        assert run.status is RunStatus.PARTIAL
        states = {state.path: state async for state in w.store.list_objects("s")}
        failed = next(state for state in states.values() if state.status is ObjectStatus.FAILED)
        other = "a" if failed.path == "a-b" else "a-b"
        assert f"'{other}'" in (failed.error or "")


async def test_jobs_delivered_three_times_in_any_order_count_once(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    for n in range(600):
        source.put(f"s{n:03}", "1")
    run = await w.sync(copies=3, shuffle=random.Random(7))
    assert run.status is RunStatus.SUCCEEDED
    assert counts(run) == {"planned": 600, "written": 600}
    assert len(target.writes) == 600


async def test_a_second_start_joins_the_run_on_its_way(w: World, source: MemoryVault) -> None:
    source.put("a", "1")
    first = await w.engine.runs.start("s", trigger="manual")
    second = await w.engine.runs.start("s", trigger="timer")
    assert first.run_id == second.run_id
    await w.drain()
    assert len((await w.store.list_runs("s")).items) == 1


async def test_a_paused_sync_refuses_to_start(w: World) -> None:
    await w.engine.runs.pause("s", paused=True)
    with pytest.raises(Refused, match="paused"):
        await w.engine.runs.start("s", trigger="timer")
    await w.engine.runs.pause("s", paused=False)
    await w.sync()


async def test_leftover_jobs_of_a_removed_sync_end_as_recorded_no_ops(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    run = await w.engine.runs.start("s", trigger="manual")
    plan = w.queues.messages.pop()
    await w.engine.handle(plan[1])
    removed = w.syncs.pop("s")
    await w.drain()
    ended = await w.engine.runs.view(run.run_id)
    assert target.values() == {}
    assert not ended.status.active
    w.syncs["s"] = removed
    await w.sync()
    assert target.values() == source.values()


async def test_a_cancelled_run_writes_nothing_more(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    run = await w.engine.runs.start("s", trigger="manual")
    await w.engine.handle(w.queues.messages.pop()[1])
    await w.engine.runs.cancel(run.run_id)
    await w.drain()
    assert target.values() == {}
    assert (await w.engine.runs.view(run.run_id)).status is RunStatus.CANCELLED
    await w.sync()
    assert target.values() == source.values()


async def test_planning_goes_on_from_its_cursor_when_time_is_up(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    from shared.engine import Engine

    for n in range(2500):
        source.put(f"s{n:04}", "1")
    engine = w.engine
    hurried = Engine(replace(engine.installation, planning_budget=0.0))
    run = await engine.runs.start("s", trigger="manual")
    plans = 0
    while w.queues.messages:
        queue, body, _ = w.queues.messages.pop(0)
        plans += queue == jobs.PLAN_QUEUE
        await hurried.handle(body)
    assert plans == 3
    ended = await engine.runs.view(run.run_id)
    assert counts(ended) == {"planned": 2500, "written": 2500}
    assert len(target.writes) == 2500


async def test_a_dry_run_writes_nothing_and_shows_what_would_happen(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    from shared.engine.document import read_plan

    source.put("a", "1")
    source.put("b", "1")
    await w.sync()
    source.put("a", "2")
    source.remove("b")
    source.put("c", "1")
    target.calls.clear()
    run = await w.sync(dry_run=True)
    plan = await read_plan(w.store, run.run_id)
    assert plan is not None
    assert [(item["path"], item["change"]) for item in plan["items"]] == [
        ("a", "update"),
        ("b", "delete"),
        ("c", "create"),
    ]
    assert target.calls["set"] + target.calls["delete"] == 0
    assert run.status is RunStatus.SUCCEEDED
    assert await w.history() == ["create", "create"]


async def test_two_syncs_that_write_one_secret_are_told_apart_by_their_marks(tmp_path: Path) -> None:
    one, other = MemoryVault("source", KV2), MemoryVault("other", KV2)
    target = MemoryVault("target", LISTED)
    rival = replace(one_way(source=Source("other")), id="rival")
    async with world(tmp_path, [one, other, target], one_way(), rival) as w:
        one.put("a", "ours")
        other.put("a", "theirs")
        await w.sync()
        run = await w.sync("rival")
        assert run.conflicts == 1
        assert target.values() == {"a": {"value": "ours"}}
        states = {state.path: state async for state in w.store.list_objects("rival")}
        assert "'s@" in (states["a"].error or "")


async def test_a_disabled_secret_is_left_as_it_is(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    await w.sync()
    source.kept["a"].enabled = False
    run = await w.sync()
    assert run.status is RunStatus.SUCCEEDED
    assert target.values() == {"a": {"value": "1"}}


async def test_a_job_that_kills_its_worker_is_split_and_then_recorded(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    for n in range(4):
        source.put(f"s{n}", "1")
    run = await w.engine.runs.start("s", trigger="manual")
    engine = w.engine
    await engine.handle(w.queues.messages.pop()[1])
    poisoned = w.queues.messages.pop()
    await engine.give_up(poisoned[1])
    first, second = w.queues.messages
    w.queues.messages.clear()
    await engine.give_up(first[1])
    await engine.handle(second[1])
    ended = await engine.runs.view(run.run_id)
    assert ended.status is RunStatus.PARTIAL
    assert counts(ended) == {"planned": 4, "written": 2, "failed": 2}


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("error", [AccessDenied, InvalidSecret])
async def test_a_secret_that_can_not_be_looked_at_fails_alone(
    tmp_path: Path, side: str, error: type[AccessDenied | InvalidSecret]
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(delete=DeletePolicy(propagate=True))) as w:
        for name in "abc":
            source.put(name, "1")
        await w.sync()
        source.put("c", "2")
        looked_at = {"source": source, "target": target}[side]

        async def hook(vault: str, operation: str, name: str) -> None:
            if (operation, name) == ("describe", "a"):
                raise error("no", vault=vault, path=name)

        looked_at.hook = hook
        run = await w.sync()
        assert run.status is RunStatus.PARTIAL
        assert counts(run) == {"planned": 2, "written": 1, "unchanged": 1, "failed": 1}
        assert target.values() == source.values()
        await w.sync()
        assert sorted(await w.history()) == ["create", "create", "create", "fail", "update"], "said once"
        looked_at.hook = None
        assert (await w.sync()).status is RunStatus.SUCCEEDED
        assert [state async for state in w.store.list_objects("s", status=ObjectStatus.FAILED)] == []
