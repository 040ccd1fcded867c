"""A run's life: begun once, joined by whoever comes second, finished when the last chunk is in."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from shared import jobs
from shared.engine.by_hand import RESOLVE, taken_side, unsettled
from shared.engine.document import PlanDocument
from shared.engine.installation import Installation
from shared.engine.saved_plan import TRIGGER as PLAN_TRIGGER
from shared.engine.saved_plan import carries_out_plan, why_not
from shared.engine.tally import add_to_totals, summarise, verdict
from shared.errors import Refused, StoreError
from shared.history import Save
from shared.jobs import PlanJob, WriteJob
from shared.model import Chunk, Control, ObjectState, ObjectStatus, Progress, Run, RunStatus, Sync, new_run_id

log = logging.getLogger("vaultferry.runs")

COUNTS = ("written", "unchanged", "deleted", "failed", "conflicts", "drifted")
"""Of an ended run, in the log too: the alerts and charts of infra/ read them there."""
ATTEMPTS_TO_SAVE = 20
"""How often a conditional save is tried anew before the job is given back: each loss means that somebody else won."""
RECOVERY = "recovery"
"""Noted for a run that makes up for what an earlier one did not see. A probe begins it, not that one's end."""
LOST_PLAN = timedelta(seconds=30)
"""A run that is still queued after this long may have lost its plan job between two steps: it is sent again."""


class Runs:
    def __init__(self, installation: Installation) -> None:
        self._syncs = installation.syncs
        self._store = installation.store
        self._queues = installation.queues
        self._clock = installation.clock

    def sync(self, sync_id: str) -> Sync:
        """A configured sync. Raises Refused."""
        try:
            return self._syncs[sync_id]
        except KeyError:
            raise Refused(f"there is no sync {sync_id!r} in the configuration", unknown=True) from None

    def _enabled(self, sync_id: str) -> Sync:
        """A configured sync that may run. Raises Refused."""
        sync = self.sync(sync_id)
        if not sync.enabled:
            raise Refused(f"sync {sync_id!r} is disabled in the configuration")
        return sync

    # beginning --------------------------------------------------------------------------------------------------

    async def start(
        self,
        sync_id: str,
        *,
        trigger: str,
        dry_run: bool = False,
        allow_deletes: bool = False,
        paths: Sequence[str] | None = None,
        plan: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run and queue its planning, or return the one that is on its way. Raises Refused.

        A dry run writes nothing, so it neither waits for another nor stands in its way. With a `plan` (whole, as
        `read_whole_plan` gives it), the run carries out exactly that, and joins no other.
        """
        sync = self._enabled(sync_id)
        if plan is not None and (why := why_not(sync, plan)) is not None:
            raise Refused(f"this plan can not be carried out: {why}")
        for _ in range(ATTEMPTS_TO_SAVE):
            now = self._clock()
            run = Run(
                run_id=new_run_id(now),
                sync_id=sync_id,
                trigger=trigger if plan is None else PLAN_TRIGGER,
                created_at=now,
                dry_run=dry_run,
                allow_deletes=allow_deletes,
                paths=None if paths is None else tuple(paths),
            )
            if not dry_run:
                control = await self._store.get_control(sync_id)
                _check_not_paused(control)
                if control.active_run and (active := await self._active(control.active_run, now)):
                    if plan is not None:
                        raise Refused(f"run {active.run_id} is on its way, and changes what was planned; plan again")
                    return active
            saved = await self._store.save_run(run)
            if saved is None:
                continue
            if plan is not None:
                # Before anybody can begin to plan it.
                await PlanDocument(self._store, run.run_id).save(plan)
            if not dry_run:
                # A full run that begins now sees all that was to be looked at again.
                again = control.again if run.paths is not None or plan is not None else None
                if not await self._store.save_control(replace(control, active_run=run.run_id, again=again)):
                    await self._store.save_run(
                        replace(saved, status=RunStatus.CANCELLED, finished_at=now, error="another run began first")
                    )
                    continue
            await self._send_plan(saved)
            log.info("run queued", extra={"sync": sync_id, "run": run.run_id, "trigger": trigger})
            return saved
        raise StoreError(f"sync {sync_id!r} could not be started: its record keeps changing")

    async def _active(self, run_id: str, now: datetime) -> Run | None:
        run = await self._store.get_run(run_id)
        if run is None or not run.status.active:
            return None
        if run.status is RunStatus.QUEUED and now - run.created_at > LOST_PLAN:
            await self._send_plan(run)
        return run

    async def _send_plan(self, run: Run) -> None:
        await self._queues.send(jobs.PLAN_QUEUE, jobs.encode(PlanJob(run=run.run_id, sync=run.sync_id)))

    async def replay(self, sync_id: str, path: str | None = None, *, transient_only: bool = False) -> Run:
        """Try the failed paths of a sync again (or `path`, whatever its state). Raises Refused when there are none."""
        self.sync(sync_id)
        if path is not None:
            return await self.start(sync_id, trigger="replay", paths=[path])
        rows = self._store.list_objects(sync_id, status=ObjectStatus.FAILED)
        failed = sorted({row.path async for row in (self.unanswered(sync_id) if transient_only else rows)})
        if not failed:
            raise Refused(f"sync {sync_id!r} has no failed secret to replay")
        # More than this and the run's own record would grow too large: a full run covers the failed ones too.
        return await self.start(sync_id, trigger="replay", paths=failed if len(failed) <= 500 else None)

    async def unanswered(self, sync_id: str, target: str | None = None) -> AsyncIterator[ObjectState]:
        """The rows of what could not be done for want of an answer, conflicts that stay listed meanwhile included."""
        for status in (ObjectStatus.FAILED, ObjectStatus.CONFLICT):
            async for row in self._store.list_objects(sync_id, target=target, status=status):
                if row.transient:
                    yield row

    async def resolve(self, sync_id: str, path: str, take: str, target: str | None = None) -> Run:
        """Settle a conflict of a two-way sync by hand: note that all sides are to get the value of `take` (`source`, or
        `target`: the one named, where several are in question), and begin a run that carries it out.

        Returns that run, or the one that is on its way, which another then follows. Told twice, it is done once. The
        decision lapses where another side has changed since the conflict was found. Raises Refused.
        """
        sync = self._enabled(sync_id)
        for _ in range(ATTEMPTS_TO_SAVE):
            _check_not_paused(await self._store.get_control(sync_id))
            found = [await self._store.get_objects(sync_id, each.id, [path]) for each in sync.targets]
            rows = [row for rows in found for row in rows.values()]
            side = taken_side(sync, path, rows, take, target)
            asked = [(row, row.contested) for row in unsettled(rows) if row.contested is not None]
            decided: list[Save] = []
            if any(contested.take != side for _, contested in asked):
                # All of them: they were read one by one, and only a save tells of one that is not as it was read.
                decided = [Save(replace(row, contested=replace(each, take=side, taken=None))) for row, each in asked]
            if None not in await self._store.save_objects(decided):
                return await self._carry_out(sync_id, path)
        raise StoreError(f"{path!r} of sync {sync_id!r} could not be settled: its record keeps changing")

    async def _carry_out(self, sync_id: str, path: str) -> Run:
        """Begin a run for a path whose row was just changed, or see to it that one follows the run that is on its way."""
        run = await self.start(sync_id, trigger=RESOLVE, paths=[path])
        if run.status is RunStatus.QUEUED and run.paths is not None and path in run.paths:
            return run
        # What is on its way may have passed this path already.
        await self.rerun(sync_id, RESOLVE)
        following = (await self._store.get_control(sync_id)).active_run
        return (await self._store.get_run(following) if following else None) or run

    # beginning again ----------------------------------------------------------------------------------------------

    async def rerun(self, sync_id: str, trigger: str = "event") -> None:
        """See to it that a full run of a sync begins after this moment: now, or when the active one has ended, or when
        the sync is resumed. It is noted before anything else, so that it survives whatever comes. Raises Refused."""
        self.sync(sync_id)
        for _ in range(ATTEMPTS_TO_SAVE):
            control = await self._store.get_control(sync_id)
            if control.active_run and not control.paused:
                active = await self._store.get_run(control.active_run)
                full = active is not None and active.paths is None and not carries_out_plan(active)
                if active is not None and full and active.status is RunStatus.QUEUED:
                    # It has not begun to look at anything. Sent again, because whoever queued it may have died before.
                    await self._send_plan(active)
                    return
            # What waits for a probe waits no longer.
            noted = control.again not in (None, RECOVERY)
            if noted or await self._store.save_control(replace(control, again=trigger)):
                await self.go_on(sync_id)
                return
        raise StoreError(f"sync {sync_id!r} could not be noted for another run: its record keeps changing")

    async def recover(self, sync_id: str) -> None:
        """See to it that a full run begins after this moment, though not at once: a probe, sent after this, begins it."""
        for _ in range(ATTEMPTS_TO_SAVE):
            control = await self._store.get_control(sync_id)
            if control.again or await self._store.save_control(replace(control, again=RECOVERY)):
                return
        raise StoreError(f"sync {sync_id!r} could not be noted for another run: its record keeps changing")

    async def go_on(self, sync_id: str, *, after_run: bool = False) -> None:
        """Begin the run that `rerun` asked for, if nothing stands in its way any more: because a run has ended
        (`after_run`), or because somebody asks."""
        sync = self._syncs.get(sync_id)
        if sync is None or not sync.enabled:
            return
        control = await self._store.get_control(sync_id)
        if control.active_run:
            active = await self._store.get_run(control.active_run)
            if active is not None and active.status is RunStatus.QUEUED:
                # Whoever began it may have died before its plan job was sent.
                await self._send_plan(active)
            if active is not None and active.status.active:
                return
        if not control.again or control.paused or (after_run and control.again == RECOVERY):
            return
        try:
            await self.start(sync_id, trigger="event" if control.again == RECOVERY else control.again)
        except Refused as refused:
            # Paused this very moment: begun when it is resumed.
            log.info("the run is begun later: %s", refused, extra={"sync": sync_id})

    # looking ----------------------------------------------------------------------------------------------------

    async def view(self, run_id: str) -> Run:
        """A run with its counts as they are this moment. Raises Refused."""
        run = await self._store.get_run(run_id)
        if run is None:
            raise Refused(f"there is no run {run_id!r}", unknown=True)
        if run.dry_run or not run.status.active:
            return run
        return summarise(run, await self._store.list_progress(run_id), await self._store.list_chunks(run_id))

    # ending -----------------------------------------------------------------------------------------------------

    async def finish_if_done(self, run_id: str) -> Run | None:
        """Close a run whose planning is finished and whose chunks are all in. Called after every job; idempotent."""
        for _ in range(ATTEMPTS_TO_SAVE):
            run = await self._store.get_run(run_id)
            if run is None or run.status is not RunStatus.RUNNING:
                if run is not None and not run.status.active:
                    # Whoever ended it may have died before the next one was begun.
                    await self.go_on(run.sync_id, after_run=True)
                return run
            if await self._store.has_open_chunks(run_id):
                return run
            chunks = await self._store.list_chunks(run_id)
            progress = await self._store.list_progress(run_id)
            counted = summarise(run, progress, chunks)
            status, error = verdict(counted, progress, chunks)
            ended = replace(counted, status=status, error=error)
            if saved := await self._end(ended, progress, chunks):
                counts = {name: getattr(ended, name) for name in COUNTS}
                extra = {"sync": run.sync_id, "run": run_id, **counts}
                log.info("run %s%s", status, f": {error}" if error else "", extra=extra)
                return saved
        raise StoreError(f"run {run_id} could not be closed: its record keeps changing")

    async def fail(self, run_id: str, error: str, *, looked: Progress | None = None) -> None:
        """End a run that can not go on: its source can not be listed, its job came back too often.

        What it has sent is on its way all the same: such a run ends, and is counted, when that is in. `looked` is what a
        run that has not begun yet cost all the same.
        """
        run = await self._store.get_run(run_id)
        chunks = await self._store.list_chunks(run_id)
        if run is None or run.status is not RunStatus.PLANNING or not chunks:
            await self._close(run_id, RunStatus.FAILED, error, looked=looked)
            return
        sync = self._syncs.get(run.sync_id)
        targets = {target.id: target.vault for target in sync.units} if sync else {}
        for chunk in chunks:
            if chunk.target in targets and not chunk.complete and not chunk.held:
                await self.send_chunk(run, chunk, targets[chunk.target])
        begun = {part.target: part for part in await self._store.list_progress(run_id)}
        for target_id in {*begun, *targets}:
            part = begun.get(target_id) or Progress(run_id, target_id)
            if not part.finished:
                await self._store.save_slice(replace(part, finished=True, error=error))
        if await self._store.save_run(replace(run, status=RunStatus.RUNNING)) is None:
            raise StoreError(f"run {run_id} was changed by somebody else while its planning failed")
        await self.finish_if_done(run_id)

    async def cancel(self, run_id: str, why: str = "cancelled by hand") -> Run:
        """End a run: what has been written stays, what has not been begun is dropped. Raises Refused."""
        run = await self.view(run_id)
        if not run.status.active and run.status is not RunStatus.BLOCKED:
            raise Refused(f"run {run_id} has ended already ({run.status})")
        return await self._close(run_id, RunStatus.CANCELLED, why)

    async def _close(self, run_id: str, status: RunStatus, error: str, *, looked: Progress | None = None) -> Run:
        for _ in range(ATTEMPTS_TO_SAVE):
            run = await self.view(run_id)
            if not run.status.active and run.status is not RunStatus.BLOCKED:
                return run
            progress = await self._store.list_progress(run_id)
            chunks = await self._store.list_chunks(run_id)
            if looked is not None:
                progress = [*progress, looked]
                run = summarise(run, progress, chunks)
            ended = replace(run, status=status, error=error)
            if saved := await self._end(ended, progress, chunks):
                log.warning("run %s: %s", status, error, extra={"sync": run.sync_id, "run": run_id})
                return saved
        raise StoreError(f"run {run_id} could not be closed: its record keeps changing")

    async def _end(self, run: Run, progress: Sequence[Progress], chunks: Sequence[Chunk]) -> Run | None:
        """Give the sync free for its next run, count this one (once: only the holder can let go), and save it."""
        now = self._clock()
        for _ in range(ATTEMPTS_TO_SAVE):
            control = await self._store.get_control(run.sync_id)
            if control.active_run != run.run_id:
                break
            counted = replace(
                control,
                active_run=None,
                last_run=run.run_id,
                last_success_at=now if run.status is RunStatus.SUCCEEDED else control.last_success_at,
                totals=add_to_totals(control.totals, run, progress, chunks),
            )
            if await self._store.save_control(counted):
                break
        else:
            raise StoreError(f"sync {run.sync_id!r} could not be released: its record keeps changing")
        saved = await self._store.save_run(replace(run, finished_at=now))
        if saved is not None:
            await self.go_on(run.sync_id, after_run=True)
        return saved

    # deciding ---------------------------------------------------------------------------------------------------

    async def approve(self, run_id: str) -> Run:
        """Send exactly the deletes that a blocked run has recorded. Raises Refused."""
        for _ in range(ATTEMPTS_TO_SAVE):
            run = await self.view(run_id)
            if run.status is not RunStatus.BLOCKED:
                raise Refused(f"run {run_id} is not blocked ({run.status})")
            sync = self.sync(run.sync_id)
            control = await self._store.get_control(run.sync_id)
            if control.active_run and await self._active(control.active_run, self._clock()):
                raise Refused(
                    f"run {control.active_run} of sync {run.sync_id!r} is on its way; approve when it has ended"
                )
            if not await self._store.save_control(replace(control, active_run=run_id)):
                continue
            # The run goes on only once all is sent: when this stops half-way, it can be approved again.
            for chunk in await self._store.list_chunks(run_id):
                target = sync.unit(chunk.target)
                if target is None or chunk.complete:
                    continue
                freed = await self._store.save_chunk(replace(chunk, held=False)) if chunk.held else chunk
                if freed is not None:
                    await self.send_chunk(run, freed, target.vault)
            saved = await self._store.save_run(replace(run, status=RunStatus.RUNNING, error=None))
            if saved is None:
                continue
            return await self.finish_if_done(run_id) or saved
        raise StoreError(f"run {run_id} could not be approved: its record keeps changing")

    async def send_chunk(self, run: Run, chunk: Chunk, vault_id: str) -> None:
        """Queue a chunk for the writer of its vault."""
        job = WriteJob(
            run=run.run_id, sync=run.sync_id, vault=vault_id, target=chunk.target, chunk=chunk.chunk, paths=chunk.paths
        )
        await self._queues.send(jobs.write_queue(vault_id), jobs.encode(job))

    async def pause(self, sync_id: str, paused: bool) -> Control:
        """Let no new run begin (`paused`), or let them begin again. A run on its way goes on. Raises Refused."""
        self.sync(sync_id)
        for _ in range(ATTEMPTS_TO_SAVE):
            control = await self._store.get_control(sync_id)
            saved = control if control.paused == paused else None
            saved = saved or await self._store.save_control(replace(control, paused=paused))
            if saved is not None:
                await self.go_on(sync_id)
                return saved
        raise StoreError(f"sync {sync_id!r} could not be changed: its record keeps changing")


def _check_not_paused(control: Control) -> None:
    if control.paused:
        raise Refused(f"sync {control.sync_id!r} is paused; `vaultferry resume {control.sync_id}` lets it run again")
