"""A write job: for each path read the newest value, compare, write, record.

Every step may be done again by a second delivery, so each begins with what is remembered and, where that is not certain,
with a look at the target. Two jobs never write one path at once: the state row is claimed. A claim can expire under a
job that was frozen, so the last word is the row's revision: who loses it looks again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared import jobs
from shared.engine.installation import Installation
from shared.engine.merger import Came, Merger
from shared.engine.path_work import Later, PathWork, Settled
from shared.engine.planned_work import PlannedWork
from shared.engine.probe import Prober
from shared.engine.runs import ATTEMPTS_TO_SAVE, Runs
from shared.engine.saved_plan import SavedPlans, carries_out_plan
from shared.engine.settling import BATCH, Claimed, Results, Settler, put_off, settled_by
from shared.errors import ConfigError, StoreError, VaultError
from shared.jobs import WriteJob
from shared.model import Chunk, ObjectState, Outcome, Part, Run, RunStatus, Sync, Target
from shared.pacing import counting

log = logging.getLogger("vaultferry.writer")

BUSY_DELAY = 1.0


class Writer:
    def __init__(self, installation: Installation, runs: Runs, prober: Prober, merger: Merger) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs
        self._prober = prober
        self._merger = merger
        self._settler = Settler(installation)
        self._plans = SavedPlans(installation.store)

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
        target = sync.unit(job.target) if sync else None
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
            for vault in sorted(results.silent or {job.vault}):
                await self._prober.schedule(vault)
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
        sync = self._in.syncs.get(job.sync)
        target = sync.row_target(job.target) if sync else job.target
        await self._settler.give_up(job.sync, target, still_open, run_id=job.run, attempt=job.attempt)
        await self._record(chunk, dict.fromkeys(still_open, Outcome.FAILED), {})
        await self._runs.finish_if_done(job.run)

    # settling paths ---------------------------------------------------------------------------------------------------

    async def _settle(
        self, run: Run, sync: Sync, target: Target, chunk: Chunk, job: WriteJob, paths: Sequence[str]
    ) -> Results:
        if sync.two_way:
            return await self._merge(run, sync, chunk, job, paths)
        results = Results()
        try:
            work = await self._settler.work(sync, target, run.run_id, job.attempt)
            if carries_out_plan(run):
                work = PlannedWork.of(work, (await self._plans.get(run.run_id)).bases(target.id, chunk.op, paths))
        except (VaultError, ConfigError) as error:
            await self._settler.unopened(sync, target, paths, error, results, run_id=run.run_id, attempt=job.attempt)
            return results

        async def one(each: Claimed) -> Settled | Later:
            return await work.run(chunk.op, each.before, each.state, cleanup=chunk.cleanup)

        for at in range(0, len(paths), BATCH):
            await self._settler.settle(
                work, await self._claim(work, chunk, job, paths[at : at + BATCH], results), one, results
            )
            if results.lost:
                # Looked at now: whoever went on may have recorded them already, so that no later job would.
                lost, results.lost = results.lost, []
                await self._settler.settle(work, await self._claim(work, chunk, job, lost, results), one, results)
        results.later.update(dict.fromkeys(results.lost, Later(busy=True)))
        return results

    async def _merge(self, run: Run, sync: Sync, chunk: Chunk, job: WriteJob, paths: Sequence[str]) -> Results:
        came = Came()
        await self._merger.settle(sync, chunk.op, paths, came, run_id=run.run_id, attempt=job.attempt)
        if came.deletes:
            # What was deleted since the plan was made is the next plan's to count.
            await self._runs.recover(sync.id)
            await self._prober.schedule(job.vault)
        return came

    async def _claim(
        self, work: PathWork, chunk: Chunk, job: WriteJob, paths: Sequence[str], results: Results
    ) -> list[Claimed]:
        """Claim what nobody else works on; the rest is settled already, or busy."""
        now = self._in.clock()
        known = await self._store.get_objects(job.sync, job.target, paths)
        todo: list[tuple[ObjectState, tuple[Part, ...]]] = []
        for path in paths:
            state = known.get(path) or ObjectState(job.sync, job.target, path)
            if state.claim_left(now):
                results.later[path] = Later(busy=True)
            elif settled_by(state, job.run, chunk.op):
                # This run has dealt with it, and died before it could say so.
                results.outcomes[path] = state.outcome
            else:
                todo.append((state, work.intended(chunk.op, state)))
        return await self._settler.claim(work, todo, results)

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
            attempt = job.attempt + 1
            about = {"sync": job.sync, "run": job.run, "target": job.target}
            delay = put_off(sync.retry_policy, failed, attempt, log, about)
            await self._send(replace(job, paths=tuple(failed), attempt=attempt), delay)

    async def _send(self, job: WriteJob, delay: float) -> None:
        await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(job), delay=delay)


def _open_paths(chunk: Chunk) -> list[str]:
    return [path for path, letter in zip(chunk.paths, chunk.outcomes, strict=True) if letter == Outcome.OPEN]
