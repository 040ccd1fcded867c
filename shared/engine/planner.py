"""A plan job: listings, comparison, write jobs.

The source is listed once; each target is then planned on its own, so that a slow or dead one holds up no other. Planning
goes in slices: a slice's chunks are saved in one step with the place it came to, and only then sent. After a crash it
goes on behind that place, and sends again what may not have been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared import jobs
from shared.engine.document import PlanDocument
from shared.engine.installation import Installation, backoff
from shared.engine.runs import Runs
from shared.engine.tally import HELD_SUFFIX
from shared.errors import InvalidSecret, SecretNotFound, StoreError, SyncError, Unavailable, VaultError
from shared.history import Save, Store
from shared.jobs import PlanJob
from shared.mapping import Mapper, Naming, name_all, why_left_out
from shared.model import (
    Action,
    Chunk,
    Entry,
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
from shared.plan import Change, ChangeKind, compare, first_look, gone, guard, leftovers
from shared.vault import FingerprintCost, Vault, check_name

log = logging.getLogger("vaultferry.planner")

SLICE = 1000
"""Paths compared at once: what a crash has to compare again at most."""
LEASE = 60.0
"""Seconds that the planner of a run may be silent before another takes over."""
BUSY_DELAY = 5.0


@dataclass
class SourceView:
    """The source as this planning sees it. Fingerprints that cost a call each are asked for once, for all targets."""

    vault: Vault
    sync: Sync
    entries: dict[str, Entry]
    """What the sync covers, by path."""
    refused: dict[str, str]
    """Paths whose very name can not be carried, and why."""
    left_out: set[str]
    """Paths that are there, but not covered."""
    _known: dict[str, asyncio.Future[Entry | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """What became of one slice: what is to be sent, what is refused, and how many need nothing."""

    changes: Sequence[Change]
    refused: Mapping[str, str]
    unchanged: int


class Planner:
    def __init__(self, installation: Installation, runs: Runs) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs

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
        deadline = asyncio.get_running_loop().time() + self._in.planning_budget
        with counting() as source_calls:
            view = await self._look_at_source(sync)
        pages = _Pages(self._store, run)
        results = await asyncio.gather(
            *(
                self._plan_target(run, sync, target, view, progress.get(target.id), deadline, pages)
                for target in sync.targets
            ),
            return_exceptions=True,
        )
        await self._note_calls(run, sync, dict(source_calls))
        retry: list[SyncError] = []
        for target, result in zip(sync.targets, results, strict=True):
            if isinstance(result, SyncError) and result.transient:
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
            await pages.close(sync)
            errors = [f"{p.target}: {p.error}" for p in await self._store.list_progress(run.run_id) if p.error]
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
            if part.target == sync.targets[0].id:
                await self._store.save_slice(replace(part, calls=_sum([part.calls, calls])))

    async def _send_again(self, run: Run, sync: Sync, progress: Mapping[str, Progress]) -> None:
        """What was saved just before a crash may not have been sent. Sent twice does no harm."""
        if not progress:
            return
        for chunk in await self._store.list_chunks(run.run_id):
            target = sync.target(chunk.target)
            if target and not chunk.complete and not chunk.held:
                await self._runs.send_chunk(run, chunk, target.vault)

    # the source -----------------------------------------------------------------------------------------------------

    async def _look_at_source(self, sync: Sync) -> SourceView:
        vault = await self._in.vaults.get(sync.source.vault, sync.source.resource)
        prefix = sync.source.prefix
        view = SourceView(vault, sync, {}, {}, set())
        async for entry in vault.list_secrets(prefix):
            path = entry.name.removeprefix(prefix)
            if why_left_out(sync, path):
                view.left_out.add(path)
                continue
            view.entries[path] = entry
            try:
                check_name(vault.id, entry.name)
            except InvalidSecret as error:
                view.refused[path] = error.message
        return view

    async def _source_entry(self, view: SourceView, path: str) -> Entry | None:
        """The source's entry with its fingerprint; None: it is gone. One call a path, however many targets ask."""
        entry = view.entries[path]
        cost = view.vault.capabilities.fingerprint
        if cost is FingerprintCost.LISTED:
            return entry
        known = view._known.get(path)
        if known is None:
            known = view._known[path] = asyncio.ensure_future(self._ask(view, entry.name, cost))
        return await asyncio.shield(known)

    async def _ask(self, view: SourceView, name: str, cost: FingerprintCost) -> Entry | None:
        try:
            if cost is FingerprintCost.PER_SECRET:
                entry = await view.vault.describe_secret(name)
                return entry if entry.live else None
            secret = await view.vault.get_secret(name)
            return replace(secret.entry or Entry(name), fingerprint=self._in.digester.fingerprint(secret.fields))
        except SecretNotFound:
            return None

    # one target -----------------------------------------------------------------------------------------------------

    async def _plan_target(
        self,
        run: Run,
        sync: Sync,
        target: Target,
        view: SourceView,
        progress: Progress | None,
        deadline: float,
        pages: _Pages,
    ) -> bool:
        """Plan one target; False: time is up, go on in another job. Raises what stops this target alone."""
        progress = progress or Progress(run.run_id, target.id)
        if progress.finished:
            return True
        with counting() as calls:
            calls.update(progress.calls)
            ground = await self._survey(sync, target, view, self._covered(run, view))
            paths = [p for p in sorted(ground.paths) if progress.cursor is None or p > progress.cursor]
            for at in range(0, len(paths), SLICE):
                some = paths[at : at + SLICE]
                done = await self._compare(run, sync, view, ground, some)
                progress = await self._emit(run, sync, target, ground, progress, done, some[-1], calls, pages)
                if at + SLICE < len(paths) and asyncio.get_running_loop().time() > deadline:
                    return False
                if await self._stopped(run):
                    return True
            await self._emit_deletes(run, sync, target, view, ground, progress, calls, pages)
        return True

    def _covered(self, run: Run, view: SourceView) -> set[str]:
        return set(view.entries) if run.paths is None else set(view.entries) & set(run.paths)

    async def _stopped(self, run: Run) -> bool:
        current = await self._store.get_run(run.run_id)
        return current is None or current.status is not RunStatus.PLANNING

    async def _survey(self, sync: Sync, target: Target, view: SourceView, paths: set[str]) -> Ground:
        """What is known of a target before any path is looked at. A target that does not answer is planned blindly: what
        is due by the source is sent, so that it is retried, recorded and caught up like any other failure."""
        states = {state.path: state async for state in self._store.list_objects(sync.id, target=target.id)}
        ground = Ground(target, states, paths)
        try:
            vault = await self._in.vaults.get(target.vault, sync.source.resource)
            ground.vault = vault
            ground.mapper = Mapper(target, vault.capabilities.names)
            ground.naming = name_all(ground.mapper, sorted(view.entries.keys() - view.refused.keys()))
            known = all(path in states and states[path].parts for path in paths)
            if sync.verify_targets or not known:
                rule = vault.capabilities.names
                ground.listed = {
                    rule.key(entry.name): entry async for entry in vault.list_secrets(rule.fit(target.prefix))
                }
        except Unavailable as error:
            log.warning(
                "%s does not answer: planned without it", target.vault, extra={"sync": sync.id, "error": str(error)}
            )
            ground.vault = None
            ground.listed = None
        if ground.mapper is not None and ground.vault is not None:
            ground.renamed = self._renamed(ground)
            missing = (gone(s, None, sync.delete) for s in states.values() if s.path not in view.entries)
            deletes = sum(change is not None and change.kind is ChangeKind.DELETE for change in missing)
            ground.cleanup = guard(sync.delete, ground.owned, len(ground.renamed) + deletes) is None
        return ground

    def _renamed(self, ground: Ground) -> set[str]:
        """Paths with names that a changed mapping no longer yields."""
        found: set[str] = set()
        if ground.mapper is None:
            return found
        for path, state in ground.states.items():
            if path not in ground.paths or state.status is ObjectStatus.DELETED:
                continue
            names = ground.naming.names.get(path)
            if (names is not None and leftovers(state, names)) or (
                ground.mapper.by_field and state.recipe not in (None, ground.mapper.recipe) and leftovers(state, ())
            ):
                found.add(path)
        return found

    async def _compare(self, run: Run, sync: Sync, view: SourceView, ground: Ground, paths: Sequence[str]) -> Slice:
        refused = {
            path: why
            for path in paths
            if (why := view.refused.get(path) or ground.naming.refused.get(path)) is not None
        }
        changes = await asyncio.gather(
            *(self._compare_one(run, sync, view, ground, path) for path in paths if path not in refused)
        )
        unchanged = sum(change.kind in (ChangeKind.UNCHANGED, ChangeKind.SKIP) for change in changes if change)
        return Slice([change for change in changes if change], refused, unchanged)

    async def _compare_one(self, run: Run, sync: Sync, view: SourceView, ground: Ground, path: str) -> Change | None:
        state = ground.states.get(path)
        entry = view.entries[path]
        names = ground.naming.names.get(path)
        listed = ground.listed_under(names) if ground.listed is not None and names is not None else None
        recipe = ground.mapper.recipe if ground.mapper else (state.recipe if state else None) or ""
        change = first_look(path, entry, state, names, recipe, listed)
        if change is not None and change.kind is ChangeKind.SKIP:
            return change
        # A path that was never synced is due whatever its fingerprint says: only a plan for a person asks all the same.
        if state is None and not run.dry_run:
            return change
        if view.vault.capabilities.fingerprint is FingerprintCost.PER_SECRET or change is None:
            current = await self._source_entry(view, path)
            if current is None:
                ground.vanished.add(path)
                return None
            entry = current
        if change is not None or state is None:
            return change
        if entry.fingerprint is None or entry.fingerprint != state.source_fingerprint or not sync.verify_targets:
            return compare(path, state, entry.fingerprint, None)
        return compare(path, state, entry.fingerprint, await self._target_fingerprints(ground, state))

    async def _target_fingerprints(self, ground: Ground, state: ObjectState) -> Mapping[str, str | None] | None:
        """What the target's names look like now; a name that is gone is left out. None: it can not be asked."""
        vault, listed = ground.vault, ground.listed
        if vault is None or listed is None:
            return None
        rule = vault.capabilities.names
        found: dict[str, str | None] = {}
        for part in state.parts:
            entry = listed.get(rule.key(part.name))
            if entry is None:
                continue
            if vault.capabilities.fingerprint is FingerprintCost.LISTED:
                found[part.name] = entry.fingerprint
                continue
            with contextlib.suppress(SecretNotFound):
                if vault.capabilities.fingerprint is FingerprintCost.PER_SECRET:
                    described = await vault.describe_secret(part.name)
                    if described.live:
                        found[part.name] = described.fingerprint
                else:
                    secret = await vault.get_secret(part.name)
                    found[part.name] = self._in.digester.fingerprint(secret.fields)
        return found

    # what comes of it -------------------------------------------------------------------------------------------------

    async def _emit(
        self,
        run: Run,
        sync: Sync,
        target: Target,
        ground: Ground,
        progress: Progress,
        done: Slice,
        cursor: str,
        calls: Mapping[str, int],
        pages: _Pages,
    ) -> Progress:
        if run.dry_run:
            shown = [*done.changes, *(Change(path, ChangeKind.FAIL, why) for path, why in done.refused.items())]
            await pages.add(target, shown)
        else:
            await self._record_refused(run, sync, target, ground.states, done.refused)
        slices = progress.slices + 1
        chunks: list[Chunk] = []
        if not run.dry_run:
            for op in (Op.CREATE, Op.UPDATE, Op.REPAIR):
                due = [change.path for change in done.changes if change.kind.op is op]
                chunks += _chunks(
                    run, target, op, due, f"{target.id}-{slices:06d}-{op}", cleanup=ground.cleanup or run.allow_deletes
                )
        return await self._save(
            run,
            sync,
            target,
            replace(
                progress,
                cursor=cursor,
                slices=slices,
                unchanged=progress.unchanged + done.unchanged,
                failed=progress.failed + len(done.refused),
                planned=progress.planned + sum(len(chunk.paths) for chunk in chunks),
                calls=dict(calls),
            ),
            chunks,
        )

    async def _save(
        self, run: Run, sync: Sync, target: Target, progress: Progress, chunks: Sequence[Chunk]
    ) -> Progress:
        saved = await self._store.save_slice(progress, chunks)
        if saved is None:
            raise StoreError(f"run {run.run_id} is being planned by somebody else")
        for chunk in chunks:
            if not chunk.held:
                await self._runs.send_chunk(run, chunk, target.vault)
        return saved

    async def _record_refused(
        self, run: Run, sync: Sync, target: Target, states: Mapping[str, ObjectState], refused: Mapping[str, str]
    ) -> None:
        saves = []
        for path, why in refused.items():
            state = states.get(path) or ObjectState(sync.id, target.id, path)
            if state.status is ObjectStatus.FAILED and state.error == why:
                continue
            failed = replace(
                state,
                status=ObjectStatus.FAILED,
                error=why,
                transient=False,
                run_id=run.run_id,
                outcome=Outcome.FAILED,
                last_sync_at=self._in.clock(),
            )
            saves.append(Save(failed, Event(Action.FAIL, ObjectStatus.FAILED, run.run_id, error=why)))
        if saves:
            await self._store.save_objects(saves)

    async def _emit_deletes(
        self,
        run: Run,
        sync: Sync,
        target: Target,
        view: SourceView,
        ground: Ground,
        progress: Progress,
        calls: Mapping[str, int],
        pages: _Pages,
    ) -> None:
        """The last slice: what is no longer asked for. Only now is it known how much that is."""
        changes: list[Change] = []
        for path, state in sorted(ground.states.items()):
            if run.paths is not None and path not in run.paths:
                continue
            if path in ground.paths and path not in ground.vanished:
                continue
            left_out = why_left_out(sync, path) if path in view.left_out else None
            change = gone(state, left_out, sync.delete)
            if change is not None:
                changes.append(change)
        deletes = [change.path for change in changes if change.kind is ChangeKind.DELETE]
        held_names = [] if ground.cleanup or run.allow_deletes else sorted(ground.renamed)
        stray = sorted(
            path
            for path in ground.renamed - set(held_names)
            if ground.states[path].status is ObjectStatus.IN_SYNC
            and ground.mapper is not None
            and ground.states[path].recipe == ground.mapper.recipe
        )
        why = None
        if not run.allow_deletes:
            why = guard(sync.delete, ground.owned, len(deletes) + len(ground.renamed))
        if run.dry_run:
            renames = [
                Change(
                    path,
                    ChangeKind.DELETE,
                    "no longer named so",
                    leftovers(ground.states[path], ground.naming.names.get(path, ())),
                )
                for path in sorted(ground.renamed)
            ]
            await pages.add(target, changes + renames, guard=why)
            await self._save(run, sync, target, replace(progress, finished=True, blocked=why, calls=dict(calls)), [])
            return
        paths = sorted({*deletes, *held_names, *stray})
        slices = progress.slices + 1
        name = f"{target.id}-{slices:06d}-{Op.DELETE}"
        chunks = _chunks(run, target, Op.DELETE, paths, name, held=why is not None)
        finished = replace(progress, finished=True, blocked=why if chunks else None, slices=slices, calls=dict(calls))
        for at in range(0, len(chunks), 80):
            last = at + 80 >= len(chunks)
            step = finished if last else replace(progress, slices=slices)
            progress = await self._save(run, sync, target, step, chunks[at : at + 80])
            finished = replace(finished, revision=progress.revision)
        if not chunks:
            await self._save(run, sync, target, finished, [])
        if why:
            log.warning(
                "deletes are held back: %s", why, extra={"sync": sync.id, "run": run.run_id, "target": target.id}
            )


@dataclass
class Ground:
    """What is known of one target while it is planned."""

    target: Target
    states: dict[str, ObjectState]
    paths: set[str]
    vault: Vault | None = None
    mapper: Mapper | None = None
    naming: Naming = field(default_factory=lambda: Naming({}, {}))
    listed: dict[str, Entry] | None = None
    renamed: set[str] = field(default_factory=set)
    vanished: set[str] = field(default_factory=set)
    """Paths that the source lists and that turn out to be deleted all the same."""
    cleanup: bool = True

    @property
    def owned(self) -> int:
        return sum(
            state.status is not ObjectStatus.DELETED and any(part.owned for part in state.parts)
            for state in self.states.values()
        )

    def listed_under(self, names: Sequence[str]) -> dict[str, Entry]:
        if self.listed is None or self.mapper is None:
            return {}
        keys = (self.mapper.rule.key(name) for name in names)
        return {key: self.listed[key] for key in keys if key in self.listed}


class _Pages:
    """A dry run's plan, written page by page; the first page says how many there are, and is written last."""

    def __init__(self, store: Store, run: Run) -> None:
        self._document = PlanDocument(store, run)
        self.planned = self.unchanged = self.failed = 0

    async def add(self, target: Target, changes: Sequence[Change], guard: str | None = None) -> None:
        for change in changes:
            self.planned += change.kind.op is not None
            self.unchanged += change.kind in (ChangeKind.UNCHANGED, ChangeKind.SKIP)
            self.failed += change.kind is ChangeKind.FAIL
        await self._document.add(target.id, [c for c in changes if c.kind is not ChangeKind.UNCHANGED], guard)

    async def close(self, sync: Sync) -> None:
        counts = {"planned": self.planned, "unchanged": self.unchanged, "failed": self.failed}
        await self._document.close(sync.id, counts)


def _chunks(
    run: Run, target: Target, op: Op, paths: Sequence[str], name: str, *, held: bool = False, cleanup: bool = True
) -> list[Chunk]:
    """Cut by encoded size, with room for the rest of the message, and by number."""
    groups: list[list[str]] = []
    size = 0
    for path in paths:
        cost = len(path.encode()) * 2 + 4  # quotes and backslashes are escaped
        if not groups or len(groups[-1]) >= jobs.MAX_PATHS or size + cost > jobs.MAX_BODY - 2048:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += cost
    suffix = HELD_SUFFIX if held else ""
    return [
        Chunk(
            run_id=run.run_id,
            chunk=f"{name}-{number:04d}{suffix}",
            target=target.id,
            op=op,
            paths=tuple(group),
            outcomes=Outcome.OPEN * len(group),
            held=held,
            cleanup=cleanup,
        )
        for number, group in enumerate(groups)
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
