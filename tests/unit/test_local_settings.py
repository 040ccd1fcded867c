"""local.settings.json: what `func start` reads in the current folder, commands read there too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner, Result

from shared.azure_storage import blob_service, queue_service, table_service
from shared.cli import app as commands
from shared.config import load
from shared.errors import ConfigError
from shared.host_settings import LOCAL_SETTINGS, read_local_settings
from tests.cli_world import CONFIG, KEY, loggers_as_before
from tests.servers.azurite import PORTS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "local.settings.example.json"
CANARY = "canary-51c0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a configuration; a command's changes to the environment end with the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    with loggers_as_before(), mock.patch.dict(os.environ):
        for name in ("VAULTFERRY_CONFIG", "FILE_KEY", "VAULTFERRY_STORE", "AzureWebJobsStorage"):
            os.environ.pop(name, None)
        yield tmp_path


def settings(folder: Path, values: Any, **more: Any) -> Path:
    file = folder / LOCAL_SETTINGS
    file.write_text(json.dumps({"IsEncrypted": False, "Values": values, **more}))
    return file


def validate(*options: str) -> Result:
    return CliRunner().invoke(commands, [*options, "validate"], prog_name="vaultferry")


def test_a_command_has_the_environment_that_the_file_sets(folder: Path) -> None:
    assert validate().exit_code == 2
    settings(folder, {"VAULTFERRY_CONFIG": "mine.yaml", "FILE_KEY": KEY})
    ended = validate()
    assert (ended.exit_code, ended.stderr) == (0, "")


def test_the_environment_goes_before_the_file(folder: Path) -> None:
    settings(folder, {"VAULTFERRY_CONFIG": "missing.yaml", "FILE_KEY": KEY})
    os.environ["VAULTFERRY_CONFIG"] = "mine.yaml"
    assert validate().exit_code == 0
    assert os.environ["VAULTFERRY_CONFIG"] == "mine.yaml"


def test_what_is_empty_is_as_if_it_were_not_there_on_either_side(folder: Path) -> None:
    settings(folder, {"VAULTFERRY_CONFIG": "mine.yaml", "FILE_KEY": ""})
    ended = validate()
    assert (ended.exit_code, "FILE_KEY is not set" in ended.stderr) == (2, True), ended.stderr
    settings(folder, {"VAULTFERRY_CONFIG": "mine.yaml", "FILE_KEY": KEY})
    os.environ["FILE_KEY"] = ""
    assert validate().exit_code == 0


def test_the_log_says_which_names_are_set_and_never_to_what(folder: Path) -> None:
    settings(folder, {"VAULTFERRY_CONFIG": "mine.yaml", "FILE_KEY": KEY, "OTHER": CANARY})
    ended = validate("--log-level", "info")
    assert "local.settings.json sets FILE_KEY, OTHER, VAULTFERRY_CONFIG" in " ".join(ended.stderr.split())
    assert CANARY not in ended.output
    assert KEY not in ended.output


def test_without_the_file_nothing_is_set(tmp_path: Path) -> None:
    assert read_local_settings(tmp_path / LOCAL_SETTINGS) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{{"Values":\n{CANARY}}}', "local.settings.json:2: not JSON"),
        ("", "local.settings.json:1: not JSON"),
        ("[" * 100_000, "local.settings.json is not JSON"),
        ("[]", 'must be {"Values"'),
        (f'{{"Values": ["{CANARY}"]}}', 'must be {"Values"'),
        (f'{{"Values": {{"A": ["{CANARY}"]}}}}', "A must be text"),
        ('{"Values": {"A": 1}}', "A must be text"),
        ('{"Values": {"A=B": "1"}}', "'A=B' can not be an environment variable"),
        (f'{{"Values": {{"A": "{CANARY}\\u0000"}}}}', "'A' can not be an environment variable"),
        ('{"Values": {"": "1"}}', "'' can not be an environment variable"),
        ('{"IsEncrypted": true, "Values": {"A": "CfDJ8"}}', "func settings decrypt"),
    ],
)
def test_a_file_that_is_wrong_is_told_of_and_not_quoted(folder: Path, text: str, told: str) -> None:
    (folder / LOCAL_SETTINGS).write_text(text)
    ended = validate("--json")
    assert ended.exit_code == 2
    assert told in json.loads(ended.stdout)["error"]
    assert CANARY not in ended.output
    with pytest.raises(ConfigError) as caught:
        read_local_settings(folder / LOCAL_SETTINGS)
    assert caught.value.__context__ is None


def test_a_file_that_can_not_be_read_is_told_of(folder: Path) -> None:
    (folder / LOCAL_SETTINGS).mkdir()
    ended = validate()
    assert ended.exit_code == 2
    assert "local.settings.json can not be read: Is a directory" in " ".join(ended.stderr.split())


# --- the example ----------------------------------------------------------------------------------------------------


def test_the_example_leaves_out_only_what_a_person_has_to_make_up(folder: Path) -> None:
    document = json.loads(EXAMPLE.read_text("utf-8"))
    assert {name for name, value in document["Values"].items() if not value} == {"VAULTFERRY_DIGEST_KEY", "VAULT_TOKEN"}
    # `func start` needs to be told which worker; nobody else does.
    assert document["Values"]["FUNCTIONS_WORKER_RUNTIME"] == "python"
    assert read_local_settings(EXAMPLE).keys() == document["Values"].keys() - {"VAULTFERRY_DIGEST_KEY", "VAULT_TOKEN"}
    env = {**read_local_settings(EXAMPLE), "VAULT_TOKEN": "t"}
    assert load(str(ROOT / "examples" / "vault-to-key-vault.yaml"), env).syncs


async def test_the_example_means_the_azurite_that_make_starts() -> None:
    env = read_local_settings(EXAMPLE)
    for service, port in ((blob_service, "blob"), (queue_service, "queue"), (table_service, "table")):
        client = service(env)
        await client.close()
        assert f"//127.0.0.1:{PORTS[port]}/" in f"{client.url}/"
