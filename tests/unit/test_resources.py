"""`vaultferry resources`: the names that a deployment creates, and whether its parameters fit."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shared import jobs
from shared.cli import app as commands
from shared.jobs import WRITE_QUEUE_PREFIX
from shared.resources import resources
from tests.cli_world import loggers_as_before

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
vaults:
  hub: {kind: file, path: a.vault, key: "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"}
  prod: {kind: file, path: b.vault, key: "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"}
  back--up: {kind: file, path: c.vault, key: "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"}
syncs:
  one: {source: {vault: hub}, targets: [{vault: prod}, {vault: back--up}]}
  two: {source: {vault: hub}, targets: [{vault: prod, id: again, prefix: again/}], enabled: false}
"""
HASHED = "vaultferry-to-bf377b92f1fbb40b6463ce702d786592"
FITTING: dict[str, Any] = {"writtenVaults": ["prod", "back--up"], "queueNames": {"back--up": HASHED}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAULTFERRY_CONFIG", raising=False)
    (tmp_path / "vaultferry.yaml").write_text(CONFIG)
    with loggers_as_before():
        yield tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["resources", *arguments], prog_name="vaultferry")


def compared(folder: Path, **given: Any) -> Result:
    file = folder / "parameters.json"
    file.write_text(json.dumps({"parameters": {name: {"value": value} for name, value in given.items()}}))
    return run("--parameters", "parameters.json")


def test_it_prints_every_queue_table_and_container(folder: Path) -> None:
    found = json.loads(run("--json").stdout)
    assert found == {
        "queues": [
            *("vaultferry-plan", "vaultferry-events", "vaultferry-to-prod", HASHED),
            *("vaultferry-plan-poison", "vaultferry-events-poison", "vaultferry-to-prod-poison", f"{HASHED}-poison"),
        ],
        "tables": ["syncsrun", "syncschunk", "syncobjects", "synchistory", "syncsmeta"],
        "containers": ["vaultferry"],
        "parameters": {"writtenVaults": ["back--up", "prod"], "queueNames": {"back--up": HASHED}},
    }
    shown = run().stdout.splitlines()
    assert shown[:3] == ["Queues", "  vaultferry-plan", "  vaultferry-events"]
    assert shown[-2:] == ["Containers", "  vaultferry"]


def test_parameters_that_fit_are_fine_in_any_order(folder: Path) -> None:
    ended = compared(folder, environmentName="dev", alwaysReadyVaults=["prod"], watchedSyncs=["two"], **FITTING)
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.endswith("parameters.json fits vaultferry.yaml.\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"writtenVaults": ["back--up"]}, "writtenVaults lacks 'prod', which a sync writes: add it"),
        ({"writtenVaults": ["prod", "back--up", "hub"]}, "writtenVaults has 'hub', which no sync writes: remove it"),
        ({"queueNames": {}}, f"queueNames must say '{HASHED}' for 'back--up'"),
        ({"queueNames": {"back--up": "other"}}, f"queueNames must say '{HASHED}' for 'back--up'"),
        (
            {"queueNames": {"back--up": HASHED, "prod": "p"}},
            "queueNames has 'prod', whose queue needs no name: remove it",
        ),
        ({"alwaysReadyVaults": ["hub"]}, "alwaysReadyVaults has 'hub', which no sync writes: remove it"),
        ({"watchedSyncs": ["three"]}, "watchedSyncs has 'three', which is no sync of the configuration: remove it"),
    ],
)
def test_what_differs_is_told_and_fails(folder: Path, change: dict[str, Any], expected: str) -> None:
    ended = compared(folder, **(FITTING | change))
    assert ended.exit_code == 1
    assert f"differs: {expected}" in ended.stdout.splitlines()
    as_json = json.loads(run("--parameters", "parameters.json", "--json").stdout)
    assert (as_json["fits"], as_json["differences"]) == (False, [expected])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"parameters": []}', '{"parameters": {"a": 1}}', "using 'main.bicep'"]
)
def test_a_file_of_another_kind_is_wrong_use(folder: Path, text: str) -> None:
    (folder / "p.json").write_text(text)
    ended = run("--parameters", "p.json")
    assert ended.exit_code == 2
    assert "p.json is not a parameter file: expected JSON" in ended.stderr


def test_a_file_that_is_not_there_and_values_of_a_wrong_shape_are_wrong_use(folder: Path) -> None:
    ended = run("--parameters", "missing.json")
    assert (ended.exit_code, "missing.json can not be read" in ended.stderr) == (2, True)
    for name, value in (("writtenVaults", "prod"), ("writtenVaults", [1]), ("queueNames", ["x"]), ("watchedSyncs", {})):
        ended = compared(folder, **(FITTING | {name: value}))
        assert (ended.exit_code, f"{name} is not a" in ended.stderr) == (2, True)


def test_a_reference_to_a_key_vault_is_not_looked_into(folder: Path) -> None:
    file = folder / "p.json"
    secret = {"reference": {"keyVault": {"id": "/x"}, "secretName": "digest"}}
    file.write_text(json.dumps({"parameters": {"digestKey": secret, **{k: {"value": v} for k, v in FITTING.items()}}}))
    assert run("--parameters", "p.json").exit_code == 0


def test_no_name_of_the_storage_account_stands_anywhere_but_in_the_list() -> None:
    everything = resources(["x"])
    names = {*everything.queues, *everything.tables, WRITE_QUEUE_PREFIX}
    homes = {"shared/resources.py", "shared/jobs.py"}
    # What Bicep is told is compared with the list by a test of its own.
    homes.add("shared/cli/deploying.py")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in [ROOT / "function_app.py", *(ROOT / "shared").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and any(name == node.value for name in names)
    }
    assert found == homes


def test_queues_of_jobs_are_in_the_list_whatever_they_are_called() -> None:
    constants = {value for name, value in vars(jobs).items() if name.endswith("_QUEUE")}
    assert constants <= set(resources([]).queues)
