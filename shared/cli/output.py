"""What a command shows: colours and tables on a terminal, plain lines that stay the same in a pipe, or one JSON document.

Names of secrets come from servers, so whatever could drive a terminal (escapes, direction marks) is made visible first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

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

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Part]], *, numbers: Iterable[str] = ()) -> None:
        """Rows under headings; `numbers` are the columns to set flush right. Nothing with `--json`."""
        if self.as_json:
            return
        right = {columns.index(name) for name in numbers}
        if self.on_terminal:
            self._rich_table(columns, rows, right)
            return
        from rich.cells import cell_len

        lines = [list(columns), *([_plain(cell) for cell in row] for row in rows)]
        widths = [max(cell_len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            cells = []
            for index, cell in enumerate(line):
                space = " " * (widths[index] - cell_len(cell))
                cells.append(space + cell if index in right else cell + space)
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
        sys.stdout.flush()

    def _rich_table(self, columns: Sequence[str], rows: Iterable[Sequence[Part]], right: set[int]) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
        for index, name in enumerate(columns):
            # A heading is never broken; what is long goes on in the next line of its cell.
            table.add_column(name, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_text([cell]) for cell in row))
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
