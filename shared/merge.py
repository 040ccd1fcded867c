"""Pure: what becomes of one path of a two-way sync, from what its sides hold and what each last agreed on with the source.

The source and its targets are *sides*. A target's *base* is what it and the source last had in common; a side without a
secret holds None, and so does a base that never was. That makes first contact, deletion and restoration the same question
as an edit: who moved away from the base, and do those who moved agree?

- A target that holds its base has nothing to say. One that does not has *changed*.
- The source has changed in the eyes of a target whose base it does not hold.
- One distinct changed value is carried to all other sides. Several are a conflict, settled once for all sides.

The source's change counts against a target's only where it is news to that target: a target that was edited after it had
taken the source's value knows it already, however far other targets lag behind.

Values are compared by tokens (`str`), equal for equal secrets: digests where values were read, and fingerprints of what
did not change where they were not.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared.model import SOURCE_SIDE, ConflictPolicy, iso

SKEW = timedelta(seconds=60)
"""What the clocks of two vaults may differ by: times that are closer to each other decide nothing."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one side holds of a path now, and held before."""

    id: str
    """`source`, or a target's id."""
    value: str | None
    """A token of what it holds; None: nothing."""
    base: str | None = None
    """Of a target: a token of what it and the source last agreed on; None: nothing."""
    changed_at: datetime | None = None
    """When its vault says that the value was written."""
    resolution: timedelta | None = None
    """How coarse that time is; None: the vault tells no times to be relied on."""
    moved: bool = False
    """Whether it is not as it was when a conflict of this path was listed."""
    again: bool = False
    """Whether it changed again after a conflict had been found, and that was listed anew since."""
    seen: bool = True
    """Whether it was looked at when that conflict was found: else nobody knows whether it has moved, and what was decided
    then was not decided against what it holds."""

    @property
    def changed(self) -> bool:
        return self.value != self.base


class Verdict(enum.StrEnum):
    SAME = "same"
    """All sides hold what they agreed on, or nobody holds anything: nothing is to be done."""
    NOTE = "note"
    """All sides hold one value, and that is not yet what they agreed on."""
    CARRY = "carry"
    """One value goes to all sides that hold another, or, where it is None, is deleted there."""
    CONFLICT = "conflict"
    """Nothing is touched."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What becomes of one path."""

    verdict: Verdict
    reason: str
    winner: str | None = None
    """The side whose value all get, for NOTE and CARRY."""
    value: str | None = None
    """A token of it; None: nothing, so that it is deleted."""
    contested: tuple[str, ...] = ()
    """The sides whose changes were against each other, settled or not."""

    @property
    def deletes(self) -> bool:
        return self.verdict is Verdict.CARRY and self.value is None


def merge(
    source: Side, targets: Sequence[Side], policy: ConflictPolicy, take: str | None = None, begun: str | None = None
) -> Merge:
    """What becomes of a path. `take` is the side that a person has decided for; it lapses where another has moved since.
    Where that side is not among these, nothing is decided until it is. `begun` is the side that was taken when this conflict
    was settled, and that not all others could be given yet: what is settled stays so until another moves.
    """
    sides = (source, *targets)
    changed = [target for target in targets if target.changed]
    if changed:
        competing = [source] if any(source.value != target.base for target in changed) else []
        competing += changed
    elif any(source.value != target.base for target in targets):
        competing = [source]
    else:
        return Merge(Verdict.SAME, "nothing changed")
    # Whoever holds the source's value too is no party of its own: the source speaks for it.
    parties = [side for at, side in enumerate(competing) if side.value not in {one.value for one in competing[:at]}]
    begun_with = _begun(sides, competing, begun)
    taken = _taken(sides, competing, take)
    if len(parties) == 1 and (begun_with is None or begun_with.value == parties[0].value):
        first = all(target.base is None for target in targets)
        carried = _carry(parties[0], sides, _why(parties[0], competing, first))
        # A person's word stands where one of those that it was about does not answer.
        if taken is None or carried.verdict is Verdict.NOTE:
            return carried
    contested = tuple(side.id for side in competing)
    settled = taken or _decide(sides, parties, competing, policy, begun_with)
    if isinstance(settled, str):
        return Merge(Verdict.CONFLICT, settled, contested=contested)
    winner, why = settled
    return replace(_carry(winner, sides, why), contested=contested)


def _carry(winner: Side, sides: Sequence[Side], why: str) -> Merge:
    agreed = all(side.value == winner.value for side in sides)
    return Merge(Verdict.NOTE if agreed else Verdict.CARRY, why, winner.id, winner.value)


def _why(winner: Side, competing: Sequence[Side], first: bool) -> str:
    """`first`: no target has anything in common with the source yet."""
    where = "in the source" if winner.id == SOURCE_SIDE else f"in {winner.id}"
    if len(competing) > 1:
        return "the same on several sides" if first else "changed in the same way on several sides"
    if winner.value is None:
        return f"gone {where}"
    return f"new {where}" if first else f"changed {where}"


def _begun(sides: Sequence[Side], competing: Sequence[Side], begun: str | None) -> Side | None:
    """The side that all are still to be given; None: there is none, or another has changed since. What was not written yet
    may be the only one that differs from its base: that is what lost, and no change."""
    side = next((side for side in sides if side.id == begun), None)
    return None if side is None or _has_lapsed(side, competing) else side


def _has_lapsed(chosen: Side | None, competing: Sequence[Side]) -> bool:
    """Whether what was decided for this side was not decided against what the others hold now."""
    if chosen is not None and chosen.value is None and chosen.moved:
        # A deletion of what was taken is another matter than what was settled.
        return True
    others = [side for side in competing if chosen is None or side.value != chosen.value]
    return any(side.moved or not side.seen for side in others)


def _taken(sides: Sequence[Side], competing: Sequence[Side], take: str | None) -> tuple[Side, str] | str | None:
    """The side that a person has decided for, or why it is waited for; None: nobody has, or that has lapsed."""
    chosen = next((side for side in sides if side.id == take), None)
    if take is None or _has_lapsed(chosen, competing):
        return None
    if chosen is None:
        return f"{take} was taken by hand, and does not answer"
    return chosen, f"{_called(chosen)} was taken by hand"


def _decide(
    sides: Sequence[Side],
    parties: Sequence[Side],
    competing: Sequence[Side],
    policy: ConflictPolicy,
    begun: Side | None,
) -> tuple[Side, str] | str:
    """The side that wins, and by which rule; or why none does."""
    if begun is not None:
        return begun, f"{_called(begun)} was taken when this was settled, and not all sides had it yet"
    match policy:
        case ConflictPolicy.SOURCE:
            if parties[0].id == SOURCE_SIDE:
                # Who was changed on top of the source's value is against others only, and speaks for it.
                later = [side for side in competing if side.changed and side.base == parties[0].value]
                if len({side.value for side in later}) > 1:
                    return "changed differently in several targets on top of the source's value (conflict: source)"
                if later:
                    return later[0], f"{later[0].id} wins: changed on top of the source's value (conflict: source)"
                return parties[0], "the source wins (conflict: source)"
            return "changed differently in several targets, and not in the source (conflict: source)"
        case ConflictPolicy.TARGET:
            of_targets = [side for side in parties if side.id != SOURCE_SIDE]
            if len(of_targets) == 1:
                return of_targets[0], f"{of_targets[0].id} wins (conflict: target)"
            return "changed differently in several targets (conflict: target)"
        case ConflictPolicy.MANUAL:
            return "changed on several sides (conflict: manual)"
        case ConflictPolicy.NEWEST:
            return _newest(sides, parties, competing)


def _newest(sides: Sequence[Side], parties: Sequence[Side], competing: Sequence[Side]) -> tuple[Side, str] | str:
    """Last write wins: by what this sync has seen itself, then by the vaults' clocks, as far as those can be trusted."""
    changed = [side for side in competing if side.moved or side.again]
    moved = [side for side in parties if any(each.value == side.value for each in changed)]
    if len(moved) == 1 and moved[0].value is not None and all(side.seen for side in competing):
        return moved[0], f"{_called(moved[0])} is the newest: it changed again after the conflict had been found"
    # When something was deleted, vaults do not tell. A deletion can be repeated, a lost value can not.
    living = [side for side in parties if side.value is not None]
    if len(living) == 1:
        return living[0], f"{_called(living[0])} was changed, and deleted elsewhere: a value outlives a deletion"
    times = []
    for party in living:
        # Where a value was carried to, it bears the time of its carrying: it is as old as where it is the oldest. What a
        # target holds that has missed a change since is older than all of this, and says nothing.
        holders = [
            (side.changed_at, side.resolution)
            for side in sides
            if side.value == party.value and (side in competing or side.base == sides[0].value)
        ]
        known = [(moment, coarse) for moment, coarse in holders if moment is not None and coarse is not None]
        if len(known) < len(holders):
            return f"which change is the newest can not be told: not every side tells times ({_called(party)})"
        times.append((*min(known), party))
    times.sort(key=lambda each: each[0])
    latest, _, winner = times[-1]
    before, _, other = times[-2]
    told = f"{_called(winner)} at {iso(latest)}, {_called(other)} at {iso(before)}"
    # A coarse time is the beginning of an interval.
    if all(latest - moment > SKEW + coarse for moment, coarse, _ in times[:-1]):
        return winner, f"the newest wins: {told}"
    return f"which change is the newest can not be told, for clocks may differ by {SKEW.seconds} s: {told}"


def _called(side: Side) -> str:
    return "the source" if side.id == SOURCE_SIDE else side.id
