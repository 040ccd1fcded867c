"""Two-way syncs, one promise after the other: carrying, conflicts, first contact, deletions, a hub with spokes, clocks,
writes without an answer, events, and all that must never lead to a delete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.engine.document import read_plan
from shared.errors import AccessDenied, InvalidSecret, MountNotFound, Refused, Unavailable
from shared.mapping import Digester
from shared.model import (
    ConflictPolicy,
    DeletePolicy,
    Entry,
    HistoryRow,
    NameEncoding,
    ObjectState,
    ObjectStatus,
    RetryPolicy,
    Run,
    RunStatus,
    Source,
    Target,
)
from shared.notices import AuditNotice
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.memory_vault import MemoryVault
from tests.world import KEY, Clock, World, two_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True, time_resolution=timedelta(seconds=1))
FINE = timedelta(microseconds=1)
TIMED = replace(KV2, time_resolution=FINE)
SECONDS = replace(KV2, time_resolution=timedelta(seconds=1))
ETAG = Capabilities(FingerprintCost.VALUE, compare_and_set=True)
KINDS = {"kv2": KV2, "kv1": KV1, "listed": LISTED, "etag": ETAG}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
either_side = pytest.mark.parametrize("here", ["source", "target"])
PROPAGATE = DeletePolicy(propagate=True, max_percent=100)


@dataclass
class Two:
    """A world with a hub and its spokes."""

    w: World
    vaults: dict[str, MemoryVault]

    def __getitem__(self, side: str) -> MemoryVault:
        return self.vaults[side]

    def other(self, side: str) -> MemoryVault:
        return self.vaults["target" if side == "source" else "source"]

    def give(self, name: str, value: Any) -> None:
        """The same value on all sides."""
        for vault in self.vaults.values():
            vault.put(name, value)

    def values(self) -> dict[str, Any]:
        """What all sides hold, once they hold the same."""
        first, *others = (vault.values() for vault in self.vaults.values())
        assert all(other == first for other in others), [first, *others]
        return first

    @property
    def writes(self) -> dict[str, list[Any]]:
        return {side: [fields["value"] for _, fields in vault.writes] for side, vault in self.vaults.items()}

    def forget(self) -> None:
        """Count writes and calls from zero."""
        for vault in self.vaults.values():
            vault.writes.clear()
            vault.calls.clear()

    async def agree(self, **values: Any) -> None:
        """Bring all sides to these values, long ago."""
        for name, value in values.items():
            self["source"].put(name, value)
        await self.sync()
        assert self.values() == {name: {"value": value} for name, value in sorted(values.items())}
        self.w.clock.advance(hours=1)
        self.forget()

    async def sync(self, status: str = "succeeded", **options: Any) -> Run:
        run = await self.w.sync(**options)
        assert str(run.status) == status, run
        return run

    async def quiet(self) -> None:
        """Another run changes nothing, asks nobody to write, and tells nothing."""
        self.forget()
        rows = len(await self.history())
        run = await self.w.sync()
        assert (run.written, run.deleted, run.failed) == (0, 0, 0), run
        assert not any(self.writes.values())
        assert not any(vault.calls["delete"] for vault in self.vaults.values())
        assert len(await self.history()) == rows

    async def history(self, path: str | None = None) -> list[HistoryRow]:
        page = await self.w.store.page_history("s", path=path, limit=1000)
        return list(reversed(page.items))

    async def told(self, action: str, path: str | None = None) -> list[dict[str, Any]]:
        """The details of the history's rows of one action."""
        return [json.loads(row.detail or "{}") for row in await self.history(path) if row.action == action]

    async def rows(self, status: ObjectStatus | None = None) -> list[ObjectState]:
        rows = [row async for row in self.w.store.list_objects("s", status=status)]
        return sorted(rows, key=lambda row: (row.path, row.target))

    async def listed(self) -> set[str]:
        return {row.path for row in await self.rows(ObjectStatus.CONFLICT)}

    async def take(self, path: str, side: str) -> Run:
        """What a person decides, and its run to the end."""
        run = await self.decide(path, side)
        await self.w.drain()
        return run

    async def decide(self, path: str, side: str) -> Run:
        if side == "source":
            return await self.w.engine.runs.resolve("s", path, "source")
        return await self.w.engine.runs.resolve("s", path, "target", side)

    async def hear(self, side: str, name: str, version: int | None = None) -> None:
        await self.w.engine.events.take([AuditNotice(f"{side}/", name, version=version)])


def digest(value: Any) -> str:
    return Digester(KEY).digest(value if isinstance(value, dict) else {"value": value})


@asynccontextmanager
async def two(
    folder: Path,
    *kinds: Capabilities,
    names: tuple[str, ...] = ("source", "target"),
    targets: tuple[Target, ...] = (),
    timed: bool = True,
    skew: dict[str, float] | None = None,
    **options: Any,
) -> AsyncIterator[Two]:
    """Vaults of these kinds (the last one for all that are left), each with its own clock."""
    clock = Clock()
    vaults = {}
    for at, name in enumerate(names):
        kind = (kinds or (TIMED,))[min(at, len(kinds or (TIMED,)) - 1)]
        off = timedelta(seconds=(skew or {}).get(name, 0))
        told = (lambda off=off: clock.now + off) if timed else None
        vaults[name] = MemoryVault(name, kind, clock=told, tombstones=kind is not ETAG and kind.compare_and_set)
    sync = two_way(*(targets or names[1:]), **options)
    async with world(folder, list(vaults.values()), sync, clock=clock) as w:
        yield Two(w, vaults)


HUB = ("source", "one", "two", "three")


async def told_once(hub: Two) -> dict[str, Any]:
    """What the history tells of the one conflict that there was: the same in the chain of each target concerned."""
    rows = [row for row in await hub.history() if row.action == "conflict"]
    assert len({row.target for row in rows}) == len(rows)
    (text,) = {row.detail for row in rows}
    detail: dict[str, Any] = json.loads(text or "")
    return detail


# --- 1. the comparison --------------------------------------------------------------------------------------------------


@every_kind
async def test_nothing_happens_where_nothing_changed(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind) as here:
        await here.agree(a="1", b="2")
        run = await here.sync()
        assert (run.written, run.unchanged) == (0, 2)
        assert here.writes == {"source": [], "target": []}
        if kind not in (KV1, ETAG):
            assert not here["source"].calls["get"] + here["target"].calls["get"]
        assert await here.told("conflict") == []


@every_kind
@either_side
async def test_one_sides_change_is_carried_to_the_other(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1", b="2")
        both[here].put("a", "new")
        run = await both.sync()
        assert both.values() == {"a": {"value": "new"}, "b": {"value": "2"}}
        assert (run.written, run.unchanged, run.conflicts) == (1, 1, 0)
        assert both.writes[here] == [], "whoever has it already is not written"
        (*_, last) = await both.history("a")
        assert (last.action, last.target) == ("update", "target")
        assert last.direction == ("source_to_target" if here == "source" else "target_to_source")
        await both.quiet()


@pytest.mark.parametrize("read", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("written", KINDS.values(), ids=KINDS)
async def test_changes_of_different_secrets_cross(tmp_path: Path, read: Capabilities, written: Capabilities) -> None:
    async with two(tmp_path, read, written) as both:
        await both.agree(a="1", b="2")
        both["source"].put("a", "from the source")
        both["target"].put("b", "from the target")
        both["source"].put("c", "new in the source")
        both["target"].put("d", "new in the target")
        await both.sync()
        expected = {"a": "from the source", "b": "from the target", "c": "new in the source", "d": "new in the target"}
        assert both.values() == {name: {"value": value} for name, value in expected.items()}
        await both.quiet()


@every_kind
async def test_the_same_change_on_both_sides_is_noted_and_written_nowhere(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both.give("a", "2")
        await both.sync()
        assert both.writes == {"source": [], "target": []}
        assert await both.told("conflict") == []
        # What was noted is the base from then on: a change of one side alone is no conflict.
        both["target"].put("a", "3")
        await both.sync()
        assert both.values() == {"a": {"value": "3"}}
        assert await both.told("conflict") == []
        await both.quiet()


@every_kind
@either_side
async def test_a_value_that_is_as_it_was_before_is_no_change(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both[here].put("a", "wrong")
        both[here].put("a", "1")
        both.other(here).put("a", "2")
        await both.sync()
        assert both.values() == {"a": {"value": "2"}}
        assert await both.listed() == set()


# conflicts


async def contend(both: Two, first: str, *, apart: float = 600) -> None:
    """Both sides change `a`: `first` and, so many seconds later, the other one."""
    await both.agree(a="1", calm="c")
    both[first].put("a", f"of {first}")
    both.w.clock.advance(seconds=apart)
    later = "target" if first == "source" else "source"
    both[later].put("a", f"of {later}")


async def assert_recorded(both: Two, taken: str | None, *values: str) -> dict[str, Any]:
    """One conflict is on record, with what all sides held."""
    (detail,) = await both.told("conflict", "a")
    assert detail["taken"] == taken
    assert {each["digest"] for each in detail["sides"]} == {digest(value) for value in values}
    for each in detail["sides"]:
        assert each["fingerprint"] or not both[each["side"]].capabilities.compare_and_set
        assert each["version"] or not both[each["side"]].capabilities.compare_and_set
    assert detail["rule"]
    assert not any(value in json.dumps(detail["sides"]) for value in values), "no value is ever told"
    return detail


@either_side
async def test_the_newest_wins_and_the_times_that_decided_are_recorded(tmp_path: Path, here: str) -> None:
    async with two(tmp_path) as both:
        await contend(both, here)
        later = both.other(here).id
        run = await both.sync()
        assert both.values()["a"] == {"value": f"of {later}"}
        assert run.conflicts == 0 or run.status is RunStatus.SUCCEEDED
        detail = await assert_recorded(both, later, "of source", "of target")
        times = {each["side"]: each["changed_at"] for each in detail["sides"]}
        assert times[later] > times[here]
        assert all(text in detail["rule"] for text in times.values()), detail["rule"]
        assert await both.listed() == set()
        await both.quiet()


@every_kind
@either_side
@pytest.mark.parametrize("policy", ["source", "target"])
async def test_the_side_that_the_policy_names_wins(tmp_path: Path, kind: Capabilities, here: str, policy: str) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy(policy)) as both:
        await contend(both, here)
        await both.sync()
        assert both.values()["a"] == {"value": f"of {policy}"}
        detail = await assert_recorded(both, policy, "of source", "of target")
        assert policy in detail["rule"]
        assert await both.listed() == set()
        await both.quiet()


@every_kind
async def test_manual_touches_nothing_and_lists_it(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        both["source"].put("calm", "moves on")
        run = await both.w.sync()
        assert run.conflicts == 1
        assert both["source"].values()["a"] == {"value": "of source"}
        assert both["target"].values()["a"] == {"value": "of target"}
        assert both["target"].values()["calm"] == {"value": "moves on"}, "a conflict holds up nothing else"
        (row,) = await both.rows(ObjectStatus.CONFLICT)
        assert (row.path, row.target) == ("a", "target")
        assert row.error
        assert row.contested is not None
        assert {(each.side, each.digest) for each in row.contested.sides} == {
            ("source", digest("of source")),
            ("target", digest("of target")),
        }
        assert row.parts[0].digest == digest("1"), "what they agreed on last is not forgotten"
        await assert_recorded(both, None, "of source", "of target")
        await both.quiet()
        assert await both.listed() == {"a"}


async def test_a_conflict_is_recorded_again_only_when_a_side_has_moved_on(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        for _ in range(3):
            await both.w.sync()
        assert len(await both.told("conflict", "a")) == 1
        both["target"].put("a", "again")
        for _ in range(3):
            await both.w.sync()
        assert len(await both.told("conflict", "a")) == 2
        assert digest("again") in json.dumps((await both.told("conflict", "a"))[1])


async def test_a_conflict_ends_when_a_person_makes_both_sides_the_same(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        both["target"].put("a", "of source")
        await both.sync()
        assert await both.listed() == set()
        assert both.writes == {"source": [], "target": []}
        both["source"].put("a", "3")
        await both.sync()
        assert both.values()["a"] == {"value": "3"}


async def test_a_conflict_ends_when_a_side_goes_back_to_what_was_agreed(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        both["target"].put("a", "1")
        await both.sync()
        assert await both.listed() == set()
        assert both.values()["a"] == {"value": "of source"}


@either_side
async def test_without_times_the_newest_is_not_guessed(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, KV1, timed=False) as both:
        await contend(both, here)
        await both.w.sync()
        (detail,) = await both.told("conflict", "a")
        assert {each["digest"] for each in detail["sides"]} == {digest("of source"), digest("of target")}
        if detail["taken"] is None:
            assert await both.listed() == {"a"}
            # The history decides once it can: whoever changed after the conflict was found is the newest.
            both[here].put("a", "after all")
            await both.sync()
        assert len({str(vault.values()["a"]) for vault in both.vaults.values()}) == 1
        assert await both.listed() == set()
        await both.quiet()


# settling by hand


@every_kind
@pytest.mark.parametrize("take", ["source", "target"])
async def test_a_person_settles_a_conflict(tmp_path: Path, kind: Capabilities, take: str) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        both.forget()
        run = await both.take("a", take)
        assert run.trigger == "resolve"
        assert both.values()["a"] == {"value": f"of {take}"}
        assert both.writes[take] == []
        assert await both.listed() == set()
        (detail,) = await both.told("resolve", "a")
        assert detail["taken"] == take
        assert {each["digest"] for each in detail["sides"]} == {digest("of source"), digest("of target")}
        (*_, last) = await both.history("a")
        assert last.direction == ("source_to_target" if take == "source" else "target_to_source")
        await both.quiet()


async def test_a_decision_lapses_when_the_value_that_would_be_lost_has_moved(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        await both.decide("a", "source")
        both["target"].put("a", "meanwhile")
        await both.w.drain()
        assert both["target"].values()["a"] == {"value": "meanwhile"}
        assert await both.listed() == {"a"}
        assert await both.told("resolve", "a") == []
        # And decided anew, it is settled.
        await both.take("a", "source")
        assert both.values()["a"] == {"value": "of source"}


@pytest.mark.parametrize(("path", "take"), [("calm", "source"), ("nowhere", "source"), ("a", "nobody")])
async def test_only_a_conflict_is_settled_and_only_for_one_of_its_sides(tmp_path: Path, path: str, take: str) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        with pytest.raises(Refused, match=take if take == "nobody" else path):
            await both.decide(path, take)


async def test_a_decision_survives_a_crash_before_its_run(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, "source")
        await both.w.sync()
        await both.decide("a", "target")
        both.w.queues.messages.clear()
        both.w.clock.advance(hours=1)
        await both.w.sync()
        await both.w.sync()
        assert both.values()["a"] == {"value": "of target"}


# --- 2. first contact ---------------------------------------------------------------------------------------------------


@every_kind
async def test_equal_values_are_adopted_at_first_contact(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        both.give("a", "1")
        await both.sync()
        assert both.writes == {"source": [], "target": []}
        assert [row.action for row in await both.history()] == ["adopt"]
        await both.quiet()


@every_kind
@either_side
async def test_what_one_side_has_is_created_on_the_other(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        both[here].put("a", "1")
        run = await both.sync()
        assert run.written == 1
        assert both.values() == {"a": {"value": "1"}}
        assert both.writes[here] == []
        (row,) = await both.history()
        assert (row.action, row.direction) == (
            "create",
            "source_to_target" if here == "source" else "target_to_source",
        )
        await both.quiet()


@pytest.mark.parametrize("policy", list(ConflictPolicy))
async def test_different_values_are_a_conflict_at_first_contact(tmp_path: Path, policy: ConflictPolicy) -> None:
    async with two(tmp_path, conflict=policy) as both:
        both["source"].put("a", "of source")
        both.w.clock.advance(hours=1)
        both["target"].put("a", "of target")
        await both.w.sync()
        won = {"newest": "target", "source": "source", "target": "target", "manual": None}[policy]
        await assert_recorded(both, won, "of source", "of target")
        if won:
            assert both.values() == {"a": {"value": f"of {won}"}}
        else:
            assert await both.listed() == {"a"}
            assert both.writes == {"source": [], "target": []}
        await both.quiet()


async def test_a_lost_store_is_first_contact_and_deletes_nothing(tmp_path: Path) -> None:
    async with two(tmp_path, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2")
        both["source"].remove("a")
        (tmp_path / "anew").mkdir()
        vaults = list(both.vaults.values())
        async with world(tmp_path / "anew", vaults, both.w.syncs["s"]) as w:
            run = await w.sync()
        assert run.deleted == 0
        assert both.values() == {"a": {"value": "1"}, "b": {"value": "2"}}


# --- 3. deletions -------------------------------------------------------------------------------------------------------


@every_kind
@either_side
async def test_a_deletion_is_carried_where_it_may_be(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2")
        both[here].remove("a")
        run = await both.sync()
        assert run.deleted == 1
        assert both.values() == {"b": {"value": "2"}}
        (*_, last) = await both.history("a")
        assert last.action == "delete"
        assert last.direction == ("source_to_target" if here == "source" else "target_to_source")
        await both.quiet()


@every_kind
@either_side
async def test_a_deletion_is_kept_to_its_side_where_deletes_are_not_propagated(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1", b="2")
        rows = len(await both.history())
        both[here].remove("a")
        for _ in range(3):
            run = await both.sync()
            assert (run.deleted, run.written) == (0, 0)
        assert both[here].values() == {"b": {"value": "2"}}, "it is not brought back either"
        assert both.other(here).values()["a"] == {"value": "1"}
        assert len(await both.history()) == rows
        # A new value is another matter.
        both[here].put("a", "2")
        await both.sync()
        assert both.values()["a"] == {"value": "2"}


@every_kind
async def test_what_both_sides_deleted_is_forgotten(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, delete=PROPAGATE, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1", b="2")
        both["source"].remove("a")
        both["target"].remove("a")
        await both.sync()
        await both.quiet()
        both["target"].put("a", "anew")
        await both.sync()
        assert both.values()["a"] == {"value": "anew"}
        assert await both.told("conflict") == []


@every_kind
@either_side
@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("policy", list(ConflictPolicy))
async def test_deleted_here_and_changed_there_is_a_conflict(
    tmp_path: Path, kind: Capabilities, here: str, policy: ConflictPolicy, propagate: bool
) -> None:
    delete = replace(PROPAGATE, propagate=propagate)
    async with two(tmp_path, kind, conflict=policy, delete=delete) as both:
        await both.agree(a="1", b="2")
        both[here].remove("a")
        both.other(here).put("a", "changed")
        await both.w.sync(allow_deletes=True)
        await both.w.sync(allow_deletes=True)
        if policy is ConflictPolicy.MANUAL:
            assert await both.listed() == {"a"}
            assert both[here].values().get("a") is None
            assert both.other(here).values()["a"] == {"value": "changed"}
        elif policy == here and propagate:
            assert "a" not in both.values(), "only who is asked for by name wins with a deletion"
        elif policy == here:
            assert both.other(here).values()["a"] == {"value": "changed"}, "nothing is deleted that may not be"
            assert await both.listed() == {"a"}
        else:
            assert both.values()["a"] == {"value": "changed"}
        assert digest("changed") in json.dumps(await both.told("conflict", "a")), "it is on record"
        await both.quiet()


@either_side
async def test_what_was_deleted_and_brought_back_is_no_change(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, delete=PROPAGATE, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both[here].remove("a")
        both[here].restore("a")
        both.other(here).put("a", "2")
        await both.sync()
        assert both.values() == {"a": {"value": "2"}}


@every_kind
@either_side
async def test_what_is_brought_back_after_its_deletion_was_carried_comes_back_everywhere(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2")
        both[here].remove("a")
        await both.sync()
        assert both[here].restore("a")
        await both.sync()
        assert both.values() == {"a": {"value": "1"}, "b": {"value": "2"}}
        await both.quiet()


async def test_a_rename_is_a_deletion_and_a_creation(tmp_path: Path) -> None:
    async with two(tmp_path, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2")
        both["target"].remove("a")
        both["target"].put("c/new", "1")
        run = await both.sync()
        assert (run.written, run.deleted) == (1, 1)
        assert both.values() == {"b": {"value": "2"}, "c/new": {"value": "1"}}
        await both.quiet()


GUARD = DeletePolicy(propagate=True, max_percent=30, min_count=3)


async def held_back(both: Two) -> Run:
    await both.agree(**{f"n{number}": "1" for number in range(10)})
    for name in ("n0", "n1"):
        both["source"].remove(name)
    for name in ("n8", "n9"):
        both["target"].remove(name)
    both["target"].put("n5", "goes on")
    return await both.w.sync()


@every_kind
async def test_the_guard_counts_both_directions(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, delete=GUARD) as both:
        run = await held_back(both)
        assert run.status is RunStatus.BLOCKED
        assert "4" in (run.error or "")
        assert run.deleted == 0
        assert sorted(both["target"].values()) == [f"n{number}" for number in range(8)]
        assert sorted(both["source"].values()) == [f"n{number}" for number in range(2, 10)]
        assert both["source"].values()["n5"] == {"value": "goes on"}


async def test_as_many_deletes_as_the_guard_allows_are_carried(tmp_path: Path) -> None:
    async with two(tmp_path, delete=GUARD) as both:
        await both.agree(**{f"n{number}": "1" for number in range(10)})
        both["source"].remove("n0")
        for name in ("n8", "n9"):
            both["target"].remove(name)
        assert (await both.sync()).deleted == 3
        assert sorted(both.values()) == [f"n{number}" for number in range(1, 8)]


async def test_approving_carries_exactly_what_was_held_back(tmp_path: Path) -> None:
    async with two(tmp_path, delete=GUARD) as both:
        run = await held_back(both)
        both["source"].remove("n2")
        await both.w.engine.runs.approve(run.run_id)
        await both.w.drain()
        ended = await both.w.engine.runs.view(run.run_id)
        assert (ended.status, ended.deleted) == (RunStatus.SUCCEEDED, 4)
        assert sorted(both["target"].values()) == [f"n{number}" for number in range(2, 8)]
        await both.sync()
        assert sorted(both.values()) == [f"n{number}" for number in range(3, 8)]
        await both.quiet()


@either_side
async def test_what_was_brought_back_or_changed_before_the_approval_is_not_deleted(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, delete=GUARD) as both:
        run = await held_back(both)
        gone, kept = ("n0", "n1") if here == "source" else ("n8", "n9")
        both[here].put(gone, "back")
        both.other(here).put(kept, "changed meanwhile")
        await both.w.engine.runs.approve(run.run_id)
        await both.w.drain()
        assert both[here].values()[gone] == {"value": "back"}
        assert both.other(here).values()[kept] == {"value": "changed meanwhile"}
        assert both.other(here).values()[gone], "what is there again is not deleted on the other side"


async def test_all_deletes_may_be_allowed_beforehand(tmp_path: Path) -> None:
    async with two(tmp_path, delete=GUARD) as both:
        await both.agree(**{f"n{number}": "1" for number in range(10)})
        for number in range(10):
            both["source" if number % 2 else "target"].remove(f"n{number}")
        assert (await both.sync("blocked")).deleted == 0
        assert (await both.sync(allow_deletes=True)).deleted == 10
        assert both.values() == {}
        await both.quiet()


# --- 4. a hub with spokes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [(TIMED,), (KV1,), (LISTED,), (TIMED, KV1, LISTED, KV2)], ids=["kv2", "kv1", "listed", "mixed"]
)
@pytest.mark.parametrize("side", HUB)
async def test_one_change_reaches_all_sides_within_the_run(
    tmp_path: Path, side: str, kinds: tuple[Capabilities, ...]
) -> None:
    async with two(tmp_path, *kinds, names=HUB) as hub:
        await hub.agree(a="1", b="2")
        hub[side].put("a", "new")
        hub[side].put("c", "more")
        await hub.sync()
        assert hub.values() == {"a": {"value": "new"}, "b": {"value": "2"}, "c": {"value": "more"}}
        assert hub.writes == {name: [] if name == side else ["new", "more"] for name in HUB}, "each once"
        await hub.quiet()


async def test_the_same_change_on_two_spokes_is_one_change(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["one"].put("a", "new")
        hub["three"].put("a", "new")
        await hub.sync()
        assert hub.values() == {"a": {"value": "new"}}
        assert hub.writes == {"source": ["new"], "one": [], "two": ["new"], "three": []}
        assert await hub.told("conflict") == []


@pytest.mark.parametrize("sides", [("one", "two"), ("source", "three")])
async def test_two_different_changes_are_one_conflict_settled_once(tmp_path: Path, sides: tuple[str, str]) -> None:
    async with two(tmp_path, names=HUB) as hub:
        await hub.agree(a="1")
        for side in sides:
            hub[side].put("a", f"of {side}")
            hub.w.clock.advance(minutes=10)
        await hub.sync()
        assert hub.values() == {"a": {"value": f"of {sides[1]}"}}
        detail = await told_once(hub)
        assert detail["taken"] == sides[1]
        found = {each["side"]: each for each in detail["sides"]}
        for side in sides:
            assert found[side]["digest"] == digest(f"of {side}")
            assert found[side]["fingerprint"]
            assert found[side]["version"] == "2"
        await hub.quiet()


async def test_three_different_changes_are_one_conflict_with_all_values(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        for side in ("one", "two", "three"):
            hub[side].put("a", f"of {side}")
        run = await hub.w.sync()
        assert run.conflicts == 1
        detail = await told_once(hub)
        assert {digest(f"of {side}") for side in ("one", "two", "three")} <= {s["digest"] for s in detail["sides"]}
        assert await hub.listed() == {"a"}
        await hub.quiet()
        with pytest.raises(Refused, match="--target"):
            await hub.w.engine.runs.resolve("s", "a", "target")
        await hub.take("a", "two")
        assert hub.values() == {"a": {"value": "of two"}}
        assert await hub.listed() == set()
        await hub.quiet()


async def test_first_contact_of_several_sides_is_one_merge(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, conflict=ConflictPolicy.MANUAL) as hub:
        hub["one"].put("only one", "1")
        hub.give("all", "1")
        hub["source"].put("some", "1")
        hub["two"].put("some", "1")
        hub["one"].put("differs", "1")
        hub["two"].put("differs", "2")
        await hub.w.sync()
        assert await hub.listed() == {"differs"}
        for side in HUB:
            assert {"only one", "all", "some"} <= set(hub[side].values())
        assert hub.writes["source"] == ["1"]


async def test_a_deletion_on_a_spoke_is_carried_to_all(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="2")
        hub["two"].remove("a")
        await hub.sync()
        assert hub.values() == {"b": {"value": "2"}}
        await hub.quiet()


async def test_the_guard_counts_a_secret_once_however_many_spokes_there_are(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, delete=GUARD) as hub:
        await hub.agree(**{f"n{number}": "1" for number in range(10)})
        for name in ("n0", "n1"):
            hub["two"].remove(name)
        await hub.sync()
        assert sorted(hub.values()) == [f"n{number}" for number in range(2, 10)]


DOWN: dict[str, Callable[[], Exception]] = {
    "down": lambda: Unavailable("no answer", vault="two"),
    "denied": lambda: AccessDenied("no", vault="two"),
    "unmounted": lambda: MountNotFound("no such engine", vault="two"),
}
HASTY = RetryPolicy(max_retries=1)


@pytest.mark.parametrize("error", DOWN.values(), ids=DOWN)
async def test_a_spoke_that_does_not_answer_holds_up_no_other_and_catches_up(
    tmp_path: Path, error: Callable[[], Any]
) -> None:
    async with two(tmp_path, names=HUB, retry_policy=HASTY, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="2", c="3")
        hub["two"].faults.always = error()
        hub["one"].put("a", "new")
        hub["source"].put("b", "new too")
        hub["source"].remove("c")
        run = await hub.w.sync()
        assert run.status is not RunStatus.SUCCEEDED
        plan = await read_plan(hub.w.store, (await hub.w.sync(dry_run=True)).run_id)
        assert plan is not None
        assert plan["unseen"] == {"two": f"left out: {error().message}"}
        for side in ("source", "one", "three"):
            assert {name: hub[side].values()[name] for name in "ab"} == {
                "a": {"value": "new"},
                "b": {"value": "new too"},
            }
        hub["two"].faults.always = None
        await hub.w.sync()
        assert {name: hub["two"].values()[name] for name in "ab"} == {"a": {"value": "new"}, "b": {"value": "new too"}}
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "new"}, "b": {"value": "new too"}}
        assert await hub.rows(ObjectStatus.FAILED) == []
        await hub.quiet()


async def test_what_a_dead_spoke_changed_meanwhile_is_a_conflict_and_not_lost(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, retry_policy=HASTY, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["two"].faults.always = Unavailable("no answer", vault="two")
        hub["one"].put("a", "new")
        hub["two"].put("a", "of two")
        await hub.w.sync()
        hub["two"].faults.always = None
        await hub.w.sync()
        assert hub["two"].values() == {"a": {"value": "of two"}}
        assert await hub.listed() == {"a"}
        detail = await told_once(hub)
        assert {digest("new"), digest("of two")} <= {each["digest"] for each in detail["sides"]}


async def test_a_value_is_as_old_as_its_first_writing_not_as_its_carrying(tmp_path: Path) -> None:
    """It comes to the hub late, and the spoke that was away was edited in between, and later than the value."""
    async with two(tmp_path, names=("source", "one", "two"), retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["one"].put("a", "older")
        hub.w.clock.advance(minutes=10)
        hub["two"].put("a", "newer")
        hub.w.clock.advance(minutes=10)
        hub["two"].faults.always = Unavailable("no answer", vault="two")
        await hub.w.sync()
        hub["two"].faults.always = None
        await hub.w.sync()
        if not await hub.listed():
            assert hub.values() == {"a": {"value": "newer"}}


async def test_a_source_that_does_not_answer_changes_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, retry_policy=HASTY, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="2")
        hub["source"].faults.always = Unavailable("no answer", vault="source")
        hub["one"].put("a", "new")
        run = await hub.w.sync()
        assert run.status in (RunStatus.FAILED, RunStatus.PARTIAL)
        assert not any(hub.writes.values())
        hub["source"].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "new"}, "b": {"value": "2"}}


async def test_a_secret_that_one_spoke_can_not_store_reaches_the_others(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, retry_policy=HASTY) as hub:
        await hub.agree(a="1")
        hub["two"].faults.add("set", InvalidSecret("too large", vault="two"), times=10)
        hub["one"].put("a", "large")
        await hub.w.sync()
        for side in ("source", "one", "three"):
            assert hub[side].values() == {"a": {"value": "large"}}
        assert [row.target for row in await hub.rows(ObjectStatus.FAILED)] == ["two"]
        hub["two"].faults.queued.clear()
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "large"}}
        assert await hub.told("conflict") == []


# --- 5. clocks ----------------------------------------------------------------------------------------------------------


@either_side
@pytest.mark.parametrize("skew", [-60, 60])
async def test_a_wrong_clock_does_not_flip_what_the_state_decides(tmp_path: Path, here: str, skew: float) -> None:
    async with two(tmp_path, skew={here: skew}) as both:
        await both.agree(a="1")
        for number in range(2, 5):
            side = here if number % 2 else both.other(here).id
            both[side].put("a", str(number))
            both.w.clock.advance(seconds=1)
            await both.sync()
            assert both.values() == {"a": {"value": str(number)}}
        assert await both.told("conflict") == []


@either_side
@pytest.mark.parametrize("skew", [-60, 60])
@pytest.mark.parametrize("apart", [0, 1, 30])
async def test_times_that_clocks_can_not_tell_apart_do_not_decide(
    tmp_path: Path, here: str, skew: float, apart: float
) -> None:
    async with two(tmp_path, skew={here: skew}) as both:
        await contend(both, here, apart=apart)
        before = {side: vault.values()["a"] for side, vault in both.vaults.items()}
        await both.w.sync()
        (detail,) = await both.told("conflict", "a")
        if detail["taken"] is None:
            assert {side: vault.values()["a"] for side, vault in both.vaults.items()} == before
            assert await both.listed() == {"a"}
        else:
            assert both.values()["a"] == {"value": f"of {both.other(here).id}"}


@either_side
@pytest.mark.parametrize("skew", [-60, 60])
async def test_times_far_enough_apart_decide_whatever_the_skew(tmp_path: Path, here: str, skew: float) -> None:
    async with two(tmp_path, skew={here: skew}) as both:
        await contend(both, here, apart=180)
        await both.sync()
        assert both.values()["a"] == {"value": f"of {both.other(here).id}"}


async def test_whole_seconds_are_intervals(tmp_path: Path) -> None:
    # By the times as they stand, the source is 60.5 s ahead; but the target's second may have ended after that.
    async with two(tmp_path, TIMED, SECONDS) as both:
        await both.agree(a="1")
        both.w.clock.now = both.w.clock.now.replace(microsecond=900_000)
        both["target"].put("a", "of target")
        both.w.clock.advance(seconds=60, milliseconds=-400)
        both["source"].put("a", "of source")
        await both.w.sync()
        (detail,) = await both.told("conflict", "a")
        assert detail["taken"] is None
        assert await both.listed() == {"a"}


# --- 6. compare-and-set, and writers at the same time ---------------------------------------------------------------------


@every_kind
@either_side
async def test_a_write_without_an_answer_is_our_own_and_no_conflict(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        there.faults.add("set", Unavailable("timed out", vault=there.id, ambiguous=True), after=True)
        await both.sync()
        assert both.values() == {"a": {"value": "2"}}
        assert both.writes[there.id] == ["2"], "it is not written twice"
        assert await both.told("conflict") == []
        assert await both.listed() == set()
        await both.quiet()


@every_kind
@either_side
async def test_a_write_whose_answer_and_effect_were_lost_is_made_again(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        there.faults.add("set", Unavailable("torn", vault=there.id, ambiguous=True))
        await both.sync()
        assert both.values() == {"a": {"value": "2"}}


class Once:
    """Does something once, when a call comes by."""

    def __init__(self, side: str, operation: str, name: str, act: Callable[[], object]) -> None:
        self.wanted = (side, operation, name)
        self.act = act
        self.done = False

    async def __call__(self, side: str, operation: str, name: str) -> None:
        if (side, operation, name) == self.wanted and not self.done:
            self.done = True
            self.act()


@either_side
@pytest.mark.parametrize("when", ["get done", "describe done", "set"])
async def test_an_edit_in_the_middle_of_a_run_is_not_lost(tmp_path: Path, here: str, when: str) -> None:
    """With compare-and-set, at whatever moment it comes."""
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        both.w.clock.advance(minutes=5)
        hook = Once(there.id, when, "a", lambda: there.put("a", "in the middle"))
        there.hook = hook
        await both.w.sync()
        there.hook = None
        await both.w.sync()
        if hook.done:
            assert both.values() == {"a": {"value": "in the middle"}}
            assert digest("2") in json.dumps(await both.told("conflict")), "the value that lost is on record"
        await both.quiet()


@either_side
@pytest.mark.parametrize("kind", [KV1, LISTED], ids=["kv1", "listed"])
async def test_without_compare_and_set_an_edit_before_the_last_look_is_seen(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        looks = 0

        async def hook(side: str, operation: str, name: str) -> None:
            nonlocal looks
            if name == "a" and operation in ("get", "describe"):
                looks += 1
                if looks == 1:
                    there.put("a", "in the middle")

        # The very first look of the job: the source's or the target's, it has not yet written anything.
        run = await both.w.engine.runs.start("s", trigger="manual")
        await both.w.engine.handle(both.w.queues.messages.pop(0)[1])
        there.hook = hook
        await both.w.drain()
        there.hook = None
        await both.w.sync()
        assert (await both.w.engine.runs.view(run.run_id)).written == 0
        assert looks
        assert both[here].values() == {"a": {"value": "2"}}
        assert there.values() == {"a": {"value": "in the middle"}}
        assert await both.listed() == {"a"}


@every_kind
@either_side
async def test_an_edit_just_after_our_write_is_carried_back(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        both.w.clock.advance(minutes=5)
        there.hook = Once(there.id, "set done", "a", lambda: there.put("a", "3"))
        await both.w.sync()
        there.hook = None
        both.w.clock.advance(minutes=5)
        await both.w.sync()
        assert both.values() == {"a": {"value": "3"}}
        await both.quiet()


@every_kind
@either_side
async def test_an_edit_of_what_is_being_carried_follows(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1")
        both[here].put("a", "2")
        there = both.other(here)
        there.hook = Once(there.id, "set", "a", lambda: both[here].put("a", "3"))
        await both.w.sync()
        there.hook = None
        await both.w.sync()
        assert both.values() == {"a": {"value": "3"}}
        assert await both.told("conflict") == []
        await both.quiet()


@pytest.mark.parametrize("copies", [1, 3])
async def test_jobs_that_come_twice_do_it_once(tmp_path: Path, copies: int) -> None:
    async with two(tmp_path, names=HUB, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="2", c="3")
        hub["one"].put("a", "new")
        hub["two"].remove("b")
        await hub.w.sync(copies=copies)
        assert hub.values() == {"a": {"value": "new"}, "c": {"value": "3"}}
        assert sum(map(len, hub.writes.values())) == 3
        await hub.quiet()


# --- killed at each point -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


STORIES = ["carry", "back", "conflict", "delete", "create", "manual", "resolve"]


@pytest.mark.parametrize("kinds", [(TIMED,), (KV1,), (LISTED, TIMED, KV1)], ids=["kv2", "kv1", "mixed"])
@pytest.mark.parametrize("story", STORIES)
async def test_killed_at_any_call_it_ends_as_if_it_had_not_been(
    tmp_path: Path, kinds: tuple[Capabilities, ...], story: str
) -> None:
    at = 0
    killed = True
    while killed:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        killed = await kill_at(folder, kinds, story, at)
        assert at < 200
    assert at > 2, "it made calls"


async def kill_at(folder: Path, kinds: tuple[Capabilities, ...], story: str, at: int) -> bool:
    policy = {"conflict": ConflictPolicy.TARGET, "create": ConflictPolicy.SOURCE}.get(story, ConflictPolicy.MANUAL)
    names = ("source", "one", "two")
    async with two(folder, *kinds, names=names, conflict=policy, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="2")
        if story == "carry":
            hub["source"].put("a", "new")
        elif story == "back":
            hub["one"].put("a", "new")
        elif story == "delete":
            hub["two"].remove("a")
        elif story == "create":
            hub["one"].put("c", "new")
        else:
            hub["source"].put("a", "of source")
            hub["one"].put("a", "of one")
        if story == "resolve":
            await hub.w.sync()
            await hub.decide("a", "one")
        else:
            await hub.w.engine.runs.start("s", trigger="manual")
        killed = await deliver_until_killed(hub, at)
        hub.w.clock.advance(hours=1)
        await hub.w.drain()
        await hub.w.sync()
        calm = {"b": {"value": "2"}}
        if story in ("carry", "back"):
            assert hub.values() == {"a": {"value": "new"}, **calm}, at
        elif story == "delete":
            assert hub.values() == calm, at
        elif story == "create":
            assert hub.values() == {"a": {"value": "1"}, **calm, "c": {"value": "new"}}, at
        elif story == "manual":
            assert await hub.listed() == {"a"}, at
            assert hub["two"].values()["a"] == {"value": "1"}
        else:
            assert hub.values() == {"a": {"value": "of one"}, **calm}, at
            told = [*await hub.told("conflict"), *await hub.told("resolve")]
            lost = [each for detail in told for each in detail["sides"] if each["digest"] == digest("of source")]
            assert lost, f"killed at call {at}, and the lost value is on no record"
        if story != "manual":
            assert await hub.listed() == set(), at
        assert all(row.claim is None for row in await hub.rows())
        assert not (await hub.w.store.verify_history()).broken
        assert (await hub.w.store.get_control("s")).active_run is None
        await hub.quiet()
        return killed


async def deliver_until_killed(hub: Two, at: int) -> bool:
    """Deliver what is queued, and die at the call number `at`, before or after its effect; the message stays."""
    calls = 0

    async def hook(side: str, operation: str, name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed

    for vault in hub.vaults.values():
        vault.hook = hook
    messages = hub.w.queues.messages
    try:
        while waiting := [message for message in messages if '"job":"probe"' not in message[1]]:
            await hub.w.engine.handle(waiting[0][1])
            messages.remove(waiting[0])
    except Killed:
        # Its message stays where it is, as that of a worker who died.
        pass
    finally:
        for vault in hub.vaults.values():
            vault.hook = None
    return calls >= at


# --- 7. events ----------------------------------------------------------------------------------------------------------


@every_kind
@either_side
async def test_an_event_carries_what_changed_from_either_side(tmp_path: Path, kind: Capabilities, here: str) -> None:
    async with two(tmp_path, kind) as both:
        await both.agree(a="1", b="2")
        both[here].put("a", "new")
        await both.hear(here, "a", both[here].kept["a"].version if kind is KV2 else None)
        await both.w.drain()
        assert both.values() == {"a": {"value": "new"}, "b": {"value": "2"}}
        (*_, last) = await both.history("a")
        assert last.run_id is None
        assert last.direction == ("source_to_target" if here == "source" else "target_to_source")
        await both.quiet()


@either_side
async def test_the_echo_of_our_own_write_costs_no_call(tmp_path: Path, here: str) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both[here].put("a", "new")
        await both.hear(here, "a", 2)
        await both.w.drain()
        both.forget()
        there = both.other(here)
        await both.hear(there.id, "a", there.kept["a"].version)
        await both.hear(here, "a", 2)
        await both.w.drain()
        assert not both["source"].calls
        assert not both["target"].calls


async def test_an_event_on_a_spoke_reaches_all_and_its_echoes_cost_no_call(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB) as hub:
        await hub.agree(a="1")
        hub["two"].put("a", "new")
        await hub.hear("two", "a", 2)
        await hub.w.drain()
        assert hub.values() == {"a": {"value": "new"}}
        hub.forget()
        for side in HUB:
            await hub.hear(side, "a", hub[side].kept["a"].version)
        await hub.w.drain()
        assert not any(vault.calls for vault in hub.vaults.values())


async def test_events_that_come_twice_and_late_write_once(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both["target"].put("a", "2")
        both["target"].put("a", "3")
        for version in (3, 2, 3):
            await both.hear("target", "a", version)
        await both.w.drain(copies=2)
        assert both.values() == {"a": {"value": "3"}}
        assert both.writes == {"source": ["3"], "target": []}


@either_side
async def test_an_event_of_a_conflict_records_it_and_touches_nothing(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contend(both, here)
        for _ in range(2):
            await both.hear(here, "a", 2)
            await both.hear(both.other(here).id, "a", 2)
            await both.w.drain()
        assert await both.listed() == {"a"}
        assert len(await both.told("conflict", "a")) == 1
        assert both.writes == {"source": [], "target": []}


@either_side
async def test_an_event_of_a_new_secret_creates_it_on_the_other_side(tmp_path: Path, here: str) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both[here].put("new/one", "n")
        await both.hear(here, "new/one")
        await both.w.drain()
        assert both.values()["new/one"] == {"value": "n"}


@every_kind
@either_side
async def test_an_event_of_a_deletion_comes_to_the_same_end_as_a_run(
    tmp_path: Path, kind: Capabilities, here: str
) -> None:
    async with two(tmp_path, kind, delete=PROPAGATE) as both:
        await both.agree(**{name: name for name in "abcdefgh"})
        both[here].remove("a")
        await both.hear(here, "a")
        await both.w.drain()
        assert "a" not in both.values()
        await both.quiet()


async def test_deletes_that_events_tell_of_are_guarded_over_both_directions(tmp_path: Path) -> None:
    async with two(tmp_path, delete=GUARD) as both:
        await both.agree(**{f"n{number}": "1" for number in range(10)})
        for number in range(8):
            side = "source" if number % 2 else "target"
            both[side].remove(f"n{number}")
            await both.hear(side, f"n{number}")
            await both.w.drain()
        there = len(set(both["source"].values()) | set(both["target"].values()))
        assert there >= 10 - 3, "no more than the guard allows are gone everywhere"


async def test_an_event_of_a_spoke_with_a_prefix_and_another_name_finds_its_path(tmp_path: Path) -> None:
    target = Target("target", "target", "copy/", "{path}-x")
    async with two(tmp_path, targets=(target,), source=Source("source", "apps/")) as both:
        both["source"].put("apps/a", "1")
        await both.sync()
        assert both["target"].values() == {"copy/a-x": {"value": "1"}}
        both["target"].put("copy/a-x", "2")
        both["target"].put("copy/not ours", "n")
        both["target"].put("elsewhere/b-x", "n")
        for name in ("copy/a-x", "copy/not ours", "elsewhere/b-x"):
            await both.hear("target", name)
        await both.w.drain()
        assert both["source"].values() == {"apps/a": {"value": "2"}}


# --- never a delete -------------------------------------------------------------------------------------------------------


class Listing(MemoryVault):
    """Breaks off after so many names, as a listing does whose second page fails."""

    breaks_after: int | None = None

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        count = 0
        async for entry in super().list_secrets(prefix):
            if count == self.breaks_after:
                raise Unavailable("the second page failed", vault=self.id)
            count += 1
            yield entry


TROUBLES: dict[str, Callable[[MemoryVault], None]] = {
    "denied": lambda vault: setattr(vault.faults, "always", AccessDenied("no", vault=vault.id)),
    "unmounted": lambda vault: setattr(vault.faults, "always", MountNotFound("no such engine", vault=vault.id)),
    "expired": lambda vault: setattr(vault.faults, "always", AccessDenied("token expired", vault=vault.id)),
    "down": lambda vault: setattr(vault.faults, "always", Unavailable("down", vault=vault.id)),
    "half a listing": lambda vault: setattr(vault, "breaks_after", 1),
    "no listing": lambda vault: vault.faults.add("list", MountNotFound("gone", vault=vault.id), times=50),
    "no describing": lambda vault: vault.faults.add("describe", AccessDenied("no", vault=vault.id), times=50),
    "no reading": lambda vault: vault.faults.add("get", AccessDenied("no", vault=vault.id), times=50),
}


@pytest.mark.parametrize("kind", [KV2, KV1, LISTED], ids=["kv2", "kv1", "listed"])
@pytest.mark.parametrize("side", ["source", "one", "two"])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_no_trouble_of_a_vault_ever_leads_to_a_delete(
    tmp_path: Path, kind: Capabilities, side: str, trouble: Callable[[MemoryVault], None]
) -> None:
    clock = Clock()
    vaults = [Listing(name, kind, clock=lambda: clock.now) for name in ("source", "one", "two")]
    sync = two_way("one", "two", delete=PROPAGATE, retry_policy=HASTY)
    async with world(tmp_path, vaults, sync, clock=clock) as w:
        hub = Two(w, {vault.id: vault for vault in vaults})
        await hub.agree(a="1", b="2", c="3")
        trouble(hub[side])
        other = "one" if side == "source" else "source"
        hub[other].put("a", "new")
        for _ in range(2):
            await w.sync(allow_deletes=True)
            await hub.hear(side, "b")
            await hub.hear(other, "c")
            await w.drain()
        assert not any(vault.calls["delete"] for vault in vaults)
        for vault in vaults:
            assert set(vault.values()) == {"a", "b", "c"}
        hub[side].faults.always = None
        hub[side].faults.queued.clear()
        hub[side].breaks_after = None  # type: ignore[attr-defined]
        await w.sync()
        await w.sync()
        assert hub.values() == {"a": {"value": "new"}, "b": {"value": "2"}, "c": {"value": "3"}}
        await hub.quiet()


@either_side
async def test_an_emptied_vault_is_held_back_by_the_guard(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, delete=DeletePolicy(propagate=True)) as both:
        await both.agree(**{f"n{number}": "1" for number in range(20)})
        both[here].kept.clear()
        run = await both.w.sync()
        assert run.status is RunStatus.BLOCKED
        assert len(both.other(here).values()) == 20
        assert run.deleted == 0


# --- values and names -----------------------------------------------------------------------------------------------------

VALUES = {
    "empty": "",
    "large": "x" * 25_000,
    "newlines": "one\ntwo\r\n\n",
    "binary": "\x00\x01\x7f\u0080\ufffd\U0001f511",
    "json": '{"value": "x"}',
    "space": " ",
}


@pytest.mark.parametrize("kinds", [(KV2,), (KV1, LISTED)], ids=["kv2", "mixed"])
@either_side
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_values_arrive_letter_by_letter(
    tmp_path: Path, kinds: tuple[Capabilities, ...], here: str, value: str
) -> None:
    async with two(tmp_path, *kinds) as both:
        await both.agree(a="1")
        both[here].put("a", value)
        both[here].put("b", value)
        await both.sync()
        assert both.values() == {"a": {"value": value}, "b": {"value": value}}
        await both.quiet()


NAMES = [
    "with space/and another",
    "\u00fcml\u00e4ut/\u65e5\u672c\u8a9e/\U0001f511",
    "%2e%2e/up",
    "a%2Fb",
    "quote'\"",
    "UPPER/lower",
]


@either_side
async def test_names_arrive_letter_by_letter(tmp_path: Path, here: str) -> None:
    async with two(tmp_path, delete=PROPAGATE) as both:
        for name in NAMES:
            both[here].put(name, name)
        await both.sync()
        assert both.values() == {name: {"value": name} for name in sorted(NAMES)}
        for name in NAMES:
            both.other(here).put(name, "changed")
        await both.sync()
        assert both.values() == {name: {"value": "changed"} for name in sorted(NAMES)}
        for name in NAMES:
            both[here].remove(name)
        await both.sync(allow_deletes=True)
        assert both.values() == {}
        await both.quiet()


@either_side
async def test_names_are_carried_through_a_narrow_vault_and_back(tmp_path: Path, here: str) -> None:
    """A new secret there is found under its true path."""
    import re

    narrow = replace(LISTED, names=NameRule(re.compile("[0-9a-zA-Z-]"), 127, wording="letters, digits and -"))
    target = Target("target", "target", name_encoding=NameEncoding.REVERSIBLE)
    async with two(tmp_path, KV2, narrow, targets=(target,), delete=PROPAGATE) as both:
        names = ["plain", "a/b_c", "with space", "\u00fcml\u00e4ut"]
        for name in names:
            both["source"].put(name, name)
        await both.sync()
        encoded = {fields["value"]: name for name, fields in both["target"].values().items()}
        assert set(encoded) == set(names)
        if here == "source":
            both["source"].put("a/b_c", "changed")
        else:
            both["target"].put(encoded["a/b_c"], "changed")
        await both.sync()
        assert both["source"].values()["a/b_c"] == {"value": "changed"}
        assert both["target"].values()[encoded["a/b_c"]] == {"value": "changed"}
        # Created there by hand, under a name as the encoding would have it.
        both["source"].remove("with space")
        await both.sync(allow_deletes=True)
        assert encoded["with space"] not in both["target"].values()
        both["target"].put(encoded["with space"], "anew")
        await both.sync()
        assert both["source"].values()["with space"] == {"value": "anew"}
        await both.quiet()


# --- what changes around it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KV2, LISTED], ids=["kv2", "listed"])
async def test_another_digest_key_is_no_change(tmp_path: Path, kind: Capabilities) -> None:
    async with two(tmp_path, kind, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2", c="3", d="4")
        both.w.key = f"{KEY} and another"
        both["source"].put("a", "new")
        both["target"].put("b", "new too")
        both["target"].remove("c")
        await both.sync()
        await both.sync()
        assert both.values() == {"a": {"value": "new"}, "b": {"value": "new too"}, "d": {"value": "4"}}
        assert sum(map(len, both.writes.values())) == 2
        assert await both.told("conflict") == []
        await both.quiet()


async def test_where_only_values_tell_another_digest_key_is_a_first_contact(tmp_path: Path) -> None:
    async with two(tmp_path, KV1, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as both:
        await both.agree(a="1", b="2", c="3", d="4")
        both.w.key = f"{KEY} and another"
        both["source"].put("a", "new")
        both["target"].remove("c")
        await both.w.sync()
        assert await both.listed() >= {"a"}, "which of them is the new one can not be told"
        assert [vault.values()["a"]["value"] for vault in both.vaults.values()] == ["new", "1"]
        assert both["source"].values()["c"] == {"value": "3"}, "what may have been changed is not deleted"
        assert not any("4" in values for values in both.writes.values())
        await both.quiet()


async def test_a_new_spoke_is_brought_to_what_the_others_agreed_on(tmp_path: Path) -> None:
    async with two(tmp_path, names=("source", "one"), delete=PROPAGATE) as both:
        await both.agree(a="1", b="2")
        new = MemoryVault("two", KV2)
        new.put("b", "2")
        new.put("c", "3")
        both.vaults["two"] = new
        both.w.vaults["two"] = new
        both.w.syncs["s"] = two_way("one", "two", delete=PROPAGATE)
        await both.sync()
        assert both.values() == {"a": {"value": "1"}, "b": {"value": "2"}, "c": {"value": "3"}}
        await both.quiet()


async def test_excluded_paths_are_left_alone_on_every_side(tmp_path: Path) -> None:
    async with two(tmp_path, exclude=("private/**",), delete=PROPAGATE) as both:
        both["source"].put("private/a", "s")
        both["target"].put("private/a", "t")
        both["target"].put("private/b", "t")
        both["source"].put("b", "1")
        await both.sync()
        assert both["target"].values() == {
            "b": {"value": "1"},
            "private/a": {"value": "t"},
            "private/b": {"value": "t"},
        }
        assert both["source"].values() == {"b": {"value": "1"}, "private/a": {"value": "s"}}


async def test_a_plan_of_a_two_way_sync_writes_nothing(tmp_path: Path) -> None:
    async with two(tmp_path, names=HUB, delete=PROPAGATE, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1", b="2", c="3")
        hub["one"].put("a", "new")
        hub["source"].remove("b")
        hub["two"].put("c", "x")
        hub["three"].put("c", "y")
        rows = len(await hub.history())
        hub.forget()
        run = await hub.w.sync(dry_run=True)
        assert run.status is RunStatus.SUCCEEDED
        for vault in hub.vaults.values():
            assert not vault.writes
            assert not vault.calls["set"] + vault.calls["delete"]
        assert len(await hub.history()) == rows
        assert await hub.listed() == set()
        assert [page async for page in hub.w.store.plan_pages(run.run_id)]
