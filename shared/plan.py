"""Pure: what differs between a source, a target and what was remembered of both.

For each path the questions are asked in the order of their cost: what the state alone decides (`first_look`), then what
fingerprints tell (`compare`). The answers are hints for the writer, which looks again before anything irreversible.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.model import DeletePolicy, Entry, ObjectState, ObjectStatus, Op


class ChangeKind(enum.StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DRIFT = "drift"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    KEEP = "keep"
    """Gone from the source, or no longer covered, and left in the target all the same."""
    SKIP = "skip"
    FAIL = "fail"
    CONFLICT = "conflict"
    """Two-way: several sides changed, and nothing decides between them."""
    MERGE = "merge"
    """Two-way: to be settled by looking at all sides. A plan for a person says what comes of it instead."""

    @property
    def sign(self) -> str:
        return {"create": "+", "update": "~", "drift": "~", "delete": "-", "fail": "!", "conflict": "!"}.get(self, " ")

    @property
    def op(self) -> Op | None:
        """What a write job is asked for; None: nothing is to be done."""
        return {
            ChangeKind.CREATE: Op.CREATE,
            ChangeKind.UPDATE: Op.UPDATE,
            ChangeKind.DRIFT: Op.REPAIR,
            ChangeKind.DELETE: Op.DELETE,
            ChangeKind.MERGE: Op.MERGE,
        }.get(self)


@dataclass(frozen=True, slots=True)
class FieldChanges:
    """Which fields of a secret change, by their names."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """What a name held when it was looked at, as far as it takes to tell that it holds another value now."""

    fingerprint: str | None = None
    """A hash of it; None: the vault does not tell."""
    version: str | None = None
    digest: str | None = None
    """A hash of the keyed digest; None: the value was not read."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What a change rests on: both sides as they were when it was planned. None: there was nothing."""

    source: Trace | None = None
    target: Mapping[str, Trace | None] = field(default_factory=dict)
    """By name."""


@dataclass(frozen=True, slots=True)
class Change:
    """What shall happen to one path on one target, and why."""

    path: str
    kind: ChangeKind
    reason: str
    names: tuple[str, ...] = ()
    fields: FieldChanges | None = None
    """Told in a plan for a person alone, and only where both values can be read."""
    side: str = ""
    """Two-way: the side that would be written: `source`, or a target's id."""
    basis: Basis | None = None
    """In a plan for a person, where both sides could be looked at: so that exactly this can be carried out later."""


UNCHANGED = "nothing changed"


def first_look(
    path: str,
    entry: Entry,
    state: ObjectState | None,
    names: Sequence[str] | None,
    recipe: str,
    listed: Mapping[str, Entry] | None,
) -> Change | None:
    """What can be decided without asking anybody; None: fingerprints must tell.

    `names` are the target names, None where only the value tells; `listed` is the target's listing by name key already
    narrowed to this path's names (None: not listed).
    """
    shown = tuple(names or ())
    if not entry.enabled:
        return Change(path, ChangeKind.SKIP, "disabled in the source: left as it is", shown)
    if state is None or state.status is ObjectStatus.DELETED or not state.parts:
        if listed is None or names is None:
            return Change(path, ChangeKind.UPDATE, "new here", shown)
        if listed:
            return Change(path, ChangeKind.UPDATE, "new here, and a secret of that name is there already", shown)
        return Change(path, ChangeKind.CREATE, "new here", shown)
    if state.recipe != recipe:
        return Change(path, ChangeKind.UPDATE, "the mapping changed", shown)
    if state.status in (ObjectStatus.PENDING, ObjectStatus.FAILED, ObjectStatus.CONFLICT):
        # What was left half-way may or may not have been written: the writer looks before it writes.
        return Change(path, ChangeKind.DRIFT, f"{state.status} since the last run", shown)
    return None


def compare(
    path: str,
    state: ObjectState,
    source_fingerprint: str | None,
    target_fingerprints: Mapping[str, str | None] | None,
) -> Change:
    """What the fingerprints say. `target_fingerprints`: the names that are there now (None: targets are not verified)."""
    names = tuple(part.name for part in state.parts)
    if source_fingerprint is None or source_fingerprint != state.source_fingerprint:
        return Change(path, ChangeKind.UPDATE, "changed in the source", names)
    if target_fingerprints is not None:
        for part in state.parts:
            if part.name not in target_fingerprints:
                return Change(path, ChangeKind.DRIFT, f"{part.name!r} is missing in the target", names)
            if part.fingerprint is None or target_fingerprints[part.name] != part.fingerprint:
                return Change(path, ChangeKind.DRIFT, f"{part.name!r} was changed in the target", names)
    return Change(path, ChangeKind.UNCHANGED, UNCHANGED, names)


def gone(state: ObjectState, left_out: str | None, policy: DeletePolicy) -> Change | None:
    """What becomes of a remembered path that the source no longer has, or the sync no longer covers (`left_out`)."""
    if state.status is ObjectStatus.DELETED:
        return None
    names = tuple(part.name for part in state.parts if part.owned)
    why = left_out or "gone from the source"
    if not names:
        return Change(state.path, ChangeKind.KEEP, f"{why}; kept, because this sync did not write it")
    if not policy.propagate:
        return Change(state.path, ChangeKind.KEEP, f"{why}; kept, because delete.propagate is false", names)
    return Change(state.path, ChangeKind.DELETE, why, names)


def has_moved(before: Trace | None, now: Trace | None) -> bool:
    """Whether a name holds another value than before. What can not be told has."""
    if before is None or now is None:
        return before is not now
    if before.fingerprint is not None and now.fingerprint is not None:
        return before.fingerprint != now.fingerprint
    # A young secret has no fingerprint yet.
    return before.digest is None or before.digest != now.digest


def leftovers(state: ObjectState, names: Sequence[str]) -> tuple[str, ...]:
    """Names that this sync wrote and the mapping no longer yields."""
    return tuple(part.name for part in state.parts if part.owned and part.name not in names)


def guard(policy: DeletePolicy, owned: int, deletes: int) -> str | None:
    """Why this many deletes need somebody's approval; None: they do not."""
    if deletes <= policy.min_count or deletes * 100 <= policy.max_percent * owned:
        return None
    return (
        f"{deletes} of the {owned} secrets that this sync wrote there would be deleted: "
        f"more than delete.max_percent ({policy.max_percent:g} %) and delete.min_count ({policy.min_count})"
    )
