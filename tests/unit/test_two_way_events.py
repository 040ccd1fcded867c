"""Events of two-way syncs where a side is away, a name is another path's, or a version begins anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AccessDenied, ConfigError, Unavailable
from shared.model import ConflictPolicy, DeletePolicy, ObjectStatus, RetryPolicy, Secret, Target
from shared.notices import AuditNotice
from shared.vault import NameRule
from tests.memory_vault import MemoryVault
from tests.unit.test_two_way import LISTED, PROPAGATE, TIMED, Two, two
from tests.world import Clock, OpenedVaults, one_way, two_way, world

SPOKES = ("source", "one", "two")
GUARD = DeletePolicy(propagate=True, max_percent=25, min_count=2)
DOWN = Unavailable("down", vault="two")


def statuses(rows: list[Any]) -> dict[str, str]:
    return {row.target: str(row.status) for row in rows}


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


@pytest.mark.parametrize("kind", [two_way, one_way])
async def test_what_waits_for_an_approval_does_not_trickle_away(tmp_path: Path, kind: Any) -> None:
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
        for _ in range(3):
            clock.advance(minutes=11)
            for number in range(12):
                await w.engine.events.take([AuditNotice("source/", f"n{number:02}")])
                await w.drain()
        assert len(vaults[1].values()) == 20
        last = (await w.store.get_control("s")).last_run
        await w.engine.runs.approve(last)
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


async def test_a_conflict_stays_listed_while_the_source_is_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = MemoryVault.get_secret

    async def unless_disabled(self: MemoryVault, name: str) -> Secret:
        if name in self.kept and not self.kept[name].enabled:
            raise AccessDenied("disabled", vault=self.id, path=name)
        return await get(self, name)

    monkeypatch.setattr(MemoryVault, "get_secret", unless_disabled)
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


def _saved(state: Any, status: ObjectStatus) -> Any:
    from shared.history import Save

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
