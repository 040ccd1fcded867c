"""What only the store in Table Storage has to deal with: two tables without a common transaction, answers that get
lost, copies, and an account that refuses."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.azure_storage import table_service
from shared.errors import StoreError
from shared.histories.table_storage import TableStore
from shared.histories.tables import Operation, Tables
from shared.history import Save
from shared.model import Action, Control, ObjectStatus, Progress
from tests.contract.stores.conftest import Clock
from tests.contract.stores.helpers import SYNC, TARGET, chunk, event, every, run, saved, state

pytestmark = pytest.mark.real

Transact = Callable[[Tables, str, Sequence[Operation]], Any]


@pytest.fixture
def env(azurite: str) -> dict[str, str]:
    return {"AzureWebJobsStorage": azurite}


@pytest.fixture
def own_tables() -> type[TableStore]:
    class OwnTables(TableStore):
        prefix = f"t{secrets.token_hex(6)}"

    return OwnTables


@pytest.fixture
async def store(own_tables: type[TableStore], env: dict[str, str], clock: Clock) -> AsyncIterator[TableStore]:
    store = own_tables(lambda: table_service(env), clock=clock)
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transaction is done, its answer is lost, and it is sent again: as the SDK does after a torn connection."""
    transact = Tables.transact

    async def twice(self: Tables, table: str, operations: Sequence[Operation]) -> Any:
        await transact(self, table, operations)
        return await transact(self, table, operations)

    monkeypatch.setattr(Tables, "transact", twice)


@pytest.mark.usefixtures("lossy")
async def test_a_save_whose_answer_was_lost_is_still_ours_and_done_once(store: TableStore, clock: Clock) -> None:
    first = await store.save_run(run(clock.now))
    assert first is not None
    assert await store.save_run(replace(first, planned=1)) is not None
    assert await store.save_run(replace(first, planned=2)) is None
    progress = await store.save_slice(Progress("r", TARGET), [chunk("r", 1)])
    assert progress is not None
    assert await store.save_slice(replace(progress, slices=1), [chunk("r", 2)]) is not None
    assert len(await store.list_chunks("r")) == 2
    assert await store.save_control(Control(SYNC)) is not None
    assert await store.acquire_lease("l", "me", 60)
    assert await store.reserve_names(SYNC, TARGET, {"a": "a", "b": "b"}) == {}

    statuses = (ObjectStatus.FAILED, ObjectStatus.IN_SYNC, ObjectStatus.PENDING)
    states = [state(f"p{n}") for n in range(4)]
    for status in statuses:
        answers = await store.save_objects([Save(replace(one, status=status), event(status=status)) for one in states])
        states = [one for one in answers if one is not None]
        assert [one.path for one in states] == ["p0", "p1", "p2", "p3"]
    assert sorted(one.path for one in await every(store.list_objects(SYNC, status=ObjectStatus.PENDING))) == [
        "p0",
        "p1",
        "p2",
        "p3",
    ]
    assert await every(store.list_objects(SYNC, status=ObjectStatus.FAILED)) == []
    verified = await store.verify_history()
    assert (verified.rows, list(verified.broken)) == (12, [])
    # What came back can be saved again.
    assert None not in await store.save_objects([Save(one) for one in states])


async def test_a_crash_between_history_and_object_leaves_the_chain_whole(
    store: TableStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await saved(store, state("a"), event(Action.CREATE))
    transact = Tables.transact

    async def dies(self: Tables, table: str, operations: Sequence[Operation]) -> Any:
        if table.endswith("syncobjects"):
            raise StoreError("killed here")
        return await transact(self, table, operations)

    monkeypatch.setattr(Tables, "transact", dies)
    for lost in (one, state("b")):
        with pytest.raises(StoreError, match="killed"):
            await store.save_objects([Save(lost, event(attempt=1))])
    assert not (await store.verify_history()).broken
    monkeypatch.undo()
    clock.pass_by(seconds=-30)
    answers = await store.save_objects([Save(one, event(attempt=2)), Save(state("b"), event(attempt=2))])
    assert [answer.history_count for answer in answers if answer] == [3, 2]
    verified = await store.verify_history()
    assert (verified.rows, list(verified.broken)) == (5, [])
    page = await store.page_history(SYNC, path="a")
    assert [row.attempt for row in page.items] == [2, 1, 0]
    times = [row.created_at for row in page.items]
    assert times == sorted(set(times), reverse=True)


async def test_a_pointer_that_is_missing_does_not_lock_its_object(store: TableStore, env: dict[str, str]) -> None:
    one = await saved(store, state("a", ObjectStatus.FAILED))
    async with table_service(env) as service:
        client = service.get_table_client(f"{store.prefix}syncobjects")
        pointers = [e async for e in client.query_entities("RowKey ge 'i|' and RowKey lt 'i}'")]
        assert len(pointers) == 1
        await client.delete_entity(pointers[0])
    one = await saved(store, replace(one, status=ObjectStatus.IN_SYNC))
    assert await every(store.list_objects(SYNC)) == [one]


@pytest.mark.parametrize("prefix", ["t|", "s|"])
@pytest.mark.parametrize("how", ["changed", "removed", "forged"])
async def test_a_copy_that_is_not_the_row_is_found(
    store: TableStore, env: dict[str, str], clock: Clock, prefix: str, how: str
) -> None:
    from shared.histories.rows import HISTORY_COLUMNS
    from shared.history import chain_hash

    one = await saved(store, state("a", ObjectStatus.FAILED), event(Action.FAIL, ObjectStatus.FAILED))
    await saved(store, one, event(Action.FAIL, ObjectStatus.FAILED))
    clock.pass_by(hours=1)
    assert not (await store.verify_history(SYNC)).broken
    async with table_service(env) as service:
        client = service.get_table_client(f"{store.prefix}synchistory")
        copies = [e async for e in client.query_entities(f"RowKey ge '{prefix}' and RowKey lt '{prefix[0]}}}'")]
        assert len(copies) == 2
        if how == "removed":
            await client.delete_entity(copies[0])
        else:
            forged = copies[0] | {"error": "was never so"}
            if how == "forged":
                columns = {name: forged.get(name) for name in HISTORY_COLUMNS}
                forged["hash"] = chain_hash(columns["previous_hash"], columns)
            await client.update_entity(forged, mode="replace")
    (broken,) = (await store.verify_history(SYNC)).broken
    assert "cop" in broken.detail


async def test_large_batches_with_pointers_fit_into_transactions(store: TableStore) -> None:
    answers = await store.save_objects(
        [Save(state(f"p{n}", ObjectStatus.FAILED), event(Action.FAIL, ObjectStatus.FAILED)) for n in range(130)]
    )
    again = await store.save_objects(
        [Save(replace(one, status=ObjectStatus.CONFLICT), event(Action.CONFLICT)) for one in answers if one]
    )
    assert len([one for one in again if one]) == 130
    assert len(await every(store.list_objects(SYNC, status=ObjectStatus.CONFLICT))) == 130
    assert (await store.page_objects(SYNC, status=ObjectStatus.FAILED)).items == []


async def test_two_archives_at_once_lose_nothing(store: TableStore, clock: Clock) -> None:
    one = state("a", ObjectStatus.FAILED)
    for _ in range(70):
        one = await saved(store, one, event(status=ObjectStatus.FAILED))
    clock.pass_by(days=1)
    lines: list[str] = []
    results = await asyncio.gather(
        store.archive(clock.now, lines.append), store.archive(clock.now, lines.append), return_exceptions=True
    )
    assert any(isinstance(result, int) for result in results)
    assert all(isinstance(result, int | StoreError) for result in results)
    assert len(set(lines)) == 69
    await store.archive(clock.now, lines.append)
    verified = await store.verify_history()
    assert (verified.rows, list(verified.broken)) == (1, [])


async def test_what_was_forgotten_is_removed_a_day_later(store: TableStore, env: dict[str, str], clock: Clock) -> None:
    async def kept() -> set[str]:
        async with table_service(env) as service:
            found = service.get_table_client(f"{store.prefix}syncsmeta").list_entities()
            return {entity["RowKey"] async for entity in found if entity["PartitionKey"].startswith("seen|")}

    words = [f"batch-{number}" for number in range(130)]
    await asyncio.gather(*(store.remember(word, clock.now + timedelta(hours=1)) for word in words))
    await store.remember("younger", clock.now + timedelta(days=1))
    assert await kept() == {*words, "younger"}
    clock.pass_by(days=1)
    await store.remember("new", clock.now + timedelta(days=1))
    assert await kept() == {"younger", "new"}
    clock.pass_by(days=5)
    await store.remember("newest", clock.now + timedelta(days=1))
    assert await kept() == {"newest"}


async def test_rows_of_a_program_without_events_are_read(store: TableStore, env: dict[str, str]) -> None:
    control = await store.save_control(Control(SYNC, paused=True))
    assert control is not None
    one = await saved(store, state("a", source_version="4"))
    async with table_service(env) as service:
        for table, gone in (("syncsmeta", ("again", "event_deletes")), ("syncobjects", ("source_version",))):
            client = service.get_table_client(f"{store.prefix}{table}")
            async for entity in client.list_entities():
                await client.update_entity({k: v for k, v in entity.items() if k not in gone}, mode="replace")
    assert replace(await store.get_control(SYNC), revision=control.revision) == control
    found = (await store.get_objects(SYNC, TARGET, ["a"]))["a"]
    assert replace(found, revision=one.revision) == replace(one, source_version=None)


# --- an account that refuses --------------------------------------------------------------------------------------


async def test_a_newer_schema_is_refused(store: TableStore, env: dict[str, str]) -> None:
    async with table_service(env) as service:
        newer = {"PartitionKey": "schema", "RowKey": "version", "version": 99}
        await service.get_table_client(f"{store.prefix}syncsmeta").upsert_entity(newer)
    with pytest.raises(StoreError, match="upgrade") as caught:
        await type(store)(lambda: table_service(env)).open()
    assert not caught.value.transient


async def test_a_wrong_key_is_a_permanent_error_that_does_not_repeat_it(
    own_tables: type[TableStore], env: dict[str, str]
) -> None:
    wrong = "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50"
    head, _, tail = env["AzureWebJobsStorage"].partition("AccountKey=")
    text = f"{head}AccountKey={wrong};{tail.partition(';')[2]}"
    with pytest.raises(StoreError, match="denied access") as caught:
        await own_tables(lambda: table_service({"AzureWebJobsStorage": text})).open()
    assert not caught.value.transient
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_an_account_that_is_gone_is_a_transient_error(own_tables: type[TableStore]) -> None:
    nowhere = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;TableEndpoint=http://127.0.0.1:1/a;"

    def service() -> Any:
        from azure.data.tables.aio import TableServiceClient

        return TableServiceClient.from_connection_string(nowhere, retry_total=0)

    with pytest.raises(StoreError, match="can not be reached") as caught:
        await own_tables(service).open()
    assert caught.value.transient


async def test_tables_that_somebody_removed_are_an_error_and_not_an_empty_store(
    store: TableStore, env: dict[str, str]
) -> None:
    async with table_service(env) as service:
        await service.delete_table(f"{store.prefix}syncobjects")
    with pytest.raises(StoreError, match="syncobjects"):
        await every(store.list_objects(SYNC))
    with pytest.raises(StoreError, match="syncobjects"):
        await store.get_objects(SYNC, TARGET, ["a"])


async def test_a_store_that_is_not_open_says_so(own_tables: type[TableStore], env: dict[str, str]) -> None:
    store = own_tables(lambda: table_service(env))
    with pytest.raises(StoreError, match="not open"):
        await store.get_control(SYNC)
    await store.aclose()


async def test_a_clock_a_minute_behind_keeps_times_increasing(store: TableStore, env: dict[str, str]) -> None:
    late = Clock()
    late.pass_by(minutes=-1)
    other = type(store)(lambda: table_service(env), clock=late)
    await other.open()
    one = await saved(store, state("a"), event())
    two = await saved(other, one, event())
    await other.aclose()
    assert one.history_at is not None
    assert two.history_at == one.history_at + timedelta(microseconds=1)
