"""`vaultferry serve` as a process of its own: the functions of function_app.py, asked over HTTP, stopped by signals."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.faults import Fault
from shared import host, jobs
from shared.jobs import Message
from tests.integration.conftest import Sandbox

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-this-installation"
SYNC = """
  s:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: prod}, {vault: second, prefix: copy/}]
    delete: {propagate: true}
"""
SECOND = """
  s:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}]
    retry_policy: {initial_backoff: 500, max_backoff: 500}
"""
SECONDS = 40.0
"""How long anything may take on a busy machine."""


async def until(truth: Callable[[], Awaitable[Any]]) -> Any:
    """What `truth` says as soon as it says anything."""
    async with asyncio.timeout(SECONDS):
        while True:
            if said := await truth():
                return said
            await asyncio.sleep(0.02)


@dataclass
class Served:
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient

    async def get(self, path: str, **params: str) -> Any:
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def post(self, path: str, status: int, body: Any = None) -> Any:
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    async def ended(self, run_id: str) -> Any:
        async def look() -> Any:
            run = await self.get(f"/runs/{run_id}")
            return run["status"] not in ("queued", "planning", "running") and run

        return await until(look)

    async def sync(self) -> Any:
        return await self.ended((await self.post("/syncs/s/execute", 202))["run_id"])

    async def terminate(self) -> tuple[int, str]:
        """SIGTERM: exit code and what was logged."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            _, log = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


async def start(
    sandbox: Sandbox, text: str, *options: str, env: dict[str, str] | None = None
) -> asyncio.subprocess.Process:
    path = sandbox.folder / "vaultferry.yaml"
    path.write_text(text)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    given = {**kept, **sandbox.env, "PYTHONPATH": str(ROOT), **(env or {})}
    command = (sys.executable, "-c", "from shared.cli import main; main()", "--json", "serve", "-c", str(path))
    return await asyncio.create_subprocess_exec(
        *command,
        *options,
        cwd=sandbox.folder,
        env=given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def serving(
    sandbox: Sandbox, syncs: str = SYNC, *, text: str = "", env: dict[str, str] | None = None, key: str = KEY
) -> AsyncIterator[Served]:
    """`vaultferry serve` on a free port, killed at the end if it is still there."""
    text = text or sandbox.text(syncs)
    process = await start(sandbox, text, "--port", "0", env={"VAULTFERRY_API_KEY": KEY, **(env or {})})
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(SECONDS):
                told = await process.stdout.readuntil(b"}\n")
        except asyncio.IncompleteReadError:
            _, log = await process.communicate()
            raise AssertionError(log.decode()) from None
        headers = {"x-functions-key": key}
        async with httpx.AsyncClient(base_url=json.loads(told)["url"], headers=headers, timeout=SECONDS) as client:
            yield Served(process, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def seed(sandbox: Sandbox, count: int) -> dict[str, Any]:
    values = {f"s{n:02}": {"value": f"v{n}"} for n in range(count)}
    for name, fields in values.items():
        sandbox.source.put("secret", f"apps/{name}", fields)
    return values


def copied(sandbox: Sandbox, names: Any) -> dict[str, Any]:
    found = {name: sandbox.second.get("secret", f"copy/{name}") for name in names}
    return {name: fields for name, fields in found.items() if fields is not None}


async def test_a_run_asked_for_over_http_is_carried_out_and_told_of(sandbox: Sandbox) -> None:
    values = seed(sandbox, 5)
    async with serving(sandbox) as served:
        response = await served.client.post("/syncs/s/execute")
        begun = response.json()
        assert (response.status_code, begun["sync_id"]) == (202, "s")
        assert response.headers["location"] == f"/runs/{begun['run_id']}"
        run = await served.ended(begun["run_id"])
        assert (run["status"], run["trigger"], run["planned"], run["written"]) == ("succeeded", "manual", 10, 10)
        assert copied(sandbox, values) == values
        assert sandbox.key_vault.names() == sorted(values)

        status = await served.get("/syncs/s/status")
        assert status["last_run"]["run_id"] == begun["run_id"]
        assert status["objects"] == {"in_sync": 10, "pending": 0, "failed": 0, "conflict": 0, "skipped": 0}
        rows, cursor = [], ""
        while cursor is not None:
            page = await served.get("/syncs/s/history", limit="4", **({"cursor": cursor} if cursor else {}))
            rows += page["items"]
            cursor = page["next_cursor"]
        assert len({row["id"] for row in rows}) == 10
        assert {(row["action"], row["run_id"]) for row in rows} == {("create", begun["run_id"])}

        metrics = await served.get("/metrics")
        assert (metrics["syncs_configured"], metrics["syncs_enabled"], metrics["runner_running"]) == (1, 1, True)
        text = (await served.client.get("/metrics", params={"format": "prometheus"})).text
        assert 'vaultferry_secrets_total{outcome="written",sync="s",target="second"} 5.0' in text
        assert 'vaultferry_runs_total{result="succeeded",sync="s"} 1.0' in text
        by_accept = await served.client.get("/metrics", headers={"accept": "text/plain;version=0.0.4"})
        assert by_accept.headers["content-type"].startswith("text/plain")

        assert (await served.client.get("/syncs/s/plan")).status_code == 404
        sandbox.source.put("secret", "apps/s01", {"value": "new"})
        sandbox.source.put("secret", "apps/more", {"value": "1"})
        planned = await served.post("/syncs/s/plan", 202)
        await served.ended(planned["run_id"])
        plan = await served.get("/syncs/s/plan")
        assert [(item["target"], item["path"], item["change"]) for item in plan["items"]] == [
            ("prod", "more", "create"),
            ("prod", "s01", "update"),
            ("second", "more", "create"),
            ("second", "s01", "update"),
        ]
        assert copied(sandbox, values) == values, "a plan writes nothing"
        code, log = await served.terminate()
    assert code == 0, log
    assert KEY not in log


async def test_without_the_key_nothing_but_health_is_answered(sandbox: Sandbox) -> None:
    seed(sandbox, 1)
    async with serving(sandbox, key="wrong") as served:
        assert (await served.get("/health"))["status"] == "ok"
        for method, path in (
            ("POST", "/syncs/s/execute"),
            ("GET", "/syncs/s/status"),
            ("GET", "/metrics"),
            ("POST", "/syncs/s/pause"),
        ):
            refused = await served.client.request(method, path)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json"), path
            without = await served.client.request(method, path, headers={"x-functions-key": ""})
            assert without.status_code == 401
        assert (await served.client.get("/syncs/s", params={"code": KEY})).status_code == 401, "the header comes first"
        del served.client.headers["x-functions-key"]
        assert (await served.get("/syncs/s", code=KEY))["sync_id"] == "s"
        assert (await served.get("/syncs", code=KEY))["items"][0]["sync_id"] == "s"
    assert sandbox.source.calls["list"] == 0


async def test_a_paused_sync_refuses_until_it_is_resumed(sandbox: Sandbox) -> None:
    values = seed(sandbox, 2)
    syncs = f"{SYNC}  resting:\n    enabled: false\n    source: {{vault: hub}}\n    targets: [{{vault: second}}]\n"
    async with serving(sandbox, syncs) as served:
        assert (await served.post("/syncs/s/pause", 200))["paused"] is True
        problem = await served.post("/syncs/s/execute", 409)
        assert "paused" in problem["detail"]
        assert "disabled" in (await served.post("/syncs/resting/execute", 409))["detail"]
        assert (await served.post("/syncs/nobody/execute", 404))["status"] == 404
        assert (await served.post("/syncs/s/execute", 400, {"dryrun": True}))["status"] == 400
        assert (await served.client.get("/runs/20260101-000000-000000-000000")).status_code == 404
        assert copied(sandbox, values) == {}
        await served.post("/syncs/s/resume", 200)
        assert (await served.sync())["status"] == "succeeded"
    assert copied(sandbox, values) == values


async def test_each_scheduled_sync_has_its_timer_and_no_other(sandbox: Sandbox) -> None:
    values = seed(sandbox, 1)
    target = "source: {vault: hub, prefix: apps/}\n    targets: [{vault: second, prefix: "
    syncs = f"""
  often:
    schedule: "* * * * * *"
    {target}often/}}]
  also:
    schedule: "* * * * * *"
    {target}also/}}]
  by-hand:
    {target}by-hand/}}]
  resting:
    enabled: false
    schedule: "* * * * * *"
    {target}resting/}}]
  paused:
    schedule: "0 0 1 1 *"
    {target}paused/}}]
"""
    async with serving(sandbox, syncs) as served:

        async def both() -> Any:
            found = [await served.get(f"/syncs/{sync_id}/status") for sync_id in ("often", "also")]
            return all(each["last_run"] and each["last_run"]["status"] == "succeeded" for each in found) and found

        for status in await until(both):
            assert status["last_run"]["trigger"] == "timer"
            assert status["schedule"] == "* * * * * *"
        for sync_id in ("by-hand", "resting", "paused"):
            assert (await served.get(f"/syncs/{sync_id}/status"))["last_run"] is None
        assert (await served.get("/syncs/paused/status"))["next_run"].endswith("-01-01T00:00:00.000000Z")
        code, log = await served.terminate()
    assert code == 0, log
    for name in values:
        assert sandbox.second.get("secret", f"often/{name}") == sandbox.second.get("secret", f"also/{name}")
    assert sandbox.second.get("secret", "resting/s00") is None


async def worn_out(queues: jobs.Queues, queue: str, deliveries: int = 5) -> Message:
    """Take a message as often as workers that never lived to report it."""
    for _ in range(deliveries):
        [message] = await queues.receive(queue)
        await queues.release(message)
    return message


async def test_jobs_that_killed_their_workers_end_in_poison_and_are_recorded(sandbox: Sandbox) -> None:
    values = seed(sandbox, 4)
    plan_only = SECOND.replace("  s:", "  t:", 1).replace("copy/", "elsewhere/")
    async with sandbox.app(SECOND + plan_only[1:]) as app:
        unplanned = await app.engine.runs.start("t", trigger="manual")
        await worn_out(app.queues, jobs.PLAN_QUEUE)
        [message] = await app.queues.receive(jobs.PLAN_QUEUE)
        run = await app.engine.runs.start("s", trigger="manual")
        [other] = await app.queues.receive(jobs.PLAN_QUEUE)
        await app.engine.handle(other.body)
        await app.queues.delete(other)
        await app.queues.release(message)
        await worn_out(app.queues, jobs.write_queue("second"))
        await app.queues.send(jobs.PLAN_QUEUE + jobs.POISON_SUFFIX, "not one of ours")
    async with serving(sandbox, SECOND + plan_only[1:]) as served:
        failed = await served.ended(unplanned.run_id)
        assert failed["status"] == "failed"
        assert "several times" in failed["error"]
        # What killed its worker once more is split, and each half gets its chance.
        assert (await served.ended(run.run_id))["status"] == "succeeded"

        async def dry() -> bool:
            return not any((await served.get("/metrics"))["queues"].values())

        await until(dry)
        code, log = await served.terminate()
    assert code == 0
    assert "none of Vaultferry's jobs" in log
    assert copied(sandbox, values) == values


async def test_sigterm_amid_retries_ends_at_once_and_the_next_start_goes_on(sandbox: Sandbox) -> None:
    values = seed(sandbox, 20)
    sandbox.second.faults.add(Fault("status", operation="write", path="*/s1*", status=503, times=None))
    async with serving(sandbox, SECOND.replace("500", "3000")) as served:
        run_id = (await served.post("/syncs/s/execute", 202))["run_id"]

        async def half() -> bool:
            return bool((await served.get(f"/runs/{run_id}"))["written"] == 10)

        await until(half)
        began = asyncio.get_running_loop().time()
        code, log = await served.terminate()
        assert code == 0, log
        assert asyncio.get_running_loop().time() - began < 8
    assert len(copied(sandbox, values)) == 10
    sandbox.second.faults.clear()
    async with serving(sandbox, SECOND) as served:
        run = await served.ended(run_id)
        assert (run["status"], run["planned"], run["written"]) == ("succeeded", 20, 20)
        assert await served.get("/syncs/s/history", status="failed") == {"items": [], "next_cursor": None}
    assert copied(sandbox, values) == values
    assert sandbox.second.calls["read"] <= 10, "only what may have been written is looked at"


async def test_sigterm_lets_what_is_under_way_end(sandbox: Sandbox) -> None:
    values = seed(sandbox, 20)
    sandbox.second.faults.add(Fault("slow", operation="write", seconds=0.5, times=None))
    async with serving(sandbox, SECOND) as served:
        run_id = (await served.post("/syncs/s/execute", 202))["run_id"]

        async def writing() -> bool:
            return sandbox.second.calls["write"] > 0

        await until(writing)
        assert (await served.terminate())[0] == 0
    assert copied(sandbox, values) == values
    async with sandbox.app(SECOND) as app:
        assert (await app.engine.runs.view(run_id)).written == 20
        assert (await app.store.verify_history("s")).broken == ()
        assert await app.queues.depth(jobs.write_queue("second")) == 0


async def test_kill_9_while_it_writes_loses_nothing(sandbox: Sandbox) -> None:
    values = seed(sandbox, 20)
    sandbox.second.faults.add(Fault("slow", operation="write", seconds=60, path="*/s1*", times=None))
    async with serving(sandbox, SECOND) as served:
        run_id = (await served.post("/syncs/s/execute", 202))["run_id"]

        async def writing() -> bool:
            return sandbox.second.calls["write"] == 20 and len(copied(sandbox, values)) == 10

        await until(writing)
        served.process.kill()
        await served.process.wait()
    sandbox.second.faults.clear()
    async with serving(sandbox, SECOND) as served:
        run = await served.ended(run_id)
        assert (run["status"], run["planned"], run["written"]) == ("succeeded", 20, 20)
    assert copied(sandbox, values) == values
    assert [sandbox.second.calls["write"]] == [30], "what was written before the kill is recognised"


async def serve_here(
    sandbox: Sandbox, stop: asyncio.Event, ready: Callable[[str], None], origin: str, grace: float = 10.0
) -> None:
    """The same in this process, with the patience that a test can have."""
    import function_app
    from shared.app import LazyApp, storage
    from shared.model import utcnow

    lazy_app = LazyApp(sandbox.env, origin=origin)
    place = storage(sandbox.env, utcnow)
    await place.open()
    try:
        await host.serve(
            function_app.register(lazy_app),
            queues=place.queues,
            env={},
            port=0,
            ready=ready,
            stop=stop,
            grace=grace,
        )
    finally:
        await lazy_app.aclose()
        await place.aclose()


@asynccontextmanager
async def served_here(sandbox: Sandbox, origin: str, grace: float = 10.0) -> AsyncIterator[httpx.AsyncClient]:
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_here(sandbox, stop, address.set_result, origin, grace))
    await asyncio.wait({task, address}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            await task
        async with httpx.AsyncClient(base_url=await address, timeout=SECONDS) as client:
            yield client
    finally:
        stop.set()
        await task


async def test_a_destination_that_never_answers_does_not_hold_up_the_stop(sandbox: Sandbox) -> None:
    values = seed(sandbox, 6)
    path = sandbox.folder / "vaultferry.yaml"
    path.write_text(sandbox.text(SECOND))
    sandbox.second.faults.add(Fault("timeout_before", operation="write", path="*/s05", times=None))
    async with served_here(sandbox, str(path), grace=0.3) as client:
        run_id = (await client.post("/syncs/s/execute")).json()["run_id"]

        async def writing() -> bool:
            return sandbox.second.calls["write"] == 6 and len(copied(sandbox, values)) == 5

        await until(writing)
    sandbox.second.faults.clear()
    async with served_here(sandbox, str(path)) as client:

        async def look() -> Any:
            run = (await client.get(f"/runs/{run_id}")).json()
            return run["status"] not in ("queued", "planning", "running") and run

        run = await until(look)
    assert (run["status"], run["written"]) == ("succeeded", 6)
    assert copied(sandbox, values) == values
    assert sandbox.second.calls["write"] == 7


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
async def test_without_a_key_no_other_address_than_loopback_is_served(sandbox: Sandbox, address: str) -> None:
    process = await start(sandbox, sandbox.text(SYNC), "--port", "0", "--host", address, env={"VAULTFERRY_API_KEY": ""})
    async with asyncio.timeout(SECONDS):
        out, log = await process.communicate()
    assert process.returncode == 2
    assert "VAULTFERRY_API_KEY" in log.decode()
    assert "url" not in json.loads(out or b"{}")


BROKEN = 'vaults:\n  hub: {kind: hashicorp, adress: "http://127.0.0.1:1"}\nsyncs: {}\n'


@pytest.mark.parametrize(
    ("text", "told", "others"),
    [
        (BROKEN, "vaultferry.yaml:2: vaults.hub.adress: unknown key (did you mean 'address'?)", 503),
        ("vaults: [\n", "vaultferry.yaml", 404),
        (None, "vaultferry.yaml", 404),
    ],
    ids=["wrong", "unreadable", "missing"],
)
async def test_a_broken_configuration_is_told_by_health_and_nothing_is_done(
    sandbox: Sandbox, text: str | None, told: str, others: int
) -> None:
    path = sandbox.folder / "vaultferry.yaml"
    if text is not None:
        path.write_text(text)
    async with served_here(sandbox, str(path)) as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "error")
        assert told in health.json()["checks"]["config"]["detail"]
        assert (await client.get("/syncs")).status_code == others
        assert (await client.post("/syncs/s/execute")).status_code == others


async def test_serve_tells_a_person_what_is_wrong_with_the_configuration(sandbox: Sandbox) -> None:
    process = await start(sandbox, BROKEN, "--port", "0")
    async with asyncio.timeout(SECONDS):
        out, log = await process.communicate()
    assert process.returncode == 2
    assert "vaultferry.yaml:2" in log.decode()
    assert json.loads(out)["problems"][0]["line"] == 2


@pytest.mark.real
async def test_the_same_on_a_storage_account(sandbox: Sandbox, azurite: str) -> None:
    values = seed(sandbox, 5)
    tag = secrets.token_hex(3)
    text = sandbox.text(SYNC)
    # Queues in the account are named after the vaults, and its tables know the syncs by their names.
    for name in ("second", "prod"):
        text = text.replace(f"  {name}:", f"  {name}-{tag}:").replace(
            f"{{vault: {name}", f"{{id: {name}, vault: {name}-{tag}"
        )
    text = text.replace("\n  s:\n", f"\n  s-{tag}:\n    schedule: '0 0 1 1 *'\n")
    env = {"AzureWebJobsStorage": azurite, "VAULTFERRY_STORE": "tables", "VAULTFERRY_DIGEST_KEY": secrets.token_hex(32)}
    sync = f"/syncs/s-{tag}"
    async with serving(sandbox, text=text, env=env) as served:
        assert (await served.get("/health"))["status"] == "ok"
        run_id = (await served.post(f"{sync}/execute", 202))["run_id"]
        run = await served.ended(run_id)
        assert (run["status"], run["written"]) == ("succeeded", 10)
        assert copied(sandbox, values) == values
        assert (await served.get(f"{sync}/status"))["objects"]["in_sync"] == 10
        assert len((await served.get(f"{sync}/history", limit="1000"))["items"]) == 10
        await served.post(f"{sync}/pause", 200)
        await served.post(f"{sync}/execute", 409)
        await served.post(f"{sync}/resume", 200)
        await served.ended((await served.post(f"{sync}/plan", 202))["run_id"])
        plan = await served.get(f"{sync}/plan")
        assert (plan["status"], plan["items"], plan["unchanged"]) == ("succeeded", [], 10)
        sandbox.second.faults.add(Fault("status", operation="write", path="*/s0[0-2]", status=503, times=None))
        for name in values:
            sandbox.source.put("secret", f"apps/{name}", {"value": "new"})
        run_id = (await served.post(f"{sync}/execute", 202))["run_id"]

        async def half() -> bool:
            return bool((await served.get(f"/runs/{run_id}"))["written"] == 7)

        await until(half)
        code, log = await served.terminate()
        assert code == 0, log
    sandbox.second.faults.clear()
    async with serving(sandbox, text=text, env=env) as served:
        run = await served.ended(run_id)
        assert (run["status"], run["written"]) == ("succeeded", 10)
    assert set(map(str, copied(sandbox, values).values())) == {"{'value': 'new'}"}
