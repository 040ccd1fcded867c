"""The loop around a queue's handler: batches, renewal, redelivery, poison, stopping."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StoreError
from shared.host_settings import HostSettings
from shared.jobs import Message
from shared.queue_loop import QueueLoop, describe
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database

AT_ONCE = HostSettings(batch_size=4, new_batch_threshold=2, max_dequeue_count=3, visibility_timeout=0)


class Recorded(SqliteQueues):
    """SQLite queues that tell what was asked of them, and fail on demand."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.renewed = asyncio.Event()
        self.failing: dict[str, int] = {}
        self.largest_batch = 0

    def _fail(self, what: str) -> None:
        if self.failing.get(what, 0) > 0:
            self.failing[what] -= 1
            raise StoreError(f"{what} failed")

    async def receive(self, queue: str, *, limit: int = 16, visibility: float = 300) -> list[Message]:
        self._fail("receive")
        self.largest_batch = max(self.largest_batch, limit)
        return await super().receive(queue, limit=limit, visibility=visibility)

    async def renew(self, message: Message, visibility: float) -> Message | None:
        self._fail("renew")
        renewed = await super().renew(message, visibility)
        self.renewed.set()
        return renewed

    async def delete(self, message: Message) -> None:
        self._fail("delete")
        await super().delete(message)

    async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
        self._fail("send")
        await super().send(queue, body, delay=delay)


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[Recorded]:
    queues = Recorded(Database(tmp_path / "v.db"))
    await queues.open()
    yield queues
    await queues.aclose()


class Handled:
    """Counts the messages whose handlers have ended."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = asyncio.Condition()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._more = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, count: int) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: len(self.messages) >= count), 20)


@asynccontextmanager
async def running(
    queues: SqliteQueues, handler: Callable[[Message], Awaitable[None]], queue: str = "jobs", **options: Any
) -> AsyncIterator[Handled]:
    handled = Handled()
    loop = QueueLoop(queues, queue, handler, options.pop("settings", AT_ONCE), handled=handled, **options)
    loop.start()
    try:
        yield handled
    finally:
        await loop.stop()


async def test_each_message_is_handled_once_and_is_gone(queues: Recorded) -> None:
    bodies: list[str] = []

    async def handler(message: Message) -> None:
        bodies.append(message.body)

    async with running(queues, handler) as handled:
        for n in range(30):
            await queues.send("jobs", str(n))
        await handled.until(30)
    assert sorted(bodies) == sorted(str(n) for n in range(30))
    assert await queues.depth("jobs") == 0


async def test_at_most_a_batch_of_handlers_runs_at_once(queues: Recorded) -> None:
    at_once = peak = 0
    full = asyncio.Event()

    async def handler(message: Message) -> None:
        nonlocal at_once, peak
        at_once += 1
        peak = max(peak, at_once)
        if at_once == 4:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        at_once -= 1

    for n in range(30):
        await queues.send("jobs", str(n))
    async with running(queues, handler) as handled:
        await handled.until(30)
    assert peak == 4
    assert queues.largest_batch == 4


async def test_a_failed_message_comes_again_until_it_is_poison(queues: Recorded) -> None:
    counts: list[int] = []

    async def handler(message: Message) -> None:
        counts.append(message.dequeue_count)
        raise RuntimeError

    await queues.send("jobs", "bad")
    async with running(queues, handler) as handled:
        await handled.until(3)
    assert counts == [1, 2, 3]
    assert await queues.depth("jobs") == 0
    (poison,) = await queues.receive("jobs-poison")
    assert (poison.body, poison.dequeue_count) == ("bad", 1)


async def test_a_failed_message_waits_for_the_visibility_time_out_of_host_json(queues: Recorded) -> None:
    async def handler(message: Message) -> None:
        raise RuntimeError

    await queues.send("jobs", "bad")
    async with running(queues, handler, settings=HostSettings(visibility_timeout=3600)) as handled:
        await handled.until(1)
    assert await queues.depth("jobs") == 1
    assert await queues.receive("jobs") == []


async def test_a_message_that_kills_its_workers_is_poison_without_another_try(queues: Recorded) -> None:
    await queues.send("jobs", "killer")
    for _ in range(3):
        (message,) = await queues.receive("jobs")
        await queues.release(message)
    seen: list[Message] = []

    async def handler(message: Message) -> None:
        seen.append(message)

    async with running(queues, handler) as handled:
        await handled.until(1)
    assert seen == []
    assert [message.body for message in await queues.receive("jobs-poison")] == ["killer"]


async def test_a_message_of_a_poison_queue_comes_again_for_ever(queues: Recorded) -> None:
    async def handler(message: Message) -> None:
        if message.dequeue_count < 9:
            raise RuntimeError

    await queues.send("jobs-poison", "bad")
    async with running(queues, handler, "jobs-poison") as handled:
        await handled.until(9)
    assert await queues.depth("jobs-poison") == 0
    assert await queues.depth("jobs-poison-poison") == 0


async def test_a_handler_that_outlasts_its_lease_keeps_its_message(queues: Recorded) -> None:
    lease = 0.9
    started = time.monotonic()

    async def handler(message: Message) -> None:
        while time.monotonic() < started + lease * 1.2:
            queues.renewed.clear()
            await asyncio.wait_for(queues.renewed.wait(), 20)

    queues.failing["renew"] = 1
    await queues.send("jobs", "long")
    async with running(queues, handler, lease=lease) as handled:
        await handled.until(1)
    assert [message.dequeue_count for message in handled.messages] == [1]
    assert await queues.depth("jobs") == 0


async def test_a_message_that_could_not_be_deleted_is_delivered_again(queues: Recorded) -> None:
    queues.failing["delete"] = 1

    async def handler(message: Message) -> None:
        pass

    await queues.send("jobs", "x")
    async with running(queues, handler, lease=0.2) as handled:
        await handled.until(2)
    assert [message.dequeue_count for message in handled.messages] == [1, 2]
    assert await queues.depth("jobs") == 0


async def test_a_message_that_could_not_be_sent_to_poison_is_not_lost(queues: Recorded) -> None:
    async def handler(message: Message) -> None:
        raise RuntimeError

    await queues.send("jobs", "bad")
    queues.failing["send"] = 1
    async with running(queues, handler, lease=0.2) as handled:
        await handled.until(4)
    assert await queues.depth("jobs") == 0
    assert await queues.depth("jobs-poison") == 1


async def test_a_queue_that_can_not_be_read_for_a_while_stops_nothing(queues: Recorded) -> None:
    async def handler(message: Message) -> None:
        pass

    await queues.send("jobs", "x")
    queues.failing["receive"] = 1
    async with running(queues, handler) as handled:
        await handled.until(1)


async def test_stopping_lets_a_handler_end(queues: Recorded) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        began.set()
        await may_end.wait()

    await queues.send("jobs", "x")
    loop = QueueLoop(queues, "jobs", handler, AT_ONCE)
    loop.start()
    await asyncio.wait_for(began.wait(), 10)
    stopping = asyncio.create_task(loop.stop(10))
    await asyncio.sleep(0)
    await queues.send("jobs", "too late")
    may_end.set()
    await asyncio.wait_for(stopping, 5)
    assert [message.body for message in await queues.receive("jobs")] == ["too late"]


async def test_a_handler_that_outlasts_the_grace_gives_its_message_back_at_once(queues: Recorded) -> None:
    began = asyncio.Event()

    async def handler(message: Message) -> None:
        began.set()
        await asyncio.Event().wait()

    await queues.send("jobs", "x")
    loop = QueueLoop(queues, "jobs", handler, HostSettings(max_dequeue_count=1, visibility_timeout=3600))
    loop.start()
    await asyncio.wait_for(began.wait(), 10)
    await asyncio.wait_for(loop.stop(0), 5)
    (message,) = await queues.receive("jobs")
    assert (message.body, message.dequeue_count) == ("x", 2)
    assert await queues.depth("jobs-poison") == 0


async def test_a_loop_that_never_began_stops(queues: Recorded) -> None:
    async def handler(message: Message) -> None: ...

    await QueueLoop(queues, "jobs", handler).stop()


async def test_what_a_foreign_exception_says_is_not_logged(queues: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(message: Message) -> None:
        raise ValueError("canary-5ac1")

    caplog.set_level(logging.DEBUG, "vaultferry")
    await queues.send("jobs", "bad")
    async with running(queues, handler) as handled:
        await handled.until(3)
    assert "ValueError at test_host_queue_loop.py" in caplog.text
    assert "moved to jobs-poison" in caplog.text
    assert "canary-5ac1" not in caplog.text


def test_our_own_errors_are_told_in_full() -> None:
    assert describe(StoreError("the disk is full")) == "StoreError: the disk is full"
