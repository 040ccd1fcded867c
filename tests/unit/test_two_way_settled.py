"""What is settled stays so, though a side can not be written at once; what is lost later on is on record all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.model import ConflictPolicy
from tests.unit.test_two_way import HASTY, digest, two


@pytest.mark.parametrize("policy", ["newest", "target", "manual"])
async def test_what_is_settled_stays_settled_while_a_side_can_not_be_written(tmp_path: Path, policy: str) -> None:
    names = ("source", "north", "south")
    async with two(tmp_path, names=names, conflict=ConflictPolicy(policy), retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "2")
        hub["north"].put("a", "2")
        hub.w.clock.advance(minutes=10)
        hub["south"].put("a", "3")
        hub["north"].faults.add("set", Unavailable("no answer", vault="north"), times=10)
        await hub.w.sync()
        if policy == "manual":
            await hub.take("a", "south")
        hub["north"].faults.queued.clear()
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "3"}}
        told = [*await hub.told("conflict"), *await hub.told("resolve")]
        assert {detail["taken"] for detail in told} == ({None, "south"} if policy == "manual" else {"south"})
        assert len({detail["rule"] for detail in told}) == len({detail["taken"] for detail in told}), "settled once"
        await hub.quiet()


async def test_what_was_taken_and_changed_since_is_on_record_where_it_is_lost(tmp_path: Path) -> None:
    """North and south agree against the source; the job dies, and the one that was taken is edited again."""
    names = ("source", "north", "south")
    async with two(tmp_path, names=names, conflict=ConflictPolicy.NEWEST, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "2")
        hub.w.clock.advance(minutes=10)
        hub["north"].put("a", "3")
        hub["south"].put("a", "3")
        hub["source"].faults.add("set", Unavailable("no answer", vault="source"), times=10)
        await hub.w.sync()
        (taken,) = {detail["taken"] for detail in await hub.told("conflict")}
        hub["source"].faults.queued.clear()
        hub[taken].put("a", "4")
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "4"}}
        last = (await hub.told("conflict"))[-1]
        assert digest("3") in {side["digest"] for side in last["sides"]}
        assert digest("4") in {side["digest"] for side in last["sides"]}
        await hub.quiet()


async def test_a_decision_for_the_unchanged_value_holds_while_a_side_can_not_be_written(tmp_path: Path) -> None:
    names = ("source", "north", "south")
    async with two(tmp_path, names=names, conflict=ConflictPolicy.MANUAL, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["north"].put("a", "2")
        hub["south"].put("a", "3")
        await hub.w.sync()
        hub["north"].faults.add("set", Unavailable("no answer", vault="north"), times=10)
        await hub.take("a", "source")
        hub["north"].faults.queued.clear()
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "1"}}
        await hub.quiet()
