"""`python -m tests.constraints`: the newest versions that requirements.txt allows, and all that they need.

To be run by the oldest Python that is supported: what another one needs instead is looked up for that, alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# What requirements.txt came to, and all that it needs, for installations that are the same everywhere:
#   pip install -r requirements.txt -c constraints.txt
# `make constraints` writes it anew.
"""


def resolve(*arguments: str) -> dict[str, str]:
    """Versions by name, as pip would install them. Nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    ended = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True, text=True)
    found = [each["metadata"] for each in json.loads(ended.stdout)["install"]]
    return {each["name"].lower().replace("_", "-"): each["version"] for each in found}


def main() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    marked = [each for line in lines if line.strip() and not line.startswith("#") if (each := Requirement(line)).marker]
    here = resolve("-r", str(ROOT / "requirements.txt"))
    pins = {f"{name}=={version}" for name, version in here.items()}
    for requirement in marked:
        name, marker = requirement.name.lower(), requirement.marker
        assert marker is not None
        pins.discard(f"{name}=={here[name]}")
        if marker.evaluate():
            pins.add(f"{name}=={here[name]}; {marker}")
        else:
            options = ("--no-deps", "--ignore-requires-python")
            (version,) = resolve(*options, f"{name}{requirement.specifier}").values()
            pins.add(f"{name}=={version}; {marker}")
    (ROOT / "constraints.txt").write_text(HEADER + "".join(f"{pin}\n" for pin in sorted(pins)), "utf-8")


if __name__ == "__main__":
    main()
