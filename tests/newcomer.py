"""Does what README.md tells a newcomer to do: in a clean clone, in an empty home directory, word for word.

Its commands are those of the blocks below `<!-- newcomer -->`, which no reader sees. What needs a vault or a cloud of the
reader's own is in other blocks. It runs with a bare Python, as nothing is installed yet: `make newcomer`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- newcomer -->"
_BLOCK = re.compile(rf"^{MARK}\n(.*?\n?)```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
_KEPT = re.compile(r"PATH|LANG|LC_\w+|TERM|TMPDIR|PIP_\w+|UV_\w+|\w+_proxy|\w+_PROXY|\w*SSL\w*|\w+_CA_BUNDLE", re.ASCII)
"""What is a machine's and not a person's: where programs are, how they speak, and how the network is reached."""


def commands(text: str) -> Iterator[str]:
    """What the marked blocks of a page have behind their prompts. Raises ValueError for a mark that has no block."""
    blocks = _BLOCK.findall(text)
    if len(blocks) != text.count(MARK) or any(between.strip() for between, _ in blocks):
        raise ValueError(f"each {MARK} stands right above a block of `console`")
    for _, block in blocks:
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line[2:]


def environment(home: Path, outside: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in outside.items() if _KEPT.fullmatch(name)}
    # This checkout may have an environment of its own, and it may be active.
    path = [each for each in kept["PATH"].split(os.pathsep) if not Path(each).is_relative_to(ROOT)]
    folders = {"CACHE": ".cache", "CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state"}
    xdg = {f"XDG_{name}_HOME": str(home / folder) for name, folder in folders.items()}
    return kept | xdg | {"PATH": os.pathsep.join(path), "HOME": str(home)}


def follow(checkout: Path, folder: Path, leave_out: tuple[str, ...] = ()) -> int:
    """Clone what is committed into an empty folder and do what it tells. The exit code of the first command that fails."""
    home, clone = folder / "home", folder / "clone"
    home.mkdir()
    env = environment(home, os.environ)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", checkout.as_uri(), str(clone)], env=env, check=True)
    script = ""
    for command in commands((clone / "README.md").read_text("utf-8")):
        told = shlex.quote(f"\n$ {command}")
        if command.partition("#")[0].strip() in leave_out:
            script += f"printf '%s   (left out)\\n' {told}\n"
        else:
            # In one shell, as at a prompt; `set -e` would pass over what fails in front of an &&.
            script += f"printf '%s\\n' {told}\n{command}\ncode=$?; [ $code = 0 ] || exit $code\n"
    return subprocess.run(["bash", "--noprofile", "--norc", "-c", script], cwd=clone, env=env, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Follow README.md in a clean clone and an empty home directory.")
    parser.add_argument("--leave-out", metavar="COMMAND", action="append", default=[], help="such as 'make test'")
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder:
        code = follow(ROOT, Path(folder), tuple(given.leave_out))
    told = "All of it works" if code == 0 else f"That ended with {code}"
    print(f"\n{told}, after {time.monotonic() - begun:.0f} s.", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
