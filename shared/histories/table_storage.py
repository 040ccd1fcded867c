"""The store in Azure Table Storage, for many instances at once.

Every question is a range of one partition, and what must hold together is in one partition too:

    syncsrun      runs, newest first: RowKey is the run's id with its digits mirrored; a pointer for each sync
    syncschunk    one partition a run: k| chunks, g| progress, p| pages of a plan, b| paths too large for a slice
    syncobjects   one partition a sync: o| objects; i| a pointer to each that is failed, conflict, pending or skipped
    synchistory   one partition a sync: each row by object (o|), by time (t|) and, unless in_sync, by status (s|);
                  c| where an object's chain was cut by the archive
    syncsmeta     the schema's version, controls, leases, names; seen|DAY: keys to be remembered until that day

Nothing spans tables: the history is appended before the object is saved, under a key that only one row can have. What a
crash leaves between the two is a row that the object's record does not know yet; the next one is appended behind it.
"""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from shared.errors import StoreError, permanent
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
from shared.histories.tables import MAX_BYTES, Entity, Operation, Tables, after, batches, key, pack, size, unpack
from shared.history import LONGEST_MEMORY, SCHEMA_VERSION, Broken, Page, Save, Store, Verification, chain_hash
from shared.model import (
    Chunk,
    Control,
    Event,
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
from shared.resources import CHUNKS_TABLE, HISTORY_TABLE, META_TABLE, OBJECTS_TABLE, RUNS_TABLE, TABLES

if TYPE_CHECKING:
    from azure.data.tables.aio import TableServiceClient

PAGE = 1_000
"""Entities of one answer, at most what the service gives."""
INDEXED = frozenset({ObjectStatus.FAILED, ObjectStatus.CONFLICT, ObjectStatus.PENDING, ObjectStatus.SKIPPED})
_APPENDS = 50
SKEW = timedelta(minutes=10)
"""Younger history is left out where copies are compared: it may be written while they are read."""

_CHUNK_COLUMNS = ("run_id", "chunk", "target", "op", "outcomes", "held", "cleanup", "calls", "paths")
_PROGRESS_COLUMNS = (
    "run_id",
    "target",
    "cursor",
    "slices",
    "planned",
    "unchanged",
    "failed",
    "finished",
    "blocked",
    "error",
    "calls",
)
_CONTROL_COLUMNS = (
    "sync_id",
    "paused",
    "active_run",
    "last_run",
    "last_success_at",
    "totals",
    "again",
    "event_deletes",
)
_SEEN = "seen|"
_MIRROR = str.maketrans("0123456789", "9876543210")


class TableStore(Store):
    """The store in the tables of one storage account; `service` is called once, at `open`."""

    prefix: ClassVar[str] = ""
    """What the tables' names begin with: tests keep out of each other's way with it."""

    def __init__(self, service: Callable[[], TableServiceClient], *, clock: Callable[[], datetime] = utcnow) -> None:
        self._service = service
        self._clock = clock
        self._open: Tables | None = None
        self._swept: str | None = None
        self.owner = random.token_hex(7)
        self._runs = self.prefix + RUNS_TABLE
        self._chunks = self.prefix + CHUNKS_TABLE
        self._objects = self.prefix + OBJECTS_TABLE
        self._history = self.prefix + HISTORY_TABLE
        self._meta = self.prefix + META_TABLE

    @property
    def _tables(self) -> Tables:
        if self._open is None:
            raise StoreError("the store is not open")
        return self._open

    async def open(self) -> None:
        if self._open is not None:
            return
        tables = Tables(self._service())
        try:
            await self._prepare(tables)
        except BaseException:
            await tables.aclose()
            raise
        self._open = tables

    async def _prepare(self, tables: Tables) -> None:
        version = await tables.get_if_created(self._meta, "schema", "version")
        if version is None:
            await tables.create([self.prefix + name for name in TABLES])
            entity = {"PartitionKey": "schema", "RowKey": "version", "version": SCHEMA_VERSION}
            await tables.transact(self._meta, [("create", entity)])
        elif version["version"] > SCHEMA_VERSION:
            raise permanent(
                f"the tables were written by a newer Vaultferry (schema {version['version']}, this one knows"
                f" {SCHEMA_VERSION}): upgrade"
            )

    async def aclose(self) -> None:
        if self._open is not None:
            tables, self._open = self._open, None
            await tables.aclose()

    # runs -------------------------------------------------------------------------------------------------------

    async def save_run(self, run: Run) -> Run | None:
        row = _mirrored(run.run_id)
        if run.revision is None:
            # The pointer first: one that points at nothing is passed over, a run without one would not be listed.
            pointer = {"PartitionKey": f"sync|{key(run.sync_id)}", "RowKey": row}
            await self._tables.transact(self._runs, [("upsert", pointer, {"mode": "replace"})])
        revision = await self._save(self._runs, "run", row, run_columns(run), run.revision)
        return None if revision is None else replace(run, revision=revision)

    async def get_run(self, run_id: str) -> Run | None:
        entity = await self._tables.get(self._runs, "run", _mirrored(run_id))
        return None if entity is None else _run(entity)

    async def list_runs(self, sync_id: str | None = None, *, limit: int = 50, cursor: str | None = None) -> Page[Run]:
        past = None if cursor is None else decode_cursor(cursor, 1)[0]
        partition = "run" if sync_id is None else f"sync|{key(sync_id)}"
        entities = await self._tables.range(self._runs, partition, "", "}", limit=limit + 1, past=past)
        more, entities = len(entities) > limit, entities[:limit]
        last = entities[-1]["RowKey"] if more else None
        if sync_id is not None:
            entities = await self._tables.get_many(self._runs, "run", [entity["RowKey"] for entity in entities])
        return Page([_run(entity) for entity in entities], None if last is None else encode_cursor(last))

    async def save_slice(self, progress: Progress, chunks: Sequence[Chunk] = ()) -> Progress | None:
        partition = key(progress.run_id)
        first = _operation(
            partition, f"g|{key(progress.target)}", progress_columns(progress) | _nonce(), progress.revision
        )
        entities = [
            {"PartitionKey": partition, "RowKey": f"k|{key(chunk.chunk)}"} | pack(chunk_columns(chunk))
            for chunk in chunks
        ]
        await self._shrink(partition, entities)
        etags = await self._tables.transact(self._chunks, [first, *(("create", entity) for entity in entities)])
        revision = await self._was_ours(self._chunks, first[1]) if etags is None else etags[0]
        return None if revision is None else replace(progress, revision=revision)

    async def _shrink(self, partition: str, entities: Sequence[Entity]) -> None:
        """Move paths out into rows of their own, written beforehand, until the transaction is small enough."""
        total, moved = sum(size(entity) for entity in entities), list[Entity]()
        for entity in sorted(entities, key=size, reverse=True):
            if total <= MAX_BYTES:
                break
            paths = {name: entity.pop(name) for name in list(entity) if name.startswith("paths")}
            entity["paths_at"] = f"b|{random.token_hex(16)}"
            moved.append({"PartitionKey": partition, "RowKey": entity["paths_at"]} | paths)
            total -= size(paths)
        writes = batches((None, [("upsert", entity, {"mode": "replace"})]) for entity in moved)
        await asyncio.gather(
            *(self._tables.transact(self._chunks, [op for _, ops in batch for op in ops]) for batch in writes)
        )

    async def list_progress(self, run_id: str) -> list[Progress]:
        entities = await self._tables.range(self._chunks, key(run_id), "g|", after("g|"))
        found = [progress_from(unpack(entity, _PROGRESS_COLUMNS), entity.metadata["etag"]) for entity in entities]
        return sorted(found, key=lambda progress: progress.target)

    async def get_chunk(self, run_id: str, chunk: str) -> Chunk | None:
        entity = await self._tables.get(self._chunks, key(run_id), f"k|{key(chunk)}")
        return None if entity is None else await self._chunk(entity)

    async def list_chunks(self, run_id: str) -> list[Chunk]:
        entities = await self._tables.range(self._chunks, key(run_id), "k|", after("k|"))
        found = await asyncio.gather(*(self._chunk(entity) for entity in entities))
        return sorted(found, key=lambda chunk: chunk.chunk)

    async def has_open_chunks(self, run_id: str) -> bool:
        found = await self._tables.range(
            self._chunks, key(run_id), "k|", after("k|"), where="held eq 0", select=["outcomes"]
        )
        return any(Outcome.OPEN in entity["outcomes"] for entity in found)

    async def _chunk(self, entity: Any) -> Chunk:
        columns = unpack(entity, _CHUNK_COLUMNS)
        if "paths_at" in entity:
            moved = await self._tables.get(self._chunks, entity["PartitionKey"], entity["paths_at"])
            if moved is None:
                raise permanent(f"run {columns['run_id']}: the paths of chunk {columns['chunk']} are missing")
            columns |= unpack(moved, ["paths"])
        return chunk_from(columns, entity.metadata["etag"])

    async def save_chunk(self, chunk: Chunk) -> Chunk | None:
        row = f"k|{key(chunk.chunk)}"
        revision = await self._save(self._chunks, key(chunk.run_id), row, chunk_columns(chunk), chunk.revision)
        return None if revision is None else replace(chunk, revision=revision)

    async def save_plan_page(self, run_id: str, page: int, document: str) -> None:
        entity = {"PartitionKey": key(run_id), "RowKey": f"p|{page:010d}"} | pack({"document": document})
        await self._tables.transact(self._chunks, [("upsert", entity, {"mode": "replace"})])

    async def plan_pages(self, run_id: str) -> AsyncIterator[str]:
        past = None
        while page := await self._tables.range(self._chunks, key(run_id), "p|", after("p|"), limit=1, past=past):
            past = page[0]["RowKey"]
            yield unpack(page[0], ["document"])["document"]

    # controls ---------------------------------------------------------------------------------------------------

    async def get_control(self, sync_id: str) -> Control:
        entity = await self._tables.get(self._meta, "control", key(sync_id))
        if entity is None:
            return Control(sync_id)
        return control_from(unpack(entity, _CONTROL_COLUMNS), entity.metadata["etag"])

    async def save_control(self, control: Control) -> Control | None:
        row = key(control.sync_id)
        revision = await self._save(self._meta, "control", row, control_columns(control), control.revision)
        return None if revision is None else replace(control, revision=revision)

    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        now = self._clock()
        held = await self._tables.get(self._meta, "lease", key(name))
        if held is not None and held["owner"] != owner and held["expires_at"] > str(iso(now)):
            return False
        columns = {"name": name, "owner": owner, "expires_at": iso(now + timedelta(seconds=seconds))}
        etag = None if held is None else held.metadata["etag"]
        return await self._save(self._meta, "lease", key(name), columns, etag) is not None

    async def release_lease(self, name: str, owner: str) -> None:
        held = await self._tables.get(self._meta, "lease", key(name))
        if held is not None and held["owner"] == owner:
            await self._tables.transact(self._meta, [_delete(held)])

    async def remember(self, what: str, until: datetime) -> None:
        await self._sweep()
        entity = {"PartitionKey": _seen(until), "RowKey": key(what), "until": iso(until)}
        await self._tables.transact(self._meta, [("upsert", entity, {"mode": "replace"})])

    async def remembers(self, what: str) -> bool:
        now = self._clock()
        days = (_seen(now), _seen(now + LONGEST_MEMORY))
        found = await asyncio.gather(*(self._tables.get(self._meta, day, key(what)) for day in days))
        return any(entity is not None and entity["until"] > str(iso(now)) for entity in found)

    async def _sweep(self) -> None:
        """Remove some of what need not be remembered any longer: of the days before today, once a day and process."""
        today = _seen(self._clock())
        if self._swept == today:
            return
        condition = "PartitionKey ge @first and PartitionKey lt @today"
        names = ["PartitionKey", "RowKey"]
        old = await self._tables.query(self._meta, condition, limit=PAGE, select=names, first=_SEEN, today=today)
        for day in {entity["PartitionKey"] for entity in old}:
            await self._delete_all(self._meta, [entity for entity in old if entity["PartitionKey"] == day])
        if len(old) < PAGE:
            self._swept = today

    # objects ----------------------------------------------------------------------------------------------------

    async def list_objects(
        self, sync_id: str, *, target: str | None = None, status: ObjectStatus | None = None
    ) -> AsyncIterator[ObjectState]:
        past: str | None = None
        while True:
            states, past = await self._page_objects(sync_id, target, status, past, PAGE)
            for state in states:
                yield state
            if past is None:
                return

    async def page_objects(
        self, sync_id: str, *, status: ObjectStatus | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[ObjectState]:
        past = None if cursor is None else decode_cursor(cursor, 1)[0]
        states, past = await self._page_objects(sync_id, None, status, past, limit)
        return Page(states, None if past is None else encode_cursor(past))

    async def _page_objects(
        self, sync_id: str, target: str | None, status: ObjectStatus | None, past: str | None, limit: int
    ) -> tuple[list[ObjectState], str | None]:
        """Some objects, and the key behind which there are more, if there are."""
        prefix = f"i|{status}|" if status in INDEXED else "o|"
        prefix += "" if target is None else f"{key(target)}|"
        where = {"where": "last_sync_status eq @status", "status": str(status)} if status and prefix[0] == "o" else {}
        entities = await self._tables.range(
            self._objects, key(sync_id), prefix, after(prefix), limit=limit + 1, past=past, **where
        )
        more, entities = len(entities) > limit, entities[:limit]
        last = entities[-1]["RowKey"] if more else None
        if prefix[0] == "i":
            rows = [entity["RowKey"].removeprefix(f"i|{status}|") for entity in entities]
            entities = await self._tables.get_many(self._objects, key(sync_id), [f"o|{row}" for row in rows])
        # A pointer's object may have moved on since.
        states = [_object(entity) for entity in entities]
        return [state for state in states if status in (None, state.status)], last

    async def count_objects(self, sync_id: str) -> Mapping[ObjectStatus, int]:
        counts: dict[ObjectStatus, int] = {}
        past: str | None = None
        while page := await self._tables.range(
            self._objects, key(sync_id), "o|", after("o|"), limit=PAGE, past=past, select=["RowKey", "last_sync_status"]
        ):
            past = page[-1]["RowKey"]
            for entity in page:
                status = ObjectStatus(entity["last_sync_status"])
                counts[status] = counts.get(status, 0) + 1
        return counts

    async def get_objects(self, sync_id: str, target: str, paths: Sequence[str]) -> dict[str, ObjectState]:
        rows = [_object_row(target, object_id(sync_id, target, path)) for path in paths]
        states = [_object(entity) for entity in await self._tables.get_many(self._objects, key(sync_id), rows)]
        return {state.path: state for state in states}

    async def save_objects(self, saves: Sequence[Save]) -> list[ObjectState | None]:
        now, nonce = self._clock(), _nonce()
        by_sync: dict[str, dict[str, _Item]] = {}
        for number, save in enumerate(saves):
            item = _Item(number, save.state.object_id, save.state, _known_tail(save.state))
            # The same object twice in one call: the second has not seen what the first one did.
            by_sync.setdefault(key(save.state.sync_id), {}).setdefault(item.object_id, item)
        answers: list[ObjectState | None] = [None] * len(saves)
        for partition, items in by_sync.items():
            rows = [
                _Row(item, event, now) for item in items.values() if (event := saves[item.number].event) is not None
            ]
            await asyncio.gather(*(self._append(batch) for batch in batches((row, row.creates()) for row in rows)))
            for item in items.values():
                item.state = stamped(item.state, item.tail, now, item.state.revision)
            changes = [(item, item.operations(partition, nonce)) for item in items.values()]
            for batch in await asyncio.gather(*(self._save_batch(batch) for batch in batches(changes))):
                for item, etag in batch:
                    if etag is not None:
                        answers[item.number] = _with_revision(item.state, etag)
        return answers

    async def _append(self, batch: Sequence[tuple[_Row, Sequence[Operation]]]) -> None:
        """Append history rows; a row whose place is taken goes behind the one that took it."""
        if await self._tables.transact(self._history, [op for _, ops in batch for op in ops]) is None:
            await asyncio.gather(*(self._append_one(row) for row, _ in batch))

    async def _append_one(self, row: _Row) -> None:
        sync_id, prefix = row.item.state.sync_id, f"o|{row.item.object_id}|"
        for _ in range(_APPENDS):
            if await self._tables.transact(self._history, row.creates()) is not None:
                return
            newest = await self._tables.range(self._history, key(sync_id), prefix, after(prefix), limit=1)
            if newest and newest[0]["hash"] == row.columns["hash"]:
                return  # Ours: the answer to an earlier try was lost.
            row.link(_tail(newest[0]) if newest else Tail())
        raise StoreError(f"{sync_id}: too many writers append to the history of one secret at once; it is tried again")

    async def _save_batch(self, batch: Sequence[tuple[_Item, Sequence[Operation]]]) -> list[tuple[_Item, str | None]]:
        etags = await self._tables.transact(self._objects, [op for _, ops in batch for op in ops])
        if etags is None:
            singles = await asyncio.gather(*(self._save_single(ops) for _, ops in batch))
            return [(item, etag) for (item, _), etag in zip(batch, singles, strict=True)]
        saved, at = [], 0
        for item, ops in batch:
            saved.append((item, etags[at]))
            at += len(ops)
        return saved

    async def _save_single(self, operations: Sequence[Operation]) -> str | None:
        etags = await self._tables.transact(self._objects, operations)
        if etags is not None:
            return etags[0]
        entity = operations[0][1]
        current = await self._tables.get(self._objects, entity["PartitionKey"], entity["RowKey"])
        if current is None:
            return None
        if current.get("saved") == entity["saved"]:
            return str(current.metadata["etag"])  # Ours: the answer to an earlier try was lost.
        if operations[0][0] == "update" and current.metadata["etag"] == operations[0][2]["etag"]:
            # The object is as expected, so it was the pointer that is missing.
            etags = await self._tables.transact(self._objects, [op for op in operations if op[0] != "delete"])
            return None if etags is None else etags[0]
        return None

    async def reserve_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> dict[str, str]:
        partition = _names(sync_id, target)
        wanted = {_hashed(name): (name, path) for name, path in names.items()}
        found = await self._tables.get_many(self._meta, partition, list(wanted))
        there = {entity["RowKey"] for entity in found}
        creates = [
            (row, [("create", {"PartitionKey": partition, "RowKey": row} | pack({"name": name, "path": path}))])
            for row, (name, path) in wanted.items()
            if row not in there
        ]

        async def create(batch: list[tuple[str, Sequence[Operation]]]) -> list[str]:
            if await self._tables.transact(self._meta, [op for _, ops in batch for op in ops]) is not None:
                return []
            singles = await asyncio.gather(*(self._tables.transact(self._meta, ops) for _, ops in batch))
            return [row for (row, _), etags in zip(batch, singles, strict=True) if etags is None]

        lost = [row for rows in await asyncio.gather(*map(create, batches(creates))) for row in rows]
        found += await self._tables.get_many(self._meta, partition, lost)
        taken = {}
        for entity in found:
            name, path = wanted[entity["RowKey"]]
            holder = unpack(entity, ["path"])["path"]
            if holder != path:
                taken[name] = holder
        return taken

    async def release_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> None:
        wanted = {_hashed(name): path for name, path in names.items()}
        found = await self._tables.get_many(self._meta, _names(sync_id, target), list(wanted))
        ours = [entity for entity in found if unpack(entity, ["path"])["path"] == wanted[entity["RowKey"]]]
        await asyncio.gather(*(self._tables.transact(self._meta, [_delete(entity)]) for entity in ours))

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
        position = None if cursor is None else decode_cursor(cursor, 2)
        if path is not None:
            return await self._page_path(sync_id, path, status, since, limit, position)
        prefix = "t|" if status in (None, ObjectStatus.IN_SYNC) else f"s|{status}|"
        high = after(prefix) if since is None else f"{prefix}{_inverted(since)}}}"
        past = None if position is None else f"{prefix}{_inverted(_moment(position[0]))}|{position[1]}"
        where = {"where": "status eq @status", "status": str(status)} if status is ObjectStatus.IN_SYNC else {}
        found = await self._tables.range(self._history, key(sync_id), prefix, high, limit=limit + 1, past=past, **where)
        return _history_page([unpack(entity, HISTORY_COLUMNS) for entity in found], limit)

    async def _page_path(
        self,
        sync_id: str,
        path: str,
        status: ObjectStatus | None,
        since: datetime | None,
        limit: int,
        position: list[str] | None,
    ) -> Page[HistoryRow]:
        """A path has one object a target: the newest rows of each, merged."""
        where, parameters = ["created_at ge @since"], {"since": str(iso(since)) if since else ""}
        if status is not None:
            where.append("status eq @status")
            parameters["status"] = str(status)
        if position is not None:
            where.append("( created_at lt @at or ( created_at eq @at and id gt @id ) )")
            parameters |= {"at": position[0], "id": position[1]}

        async def of(target: str) -> list[Any]:
            prefix = f"o|{object_id(sync_id, target, path)}|"
            return await self._tables.range(
                self._history,
                key(sync_id),
                prefix,
                after(prefix),
                limit=limit + 1,
                where=" and ".join(where),
                **parameters,
            )

        found = await asyncio.gather(*map(of, await self._targets(sync_id)))
        rows = [unpack(entity, HISTORY_COLUMNS) for entities in found for entity in entities]
        # Two sorts: newest first, and by id where times are equal, as the range by time has them.
        rows.sort(key=lambda row: str(row["id"]))
        rows.sort(key=lambda row: str(row["created_at"]), reverse=True)
        return _history_page(rows[: limit + 1], limit)

    async def _targets(self, sync_id: str) -> list[str]:
        """The targets of a sync: one small query each."""
        found: list[str] = []
        low = "o|"
        while page := await self._tables.range(
            self._objects, key(sync_id), low, after("o|"), limit=1, select=["RowKey", "target"]
        ):
            found.append(page[0]["target"])
            low = f"o|{key(found[-1])}}}"
        return found

    async def verify_history(self, sync_id: str | None = None) -> Verification:
        if sync_id is None:
            partitions = {*await self._tables.partitions(self._objects), *await self._tables.partitions(self._history)}
        else:
            partitions = {key(sync_id)}
        objects, rows, broken = 0, 0, list[Broken]()
        for partition in sorted(partitions):
            found = await self._verify(partition)
            objects, rows = objects + found.objects, rows + found.rows
            broken += found.broken
        return Verification(objects, rows, tuple(broken))

    async def _verify(self, partition: str) -> Verification:
        horizon = str(iso(self._clock() - SKEW))
        # The records first: history only grows, so that rows written meanwhile are merely ahead of them.
        known: dict[str, tuple[str, Tail]] = {}
        names = ["RowKey", "path", "path_z0", "history_count", "history_hash"]
        async for entity in self._walk(self._objects, partition, "o|", names):
            one = entity["RowKey"].rpartition("|")[2]
            known[one] = (unpack(entity, ["path"])["path"], Tail(entity["history_count"], entity.get("history_hash")))
        objects, rows, broken, digest, odd_digest = len(known), 0, list[Broken](), 0, 0
        async for one, chain in self._chains(partition):
            for row in chain:
                rows += 1
                if row["created_at"] < horizon:
                    digest ^= _number(row)
                    odd_digest ^= _number(row) if row["status"] != ObjectStatus.IN_SYNC else 0
            path, tail = known.pop(one, (None, None))
            # A record that is not there yet: the crash came between its first row and itself.
            objects += path is None
            end = await self._cut(partition, one) if chain[0]["id"] != history_id(one, 1) else Tail()
            broken += check_chain(one, path or chain[0]["path"], chain, end, tail, may_be_ahead=True)
        for one, (path, tail) in known.items():
            broken += check_chain(one, path, (), Tail(), tail, may_be_ahead=True)
        broken += await self._verify_copies(partition, "t|", "time", digest, horizon)
        broken += await self._verify_copies(partition, "s|", "status", odd_digest, horizon)
        return Verification(objects, rows, tuple(broken))

    async def _verify_copies(self, partition: str, prefix: str, name: str, digest: int, horizon: str) -> list[Broken]:
        """The copies that lists are read from must be the rows of the chains, all of them and no others."""
        broken: list[Broken] = []
        async for entity in self._walk(self._history, partition, prefix):
            row = unpack(entity, HISTORY_COLUMNS)
            if row["created_at"] < horizon:
                digest ^= _number(row)
            if row["hash"] != chain_hash(row["previous_hash"], row):
                number = history_number(row["id"])
                broken.append(
                    Broken(row["sync_object_id"], row["path"], f"the copy of row {number} by {name} was changed")
                )
        if digest and not broken:
            broken.append(
                Broken("", "", f"the copies by {name} are not the rows of the chains: one is missing or put in")
            )
        return broken

    async def _cut(self, partition: str, one: str) -> Tail:
        cut = await self._tables.get(self._history, partition, f"c|{one}")
        return Tail() if cut is None else Tail(cut["number"], cut["hash"], from_iso(cut["created_at"]))

    async def _chains(
        self, partition: str, select: Sequence[str] | None = None
    ) -> AsyncIterator[tuple[str, list[Columns]]]:
        """Every object's rows, oldest first."""
        current, rows = "", list[Columns]()
        async for entity in self._walk(self._history, partition, "o|", select):
            one = entity["RowKey"].split("|")[1]
            if one != current and rows:
                yield current, rows[::-1]
                rows = []
            current = one
            rows.append(unpack(entity, HISTORY_COLUMNS))
        if rows:
            yield current, rows[::-1]

    async def _walk(
        self, table: str, partition: str, prefix: str, select: Sequence[str] | None = None
    ) -> AsyncIterator[Any]:
        past: str | None = None
        while page := await self._tables.range(
            table, partition, prefix, after(prefix), limit=PAGE, past=past, select=select
        ):
            for entity in page:
                yield entity
            past = page[-1]["RowKey"]

    async def archive(self, before: datetime, write: Any) -> int:
        limit, lines = str(iso(before)), 0
        runs: list[Any] = []
        past: str | None = None
        while page := await self._tables.range(
            self._runs, "run", "", "}", limit=PAGE, past=past, where="finished_at lt @before", before=limit
        ):
            past = page[-1]["RowKey"]
            for entity in page:
                write(canonical_json({"record": "run"} | unpack(entity, RUN_COLUMNS)))
                runs.append((entity["run_id"], entity["sync_id"]))
                lines += 1
        cuts: dict[str, dict[str, int]] = {}
        for partition in await self._tables.partitions(self._history):
            numbers = cuts[partition] = {}
            async for one, chain in self._chains(partition):
                for row in chain[:-1]:
                    if row["created_at"] < limit:
                        write(canonical_json({"record": "history"} | row))
                        lines += 1
                        numbers[one] = history_number(row["id"])
        for run_id, sync_id in runs:
            await self._remove_run(run_id, sync_id)
        for partition, numbers in cuts.items():
            await self._remove_history(partition, numbers)
        return lines

    async def _remove_run(self, run_id: str, sync_id: str) -> None:
        entities = [entity async for entity in self._walk(self._chunks, key(run_id), "", ["PartitionKey", "RowKey"])]
        await self._delete_all(self._chunks, entities)
        row = _mirrored(run_id)
        await self._delete_all(self._runs, [{"PartitionKey": f"sync|{key(sync_id)}", "RowKey": row}])
        await self._delete_all(self._runs, [{"PartitionKey": "run", "RowKey": row}])

    async def _delete_all(self, table: str, entities: Sequence[Entity]) -> None:
        for batch in batches((None, [_delete(entity)]) for entity in entities):
            operations = [op for _, ops in batch for op in ops]
            if await self._tables.transact(table, operations) is None:
                # Some are gone already: somebody else archives too.
                await asyncio.gather(*(self._tables.transact(table, [operation]) for operation in operations))

    async def _remove_history(self, partition: str, numbers: Mapping[str, int]) -> None:
        """Remove the archived beginnings of chains, oldest rows first; where a chain is cut goes along with them."""
        names = ["PartitionKey", "RowKey", "id", "status", "created_at", "hash"]
        async for one, chain in self._chains(partition, names):
            old = [row for row in chain if history_number(row["id"]) <= numbers.get(one, 0)]
            for start in range(0, len(old), 30):
                part = old[start : start + 30]
                last = part[-1]
                cut = {"PartitionKey": partition, "RowKey": f"c|{one}", "number": history_number(last["id"])}
                cut |= {"hash": last["hash"], "created_at": last["created_at"]}
                keys = [
                    {"PartitionKey": partition, "RowKey": row}
                    for old_row in part
                    for row in _history_rows(one, old_row)
                ]
                operations = [("upsert", cut, {"mode": "replace"}), *(_delete(entity) for entity in keys)]
                if await self._tables.transact(self._history, operations) is None:
                    raise StoreError("the history changed while it was archived: is another archive running? Try again")

    # small helpers ----------------------------------------------------------------------------------------------

    async def _save(self, table: str, partition: str, row: str, columns: Columns, revision: str | None) -> str | None:
        """Create (no revision) or replace one entity if its ETag still holds: the new ETag, or None."""
        operation = _operation(partition, row, columns | _nonce(), revision)
        etags = await self._tables.transact(table, [operation])
        if etags is not None:
            return etags[0]
        return await self._was_ours(table, operation[1])

    async def _was_ours(self, table: str, entity: Entity) -> str | None:
        """The ETag, where a refused save had been done after all: the answer to an earlier try was lost."""
        current = await self._tables.get(table, entity["PartitionKey"], entity["RowKey"])
        if current is None or current.get("saved") != entity["saved"]:
            return None
        return str(current.metadata["etag"])


@dataclass(slots=True)
class _Item:
    """One object on its way into two tables."""

    number: int
    object_id: str
    state: ObjectState
    tail: Tail
    """Where its history ends: moved on as rows are appended."""

    def operations(self, partition: str, nonce: Columns) -> list[Operation]:
        """The object, and the pointers that follow its status."""
        status, name = self.state.status, _object_row(self.state.target, self.object_id).removeprefix("o|")
        etag, _, indexed_as = (self.state.revision or "|").rpartition("|")
        columns = object_columns(self.object_id, self.state) | nonce
        operations = [_operation(partition, f"o|{name}", columns, etag or None)]
        if indexed_as and indexed_as != status:
            operations.append(_delete({"PartitionKey": partition, "RowKey": f"i|{indexed_as}|{name}"}))
        if status in INDEXED and indexed_as != status:
            pointer = {"PartitionKey": partition, "RowKey": f"i|{status}|{name}"}
            operations.append(("upsert", pointer, {"mode": "replace"}))
        return operations


class _Row:
    """A history row that looks for its place behind an object's tail."""

    def __init__(self, item: _Item, event: Event, now: datetime) -> None:
        self.item = item
        self._event = event
        self._now = now
        self.link(item.tail)

    def link(self, tail: Tail) -> None:
        at = strictly_after(self._now, tail.at)
        self.columns = next_row(self.item.object_id, self.item.state, self._event, tail, at)
        self.item.tail = Tail(tail.count + 1, self.columns["hash"], at)

    def creates(self) -> list[Operation]:
        return [("create", entity) for entity in history_entities(self.columns)]


def _operation(partition: str, row: str, columns: Columns, etag: str | None) -> Operation:
    from azure.core import MatchConditions

    entity = {"PartitionKey": partition, "RowKey": row} | pack(columns)
    if etag is None:
        return ("create", entity)
    return ("update", entity, {"mode": "replace", "etag": etag, "match_condition": MatchConditions.IfNotModified})


def _delete(entity: Mapping[str, Any]) -> Operation:
    return ("delete", {"PartitionKey": entity["PartitionKey"], "RowKey": entity["RowKey"]})


def _nonce() -> Columns:
    """Tells our own save from another's after an answer was lost and the client sent it again."""
    return {"saved": random.token_hex(8)}


def _mirrored(run_id: str) -> str:
    """A run's key: its id sorts by time, so with mirrored digits the newest comes first."""
    return key(run_id).translate(_MIRROR)


def _run(entity: Any) -> Run:
    return run_from(unpack(entity, RUN_COLUMNS), entity.metadata["etag"])


def _object_row(target: str, one: str) -> str:
    return f"o|{key(target)}|{one}"


def _object(entity: Any) -> ObjectState:
    return _with_revision(object_from(unpack(entity, OBJECT_COLUMNS), ""), entity.metadata["etag"])


def _with_revision(state: ObjectState, etag: str) -> ObjectState:
    """The revision also says under which status there is a pointer, so that the next save can remove it."""
    return replace(state, revision=f"{etag}|{state.status if state.status in INDEXED else ''}")


def _seen(moment: datetime) -> str:
    return f"{_SEEN}{moment.astimezone(UTC):%Y-%m-%d}"


def _names(sync_id: str, target: str) -> str:
    return f"names|{key(sync_id)}|{key(target)}"


def _hashed(name: str) -> str:
    # Always hashed: a name that looks like another one's hash must not take its place.
    return key(f"|{name}")


def history_entities(columns: Columns) -> list[Entity]:
    """All copies of a history row."""
    partition = key(columns["sync_id"])
    packed = pack(columns)
    return [
        {"PartitionKey": partition, "RowKey": row} | packed for row in _history_rows(columns["sync_object_id"], columns)
    ]


def _history_rows(one: str, columns: Columns) -> list[str]:
    """The keys of a row's copies."""
    at = _inverted(_moment(columns["created_at"]))
    rows = [f"o|{one}|{9_999_999_999 - history_number(columns['id']):010d}", f"t|{at}|{columns['id']}"]
    if columns["status"] != ObjectStatus.IN_SYNC:
        rows.append(f"s|{columns['status']}|{at}|{columns['id']}")
    return rows


def _known_tail(state: ObjectState) -> Tail:
    return Tail(state.history_count, state.history_hash, state.history_at)


def _tail(row: Mapping[str, Any]) -> Tail:
    return Tail(history_number(row["id"]), row["hash"], from_iso(row["created_at"]))


def _inverted(moment: datetime) -> str:
    """Sorts from the newest to the oldest."""
    return f"{9_999_999_999_999_999 - round(moment.timestamp() * 1_000_000):016d}"


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        problem = "the cursor is not one that an earlier page returned: start again without it"
    raise permanent(problem)


def _number(row: Columns) -> int:
    """A row's hash as a number: XORed over a set of rows, it does not depend on their order."""
    try:
        return int(row["hash"], 16)
    except ValueError:
        return 0


def _history_page(rows: Sequence[Columns], limit: int) -> Page[HistoryRow]:
    cursor = encode_cursor(rows[limit - 1]["created_at"], rows[limit - 1]["id"]) if len(rows) > limit else None
    return Page([history_from(row) for row in rows[:limit]], cursor)
