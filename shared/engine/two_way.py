"""What a two-way sync does with one path: look at all its sides, decide, write those that hold another value, and note.

Nothing is written on the strength of what is remembered alone: each side is read first. With compare-and-set a write then
expects the version that was read; without it, the side is read once more just before, and once more after. Whoever wrote in
between is looked at anew. What is about to be written, and what is lost by it, is noted before: after a crash, sides that
hold one value agree, and what a job has written is nobody's edit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property

from shared.engine.contested import (
    Held,
    are_told,
    contested_of,
    failed_status,
    has_moved,
    is_listed,
    listed_anew,
    listed_in,
    one_account,
    same_sights,
)
from shared.engine.outage import Outage
from shared.engine.path_work import forgotten
from shared.engine.place import Found, Place
from shared.engine.settling import CLAIM, LAG_TRIES
from shared.errors import Conflict, InvalidSecret, SecretNotFound, Unavailable, VaultError
from shared.history import Save, Store
from shared.mapping import APART, Mapper, short_hash
from shared.merge import Merge, Side, Verdict, merge
from shared.model import (
    SOURCE_SIDE,
    Action,
    Contested,
    Entry,
    Event,
    Expect,
    ObjectState,
    ObjectStatus,
    Op,
    Outcome,
    Part,
    Secret,
    Sight,
    Source,
    Sync,
    Target,
    iso,
)
from shared.notices import is_known
from shared.vault import check_name

ROUNDS = 3
"""How often a path is looked at anew within one job when somebody else writes at the same time."""
TIME_TO_WRITE = timedelta(seconds=120)
"""How much of a claim must be left for a write to begin: it is over by then, so that no older value follows a newer one.
A claim with less is prolonged first, if nobody else has it."""

_WRITES = (Action.CREATE, Action.UPDATE)
Told = tuple[str, str | None]
"""The side that an event came from, and the version that it told of."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One side of a sync: a vault, and what a path is called there."""

    id: str
    place: Place
    prefix: str = ""
    mapper: Mapper | None = None
    """None: the source's, where a path follows the prefix as it is."""
    key: Callable[[str], str] = str
    """What is equal for paths that are one to the source."""

    @property
    def ignores_case(self) -> bool:
        return self.place.vault.capabilities.names.ignores_case

    async def listed(self) -> AsyncIterator[tuple[str, Entry]]:
        """Of a target: what it has, by path. Raises any VaultError."""
        assert self.mapper is not None, "a target has one"  # noqa: S101
        async for entry in self.place.vault.list_secrets(self.mapper.prefix):
            path = self.mapper.path_of(entry.name)
            if path is not None:
                yield path, entry

    def name(self, path: str) -> str:
        """Raises InvalidSecret for what the vault can not take, and for the name that another path has there."""
        if self.mapper is not None:
            name = self.mapper.name(path)
            other = self.mapper.path_of(name)
            if other is not None and self.key(other) != self.key(path):
                why = f"its name there is {name!r}, which is {other!r} of the source: {APART}"
                raise InvalidSecret(why, vault=self.place.vault.id, path=name)
            return name
        name = self.prefix + path
        check_name(self.place.vault.id, name, self.place.vault.capabilities.names)
        return name


@dataclass
class Looks:
    """What a look at all sides saw."""

    names: dict[str, str] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    """Of each side that could be read: what it holds, brought up to date by what is written."""
    errors: dict[str, VaultError] = field(default_factory=dict)
    """Why a side can not take part, or could not be written."""
    closed: set[str] = field(default_factory=set)
    """Sides that have it and hand out no value: disabled, or nothing that could be carried. They are left as they are."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a path's work ended: the rows to be saved, and either an outcome or why it must come again."""

    saves: tuple[Save, ...] = ()
    outcome: Outcome | None = None
    error: VaultError | None = None
    busy: bool = False
    delete: bool = False
    """All that is left to do is to delete, and this job may not."""
    deleted: bool = False
    """Whether something was deleted, whatever came of the rest."""
    lags: bool = False
    """A side shows less than is known already."""
    silent: frozenset[str] = frozenset()
    """The vaults that did not answer."""


@dataclass
class _Path:
    """One path while it is worked on."""

    op: Op
    path: str
    before: Mapping[str, ObjectState]
    """Its rows by target, as they were."""
    rows: dict[str, ObjectState]
    """As they are now."""
    until: datetime
    """When the claim on it runs out."""
    told: Told | None
    prolonging: asyncio.Lock = field(default_factory=asyncio.Lock)
    again: bool = False
    """A write has met something that the look before it did not see."""
    given: dict[str, str | None] = field(default_factory=dict)
    """By target: what it and the source have in common by this job's doing, whatever happened to either since."""
    written: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class _Moved(Exception):
    """A side is not any more as it was found a moment ago."""


class _OutOfTime(Exception):
    """The claim has run out, and somebody else goes on."""


@dataclass(frozen=True)
class TwoWayWork:
    """Everything a job's paths have in common."""

    sync: Sync
    source: Seat
    targets: tuple[Seat, ...]
    silent: Mapping[str, VaultError]
    """Targets whose vault can not even be opened."""
    store: Store
    run_id: str | None
    """None: the job is an event's, and belongs to no run."""
    attempt: int
    clock: Callable[[], datetime]
    outages: dict[str, Outage] = field(default_factory=dict)
    """By side."""

    @property
    def final(self) -> bool:
        """Whether what fails now is not tried again."""
        return self.attempt >= self.sync.retry_policy.max_retries

    async def run(
        self,
        op: Op,
        path: str,
        before: Mapping[str, ObjectState],
        rows: dict[str, ObjectState],
        until: datetime,
        told: Told | None = None,
    ) -> Ended:
        """Settle a path. `before` are its rows by target as they were, `rows` as they are now that one of them is claimed
        `until` then, and are kept up to date. Raises only what is no VaultError."""
        last: Exception | None = None
        job = _Path(op, path, before, rows, until, told)
        for _ in range(ROUNDS):
            try:
                ended = await self._once(job)
                break
            except (Conflict, _Moved) as error:
                last, job.again = error, True
            except _OutOfTime:
                ended = Ended(busy=True)
                break
        else:
            why = f"somebody else keeps writing it{f' ({last})' if isinstance(last, VaultError) else ''}"
            ended = self._later(job, Unavailable(why, vault=self.source.place.vault.id, path=path))
        return replace(ended, deleted=bool(job.deleted))

    async def inspect(self, path: str, before: Mapping[str, ObjectState]) -> tuple[Merge | None, Looks]:
        """What would become of a path now, and what all sides hold. None: the source can not be compared."""
        looks = await self.look(path)
        return (self._merge(before, looks, {}) if SOURCE_SIDE in looks.held else None), looks

    async def look(self, path: str, *, tombstones: bool = False) -> Looks:
        """Read all sides, at once."""
        looks = Looks(errors=dict(self.silent))

        async def one(seat: Seat) -> None:
            outage, pacer = self.outages.setdefault(seat.id, Outage()), seat.place.vault.pacer
            if (down := outage.error(pacer)) is not None:
                # It is down: the others are not kept waiting for it, path after path.
                looks.errors[seat.id] = down
                return
            begun = pacer.answered
            try:
                looks.names[seat.id] = name = seat.name(path)
                found = await seat.place.look(name, tombstones=tombstones)
            except VaultError as error:
                looks.errors[seat.id] = error
                if error.transient:
                    outage.failed(pacer, begun, error)
                return
            looks.found[seat.id] = found
            if found.live and found.digest is None:
                looks.closed.add(seat.id)
            else:
                looks.held[seat.id] = _held(seat.place, found)

        await asyncio.gather(*(one(seat) for seat in (self.source, *self.targets)))
        return looks

    # one round --------------------------------------------------------------------------------------------------------

    async def _once(self, job: _Path) -> Ended:
        looks = await self.look(job.path, tombstones=job.again)
        if lagging := self._lagging(job, looks):
            return replace(self._put_off(job, lagging), lags=True)
        if SOURCE_SIDE in looks.errors:
            error = looks.errors[SOURCE_SIDE]
            return self._later(job, error) if error.transient else self._all_failed(job, error)
        if SOURCE_SIDE in looks.closed:
            why = "disabled in the source: left as it is on all sides"
            saves = tuple(_closed(row, job.before[each], why) for each, row in job.rows.items())
            return Ended(saves, Outcome.CONFLICT if listed_in(job.rows.values()) else Outcome.SKIPPED)
        merged = self._merge(job.before, looks, job.given)
        seen = self._sights(looks, job.before)
        delete = merged.deletes and self.sync.delete.propagate
        # What a person has decided for this very path is counted with no others.
        may_delete = job.op is Op.DELETE or self._by_hand(job.before, merged)
        if merged.verdict is Verdict.CARRY and (may_delete if delete else not merged.deletes):
            await self._note(merged, job, looks, seen)
            await self._carry(merged, job, looks)
        return self._settled(merged, job, looks, seen, put_off=delete and not may_delete)

    async def _note(self, merged: Merge, job: _Path, looks: Looks, seen: tuple[Sight, ...]) -> None:
        """Record what is about to be done before it is: what will be lost, so that it is on record wherever this is
        killed, and what will be written, so that it is known for ours however its side and the others move on."""
        saves = [*self._intents(merged, job, looks).values()]
        if merged.contested:
            noted = self._conflict_noted(merged, job, seen, {save.state.target: save.state for save in saves})
            saves = [*({save.state.target: save for save in saves} | noted).values()]
        for save, kept in zip(saves, await self.store.save_objects(saves), strict=True):
            if kept is None:
                raise _OutOfTime
            job.rows[save.state.target] = kept

    def _intents(self, merged: Merge, job: _Path, looks: Looks) -> dict[str, Save]:
        intents: dict[str, Save] = {}
        for seat in self.targets:
            held = looks.held.get(seat.id)
            back = merged.winner == seat.id
            due = looks.held[SOURCE_SIDE] if back else held
            if held is None or due is None or merged.value is None or due.digest == merged.value:
                continue
            row = job.rows[seat.id]
            part = self.agreed(seat, row) or Part(looks.names[seat.id])
            intents[seat.id] = Save(
                replace(
                    row,
                    parts=(replace(part, intended=merged.value),),
                    recipe=self.recipe(seat.id),
                    direction=_direction(back),
                )
            )
        return intents

    def _conflict_noted(
        self, merged: Merge, job: _Path, seen: tuple[Sight, ...], intended: Mapping[str, ObjectState]
    ) -> dict[str, Save]:
        contested = contested_of(job.rows.values())
        lost = [sight for sight in seen if sight.digest != merged.value]
        if contested is not None and contested.taken == merged.winner and are_told(contested, lost):
            return {}
        action = Action.RESOLVE if self._by_hand(job.before, merged) else Action.CONFLICT
        noted = Contested(seen, contested.take if contested else None, taken=merged.winner)
        versions = {sight.side: sight.version for sight in seen}
        # Who is away has lost, or won, as well.
        saves: dict[str, Save] = {}
        for each in listed_in(job.rows.values()):
            saves[each] = Save(replace(intended.get(each) or job.rows[each], contested=noted))
        for target in merged.contested:
            if target == SOURCE_SIDE:
                continue
            event = Event(
                action,
                ObjectStatus.IN_SYNC,
                self.run_id,
                _direction(merged.winner == target),
                source_version=versions.get(SOURCE_SIDE),
                target_version=versions.get(target),
                attempt=self.attempt,
                detail=_detail(merged, seen),
            )
            row = intended.get(target) or job.rows[target]
            row = replace(row, status=ObjectStatus.CONFLICT, error=merged.reason, contested=noted)
            saves[target] = Save(row, event)
        return saves

    def _lagging(self, job: _Path, looks: Looks) -> Unavailable | None:
        """Why it is too early to believe a side: it shows an older version than an event told of, or than was carried."""
        if self.attempt >= LAG_TRIES:
            return None
        for seat in (self.source, *self.targets):
            found = looks.found.get(seat.id)
            if found is None:
                continue
            known = [job.told[1]] if job.told is not None and job.told[0] == seat.id else []
            if known and known[0] is not None and not found.live:
                return _lags(seat, job.path, f"version {known[0]}, which an event told of, is not there yet")
            known += self._carried(seat, job.before)
            have = found.entry.version if found.entry else None
            if have is None or not have.isdecimal():
                continue
            if any(one is not None and one.isdecimal() and not is_known(have, one) for one in known):
                return _lags(seat, job.path, f"it shows version {have}, an older one than is known already")
        return None

    def _carried(self, seat: Seat, before: Mapping[str, ObjectState]) -> list[str | None]:
        """The versions of a side that were agreed on, or seen in a conflict: it can hold no older one."""
        rows = [row for row in before.values() if seat.id in (SOURCE_SIDE, row.target)]
        settled = [row for row in rows if row.status is ObjectStatus.IN_SYNC]
        contested = contested_of(before.values())
        sight = contested.sight(seat.id) if contested else None
        if not settled and sight is not None:
            # Seen later than anything was agreed on.
            return [sight.version]
        if seat.id == SOURCE_SIDE:
            return [row.source_version for row in settled or rows if agreed_part(row, self.recipe(row.target))]
        return [part.version for row in settled or rows if (part := self.agreed(seat, row)) is not None]

    def recipe(self, target_id: str) -> str:
        """Identifies the two places that a row speaks of: in other ones, nothing was ever agreed on."""
        return self._recipes[target_id]

    @cached_property
    def _recipes(self) -> Mapping[str, str]:
        return {target.id: two_way_recipe(self.sync.source, target) for target in self.sync.targets}

    def agreed(self, seat: Seat, row: ObjectState) -> Part | None:
        """What a target and the source last agreed on, by the name that the path has there today. Raises InvalidSecret."""
        part, key = agreed_part(row, self.recipe(row.target)), seat.place.vault.capabilities.names.key
        return part if part is not None and key(part.name) == key(seat.name(row.path)) else None

    def _all_failed(self, job: _Path, error: VaultError) -> Ended:
        saves = tuple(self._failed(row, job.before[each], error) for each, row in job.rows.items())
        if not error.transient:
            return Ended(saves, Outcome.FAILED)
        return Ended(saves, Outcome.FAILED, error, silent=frozenset({error.vault}))

    def _later(self, job: _Path, error: VaultError) -> Ended:
        return self._all_failed(job, error) if self.final else self._put_off(job, error)

    def _put_off(self, job: _Path, error: VaultError) -> Ended:
        saves = (Save(replace(row, status=job.before[each].status, error=str(error))) for each, row in job.rows.items())
        return Ended(tuple(saves), None, error)

    # deciding ---------------------------------------------------------------------------------------------------------

    def _merge(self, before: Mapping[str, ObjectState], looks: Looks, given: Mapping[str, str | None]) -> Merge:
        contested = contested_of(before.values())
        source = looks.held[SOURCE_SIDE]
        sights = {sight.side: sight for sight in contested.sides} if contested else {}

        def side(seat: Seat, base: str | None) -> Side:
            held, entry = looks.held[seat.id], looks.found[seat.id].entry
            sight = sights.get(seat.id)
            return Side(
                seat.id,
                held.digest,
                base,
                entry.updated_at if entry and held.digest else None,
                seat.place.vault.capabilities.time_resolution,
                moved=sight is not None and has_moved(sight, held),
                again=contested is not None and seat.id in contested.again,
                seen=sight is not None or contested is None,
            )

        targets = [
            side(seat, given[seat.id] if seat.id in given else self._base(seat, before[seat.id], looks, source))
            for seat in self.targets
            if seat.id in looks.held
        ]
        take, begun = self._decided(contested, bool(listed_in(before.values())), looks)
        merged = merge(side(self.source, None), targets, self.sync.conflict, take, begun)
        away = _away(before, looks)
        if away and take is None:
            why = f"in conflict, and {', '.join(away)} can not be looked at"
            merged = Merge(Verdict.CONFLICT, why, contested=tuple(side.id for side in targets if side.changed))
        if merged.deletes and merged.contested and not self.sync.delete.propagate:
            # It may not be carried out, so nothing is settled.
            why = f"{merged.reason}, with a deletion, which delete.propagate forbids"
            return replace(merged, verdict=Verdict.CONFLICT, reason=why, winner=None)
        return merged

    def _decided(self, contested: Contested | None, listed: bool, looks: Looks) -> tuple[str | None, str | None]:
        """The side that a person has decided for, if nothing has come of that yet; and the one that was taken already."""
        if contested is None:
            return None, None
        if contested.taken is None:
            known = {SOURCE_SIDE, *(target.id for target in self.sync.targets)}
            return (contested.take if listed and contested.take in known else None), None
        won = contested.sight(contested.taken)
        if contested.taken not in looks.held and won is not None and won.digest == looks.held[SOURCE_SIDE].digest:
            # Whoever was given what was taken speaks for it.
            return None, SOURCE_SIDE
        return None, contested.taken

    def _base(self, seat: Seat, row: ObjectState, looks: Looks, source: Held) -> str | None:
        """What a target and the source last agreed on, as a digest of today's key."""
        digester, held = seat.place.digester, looks.held[seat.id]
        done = self._carried_unsaid(seat, row, held, source)
        if done is not None:
            return done
        agreed = self.agreed(seat, row)
        if agreed is None:
            return None
        if row.digest_key_id == digester.key_id and agreed.digest is not None:
            return agreed.digest
        # Remembered under another key: whoever did not move since tells what it was.
        if agreed.fingerprint is not None and agreed.fingerprint == held.fingerprint:
            return held.digest
        if row.source_fingerprint is not None and row.source_fingerprint == source.fingerprint:
            return source.digest
        return "(not known)"

    def _carried_unsaid(self, seat: Seat, row: ObjectState, held: Held, source: Held) -> str | None:
        """What a job that died has carried between the two: the side that it was to write holds it."""
        if not row.parts or row.recipe != self.recipe(row.target):
            return None
        key, intended = seat.place.vault.capabilities.names.key, row.parts[0].intended
        written = source if row.direction == _direction(True) else held
        same = key(row.parts[0].name) == key(seat.name(row.path))
        return intended if same and intended is not None and written.digest == intended else None

    def _by_hand(self, before: Mapping[str, ObjectState], merged: Merge) -> bool:
        """Whether a person has decided for what is to be done. For a deletion, only where there was nothing already."""
        contested = contested_of(before.values())
        if contested is None or contested.take is None or contested.take != merged.winner:
            return False
        if merged.value is not None:
            return True
        sight = contested.sight(contested.take)
        return sight is not None and sight.digest is None and (contested.taken is None or bool(merged.contested))

    def _sights(self, looks: Looks, before: Mapping[str, ObjectState]) -> tuple[Sight, ...]:
        """What all sides hold, or held when a conflict that still waits for them was found."""
        contested = contested_of(before.values())
        away = _away(before, looks)

        def sight(seat: Seat) -> Sight:
            held, entry = looks.held[seat.id], looks.found[seat.id].entry
            changed_at = iso(entry.updated_at) if entry and held.digest else None
            return Sight(seat.id, held.fingerprint, held.version, held.digest, changed_at)

        kept = (sight for sight in contested.sides if sight.side in away) if contested else ()
        return (*(sight(seat) for seat in (self.source, *self.targets) if seat.id in looks.held), *kept)

    # writing ----------------------------------------------------------------------------------------------------------

    async def _carry(self, merged: Merge, job: _Path, looks: Looks) -> None:
        """Give all sides the winner's value. The source comes first: if it can not have it, nobody gets it."""
        winner = str(merged.winner)
        secret = looks.found[winner].secret
        due = [seat for seat in self.targets if seat.id in looks.held and looks.held[seat.id].digest != merged.value]
        if looks.held[SOURCE_SIDE].digest != merged.value:
            try:
                await self._give(self.source, secret, merged.value, winner, job, looks)
            except Conflict:
                raise
            except VaultError as error:
                looks.errors[winner] = error
                return

        async def one(seat: Seat) -> None:
            try:
                await self._give(seat, secret, merged.value, seat.id, job, looks)
            except Conflict:
                raise
            except VaultError as error:
                looks.errors[seat.id] = error

        ended = await asyncio.gather(*(one(seat) for seat in due), return_exceptions=True)
        # All have come to an end before anything is looked at anew.
        for result in ended:
            if isinstance(result, BaseException):
                raise result

    async def _give(
        self, seat: Seat, secret: Secret | None, digest: str | None, target_id: str, job: _Path, looks: Looks
    ) -> None:
        """Write a value to a side, or delete it there: the source and a target have it in common then. Raises
        Conflict, `_Moved`, `_OutOfTime` and any VaultError."""
        place, name, found = seat.place, looks.names[seat.id], looks.found[seat.id]
        cas = place.vault.capabilities.compare_and_set
        if not cas and _held(place, await place.look(name)).digest != looks.held[seat.id].digest:
            raise _Moved
        await self._take_time(job)
        version = found.entry.version if found.entry else None
        if secret is None or digest is None:
            await self._remove(place, name, version if cas and version else Expect.ANY)
            looks.held[seat.id] = Held()
            job.deleted.add(seat.id)
            job.given[target_id] = None
            return
        expect = (version or Expect.ABSENT) if cas else Expect.ANY
        entry = await place.set(name, Secret(secret.fields), digest, expect, lambda _: None)
        job.given[target_id] = digest
        if not cas:
            after = await place.look(name)
            if after.digest == found.digest:
                raise Unavailable("it does not show yet what was written", vault=place.vault.id, path=name)
            if after.digest != digest:
                raise _Moved
            entry = entry if entry.fingerprint or after.entry is None else after.entry
        part = place.part(name, entry, digest, digest)
        looks.held[seat.id] = Held(digest, part.fingerprint, part.version)
        job.written.add(seat.id)

    async def _take_time(self, job: _Path) -> None:
        """See to it that the claim lasts while something is written. Raises `_OutOfTime` where somebody else has it."""
        async with job.prolonging:
            now, first = self.clock(), self.sync.targets[0].id
            if now <= job.until - TIME_TO_WRITE:
                return
            (kept,) = await self.store.save_objects([Save(replace(job.rows[first], claim_expires_at=now + CLAIM))])
            if kept is None:
                raise _OutOfTime
            job.rows[first], job.until = kept, now + CLAIM

    async def _remove(self, place: Place, name: str, expect: str | Expect) -> None:
        try:
            await place.vault.delete_secret(name, expect=expect)
        except SecretNotFound:
            return
        except Unavailable as error:
            if not error.ambiguous or (await place.look(name)).live:
                raise

    # recording --------------------------------------------------------------------------------------------------------

    def _settled(self, merged: Merge, job: _Path, looks: Looks, seen: tuple[Sight, ...], *, put_off: bool) -> Ended:
        saves: list[Save] = []
        failed = conflict = False
        transient: VaultError | None = None
        for target_id, row in job.rows.items():
            was = job.before[target_id]
            error = looks.errors.get(target_id)
            held, source = looks.held.get(target_id), looks.held[SOURCE_SIDE]
            if error is not None and error.transient and not self.final:
                transient = error
                saves.append(Save(replace(row, status=was.status, error=str(error))))
            elif error is not None:
                failed = True
                transient = error if error.transient else transient
                saves.append(self._failed(row, was, error))
            elif held is None:
                conflict = conflict or is_listed(row)
                saves.append(_closed(row, was, "disabled in the target: left as it is on all sides"))
            elif held.digest == source.digest:
                saves.append(self._agreed(merged, target_id, job, looks))
            elif merged.verdict is Verdict.CONFLICT and target_id in merged.contested:
                conflict = True
                saves.append(self._in_conflict(merged, was, row, looks, seen))
            else:
                saves.append(Save(_as_before(self._with_news(self._with_done(row, looks), looks), was)))
        saves = one_account(saves, job.before.values(), looks.held, seen)
        if transient is not None and not self.final:
            return Ended(tuple(saves), None, transient)
        outcome = Outcome.UNCHANGED
        if failed:
            outcome = Outcome.FAILED
        elif conflict:
            outcome = Outcome.CONFLICT
        elif job.written or any(save.event is not None and save.event.action in _WRITES for save in saves):
            outcome = Outcome.WRITTEN
        elif job.deleted:
            outcome = Outcome.DELETED
        elif any(save.event is not None and save.event.action is Action.ADOPT for save in saves):
            outcome = Outcome.ADOPTED
        elif looks.closed:
            outcome = Outcome.SKIPPED
        silent = frozenset(error.vault for error in looks.errors.values() if error.transient)
        return Ended(tuple(saves), outcome, transient, delete=put_off, silent=silent)

    def _seat(self, target_id: str) -> Seat:
        return next(seat for seat in self.targets if seat.id == target_id)

    def _with_news(self, row: ObjectState, looks: Looks) -> ObjectState:
        """A row that knows a side that holds what was agreed on by its latest version: a plan goes by those."""
        seat = self._seat(row.target)
        held, source, agreed = looks.held[seat.id], looks.held[SOURCE_SIDE], self.agreed(seat, row)
        if agreed is None or agreed.digest is None or row.digest_key_id != seat.place.digester.key_id:
            return row
        if held.digest == agreed.digest:
            return replace(row, parts=(replace(agreed, fingerprint=held.fingerprint, version=held.version),))
        if source.digest == agreed.digest:
            return replace(row, source_fingerprint=source.fingerprint, source_version=source.version)
        return row

    def _with_done(self, row: ObjectState, looks: Looks) -> ObjectState:
        """A row that says what a job that died has done: a plan knows it then, too."""
        seat = self._seat(row.target)
        held, source = looks.held[seat.id], looks.held[SOURCE_SIDE]
        done = self._carried_unsaid(seat, row, held, source)
        if done is None:
            return row
        back = row.direction == _direction(True)
        part = Part(row.parts[0].name, None if back else held.fingerprint, None if back else held.version, done)
        return replace(
            row,
            parts=(part,),
            source_fingerprint=source.fingerprint if back else None,
            source_version=source.version if back else None,
            digest_key_id=seat.place.digester.key_id,
        )

    def _agreed(self, merged: Merge, target_id: str, job: _Path, looks: Looks) -> Save:
        """A target holds what the source holds: that is what they agree on from now on."""
        held, source = looks.held[target_id], looks.held[SOURCE_SIDE]
        back = merged.winner == target_id
        was = job.before[target_id]
        row = replace(job.rows[target_id], error=None, transient=False, contested=None)
        if held.digest is None:
            state = replace(forgotten(row), direction=_direction(back)) if row.revision or was.parts else row
        else:
            seat = self._seat(target_id)
            part = Part(looks.names[target_id], held.fingerprint, held.version, held.digest)
            state = replace(
                row,
                parts=(part,),
                source_fingerprint=source.fingerprint,
                source_version=source.version,
                digest_key_id=seat.place.digester.key_id,
                recipe=self.recipe(target_id),
                status=ObjectStatus.IN_SYNC,
                direction=_direction(back),
            )
        action = self._action(merged, target_id, job, looks)
        if action is None:
            return Save(replace(state, direction=was.direction))
        return Save(
            state,
            Event(
                action,
                state.status,
                self.run_id,
                state.direction,
                source_version=source.version,
                target_version=held.version,
                attempt=self.attempt,
            ),
        )

    def _action(self, merged: Merge, target_id: str, job: _Path, looks: Looks) -> Action | None:
        """What the history shall say was done between the source and this target; None: nothing."""
        was = job.before[target_id]
        touched = {target_id, SOURCE_SIDE} if merged.winner == target_id else {target_id}
        if job.deleted & touched:
            return Action.DELETE
        digest = looks.held[target_id].digest
        known = agreed_part(was, self.recipe(target_id))
        unsaid = digest is not None and bool(was.parts) and was.parts[0].intended == digest
        if job.written & touched or unsaid:
            # At first contact nothing was known of what was overwritten.
            overwritten = any(looks.found[side].live for side in job.written & touched)
            return Action.UPDATE if known or overwritten else Action.CREATE
        same_key = was.digest_key_id == self.source.place.digester.key_id
        noted = digest is not None and (known is None or (same_key and known.digest != digest))
        return Action.ADOPT if noted else None

    def _in_conflict(
        self, merged: Merge, was: ObjectState, row: ObjectState, looks: Looks, seen: tuple[Sight, ...]
    ) -> Save:
        """Nothing is touched, and what they last agreed on stays what it was."""
        state = replace(row, status=ObjectStatus.CONFLICT, error=merged.reason, transient=False)
        if was.contested is not None and same_sights(was.contested.sides, seen):
            # Known already: what a person has decided meanwhile stays with it.
            return Save(replace(state, contested=was.contested))
        event = Event(
            Action.CONFLICT,
            ObjectStatus.CONFLICT,
            self.run_id,
            attempt=self.attempt,
            error=merged.reason,
            detail=_detail(merged, seen),
        )
        return Save(replace(state, contested=listed_anew(was.contested, seen, looks.held)), event)

    def _failed(self, row: ObjectState, was: ObjectState, error: VaultError) -> Save:
        status = failed_status(row)
        failed = replace(row, status=status, error=str(error), transient=error.transient)
        if (was.status, was.error, was.transient) == (status, failed.error, failed.transient):
            return Save(failed)
        event = Event(Action.FAIL, ObjectStatus.FAILED, self.run_id, attempt=self.attempt, error=failed.error)
        return Save(failed, event)


# --- small helpers ----------------------------------------------------------------------------------------------------


def two_way_recipe(source: Source, target: Target) -> str:
    """Identifies the two places that a target's rows speak of. What a path is called there stands in the row itself."""
    return short_hash([source.vault, source.prefix, source.resource, target.vault])


def agreed_part(row: ObjectState, recipe: str) -> Part | None:
    """What a row says that the source and its target last agreed on; None: nothing, as far as these two places go."""
    if row.status is ObjectStatus.DELETED or not row.parts or row.recipe != recipe:
        return None
    # Without a digest it was about to be written for the first time.
    return row.parts[0] if row.parts[0].digest is not None else None


def _away(before: Mapping[str, ObjectState], looks: Looks) -> list[str]:
    """The parties to a listed conflict that can not be looked at."""
    return [each for each in listed_in(before.values()) if each not in looks.held]


def _held(place: Place, found: Found) -> Held:
    version = found.entry.version if found.entry else None
    if not found.live or found.digest is None:
        return Held(None, None, version)
    if place.by_value:
        return Held(found.digest, f"{place.digester.key_id}:{found.digest}", version)
    return Held(found.digest, found.entry.fingerprint if found.entry else None, version)


def _lags(seat: Seat, path: str, why: str) -> Unavailable:
    return Unavailable(why, vault=seat.place.vault.id, path=path)


def _closed(row: ObjectState, was: ObjectState, why: str) -> Save:
    if is_listed(row):
        return Save(replace(row, status=was.status, error=was.error))
    if row.contested is not None:
        # It has lost, whenever it opens.
        return Save(replace(_as_before(row, was), contested=row.contested))
    if was.parts and was.status is not ObjectStatus.DELETED:
        return Save(_as_before(row, was))
    return Save(replace(row, status=ObjectStatus.SKIPPED, error=why, transient=False))


def _as_before(row: ObjectState, was: ObjectState) -> ObjectState:
    """A row of which nothing became: what was in doubt or failed has been looked at."""
    if was.status in (ObjectStatus.PENDING, ObjectStatus.FAILED, ObjectStatus.CONFLICT):
        known = any(part.digest for part in row.parts)
        status = ObjectStatus.IN_SYNC if known else ObjectStatus.PENDING
        return replace(row, status=status, error=None, transient=False, contested=None)
    return replace(row, status=was.status, error=was.error)


def _direction(back: bool) -> str:
    return "target_to_source" if back else "source_to_target"


def _detail(merged: Merge, seen: tuple[Sight, ...]) -> str:
    sides = [asdict(sight) for sight in seen]
    return json.dumps({"rule": merged.reason, "taken": merged.winner, "sides": sides})
