"""`plan --out` and `sync --plan`, and plans as JSON by the schema that the OpenAPI document holds."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from shared.cli.plan_view import show_plan
from shared.cli.session import Session
from shared.model import ConflictPolicy, Source, Sync, Target
from shared.shapes import SavedPlan
from tests.cli_world import CONFIG, loggers_as_before
from tests.openapi import problems
from tests.unit.apps import Client, make_app, seed, working
from tests.unit.test_cli import TWO, Here

REPORT = {"$ref": "#/components/schemas/PlanReport"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VAULT", "AZURE", "AzureWeb")):
            monkeypatch.delenv(name)
    folder = Here(tmp_path)
    folder.configure()
    with loggers_as_before():
        yield folder


def change_something(here: Here) -> None:
    """Six secrets are in order; then something of each sort is to be done, and three deletes are too many."""
    here.put({**TWO, **{f"apps/s{n}": {"value": "canary"} for n in range(4)}})
    assert here.run("sync").code == 0
    here.put({"apps/db": {"user": "shop", "password": "other-canary", "port": 5}, "apps/new": {"value": "canary"}})
    here.put({"web/token": {"value": "by hand"}}, "target")
    here.drop("apps/s0", "apps/s1", "apps/s2")


# --- as text --------------------------------------------------------------------------------------------------------


def test_a_plan_as_a_person_reads_it(here: Here) -> None:
    change_something(here)
    ended = here.run("plan", "--detailed-exitcode")
    assert ended.code == 3
    assert ended.out.splitlines() == [
        "apps: source → target",
        "  ~ db         changed in the source",
        "      + port  ~ password",
        "  + new        new here",
        "  - s0         gone from the source; waits for approval",
        "  - s1         gone from the source; waits for approval",
        "  - s2         gone from the source; waits for approval",
        "  ~ web/token  'web/token' was changed in the target",
        "  the deletes would wait for approval: 3 of the 6 secrets that this sync wrote there would be deleted: more than "
        "delete.max_percent (25 %) and delete.min_count (1)",
        "  `vaultferry sync apps --allow-deletes` would delete them all the same",
        "Plan: 1 to create, 1 to update, 1 to repair, 3 to delete; 1 unchanged.",
    ]


def test_conflicts_and_failures_go_before_changes_in_the_exit_code(here: Here) -> None:
    change_something(here)
    here.configure(CONFIG.replace("    delete:", "    on_existing: fail\n    delete:"))
    here.put({"new": {"value": "somebody's"}}, "target")
    ended = here.run("plan", "--detailed-exitcode")
    assert ended.code == 1
    assert "  ! new        'new' was there before and holds something else (on_existing: fail)" in ended.out


def test_the_side_that_would_be_written_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    sync = Sync(
        "two", Source("hub", "apps/"), (Target("kv", "kv"), Target("v2", "v2", "x/")), "bidirectional",
        conflict=ConflictPolicy.MANUAL,
    )  # fmt: skip
    one: dict[str, Any] = {"target": "hub", "reason": "why", "fields": None, "held": False}
    items = [
        {**one, "path": "a", "change": "update", "side": "source", "names": ["apps/a"]},
        {**one, "path": "b", "change": "create", "side": "v2", "names": ["x/b"]},
        {**one, "path": "c", "change": "create", "side": "kv", "names": ["c-c"]},
        {**one, "path": "d", "change": "conflict", "side": None, "names": []},
    ]
    document: dict[str, Any] = {"items": items, "error": None, "blocked": {}, "unseen": {}, "unchanged": 4}

    class Context:
        obj = None

    show_plan(Session(Context(), None, False, None, default_level="error"), sync, document)  # type: ignore[arg-type]
    assert capsys.readouterr().out.splitlines() == [
        "two: hub ⇄ kv, v2",
        "  ~ a  → hub     why",
        "  + b  → v2      why",
        "  + c  → kv c-c  why",
        "  ! d            why",
        "Plan: 2 to create, 1 to update, 1 in conflict; 4 unchanged.",
    ]


# --- in a file ------------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_carried_out_deletes_included(here: Here) -> None:
    change_something(here)
    saved = here.run("plan", "--out", "apps.plan", "--detailed-exitcode", "-c", "vaultferry.yaml")
    assert saved.code == 3
    assert (
        "Saved. `vaultferry sync --plan apps.plan -c vaultferry.yaml` carries out exactly this, or nothing."
        in saved.err
    )
    done = here.run("sync", "--plan", "apps.plan", "--json")
    (run,) = done.json["runs"]
    assert (done.code, run["status"], run["trigger"]) == (0, "succeeded", "plan")
    assert (run["written"], run["deleted"], run["drifted"]) == (3, 3, 1)
    assert here.run("plan", "--detailed-exitcode").code == 0
    # A second time it is another world.
    again = here.run("sync", "--plan", "apps.plan")
    assert again.code == 1
    assert "nothing was written, for the plan no longer holds: 'db' → target was in the plan" in again.out
    assert "Next: `vaultferry plan apps --out FILE` shows what is to be done now." in again.out
    assert "API calls: none" not in again.out
    assert "API calls:" in again.out


def test_a_file_that_is_no_longer_true_writes_nothing(here: Here) -> None:
    here.put(TWO)
    here.run("plan", "--out", "apps.plan")
    here.put({"apps/db": {"user": "newer"}})
    ended = here.run("sync", "apps", "--plan", "apps.plan")
    assert ended.code == 1
    assert "'db' → target has changed in the source (from version 1 to 2)" in ended.out
    assert here.read() == {}


def test_another_vault_behind_the_same_name_is_another_world(here: Here) -> None:
    here.put(TWO)
    here.run("plan", "--out", "apps.plan")
    here.configure(CONFIG.replace("path: target.vault", "path: other.vault"))
    ended = here.run("sync", "--plan", "apps.plan")
    assert ended.code == 1
    assert "the configuration of the sync, or the digest key, is another one now" in ended.out
    assert not (here.path / "other.vault").exists()


def test_a_file_is_for_its_owner_and_holds_no_value(here: Here) -> None:
    change_something(here)
    place = here.path / "apps.plan"
    place.write_text('{"vaultferry": "plan 0"}')
    before = os.umask(0)
    try:
        assert here.run("plan", "--out", "apps.plan").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert "canary" not in place.read_text()
    assert "by hand" not in place.read_text()
    assert [each.name for each in here.path.iterdir() if "apps.plan" in each.name] == ["apps.plan"]


def test_what_can_not_be_saved_is_told(here: Here) -> None:
    here.put(TWO)
    missing = here.run("plan", "--out", "no/such/folder/plan")
    assert (missing.code, "no/such/folder/plan can not be written: No such file" in missing.err) == (2, True)
    here.configure(
        CONFIG + "  others: {source: {vault: source, prefix: other/}, targets: [{vault: target, prefix: o/}]}\n"
    )
    several = here.run("plan", "--out", "all.plan")
    assert (several.code, "--out saves one plan: name one of apps, others" in several.err) == (2, True)
    assert here.run("plan", "others", "--out", "others.plan").code == 0
    wrong = here.run("sync", "apps", "--plan", "others.plan")
    assert (wrong.code, "others.plan is a plan of sync 'others'" in wrong.err) == (2, True)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"vaultferry": "plan 2"}', "s3cret-canary", "[" * 100_000])
def test_a_file_that_is_no_plan_is_refused_and_not_quoted(here: Here, content: str) -> None:
    (here.path / "some.file").write_text(content)
    ended = here.run("sync", "--plan", "some.file")
    assert ended.code == 2
    assert "some.file is no plan that this version has written" in ended.err
    assert "canary" not in ended.err
    assert here.run("sync", "--plan", "none.such").code == 2


@pytest.mark.parametrize("option", ["--dry-run", "--allow-deletes"])
def test_a_plan_says_all_that_is_done(here: Here, option: str) -> None:
    assert here.run("sync", "--plan", "some.file", option).code == 2


def test_a_plan_of_a_two_way_sync_is_shown_by_side_and_not_saved(here: Here) -> None:
    here.configure(CONFIG.replace("    source: {vault", "    type: bidirectional\n    source: {vault"))
    here.put({"apps/here": {"user": "u", "password": "canary"}})
    here.put({"there": {"value": "canary"}}, "target")
    ended = here.run("plan", "--out", "two.plan")
    title, here_line, fields, there_line, summary = ended.out.splitlines()
    assert title == "apps: source ⇄ target"
    assert here_line.startswith("  + here   → target  ")
    assert fields == "      + password, user"
    assert there_line.startswith("  + there  → source  ")
    assert summary == "Plan: 2 to create; 0 unchanged."
    assert ended.code == 1
    assert "the plan is not saved: a plan of a two-way sync can not be carried out later" in ended.err
    assert not (here.path / "two.plan").exists()
    assert problems(REPORT, here.run("plan", "--json").json) == []


# --- by the schema --------------------------------------------------------------------------------------------------


def test_plans_of_the_command_line_are_as_the_schema_says(here: Here) -> None:
    assert problems(REPORT, here.run("plan", "--json").json) == []
    change_something(here)
    ended = here.run("plan", "--json", "--out", "apps.plan")
    assert problems(REPORT, ended.json) == []
    assert problems(REPORT, here.run("sync", "--dry-run", "--json").json) == []
    saved = json.loads((here.path / "apps.plan").read_text())
    TypeAdapter(SavedPlan).validate_python(saved)
    shown = [{key: value for key, value in item.items() if key != "basis"} for item in saved["items"]]
    assert shown == ended.json["items"]
    here.env = {"FILE_KEY": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    failed = here.run("plan", "--json")
    assert (failed.code, problems(REPORT, failed.json)) == (1, [])
    assert failed.json["error"]
    assert here.run("plan", "--out", "never.plan").code == 1
    assert not (here.path / "never.plan").exists()


# --- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with make_app(tmp_path) as app, working(app):
        yield Client(app)


async def test_exactly_a_plan_is_carried_out_over_http(client: Client) -> None:
    await seed(client.app, "hub", {"apps/a": "1", "other/b": "1"})
    route = "/syncs/hub-to-prod/execute"
    plan = (await client.json("POST", "/syncs/hub-to-prod/plan", 202))["run_id"]
    await client.ended(plan)
    for wrong in ("no-such-run", (await client.json("POST", "/syncs/by-hand/plan", 202))["run_id"]):
        problem = await client.json("POST", route, 409, body={"plan": wrong})
        assert f"sync 'hub-to-prod' has no plan {wrong!r}" in problem["detail"]
    for option in ("dry_run", "allow_deletes"):
        problem = await client.json("POST", route, 400, body={"plan": plan, option: True})
        assert "a `plan` says all that is done" in problem["detail"]
    run = await client.json("POST", route, 202, body={"plan": plan})
    assert run["run_id"] != plan
    ended = await client.ended(run["run_id"])
    assert (ended.status, ended.written) == ("succeeded", 1)
    # The plan was for a world in which nothing was there yet.
    run = await client.json("POST", route, 202, body={"plan": plan})
    ended = await client.ended(run["run_id"])
    assert (ended.status, ended.written) == ("failed", 0)
    assert "'a' → prod was in the plan (new here), and is no more" in (ended.error or "")
