"""What a two-way sync asks at the last moment: just before and just after a write, and of a side that lags behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.model import ConflictPolicy
from shared.vault import Capabilities
from tests.unit.test_two_way import KV1, KV2, LISTED, PROPAGATE, Once, Two, either_side, every_kind, two

without_compare_and_set = pytest.mark.parametrize("kind", [KV1, LISTED], ids=["kv1", "listed"])


async def plan_and_then(both: Two, side: str, hook: Once) -> None:
    """Run a sync to its end; the hook is listened to once planning is over."""
    await both.w.engine.runs.start("s", trigger="manual")
    await both.w.engine.handle(both.w.queues.messages.pop(0)[1])
    both[side].hook = hook
    await both.w.drain()
    both[side].hook = None
    assert hook.done


@without_compare_and_set
@either_side
async def test_an_edit_between_the_first_look_and_the_write_is_seen(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        await plan_and_then(both, there.id, Once(there.id, "get done", "a", lambda: there.put("a", "in the middle")))
        assert there.values() == {"a": {"value": "in the middle"}}
        assert not any(both.writes.values())
        assert await both.listed() == {"a"}


@without_compare_and_set
@either_side
async def test_an_edit_just_after_our_write_is_carried_back_by_the_same_run(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        await plan_and_then(both, there.id, Once(there.id, "set done", "a", lambda: there.put("a", "3")))
        assert both.values() == {"a": {"value": "3"}}
        await both.quiet()


@either_side
async def test_an_edit_just_before_a_deletion_is_not_deleted(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, KV2, delete=PROPAGATE) as both:
        await both.agree(a="1")
        both[here].remove("a")
        there = both.other(here)
        await plan_and_then(both, there.id, Once(there.id, "delete", "a", lambda: there.put("a", "at the last moment")))
        await both.w.sync()
        assert both.values() == {"a": {"value": "at the last moment"}}
        await both.quiet()


@every_kind
@either_side
async def test_a_deletion_without_an_answer_is_our_own(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind, delete=PROPAGATE) as both:
        await both.agree(a="1")
        both[here].remove("a")
        there = both.other(here)
        there.faults.add("delete", Unavailable("timed out", vault=there.id, ambiguous=True), after=True)
        run = await both.sync()
        assert (run.deleted, both.values()) == (1, {})
        assert [str(row.action) for row in await both.history("a")][-1] == "delete"
        await both.quiet()


@either_side
async def test_a_side_that_shows_an_older_version_than_was_carried_is_asked_again(tmp_path: Path, here: str) -> None:
    """As a standby does that is behind: its old value is no change."""
    async with two(tmp_path, KV2) as both:
        await both.agree(a="1")
        old = replace(both[here].kept["a"])
        both[here].put("a", "2")
        await both.sync()
        both.forget()
        now = both[here].kept["a"]
        both[here].kept["a"] = old
        await both.hear(both.other(here).id, "a")
        await both.w.engine.handle(both.w.queues.messages.pop(0)[1])
        both[here].kept["a"] = now
        await both.w.drain()
        assert both.values() == {"a": {"value": "2"}}
        assert not any(both.writes.values())
