"""What a planning sees: the source once, and each target beside what was remembered of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.engine.place import Place
from shared.engine.tally import SILENT
from shared.errors import AccessDenied, InvalidSecret, Unavailable
from shared.mapping import Digester, Mapper, Naming, name_all, path_below, why_left_out
from shared.model import Entry, ObjectState, ObjectStatus, Run, Sync, Target
from shared.plan import Change, ChangeKind, compare, first_look, gone, guard, leftovers
from shared.vault import FingerprintCost, Vault, check_name

log = logging.getLogger("vaultferry.planner")

UNANSWERED = 5
"""Paths that may stay unanswered by a source that answers otherwise: they are the writer's to retry, and fail alone. More
of them are an outage, and planning itself is tried again."""


class SourceView:
    """The source as this planning sees it. A fingerprint that costs a call is asked for once, however many targets ask."""

    def __init__(self, sync: Sync, vault: Vault, digester: Digester) -> None:
        self.sync = sync
        self.vault = vault
        self._digester = digester
        self.entries: dict[str, Entry] = {}
        """What the sync covers, by path."""
        self.refused: dict[str, str] = {}
        """Paths whose very name can not be carried, and why."""
        self.left_out: set[str] = set()
        """Paths that are there, but not covered."""
        self._asked: dict[str, asyncio.Future[Entry | None]] = {}

    async def look(self) -> None:
        """List the source. Raises any VaultError: half a listing is none."""
        prefix = self.sync.source.prefix
        async for entry in self.vault.list_secrets(prefix):
            path = path_below(prefix, entry.name, self.vault.capabilities.names)
            if path is None:
                continue
            if why_left_out(self.sync, path):
                self.left_out.add(path)
                continue
            self.entries[path] = entry
            try:
                check_name(self.vault.id, entry.name)
            except InvalidSecret as error:
                self.refused[path] = error.message

    @property
    def cost(self) -> FingerprintCost:
        return self.vault.capabilities.fingerprint

    async def entry(self, path: str) -> Entry | None:
        """A path's entry with its fingerprint; None: it turns out to be gone. Raises any VaultError."""
        entry = self.entries[path]
        if self.cost is FingerprintCost.LISTED or not entry.live:
            return entry if entry.live else None
        asked = self._asked.get(path)
        if asked is None:
            asked = self._asked[path] = asyncio.ensure_future(Place(self.vault, self._digester).current(entry))
        return await asyncio.shield(asked)


@dataclass
class TargetView:
    """What is known of one target while it is planned."""

    sync: Sync
    target: Target
    source: SourceView
    digester: Digester
    states: dict[str, ObjectState]
    paths: set[str]
    """What this run is about: what the sync covers, or a part of it."""
    vault: Vault | None = None
    """None: it does not answer, and is planned blindly."""
    mapper: Mapper | None = None
    naming: Naming = field(default_factory=lambda: Naming({}, {}))
    listed: dict[str, Entry] | None = None
    """The target's secrets by name key; None: not listed."""
    renamed: set[str] = field(default_factory=set)
    """Paths with names that a changed mapping no longer yields."""
    vanished: set[str] = field(default_factory=set)
    """Paths that the source lists and that turn out to be deleted all the same."""
    unanswered: int = 0
    """Paths that the source would not tell of."""
    silent: Unavailable | None = None
    """Why the target is not asked any more."""
    recent_deletes: int = 0
    """By events, in the present window."""
    cleanup: bool = True
    """Whether the old names of renamed paths may go as soon as the new ones are there."""

    @property
    def problem(self) -> str | None:
        """What a person should know where nothing else of the run tells it; what stops the planning is an error."""
        return SILENT if self.vault is None or self.silent is not None else None

    @property
    def unseen(self) -> dict[str, str]:
        """Targets that nobody could look at, and why."""
        return {self.target.id: self.problem} if self.problem else {}

    @property
    def row_target(self) -> str:
        return self.target.id

    @property
    def owned(self) -> int:
        return sum(state.owned for state in self.states.values())

    async def look(self, vault: Vault) -> None:
        """Name everything, and list the target where that tells something. Raises any VaultError."""
        self.vault = vault
        rule = vault.capabilities.names
        self.mapper = Mapper(self.target, rule)
        self.naming = name_all(self.mapper, sorted(self.source.entries.keys() - self.source.refused.keys()))
        known = all(path in self.states and self.states[path].parts for path in self.paths)
        if self.sync.verify_targets or not known:
            found = vault.list_secrets(self.mapper.prefix)
            self.listed = {rule.key(entry.name): entry async for entry in found}
        self.renamed = self._find_renamed(self.mapper)
        missing = (
            gone(state, None, self.sync.delete)
            for state in self.states.values()
            if state.path not in self.source.entries
        )
        deletes = sum(change is not None and change.kind is ChangeKind.DELETE for change in missing)
        self.cleanup = self.guard(len(self.renamed) + deletes) is None

    def guard(self, deletes: int) -> str | None:
        """Why this many deletes need somebody's approval, what events have deleted a moment ago counted with them."""
        if not deletes:
            return None
        recent = self.recent_deletes
        return guard(self.sync.delete, self.owned + recent, deletes + recent)

    def _find_renamed(self, mapper: Mapper) -> set[str]:
        found: set[str] = set()
        for path, state in self.states.items():
            if path not in self.paths or state.status is ObjectStatus.DELETED:
                continue
            names = self.naming.names.get(path)
            if names is not None and leftovers(state, names):
                found.add(path)
            elif mapper.by_field and mapper.may_rename(state.recipe) and leftovers(state, ()):
                # Only the values would tell which names stay: all may go.
                found.add(path)
        return found

    # comparing --------------------------------------------------------------------------------------------------

    async def compare(self, run: Run, path: str) -> list[Change]:
        """What shall happen to one path; nothing: it turns out to be gone from the source. Raises any VaultError."""
        change = await self._compare(run, path)
        return [] if change is None else [change]

    async def _compare(self, run: Run, path: str) -> Change | None:
        state = self.states.get(path)
        entry = self.source.entries[path]
        names = self.naming.names.get(path)
        recipe = self.mapper.recipe if self.mapper else (state.recipe if state else None) or ""
        change = first_look(path, entry, state, names, recipe, self._listed_under(names))
        if change is not None and change.kind is ChangeKind.SKIP:
            return change
        # A path that was never synced is due whatever its fingerprint says: only a plan for a person asks all the same.
        if state is None and entry.live and not run.dry_run:
            return change
        if change is None or self.source.cost is not FingerprintCost.VALUE:
            try:
                current = await self.source.entry(path)
            except Unavailable as error:
                self.unanswered += 1
                if self.unanswered > UNANSWERED:
                    raise
                why = f"it could not be looked at, so it is tried ({error.message})"
                return Change(path, ChangeKind.DRIFT, why, tuple(names or ()))
            if current is None:
                self.vanished.add(path)
                return None
            entry = current
        if change is not None or state is None:
            return change
        if entry.fingerprint is None or entry.fingerprint != state.source_fingerprint or not self.sync.verify_targets:
            return compare(path, state, entry.fingerprint, None)
        return compare(path, state, entry.fingerprint, await self._verified(state))

    async def _verified(self, state: ObjectState) -> Mapping[str, str | None] | None:
        """What the target holds of a path; None where it does not answer any more: the rest is planned blindly."""
        if self.silent is not None:
            return None
        try:
            return await self._fingerprints(state)
        except Unavailable as error:
            if self.silent is None:
                log.warning("%s, so the rest of it is not verified", error, extra={"sync": self.sync.id})
            self.silent = error
            return None

    async def look_again(self, paths: Sequence[str]) -> None:
        """Find out which of the paths that an earlier job compared are listed by the source and deleted all the same:
        nobody wrote that down. Raises Unavailable."""

        async def one(path: str) -> None:
            state = self.states.get(path)
            if state is None or state.status is ObjectStatus.DELETED or path in self.source.refused:
                return
            # What may not be looked at has not been seen to be gone.
            with contextlib.suppress(AccessDenied, InvalidSecret, Unavailable):
                if await self.source.entry(path) is None:
                    self.vanished.add(path)

        if self.source.cost is not FingerprintCost.VALUE:
            await asyncio.gather(*(one(path) for path in paths))

    def _listed_under(self, names: Sequence[str] | None) -> dict[str, Entry] | None:
        if self.listed is None or self.mapper is None or names is None:
            return None
        keys = (self.mapper.rule.key(name) for name in names)
        return {key: self.listed[key] for key in keys if key in self.listed}

    async def _fingerprints(self, state: ObjectState) -> Mapping[str, str | None] | None:
        """What the target's names look like now; a name that is gone is left out. None: it can not be asked."""
        vault, listed = self.vault, self.listed
        if vault is None or listed is None:
            return None
        place = Place(vault, self.digester)
        found: dict[str, str | None] = {}
        for part in state.parts:
            entry = listed.get(vault.capabilities.names.key(part.name))
            current = None if entry is None else await place.current(entry)
            if current is not None:
                found[part.name] = current.fingerprint
        return found

    def missing(self, run: Run) -> list[Change]:
        """What becomes of remembered paths that the source no longer has, or the sync no longer covers."""
        changes = []
        for path, state in sorted(self.states.items()):
            if run.paths is not None and path not in run.paths:
                continue
            if path in self.source.entries and path not in self.vanished:
                continue
            left_out = why_left_out(self.sync, path) if path in self.source.left_out else None
            change = gone(state, left_out, self.sync.delete)
            if change is not None:
                changes.append(change)
        return changes

    def strays(self) -> set[str]:
        """Renamed paths whose new names are all there: only their old ones are left to go."""
        return {
            path
            for path in self.renamed
            if self.states[path].status is ObjectStatus.IN_SYNC
            and self.mapper is not None
            and self.states[path].recipe == self.mapper.recipe
        }
