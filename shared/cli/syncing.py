"""plan, sync, replay, resolve, approve, cancel, pause, resume: what begins a run, goes on with it or ends it."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.output import plural
from shared.cli.session import (
    CHANGES,
    FAILED,
    FINE,
    INTERRUPTED,
    ConfigOption,
    JsonOption,
    LevelOption,
    Session,
    begin,
    chosen,
)
from shared.errors import ConfigError, Refused

if TYPE_CHECKING:
    from shared.app import App
    from shared.model import Run, Sync
    from shared.shapes import PlanReport

SyncNames = Annotated[
    list[str] | None, typer.Argument(metavar="SYNC", help="Default: all that are enabled.", show_default=False)
]
SyncName = Annotated[str, typer.Argument(metavar="SYNC", show_default=False)]
RunName = Annotated[str, typer.Argument(metavar="RUN", show_default=False)]


class Take(enum.StrEnum):
    """Of a conflict: the side whose value the others get."""

    SOURCE = "source"
    TARGET = "target"


def register(app: typer.Typer) -> None:
    for function in (plan, sync, replay, resolve, approve, cancel, pause, resume):
        app.command()(function)


# --- commands -----------------------------------------------------------------------------------------------------


def plan(
    context: typer.Context,
    syncs: SyncNames = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 3 when there are changes.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="PATH", help="Show how this secret comes to its names and fields instead."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Save the plan of one sync as well, for `sync --plan FILE`. What is there is replaced.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Show what a sync would do; nothing is written."""
    # That a target does not answer, and is planned without, belongs to the plan.
    session = begin(context, config, as_json, log_level, default_level="warning")
    if explain is not None and out is not None:
        raise typer.BadParameter("--explain shows no plan that --out could save")
    if explain is not None:
        session.with_app(lambda app: _explain(session, app, syncs, explain))
    session.with_app(lambda app: _plan(session, app, syncs, detailed_exitcode, out))


def sync(
    context: typer.Context,
    syncs: SyncNames = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as `plan`.")] = False,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Delete, this once, however many there are.")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Carry out exactly the plan that `plan --out FILE` saved, deletes included; nothing at all when "
            "something has changed since.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Bring the targets up to date. Ctrl-C stops it; the next one goes on from there."""
    session = begin(context, config, as_json, log_level, default_level="warning" if dry_run else "error")
    if plan is not None:
        if dry_run or allow_deletes:
            raise typer.BadParameter(
                "--plan carries out what was planned: it takes neither --dry-run nor --allow-deletes"
            )
        session.with_app(lambda app: _carry_out_plan(session, app, syncs, plan))
    if dry_run:
        session.with_app(lambda app: _plan(session, app, syncs, False, None))
    session.with_app(lambda app: _sync(session, app, syncs, allow_deletes))


def replay(
    context: typer.Context,
    sync: SyncName,
    path: Annotated[
        str | None, typer.Option("--path", help="Only this secret, failed or not.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Try again what failed."""
    session = begin(context, config, as_json, log_level)

    async def body(app: App) -> int:
        (named,) = chosen(app.config, [sync])
        active = (await app.store.get_control(named.id)).active_run
        run = await app.engine.runs.replay(named.id, path)
        _say_if_joined(session, run, active, "its own paths come first; replay again if these still fail")
        code = await _carry_out(session, app, [run])
        if path is not None and code == FINE and not await _is_known(app, named, path):
            why = session.command(f"plan {named.id} --explain {shlex.quote(path)}")
            raise Refused(f"nothing was replayed: sync {named.id!r} carries no secret {path!r}; `{why}` tells why")
        return code

    session.with_app(body)


def resolve(
    context: typer.Context,
    sync: SyncName,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The secret, below the source's prefix.")],
    take: Annotated[Take, typer.Option("--take", help="Whose value all sides get.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="ID", help="Which target, where several differ from the source.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Settle a conflict of a two-way sync."""
    session = begin(context, config, as_json, log_level)
    if target is not None and take is not Take.TARGET:
        raise typer.BadParameter("--target goes with --take target only")

    async def body(app: App) -> int:
        from shared.cli.conflicts import settle

        (named,) = chosen(app.config, [sync])
        return await settle(session, app, named, path, take, target)

    session.with_app(body)


def approve(
    context: typer.Context,
    run: RunName,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Carry out exactly the deletes that a blocked run holds back."""
    session = begin(context, config, as_json, log_level)

    async def body(app: App) -> int:
        return await _carry_out(session, app, [await app.engine.runs.approve(run)])

    session.with_app(body)


def cancel(
    context: typer.Context,
    run: RunName,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """End a run: what was written stays, the rest is dropped."""
    session = begin(context, config, as_json, log_level)

    async def body(app: App) -> int:
        from shared.api import run_json

        ended = await app.engine.runs.cancel(run)
        _result(session, run_json(ended))
        session.out.line(f"Cancelled. {plural(ended.written, 'secret')} of {ended.sync_id} had been written.")
        return FINE

    session.with_app(body)


def pause(
    context: typer.Context,
    sync: SyncName,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Let no new run of a sync begin."""
    session = begin(context, config, as_json, log_level)
    session.with_app(lambda app: _set_paused(session, app, sync, True))


def resume(
    context: typer.Context,
    sync: SyncName,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Let a paused sync run again."""
    session = begin(context, config, as_json, log_level)
    session.with_app(lambda app: _set_paused(session, app, sync, False))


# --- what they do -------------------------------------------------------------------------------------------------


async def _sync(session: Session, app: App, names: list[str] | None, allow_deletes: bool) -> int:
    runs: list[Run] = []
    for one in chosen(app.config, names):
        control = await app.store.get_control(one.id)
        if control.paused and not names:
            session.out.note(
                f"{one.id} is paused: left out. `{session.command(f'resume {one.id}')}` lets it run again."
            )
            continue
        run = await app.engine.runs.start(one.id, trigger="manual", allow_deletes=allow_deletes)
        ignored = "its deletes still need an approval" if allow_deletes and not run.allow_deletes else ""
        _say_if_joined(session, run, control.active_run, ignored)
        runs.append(run)
    return await _carry_out(session, app, runs)


async def _is_known(app: App, sync: Sync, path: str) -> bool:
    """Whether a path has a row on some target: a run leaves one of all that is there."""
    return any([await app.store.get_objects(sync.id, target.id, [path]) for target in sync.targets])


def _say_if_joined(session: Session, run: Run, active: str | None, but: str) -> None:
    if run.run_id == active:
        session.out.note(
            f"{run.sync_id}: going on with run {run.run_id}, which was on its way" + (f"; {but}." if but else ".")
        )


async def _carry_out(session: Session, app: App, runs: Sequence[Run]) -> int:
    from shared.cli.report import report, tell_interrupted
    from shared.cli.running import Interrupted, carry_out

    try:
        ended = await carry_out(app, session.out, runs, write=True)
    except Interrupted as interrupted:
        tell_interrupted(session, interrupted.looks)
        return INTERRUPTED
    return await report(session, app, ended)


async def _carry_out_plan(session: Session, app: App, names: list[str] | None, place: str) -> int:
    from shared.cli.plan_file import read_plan_file

    found = read_plan_file(place)
    (one,) = chosen(app.config, [found["sync_id"]])
    if names and names != [one.id]:
        raise ConfigError(f"{place} is a plan of sync {one.id!r}")
    return await _carry_out(session, app, [await app.engine.runs.start(one.id, trigger="manual", plan=found)])


async def _plan(session: Session, app: App, names: list[str] | None, detailed: bool, place: str | None) -> int:
    from shared.api import plan_json
    from shared.cli.plan_file import check_place
    from shared.cli.plan_view import show_plan
    from shared.cli.report import tell_interrupted
    from shared.cli.running import Interrupted, carry_out
    from shared.engine.document import read_plan

    syncs = chosen(app.config, names)
    if place is not None:
        if len(syncs) > 1:
            raise ConfigError(f"--out saves one plan: name one of {', '.join(each.id for each in syncs)}")
        check_place(place)
    runs = [await app.engine.runs.start(one.id, trigger="manual", dry_run=True) for one in syncs]
    try:
        ended = await carry_out(app, session.out, runs, write=False)
    except Interrupted as interrupted:
        tell_interrupted(session, interrupted.looks)
        return INTERRUPTED
    documents = [plan_json(run, await read_plan(app.store, run.run_id)) for run in ended]
    _result(session, documents[0] if len(documents) == 1 else {"plans": documents})
    for number, (one, document) in enumerate(zip(syncs, documents, strict=True)):
        if number:
            session.out.line()
        show_plan(session, one, document)
    if place is not None:
        await _save_plan(session, app, syncs[0], ended[0], place)
    if any(map(_is_in_trouble, documents)):
        return FAILED
    return CHANGES if detailed and any(document["planned"] for document in documents) else FINE


def _is_in_trouble(plan: PlanReport) -> bool:
    """Whether it could not be made, or not for all, or shows what can not be carried."""
    return bool(
        plan["error"] or plan["unseen"] or any(each["change"] in ("fail", "conflict") for each in plan["items"])
    )


async def _save_plan(session: Session, app: App, sync: Sync, run: Run, place: str) -> None:
    from shared.cli.plan_file import write_plan
    from shared.engine.document import read_whole_plan
    from shared.engine.saved_plan import why_not

    plan = await read_whole_plan(app.store, run.run_id) if run.error is None else None
    if plan is None:
        raise Refused("the plan is not saved: it was not finished")
    if (why := why_not(sync, plan)) is not None:
        raise Refused(f"the plan is not saved: {why}")
    write_plan(place, plan, run)
    again = session.command(f"sync --plan {shlex.quote(place)}")
    session.out.note(f"Saved. `{again}` carries out exactly this, or nothing.")


async def _explain(session: Session, app: App, names: list[str] | None, path: str) -> int:
    from shared.cli.explain_view import explained, show_explained

    documents = [await explained(app, one, path) for one in chosen(app.config, names)]
    _result(session, documents[0] if len(documents) == 1 else {"explanations": documents})
    for number, document in enumerate(documents):
        if number:
            session.out.line()
        show_explained(session, document)
    return FAILED if any(target["error"] for document in documents for target in document["targets"]) else FINE


async def _set_paused(session: Session, app: App, name: str, paused: bool) -> int:
    (named,) = chosen(app.config, [name])
    control = await app.engine.runs.pause(named.id, paused)
    _result(session, {"sync_id": named.id, "paused": control.paused})
    if paused:
        session.out.line(
            f"{name} is paused. A run that is on its way goes on; `{session.command(f'resume {name}')}` ends the pause."
        )
    else:
        session.out.line(f"{name} is no longer paused.")
    return FINE


def _result(session: Session, document: Any) -> None:
    if session.out.as_json:
        session.out.json(document)
