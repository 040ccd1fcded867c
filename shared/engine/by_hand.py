"""Pure: what a person's decision about a conflict of a two-way sync means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shared.errors import Refused
from shared.mapping import why_left_out
from shared.model import SOURCE_SIDE, ObjectState, ObjectStatus, Sight, Sync

RESOLVE = "resolve"
"""The trigger of a run that carries a decision out."""


def unsettled(rows: Sequence[ObjectState]) -> list[ObjectState]:
    """Those of a path's rows that tell of its conflict."""
    return [row for row in rows if row.status is ObjectStatus.CONFLICT and row.contested is not None]


def taken_side(sync: Sync, path: str, rows: Sequence[ObjectState], take: str, target: str | None) -> str:
    """The side that all others get the value of: `source`, or the id of a target. `rows` are the path's, `take` is `source`
    or `target`, and `target` says which, where several are in question. Raises Refused."""
    if not sync.two_way:
        raise Refused(_one_way(sync, path, rows))
    if target is not None and sync.target(target) is None:
        known = ", ".join(each.id for each in sync.targets)
        raise Refused(f"sync {sync.id!r} has no target {target!r}; there are: {known}", unknown=True)
    if not unsettled(rows):
        if any(row.contested is not None and row.status is ObjectStatus.PENDING for row in rows):
            raise Refused(f"{path!r} of sync {sync.id!r} is being worked on this moment; try again shortly")
        raise Refused(
            f"{path!r} of sync {sync.id!r} is not in conflict; `vaultferry status {sync.id} --conflicts` lists what is"
        )
    if why := why_left_out(sync, path):
        raise Refused(f"sync {sync.id!r} does not carry {path!r} any more: {why}")
    side = _side(path, rows, take, target)
    if not sync.delete.propagate and any(sight.side == side and sight.digest is None for sight in sights_of(rows)):
        raise Refused(
            f"{side} had deleted {path!r}, and sync {sync.id!r} deletes nothing (delete.propagate is false): take another "
            "side, or delete it by hand on the others"
        )
    return side


def _side(path: str, rows: Sequence[ObjectState], take: str, target: str | None) -> str:
    if take == SOURCE_SIDE:
        return SOURCE_SIDE
    differing = differing_targets(rows)
    if target is not None:
        if target not in differing:
            raise Refused(
                f"{target!r} held nothing of its own in the conflict of {path!r}; take {_which(differing)}, or the source"
            )
        return target
    if len(set(differing.values())) == 1:
        # Whoever holds the same value does as well as any other.
        return next(iter(differing))
    raise Refused(f"{path!r} is in conflict in several targets; say which to take: {_which(differing)}")


def differing_targets(rows: Sequence[ObjectState]) -> dict[str, str | None]:
    """The targets in conflict that held another value than the source when it was found, with the digests of those."""
    parties = {row.target for row in unsettled(rows)}
    sights = {sight.side: sight for sight in sights_of(rows)}
    source = sights.pop(SOURCE_SIDE).digest if SOURCE_SIDE in sights else None
    return {side: sight.digest for side, sight in sights.items() if side in parties and sight.digest != source}


def sights_of(rows: Sequence[ObjectState]) -> tuple[Sight, ...]:
    """What the sides held when the conflict was found: all rows of a path tell of the same one."""
    return next((row.contested.sides for row in unsettled(rows) if row.contested is not None), ())


def _which(targets: Iterable[str]) -> str:
    return " or ".join(f"--target {each}" for each in targets)


def _one_way(sync: Sync, path: str, rows: Sequence[ObjectState]) -> str:
    told = f"sync {sync.id!r} is one-way, so nothing is taken from a target"
    reasons = [
        f"{row.target}: {row.error}" for row in rows if row.status is ObjectStatus.CONFLICT and row.error is not None
    ]
    if not reasons:
        return f"{told}; {path!r} is not in conflict"
    return f"{told}; do what the conflict says ({'; '.join(reasons)}), then replay {path!r}"
