"""What is still to be forwarded, on the disk: one row for each changed path, one for each reason of a gap.

Rows are taken oldest first and removed once they were forwarded, unless they changed meanwhile: then they stay, and go to
the end of the line, so that a path that changes all the time holds up no other.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError
from shared.notices import AuditNotice, GapNotice
from shared.sqlite import Database, for_values

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

MAX_ROWS = 1_000_000
SPOOL_FULL = "the spool was full"
_RECORD = 100
"""Bytes that a record has besides its names, about."""

# `position` is the place in the line; `seq` rises with each change, and tells whether a row is still the one that was sent.
# A gap has no mount, and its reason for a path.
_SCRIPTS = (
    """
    CREATE TABLE waiting (
        position INTEGER PRIMARY KEY,
        seq INTEGER NOT NULL,
        vault TEXT NOT NULL,
        namespace TEXT NOT NULL,
        mount TEXT NOT NULL,
        path TEXT NOT NULL,
        version INTEGER,
        since REAL NOT NULL,
        UNIQUE (path, mount, namespace, vault)
    );
    """,
)
_INSERT = "INSERT INTO waiting (position, seq, vault, namespace, mount, path, version, since) VALUES {} ON CONFLICT DO "
_KEEP = _INSERT + "NOTHING"
_CHANGE = (
    _INSERT + "UPDATE SET seq = excluded.seq, version ="
    " CASE WHEN version IS NULL OR excluded.version IS NULL THEN NULL ELSE max(version, excluded.version) END"
    " WHERE seq < excluded.seq"
)
# In this order: looked at the other way round, each statement would read the whole table.
_REMOVE = (
    "DELETE FROM waiting WHERE position IN (SELECT position FROM (VALUES {}) AS sent"
    " CROSS JOIN waiting ON position = sent.column1 AND seq = sent.column2)"
)


@dataclass(frozen=True, slots=True)
class Row:
    position: int
    seq: int
    notice: AuditNotice | GapNotice
    since: float
    """When it was first heard of, in seconds since the epoch."""


class Spool:
    """The file `spool.db` in a folder that belongs to one relay at a time."""

    def __init__(self, folder: str | Path, *, max_rows: int = MAX_ROWS) -> None:
        self.folder = Path(folder).absolute()
        self.database = Database(self.folder / "spool.db")
        self.rows = 0
        self._max_rows = max_rows
        self._seq = 0
        self._fresh: list[Row] = []
        """What was kept last, if nothing else was there: it need not be read again to be forwarded."""
        self._lock: int | None = None

    async def open(self) -> None:
        """Raises ConfigError where the folder can not be used or another relay uses it, and StoreError."""
        self._acquire()
        try:
            await self.database.open()
            await self.database.migrate("relay", _SCRIPTS)
            self.rows, self._seq = await self.database.read(_count)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self.database.aclose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def add(self, notices: Sequence[AuditNotice | GapNotice], since: float) -> int:
        """Keep notices, each merged into what is known of its path; when it returns they are on the disk.

        Returns how many paths were known before. Raises StoreError; then none was kept.
        """
        first = self._seq + 1
        rows = [_columns(notice, seq, since) for seq, notice in enumerate(notices, first)]
        self._seq += len(rows)
        room = self._max_rows - self.rows
        self._fresh = []

        def run(connection: sqlite3.Connection) -> tuple[int, int]:
            inserted = for_values(connection, _KEEP, rows)
            if inserted < len(rows):
                for_values(connection, _CHANGE, rows)
            if inserted <= room:
                return inserted, len(rows) - inserted
            # A full run costs less than a million looks.
            gone = connection.execute("DELETE FROM waiting").rowcount
            full = GapNotice(SPOOL_FULL, notices[-1].vault)
            for_values(connection, _KEEP, [_columns(full, rows[-1][0], since)])
            return inserted - gone + 1, 0

        more, known = await self.database.write(run)
        self.rows += more
        if more == self.rows == len(rows):
            self._fresh = [Row(seq, seq, notice, since) for seq, notice in enumerate(notices, first)]
        return known

    async def oldest(self, limit: int, max_bytes: int, without: Collection[GapNotice] = ()) -> list[Row]:
        """The first rows in the line, at most `limit` and about `max_bytes`, but for gaps that are held back."""
        fresh, self._fresh = self._fresh, []
        if fresh or not self.rows:
            return _first(fresh, limit, max_bytes, without)

        def run(connection: sqlite3.Connection) -> list[Row]:
            rows = connection.execute(
                "SELECT position, seq, vault, namespace, mount, path, version, since FROM waiting"
                " ORDER BY position LIMIT ?",
                (limit + len(without),),
            )
            return _first(map(_row, rows), limit, max_bytes, without)

        return await self.database.read(run)

    async def done(self, rows: Sequence[Row]) -> None:
        """Remove what was forwarded; what changed meanwhile goes to the end of the line. Raises StoreError."""
        sent = [(row.position, row.seq) for row in rows]
        now = time.time()
        # They may have been read from the file before it was known that they are fresh.
        self._fresh = []

        def run(connection: sqlite3.Connection) -> int:
            removed = for_values(connection, _REMOVE, sent)
            if removed < len(sent):
                connection.executemany(
                    "UPDATE waiting SET position = seq, since = ? WHERE position = ? AND seq > ?",
                    [(now, *each) for each in sent],
                )
            return removed

        # What a power cut brings back is sent once more.
        removed = await self.database.write(run, durable=False)
        self.rows -= removed

    async def since(self) -> float | None:
        """When the oldest row was first heard of, in seconds since the epoch. Raises StoreError."""

        def run(connection: sqlite3.Connection) -> float | None:
            row = connection.execute("SELECT since FROM waiting ORDER BY position LIMIT 1").fetchone()
            return None if row is None else float(row[0])

        return await self.database.read(run)

    def _acquire(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the spool folder {self.folder} can not be used ({error.strerror}): name one that this user may write"
            ) from None
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise ConfigError(
                    f"another relay uses the spool folder {self.folder}: give each relay one of its own with --spool"
                ) from None
        self._lock = descriptor


def _count(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many rows there are, and the highest number in use."""
    rows, highest = connection.execute("SELECT count(*), max(seq) FROM waiting").fetchone()
    return rows, highest or 0


def _first(rows: Iterable[Row], limit: int, max_bytes: int, without: Collection[GapNotice]) -> list[Row]:
    found: list[Row] = []
    size = 0
    for row in rows:
        notice = row.notice
        if notice in without:
            continue
        size += _RECORD
        if isinstance(notice, AuditNotice):
            size += len(notice.namespace) + len(notice.mount) + len(notice.path)
        if found and (size > max_bytes or len(found) >= limit):
            break
        found.append(row)
    return found


def _row(columns: tuple[Any, ...]) -> Row:
    position, seq, vault, namespace, mount, path, version, since = columns
    if not mount:
        return Row(position, seq, GapNotice(path, vault or None), since)
    return Row(position, seq, AuditNotice(mount, path, namespace, version, vault or None), since)


def _columns(notice: AuditNotice | GapNotice, seq: int, since: float) -> tuple[Any, ...]:
    vault = notice.vault or ""
    if isinstance(notice, GapNotice):
        return (seq, seq, vault, "", "", notice.why, None, since)
    return (seq, seq, vault, notice.namespace, notice.mount, notice.path, notice.version, since)
