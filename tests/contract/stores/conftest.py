"""Both stores, each test with a storage of its own, and hands that reach behind their backs."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from shared.azure_storage import table_service
from shared.histories.rows import HISTORY_COLUMNS
from shared.histories.sqlite import SqliteStore
from shared.history import Store
from shared.sqlite import Database


@dataclass
class Clock:
    """A clock that the test sets."""

    now: datetime = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **amount: float) -> None:
        self.now += timedelta(**amount)


class Behind(Protocol):
    """Somebody with write access to the storage, who goes past the program."""

    async def change(self, row_id: str, column: str, value: Any) -> None: ...
    async def remove(self, row_id: str) -> None: ...
    async def insert(self, columns: dict[str, Any]) -> None: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Storage:
    make: Callable[[], Store]
    behind: Behind


@pytest.fixture(params=["sqlite", pytest.param("table_storage", marks=pytest.mark.real)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Storage:
    if request.param == "sqlite":
        path = tmp_path / "v.db"
        return Storage(lambda: SqliteStore(Database(path), clock=clock), BehindSqlite(path))
    from shared.histories.table_storage import TableStore

    env = {"AzureWebJobsStorage": request.getfixturevalue("azurite")}

    class OwnTables(TableStore):
        prefix = f"t{secrets.token_hex(6)}"

    return Storage(lambda: OwnTables(lambda: table_service(env), clock=clock), BehindTables(env, OwnTables.prefix))


@pytest.fixture
async def store(storage: Storage) -> AsyncIterator[Store]:
    store = storage.make()
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
async def other(storage: Storage, store: Store) -> AsyncIterator[Store]:
    """The same storage, opened a second time."""
    other = storage.make()
    await other.open()
    yield other
    await other.aclose()


@pytest.fixture
def behind(storage: Storage) -> Behind:
    return storage.behind


class BehindSqlite:
    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def unguarded(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in guards:
                connection.execute(f"DROP TRIGGER {name}")
            yield connection
            for _, sql in guards:
                connection.execute(sql)

    async def change(self, row_id: str, column: str, value: Any) -> None:
        with self.unguarded() as connection:
            changed = connection.execute(f"UPDATE sync_history SET {column} = ? WHERE id = ?", (value, row_id))
            assert changed.rowcount == 1

    async def remove(self, row_id: str) -> None:
        with self.unguarded() as connection:
            assert connection.execute("DELETE FROM sync_history WHERE id = ?", (row_id,)).rowcount == 1

    async def insert(self, columns: dict[str, Any]) -> None:
        with self.unguarded() as connection:
            marks = ", ".join("?" * len(HISTORY_COLUMNS))
            values = [columns[name] for name in HISTORY_COLUMNS]
            connection.execute(f"INSERT INTO sync_history ({', '.join(HISTORY_COLUMNS)}) VALUES ({marks})", values)


class BehindTables:
    def __init__(self, env: dict[str, str], prefix: str) -> None:
        self.env = env
        self.table = f"{prefix}synchistory"

    async def _copies(self, client: Any, row_id: str) -> list[Any]:
        found = [entity async for entity in client.query_entities("id eq @id", parameters={"id": row_id})]
        assert found
        return found

    async def change(self, row_id: str, column: str, value: Any) -> None:
        async with table_service(self.env) as service:
            client = service.get_table_client(self.table)
            for entity in await self._copies(client, row_id):
                await client.update_entity(entity | {column: value}, mode="replace")

    async def remove(self, row_id: str) -> None:
        async with table_service(self.env) as service:
            client = service.get_table_client(self.table)
            for entity in await self._copies(client, row_id):
                await client.delete_entity(entity)

    async def insert(self, columns: dict[str, Any]) -> None:
        from shared.histories.table_storage import history_entities

        async with table_service(self.env) as service:
            client = service.get_table_client(self.table)
            for entity in history_entities(columns):
                await client.create_entity(entity)
