"""Dockerfiles as far as ours go: stages of instructions, without an engine.

https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL",
         "USER", "VOLUME", "WORKDIR"}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    line: int

    @property
    def flags(self) -> dict[str, str]:
        """`--name=value` at the beginning."""
        return dict(re.findall(r"--([a-z-]+)=(\S+)", self.text.removesuffix(self.rest)))

    @property
    def rest(self) -> str:
        return re.sub(r"^(?:--\S+\s+)*", "", self.text)

    @property
    def sources(self) -> list[str]:
        """What a COPY takes."""
        return self.rest.split()[:-1]

    @property
    def words(self) -> list[str]:
        """Of CMD and ENTRYPOINT in their JSON form, which alone passes signals on. Raises ValueError for the other."""
        words = json.loads(self.rest.removeprefix("CMD").strip())
        if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ValueError(self.text)
        return words


@dataclass(frozen=True)
class Stage:
    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def last(self, name: str) -> Instruction:
        return self.all(name)[-1]


@dataclass(frozen=True)
class Dockerfile:
    arguments: dict[str, str]
    """What stands before the first FROM."""
    stages: list[Stage]


def read(path: Path) -> Dockerfile:
    """Raises ValueError with the line of what it does not know."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for each in _instructions(path.read_text("utf-8")):
        if each.name not in KNOWN:
            raise ValueError(f"{path.name}:{each.line}: {each.name} is not an instruction that ours have")
        if each.name == "FROM":
            base, _, name = each.rest.partition(" AS ")
            stages.append(Stage(base, name or None))
        elif stages:
            stages[-1].instructions.append(each)
        elif each.name == "ARG":
            name, _, default = each.rest.partition("=")
            arguments[name] = default
        else:
            raise ValueError(f"{path.name}:{each.line}: {each.name} stands before FROM")
    return Dockerfile(arguments, stages)


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    waiting, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun if waiting else number
        waiting += " " + line.strip()
        if waiting.endswith("\\"):
            waiting = waiting[:-1].rstrip()
            continue
        name, _, rest = waiting.strip().partition(" ")
        found.append(Instruction(name, re.sub(r"\s+", " ", rest).strip(), begun))
        waiting = ""
    if waiting:
        raise ValueError(f"line {begun} is never ended")
    return found
