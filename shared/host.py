"""The functions of function_app.py on this machine, with the bindings that it registered: `vaultferry serve`.

HTTP on uvicorn, timers, queues and their poison queues behave as on the Azure Functions host, except that
- nothing but these three triggers is known;
- timers are no singletons: two processes on one store fire both, and the runs' lease sorts it out;
- keys are one, `VAULTFERRY_API_KEY`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import inspect
import ipaddress
import logging
import re
import secrets as random
import signal
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import azure.functions as func
import uvicorn
from azure.functions.queue import QueueMessage
from azure.functions.timer import TimerRequest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.errors import ConfigError
from shared.host_settings import HostSettings, read_host_settings
from shared.jobs import POISON_SUFFIX, Message, Queues
from shared.queue_loop import QueueLoop, describe
from shared.timer_loop import Clock, Ticks, TimerLoop, next_tick

API_KEY = "VAULTFERRY_API_KEY"
MAX_REQUEST = 100 * 1024 * 1024
"""Bytes of a request's body, as on the Functions host
(https://learn.microsoft.com/azure/azure-functions/functions-bindings-http-webhook-trigger#limits)."""
MAX_OPEN_REQUEST = 64 * 1024
"""Bytes of a body that comes without a key, where none is asked for: what a stranger can make us hold."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

_ROUTE_PARAMETER = re.compile(r"\{(\*?)([A-Za-z_][A-Za-z0-9_]*)\}")
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Loop: TypeAlias = QueueLoop | TimerLoop

log = logging.getLogger("vaultferry.host")


# --- functions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostedFunction:
    """A registered function: its handler, its trigger, and the parameter that the trigger's argument goes to."""

    name: str
    handler: Callable[..., Any]
    trigger: Any
    takes_context: bool

    async def __call__(
        self, argument: Any, *, time_limit: float, trace_parent: str | None = None, trace_state: str = ""
    ) -> Any:
        """Call the handler by keyword, as the Functions worker does. Raises what it raises, and TimeoutError."""
        arguments = {self.trigger.name: argument}
        if self.takes_context:
            arguments["context"] = InvocationContext(self.name, trace_parent or _new_trace_parent(), trace_state)
        async with asyncio.timeout(time_limit):
            if inspect.iscoroutinefunction(self.handler):
                return await self.handler(**arguments)
            return await asyncio.to_thread(self.handler, **arguments)

    async def event(self, argument: Any, *, time_limit: float) -> None:
        """Call a handler that has nothing to return: the Functions worker refuses a value, and so do we."""
        if await self(argument, time_limit=time_limit) is not None:
            raise TypeError(f"the function {self.name} returned a value")


def read_functions(app: func.FunctionApp) -> list[HostedFunction]:
    """The functions of an app. Call it once: `get_functions` takes a second time for duplicates."""
    functions = []
    for function in app.get_functions():
        handler = function.get_user_function()
        trigger = function.get_trigger()
        name = function.get_function_name() or handler.__name__
        if trigger is None or trigger.type not in ("httpTrigger", "timerTrigger", "queueTrigger"):
            raise ConfigError(f"the function {name} has a trigger that only Azure can run")
        takes_context = "context" in inspect.signature(handler).parameters
        functions.append(HostedFunction(name, handler, trigger, takes_context))
    return functions


class InvocationContext(func.Context):
    """`func.Context` of one call."""

    def __init__(self, function_name: str, trace_parent: str, trace_state: str) -> None:
        self._invocation_id = str(uuid.uuid4())
        self._function_name = function_name
        self._trace_context = InvocationTrace(trace_parent, trace_state)
        self._local = threading.local()

    @property
    def invocation_id(self) -> str:
        return self._invocation_id

    @property
    def thread_local_storage(self) -> Any:
        return self._local

    @property
    def function_name(self) -> str:
        return self._function_name

    @property
    def function_directory(self) -> str:
        return ""

    @property
    def trace_context(self) -> func._abc.TraceContext:
        return self._trace_context

    @property
    def retry_context(self) -> Any:
        """None: no function here has a retry policy of the host."""
        return None


class InvocationTrace(func._abc.TraceContext):
    """W3C trace context (https://www.w3.org/TR/trace-context/): the caller's, or a new one."""

    def __init__(self, trace_parent: str, trace_state: str) -> None:
        self._trace_parent = trace_parent
        self._trace_state = trace_state

    @property
    def trace_parent(self) -> str:
        return self._trace_parent

    @property
    def trace_state(self) -> str:
        return self._trace_state

    @property
    def attributes(self) -> dict[str, str]:
        return {}


def _new_trace_parent() -> str:
    return f"00-{random.token_hex(16)}-{random.token_hex(8)}-01"


# --- timers and queues --------------------------------------------------------------------------------------------


def timer_loop(function: HostedFunction, settings: HostSettings, clock: Clock | None, ticks: Ticks | None) -> TimerLoop:
    schedule = str(function.trigger.schedule)
    try:
        next_tick(schedule, datetime.now(UTC))
    except ConfigError as error:
        raise ConfigError(f"the timer {function.name}: {error}") from None

    async def fire(past_due: bool) -> None:
        try:
            await function.event(TimerRequest(past_due=past_due), time_limit=settings.function_timeout)
        except Exception as error:  # noqa: BLE001 - a timer is not retried: its next tick comes all the same
            log.error("the timer %s failed: %s", function.name, describe(error))  # noqa: TRY400

    return TimerLoop(function.name, schedule, fire, clock=clock, ticks=ticks)


def queue_loop(function: HostedFunction, settings: HostSettings, queues: Queues) -> QueueLoop:
    async def handle(message: Message) -> None:
        argument = QueueMessage(  # type: ignore[no-untyped-call]  # the class itself is not annotated
            id=message.message_id,
            body=message.body,
            dequeue_count=message.dequeue_count,
            pop_receipt=message.receipt,
        )
        await function.event(argument, time_limit=settings.function_timeout)

    return QueueLoop(queues, function.trigger.queue_name, handle, settings)


# --- HTTP ---------------------------------------------------------------------------------------------------------


def http_app(functions: Sequence[HostedFunction], settings: HostSettings, *, api_key: str, loopback: bool) -> Starlette:
    """The HTTP functions as an ASGI application, with the keys and limits of the Functions host."""

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return problem(error.status_code, error.detail, error.headers)

    routes = sorted((_route(function, settings, api_key, loopback) for function in functions), key=_specific_first)
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    app.router.redirect_slashes = False
    return app


def _route(function: HostedFunction, settings: HostSettings, api_key: str, loopback: bool) -> Route:
    trigger = function.trigger
    template = "/" + str(trigger.route).lstrip("/")
    path = _ROUTE_PARAMETER.sub(lambda match: f"{{{match[2]}{':path' if match[1] else ''}}}", template)
    if len(_ROUTE_PARAMETER.findall(template)) != template.count("{"):
        raise ConfigError(f'the function {function.name} has the route "{trigger.route}", which only Azure can run')
    is_open = trigger.auth_level is func.AuthLevel.ANONYMOUS

    async def endpoint(request: Request) -> Response:
        if not api_key and loopback:
            _refuse_other_sites(request)
        if api_key and not is_open and not _has_key(request, api_key):
            raise HTTPException(401, "the function key is missing or wrong: send it as x-functions-key")
        body = await _body(request, MAX_OPEN_REQUEST if is_open else MAX_REQUEST)
        parent = request.headers.get("traceparent", "")
        try:
            answer = await function(
                _http_request(request, body),
                time_limit=settings.function_timeout,
                trace_parent=parent if _TRACE_PARENT.fullmatch(parent) else None,
                trace_state=request.headers.get("tracestate", ""),
            )
            return _http_response(answer)
        except asyncio.CancelledError:
            # The host is stopping and its patience has ended: better an answer than a torn connection.
            return problem(503, "the host is stopping; ask again later")
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller learns only that it happened
            log.error("the function %s failed: %s", function.name, describe(error))  # noqa: TRY400
            return problem(500, "an unexpected error; the log says more")

    methods = [str(method) for method in trigger.methods or METHODS]
    return Route(path, endpoint, methods=methods, name=function.name)


def _specific_first(route: Route) -> list[tuple[int, str]]:
    """Literal segments before parameters, as in ASP.NET's routing."""
    return [((2 if ":path" in part else 1) if "{" in part else 0, part) for part in route.path.strip("/").split("/")]


def _has_key(request: Request, api_key: str) -> bool:
    given = request.headers.get("x-functions-key") or request.query_params.get("code") or ""
    return hmac.compare_digest(given.encode(), api_key.encode())


def _refuse_other_sites(request: Request) -> None:
    """Without a key, a web page in this machine's browser must not reach us: neither by a name of its own that it
    points at 127.0.0.1 (DNS rebinding), nor by posting from where it is."""
    origin = request.headers.get("origin")
    if not is_loopback(_host_in(f"//{request.headers.get('host', '')}")):
        raise HTTPException(421, f"without {API_KEY} only requests to localhost are answered")
    if origin is not None and not is_loopback(_host_in(origin)):
        raise HTTPException(403, f"without {API_KEY} other web sites may not call")


def _host_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _body(request: Request, most: int) -> bytes:
    too_large = HTTPException(413, f"a request may have at most {most} bytes")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    parts = bytearray()
    try:
        async for part in request.stream():
            parts += part
            if len(parts) > most:
                raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "the request ended early") from None
    return bytes(parts)


def _http_request(request: Request, body: bytes) -> func.HttpRequest:
    # The key has done its work; a handler that logs its URL must not log it too.
    return func.HttpRequest(
        request.method,
        str(request.url.remove_query_params("code")),
        headers={name: value for name, value in request.headers.items() if name != "x-functions-key"},
        params={name: value for name, value in request.query_params.items() if name != "code"},
        route_params={name: str(value) for name, value in request.path_params.items()},
        body=body,
    )


def _http_response(answer: Any) -> Response:
    if isinstance(answer, str):
        answer = func.HttpResponse(answer)
    if not isinstance(answer, func.HttpResponse):
        raise TypeError(f"an HTTP function returned {type(answer).__name__}")
    response = Response(answer.get_body(), answer.status_code)
    for name, value in answer.headers.items():
        if name.lower() != "content-length":
            response.headers.append(name, value)
    if "content-type" not in response.headers:
        text = answer.mimetype.startswith("text/")
        response.headers["content-type"] = f"{answer.mimetype}; charset={answer.charset}" if text else answer.mimetype
    return response


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """RFC 9457."""
    title = HTTPStatus(status).phrase
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def is_loopback(host: str) -> bool:
    """Whether a host, as a name or an address, is this machine itself. No name is looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")


# --- serving ------------------------------------------------------------------------------------------------------


async def serve(
    app: func.FunctionApp,
    *,
    queues: Queues,
    env: Mapping[str, str],
    host: str = "127.0.0.1",
    port: int = 7071,
    settings: HostSettings | None = None,
    clock: Clock | None = None,
    ticks: Ticks | None = None,
    ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    grace: float = 10.0,
) -> None:
    """Run the app's functions until SIGTERM, SIGINT or `stop`; then let what runs end within `grace` seconds.

    `queues` are open, and stay the caller's to close. `ready` is told the address that answers (port 0 takes a free
    one). `ticks` remember the timers while nothing runs; without, a tick that passes then is lost.
    Raises ConfigError for an address that may not or can not be bound, and for functions that can not run here;
    StoreError when the queues can not be made.
    """
    stop = stop or asyncio.Event()
    settings = settings or read_host_settings()
    api_key = env.get(API_KEY, "")
    if not api_key and not is_loopback(host):
        raise ConfigError(f"without {API_KEY} only a loopback address can be bound, not {host}: set it to serve others")

    functions = read_functions(app)
    of_kind = {kind: [function for function in functions if function.trigger.type == kind] for kind in _KINDS}
    loops: list[Loop] = [
        *(queue_loop(function, settings, queues) for function in of_kind["queueTrigger"]),
        *(timer_loop(function, settings, clock, ticks) for function in of_kind["timerTrigger"]),
    ]
    asgi = http_app(of_kind["httpTrigger"], settings, api_key=api_key, loopback=is_loopback(host))
    names = {function.trigger.queue_name for function in of_kind["queueTrigger"]}
    await queues.ensure(sorted(names | {name + POISON_SUFFIX for name in names if not name.endswith(POISON_SUFFIX)}))

    async with _listening(asgi, host, port, grace) as (url, server, serving), _running(loops, grace) as runners:
        with _stopped_by_signals(stop):
            log.info("listening on %s (%d functions)", url, len(functions))
            if ready is not None:
                ready(url)
            waiter = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({waiter, serving, *runners}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiter.cancel()
                # Now, so that requests and messages end side by side.
                server.should_exit = True
    log.info("stopped listening on %s", url)


_KINDS = ("httpTrigger", "timerTrigger", "queueTrigger")


@contextlib.asynccontextmanager
async def _running(loops: Sequence[Loop], grace: float) -> AsyncIterator[list[asyncio.Task[None]]]:
    try:
        yield [loop.start() for loop in loops]
    finally:
        # All side by side: none waits for another's patience. A loop that broke says so here.
        await _all(loop.stop(grace) for loop in loops)


async def _all(steps: Iterator[Awaitable[None]]) -> None:
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


@contextlib.asynccontextmanager
async def _listening(
    asgi: Starlette, host: str, port: int, grace: float
) -> AsyncIterator[tuple[str, uvicorn.Server, asyncio.Task[None]]]:
    """Serve `asgi`: its address, the server, and the task that ends with it."""
    up = asyncio.Event()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Signals are ours: uvicorn would raise them again at the end, and the process would end with an error."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            up.set()

    bound = _bind(host, port)
    config = uvicorn.Config(
        asgi,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="http")
    waiter = asyncio.create_task(up.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{bound.getsockname()[1]}", server, task
    finally:
        waiter.cancel()
        server.should_exit = True
        try:
            await task
        finally:
            bound.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host}:{port} can not be bound: {error.strerror}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{host}:{port} can not be bound: {error.strerror}; choose another with --port") from None
    return bound


@contextlib.contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at the first SIGTERM or SIGINT. A second one has its usual effect: at once."""
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def heed() -> None:
        stop.set()
        while caught:
            loop.remove_signal_handler(caught.pop())

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            # Windows has no such handlers; there Ctrl-C cancels the main task.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, heed)
                caught.append(number)
    try:
        yield
    finally:
        while caught:
            loop.remove_signal_handler(caught.pop())
