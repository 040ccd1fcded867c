"""What only Azure Storage queues are asked for: the wire format of the Functions host, names, clear refusals."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import AsyncIterator

import pytest

from shared.azure_storage import queue_service
from shared.errors import ConfigError, StoreError
from shared.jobs import Queues
from shared.queues.storage_queue import StorageQueues

ACCOUNT_KEY = "c2VjcmV0LWFjY291bnQta2V5"
NOBODY = f"AccountName=a;AccountKey={ACCOUNT_KEY};QueueEndpoint=http://127.0.0.1:9/a"


@pytest.fixture
async def storage(azurite: str) -> AsyncIterator[Queues]:
    queues = StorageQueues({"AzureWebJobsStorage": azurite})
    await queues.open()
    yield queues
    await queues.aclose()


@pytest.mark.real
async def test_messages_are_base64_and_live_for_ever_as_the_functions_host_wants(storage: Queues, azurite: str) -> None:
    from azure.storage.queue import TextBase64DecodePolicy

    name = f"wire-{secrets.token_hex(8)}"
    await storage.send(name, "ключ")
    async with queue_service({"AzureWebJobsStorage": azurite}) as service:
        client = service.get_queue_client(name, message_decode_policy=TextBase64DecodePolicy())
        (message,) = await client.peek_messages()
    assert message.content == "ключ"
    assert message.expires_on is not None
    assert message.expires_on.year == 9999


@pytest.mark.real
async def test_a_message_that_is_not_ours_is_handed_on_as_it_is(storage: Queues, azurite: str) -> None:
    name = f"wire-{secrets.token_hex(8)}"
    await storage.ensure([name])
    async with queue_service({"AzureWebJobsStorage": azurite}) as service:
        await service.get_queue_client(name).send_message("no base64!")
    await storage.send(name, "x")
    assert sorted(message.body for message in await storage.receive(name)) == ["no base64!", "x"]


@pytest.mark.parametrize("name", ["ab", "a" * 64, "vaultferry-to-a--b", "vaultferry-to-a-", "Upper", "a_b", "ä" * 4])
async def test_a_name_that_azure_would_refuse_is_refused_before_anything_is_sent(name: str) -> None:
    queues = StorageQueues({"AzureWebJobsStorage": NOBODY})
    await queues.open()
    try:
        with pytest.raises(StoreError, match="another id") as caught:
            await queues.ensure([name])
    finally:
        await queues.aclose()
    assert not caught.value.transient


async def test_an_account_that_does_not_answer_is_a_transient_store_error_without_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from shared import azure_storage

    monkeypatch.setattr(azure_storage, "_STORAGE_RETRIES", {"retry_total": 0})
    queues = StorageQueues({"AzureWebJobsStorage": NOBODY})
    await queues.open()
    try:
        for call in (
            lambda: queues.send("jobs", "x"),
            lambda: queues.receive("jobs"),
            lambda: queues.ensure(["jobs"]),
            lambda: queues.depth("jobs"),
        ):
            with pytest.raises(StoreError, match="the storage queue jobs failed") as caught:
                await call()
            assert caught.value.transient
            assert caught.value.__cause__ is None
            assert ACCOUNT_KEY not in "".join(traceback.format_exception(caught.value))
    finally:
        await queues.aclose()


async def test_without_an_account_they_do_not_open() -> None:
    with pytest.raises(ConfigError, match="AzureWebJobsStorage is not set"):
        await StorageQueues({}).open()
    with pytest.raises(StoreError, match="not open"):
        await StorageQueues({}).send("jobs", "x")
