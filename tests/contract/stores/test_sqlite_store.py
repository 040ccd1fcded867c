"""What only the SQLite store promises: tables that people query, guards, and claims of killed processes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StoreError
from shared.histories.rows import Tail, next_row, object_columns, stamped
from shared.histories.sqlite import SCHEMA, SqliteStore
from shared.history import Save, chain_hash
from shared.model import Action, Contested, Control, ObjectStatus, Part, RunStatus, Sight
from shared.sqlite import Database
from tests.contract.stores.conftest import Clock
from tests.contract.stores.helpers import SYNC, TARGET, event, run, saved, state

COLUMNS = {
    "syncs_run": "run_id sync_id trigger dry_run status created_at started_at finished_at planned written unchanged deleted"
    " failed conflicts error",
    "sync_objects": "sync_object_id sync_id target path target_names source_fingerprint target_fingerprint digest"
    " digest_key_id recipe last_sync_status last_sync_at direction error run_id updated_at",
    "sync_history": "id sync_object_id sync_id target path run_id action status direction source_version target_version"
    " attempt error created_at previous_hash hash",
}


OLD = replace(state("a", source_fingerprint="f", recipe="r"), run_id="run-1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(Database(path), clock=clock)
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def person(path: Path, store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """Somebody with the sqlite3 program."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


@pytest.mark.parametrize("table", COLUMNS)
async def test_the_tables_begin_with_the_documented_columns(person: sqlite3.Connection, table: str) -> None:
    found = [row["name"] for row in person.execute(f"PRAGMA table_info({table})")]
    wanted = COLUMNS[table].split()
    assert found[: len(wanted)] == wanted


async def test_the_documented_queries_answer(store: SqliteStore, person: sqlite3.Connection, clock: Clock) -> None:
    for _ in range(12):
        clock.pass_by(seconds=1)
        newest = await store.save_run(run(clock.now, status=RunStatus.RUNNING, dry_run=True))
    assert newest is not None
    rows = person.execute("SELECT * FROM syncs_run ORDER BY created_at DESC LIMIT 10").fetchall()
    assert len(rows) == 10
    assert (rows[0]["run_id"], rows[0]["dry_run"], rows[0]["trigger"]) == (newest.run_id, 1, "manual")
    assert rows[0]["created_at"] == "2026-05-01T12:00:12.000000Z"

    await saved(store, state("good"), event())
    bad = await saved(store, state("bad", ObjectStatus.FAILED, error="why"), event(Action.FAIL, ObjectStatus.FAILED))
    (row,) = person.execute("SELECT * FROM sync_objects WHERE last_sync_status = 'failed'").fetchall()
    assert (row["path"], row["error"], row["sync_object_id"]) == ("bad", "why", bad.object_id)

    await saved(store, bad, event(Action.UPDATE))
    sql = "SELECT * FROM sync_history WHERE sync_object_id = ? ORDER BY created_at DESC"
    assert [row["action"] for row in person.execute(sql, (bad.object_id,))] == ["update", "fail"]


async def test_names_and_fingerprints_are_readable(store: SqliteStore, person: sqlite3.Connection) -> None:
    one, two = Part("a-user", "f1", "1", "d1"), Part("a-password", "f2", "2", None)
    await saved(store, replace(state("one"), parts=(one,)))
    await saved(store, replace(state("two"), parts=(one, two)))
    await saved(store, replace(state("none"), parts=()))
    rows = {row["path"]: row for row in person.execute("SELECT * FROM sync_objects")}
    found = {
        path: (json.loads(row["target_names"]), row["target_fingerprint"], row["digest"]) for path, row in rows.items()
    }
    assert found["one"] == (["a-user"], "f1", "d1")
    assert found["two"][0] == ["a-user", "a-password"]
    assert json.loads(found["two"][1]) == {"a-user": "f1", "a-password": "f2"}
    assert json.loads(found["two"][2]) == {"a-user": "d1", "a-password": None}
    assert found["none"] == ([], None, None)


@pytest.mark.parametrize("recursive_triggers", ["ON", "OFF"])
async def test_the_history_refuses_to_be_rewritten(
    store: SqliteStore, person: sqlite3.Connection, recursive_triggers: str
) -> None:
    one = await saved(store, state("a"), event())
    person.execute(f"PRAGMA recursive_triggers = {recursive_triggers}")
    before = [tuple(row) for row in person.execute("SELECT rowid, * FROM sync_history")]
    for sql in (
        "UPDATE sync_history SET error = 'other'",
        "UPDATE sync_history SET id = id || 'x'",
        "UPDATE OR REPLACE sync_history SET error = 'other'",
        "DELETE FROM sync_history",
        "INSERT OR REPLACE INTO sync_history SELECT * FROM sync_history",
        "REPLACE INTO sync_history SELECT * FROM sync_history",
        "INSERT OR REPLACE INTO sync_history (rowid, id, sync_object_id, sync_id, target, path, action, status, direction,"
        " attempt, created_at, hash) SELECT rowid, 'new', sync_object_id, sync_id, target, path, action, status, direction,"
        " attempt, created_at, hash FROM sync_history",
        f"INSERT INTO sync_history SELECT * FROM sync_history WHERE sync_object_id = '{one.object_id}'"
        " ON CONFLICT (id) DO UPDATE SET error = 'other'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            person.execute(sql)
        assert [tuple(row) for row in person.execute("SELECT rowid, * FROM sync_history")] == before


async def test_an_object_that_lost_leaves_no_event_behind(store: SqliteStore, person: sqlite3.Connection) -> None:
    one = await saved(store, state("a"), event())
    await saved(store, one, event())
    assert await store.save_objects([Save(one, event()), Save(state("b"), event())]) != [None, None]
    rows = person.execute("SELECT path FROM sync_history ORDER BY path").fetchall()
    assert [row["path"] for row in rows] == ["a", "a", "b"]


async def test_a_record_that_a_person_removed_is_reported_and_its_history_goes_on(
    store: SqliteStore, person: sqlite3.Connection
) -> None:
    await saved(store, state("a"), event())
    person.execute("DELETE FROM sync_objects")
    (broken,) = (await store.verify_history()).broken
    assert "record in sync_objects is missing" in broken.detail
    again = await saved(store, state("a"), event())
    assert again.history_count == 2
    assert not (await store.verify_history()).broken


async def test_no_question_scans_a_table(store: SqliteStore, clock: Clock, person: sqlite3.Connection) -> None:
    """Every statement of a day's work is a search of an index."""
    statements: list[str] = []

    def note(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(statements.append)

    await store._db.read(note)
    await store._db.write(note)
    one = await saved(store, state("a"), event())
    for status in (None, ObjectStatus.FAILED, ObjectStatus.IN_SYNC):
        await store.page_objects(SYNC, status=status)
        for at in (None, "a"):
            await store.page_history(SYNC, path=at, status=status)
        async for _ in store.list_objects(SYNC, target=TARGET, status=status):
            pass
    await store.count_objects(SYNC)
    await store.get_objects(SYNC, TARGET, ["a", "b"])
    await store.list_runs()
    await store.list_runs(SYNC)
    await store.list_chunks("r")
    await store.list_progress("r")
    await store.reserve_names(SYNC, TARGET, {"a": "a"})
    await store.release_names(SYNC, TARGET, {"a": "a"})
    await store.remember("batch:1", clock.now)
    await store.remembers("batch:1")
    await saved(store, one, event())
    plans = {
        row["detail"]
        for statement in set(statements)
        if statement.lstrip().startswith(("SELECT", "WITH", "UPDATE", "DELETE"))
        for row in person.execute(f"EXPLAIN QUERY PLAN {statement}")
    }
    assert any("sync_history_by_status" in plan for plan in plans)
    assert any("sync_history_by_object" in plan for plan in plans)
    scans = {plan for plan in plans if plan.startswith("SCAN")}
    allowed = ("SCAN json_each", "SCAN j ", "SCAN targets", "SCAN (subquery", "SCAN CONSTANT ROW")
    assert {
        scan
        for scan in scans
        if not scan.startswith(allowed) and scan != "SCAN syncs_run USING INDEX syncs_run_by_time"
    } == set()


async def test_what_was_forgotten_is_removed(store: SqliteStore, person: sqlite3.Connection, clock: Clock) -> None:
    for number in range(3):
        await store.remember(f"batch:{number}", clock.now + timedelta(hours=1))
        clock.pass_by(minutes=40)
    assert [row["what"] for row in person.execute("SELECT what FROM syncs_seen ORDER BY what")] == [
        "batch:1",
        "batch:2",
    ]


async def test_a_file_of_the_first_version_is_migrated_and_keeps_everything(path: Path, clock: Clock) -> None:
    db = Database(path)
    await db.open()
    await db.migrate("store", SCHEMA[:1])
    old = {
        "syncs_control": {"sync_id": SYNC, "paused": 1, "last_run": "run-1", "totals": "{}", "revision": 4},
        "sync_objects": {
            name: value
            for name, value in object_columns(OLD.object_id, replace(OLD, updated_at=clock.now)).items()
            if name not in ("source_version", "contested")
        }
        | {"revision": 2},
    }

    def fill(connection: sqlite3.Connection) -> None:
        for table, columns in old.items():
            marks = ", ".join("?" * len(columns))
            connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", tuple(columns.values()))

    await db.write(fill)
    await db.aclose()
    for _ in range(2):
        store = SqliteStore(Database(path), clock=clock)
        await store.open()
        control = await store.get_control(SYNC)
        assert control == Control(SYNC, paused=True, last_run="run-1", revision="4")
        found = (await store.get_objects(SYNC, TARGET, ["a"]))["a"]
        assert found == replace(OLD, updated_at=clock.now, revision="2")
        await store.remember("batch:1", clock.now + timedelta(hours=1))
        await store.aclose()


async def test_chains_of_the_second_version_hold_after_the_migration_and_go_on(path: Path, clock: Clock) -> None:
    db = Database(path)
    await db.open()
    await db.migrate("store", SCHEMA[:2])
    tail, columns = Tail(), list[dict[str, Any]]()
    for n in range(3):
        clock.pass_by(minutes=1)
        row = next_row(OLD.object_id, OLD, event(attempt=n), tail, clock.now)
        del row["detail"]
        assert row["hash"] == chain_hash(row["previous_hash"], row)
        columns.append(row)
        tail = Tail(n + 1, row["hash"], clock.now)
    known = object_columns(OLD.object_id, stamped(OLD, tail, clock.now, None)) | {"revision": 3}
    del known["contested"]

    def fill(connection: sqlite3.Connection) -> None:
        for table, row in (("sync_objects", known), *(("sync_history", row) for row in columns)):
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))

    await db.write(fill)
    await db.aclose()
    for rows in (3, 4):
        store = SqliteStore(Database(path), clock=clock)
        await store.open()
        verified = await store.verify_history()
        assert (verified.rows, list(verified.broken)) == (rows, [])
        found = (await store.get_objects(SYNC, TARGET, ["a"]))["a"]
        contested = Contested((Sight("source", "f"), Sight(TARGET, "g")))
        await saved(store, replace(found, contested=contested), event(Action.CONFLICT, detail="{}"))
        await store.aclose()


HOLD = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from shared.history import Save
from shared.histories.sqlite import SqliteStore
from shared.model import ObjectState
from shared.sqlite import Database

async def main():
    store = SqliteStore(Database(sys.argv[1]))
    await store.open()
    assert await store.acquire_lease("run", f"{store.owner}:1", 3600)
    later = datetime.now(UTC) + timedelta(hours=1)
    claimed = ObjectState("hub-to-prod", "prod", "a", claim=f"{store.owner}:2", claim_expires_at=later)
    await store.save_objects([Save(claimed)])
    print(store.owner, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_a_killed_process_held_is_free_at_the_next_open(path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    mine = SqliteStore(Database(path))
    running = SqliteStore(Database(path))
    try:
        owner = (await process.stdout.readline()).decode().strip()
        await running.open()
        before = (await running.get_objects(SYNC, TARGET, ["a"]))["a"]
        assert before.claim == f"{owner}:2"
        assert not await running.acquire_lease("run", f"{running.owner}:1", 60)
    finally:
        process.kill()
        await process.communicate()
    assert await running.acquire_lease("run", f"{running.owner}:1", 60)
    await mine.open()
    after = (await mine.get_objects(SYNC, TARGET, ["a"]))["a"]
    assert (after.claim, after.claim_expires_at) == (None, None)
    assert after.revision != before.revision
    assert not await mine.acquire_lease("run", f"{mine.owner}:1", 60)
    await mine.aclose()
    await running.aclose()


async def test_claims_of_the_living_survive_an_open(store: SqliteStore, path: Path) -> None:
    one = await saved(store, state("a", claim=f"{store.owner}:1"))
    other = SqliteStore(Database(path))
    await other.open()
    assert await other.get_objects(SYNC, TARGET, ["a"]) == {"a": one}
    await other.aclose()


async def test_an_archive_that_was_interrupted_before_the_removal_lost_nothing(
    store: SqliteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await saved(store, state("a"), event())
    await saved(store, one, event())
    lines: list[str] = []
    write = store._db.write

    async def killed(fn: Any) -> Any:
        raise StoreError("killed here")

    clock.pass_by(days=1)
    monkeypatch.setattr(store._db, "write", killed)
    with pytest.raises(StoreError, match="killed"):
        await store.archive(clock.now, lines.append)
    monkeypatch.setattr(store._db, "write", write)
    assert len(lines) == 1
    assert (await store.verify_history()).rows == 2
    assert await store.archive(clock.now, lines.append) == 1
    assert lines[0] == lines[1]
    assert not (await store.verify_history()).broken
