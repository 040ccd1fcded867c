"""docs/adding-a-vault.md, done: the kind that it builds is put into a copy of the sources, and passes the contract suite."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.model import Secret
from tests.cli_world import KEY, Folder

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-vault.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"<!-- source: (.+?) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources, with what the page says to add."""
    place = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("shared", "sandbox", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("function_app.py", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, place)
    for name in ("shared/vaults/folder.py", "tests/contract/vaults/folder.py"):
        (place / name).write_text(BLOCKS[name], "utf-8")
    conftest = place / "tests" / "contract" / "vaults" / "conftest.py"
    text = conftest.read_text("utf-8")
    text = text.replace("import azure_key_vault, file, ", "import azure_key_vault, file, folder, ")
    text = text.replace('    "file": (', f'{BLOCKS["line of conftest.py"]}    "file": (')
    conftest.write_text(text, "utf-8")
    return place


def run(place: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(place), "BACKUP_KEY": KEY, "COLUMNS": "160", "PYTHONDONTWRITEBYTECODE": "1"}
    env = {name: value for name, value in env.items() if not name.startswith(("VAULTFERRY", "PYTEST_XDIST"))}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd or place, env=env, capture_output=True, text=True, timeout=120
    )


def test_the_kind_passes_the_contract_suite_and_the_rules_of_the_layout(copy: Path) -> None:
    # A test whose own name has the word "folder" in it is one for all kinds, and the servers of some may not be here.
    fast = ("-m", "not real", "-k", "folder", "-v")
    ended = run(copy, "pytest", "-p", "no:cacheprovider", "-n", "0", "tests/contract/vaults", *fast)
    assert ended.returncode == 0, ended.stdout[-5000:]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
    layout = run(copy, "pytest", "-p", "no:cacheprovider", "-n", "0", "tests/unit/test_architecture.py")
    assert layout.returncode == 0, layout.stdout[-5000:]


def test_the_code_on_the_page_is_in_the_projects_style(copy: Path) -> None:
    code = [str(copy / name) for name in ("shared/vaults/folder.py", "tests/contract/vaults/folder.py")]
    for command in (["ruff", "check", *code], ["ruff", "format", "--check", *code], ["mypy", "--strict", code[0]]):
        ended = run(copy, *command)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_kind_is_in_the_configuration_at_once(copy: Path, tmp_path: Path) -> None:
    place = tmp_path / "here"
    (place / "secrets").mkdir(parents=True)
    (place / "secrets").chmod(0o700)
    (place / "vaultferry.yaml").write_text(BLOCKS["vaultferry.yaml"], "utf-8")
    folder = Folder(place)
    folder.put({"apps/db": {"user": "u", "password": "p"}}, vault="backup")
    program = "import shared.cli; shared.cli.main()"
    (copy / "ferry.py").write_text(program, "utf-8")
    schema = run(copy, "ferry", "validate", "--schema", cwd=place)
    assert "A folder of JSON files." in schema.stdout
    checked = run(copy, "ferry", "check", cwd=place)
    assert "the folder can be written to" in checked.stdout, checked.stdout + checked.stderr
    synced = run(copy, "ferry", "sync", "--json", cwd=place)
    assert synced.returncode == 0, synced.stderr
    assert json.loads((place / "secrets" / "db.json").read_text()) == Secret({"user": "u", "password": "p"}).fields
