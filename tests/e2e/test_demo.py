"""`make demo`, as a stranger runs it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_ends_well_within_a_minute_and_what_it_tells_to_try_works(tmp_path: Path) -> None:
    folder = tmp_path / ".demo"
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "sandbox.demo", "--folder", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert time.monotonic() - began < 60
    assert "\x1b" not in ended.stdout
    for command in ("validate", "check", "plan", "sync", "history", "status"):
        assert f"$ vaultferry {command}" in ended.stdout
    assert "one was written and one deleted in each destination" in ended.stdout
    with sqlite3.connect(folder / "vaultferry.db") as database:
        (objects,) = database.execute("SELECT count(DISTINCT path) FROM sync_objects").fetchone()
    database.close()
    assert objects >= 40

    following = re.search(r"^Try next: +(.+)$", ended.stdout, re.MULTILINE)
    assert following is not None
    tried = subprocess.run(following[1], shell=True, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert tried.returncode == 0, tried.stderr
    actions = [line.split()[2] for line in tried.stdout.splitlines()[1:]]
    assert sorted(actions) == ["create", "create", "update", "update"]
