"""The SQLite file that store and queues share: group commit, errors, migrations, and who is alive."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StoreError
from shared.sqlite import Database


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "v.db")
    await database.open()
    await database.migrate("test", ["CREATE TABLE numbers (n INTEGER PRIMARY KEY);"])
    yield database
    await database.aclose()


def insert(n: int) -> Any:
    return lambda connection: connection.execute("INSERT INTO numbers VALUES (?)", (n,)).rowcount


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n")]


async def test_what_is_written_is_read_back_and_survives_reopening(db: Database) -> None:
    assert await db.write(insert(1)) == 1
    assert await db.read(numbers) == [1]
    await db.aclose()
    await db.open()
    assert await db.read(numbers) == [1]


async def test_waiting_writers_share_commits(db: Database) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    await db.write(lambda connection: connection.set_trace_callback(count))
    await asyncio.gather(*(db.write(insert(n)) for n in range(300)))
    assert await db.read(numbers) == list(range(300))
    assert commits < 30


async def test_a_writer_that_fails_undoes_only_its_own_work(db: Database) -> None:
    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO numbers VALUES (1000)")
        raise KeyError("mine")

    results = await asyncio.gather(
        *(db.write(insert(n)) for n in range(5)),
        db.write(half_done),
        db.write(insert(3)),
        *(db.write(insert(n)) for n in range(5, 10)),
        return_exceptions=True,
    )
    assert isinstance(results[5], KeyError)
    assert isinstance(results[6], StoreError)
    assert await db.read(numbers) == list(range(10))


async def test_a_lone_writer_that_fails_leaves_nothing(db: Database) -> None:
    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO numbers VALUES (1)")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await db.write(half_done)
    assert await db.read(numbers) == []


async def test_a_group_whose_transaction_is_lost_fails_as_a_whole(db: Database) -> None:
    def lose(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO numbers VALUES (1)")

    await db.write(insert(1))
    results = await asyncio.gather(
        db.write(insert(2)), db.write(insert(3)), db.write(lose), db.write(insert(4)), return_exceptions=True
    )
    kept = await db.read(numbers)
    answered = [n for n, result in zip((2, 3, None, 4), results, strict=True) if result == 1]
    assert kept == [1, *answered]
    assert isinstance(results[2], StoreError)


def insert_all(connection: sqlite3.Connection, items: Sequence[int]) -> list[str]:
    for n in items:
        connection.execute("INSERT INTO numbers VALUES (?)", (n,))
    return [f"{n} of {len(items)}" for n in items]


@contextlib.asynccontextmanager
async def kept_busy(db: Database) -> AsyncIterator[None]:
    """Whatever is asked for in the block waits together until its end."""
    let_go = threading.Event()
    busy = asyncio.create_task(db.write(lambda _: let_go.wait(30)))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        let_go.set()
        await busy


async def test_callers_that_wait_with_one_function_share_a_call_and_get_their_own_results(db: Database) -> None:
    async with kept_busy(db):
        waiting = [
            asyncio.create_task(db.write_together(insert_all, [1, 2])),
            asyncio.create_task(db.write(insert(3))),
            asyncio.create_task(db.write_together(insert_all, [])),
            asyncio.create_task(db.write_together(insert_all, [4])),
        ]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == [["1 of 3", "2 of 3"], 1, [], ["4 of 3"]]
    assert await db.read(numbers) == [1, 2, 3, 4]


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside another write"])
async def test_what_one_caller_breaks_is_not_the_failure_of_those_it_shares_a_call_with(
    db: Database, others: int
) -> None:
    await db.write(insert(7))
    async with kept_busy(db):
        beside = [asyncio.create_task(db.write(insert(100 + n))) for n in range(others)]
        waiting = [asyncio.create_task(db.write_together(insert_all, items)) for items in ([1, 2], [3, 7], [4])]
        await asyncio.sleep(0)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[0] == ["1 of 2", "2 of 2"]
    assert isinstance(results[1], StoreError)
    assert results[2] == ["4 of 1"]
    assert await asyncio.gather(*beside) == [1] * others
    assert await db.read(numbers) == [1, 2, 4, 7, *(100 + n for n in range(others))]


async def test_what_fails_for_all_is_not_tried_again_for_each(db: Database) -> None:
    calls = 0

    def on_a_full_disk(connection: sqlite3.Connection, items: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000)"
            " INSERT INTO numbers SELECT i FROM n"
        )
        return list(items)

    async with kept_busy(db):
        waiting = [asyncio.create_task(db.write_together(on_a_full_disk, [n])) for n in range(3)]
        await asyncio.sleep(0)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, StoreError)
        assert "full" in str(result)
    assert calls == 1
    assert await db.read(numbers) == []


async def test_a_reader_does_not_wait_for_a_writer_and_sees_what_is_committed(db: Database) -> None:
    other = sqlite3.connect(db.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO numbers VALUES (7)")
        writing = asyncio.create_task(db.write(insert(8)))
        assert await asyncio.wait_for(db.read(numbers), 5) == []
        other.execute("COMMIT")
        await writing
    finally:
        other.close()
    assert await db.read(numbers) == [7, 8]


async def test_a_reader_can_not_write(db: Database) -> None:
    with pytest.raises(StoreError):
        await db.read(insert(1))


async def test_closing_finishes_what_was_asked_for(tmp_path: Path) -> None:
    database = Database(tmp_path / "v.db")
    await database.open()
    await database.open()
    await database.migrate("test", ["CREATE TABLE numbers (n INTEGER PRIMARY KEY);"])
    await database.aclose()
    writes = [asyncio.create_task(database.write(insert(n))) for n in range(50)]
    await asyncio.sleep(0)
    await database.aclose()
    assert [await write for write in writes] == [1] * 50
    with pytest.raises(StoreError, match="not open"):
        await database.write(insert(99))


async def test_commits_wait_for_the_disk_and_the_file_is_private(db: Database) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[Any]:
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert await db.write(pragmas) == ["wal", 2]
    for path in db.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    first = "CREATE TABLE a (n INTEGER);\nINSERT INTO a VALUES (1);"
    second = """
    CREATE TRIGGER no_delete BEFORE DELETE ON a BEGIN
        SELECT RAISE(ABORT, 'a; is kept');
    END;
    """
    database = Database(tmp_path / "v.db")
    await database.open()
    await database.migrate("x", [first])
    await database.migrate("x", [first, second])
    await database.migrate("x", [first, second])
    assert await database.read(lambda c: c.execute("SELECT count(*) FROM a").fetchone()[0]) == 1
    with pytest.raises(StoreError, match="is kept"):
        await database.write(lambda c: c.execute("DELETE FROM a").rowcount)
    with pytest.raises(StoreError, match="upgrade") as caught:
        await database.migrate("x", [first])
    assert not caught.value.transient
    await database.aclose()


async def test_a_broken_migration_leaves_nothing_behind(db: Database) -> None:
    with pytest.raises(StoreError):
        await db.migrate("y", ["CREATE TABLE half (n INTEGER);\nCREATE TABLE half (n INTEGER);"])
    assert await db.read(lambda c: c.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone()) is None


async def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "v.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="upgrade"):
        await Database(tmp_path / "v.db").open()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: path.write_bytes(b"this is no database, " * 100), "not a SQLite database"),
        (lambda path: path.mkdir(), "is a folder, not a database"),
    ],
)
async def test_what_can_not_be_opened_is_said_clearly(tmp_path: Path, prepare: Any, says: str) -> None:
    prepare(tmp_path / "v.db")
    with pytest.raises(StoreError, match=says) as caught:
        await Database(tmp_path / "v.db").open()
    assert not caught.value.transient


async def test_a_missing_folder_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        await Database(tmp_path / "nowhere" / "v.db").open()


async def test_another_process_that_keeps_the_lock_is_a_transient_error(tmp_path: Path) -> None:
    database = Database(tmp_path / "v.db", busy_timeout=0.05)
    await database.open()
    other = sqlite3.connect(database.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as caught:
            await database.write(lambda connection: None)
        assert caught.value.transient
    finally:
        other.close()
        await database.aclose()


async def test_a_full_disk_is_a_transient_error(db: Database) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        connection.execute("CREATE TABLE large (b BLOB)")

    with pytest.raises(StoreError, match="disk is full") as caught:
        await db.write(fill)
    assert caught.value.transient


# --- owners -------------------------------------------------------------------------------------------------------

HOLD = """
import asyncio, sys
from shared.sqlite import Database

async def main():
    database = Database(sys.argv[1])
    await database.open()
    print(database.owner, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_owner_is_dead_once_its_process_was_killed_and_not_before(db: Database) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(db.path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        token = (await process.stdout.readline()).decode().strip()
        assert db.dead_owners([token, db.owner]) == set()
    finally:
        process.kill()
        await process.communicate()
    assert db.dead_owners([token, db.owner, "not a token"]) == {token}


async def test_two_databases_of_one_process_know_each_other_alive(db: Database) -> None:
    other = Database(db.path)
    await other.open()
    assert db.dead_owners([other.owner]) == other.dead_owners([db.owner]) == set()
    await other.aclose()
    assert db.dead_owners([other.owner, db.owner]) == {other.owner}


async def test_closing_one_database_does_not_drop_the_other_ones_lock(db: Database) -> None:
    other = Database(db.path)
    await other.open()
    await other.aclose()
    probe = "import sys; from shared.sqlite.owners import hold, dead; from pathlib import Path; p = Path(sys.argv[1]);"
    probe += "hold(p, '0' * 14); print(sorted(dead(p, sys.argv[2:])))"
    answer = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", probe, str(db.path), db.owner, other.owner],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str([other.owner])


async def test_only_what_must_be_durable_waits_for_the_disk(tmp_path: Path) -> None:
    def mode(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    normal, full = 1, 2
    database = Database(tmp_path / "a.db")
    await database.open()
    try:
        assert await database.write(mode, durable=False) == normal
        assert await database.write(mode) == full
        assert await database.write(mode, durable=False) == normal
        # Sent at once, they share a transaction.
        together = await asyncio.gather(database.write(mode, durable=False), database.write(mode))
        assert together[1] == full
    finally:
        await database.aclose()
