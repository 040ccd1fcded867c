"""One SQLite file for the store and the queues of one machine: one writer thread, one reader thread, group commit.

A commit waits for the disk (`synchronous=FULL`), so what was answered survives a power cut. Callers that write at the
same time share that wait: their functions run in one transaction, each in a savepoint of its own, and one COMMIT ends
all of them. Who can do without (`durable=False`) does not wait, unless the commit is shared with somebody who can not:
such a write survives the process; a power cut may undo it, but only together with all that came after it. Reads have a
connection of their own and never wait for a writer (https://sqlite.org/wal.html).

What a killed process left claimed is known at once by its token (`dead_owners`), where the platform can tell; elsewhere
claims end by their expiry.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets as random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import StoreError, permanent
from shared.sqlite.failures import code_of
from shared.sqlite.owners import dead, hold, let_go
from shared.sqlite.worker import Worker

T = TypeVar("T")
Item = TypeVar("Item")

LAYOUT = 1
"""`PRAGMA user_version`: how the components' versions are kept. Each component counts its own (`Database.migrate`)."""
GROUP = 200
"""Writers that share one COMMIT at most, so that the first of them does not wait for all."""
PARAMETERS = 2048
"""Of one statement at most. SQLite takes 32,766 (https://sqlite.org/limits.html), but statements that large cost more than
they save."""
CHECKPOINT = 8000
"""Pages of the write-ahead log, 32 MB of it, after which they are brought into the file: each one once, however often it was
changed. SQLite's own 1,000 are a fraction of what one commit changes in a burst."""


class Database:
    """An open SQLite file. Share one object between everything in a process that uses the file.

    `open` may be called by each user of it; the last `aclose` closes it. Calls come from one event loop.
    """

    def __init__(self, path: str | Path, *, busy_timeout: float = 10.0) -> None:
        self.path = Path(path).absolute()
        self.owner = random.token_hex(7)
        """What this object's claims and leases begin with: 14 hex digits."""
        self._busy_timeout = busy_timeout
        self._users = 0
        self._lock = asyncio.Lock()
        self._writer: Worker | None = None
        self._reader: Worker | None = None

    async def open(self) -> None:
        """Open the file, or create it for this user alone (mode 0600). Raises StoreError when it can not be used."""
        async with self._lock:
            if self._users == 0:
                await self._open()
            self._users += 1

    async def _open(self) -> None:
        try:
            _create_private(self.path)
            hold(self.path, self.owner)
        except OSError as error:
            raise permanent(f"the database {self.path} can not be opened: {error.strerror}") from None
        writer = Worker("vaultferry-writer", self._connect_writer, "BEGIN IMMEDIATE", GROUP, self.path)
        reader = Worker("vaultferry-reader", self._connect_reader, "BEGIN", 1, self.path)
        try:
            await writer.start()
            await reader.start()
        except BaseException:
            await reader.stop()
            await writer.stop()
            let_go(self.path, self.owner)
            raise
        self._writer, self._reader = writer, reader

    async def aclose(self) -> None:
        """Finish what was asked for, and close, if nobody else uses it any more. Harmless when it is not open."""
        async with self._lock:
            if self._users == 0:
                return
            self._users -= 1
            if self._users > 0:
                return
            writer, reader = self._writer, self._reader
            self._writer = self._reader = None
            # The writer last: the last connection to close folds the write-ahead log back into the file.
            if reader is not None:
                await reader.stop()
            if writer is not None:
                await writer.stop()
            let_go(self.path, self.owner)

    async def write(self, fn: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `fn` in a write transaction, on the writer's thread, and return its result once it is on the disk (or, where
        it need not be `durable`, once others can see it).

        Whatever `fn` raises undoes what it did, and reaches the caller; a sqlite3.Error as StoreError. `fn` neither
        begins nor ends a transaction, and returns no cursor. Few large statements are better than many small ones:
        each costs a change of threads.
        """
        return await self._running(self._writer).call(fn, durable=durable)

    async def write_together(
        self, fn: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T]], items: Sequence[Item]
    ) -> Sequence[T]:
        """As `write`, but `fn` is called once with the items of all callers that wait with the same `fn`: each gets the
        results of its own. Where that fails by what one of them wants, it is done anew for each alone.
        """
        return await self._running(self._writer).call(fn, items=items)

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` on the reader's thread: it sees one consistent, committed state, and can not write."""
        return await self._running(self._reader).call(fn)

    def _running(self, worker: Worker | None) -> Worker:
        if worker is None:
            raise StoreError(f"the database {self.path} is not open")
        return worker

    async def migrate(self, component: str, scripts: Sequence[str]) -> None:
        """Bring a component's tables to version `len(scripts)`; script N leads from version N to N + 1.

        Raises StoreError when the file is newer than this program.
        """

        def run(connection: sqlite3.Connection) -> None:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
            row = connection.execute("SELECT version FROM schema_versions WHERE component = ?", (component,)).fetchone()
            version = row[0] if row else 0
            if version > len(scripts):
                raise _too_new(self.path, f"{component} {version}", f"{component} {len(scripts)}")
            if version == len(scripts):
                return
            for script in scripts[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_versions VALUES (?, ?) ON CONFLICT DO UPDATE SET version = excluded.version",
                (component, len(scripts)),
            )

        await self.write(run)

    def dead_owners(self, tokens: Iterable[str]) -> set[str]:
        """Those of `tokens` whose process is gone. What is not an owner's token is never among them."""
        return dead(self.path, tokens)

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                # Two processes that create the file at once: this change does not heed the busy timeout.
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if code_of(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    connection.close()
                    raise
                time.sleep(0.02)
            except sqlite3.Error:
                connection.close()
                raise
        connection.execute("PRAGMA synchronous = FULL")
        # An INSERT OR REPLACE that deletes a row must fire the triggers on DELETE.
        connection.execute("PRAGMA recursive_triggers = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout > LAYOUT:
            connection.close()
            raise _too_new(self.path, str(layout), str(LAYOUT))
        if layout < LAYOUT:
            connection.execute(f"PRAGMA user_version = {LAYOUT}")
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: the module begins no transactions of its own.
        return sqlite3.connect(
            self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=True, cached_statements=256
        )


def for_values(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run a statement, whose `{}` stands for VALUES, for rows of one length; how many rows of the table it touched.

    Many at once, for each statement is a change of threads; and their numbers are powers of two, so that there are few
    different statements to keep prepared.
    """
    touched = at = 0
    while at < len(rows):
        width = len(rows[at])
        size = _power_of_two(min(len(rows) - at, PARAMETERS // width))
        places = ", ".join([f"({', '.join('?' * width)})"] * size)
        values = [value for row in rows[at : at + size] for value in row]
        touched += connection.execute(statement.format(places), values).rowcount
        at += size
    return touched


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _create_private(path: Path) -> None:
    """Make a new file readable by this user alone; SQLite gives its -wal and -shm the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _too_new(path: Path, found: str, known: str) -> StoreError:
    return permanent(
        f"the database {path} was written by a newer Vaultferry (schema {found}, this one knows {known}): upgrade"
    )


def _statements(script: str) -> Iterator[str]:
    """One statement after the other; `executescript` would commit the transaction it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
