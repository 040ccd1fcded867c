"""`serve` with small function apps: real decorators, real uvicorn, real queues."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import azure.functions as func
import httpx
import pytest

from shared import host
from shared.errors import ConfigError
from shared.host import MAX_OPEN_REQUEST, serve
from shared.host_settings import HostSettings
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database

KEY = "a-key-of-this-installation"
SETTINGS = HostSettings(max_dequeue_count=2, visibility_timeout=0)


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[SqliteQueues]:
    queues = SqliteQueues(Database(tmp_path / "v.db"))
    await queues.open()
    yield queues
    await queues.aclose()


@asynccontextmanager
async def serving(
    app: func.FunctionApp, queues: SqliteQueues, env: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            app,
            queues=queues,
            env=env or {},
            port=0,
            settings=SETTINGS,
            ready=address.set_result,
            stop=stop,
            **options,
        )
    )
    try:
        await asyncio.wait({task, address}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        async with httpx.AsyncClient(base_url=await address, timeout=20) as client:
            yield client
    finally:
        stop.set()
        await task


def an_app() -> func.FunctionApp:
    app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

    @app.route("health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
    async def health(req: func.HttpRequest) -> func.HttpResponse:
        return func.HttpResponse("fine")

    @app.route("syncs/{id}/execute", methods=["POST"])
    async def execute(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
        answer = {
            "method": req.method,
            "url": req.url,
            "id": req.route_params["id"],
            "params": dict(req.params),
            "key_seen": "x-functions-key" in req.headers,
            "body": req.get_body().decode(),
            "function": context.function_name,
            "trace_parent": context.trace_context.trace_parent,
            "invocation_id": context.invocation_id,
        }
        headers = {"Location": "/runs/1"}
        return func.HttpResponse(json.dumps(answer), status_code=202, mimetype="application/json", headers=headers)

    @app.route("syncs/{id}", methods=["GET"])
    async def one(req: func.HttpRequest) -> func.HttpResponse:
        return func.HttpResponse(f"one {req.route_params['id']}")

    @app.route("syncs/all", methods=["GET"])
    def all_of_them(req: func.HttpRequest) -> func.HttpResponse:
        return func.HttpResponse("all")

    @app.route("files/{*rest}", methods=["GET"])
    def files(req: func.HttpRequest) -> str:
        return req.route_params["rest"]

    @app.route("broken", methods=["GET", "POST"])
    async def broken(req: func.HttpRequest) -> func.HttpResponse:
        raise ValueError("canary-77f0")

    @app.route("odd", methods=["GET"])
    async def odd(req: func.HttpRequest) -> func.HttpResponse:
        return {"not": "a response"}  # type: ignore[return-value]

    return app


def is_problem(response: httpx.Response, status: int) -> bool:
    return (
        response.status_code == status
        and response.headers["content-type"] == "application/problem+json"
        and response.json()["status"] == status
    )


async def test_a_request_reaches_its_handler_and_its_answer_comes_back(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues) as client:
        response = await client.post("/syncs/hub-to-prod/execute?a=1&code=zzz", content='{"dry_run": true}')
    assert (response.status_code, response.headers["location"]) == (202, "/runs/1")
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["method"] == "POST"
    assert answer["url"].endswith("/syncs/hub-to-prod/execute?a=1")
    assert (answer["id"], answer["params"]) == ("hub-to-prod", {"a": "1"})
    assert answer["body"] == '{"dry_run": true}'
    assert answer["function"] == "execute"
    assert len(answer["trace_parent"]) == 55


async def test_the_callers_trace_goes_on(queues: SqliteQueues) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with serving(an_app(), queues) as client:
        given = (await client.post("/syncs/x/execute", headers={"traceparent": parent})).json()
        junk = (await client.post("/syncs/x/execute", headers={"traceparent": "junk"})).json()
    assert given["trace_parent"] == parent
    assert junk["trace_parent"] != "junk"
    assert given["invocation_id"] != junk["invocation_id"]


async def test_a_literal_route_wins_over_a_parameter_and_a_tail_takes_slashes(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues) as client:
        assert (await client.get("/syncs/all")).text == "all"
        assert (await client.get("/syncs/other")).text == "one other"
        assert (await client.get("/files/a/b/c")).text == "a/b/c"
        assert (await client.get("/files/a")).headers["content-type"] == "text/plain; charset=utf-8"


async def test_what_is_not_there_is_a_problem(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues) as client:
        assert is_problem(await client.get("/nothing"), 404)
        assert is_problem(await client.get("/syncs/all/"), 404)
        refused = await client.delete("/health")
        assert is_problem(refused, 405)
        assert "GET" in refused.headers["allow"]


@pytest.mark.parametrize("path", ["/broken", "/odd"])
async def test_an_unexpected_error_tells_nothing(
    queues: SqliteQueues, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with serving(an_app(), queues) as client:
        response = await client.get(path)
    assert is_problem(response, 500)
    assert "canary" not in response.text + caplog.text
    assert f"the function {path[1:]} failed" in caplog.text


@pytest.mark.parametrize("given", [{}, {"x-functions-key": ""}, {"x-functions-key": "wrong"}, {"x-functions-key": "ä"}])
async def test_a_wrong_key_is_refused(queues: SqliteQueues, given: dict[str, str]) -> None:
    headers = {name: value.encode("latin-1") for name, value in given.items()}
    async with serving(an_app(), queues, {"VAULTFERRY_API_KEY": KEY}) as client:
        assert is_problem(await client.post("/syncs/x/execute", headers=headers), 401)
        assert is_problem(await client.post("/syncs/x/execute?code=wrong", headers=headers), 401)


async def test_the_key_opens_by_header_or_code_and_no_handler_sees_it(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues, {"VAULTFERRY_API_KEY": KEY}) as client:
        by_header = await client.post("/syncs/x/execute", headers={"x-functions-key": KEY})
        by_code = await client.post("/syncs/x/execute", params={"code": KEY})
        assert (await client.get("/health")).text == "fine"
    for response in (by_header, by_code):
        assert response.status_code == 202
        assert KEY not in response.text
        assert response.json()["key_seen"] is False


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "ferry.example", ""])
async def test_without_a_key_only_loopback_is_bound(queues: SqliteQueues, address: str) -> None:
    with pytest.raises(ConfigError, match="VAULTFERRY_API_KEY"):
        await serve(an_app(), queues=queues, env={"VAULTFERRY_API_KEY": ""}, host=address, port=0)


async def test_with_a_key_any_address_is_bound(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues, {"VAULTFERRY_API_KEY": KEY}, host="0.0.0.0") as client:
        assert (await client.get("/health")).text == "fine"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:7071"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "["}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:7071"}, 200),
        ({"host": "[::1]:7071", "origin": "http://localhost:3000"}, 200),
    ],
)
async def test_without_a_key_no_web_site_reaches_us_through_a_browser(
    queues: SqliteQueues, headers: dict[str, str], status: int
) -> None:
    async with serving(an_app(), queues) as client:
        assert (await client.get("/health", headers=headers)).status_code == status
    async with serving(an_app(), queues, {"VAULTFERRY_API_KEY": KEY}) as client:
        if headers.get("host") != "[":
            assert (await client.get("/health", headers=headers)).status_code == 200


async def test_too_large_a_request_is_refused(queues: SqliteQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MAX_REQUEST", 1000)

    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"a" * 100

    async with serving(an_app(), queues) as client:
        assert is_problem(await client.post("/syncs/x/execute", content=b"a" * 1001), 413)
        assert is_problem(await client.post("/syncs/x/execute", content=without_length()), 413)
        assert (await client.post("/syncs/x/execute", content=b"a" * 1000)).status_code == 202


async def test_a_stranger_can_not_make_us_hold_a_large_body(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues, {"VAULTFERRY_API_KEY": KEY}) as client:
        assert (await client.request("GET", "/health", content=b"a" * MAX_OPEN_REQUEST)).status_code == 200
        assert is_problem(await client.request("GET", "/health", content=b"a" * (MAX_OPEN_REQUEST + 1)), 413)
        with_key = {"x-functions-key": KEY}
        content = b"a" * (MAX_OPEN_REQUEST + 1)
        assert (await client.post("/syncs/x/execute", content=content, headers=with_key)).status_code == 202


async def test_queue_functions_get_their_messages_and_the_poison_function_what_failed(queues: SqliteQueues) -> None:
    app = func.FunctionApp()
    seen: list[tuple[str, str, int | None]] = []
    poisoned = asyncio.Event()

    async def work(msg: func.QueueMessage, context: func.Context) -> None:
        body = msg.get_body().decode()
        seen.append((context.function_name, body, msg.dequeue_count))
        if body == "bad":
            raise ValueError

    def poison(msg: func.QueueMessage) -> None:
        seen.append(("poison", msg.get_body().decode(), msg.dequeue_count))
        loop.call_soon_threadsafe(poisoned.set)

    loop = asyncio.get_running_loop()
    for name, queue, handler in (("write_hub", "jobs", work), ("write_hub_poison", "jobs-poison", poison)):
        app.function_name(name)(app.queue_trigger("msg", queue, "AzureWebJobsStorage")(handler))
    await queues.send("jobs", "good")
    async with serving(app, queues):
        await queues.send("jobs", "bad")
        await asyncio.wait_for(poisoned.wait(), 20)
    assert sorted(seen) == [
        ("poison", "bad", 1),
        ("write_hub", "bad", 1),
        ("write_hub", "bad", 2),
        ("write_hub", "good", 1),
    ]
    assert await queues.depth("jobs") == await queues.depth("jobs-poison") == 0


async def test_a_value_that_a_queue_function_returns_is_a_failure_as_on_azure(queues: SqliteQueues) -> None:
    app = func.FunctionApp()

    @app.queue_trigger("msg", "jobs", "AzureWebJobsStorage")
    async def work(msg: func.QueueMessage) -> str:
        return "done"

    poisoned = asyncio.Event()

    @app.queue_trigger("msg", "jobs-poison", "AzureWebJobsStorage")
    async def poison(msg: func.QueueMessage) -> None:
        poisoned.set()

    await queues.send("jobs", "x")
    async with serving(app, queues):
        await asyncio.wait_for(poisoned.wait(), 20)


async def test_timer_functions_fire_and_a_failing_one_fires_again(queues: SqliteQueues) -> None:
    class QuickClock:
        """Every sleep is over at once, and the time is then what was waited for."""

        def __init__(self) -> None:
            self.time = datetime(2026, 1, 1, tzinfo=UTC).timestamp()

        def now(self) -> datetime:
            return datetime.fromtimestamp(self.time, UTC)

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(0)
            self.time += seconds

    app = func.FunctionApp()
    firings: list[bool] = []
    enough = asyncio.Event()

    @app.timer_trigger("timer", "0 0 */6 * * *")
    async def nightly(timer: func.TimerRequest) -> None:
        firings.append(timer.past_due)
        if len(firings) == 3:
            enough.set()
            await asyncio.Event().wait()
        raise ValueError

    async with serving(app, queues, clock=QuickClock(), grace=0.0):
        await asyncio.wait_for(enough.wait(), 20)
    assert firings == [False, False, False]


async def test_functions_are_read_once(queues: SqliteQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    app = an_app()
    real, calls = app.get_functions, []

    def get_functions() -> Any:
        calls.append(1)
        return real()

    monkeypatch.setattr(app, "get_functions", get_functions)
    async with serving(app, queues):
        pass
    assert calls == [1]


async def test_what_can_not_run_here_is_said_before_anything_runs(queues: SqliteQueues) -> None:
    blobs, schedule, route = func.FunctionApp(), func.FunctionApp(), func.FunctionApp()

    @blobs.blob_trigger("blob", "a/{name}", "AzureWebJobsStorage")
    def on_blob(blob: func.InputStream) -> None: ...

    @schedule.timer_trigger("timer", "every day")
    def daily(timer: func.TimerRequest) -> None: ...

    @route.route("syncs/{id:int}")
    def by_number(req: func.HttpRequest) -> func.HttpResponse: ...

    for app, told in ((blobs, "on_blob"), (schedule, "daily"), (route, "by_number")):
        with pytest.raises(ConfigError, match=told):
            await serve(app, queues=queues, env={}, port=0)


async def test_an_address_in_use_is_said(queues: SqliteQueues) -> None:
    async with serving(an_app(), queues) as client:
        with pytest.raises(ConfigError, match="--port"):
            await serve(an_app(), queues=queues, env={}, port=client.base_url.port or 0)


async def test_stopping_answers_the_requests_that_are_under_way(queues: SqliteQueues) -> None:
    app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
    began, may_end = asyncio.Event(), asyncio.Event()

    @app.route("slow")
    async def slow(req: func.HttpRequest) -> func.HttpResponse:
        began.set()
        await may_end.wait()
        return func.HttpResponse("done")

    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(app, queues=queues, env={}, port=0, ready=address.set_result, stop=stop, settings=SETTINGS)
    )
    async with httpx.AsyncClient(base_url=await address, timeout=20) as client:
        asking = asyncio.create_task(client.get("/slow"))
        await asyncio.wait_for(began.wait(), 10)
        stop.set()
        await asyncio.sleep(0)
        may_end.set()
        assert (await asking).text == "done"
    await asyncio.wait_for(task, 10)


async def test_a_request_that_outlasts_the_grace_gets_an_answer_too(queues: SqliteQueues) -> None:
    app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
    began = asyncio.Event()

    @app.route("stuck")
    async def stuck(req: func.HttpRequest) -> func.HttpResponse:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with httpx.AsyncClient(timeout=20) as client:
        async with serving(app, queues, grace=0.0) as served:
            asking = asyncio.create_task(client.get(f"{served.base_url}/stuck"))
            await asyncio.wait_for(began.wait(), 10)
        assert is_problem(await asking, 503)


async def test_a_handler_that_takes_longer_than_the_function_time_out_is_ended(queues: SqliteQueues) -> None:
    app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

    @app.route("stuck")
    async def stuck(req: func.HttpRequest) -> func.HttpResponse:
        await asyncio.Event().wait()
        raise AssertionError

    (function,) = host.read_functions(app)
    asgi = host.http_app([function], HostSettings(function_timeout=0.05), api_key="", loopback=True)
    transport = httpx.ASGITransport(asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert is_problem(await client.get("/stuck"), 500)


SERVE_UNTIL_TOLD = """
import asyncio, logging, sys
import azure.functions as func
from shared.host import serve
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(name)s %(message)s")
app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

@app.route("health")
async def health(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("fine")

@app.timer_trigger("timer", "0 0 0 1 1 *")
async def yearly(timer: func.TimerRequest) -> None:
    pass

@app.queue_trigger("msg", "jobs", "AzureWebJobsStorage")
async def work(msg: func.QueueMessage) -> None:
    pass

async def main():
    queues = SqliteQueues(Database(sys.argv[1]))
    await queues.open()
    await serve(app, queues=queues, env={}, port=0, ready=lambda url: print(url, flush=True))
    await queues.aclose()

asyncio.run(main(), debug=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", SERVE_UNTIL_TOLD, str(tmp_path / "v.db")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith("http://")):
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line, (await process.communicate())[1].decode()
        lines.append(line.decode().strip())
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{lines[-1]}/health")).text == "fine"
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err.decode()) == (0, "")
    assert f"vaultferry.host stopped listening on {lines[-1]}" in out.decode()
    assert f"vaultferry.host listening on {lines[-1]} (3 functions)" in lines
