"""What is in conflict, and what came of settling it by hand."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shared.cli.output import GOOD, QUIET, STRONG, UNSURE, Part, plural, short, when
from shared.cli.session import FAILED, FINE, INTERRUPTED, Session

if TYPE_CHECKING:
    from shared.app import App
    from shared.model import ObjectState, Run, Sight, Sync

_COLUMNS = ("Side", "Version", "Changed (UTC)", "Digest")
_DIGITS = 8
"""Of a digest: enough to see which sides hold the same."""


# --- what there is ------------------------------------------------------------------------------------------------


async def show_conflicts(session: Session, app: App, syncs: Sequence[Sync]) -> int:
    """List each secret in conflict, what its sides hold, and the commands that settle it."""
    from shared.api import conflict_json
    from shared.model import ObjectStatus

    found: list[tuple[Sync, list[ObjectState]]] = []
    for sync in syncs:
        listed = app.store.list_objects(sync.id, status=ObjectStatus.CONFLICT)
        rows = [row async for row in listed if sync.target(row.target) is not None]
        rows.sort(key=lambda row: (row.path, row.target))
        found += [(sync, list(of_path)) for _, of_path in itertools.groupby(rows, lambda row: row.path)]
    if session.out.as_json:
        items = [conflict_json(row) for _, rows in found for row in rows]
        session.out.json({"items": items, "next_cursor": None})
    for sync, rows in found:
        _show(session, sync, rows)
        session.out.line()
    session.out.line(f"{plural(len(found), 'secret')} in conflict." if found else "Nothing is in conflict.")
    return FINE


def _show(session: Session, sync: Sync, rows: Sequence[ObjectState]) -> None:
    from shared.engine.by_hand import sights_of

    out, path = session.out, rows[0].path
    since = min((row.history_at for row in rows if row.history_at is not None), default=None)
    out.line((f"{sync.id}: {path}", STRONG), (f"  since {when(since)}" if since else "", QUIET))
    sights = sights_of(rows)
    for reason, of_reason in itertools.groupby(rows, lambda row: row.error or ""):
        where = "" if sights else ", ".join(row.target for row in of_reason) + "  "
        out.line(("  ! ", UNSURE), where, (reason, QUIET))
    if sights:
        out.table(_COLUMNS, [_side(sight) for sight in sights])
    for line in _next_steps(session, sync, rows):
        out.line(f"  {line}")


def _side(sight: Sight) -> list[Part]:
    from shared.model import from_iso

    holds: Part = (sight.digest or "")[:_DIGITS] if sight.digest else ("holds nothing", QUIET)
    return [sight.side, short(sight.version or ""), when(from_iso(sight.changed_at)), holds]


def _next_steps(session: Session, sync: Sync, rows: Sequence[ObjectState]) -> Iterable[str]:
    from shared.engine.by_hand import differing_targets, unsettled

    secret = f"{sync.id} {shlex.quote(rows[0].path)}"
    if not sync.two_way or not unsettled(rows):
        replay = session.command(f"replay {sync.id} --path {shlex.quote(rows[0].path)}")
        yield f"`{replay}` looks again, when that is done."
        return
    run = session.command(f"sync {sync.id}")
    begun = next((row.contested.taken for row in rows if row.contested is not None and row.contested.taken), None)
    if begun is not None:
        yield f"All sides are being given what {_called(begun)} held; where that broke off, `{run}` goes on."
    elif decided := _decided(rows):
        yield f"It was decided to take {_called(decided)}: a run carries it out, or `{run}`."
    yield f"`{session.command(f'resolve {secret} --take source')}`"
    differing = differing_targets(rows)
    if len(set(differing.values())) == 1:
        yield f"`{session.command(f'resolve {secret} --take target')}`"
        return
    for target in differing:
        yield f"`{session.command(f'resolve {secret} --take target --target {shlex.quote(target)}')}`"


def _called(side: str) -> str:
    from shared.model import SOURCE_SIDE

    return "the source" if side == SOURCE_SIDE else side


def _decided(rows: Sequence[ObjectState]) -> str | None:
    return next((row.contested.take for row in rows if row.contested is not None and row.contested.take), None)


# --- settling -----------------------------------------------------------------------------------------------------


async def settle(session: Session, app: App, sync: Sync, path: str, take: str, target: str | None) -> int:
    """Note a decision, carry it out, and say what came of it."""
    from shared.cli.report import gather, report, run_document, tell_interrupted
    from shared.cli.running import Interrupted, carry_out

    active = (await app.store.get_control(sync.id)).active_run
    run = await app.engine.runs.resolve(sync.id, path, take, target)
    if run.run_id == active:
        session.out.note(f"{sync.id}: going on with run {active}, which was on its way; another follows if need be.")
    try:
        ended = await carry_out(app, session.out, [run], write=True)
        if following := await _following(app, ended[0], path):
            ended += await carry_out(app, session.out, [following], write=True)
    except Interrupted as interrupted:
        tell_interrupted(session, interrupted.looks)
        return INTERRUPTED
    rule, left = await _settled_by(app, sync, path), await _left(app, sync, path)
    if session.out.as_json:
        runs = [run_document(await gather(app, each)) for each in ended]
        session.out.json({"runs": runs, "path": path, "settled": not left, "rule": None if left else rule})
    else:
        await report(session, app, ended)
        _tell(session, sync, path, rule, left)
    return FAILED if left else FINE


async def _following(app: App, ended: Run, path: str) -> Run | None:
    """The run that follows one which had passed the path before the decision was made."""
    sync = app.config.syncs[ended.sync_id]
    if _decided(await _left(app, sync, path)) is None:
        return None
    # Whoever ended that run may not have come to begin the next one yet.
    await app.engine.runs.go_on(sync.id)
    active = (await app.store.get_control(sync.id)).active_run
    return await app.store.get_run(active) if active and active != ended.run_id else None


async def _left(app: App, sync: Sync, path: str) -> list[ObjectState]:
    """The path's rows that are not settled."""
    from shared.model import ObjectStatus

    found = [await app.store.get_objects(sync.id, each.id, [path]) for each in sync.targets]
    settled = (ObjectStatus.IN_SYNC, ObjectStatus.DELETED)
    return [row for rows in found for row in rows.values() if row.status not in settled]


async def _settled_by(app: App, sync: Sync, path: str) -> str | None:
    """By which rule the path's last conflict was settled."""
    from shared.history import history_document

    newest = (await app.store.page_history(sync.id, path=path, limit=len(sync.targets) * 2)).items
    details = (history_document(row)["detail"] for row in newest)
    return next((detail["rule"] for detail in details if detail and detail["taken"]), None)


def _tell(session: Session, sync: Sync, path: str, rule: str | None, left: Sequence[ObjectState]) -> None:
    from shared.engine.by_hand import unsettled

    out = session.out
    if not left:
        out.line((f"{path} is settled", GOOD), f": {rule}." if rule else ".")
        return
    out.line()
    if _decided(left) is not None:
        again = session.command(f"sync {sync.id}")
        out.line((f"{path} is not settled yet", UNSURE), f"; the decision is kept, and `{again}` carries it out.")
    elif unsettled(left):
        shown = session.command(f"status {sync.id} --conflicts")
        out.line((f"{path} is in conflict again", UNSURE), f": a side has changed since. `{shown}` shows how.")
    else:
        out.line((f"{path} is not settled on all sides", UNSURE), ":")
    for row in left:
        out.line(("  ! ", UNSURE), f"{row.target}  ", (row.error or str(row.status), QUIET))
