"""What a command shows: colours and tables on a terminal, plain lines that stay the same in a pipe, or one JSON document.

Names of secrets come from servers, so whatever could drive a terminal (escapes, direction marks) is made visible first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Part: TypeAlias = "str | tuple[str, str]"
"""Text, or text and its style on a terminal."""

GOOD, BAD, UNSURE, QUIET, STRONG = "green", "red", "yellow", "dim", "bold"

STATUS_STYLES = {
    "succeeded": GOOD,
    "in_sync": GOOD,
    "partial": UNSURE,
    "blocked": UNSURE,
    "pending": UNSURE,
    "conflict": UNSURE,
    "cancelled": UNSURE,
    "failed": BAD,
    "deleted": QUIET,
    "skipped": QUIET,
}


def printable(text: str) -> str:
    """The text with everything that is not a visible character written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def plural(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def when(moment: datetime | None) -> str:
    """A time in UTC, to the second."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def short(version: str) -> str:
    """A version as people tell them apart: Key Vault's have 32 digits."""
    return version if len(version) <= 8 else f"{version[:7]}…"


class Output:
    """Standard output and standard error of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    @cached_property
    def on_terminal(self) -> bool:
        return not self.as_json and sys.stdout.isatty()

    @cached_property
    def console(self) -> Console:
        return _console(sys.stdout)

    def json(self, document: Any) -> None:
        """The one document of `--json`."""
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        sys.stdout.flush()

    def line(self, *parts: Part) -> None:
        """One line for people: nothing with `--json`."""
        if not self.as_json:
            _line(sys.stdout, self.on_terminal, self.console if self.on_terminal else None, parts)

    def note(self, *parts: Part) -> None:
        """One line for people beside the result: on standard error, so that `--json` may have it too."""
        on_terminal = sys.stderr.isatty()
        _line(sys.stderr, on_terminal, _console(sys.stderr) if on_terminal else None, parts)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Part]],
        *,
        numbers: Collection[str] = (),
        wide: Collection[str] = (),
        seldom: Collection[str] = (),
    ) -> None:
        """Rows under headings; nothing with `--json`.

        `numbers` are set flush right. On a terminal, which is only so wide, the cells of `wide` columns may take several
        lines, and `seldom` columns are left out when they say nothing; in a pipe the columns are always the same.
        """
        if self.as_json:
            return
        cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
        if self.on_terminal:
            self._rich_table(columns, cells, numbers, wide, seldom)
            return
        from rich.cells import cell_len

        lines = [list(columns), *([printable(text) for text, _ in row] for row in cells)]
        widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            padded = []
            for name, text, width in zip(columns, line, widths, strict=True):
                space = " " * (width - cell_len(text))
                padded.append(space + text if name in numbers else text + space)
            sys.stdout.write("  ".join(padded).rstrip() + "\n")
        sys.stdout.flush()

    def _rich_table(
        self,
        columns: Sequence[str],
        cells: Sequence[Sequence[tuple[str, str]]],
        numbers: Collection[str],
        wide: Collection[str],
        seldom: Collection[str],
    ) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
        kept = [
            index
            for index, name in enumerate(columns)
            if name not in seldom or any(row[index][0] not in ("", "0") for row in cells)
        ]
        for name in (columns[index] for index in kept):
            justify: Literal["left", "right"] = "right" if name in numbers else "left"
            table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in wide)
        for row in cells:
            table.add_row(*(_text([row[index]]) for index in kept))
        self.console.print(table)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _line(stream: TextIO, on_terminal: bool, console: Console | None, parts: Sequence[Part]) -> None:
    if on_terminal and console is not None:
        console.print(_text(parts), soft_wrap=True)
        return
    stream.write("".join(_plain(part) for part in parts) + "\n")
    stream.flush()


def _plain(part: Part) -> str:
    return printable(part if isinstance(part, str) else part[0])


def _text(parts: Iterable[Part]) -> Text:
    from rich.text import Text

    text = Text()
    for part in parts:
        text.append(_plain(part), None if isinstance(part, str) else part[1])
    return text
