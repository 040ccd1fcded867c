"""One queue and its handler: what the Functions host does around a queue trigger.

Taken messages stay invisible while their handler runs. A handler that returns has dealt with its message; one that
raises gets it again later, and after `max_dequeue_count` deliveries the message moves to `<queue>-poison`. Messages of
a poison queue itself are delivered again for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from shared.errors import StoreError, SyncError
from shared.host_settings import HostSettings
from shared.jobs import POISON_SUFFIX, Message, Queues

LEASE = 60.0
"""Seconds that a message stays invisible without being renewed: how long the work of a killed worker waits at most."""
LONGEST_WAIT = 30.0
LONGEST_PAUSE = 30.0

log = logging.getLogger("vaultferry.host")


class QueueLoop:
    """Runs `handler` on the messages of `queue`, up to `settings.batch_size` at once.

    `handled(message)` is called after each message whose handler has ended, well or not. A handler that is cancelled
    puts its message back at once. The queues must be open, and stay open until `stop` has returned.
    """

    def __init__(
        self,
        queues: Queues,
        queue: str,
        handler: Callable[[Message], Awaitable[None]],
        settings: HostSettings | None = None,
        *,
        lease: float = LEASE,
        handled: Callable[[Message], None] | None = None,
    ) -> None:
        self._queues = queues
        self._queue = queue
        self._handler = handler
        self._settings = settings or HostSettings()
        self._lease = lease
        self._handled = handled
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0

    def start(self) -> asyncio.Task[None]:
        """Begin to take messages. The task ends when the loop was stopped, and fails only on a defect of its own."""
        self._task = asyncio.create_task(self._run(), name=f"queue {self._queue}")
        return self._task

    async def stop(self, grace: float = 10.0) -> None:
        """Take no more messages, let the running handlers end within `grace` seconds, then cancel them."""
        self._stopping.set()
        tasks = set(self._running) if self._task is None else {self._task, *self._running}
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=grace)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._task is not None and not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        threshold = min(self._settings.new_batch_threshold, self._settings.batch_size - 1)
        while not self._stopping.is_set():
            if len(self._running) > threshold:
                await self._or_stop(self._one_ended())
                continue
            messages = await self._receive(self._settings.batch_size - len(self._running))
            if self._stopping.is_set():
                await asyncio.gather(*(self._queues.release(message) for message in messages), return_exceptions=True)
                return
            for message in messages:
                task = asyncio.create_task(self._deal_with(message), name=f"message {message.message_id}")
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _receive(self, limit: int) -> list[Message]:
        """The next messages; none after a while without any, or when the loop is to stop."""
        try:
            messages = await self._queues.receive(self._queue, limit=limit, visibility=self._lease)
            if not messages:
                await self._or_stop(self._queues.wait(self._queue, LONGEST_WAIT))
            self._failures = 0
        except StoreError as error:
            # Said once for each doubling of the pause, not for every try.
            self._failures += 1
            pause = min(0.5 * 2 ** (self._failures - 1), LONGEST_PAUSE)
            log.warning("the queue %s can not be read, next try in %.0f s: %s", self._queue, pause, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            return []
        return messages

    async def _or_stop(self, other: Coroutine[Any, Any, None]) -> None:
        """Return when `other` has returned, or when the loop is to stop."""
        tasks = [asyncio.ensure_future(other), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not tasks[0].cancelled():
            tasks[0].result()

    async def _one_ended(self) -> None:
        await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _deal_with(self, message: Message) -> None:
        try:
            if self._has_poison_queue and message.dequeue_count > self._settings.max_dequeue_count:
                # Its workers never lived to report a failure.
                await self._to_poison(message)
                return
            done = asyncio.Event()
            keeper = asyncio.create_task(self._keep(message, done))
            failure: BaseException | None = None
            try:
                await self._handler(message)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the message comes again
                failure = error
            finally:
                # Never cut off while it renews: the receipt that this brings is the only one that still counts.
                done.set()
                message = await keeper
            await self._settle(message, failure)
        except StoreError as error:
            log.warning(
                "message %s of %s could not be settled and is delivered again: %s",
                message.message_id,
                self._queue,
                error,
            )
        finally:
            if self._handled is not None:
                self._handled(message)

    async def _settle(self, message: Message, failure: BaseException | None) -> None:
        if failure is None:
            await self._queues.delete(message)
        elif isinstance(failure, asyncio.CancelledError):
            await self._queues.release(message)
        else:
            log.error(
                "message %s of %s failed (delivery %d): %s",
                message.message_id,
                self._queue,
                message.dequeue_count,
                describe(failure),
            )
            if self._has_poison_queue and message.dequeue_count >= self._settings.max_dequeue_count:
                await self._to_poison(message)
            else:
                await self._queues.release(message, delay=self._settings.visibility_timeout)

    async def _keep(self, message: Message, done: asyncio.Event) -> Message:
        """Renew the message until `done`; the message with its last receipt."""
        while True:
            with contextlib.suppress(TimeoutError):
                # Thrice a lease: one renewal that fails loses nothing.
                await asyncio.wait_for(done.wait(), self._lease / 3)
            if done.is_set():
                return message
            try:
                renewed = await self._queues.renew(message, self._lease)
            except StoreError as error:
                log.warning("message %s of %s could not be renewed: %s", message.message_id, self._queue, error)
                continue
            if renewed is None:
                log.warning("message %s of %s was delivered a second time meanwhile", message.message_id, self._queue)
                return message
            message = renewed

    @property
    def _has_poison_queue(self) -> bool:
        return not self._queue.endswith(POISON_SUFFIX)

    async def _to_poison(self, message: Message) -> None:
        # In this order: a message twice is better than none.
        await self._queues.send(self._queue + POISON_SUFFIX, message.body)
        await self._queues.delete(message)
        log.error("message %s of %s was moved to %s%s", message.message_id, self._queue, self._queue, POISON_SUFFIX)


def describe(error: BaseException) -> str:
    """An exception for the log. The text of one that is not ours could quote a value, so it is left out."""
    if isinstance(error, SyncError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
