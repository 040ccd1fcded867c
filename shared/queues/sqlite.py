"""Queues in the SQLite file of one machine: durable, shared by processes, and quick to wake their readers.

A message that is sent here wakes this process's readers at once; a delayed or leased one wakes them when it becomes
visible. Only for what other processes send through the same file does a reader look from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets as random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence

from shared.errors import permanent
from shared.jobs import MAX_BODY, Message, Queues
from shared.sqlite import Database

SCHEMA = (
    """
    CREATE TABLE queue_messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue TEXT NOT NULL,
        body TEXT NOT NULL,
        visible_at REAL NOT NULL,
        dequeue_count INTEGER NOT NULL DEFAULT 0,
        receipt TEXT,
        owner TEXT
    );
    CREATE INDEX queue_messages_due ON queue_messages (queue, visible_at, id);
    CREATE INDEX queue_messages_held ON queue_messages (owner) WHERE owner IS NOT NULL;
    """,
)
LOOK = 0.5
"""Seconds until a message of another process, or what a killed one held, is noticed."""


class SqliteQueues(Queues):
    def __init__(self, database: Database) -> None:
        self._database = database
        self._sent: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def open(self) -> None:
        await self._database.open()
        try:
            await self._database.migrate("queues", SCHEMA)
            owners = await self._database.read(_owners)
            await self._free(self._database.dead_owners(owners))
        except BaseException:
            await self._database.aclose()
            raise

    async def aclose(self) -> None:
        await self._database.aclose()

    async def ensure(self, names: Sequence[str]) -> None:
        """Nothing to do: a queue is where its messages are."""

    async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
        if len(body.encode()) > MAX_BODY:
            raise permanent(f"a message for the queue {queue} is larger than {MAX_BODY} bytes")
        row = (queue, body, time.time() + delay)
        await self._database.write(
            lambda connection: (
                connection.execute(
                    "INSERT INTO queue_messages (queue, body, visible_at) VALUES (?, ?, ?)", row
                ).rowcount
            )
        )
        self._sent[queue].set()

    async def receive(self, queue: str, *, limit: int = 16, visibility: float = 300) -> list[Message]:
        self._sent[queue].clear()
        owner = self._database.owner

        def take(connection: sqlite3.Connection) -> list[Message]:
            now = time.time()
            rows = connection.execute(
                """
                UPDATE queue_messages
                SET visible_at = ?, dequeue_count = dequeue_count + 1, receipt = hex(randomblob(12)), owner = ?
                WHERE id IN (
                    SELECT id FROM queue_messages WHERE queue = ? AND visible_at <= ? ORDER BY visible_at, id LIMIT ?
                )
                RETURNING id, receipt, body, dequeue_count
                """,
                (now + visibility, owner, queue, now, limit),
            ).fetchall()
            return [Message(queue, str(row[0]), row[1], row[2], row[3]) for row in sorted(rows)]

        # After a power cut it was never taken: nobody is left who works on it.
        return await self._database.write(take, durable=False)

    async def wait(self, queue: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        sent = self._sent[queue]

        def due(connection: sqlite3.Connection) -> tuple[float | None, list[str]]:
            (next_visible,) = connection.execute(
                "SELECT min(visible_at) FROM queue_messages WHERE queue = ?", (queue,)
            ).fetchone()
            return next_visible, [] if next_visible is None else _owners(connection)

        while not sent.is_set():
            next_visible, owners = await self._database.read(due)
            if dead := self._database.dead_owners(owners):
                await self._free(dead)
                return
            pause = min(deadline - time.monotonic(), LOOK)
            if next_visible is not None:
                pause = min(pause, next_visible - time.time())
            if pause <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sent.wait(), pause)

    async def renew(self, message: Message, visibility: float) -> Message | None:
        receipt = random.token_hex(12)
        changed = await self._change(
            message,
            "UPDATE queue_messages SET visible_at = ?, receipt = ?",
            (time.time() + visibility, receipt),
        )
        if not changed:
            return None
        return Message(message.queue, message.message_id, receipt, message.body, message.dequeue_count)

    async def delete(self, message: Message) -> None:
        await self._change(message, "DELETE FROM queue_messages", ())

    async def release(self, message: Message, *, delay: float = 0) -> None:
        await self._change(
            message,
            "UPDATE queue_messages SET visible_at = ?, receipt = NULL, owner = NULL",
            (time.time() + delay,),
        )
        self._sent[message.queue].set()

    async def depth(self, queue: str) -> int:
        def count(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT count(*) FROM queue_messages WHERE queue = ?", (queue,)).fetchone()
            return int(row[0])

        return await self._database.read(count)

    async def _change(self, message: Message, statement: str, values: tuple[object, ...]) -> bool:
        """Run `statement` on the message, if it is still this delivery's."""
        parameters = (*values, int(message.message_id), message.receipt)
        # What a power cut undoes is delivered once more, as a queue may.
        return await self._database.write(
            lambda connection: connection.execute(f"{statement} WHERE id = ? AND receipt = ?", parameters).rowcount > 0,
            durable=False,
        )

    async def _free(self, dead: set[str]) -> None:
        """Make visible what killed processes held."""
        if not dead:
            return
        rows = [(time.time(), owner) for owner in sorted(dead)]

        def free(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE queue_messages SET visible_at = min(visible_at, ?), receipt = NULL, owner = NULL"
                " WHERE owner = ?",
                rows,
            )

        await self._database.write(free)


def _owners(connection: sqlite3.Connection) -> list[str]:
    """Who holds messages."""
    return [
        owner for (owner,) in connection.execute("SELECT DISTINCT owner FROM queue_messages WHERE owner IS NOT NULL")
    ]
