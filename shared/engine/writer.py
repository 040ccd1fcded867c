"""A write job: for each path read the newest value, compare, write, record.

Every step may be done again by a second delivery, so each begins with what is remembered and, where that is not certain,
with a look at the target. Two jobs never write one path at once: the state row is claimed. A claim can expire under a
job that was frozen, so the last word is the row's revision: who loses it looks again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from shared import jobs
from shared.engine.installation import Installation, backoff
from shared.engine.path_work import Later, PathWork, Settled, fail_event
from shared.engine.probe import Prober
from shared.engine.runs import ATTEMPTS_TO_SAVE, Runs
from shared.errors import StoreError, VaultError
from shared.history import Save
from shared.jobs import WriteJob
from shared.mapping import Mapper
from shared.model import (
    Action,
    Chunk,
    Event,
    ObjectState,
    ObjectStatus,
    Op,
    Outcome,
    Run,
    RunStatus,
    Sync,
    Target,
)
from shared.pacing import counting

log = logging.getLogger("vaultferry.writer")

BATCH = 64
"""Paths claimed, worked on and recorded together: each of the two costs one transaction."""
CLAIM = timedelta(seconds=300)
"""Longer than a batch takes, quick tries and time-outs included. After a crash nobody else may touch its paths sooner,
but for a process on the same machine that knows the holder to be dead."""
BUSY_DELAY = 1.0
DOWN_AFTER = 5
"""Failures in a row after which the rest of a chunk is not even tried: the vault is down."""


@dataclass
class Results:
    """What came of a job's paths."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    later: dict[str, Later] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Whose claims had expired before they could be saved."""
    down: bool = False
    """Some failed for good because a vault did not answer: somebody should see when it does."""
    defect: Exception | None = None
    """What some ended with that is no vault's answer: their message is to come again, and ends in poison."""


class Writer:
    def __init__(self, installation: Installation, runs: Runs, prober: Prober) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs
        self._prober = prober

    async def handle(self, job: WriteJob) -> None:
        """Settle the paths of a job that are still open. What is busy or failed transiently goes back to the queue."""
        chunk = await self._store.get_chunk(job.run, job.chunk)
        run = await self._store.get_run(job.run)
        if chunk is None or run is None:
            log.warning("a write job of an unknown run is dropped", extra={"run": job.run, "sync": job.sync})
            return
        still_open = set(_open_paths(chunk))
        paths = [path for path in job.paths if path in still_open]
        sync = self._in.syncs.get(job.sync)
        target = sync.target(job.target) if sync else None
        with counting() as calls:
            if not paths or chunk.held:
                results = Results()
            elif sync is None or target is None or run.status is RunStatus.CANCELLED:
                results = Results(dict.fromkeys(paths, Outcome.DROPPED))
            else:
                results = await self._settle(run, sync, target, chunk, job, paths)
        if results.outcomes or calls:
            await self._record(chunk, results.outcomes, calls)
        if sync is not None:
            await self._requeue(job, sync, results.later)
        if results.down:
            await self._prober.schedule(job.vault)
        if results.defect is not None:
            raise results.defect
        await self._runs.finish_if_done(job.run)

    async def give_up(self, job: WriteJob) -> None:
        """A job that came back too often without saying why: split it once to find the one that does it, then record it."""
        chunk = await self._store.get_chunk(job.run, job.chunk)
        if chunk is None:
            return
        still_open = [path for path in _open_paths(chunk) if path in job.paths]
        if len(still_open) > 1 and not job.split:
            middle = len(still_open) // 2
            for half in (still_open[:middle], still_open[middle:]):
                await self._send(replace(job, paths=tuple(half), split=True), 0)
            return
        states = await self._store.get_objects(job.sync, job.target, still_open)
        why = "its job ended without an answer several times; see the log of the writer"
        saves = [
            Save(
                replace(
                    states.get(path) or ObjectState(job.sync, job.target, path),
                    status=ObjectStatus.FAILED,
                    error=why,
                    transient=False,
                    run_id=job.run,
                    outcome=Outcome.FAILED,
                    claim=None,
                    claim_expires_at=None,
                ),
                Event(Action.FAIL, ObjectStatus.FAILED, job.run, attempt=job.attempt, error=why),
            )
            for path in still_open
        ]
        await self._store.save_objects(saves)
        await self._record(chunk, dict.fromkeys(still_open, Outcome.FAILED), {})
        await self._runs.finish_if_done(job.run)

    # settling paths ---------------------------------------------------------------------------------------------------

    async def _settle(
        self, run: Run, sync: Sync, target: Target, chunk: Chunk, job: WriteJob, paths: Sequence[str]
    ) -> Results:
        results = Results()
        try:
            source = await self._in.vaults.get(sync.source.vault, sync.source.resource)
            vault = await self._in.vaults.get(target.vault, sync.source.resource)
        except VaultError as error:
            await self._all_failed(run, sync, chunk, job, paths, error, results)
            return results
        work = PathWork(
            sync=sync,
            target=target,
            mapper=Mapper(target, vault.capabilities.names),
            source=source,
            vault=vault,
            store=self._store,
            digester=self._in.digester,
            owner=self._in.owner_marks.get(sync.id),
            run_id=run.run_id,
            attempt=job.attempt,
            clock=self._in.clock,
        )
        down: list[VaultError] = []
        for at in range(0, len(paths), BATCH):
            await self._settle_batch(work, sync, chunk, job, paths[at : at + BATCH], down, results)
            if results.lost:
                # Looked at now: whoever went on may have recorded them already, so that no later job would.
                lost, results.lost = results.lost, []
                await self._settle_batch(work, sync, chunk, job, lost, down, results)
        results.later.update(dict.fromkeys(results.lost, Later(busy=True)))
        return results

    async def _settle_batch(
        self,
        work: PathWork,
        sync: Sync,
        chunk: Chunk,
        job: WriteJob,
        paths: Sequence[str],
        down: list[VaultError],
        results: Results,
    ) -> None:
        claimed = await self._claim(work, chunk, job, paths, results)

        async def one(before: ObjectState, state: ObjectState) -> Settled | Later:
            if len(down) >= DOWN_AFTER:
                return Later(error=down[-1])
            result = await work.run(chunk.op, before, state, cleanup=chunk.cleanup)
            if isinstance(result, Settled):
                down.clear()
            elif result.error is not None:
                down.append(result.error)
            return result

        ended = await asyncio.gather(*(one(before, state) for before, state in claimed), return_exceptions=True)
        saves: list[Save] = []
        outcomes: list[Outcome | Later | None] = []
        for (before, state), result in zip(claimed, ended, strict=True):
            save: Save
            outcome: Outcome | Later | None
            if isinstance(result, Exception):
                # Given back at once, so that its next delivery finds it free, and fails as visibly.
                results.defect = result
                save, outcome = Save(state), None
            elif isinstance(result, BaseException):
                raise result
            elif isinstance(result, Later):
                final = not result.busy and job.attempt >= sync.retry_policy.max_retries
                results.down = results.down or final
                save, outcome = self._later(before, state, result, job, final)
            else:
                save, outcome = Save(result.state, result.event), result.outcome
            released = replace(save.state, claim=None, claim_expires_at=None, last_sync_at=self._in.clock())
            if isinstance(outcome, Outcome):
                released = replace(released, outcome=outcome, run_id=job.run)
            saves.append(Save(released, save.event))
            outcomes.append(outcome)
        saved = await self._store.save_objects(saves)
        for save, kept, outcome in zip(saves, saved, outcomes, strict=True):
            if outcome is None:
                continue
            if kept is None:
                # The claim had expired and somebody else went on: what we know is old.
                await self._doubt(save.state)
                results.lost.append(save.state.path)
            elif isinstance(outcome, Later):
                results.later[save.state.path] = outcome
            else:
                results.outcomes[save.state.path] = outcome
                _log_path(sync, job, save, outcome)

    async def _doubt(self, ours: ObjectState) -> None:
        """Who went on does not know that we wrote behind its back: nobody is to trust its record before a look."""
        for _ in range(ATTEMPTS_TO_SAVE):
            known = await self._store.get_objects(ours.sync_id, ours.target, [ours.path])
            theirs = known[ours.path]
            parts = (*theirs.parts, *(part for part in ours.parts if theirs.part(part.name) is None))
            doubted = replace(theirs, parts=parts, status=ObjectStatus.PENDING, outcome=Outcome.OPEN)
            if (await self._store.save_objects([Save(doubted)]))[0] is not None:
                return
        raise StoreError(f"{ours.path!r} of sync {ours.sync_id!r} could not be saved: its record keeps changing")

    async def _claim(
        self, work: PathWork, chunk: Chunk, job: WriteJob, paths: Sequence[str], results: Results
    ) -> list[tuple[ObjectState, ObjectState]]:
        """Claim what nobody else works on. Answers (as it was, as it is claimed); the rest is settled or busy."""
        now = self._in.clock()
        known = await self._store.get_objects(job.sync, job.target, paths)
        before: list[ObjectState] = []
        saves: list[Save] = []
        for path in paths:
            state = known.get(path) or ObjectState(job.sync, job.target, path)
            if state.claim and state.claim_expires_at and state.claim_expires_at > now:
                results.later[path] = Later(busy=True)
            elif _settled_by(state, job, chunk.op):
                # This run has dealt with it, and died before it could say so.
                results.outcomes[path] = state.outcome
            else:
                before.append(state)
                parts = work.intended(chunk.op, state)
                saves.append(
                    Save(
                        replace(
                            state,
                            parts=parts,
                            status=ObjectStatus.PENDING,
                            run_id=job.run,
                            outcome=Outcome.OPEN,
                            claim=f"{self._store.owner}:{uuid.uuid4().hex}",
                            claim_expires_at=now + CLAIM,
                        )
                    )
                )
        saved = await self._store.save_objects(saves) if saves else []
        claimed = []
        for old, save, kept in zip(before, saves, saved, strict=True):
            if kept is None:
                results.later[save.state.path] = Later(busy=True)
            else:
                claimed.append((old, kept))
        return claimed

    def _later(
        self, before: ObjectState, state: ObjectState, later: Later, job: WriteJob, final: bool
    ) -> tuple[Save, Outcome | Later]:
        """What to save for a path that could not be settled now: given back, or failed when its retries are used up."""
        state = later.state or state
        if not final:
            # A failure that stays is not news: the status that tells it from a new one is kept for the last try.
            status = ObjectStatus.FAILED if before.status is ObjectStatus.FAILED else state.status
            return Save(replace(state, status=status, error=str(later.error) if later.error else state.error)), later
        error = str(later.error)
        failed = replace(state, status=ObjectStatus.FAILED, error=error, transient=True)
        return Save(failed, fail_event(before, failed, job.run, job.attempt)), Outcome.FAILED

    async def _all_failed(
        self,
        run: Run,
        sync: Sync,
        chunk: Chunk,
        job: WriteJob,
        paths: Sequence[str],
        error: VaultError,
        results: Results,
    ) -> None:
        """A vault can not even be opened."""
        if error.transient and job.attempt < sync.retry_policy.max_retries:
            for path in paths:
                results.later[path] = Later(error=error)
            return
        results.down = error.transient
        states = await self._store.get_objects(job.sync, job.target, paths)
        saves = []
        for path in paths:
            before = states.get(path) or ObjectState(job.sync, job.target, path)
            failed = replace(
                before,
                status=ObjectStatus.FAILED,
                error=str(error),
                transient=error.transient,
                run_id=job.run,
                outcome=Outcome.FAILED,
                last_sync_at=self._in.clock(),
            )
            saves.append(Save(failed, fail_event(before, failed, job.run, job.attempt)))
        for save, kept in zip(saves, await self._store.save_objects(saves), strict=True):
            if kept is None:
                results.later[save.state.path] = Later(busy=True)
            else:
                results.outcomes[save.state.path] = Outcome.FAILED

    # after -----------------------------------------------------------------------------------------------------------

    async def _record(self, chunk: Chunk, outcomes: Mapping[str, Outcome], calls: Mapping[str, int]) -> None:
        """Note how paths ended. The first outcome of a path stays, whoever comes later."""
        current: Chunk | None = chunk
        for _ in range(ATTEMPTS_TO_SAVE):
            if current is None:
                return
            letters = "".join(
                outcomes.get(path, Outcome.OPEN) if letter == Outcome.OPEN else letter
                for path, letter in zip(current.paths, current.outcomes, strict=True)
            )
            total = {vault: current.calls.get(vault, 0) + calls.get(vault, 0) for vault in {*current.calls, *calls}}
            if await self._store.save_chunk(replace(current, outcomes=letters, calls=total)):
                return
            current = await self._store.get_chunk(chunk.run_id, chunk.chunk)
        raise StoreError(f"chunk {chunk.chunk} of run {chunk.run_id} could not be saved: it keeps changing")

    async def _requeue(self, job: WriteJob, sync: Sync, later: Mapping[str, Later]) -> None:
        busy = [path for path, why in later.items() if why.busy]
        failed = {path: why for path, why in later.items() if not why.busy}
        if busy:
            await self._send(replace(job, paths=tuple(busy)), BUSY_DELAY)
        if failed:
            asked = max((why.retry_after for why in failed.values() if why.retry_after), default=None)
            attempt = job.attempt + 1
            delay = backoff(sync.retry_policy, attempt, asked)
            log.info(
                "%d paths are tried again in %.1f s: %s",
                len(failed),
                delay,
                next(iter(failed.values())).error,
                extra={"sync": job.sync, "run": job.run, "target": job.target, "attempt": attempt},
            )
            await self._send(replace(job, paths=tuple(failed), attempt=attempt), delay)

    async def _send(self, job: WriteJob, delay: float) -> None:
        await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(job), delay=delay)


def _open_paths(chunk: Chunk) -> list[str]:
    return [path for path, letter in zip(chunk.paths, chunk.outcomes, strict=True) if letter == Outcome.OPEN]


def _settled_by(state: ObjectState, job: WriteJob, op: Op) -> bool:
    """Whether this run has settled this path already, by a job of the same sort."""
    if state.run_id != job.run or state.status is ObjectStatus.PENDING or state.outcome is Outcome.OPEN:
        return False
    return (state.outcome is Outcome.DELETED) == (op is Op.DELETE)


def _log_path(sync: Sync, job: WriteJob, save: Save, outcome: Outcome) -> None:
    extra = {"sync": sync.id, "run": job.run, "target": job.target, "path": save.state.path, "attempt": job.attempt}
    if outcome in (Outcome.FAILED, Outcome.CONFLICT):
        log.warning("%s: %s", outcome.name.lower(), save.state.error, extra=extra)
    elif outcome in (Outcome.WRITTEN, Outcome.REPAIRED, Outcome.DELETED):
        log.debug("%s", outcome.name.lower(), extra=extra)
