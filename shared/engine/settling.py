"""Claiming paths, working on them side by side, and recording how they ended: what all jobs that write have in common."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from shared.engine.contested import failed_status
from shared.engine.installation import Installation, backoff
from shared.engine.outage import Outage
from shared.engine.path_work import Later, PathWork, Settled, fail_event
from shared.engine.runs import ATTEMPTS_TO_SAVE
from shared.errors import ConfigError, StoreError, Unsupported, VaultError
from shared.history import Save
from shared.mapping import Mapper
from shared.metadata import why_not
from shared.model import Action, Event, ObjectState, ObjectStatus, Op, Outcome, Part, RetryPolicy, Sync, Target

log = logging.getLogger("vaultferry.writer")

BATCH = 64
"""Paths claimed, worked on and recorded together: each of the two costs one transaction."""
CLAIM = timedelta(seconds=300)
"""Longer than a batch takes, quick tries and time-outs included. After a crash nobody else may touch its paths sooner,
but for a process on the same machine that knows the holder to be dead."""
LONGEST_BUSY_DELAY = 5.0
"""Seconds until a path that somebody works on is looked at again, at most."""
LAG_TRIES = 3
"""How often a vault is asked again that shows less than it is known to hold. Then it is taken at its word: the key may have
been wiped and written anew, which begins at version 1."""
LAG_DELAY = 0.3
"""Seconds until an event's job asks for the first time; twice as many each further time."""
_claims = itertools.count()
"""What tells the claims of one process apart."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A path that is this job's alone: its row as it was, and as it is now."""

    before: ObjectState
    state: ObjectState


@dataclass
class Results:
    """What came of a job's paths."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    later: dict[str, Later] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Whose claims had expired before they could be saved."""
    down: bool = False
    """Some failed for good because a vault did not answer: somebody should see when it does."""
    silent: set[str] = field(default_factory=set)
    """Of a two-way sync: which vaults these are. Empty: the job's own."""
    defect: Exception | None = None
    """What some ended with that is no vault's answer: their message is to come again, and ends in poison."""
    outage: Outage = field(default_factory=Outage)
    """The target's."""
    since: dict[str, float] = field(default_factory=dict)
    """For how many seconds somebody else has been at a path that is busy."""

    def again(self) -> tuple[list[str], list[str], dict[str, Later]]:
        """What must come again: what is busy, what a vault does not show yet, and what failed."""
        busy = [path for path, why in self.later.items() if why.busy]
        behind = [path for path, why in self.later.items() if why.behind]
        return busy, behind, {path: why for path, why in self.later.items() if not why.busy and not why.behind}

    def busy_delay(self, busy: Iterable[str], least: float) -> float:
        """Seconds until these paths are looked at again: as long as somebody has been at them already."""
        at_it = min(self.since.get(path, 0.0) for path in busy)
        return min(max(at_it, least), LONGEST_BUSY_DELAY)


class Settler:
    def __init__(self, installation: Installation) -> None:
        self._in = installation
        self._store = installation.store

    async def work(self, sync: Sync, target: Target, run_id: str | None, attempt: int) -> PathWork:
        """What a job's paths have in common, its vaults opened. Raises any VaultError, and ConfigError."""
        source = await self._in.vaults.get(sync.source.vault, sync.source.resource)
        vault = await self._in.vaults.get(target.vault, sync.source.resource)
        held = source.capabilities.metadata, vault.capabilities.metadata
        if why := why_not(target.metadata, (source.id, held[0]), (vault.id, held[1])):
            # A mount's version is only known once it is open.
            raise Unsupported(f"metadata {why}", vault=vault.id)
        return PathWork(
            sync=sync,
            target=target,
            mapper=Mapper(target, vault.capabilities.names),
            source=source,
            vault=vault,
            store=self._store,
            digester=self._in.digester,
            owner=self._in.owner_marks.get(sync.id),
            run_id=run_id,
            attempt=attempt,
            clock=self._in.clock,
        )

    async def claim(
        self, work: PathWork, todo: Sequence[tuple[ObjectState, tuple[Part, ...]]], results: Results
    ) -> list[Claimed]:
        """Claim paths: each as it was read, and the parts that are noted before anything is written. Whoever else was
        faster keeps theirs: busy."""
        if not todo:
            return []
        now = self._in.clock()
        saves = []
        for before, parts in todo:
            # A run's own account of a path is left alone by an event, for jobs of that run that come again.
            of_run = (before.run_id, before.outcome) if work.by_event else (work.run_id, Outcome.OPEN)
            claimed = replace(
                before,
                parts=parts,
                status=ObjectStatus.PENDING,
                run_id=of_run[0],
                outcome=of_run[1],
                claim=next_claim(self._store.owner),
                claim_expires_at=now + CLAIM,
            )
            saves.append(Save(claimed))
        ours = []
        for (before, _), kept in zip(todo, await self._store.save_objects(saves), strict=True):
            if kept is None:
                results.later[before.path] = Later(busy=True)
            else:
                ours.append(Claimed(before, kept))
        return ours

    async def settle(
        self,
        work: PathWork,
        claimed: Sequence[Claimed],
        one: Callable[[Claimed], Awaitable[Settled | Later]],
        results: Results,
    ) -> None:
        """Do `one` for each claimed path, side by side, and record all that came of it in one step."""

        pacer = work.vault.pacer

        async def unless_down(each: Claimed) -> Settled | Later:
            if (down := results.outage.error(pacer)) is not None:
                return Later(error=down)
            begun = pacer.answered
            result = await one(each)
            if isinstance(result, Later) and result.error is not None:
                results.outage.failed(pacer, begun, result.error)
            return result

        if not claimed:
            return
        ended = await asyncio.gather(*(unless_down(each) for each in claimed), return_exceptions=True)
        saves: list[Save] = []
        outcomes: list[Outcome | Later | None] = []
        for each, result in zip(claimed, ended, strict=True):
            save: Save
            outcome: Outcome | Later | None
            if isinstance(result, Exception):
                # Given back at once, so that its next delivery finds it free, and fails as visibly.
                results.defect = result
                save, outcome = Save(each.state), None
            elif isinstance(result, BaseException):
                raise result
            elif isinstance(result, Later):
                final = not result.busy and work.attempt >= work.sync.retry_policy.max_retries
                results.down = results.down or final
                save, outcome = _given_back(work, each, result, final)
            else:
                save, outcome = Save(result.state, result.event), result.outcome
            of_run = (save.state.run_id, save.state.outcome)
            if isinstance(outcome, Outcome) and work.run_id is not None:
                of_run = (work.run_id, outcome)
            released = replace(
                save.state,
                run_id=of_run[0],
                outcome=of_run[1],
                claim=None,
                claim_expires_at=None,
                last_sync_at=self._in.clock(),
            )
            saves.append(Save(released, save.event))
            outcomes.append(outcome)
        saved = await self._store.save_objects(saves)
        for each, save, kept, outcome in zip(claimed, saves, saved, outcomes, strict=True):
            if outcome is None:
                continue
            if kept is None:
                # The claim had expired and somebody else went on: what we know is old.
                await self._doubt(each.state, save.state)
                results.lost.append(save.state.path)
            elif isinstance(outcome, Later):
                results.later[save.state.path] = outcome
            else:
                results.outcomes[save.state.path] = outcome
                log_path(save.state, outcome, run_id=work.run_id, attempt=work.attempt)

    async def _doubt(self, claimed: ObjectState, ours: ObjectState) -> None:
        """Who went on does not know that we wrote behind its back: nobody is to trust its record before a look."""
        for _ in range(ATTEMPTS_TO_SAVE):
            known = await self._store.get_objects(ours.sync_id, ours.target, [ours.path])
            theirs = known[ours.path]
            parts = (*theirs.parts, *(part for part in ours.parts if theirs.part(part.name) is None))
            doubted = replace(theirs, parts=parts, status=ObjectStatus.PENDING, outcome=Outcome.OPEN)
            if theirs.claim == claimed.claim:
                # Given up meanwhile, and left to us all the same.
                doubted = replace(doubted, claim=None, claim_expires_at=None)
            if (await self._store.save_objects([Save(doubted)]))[0] is not None:
                return
        raise StoreError(f"{ours.path!r} of sync {ours.sync_id!r} could not be saved: its record keeps changing")

    # without a claim ----------------------------------------------------------------------------------------------

    async def unopened(
        self,
        sync: Sync,
        target: Target,
        paths: Sequence[str],
        error: VaultError | ConfigError,
        results: Results,
        *,
        run_id: str | None,
        attempt: int,
    ) -> None:
        """A vault can not even be opened: paths come later, or have failed."""
        if isinstance(error, VaultError) and error.transient and attempt < sync.retry_policy.max_retries:
            results.later.update((path, Later(error=error)) for path in paths)
            return
        results.down = results.down or error.transient
        states = await self._store.get_objects(sync.id, target.id, paths)
        failed: dict[str, VaultError | ConfigError] = dict.fromkeys(paths, error)
        await self.fail(
            [states.get(path) or ObjectState(sync.id, target.id, path) for path in paths],
            failed,
            results,
            run_id=run_id,
            attempt=attempt,
        )

    async def fail(
        self,
        states: Sequence[ObjectState],
        errors: Mapping[str, VaultError | ConfigError],
        results: Results,
        *,
        run_id: str | None,
        attempt: int,
    ) -> None:
        """Record as failed what nobody has begun to write. Whoever else was faster keeps theirs: busy."""
        saves = []
        for before in states:
            error = errors[before.path]
            failed = replace(
                before,
                status=failed_status(before),
                error=str(error),
                transient=error.transient,
                last_sync_at=self._in.clock(),
            )
            if run_id is not None:
                failed = replace(failed, run_id=run_id, outcome=Outcome.FAILED)
            saves.append(Save(failed, fail_event(before, failed, run_id, attempt)))
        if not saves:
            return
        for save, kept in zip(saves, await self._store.save_objects(saves), strict=True):
            if kept is None:
                results.later[save.state.path] = Later(busy=True)
            else:
                results.outcomes[save.state.path] = Outcome.FAILED
                log_path(save.state, Outcome.FAILED, run_id=run_id, attempt=attempt)

    async def give_up(
        self, sync_id: str, target_id: str, paths: Sequence[str], *, run_id: str | None, attempt: int
    ) -> None:
        """Record paths as failed whose job ended without an answer too often."""
        why = "its job ended without an answer several times; see the log of the writer"
        states = await self._store.get_objects(sync_id, target_id, paths)
        now = self._in.clock()
        saves = []
        for path in paths:
            state = states.get(path) or ObjectState(sync_id, target_id, path)
            failed = replace(state, status=failed_status(state), error=why, transient=False)
            if not state.claim_left(now):
                # Otherwise somebody may be at it: nobody else is to begin with it, whatever the record says meanwhile.
                failed = replace(failed, claim=None, claim_expires_at=None)
            if run_id is not None:
                failed = replace(failed, run_id=run_id, outcome=Outcome.FAILED)
            saves.append(Save(failed, Event(Action.FAIL, ObjectStatus.FAILED, run_id, attempt=attempt, error=why)))
        await self._store.save_objects(saves)


def _given_back(work: PathWork, each: Claimed, later: Later, final: bool) -> tuple[Save, Outcome | Later]:
    """What to save for a path that could not be settled now: given back, or failed when its retries are used up."""
    before, state = each.before, later.state or each.state
    if not final:
        # A failure that stays is not news: the status that tells it from a new one is kept for the last try.
        status = ObjectStatus.FAILED if before.status is ObjectStatus.FAILED else state.status
        return Save(replace(state, status=status, error=str(later.error) if later.error else state.error)), later
    failed = replace(state, status=ObjectStatus.FAILED, error=str(later.error), transient=True)
    return Save(failed, fail_event(before, failed, work.run_id, work.attempt)), Outcome.FAILED


def settled_by(state: ObjectState, run_id: str, op: Op) -> bool:
    """Whether a run has settled a path already, by a job of the same sort."""
    if state.run_id != run_id or state.status is ObjectStatus.PENDING or state.outcome is Outcome.OPEN:
        return False
    return (state.outcome is Outcome.DELETED) == (op is Op.DELETE)


def next_claim(owner: str) -> str:
    """What tells this claim from all others of its holder."""
    return f"{owner}:{next(_claims)}"


def put_off(
    policy: RetryPolicy, failed: Mapping[str, Later], attempt: int, logger: logging.Logger, about: Mapping[str, str]
) -> float:
    """Say when failed paths (one at least) are tried again, for the `attempt`th time, and why; the seconds until then."""
    asked = max((why.retry_after for why in failed.values() if why.retry_after), default=None)
    delay = backoff(policy, attempt, asked)
    why = next(iter(failed.values())).error
    extra = {**about, "attempt": attempt}
    logger.info("%d paths are tried again in %.1f s: %s", len(failed), delay, why, extra=extra)
    return delay


def log_path(state: ObjectState, outcome: Outcome, *, run_id: str | None, attempt: int) -> None:
    if outcome in (Outcome.FAILED, Outcome.CONFLICT):
        level, text = logging.WARNING, f"{outcome.name.lower()}: {state.error}"
    elif outcome in (Outcome.WRITTEN, Outcome.REPAIRED, Outcome.DELETED):
        level, text = logging.DEBUG, outcome.name.lower()
    else:
        return
    if log.isEnabledFor(level):
        extra = {"sync": state.sync_id, "target": state.target, "path": state.path, "attempt": attempt}
        log.log(level, "%s", text, extra=extra if run_id is None else {**extra, "run": run_id})
