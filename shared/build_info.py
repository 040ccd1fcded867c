"""Which build this is: what /health and `--version` tell."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import VERSION

BUILD_FILE = Path(__file__).parent.parent / "_build.json"
"""`{"commit": "…", "date": "…"}`, written by infra/build_info.py before a package is made."""

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True)
class BuildInfo:
    version: str
    commit: str | None
    date: str | None

    def __str__(self) -> str:
        return f"{self.version} (commit {self.commit or 'unknown'}, built {self.date or 'unknown'})"


def build_info(env: Mapping[str, str] = os.environ, file: Path = BUILD_FILE) -> BuildInfo:
    """From `VAULTFERRY_COMMIT` and `VAULTFERRY_BUILD_DATE`, else from the checkout that this is, else from `_build.json`."""
    told = _told(file)
    head = _head(file.parent / ".git")
    if head is not None and told.get("commit") != head:
        # What an earlier build left here.
        told = {"commit": head}
    commit = env.get("VAULTFERRY_COMMIT") or told.get("commit")
    date = env.get("VAULTFERRY_BUILD_DATE") or told.get("date")
    return BuildInfo(VERSION, str(commit) if commit else None, str(date) if date else None)


def _told(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _head(git: Path) -> str | None:
    """The commit that is checked out, where git keeps it in files: https://git-scm.com/docs/gitrepository-layout."""
    try:
        found = (git / "HEAD").read_text("utf-8").strip()
        if name := found.removeprefix("ref: ") if found.startswith("ref: ") else "":
            loose = git / name
            packed = "" if loose.is_file() else (git / "packed-refs").read_text("utf-8")
            lines = {ref: commit for commit, _, ref in (line.partition(" ") for line in packed.splitlines())}
            found = loose.read_text("utf-8").strip() if loose.is_file() else lines.get(name, "")
    except (OSError, ValueError):
        return None
    return found if _COMMIT.fullmatch(found) else None
