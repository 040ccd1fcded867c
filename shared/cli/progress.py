"""How far runs have come: bars on a terminal, a line every two seconds in a pipe."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.cli.output import Output, plural, printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from shared.model import Run

LINE_EVERY = 2.0
LONGEST_PAUSE = 30.0
"""Seconds between two lines that say the same."""
BAR_EVERY = 0.2
"""Seconds between two looks at the store."""
NOTICE_SHOWN = 10.0
"""Seconds that a notice without an end of its own is shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """A run as it is this moment."""

    run: Run
    planned: int
    done: int

    @property
    def stage(self) -> str:
        return str(self.run.status)


class Notices(logging.Handler):
    """Hears what planner and writer log about waits and retries, so that nobody wonders why nothing moves."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._latest: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Notices:
        logger = logging.getLogger("vaultferry")
        self._level = logger.level
        logger.setLevel(min(logger.level or logging.INFO, logging.INFO))
        logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logger = logging.getLogger("vaultferry")
        logger.removeHandler(self)
        logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        sync = getattr(record, "sync", None)
        if sync is None or not record.name.endswith((".planner", ".writer")) or getattr(record, "path", None):
            return
        waits = [value for value in record.args or () if isinstance(value, float)] if record.args else []
        until = time.monotonic() + (waits[0] + 1 if waits else NOTICE_SHOWN)
        self._latest[sync] = (record.getMessage(), until)

    def of(self, sync_id: str) -> str:
        """What this sync waits for; empty when it does not."""
        text, until = self._latest.get(sync_id, ("", 0.0))
        return printable(text) if time.monotonic() < until else ""


class Progress(ABC):
    """Shows looks. A context manager, for a terminal must be left as it was."""

    every: float

    def __init__(self, out: Output, note: Callable[[str], str]) -> None:
        """`note` says what a sync waits for, and nothing where it does not wait."""
        self.out = out
        self.note = note

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    @abstractmethod
    def show(self, looks: Mapping[str, Look]) -> None: ...


class Bars(Progress):
    every = BAR_EVERY

    def __init__(self, out: Output, note: Callable[[str], str], *, leave: bool) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        super().__init__(out, note)
        self._tasks: dict[str, TaskID] = {}
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False, style="yellow", table_column=Column(no_wrap=True, ratio=1)),
            console=out.console,
            expand=True,
            transient=not leave,
        )

    def __enter__(self) -> Progress:
        self._rich.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._rich.stop()

    def show(self, looks: Mapping[str, Look]) -> None:
        for run_id, look in looks.items():
            if run_id not in self._tasks:
                self._tasks[run_id] = self._rich.add_task(look.run.sync_id, total=None, count="", note="")
            active = look.run.status.active
            note = self.note(look.run.sync_id) if active else ""
            if active and look.stage in ("queued", "planning"):
                note = note or "planning"
            count, done = f"{look.done:,}/{look.planned:,}", look.done
            total: int | None = look.planned
            if not look.planned:
                # Either nobody knows yet, or nothing is to be done: then the bar is full.
                count, total, done = ("", None, 0) if active else ("nothing to do", 1, 1)
            self._rich.update(self._tasks[run_id], total=total, completed=done, count=count, note=note)


class Lines(Progress):
    every = LINE_EVERY

    def __init__(self, out: Output, note: Callable[[str], str]) -> None:
        super().__init__(out, note)
        self._began = time.monotonic()
        self._told: dict[str, tuple[str, float, float]] = {}
        """By run: what was said last, when it may be said again, and how long that is."""

    def show(self, looks: Mapping[str, Look]) -> None:
        now = time.monotonic()
        for run_id, look in looks.items():
            if not look.run.status.active:
                continue
            done = f"{look.done:,} of {plural(look.planned, 'secret')} done" if look.planned else ""
            failed = f"{look.run.failed:,} failed" if look.run.failed else ""
            stage = look.stage if look.stage != "running" else ""
            said = ", ".join(part for part in (stage, done, failed) if part)
            before, due, pause = self._told.get(run_id, ("", 0.0, 0.0))
            if said == before and now < due:
                continue
            # What does not change is said ever more rarely.
            pause = min(2 * pause, LONGEST_PAUSE) if said == before else LINE_EVERY
            self._told[run_id] = said, now + pause - LINE_EVERY / 2, pause
            note = self.note(look.run.sync_id)
            self.out.line(f"{look.run.sync_id}: {said}, {now - self._began:.0f} s" + (f" ({note})" if note else ""))


def progress(out: Output, note: Callable[[str], str], *, leave: bool) -> Progress:
    """`leave` says whether bars stay on the terminal when all is done."""
    return Bars(out, note, leave=leave) if out.on_terminal else Lines(out, note)
