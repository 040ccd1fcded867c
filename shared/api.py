"""HTTP requests → answers: version 1 of the HTTP interface, free of any host.

`ROUTES` says what there is; `answer` deals with one request to a route. Whoever hosts them matches routes and methods and
checks keys. function_app.py imports this module, so pydantic, the engine and the SDKs are imported when they are used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from shared.errors import ConfigError, Refused, StoreError, SyncError
from shared.http import MAX_LIMIT, RETRY_AFTER, Apps, Problem, Request, Response, Route, json_response, problem_response

if TYPE_CHECKING:
    from pydantic import BaseModel

    from shared.app import App
    from shared.history import Page
    from shared.model import ObjectState, Run, Sight, Sync
    from shared.shapes import (
        ConflictPage,
        ConflictReport,
        ObjectCounts,
        PauseReport,
        PlanReport,
        RunBegun,
        RunReport,
        StatusReport,
    )

log = logging.getLogger("vaultferry.api")

T = TypeVar("T")

MAX_BODY = 64 * 1024
"""Bytes of a request: these take a few options each."""
PLANS_SEARCHED = 2000
"""Runs that are looked through for the newest plan."""


async def answer(route: Route, apps: Apps, request: Request) -> Response:
    """Deal with a request to a route. Whatever goes wrong becomes an answer."""
    try:
        _check_method(route, request)
        return await route.handler(apps, request)
    except Problem as error:
        problem = error
    except Refused as error:
        problem = Problem(404 if error.unknown else 409, str(error))
    except ConfigError as error:
        problem = Problem(503, f"the configuration can not be used: {error}")
    except StoreError as error:
        log.error("%s %s: %s", request.method, request.path, error)  # noqa: TRY400 - its message tells all
        problem = Problem(503, str(error), {"Retry-After": RETRY_AFTER})
    except SyncError as error:
        log.error("%s %s: %s", request.method, request.path, error)  # noqa: TRY400
        problem = Problem(500, str(error))
    except Exception as error:  # noqa: BLE001 - the caller gets an answer, the log says which error it was
        from shared.queue_loop import describe

        log.error("%s %s failed: %s", request.method, request.path, describe(error))  # noqa: TRY400
        problem = Problem(500, "an unexpected error; the log says more")
    return problem_response(problem, request)


def _check_method(route: Route, request: Request) -> None:
    if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
        allowed = ", ".join(sorted(other.method for other in ROUTES if other.template == route.template))
        raise Problem(405, f"{request.path} takes {allowed}", {"Allow": allowed})


# --- answers ------------------------------------------------------------------------------------------------------


def run_json(run: Run) -> RunReport:
    """A run as the interface shows it: the columns of `syncs_run`."""
    from shared.model import iso

    return {
        "run_id": run.run_id,
        "sync_id": run.sync_id,
        "trigger": run.trigger,
        "dry_run": run.dry_run,
        "status": run.status,
        "created_at": iso(run.created_at),
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at),
        "planned": run.planned,
        "written": run.written,
        "unchanged": run.unchanged,
        "deleted": run.deleted,
        "failed": run.failed,
        "conflicts": run.conflicts,
        "drifted": run.drifted,
        "error": run.error,
        "calls": dict(run.calls),
    }


def _begun(run: Run) -> Response:
    content: RunBegun = {"run_id": run.run_id, "sync_id": run.sync_id, "status": run.status}
    return json_response(content, 202, {"Location": f"/runs/{run.run_id}"})


# --- requests -----------------------------------------------------------------------------------------------------


def _body(request: Request, model: str) -> Any:
    """The body as the model of that name in `bodies`. No body is an empty one. Raises Problem."""
    if len(request.body) > MAX_BODY:
        raise Problem(413, f"the body has more than {MAX_BODY} bytes")
    from pydantic import ValidationError

    from shared import bodies
    from shared.config.explain import explain
    from shared.config.problems import dotted

    wanted: type[BaseModel] = getattr(bodies, model)
    content = _object(request.body)
    try:
        return wanted.model_validate(content)
    except ValidationError as error:
        found = explain(error, wanted, content)
    told = (f"{dotted(place)}: {message}" + (f" ({hint})" if hint else "") for place, message, hint in found)
    raise Problem(400, "; ".join(told))


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        # Raised here, where no JSON error that quotes the body is being handled.
        raise Problem(400, "the body must be a JSON object, or empty")
    return content


def _unknown(what: str, given: str, known: tuple[str, ...]) -> Problem:
    from shared.config.problems import closest, listed, presentable

    shown = f"'{given}' is no {what}" if presentable(given) else f"there is no such {what}"
    return Problem(400, f"{shown}; {closest(given, known) or f'there are: {listed(known)}'}")


async def _sync(apps: Apps, request: Request) -> tuple[App, Sync]:
    app = await apps.get()
    sync_id = request.route_params.get("id", "")
    sync = app.config.syncs.get(sync_id)
    if sync is None:
        from shared.config.problems import closest

        hint = closest(sync_id, app.config.syncs) or "GET /syncs lists them"
        raise Problem(404, f"there is no sync {sync_id[:100]!r} in the configuration; {hint}")
    return app, sync


# --- syncs --------------------------------------------------------------------------------------------------------


async def list_syncs(apps: Apps, request: Request) -> Response:
    app = await apps.get()
    items = [await _sync_json(app, sync) for sync in app.config.syncs.values()]
    return json_response({"items": items, "next_cursor": None})


async def get_sync(apps: Apps, request: Request) -> Response:
    return json_response(await _sync_json(*await _sync(apps, request)))


async def _sync_json(app: App, sync: Sync) -> dict[str, Any]:
    control = await app.store.get_control(sync.id)
    settings = _shown(sync)
    settings.pop("id")
    return {
        "sync_id": sync.id,
        "paused": control.paused,
        "next_run": _next_run(app, sync, control.paused),
        **settings,
    }


def _shown(setting: Any) -> Any:
    """A setting as JSON: what its repr leaves out (keys, templates, constants), this leaves out as well."""
    if is_dataclass(setting):
        from shared.rules import KEYS

        steps: Mapping[Any, str] = KEYS
        of_step = {"step": steps[type(setting)]} if type(setting) in steps else {}
        return of_step | {each.name: _shown(getattr(setting, each.name)) for each in fields(setting) if each.repr}
    if isinstance(setting, Mapping):
        return {key: _shown(value) for key, value in setting.items()}
    return [_shown(each) for each in setting] if isinstance(setting, tuple) else setting


def _next_run(app: App, sync: Sync, paused: bool) -> str | None:
    from shared.model import iso
    from shared.timer_loop import next_tick

    if sync.schedule is None or not sync.enabled or paused:
        return None
    return iso(next_tick(sync.schedule, app.clock()))


async def sync_status(apps: Apps, request: Request) -> Response:
    from shared.model import ObjectStatus

    app, sync = await _sync(apps, request)
    control = await app.store.get_control(sync.id)
    last: Run | None = None
    for run_id in (control.active_run, control.last_run):
        if run_id is not None and await app.store.get_run(run_id) is not None:
            last = await app.engine.runs.view(run_id)
            break
    counts = await app.store.count_objects(sync.id)
    objects: ObjectCounts = {
        "in_sync": counts.get(ObjectStatus.IN_SYNC, 0),
        "pending": counts.get(ObjectStatus.PENDING, 0),
        "failed": counts.get(ObjectStatus.FAILED, 0),
        "conflict": counts.get(ObjectStatus.CONFLICT, 0),
        "skipped": counts.get(ObjectStatus.SKIPPED, 0),
    }
    report: StatusReport = {
        "sync_id": sync.id,
        "type": sync.type,
        "enabled": sync.enabled,
        "paused": control.paused,
        "schedule": sync.schedule,
        "next_run": _next_run(app, sync, control.paused),
        "last_run": None if last is None else run_json(last),
        "objects": objects,
    }
    return json_response(report)


async def execute_sync(apps: Apps, request: Request) -> Response:
    asked = _body(request, "Execute")
    app, sync = await _sync(apps, request)
    run = await app.engine.runs.start(
        sync.id,
        trigger="manual",
        dry_run=asked.dry_run,
        allow_deletes=asked.allow_deletes,
        plan=None if asked.plan is None else await _saved_plan(app, sync, asked.plan),
    )
    return _begun(run)


async def _saved_plan(app: App, sync: Sync, run_id: str) -> Mapping[str, Any]:
    """The plan that a dry run of this sync has made. Raises Refused."""
    from shared.engine.document import read_whole_plan

    run = await app.store.get_run(run_id)
    if run is None or run.sync_id != sync.id or not run.dry_run:
        raise Refused(f"sync {sync.id!r} has no plan {run_id[:100]!r}; GET /syncs/{sync.id}/plan shows the newest")
    plan = None if run.status.active or run.error else await read_whole_plan(app.store, run_id)
    if plan is None:
        raise Refused(f"plan {run_id} can not be carried out: it is not finished ({run.status})")
    return plan


async def make_plan(apps: Apps, request: Request) -> Response:
    _body(request, "Nothing")
    app, sync = await _sync(apps, request)
    return _begun(await app.engine.runs.start(sync.id, trigger="manual", dry_run=True))


def plan_json(run: Run, plan: Mapping[str, Any] | None) -> PlanReport:
    """A dry run that has ended and its plan; without items where it came to none."""
    known = run_json(run)
    found = plan or {"planned": 0, "unchanged": 0, "failed": 0, "blocked": {}, "unseen": {}, "items": []}
    return {
        "run_id": run.run_id,
        "sync_id": run.sync_id,
        "status": known["status"],
        "created_at": known["created_at"],
        "finished_at": known["finished_at"],
        "error": known["error"],
        "planned": found["planned"],
        "unchanged": found["unchanged"],
        "failed": found["failed"],
        "blocked": found["blocked"],
        "unseen": found["unseen"],
        "items": found["items"],
    }


async def get_plan(apps: Apps, request: Request) -> Response:
    from shared.engine.document import read_plan

    app, sync = await _sync(apps, request)
    cursor: str | None = None
    for _ in range(PLANS_SEARCHED // 100):
        page = await app.store.list_runs(sync.id, limit=100, cursor=cursor)
        for run in page.items:
            if run.dry_run and not run.status.active and (plan := await read_plan(app.store, run.run_id)):
                return json_response(plan_json(run, plan))
        cursor = page.cursor
        if cursor is None:
            break
    raise Problem(404, f"sync {sync.id!r} has no finished plan; POST /syncs/{sync.id}/plan makes one")


async def pause_sync(apps: Apps, request: Request) -> Response:
    return await _set_paused(apps, request, True)


async def resume_sync(apps: Apps, request: Request) -> Response:
    return await _set_paused(apps, request, False)


async def _set_paused(apps: Apps, request: Request, paused: bool) -> Response:
    _body(request, "Nothing")
    app, sync = await _sync(apps, request)
    control = await app.engine.runs.pause(sync.id, paused)
    report: PauseReport = {"sync_id": sync.id, "paused": control.paused}
    return json_response(report)


async def replay_sync(apps: Apps, request: Request) -> Response:
    asked = _body(request, "Replay")
    app, sync = await _sync(apps, request)
    return _begun(await app.engine.runs.replay(sync.id, asked.path))


# --- history ------------------------------------------------------------------------------------------------------


async def sync_history(apps: Apps, request: Request) -> Response:
    from shared.history import history_document
    from shared.model import ObjectStatus

    given = _query(request, ("path", "status", "since", "limit", "cursor"))
    status = None
    if "status" in given:
        choices = tuple(str(status) for status in ObjectStatus)
        if given["status"] not in choices:
            raise _unknown("status", given["status"], choices)
        status = ObjectStatus(given["status"])
    app, sync = await _sync(apps, request)
    cursor = given.get("cursor")
    page = await _page(
        app.store.page_history(
            sync.id,
            path=given.get("path"),
            status=status,
            since=_moment(given["since"]) if "since" in given else None,
            limit=_limit(given.get("limit", "100")),
            cursor=cursor,
        ),
        cursor,
    )
    return json_response({"items": [history_document(row) for row in page.items], "next_cursor": page.cursor})


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters that say something. Raises Problem for unknown ones."""
    for name in request.params:
        if name not in (*known, "code", "clientId"):
            raise _unknown("query parameter", name, known)
    return {name: value for name, value in request.params.items() if value}


async def _page(page: Awaitable[Page[T]], cursor: str | None) -> Page[T]:
    """A page of the store. Raises Problem where the cursor is none."""
    try:
        return await page
    except StoreError as error:
        if cursor is None or error.transient:
            raise
    raise Problem(400, "the cursor is not one that an earlier answer gave; start again without it")


def _limit(text: str) -> int:
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise Problem(400, f"limit must be a whole number from 1 to {MAX_LIMIT}")
    return limit


def _moment(text: str) -> datetime:
    """A time in ISO 8601; UTC unless it says otherwise."""
    try:
        # The + of a zone arrives as a space where it was not encoded.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        if len(text) == len("2026-01-01"):
            moment = datetime.combine(date.fromisoformat(text), datetime.min.time())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        problem = Problem(400, "since must be a time in ISO 8601, such as 2026-01-31 or 2026-01-31T06:00:00Z")
    raise problem


# --- conflicts ----------------------------------------------------------------------------------------------------


async def sync_conflicts(apps: Apps, request: Request) -> Response:
    from shared.model import ObjectStatus

    given = _query(request, ("limit", "cursor"))
    app, sync = await _sync(apps, request)
    limit, cursor = _limit(given.get("limit", "100")), given.get("cursor")
    page = await _page(
        app.store.page_objects(sync.id, status=ObjectStatus.CONFLICT, limit=limit, cursor=cursor), cursor
    )
    # What a target left that is not configured any more is nobody's to settle.
    items = [conflict_json(state) for state in page.items if sync.target(state.target) is not None]
    report: ConflictPage = {"items": items, "next_cursor": page.cursor}
    return json_response(report)


def conflict_json(state: ObjectState) -> ConflictReport:
    """A row in conflict as the interface shows it."""
    from shared.model import iso

    contested = state.contested
    sides: tuple[Sight, ...] = () if contested is None else contested.sides
    return {
        "sync_id": state.sync_id,
        "target": state.target,
        "path": state.path,
        # The last row of its history: what is merely noted since, such as a decision, adds none.
        "since": iso(state.history_at),
        "error": state.error,
        "decided": None if contested is None else contested.take,
        "sides": [
            {
                "side": each.side,
                "fingerprint": each.fingerprint,
                "version": each.version,
                "digest": each.digest,
                "changed_at": each.changed_at,
            }
            for each in sides
        ],
    }


async def resolve_conflict(apps: Apps, request: Request) -> Response:
    asked = _body(request, "Resolve")
    app, sync = await _sync(apps, request)
    return _begun(await app.engine.runs.resolve(sync.id, asked.path, asked.take, asked.target))


# --- runs ---------------------------------------------------------------------------------------------------------


async def get_run(apps: Apps, request: Request) -> Response:
    app = await apps.get()
    return json_response(run_json(await app.engine.runs.view(request.route_params.get("run_id", ""))))


async def cancel_run(apps: Apps, request: Request) -> Response:
    _body(request, "Nothing")
    app = await apps.get()
    return json_response(run_json(await app.engine.runs.cancel(request.route_params.get("run_id", ""))))


async def approve_run(apps: Apps, request: Request) -> Response:
    _body(request, "Nothing")
    app = await apps.get()
    return _begun(await app.engine.runs.approve(request.route_params.get("run_id", "")))


# --- what others tell of ------------------------------------------------------------------------------------------


async def post_audit(apps: Apps, request: Request) -> Response:
    from shared import intake

    return json_response(asdict(await intake.audit(await apps.get(), request)), 202)


async def post_events(apps: Apps, request: Request) -> Response:
    from shared import intake

    return json_response(asdict(await intake.events(await apps.get(), request)), 202)


# --- the app itself -----------------------------------------------------------------------------------------------


async def health(apps: Apps, request: Request) -> Response:
    from shared.health import examine

    report = await examine(apps.get)
    return json_response(report, 503 if report["status"] == "error" else 200)


async def openapi(apps: Apps, request: Request) -> Response:
    from shared.openapi import document

    return json_response(document(ROUTES))


async def metrics(apps: Apps, request: Request) -> Response:
    from shared.metrics import as_json, as_prometheus, collect

    given = request.params.get("format", "")
    if given not in ("", "json", "prometheus"):
        raise _unknown("format", given, ("json", "prometheus"))
    app = await apps.get()
    snapshot = await collect(app)
    if given == "prometheus" or (not given and _prefers_text(request.headers.get("accept", ""))):
        text, content_type = as_prometheus(snapshot)
        if app.relay is not None:
            from shared.relay import status

            text += (await status.as_prometheus(app.relay)).encode()
        return Response(200, text, {"Content-Type": content_type, "Cache-Control": "no-store"})
    return json_response(as_json(snapshot))


def _prefers_text(accept: str) -> bool:
    """Whether an Accept header asks for Prometheus' text rather than for JSON."""
    weights = {"text": 0.0, "json": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        name = {"text/plain": "text", "application/openmetrics-text": "text", "application/json": "json"}.get(kind)
        if name is None:
            continue
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            weights[name] = max(weights[name], float(weight))
        except ValueError:
            continue
    return weights["text"] > weights["json"]


ROUTES = (
    Route("health", "GET", "health", health, needs_key=False, needs_config=False),
    # Without a key, as programs that read such documents have none. It tells what the published source tells.
    Route("openapi", "GET", "openapi.json", openapi, needs_key=False),
    Route("metrics", "GET", "metrics", metrics),
    Route("syncs", "GET", "syncs", list_syncs),
    Route("sync", "GET", "syncs/{id}", get_sync),
    Route("status", "GET", "syncs/{id}/status", sync_status),
    Route("execute", "POST", "syncs/{id}/execute", execute_sync),
    Route("make_plan", "POST", "syncs/{id}/plan", make_plan),
    Route("plan", "GET", "syncs/{id}/plan", get_plan),
    Route("history", "GET", "syncs/{id}/history", sync_history),
    Route("conflicts", "GET", "syncs/{id}/conflicts", sync_conflicts),
    Route("resolve", "POST", "syncs/{id}/resolve", resolve_conflict),
    Route("pause", "POST", "syncs/{id}/pause", pause_sync),
    Route("resume", "POST", "syncs/{id}/resume", resume_sync),
    Route("replay", "POST", "syncs/{id}/replay", replay_sync),
    Route("run", "GET", "runs/{run_id}", get_run),
    Route("cancel", "POST", "runs/{run_id}/cancel", cancel_run),
    Route("approve", "POST", "runs/{run_id}/approve", approve_run),
    Route("audit", "POST", "audit", post_audit),
    Route("events", "POST", "events", post_events),
)
