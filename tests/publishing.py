"""What `func azure functionapp publish` would upload, by .funcignore."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pathspec import PathSpec

ROOT = Path(__file__).resolve().parents[1]


def by_git(lines: Iterable[str]) -> Callable[[str], bool]:
    """Whether a file is left out, as git reads such lines."""
    return PathSpec.from_lines("gitignore", lines).match_file


def by_core_tools(lines: Iterable[str]) -> Callable[[str], bool]:
    """The same, as the Azure Functions Core Tools read them: a line is what a path may begin with.

    https://github.com/Azure/azure-functions-core-tools/blob/main/src/Azure.Functions.Cli/Common/GitIgnoreParser.cs
    """
    kept = [line.strip().removeprefix("/") for line in lines if line.strip() and not line.startswith("#")]
    assert not any(line.startswith("!") for line in kept)
    parts = [re.escape(line).replace(r"\*\*", ".+").replace(r"\*", "[^/]+") for line in kept]
    pattern = re.compile("|".join(f"(?:{part})" for part in parts))
    return lambda path: pattern.match(path) is not None


def rules() -> list[str]:
    return (ROOT / ".funcignore").read_text("utf-8").splitlines()


def files(folder: Path, left_out: Callable[[str], bool]) -> list[str]:
    """The paths below a folder that would be uploaded."""
    found = []
    for place, names, here in os.walk(folder):
        inside = Path(place).relative_to(folder)
        # Of a folder that is left out, nothing can come in: no need to walk through a virtual environment.
        names[:] = [name for name in names if not left_out(f"{(inside / name).as_posix()}/x")]
        found += [(inside / name).as_posix() for name in here if not left_out((inside / name).as_posix())]
    return sorted(found)


def build(package: Path) -> int:
    """Write the zip that would be published. Returns its size in bytes."""
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files(ROOT, by_core_tools(rules())):
            archive.write(ROOT / name, name)
    return package.stat().st_size
