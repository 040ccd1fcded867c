"""The comparison, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.model import DeletePolicy, Entry, ObjectState, ObjectStatus, Part
from shared.plan import ChangeKind, Trace, compare, first_look, gone, guard, has_moved, leftovers

PART = Part("n", fingerprint="t1", digest="d")
STATE = ObjectState("s", "t", "p", (PART,), source_fingerprint="s1", recipe="r", status=ObjectStatus.IN_SYNC)
ENTRY = Entry("p", fingerprint="s1")
PROPAGATE = DeletePolicy(propagate=True)


@pytest.mark.parametrize(
    ("state", "entry", "listed", "kind", "reason"),
    [
        (None, ENTRY, {}, ChangeKind.CREATE, "new here"),
        (None, ENTRY, {"n": Entry("n")}, ChangeKind.UPDATE, "is there already"),
        (None, ENTRY, None, ChangeKind.UPDATE, "new here"),
        (replace(STATE, status=ObjectStatus.DELETED, parts=()), ENTRY, {}, ChangeKind.CREATE, "new here"),
        (replace(STATE, recipe="old"), ENTRY, {}, ChangeKind.UPDATE, "the mapping changed"),
        (replace(STATE, status=ObjectStatus.PENDING), ENTRY, {}, ChangeKind.DRIFT, "pending"),
        (replace(STATE, status=ObjectStatus.FAILED), ENTRY, {}, ChangeKind.DRIFT, "failed"),
        (replace(STATE, status=ObjectStatus.CONFLICT), ENTRY, {}, ChangeKind.DRIFT, "conflict"),
        (STATE, replace(ENTRY, enabled=False), {}, ChangeKind.SKIP, "disabled"),
    ],
)
def test_what_the_state_alone_decides(
    state: ObjectState | None, entry: Entry, listed: dict[str, Entry] | None, kind: ChangeKind, reason: str
) -> None:
    change = first_look("p", entry, state, ["n"], "r", listed)
    assert change is not None
    assert change.kind is kind
    assert reason in change.reason


@pytest.mark.parametrize("status", [ObjectStatus.IN_SYNC, ObjectStatus.SKIPPED])
def test_what_was_settled_needs_fingerprints(status: ObjectStatus) -> None:
    assert first_look("p", ENTRY, replace(STATE, status=status), ["n"], "r", {}) is None


@pytest.mark.parametrize(
    ("source", "targets", "kind", "reason"),
    [
        ("s1", {"n": "t1"}, ChangeKind.UNCHANGED, "nothing"),
        ("s1", None, ChangeKind.UNCHANGED, "nothing"),
        ("s2", {"n": "t1"}, ChangeKind.UPDATE, "in the source"),
        (None, {"n": "t1"}, ChangeKind.UPDATE, "in the source"),
        ("s1", {"n": "t2"}, ChangeKind.DRIFT, "changed in the target"),
        ("s1", {"n": None}, ChangeKind.DRIFT, "changed in the target"),
        ("s1", {}, ChangeKind.DRIFT, "missing in the target"),
    ],
)
def test_what_fingerprints_say(
    source: str | None, targets: dict[str, str | None] | None, kind: ChangeKind, reason: str
) -> None:
    change = compare("p", STATE, source, targets)
    assert change.kind is kind
    assert reason in change.reason


def test_a_fingerprint_that_was_never_known_is_no_match() -> None:
    unknown = replace(STATE, source_fingerprint=None)
    assert compare("p", unknown, None, None).kind is ChangeKind.UPDATE


def test_only_what_this_sync_wrote_is_deleted_and_only_when_it_shall() -> None:
    change = gone(STATE, None, PROPAGATE)
    assert change is not None
    assert change.kind is ChangeKind.DELETE
    theirs = gone(replace(STATE, parts=(replace(PART, owned=False),)), None, PROPAGATE)
    assert theirs is not None
    assert theirs.kind is ChangeKind.KEEP
    kept = gone(STATE, "excluded by 'x'", DeletePolicy())
    assert kept is not None
    assert kept.kind is ChangeKind.KEEP
    assert "excluded by 'x'" in kept.reason
    assert gone(replace(STATE, status=ObjectStatus.DELETED), None, PROPAGATE) is None


def test_leftovers_are_owned_names_that_nobody_asks_for() -> None:
    state = replace(STATE, parts=(PART, Part("old"), Part("theirs", owned=False)))
    assert leftovers(state, ["n"]) == ("old",)


@pytest.mark.parametrize(
    ("owned", "deletes", "blocked"),
    [(100, 25, False), (100, 26, True), (4, 4, False), (10, 5, False), (10, 6, True), (0, 0, False), (5, 6, True)],
)
def test_the_guard_blocks_beyond_both_limits(owned: int, deletes: int, blocked: bool) -> None:
    assert (guard(DeletePolicy(max_percent=25, min_count=5), owned, deletes) is not None) == blocked


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        (None, None, False),
        (None, Trace("f"), True),
        (Trace("f"), None, True),
        (Trace("f", "1", "d"), Trace("f", "1", "d"), False),
        (Trace("f", "1", "d"), Trace("g", "2", "d"), True),
        (Trace("f"), Trace("f"), False),
        # A young secret has no fingerprint yet, and an old one has.
        (Trace(None, "1", "d"), Trace("f", "1", "d"), False),
        (Trace(None, "1", "d"), Trace("f", "1", "e"), True),
        (Trace("f", "1", "d"), Trace(None, "1", "d"), False),
        (Trace(), Trace(), True),
    ],
)
def test_whether_a_name_holds_another_value(before: Trace | None, now: Trace | None, moved: bool) -> None:
    assert has_moved(before, now) is moved
