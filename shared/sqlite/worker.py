"""A thread with a connection of its own: what waits for it is done in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import StoreError
from shared.sqlite.failures import store_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A function to be run on a worker's connection, with `items` where it is run for several jobs at once."""

    fn: Callable[..., Any]
    items: Sequence[Any] | None
    durable: bool
    future: asyncio.Future[Any]


class Worker:
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
