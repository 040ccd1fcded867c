"""Pure: what is remembered of a conflict of a two-way sync, and how that is told from what its sides hold now.

All rows of a path tell of the same conflict. It is *listed* as long as nothing has come of it, and waits for all that are a
party to it, or for a person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shared.history import Save
from shared.model import Contested, ObjectState, ObjectStatus, Sight


@dataclass(frozen=True, slots=True)
class Held:
    """What one side holds: a digest (None: nothing), and what tells it from the next value."""

    digest: str | None = None
    fingerprint: str | None = None
    version: str | None = None


def contested_of(rows: Iterable[ObjectState]) -> Contested | None:
    """The conflict that a path's rows tell of: they all tell of the same one. Rows that have failed since come last, but
    what a person has decided is kept in them too."""
    told = [row for row in rows if row.contested is not None]
    return min(told, key=lambda row: row.status is not ObjectStatus.CONFLICT).contested if told else None


def is_listed(row: ObjectState) -> bool:
    """Whether a row is of a conflict that nothing has come of yet, decided or not."""
    return row.status is ObjectStatus.CONFLICT and row.contested is not None and row.contested.taken is None


def failed_status(row: ObjectState) -> ObjectStatus:
    """What a failure makes of a row: what is listed for a person stays listed."""
    return ObjectStatus.CONFLICT if is_listed(row) else ObjectStatus.FAILED


def listed_in(rows: Iterable[ObjectState]) -> list[str]:
    """The targets in a conflict that nothing has come of yet."""
    return [row.target for row in rows if is_listed(row)]


def has_moved(sight: Sight, held: Held) -> bool:
    """Whether a side is not any more as it was seen."""
    if (sight.digest is None) is not (held.digest is None):
        return True
    if sight.digest == held.digest and None not in (sight.version, held.version):
        # A tag changes a fingerprint, too, and no value.
        return sight.version != held.version
    if sight.fingerprint is not None and held.fingerprint is not None:
        return sight.fingerprint != held.fingerprint
    return sight.digest != held.digest


def same_sights(before: Iterable[Sight], now: Iterable[Sight]) -> bool:
    """Whether all that is seen now was seen before."""
    known = {sight.side: sight for sight in before}
    return all(sight.side in known and not has_moved(known[sight.side], _held(sight)) for sight in now)


def are_told(contested: Contested, lost: Sequence[Sight]) -> bool:
    """Whether what is lost is on record already as what lost: then all that has moved is what was taken, or was given it."""
    won = contested.sight(contested.taken)
    return same_sights(contested.sides, lost) and all(sight.digest != (won and won.digest) for sight in lost)


def listed_anew(before: Contested | None, seen: tuple[Sight, ...], here: Collection[str]) -> Contested:
    """A conflict of what the sides hold now. As long as a party is away (not `here`), it is kept which of the others have
    changed since it was found: when that is back, what this sync has seen itself still says which is the newest. A
    decision by hand stays where all that has moved is the side that was taken."""
    if before is None:
        return Contested(seen)
    moved = {now.side for now in seen if (was := before.sight(now.side)) is not None and has_moved(was, _held(now))}
    again = {*before.again, *moved} if any(sight.side not in here for sight in seen) else set()
    new = any(before.sight(now.side) is None for now in seen)
    gone = any(now.side == before.take and now.side in moved and now.digest is None for now in seen)
    stays = not new and not gone and moved <= {before.take}
    return Contested(seen, before.take if stays else None, again=tuple(sorted(again)))


def one_account(
    saves: Iterable[Save], before: Iterable[ObjectState], held: Mapping[str, Held], seen: tuple[Sight, ...]
) -> list[Save]:
    """Saves of a path's rows that all tell the same of one conflict: what its sides held when it was listed last. Once it
    was settled, that is the value that was taken, for those who have it: what they do with that later is another change."""
    listed = contested_of(row for row in before if is_listed(row))
    if listed is not None and not same_sights(listed.sides, seen):
        listed = listed_anew(listed, seen, held)

    def now(sight: Sight, won: Sight | None) -> Sight:
        has = held.get(sight.side)
        if has is None or won is None or has.digest != won.digest:
            return sight
        return replace(sight, fingerprint=has.fingerprint, version=has.version, digest=has.digest)

    def told(row: ObjectState) -> ObjectState:
        if row.contested is None:
            return row
        if is_listed(row):
            return replace(row, contested=listed or row.contested)
        won = row.contested.sight(row.contested.taken)
        sides = tuple(now(sight, won) for sight in row.contested.sides)
        return replace(row, contested=replace(row.contested, sides=sides))

    return [replace(save, state=told(save.state)) for save in saves]


def _held(sight: Sight) -> Held:
    return Held(sight.digest, sight.fingerprint, sight.version)
