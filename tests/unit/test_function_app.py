"""What function_app.py registers, checked as strictly as the Functions worker does, and run by the local host."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import azure.functions as func
import httpx
import pytest
from azure.functions.queue import QueueMessage
from azure.functions.timer import TimerRequest

import function_app
from shared import jobs
from shared.app import LazyApp
from shared.errors import StoreError, SyncError
from shared.host import HostedFunction, http_app, read_functions
from shared.host_settings import HostSettings
from shared.jobs import EventJob, PlanJob, WriteJob
from shared.model import Chunk, Op, Progress, Run, RunStatus
from tests.unit.apps import environment, seed, write_config

ROOT = Path(function_app.__file__).parent
CANARY = "canary-77d2"

MANY = """
vaults:
  poison-x: {{kind: file, path: "{folder}/p.vault", key: "${{KEY}}"}}
  x: {{kind: file, path: "{folder}/x.vault", key: "${{KEY}}"}}
  only-read: {{kind: file, path: "{folder}/r.vault", key: "${{KEY}}"}}
syncs:
  a-b: {{schedule: "*/5 * * * *", source: {{vault: only-read}}, targets: [{{vault: x}}, {{vault: poison-x}}]}}
  off: {{schedule: "0 0 * * *", enabled: false, source: {{vault: only-read}}, targets: [{{vault: x, prefix: off/}}]}}
  unplanned: {{source: {{vault: only-read}}, targets: [{{vault: x, prefix: un/}}]}}
"""


def registered(folder: Path, text: str) -> tuple[LazyApp, dict[str, HostedFunction]]:
    path = write_config(folder, text)
    lazy = LazyApp({**environment(folder), "VAULTFERRY_CONFIG": str(path)})
    return lazy, {function.name: function for function in read_functions(function_app.register(lazy))}


@pytest.fixture
async def many(tmp_path: Path) -> AsyncIterator[tuple[LazyApp, dict[str, HostedFunction]]]:
    lazy, functions = registered(tmp_path, MANY)
    yield lazy, functions
    await lazy.aclose()


# --- what is registered -------------------------------------------------------------------------------------------


def test_a_configuration_registers_its_timers_its_queues_and_every_route(tmp_path: Path) -> None:
    _, functions = registered(tmp_path, MANY)
    triggers = {name: function.trigger.get_dict_repr() for name, function in functions.items()}
    timers = {name: (t["schedule"], t["runOnStartup"]) for name, t in triggers.items() if t["type"] == "timerTrigger"}
    assert timers == {"timer_a_b": ("0 */5 * * * *", False)}
    queues = {name: (t["queueName"], t["connection"]) for name, t in triggers.items() if t["type"] == "queueTrigger"}
    assert queues == {
        "plan": ("vaultferry-plan", "AzureWebJobsStorage"),
        "poison_plan": ("vaultferry-plan-poison", "AzureWebJobsStorage"),
        "write_x": ("vaultferry-to-x", "AzureWebJobsStorage"),
        "poison_write_x": ("vaultferry-to-x-poison", "AzureWebJobsStorage"),
        "write_poison_x": ("vaultferry-to-poison-x", "AzureWebJobsStorage"),
        "poison_write_poison_x": ("vaultferry-to-poison-x-poison", "AzureWebJobsStorage"),
        "events": ("vaultferry-events", "AzureWebJobsStorage"),
        "poison_events": ("vaultferry-events-poison", "AzureWebJobsStorage"),
    }
    routes = {
        (t["methods"][0].value, t["route"], t["authLevel"].value)
        for t in triggers.values()
        if t["type"] == "httpTrigger"
    }
    assert routes == {
        ("GET", "health", "anonymous"),
        ("GET", "openapi.json", "anonymous"),
        ("GET", "metrics", "function"),
        ("GET", "syncs", "function"),
        ("GET", "syncs/{id}", "function"),
        ("GET", "syncs/{id}/status", "function"),
        ("GET", "syncs/{id}/plan", "function"),
        ("POST", "syncs/{id}/plan", "function"),
        ("POST", "syncs/{id}/execute", "function"),
        ("GET", "syncs/{id}/history", "function"),
        ("GET", "syncs/{id}/conflicts", "function"),
        ("POST", "syncs/{id}/resolve", "function"),
        ("POST", "syncs/{id}/pause", "function"),
        ("POST", "syncs/{id}/resume", "function"),
        ("POST", "syncs/{id}/replay", "function"),
        ("GET", "runs/{run_id}", "function"),
        ("POST", "runs/{run_id}/cancel", "function"),
        ("POST", "runs/{run_id}/approve", "function"),
        ("POST", "audit", "function"),
        ("POST", "events", "function"),
    }


def test_every_function_is_one_that_the_worker_takes(tmp_path: Path) -> None:
    """Restates what the Functions worker refuses when it indexes an app; one refusal and the host finds no function."""
    _, functions = registered(tmp_path, MANY)
    folded = [name.lower() for name in functions]
    assert len(set(folded)) == len(folded)
    classes = {"httpTrigger": func.HttpRequest, "timerTrigger": func.TimerRequest, "queueTrigger": func.QueueMessage}
    for name, function in functions.items():
        handler, trigger = function.handler, function.trigger
        assert re.fullmatch(r"[a-z][a-z0-9_-]{0,127}", name)
        assert inspect.isfunction(handler)
        assert inspect.iscoroutinefunction(handler)
        # As the worker resolves them: a name that its module does not know at run time raises here.
        hints = typing.get_type_hints(handler)
        returned = hints.pop("return")
        assert hints == {trigger.name: classes[trigger.type], "context": func.Context}
        assert returned is (func.HttpResponse if trigger.type == "httpTrigger" else type(None))
        for parameter in inspect.signature(handler).parameters.values():
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            assert parameter.default is parameter.empty


def test_the_module_holds_one_app(tmp_path: Path) -> None:
    apps = [name for name, value in vars(function_app).items() if isinstance(value, func.FunctionApp)]
    assert apps == ["app"]


def test_the_genuine_worker_indexes_every_function(tmp_path: Path) -> None:
    """The worker's own code, where there is a release of it for this Python."""
    pytest.importorskip("azure_functions_runtime")
    script = """
import types
from azure_functions_runtime import functions, loader
from azure_functions_runtime.bindings.meta import load_binding_registry
class BindingInfo:
    undefined, out, inout = 0, 1, 2
    def __init__(self, **known): pass
protos = types.SimpleNamespace(BindingInfo=BindingInfo, RpcFunctionMetadata=lambda **known: known)
load_binding_registry()
indexed = loader.index_function_app("function_app.py")
found, _ = loader.process_indexed_function(protos, functions.Registry(), indexed, ".")
print(len(found))
"""
    answer = _python(script, tmp_path, MANY)
    assert answer.stdout.strip() == str(len(registered(tmp_path, MANY)[1]))


def _python(script: str, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with this configuration."""
    path = write_config(folder, text)
    env = {**os.environ, **environment(folder), "VAULTFERRY_CONFIG": str(path), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )


SDKS = """
vaults:
  one: {{kind: hashicorp, address: "http://127.0.0.1:8200", auth: {{method: token, token: "${{KEY}}"}}}}
  two: {{kind: hashicorp, address: "http://127.0.0.1:8201", auth: {{method: token, token: "${{KEY}}"}}}}
  kv: {{kind: azure_key_vault, url: "https://contoso.vault.azure.net"}}
syncs:
  first: {{schedule: "0 * * * *", source: {{vault: one}}, targets: [{{vault: two}}, {{vault: kv}}]}}
"""


def test_importing_loads_nothing_that_the_first_trigger_may_not_need(tmp_path: Path) -> None:
    script = """
import sys
import azure.functions
before = set(sys.modules)
import function_app
print(len(function_app.app.get_functions()))
print(*sorted(set(sys.modules) - before))
"""
    count, loaded = _python(script, tmp_path, SDKS).stdout.splitlines()
    assert int(count) > len(function_app.ROUTES)
    heavy = (
        "azure.keyvault", "azure.identity", "azure.core", "azure.data", "azure.storage", "hvac", "requests", "aiohttp",
        "httpx", "cryptography", "pydantic", "structlog", "tenacity", "rich", "typer", "starlette", "uvicorn", "croniter",
        "prometheus_client", "opentelemetry", "shared.vaults", "shared.engine", "shared.histories",
    )  # fmt: skip
    names = loaded.split()
    assert "shared.api" in names
    assert [name for name in names for sdk in heavy if name == sdk or name.startswith(f"{sdk}.")] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vaults: [",
        "\x00\x01",
        "vaults: {{a: {{kind: nope}}}}\nsyncs: {{s: {{schedule: never, source: {{vault: a}}, targets: [{{vault: a}}]}}}}\n",
        "vaults: {{a: {{kind: file, path: p, key: '${{NOT_SET}}'}}}}\nsyncs: {{}}\n",
        "vaults: {{a: {{kind: file, path: p, key: '" + CANARY + "'}}}}\nsyncs: {{s: '" + CANARY + "'}}\n",
    ],
)
async def test_a_broken_file_leaves_health_alone_with_the_reason(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, functions = registered(tmp_path, text)
    assert list(functions) == ["http_health"]
    response = await functions["http_health"](func.HttpRequest("GET", "/health", body=b""), time_limit=10)
    report = json.loads(response.get_body())
    assert (response.status_code, report["status"]) == (503, "error")
    assert "vaultferry.yaml" in report["checks"]["config"]["detail"]
    assert "only /health is served" in caplog.text
    assert CANARY not in f"{report}{caplog.text}"


def test_no_file_at_all_leaves_health_alone(tmp_path: Path) -> None:
    lazy = LazyApp({"VAULTFERRY_CONFIG": str(tmp_path / "missing.yaml")})
    assert [function.name for function in read_functions(function_app.register(lazy))] == ["http_health"]


# --- what the functions do ----------------------------------------------------------------------------------------


def message(body: str) -> QueueMessage:
    return QueueMessage(id="1", body=body, dequeue_count=1, pop_receipt="r")  # type: ignore[no-untyped-call]


async def bodies(lazy: LazyApp, queue: str) -> list[str]:
    return [found.body for found in await (await lazy.get()).queues.receive(queue)]


async def test_a_sync_runs_from_its_timer_to_its_target(many: tuple[LazyApp, dict[str, HostedFunction]]) -> None:
    lazy, functions = many
    app = await lazy.get()
    await seed(app, "only-read", {"a": CANARY})
    await functions["timer_a_b"].event(TimerRequest(past_due=False), time_limit=10)
    run = (await app.store.list_runs()).items[0]
    assert (run.trigger, run.status) == ("timer", RunStatus.QUEUED)
    seen: list[str] = []
    for queue, name in [
        (jobs.PLAN_QUEUE, "plan"),
        (jobs.write_queue("x"), "write_x"),
        (jobs.write_queue("poison-x"), "write_poison_x"),
    ]:
        for body in await bodies(lazy, queue):
            seen.append(body)
            await functions[name].event(message(body), time_limit=10)
    assert len(seen) == 3
    ended = await app.engine.runs.view(run.run_id)
    assert (ended.status, ended.written) == (RunStatus.SUCCEEDED, 2)
    assert CANARY not in f"{seen}"


async def test_a_timer_of_a_paused_sync_says_so_and_does_not_fail(
    many: tuple[LazyApp, dict[str, HostedFunction]], capfd: pytest.CaptureFixture[str]
) -> None:
    lazy, functions = many
    app = await lazy.get()
    await app.engine.runs.pause("a-b", True)
    await functions["timer_a_b"].event(TimerRequest(past_due=False), time_limit=10)
    assert (await app.store.list_runs()).items == []
    assert await bodies(lazy, jobs.PLAN_QUEUE) == []


async def test_a_job_that_came_back_too_often_ends_its_run(many: tuple[LazyApp, dict[str, HostedFunction]]) -> None:
    lazy, functions = many
    app = await lazy.get()
    run = await app.engine.runs.start("a-b", trigger="manual")
    await functions["poison_plan"].event(message(jobs.encode(PlanJob(run.run_id, "a-b"))), time_limit=10)
    assert (await app.engine.runs.view(run.run_id)).status is RunStatus.FAILED

    chunk = Chunk("r", "c", "x", Op.CREATE, ("a",), ".")
    await app.store.save_run(Run("r", "a-b", "manual", app.clock(), status=RunStatus.RUNNING))
    await app.store.save_slice(Progress("r", "x", finished=True), [chunk])
    job = WriteJob("r", "a-b", "x", "x", "c", ("a",))
    await functions["poison_write_x"].event(message(jobs.encode(job)), time_limit=10)
    assert (await app.engine.runs.view("r")).failed == 1


async def test_a_foreign_message_fails_its_function_and_ends_in_poison(
    many: tuple[LazyApp, dict[str, HostedFunction]],
) -> None:
    _, functions = many
    with pytest.raises(SyncError, match="not one of Vaultferry's jobs"):
        await functions["plan"].event(message("hello"), time_limit=10)
    await functions["poison_plan"].event(message("hello"), time_limit=10)


async def test_a_job_waits_while_the_configuration_is_broken(tmp_path: Path) -> None:
    # What is registered needs an outline only; that the key is missing shows when it is used.
    lazy, functions = registered(tmp_path, MANY.replace("kind: file, path", "kind: file, paht"))
    body = jobs.encode(PlanJob("r", "a-b"))
    await functions["plan"].event(message(body), time_limit=10)
    await functions["poison_write_x"].event(
        message(jobs.encode(WriteJob("r", "a-b", "x", "x", "c", ("a",)))), time_limit=10
    )
    write_config(tmp_path, MANY)
    try:
        queues = (await lazy.get()).queues
        assert [await queues.depth(name) for name in (jobs.PLAN_QUEUE, "vaultferry-to-x-poison")] == [1, 1]
        assert await bodies(lazy, jobs.PLAN_QUEUE) == []
    finally:
        await lazy.aclose()


GRID = """
vaults:
  grid: {{kind: azure_key_vault, url: "https://contoso.vault.azure.net"}}
  x: {{kind: file, path: "{folder}/x.vault", key: "${{KEY}}"}}
syncs:
  s: {{source: {{vault: grid}}, targets: [{{vault: x}}]}}
"""
EVENT = {
    "eventType": "Microsoft.KeyVault.SecretNewVersionCreated",
    "data": {"Id": "https://contoso.vault.azure.net/secrets/db/ee059b2b", "VaultName": "contoso", "ObjectName": "db"},
}


@pytest.mark.parametrize("name", ["events", "poison_events"])
async def test_an_event_of_event_grid_becomes_a_job(tmp_path: Path, name: str) -> None:
    lazy, functions = registered(tmp_path, GRID)
    try:
        for body in ("hello", "[3]", json.dumps(EVENT | {"eventType": "Microsoft.KeyVault.SecretExpired"})):
            await functions[name].event(message(body), time_limit=10)
        await functions[name].event(message(json.dumps([EVENT])), time_limit=10)
        (body,) = await bodies(lazy, jobs.write_queue("x"))
    finally:
        await lazy.aclose()
    job = jobs.decode(body)
    assert isinstance(job, EventJob)
    assert (job.sync, job.target, job.hints) == ("s", "x", (("db", "ee059b2b"),))


async def test_an_event_of_event_grid_comes_again_when_it_can_not_be_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, functions = registered(tmp_path, GRID)

    async def refuse(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    try:
        monkeypatch.setattr((await lazy.get()).queues, "send", refuse)
        for name in ("events", "poison_events"):
            with pytest.raises(StoreError):
                await functions[name].event(message(json.dumps(EVENT)), time_limit=10)
    finally:
        await lazy.aclose()


async def test_an_event_of_event_grid_waits_while_the_configuration_is_broken(tmp_path: Path) -> None:
    lazy, functions = registered(tmp_path, GRID.replace("kind: file, path", "kind: file, paht"))
    await functions["events"].event(message(json.dumps(EVENT)), time_limit=10)
    write_config(tmp_path, GRID)
    try:
        assert await (await lazy.get()).queues.depth(jobs.EVENTS_QUEUE) == 1
    finally:
        await lazy.aclose()


async def test_a_weak_audit_secret_is_told_by_health_and_nothing_is_taken(tmp_path: Path) -> None:
    path = write_config(tmp_path, GRID)
    env = {**environment(tmp_path), "VAULTFERRY_CONFIG": str(path), "VAULTFERRY_AUDIT_SECRET": CANARY}
    functions = {each.name: each for each in read_functions(function_app.register(LazyApp(env)))}
    for name, method in (("http_health", "GET"), ("http_audit", "POST")):
        response = await functions[name](func.HttpRequest(method, "/", body=b"{}"), time_limit=10)
        text = response.get_body().decode()
        assert response.status_code == 503
        assert "VAULTFERRY_AUDIT_SECRET is too short" in text
        assert CANARY not in text


async def test_an_unexpected_error_leaves_a_function_without_its_text(
    many: tuple[LazyApp, dict[str, HostedFunction]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, functions = many
    app = await lazy.get()

    async def fail(body: str) -> None:
        raise KeyError(CANARY)

    monkeypatch.setattr(app.engine, "handle", fail)
    with pytest.raises(SyncError, match="KeyError") as caught:
        await functions["plan"].event(message("{}"), time_limit=10)
    chain = f"{caught.value!r}{caught.value.__cause__!r}{caught.value.__context__!r}"
    assert CANARY not in chain


async def test_a_cancellation_from_inside_becomes_an_error_and_one_from_outside_stays_one(
    many: tuple[LazyApp, dict[str, HostedFunction]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, functions = many
    app = await lazy.get()
    reached = asyncio.Event()

    async def cancelled(body: str) -> None:
        raise asyncio.CancelledError

    async def slow(body: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(app.engine, "handle", cancelled)
    with pytest.raises(SyncError, match="cancelled"):
        await functions["plan"].event(message("{}"), time_limit=10)
    monkeypatch.setattr(app.engine, "handle", slow)
    task = asyncio.create_task(functions["plan"].event(message("{}"), time_limit=10))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_local_host_serves_the_routes_with_keys_methods_and_problems(
    many: tuple[LazyApp, dict[str, HostedFunction]],
) -> None:
    _, functions = many
    http = [function for function in functions.values() if function.trigger.type == "httpTrigger"]
    asgi = http_app(http, HostSettings(), api_key="the-key", loopback=True)
    transport = httpx.ASGITransport(asgi)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.get("/openapi.json")).json()["openapi"] == "3.1.0"
        assert (await client.get("/syncs")).status_code == 401
        client.headers["x-functions-key"] = "the-key"
        assert [item["sync_id"] for item in (await client.get("/syncs")).json()["items"]] == ["a-b", "off", "unplanned"]
        for method, path, status in [
            ("POST", "/syncs/a-b/execute", 202),
            ("POST", "/syncs/a-c/execute", 404),
            ("POST", "/syncs/off/execute", 409),
            ("GET", "/syncs/a-b/execute", 405),
            ("GET", "/nowhere", 404),
        ]:
            answer = await client.request(method, path)
            assert answer.status_code == status
            if status >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
        begun = (await client.post("/syncs/a-b/execute")).json()
        assert (await client.get(f"/runs/{begun['run_id']}")).json()["status"] == "queued"
        text = await client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"})
        assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_second_event_loop_gets_an_app_of_its_own(tmp_path: Path) -> None:
    lazy = LazyApp({**environment(tmp_path), "VAULTFERRY_CONFIG": str(write_config(tmp_path))})
    seen = []

    async def use() -> None:
        one, two = await asyncio.gather(lazy.get(), lazy.get())
        assert one is two
        seen.append(one)
        assert await one.store.list_runs()
        await lazy.aclose()

    asyncio.run(use())
    asyncio.run(use())
    assert seen[0] is not seen[1]


@pytest.fixture(autouse=True)
def _quiet_logger() -> typing.Iterator[None]:
    """The first invocation sets up logging for its process; here every test starts without."""
    logger = logging.getLogger("vaultferry")
    before: tuple[list[logging.Handler], int, bool] = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


def test_importing_the_module_itself_registers_health_at_least() -> None:
    names: list[Any] = [function.name for function in read_functions(function_app.register(function_app.lazy_app))]
    assert "http_health" in names
