"""The store in a SQLite file, for one machine.

Statements are few and large: each costs the writer's thread a wait for the interpreter lock, which on a busy event
loop is longer than the statement. So whole batches go in as one multi-row INSERT, and come out as one JSON text; and what
several jobs save at the same time is one batch.
"""
# ruff: noqa: S608 - statements are put together from this file's own table and column names; values are parameters.

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from shared.histories.rows import (
    HISTORY_COLUMNS,
    OBJECT_COLUMNS,
    RUN_COLUMNS,
    Columns,
    Tail,
    check_chain,
    chunk_columns,
    chunk_from,
    control_columns,
    control_from,
    decode_cursor,
    encode_cursor,
    history_from,
    history_id,
    history_number,
    next_row,
    object_columns,
    object_from,
    progress_columns,
    progress_from,
    run_columns,
    run_from,
    stamped,
)
from shared.history import Broken, Page, Save, Store, Verification
from shared.model import (
    Chunk,
    Control,
    HistoryRow,
    ObjectState,
    ObjectStatus,
    Outcome,
    Progress,
    Run,
    canonical_json,
    from_iso,
    iso,
    object_id,
    strictly_after,
    utcnow,
)
from shared.sqlite import Database, for_values

PAGE = 500
"""Rows that are read at once where a list has no limit of its own."""

_VERSION_1 = """
CREATE TABLE syncs_run (
    run_id TEXT NOT NULL PRIMARY KEY, sync_id TEXT NOT NULL, "trigger" TEXT NOT NULL, dry_run INTEGER NOT NULL,
    status TEXT NOT NULL, created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT, planned INTEGER NOT NULL,
    written INTEGER NOT NULL, unchanged INTEGER NOT NULL, deleted INTEGER NOT NULL, failed INTEGER NOT NULL,
    conflicts INTEGER NOT NULL, error TEXT, drifted INTEGER NOT NULL, allow_deletes INTEGER NOT NULL,
    calls TEXT NOT NULL, paths TEXT, revision INTEGER NOT NULL
);
CREATE INDEX syncs_run_by_time ON syncs_run (created_at, run_id);
CREATE INDEX syncs_run_by_sync ON syncs_run (sync_id, created_at, run_id);

CREATE TABLE syncs_progress (
    run_id TEXT NOT NULL, target TEXT NOT NULL, cursor TEXT, slices INTEGER NOT NULL, planned INTEGER NOT NULL,
    unchanged INTEGER NOT NULL, failed INTEGER NOT NULL, finished INTEGER NOT NULL, blocked TEXT, error TEXT,
    calls TEXT NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (run_id, target)
);

CREATE TABLE syncs_chunk (
    run_id TEXT NOT NULL, chunk TEXT NOT NULL, target TEXT NOT NULL, op TEXT NOT NULL, outcomes TEXT NOT NULL,
    held INTEGER NOT NULL, cleanup INTEGER NOT NULL, calls TEXT NOT NULL, revision INTEGER NOT NULL,
    paths TEXT NOT NULL, PRIMARY KEY (run_id, chunk)
);

CREATE TABLE syncs_plan (
    run_id TEXT NOT NULL, page INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (run_id, page)
);

CREATE TABLE syncs_control (
    sync_id TEXT NOT NULL PRIMARY KEY, paused INTEGER NOT NULL, active_run TEXT, last_run TEXT, last_success_at TEXT,
    totals TEXT NOT NULL, revision INTEGER NOT NULL
);

CREATE TABLE syncs_lease (name TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, expires_at TEXT NOT NULL);

CREATE TABLE sync_objects (
    sync_object_id TEXT NOT NULL PRIMARY KEY, sync_id TEXT NOT NULL, target TEXT NOT NULL, path TEXT NOT NULL,
    target_names TEXT NOT NULL, source_fingerprint TEXT, target_fingerprint TEXT, digest TEXT, digest_key_id TEXT,
    recipe TEXT, last_sync_status TEXT NOT NULL, last_sync_at TEXT, direction TEXT NOT NULL, error TEXT, run_id TEXT,
    updated_at TEXT NOT NULL, parts TEXT NOT NULL, transient INTEGER NOT NULL, outcome TEXT NOT NULL, claim TEXT,
    claim_expires_at TEXT, history_count INTEGER NOT NULL, history_hash TEXT, history_at TEXT,
    revision INTEGER NOT NULL
);
CREATE INDEX sync_objects_by_path ON sync_objects (sync_id, target, path);
CREATE INDEX sync_objects_by_status ON sync_objects (sync_id, last_sync_status, target, path);
CREATE INDEX sync_objects_claimed ON sync_objects (claim) WHERE claim IS NOT NULL;

CREATE TABLE sync_names (
    sync_id TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (sync_id, target, name)
) WITHOUT ROWID;

CREATE TABLE sync_history (
    id TEXT NOT NULL PRIMARY KEY, sync_object_id TEXT NOT NULL, sync_id TEXT NOT NULL, target TEXT NOT NULL,
    path TEXT NOT NULL, run_id TEXT, action TEXT NOT NULL, status TEXT NOT NULL, direction TEXT NOT NULL,
    source_version TEXT, target_version TEXT, attempt INTEGER NOT NULL, error TEXT, created_at TEXT NOT NULL,
    previous_hash TEXT, hash TEXT NOT NULL
);
CREATE INDEX sync_history_by_object ON sync_history (sync_object_id, created_at);
CREATE INDEX sync_history_by_time ON sync_history (sync_id, created_at, id);
CREATE INDEX sync_history_by_status ON sync_history (sync_id, status, created_at, id) WHERE status <> 'in_sync';

-- Where an object's chain was cut when its older rows were archived: the last row that was removed.
CREATE TABLE sync_history_cut (
    sync_object_id TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL, id TEXT NOT NULL, hash TEXT NOT NULL,
    created_at TEXT NOT NULL
);

CREATE TRIGGER sync_history_no_update BEFORE UPDATE ON sync_history BEGIN
    SELECT RAISE(ABORT, 'sync_history only grows: its rows are never changed');
END;
CREATE TRIGGER sync_history_no_delete BEFORE DELETE ON sync_history
WHEN NOT EXISTS (SELECT 1 FROM sync_history_cut WHERE sync_object_id = OLD.sync_object_id AND id >= OLD.id) BEGIN
    SELECT RAISE(ABORT, 'sync_history only grows: vaultferry history --archive is the one way to remove rows');
END;
-- INSERT OR REPLACE takes the old row away without asking the two triggers above.
CREATE TRIGGER sync_history_no_replace BEFORE INSERT ON sync_history
WHEN EXISTS (SELECT 1 FROM sync_history WHERE id = NEW.id OR rowid = NEW.rowid) BEGIN
    SELECT RAISE(ABORT, 'sync_history only grows: its rows are never replaced');
END;
"""

_VERSION_2 = """
ALTER TABLE sync_objects ADD COLUMN source_version TEXT;
ALTER TABLE syncs_control ADD COLUMN again TEXT;
ALTER TABLE syncs_control ADD COLUMN event_deletes TEXT NOT NULL DEFAULT '{}';

CREATE TABLE syncs_seen (what TEXT NOT NULL PRIMARY KEY, until TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX syncs_seen_by_time ON syncs_seen (until);
"""

_VERSION_3 = """
ALTER TABLE sync_objects ADD COLUMN contested TEXT;
ALTER TABLE sync_history ADD COLUMN detail TEXT;
"""

SCHEMA = (_VERSION_1, _VERSION_2, _VERSION_3)

_RUN_SELECT = ", ".join(f'"{name}"' for name in RUN_COLUMNS)
_OBJECT_SELECT = (*OBJECT_COLUMNS, "revision")
_HISTORY_SELECT = ", ".join(HISTORY_COLUMNS)


class SqliteStore(Store):
    """The store in one SQLite file. `owner` begins every claim of this process; those of dead ones end at `open`."""

    def __init__(self, db: Database, *, clock: Callable[[], datetime] = utcnow) -> None:
        self._db = db
        self._clock = clock
        self._is_open = False
        self.owner = db.owner

    async def open(self) -> None:
        if self._is_open:
            return
        await self._db.open()
        try:
            await self._db.migrate("store", SCHEMA)
            await self._db.write(self._free_dead)
        except BaseException:
            await self._db.aclose()
            raise
        self._is_open = True

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._db.aclose()

    def _free_dead(self, connection: sqlite3.Connection) -> None:
        """A killed process must not make the next one wait until its claims and leases expire."""
        tokens = {
            token
            for (token,) in connection.execute(
                "SELECT substr(claim, 1, 14) FROM sync_objects WHERE claim IS NOT NULL"
                " UNION SELECT substr(owner, 1, 14) FROM syncs_lease"
            )
        }
        dead = json.dumps(sorted(self._db.dead_owners(tokens)))
        connection.execute(
            "UPDATE sync_objects SET claim = NULL, claim_expires_at = NULL, revision = revision + 1"
            " WHERE claim IS NOT NULL AND substr(claim, 1, 14) IN (SELECT value FROM json_each(?))",
            (dead,),
        )
        connection.execute(
            "DELETE FROM syncs_lease WHERE substr(owner, 1, 14) IN (SELECT value FROM json_each(?))", (dead,)
        )

    # runs -------------------------------------------------------------------------------------------------------

    async def save_run(self, run: Run) -> Run | None:
        columns = run_columns(run)
        revision = await self._db.write(lambda c: _save(c, "syncs_run", ("run_id",), columns, run.revision))
        return None if revision is None else replace(run, revision=revision)

    async def get_run(self, run_id: str) -> Run | None:
        row = await self._one(f"SELECT {_RUN_SELECT}, revision FROM syncs_run WHERE run_id = ?", (run_id,))
        return None if row is None else run_from(row, str(row["revision"]))

    async def list_runs(self, sync_id: str | None = None, *, limit: int = 50, cursor: str | None = None) -> Page[Run]:
        where, values = ["TRUE"], list[Any]()
        if sync_id is not None:
            where.append("sync_id = ?")
            values.append(sync_id)
        if cursor is not None:
            where.append("(created_at, run_id) < (?, ?)")
            values.extend(decode_cursor(cursor, 2))
        rows = await self._all(
            f"SELECT {_RUN_SELECT}, revision FROM syncs_run WHERE {' AND '.join(where)}"
            " ORDER BY created_at DESC, run_id DESC LIMIT ?",
            (*values, limit + 1),
        )
        runs = [run_from(row, str(row["revision"])) for row in rows[:limit]]
        return Page(runs, _next(rows, limit, "created_at", "run_id"))

    async def save_slice(self, progress: Progress, chunks: Sequence[Chunk] = ()) -> Progress | None:
        columns = progress_columns(progress)
        new = [chunk_columns(chunk) | {"revision": 1} for chunk in chunks]
        ids = json.dumps([[chunk.run_id, chunk.chunk] for chunk in chunks])

        def run(connection: sqlite3.Connection) -> str | None:
            there = connection.execute(
                "SELECT 1 FROM json_each(?) AS j JOIN syncs_chunk AS c"
                " ON c.run_id = json_extract(j.value, '$[0]') AND c.chunk = json_extract(j.value, '$[1]')",
                (ids,),
            )
            if there.fetchone() is not None:
                return None
            revision = _save(connection, "syncs_progress", ("run_id", "target"), columns, progress.revision)
            if revision is not None:
                _insert(connection, "syncs_chunk", new)
            return revision

        revision = await self._db.write(run)
        return None if revision is None else replace(progress, revision=revision)

    async def list_progress(self, run_id: str) -> list[Progress]:
        rows = await self._all("SELECT * FROM syncs_progress WHERE run_id = ? ORDER BY target", (run_id,))
        return [progress_from(row, str(row["revision"])) for row in rows]

    async def get_chunk(self, run_id: str, chunk: str) -> Chunk | None:
        row = await self._one("SELECT * FROM syncs_chunk WHERE run_id = ? AND chunk = ?", (run_id, chunk))
        return None if row is None else chunk_from(row, str(row["revision"]))

    async def list_chunks(self, run_id: str) -> list[Chunk]:
        rows = await self._all("SELECT * FROM syncs_chunk WHERE run_id = ? ORDER BY chunk", (run_id,))
        return [chunk_from(row, str(row["revision"])) for row in rows]

    async def has_open_chunks(self, run_id: str) -> bool:
        query = "SELECT 1 FROM syncs_chunk WHERE run_id = ? AND NOT held AND instr(outcomes, ?) LIMIT 1"
        return await self._one(query, (run_id, Outcome.OPEN)) is not None

    async def save_chunk(self, chunk: Chunk) -> Chunk | None:
        columns = chunk_columns(chunk)
        revision = await self._db.write(lambda c: _save(c, "syncs_chunk", ("run_id", "chunk"), columns, chunk.revision))
        return None if revision is None else replace(chunk, revision=revision)

    async def save_plan_page(self, run_id: str, page: int, document: str) -> None:
        await self._execute(
            "INSERT INTO syncs_plan (run_id, page, document) VALUES (?, ?, ?)"
            " ON CONFLICT (run_id, page) DO UPDATE SET document = excluded.document",
            (run_id, page, document),
        )

    async def plan_pages(self, run_id: str) -> AsyncIterator[str]:
        page = -1
        while row := await self._one(
            "SELECT page, document FROM syncs_plan WHERE run_id = ? AND page > ? ORDER BY page LIMIT 1", (run_id, page)
        ):
            page = row["page"]
            yield row["document"]

    # controls ---------------------------------------------------------------------------------------------------

    async def get_control(self, sync_id: str) -> Control:
        row = await self._one("SELECT * FROM syncs_control WHERE sync_id = ?", (sync_id,))
        return Control(sync_id) if row is None else control_from(row, str(row["revision"]))

    async def save_control(self, control: Control) -> Control | None:
        columns = control_columns(control)
        revision = await self._db.write(lambda c: _save(c, "syncs_control", ("sync_id",), columns, control.revision))
        return None if revision is None else replace(control, revision=revision)

    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        def run(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            held = connection.execute("SELECT owner, expires_at FROM syncs_lease WHERE name = ?", (name,)).fetchone()
            if held and held[0] != owner and held[1] > str(iso(now)) and not self._db.dead_owners([held[0][:14]]):
                return False
            connection.execute(
                "INSERT INTO syncs_lease (name, owner, expires_at) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at",
                (name, owner, iso(now + timedelta(seconds=seconds))),
            )
            return True

        return await self._db.write(run)

    async def release_lease(self, name: str, owner: str) -> None:
        await self._execute("DELETE FROM syncs_lease WHERE name = ? AND owner = ?", (name, owner))

    async def remember(self, what: str, until: datetime) -> None:
        def run(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM syncs_seen WHERE until <= ?", (iso(self._clock()),))
            connection.execute(
                "INSERT INTO syncs_seen (what, until) VALUES (?, ?)"
                " ON CONFLICT (what) DO UPDATE SET until = excluded.until",
                (what, iso(until)),
            )

        # What a power cut makes it forget is merely done twice.
        await self._db.write(run, durable=False)

    async def remembers(self, what: str) -> bool:
        query = "SELECT 1 FROM syncs_seen WHERE what = ? AND until > ?"
        return await self._one(query, (what, iso(self._clock()))) is not None

    # objects ----------------------------------------------------------------------------------------------------

    async def list_objects(
        self, sync_id: str, *, target: str | None = None, status: ObjectStatus | None = None
    ) -> AsyncIterator[ObjectState]:
        position: list[str] | None = None
        while True:
            page = await self._objects(sync_id, target, status, position, PAGE)
            for state in page:
                yield state
            if len(page) < PAGE:
                return
            position = [page[-1].target, page[-1].path]

    async def page_objects(
        self, sync_id: str, *, status: ObjectStatus | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[ObjectState]:
        position = None if cursor is None else decode_cursor(cursor, 2)
        states = await self._objects(sync_id, None, status, position, limit + 1)
        more = len(states) > limit
        states = states[:limit]
        return Page(states, encode_cursor(states[-1].target, states[-1].path) if more else None)

    async def _objects(
        self, sync_id: str, target: str | None, status: ObjectStatus | None, position: list[str] | None, limit: int
    ) -> list[ObjectState]:
        where, values = ["sync_id = ?"], [sync_id]
        for column, value in (("target", target), ("last_sync_status", status)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(str(value))
        if position is not None:
            where.append("(target, path) > (?, ?)")
            values.extend(position)
        sql = f"SELECT * FROM sync_objects WHERE {' AND '.join(where)} ORDER BY target, path LIMIT ?"
        rows = await self._db.read(lambda c: _table(c, _OBJECT_SELECT, sql, (*values, limit)))
        return [object_from(row, str(row["revision"])) for row in rows]

    async def count_objects(self, sync_id: str) -> Mapping[ObjectStatus, int]:
        rows = await self._all(
            "SELECT last_sync_status AS status, count(*) AS n FROM sync_objects WHERE sync_id = ?"
            " GROUP BY last_sync_status",
            (sync_id,),
        )
        return {ObjectStatus(row["status"]): row["n"] for row in rows}

    async def get_objects(self, sync_id: str, target: str, paths: Sequence[str]) -> dict[str, ObjectState]:
        found: dict[str, ObjectState] = {}
        sql = "SELECT * FROM sync_objects WHERE sync_object_id IN (SELECT value FROM json_each(?))"
        for part in _slices(paths, PAGE):
            ids = json.dumps([object_id(sync_id, target, path) for path in part])
            rows = await self._db.read(partial(_table, columns=_OBJECT_SELECT, sql=sql, values=(ids,)))
            found |= {row["path"]: object_from(row, str(row["revision"])) for row in rows}
        return found

    async def save_objects(self, saves: Sequence[Save]) -> list[ObjectState | None]:
        if not saves:
            return []
        return list(await self._db.write_together(self._save_objects, saves))

    def _save_objects(self, connection: sqlite3.Connection, saves: Sequence[Save]) -> list[ObjectState | None]:
        ids = [save.state.object_id for save in saves]
        stored = {
            row["sync_object_id"]: row
            for row in _table(
                connection,
                ("sync_object_id", "revision", "history_count", "history_hash", "history_at"),
                "SELECT * FROM sync_objects WHERE sync_object_id IN (SELECT value FROM json_each(?))",
                (json.dumps(ids),),
            )
        }
        # An object without a record may have a history all the same, if somebody removed the record by hand.
        tails = _tails(connection, [one for one in ids if one not in stored])
        now = self._clock()
        answers: list[ObjectState | None] = []
        objects: list[Columns] = []
        history: list[Columns] = []
        for sync_object_id, save in zip(ids, saves, strict=True):
            row = stored.get(sync_object_id)
            current = None if row is None else str(row["revision"])
            if current != save.state.revision:
                answers.append(None)
                continue
            if row is None:
                tail = tails.get(sync_object_id, Tail())
            else:
                tail = Tail(row["history_count"], row["history_hash"], from_iso(row["history_at"]))
            if save.event is not None:
                at = strictly_after(now, tail.at)
                history.append(next_row(sync_object_id, save.state, save.event, tail, at))
                tail = Tail(tail.count + 1, history[-1]["hash"], at)
            revision = 1 if row is None else row["revision"] + 1
            state = stamped(save.state, tail, now, str(revision))
            objects.append(object_columns(sync_object_id, state) | {"revision": revision})
            answers.append(state)
            # The same object twice in one call: the second has not seen what the first one did.
            stored[sync_object_id] = {"revision": revision}
        _insert(connection, "sync_objects", objects, conflict=_OBJECT_CONFLICT)
        _insert(connection, "sync_history", history)
        return answers

    async def reserve_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> dict[str, str]:
        if not names:
            return {}
        document = canonical_json(names)

        def run(connection: sqlite3.Connection) -> dict[str, str]:
            connection.execute(
                "INSERT INTO sync_names (sync_id, target, name, path)"
                " SELECT ?, ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE TRUE"
                " ON CONFLICT (sync_id, target, name) DO NOTHING",
                (sync_id, target, canonical_json(sorted(names.items()))),
            )
            taken = connection.execute(
                "SELECT n.name, n.path FROM json_each(?) AS j JOIN sync_names AS n"
                " ON n.sync_id = ? AND n.target = ? AND n.name = j.key WHERE n.path <> j.value",
                (document, sync_id, target),
            )
            return dict(taken.fetchall())

        return await self._db.write(run)

    async def release_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> None:
        if names:
            await self._execute(
                "DELETE FROM sync_names WHERE sync_id = ? AND target = ? AND (name, path) IN"
                " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))",
                (sync_id, target, canonical_json(sorted(names.items()))),
            )

    # history ----------------------------------------------------------------------------------------------------

    async def page_history(
        self,
        sync_id: str,
        *,
        path: str | None = None,
        status: ObjectStatus | None = None,
        since: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[HistoryRow]:
        if path is None:
            where, values = ["sync_id = ?"], [sync_id]
        else:
            # By object, so that it is a range of one index: a path has one object a target.
            targets = await self._all(_TARGETS, (sync_id, sync_id))
            ids = [object_id(sync_id, row["target"], path) for row in targets]
            where, values = ["sync_object_id IN (SELECT value FROM json_each(?))"], [json.dumps(ids)]
        if status is not None:
            where.append("status = ?")
            values.append(str(status))
            if status is not ObjectStatus.IN_SYNC:
                # What the partial index asks for before it is used: https://sqlite.org/partialindex.html
                where.append("status <> 'in_sync'")
        if since is not None:
            where.append("created_at >= ?")
            values.append(str(iso(since)))
        if cursor is not None:
            where.append("(created_at, id) < (?, ?)")
            values.extend(decode_cursor(cursor, 2))
        rows = await self._all(
            f"SELECT {_HISTORY_SELECT} FROM sync_history WHERE {' AND '.join(where)}"
            " ORDER BY created_at DESC, id DESC LIMIT ?",
            (*values, limit + 1),
        )
        return Page([history_from(row) for row in rows[:limit]], _next(rows, limit, "created_at", "id"))

    async def verify_history(self, sync_id: str | None = None) -> Verification:
        objects, rows, broken = 0, 0, list[Broken]()
        only, values = ("TRUE", []) if sync_id is None else ("sync_id = ?", [sync_id])
        position = ""
        while page := await self._all(
            "SELECT sync_object_id, path, history_count, history_hash, history_at FROM sync_objects"
            f" WHERE sync_object_id > ? AND {only} ORDER BY sync_object_id LIMIT 100",
            (position, *values),
        ):
            position = page[-1]["sync_object_id"]
            known = {
                row["sync_object_id"]: (row["path"], Tail(row["history_count"], row["history_hash"])) for row in page
            }
            found, wrong = await self._verify(known)
            objects, rows = objects + len(page), rows + found
            broken += wrong
        position = ""
        while page := await self._all(
            f"SELECT DISTINCT sync_object_id, path FROM sync_history WHERE sync_object_id > ? AND {only}"
            " AND NOT EXISTS (SELECT 1 FROM sync_objects o WHERE o.sync_object_id = sync_history.sync_object_id)"
            " ORDER BY sync_object_id LIMIT 100",
            (position, *values),
        ):
            position = page[-1]["sync_object_id"]
            orphans = {row["sync_object_id"]: row["path"] for row in page}
            broken += [
                Broken(one, path, "there is history of it, but its record in sync_objects is missing")
                for one, path in orphans.items()
            ]
            found, wrong = await self._verify({one: (path, None) for one, path in orphans.items()})
            objects, rows = objects + len(orphans), rows + found
            broken += wrong
        return Verification(objects, rows, tuple(broken))

    async def _verify(self, known: Mapping[str, tuple[str, Tail | None]]) -> tuple[int, list[Broken]]:
        """Check the chains of these objects (id → path, tail): the number of their rows, and what is wrong."""
        ids = json.dumps(list(known))
        sql = "SELECT * FROM sync_history WHERE sync_object_id IN (SELECT value FROM json_each(?)) ORDER BY id"

        def read(connection: sqlite3.Connection) -> tuple[list[Columns], dict[str, Tail]]:
            cuts = connection.execute(
                "SELECT sync_object_id, number, hash, created_at FROM sync_history_cut"
                " WHERE sync_object_id IN (SELECT value FROM json_each(?))",
                (ids,),
            )
            ends = {one: Tail(number, digest, from_iso(at)) for one, number, digest, at in cuts.fetchall()}
            return list(_table(connection, HISTORY_COLUMNS, sql, (ids,))), ends

        rows, cuts = await self._db.read(read)
        chains: dict[str, list[Columns]] = {one: [] for one in known}
        for row in rows:
            chains[row["sync_object_id"]].append(row)
        broken: list[Broken] = []
        for one, (path, tail) in known.items():
            broken += check_chain(one, path, chains[one], cuts.get(one, Tail()), tail, may_be_ahead=tail is None)
        return len(rows), broken

    async def archive(self, before: datetime, write: Any) -> int:
        limit, lines = str(iso(before)), 0
        runs: list[str] = []
        async for run in self._pages(
            f"SELECT {_RUN_SELECT} FROM syncs_run WHERE finished_at < ? AND run_id > ? ORDER BY run_id LIMIT {PAGE}",
            (limit,),
            "run_id",
        ):
            write(canonical_json({"record": "run"} | run))
            runs.append(run["run_id"])
            lines += 1
        cuts: dict[str, Columns] = {}
        older: Columns | None = None
        async for row in self._pages(
            f"SELECT {_HISTORY_SELECT} FROM sync_history WHERE id > ? ORDER BY id LIMIT {PAGE}", (), "id"
        ):
            # A row goes once a younger one of the same object was seen: the newest stays.
            if older is not None and older["sync_object_id"] == row["sync_object_id"]:
                write(canonical_json({"record": "history"} | older))
                lines += 1
                cuts[older["sync_object_id"]] = {
                    "sync_object_id": older["sync_object_id"],
                    "number": history_number(older["id"]),
                    "id": older["id"],
                    "hash": older["hash"],
                    "created_at": older["created_at"],
                }
            older = row if row["created_at"] < limit else None
        for some_runs in _slices(runs, PAGE):
            await self._db.write(partial(_remove_runs, run_ids=some_runs))
        for some_cuts in _slices(list(cuts.values()), PAGE):
            await self._db.write(partial(_cut, cuts=some_cuts))
        return lines

    # small helpers ----------------------------------------------------------------------------------------------

    async def _pages(self, sql: str, values: tuple[Any, ...], key: str) -> AsyncIterator[Columns]:
        """The rows of a query that ends in a position and a LIMIT, page by page."""
        position = ""
        while page := await self._all(sql, (*values, position)):
            for row in page:
                yield row
            position = page[-1][key]

    async def _execute(self, sql: str, values: tuple[Any, ...]) -> None:
        await self._db.write(lambda connection: connection.execute(sql, values).rowcount)

    async def _one(self, sql: str, values: tuple[Any, ...]) -> Columns | None:
        rows = await self._all(sql, values)
        return rows[0] if rows else None

    async def _all(self, sql: str, values: tuple[Any, ...]) -> list[Columns]:
        def run(connection: sqlite3.Connection) -> list[Columns]:
            cursor = connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return await self._db.read(run)


_OBJECT_CONFLICT = "ON CONFLICT (sync_object_id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in (*OBJECT_COLUMNS[4:], "revision")
)

# One step of an index a target, however many objects there are (a "loose index scan").
_TARGETS = """
WITH RECURSIVE targets (target) AS (
    SELECT min(target) FROM sync_objects WHERE sync_id = ?
    UNION ALL
    SELECT (SELECT min(o.target) FROM sync_objects AS o WHERE o.sync_id = ? AND o.target > targets.target)
    FROM targets WHERE targets.target IS NOT NULL
)
SELECT target FROM targets WHERE target IS NOT NULL
"""


def _save(
    connection: sqlite3.Connection, table: str, keys: Sequence[str], columns: Columns, revision: str | None
) -> str | None:
    """Insert (no revision) or update one record if its revision still holds: the new revision, or None."""
    if revision is None:
        names = ", ".join(f'"{name}"' for name in columns)
        sql = f"INSERT INTO {table} ({names}, revision) VALUES ({_marks(len(columns))}, 1) ON CONFLICT DO NOTHING"
        return "1" if connection.execute(sql, tuple(columns.values())).rowcount == 1 else None
    assignments = ", ".join(f'"{name}" = ?' for name in columns)
    where = " AND ".join(f"{key} = ?" for key in keys)
    changed = connection.execute(
        f"UPDATE {table} SET {assignments}, revision = revision + 1 WHERE {where} AND revision = ?",
        (*columns.values(), *(columns[key] for key in keys), int(revision)),
    ).rowcount
    return str(int(revision) + 1) if changed == 1 else None


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[Columns], *, conflict: str = "") -> None:
    """Insert rows of the same columns."""
    if rows:
        statement = f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES {{}} {conflict}"
        for_values(connection, statement, [tuple(row.values()) for row in rows])


def _table(
    connection: sqlite3.Connection, columns: Sequence[str], sql: str, values: tuple[Any, ...]
) -> Iterator[Columns]:
    """The rows of a query, fetched in a single step (see the top of this file)."""
    text = connection.execute(f"SELECT json_group_array(json_array({', '.join(columns)})) FROM ({sql})", values)
    return (dict(zip(columns, row, strict=True)) for row in json.loads(text.fetchone()[0]))


def _tails(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Tail]:
    """The ends of these objects' histories, of those that have one."""
    if not ids:
        return {}
    sql = """
        SELECT h.sync_object_id, h.id, h.hash, h.created_at FROM json_each(?) AS j JOIN sync_history AS h
        ON h.id = (SELECT max(id) FROM sync_history WHERE id > j.value || '-' AND id < j.value || '.')
    """
    names = ("sync_object_id", "id", "hash", "created_at")
    return {
        row["sync_object_id"]: Tail(history_number(row["id"]), row["hash"], from_iso(row["created_at"]))
        for row in _table(connection, names, sql, (json.dumps(list(ids)),))
    }


def _remove_runs(connection: sqlite3.Connection, run_ids: Sequence[str]) -> None:
    ids = json.dumps(list(run_ids))
    for table in ("syncs_chunk", "syncs_progress", "syncs_plan", "syncs_run"):
        connection.execute(f"DELETE FROM {table} WHERE run_id IN (SELECT value FROM json_each(?))", (ids,))


def _cut(connection: sqlite3.Connection, cuts: Sequence[Columns]) -> None:
    """Remove the archived beginnings of some chains. Only behind a cut does the guard let a row go."""
    _insert(
        connection,
        "sync_history_cut",
        cuts,
        conflict="ON CONFLICT (sync_object_id) DO UPDATE SET number = excluded.number, id = excluded.id,"
        " hash = excluded.hash, created_at = excluded.created_at WHERE excluded.number > number",
    )
    ranges = json.dumps([[history_id(cut["sync_object_id"], 0), cut["id"]] for cut in cuts])
    connection.execute(
        "DELETE FROM sync_history WHERE id IN (SELECT h.id FROM json_each(?) AS j JOIN sync_history AS h"
        " ON h.id BETWEEN json_extract(j.value, '$[0]') AND json_extract(j.value, '$[1]'))",
        (ranges,),
    )


def _next(rows: Sequence[Columns], limit: int, *keys: str) -> str | None:
    """The cursor behind the last of `limit` rows, if more were found."""
    return encode_cursor(*(rows[limit - 1][key] for key in keys)) if len(rows) > limit else None


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _slices(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
