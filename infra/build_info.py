"""`python infra/build_info.py [FILE]`: which commit is packed and when, into _build.json, for /health and `--version`.

`make build-info` and azure.yaml run it before a package is made. Needs nothing but Python, and git where there is one.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """What is checked out, with "-dirty" behind it where files were changed since; None where nobody knows."""
    if given := os.environ.get("VAULTFERRY_COMMIT"):
        return given
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build.json"
    told = {"commit": commit(), "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    file.write_text(json.dumps(told) + "\n", "utf-8")
    sys.stdout.write(f"{file.name}: {told['commit'] or 'commit unknown'}, {told['date']}\n")


if __name__ == "__main__":
    main()
