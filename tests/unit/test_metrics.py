"""Metrics from what the store remembers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared import jobs
from shared.app import App
from shared.history import Save
from shared.metrics import as_json, as_prometheus, collect
from shared.model import Control, ObjectState, ObjectStatus, Run, RunStatus
from tests.unit.apps import Client, make_app, seed, working

NOW = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with make_app(tmp_path, clock=lambda: NOW) as app:
        began = NOW - timedelta(minutes=10)
        ended = began + timedelta(seconds=90)
        run = Run("r", "hub-to-prod", "timer", began, RunStatus.PARTIAL, started_at=began, finished_at=ended)
        await app.store.save_run(run)
        await app.store.save_run(Run("active", "hub-to-prod", "timer", NOW))
        await app.store.save_control(
            Control(
                "hub-to-prod",
                active_run="active",
                last_run="r",
                last_success_at=NOW - timedelta(hours=2),
                totals={
                    "runs": {"succeeded": 3, "partial": 1},
                    "targets": {"prod": {"written": 40, "drifted": 2, "unchanged": 100, "failed": 1}},
                    "calls": {"hub": 60, "prod": 70},
                },
            )
        )
        await app.store.save_control(
            Control("by-hand", paused=True, totals={"runs": {"failed": 1}, "calls": {"hub": 5}})
        )
        states = [ObjectState("hub-to-prod", "prod", f"p{number}", status=ObjectStatus.IN_SYNC) for number in range(3)]
        states.append(ObjectState("hub-to-prod", "prod", "bad", status=ObjectStatus.FAILED, error="no"))
        await app.store.save_objects([Save(state) for state in states])
        await app.queues.send(jobs.PLAN_QUEUE, "{}")
        await app.queues.send(jobs.write_queue("prod"), "{}", delay=60)
        await app.queues.send(jobs.write_queue("prod") + jobs.POISON_SUFFIX, "{}")
        yield app


async def test_the_json_has_what_was_promised_and_the_details(app: App) -> None:
    shown = as_json(await collect(app))
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["syncs_configured"], shown["syncs_enabled"], shown["runner_running"]) == (3, 2, True)
    assert shown["runs_active"] == 1
    assert shown["runs"] == {"succeeded": 3, "partial": 1, "failed": 1}
    assert shown["calls"] == {"hub": 65, "prod": 70}
    assert shown["queues"] == {
        "vaultferry-plan": 1,
        "vaultferry-events": 0,
        "vaultferry-to-prod": 1,
        "vaultferry-plan-poison": 0,
        "vaultferry-events-poison": 0,
        "vaultferry-to-prod-poison": 1,
    }
    sync = shown["syncs"]["hub-to-prod"]
    assert (sync["last_run_status"], sync["last_run_seconds"]) == ("partial", 90.0)
    assert (sync["last_success_at"], sync["last_success_age_seconds"]) == ("2026-03-01T04:00:00.000000Z", 7200.0)
    assert sync["objects"] == {"in_sync": 3, "failed": 1}
    assert (shown["syncs"]["by-hand"]["paused"], shown["syncs"]["by-hand"]["last_run_seconds"]) == (True, None)


async def test_prometheus_reads_the_same_numbers(app: App) -> None:
    text, content_type = as_prometheus(await collect(app))
    assert content_type.startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.name.startswith("vaultferry_")
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            samples[sample.name, *sorted(sample.labels.values())] = sample.value
    assert samples["vaultferry_runs_total", "hub-to-prod", "partial"] == 1
    assert samples["vaultferry_secrets_total", "hub-to-prod", "prod", "written"] == 40
    assert samples["vaultferry_secrets_total", "drifted", "hub-to-prod", "prod"] == 2
    assert samples["vaultferry_secrets_total", "hub-to-prod", "prod", "unchanged"] == 100
    assert samples["vaultferry_secrets_total", "failed", "hub-to-prod", "prod"] == 1
    assert samples["vaultferry_api_calls_total", "hub"] == 65
    assert samples["vaultferry_last_run_duration_seconds", "hub-to-prod"] == 90
    assert samples["vaultferry_last_success_age_seconds", "hub-to-prod"] == 7200
    assert ("vaultferry_last_success_age_seconds", "by-hand") not in samples
    assert samples["vaultferry_queue_depth", "vaultferry-to-prod-poison"] == 1
    assert samples["vaultferry_objects", "failed", "hub-to-prod"] == 1
    assert samples["vaultferry_syncs_configured",] == 3
    assert [samples["vaultferry_sync_enabled", sync] for sync in ("hub-to-prod", "resting")] == [1, 0]
    assert samples["vaultferry_sync_paused", "by-hand"] == 1
    assert samples["vaultferry_sync_active", "hub-to-prod"] == 1


async def test_counters_only_grow_over_real_runs(tmp_path: Path) -> None:
    async with make_app(tmp_path) as app:
        client = Client(app)
        await seed(app, "hub", {"apps/a": "1", "apps/b": "2"})
        for expected in ({"written": 2, "unchanged": 0}, {"written": 2, "unchanged": 2}):
            begun = await client.json("POST", "/syncs/hub-to-prod/execute", 202)
            async with working(app):
                await client.ended(begun["run_id"])
            counts = (await client.json("GET", "/metrics"))["syncs"]["hub-to-prod"]["targets"]["prod"]
            assert expected.items() <= counts.items()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/json", "application/json"),
        ("text/plain;q=0.5, application/json", "application/json"),
        ("text/plain", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
    ],
)
async def test_the_form_goes_by_what_is_accepted(app: App, accept: str, content_type: str) -> None:
    response = await Client(app).call("GET", "/metrics", accept=accept)
    assert (response.status, response.headers["Content-Type"].partition(";")[0]) == (200, content_type)


async def test_a_named_format_wins_and_an_unknown_one_is_refused(app: App) -> None:
    client = Client(app)
    text = await client.call("GET", "/metrics", params={"format": "prometheus"}, accept="application/json")
    assert text.headers["Content-Type"].startswith("text/plain")
    await client.json("GET", "/metrics", params={"format": "json"}, accept="text/plain")
    assert "'prometheus'" in (await client.json("GET", "/metrics", 400, params={"format": "promethes"}))["detail"]
