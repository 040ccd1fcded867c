"""Events on Table Storage: queued, deduplicated, counted and made up for, by two processes on one account."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from shared.model import DeletePolicy, ObjectStatus, RunStatus
from shared.notices import GapNotice
from tests.integration.test_table_engine import Ground, ground
from tests.unit.test_events import runs, seen, state, told
from tests.world import one_way

__all__ = ["ground"]
pytestmark = pytest.mark.real


async def test_a_secrets_life_is_carried_and_what_is_known_costs_no_call(ground: Ground) -> None:
    w = ground.world()
    ground.source.put("apps/db é", "1")
    assert await told(w, "apps/db é") == [True]
    ground.source.put("apps/db é", "2")
    await told(w, ("apps/db é", 2))
    assert ground.target.values() == {"apps/db é": {"value": "2"}}
    ground.source.calls.clear()
    ground.target.calls.clear()
    await told(w, ("apps/db é", 2), ("apps/db é", 1))
    assert (ground.source.calls, ground.target.calls) == ({}, {})
    ground.source.remove("apps/db é")
    await told(w, "apps/db é")
    assert ground.target.values() == {}
    ground.source.put("apps/db é", "3")
    await told(w, ("apps/db é", 3))
    assert ground.target.values() == {"apps/db é": {"value": "3"}}
    assert await w.history(path="apps/db é") == ["create", "update", "delete", "create"]
    assert await runs(w) == []


async def test_two_processes_with_the_same_events_write_once_and_keep_the_newest(ground: Ground) -> None:
    one, two = ground.world(0), ground.world(1)
    names = [f"p{number:02d}" for number in range(20)]
    for name in names:
        ground.source.put(name, "1")
    await one.engine.events.take(seen(*names))
    body = one.queues.messages.pop()[1]
    await asyncio.gather(one.engine.handle(body), two.engine.handle(body))
    await one.drain()
    assert len(ground.target.writes) == 20
    for name in names:
        ground.source.put(name, "2")
    await two.engine.events.take(seen(*((name, 2) for name in names)))
    body = one.queues.messages.pop()[1]
    await asyncio.gather(one.engine.handle(body), two.engine.handle(body), one.engine.handle(body))
    await two.drain()
    assert ground.target.values() == ground.source.values()
    assert len(ground.target.writes) == 40
    assert (await one.sync()).unchanged == 20


async def test_deletes_by_events_of_two_processes_are_counted_together(ground: Ground) -> None:
    ground.syncs["s"] = one_way(delete=DeletePolicy(propagate=True))
    one, two = ground.world(0), ground.world(1)
    names = [f"p{number:02d}" for number in range(20)]
    for name in names:
        ground.source.put(name, "1")
    await one.sync()
    for number, w in enumerate([one, two, one, two, one]):
        ground.source.remove(names[number])
        await told(w, names[number])
    assert len(ground.target.values()) == 15
    ground.source.remove(names[5])
    await told(two, names[5])
    assert len(ground.target.values()) == 15
    blocked = (await runs(one))[0]
    assert (blocked.trigger, blocked.status) == ("event", RunStatus.BLOCKED)
    await one.engine.runs.approve(blocked.run_id)
    await two.drain()
    assert len(ground.target.values()) == 14
    ground.clock.advance(minutes=11)
    ground.source.remove(names[6])
    await told(one, names[6])
    assert len(ground.target.values()) == 13
    assert (await one.store.get_control("s")).event_deletes["target"]["count"] == 1


async def test_a_gap_in_the_middle_of_a_run_is_another_run_whoever_ends_the_first(ground: Ground) -> None:
    one, two = ground.world(0), ground.world(1)
    ground.source.put("a", "1")
    first = await one.engine.runs.start("s", trigger="manual")
    await one.engine.handle(one.queues.messages.pop(0)[1])
    ground.source.put("b", "1")
    await asyncio.gather(*(w.engine.events.take([GapNotice("cut", "source")]) for w in (one, two)))
    await two.drain()
    assert ground.target.values() == ground.source.values()
    assert [run.trigger for run in await runs(two)] == ["event", "manual"]
    assert (await one.engine.runs.view(first.run_id)).status is RunStatus.SUCCEEDED
    assert (await one.store.get_control("s")).again is None


async def test_what_comes_while_paused_is_caught_up_by_one_run(ground: Ground) -> None:
    w = ground.world()
    ground.source.put("a", "1")
    await w.engine.runs.pause("s", True)
    for _ in range(3):
        await told(w, "a")
    assert ground.target.values() == {}
    await ground.world(1).engine.runs.pause("s", False)
    await w.drain()
    assert ground.target.values() == ground.source.values()
    assert len(await runs(w)) == 1


async def test_a_claim_of_a_dead_process_is_waited_for(ground: Ground) -> None:
    w = ground.world()
    ground.source.put("a", "1")
    await told(w, "a")
    ground.source.put("a", "2")
    await w.engine.events.take(seen(("a", 2)))
    body = w.queues.messages.pop()[1]

    async def hook(vault: str, operation: str, name: str) -> None:
        if operation == "set done":
            raise asyncio.CancelledError

    ground.target.hook = hook
    with pytest.raises(asyncio.CancelledError):
        await w.engine.handle(body)
    ground.target.hook = None
    ground.source.put("a", "3")
    await ground.world(1).engine.events.take(seen(("a", 3)))
    await ground.world(1).drain()
    assert ground.target.values() == {"a": {"value": "3"}}
    assert (await state(w, "a")).status is ObjectStatus.IN_SYNC


async def test_a_batch_is_known_again_by_every_process_until_its_time_is_over(ground: Ground) -> None:
    one, two = ground.stores
    await one.remember("batch:x/y", ground.clock() + timedelta(hours=24))
    assert await two.remembers("batch:x/y")
    assert not await two.remembers("batch:x/z")
    ground.clock.advance(hours=25)
    assert not await two.remembers("batch:x/y")
