"""The package that is published: what is in it, and that it runs with nothing but requirements.txt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import publishing
from tests.publishing import ROOT, by_core_tools, by_git, files, rules

PUBLISHED = {"function_app.py", "host.json", "requirements.txt", "shared", "vaultferry.yaml", "_build.json"}
"""All that may be at the top of the package."""
KEPT_BACK = (
    ".env",
    ".env.production",
    ".azure/prod/.env",
    ".git/config",
    ".vscode/settings.json",
    "local.settings.json",
    "local.settings.prod.json",
    "vaultferry.db",
    "vaultferry.db-wal",
    "vaultferry.db.key",
    "backup.vault",
    "backup.vault.lock",
    "vaultferry.relay/spool.db",
    "vaultferry.relay/lock",
    ".azurite/__azurite_db_queue__.json",
    "site/index.html",
    "mkdocs.yml",
    "client.pem",
    "client.key",
    "shared/.env",
    "shared/client.pem",
    "shared/vaults/client.key",
    "shared/state.db",
    "shared/__pycache__/app.cpython-312.pyc",
    "__pycache__/function_app.cpython-312.pyc",
    "infra/prod.parameters.json",
    "tests/conftest.py",
    "sandbox/demo.py",
    "docs/deploying.md",
    "README.md",
)


def test_both_readings_of_the_ignore_file_leave_the_same_files() -> None:
    found = files(ROOT, by_core_tools(rules()))
    assert found == files(ROOT, by_git(rules()))
    assert {"function_app.py", "host.json", "requirements.txt", "shared/app.py"} <= set(found)


def test_nothing_is_published_but_the_app() -> None:
    found = {name.split("/")[0] for name in files(ROOT, by_core_tools(rules()))}
    assert found - PUBLISHED == set(), "add it to .funcignore, or to PUBLISHED if it runs in Azure"
    python = [name for name in files(ROOT, by_core_tools(rules())) if name.startswith("shared/")]
    assert [name for name in python if not name.endswith(".py")] == []


@pytest.mark.parametrize("name", KEPT_BACK)
def test_what_could_hold_a_secret_stays_here(name: str) -> None:
    assert by_core_tools(rules())(name)
    assert by_git(rules())(name)


@pytest.mark.parametrize(
    "name", ["function_app.py", "vaultferry.yaml", "_build.json", "shared/vaults/file.py", "shared/keys.py"]
)
def test_what_runs_is_published(name: str) -> None:
    assert not by_core_tools(rules())(name)
    assert not by_git(rules())(name)


CHECK = """
import json, pathlib, sys
import function_app
names = sorted(each.get_function_name() for each in function_app.app.get_functions())
here = pathlib.Path(function_app.__file__).parent
away = [str(module.__file__) for name, module in sys.modules.items() if name.split(".")[0] == "shared"
        and here not in pathlib.Path(module.__file__).parents]
print(json.dumps({"names": names, "away": away}))
"""
BUILD = """
from shared.build_info import build_info
print(build_info({}))
"""
LOAD_ALL = """
import importlib, pathlib
for path in sorted(pathlib.Path("shared").rglob("*.py")):
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""


@pytest.mark.real
def test_the_package_runs_with_nothing_but_its_requirements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "package.zip"
    size = publishing.build(package)
    unpacked = tmp_path / "wwwroot"
    with zipfile.ZipFile(package) as archive:
        archive.extractall(unpacked)
    example = (ROOT / "examples" / "vault-to-key-vault.yaml").read_text("utf-8")
    (unpacked / "vaultferry.yaml").write_text(example, "utf-8")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VAULT_TOKEN": "t"}
    env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}

    def run(*command: str | Path) -> str:
        ended = subprocess.run(command, cwd=unpacked, env=env, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt")
    run(python, ROOT / "infra" / "build_info.py", unpacked / "_build.json")
    assert re.search(r"commit [0-9a-f]{40}(-dirty)?, built 2\d{3}-", run(python, "-c", BUILD))
    found = json.loads(run(python, "-c", CHECK))
    assert found["away"] == []
    assert {"http_health", "plan", "write_prod", "poison_write_prod", "timer_hub_to_prod"} <= set(found["names"])
    run(python, "-W", "error::ImportWarning", "-c", LOAD_ALL)
    run(python, "-m", "pip", "check")
    installed = sum(path.stat().st_size for path in (tmp_path / "venv" / "lib").rglob("*") if path.is_file())
    with capsys.disabled():
        print(f"\npackage: {size / 1000:.0f} kB; with what it needs: {installed / 1e6:.0f} MB")
    assert size < 1_000_000
