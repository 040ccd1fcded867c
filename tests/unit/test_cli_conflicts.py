"""Conflicts on the command line: what is listed, how they are settled, and what is said of it afterwards."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.app import App
from shared.cli import app as commands
from shared.history import Save
from shared.model import Action, Contested, Event, ObjectState, ObjectStatus, RunStatus, Sight
from tests.cli_world import Ended, Folder, loggers_as_before
from tests.unit.test_cli import in_app

VAULTS = """\
vaults:
  hub: {kind: file, path: hub.vault, key: "${FILE_KEY}"}
  east: {kind: file, path: east.vault, key: "${FILE_KEY}"}
  west: {kind: file, path: west.vault, key: "${FILE_KEY}"}
syncs:
"""
TWO_WAY = """\
  apps:
    type: bidirectional
    source: {vault: hub, prefix: apps/}
    targets: [{vault: east}]
    conflict: manual
    delete: {propagate: true, min_count: 1}
    retry_policy: {max_retries: 0}
"""
ONE_WAY = """\
  copies:
    source: {vault: hub, prefix: copies/}
    targets: [{vault: west}]
    delete: {propagate: true, min_count: 1}
    retry_policy: {max_retries: 0}
"""
WHEEL = VAULTS + TWO_WAY.replace("{vault: east}", "{vault: east}, {vault: west}")
CANARY = "s3cret-canary"


class Here(Folder):
    """Commands in this process: many times quicker than in one of their own."""

    def run(self, *arguments: str) -> Ended:
        ended = CliRunner().invoke(commands, list(arguments), env=self.environment(), prog_name="vaultferry")
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    def type(self, line: str) -> Ended:
        """A line that a command told a person to type."""
        program, *arguments = shlex.split(line)
        assert program == "vaultferry"
        return self.run(*arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VAULT", "AZURE", "AzureWeb")):
            monkeypatch.delenv(name)
    folder = Here(tmp_path)
    folder.configure(VAULTS + TWO_WAY + ONE_WAY)
    with loggers_as_before():
        yield folder


def differ(here: Here, path: str = "db", **values: str) -> None:
    """Another value in each vault."""
    for vault, value in values.items():
        here.put({("apps/" if vault == "hub" else "") + path: {"v": f"{value}-{CANARY}"}}, vault)


def commands_in(text: str) -> list[str]:
    return [line.strip().strip("`") for line in text.splitlines() if line.strip().startswith("`vaultferry")]


def held(here: Here, path: str = "db") -> dict[str, str]:
    found = {vault: here.read(vault) for vault in ("hub", "east", "west")}
    names = {"hub": f"apps/{path}", "east": path, "west": path}
    return {vault: found[vault][name]["v"].partition("-")[0] for vault, name in names.items() if name in found[vault]}


async def decide(app: App, take: str) -> None:
    """What a person's decision leaves behind, before anything carries it out."""
    rows = [row async for row in app.store.list_objects("apps", status=ObjectStatus.CONFLICT)]
    decided = [replace(row, contested=row.contested and replace(row.contested, take=take)) for row in rows]
    assert None not in await app.store.save_objects([Save(row) for row in decided])


# --- what is listed -----------------------------------------------------------------------------------------------


def test_where_nothing_is_in_conflict_that_is_said(here: Here) -> None:
    assert here.run("status", "--conflicts").out == "Nothing is in conflict.\n"
    assert here.run("status", "apps", "--conflicts", "--json").json == {"items": [], "next_cursor": None}


def test_each_conflict_is_listed_with_its_sides_and_the_commands_that_settle_it(here: Here) -> None:
    differ(here, "shop/db", hub="1", east="2")
    differ(here, "it's a name", hub="1", east="2")
    differ(here, "same", hub="1", east="1")
    ended = here.run("sync", "apps")
    assert ended.code == 1
    assert "`vaultferry status apps --conflicts` shows what is in conflict" in ended.out
    assert "`vaultferry status apps --conflicts` lists what is in conflict" in here.run("status").out
    told = here.run("status", "--conflicts")
    assert told.code == 0
    assert told.out == here.run("status", "apps", "--conflicts").out
    first, second, last = told.out.split("\n\n")
    assert (first.split("  since ")[0], second.split("  since ")[0]) == ("apps: it's a name", "apps: shop/db")
    assert last == "2 secrets in conflict.\n"
    lines = second.splitlines()
    assert lines[1] == "  ! changed on several sides (conflict: manual)"
    assert lines[2].split() == ["Side", "Version", "Changed", "(UTC)", "Digest"]
    (item,) = (i for i in here.run("status", "apps", "--conflicts", "--json").json["items"] if i["path"] == "shop/db")
    for line, side in zip(lines[3:5], item["sides"], strict=True):
        day, time = side["changed_at"].split("T")
        assert line.split() == [side["side"], side["version"], day, time[:8], side["digest"][:8]]
    assert commands_in(second) == [
        "vaultferry resolve apps shop/db --take source",
        "vaultferry resolve apps shop/db --take target",
    ]
    assert CANARY not in told.out + json.dumps(item)
    ended = here.type(commands_in(first)[1])
    assert ended.code == 0
    assert held(here, "it's a name") == {"hub": "2", "east": "2"}


def test_with_several_targets_a_command_names_the_one_that_is_meant(here: Here) -> None:
    here.configure(WHEEL)
    differ(here, hub="1", east="2", west="3")
    here.run("sync")
    told = here.run("-c", "vaultferry.yaml", "status", "apps", "--conflicts").out
    assert commands_in(told) == [
        "vaultferry resolve apps db --take source -c vaultferry.yaml",
        "vaultferry resolve apps db --take target --target east -c vaultferry.yaml",
        "vaultferry resolve apps db --take target --target west -c vaultferry.yaml",
    ]
    assert told.count("changed on several sides") == 1
    assert "1 secret in conflict." in told
    assert [item["target"] for item in here.run("status", "--conflicts", "--json").json["items"]] == ["east", "west"]
    refused = here.run("resolve", "apps", "db", "--take", "target")
    assert (refused.code, "--target east or --target west" in refused.err) == (1, True)
    assert here.type(commands_in(told)[2]).code == 0
    assert held(here) == {"hub": "3", "east": "3", "west": "3"}


def test_a_side_that_holds_nothing_says_so(here: Here) -> None:
    sides = (Sight("source", "f", "7", "ab" * 32), Sight("east", None, "8"))
    row = ObjectState("apps", "east", "db", status=ObjectStatus.CONFLICT, error="why", contested=Contested(sides))
    in_app(here, lambda app: app.store.save_objects([Save(row)]))
    told = here.run("status", "--conflicts").out.splitlines()
    assert told[0] == "apps: db"
    assert [line.split() for line in told[3:5]] == [
        ["source", "7", "abababab"],
        ["east", "8", "holds", "nothing"],
    ]


def test_what_was_decided_and_not_carried_out_is_told(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    in_app(here, lambda app: decide(app, "source"))
    told = here.run("status", "--conflicts").out
    assert "It was decided to take the source: a run carries it out, or `vaultferry sync apps`." in told
    assert here.run("status", "--conflicts", "--json").json["items"][0]["decided"] == "source"
    assert here.run("sync", "apps").code == 0
    assert held(here)["east"] == "1"


def test_what_a_run_has_begun_to_settle_is_told(here: Here) -> None:
    sides = (Sight("source", "f", "7", "ab" * 32), Sight("east", "g", "8", "cd" * 32))
    contested = Contested(sides, taken="east")
    row = ObjectState("apps", "east", "db", status=ObjectStatus.CONFLICT, contested=contested)
    in_app(here, lambda app: app.store.save_objects([Save(row)]))
    told = here.run("status", "--conflicts").out
    assert "being given what east held; where that broke off, `vaultferry sync apps` goes on" in told


def test_a_one_way_sync_lists_its_conflicts_with_what_to_do_about_them(here: Here) -> None:
    here.put({"copies/db": {"v": "1"}})
    here.put({"copies/db": {"v": "1"}, "copies/web": {"v": "1"}}, "hub")
    here.run("sync", "copies")
    here.put({"db": {"v": "theirs"}}, "west")
    here.drop("copies/db", vault="hub")
    here.run("sync", "copies")
    told = here.run("status", "--conflicts").out
    assert told.startswith("copies: db  since ")
    assert "  ! west  'db' was changed in the target" in told
    (item,) = here.run("status", "--conflicts", "--json").json["items"]
    assert (item["sides"], item["decided"]) == ([], None)
    assert "delete it by hand" in item["error"]
    refused = here.run("resolve", "copies", "db", "--take", "source")
    assert refused.code == 1
    assert "one-way" in refused.err
    assert "delete it by hand" in refused.err
    assert "then replay 'db'" in refused.err
    here.drop("db", vault="west")
    assert here.type(commands_in(told)[0].partition("`")[0]).code == 0
    assert here.run("status", "--conflicts").out == "Nothing is in conflict.\n"


def test_names_that_could_drive_a_terminal_are_made_visible(here: Here) -> None:
    row = ObjectState("apps", "east", "a\x1b[31mred", status=ObjectStatus.CONFLICT, error="\u202ewhy")
    in_app(here, lambda app: app.store.save_objects([Save(row)]))
    told = here.run("status", "--conflicts").out
    assert "\x1b" not in told
    assert "\u202e" not in told


def test_a_terminal_gets_a_table(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    monkeypatch.setattr("shared.cli.output.Output.on_terminal", True)
    told = here.run("status", "--conflicts").out
    assert "───" in told
    assert "resolve apps db --take target" in told


# --- settling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("take", "value", "taken"), [("source", "1", "the source"), ("target", "2", "east")])
def test_a_conflict_is_settled_as_was_decided(here: Here, take: str, value: str, taken: str) -> None:
    differ(here, hub="1", east="2")
    differ(here, "other", hub="1", east="2")
    here.run("sync", "apps")
    ended = here.run("resolve", "apps", "db", "--take", take)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"db is settled: {taken} was taken by hand."
    assert held(here) == {"hub": value, "east": value}
    assert held(here, "other") == {"hub": "1", "east": "2"}
    (run,) = [row for row in here.run("status", "apps").out.splitlines() if " resolve " in row]
    assert "succeeded" in run
    again = here.run("resolve", "apps", "db", "--take", take)
    assert (again.code, "not in conflict" in again.err) == (1, True)


@pytest.mark.parametrize(("take", "left"), [("source", {}), ("target", {"hub": "2", "east": "2"})])
def test_a_deletion_can_be_taken_or_undone(here: Here, take: str, left: dict[str, str]) -> None:
    differ(here, hub="1", east="1")
    assert here.run("sync", "apps").code == 0
    here.drop("apps/db", vault="hub")
    differ(here, east="2")
    here.run("sync", "apps")
    assert "holds nothing" in here.run("status", "--conflicts").out
    ended = here.run("resolve", "apps", "db", "--take", take)
    assert (ended.code, held(here)) == (0, left)
    assert here.run("status", "--conflicts").out == "Nothing is in conflict.\n"


def test_what_came_of_it_is_one_document_with_json(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    told = here.run("resolve", "apps", "db", "--take", "source", "--json").json
    (run,) = told.pop("runs")
    assert told == {"path": "db", "settled": True, "rule": "the source was taken by hand"}
    assert (run["trigger"], run["status"], run["written"], run["unsettled"]) == ("resolve", "succeeded", 1, [])


def test_a_side_that_changed_since_is_not_overwritten(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    differ(here, hub="4")
    ended = here.run("resolve", "apps", "db", "--take", "target")
    assert ended.code == 1
    assert "db is in conflict again: a side has changed since" in ended.out
    assert "`vaultferry status apps --conflicts` shows how." in ended.out
    assert held(here) == {"hub": "4", "east": "2"}
    told = here.run("resolve", "apps", "db", "--take", "target", "--json").json
    assert (told["settled"], told["rule"]) == (True, "east was taken by hand")


def test_a_decision_that_could_not_be_carried_out_is_kept(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    (here.path / "east.vault").rename(here.path / "east.away")
    (here.path / "east.vault").mkdir()
    ended = here.run("resolve", "apps", "db", "--take", "source")
    assert ended.code == 1
    assert "db is not settled yet; the decision is kept, and `vaultferry sync apps` carries it out" in ended.out
    (here.path / "east.vault").rmdir()
    (here.path / "east.away").rename(here.path / "east.vault")
    here.run("sync", "apps")
    assert held(here) == {"hub": "1", "east": "1"}


def test_a_run_on_its_way_is_joined_and_followed_by_one_that_carries_the_decision_out(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")

    async def passed_by(app: App) -> str:
        """A run that is past the path: nothing of it is left to do but to end."""
        run = await app.engine.runs.start("apps", trigger="timer", paths=["other"])
        await app.store.save_run(replace(run, status=RunStatus.PLANNING))
        return run.run_id

    run_id = in_app(here, passed_by)
    ended = here.run("resolve", "apps", "db", "--take", "source", "--json")
    assert f"going on with run {run_id}" in ended.err
    assert (ended.code, ended.json["settled"]) == (0, True)
    assert [run["trigger"] for run in ended.json["runs"]] == ["timer", "resolve"]
    assert held(here) == {"hub": "1", "east": "1"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["apps", "db"],
        ["apps", "db", "--take", "both"],
        ["apps", "--take", "source"],
        ["apps", "db", "--take", "source", "--target", "east"],
        ["apps", "db", "--take", "target", "--target", "nowhere"],
        ["nowhere", "db", "--take", "source"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2_and_begins_nothing(here: Here, arguments: list[str]) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    assert here.run("resolve", *arguments).code == 2
    assert here.run("status", "--conflicts", "--json").json["items"][0]["decided"] is None


def test_a_paused_sync_takes_no_decision(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    here.run("pause", "apps")
    refused = here.run("resolve", "apps", "db", "--take", "source")
    assert (refused.code, "is paused" in refused.err) == (1, True)


# --- afterwards ---------------------------------------------------------------------------------------------------


def test_the_history_tells_which_side_was_taken_and_why(here: Here) -> None:
    differ(here, hub="1", east="2")
    here.run("sync", "apps")
    here.run("resolve", "apps", "db", "--take", "target")
    told = here.run("history", "apps", "--path", "db").out
    assert "  changed on several sides (conflict: manual)\n" in told
    assert "  east taken over source: east was taken by hand\n" in told
    # What was overwritten was not created; the arrow says who gave.
    assert re.search(r"  update +db +east +\d+ ← \d+ +in_sync", told)
    rows = here.run("history", "apps", "--path", "db", "--json").json["items"]
    details: list[Any] = [row["detail"] for row in rows if row["action"] in ("conflict", "resolve")]
    assert [detail["taken"] for detail in details] == ["east", None]
    assert {side["side"] for detail in details for side in detail["sides"]} == {"source", "east"}
    assert all(row["detail"] is None for row in rows if row["action"] not in ("conflict", "resolve"))
    assert CANARY not in told + json.dumps(rows)
    assert here.run("history", "--verify").code == 0


def test_a_row_that_says_nothing_but_its_rule_shows_that(here: Here) -> None:
    detail = json.dumps({"rule": "the rule", "taken": None, "sides": []})
    row = ObjectState("apps", "east", "db", status=ObjectStatus.CONFLICT)
    event = Event(Action.CONFLICT, ObjectStatus.CONFLICT, None, detail=detail)
    in_app(here, lambda app: app.store.save_objects([Save(row, event)]))
    assert here.run("history", "apps").out.rstrip().endswith("  the rule")


def test_a_thousand_conflicts_are_listed_too(here: Here) -> None:
    sides = (Sight("source", "f", "7", "ab" * 32), Sight("east", "g", "8", "cd" * 32))
    rows = [
        ObjectState("apps", "east", f"p{n:04}", status=ObjectStatus.CONFLICT, contested=Contested(sides))
        for n in range(1_000)
    ]
    in_app(here, lambda app: app.store.save_objects([Save(row) for row in rows]))
    told = here.run("status", "apps", "--conflicts").out
    assert told.endswith("1,000 secrets in conflict.\n")
    assert [line for line in told.splitlines() if line.startswith("apps: ")] == [f"apps: p{n:04}" for n in range(1_000)]
