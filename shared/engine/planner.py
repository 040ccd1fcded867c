"""A plan job: listings, comparison, write jobs.

The source is listed once; each target is then planned on its own, so that a slow or dead one holds up no other. It
goes in slices: a slice's chunks are saved in one step with the place it came to, and only then sent. After a crash it
goes on behind that place, and sends again what may not have been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from shared import jobs
from shared.engine.by_hand import RESOLVE
from shared.engine.delete_window import recent_deletes
from shared.engine.document import PlanDocument, item_of
from shared.engine.field_changes import look_closer
from shared.engine.installation import Installation, backoff
from shared.engine.merger import open_work
from shared.engine.path_work import forgotten
from shared.engine.probe import Prober
from shared.engine.runs import Runs
from shared.engine.saved_plan import SavedPlan, SavedPlans, carries_out_plan, configuration_of, what_moved
from shared.engine.survey import SourceView, TargetView
from shared.engine.tally import HELD_SUFFIX, SILENT, troubled
from shared.engine.two_way_survey import TwoWayView
from shared.errors import AccessDenied, InvalidSecret, StoreError, SyncError, Unavailable, VaultError
from shared.history import Save, Store
from shared.jobs import PlanJob
from shared.model import (
    Action,
    Chunk,
    Event,
    ObjectState,
    ObjectStatus,
    Op,
    Outcome,
    Progress,
    Run,
    RunStatus,
    Sync,
    Target,
)
from shared.pacing import counting
from shared.plan import Change, ChangeKind, leftovers

log = logging.getLogger("vaultferry.planner")

View: TypeAlias = TargetView | TwoWayView

SLICE = 1000
"""Paths compared at once: what a crash has to compare again at most."""
LEASE = 60.0
"""Seconds that the planner of a run may be silent before another takes over."""
BUSY_DELAY = 5.0
MAX_CHUNKS = 80
"""Chunks saved in one step; more of a slice than fit one transaction of Table Storage are rare, and only deletes."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What became of one slice: what is to be sent, what is refused, and how many need nothing."""

    changes: Sequence[Change]
    refused: Mapping[str, str]
    unchanged: int


class Planner:
    def __init__(self, installation: Installation, runs: Runs, prober: Prober) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs
        self._prober = prober
        self._plans = SavedPlans(installation.store)

    async def handle(self, job: PlanJob) -> None:
        """Plan a run, or go on planning it. Delivered twice, or to two instances at once, it plans once."""
        run = await self._store.get_run(job.run)
        if run is None or run.status not in (RunStatus.QUEUED, RunStatus.PLANNING):
            return
        sync = self._in.syncs.get(job.sync)
        if sync is None:
            await self._runs.cancel(run.run_id, f"sync {job.sync!r} is no longer configured")
            return
        lease, holder = f"plan:{run.run_id}", f"{self._store.owner}:{uuid.uuid4().hex}"
        if not await self._store.acquire_lease(lease, holder, LEASE):
            await self._again(job, BUSY_DELAY)
            return
        try:
            async with _renewing(self._store, lease, holder):
                await self._plan(run, sync, job)
        except (VaultError, SyncError) as error:
            await self._failed(job, sync, error)
        finally:
            await self._store.release_lease(lease, holder)

    async def _again(self, job: PlanJob, delay: float) -> None:
        await self._in.queues.send(jobs.PLAN_QUEUE, jobs.encode(job), delay=delay)

    async def _failed(self, job: PlanJob, sync: Sync, error: SyncError) -> None:
        policy = sync.retry_policy
        if isinstance(error, StoreError):
            raise error
        if error.transient and job.attempt < policy.max_retries:
            asked = error.retry_after if isinstance(error, Unavailable) else None
            log.warning(
                "planning is tried again: %s",
                error,
                extra={"sync": sync.id, "run": job.run, "attempt": job.attempt + 1},
            )
            await self._again(replace(job, attempt=job.attempt + 1), backoff(policy, job.attempt + 1, asked))
        else:
            run = await self._store.get_run(job.run)
            if error.transient and run is not None and not run.dry_run and not carries_out_plan(run):
                # A replay's paths are told from the rest by their rows; those of a decision are not.
                if run.paths is None or run.trigger == RESOLVE:
                    await self._runs.recover(sync.id)
                # Probes wait in the queues of written vaults, and ask the source as well. One for each: where a target is
                # silent too, its probe asks no further.
                for vault in sorted({unit.vault for unit in sync.units}):
                    await self._prober.schedule(vault)
            await self._runs.fail(job.run, str(error))

    # one planning -------------------------------------------------------------------------------------------------

    async def _plan(self, run: Run, sync: Sync, job: PlanJob) -> None:
        now = self._in.clock()
        if run.status is RunStatus.QUEUED:
            started = await self._store.save_run(replace(run, status=RunStatus.PLANNING, started_at=now))
            if started is None:
                raise StoreError(f"run {run.run_id} was changed by somebody else while its planning began")
            run = started
        progress = {part.target: part for part in await self._store.list_progress(run.run_id)}
        await self._send_again(run, sync, progress)
        if carries_out_plan(run):
            await self._carry_out(run, sync, begun=bool(progress))
            return
        deadline = asyncio.get_running_loop().time() + self._in.planning_budget
        with counting() as source_calls:
            source = SourceView(
                sync, await self._in.vaults.get(sync.source.vault, sync.source.resource), self._in.digester
            )
            await source.look()
        pages = _Pages(self._store, run)
        results = await asyncio.gather(
            *(
                self._plan_target(run, sync, target, source, progress.get(target.id), deadline, pages)
                for target in sync.units
            ),
            return_exceptions=True,
        )
        await self._note_calls(run, sync, dict(source_calls))
        retry: list[SyncError] = []
        for target, result in zip(sync.units, results, strict=True):
            worth_it = isinstance(result, StoreError) or job.attempt < sync.retry_policy.max_retries
            if isinstance(result, SyncError) and result.transient and worth_it:
                retry.append(result)
            elif isinstance(result, SyncError):
                await self._target_failed(run, target, result)
            elif isinstance(result, BaseException):
                raise result
        if retry:
            raise retry[0]
        if any(result is False for result in results):
            log.info("planning goes on in a new job", extra={"sync": sync.id, "run": run.run_id})
            await self._again(replace(job, attempt=0), 0)
            return
        await self._planned(run, sync, pages)

    async def _planned(self, run: Run, sync: Sync, pages: _Pages) -> None:
        current = await self._store.get_run(run.run_id)
        if current is None or current.status is not RunStatus.PLANNING:
            return
        if run.dry_run:
            await pages.close(sync, configuration_of(self._in, sync))
            told = await self._store.list_progress(run.run_id)
            errors = [troubled(part.target, part.error) for part in told if part.error and part.error != SILENT]
            status = RunStatus.FAILED if errors else RunStatus.SUCCEEDED
            ended = replace(
                current,
                status=status,
                finished_at=self._in.clock(),
                planned=pages.planned,
                unchanged=pages.unchanged,
                failed=pages.failed,
                error="; ".join(errors) or None,
                calls=_sum(part.calls for part in await self._store.list_progress(run.run_id)),
            )
            await self._store.save_run(ended)
            return
        if await self._store.save_run(replace(current, status=RunStatus.RUNNING)) is None:
            raise StoreError(f"run {run.run_id} was changed by somebody else while its planning ended")
        await self._runs.finish_if_done(run.run_id)

    async def _target_failed(self, run: Run, target: Target, error: SyncError) -> None:
        for part in await self._store.list_progress(run.run_id):
            if part.target == target.id:
                await self._store.save_slice(replace(part, finished=True, error=str(error)))
                return
        await self._store.save_slice(Progress(run.run_id, target.id, finished=True, error=str(error)))

    async def _note_calls(self, run: Run, sync: Sync, calls: Mapping[str, int]) -> None:
        """Listing the source belongs to no target: it is booked on the first."""
        for part in await self._store.list_progress(run.run_id):
            if part.target == sync.units[0].id:
                await self._store.save_slice(replace(part, calls=_sum([part.calls, calls])))

    async def _send_again(self, run: Run, sync: Sync, progress: Mapping[str, Progress]) -> None:
        """What was saved just before a crash may not have been sent. Sent twice does no harm."""
        if not progress:
            return
        for chunk in await self._store.list_chunks(run.run_id):
            target = sync.unit(chunk.target)
            if target and not chunk.complete and not chunk.held:
                await self._runs.send_chunk(run, chunk, target.vault)

    # one target -----------------------------------------------------------------------------------------------------

    async def _plan_target(
        self,
        run: Run,
        sync: Sync,
        target: Target,
        source: SourceView,
        progress: Progress | None,
        deadline: float,
        pages: _Pages,
    ) -> bool:
        """Plan one target; False: time is up, go on in another job. Raises what stops this target alone."""
        progress = progress or Progress(run.run_id, target.id)
        if run.dry_run:
            # Its pages are worth nothing before the last is written: an interrupted one begins again, all in one job.
            progress = Progress(run.run_id, target.id, revision=progress.revision)
            deadline = math.inf
        if progress.finished:
            return True
        begun_behind = progress.cursor
        with counting() as calls:
            calls.update(progress.calls)
            view = await self._look_at_target(run, sync, target, source)
            paths = [p for p in sorted(view.paths) if progress.cursor is None or p > progress.cursor]
            for at in range(0, len(paths), SLICE):
                some = paths[at : at + SLICE]
                done = await self._compare(run, view, some)
                progress = await self._emit(run, view, progress, done, some[-1], calls, pages)
                if at + SLICE < len(paths) and asyncio.get_running_loop().time() > deadline:
                    return False
                if await self._stopped(run):
                    return True
            if begun_behind is not None:
                behind = sorted(path for path in view.paths if path <= begun_behind)
                for at in range(0, len(behind), SLICE):
                    await view.look_again(behind[at : at + SLICE])
            if isinstance(view, TwoWayView) and run.paths is None and not run.dry_run:
                await self._make_up_for(sync, view)
            await self._emit_deletes(run, view, progress, calls, pages)
        return True

    async def _make_up_for(self, sync: Sync, view: TwoWayView) -> None:
        """See to it that what a silent side may have changed is looked at when it answers: nobody else tells of it."""
        for vault in sorted(error.vault for error in view.silent.values() if error.transient):
            await self._runs.recover(sync.id)
            await self._prober.schedule(vault)

    async def _stopped(self, run: Run) -> bool:
        current = await self._store.get_run(run.run_id)
        return current is None or current.status is not RunStatus.PLANNING

    async def _look_at_target(self, run: Run, sync: Sync, target: Target, source: SourceView) -> View:
        recent = recent_deletes(await self._store.get_control(sync.id), target.id, self._in.clock())
        if not sync.two_way:
            return await self._look_one_way(run, sync, target, source, recent)
        states: dict[str, dict[str, ObjectState]] = {}
        async for state in self._store.list_objects(sync.id):
            if sync.target(state.target) is None:
                continue  # Of a target that there was once.
            states.setdefault(state.path, {})[state.target] = state
        view = TwoWayView(run, await open_work(self._in, sync, run.run_id, 0), source, states, recent)
        await view.look()
        if not run.dry_run:
            await self._store.save_objects([Save(forgotten(row)) for row in view.respelt])
        return view

    async def _look_one_way(self, run: Run, sync: Sync, target: Target, source: SourceView, recent: int) -> TargetView:
        """A target that does not answer is planned blindly: what is due by the source is sent all the same, so that it
        is retried, recorded and caught up like any other failure."""
        states = {state.path: state async for state in self._store.list_objects(sync.id, target=target.id)}
        paths = set(source.entries) if run.paths is None else source.entries.keys() & set(run.paths)
        view = TargetView(sync, target, source, self._in.digester, states, paths, recent_deletes=recent)
        try:
            await view.look(await self._in.vaults.get(target.vault, sync.source.resource))
        except Unavailable as error:
            log.warning("%s is planned without a look at it: %s", target.vault, error.message, extra={"sync": sync.id})
            # What was found out is as good as ever; what would be deleted on the way has not been counted.
            view.vault, view.listed, view.cleanup = None, None, False
        return view

    async def _compare(self, run: Run, view: View, paths: Sequence[str]) -> Slice:
        refused = {
            path: why
            for path in paths
            if (why := view.source.refused.get(path) or view.naming.refused.get(path)) is not None
        }

        async def one(path: str) -> list[Change]:
            try:
                return await view.compare(run, path)
            except (AccessDenied, InvalidSecret) as error:
                # That is between this secret and us: the others go on.
                refused[path] = str(error)
                return []

        found = await asyncio.gather(*[one(path) for path in paths if path not in refused])
        changes = [change for each in found for change in each]
        unchanged = sum(change.kind in (ChangeKind.UNCHANGED, ChangeKind.SKIP) for change in changes)
        return Slice(changes, refused, unchanged)

    # what comes of it -------------------------------------------------------------------------------------------------

    async def _emit(
        self,
        run: Run,
        view: View,
        progress: Progress,
        done: Slice,
        cursor: str,
        calls: Mapping[str, int],
        pages: _Pages,
    ) -> Progress:
        target = view.target
        slices = progress.slices + 1
        chunks: list[Chunk] = []
        if run.dry_run:
            await pages.add(target, await self._shown(view, done))
        else:
            await self._record_refused(run, view.row_target, view.states, done.refused)
            for op in (Op.CREATE, Op.UPDATE, Op.REPAIR, Op.MERGE):
                due = [change.path for change in done.changes if change.kind.op is op]
                name = f"{target.id}-{slices:06d}-{op}"
                chunks += _chunks(run, target, op, due, name, cleanup=view.cleanup or run.allow_deletes)
        moved_on = replace(
            progress,
            cursor=cursor,
            slices=slices,
            unchanged=progress.unchanged + done.unchanged,
            failed=progress.failed + len(done.refused),
            planned=progress.planned + sum(len(chunk.paths) for chunk in chunks),
            calls=dict(calls),
        )
        return await self._save(run, target, moved_on, chunks)

    async def _save(self, run: Run, target: Target, progress: Progress, chunks: Sequence[Chunk]) -> Progress:
        saved = await self._store.save_slice(progress, chunks)
        if saved is None:
            raise StoreError(f"run {run.run_id} is being planned by somebody else")
        for chunk in chunks:
            if not chunk.held:
                await self._runs.send_chunk(run, chunk, target.vault)
        return saved

    async def _record_refused(
        self,
        run: Run,
        row_target: str,
        states: Mapping[str, ObjectState],
        refused: Mapping[str, str],
        status: ObjectStatus = ObjectStatus.FAILED,
    ) -> None:
        failed = status is ObjectStatus.FAILED
        action, outcome = (Action.FAIL, Outcome.FAILED) if failed else (Action.CONFLICT, Outcome.CONFLICT)
        saves = []
        for path, why in refused.items():
            state = states.get(path) or ObjectState(run.sync_id, row_target, path)
            if state.status is status and state.error == why:
                continue
            ended = replace(
                state,
                status=status,
                error=why,
                transient=False,
                run_id=run.run_id,
                outcome=outcome,
                last_sync_at=self._in.clock(),
            )
            saves.append(Save(ended, Event(action, status, run.run_id, error=why)))
        if saves:
            await self._store.save_objects(saves)

    async def _emit_deletes(
        self, run: Run, view: View, progress: Progress, calls: Mapping[str, int], pages: _Pages
    ) -> None:
        """The last slice: what is no longer asked for. Only now is it known how much that is."""
        missing = view.missing(run)
        deletes = {change.path for change in missing if change.kind is ChangeKind.DELETE}
        why = None
        if not run.allow_deletes:
            why = view.guard(len(deletes) + len(view.renamed))
        finished = replace(progress, finished=True, slices=progress.slices + 1, calls=dict(calls), error=view.problem)
        if run.dry_run:
            await pages.add(view.target, await self._shown_deletes(view, missing), guard=why)
            pages.unseen |= view.unseen
            await self._save(run, view.target, replace(finished, blocked=why), [])
            return
        # Names that a write job could not clean up on its way: held back with the rest, or left from an earlier run.
        old_names = view.strays() if view.cleanup or run.allow_deletes else view.renamed
        paths = sorted(deletes | old_names)
        name = f"{view.target.id}-{finished.slices:06d}-{Op.DELETE}"
        # After a crash between two steps, the first of them is there already.
        sent = [
            c for c in await self._store.list_chunks(run.run_id) if c.target == view.target.id and c.op is Op.DELETE
        ]
        paths = sorted(set(paths) - {path for chunk in sent for path in chunk.paths})
        chunks = _chunks(run, view.target, Op.DELETE, paths, name, held=why is not None, first=len(sent))
        while len(chunks) > MAX_CHUNKS:
            progress = await self._save(run, view.target, progress, chunks[:MAX_CHUNKS])
            del chunks[:MAX_CHUNKS]
        finished = replace(finished, blocked=why if paths or sent else None, revision=progress.revision)
        await self._save(run, view.target, finished, chunks)
        if why:
            extra = {"sync": run.sync_id, "run": run.run_id, "target": view.target.id}
            log.warning("deletes are held back: %s", why, extra=extra)

    # a saved plan -----------------------------------------------------------------------------------------------------

    async def _carry_out(self, run: Run, sync: Sync, *, begun: bool) -> None:
        """Send exactly what a saved plan says, if a plan that is made now says the same. Once that is known, the run's
        first progress is saved with its first chunks: after a crash, what this run has written is no surprise."""
        plan = await self._plans.get(run.run_id)
        with counting() as calls:
            moved = (
                None if begun else what_moved(plan, configuration_of(self._in, sync), await self._rehearse(run, sync))
            )
        if moved is not None:
            why = f"nothing was written, for the plan no longer holds: {moved}. Plan again"
            # Not kept as the run's progress: a run with some has begun to write.
            looked = Progress(run.run_id, sync.units[0].id, calls=dict(calls))
            await self._runs.fail(run.run_id, why, looked=looked)
            return
        if await self._stopped(run):
            return
        chunks = {chunk.chunk for chunk in await self._store.list_chunks(run.run_id)}
        progress = {part.target: part for part in await self._store.list_progress(run.run_id)}
        for target in sync.units:
            part = progress.get(target.id) or Progress(run.run_id, target.id)
            if target is sync.units[0] and not begun:
                # What no job looks at belongs to no target: it is booked on the first.
                part = replace(part, calls=dict(calls), unchanged=plan.unchanged)
            if not part.finished:
                await self._send_planned(run, target, plan, part, chunks)
        await self._planned(run, sync, _Pages(self._store, run))

    async def _rehearse(self, run: Run, sync: Sync) -> list[dict[str, Any]]:
        """What a plan would say now. Raises whatever keeps a target from being planned."""
        dry = replace(run, dry_run=True)
        source = SourceView(sync, await self._in.vaults.get(sync.source.vault, sync.source.resource), self._in.digester)
        await source.look()
        items: list[dict[str, Any]] = []
        for target in sync.units:
            view = await self._look_at_target(dry, sync, target, source)
            if isinstance(view, TargetView) and view.vault is None:
                raise Unavailable(
                    "nobody can tell whether the plan still holds: it does not answer", vault=target.vault
                )
            paths = sorted(view.paths)
            for at in range(0, len(paths), SLICE):
                found = await self._shown(view, await self._compare(dry, view, paths[at : at + SLICE]))
                items += [item_of(target.id, change) for change in found]
            items += [item_of(target.id, change) for change in await self._shown_deletes(view, view.missing(dry))]
        return [item for item in items if item["change"] != ChangeKind.UNCHANGED]

    async def _send_planned(
        self, run: Run, target: Target, plan: SavedPlan, progress: Progress, known: Collection[str]
    ) -> None:
        hopeless = plan.hopeless(target.id)
        states = await self._store.get_objects(run.sync_id, target.id, [item["path"] for item in hopeless])
        for kind, status in ((ChangeKind.FAIL, ObjectStatus.FAILED), (ChangeKind.CONFLICT, ObjectStatus.CONFLICT)):
            refused = {item["path"]: item["reason"] for item in hopeless if item["change"] == kind}
            await self._record_refused(run, target.id, states, refused, status)
        chunks = [
            chunk
            for op in (Op.CREATE, Op.UPDATE, Op.REPAIR, Op.DELETE)
            for chunk in _chunks(run, target, op, plan.due(target.id, op), f"{target.id}-000001-{op}")
            if chunk.chunk not in known
        ]
        while len(chunks) > MAX_CHUNKS:
            progress = await self._save(run, target, progress, chunks[:MAX_CHUNKS])
            del chunks[:MAX_CHUNKS]
        finished = replace(progress, finished=True, slices=1, failed=len(hopeless))
        await self._save(run, target, finished, chunks)

    # what a person is told ------------------------------------------------------------------------------------------

    async def _shown(self, view: View, done: Slice) -> list[Change]:
        """A slice as a plan tells it."""
        changes = done.changes if isinstance(view, TwoWayView) else await look_closer(self._in, view, done.changes)
        return [*changes, *(Change(path, ChangeKind.FAIL, why) for path, why in done.refused.items())]

    async def _shown_deletes(self, view: View, missing: Sequence[Change]) -> list[Change]:
        """What is no longer asked for, as a plan tells it."""
        if isinstance(view, TwoWayView):
            return list(missing)
        renames = [
            Change(path, ChangeKind.DELETE, "the mapping no longer names it so", leftovers(view.states[path], names))
            for path in sorted(view.renamed)
            for names in [view.naming.names.get(path, ())]
        ]
        return await look_closer(self._in, view, [*missing, *renames])


class _Pages:
    """A dry run's plan, written page by page; the first page says how many there are, and is written last."""

    def __init__(self, store: Store, run: Run) -> None:
        self._document = PlanDocument(store, run.run_id)
        self.planned = self.unchanged = self.failed = 0
        self.unseen: dict[str, str] = {}
        """Targets that nobody could look at, and why."""

    async def add(self, target: Target, changes: Sequence[Change], guard: str | None = None) -> None:
        for change in changes:
            self.planned += change.kind.op is not None
            self.unchanged += change.kind in (ChangeKind.UNCHANGED, ChangeKind.SKIP)
            self.failed += change.kind is ChangeKind.FAIL
        await self._document.add(target.id, [c for c in changes if c.kind is not ChangeKind.UNCHANGED], guard)

    async def close(self, sync: Sync, configuration: str) -> None:
        counts = {"planned": self.planned, "unchanged": self.unchanged, "failed": self.failed}
        await self._document.close(sync.id, counts, configuration, self.unseen)


def _chunks(
    run: Run,
    target: Target,
    op: Op,
    paths: Sequence[str],
    name: str,
    *,
    held: bool = False,
    cleanup: bool = True,
    first: int = 0,
) -> list[Chunk]:
    suffix = HELD_SUFFIX if held else ""
    return [
        Chunk(
            run_id=run.run_id,
            chunk=f"{name}-{number:04d}{suffix}",
            target=target.id,
            op=op,
            paths=group,
            outcomes=Outcome.OPEN * len(group),
            held=held,
            cleanup=cleanup,
        )
        for number, group in enumerate(jobs.cut(paths, jobs.path_size), first)
    ]


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return total


@contextlib.asynccontextmanager
async def _renewing(store: Store, lease: str, owner: str) -> AsyncIterator[None]:
    """Prolong a lease as long as the block runs."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            await store.acquire_lease(lease, owner, LEASE)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
