"""Which build this is: what /health and `--version` tell."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import VERSION

BUILD_FILE = Path(__file__).parent.parent / "_build.json"
"""`{"commit": "…", "date": "…"}`, written by whoever packs an archive without its git folder."""


@dataclass(frozen=True, slots=True)
class BuildInfo:
    version: str
    commit: str | None
    date: str | None


def build_info(env: Mapping[str, str] = os.environ, file: Path = BUILD_FILE) -> BuildInfo:
    """From `VAULTFERRY_COMMIT` and `VAULTFERRY_BUILD_DATE`, else from `_build.json` beside function_app.py."""
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        told = None
    told = told if isinstance(told, dict) else {}
    commit = env.get("VAULTFERRY_COMMIT") or told.get("commit")
    date = env.get("VAULTFERRY_BUILD_DATE") or told.get("date")
    return BuildInfo(VERSION, str(commit) if commit else None, str(date) if date else None)
