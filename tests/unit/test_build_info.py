"""Which commit runs: told by the environment, by the checkout, or by a file in the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from shared import VERSION
from shared.build_info import BuildInfo, build_info

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "build_info.py"
SOMEBODY = ("-c", "user.name=n", "-c", "user.email=n@example.com", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *SOMEBODY, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    return tmp_path


def told(folder: Path, **env: str) -> tuple[str | None, str | None]:
    found = build_info(env, folder / "_build.json")
    assert found.version == VERSION
    return found.commit, found.date


def test_without_anything_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    assert told(tmp_path) == (None, None)
    assert str(build_info({}, tmp_path / "_build.json")) == f"{VERSION} (commit unknown, built unknown)"


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_broken_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "_build.json").write_text(text)
    assert told(tmp_path) == (None, None)


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "_build.json").write_text('{"commit": "abc", "date": "2026-01-01"}')
    assert told(tmp_path) == ("abc", "2026-01-01")
    assert told(tmp_path, VAULTFERRY_COMMIT="def", VAULTFERRY_BUILD_DATE="2026-02-02") == ("def", "2026-02-02")


def test_a_checkout_tells_its_own_commit_however_git_keeps_it(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert told(checkout) == (head, None)
    git(checkout, "pack-refs", "--all")
    assert told(checkout) == (head, None)
    git(checkout, "checkout", "-q", "--detach")
    assert told(checkout) == (head, None)


def test_a_file_that_an_earlier_build_left_in_a_checkout_is_not_believed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "_build.json").write_text(json.dumps({"commit": head, "date": "2026-01-01"}))
    assert told(checkout) == (head, "2026-01-01")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "second")
    assert told(checkout) == (git(checkout, "rev-parse", "HEAD"), None)


def test_a_checkout_without_a_commit_tells_nothing(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert told(tmp_path) == (None, None)


# --- the file that is packed ----------------------------------------------------------------------------------------


def write(script: Path, file: Path, **env: str) -> BuildInfo:
    """What a package tells that was made with this script."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "VAULTFERRY_"))}
    command = [sys.executable, str(script), str(file)]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**kept, **env})
    found = build_info({}, file)
    assert found.date is not None
    assert datetime.fromisoformat(found.date).tzinfo is not None
    return found


def test_it_says_what_is_checked_out_and_whether_that_was_changed(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = checkout / "infra" / SCRIPT.name
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    git(checkout, "add", "infra")
    git(checkout, "commit", "-q", "-m", "second")
    file = tmp_path_factory.mktemp("package") / "_build.json"
    head = git(checkout, "rev-parse", "HEAD")
    assert write(script, file).commit == head
    script.write_text(script.read_text() + "\n# changed\n")
    assert write(script, file).commit == f"{head}-dirty"


def test_outside_of_a_checkout_it_says_what_the_environment_says(tmp_path: Path) -> None:
    script = tmp_path / "infra" / SCRIPT.name
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    file = tmp_path / "_build.json"
    assert write(script, file, GIT_CEILING_DIRECTORIES=str(tmp_path.parent)).commit is None
    assert write(script, file, VAULTFERRY_COMMIT="abc1234").commit == "abc1234"
    assert write(script, file, PATH="").commit is None
