"""Pure: the globs and expressions that choose paths and fields."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A filter as a regular expression for the whole path.

    `*` and `?` stop at `/`, `**` does not; `**/` also stands for no folder. `regex:` gives an expression as it is.
    Raises re.error.
    """
    if pattern.startswith("regex:"):
        return re.compile(pattern.removeprefix("regex:"))
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        else:
            char = pattern[at]
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
            at += 1
    return re.compile("".join(parts), re.DOTALL)


def matching(patterns: Iterable[str], text: str) -> str | None:
    """The first pattern that matches the whole text."""
    for pattern in patterns:
        if compile_pattern(pattern).fullmatch(text):
            return pattern
    return None
