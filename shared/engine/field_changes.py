"""A plan for a person looks closer than one that is carried out at once: which fields change, by name; what a comparison of
fingerprints could not tell; and what each change rests on. Values are read, compared in memory and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared.engine.installation import Installation
from shared.engine.path_work import NotOurs, PathWork, Wanted
from shared.engine.place import Found, Place
from shared.engine.settling import Settler
from shared.engine.survey import UNANSWERED, TargetView
from shared.errors import AccessDenied, InvalidSecret, SecretNotFound, Unavailable, VaultError
from shared.mapping import Digester
from shared.metadata import differing
from shared.model import Entry, Fields, ObjectState, ObjectStatus, Part, Secret, canonical_json
from shared.onestring import pack
from shared.plan import Basis, Change, ChangeKind, FieldChanges, Trace
from shared.vault import Vault

AT_ONCE = 32
"""Paths whose values are in memory at the same time."""
MOST_FIELDS = 200
"""Names told of one secret; of more, only the number."""


def field_changes(before: Fields, after: Fields, digester: Digester) -> FieldChanges:
    """Which fields differ, by name. Raises InvalidSecret for what is not JSON."""
    had = {name: digester.digest({"value": value}) for name, value in before.items()}
    has = {name: digester.digest({"value": value}) for name, value in after.items()}
    return FieldChanges(
        added=tuple(sorted(has.keys() - had.keys())),
        changed=tuple(sorted(name for name in has.keys() & had.keys() if has[name] != had[name])),
        removed=tuple(sorted(had.keys() - has.keys())),
    )


def trace(digester: Digester, fingerprint: str | None, version: str | None, digest: str | None) -> Trace:
    """What is kept of a look, so that nobody can guess at a value by it: a fingerprint may be an ETag made of the value."""

    def keyed(text: str | None) -> str | None:
        return None if text is None else digester.digest([text])[:16]

    return Trace(keyed(fingerprint), version, keyed(digest))


def trace_of(place: Place, found: Found) -> Trace | None:
    """The trace of a look; None: there is nothing."""
    if not found.live:
        return None
    entry = found.entry or Entry("")
    fingerprint = entry.fingerprint if found.secret is None else place.fingerprint(found.secret)
    return trace(place.digester, fingerprint, entry.version, found.digest)


def trace_of_value(place: Place, secret: Secret) -> Trace:
    """The trace of a value that was read."""
    version = secret.entry.version if secret.entry else None
    return trace(place.digester, place.fingerprint(secret), version, place.digest(secret))


def _check_size(vault: Vault, wanted: Wanted) -> None:
    """Refuse what a target will not take, by the one limit that it tells of beforehand. Raises InvalidSecret."""
    most = vault.capabilities.max_bytes
    if most is None:
        return
    for item in wanted.items.values():
        text = canonical_json(dict(item.fields)) if vault.capabilities.fields else pack(item.fields)[0]
        size = len(text.encode(errors="surrogatepass"))
        if size > most:
            raise InvalidSecret(f"its value takes {size:,} bytes; the vault {vault.id!r} stores at most {most:,}")


async def look_or_describe(place: Place, name: str) -> Found:
    """What a name holds, or at least what is told of it where its value is not. Raises any VaultError."""
    try:
        return await place.look(name)
    except AccessDenied:
        entry = await place.vault.describe_secret(name)
        return Found(entry, None, entry.live)


async def look_closer(installation: Installation, view: TargetView, changes: Sequence[Change]) -> list[Change]:
    """The changes as a person is told of them. What can not be read now stays as the comparison found it."""
    if view.vault is None or view.silent is not None:
        return list(changes)
    work = await Settler(installation).work(view.sync, view.target, None, 0)
    return await CloserLook(view, work).all(changes)


class CloserLook:
    """At some paths of one target."""

    def __init__(self, view: TargetView, work: PathWork) -> None:
        self._view = view
        self._work = work
        self._few = asyncio.Semaphore(AT_ONCE)
        self._unanswered = 0

    async def all(self, changes: Sequence[Change]) -> list[Change]:
        return list(await asyncio.gather(*map(self._unless_silent, changes)))

    async def _unless_silent(self, change: Change) -> Change:
        async with self._few:
            if change.kind.op is None or self._unanswered > UNANSWERED:
                return change
            try:
                return await (self._deleted(change) if change.kind is ChangeKind.DELETE else self._written(change))
            except Unavailable:
                self._unanswered += 1
            except VaultError:
                pass
        return change

    # what would be written ----------------------------------------------------------------------------------------

    async def _written(self, change: Change) -> Change:
        """Raises any VaultError of the target, and of the source what may pass."""
        path, state = change.path, self._view.states.get(change.path)
        try:
            secret = await self._work.read_source(path)
            wanted = self._work.wanted(path, secret)
            _check_size(self._work.vault, wanted)
        except SecretNotFound:
            return change
        except AccessDenied as error:
            if await self._work.is_disabled(path):
                return replace(change, kind=ChangeKind.SKIP, reason="disabled in the source: left as it is")
            return replace(change, kind=ChangeKind.FAIL, reason=str(error))
        except InvalidSecret as error:
            return replace(change, kind=ChangeKind.FAIL, reason=error.message)
        parts = {part.name: part for part in state.parts} if state else {}
        found = {name: await self._look(name, listed=True) for name in wanted.items}
        found |= {name: await self._look(name) for name in parts.keys() - found.keys()}
        traces = {name: trace_of(self._work.place, each) for name, each in found.items()}
        basis = Basis(trace_of_value(self._work.source_place, secret), traces)
        change = replace(change, names=tuple(wanted.items), basis=basis)
        if (taken := self._in_the_way(wanted, parts, found)) is not None:
            kind = {
                ObjectStatus.SKIPPED: ChangeKind.SKIP,
                ObjectStatus.FAILED: ChangeKind.FAIL,
                ObjectStatus.CONFLICT: ChangeKind.CONFLICT,
            }[taken.status]
            return replace(change, kind=kind, reason=taken.why)
        return self._told(change, state, wanted, parts, found)

    def _in_the_way(self, wanted: Wanted, parts: Mapping[str, Part], found: Mapping[str, Found]) -> NotOurs | None:
        for name in wanted.items:
            each, part = found[name], parts.get(name)
            if not each.live or self._holds(name, wanted, part, each):
                continue
            if (taken := self._work.in_the_way(name, part, each)) is not None:
                # With granularity `field`, a name that is skipped holds up none of the others.
                if taken.status is ObjectStatus.SKIPPED and len(wanted.items) > 1:
                    continue
                return taken
        return None

    @staticmethod
    def _holds(name: str, wanted: Wanted, part: Part | None, found: Found) -> bool:
        return found.holds(wanted.stored[name], wanted.digests[name], part)

    def _told(
        self,
        change: Change,
        state: ObjectState | None,
        wanted: Wanted,
        parts: Mapping[str, Part],
        found: Mapping[str, Found],
    ) -> Change:
        """Which fields change, and what the comparison took to be otherwise."""
        live = [name for name in wanted.items if found[name].live]
        same = all(name in live and self._holds(name, wanted, parts.get(name), found[name]) for name in wanted.items)
        if not live and not parts:
            change = replace(change, kind=ChangeKind.CREATE, reason="new here")
        if same and change.reason.startswith("new here"):
            change = replace(change, reason="new here, and the same value is there already: it is adopted")
        elif same:
            change = replace(change, reason=f"{change.reason}; the value is the same")
        sealed = any(wanted.stored[name] != wanted.digests[name] for name in live)
        if self._work.mapper.by_field:
            fields: FieldChanges | None = FieldChanges(
                added=tuple(sorted(wanted.items.keys() - set(live))),
                changed=tuple(
                    sorted(name for name in live if not self._holds(name, wanted, parts.get(name), found[name]))
                ),
                removed=tuple(
                    sorted(
                        name
                        for name, part in parts.items()
                        if part.owned and name not in wanted.items and found[name].live
                    )
                ),
            )
        elif same:
            fields = FieldChanges()
        elif sealed:
            fields = None
        else:
            ((name, item),) = wanted.items.items()
            before = found[name].secret.fields if found[name].secret else None  # type: ignore[union-attr]
            known = before is not None or not found[name].live
            fields = field_changes(before or {}, item.fields, self._work.digester) if known else None
        if sealed and not same:
            change = replace(change, reason=f"{change.reason}; encrypted again")
        if not same and (names := self._metadata_changes(wanted, found)):
            change = replace(change, reason=f"{change.reason}; metadata changes: {', '.join(names)}")
        number = len(fields.added + fields.changed + fields.removed) if fields else 0
        if number > MOST_FIELDS:
            return replace(change, reason=f"{change.reason}; {number:,} fields change")
        return replace(change, fields=fields)

    def _metadata_changes(self, wanted: Wanted, found: Mapping[str, Found]) -> list[str]:
        rules = self._work.target.metadata
        known = ((each.secret, wanted.items[name]) for name, each in found.items() if name in wanted.items)
        return sorted({aspect for had, item in known if had is not None for aspect in differing(rules, had, item)})

    async def _look(self, name: str, *, listed: bool = False) -> Found:
        """What a name of the target holds. `listed`: it would be in the target's listing, were it there."""
        known = self._view.listed
        if listed and known is not None and self._work.mapper.rule.key(name) not in known:
            return Found()
        return await look_or_describe(self._work.place, name)

    # what would be deleted ----------------------------------------------------------------------------------------

    async def _deleted(self, change: Change) -> Change:
        """Whether what we wrote is still there as we left it; raises any VaultError."""
        state = self._view.states[change.path]
        seen: dict[str, Trace | None] = {}
        for part in state.parts:
            if part.name not in change.names:
                continue
            try:
                entry = await self._work.as_left(part, ())
            except NotOurs as error:
                if change.path in self._view.renamed:
                    # Somebody gave the old name a value of their own.
                    kept = f"{change.reason}; kept, because it was changed in the target since"
                    return replace(change, kind=ChangeKind.KEEP, reason=kept)
                return replace(change, kind=ChangeKind.CONFLICT, reason=error.why)
            left = (part.fingerprint, part.version, part.digest)
            seen[part.name] = None if entry is None else trace(self._work.digester, *left)
        if seen and not any(seen.values()):
            change = replace(change, reason=f"{change.reason}; it is gone from the target already")
        # Of a path that is only called otherwise now, the source has a value, whichever.
        return replace(change, basis=Basis(Trace() if change.path in self._view.renamed else None, seen))
