"""Events of two-way syncs where a side is away, a name is another path's, or a version begins anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AccessDenied, ConfigError, Unavailable
from shared.history import Save
from shared.model import ConflictPolicy, DeletePolicy, ObjectStatus, RetryPolicy, Secret, Target
from shared.notices import AuditNotice
from shared.vault import Capabilities, NameRule
from tests.memory_vault import MemoryVault
from tests.unit.test_two_way import KV1, LISTED, PROPAGATE, TIMED, Two, two
from tests.world import Clock, OpenedVaults, one_way, two_way, world

SPOKES = ("source", "one", "two")
GUARD = DeletePolicy(propagate=True, max_percent=25, min_count=2)
DOWN = Unavailable("down", vault="two")


def statuses(rows: list[Any]) -> dict[str, str]:
    return {row.target: str(row.status) for row in rows}


async def contest(hub: Two, **values: str | None) -> None:
    """Bring `a` into a conflict of these values; None: deleted."""
    await hub.agree(a="1")
    for side, value in values.items():
        if value is None:
            hub[side].remove("a")
        else:
            hub[side].put("a", value)
    await hub.w.sync()
    assert await hub.listed() == {"a"}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["other", "precious"])
@pytest.mark.parametrize("policy", [ConflictPolicy.NEWEST, ConflictPolicy.MANUAL])
async def test_an_event_of_a_path_does_not_touch_whose_name_it_would_have(
    tmp_path: Path, policy: ConflictPolicy, value: str
) -> None:
    renamed = Target("target", "target", rename={"x": "y"})
    async with two(tmp_path, targets=(renamed,), delete=PROPAGATE, conflict=policy) as both:
        both["source"].put("x", "precious")
        await both.sync()
        both.w.clock.advance(hours=1)
        both["source"].put("y", value)
        await both.hear("source", "y")
        await both.w.drain()
        assert both["target"].values() == {"y": {"value": "precious"}}
        (row,) = [row for row in await both.rows() if row.path == "y"]
        assert row.status is ObjectStatus.FAILED
        assert "its name there is 'y', which is 'x' of the source" in str(row.error)
        both["source"].remove("y")
        for side in ("source", "target"):
            await both.hear(side, "y")
            await both.w.drain()
        assert both["source"].values() == {"x": {"value": "precious"}}
        assert both["target"].values() == {"y": {"value": "precious"}}


async def test_names_that_are_exchanged_are_carried(tmp_path: Path) -> None:
    swapped = Target("target", "target", rename={"x": "y", "y": "x"})
    async with two(tmp_path, targets=(swapped,)) as both:
        both["source"].put("x", "1")
        both["target"].put("x", "2")
        for side, name in (("source", "x"), ("target", "x")):
            await both.hear(side, name)
            await both.w.drain()
        assert both["source"].values() == {"x": {"value": "1"}, "y": {"value": "2"}}
        assert both["target"].values() == {"x": {"value": "2"}, "y": {"value": "1"}}


class AnySpelling(MemoryVault):
    """Knows a name in any case."""

    def _found(self, name: str) -> str:
        return next((each for each in self.kept if each.lower() == name.lower()), name)

    async def get_secret(self, name: str) -> Secret:
        return await super().get_secret(self._found(name))

    async def describe_secret(self, name: str) -> Any:
        return await super().describe_secret(self._found(name))

    async def set_secret(self, name: str, secret: Secret, **options: Any) -> Any:
        return await super().set_secret(self._found(name), secret, **options)

    async def delete_secret(self, name: str, **options: Any) -> None:
        await super().delete_secret(self._found(name), **options)


def spelling(folder: Path, *spokes: str) -> Any:
    clock = Clock()
    rule = replace(LISTED, names=NameRule(ignores_case=True))
    vaults: list[MemoryVault] = [AnySpelling("source", rule, clock=lambda: clock.now)]
    vaults += [MemoryVault(each, TIMED, clock=lambda: clock.now) for each in spokes]
    return world(folder, vaults, two_way(*spokes), clock=clock)


@pytest.mark.parametrize("how", ["run", "event of the source", "event of the target"])
async def test_at_first_contact_a_secret_keeps_the_spelling_of_the_vault_that_minds_it(
    tmp_path: Path, how: str
) -> None:
    async with spelling(tmp_path, "target") as w:
        source, target = w.vaults["source"], w.vaults["target"]
        source.put("DB", "same")
        target.put("db", "same")
        w.clock.advance(hours=1)
        if how != "run":
            side, name = ("source", "DB") if how == "event of the source" else ("target", "db")
            await w.engine.events.take([AuditNotice(f"{side}/", name)])
            await w.drain()
        for _ in range(2):
            assert str((await w.sync()).status) == "succeeded"
        assert (source.values(), target.values()) == ({"DB": {"value": "same"}}, {"db": {"value": "same"}})
        target.put("db", "new")
        await w.engine.events.take([AuditNotice("target/", "db", version=2)])
        await w.drain()
        assert source.values() == {"DB": {"value": "new"}}


async def test_a_run_while_the_target_is_down_fixes_no_spelling(tmp_path: Path) -> None:
    async with spelling(tmp_path, "target") as w:
        w.vaults["source"].put("DB", "same")
        w.vaults["target"].put("db", "same")
        w.vaults["target"].faults.always = Unavailable("down", vault="target")
        await w.sync()
        w.vaults["target"].faults.always = None
        assert str((await w.sync()).status) == "succeeded"
        assert statuses((await w.states()).values()) == {"target": "in_sync"}
        assert {path: str(row.status) for (_, path), row in (await w.states()).items()} == {
            "DB": "deleted",
            "db": "in_sync",
        }


async def test_only_a_new_secret_of_a_source_that_ignores_case_costs_a_listing(tmp_path: Path) -> None:
    async with spelling(tmp_path, "target") as w:
        source, target = w.vaults["source"], w.vaults["target"]
        w.syncs["s"] = two_way("target", delete=PROPAGATE)
        for number in range(3):
            source.put(f"n{number}", "1")
        await w.sync()
        source.remove("n0")
        await w.sync()

        async def listings(side: str, name: str) -> int:
            source.calls.clear()
            target.calls.clear()
            await w.engine.events.take([AuditNotice(f"{side}/", name)])
            await w.drain()
            return source.calls["list"] + target.calls["list"]

        assert await listings("target", "n0") == 0, "the echo of our own deletion"
        assert await listings("target", "never") == 0
        assert await listings("source", "n1") == 0
        source.put("new", "1")
        assert await listings("source", "new") == 1
        assert target.values()["new"] == {"value": "1"}


async def test_an_event_of_a_new_secret_does_not_wait_for_its_listing(tmp_path: Path) -> None:
    async with spelling(tmp_path, "target") as w:
        source = w.vaults["source"]

        async def nothing(prefix: str = "") -> Any:
            return
            yield

        source.put("new", "1")
        source.list_secrets = nothing
        await w.engine.events.take([AuditNotice("source/", "new")])
        await w.drain()
        assert w.vaults["target"].values() == {"new": {"value": "1"}}


async def test_spokes_that_spell_a_new_secret_differently_are_told(tmp_path: Path) -> None:
    async with spelling(tmp_path, "one", "two") as w:
        w.vaults["one"].put("db", "1")
        w.vaults["two"].put("Db", "1")
        run = await w.sync()
        assert run.failed == 1
        assert w.vaults["source"].values() == {}
        assert len({*w.vaults["one"].values(), *w.vaults["two"].values()}) == 2, "nothing is created beside another"
        errors = {state.error for state in (await w.states()).values()}
        assert any("elsewhere are one secret to the source, which ignores case" in str(error) for error in errors)


# --- deletes ----------------------------------------------------------------------------------------------------------


def _all_well(hub: Two) -> None: ...
def _denied(hub: Two) -> None:
    hub["two"].faults.always = AccessDenied("no", vault="two")


def _down(hub: Two) -> None:
    hub["two"].faults.always = DOWN


def _no_delete(hub: Two) -> None:
    hub["two"].faults.add("delete", AccessDenied("no", vault="two"), times=1000)


@pytest.mark.parametrize("spoke", [_all_well, _denied, _down, _no_delete])
async def test_deletes_are_counted_whatever_becomes_of_one_spoke(tmp_path: Path, spoke: Callable[[Two], None]) -> None:
    async with two(tmp_path, names=SPOKES, delete=GUARD) as hub:
        await hub.agree(**{f"n{number:02}": "1" for number in range(20)})
        spoke(hub)
        for number in range(20):
            hub["source"].remove(f"n{number:02}")
            await hub.hear("source", f"n{number:02}")
            await hub.w.drain()
        # A run that was begun for the sixth may delete a few of its own, before it knows of the others.
        assert len(hub["one"].values()) >= 12


@pytest.mark.parametrize("between", [None, "a replay", "a run that failed"])
@pytest.mark.parametrize("kind", [two_way, one_way])
async def test_what_waits_for_an_approval_does_not_trickle_away(tmp_path: Path, kind: Any, between: str | None) -> None:
    clock = Clock()
    vaults = [MemoryVault(each, TIMED, clock=lambda: clock.now) for each in ("source", "target")]
    async with world(tmp_path, vaults, kind("target", delete=GUARD), clock=clock) as w:
        for number in range(20):
            vaults[0].put(f"n{number:02}", "1")
        await w.sync()
        for number in range(12):
            vaults[0].remove(f"n{number:02}")
        run = await w.sync()
        assert str(run.status) == "blocked"
        if between == "a replay":
            await w.engine.runs.replay("s", "n19")
            await w.drain()
        elif between is not None:
            vaults[0].faults.always = Unavailable("down", vault="source")
            await w.sync()
            vaults[0].faults.always = None
        for _ in range(3):
            clock.advance(minutes=11)
            for number in range(12):
                await w.engine.events.take([AuditNotice("source/", f"n{number:02}")])
                await w.drain()
        assert len(vaults[1].values()) == 20
        (last, *_) = [each for each in (await w.store.list_runs("s")).items if str(each.status) == "blocked"]
        await w.engine.runs.approve(last.run_id)
        await w.drain()
        assert len(vaults[1].values()) == 8
        vaults[0].remove("n19")
        await w.engine.events.take([AuditNotice("source/", "n19")])
        await w.drain()
        assert len(vaults[1].values()) == 7, "nothing waits any more"


# --- conflicts whose parties are away -----------------------------------------------------------------------------------


def _deleted(hub: Two) -> None:
    hub["two"].remove("a")


def _edited(hub: Two) -> None:
    hub["two"].put("a", "T")


@pytest.mark.parametrize("how", ["event", "run"])
@pytest.mark.parametrize("other", [_deleted, _edited])
async def test_a_listed_conflict_touches_nothing_while_one_of_its_parties_is_away(
    tmp_path: Path, other: Callable[[Two], None], how: str
) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await hub.agree(a="1")
        other(hub)
        hub["one"].put("a", "O")
        await hub.hear("one", "a", 2)
        await hub.w.drain()
        assert await hub.listed() == {"a"}
        found = len(await hub.told("conflict"))
        hub["one"].faults.always = Unavailable("down", vault="one")
        if how == "event":
            await hub.hear("two", "a")
            await hub.w.drain()
        else:
            await hub.w.sync()
        assert hub["source"].values() == {"a": {"value": "1"}}
        assert await hub.listed() == {"a"}
        hub["one"].faults.always = None
        await hub.w.sync()
        assert await hub.listed() == {"a"}
        assert len(await hub.told("conflict")) == found, "it is the same conflict"
        await hub.take("a", "one")
        assert hub.values() == {"a": {"value": "O"}}


@pytest.mark.parametrize("names", [("source", "one"), SPOKES])
@pytest.mark.parametrize("edit", ["S2", "1"])
async def test_a_decision_that_waits_takes_what_its_side_holds_by_then(
    tmp_path: Path, edit: str, names: tuple[str, ...]
) -> None:
    async with two(tmp_path, names=names, conflict=ConflictPolicy.MANUAL) as hub:
        await contest(hub, source="S", one="O")
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.take("a", "source")
        hub["source"].put("a", edit)
        await hub.w.sync()
        hub["one"].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": edit}}


async def test_a_decision_for_a_deletion_of_long_ago_lets_none_past_the_guard(tmp_path: Path) -> None:
    names = [f"n{number:02}" for number in range(10)]
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=GUARD) as hub:
        await hub.agree(**dict.fromkeys(names, "1"))
        for name in names:
            hub["source"].remove(name)
            hub["two"].put(name, "T")
        await hub.w.sync()
        hub["two"].faults.always = AccessDenied("no", vault="two")
        for name in names:
            await hub.take(name, "source")
        assert hub["one"].values() == {}, "what was decided is done, however many there are"
        hub.w.clock.advance(days=30)
        for name in names:
            hub["source"].put(name, "NEW")
        await hub.w.sync()
        assert len(hub["one"].values()) == 10
        hub.w.clock.advance(days=30)
        for name in names:
            hub["source"].remove(name)
            await hub.hear("source", name)
            await hub.w.drain()
        assert len(hub["one"].values()) >= 5


@pytest.mark.parametrize("error", [ConfigError("no certificate"), Unavailable("down", vault="source")])
async def test_a_conflict_stays_listed_while_a_vault_can_not_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await contest(hub, one="O", two=None)
        get = OpenedVaults.get

        async def without_source(self: OpenedVaults, vault_id: str, resource: str = "secrets") -> Any:
            if vault_id == "source":
                raise error
            return await get(self, vault_id, resource)

        with monkeypatch.context() as patched:
            patched.setattr(OpenedVaults, "get", without_source)
            await hub.hear("two", "a")
            await hub.w.drain()
        assert await hub.listed() == {"a"}
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.hear("two", "a")
        await hub.w.drain()
        assert hub["source"].values() == {"a": {"value": "1"}}
        assert await hub.listed() == {"a"}


async def test_a_conflict_stays_listed_when_its_job_is_given_up(tmp_path: Path) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await contest(both, source="S", target="O")
        await both.hear("source", "a")
        await both.w.engine.give_up(both.w.queues.messages.pop(0)[1])
        assert await both.listed() == {"a"}


async def test_what_a_former_version_has_carried_out_is_not_carried_out_again(tmp_path: Path) -> None:
    async with two(tmp_path, KV1, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await contest(hub, source="S", one="O", two="T")
        then = next(row.contested for row in await hub.rows() if row.target == "one")
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.take("a", "two")
        (row,) = [row for row in await hub.rows() if row.target == "one"]
        former = replace(row, status=ObjectStatus.FAILED, contested=replace(then, take="two"))
        await hub.w.store.save_objects([Save(former)])
        hub["source"].put("a", "S")
        await hub.w.sync()
        assert hub["source"].values() == {"a": {"value": "S"}}


@pytest.mark.parametrize("names", [("source", "target"), SPOKES])
@pytest.mark.parametrize("which", [0, -1])
async def test_a_deletion_beside_a_rewrite_of_the_same_value_is_carried(
    tmp_path: Path, names: tuple[str, ...], which: int
) -> None:
    async with two(tmp_path, names=names, delete=PROPAGATE) as hub:
        await hub.agree(a="1", b="1")
        hub[names[which]].put("a", "1")
        hub[names[-1 - which]].remove("a")
        for _ in range(2):
            await hub.w.sync(allow_deletes=True)
        assert hub.values() == {"b": {"value": "1"}}


async def test_a_disabled_party_that_has_lost_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hand_out_nothing_disabled(monkeypatch)
    async with two(tmp_path, LISTED, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await contest(hub, source="S", one="O", two="T")
        hub["one"].kept["a"].enabled = False
        await hub.take("a", "two")
        run = await hub.w.sync()
        assert (await hub.listed(), run.conflicts) == (set(), 0)
        hub["one"].kept["a"].enabled = True
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "T"}}


@pytest.mark.parametrize("why", [AccessDenied("gone", vault="one"), Unavailable("gone", vault="one")])
async def test_a_decision_for_a_side_that_is_gone_waits_and_can_be_made_anew(tmp_path: Path, why: Exception) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await contest(hub, source="S", one="O")
        hub["one"].faults.always = why
        await hub.take("a", "one")
        await hub.w.sync()
        assert (await hub.listed(), hub["two"].values()) == ({"a"}, {"a": {"value": "1"}})
        await hub.take("a", "source")
        assert hub["two"].values() == {"a": {"value": "S"}}
        hub["one"].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "S"}}


async def test_a_decision_for_a_target_that_is_not_configured_any_more_is_none(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await contest(hub, one="O", two="T")
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.take("a", "one")
        hub.w.syncs["s"] = two_way("two", conflict=ConflictPolicy.MANUAL)
        await hub.w.sync()
        assert hub["source"].values() == {"a": {"value": "T"}}


def _deletes_in_the_source(hub: Two) -> None:
    hub["source"].remove("a")


def _deletes_in_two(hub: Two) -> None:
    hub["two"].remove("a")


def _puts_back(hub: Two) -> None:
    hub["source"].put("a", "S")


@pytest.mark.parametrize("kind", [TIMED, KV1])
@pytest.mark.parametrize("later", [_deletes_in_the_source, _deletes_in_two, _puts_back])
async def test_a_decision_that_was_carried_out_undoes_nothing_that_comes_later(
    tmp_path: Path, later: Callable[[Two], None], kind: Capabilities
) -> None:
    async with two(tmp_path, kind, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await contest(hub, source="S", one="O", two="T")
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.take("a", "two")
        assert hub["source"].values() == {"a": {"value": "T"}}
        hub.w.clock.advance(days=30)
        later(hub)
        wanted = hub["source"].values() if later is not _deletes_in_two else {}
        await hub.w.sync()
        await hub.w.sync()
        assert hub["source"].values() == hub["two"].values() == wanted


async def test_a_decision_of_long_ago_lets_no_deletes_past_the_guard(tmp_path: Path) -> None:
    names = [f"n{number:02}" for number in range(10)]
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=GUARD) as hub:
        await hub.agree(**dict.fromkeys(names, "1"))
        for name in names:
            hub["source"].put(name, "S")
            hub["one"].put(name, "O")
        await hub.w.sync()
        hub["one"].faults.always = Unavailable("down", vault="one")
        for name in names:
            await hub.take(name, "source")
        hub.w.clock.advance(days=30)
        for name in names:
            hub["source"].remove(name)
            await hub.hear("source", name)
            await hub.w.drain()
        assert len(hub["two"].values()) >= 5


async def test_deletes_that_are_in_conflict_block_no_run(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=GUARD) as hub:
        await hub.agree(**{f"n{number:02}": "1" for number in range(10)})
        for number in range(5):
            hub["source"].remove(f"n{number:02}")
            hub["one"].put(f"n{number:02}", "O")
        await hub.w.sync()
        hub["one"].faults.always = Unavailable("down", vault="one")
        run = await hub.w.sync()
        assert (str(run.status), run.deleted) == ("partial", 0)
        for number in range(5):
            await hub.take(f"n{number:02}", "one")
        run = await hub.w.sync()
        assert (str(run.status), run.deleted) == ("partial", 0)
        hub["source"].remove("n09")
        await hub.hear("source", "n09")
        await hub.w.drain()
        assert "n09" not in hub["two"].values(), "other deletes are carried"


@pytest.mark.parametrize("away", ["one", "two"])
async def test_an_edit_while_a_party_is_away_still_decides_when_it_is_back(tmp_path: Path, away: str) -> None:
    async with two(tmp_path, names=SPOKES, timed=False) as hub:
        await contest(hub, source="S", one="O", two="T")
        hub[away].faults.always = Unavailable("down", vault=away)
        hub["source"].put("a", "EDIT")
        await hub.w.sync()
        hub[away].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "EDIT"}}


async def test_a_person_decides_against_what_is_shown(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await contest(hub, source="S", one="O", two="T")
        hub["one"].faults.always = Unavailable("down", vault="one")
        hub["source"].put("a", "S2")
        await hub.w.sync()
        rows = await hub.rows()
        assert {sight.version for row in rows for sight in row.contested.sides if sight.side == "source"} == {"3"}
        await hub.take("a", "two")
        assert hub["source"].values() == {"a": {"value": "T"}}


async def test_what_is_there_anew_can_be_taken_though_its_deletion_may_not(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await contest(hub, source=None, one="O")
        hub["one"].faults.always = AccessDenied("gone", vault="one")
        hub["source"].put("a", "NEW")
        await hub.w.sync()
        await hub.take("a", "source")
        assert hub["two"].values() == {"a": {"value": "NEW"}}


async def test_what_a_rule_has_settled_is_not_listed(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, timed=False) as hub:
        await contest(hub, source="S", one="O")
        hub["source"].put("a", "S2")
        hub["one"].faults.add("set", AccessDenied("read-only", vault="one"), times=1000)
        await hub.w.sync()
        assert (hub["two"].values(), await hub.listed()) == ({"a": {"value": "S2"}}, set())


@pytest.mark.parametrize("retries", [0, 3])
async def test_a_failure_of_what_is_listed_is_on_record_once(tmp_path: Path, retries: int) -> None:
    policy = RetryPolicy(max_retries=retries)
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, retry_policy=policy) as hub:
        await contest(hub, source="S", one="O")
        hub["one"].faults.always = Unavailable("down", vault="one")
        for _ in range(2):
            await hub.hear("source", "a")
            await hub.w.drain()
        assert len(await hub.told("fail")) == 1


async def test_a_conflict_is_listed_and_can_be_decided_while_a_side_is_down(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "S")
        hub["one"].put("a", "O")
        await hub.hear("source", "a", 2)
        await hub.w.drain()
        hub["source"].faults.always = Unavailable("down", vault="source")
        await hub.hear("one", "a", 2)
        await hub.w.drain()
        assert await hub.listed() == {"a"}
        await hub.take("a", "one")
        hub["source"].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "O"}}


async def test_who_is_taken_by_hand_is_waited_for_though_all_others_agree(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL, delete=PROPAGATE) as hub:
        await hub.agree(a="1")
        hub["source"].remove("a")
        hub["one"].put("a", "O")
        await hub.hear("source", "a")
        await hub.w.drain()
        await hub.decide("a", "one")
        hub["one"].faults.always = Unavailable("down", vault="one")
        await hub.w.drain()
        await hub.hear("source", "a")
        await hub.w.drain()
        assert hub["two"].values() == {"a": {"value": "1"}}
        hub["one"].faults.always = None
        await hub.w.sync()
        assert hub.values() == {"a": {"value": "O"}}


async def test_a_decision_does_not_overwrite_what_was_not_seen_when_it_was_made(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["two"].faults.always = DOWN
        hub["source"].put("a", "S")
        hub["one"].put("a", "O")
        await hub.hear("source", "a", 2)
        await hub.w.drain()
        hub.w.clock.advance(hours=1)
        hub["two"].put("a", "TWO")
        hub["two"].faults.always = None
        await hub.take("a", "source")
        assert hub["two"].values() == {"a": {"value": "TWO"}}
        assert await hub.listed() == {"a"}
        await hub.take("a", "two")
        assert hub.values() == {"a": {"value": "TWO"}}


async def test_what_was_not_given_to_all_is_not_given_to_who_was_edited_unseen(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES, conflict=ConflictPolicy.MANUAL) as hub:
        await hub.agree(a="1")
        hub["two"].faults.always = DOWN
        hub["one"].faults.add("set", AccessDenied("read-only", vault="one"), times=1000)
        hub["source"].put("a", "S")
        hub["one"].put("a", "O")
        await hub.hear("source", "a", 2)
        await hub.w.drain()
        await hub.take("a", "source")
        hub.w.clock.advance(hours=1)
        hub["two"].put("a", "TWO")
        hub["two"].faults.always = None
        await hub.hear("two", "a", 2)
        await hub.w.drain()
        assert hub["two"].values() == {"a": {"value": "TWO"}}
        assert hub["source"].values() == {"a": {"value": "S"}}


async def test_an_edit_that_was_seen_is_not_newer_than_one_that_was_not(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES) as hub:
        await hub.agree(a="1")
        hub["two"].faults.always = DOWN
        hub["source"].put("a", "S")
        hub["one"].put("a", "O")
        await hub.hear("source", "a", 2)
        await hub.w.drain()
        assert await hub.listed() == {"a"}
        hub.w.clock.advance(minutes=10)
        hub["source"].put("a", "S2")
        hub.w.clock.advance(minutes=50)
        hub["two"].put("a", "TWO")
        hub["two"].faults.always = None
        await hub.hear("two", "a", 2)
        await hub.w.drain()
        assert hub.values() == {"a": {"value": "TWO"}}


async def test_a_tag_is_no_edit(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both["source"].put("a", "S")
        both.w.clock.advance(seconds=30)
        both["target"].put("a", "T")
        await both.hear("target", "a", 2)
        await both.w.drain()
        assert await both.listed() == {"a"}
        both.w.clock.advance(hours=1)
        # The fingerprint moves, and neither version nor value.
        both["source"].kept["a"].owner = "a tag"
        assert (await both.sync("failed")).conflicts == 1
        assert await both.listed() == {"a"}
        assert both["target"].values() == {"a": {"value": "T"}}


def _hand_out_nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    get = MemoryVault.get_secret

    async def unless_disabled(self: MemoryVault, name: str) -> Secret:
        if name in self.kept and not self.kept[name].enabled:
            raise AccessDenied("disabled", vault=self.id, path=name)
        return await get(self, name)

    monkeypatch.setattr(MemoryVault, "get_secret", unless_disabled)


async def test_a_conflict_stays_listed_while_the_source_is_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hand_out_nothing_disabled(monkeypatch)
    async with two(tmp_path, replace(LISTED), TIMED, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        both["source"].put("a", "S")
        both["target"].put("a", "T")
        await both.hear("target", "a", 2)
        await both.w.drain()
        assert await both.listed() == {"a"}
        both["source"].kept["a"].enabled = False
        await both.hear("target", "a", 2)
        await both.w.drain()
        assert await both.listed() == {"a"}
        both["source"].kept["a"].enabled = True
        both["target"].kept["a"].enabled = False
        assert (await both.sync("failed")).conflicts == 1
        await both.take("a", "source")
        both["target"].kept["a"].enabled = True
        await both.w.sync()
        assert both.values() == {"a": {"value": "S"}}


# --- versions -----------------------------------------------------------------------------------------------------------


class Standby(MemoryVault):
    """Shows what was there before, as long as it is behind."""

    behind: dict[str, Any]

    async def get_secret(self, name: str) -> Secret:
        kept = self.behind.get(name)
        return (
            await super().get_secret(name) if kept is None else Secret(dict(kept.fields), entry=self._entry(name, kept))
        )


@pytest.mark.parametrize("status", [ObjectStatus.IN_SYNC, ObjectStatus.FAILED, ObjectStatus.CONFLICT])
@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_a_side_that_lags_is_asked_again_however_few_retries_there_are(
    tmp_path: Path, retries: int, status: ObjectStatus
) -> None:
    clock = Clock()
    source = Standby("source", TIMED, clock=lambda: clock.now)
    source.behind = {}
    target = MemoryVault("target", TIMED, clock=lambda: clock.now)
    sync = two_way("target", retry_policy=RetryPolicy(max_retries=retries), conflict=ConflictPolicy.SOURCE)
    async with world(tmp_path, [source, target], sync, clock=clock) as w:
        source.put("a", "v1")
        old = source.kept["a"]
        await w.sync()
        source.put("a", "v2")
        await w.sync()
        (state,) = (await w.states()).values()
        await w.store.save_objects([_saved(state, status)])
        source.put("a", "v3")
        source.behind = {"a": old}
        await w.engine.events.take([AuditNotice("source/", "a", version=3 if status is ObjectStatus.IN_SYNC else None)])
        await w.engine.handle(w.queues.messages.pop(0)[1])
        assert target.values() == {"a": {"value": "v2"}}
        source.behind = {}
        await w.drain()
        assert target.values() == {"a": {"value": "v3"}}
        assert [fields["value"] for _, fields in target.writes] == ["v1", "v2", "v3"]


def _saved(state: Any, status: ObjectStatus) -> Save:
    return Save(replace(state, status=status, error=None if status is ObjectStatus.IN_SYNC else "why"))


@pytest.mark.parametrize(("here", "there"), [("source", "target"), ("target", "source")])
async def test_an_event_is_not_old_news_while_somebody_reads_versions_that_began_anew(
    tmp_path: Path, here: str, there: str
) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        for number in range(5):
            both[here].put("a", f"v{number}")
        await both.hear(here, "a", both[here].kept["a"].version)
        await both.w.drain()
        del both[here].kept["a"]
        both[here].put("a", "new 1")
        await both.hear(here, "a")
        heard: list[int] = []

        async def meanwhile(vault: str, op: str, name: str) -> None:
            if op == "set" and not heard:
                both[here].put("a", "new 2")
                heard.append(both[here].kept["a"].version)
                await both.hear(here, "a", heard[0])
                await both.w.engine.handle(both.w.queues.messages.pop()[1])

        both[there].hook = meanwhile
        await both.w.drain()
        assert heard == [2]
        assert both.values() == {"a": {"value": "new 2"}}


@pytest.mark.parametrize("wiped", ["source", "target"])
async def test_versions_that_begin_anew_are_waited_for_once_where_a_conflict_is_listed(
    tmp_path: Path, wiped: str
) -> None:
    async with two(tmp_path, conflict=ConflictPolicy.MANUAL) as both:
        await both.agree(a="1")
        for number in range(5):
            both[wiped].put("a", f"v{number}")
        await both.w.sync()
        del both[wiped].kept["a"]
        both[wiped].put("a", "anew")
        both.other(wiped).put("a", "other")
        await both.w.sync()
        assert await both.listed() == {"a"}
        both.forget()
        await both.w.sync()
        assert both["source"].calls["get"] == 1


async def test_a_row_that_is_behind_does_not_make_all_others_wait(tmp_path: Path) -> None:
    async with two(tmp_path, names=SPOKES) as hub:
        await hub.agree(a="1")
        for number in range(5):
            hub["source"].put("a", f"v{number}")
        await hub.w.sync()
        hub["two"].faults.always = AccessDenied("no", vault="two")
        await hub.w.sync()
        del hub["source"].kept["a"]
        hub["source"].put("a", "anew")
        await hub.w.sync()
        for number in range(3):
            hub.forget()
            hub["source"].put("a", f"again {number}")
            await hub.hear("source", "a", hub["source"].kept["a"].version)
            await hub.w.drain()
            assert hub["source"].calls["get"] == 1
            assert hub["one"].values() == {"a": {"value": f"again {number}"}}


async def test_a_dead_jobs_path_is_asked_for_ever_more_rarely(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        (row,) = await both.rows()
        until = both.w.clock() + timedelta(seconds=300)
        await both.w.store.save_objects([Save(replace(row, claim="dead:1", claim_expires_at=until))])
        both.w.queues.sent.clear()
        await both.hear("target", "a", 1)
        await both.w.drain()
        assert 1 < len(both.w.queues.sent) < 80


# --- configuration --------------------------------------------------------------------------------------------------------


async def test_a_spoke_that_can_not_be_connected_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path, names=SPOKES) as hub:
        await hub.agree(a="1")
        hub["source"].put("a", "2")
        await hub.hear("source", "a", 2)
        get = OpenedVaults.get

        async def without_two(self: OpenedVaults, vault_id: str, resource: str = "secrets") -> Any:
            if vault_id == "two":
                raise ConfigError("its certificate can not be read")
            return await get(self, vault_id, resource)

        monkeypatch.setattr(OpenedVaults, "get", without_two)
        await hub.w.drain()
        assert hub["one"].values() == {"a": {"value": "2"}}
        assert statuses(await hub.rows()) == {"one": "in_sync", "two": "failed"}


async def test_what_was_heard_of_a_two_way_sync_is_not_lost_when_it_becomes_one_way(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.agree(a="1")
        both["source"].put("a", "2")
        await both.hear("source", "a", 2)
        both.w.syncs["s"] = one_way("target")
        await both.w.drain()
        assert both["target"].values() == {"a": {"value": "2"}}
