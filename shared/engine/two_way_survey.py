"""What a planning of a two-way sync sees: all sides beside what they last agreed on.

It finds out for which paths something is due, from fingerprints alone, and which of those are deletes: they are counted
together, whichever side they would happen on. What exactly comes of a path is for the job that reads its values; a plan
for a person reads them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

from shared.engine.contested import is_listed
from shared.engine.field_changes import field_changes
from shared.engine.survey import UNANSWERED, SourceView
from shared.engine.tally import troubled
from shared.engine.two_way import Looks, Seat, TwoWayWork, agreed_part
from shared.errors import AccessDenied, InvalidSecret, Unavailable, VaultError
from shared.mapping import Naming, is_shared_name, name_all, why_left_out
from shared.merge import Merge, Side, Verdict, merge
from shared.model import SOURCE_SIDE, Entry, ObjectState, ObjectStatus, Run, Target
from shared.plan import Change, ChangeKind, guard
from shared.vault import check_name

log = logging.getLogger("vaultferry.planner")

READ_AT_ONCE = 32
"""Paths whose values are in memory at the same time, in a plan for a person."""
DOUBTFUL = (ObjectStatus.PENDING, ObjectStatus.FAILED, ObjectStatus.CONFLICT)

States = Mapping[str, Mapping[str, ObjectState]]
"""What is remembered, by path and target."""


class TwoWayView:
    """Stands where the planning of a one-way sync has a `TargetView` for each target."""

    def __init__(self, run: Run, work: TwoWayWork, source: SourceView, states: States, recent_deletes: int) -> None:
        self.run = run
        self.sync = work.sync
        self.work = work
        self.source = source
        self.target: Target = work.sync.units[0]
        self.row_target = work.sync.targets[0].id
        self.silent: dict[str, VaultError] = dict(work.silent)
        """Targets that can not be looked at, and are left out of what is compared."""
        self.paths: set[str] = set()
        self.respelt: list[ObjectState] = []
        """Rows of what was never agreed on, under a spelling that no target has."""
        self.naming = Naming({}, {})
        self.renamed: set[str] = set()
        self.cleanup = True
        self._all = states
        self._recent = recent_deletes
        self._listed: dict[str, dict[str, Entry]] = {}
        """By side and path."""
        self._hub_paths: dict[str, str] = {}
        """What the source's listing calls a path, where it ignores case and calls it otherwise than we do."""
        self._gone: dict[str, list[Change]] = {}
        self._unanswered = 0
        self._few = asyncio.Semaphore(READ_AT_ONCE)

    @property
    def states(self) -> dict[str, ObjectState]:
        """The rows that stand for their paths."""
        return {path: rows[self.row_target] for path, rows in self._all.items() if self.row_target in rows}

    @property
    def problem(self) -> str | None:
        """What keeps a target out for good, until a person has done something about it."""
        told = [troubled(target, str(error)) for target, error in sorted(self.silent.items()) if not error.transient]
        return "; ".join(told) or None

    @property
    def unseen(self) -> dict[str, str]:
        """Targets that nobody could look at, and why."""
        return {target: f"left out: {error.message}" for target, error in sorted(self.silent.items())}

    # looking ------------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """List all targets; the source was listed before. A target that fails is left out, and nothing is gone from it."""
        await asyncio.gather(*(self._list(seat) for seat in self.work.targets))
        names = self._called()
        key = self.source.vault.capabilities.names.key
        self._hub_paths = {names[key(path)]: path for path in self.source.entries}
        one_here: dict[str, str] = {}
        for seat in self.work.targets:
            kept: dict[str, Entry] = {}
            # Living ones first: a tombstone is in nobody's way.
            for path, entry in sorted(self._listed.get(seat.id, {}).items(), key=lambda each: not each[1].live):
                called = names[key(path)]
                other = kept.setdefault(called, entry)
                if not entry.live:
                    continue
                both = None
                if other is not entry:
                    both = f"{other.name!r} and {entry.name!r} of {seat.id}"
                elif path != called and not seat.ignores_case:
                    both = f"{path!r} in {seat.id} and {called!r} elsewhere"
                if both is not None:
                    one_here[called] = f"{both} are one secret to the source, which ignores case"
            if seat.id in self._listed:
                self._listed[seat.id] = kept
        known = set(names.values())
        refused = one_here | {path: why for path in known if (why := self._why_refused(path)) is not None}
        for seat in self.work.targets:
            mapper = seat.mapper
            assert mapper is not None, "a target has one"  # noqa: S101
            shared = name_all(mapper, sorted(known - refused.keys())).refused
            # What one target can not be called is that target's own failure, told by the job.
            refused |= {path: why for path, why in shared.items() if is_shared_name(why)}
        self.naming = Naming({}, refused)
        self.paths = known if self.run.paths is None else known & set(self.run.paths)

    def _called(self) -> dict[str, str]:
        """What the secrets are called that are one to the source: as was agreed on; else as a target has it that tells
        spellings apart; else as the source has it."""
        key = self.source.vault.capabilities.names.key
        remembered = [path for path in self._all if why_left_out(self.sync, path) is None and self._is_remembered(path)]
        agreed = {path for path in remembered if self._is_agreed(path)}
        targets = sorted(self.work.targets, key=lambda seat: seat.ignores_case)
        listed = [(seat, *each) for seat in targets for each in self._listed.get(seat.id, {}).items()]
        spelt = [path for seat, path, entry in listed if entry.live and not seat.ignores_case]
        names: dict[str, str] = {}
        for path in (*agreed, *spelt, *remembered, *self.source.entries, *(path for _, path, _ in listed)):
            names.setdefault(key(path), path)
        others = [path for path in remembered if path not in agreed and names[key(path)] != path]
        self.respelt = [row for path in others for row in self._all[path].values()]
        return names

    def _is_agreed(self, path: str) -> bool:
        return any(agreed_part(row, self.work.recipe(row.target)) for row in self._all[path].values())

    def _is_remembered(self, path: str) -> bool:
        return any(row.status is not ObjectStatus.DELETED for row in self._all[path].values())

    async def _list(self, seat: Seat) -> None:
        try:
            self._listed[seat.id] = {
                path: entry async for path, entry in seat.listed() if why_left_out(self.sync, path) is None
            }
        except VaultError as error:
            self._leave_out(seat, error)

    def _leave_out(self, seat: Seat, error: VaultError) -> None:
        if seat.id not in self.silent:
            log.warning("%s is left out: %s", seat.id, error, extra={"sync": self.sync.id})
        self.silent[seat.id] = error

    def _why_refused(self, path: str) -> str | None:
        """Why the source can not hold a path that is there, or that a target has."""
        listed = self._hub_paths.get(path)
        if listed is not None:
            return self.source.refused.get(listed)
        rule = self.source.vault.capabilities.names
        try:
            check_name(self.source.vault.id, self.sync.source.prefix + path, rule)
        except InvalidSecret as error:
            return f"the source can not hold it: {error.message}"
        return None

    # comparing ----------------------------------------------------------------------------------------------------

    @property
    def owned(self) -> int:
        """How many paths several sides hold, by what is remembered."""
        return sum(self._is_agreed(path) for path in self._all)

    def guard(self, deletes: int) -> str | None:
        """Why this many deletes, on all sides together, need somebody's approval."""
        if not deletes:
            return None
        return guard(self.sync.delete, self.owned + self._recent, deletes + self._recent)

    def strays(self) -> set[str]:
        return set()

    def rows(self, path: str) -> dict[str, ObjectState]:
        known = self._all.get(path, {})
        ids = (target.id for target in self.sync.targets)
        return {each: known.get(each) or ObjectState(self.sync.id, each, path) for each in ids}

    async def compare(self, run: Run, path: str) -> list[Change]:
        """What is due of one path; nothing: it is to be deleted, which `missing` tells. Raises any VaultError."""
        hub = self._hub_paths.get(path)
        if hub is not None and not self.source.entries[hub].enabled:
            return [Change(path, ChangeKind.SKIP, "disabled in the source: left as it is on all sides")]
        rows = self.rows(path)
        found = await self._due(path, rows)
        if isinstance(found, Merge) and found.verdict is Verdict.SAME:
            return [Change(path, ChangeKind.UNCHANGED, found.reason)]
        if run.dry_run:
            return await self._told(path, rows)
        if isinstance(found, str):
            return [Change(path, ChangeKind.MERGE, found)]
        if self._may_delete(found):
            self._gone[path] = [Change(path, ChangeKind.DELETE, found.reason)]
            return []
        if found.deletes and not found.contested:
            return [_kept(path, found)]
        return [Change(path, ChangeKind.MERGE, found.reason)]

    async def _due(self, path: str, rows: Mapping[str, ObjectState]) -> Merge | str:
        """What fingerprints tell of a path, or why only its values can."""
        doubtful = [row.status for row in rows.values() if row.revision is not None and row.status in DOUBTFUL]
        if not any(row.revision for row in rows.values()):
            return "new here"
        try:
            hub = await self._hub_entry(path)
        except Unavailable as error:
            self._unanswered += 1
            if self._unanswered > UNANSWERED:
                raise
            return f"it could not be looked at, so it is tried ({error.message})"
        source = Side(SOURCE_SIDE, None if hub is None else _token(hub.fingerprint, SOURCE_SIDE))
        try:
            seen = await asyncio.gather(
                *(self._side(seat, path, rows[seat.id]) for seat in self.work.targets if seat.id not in self.silent)
            )
        except (AccessDenied, InvalidSecret) as error:
            return f"it could not be looked at on every side ({error.message})"
        if self._is_remembered(path) and all(side is not None and side.value is None for side in (source, *seen)):
            return "gone on all sides"
        found = merge(source, [side for side in seen if side is not None], self.sync.conflict)
        # What was left half-way is looked at whatever fingerprints tell, but for a delete, which is a plan's to count. What
        # is listed waits for its parties, which fingerprints do not know of.
        counted = self._may_delete(found) and not any(map(is_listed, rows.values()))
        return f"{doubtful[0]} since the last run" if doubtful and not counted else found

    def _may_delete(self, found: Merge) -> bool:
        return found.deletes and self.sync.delete.propagate

    async def _hub_entry(self, path: str) -> Entry | None:
        hub = self._hub_paths.get(path)
        return None if hub is None else await self.source.entry(hub)

    async def _side(self, seat: Seat, path: str, row: ObjectState) -> Side | None:
        """A target, with the source's fingerprint of then as the token of what they agreed on; None: left out."""
        agreed = self.work.agreed(seat, row)
        listed = self._listed.get(seat.id, {}).get(path)
        base = None if agreed is None else _token(row.source_fingerprint, f"{seat.id} before")
        if listed is not None and not listed.enabled:
            return None
        try:
            entry = None if listed is None else await seat.place.current(listed)
        except Unavailable as error:
            self._leave_out(seat, error)
            return None
        if entry is None:
            return Side(seat.id, None, base)
        if agreed is not None and agreed.fingerprint is not None and entry.fingerprint == agreed.fingerprint:
            return Side(seat.id, base, base)
        return Side(seat.id, seat.id, base)

    async def look_again(self, paths: Sequence[str]) -> None:
        """Find out which of the paths that an earlier job compared are to be deleted: nobody wrote that down."""

        async def one(path: str) -> None:
            # What may not be looked at has not been seen to be gone.
            with contextlib.suppress(AccessDenied, InvalidSecret, Unavailable):
                await self.compare(self.run, path)

        await asyncio.gather(*(one(path) for path in paths if path not in self.naming.refused))

    def missing(self, run: Run) -> list[Change]:
        """What is to be deleted, by side, and what is remembered of paths that the sync does not cover any more."""
        changes = [change for path in sorted(self._gone) for change in self._gone[path]]
        for path in sorted(self._all):
            if (run.paths is None or path in run.paths) and self._is_agreed(path):
                left_out = why_left_out(self.sync, path)
                if left_out:
                    changes.append(Change(path, ChangeKind.KEEP, f"{left_out}; left as it is on all sides"))
        return changes

    # for a person -------------------------------------------------------------------------------------------------

    async def _told(self, path: str, rows: Mapping[str, ObjectState]) -> list[Change]:
        """What would become of a path, side by side. Raises any VaultError of the source."""
        async with self._few:
            merged, looks = await self.work.inspect(path, rows)
            if SOURCE_SIDE in looks.errors:
                raise looks.errors[SOURCE_SIDE]
            changes = [
                Change(path, ChangeKind.FAIL, str(error), side=side)
                for side, error in looks.errors.items()
                if side not in self.silent
            ]
            if merged is None:
                why = "disabled in the source: left as it is on all sides"
                return [Change(path, ChangeKind.SKIP, why)]
            changes += self._changes(path, merged, looks)
        if changes or path in self._gone:
            return changes
        return [Change(path, ChangeKind.UNCHANGED, merged.reason)]

    def _changes(self, path: str, merged: Merge, looks: Looks) -> list[Change]:
        if merged.verdict is Verdict.CONFLICT:
            return [Change(path, ChangeKind.CONFLICT, merged.reason)]
        if merged.verdict is not Verdict.CARRY:
            return []
        due = [side for side, held in looks.held.items() if held.digest != merged.value]
        if merged.value is None:
            if not self.sync.delete.propagate:
                return [_kept(path, merged)]
            deletes = [Change(path, ChangeKind.DELETE, merged.reason, (looks.names[side],), side=side) for side in due]
            self._gone[path] = deletes
            return []
        return [self._write(path, merged, looks, side) for side in due]

    def _write(self, path: str, merged: Merge, looks: Looks, side: str) -> Change:
        taken = looks.found[str(merged.winner)].secret
        there = looks.found[side].secret
        fields = None
        if taken is not None:
            fields = field_changes(there.fields if there else {}, taken.fields, self.work.source.place.digester)
        kind = ChangeKind.CREATE if there is None else ChangeKind.UPDATE
        return Change(path, kind, merged.reason, (looks.names[side],), fields, side)


def _token(fingerprint: str | None, otherwise: str) -> str:
    """Equal for what is surely the same; without a fingerprint, nothing is."""
    return otherwise if fingerprint is None else f"={fingerprint}"


def _kept(path: str, merged: Merge) -> Change:
    return Change(path, ChangeKind.KEEP, f"{merged.reason}; kept elsewhere, because delete.propagate is false")
