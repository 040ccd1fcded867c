"""What plays the newcomer finds README.md's commands, and starts from nothing but the machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import newcomer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def words(command: str) -> str:
    return command.partition("#")[0].strip()


def test_the_commands_of_the_readme_that_need_no_vault_are_followed() -> None:
    found = [words(command) for command in newcomer.commands(README)]
    assert [each.partition(" --source")[0] for each in found] == [
        "make demo", "make test", "make install && . .venv/bin/activate", "vaultferry init", "export VAULT_TOKEN=…",
        "vaultferry validate",
    ]  # fmt: skip
    # The others need a reader's own: a vault, a Vault's audit device, an account, or a program that stays.
    rest = {words(line[2:]) for line in README.splitlines() if line.startswith("$ ")} - set(found)
    needs = r"vaultferry (check|plan|sync|setup|serve)\b|vault |func |make (azurite|build-info)$|cp local\.settings"
    assert [each for each in rest if not re.match(needs, each)] == []


@pytest.mark.parametrize(
    "page",
    [
        "<!-- newcomer -->\n",
        "<!-- newcomer -->\ntext\n```console\n$ true\n```\n",
        "<!-- newcomer -->\n```yaml\na: b\n```\n",
    ],
    ids=["no block", "text between", "another language"],
)
def test_a_mark_that_marks_nothing_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="right above a block"):
        list(newcomer.commands(page))


def checkout(folder: Path, *commands: str) -> Path:
    """A repository whose README.md has these."""
    folder.mkdir()
    lines = "\n".join(f"$ {command}" for command in commands)
    (folder / "README.md").write_text(f"# It\n\n<!-- newcomer -->\n```console\n{lines}\n```\n", "utf-8")
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "--quiet"], ["add", "README.md"], ["commit", "--quiet", "--message", "it"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


def follow(tmp_path: Path, *commands: str, leave_out: tuple[str, ...] = ()) -> int:
    place = tmp_path / "place"
    place.mkdir()
    return newcomer.follow(checkout(tmp_path / "checkout", *commands), place, leave_out)


def test_commands_share_a_shell_in_the_clone_and_what_fails_ends_it(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    assert follow(tmp_path, "export A=1", f'test -d .git && echo "$A" > {seen}', "false && true", f"rm {seen}") == 1
    assert seen.read_text() == "1\n"


def test_what_is_left_out_is_not_done(tmp_path: Path) -> None:
    assert follow(tmp_path, "true", "false   # which fails", leave_out=("false",)) == 0


def test_nothing_of_a_person_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("VAULT_TOKEN", "VAULTFERRY_STORE", "AzureWebJobsStorage", "VIRTUAL_ENV", "PYTHONPATH"):
        monkeypatch.setenv(name, "of somebody")
    seen = tmp_path / "seen"
    assert follow(tmp_path, f"env > {seen}", 'test -z "$(ls -A ~)"') == 0
    text = seen.read_text("utf-8")
    assert "of somebody" not in text
    assert str(ROOT / ".venv") not in text
    given = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert {name for name in given if name.startswith("XDG_")} == {f"XDG_{each}_HOME" for each in
                                                                   ("CACHE", "CONFIG", "DATA", "STATE")}  # fmt: skip
    assert given["HOME"] == str(tmp_path / "place" / "home")
