"""What runs came to, for people: counts, the reason for each failure, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.cli.output import BAD, QUIET, STATUS_STYLES, STRONG, UNSURE, Part, plural
from shared.cli.plan_view import covers_nothing
from shared.cli.session import FAILED, FINE, Session

if TYPE_CHECKING:
    from shared.app import App
    from shared.cli.progress import Look
    from shared.model import ObjectState, Run

SHOWN = 20
"""Lines about single secrets, for each run; the rest is counted."""

COLUMNS = ("Sync", "Result", "Planned", "Written", "Unchanged", "Drifted", "Deleted", "Failed", "Conflicts", "Seconds")
NUMBERS = COLUMNS[2:]
SELDOM = ("Drifted", "Deleted", "Failed", "Conflicts")


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, and what a person must see to."""

    run: Run
    unsettled: list[ObjectState] = field(default_factory=list)
    """Failed, or in conflict."""
    held: list[tuple[str, str]] = field(default_factory=list)
    """Target and path of deletes that wait for approval."""


async def gather(app: App, run: Run) -> Ended:
    from shared.model import ObjectStatus, RunStatus

    unsettled: list[ObjectState] = []
    if run.failed or run.conflicts:
        for status in (ObjectStatus.FAILED, ObjectStatus.CONFLICT):
            found = app.store.list_objects(run.sync_id, status=status)
            unsettled += [state async for state in found if run.paths is None or state.path in run.paths]
    held: list[tuple[str, str]] = []
    if run.status is RunStatus.BLOCKED:
        for chunk in await app.store.list_chunks(run.run_id):
            held += [(chunk.target, path) for path in chunk.paths if chunk.held]
    unsettled.sort(key=lambda state: (state.target, state.path))
    return Ended(run, unsettled, sorted(held))


async def report(session: Session, app: App, runs: Sequence[Run]) -> int:
    """Show how these runs ended; the exit code."""
    from shared.model import RunStatus

    ended = [await gather(app, run) for run in runs]
    if session.out.as_json:
        session.out.json({"runs": [run_document(each) for each in ended]})
    elif runs:
        _table(session, runs)
        for each in ended:
            _tell(session, app, each)
    return FINE if all(run.status is RunStatus.SUCCEEDED for run in runs) else FAILED


def run_document(ended: Ended) -> dict[str, Any]:
    """A run as over HTTP, and what a person must see to."""
    from shared.api import run_json

    return {
        **run_json(ended.run),
        "unsettled": [
            {"target": s.target, "path": s.path, "status": str(s.status), "error": s.error} for s in ended.unsettled
        ],
        "held": [{"target": target, "path": path} for target, path in ended.held],
    }


def _table(session: Session, runs: Sequence[Run]) -> None:
    session.out.table(COLUMNS, [_row(run) for run in runs], numbers=NUMBERS, seldom=SELDOM)
    for run in runs:
        calls = ", ".join(f"{vault} {count:,}" for vault, count in sorted(run.calls.items())) or "none"
        session.out.line((f"API calls{f' of {run.sync_id}' if len(runs) > 1 else ''}: {calls}", QUIET))


def _row(run: Run) -> list[Part]:
    status = str(run.status)
    counts: list[Part] = [f"{n:,}" for n in (run.planned, run.written, run.unchanged, run.drifted, run.deleted)]
    return [
        run.sync_id,
        (status, STATUS_STYLES.get(status, "")),
        *counts,
        (f"{run.failed:,}", BAD if run.failed else ""),
        (f"{run.conflicts:,}", UNSURE if run.conflicts else ""),
        seconds(run),
    ]


def seconds(run: Run) -> str:
    if run.finished_at is None:
        return ""
    return f"{(run.finished_at - (run.started_at or run.created_at)).total_seconds():.1f}"


def _tell(session: Session, app: App, ended: Ended) -> None:
    from shared.model import RunStatus

    out, run = session.out, ended.run
    if run.status is RunStatus.SUCCEEDED:
        sync = app.config.syncs.get(run.sync_id)
        if sync is not None and run.paths is None and not run.planned and not run.unchanged:
            out.line((f"{covers_nothing(sync)}.", UNSURE))
        return
    out.line()
    out.line((run.sync_id, STRONG), f": {run.status}", f", {run.error}" if run.error else "")
    for state in ended.unsettled[:SHOWN]:
        out.line(("  ! ", BAD), f"{state.path} → {state.target}  ", (state.error or str(state.status), QUIET))
    for target, path in ended.held[:SHOWN]:
        out.line(("  - ", UNSURE), f"{path} → {target}  ", ("waits for approval", QUIET))
    hidden = max(0, len(ended.unsettled) - SHOWN) + max(0, len(ended.held) - SHOWN)
    if hidden:
        more = session.command(f"history {run.sync_id} --status failed") if ended.unsettled else "--json lists them all"
        out.line(f"    and {plural(hidden, 'more', 'more')}: {more}")
    for line in _next_steps(session, app, ended):
        out.line(line)


def _next_steps(session: Session, app: App, ended: Ended) -> list[str]:
    from shared.engine.saved_plan import carries_out_plan
    from shared.model import ObjectStatus, RunStatus

    run, steps = ended.run, []
    failed = [state for state in ended.unsettled if state.status is ObjectStatus.FAILED]
    replay = session.command(f"replay {run.sync_id}")
    if carries_out_plan(run):
        if run.status is not RunStatus.CANCELLED:
            again = session.command(f"plan {run.sync_id} --out FILE")
            steps.append(f"Next: `{again}` shows what is to be done now.")
        return steps
    if run.status is RunStatus.BLOCKED:
        steps.append(f"Next: `{session.command(f'approve {run.run_id}')}` deletes exactly these.")
    if any(state.transient for state in failed):
        steps.append(
            f"Next: this may pass, as the reasons say. When it has, `{replay}` tries these once more, as does any sync."
        )
    elif failed:
        steps.append(f"Next: put right what the reasons say, then `{replay}`.")
    elif run.status in (RunStatus.FAILED, RunStatus.PARTIAL) and run.error:
        sync = app.config.syncs.get(run.sync_id)
        vaults = dict.fromkeys([sync.source.vault, *(target.vault for target in sync.targets)]) if sync else ()
        steps.append(f"Next: `{session.command(' '.join(['check', *vaults]))}` says what is missing.")
    elif run.status is RunStatus.CANCELLED:
        steps.append(f"Next: `{session.command(f'sync {run.sync_id}')}` goes on.")
    if any(state.status is ObjectStatus.CONFLICT for state in ended.unsettled):
        conflicts = session.command(f"status {run.sync_id} --conflicts")
        steps.append(f"Next: `{conflicts}` shows what is in conflict, and how to settle it.")
    return steps


def tell_interrupted(session: Session, looks: Sequence[Look]) -> None:
    """Say what was left undone."""
    from shared.api import run_json

    if session.out.as_json:
        session.out.json({"interrupted": True, "runs": [run_json(look.run) for look in looks]})
    for look in looks:
        if not look.run.status.active:
            session.out.note(f"{look.run.sync_id}: {look.run.status}.")
        elif look.run.dry_run:
            session.out.note(f"{look.run.sync_id}: the plan is not finished; nothing was written.")
        else:
            counts = f"{look.done:,} of {plural(look.planned, 'secret')} done, {look.planned - look.done:,} left"
            unplanned = "planning had not ended" if look.run.status != "running" else ""
            done = "; ".join(part for part in (counts if look.planned else "", unplanned) if part)
            again = session.command(f"sync {look.run.sync_id}")
            session.out.note(f"Stopped. {look.run.sync_id}: {done}. `{again}` goes on from there.")
