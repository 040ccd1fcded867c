"""What is wrong in a configuration file, said without repeating what the file says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from shared.errors import ConfigError

Place: TypeAlias = "tuple[str | int, ...]"
"""Where something stands in the file: keys and positions in lists, from the outside in."""

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to change: where it is, what was expected there, and what may help."""

    file: str
    line: int | None
    key: str
    """Dotted, as in `vaults.hub.auth.token` or `syncs.nightly.targets[0].prefix`; empty for the file as a whole."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        what = f"{self.key}: {self.message}" if self.key else self.message
        return f"{where}: {what} ({self.hint})" if self.hint else f"{where}: {what}"


class InvalidConfig(ConfigError):
    """The configuration can not be used. `problems` holds all that is wrong with it, in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__(self._text())

    def _text(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the configuration:\n{lines}"


def presentable(key: str) -> bool:
    """Whether a key looks like a key. What does not may be a secret that slipped to the left of a colon."""
    return _KEY.fullmatch(key) is not None


def dotted(place: Place) -> str:
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if presentable(step) else "(not shown)")
    return text


def closest(given: object, known: Iterable[str]) -> str:
    """A "did you mean" for what was given, or nothing. Names only what is known."""
    from difflib import get_close_matches

    choices = {choice.lower(): choice for choice in known}
    matches = get_close_matches(str(given).lower()[:100], choices, n=1)
    return f"did you mean '{choices[matches[0]]}'?" if matches else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
