"""One SQLite file for the store and the queues of one machine: one writer thread, one reader thread, group commit.

A commit waits for the disk (`synchronous=FULL`), so what was answered survives a power cut. Callers that write at the
same time share that wait: their functions run in one transaction, each in a savepoint of its own, and one COMMIT ends
all of them. Who can do without (`durable=False`) does not wait, unless the commit is shared with somebody who can not:
such a write survives the process; a power cut may undo it, but only together with all that came after it. Reads have a
connection of their own and never wait for a writer (https://sqlite.org/wal.html).

Who is alive: each open `Database` has a random `owner` token and holds a lock on one byte of `<file>-owners`. The
kernel drops the lock when the process ends, however it ends, so that `dead_owners` tells at once what a killed process
left claimed. Where the platform has no `fcntl`, nobody is ever known to be dead and claims end by their expiry.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import re
import secrets as random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import StoreError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

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
_TOKEN = re.compile(r"[0-9a-f]{14}")


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
        self._writer: _Worker | None = None
        self._reader: _Worker | None = None

    async def open(self) -> None:
        """Open the file, or create it for this user alone (mode 0600). Raises StoreError when it can not be used."""
        async with self._lock:
            if self._users == 0:
                await self._open()
            self._users += 1

    async def _open(self) -> None:
        try:
            _create_private(self.path)
            _hold(self.path, self.owner)
        except OSError as error:
            raise _permanent(f"the database {self.path} can not be opened: {error.strerror}") from None
        writer = _Worker("vaultferry-writer", self._connect_writer, "BEGIN IMMEDIATE", GROUP, self.path)
        reader = _Worker("vaultferry-reader", self._connect_reader, "BEGIN", 1, self.path)
        try:
            await writer.start()
            await reader.start()
        except BaseException:
            await reader.stop()
            await writer.stop()
            _let_go(self.path, self.owner)
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
            _let_go(self.path, self.owner)

    async def write(self, fn: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run `fn` in a write transaction, on the writer's thread, and return its result once it is on the disk (or, where
        it need not be `durable`, once others can see it).

        Whatever `fn` raises undoes what it did, and reaches the caller; a sqlite3.Error as StoreError. `fn` neither
        begins nor ends a transaction, and returns no cursor. Few large statements are better than many small ones:
        each costs a change of threads.
        """
        if self._writer is None:
            raise StoreError(f"the database {self.path} is not open")
        return await self._writer.call(fn, durable=durable)

    async def write_together(
        self, fn: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T]], items: Sequence[Item]
    ) -> Sequence[T]:
        """As `write`, but `fn` is called once with the items of all callers that wait with the same `fn`: each gets the
        results of its own. Where that fails by what one of them wants, it is done anew for each alone.
        """
        if self._writer is None:
            raise StoreError(f"the database {self.path} is not open")
        return await self._writer.call(fn, items=items)

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` on the reader's thread: it sees one consistent, committed state, and can not write."""
        if self._reader is None:
            raise StoreError(f"the database {self.path} is not open")
        return await self._reader.call(fn)

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
        return _dead(self.path, tokens)

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect()
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                # Two processes that create the file at once: this change does not heed the busy timeout.
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
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


# --- threads ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A function to be run on a worker's connection, with `items` where it is run for several jobs at once."""

    fn: Callable[..., Any]
    items: Sequence[Any] | None
    durable: bool
    future: asyncio.Future[Any]


class _Worker:
    """A thread with a connection that runs functions in transactions, several in one where they queue up."""

    def __init__(
        self, name: str, connect: Callable[[], sqlite3.Connection], begin: str, group: int, path: Path
    ) -> None:
        self._connect = connect
        self._begin = begin
        self._group = group
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._name = name
        self._waits_for_disk = True

    async def start(self) -> None:
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # A daemon: a process that ends without closing is like one that was killed, and SQLite survives that.
        self._thread = threading.Thread(target=self._run, args=(ready,), name=self._name, daemon=True)
        self._thread.start()
        await ready

    async def call(self, fn: Callable[..., T], *, items: Sequence[Any] | None = None, durable: bool = True) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(fn, items, durable, future))
        return await future

    async def stop(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self, ready: asyncio.Future[Any]) -> None:
        try:
            connection = self._connect()
        except StoreError as error:
            _resolve([(ready, error)])
            return
        except sqlite3.Error as error:
            _resolve([(ready, store_error(error, self._path))])
            return
        _resolve([(ready, None)])
        with contextlib.closing(connection):
            while (group := self._next_group()) is not None:
                _resolve(self._answers(connection, group))

    def _next_group(self) -> list[_Job] | None:
        """The jobs that wait, at least one; None when there will be no more."""
        group: list[_Job] = []
        while len(group) < self._group:
            try:
                job = self._jobs.get(block=not group)
            except queue.Empty:
                break
            if job is None:
                if not group:
                    return None
                self._jobs.put(None)
                break
            if not job.future.cancelled():
                group.append(job)
        return group

    def _answers(self, connection: sqlite3.Connection, group: list[_Job]) -> list[tuple[asyncio.Future[Any], Any]]:
        """Each job's result, or the exception it ended with."""
        answers = []
        for step, results in self._transaction(connection, _steps(group)):
            if len(step) > 1 and _is_somebodys_own(results):
                for alone in self._transaction(connection, [[job] for job in step]):
                    answers += _answered(*alone)
            else:
                answers += _answered(step, results)
        return answers

    def _transaction(
        self, connection: sqlite3.Connection, steps: list[list[_Job]]
    ) -> list[tuple[list[_Job], list[Any] | Exception]]:
        """Take the steps in one transaction: the results of each one's jobs, or the exception it ended with."""
        results: list[list[Any] | Exception]
        try:
            self._wait_for_disk(connection, any(job.durable for step in steps for job in step))
            connection.execute(self._begin)
            if len(steps) == 1:
                results = [_take(connection, steps[0])]
            else:
                results = [_in_savepoint(connection, step, self._path) for step in steps]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it is handed to whoever asked
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            # One exception object each: raising adds to its traceback.
            results = [store_error(error, self._path) if isinstance(error, sqlite3.Error) else error for _ in steps]
        return list(zip(steps, results, strict=True))

    def _wait_for_disk(self, connection: sqlite3.Connection, durable: bool) -> None:
        """https://sqlite.org/pragma.html#pragma_synchronous: it takes effect from the next transaction on."""
        if durable != self._waits_for_disk:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._waits_for_disk = durable


def _steps(group: list[_Job]) -> list[list[_Job]]:
    """The jobs that are done in one call each, in the order in which they came."""
    steps: dict[object, list[_Job]] = {}
    for job in group:
        steps.setdefault(job if job.items is None else job.fn, []).append(job)
    return list(steps.values())


def _take(connection: sqlite3.Connection, step: list[_Job]) -> list[Any]:
    """The results of a step's jobs, in their order."""
    fn = step[0].fn
    if step[0].items is None:
        return [fn(connection)]
    results = iter(fn(connection, [item for job in step for item in job.items or ()]))
    return [list(itertools.islice(results, len(job.items or ()))) for job in step]


def _in_savepoint(connection: sqlite3.Connection, step: list[_Job], path: Path) -> list[Any] | Exception:
    """A step's results, or its exception; raises only what ended the whole transaction."""
    connection.execute("SAVEPOINT job")
    results: list[Any] | Exception
    try:
        results = _take(connection, step)
    except Exception as error:
        if not connection.in_transaction:
            # A full disk, for one, rolls back everything: https://sqlite.org/lang_transaction.html
            raise
        connection.execute("ROLLBACK TO job")
        results = store_error(error, path) if isinstance(error, sqlite3.Error) else error
    connection.execute("RELEASE job")
    return results


def _is_somebodys_own(results: list[Any] | Exception) -> bool:
    """Whether a step failed by what one of its jobs wanted, which is not the others' failure: a full disk would be."""
    return isinstance(results, Exception) and not (isinstance(results, StoreError) and results.transient)


def _answered(step: list[_Job], results: list[Any] | Exception) -> list[tuple[asyncio.Future[Any], Any]]:
    if isinstance(results, Exception):
        return [(job.future, results) for job in step]
    return [(job.future, result) for job, result in zip(step, results, strict=True)]


def _resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    if not results:
        return

    def on_loop() -> None:
        for future, result in results:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    # A closed loop raises RuntimeError: then nobody waits for an answer any more.
    with contextlib.suppress(RuntimeError):
        results[0][0].get_loop().call_soon_threadsafe(on_loop)


# --- errors and scripts -------------------------------------------------------------------------------------------


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """What SQLite's error means to a person; `transient` says whether trying again may help."""
    match _code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(f"the database {path} is locked by another process; it is tried again")
        case sqlite3.SQLITE_FULL:
            return StoreError(f"the disk is full: the database {path} can not grow; make room")
        case sqlite3.SQLITE_IOERR:
            return StoreError(f"the disk failed under the database {path} ({error.sqlite_errorname})")
        case sqlite3.SQLITE_CORRUPT:
            return _permanent(f"the database {path} is damaged; restore it from a backup")
        case sqlite3.SQLITE_NOTADB:
            return _permanent(f"{path} is not a SQLite database; name another file in VAULTFERRY_STORE")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return _permanent(f"the database {path} can not be written: check the permissions of file and folder")
        case sqlite3.SQLITE_CANTOPEN:
            return _permanent(f"the database {path} can not be opened: check that its folder exists and is writable")
        case _:
            # SQLite's own messages name tables, columns and triggers, never values.
            return _permanent(f"the database {path} refused: {error}")


def _code(error: sqlite3.Error) -> int | None:
    """The primary result code (https://sqlite.org/rescode.html); None where the module itself complained."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _permanent(message: str) -> StoreError:
    error = StoreError(message)
    error.transient = False
    return error


def _too_new(path: Path, found: str, known: str) -> StoreError:
    return _permanent(
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


# --- files and owners ---------------------------------------------------------------------------------------------


def _create_private(path: Path) -> None:
    """Make a new file readable by this user alone; SQLite gives its -wal and -shm the same mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


class _Owners:
    """The descriptor of one `-owners` file, and which tokens this process holds on it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.tokens: set[str] = set()


_registry: dict[str, _Owners] = {}
"""One descriptor a file and process: closing any other one would drop all of the process's locks on it (fcntl(2))."""
_registry_lock = threading.Lock()


def _owners_path(path: Path) -> str:
    return os.path.realpath(path) + "-owners"


def _hold(path: Path, token: str) -> None:
    if fcntl is None:
        return
    name = _owners_path(path)
    with _registry_lock:
        owners = _registry.get(name)
        if owners is None:
            owners = _registry[name] = _Owners(os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        fcntl.lockf(owners.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(token, 16))
        owners.tokens.add(token)


def _let_go(path: Path, token: str) -> None:
    if fcntl is None:
        return
    name = _owners_path(path)
    with _registry_lock:
        owners = _registry.get(name)
        if owners is None or token not in owners.tokens:
            return
        owners.tokens.remove(token)
        fcntl.lockf(owners.descriptor, fcntl.LOCK_UN, 1, int(token, 16))
        if not owners.tokens:
            os.close(owners.descriptor)
            del _registry[name]


def _dead(path: Path, tokens: Iterable[str]) -> set[str]:
    dead: set[str] = set()
    if fcntl is None:
        return dead
    with _registry_lock:
        owners = _registry.get(_owners_path(path))
        if owners is None:
            return dead
        for token in tokens:
            # A process never meets its own locks, so those are known from the registry.
            if not _TOKEN.fullmatch(token) or token in owners.tokens:
                continue
            try:
                # Shared: two processes that ask at the same time do not take each other for the owner.
                fcntl.lockf(owners.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, int(token, 16))
            except OSError:
                continue
            fcntl.lockf(owners.descriptor, fcntl.LOCK_UN, 1, int(token, 16))
            dead.add(token)
    return dead
