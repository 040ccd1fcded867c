"""What a write job does for one path of one target: look, read, compare, write or delete. It saves nothing but intents.

The order matters. The version that the target is expected to have is taken first (from the state, or by a look), then
the source is read, then it is written: whoever wrote in between makes the write fail (where the vault compares and
sets), so an older value never follows a newer one. What is not certain (an earlier job began and never reported, a write
timed out, the digest key changed) is looked at before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from shared.engine.place import Found, Place
from shared.errors import AccessDenied, Conflict, InvalidSecret, SecretNotFound, Unavailable, VaultError
from shared.history import Save, Store
from shared.mapping import Digester, Mapper, why_left_out
from shared.metadata import carried, content, why_hidden
from shared.model import (
    Action,
    Entry,
    Event,
    Expect,
    Fields,
    ObjectState,
    ObjectStatus,
    OnExisting,
    Op,
    Outcome,
    Part,
    Secret,
    Sync,
    Target,
)
from shared.vault import FingerprintCost, Vault

ROUNDS = 3
"""How often a path is looked at anew within one job when somebody else writes at the same time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a source's secret is on a target: by name, the value and its digest."""

    secret: Secret
    items: Mapping[str, Secret] = field(repr=False)
    digests: Mapping[str, str]
    """What the state is to remember: equal ones mean equal values."""
    stored: Mapping[str, str]
    """Of exactly what is written. Another than in `digests` for what is encrypted on the way: that changes each time."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A path that was dealt with, for good or ill."""

    state: ObjectState
    outcome: Outcome
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """A path that must come again: busy (that is no attempt), or failed in a way that may pass."""

    busy: bool = False
    error: VaultError | None = None
    state: ObjectState | None = None
    """What has been done all the same, of several fields."""
    for_plan: bool = False
    """Only a plan, which sees all names, can say what is to become of it."""
    behind: bool = False
    """A vault shows less than is known already, and may soon show more."""

    @property
    def retry_after(self) -> float | None:
        return self.error.retry_after if isinstance(self.error, Unavailable) else None


class NotOurs(Exception):
    """A name is taken by somebody else's secret, and the configuration says what that means."""

    def __init__(self, status: ObjectStatus, why: str, found: Found, name: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.found = found
        self.name = name


class _ClaimLost(Exception):
    """It ran out, and somebody else goes on."""


class _Moved(Exception):
    """The source is not as the event's handling found it a moment ago: it begins anew."""


class _ForPlan(Exception):
    """An event sees one path; a name that is taken may be that of another."""


@dataclass
class Draft:
    """One path's parts while they are being worked on: what is in here has happened, whatever is raised next."""

    parts: dict[str, Part]
    written: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    """Names that may have been written without anybody knowing."""
    source: Entry | None = None
    source_fingerprint: str | None = None
    created: bool = False
    revision: str | None = None
    """Of the state row, once it was saved on the way."""
    target_version: str | None = None


@dataclass(frozen=True)
class PathWork:
    """Everything a job's paths have in common."""

    sync: Sync
    target: Target
    mapper: Mapper
    source: Vault
    vault: Vault
    store: Store
    digester: Digester
    owner: str | None
    run_id: str | None
    """None: the job is an event's, and belongs to no run."""
    attempt: int
    clock: Callable[[], datetime]

    @property
    def by_event(self) -> bool:
        return self.run_id is None

    @cached_property
    def place(self) -> Place:
        """The target's vault."""
        return Place(self.vault, self.digester, self.owner, self.target.metadata)

    @cached_property
    def source_place(self) -> Place:
        return Place(self.source, self.digester, metadata=self.target.metadata)

    async def read_source(self, path: str) -> Secret:
        """The newest value. Raises any VaultError."""
        return await self.source.get_secret(self.sync.source.prefix + path)

    def wanted(self, path: str, secret: Secret) -> Wanted:
        """What the target is to hold for this value. Raises InvalidSecret."""
        rendered = self.mapper.render(path, secret.fields)
        rules = self.target.metadata
        items = {name: carried(rules, replace(secret, fields=each.secret.fields)) for name, each in rendered.items()}
        for item in items.values():
            if why := why_hidden(item, self.vault.capabilities):
                raise InvalidSecret(why, vault=self.vault.id, path=path)
        stored = {name: self.place.digest(item) for name, item in items.items()}
        meant = {
            name: self.digester.digest(content(rules, items[name], each.meaning))
            for name, each in rendered.items()
            if each.meaning is not None
        }
        return Wanted(secret, items, stored | meant, stored)

    async def is_disabled(self, path: str) -> bool:
        """Whether a source that denied a value does so because the secret is disabled. Raises any VaultError."""
        if self.source.capabilities.fingerprint is FingerprintCost.VALUE:
            return False
        try:
            entry = await self.source.describe_secret(self.sync.source.prefix + path)
        except (SecretNotFound, AccessDenied):
            return False
        return entry.live and not entry.enabled

    def left_disabled(self, before: ObjectState, state: ObjectState) -> Settled:
        """The source has it and hands out no value: what the target holds stays as it is."""
        left = replace(state, status=before.status, error=before.error)
        if before.revision is None:
            left = replace(left, status=ObjectStatus.SKIPPED, error="disabled in the source: left as it is")
        return Settled(left, Outcome.SKIPPED)

    def intended(self, op: Op, state: ObjectState) -> tuple[Part, ...]:
        """The parts as they are noted before anything is written, so that after a crash nothing of ours looks foreign."""
        # What is encrypted is only known again by its digest, which nobody knows yet.
        late = self.mapper.by_field or self.mapper.seals
        if op is not Op.CREATE or late or not self._nothing_there(op, state):
            return state.parts
        try:
            name = self.mapper.name(state.path)
        except InvalidSecret:
            return state.parts
        return (Part(name),)

    def _nothing_there(self, op: Op, before: ObjectState) -> bool:
        """The plan saw no such name, and nobody has begun to write it since. What somebody put there since is only safe
        where it may be overwritten, or where the write itself notices."""
        return (
            op is Op.CREATE
            and (self.sync.on_existing is OnExisting.OVERWRITE or self.vault.capabilities.compare_and_set)
            and self.attempt == 0
            and not before.parts
            and (before.revision is None or before.status is ObjectStatus.DELETED)
        )

    def is_certain(self, op: Op, before: ObjectState) -> bool:
        """Whether the row tells what the target holds, so that it need not be looked at."""
        if self.target.metadata.carry and before.recipe != self.mapper.recipe:
            # Metadata may be there already that nobody remembers: looked at, so that not all is written again.
            return False
        return self.attempt == 0 and not is_uncertain(before) and op is not Op.REPAIR

    async def run(
        self, op: Op, before: ObjectState, state: ObjectState, *, cleanup: bool, early: Wanted | None = None
    ) -> Settled | Later:
        """Settle one path. `before` is its row as it was, `state` as it is claimed. Raises only what is no VaultError.

        `early` is what the source held when `before` had been read already, so that nobody of ours has written since:
        where the row tells all about the target, it need not be read again.
        """
        certain = self.is_certain(op, before)
        last: VaultError | None = None
        for _ in range(ROUNDS):
            draft = Draft(
                parts={part.name: part for part in state.parts},
                unsure={part.name for part in before.parts if part.digest is None},
            )
            try:
                if op is Op.DELETE:
                    return await self._delete(before, state, draft)
                return await self._write(op, before, state, draft, certain, cleanup, early)
            except Conflict as error:
                # Somebody else wrote meanwhile: look at what is there now, then read the source anew.
                last, certain, early = error, False, None
                state = _with_parts(state, draft)
            except _ClaimLost:
                return Later(busy=True)
            except _Moved:
                return Later(busy=True, state=_with_parts(state, draft))
            except _ForPlan:
                return Later(busy=True, for_plan=True, state=replace(_with_parts(state, draft), status=before.status))
            except NotOurs as found:
                return self._not_ours(before, _with_parts(state, draft), draft, found)
            except Unavailable as error:
                state = _with_parts(state, draft)
                if op is Op.DELETE and not draft.deleted:
                    # Nothing has happened: the next try is to find what this one found.
                    state = replace(state, status=before.status)
                return Later(error=error, state=state)
            except VaultError as error:
                return self._failed(before, _with_parts(state, draft), str(error))
        again = Unavailable(f"somebody else keeps writing it ({last})", vault=self.vault.id, path=state.path)
        return Later(error=again, state=state)

    # writing ------------------------------------------------------------------------------------------------------------

    async def _write(
        self,
        op: Op,
        before: ObjectState,
        state: ObjectState,
        draft: Draft,
        certain: bool,
        cleanup: bool,
        early: Wanted | None,
    ) -> Settled:
        nothing_there = certain and self._nothing_there(op, before)
        found: dict[str, Found] = {}
        for name in [self.mapper.name(state.path)] if not self.mapper.by_field else list(draft.parts):
            if self._must_look(draft.parts.get(name), certain) and not nothing_there:
                found[name] = await self.place.look(name)
        try:
            # With compare-and-set, what was found is the version that the write expects: read again, so that no other
            # installation's newer value is taken for an older one.
            if early is None or (found and self.vault.capabilities.compare_and_set):
                early = self.wanted(state.path, await self.read_source(state.path))
        except SecretNotFound:
            if self.by_event:
                raise _Moved from None
            return self._source_gone(_with_parts(state, draft))
        except AccessDenied:
            if not await self.is_disabled(state.path):
                raise
            return self.left_disabled(before, _with_parts(state, draft))
        self._note_source(early.secret, draft)
        wanted, digests, stored = dict(early.items), early.digests, early.stored
        if self.mapper.by_field:
            await self._reserve(state, [name for name in wanted if name not in draft.parts])
        for name in wanted:
            if name not in found and self._must_look(draft.parts.get(name), certain) and not nothing_there:
                found[name] = await self.place.look(name)
        new = {name: digest for name, digest in stored.items() if name not in draft.parts}
        if self.by_event and self._might_be_another_paths(new, found):
            raise _ForPlan
        due = {name: digest for name, digest in new.items() if self._will_write(digest, found.get(name))}
        state = await self._intend(state, draft, due)
        skipped: NotOurs | None = None
        for name, item in wanted.items():
            try:
                await self._put(name, item, digests[name], stored[name], before, draft, found.get(name))
            except NotOurs as taken:
                if taken.status is not ObjectStatus.SKIPPED:
                    raise
                # The other fields go on: it is one name that is left alone.
                skipped = taken
                draft.parts[name] = _left_alone(taken)
        doubtful: NotOurs | None = None
        if cleanup:
            for name in [name for name in draft.parts if name not in wanted]:
                try:
                    await self._remove(name, draft, set(digests.values()))
                except NotOurs as found_there:
                    if draft.parts[name].digest is None or not self._can_tell(before):
                        # Nobody knows whose it is: kept in mind until a person has decided.
                        draft.parts[name] = replace(draft.parts[name], digest=None)
                        draft.unsure.add(name)
                        doubtful = found_there
                        wanted[name] = Secret({})
                    else:
                        # Somebody gave the old name a value of their own: it is theirs now.
                        del draft.parts[name]
        else:
            wanted = {**wanted, **{part.name: Secret({}) for part in draft.parts.values() if part.owned}}
        await self._release(state, draft)
        parts = tuple(draft.parts[name] for name in draft.parts if name in wanted)
        settled = self._done(op, before, state, parts, draft)
        if doubtful is not None:
            return self._not_ours(before, settled.state, draft, doubtful)
        if skipped is not None:
            state = replace(settled.state, status=ObjectStatus.SKIPPED, error=skipped.why)
            outcome = Outcome.SKIPPED if settled.event is None else settled.outcome
            return replace(settled, state=state, outcome=outcome)
        return settled

    def _might_be_another_paths(self, new: Collection[str], found: Mapping[str, Found]) -> bool:
        """Whether a name that the state knows nothing of is taken, and would become this path's: with an equal value too,
        for the next one would be written over the other path's. Otherwise it is left alone, whosever it is."""
        taken = any(name in found and found[name].live for name in new)
        return taken and not self.mapper.injective and self.sync.on_existing is OnExisting.OVERWRITE

    def _will_write(self, digest: str, found: Found | None) -> bool:
        """Whether a name that the state knows nothing of is going to be written, and so becomes ours."""
        if found is None or not found.live:
            return True
        return found.digest != digest and self.sync.on_existing is OnExisting.OVERWRITE

    def _must_look(self, part: Part | None, certain: bool) -> bool:
        """Whether what the state knows of a name is not enough to write it."""
        if not certain or part is None or part.digest is None:
            return True
        # Where secrets bear marks, what was adopted may be another sync's.
        return not part.owned and (self.sync.on_existing is not OnExisting.OVERWRITE or self.vault.capabilities.tags)

    async def _put(
        self,
        name: str,
        item: Secret,
        digest: str,
        stored: str,
        before: ObjectState,
        draft: Draft,
        found: Found | None,
    ) -> None:
        """Make one name hold what it should. Raises Conflict when it is not as expected, `NotOurs`, any VaultError."""
        part = draft.parts.get(name)
        same_key = before.digest_key_id in (None, self.digester.key_id)
        expect: str | Expect = Expect.ANY
        if found is None and part is not None and part.digest is not None and not same_key:
            # The digest key changed: what the state remembers can not be compared, what is there can.
            found = await self.place.look(name)
        if found is not None:
            if not found.live:
                draft.unsure.discard(name)
            if found.holds(stored, digest, part):
                self._same(name, part, found, digest, same_key, draft)
                return
            if found.live and (taken := self.in_the_way(name, part, found)) is not None:
                raise taken
            expect = (found.entry.version if found.entry else None) or Expect.ABSENT
        elif part is not None and part.digest == digest:
            return
        elif part is not None and part.digest is not None:
            expect = part.version or Expect.ANY
        else:
            expect = Expect.ABSENT
        if not self.vault.capabilities.compare_and_set:
            expect = Expect.ANY
        entry = await self.place.set(name, item, stored, expect, draft.unsure.add)
        draft.created = draft.created or part is None or part.digest is None
        draft.parts[name] = self.place.part(name, entry, digest, stored)
        draft.written.append(name)
        draft.target_version = entry.version

    def _same(self, name: str, part: Part | None, found: Found, digest: str, same_key: bool, draft: Draft) -> None:
        """The target holds the right value already: because we wrote it and died, or because it was there."""
        entry = found.entry or Entry(name)
        kept = self.place.part(name, entry, digest, found.digest or digest)
        if part is None or (part.digest is None and not self._may_be_ours(part, found)):
            draft.parts[name] = replace(kept, owned=False)
            draft.adopted.append(name)
        elif part.digest is None:
            draft.parts[name] = kept
            draft.written.append(name)
            draft.created = True
        else:
            # Another value than remembered, and the right one: written by a job that died before it could say so. The
            # version tells it from a changed digest key; where there is none, only digests of one key do.
            moved = entry.version != part.version if entry.version else same_key
            if part.digest is not None and part.digest != digest and moved:
                draft.written.append(name)
            draft.parts[name] = replace(kept, owned=part.owned)
        draft.target_version = entry.version

    def in_the_way(self, name: str, part: Part | None, found: Found) -> NotOurs | None:
        """Why a secret that is there, and is not what is wanted, is not to be overwritten; None: it is."""
        owner = found.entry.owner if found.entry else None
        as_left = (
            part is not None
            and part.owned
            and part.digest is not None
            and found.entry is not None
            and part.fingerprint == found.entry.fingerprint
        )
        if owner and self.owner and owner != self.owner and not as_left:
            return NotOurs(
                ObjectStatus.CONFLICT,
                f"{name!r} is marked as written by {owner!r}: two syncs write it; change one of them, or delete it there",
                found,
                name,
            )
        if self.sync.on_existing is OnExisting.OVERWRITE:
            return None
        if part is not None and part.owned:
            if part.digest is not None or (part.intended is not None and self._may_be_ours(part, found)):
                return None
            why = f"{name!r} may be what a job wrote that died, or somebody else's: not overwritten; delete it by hand"
            return NotOurs(ObjectStatus.CONFLICT, why, found, name)
        if self.sync.on_existing is OnExisting.SKIP:
            why = f"{name!r} was there before and is left alone (on_existing: skip)"
            return NotOurs(ObjectStatus.SKIPPED, why, found, name)
        why = f"{name!r} was there before and holds something else (on_existing: fail)"
        return NotOurs(ObjectStatus.FAILED, why, found, name)

    def _may_be_ours(self, part: Part, found: Found) -> bool:
        """Of a name that was only meant to be written: whether it holds what was meant, as far as that is known."""
        if not part.owned or part.intended in (None, found.digest):
            return part.owned
        return bool(self.owner and found.entry and found.entry.owner == self.owner)

    async def _reserve(self, state: ObjectState, names: list[str]) -> None:
        """Make sure that no other path has a field of this name. Only values tell such names, so no plan could see it."""
        if not names:
            return
        keys = {self.mapper.rule.key(name): state.path for name in names}
        taken = await self.store.reserve_names(self.sync.id, self.target.id, keys)
        for name in names:
            other = taken.get(self.mapper.rule.key(name))
            if other is not None:
                raise InvalidSecret(
                    f"{name!r} is what a field of {other!r} is called already", vault=self.vault.id, path=state.path
                )

    async def _intend(self, state: ObjectState, draft: Draft, digests: Mapping[str, str]) -> ObjectState:
        """Note new names before the first of them is written: after a crash they are known for ours."""
        if not digests:
            return state
        intents = tuple(Part(name, intended=digest) for name, digest in digests.items())
        saved = (await self.store.save_objects([Save(replace(state, parts=(*state.parts, *intents)))]))[0]
        if saved is None:
            raise _ClaimLost
        draft.parts.update((part.name, part) for part in intents)
        draft.revision = saved.revision
        return saved

    # deleting -----------------------------------------------------------------------------------------------------------

    async def _delete(self, before: ObjectState, state: ObjectState, draft: Draft) -> Settled:
        """Remove the names that nobody asks for any more, once the source itself has confirmed it."""
        left_out = why_left_out(self.sync, state.path)
        wanted: set[str] = set()
        if left_out is None:
            fields = await self._source_fields(state.path, draft)
            if fields is not None and self.by_event:
                raise _Moved
            if fields is not None:
                wanted = set(self.mapper.names(state.path, fields))
                if before.status is not ObjectStatus.IN_SYNC or before.recipe != self.mapper.recipe:
                    # What replaces the old names is not there yet: they stay until it is.
                    return self._unchanged(before, state)
        if not wanted and not self.sync.delete.propagate:
            return self._unchanged(before, state)
        for name in [name for name in draft.parts if name not in wanted]:
            await self._remove(name, draft)
        if wanted:
            outcome = Outcome.DELETED if draft.deleted else Outcome.UNCHANGED
            await self._release(state, draft)
            rest = tuple(part for part in draft.parts.values() if part.name in wanted)
            kept = replace(state, parts=rest, status=ObjectStatus.IN_SYNC, error=None, transient=False)
            event = self._event(Action.DELETE, kept.status, draft) if draft.deleted else None
            return Settled(kept, outcome, event)
        ended = forgotten(state)
        await self._release(state, draft)
        return Settled(ended, Outcome.DELETED, self._event(Action.DELETE, ended.status, draft))

    def _can_tell(self, before: ObjectState) -> bool:
        """Whether what is remembered tells our own secret from a changed one: a digest under another key does not."""
        by_value = self.vault.capabilities.fingerprint is FingerprintCost.VALUE
        return not by_value or before.digest_key_id in (None, self.digester.key_id)

    async def _release(self, state: ObjectState, draft: Draft) -> None:
        """Let other paths have the names that this one no longer has."""
        if self.mapper.by_field:
            gone = (part.name for part in state.parts if part.name not in draft.parts)
            keys = {self.mapper.rule.key(name): state.path for name in gone}
            await self.store.release_names(self.sync.id, self.target.id, keys)

    async def _source_fields(self, path: str, draft: Draft) -> Fields | None:
        """The fields of a source secret that is still there (told only where names need them); None: it is gone."""
        name = self.sync.source.prefix + path
        try:
            if self.mapper.by_field or self.source.capabilities.fingerprint is FingerprintCost.VALUE:
                secret = await self.source.get_secret(name)
                self._note_source(secret, draft)
                return secret.fields
            entry = await self.source.describe_secret(name)
        except SecretNotFound:
            return None
        draft.source = entry
        return {} if entry.live else None

    async def _remove(self, name: str, draft: Draft, digests: Collection[str] = ()) -> None:
        """Delete one name if it is ours and still as we left it (or holds one of `digests`, which are the source's now);
        forget it if it is not ours or gone already."""
        part = draft.parts[name]
        if part.owned:
            entry = await self.as_left(part, digests)
            if entry is not None:
                expect = entry.version if self.vault.capabilities.compare_and_set and entry.version else Expect.ANY
                try:
                    await self.vault.delete_secret(name, expect=expect)
                    draft.deleted.append(name)
                    draft.target_version = entry.version
                except SecretNotFound:
                    draft.deleted.append(name)
                except Unavailable as error:
                    if not error.ambiguous or (await self.place.look(name)).live:
                        raise
                    draft.deleted.append(name)
        del draft.parts[name]

    async def as_left(self, part: Part, digests: Collection[str]) -> Entry | None:
        """The target's entry if it is what we wrote; None: it is gone. Raises `NotOurs` when somebody changed it since."""
        if part.digest is None or self.vault.capabilities.fingerprint is FingerprintCost.VALUE:
            found = await self.place.look(part.name)
            entry, live = found.entry or Entry(part.name), found.live
            # After a death in the middle, or under a new digest key, only the source's present values are recognised.
            ours = {part.digest, part.intended, *digests}
            same = found.digest is not None and found.digest in ours
            same = same or (part.digest is None and self.owner is not None and entry.owner == self.owner)
        else:
            try:
                entry = await self.vault.describe_secret(part.name)
            except SecretNotFound:
                return None
            live, same = entry.live, part.fingerprint is None or entry.fingerprint == part.fingerprint
        if not live:
            return None
        if not same:
            why = (
                f"{part.name!r} was changed in the target since it was written, so it is not deleted; delete it by hand"
            )
            if part.digest is None:
                why = (
                    f"{part.name!r} may be what a job wrote that died, or somebody else's: not deleted; do that by hand"
                )
            raise NotOurs(ObjectStatus.CONFLICT, why, Found(entry, None, True), part.name)
        return entry

    def _note_source(self, secret: Secret, draft: Draft) -> None:
        draft.source = secret.entry
        draft.source_fingerprint = self.source_fingerprint(secret)

    def source_fingerprint(self, secret: Secret) -> str | None:
        """What tells this value of the source from its next one."""
        return self.source_place.fingerprint(secret)

    # endings ------------------------------------------------------------------------------------------------------------

    def _done(self, op: Op, before: ObjectState, state: ObjectState, parts: tuple[Part, ...], draft: Draft) -> Settled:
        state = replace(
            state,
            parts=parts,
            source_fingerprint=draft.source_fingerprint,
            source_version=draft.source.version if draft.source else None,
            digest_key_id=self.digester.key_id,
            recipe=self.mapper.recipe,
            status=ObjectStatus.IN_SYNC,
            error=None,
            transient=False,
        )
        if draft.written or draft.deleted:
            drifted = op is Op.REPAIR and before.status is ObjectStatus.IN_SYNC
            fresh = draft.created and not any(part.digest for part in before.parts)
            action = Action.CREATE if fresh else Action.UPDATE
            outcome = Outcome.REPAIRED if drifted else Outcome.WRITTEN
            return Settled(state, outcome, self._event(action, state.status, draft))
        if draft.adopted:
            return Settled(state, Outcome.ADOPTED, self._event(Action.ADOPT, state.status, draft))
        return Settled(state, Outcome.UNCHANGED)

    def _source_gone(self, state: ObjectState) -> Settled:
        """It went away between plan and write, or is a tombstone: what to do about the target is the next plan's to say."""
        owned = tuple(part for part in state.parts if part.owned)
        status = ObjectStatus.PENDING if owned else ObjectStatus.DELETED
        return Settled(replace(state, parts=state.parts if owned else (), status=status, error=None), Outcome.UNCHANGED)

    def _unchanged(self, before: ObjectState, state: ObjectState) -> Settled:
        return Settled(replace(state, parts=before.parts, status=before.status, error=before.error), Outcome.UNCHANGED)

    def _failed(self, before: ObjectState, state: ObjectState, why: str) -> Settled:
        failed = replace(state, status=ObjectStatus.FAILED, error=why, transient=False)
        return Settled(failed, Outcome.FAILED, fail_event(before, failed, self.run_id, self.attempt))

    def _not_ours(self, before: ObjectState, state: ObjectState, draft: Draft, found: NotOurs) -> Settled:
        ended = replace(state, status=found.status, error=found.why, transient=False)
        outcome = {
            ObjectStatus.FAILED: Outcome.FAILED,
            ObjectStatus.CONFLICT: Outcome.CONFLICT,
        }[found.status]
        action = {ObjectStatus.FAILED: Action.FAIL, ObjectStatus.CONFLICT: Action.CONFLICT}.get(found.status)
        repeated = before.status is ended.status and before.error == ended.error
        event = None
        if action is not None and not repeated:
            event = Event(action, ended.status, self.run_id, attempt=self.attempt, error=found.why)
        return Settled(ended, outcome, event)

    def _event(self, action: Action, status: ObjectStatus, draft: Draft) -> Event:
        return Event(
            action,
            status,
            self.run_id,
            source_version=draft.source.version if draft.source else None,
            target_version=draft.target_version,
            attempt=self.attempt,
        )


def is_uncertain(state: ObjectState) -> bool:
    """Whether somebody began with this path and never reported, or not that it went well: what the target holds is
    anybody's guess."""
    ended = state.status not in (ObjectStatus.PENDING, ObjectStatus.FAILED, ObjectStatus.CONFLICT)
    return state.revision is not None and not ended


def _left_alone(taken: NotOurs) -> Part:
    """Remembered as it is, so that it costs nothing while nobody changes it."""
    entry = taken.found.entry
    return Part(taken.name, entry.fingerprint if entry else None, entry.version if entry else None, owned=False)


def forgotten(state: ObjectState) -> ObjectState:
    """The row of a path that is gone, and of which nothing in the target is ours any more."""
    return replace(
        state,
        parts=(),
        status=ObjectStatus.DELETED,
        error=None,
        transient=False,
        source_fingerprint=None,
        source_version=None,
    )


def fail_event(before: ObjectState, failed: ObjectState, run_id: str | None, attempt: int) -> Event | None:
    """A failure goes into the history once: the same one again in the next run adds nothing."""
    if before.status is ObjectStatus.FAILED and before.error == failed.error:
        return None
    return Event(Action.FAIL, ObjectStatus.FAILED, run_id, attempt=attempt, error=failed.error)


def _with_parts(state: ObjectState, draft: Draft) -> ObjectState:
    """The state with what has happened. A name that was only meant to be written, and surely was not, is nobody's."""
    parts = (
        part for part in draft.parts.values() if part.digest is not None or not part.owned or part.name in draft.unsure
    )
    return replace(state, parts=tuple(parts), revision=draft.revision or state.revision)
