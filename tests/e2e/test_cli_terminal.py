"""What a person at a terminal sees, which is more than a pipe gets."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

from tests.cli_world import PROGRAM, Folder

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(folder: Folder, *arguments: str) -> tuple[int, str]:
    """A command's exit code and all that it wrote to a terminal of eighty columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder.path,
        env=folder.environment() | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
    os.close(ours)
    return process.wait(60), written.decode()


def test_a_terminal_gets_a_bar_colours_and_a_table_that_fits(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.configure()
    folder.put({f"apps/s{n}": {"value": str(n)} for n in range(3)})
    code, plan = on_terminal(folder, "plan")
    assert code == 0
    assert "+" in plan
    code, written = on_terminal(folder, "sync")
    assert code == 0
    assert "\x1b[" in written
    shown = _ESCAPES.sub("", written)
    assert "━" in shown
    assert "3/3" in shown
    table = [line for line in re.split(r"[\r\n]+", shown) if "succeeded" in line]
    assert len(table) == 1
    assert len(table[0].rstrip()) <= 80
