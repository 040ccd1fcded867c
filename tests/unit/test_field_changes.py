"""What a plan tells of a change beside its kind: which fields, by name, and what only a look at the values shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrage import x25519

from shared.engine.document import read_plan
from shared.engine.field_changes import MOST_FIELDS, field_changes, trace
from shared.errors import AccessDenied, Unavailable
from shared.mapping import Digester
from shared.model import DeletePolicy, Granularity, OnExisting, RunStatus, Sync, Target
from shared.plan import FieldChanges
from shared.rules import Encrypt, FieldRules, JsonPick
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import KEY, World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
TAGGED = Capabilities(FingerprintCost.LISTED, tags=True)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=4)
FIELDS = st.dictionaries(st.sampled_from("abcdef"), JSON)
DIGESTER = Digester(KEY)


@given(FIELDS, FIELDS)
def test_every_field_that_differs_is_named_once(before: dict[str, Any], after: dict[str, Any]) -> None:
    found = field_changes(before, after, DIGESTER)
    assert set(found.added) == after.keys() - before.keys()
    assert set(found.removed) == before.keys() - after.keys()
    both = before.keys() & after.keys()
    # As JSON: to Python, True is 1.
    assert set(found.changed) == {name for name in both if repr(before[name]) != repr(after[name])}


def test_one_is_one_however_it_is_written() -> None:
    assert field_changes({"n": 1.0, "t": True}, {"n": 1, "t": 1}, DIGESTER) == FieldChanges(changed=("t",))


# --- in plans -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source() -> MemoryVault:
    return MemoryVault("source", KV2)


@pytest.fixture
def target() -> MemoryVault:
    return MemoryVault("target", TAGGED)


@pytest.fixture
async def w(tmp_path: Path, source: MemoryVault, target: MemoryVault) -> AsyncIterator[World]:
    async with world(tmp_path, [source, target], one_way()) as w:
        yield w


async def items(w: World, sync: Sync | None = None) -> dict[str, dict[str, Any]]:
    """The plan's items by path; a second one of a path under its path and kind."""
    if sync is not None:
        w.syncs["s"] = sync
    run = await w.sync(dry_run=True)
    assert run.status is RunStatus.SUCCEEDED
    plan = await read_plan(w.store, run.run_id)
    assert plan is not None
    found: dict[str, dict[str, Any]] = {}
    for item in plan["items"]:
        found[item["path"] if item["path"] not in found else f"{item['path']}: {item['change']}"] = item
    return found


def told(added: list[str] = [], changed: list[str] = [], removed: list[str] = []) -> dict[str, list[str]]:  # noqa: B006
    return {"added": added, "changed": changed, "removed": removed}


async def test_fields_are_told_by_name(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", {"user": "u", "password": "1", "old": "o"})
    source.put("b", {"user": "u"})
    source.put("c", "1")
    await w.sync()
    source.put("a", {"user": "u", "password": "2", "port": 5})
    target.put("b", {"user": "by hand", "more": "m"})
    source.remove("c")
    source.put("d", {"x": "1", "y": "2"})
    found = await items(w)
    assert {path: (item["change"], item["fields"]) for path, item in found.items()} == {
        "a": ("update", told(["port"], ["password"], ["old"])),
        "b": ("drift", told([], ["user"], ["more"])),
        "c": ("keep", None),
        "d": ("create", told(["x", "y"])),
    }
    assert found["c"]["reason"] == "gone from the source; kept, because delete.propagate is false"


async def test_they_are_those_that_would_be_written(w: World, source: MemoryVault) -> None:
    source.put("a", {"user": "u", "password": "1", "note": "n"})
    await w.sync()
    rules = FieldRules(exclude=("note",), rename={"user": "login"}, constants={"stage": "prod"})
    found = await items(w, one_way(Target("target", "target", fields=rules)))
    assert found["a"]["reason"] == "the mapping changed"
    assert found["a"]["fields"] == told(["login", "stage"], [], ["note", "user"])


async def test_with_granularity_field_they_are_names_on_the_target(w: World, source: MemoryVault) -> None:
    by_field = one_way(
        Target("target", "target", name="{path}-{field}", granularity=Granularity.FIELD),
        delete=DeletePolicy(propagate=True),
    )
    source.put("a", {"user": "u", "password": "1"})
    found = await items(w, by_field)
    assert (found["a"]["change"], sorted(found["a"]["names"])) == ("create", ["a-password", "a-user"])
    assert found["a"]["fields"] == told(["a-password", "a-user"])
    await w.sync()
    source.put("a", {"user": "u", "password": "2", "port": "5"} | {"user": "v"})
    source.put("b", {"user": "u"})
    found = await items(w)
    assert found["a"]["fields"] == told(["a-port"], ["a-password", "a-user"])
    source.put("a", {"user": "u"})
    assert (await items(w))["a"]["fields"] == told([], [], ["a-password"])


async def test_what_is_encrypted_on_the_way_is_encrypted_again(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    recipient = str(x25519.Identity.generate().to_public())
    sync = one_way(Target("target", "target", transform=(Encrypt((recipient,)),)))
    source.put("a", {"user": "u", "password": "1"})
    assert (await items(w, sync))["a"]["fields"] == told(["password", "user"])
    await w.sync()
    source.put("a", {"user": "u", "password": "2"})
    (item,) = (await items(w)).values()
    assert (item["reason"], item["fields"]) == ("changed in the source; encrypted again", None)
    source.put("a", {"user": "u", "password": "1"})
    (item,) = (await items(w)).values()
    assert (item["reason"], item["fields"]) == ("changed in the source; the value is the same", told())


async def test_the_same_value_is_told_as_such(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    target.put("a", "1")
    (item,) = (await items(w)).values()
    assert (item["change"], item["fields"]) == ("update", told())
    assert item["reason"] == "new here, and the same value is there already: it is adopted"
    await w.sync()
    source.put("a", "1")
    assert (await items(w))["a"]["reason"] == "changed in the source; the value is the same"


async def test_a_tombstone_is_nothing_that_is_there(tmp_path: Path, source: MemoryVault) -> None:
    target = MemoryVault("target", KV2)
    source.put("a", "1")
    target.put("a", "theirs")
    target.remove("a")
    async with world(tmp_path, [source, target], one_way()) as w:
        (item,) = (await items(w)).values()
        assert (item["change"], item["reason"]) == ("create", "new here")


@pytest.mark.parametrize(
    ("policy", "change", "why"),
    [
        (OnExisting.OVERWRITE, "update", "a secret of that name is there already"),
        (OnExisting.SKIP, "skip", "left alone (on_existing: skip)"),
        (OnExisting.FAIL, "fail", "holds something else (on_existing: fail)"),
    ],
)
async def test_what_is_there_and_not_ours(
    w: World, source: MemoryVault, target: MemoryVault, policy: OnExisting, change: str, why: str
) -> None:
    source.put("a", {"user": "u"})
    target.put("a", {"user": "theirs"})
    (item,) = (await items(w, one_way(on_existing=policy))).values()
    assert item["change"] == change
    assert why in item["reason"]
    # The run says the same.
    run = await w.sync()
    assert (run.written, run.unchanged, run.failed) == (change == "update", change == "skip", change == "fail")


async def test_what_another_sync_wrote_is_a_conflict(w: World, source: MemoryVault, target: MemoryVault) -> None:
    source.put("a", "1")
    target.put("a", "theirs")
    target.kept["a"].owner = "rival@000000000000"
    (item,) = (await items(w)).values()
    assert item["change"] == "conflict"
    assert "two syncs write it" in item["reason"]


async def test_what_was_changed_since_it_was_written_is_not_going_to_be_deleted(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    source.put("b", "1")
    source.put("c", "1")
    w.syncs["s"] = one_way(delete=DeletePolicy(propagate=True, max_percent=100))
    await w.sync()
    for name in "abc":
        source.remove(name)
    target.put("a", "theirs")
    target.remove("b")
    found = await items(w)
    assert {path: item["change"] for path, item in found.items()} == {"a": "conflict", "b": "delete", "c": "delete"}
    assert found["b"]["reason"] == "gone from the source; it is gone from the target already"
    run = await w.sync()
    assert (run.conflicts, run.deleted) == (1, 2)


async def test_old_names_that_somebody_gave_another_value_are_kept(
    w: World, source: MemoryVault, target: MemoryVault
) -> None:
    source.put("a", "1")
    await w.sync()
    target.put("a", "theirs")
    found = await items(w, one_way(Target("target", "target", prefix="x/")))
    assert (found["a"]["change"], found["a"]["names"]) == ("update", ["x/a"])
    assert (found["a: keep"]["names"], found["a: keep"]["held"]) == (["a"], False)


async def test_deletes_beyond_the_guard_are_marked_and_say_which_rule_leaves_a_path_out(
    w: World, source: MemoryVault
) -> None:
    for name in "abcd":
        source.put(name, "1")
    policy = DeletePolicy(propagate=True, min_count=1)
    await w.sync()
    found = await items(w, one_way(delete=policy, exclude=("a", "regex:[bc]")))
    assert {path: (item["reason"], item["held"]) for path, item in found.items()} == {
        "a": ("excluded by 'a'", True),
        "b": ("excluded by 'regex:[bc]'", True),
        "c": ("excluded by 'regex:[bc]'", True),
    }
    found = await items(w, one_way(delete=policy, include=("b", "c", "d")))
    assert {path: (item["reason"], item["held"]) for path, item in found.items()} == {
        "a": ("no include rule matches", False)
    }


# --- what can not be read -------------------------------------------------------------------------------------------


async def test_a_value_that_can_not_be_carried_is_told_before_anything_is_tried(w: World, source: MemoryVault) -> None:
    source.put("a", {"user": "u"})
    source.put("b", '{"x": 1}')
    pick = JsonPick("x", fields=("value",))
    found = await items(
        w, one_way(Target("target", "target", fields=FieldRules(include=("value",)), transform=(pick,)))
    )
    assert {path: item["change"] for path, item in found.items()} == {"a": "fail", "b": "create"}
    assert "no field is left of it" in found["a"]["reason"]


async def test_a_source_that_denies_a_value_is_told(w: World, source: MemoryVault) -> None:
    source.put("a", "1")
    source.faults.add("get", AccessDenied("no", vault="source", path="a"))
    (item,) = (await items(w)).values()
    assert (item["change"], item["reason"]) == ("fail", "source:a: no")


@pytest.mark.parametrize("side", ["source", "target"])
async def test_what_can_not_be_read_now_leaves_the_names_out(
    w: World, source: MemoryVault, target: MemoryVault, side: str
) -> None:
    source.put("a", "1")
    await w.sync()
    source.put("a", "2")
    vault = source if side == "source" else target
    vault.faults.add("get", Unavailable("busy", vault=side), times=100)
    (item,) = (await items(w)).values()
    assert (item["change"], item["fields"]) == ("update", None)


async def test_a_vault_that_stays_silent_is_not_asked_a_thousand_times(w: World, source: MemoryVault) -> None:
    for n in range(300):
        source.put(f"s{n}", "1")
    source.faults.add("get", Unavailable("busy", vault="source"), times=10_000)
    found = await items(w)
    assert {item["change"] for item in found.values()} == {"create"}
    # A few quick tries each, for as many as are asked at once.
    assert source.calls["get"] < 300


async def test_of_very_many_fields_their_number_is_told(w: World, source: MemoryVault) -> None:
    source.put("a", {f"f{n}": str(n) for n in range(MOST_FIELDS + 1)})
    (item,) = (await items(w)).values()
    assert (item["reason"], item["fields"]) == (f"new here; {MOST_FIELDS + 1} fields change", None)


def test_what_is_kept_of_a_look_tells_nothing_without_the_digest_key() -> None:
    """A fingerprint may be an ETag that a server made of the value alone."""
    kept = [trace(Digester(key * 32), "etag-of-a-weak-value", "7", "digest") for key in "ab"]
    assert kept[0].version == kept[1].version == "7"
    assert kept[0].fingerprint != kept[1].fingerprint
    assert kept[0].digest != kept[1].digest
    assert kept[0] == trace(Digester("a" * 32), "etag-of-a-weak-value", "7", "digest")


@pytest.mark.parametrize("fields", [True, False], ids=["fields", "one string"])
async def test_a_value_that_the_target_does_not_store_is_told_before_it_fails(
    tmp_path: Path, source: MemoryVault, fields: bool
) -> None:
    small = MemoryVault("target", Capabilities(FingerprintCost.LISTED, fields=fields, max_bytes=50))
    source.put("fits", "x" * 38)
    source.put("large", "x" * 51)
    async with world(tmp_path, [source, small], one_way()) as w:
        found = await items(w)
    assert found["fits"]["change"] == "create"
    assert found["large"]["change"] == "fail"
    size = 63 if fields else 51
    assert found["large"]["reason"] == f"its value takes {size} bytes; the vault 'target' stores at most 50"
