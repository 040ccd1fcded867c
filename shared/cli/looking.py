"""status, history: what was done, and how things stand."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.output import BAD, GOOD, QUIET, STATUS_STYLES, STRONG, Part, plural, short, when
from shared.cli.session import FAILED, FINE, ConfigOption, JsonOption, LevelOption, Session, begin, chosen
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.app import App
    from shared.model import HistoryRow, ObjectStatus, Run

_AGO = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
RUNS_SHOWN = 5
FAILURES_SHOWN = 20


def register(app: typer.Typer) -> None:
    for function in (status, history):
        app.command()(function)


# --- status -------------------------------------------------------------------------------------------------------


def status(
    context: typer.Context,
    sync: Annotated[str | None, typer.Argument(metavar="SYNC", help="Default: all.", show_default=False)] = None,
    conflicts: Annotated[
        bool, typer.Option("--conflicts", help="List what is in conflict, and how to settle it, instead.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """How things stand: last and next runs, and how many secrets are in sync. Times are UTC."""
    session = begin(context, config, as_json, log_level)
    session.with_app(lambda app: _conflicts(session, app, sync) if conflicts else _status(session, app, sync))


async def _conflicts(session: Session, app: App, name: str | None) -> int:
    from shared.cli.conflicts import show_conflicts

    return await show_conflicts(session, app, chosen(app.config, [name]) if name else list(app.config.syncs.values()))


async def _status(session: Session, app: App, name: str | None) -> int:
    names = [one.id for one in chosen(app.config, [name])] if name else list(app.config.syncs)
    documents = [await _document(app, sync_id) for sync_id in names]
    if session.out.as_json:
        session.out.json(documents[0] if name else {"items": documents, "next_cursor": None})
        return FINE
    columns = (
        "Sync",
        "State",
        "Last run (UTC)",
        "Result",
        "In sync",
        "Pending",
        "Failed",
        "Conflict",
        "Next run (UTC)",
    )
    rows = [_status_row(document) for document in documents]
    session.out.table(columns, rows, numbers=columns[4:8], seldom=columns[5:8])
    if name:
        await _details(session, app, name)
    for document in documents:
        run = document["last_run"]
        if run and run["error"]:
            session.out.line(f"{document['sync_id']}: {run['error']}")
            if run["status"] in ("failed", "partial"):
                again = session.command(f"sync {document['sync_id']}")
                session.out.line(
                    f"What is counted is what was known before; `{session.command('check')}`, then `{again}`."
                )
        if run and run["status"] == "blocked":
            session.out.line(f"`{session.command('approve ' + run['run_id'])}` carries out what waits.")
        if document["objects"]["failed"]:
            session.out.line(f"`{session.command('replay ' + document['sync_id'])}` tries again what failed.")
        if document["objects"]["conflict"]:
            command = session.command(f"status {document['sync_id']} --conflicts")
            session.out.line(f"`{command}` lists what is in conflict.")
    return FINE


async def _document(app: App, sync_id: str) -> dict[str, Any]:
    """The very answer of GET /syncs/{id}/status."""
    from shared.api import sync_status
    from shared.http import Request

    class Opened:
        async def get(self) -> App:
            return app

    answer = await sync_status(Opened(), Request(f"/syncs/{sync_id}/status", route_params={"id": sync_id}))
    document: dict[str, Any] = json.loads(answer.body)
    return document


def _status_row(document: dict[str, Any]) -> list[Part]:
    from shared.model import from_iso

    run, objects = document["last_run"], document["objects"]
    state = "paused" if document["paused"] else "enabled" if document["enabled"] else "disabled"
    result = run["status"] if run else "never ran"
    begun = when(from_iso(run["started_at"] or run["created_at"])) if run else ""
    counts: list[Part] = [f"{objects[name]:,}" for name in ("in_sync", "pending", "failed", "conflict")]
    following = when(from_iso(document["next_run"])) or "by hand"
    return [document["sync_id"], state, begun, (result, STATUS_STYLES.get(result, "")), *counts, following]


async def _details(session: Session, app: App, name: str) -> None:
    from shared.cli.report import seconds
    from shared.model import ObjectStatus

    runs = (await app.store.list_runs(name, limit=RUNS_SHOWN)).items
    if runs:
        session.out.line()
        session.out.line(("Latest runs", STRONG))
        rows = [_run_row(run, seconds(run)) for run in runs]
        session.out.table(_RUN_COLUMNS, rows, numbers=_RUN_COLUMNS[3:], seldom=_RUN_COLUMNS[4:7])
    shown = 0
    async for state in app.store.list_objects(name, status=ObjectStatus.FAILED):
        if shown == FAILURES_SHOWN:
            session.out.line(f"    and more: {session.command(f'history {name} --status failed')}")
            break
        shown += 1
        session.out.line(("  ! ", BAD), f"{state.path} → {state.target}  ", (state.error or "", QUIET))


_RUN_COLUMNS = ("Run", "By", "Result", "Planned", "Written", "Deleted", "Failed", "Seconds")


def _run_row(run: Run, took: str) -> list[Part]:
    result = str(run.status)
    counts: list[Part] = [f"{count:,}" for count in (run.planned, run.written, run.deleted, run.failed)]
    return [run.run_id, "plan" if run.dry_run else run.trigger, (result, STATUS_STYLES.get(result, "")), *counts, took]


# --- history ------------------------------------------------------------------------------------------------------


def history(
    context: typer.Context,
    sync: Annotated[str | None, typer.Argument(metavar="SYNC", show_default=False)] = None,
    path: Annotated[str | None, typer.Option("--path", help="Only this secret.", show_default=False)] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="in_sync, failed, conflict, deleted …", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="T", help="2026-01-31, 2026-01-31T06:00:00Z, 30m, 12h, 7d", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Rows at most.")] = 50,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no row was changed, lost or put in.")] = False,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            metavar="FILE",
            help="Move what is older than history.retention into a new file of JSON lines.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """What was done to which secret, newest first. Times are UTC."""
    session = begin(context, config, as_json, log_level)

    async def body(app: App) -> int:
        if sync is not None:
            chosen(app.config, [sync])
        if archive is not None:
            if sync or path or status or since or verify:
                raise ConfigError("--archive goes by age alone: name no sync and no other option with it")
            return await _archive(session, app, archive)
        if verify:
            if path or status or since:
                raise ConfigError("--verify walks whole chains: only a sync can be named with it")
            return await _verify(session, app, sync)
        if sync is None:
            known = ", ".join(app.config.syncs)
            raise ConfigError(f"history needs the name of a sync ({known}), or --verify, or --archive FILE")
        return await _history(session, app, sync, path, status_of(status), since and moment(since, app.clock()), limit)

    session.with_app(body)


def status_of(text: str | None) -> ObjectStatus | None:
    """A status by its name. Raises ConfigError."""
    from shared.config.problems import closest, listed
    from shared.model import ObjectStatus

    if text is None:
        return None
    known = [str(status) for status in ObjectStatus]
    if text not in known:
        raise ConfigError(f"--status knows {listed(known)}; {closest(text, known) or 'give one of them'}")
    return ObjectStatus(text)


def moment(text: str, now: datetime) -> datetime:
    """A time in ISO 8601, UTC unless it says otherwise, or how long ago. Raises ConfigError."""
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        given = datetime.fromisoformat(text)
        return (given if given.tzinfo else given.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        problem = "--since takes a time such as 2026-01-31 or 2026-01-31T06:00:00Z, or how long ago: 30m, 12h, 7d"
    raise ConfigError(problem)


async def _history(
    session: Session,
    app: App,
    sync: str,
    path: str | None,
    status: ObjectStatus | None,
    since: datetime | str | None,
    limit: int,
) -> int:
    from shared.history import history_document

    rows: list[HistoryRow] = []
    cursor: str | None = None
    while True:
        page = await app.store.page_history(
            sync,
            path=path,
            status=status,
            since=since if isinstance(since, datetime) else None,
            limit=min(1000, limit - len(rows)),
            cursor=cursor,
        )
        rows += page.items
        cursor = page.cursor
        if cursor is None or len(rows) >= limit:
            break
    if session.out.as_json:
        session.out.json({"items": [history_document(row) for row in rows], "next_cursor": cursor})
        return FINE
    if not rows:
        session.out.line("Nothing so far." if not (path or status or since) else "Nothing matches.")
        return FINE
    session.out.table(
        ("When (UTC)", "What", "Secret", "Target", "Version", "Status", "Reason"),
        [_history_row(row) for row in rows],
        wide=("Secret", "Reason"),
        seldom=("Reason",),
    )
    if cursor is not None:
        session.out.line((f"There is more: --limit {limit * 10} shows older rows too.", QUIET))
    return FINE


def _history_row(row: HistoryRow) -> list[Part]:
    result = str(row.status)
    # Both stand in the order of source and target; the arrow says which of them gave.
    way = " ← " if row.direction == "target_to_source" else " → "
    versions = way.join(short(version) for version in (row.source_version, row.target_version) if version)
    return [
        when(row.created_at),
        str(row.action),
        row.path,
        row.target,
        versions,
        (result, STATUS_STYLES.get(result, "")),
        row.error or _decision(row),
    ]


def _decision(row: HistoryRow) -> str:
    """Of a conflict: which side was taken, and why."""
    from shared.history import history_document

    detail = history_document(row)["detail"]
    if detail is None or detail["taken"] is None:
        return detail["rule"] if detail else ""
    held = {side["side"]: side["digest"] for side in detail["sides"]}
    over = ", ".join(side for side, digest in held.items() if digest != held.get(detail["taken"]))
    return f"{detail['taken']} taken" + (f" over {over}" if over else "") + f": {detail['rule']}"


async def _verify(session: Session, app: App, sync: str | None) -> int:
    found = await app.store.verify_history(sync)
    broken = [{"sync_object_id": b.sync_object_id, "path": b.path, "detail": b.detail} for b in found.broken]
    if session.out.as_json:
        session.out.json({"ok": not broken, "objects": found.objects, "rows": found.rows, "broken": broken})
    counted = f"{plural(found.rows, 'row')} of {plural(found.objects, 'secret')}"
    if not broken:
        session.out.line(("The history is whole", GOOD), f": {counted}, and every chain holds.")
        return FINE
    session.out.line(("The history was tampered with", BAD), f": {counted} were read.")
    for each in found.broken:
        session.out.line(("  ! ", BAD), f"{each.path}  ", (each.detail, QUIET))
    return FAILED


async def _archive(session: Session, app: App, file: str) -> int:
    retention = app.config.history_retention
    if retention is None:
        raise ConfigError("history.retention is not configured, so everything is kept: there is nothing to archive")
    before = app.clock() - retention
    lines = await _write_archive(app, file, before)
    if session.out.as_json:
        session.out.json({"archived": lines, "before": before.isoformat(), "file": file})
    if lines:
        session.out.line(f"Moved {plural(lines, 'row')} older than {when(before)} into {file}.")
    else:
        os.unlink(file)
        session.out.line(f"Nothing is older than {when(before)}; {file} was not made.")
    return FINE


async def _write_archive(app: App, place: str, before: datetime) -> int:
    try:
        # Never over an older archive, and for its owner alone: names of secrets are in there.
        descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        problem = f"{place} is there already, and is left as it is; name a new file"
    except OSError as error:
        problem = f"{place} can not be written: {error.strerror}"
    else:
        # Unbuffered: what was handed over is with the system before anything is removed from the store.
        try:
            lines = await app.store.archive(before, lambda line: _write_all(descriptor, line.encode() + b"\n"))
            os.fsync(descriptor)
            return lines
        finally:
            os.close(descriptor)
    raise ConfigError(problem)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
