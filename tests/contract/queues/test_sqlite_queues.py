"""What only the queues in a SQLite file promise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.queues import sqlite
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database

HOLD_AND_SAY_SO = """
import asyncio, sys
from shared.queues.sqlite import SqliteQueues
from shared.sqlite import Database

async def main():
    queues = SqliteQueues(Database(sys.argv[1]))
    await queues.open()
    (message,) = await queues.receive("jobs", visibility=3600)
    print(message.body, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def queues(tmp_path: Path) -> AsyncIterator[SqliteQueues]:
    queues = SqliteQueues(Database(tmp_path / "v.db"))
    await queues.open()
    yield queues
    await queues.aclose()


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has taken the one message, and can be killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_AND_SAY_SO, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "x\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


async def test_what_a_killed_process_held_is_there_again_when_the_next_one_opens(
    queues: SqliteQueues, tmp_path: Path
) -> None:
    await queues.send("jobs", "x")
    process = await asyncio.to_thread(holder, tmp_path / "v.db")
    assert await queues.receive("jobs") == []
    await queues.aclose()
    kill(process)
    await queues.open()
    (message,) = await queues.receive("jobs")
    assert (message.body, message.dequeue_count) == ("x", 2)


async def test_what_a_killed_process_held_wakes_who_waits(queues: SqliteQueues, tmp_path: Path) -> None:
    await queues.send("jobs", "x")
    process = await asyncio.to_thread(holder, tmp_path / "v.db")
    assert await queues.receive("jobs") == []
    waiting = asyncio.create_task(queues.wait("jobs", 3600))
    kill(process)
    await asyncio.wait_for(waiting, 20)
    assert [message.body for message in await queues.receive("jobs")] == ["x"]


async def test_what_a_living_process_holds_stays_its_own(queues: SqliteQueues, tmp_path: Path) -> None:
    await queues.send("jobs", "x")
    assert await queues.receive("jobs")
    other = SqliteQueues(Database(tmp_path / "v.db"))
    await other.open()
    assert await other.receive("jobs") == []
    await other.aclose()


async def test_a_reader_is_woken_without_looking_again_and_again(
    queues: SqliteQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOOK", 3600)

    await queues.send("jobs", "delayed", delay=0.2)
    assert await queues.receive("jobs") == []
    await asyncio.wait_for(queues.wait("jobs", 3600), 20)
    assert await queues.receive("jobs", visibility=0.2)
    await asyncio.wait_for(queues.wait("jobs", 3600), 20)
    (message,) = await queues.receive("jobs")

    waiting = asyncio.create_task(queues.wait("jobs", 3600))
    await queues.release(message)
    await asyncio.wait_for(waiting, 20)


async def test_many_sends_share_commits(queues: SqliteQueues, tmp_path: Path) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    database = queues._database
    await database.write(lambda connection: connection.set_trace_callback(count))
    await asyncio.gather(*(queues.send("jobs", str(n)) for n in range(200)))
    messages = await queues.receive("jobs", limit=200)
    await asyncio.gather(*(queues.delete(message) for message in messages))
    assert commits < 30
    assert await queues.depth("jobs") == 0
