"""`serve` on the queues of a storage account."""

from __future__ import annotations

import asyncio
import secrets

import azure.functions as func
import pytest

from shared.host import serve
from shared.host_settings import HostSettings
from shared.queues.storage_queue import StorageQueues


@pytest.mark.real
async def test_queue_and_poison_functions_run_on_a_storage_account(azurite: str) -> None:
    app = func.FunctionApp()
    name = f"vaultferry-to-{secrets.token_hex(6)}"
    seen: list[tuple[str, int | None]] = []
    poisoned = asyncio.Event()

    @app.queue_trigger("msg", name, "AzureWebJobsStorage")
    async def work(msg: func.QueueMessage) -> None:
        seen.append((msg.get_body().decode(), msg.dequeue_count))
        if seen[-1][0] == "bad":
            raise ValueError

    @app.queue_trigger("msg", f"{name}-poison", "AzureWebJobsStorage")
    async def poison(msg: func.QueueMessage) -> None:
        seen.append((f"poison {msg.get_body().decode()}", msg.dequeue_count))
        poisoned.set()

    queues = StorageQueues({"AzureWebJobsStorage": azurite})
    await queues.open()
    stop, ready = asyncio.Event(), asyncio.Event()
    settings = HostSettings(max_dequeue_count=2, visibility_timeout=0)
    task = asyncio.create_task(
        serve(app, queues=queues, env={}, port=0, settings=settings, stop=stop, ready=lambda url: ready.set())
    )
    try:
        await asyncio.wait_for(ready.wait(), 20)
        await queues.send(name, "good")
        await queues.send(name, "bad")
        await asyncio.wait_for(poisoned.wait(), 20)
    finally:
        stop.set()
        await task
        depth = await queues.depth(name)
        await queues.aclose()
    assert sorted(seen) == [("bad", 1), ("bad", 2), ("good", 1), ("poison bad", 1)]
    assert depth == 0
