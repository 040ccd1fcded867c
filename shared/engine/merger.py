"""Jobs of two-way syncs: for each path claim, settle on all sides at once, record.

A path has a row for each target. The first target's is the one that is claimed, and so stands for the path: whoever has
it works on all sides. The others are saved on condition that nobody touched them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from shared import jobs
from shared.engine.delete_window import DeleteWindow, Held
from shared.engine.installation import Installation
from shared.engine.path_work import Later
from shared.engine.place import Place
from shared.engine.probe import Prober
from shared.engine.runs import Runs
from shared.engine.settling import BATCH, CLAIM, LAG_DELAY, Results, Settler, next_claim, put_off, settled_by
from shared.engine.two_way import Ended, Seat, Told, TwoWayWork
from shared.errors import ConfigError, InvalidSecret, VaultError
from shared.history import Save
from shared.jobs import EventJob
from shared.mapping import Mapper, why_left_out
from shared.model import SOURCE_SIDE, ObjectState, ObjectStatus, Op, Outcome, Sync
from shared.notices import is_known, merged

log = logging.getLogger("vaultferry.writer")

BUSY_DELAY = 1.0


@dataclass
class Came(Results):
    """What came of a job's paths."""

    deletes: list[str] = field(default_factory=list)
    """Of which nothing is left to do but to delete."""
    deleted: set[str] = field(default_factory=set)
    """Of which something was deleted, on whichever side."""


Rows = Mapping[str, ObjectState]
"""A path's rows, by target."""


async def open_work(installation: Installation, sync: Sync, run_id: str | None, attempt: int) -> TwoWayWork:
    """What the paths of a job, or of a plan, have in common. A target that can not be opened is left out of it. Raises
    VaultError and ConfigError where the source can not."""
    owner = installation.owner_marks.get(sync.id)

    async def place(vault_id: str) -> Place:
        vault = await installation.vaults.get(vault_id, sync.source.resource)
        return Place(vault, installation.digester, owner)

    source = Seat(SOURCE_SIDE, await place(sync.source.vault), sync.source.prefix)
    targets: list[Seat] = []
    silent: dict[str, VaultError] = {}
    for target in sync.targets:
        try:
            there = await place(target.vault)
        except (VaultError, ConfigError) as error:
            silent[target.id] = error if isinstance(error, VaultError) else VaultError(str(error), vault=target.vault)
        else:
            mapper = Mapper(target, there.vault.capabilities.names)
            targets.append(Seat(target.id, there, mapper=mapper, key=source.place.vault.capabilities.names.key))
    return TwoWayWork(sync, source, tuple(targets), silent, installation.store, run_id, attempt, installation.clock)


class Merger:
    def __init__(self, installation: Installation, runs: Runs, prober: Prober) -> None:
        self._in = installation
        self._store = installation.store
        self._runs = runs
        self._prober = prober
        self._window = DeleteWindow(installation)
        self._settler = Settler(installation)

    async def settle(
        self,
        sync: Sync,
        op: Op,
        paths: Sequence[str],
        results: Came,
        *,
        run_id: str | None,
        attempt: int,
    ) -> None:
        """Settle paths, and note how each ended. Raises StoreError."""
        work = await self._open(sync, paths, results, run_id, attempt)
        if work is not None:
            await self._settle(work, op, paths, results, {})

    async def _open(
        self, sync: Sync, paths: Sequence[str], results: Came, run_id: str | None, attempt: int
    ) -> TwoWayWork | None:
        """None: that can not be done, which is noted of the paths."""
        try:
            return await open_work(self._in, sync, run_id, attempt)
        except (VaultError, ConfigError) as error:
            first = sync.targets[0]
            await self._settler.unopened(sync, first, paths, error, results, run_id=run_id, attempt=attempt)
            return None

    async def event(self, job: EventJob, sync: Sync) -> None:
        """Bring the paths of an event's job together. What is busy or failed transiently goes back to the queue."""
        hints = {path: hint for path, hint in merged(job.hints).items() if why_left_out(sync, path) is None}
        if (await self._store.get_control(sync.id)).paused:
            await self._runs.rerun(sync.id)
            return
        came = Came()
        work = await self._open(sync, list(hints), came, None, job.attempt)
        if work is not None:
            hints = await self._as_known(work, job.target, hints)
            rows = await self.rows(sync, list(hints))
            now = self._in.clock()
            due = [path for path, hint in hints.items() if not _is_old_news(work, job.target, rows[path], hint, now)]
            told = {path: (job.target, hints[path]) for path in due}
            await self._settle(work, Op.MERGE, due, came, told)
            if came.deletes:
                await self._delete(work, job, came, told)
        busy, behind, failed = came.again()
        if busy:
            await self._again(job, busy, hints, job.attempt, came.busy_delay(busy, BUSY_DELAY))
        if behind:
            await self._again(job, behind, hints, job.attempt + 1, LAG_DELAY * 2**job.attempt)
        if failed:
            about = {"sync": job.sync, "target": job.target}
            delay = put_off(sync.retry_policy, failed, job.attempt + 1, log, about)
            await self._again(job, failed, hints, job.attempt + 1, delay)
        if came.down:
            for vault in sorted(came.silent or {job.vault}):
                await self._prober.schedule(vault)
        if came.defect is not None:
            raise came.defect

    async def _as_known(self, work: TwoWayWork, side: str, hints: Mapping[str, str | None]) -> dict[str, str | None]:
        """The hints by what paths are called here: a source that ignores case tells of one in any spelling."""
        key = work.source.place.vault.capabilities.names.key
        rows = await self.rows(work.sync, list(hints)) if work.source.ignores_case else {}
        unknown = {key(path) for path, of in rows.items() if not any(map(_is_remembered, of.values()))}
        if not unknown:
            return dict(hints)
        called: dict[str, str] = {}
        async for row in self._store.list_objects(work.sync.id):
            if key(row.path) in unknown and _is_remembered(row):
                called[key(row.path)] = row.path
        new = {key(path) for path, of in rows.items() if all(row.revision is None for row in of.values())}
        spelt = await self._spelt(work, side, new - called.keys())
        called |= {each: min(found) for each, found in spelt.items() if len(found) == 1}
        doubtful = {each for each, found in spelt.items() if len(found) > 1}
        if doubtful:
            # A run tells a person.
            await self._runs.rerun(work.sync.id)
        told = [(called.get(key(path), path), hint) for path, hint in hints.items() if key(path) not in doubtful]
        return merged(told)

    async def _spelt(self, work: TwoWayWork, side: str, new: Collection[str]) -> dict[str, set[str]]:
        """How the other targets that tell spellings apart have what is new, by what is equal for the source."""
        key = work.source.place.vault.capabilities.names.key
        spelt: dict[str, set[str]] = {}
        for seat in work.targets if new else ():
            if seat.id == side or seat.ignores_case:
                continue
            # Who does not answer is asked by name, and fails.
            with contextlib.suppress(VaultError):
                async for path, entry in seat.listed():
                    if entry.live and key(path) in new:
                        spelt.setdefault(key(path), set()).add(path)
        return spelt

    async def _delete(self, work: TwoWayWork, job: EventJob, came: Came, told: Mapping[str, Told]) -> None:
        sync = work.sync
        reserved = await self._window.reserve(sync, sync.units[0].id, len(came.deletes))
        if not isinstance(reserved, Held):
            deletes = list(came.deletes)
            await self._settle(work, Op.DELETE, deletes, came, told)
            await self._window.give_back(reserved, sum(path not in came.deleted for path in deletes))
            return
        log.warning("left to a run: %s", reserved.why, extra={"sync": sync.id, "target": job.target})
        if reserved.first:
            await self._runs.rerun(sync.id)
        else:
            await self._runs.recover(sync.id)
            await self._prober.schedule(job.vault)

    async def _again(
        self, job: EventJob, paths: Collection[str], hints: Mapping[str, str | None], attempt: int, delay: float
    ) -> None:
        again = replace(job, hints=tuple((path, hints[path]) for path in paths), attempt=attempt, told=None)
        await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(again), delay=delay)

    async def rows(self, sync: Sync, paths: Sequence[str]) -> dict[str, dict[str, ObjectState]]:
        """The rows of paths, by path and target; new ones where there are none yet."""
        ids = [target.id for target in sync.targets]
        known = dict(
            zip(ids, await asyncio.gather(*(self._store.get_objects(sync.id, t, paths) for t in ids)), strict=True)
        )
        return {
            path: {each: known[each].get(path) or ObjectState(sync.id, each, path) for each in ids} for path in paths
        }

    async def _settle(
        self, work: TwoWayWork, op: Op, paths: Sequence[str], results: Came, told: Mapping[str, Told]
    ) -> None:
        for at in range(0, len(paths), BATCH):
            await self._settle_batch(work, op, paths[at : at + BATCH], results, told)

    # one batch --------------------------------------------------------------------------------------------------------

    async def _settle_batch(
        self, work: TwoWayWork, op: Op, paths: Sequence[str], results: Came, told: Mapping[str, Told]
    ) -> None:
        now = self._in.clock()
        before = await self.rows(work.sync, paths)
        claimed = await self._claim(work, op, before, now, results)

        async def one(path: str) -> Ended:
            return await work.run(op, path, before[path], claimed[path], now + CLAIM, told.get(path))

        ended = await asyncio.gather(*(one(path) for path in claimed), return_exceptions=True)
        saves: list[Save] = []
        counted: dict[str, Ended] = {}
        for path, result in zip(claimed, ended, strict=True):
            if isinstance(result, Exception):
                # Given back at once, so that its next delivery finds it free, and fails as visibly.
                results.defect = result
                saves += self._released(work, before[path], claimed[path], Ended())
            elif isinstance(result, BaseException):
                raise result
            else:
                counted[path] = result
                saves += self._released(work, before[path], claimed[path], result)
        kept = await self._store.save_objects(saves)
        lost = {save.state.path for save, state in zip(saves, kept, strict=True) if state is None}
        for path, result in counted.items():
            self._count(work, path, result, path in lost, results)

    async def _claim(
        self, work: TwoWayWork, op: Op, before: Mapping[str, Rows], now: datetime, results: Came
    ) -> dict[str, dict[str, ObjectState]]:
        """Claim what nobody else works on; the rest is settled already, or busy."""
        first = work.sync.targets[0].id
        saves: list[Save] = []
        for path, rows in before.items():
            row = rows[first]
            if left := row.claim_left(now):
                results.later[path] = Later(busy=True)
                results.since[path] = (CLAIM - left).total_seconds()
                continue
            if work.run_id is not None and not row.claim and settled_by(row, work.run_id, op):
                # This run has dealt with it, and died before it could say so.
                results.outcomes[path] = row.outcome
                continue
            of_run = (row.run_id, row.outcome) if work.run_id is None else (work.run_id, Outcome.OPEN)
            claim = next_claim(self._store.owner)
            saves.append(
                Save(replace(row, run_id=of_run[0], outcome=of_run[1], claim=claim, claim_expires_at=now + CLAIM))
            )
        claimed: dict[str, dict[str, ObjectState]] = {}
        for save, kept in zip(saves, await self._store.save_objects(saves), strict=True):
            if kept is None:
                results.later[save.state.path] = Later(busy=True)
            else:
                claimed[kept.path] = {**before[kept.path], first: kept}
        return claimed

    def _released(self, work: TwoWayWork, before: Rows, claimed: Rows, ended: Ended) -> list[Save]:
        """What is to be saved of a path: its claim given back, and every row that something became of."""
        saves = {save.state.target: save for save in ended.saves}
        due = []
        for target_id, row in claimed.items():
            save = saves.get(target_id) or Save(row)
            mine = row.claim is not None and before[target_id].claim != row.claim
            if not mine and save.event is None and save.state == row:
                continue
            state = replace(save.state, claim=None, claim_expires_at=None, last_sync_at=self._in.clock())
            if work.run_id is not None:
                state = replace(state, run_id=work.run_id, outcome=ended.outcome or Outcome.OPEN)
            due.append(Save(state, save.event))
        return due

    def _count(self, work: TwoWayWork, path: str, ended: Ended, lost: bool, results: Came) -> None:
        if ended.deleted:
            results.deleted.add(path)
        extra = {"sync": work.sync.id, "path": path, "attempt": work.attempt, "run": work.run_id or ""}
        if lost or ended.busy:
            # Somebody else went on: what we know is old. All sides are looked at anew.
            results.later[path] = Later(busy=True)
        elif ended.outcome is None:
            results.later[path] = Later(error=ended.error, behind=ended.lags)
        else:
            results.outcomes[path] = ended.outcome
            results.down = results.down or ended.error is not None
            results.silent |= ended.silent
            if ended.outcome in (Outcome.FAILED, Outcome.CONFLICT):
                why = next((save.state.error for save in ended.saves if save.state.error), None)
                log.warning("%s: %s", ended.outcome.name.lower(), why, extra=extra)
        if ended.delete:
            results.deletes.append(path)


def _is_remembered(row: ObjectState) -> bool:
    return row.revision is not None and row.status is not ObjectStatus.DELETED


def _is_old_news(work: TwoWayWork, side: str, rows: Rows, hint: str | None, now: datetime) -> bool:
    """Whether what a side was seen to hold is what it and all others agreed on already, as after a write of our own."""
    if any(row.claim_left(now) for row in rows.values()):
        # Whoever has it may have seen that the versions began anew, and have read before this.
        return False
    try:
        agreed = {seat.id: work.agreed(seat, rows[seat.id]) for seat in work.targets}
    except InvalidSecret:
        return False
    if any(row.status is not ObjectStatus.IN_SYNC or agreed.get(each) is None for each, row in rows.items()):
        return False
    if side == SOURCE_SIDE:
        return all(is_known(row.source_version, hint) for row in rows.values())
    part = agreed.get(side)
    return part is not None and is_known(part.version, hint)
