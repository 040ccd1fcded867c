"""Azure Table Storage as the store needs it: keys, packed columns, ranges, transactions, and errors without values.

Limits (https://learn.microsoft.com/azure/storage/tables/scalability-targets): a transaction has at most 100 entities of
one partition and 4 MiB; an entity 1 MiB; a property 64 KiB, which is 32 Ki characters of text.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from shared.errors import StoreError, permanent
from shared.histories.rows import Columns

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.data.tables.aio import TableServiceClient

T = TypeVar("T")
Entity: TypeAlias = dict[str, Any]
Operation: TypeAlias = tuple[Any, ...]
"""A step of a transaction, as the SDK's `submit_transaction` takes it."""

MAX_OPERATIONS = 100
MAX_BYTES = 900_000
"""Of a transaction: far below the service's limit, because aiohttp sends a body of over 1 MiB in one go."""
_OVERHEAD = 1_000
_TEXT = 16_000
_PIECE = 60_000
_CALLS = 32
"""Calls that are under way at once: enough to hide the latency, few enough to not be throttled by ourselves."""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,200}")


# --- keys and columns ---------------------------------------------------------------------------------------------


def key(text: str) -> str:
    """`text` as a part of a key: itself, or its hash where a key could not hold it (slashes, length, unicode)."""
    # "!" sorts before the bar, so that a hash falls into the same ranges.
    return text if _PLAIN_KEY.fullmatch(text) else "!" + hashlib.sha256(text.encode()).hexdigest()


def after(prefix: str) -> str:
    """The first key behind all that begin with `prefix`, which ends in a bar."""
    return prefix[:-1] + "}"


def pack(columns: Mapping[str, Any]) -> Entity:
    """Columns as properties: None is left out, long text becomes compressed pieces."""
    entity: Entity = {}
    for name, value in columns.items():
        if value is None:
            continue
        if isinstance(value, str) and len(json.dumps(value)) > _TEXT:
            data = zlib.compress(value.encode())
            for number, start in enumerate(range(0, len(data), _PIECE)):
                entity[f"{name}_z{number}"] = data[start : start + _PIECE]
        else:
            entity[name] = value
    return entity


def unpack(entity: Mapping[str, Any], names: Iterable[str]) -> Columns:
    columns: Columns = {}
    for name in names:
        columns[name] = entity.get(name)
        if f"{name}_z0" in entity:
            pieces: list[bytes] = []
            while (piece := entity.get(f"{name}_z{len(pieces)}")) is not None:
                pieces.append(piece)
            columns[name] = zlib.decompress(b"".join(pieces)).decode()
    return columns


def size(entity: Mapping[str, Any]) -> int:
    """About how many bytes of a request an entity is."""
    return _OVERHEAD + sum(
        len(value) * 4 // 3 if isinstance(value, bytes) else len(json.dumps(value)) for value in entity.values()
    )


def batches(groups: Iterable[tuple[T, Sequence[Operation]]]) -> list[list[tuple[T, Sequence[Operation]]]]:
    """Pack groups of operations, each with what it is about, into transactions; no group is torn."""
    packed: list[list[tuple[T, Sequence[Operation]]]] = []
    room, space = 0, 0
    for item, operations in groups:
        needed = sum(size(operation[1]) for operation in operations)
        if not packed or len(operations) > room or needed > space:
            packed.append([])
            room, space = MAX_OPERATIONS, MAX_BYTES
        packed[-1].append((item, operations))
        room, space = room - len(operations), space - needed
    return packed


# --- one table ----------------------------------------------------------------------------------------------------


class Tables:
    """The tables of one account. Every failure is a StoreError that quotes nothing of what was sent."""

    def __init__(self, service: TableServiceClient) -> None:
        self._service = service
        self._slots = asyncio.Semaphore(_CALLS)

    async def aclose(self) -> None:
        await self._service.close()

    async def create(self, names: Sequence[str]) -> None:
        for name in names:
            await self._call(name, partial(self._service.create_table_if_not_exists, name))

    async def get(self, table: str, partition: str, row: str) -> Any | None:
        """The entity, with its `metadata["etag"]`, or None when it is not there."""
        client = self._service.get_table_client(table)
        return await self._call(table, partial(client.get_entity, partition, row), absent=("ResourceNotFound",))

    async def get_if_created(self, table: str, partition: str, row: str) -> Any | None:
        """The same, and None where there is not even the table."""
        client = self._service.get_table_client(table)
        codes = ("ResourceNotFound", "TableNotFound")
        return await self._call(table, partial(client.get_entity, partition, row), absent=codes)

    async def get_many(self, table: str, partition: str, rows: Sequence[str]) -> list[Any]:
        """Those of the entities that are there."""
        found = await asyncio.gather(*(self.get(table, partition, row) for row in rows))
        return [entity for entity in found if entity is not None]

    async def range(
        self,
        table: str,
        partition: str,
        low: str,
        high: str,
        *,
        limit: int | None = None,
        past: str | None = None,
        where: str = "",
        select: Sequence[str] | None = None,
        **parameters: Any,
    ) -> list[Any]:
        """Entities of one partition in the order of their keys: low ≤ RowKey < high, behind `past`, at most `limit`."""
        low_is = "RowKey ge @low" if past is None else "RowKey gt @low"
        condition = f"PartitionKey eq @partition and {low_is} and RowKey lt @high"
        return await self.query(
            table,
            f"{condition} and {where}" if where else condition,
            limit=limit,
            select=select,
            partition=partition,
            low=low if past is None else past,
            high=high,
            **parameters,
        )

    async def query(
        self, table: str, condition: str, *, limit: int | None, select: Sequence[str] | None = None, **parameters: Any
    ) -> list[Any]:
        async def run() -> list[Any]:
            entities: list[Any] = []
            async for entity in self._service.get_table_client(table).query_entities(
                condition,
                parameters=parameters,
                results_per_page=min(limit or 1_000, 1_000),
                select=None if select is None else list(select),
            ):
                entities.append(entity)
                if len(entities) == limit:
                    break
            return entities

        return await self._call(table, run) or []

    async def partitions(self, table: str) -> list[str]:
        """The partitions of a table: one small query each."""
        found: list[str] = []
        while page := await self.query(
            table, "PartitionKey gt @last", limit=1, select=["PartitionKey"], last=found[-1] if found else ""
        ):
            found.append(page[0]["PartitionKey"])
        return found

    async def transact(self, table: str, operations: Sequence[Operation]) -> list[str | None] | None:
        """Do all of it or nothing: the new ETags; or None when an entity was not as the operations expected it."""
        client = self._service.get_table_client(table)
        done = await self._call(table, partial(client.submit_transaction, operations), conflict=True)
        return None if done is None else [metadata.get("etag") for metadata in done]

    async def _call(
        self, table: str, call: Callable[[], Awaitable[T]], *, absent: Sequence[str] = (), conflict: bool = False
    ) -> T | None:
        """`call`'s answer; None for an error code of `absent`, or where `conflict` is looked for and found."""
        from azure.core.exceptions import AzureError, HttpResponseError

        failed: AzureError | None = None
        async with self._slots:
            try:
                return await call()
            except HttpResponseError as error:
                if _code(error) in absent or (conflict and _is_conflict(error)):
                    return None
                failed = error
            except AzureError as error:
                failed = error
            except (ValueError, TypeError, OSError):
                pass
        # Raised out here: the SDK's own errors repeat what was sent and answered, and are not to be chained.
        raise store_error(table, failed)


def store_error(table: str, error: AzureError | None) -> StoreError:
    """What went wrong, in words of our own."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

    status = error.status_code if isinstance(error, HttpResponseError) else None
    told = f"{status} {_code(error)}".strip() if status is not None else type(error).__name__
    if error is None:
        return permanent(f"the table {table} was asked for something that its client refuses")
    if isinstance(error, ClientAuthenticationError) or status in (401, 403):
        return permanent(
            f"the table {table} denied access ({told}): check the key of the connection string, or give the identity"
            ' the role "Storage Table Data Contributor"'
        )
    if isinstance(error, ServiceRequestError):
        return StoreError(f"the table {table} can not be reached; it is tried again")
    if status is None or status in (408, 429) or status >= 500:
        return StoreError(f"the table {table} did not answer ({told}); it is tried again")
    return permanent(f"the table {table} refused a request ({told})")


def _is_conflict(error: HttpResponseError) -> bool:
    """Whether an entity was there, was gone, or had changed, against what the operation expected."""
    return error.status_code == 412 or _code(error) in ("EntityAlreadyExists", "ResourceNotFound", "EntityNotFound")


def _code(error: Any) -> str:
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")
