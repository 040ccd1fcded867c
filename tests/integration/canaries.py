"""Recognisable values, and a searcher that finds them in whatever they were written in."""

from __future__ import annotations

import base64
import io
import json
import logging
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from shared.logs import log_to

HEAD = 12
"""Characters that are enough to know a canary by: what cuts a text short does not hide it."""


def forms(canary: str) -> set[bytes]:
    """How a value may look where it should not be."""
    texts = {canary, canary[:HEAD], json.dumps(canary)[1:-1], repr(canary)[1:-1], quote(canary), quote_plus(canary)}
    found = {text.encode() for text in texts}
    for shift in range(3):
        # In base64 a text looks different at each of three offsets, and its ends depend on what is beside it.
        encoded = base64.b64encode(b"\0" * shift + canary.encode()).decode()
        middle = encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]
        found |= {middle.encode(), middle.replace("+", "-").replace("/", "_").encode()}
    found |= {canary.encode().hex().encode(), canary.encode("utf-16-le")}
    return {form for form in found if len(form) >= HEAD}


class Searcher:
    """Keeps what was seen, and says which canaries are in it, and where."""

    def __init__(self, canaries: Iterable[str]) -> None:
        self.forms = {canary: forms(canary) for canary in canaries}
        self.seen: list[tuple[str, bytes]] = []

    def add(self, where: str, what: Any) -> None:
        data = what if isinstance(what, bytes) else str(what).encode("utf-8", "surrogatepass")
        self.seen.append((where, data))

    def add_exception(self, where: str, error: BaseException) -> None:
        """Its traceback as it is shown, and all that hangs on it, suppressed or not."""
        self.add(f"{where}: traceback", "".join(traceback.format_exception(error)))
        waiting, known = [error], set()
        while waiting:
            one = waiting.pop()
            if id(one) in known:
                continue
            known.add(id(one))
            self.add(f"{where}: {type(one).__name__}", f"{one} {one!r} {one.args!r} {getattr(one, '__dict__', '')}")
            waiting += [each for each in (one.__cause__, one.__context__) if each is not None]
            waiting += getattr(one, "exceptions", ())

    def add_files(self, folder: Path, *but: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in but:
                self.add(f"file {path.name}", path.read_bytes())

    def found(self) -> list[str]:
        """Where a canary was seen, without saying what it is."""
        return [
            f"canary {number} in {where}"
            for number, (_, looks) in enumerate(self.forms.items())
            for where, data in self.seen
            if any(look in data for look in looks)
        ]


class Logs(logging.Handler):
    """Everything that is logged at debug level: by the product's own formatter, and raw."""

    def __init__(self, searcher: Searcher) -> None:
        super().__init__(logging.DEBUG)
        self._searcher = searcher
        self._lines = io.StringIO()

    def __enter__(self) -> Logs:
        self._level = logging.getLogger().level
        log_to(self._lines, "debug", {})
        logging.getLogger("vaultferry").addHandler(self)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        ours = logging.getLogger("vaultferry")
        for handler in list(ours.handlers):
            if handler is self or getattr(handler, "of_vaultferry", False):
                ours.removeHandler(handler)
        ours.propagate = True
        ours.setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(self)
        self._searcher.add("the log as JSON", self._lines.getvalue())

    @property
    def text(self) -> str:
        return self._lines.getvalue()

    def emit(self, record: logging.LogRecord) -> None:
        # Also what no formatter shows today: arguments, extra fields, the exception.
        self._searcher.add(f"a record of {record.name}", f"{self.format(record)} {record.__dict__!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self._searcher.add_exception(f"a record of {record.name}", record.exc_info[1])
