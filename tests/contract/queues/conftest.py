"""Both kinds of queues, each test with names of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared.jobs import Queues
from shared.queues.sqlite import SqliteQueues
from shared.queues.storage_queue import StorageQueues
from shared.sqlite import Database


@pytest.fixture(params=["sqlite", pytest.param("storage_queue", marks=pytest.mark.real)])
def make_queues(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Queues]:
    """Another set of queues on the same storage, as another process would open it."""
    if request.param == "sqlite":
        return lambda: SqliteQueues(Database(tmp_path / "v.db"))
    connection_string = request.getfixturevalue("azurite")
    return lambda: StorageQueues({"AzureWebJobsStorage": connection_string})


@pytest.fixture
async def queues(make_queues: Callable[[], Queues]) -> AsyncIterator[Queues]:
    queues = make_queues()
    await queues.open()
    yield queues
    await queues.aclose()


@pytest.fixture
async def other(make_queues: Callable[[], Queues], queues: Queues) -> AsyncIterator[Queues]:
    """The same queues, opened a second time."""
    other = make_queues()
    await other.open()
    yield other
    await other.aclose()


@pytest.fixture
async def queue(queues: Queues) -> str:
    name = f"vaultferry-to-{secrets.token_hex(8)}"
    await queues.ensure([name])
    return name
