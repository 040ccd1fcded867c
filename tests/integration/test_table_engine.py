"""The engine on Table Storage and storage queues: delivered twice, by two engines at once, killed, frozen, and late."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from shared import jobs
from shared.azure_storage import table_service
from shared.engine import Engine
from shared.engine.document import read_plan, read_whole_plan
from shared.errors import Refused, Unavailable
from shared.histories.table_storage import TableStore
from shared.host_settings import HostSettings
from shared.jobs import Message
from shared.model import Action, ConflictPolicy, DeletePolicy, ObjectStatus, RetryPolicy, Run, RunStatus, Sync, Target
from shared.queue_loop import QueueLoop
from shared.queues.storage_queue import StorageQueues
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import Clock, MemoryQueues, World, one_way

pytestmark = pytest.mark.real

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
ALL = DeletePolicy(propagate=True, max_percent=100)
PROCESSES = 2


class Killed(BaseException):
    """What a job sees of kill -9: nothing it could catch by mistake."""


@dataclass
class Ground:
    """One storage account, opened by several processes' worth of stores."""

    stores: list[TableStore]
    clock: Clock
    source: MemoryVault
    target: MemoryVault
    syncs: dict[str, Sync] = field(default_factory=dict)
    queues: MemoryQueues = field(default_factory=MemoryQueues)

    def world(self, process: int = 0) -> World:
        """What one process has: a store of its own, everything else in common."""
        vaults = {"source": self.source, "target": self.target}
        return World(self.stores[process], self.queues, self.clock, vaults, self.syncs)  # type: ignore[arg-type]


@pytest.fixture(params=["kv2", "listed"])
async def ground(request: pytest.FixtureRequest, azurite: str) -> AsyncIterator[Ground]:
    """Ends with a look at every chain of the history."""
    env = {"AzureWebJobsStorage": azurite}
    clock = Clock()

    class OwnTables(TableStore):
        prefix = f"t{secrets.token_hex(6)}"

    stores = [OwnTables(lambda: table_service(env), clock=clock) for _ in range(PROCESSES)]
    for store in stores:
        await store.open()
    target = MemoryVault("target", {"kv2": KV2, "listed": LISTED}[request.param])
    try:
        ground = Ground(stores, clock, MemoryVault("source", KV2), target)
        ground.syncs["s"] = one_way(delete=ALL)
        yield ground
        # Old enough that all copies of a row must be there.
        clock.advance(minutes=11)
        verified = await stores[0].verify_history("s")
        assert verified.broken == ()
    finally:
        for store in stores:
            await store.aclose()


def counts(run: Run) -> dict[str, int]:
    names = ("planned", "written", "unchanged", "deleted", "failed", "conflicts")
    return {name: getattr(run, name) for name in names if getattr(run, name)}


async def test_jobs_delivered_three_times_in_any_order_count_once(ground: Ground) -> None:
    w = ground.world()
    for n in range(300):
        ground.source.put(f"s{n:03}", "1")
    run = await w.sync(copies=3, shuffle=random.Random(7))
    assert (run.status, counts(run)) == (RunStatus.SUCCEEDED, {"planned": 300, "written": 300})
    assert len(ground.target.writes) == 300
    for n in range(40):
        ground.source.remove(f"s{n:03}")
    ground.source.put("s299", "2")
    run = await w.sync(copies=3, shuffle=random.Random(8))
    assert counts(run) == {"planned": 41, "written": 1, "deleted": 40, "unchanged": 259}
    assert ground.target.values() == ground.source.values()
    assert (await w.store.verify_history("s")).rows == 341
    totals = (await w.store.get_control("s")).totals["targets"]["target"]
    assert (totals["written"], totals["deleted"]) == (301, 40)


@asynccontextmanager
async def two_workers(ground: Ground, azurite: str) -> AsyncIterator[Callable[[int], Engine]]:
    """Two processes on the same storage queues, in which every job is twice."""

    class Twice(StorageQueues):
        async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
            await super().send(queue, body, delay=delay)
            # What comes back because it was busy is not doubled again: that would never end.
            if delay == 0:
                await super().send(queue, body)

    queues = [Twice({"AzureWebJobsStorage": azurite}, longest_wait=0.2) for _ in ground.stores]
    engines = [
        Engine(replace(ground.world(process).engine.installation, queues=each)) for process, each in enumerate(queues)
    ]
    names = (jobs.PLAN_QUEUE, *(jobs.write_queue(target.vault) for target in ground.syncs["s"].targets))
    loops = []
    for each, engine in zip(queues, engines, strict=True):
        await each.open()
        await each.ensure(names)

        async def handle(message: Message, engine: Engine = engine) -> None:
            await engine.handle(message.body)

        settings = HostSettings(visibility_timeout=0)
        loops += [QueueLoop(each, name, handle, settings) for name in names]
    for loop in loops:
        loop.start()
    try:
        yield engines.__getitem__
    finally:
        await asyncio.gather(*(loop.stop() for loop in loops))
        await asyncio.gather(*(each.aclose() for each in queues))


async def test_two_engines_on_one_queue_do_everything_once(ground: Ground, azurite: str) -> None:
    vault_id = f"target-{secrets.token_hex(4)}"
    ground.syncs["s"] = one_way(vault_id, delete=ALL)
    ground.target.id = vault_id
    vaults = {"source": ground.source, vault_id: ground.target}
    for n in range(300):
        ground.source.put(f"s{n:03}", "1")
    async with two_workers(ground, azurite) as engine:
        for process in range(PROCESSES):
            engine(process).installation.vaults.vaults = vaults  # type: ignore[attr-defined]
        started = await asyncio.gather(*(engine(n % 2).runs.start("s", trigger="manual") for n in range(4)))
        assert len({run.run_id for run in started}) == 1, "whoever comes second joins"
        run = await ended(engine(0), started[0].run_id)
        assert (run.status, counts(run)) == (RunStatus.SUCCEEDED, {"planned": 300, "written": 300})
        assert len(ground.target.writes) == 300
        for n in range(20):
            ground.source.put(f"s{n:03}", "2")
            ground.source.remove(f"s{n + 100:03}")
        second = await ended(engine(1), (await engine(1).runs.start("s", trigger="timer")).run_id)
        assert counts(second) == {"planned": 40, "written": 20, "deleted": 20, "unchanged": 260}
        assert ground.target.values() == ground.source.values()
    runs = (await ground.stores[0].list_runs("s")).items
    assert [run.status for run in runs if run.error != "another run began first"] == [RunStatus.SUCCEEDED] * 2


async def ended(engine: Engine, run_id: str) -> Run:
    async with asyncio.timeout(60):
        while True:
            run = await engine.runs.view(run_id)
            if not run.status.active:
                return run
            await asyncio.sleep(0.05)


async def job_for(w: World, source: MemoryVault, name: str, value: str) -> str:
    """A write job for a change of one secret, as a worker gets it."""
    source.put(name, value)
    await w.engine.runs.start("s", trigger="manual")
    await w.engine.handle(w.queues.messages.pop()[1])
    return w.queues.messages.pop()[1]


async def test_two_engines_with_one_job_and_an_edit_between_leave_the_newest_value(ground: Ground) -> None:
    one, other = ground.world(0), ground.world(1)
    ground.source.put("a", "0")
    await one.sync()
    for n in range(1, 6):
        job = await job_for(one, ground.source, "a", f"{n}")

        async def edit(vault: str, operation: str, name: str, n: int = n) -> None:
            if operation == "get done" and vault == "source" and ground.source.kept["a"].fields["value"] == f"{n}":
                ground.source.put("a", f"{n}.5")

        ground.source.hook = edit
        await asyncio.gather(one.engine.handle(job), other.engine.handle(job), one.engine.handle(job))
        ground.source.hook = None
        await one.drain()
        if ground.target.values() != ground.source.values():
            assert (await other.sync()).written == 1, "an edit after the read is what the next run finds"
        assert ground.target.values() == {"a": {"value": f"{n}.5"}}
    values = [fields["value"] for _, fields in ground.target.writes]
    assert values == sorted(values), "never an older value after a newer one"
    state = (await one.states())["target", "a"]
    assert (state.claim, state.status) == (None, ObjectStatus.IN_SYNC)  # type: ignore[attr-defined]


@pytest.mark.parametrize("moment", ["get done", "set done"])
async def test_a_killed_workers_claim_holds_others_off_until_it_expires(ground: Ground, moment: str) -> None:
    one, other = ground.world(0), ground.world(1)
    ground.source.put("a", "1")
    await one.sync()
    job = await job_for(one, ground.source, "a", "2")
    vault = ground.source if moment == "get done" else ground.target

    async def die(vault_id: str, operation: str, name: str) -> None:
        if operation == moment:
            raise Killed

    vault.hook = die
    with pytest.raises(Killed):
        await one.engine.handle(job)
    vault.hook = None
    written = len(ground.target.writes)

    # At once on another machine, which can not know that the holder is dead.
    await other.engine.handle(job)
    assert len(ground.target.writes) == written
    [(_, again, delay)] = ground.queues.messages
    assert delay > 0
    assert jobs.decode(again).attempt == 0, "being busy is no attempt"  # type: ignore[union-attr]
    ground.queues.messages.clear()

    ground.clock.advance(seconds=400)
    await other.engine.handle(again)
    assert ground.target.values() == {"a": {"value": "2"}}
    assert len(ground.target.writes) == 2, "what it wrote before it died is recognised, not written again"
    run = (await other.store.list_runs("s")).items[0]
    assert (run.status, counts(run)) == (RunStatus.SUCCEEDED, {"planned": 1, "written": 1})
    assert await other.history() == ["create", "update"]
    assert counts(await other.sync()) == {"unchanged": 1}


async def test_a_worker_that_was_frozen_past_its_claim_does_not_have_the_last_word(ground: Ground) -> None:
    one, other = ground.world(0), ground.world(1)
    ground.source.put("a", "1")
    await one.sync()
    job = await job_for(one, ground.source, "a", "2")
    frozen, thawed = asyncio.Event(), asyncio.Event()

    async def freeze(vault: str, operation: str, name: str) -> None:
        if operation == "get done":
            ground.source.hook = None
            frozen.set()
            await thawed.wait()

    ground.source.hook = freeze
    slow = asyncio.create_task(one.engine.handle(job))
    await frozen.wait()
    ground.clock.advance(seconds=400)
    ground.source.put("a", "3")
    await other.engine.handle(job)
    assert ground.target.values() == {"a": {"value": "3"}}
    thawed.set()
    await slow
    await other.drain()
    await other.sync()
    assert ground.target.values() == {"a": {"value": "3"}}
    state = (await other.states())["target", "a"]
    assert (state.claim, state.status) == (None, ObjectStatus.IN_SYNC)  # type: ignore[attr-defined]


async def test_too_many_deletes_wait_and_exactly_those_are_approved_once(ground: Ground) -> None:
    ground.syncs["s"] = one_way(delete=DeletePolicy(propagate=True, max_percent=25, min_count=2))
    one, other = ground.world(0), ground.world(1)
    for n in range(10):
        ground.source.put(f"s{n}", "1")
    await one.sync()
    for n in range(5):
        ground.source.remove(f"s{n}")
    run = await one.sync()
    assert run.status is RunStatus.BLOCKED
    assert len(ground.target.values()) == 10
    ground.source.remove("s5")
    ground.source.put("s0", "back")
    # Two people at once: one of them approves, the other is told, or joins.
    approved = await asyncio.gather(
        one.engine.runs.approve(run.run_id), other.engine.runs.approve(run.run_id), return_exceptions=True
    )
    assert any(isinstance(each, Run) for each in approved)
    assert all(isinstance(each, Run | Refused) for each in approved)
    await other.drain()
    after = await one.engine.runs.view(run.run_id)
    assert (after.status, after.deleted) == (RunStatus.SUCCEEDED, 4)
    assert sorted(ground.target.values()) == ["s0", "s5", "s6", "s7", "s8", "s9"]
    assert (await one.store.get_control("s")).totals["targets"]["target"]["deleted"] == 4
    with pytest.raises(Refused):
        await one.engine.runs.approve(run.run_id)


async def test_a_cancelled_run_writes_nothing_more_and_lets_the_next_one_begin(ground: Ground) -> None:
    one, other = ground.world(0), ground.world(1)
    ground.source.put("a", "1")
    run = await one.engine.runs.start("s", trigger="manual")
    await one.engine.handle(one.queues.messages.pop()[1])
    ended = await asyncio.gather(
        other.engine.runs.cancel(run.run_id), one.engine.runs.cancel(run.run_id), return_exceptions=True
    )
    assert all(isinstance(each, Run | Refused) for each in ended)
    await other.drain()
    assert ground.target.values() == {}
    assert (await one.engine.runs.view(run.run_id)).status is RunStatus.CANCELLED
    assert counts(await other.sync()) == {"planned": 1, "written": 1}


async def test_what_failed_is_listed_and_replayed_alone(ground: Ground) -> None:
    ground.syncs["s"] = one_way(retry_policy=RetryPolicy(max_retries=1))
    w = ground.world()
    for name in "abc":
        ground.source.put(name, "1")

    async def refuse(vault: str, operation: str, name: str) -> None:
        if (operation, name) == ("set", "b"):
            raise Unavailable("503", vault=vault, path=name)

    ground.target.hook = refuse
    run = await w.sync()
    assert (run.status, counts(run)) == (RunStatus.PARTIAL, {"planned": 3, "written": 2, "failed": 1})
    page = await w.store.page_history("s", status=ObjectStatus.FAILED)
    assert [(row.path, row.attempt) for row in page.items] == [("b", 1)]
    ground.target.hook = None
    w.queues.messages.clear()
    replayed = await w.engine.runs.replay("s")
    assert replayed.paths == ("b",)
    await w.drain()
    run = await w.engine.runs.view(replayed.run_id)
    assert (run.status, counts(run)) == (RunStatus.SUCCEEDED, {"planned": 1, "written": 1})
    with pytest.raises(Refused):
        await w.engine.runs.replay("s")


async def test_a_plan_of_many_pages_is_read_whole_by_another_process(ground: Ground) -> None:
    one, other = ground.world(0), ground.world(1)
    for n in range(1200):
        ground.source.put(f"a-rather-long-folder-name/of-a-team/service-{n:04}", "1")
    run = await one.sync(dry_run=True)
    plan = await read_plan(other.store, run.run_id)
    assert plan is not None
    assert [item["path"] for item in plan["items"]] == sorted(ground.source.kept)
    assert {item["change"] for item in plan["items"]} == {"create"}
    assert ground.target.values() == {}


async def test_a_plan_of_many_pages_is_carried_out_by_two_processes_exactly_once(ground: Ground) -> None:
    one, other = ground.world(0), ground.world(1)
    for n in range(1200):
        ground.source.put(f"a-rather-long-folder-name/of-a-team/service-{n:04}", "1")
    plan = await read_whole_plan(other.store, (await one.sync(dry_run=True)).run_id)
    run = await one.engine.runs.start("s", trigger="manual", plan=plan)
    engines = [one.engine, other.engine]
    while ground.queues.messages:
        message = ground.queues.messages.pop(0)
        for engine in engines:
            await engine.handle(message[1])
    ended = await other.engine.runs.view(run.run_id)
    assert (ended.status, ended.written, len(ground.target.writes)) == (RunStatus.SUCCEEDED, 1200, 1200)
    again = await one.engine.runs.start("s", trigger="manual", plan=plan)
    await one.drain()
    assert (await one.engine.runs.view(again.run_id)).status is RunStatus.FAILED
    assert len(ground.target.writes) == 1200


async def test_a_decision_told_to_two_processes_at_once_is_carried_out_once(ground: Ground) -> None:
    """Of two decisions one has the last word, on all sides."""
    spokes = tuple(Target(name, name) for name in ("target", "west"))
    ground.syncs["s"] = replace(one_way(), type="bidirectional", targets=spokes, conflict=ConflictPolicy.MANUAL)
    worlds = [ground.world(process) for process in range(PROCESSES)]
    west = MemoryVault("west", KV2)
    for world in worlds:
        world.vaults["west"] = west
    values = {}
    for vault in (ground.source, ground.target, west):
        vault.put("db", vault.id)
        values[vault.id] = {"db": {"value": vault.id}}
    assert (await worlds[0].sync()).conflicts == 1
    told = ("source", None), ("target", "west")
    begun = await asyncio.gather(
        *(w.engine.runs.resolve("s", "db", *each) for w, each in zip(worlds, told, strict=True))
    )
    assert len({run.run_id for run in begun}) == 1
    await worlds[1].drain(copies=2)
    assert ground.source.values() == ground.target.values() == west.values()
    assert west.values() in (values["source"], values["west"])
    assert [row async for row in worlds[0].store.list_objects("s", status=ObjectStatus.CONFLICT)] == []
    page = await worlds[1].store.page_history("s", path="db")
    assert [row.detail is None for row in page.items if row.action is Action.RESOLVE] == [False, False]
