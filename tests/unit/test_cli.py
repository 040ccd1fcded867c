"""The commands in this process, on encrypted files and SQLite: what they do, say and exit with."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.app import App
from shared.build_info import build_info
from shared.cli import app as commands
from shared.cli import configuring, output, plan_view
from shared.cli.looking import moment
from shared.cli.output import printable
from shared.config import load
from shared.errors import ConfigError, StoreError
from tests.cli_world import CONFIG, Ended, Folder, loggers_as_before
from tests.world import one_way

TWO = {"apps/db": {"user": "shop", "password": "s3cret-canary"}, "apps/web/token": {"value": "t0ken-canary"}}


class Here(Folder):
    """Commands in this process: many times quicker than in one of their own."""

    def run(self, *arguments: str) -> Ended:
        ended = CliRunner().invoke(commands, list(arguments), env=self.environment(), prog_name="vaultferry")
        return Ended(ended.exit_code, ended.stdout, ended.stderr)


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


def in_app(folder: Folder, body) -> object:  # type: ignore[no-untyped-def]
    """Do something to the installation that the folder's commands work on."""

    async def within() -> object:
        env = folder.environment()
        async with App(load("vaultferry.yaml", env), env) as app:
            return await body(app)

    return asyncio.run(within())


# --- the program itself -------------------------------------------------------------------------------------------


def test_version_tells_commit_and_build_date(here: Here) -> None:
    assert here.run("--version").out == f"vaultferry {build_info({})}\n"
    here.env = {"VAULTFERRY_COMMIT": "abc1234", "VAULTFERRY_BUILD_DATE": "2026-11-22"}
    assert here.run("--version").out == "vaultferry 0.1.0 (commit abc1234, built 2026-11-22)\n"


def test_version_and_help_load_nothing_heavy() -> None:
    script = (
        "import sys, shared.cli\n"
        "heavy = {'pydantic', 'aiohttp', 'azure', 'hvac', 'structlog', 'cryptography', 'sqlite3', 'yaml', 'asyncio'}\n"
        "for argument in ('--version', '-h'):\n"
        "    try:\n"
        "        shared.cli.app([argument], prog_name='vaultferry')\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["sync", "--nonsense"], ["plan", "--log-level", "loud"], ["approve"]]
)
def test_wrong_use_exits_with_2(here: Here, arguments: list[str]) -> None:
    assert here.run(*arguments).code == 2


def test_options_are_taken_before_the_command_too(here: Here) -> None:
    (here.path / "other.yaml").write_text(CONFIG, "utf-8")
    (here.path / "vaultferry.yaml").unlink()
    assert here.run("-c", "other.yaml", "--json", "validate").json["config"] == "other.yaml"


# --- failures -----------------------------------------------------------------------------------------------------


def test_all_problems_of_a_file_are_told_with_line_key_and_hint(here: Here) -> None:
    here.configure(CONFIG.replace("prefix:", "prefx:").replace("max_retries: 0", "max_retries: many"))
    ended = here.run("sync")
    assert (ended.code, ended.out) == (2, "")
    first, second = ended.err.splitlines()
    assert first.startswith("error: vaultferry.yaml:6: syncs.apps.source.prefx:")
    assert "did you mean 'prefix'?" in first
    assert second.startswith("error: vaultferry.yaml:9: syncs.apps.retry_policy.max_retries:")
    told = here.run("sync", "--json").json
    assert [(p["line"], p["key"]) for p in told["problems"]] == [
        (6, "syncs.apps.source.prefx"),
        (9, "syncs.apps.retry_policy.max_retries"),
    ]


def test_no_configuration_at_all_says_how_to_make_one(here: Here) -> None:
    (here.path / "vaultferry.yaml").unlink()
    ended = here.run("status", "-c", "nowhere.yaml")
    assert ended.code == 2
    assert "vaultferry init" in ended.err


@pytest.mark.parametrize("command", ["plan", "sync", "status", "history", "replay", "pause", "resume"])
def test_an_unknown_sync_is_wrong_use_with_a_hint(here: Here, command: str) -> None:
    ended = here.run(command, "aps")
    assert ended.code == 2
    assert "did you mean 'apps'?" in ended.err


@pytest.mark.parametrize("command", ["approve", "cancel"])
def test_an_unknown_run_is_wrong_use(here: Here, command: str) -> None:
    ended = here.run(command, "20260101-000000")
    assert (ended.code, ended.err) == (2, "error: there is no run '20260101-000000'\n")


def test_an_unexpected_failure_is_told_without_its_text(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        local = "local-canary"
        raise RuntimeError("text-canary" + local)

    monkeypatch.setattr(App, "__init__", broken)
    ended = here.run("sync")
    assert ended.code == 1
    assert "an unexpected failure: RuntimeError at test_cli.py" in ended.err
    assert "--log-level debug" in ended.err
    assert "Traceback" not in ended.err
    assert "File" not in ended.err
    debug = here.run("sync", "--log-level", "debug")
    assert "in broken" in debug.err
    assert "canary" not in (ended.out + ended.err + debug.out + debug.err).replace('"text-canary"', "")


@pytest.mark.parametrize(
    ("command", "broken", "goes_on"),
    [
        (
            ("relay", "--listen", "udp://127.0.0.1:0", "--forward", "http://127.0.0.1:1/audit", "--spool", "spool"),
            "shared.relay.spool.Spool.open",
            "when it is started again",
        ),
        (("serve", "--port", "0"), "shared.sqlite.Database.open", "when it is started again"),
        (("sync",), "shared.sqlite.Database.open", "with the next `vaultferry sync`"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_full_disk_is_told_and_when_work_goes_on(
    here: Here, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], broken: str, goes_on: str
) -> None:
    async def full(_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(broken, full)
    ended = here.run(*command)
    assert ended.code == 1
    assert "error: the disk is full" in ended.err
    assert f"Nothing is lost: what was under way goes on {goes_on}." in ended.err


def test_a_vault_that_can_not_be_read_ends_the_run_with_the_next_step(here: Here) -> None:
    (here.path / "source.vault").write_text("no vault\n", "utf-8")
    ended = here.run("sync")
    assert ended.code == 1
    assert "failed" in ended.out
    assert "Next: `vaultferry check source target` says what is missing." in ended.out


# --- init, validate, check ----------------------------------------------------------------------------------------


def test_init_writes_a_file_that_is_valid_and_never_over_another(here: Here) -> None:
    arguments = ["init", "--source", "file=a.vault", "--target", "file=b.vault", "-c", "first.yaml"]
    ended = here.run(*arguments)
    assert ended.code == 0
    assert "put A_KEY and B_KEY into the environment" in ended.out
    assert "vaultferry plan -c first.yaml" in ended.out
    here.env = {"A_KEY": "a passphrase that is long enough", "B_KEY": "a passphrase that is long enough"}
    assert here.run("validate", "-c", "first.yaml").code == 0
    again = here.run(*arguments)
    assert again.code == 2
    assert "is there already" in again.err


def test_init_takes_plain_addresses_for_which_one_token_may_serve(here: Here) -> None:
    ended = here.run(
        "init", "--source", "http://127.0.0.1:1", "--target", "http://127.0.0.1:2,b.vault", "-c", "first.yaml"
    )
    assert (ended.code, "put VAULT_TOKEN and B_KEY into the environment" in ended.out) == (0, True)
    here.env = {"VAULT_TOKEN": "hvs.x", "B_KEY": "a passphrase that is long enough"}
    found = here.run("validate", "-c", "first.yaml", "--json").json
    assert found["vaults"] == {"hub": "hashicorp", "copy": "hashicorp", "b": "file"}
    assert (found["syncs"], found["warnings"]) == (["hub-to-all"], [])


def test_validate_tells_what_it_found(here: Here) -> None:
    ended = here.run("validate")
    assert ended.code == 0
    assert ended.out == "vaultferry.yaml is valid: 2 vaults, 1 sync.\n  apps: source → target, by hand only\n"
    assert here.run("validate", "--json").json["vaults"] == {"source": "file", "target": "file"}


def test_validate_prints_the_schema_without_any_configuration(here: Here) -> None:
    (here.path / "vaultferry.yaml").unlink()
    assert {"vaults", "syncs"} <= here.run("validate", "--schema").json["properties"].keys()


def test_check_says_what_is_well_and_what_is_missing(here: Here) -> None:
    here.put(TWO)
    well = here.run("check")
    assert (well.code, well.out.splitlines()[-1]) == (0, "All is well.")
    assert not (here.path / "vaultferry.db").exists()
    here.env = {"FILE_KEY": base64.b64encode(bytes(32)).decode()}
    wrong = here.run("check", "source", "--json")
    assert wrong.code == 1
    assert not wrong.json["ok"]
    assert {item["vault"] for item in wrong.json["items"]} == {"source"}
    assert here.run("check", "sorce").code == 2


# --- plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_shows_every_change_sorted_with_its_reason_and_writes_nothing(here: Here) -> None:
    here.put(TWO)
    assert here.run("plan").out.splitlines() == [
        "apps: source → target",
        "  + db         new here",
        "      + password, user",
        "  + web/token  new here",
        "Plan: 2 to create; 0 unchanged.",
    ]
    assert here.read() == {}
    assert here.run("sync", "--dry-run").out.endswith("Plan: 2 to create; 0 unchanged.\n")
    assert here.read() == {}
    here.run("sync")
    here.put({"apps/db": {"user": "other"}, "apps/new": {"value": "n"}})
    here.put({"web/token": {"value": "changed by hand"}}, "target")
    lines = here.run("plan").out.splitlines()
    assert lines[2] == "      ~ user  - password"
    assert [line.split()[:2] for line in (lines[1], *lines[3:5])] == [["~", "db"], ["+", "new"], ["~", "web/token"]]
    assert "'web/token' was changed in the target" in lines[4]
    assert lines[-1] == "Plan: 1 to create, 1 to update, 1 to repair; 0 unchanged."


def test_a_plan_exits_with_3_on_changes_when_asked_to(here: Here) -> None:
    here.put(TWO)
    assert here.run("plan").code == 0
    assert here.run("plan", "--detailed-exitcode").code == 3
    here.run("sync")
    ended = here.run("plan", "--detailed-exitcode")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "Plan: nothing to do; 2 secrets as they should be.")


def test_a_plan_in_json_is_the_document(here: Here) -> None:
    here.put(TWO)
    told = here.run("plan", "--json").json
    assert (told["sync_id"], told["planned"], told["unchanged"], told["status"]) == ("apps", 2, 0, "succeeded")
    assert [(item["path"], item["change"], item["names"]) for item in told["items"]] == [
        ("db", "create", ["db"]),
        ("web/token", "create", ["web/token"]),
    ]


def test_what_can_not_be_carried_is_in_the_plan_and_in_its_exit_code(here: Here) -> None:
    here.configure(CONFIG.replace("[{vault: target}]", '[{vault: target, name: "all"}]'))
    here.put(TWO)
    ended = here.run("plan")
    assert ended.code == 1
    assert ended.out.count("  ! ") == 2
    assert "2 can not be carried" in ended.out


# --- sync ---------------------------------------------------------------------------------------------------------


def test_a_sync_carries_all_and_a_second_one_has_nothing_to_do(here: Here) -> None:
    here.put(TWO)
    first = here.run("sync")
    assert first.code == 0
    header, row, calls = first.out.splitlines()
    assert header.split()[:4] == ["Sync", "Result", "Planned", "Written"]
    assert row.split()[:5] == ["apps", "succeeded", "2", "2", "0"]
    assert calls.startswith("API calls: source ")
    assert here.read() == {"db": TWO["apps/db"], "web/token": TWO["apps/web/token"]}
    (run,) = here.run("sync", "--json").json["runs"]
    assert (run["status"], run["planned"], run["written"], run["unchanged"]) == ("succeeded", 0, 0, 2)


def test_several_syncs_run_and_are_told_in_the_order_of_the_file(here: Here) -> None:
    more = "  others: {source: {vault: source, prefix: other/}, targets: [{vault: target, prefix: o/}]}\n"
    here.configure(CONFIG + more)
    here.put({**TWO, "other/one": {"value": "1"}})
    runs = here.run("sync", "--json").json["runs"]
    assert [(run["sync_id"], run["written"]) for run in runs] == [("apps", 2), ("others", 1)]
    assert [run["sync_id"] for run in here.run("sync", "others", "--json").json["runs"]] == ["others"]


def test_nothing_that_a_command_says_in_a_pipe_is_coloured_or_secret(here: Here) -> None:
    here.put(TWO)
    said = ""
    for arguments in (["plan"], ["sync"], ["status", "apps"], ["history", "apps"], ["check"], ["sync", "--json"]):
        ended = here.run(*arguments)
        said += ended.out + ended.err
    assert "\x1b" not in said
    assert "canary" not in said


def test_a_run_on_its_way_is_joined(here: Here) -> None:
    here.put(TWO)
    run = in_app(here, lambda app: app.engine.runs.start("apps", trigger="timer"))
    ended = here.run("sync", "--allow-deletes", "--json")
    assert f"going on with run {run.run_id}" in ended.err
    assert "its deletes still need an approval" in ended.err
    assert [(told["run_id"], told["written"]) for told in ended.json["runs"]] == [(run.run_id, 2)]


def test_a_failed_secret_is_told_with_its_reason_and_the_next_command(here: Here) -> None:
    here.configure(CONFIG.replace("    delete:", "    on_existing: fail\n    delete:"))
    here.put(TWO)
    here.put({"db": {"value": "somebody else's"}}, "target")
    ended = here.run("sync", "-c", "vaultferry.yaml")
    assert ended.code == 1
    assert "partial" in ended.out
    assert "  ! db → target  " in ended.out
    assert "`vaultferry replay apps -c vaultferry.yaml`" in ended.out
    assert here.read()["web/token"] == TWO["apps/web/token"]
    assert [row["path"] for row in here.run("sync", "--json").json["runs"][0]["unsettled"]] == ["db"]
    assert here.run("history", "apps", "--status", "failed", "--json").json["items"][0]["path"] == "db"
    here.drop("db", vault="target")
    replayed = here.run("replay", "apps", "--json")
    assert (replayed.code, replayed.json["runs"][0]["written"]) == (0, 1)
    nothing = here.run("replay", "apps")
    assert (nothing.code, nothing.err) == (1, "error: sync 'apps' has no failed secret to replay\n")


def test_too_many_deletes_wait_for_an_approval_of_exactly_these(here: Here) -> None:
    here.put({f"apps/s{n}": {"value": str(n)} for n in range(6)})
    here.run("sync")
    here.drop("apps/s0", "apps/s1", "apps/s2")
    planned = here.run("plan")
    assert "the deletes would wait for approval: 3 of the 6 secrets" in planned.out
    blocked = here.run("sync")
    assert blocked.code == 1
    assert "  - s0 → target  waits for approval" in blocked.out
    (run,) = here.run("sync", "--json").json["runs"]
    assert (run["status"], [held["path"] for held in run["held"]]) == ("blocked", ["s0", "s1", "s2"])
    assert len(here.read()) == 6
    told = here.run("status").out
    assert "apps: target: 3 of the 6 secrets" in told
    assert f"`vaultferry approve {run['run_id']}` carries out what waits." in told
    approved = here.run("approve", run["run_id"])
    assert approved.code == 0
    assert sorted(here.read()) == ["s3", "s4", "s5"]


def test_allow_deletes_needs_no_approval(here: Here) -> None:
    here.put({f"apps/s{n}": {"value": str(n)} for n in range(6)})
    here.run("sync")
    here.drop("apps/s0", "apps/s1", "apps/s2")
    assert here.run("sync", "--allow-deletes").code == 0
    assert sorted(here.read()) == ["s3", "s4", "s5"]


def test_a_check_says_which_vault_it_is_waiting_for(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, told = configuring._ask, asyncio.Event()
    note = output.Output.note

    async def slow(config: Any, name: str, *more: Any) -> Any:
        if name == "target":
            await told.wait()
        return await ask(config, name, *more)

    def noted(self: output.Output, *parts: Any) -> None:
        note(self, *parts)
        told.set()

    monkeypatch.setattr(configuring, "LINE_EVERY", 0.01)
    monkeypatch.setattr(configuring, "_ask", slow)
    monkeypatch.setattr(output.Output, "note", noted)
    checked = here.run("check")
    assert (checked.code, "All is well." in checked.out) == (0, True)
    assert checked.err.startswith("waiting for target, 0 s\n")


@pytest.mark.parametrize(
    ("items", "error", "told"),
    [
        ([], None, "Plan: nothing to do; 3 secrets as they should be."),
        ([{"change": "create"}], None, "Plan: 1 to create; 3 unchanged."),
        ([], "target: the token is refused", "Plan: it could not be made."),
        ([{"change": "create"}], "target: the token is refused", "Plan, as far as it could be made: 1 to create."),
    ],
)
def test_a_plan_that_could_not_be_made_does_not_say_that_all_is_well(
    items: list[Any], error: str | None, told: str
) -> None:
    document = {"items": items, "unchanged": 3, "error": error, "unseen": {}}
    assert plan_view._summary(one_way("target"), document) == told


def test_a_sync_that_covers_nothing_says_so(here: Here) -> None:
    here.put(TWO)
    here.configure((here.path / "vaultferry.yaml").read_text().replace("prefix: apps/", "prefix: typo/"))
    nothing = "source has no secret below 'typo/' that apps covers."
    assert here.run("plan").out.splitlines()[-1] == f"Plan: nothing to do; {nothing}"
    assert nothing in here.run("sync").out


@pytest.mark.parametrize("there", ["vaultferry.yaml", "vaultferry.db", "notes.json", "pipe"])
def test_a_plan_replaces_nothing_but_a_plan(here: Here, there: str) -> None:
    here.put(TWO)
    here.run("sync")
    (here.path / "notes.json").write_text('{"vaultferry": "mine"}')
    (here.path / "a.plan").touch()
    os.mkfifo(here.path / "pipe")
    before = {each.name: each.stat().st_ino for each in here.path.iterdir()}
    refused = here.run("plan", "--out", there)
    assert (refused.code, refused.err) == (
        2,
        f"error: {there} is there and is no saved plan, so it is not replaced; name another file\n",
    )
    assert (here.path / there).stat().st_ino == before[there]
    assert [here.run("plan", "--out", "a.plan").code for _ in range(2)] == [0, 0], "empty, and then a plan"
    assert here.run("status").code == 0


def test_a_blocked_run_can_be_cancelled(here: Here) -> None:
    here.put({f"apps/s{n}": {"value": str(n)} for n in range(6)})
    here.run("sync")
    here.drop("apps/s0", "apps/s1", "apps/s2")
    (run,) = here.run("sync", "--json").json["runs"]
    assert here.run("cancel", run["run_id"], "--json").json["status"] == "cancelled"
    assert here.run("approve", run["run_id"]).code == 1


def test_a_replay_of_what_the_sync_does_not_carry_says_so(here: Here) -> None:
    here.put(TWO)
    assert here.run("replay", "apps", "--path", "db").code == 0, "whatever its state, and it need not be known before"
    odd = here.run("replay", "apps", "--path", "no pe")
    assert (odd.code, odd.err) == (
        1,
        "error: nothing was replayed: sync 'apps' carries no secret 'no pe'; "
        "`vaultferry plan apps --explain 'no pe'` tells why\n",
    )


def test_a_paused_sync_is_left_out_and_refused_when_named(here: Here) -> None:
    here.put(TWO)
    assert here.run("pause", "apps").code == 0
    left_out = here.run("sync", "--json")
    assert (left_out.code, left_out.json) == (0, {"runs": []})
    assert "`vaultferry resume apps`" in left_out.err
    named = here.run("sync", "apps")
    assert (named.code, named.err) == (1, "error: sync 'apps' is paused; `vaultferry resume apps` lets it run again\n")
    assert here.run("resume", "apps", "--json").json == {"sync_id": "apps", "paused": False}
    assert here.run("sync").code == 0


def test_a_disabled_sync_runs_neither_by_default_nor_when_named(here: Here) -> None:
    here.configure(CONFIG.replace("    delete:", "    enabled: false\n    delete:"))
    assert here.run("sync").code == 2
    assert here.run("sync", "apps").code == 1


# --- status, history ----------------------------------------------------------------------------------------------


def test_status_tells_how_things_stand(here: Here) -> None:
    here.configure(CONFIG.replace("    delete:", '    schedule: "0 */6 * * *"\n    delete:'))
    assert here.run("status").out.splitlines()[1].split()[:4] == ["apps", "enabled", "never", "ran"]
    here.put(TWO)
    here.run("sync")
    told = here.run("status", "apps", "--json").json
    assert (told["last_run"]["status"], told["objects"]["in_sync"]) == ("succeeded", 2)
    assert told["next_run"] is not None
    assert here.run("status", "--json").json == {"items": [told], "next_cursor": None}
    assert told["last_run"]["run_id"] in here.run("status", "apps").out


def test_history_is_filtered_and_cut(here: Here) -> None:
    here.put(TWO)
    here.run("sync")
    here.put({"apps/db": {"user": "other"}})
    here.run("sync")
    actions = [(row["path"], row["action"]) for row in here.run("history", "apps", "--json").json["items"]]
    assert actions[0] == ("db", "update")
    assert sorted(actions[1:]) == [("db", "create"), ("web/token", "create")]
    assert here.run("history", "apps", "--path", "db", "--limit", "1", "--json").json["next_cursor"]
    assert "There is more" in here.run("history", "apps", "--limit", "1").out
    assert here.run("history", "apps", "--since", "2100-01-01").out == "Nothing matches.\n"
    for wrong in (["--since", "soon"], ["--status", "well"], ["--verify", "--path", "db"]):
        assert here.run("history", "apps", *wrong).code == 2
    assert here.run("history").code == 2


def test_since_is_a_time_or_how_long_ago() -> None:
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert moment("90m", now) == datetime(2026, 3, 2, 10, 30, tzinfo=UTC)
    assert moment("2d", now) == datetime(2026, 2, 28, 12, tzinfo=UTC)
    assert moment("2026-01-31", now) == datetime(2026, 1, 31, tzinfo=UTC)
    assert moment("2026-01-31T06:00:00+02:00", now) == datetime(2026, 1, 31, 4, tzinfo=UTC)
    with pytest.raises(ConfigError, match="30m, 12h, 7d"):
        moment("yesterday", now)


def test_verify_finds_a_row_that_was_changed(here: Here) -> None:
    here.put(TWO)
    here.run("sync")
    assert here.run("history", "--verify").code == 0
    with sqlite3.connect(here.path / "vaultferry.db") as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE sync_history SET action = 'delete' WHERE path = 'db'")
    database.close()
    ended = here.run("history", "apps", "--verify")
    assert ended.code == 1
    assert "  ! db  " in ended.out


def test_archive_moves_what_is_older_than_the_retention(here: Here) -> None:
    here.put(TWO)
    here.run("sync")
    here.put({"apps/db": {"user": "other"}})
    here.run("sync")
    assert here.run("history", "--archive", "old.jsonl").code == 2, "without a retention, all is kept"
    here.configure("history: {retention: 1h}\n" + CONFIG)
    assert "Nothing is older" in here.run("history", "--archive", "old.jsonl").out
    assert not (here.path / "old.jsonl").exists()

    async def archive_all(app: App) -> int:
        from shared.cli.looking import _write_archive

        return await _write_archive(app, "old.jsonl", datetime(2100, 1, 1, tzinfo=UTC))

    moved = in_app(here, archive_all)
    records = [json.loads(line) for line in (here.path / "old.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == moved
    assert {record["record"] for record in records} == {"run", "history"}
    assert (here.path / "old.jsonl").stat().st_mode & 0o777 == 0o600
    assert "is there already" in here.run("history", "--archive", "old.jsonl").err
    assert here.run("history", "--verify").code == 0


# --- what is shown ------------------------------------------------------------------------------------------------


def test_what_could_drive_a_terminal_is_made_visible() -> None:
    assert printable("größe 東京 🛳") == "größe 東京 🛳"
    assert printable("a\x1b[31mb\u202ec\nd") == "a\\x1b[31mb\\u202ec\\nd"
