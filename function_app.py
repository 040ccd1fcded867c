"""The triggers of Azure Functions, registered from the configuration; `vaultferry serve` runs the very same ones.

Nothing is decided here: each function hands its trigger to `shared.api` or to the engine. Importing this file must never
fail, whatever the configuration says, or the host would find no function at all: with a broken file only /health is
registered, and tells why. What the Functions worker asks of handlers (parameters that are called by name, annotations,
what they return) is written down where `tests/unit/test_function_app.py` checks it.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import azure.functions as func

from shared import jobs
from shared.api import ROUTES, answer
from shared.app import LazyApp
from shared.config import Outline, find_config, outline
from shared.errors import ConfigError, Refused, StoreError, SyncError
from shared.http import Request, Route

CONNECTION = "AzureWebJobsStorage"

log = logging.getLogger("vaultferry.functions")


def register(lazy_app: LazyApp) -> func.FunctionApp:
    """Every function that the configuration asks for. Never raises."""
    registered = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
    try:
        found = outline(find_config(lazy_app.origin, lazy_app.env), lazy_app.env)
    except ConfigError as error:
        log.error("only /health is served: %s", error)  # noqa: TRY400 - the message says it all
        found = None
    except ImportError as error:
        log.error("only /health is served: %s; is requirements.txt installed?", error)  # noqa: TRY400
        found = None
    except Exception as error:  # noqa: BLE001 - see above; its text could quote the file
        log.error("only /health is served: %s while the configuration was read", type(error).__name__)  # noqa: TRY400
        found = None
    for route in ROUTES:
        if found is not None or not route.needs_config:
            _add_route(registered, lazy_app, route)
    if found is not None:
        _add_events(registered, lazy_app, found)
    return registered


def _add_events(registered: func.FunctionApp, lazy_app: LazyApp, found: Outline) -> None:
    for sync_id, schedule in found.schedules.items():
        _add_timer(registered, lazy_app, sync_id, schedule)
    for name, queue in (
        ("plan", jobs.PLAN_QUEUE),
        *((f"write_{vault_id}", jobs.write_queue(vault_id)) for vault_id in found.written_vaults),
    ):
        _add_queue(registered, lazy_app, name, queue)
        # Not behind the other name: a vault may be called "poison".
        _add_poison(registered, lazy_app, f"poison_{name}", queue + jobs.POISON_SUFFIX)
    _add_event_grid(registered, lazy_app, "events", jobs.EVENTS_QUEUE)
    # Again, until it succeeds: what is lost here would wait for the schedule.
    _add_event_grid(registered, lazy_app, "poison_events", jobs.EVENTS_QUEUE + jobs.POISON_SUFFIX)


def _add_route(registered: func.FunctionApp, lazy_app: LazyApp, route: Route) -> None:
    async def handle(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
        request = Request(
            path=urlsplit(req.url).path,
            method=req.method.upper(),
            route_params=dict(req.route_params),
            params=dict(req.params),
            headers={name.lower(): value for name, value in req.headers.items()},
            body=req.get_body(),
        )
        response = await _run(context, lazy_app, lambda: answer(route, lazy_app, request))
        return func.HttpResponse(response.body, status_code=response.status, headers=dict(response.headers))

    level = func.AuthLevel.FUNCTION if route.needs_key else func.AuthLevel.ANONYMOUS
    bound = registered.route(route=route.template, methods=[route.method], auth_level=level)(handle)
    registered.function_name(f"http_{route.name}")(bound)


def _add_timer(registered: func.FunctionApp, lazy_app: LazyApp, sync_id: str, schedule: str) -> None:
    async def handle(timer: func.TimerRequest, context: func.Context) -> None:
        async def start() -> None:
            app = await lazy_app.get()
            try:
                await app.engine.runs.start(sync_id, trigger="timer")
            except Refused as refused:
                log.info("no run began: %s", refused, extra={"sync": sync_id})

        await _run(context, lazy_app, start)

    bound = registered.timer_trigger(arg_name="timer", schedule=schedule, run_on_startup=False)(handle)
    registered.function_name(f"timer_{_word(sync_id)}")(bound)


def _add_queue(registered: func.FunctionApp, lazy_app: LazyApp, name: str, queue: str) -> None:
    async def handle(msg: func.QueueMessage, context: func.Context) -> None:
        async def work() -> None:
            body = msg.get_body().decode()
            if app := await _app_or_later(lazy_app, queue, body):
                await app.engine.handle(body)

        await _run(context, lazy_app, work)

    bound = registered.queue_trigger(arg_name="msg", queue_name=queue, connection=CONNECTION)(handle)
    registered.function_name(_word(name))(bound)


def _add_poison(registered: func.FunctionApp, lazy_app: LazyApp, name: str, queue: str) -> None:
    async def handle(msg: func.QueueMessage, context: func.Context) -> None:
        async def give_up() -> None:
            body = msg.get_body().decode(errors="replace")
            try:
                jobs.decode(body)
            except StoreError:
                # It would come back for ever, and nobody could do anything about it.
                log.error("a message of %s is none of Vaultferry's jobs, and is dropped", queue)  # noqa: TRY400
                return
            if app := await _app_or_later(lazy_app, queue, body):
                await app.engine.give_up(body)

        await _run(context, lazy_app, give_up)

    bound = registered.queue_trigger(arg_name="msg", queue_name=queue, connection=CONNECTION)(handle)
    registered.function_name(_word(name))(bound)


def _add_event_grid(registered: func.FunctionApp, lazy_app: LazyApp, name: str, queue: str) -> None:
    """What Event Grid delivers to a storage queue, in base64 as `messageEncoding` in host.json expects it."""

    async def handle(msg: func.QueueMessage, context: func.Context) -> None:
        async def take() -> None:
            from shared import intake

            body = msg.get_body().decode(errors="replace")
            if app := await _app_or_later(lazy_app, queue, body):
                await intake.event_grid(app, body)

        await _run(context, lazy_app, take)

    bound = registered.queue_trigger(arg_name="msg", queue_name=queue, connection=CONNECTION)(handle)
    registered.function_name(name)(bound)


def _word(text: str) -> str:
    return text.replace("-", "_")


async def _app_or_later(lazy_app: LazyApp, queue: str, body: str) -> Any:
    """The app; None when the configuration is broken, and the job waits in its queue until somebody has mended it."""
    try:
        return await lazy_app.get()
    except ConfigError as error:
        log.error("a job waits until the configuration is right: %s", error)  # noqa: TRY400
    await lazy_app.postpone(queue, body)
    return None


async def _run(context: func.Context, lazy_app: LazyApp, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do the work of one invocation. What leaves it is a SyncError, whose text quotes nothing, or a true cancellation."""
    from shared.logs import invocation

    lazy_app.start_logging()
    with invocation(context.trace_context.trace_parent or "", context.invocation_id):
        try:
            return await work()
        except SyncError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not ours but something's inside: the worker would send no answer at all.
            problem = "something that was waited for was cancelled"
        except Exception as error:  # noqa: BLE001 - the host logs what is raised, and the text of others' could quote a value
            from shared.queue_loop import describe

            problem = f"an unexpected error: {describe(error)}"
        raise SyncError(problem)


lazy_app = LazyApp(os.environ)
app = register(lazy_app)
