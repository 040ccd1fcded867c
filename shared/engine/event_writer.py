"""An event's job: look at some paths of one target, now.

It does what a run does for one path, without the run. What is known already costs nothing. The rest is read from the
source first and claimed afterwards, on the row as it was before the read: who looked in between has changed the row, so an
older value can not win, what needs no write needs no claim either, and one step notes both the claim and what is
about to be written. So whoever looks saves the row, also where there is nothing to do: that a value was put back, or that
a secret which was never carried is gone, is known to nobody else.

A run on its way keeps its own account of a path (`ObjectState.run_id`, `outcome`): events leave it alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from shared import jobs
from shared.engine.delete_window import DeleteWindow, Held
from shared.engine.installation import Installation
from shared.engine.merger import Merger
from shared.engine.outage import Outage
from shared.engine.path_work import Later, PathWork, Settled, Wanted, forgotten, is_uncertain
from shared.engine.probe import Prober
from shared.engine.runs import Runs
from shared.engine.settling import BATCH, CLAIM, LAG_DELAY, LAG_TRIES, Claimed, Results, Settler, put_off
from shared.engine.shared_reads import SharedReads
from shared.errors import AccessDenied, ConfigError, InvalidSecret, SecretNotFound, VaultError
from shared.history import Save
from shared.jobs import EventJob
from shared.mapping import is_shared_name, why_left_out
from shared.model import SOURCE_SIDE, ObjectState, ObjectStatus, Op, Outcome, Part, Secret, Sync
from shared.notices import is_known, merged

log = logging.getLogger("vaultferry.events")

BUSY_DELAY = 0.1


@dataclass
class _Came(Results):
    """What came of an event's paths."""

    unread: Outage = field(default_factory=Outage)
    """The source's."""
    plan: str | None = None
    """Why a run must look at the whole sync."""
    held: str | None = None
    """Why one must, soon after the one that was begun a moment ago."""


_Todo: TypeAlias = tuple[ObjectState, tuple[Part, ...]]
_Read: TypeAlias = Secret | VaultError | Settled | None


class EventWriter:
    def __init__(
        self, installation: Installation, runs: Runs, prober: Prober, reads: SharedReads, merger: Merger
    ) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs
        self._prober = prober
        self._reads = reads
        self._merger = merger
        self._settler = Settler(installation)
        self._window = DeleteWindow(installation)

    async def handle(self, job: EventJob) -> None:
        """Bring the paths of a job up to date. What is busy or failed transiently goes back to the queue."""
        sync = self._in.syncs.get(job.sync)
        if sync is not None and sync.two_way and sync.enabled:
            await self._merger.event(job, sync)
            return
        target = sync.target(job.target) if sync else None
        hints = merged(job.hints)
        extra = {"sync": job.sync, "target": job.target}
        if sync is not None and sync.enabled and target is None and job.target == SOURCE_SIDE:
            # The sync was two-way when this was heard.
            await self._runs.rerun(sync.id)
            return
        if sync is None or target is None or not sync.enabled:
            log.info("an event of a sync that is not there any more is dropped", extra=extra)
            return
        paths = [path for path in hints if why_left_out(sync, path) is None]
        if len(paths) < len(hints):
            log.info("%d paths that the sync does not cover any more are dropped", len(hints) - len(paths), extra=extra)
        if not paths:
            return
        first = self._store.get_objects(job.sync, job.target, paths[:BATCH])
        control, known = await asyncio.gather(self._store.get_control(sync.id), first)
        if control.paused:
            await self._runs.rerun(sync.id)
            return
        came = _Came()
        try:
            work = await self._settler.work(sync, target, None, job.attempt)
        except (VaultError, ConfigError) as error:
            await self._settler.unopened(sync, target, paths, error, came, run_id=None, attempt=job.attempt)
        else:
            for at in range(0, len(paths), BATCH):
                some = paths[at : at + BATCH]
                if at:
                    known = await self._store.get_objects(job.sync, job.target, some)
                await self._look(work, job, {path: hints[path] for path in some}, known, came)
        if came.plan is not None:
            log.warning("left to a run: %s", came.plan, extra=extra)
            await self._runs.rerun(sync.id)
        elif came.held is not None:
            log.info("left to the next run: %s", came.held, extra=extra)
            await self._runs.recover(sync.id)
            await self._prober.schedule(job.vault)
        await self._requeue(job, sync, hints, came)
        if came.down:
            await self._prober.schedule(job.vault)
        if came.defect is not None:
            raise came.defect

    async def give_up(self, job: EventJob) -> None:
        """A job that came back too often without saying why: split it once to find the one that does it, then record it."""
        if len(job.hints) > 1 and not job.split:
            middle = len(job.hints) // 2
            for half in (job.hints[:middle], job.hints[middle:]):
                await self._send(replace(job, hints=half, split=True, told=None), 0)
            return
        sync = self._in.syncs.get(job.sync)
        if sync is None or (sync.target(job.target) is None and not sync.two_way):
            return
        paths = list(merged(job.hints))
        target = sync.row_target(job.target)
        await self._settler.give_up(job.sync, target, paths, run_id=None, attempt=job.attempt)
        # What may only have been beside the culprit in its message is nobody's otherwise.
        await self._runs.rerun(job.sync)

    # one batch --------------------------------------------------------------------------------------------------------

    async def _look(
        self,
        work: PathWork,
        job: EventJob,
        hints: Mapping[str, str | None],
        known: Mapping[str, ObjectState],
        came: _Came,
    ) -> None:
        now = self._in.clock()
        states: list[ObjectState] = []
        for path, hint in hints.items():
            state = known.get(path) or ObjectState(job.sync, job.target, path)
            if left := state.claim_left(now):
                came.later[path] = Later(busy=True)
                came.since[path] = (CLAIM - left).total_seconds()
            elif state.status is ObjectStatus.FAILED and is_shared_name(state.error):
                came.plan = state.error
            elif not _is_old_news(work, state, hint):
                states.append(state)
        read = await asyncio.gather(*(self._read(work, job, state, came) for state in states), return_exceptions=True)
        write: list[_Todo] = []
        early: dict[str, Wanted] = {}
        delete: list[_Todo] = []
        saves: list[Save] = []
        failed: list[ObjectState] = []
        errors: dict[str, VaultError | ConfigError] = {}
        for state, result in zip(states, read, strict=True):
            path = state.path
            match result:
                case Secret():
                    if _is_behind(job, state, hints[path], result):
                        came.later[path] = Later(behind=True)
                        continue
                    if _went_back(state, result):
                        # As long as the row tells of a higher version, events of lower ones are old news: it has to stop
                        # before the source is read for good.
                        saves.append(Save(replace(state, source_version=None)))
                        came.later[path] = Later(busy=True)
                        continue
                    try:
                        wanted = work.wanted(path, result)
                    except InvalidSecret as error:
                        failed.append(state)
                        errors[path] = error
                        continue
                    except Exception as error:  # noqa: BLE001 - what one value does to us holds up no other
                        came.defect = error
                        continue
                    if not _holds(work, state, wanted):
                        early[path] = wanted
                        write.append((state, _intended(work, state, wanted)))
                    elif (settled := _settled_with(work, state, result)) is not None:
                        saves.append(Save(settled))
                case None:
                    if hints[path] is not None and job.attempt < LAG_TRIES:
                        came.later[path] = Later(behind=True)
                    elif not any(part.owned for part in state.parts):
                        gone = replace(forgotten(state), claim=None, claim_expires_at=None)
                        saves.append(Save(replace(gone, last_sync_at=self._in.clock())))
                    elif work.sync.delete.propagate:
                        delete.append((state, state.parts))
                case Settled():
                    saves += [Save(result.state)] if result.state.revision is None else []
                case VaultError():
                    if result.transient and job.attempt < work.sync.retry_policy.max_retries:
                        came.later[path] = Later(error=result)
                    else:
                        came.down = came.down or result.transient
                        failed.append(state)
                        errors[path] = result
                case Exception():
                    came.defect = result
                case _:
                    raise result
        await self._settler.fail(failed, errors, came, run_id=None, attempt=job.attempt)
        await self._save(saves, came)
        await self._write(work, write, early, came)
        await self._delete(work, delete, came)

    async def _read(self, work: PathWork, job: EventJob, state: ObjectState, came: _Came) -> _Read:
        """What the source holds; None: it is gone by the source's own word; or what stands in the way."""
        pacer = work.source.pacer
        if (down := came.unread.error(pacer) or came.outage.error(work.vault.pacer)) is not None:
            return down
        begun = pacer.answered
        result = await self._ask(work, job, state)
        if isinstance(result, VaultError) and result.transient:
            came.unread.failed(pacer, begun, result)
        return result

    async def _ask(self, work: PathWork, job: EventJob, state: ObjectState) -> _Read:
        try:
            others = len(work.sync.targets) - 1
            ours = job.told is not None and job.told[0] == self._store.owner
            # Of a path whose last job did not end well, nobody knows what it has written since another's read.
            if others and job.told is not None and ours and not is_uncertain(state):
                return await self._reads.read(
                    (job.sync, state.path),
                    lambda: work.read_source(state.path),
                    told=job.told[1],
                    settled_at=state.last_sync_at,
                    others=others,
                )
            return await work.read_source(state.path)
        except SecretNotFound:
            return None
        except AccessDenied as error:
            try:
                disabled = await work.is_disabled(state.path)
            except VaultError as second:
                return second
            return work.left_disabled(state, state) if disabled else error
        except VaultError as error:
            return error

    async def _save(self, saves: Sequence[Save], came: _Came) -> None:
        if saves:
            for save, kept in zip(saves, await self._store.save_objects(saves), strict=True):
                if kept is None:
                    came.later[save.state.path] = Later(busy=True)

    async def _write(
        self,
        work: PathWork,
        write: Sequence[_Todo],
        early: Mapping[str, Wanted],
        came: _Came,
    ) -> None:
        async def one(each: Claimed) -> Settled | Later:
            # Names of an old mapping are for a plan to remove, which counts them first.
            cleanup = each.before.recipe in (None, work.mapper.recipe)
            op = Op.CREATE if each.state.parts and not each.before.parts else Op.UPDATE
            return await work.run(op, each.before, each.state, cleanup=cleanup, early=early[each.before.path])

        await self._settle(work, write, one, came)

    async def _delete(self, work: PathWork, delete: Sequence[_Todo], came: _Came) -> None:
        if not delete:
            return
        reserved = await self._window.reserve(work.sync, work.target.id, len(delete))
        if isinstance(reserved, Held):
            more = f" and {len(delete) - 1:,} more" if len(delete) > 1 else ""
            why = f"{delete[0][0].path!r}{more} would be deleted: {reserved.why}"
            if reserved.first:
                came.plan = why
            else:
                came.held = why
            return

        async def one(each: Claimed) -> Settled | Later:
            return await work.run(Op.DELETE, each.before, each.state, cleanup=True)

        await self._settle(work, delete, one, came)
        left = sum(came.outcomes.get(state.path) is not Outcome.DELETED for state, _ in delete)
        await self._window.give_back(reserved, left)

    async def _settle(
        self,
        work: PathWork,
        todo: Sequence[_Todo],
        one: Callable[[Claimed], Awaitable[Settled | Later]],
        came: _Came,
    ) -> None:
        await self._settler.settle(work, await self._settler.claim(work, todo, came), one, came)
        came.later.update((path, Later(busy=True)) for path in came.lost)
        came.lost.clear()
        for path in [path for path, why in came.later.items() if why.for_plan]:
            del came.later[path]
            came.plan = f"{path!r} would be written to a name that is taken"

    # after ------------------------------------------------------------------------------------------------------------

    async def _requeue(self, job: EventJob, sync: Sync, hints: Mapping[str, str | None], came: _Came) -> None:
        def again(paths: Sequence[str], attempt: int) -> EventJob:
            some = tuple((path, hints[path]) for path in paths)
            return replace(job, hints=some, attempt=attempt, told=None)

        busy, behind, failed = came.again()
        if busy:
            await self._send(again(busy, job.attempt), came.busy_delay(busy, BUSY_DELAY))
        if behind:
            await self._send(again(behind, job.attempt + 1), LAG_DELAY * 2**job.attempt)
        if failed:
            attempt = job.attempt + 1
            delay = put_off(sync.retry_policy, failed, attempt, log, {"sync": job.sync, "target": job.target})
            await self._send(again(list(failed), attempt), delay)

    async def _send(self, job: EventJob, delay: float) -> None:
        await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(job), delay=delay)


def _is_behind(job: EventJob, state: ObjectState, hint: str | None, secret: Secret) -> bool:
    """Whether the source shows an older version than was told of, or than was carried already, and may yet show another."""
    return job.attempt < LAG_TRIES and (_is_older(secret, hint) or _went_back(state, secret))


def _went_back(state: ObjectState, secret: Secret) -> bool:
    """Whether the source shows an older version than was carried already."""
    return state.status is ObjectStatus.IN_SYNC and _is_older(secret, state.source_version)


def _is_older(secret: Secret, version: str | None) -> bool:
    have = secret.entry.version if secret.entry else None
    numbers = have is not None and have.isdecimal() and version is not None and version.isdecimal()
    return numbers and not is_known(have, version)


def _is_old_news(work: PathWork, state: ObjectState, hint: str | None) -> bool:
    if state.status is not ObjectStatus.IN_SYNC or state.recipe != work.mapper.recipe:
        return False
    return is_known(state.source_version, hint)


def _holds(work: PathWork, state: ObjectState, wanted: Wanted) -> bool:
    """Whether the target was left with exactly this."""
    return (
        state.status is ObjectStatus.IN_SYNC
        and state.recipe == work.mapper.recipe
        and state.digest_key_id == work.digester.key_id
        and wanted.digests == {part.name: part.digest for part in state.parts}
    )


def _settled_with(work: PathWork, state: ObjectState, secret: Secret) -> ObjectState | None:
    """The row of a path that needs no write; None: it says so already. A value without a version may be one that was put
    back while another job still carries the one in between."""
    version = secret.entry.version if secret.entry else None
    fingerprint = work.source_fingerprint(secret)
    if version is not None and (version, fingerprint) == (state.source_version, state.source_fingerprint):
        return None
    return replace(state, source_version=version, source_fingerprint=fingerprint, last_sync_at=work.clock())


def _intended(work: PathWork, state: ObjectState, wanted: Wanted) -> tuple[Part, ...]:
    """The parts that are noted before a path is written. Where nothing of it was ever there, the write itself notices if
    something of somebody else's is."""
    new = state.revision is None and work.attempt == 0 and work.vault.capabilities.compare_and_set
    if not new or work.mapper.by_field:
        return state.parts
    return tuple(Part(name, intended=digest) for name, digest in wanted.stored.items())
