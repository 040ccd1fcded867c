"""What the program logs while a command runs: lines for people, on standard error. (`serve` writes JSON: `shared.logs`.)"""

from __future__ import annotations

import logging
import sys

from shared.cli.output import printable
from shared.logs import redact_text

PLACES = ("sync", "run", "target", "path", "attempt")


class ToStderr(logging.Handler):
    """One line a record. Standard error is looked up each time, for a progress bar replaces it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        # Only the first line, and no traceback: what others log about an exception repeats its text.
        message = record.getMessage().partition("\n")[0]
        places = " ".join(f"{name}={value}" for name in PLACES if (value := getattr(record, name, None)) is not None)
        text = f"{record.levelname.lower()}: {message}" + (f" [{places}]" if places else "")
        try:
            sys.stderr.write(printable(redact_text(text)) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)


def to_stderr(level: str) -> None:
    """Show what is at least as grave as `level`; of other packages, warnings and worse at most."""
    handler = ToStderr(level.upper())
    handler.addFilter(lambda record: record.name.startswith("vaultferry") or record.levelno >= logging.WARNING)
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("vaultferry").setLevel(level.upper())
    logging.raiseExceptions = False
