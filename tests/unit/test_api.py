"""The HTTP interface on a real store, real queues and the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.api import ROUTES, answer
from shared.app import App, LazyApp
from shared.errors import StoreError
from shared.http import Request
from shared.model import Control, Run, RunStatus
from shared.relay.relay import Relay
from tests.unit.apps import Client, environment, make_app, seed, working, write_config

CANARY = "canary-3b1f0c"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with make_app(tmp_path) as app:
        yield Client(app)


def route(name: str) -> Any:
    return next(route for route in ROUTES if route.name == name)


# --- runs ---------------------------------------------------------------------------------------------------------


async def test_execute_starts_a_run_that_can_be_followed_to_its_end(client: Client) -> None:
    await seed(client.app, "hub", {"apps/a": CANARY, "apps/b": CANARY})
    response = await client.call("POST", "/syncs/hub-to-prod/execute")
    begun = json.loads(response.body)
    assert response.status == 202
    assert response.headers["Location"] == f"/runs/{begun['run_id']}"
    assert begun == {"run_id": begun["run_id"], "sync_id": "hub-to-prod", "status": "queued"}
    async with working(client.app):
        await client.ended(begun["run_id"])
    run = await client.json("GET", response.headers["Location"])
    assert {
        "status": "succeeded",
        "trigger": "manual",
        "planned": 2,
        "written": 2,
        "dry_run": False,
    }.items() <= run.items()
    assert run["calls"].keys() == {"hub", "prod"}
    assert CANARY not in json.dumps(run)


async def test_execute_answers_with_the_run_that_is_on_its_way(client: Client) -> None:
    first = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
    second = await client.json("POST", "/syncs/hub-to-prod/execute", 202, body={})
    assert first["run_id"] == second["run_id"]


async def test_a_dry_run_makes_a_plan_and_writes_nothing(client: Client) -> None:
    await seed(client.app, "hub", {"apps/a": "1"})
    begun = await client.json("POST", "/syncs/hub-to-prod/execute", 202, body={"dry_run": True})
    async with working(client.app):
        await client.ended(begun["run_id"])
    plan = await client.json("GET", "/syncs/hub-to-prod/plan")
    assert plan["run_id"] == begun["run_id"]
    assert [(item["path"], item["change"]) for item in plan["items"]] == [("a", "create")]
    prod = await client.app.vaults.get("prod")
    assert [entry async for entry in prod.list_secrets()] == []


async def test_the_newest_finished_plan_is_shown(client: Client) -> None:
    problem = await client.json("GET", "/syncs/hub-to-prod/plan", 404)
    assert "POST /syncs/hub-to-prod/plan" in problem["detail"]
    await client.json("POST", "/syncs/hub-to-prod/plan", 202)
    second = await client.json("POST", "/syncs/hub-to-prod/plan", 202)
    await client.json("GET", "/syncs/hub-to-prod/plan", 404)
    async with working(client.app):
        await client.ended(second["run_id"])
    plan = await client.json("GET", "/syncs/hub-to-prod/plan")
    assert (plan["run_id"], plan["status"], plan["items"]) == (second["run_id"], "succeeded", [])
    await client.json("POST", "/syncs/hub-to-prod/plan", 202)
    assert (await client.json("GET", "/syncs/hub-to-prod/plan"))["run_id"] == second["run_id"]


async def test_a_cancelled_run_can_not_be_cancelled_again(client: Client) -> None:
    begun = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
    cancelled = await client.json("POST", f"/runs/{begun['run_id']}/cancel")
    assert cancelled["status"] == "cancelled"
    await client.json("POST", f"/runs/{begun['run_id']}/cancel", 409)
    await client.json("POST", "/runs/no-such-run/cancel", 404)


async def test_approving_sends_exactly_the_deletes_that_were_held_back(client: Client) -> None:
    await seed(client.app, "hub", {f"apps/{number}": "1" for number in range(10)})
    async with working(client.app):
        first = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
        await client.ended(first["run_id"])
        await client.json("POST", f"/runs/{first['run_id']}/approve", 409)
        hub = await client.app.vaults.get("hub")
        for number in range(8):
            await hub.delete_secret(f"apps/{number}")
        second = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
        assert (await client.ended(second["run_id"])).status is RunStatus.BLOCKED
        assert (await client.json("GET", "/health"))["status"] == "degraded"
        approved = await client.call("POST", f"/runs/{second['run_id']}/approve")
        assert (approved.status, approved.headers["Location"]) == (202, f"/runs/{second['run_id']}")
        ended = await client.ended(second["run_id"])
    assert (ended.status, ended.deleted) == (RunStatus.SUCCEEDED, 8)
    prod = await client.app.vaults.get("prod")
    assert [entry.name async for entry in prod.list_secrets() if entry.live] == ["8", "9"]


async def test_replay_takes_one_path_or_says_that_nothing_failed(client: Client) -> None:
    await client.json("POST", "/syncs/hub-to-prod/replay", 409)
    begun = await client.json("POST", "/syncs/hub-to-prod/replay", 202, body={"path": "a"})
    run = await client.app.store.get_run(begun["run_id"])
    assert run is not None
    assert (run.trigger, run.paths) == ("replay", ("a",))


# --- syncs --------------------------------------------------------------------------------------------------------


async def test_syncs_are_listed_and_shown_one_by_one(client: Client) -> None:
    listed = await client.json("GET", "/syncs")
    assert listed["next_cursor"] is None
    assert [item["sync_id"] for item in listed["items"]] == ["hub-to-prod", "by-hand", "resting"]
    assert await client.json("GET", "/syncs/hub-to-prod") == listed["items"][0]
    assert listed["items"][0]["source"] == {"vault": "hub", "prefix": "apps/", "resource": "secrets"}


CHANGING = """
vaults:
  hub: {{kind: file, path: "{folder}/hub.vault", key: "${{KEY}}"}}
  prod: {{kind: file, path: "{folder}/prod.vault", key: "${{KEY}}"}}
syncs:
  s:
    source: {{vault: hub}}
    targets:
      - vault: prod
        fields:
          set: {{note: "CANARY"}}
          build: {{line: {{template: "CANARY {{fields.password}}"}}}}
        transform:
          - {{decrypt: {{age: "${{AGE_KEY}}"}}, fields: [cert]}}
          - {{template: "CANARY {{value}}"}}
          - {{base64: encode}}
"""


async def test_what_stands_in_values_is_not_shown_with_a_sync_nor_are_keys(tmp_path: Path) -> None:
    import pyrage

    key = str(pyrage.x25519.Identity.generate())
    async with make_app(tmp_path, CHANGING.replace("CANARY", CANARY), env={"AGE_KEY": key}) as app:
        shown = await Client(app).json("GET", "/syncs/s")
        everything = await Client(app).json("GET", "/syncs")
    assert everything["items"] == [shown]
    assert key not in json.dumps(shown)
    assert CANARY not in json.dumps(shown)
    (target,) = shown["targets"]
    assert [step["step"] for step in target["transform"]] == ["decrypt", "template", "base64"]
    assert target["transform"][0] == {"step": "decrypt", "fields": ["cert"]}
    assert target["fields"]["build"] == [{"name": "line", "form": "template", "fields": [], "keep": False}]


async def test_an_unknown_sync_is_not_found_and_the_closest_is_named(client: Client) -> None:
    for method, path in [("GET", "/syncs/hub-to-prd"), ("POST", "/syncs/hub-to-prd/execute")]:
        assert "'hub-to-prod'" in (await client.json(method, path, 404))["detail"]


async def test_status_tells_of_runs_objects_and_the_next_turn(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 5, 59, 59, tzinfo=UTC)
    async with make_app(tmp_path, clock=lambda: now) as app:
        client = Client(app)
        assert await client.json("GET", "/syncs/hub-to-prod/status") == {
            "sync_id": "hub-to-prod",
            "type": "unidirectional",
            "enabled": True,
            "paused": False,
            "schedule": "0 0 */6 * * *",
            "next_run": "2026-03-01T06:00:00.000000Z",
            "last_run": None,
            "objects": {"in_sync": 0, "pending": 0, "failed": 0, "conflict": 0, "skipped": 0},
        }
        assert (await client.json("GET", "/syncs/by-hand/status"))["next_run"] is None
        assert (await client.json("GET", "/syncs/resting/status"))["next_run"] is None
        await seed(app, "hub", {"apps/a": "1"})
        begun = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
        assert (await client.json("GET", "/syncs/hub-to-prod/status"))["last_run"]["status"] == "queued"
        async with working(app):
            await client.ended(begun["run_id"])
        await client.json("POST", "/syncs/hub-to-prod/plan", 202)
        status = await client.json("GET", "/syncs/hub-to-prod/status")
        assert status["objects"]["in_sync"] == 1
        assert status["last_run"] == await client.json("GET", f"/runs/{begun['run_id']}")


async def test_a_paused_sync_begins_no_run_until_it_is_resumed(client: Client) -> None:
    assert await client.json("POST", "/syncs/hub-to-prod/pause") == {"sync_id": "hub-to-prod", "paused": True}
    problem = await client.json("POST", "/syncs/hub-to-prod/execute", 409)
    assert "resume" in problem["detail"]
    status = await client.json("GET", "/syncs/hub-to-prod/status")
    assert (status["paused"], status["next_run"]) == (True, None)
    assert await client.json("POST", "/syncs/hub-to-prod/resume") == {"sync_id": "hub-to-prod", "paused": False}
    await client.json("POST", "/syncs/hub-to-prod/execute", 202)


async def test_a_disabled_sync_begins_no_run(client: Client) -> None:
    assert "disabled" in (await client.json("POST", "/syncs/resting/execute", 409))["detail"]


# --- history ------------------------------------------------------------------------------------------------------


async def test_history_is_filtered_and_paged_newest_first(client: Client) -> None:
    await seed(client.app, "hub", {f"apps/{name}": CANARY for name in "abc"})
    begun = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
    async with working(client.app):
        await client.ended(begun["run_id"])

    async def history(**params: str) -> Any:
        return await client.json("GET", "/syncs/hub-to-prod/history", params=params)

    everything = await history()
    assert everything["next_cursor"] is None
    assert {row["path"] for row in everything["items"]} == {"a", "b", "c"}
    assert CANARY not in json.dumps(everything)
    first = await history(limit="2")
    second = await history(limit="2", cursor=first["next_cursor"])
    assert first["items"] + second["items"] == everything["items"]
    assert [row["path"] for row in (await history(path="b"))["items"]] == ["b"]
    assert (await history(status="failed"))["items"] == []
    assert len((await history(status="in_sync", since="2020-01-01"))["items"]) == 3
    newest = everything["items"][0]["created_at"]
    assert {row["created_at"] for row in (await history(since=newest))["items"]} == {newest}
    later = (datetime.fromisoformat(newest) + timedelta(hours=1)).astimezone(UTC)
    assert (await history(since=later.isoformat()))["items"] == []
    # A zone's "+" that nobody encoded.
    assert (await history(since=later.isoformat().replace("+", " ")))["items"] == []


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"limit": "0"}, "1 to 1000"),
        ({"limit": "1001"}, "1 to 1000"),
        ({"limit": "٣"}, "1 to 1000"),
        ({"limit": "ten"}, "1 to 1000"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"since": "0001-01-01T00:00:00+23:00"}, "ISO 8601"),
        ({"status": "in-sync"}, "did you mean 'in_sync'"),
        ({"cursor": "%%%"}, "cursor"),
        ({"cursor": "bm9uc2Vuc2U"}, "cursor"),
        ({"stauts": "failed"}, "did you mean 'status'"),
    ],
)
async def test_bad_query_values_are_told_apart(client: Client, params: dict[str, str], told: str) -> None:
    assert told in (await client.json("GET", "/syncs/hub-to-prod/history", 400, params=params))["detail"]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "body", "told"),
    [
        ("execute", b"{", "JSON object"),
        ("execute", b"\xff", "JSON object"),
        ("execute", b"[" * 60_000, "JSON object"),
        ("execute", ["dry_run"], "JSON object"),
        ("execute", CANARY, "JSON object"),
        ("execute", {"dry_run": CANARY}, "dry_run: expected true or false"),
        ("execute", {"dry_run": 1}, "dry_run: expected true or false"),
        ("execute", {"dryrun": True}, "did you mean 'dry_run'"),
        ("execute", {f"x {CANARY}": 1}, "unknown"),
        ("plan", {"dry_run": True}, "unknown"),
        ("pause", {"for": CANARY}, "unknown"),
        ("replay", {"path": [CANARY]}, "path: expected text"),
        ("replay", {"path": ""}, "path: expected at least 1"),
        ("replay", {"path": CANARY * 400}, "path: expected at most"),
    ],
)
async def test_a_bad_body_is_explained_and_not_repeated(client: Client, action: str, body: Any, told: str) -> None:
    problem = await client.json("POST", f"/syncs/hub-to-prod/{action}", 400, body=body)
    assert told in problem["detail"]
    assert CANARY not in json.dumps(problem)
    assert not (await client.app.store.list_runs()).items


async def test_a_large_body_is_not_parsed(client: Client) -> None:
    await client.json("POST", "/syncs/hub-to-prod/execute", 413, body=b" " * 70_000)


async def test_another_method_is_not_allowed_and_the_right_ones_are_named(client: Client) -> None:
    response = await client.call("DELETE", "/syncs/hub-to-prod/plan")
    assert (response.status, response.headers["Allow"]) == (405, "GET, POST")


async def test_a_store_that_fails_asks_for_patience(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(tmp_path)
    client = Client(app)
    response = await client.call("GET", "/syncs/hub-to-prod/status")
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    health = json.loads((await client.call("GET", "/health")).body)
    assert (health["status"], health["checks"]["store"]["status"]) == ("error", "error")
    assert "not open" in health["checks"]["store"]["detail"]


async def test_what_nobody_expected_is_answered_and_its_text_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def get(self) -> App:
            raise RuntimeError(CANARY)

    response = await answer(route("syncs"), Broken(), Request("/syncs"))
    assert response.status == 500
    health = await answer(route("health"), Broken(), Request("/health"))
    assert health.status == 503
    told = f"{response.body!r}{health.body!r}{caplog.text}"
    assert CANARY not in told
    assert "RuntimeError" in told


async def test_a_broken_configuration_is_the_answer_to_everything(tmp_path: Path) -> None:
    path = write_config(tmp_path, "vaults: {{hub: {{kind: fiel, path: x, key: '" + CANARY + "'}}}}\n")
    broken = LazyApp({**environment(tmp_path), "VAULTFERRY_CONFIG": str(path)})
    health = await answer(route("health"), broken, Request("/health"))
    report = json.loads(health.body)
    assert (health.status, report["status"]) == (503, "error")
    assert "did you mean 'file'" in report["checks"]["config"]["detail"]
    syncs = await answer(route("syncs"), broken, Request("/syncs"))
    assert syncs.status == 503
    assert "vaultferry.yaml:1" in json.loads(syncs.body)["detail"]
    assert CANARY not in f"{health.body!r}{syncs.body!r}"


# --- health -------------------------------------------------------------------------------------------------------


async def test_a_healthy_installation_says_so_without_a_key(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULTFERRY_COMMIT", "0123abc")
    monkeypatch.setenv("VAULTFERRY_BUILD_DATE", "2026-11-22")
    report = await client.json("GET", "/health")
    assert (report["status"], report["version"], report["commit"]) == ("ok", "0.1.0", "0123abc")
    assert report["build_date"] == "2026-11-22"
    assert report["checks"]["config"] == report["checks"]["store"] == report["checks"]["queues"] == {"status": "ok"}
    assert report["checks"]["syncs"]["hub-to-prod"] == {"status": "ok", "last_success": None, "last_run": None}
    assert [each.name for each in ROUTES if not each.needs_key] == ["health", "openapi"]


@pytest.mark.parametrize(
    ("status", "succeeded", "sync", "expected"),
    [
        (RunStatus.SUCCEEDED, timedelta(hours=6), "hub-to-prod", "ok"),
        (RunStatus.SUCCEEDED, timedelta(hours=13), "hub-to-prod", "degraded"),
        (RunStatus.CANCELLED, timedelta(hours=1), "hub-to-prod", "ok"),
        (RunStatus.PARTIAL, timedelta(hours=1), "hub-to-prod", "degraded"),
        (RunStatus.FAILED, timedelta(hours=1), "hub-to-prod", "degraded"),
        (RunStatus.SUCCEEDED, timedelta(days=99), "by-hand", "ok"),
        (RunStatus.FAILED, timedelta(hours=1), "resting", "ok"),
    ],
)
async def test_health_is_degraded_when_a_sync_did_not_go_well(
    tmp_path: Path, status: RunStatus, succeeded: timedelta, sync: str, expected: str
) -> None:
    now = datetime(2026, 3, 1, 6, 10, tzinfo=UTC)
    async with make_app(tmp_path, clock=lambda: now) as app:
        at = now - succeeded
        await app.store.save_run(Run("r", sync, "timer", at, status=status, error=CANARY, finished_at=at))
        await app.store.save_control(Control(sync, last_run="r", last_success_at=at))
        report = await Client(app).json("GET", "/health")
    assert (report["status"], report["checks"]["syncs"][sync]["status"]) == (expected, expected)
    assert report["checks"]["syncs"][sync]["last_success"] is not None
    assert CANARY not in json.dumps(report)


async def test_the_trouble_of_the_relay_inside_is_told_and_stops_nothing_else(client: Client, tmp_path: Path) -> None:
    async def take(_: object) -> int:
        return 0

    client.app.relay = Relay([], tmp_path / "spool", take)
    assert (await client.json("GET", "/health"))["checks"]["relay"] == {"status": "ok"}
    client.app.relay.disk_trouble = "the disk is full"
    report = await client.json("GET", "/health")
    assert report["checks"]["relay"] == {"status": "error", "detail": "spool: the disk is full"}
    assert report["status"] == "degraded"
    text = (await client.call("GET", "/metrics", params={"format": "prometheus"})).body.decode()
    assert "\nvaultferry_relay_received_total 0\n" in text


async def test_a_failing_queue_is_an_error_of_its_own(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(queue: str) -> int:
        raise StoreError("the queue is away")

    monkeypatch.setattr(client.app.queues, "depth", fail)
    response = await client.call("GET", "/health")
    report = json.loads(response.body)
    assert (response.status, report["status"]) == (503, "error")
    assert (report["checks"]["store"]["status"], report["checks"]["queues"]["detail"]) == ("ok", "the queue is away")
