"""What an installation has in its storage account, by name: one list for the code, for deployments and for the tools.

infra/main.bicep creates what stands here, and a test compares the two. Without a deployment, the code makes what is
missing when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shared.jobs import EVENTS_QUEUE, PLAN_QUEUE, POISON_SUFFIX, write_queue

RUNS_TABLE = "syncsrun"
CHUNKS_TABLE = "syncschunk"
OBJECTS_TABLE = "syncobjects"
HISTORY_TABLE = "synchistory"
META_TABLE = "syncsmeta"
TABLES = (RUNS_TABLE, CHUNKS_TABLE, OBJECTS_TABLE, HISTORY_TABLE, META_TABLE)
"""Letters and digits only: Table Storage takes no underscore."""
CONFIG_CONTAINER = "vaultferry"
"""Blobs: the last good copy of a configuration that is kept at an address."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Names, each in the order in which people look for them."""

    queues: tuple[str, ...]
    """Queues of work, then the poison queue of each."""
    tables: tuple[str, ...]
    containers: tuple[str, ...]


def resources(written_vaults: Iterable[str]) -> Resources:
    """What an installation needs whose syncs write these vaults."""
    work = [PLAN_QUEUE, EVENTS_QUEUE, *(write_queue(vault) for vault in dict.fromkeys(written_vaults))]
    return Resources(
        queues=(*work, *(name + POISON_SUFFIX for name in work)),
        tables=TABLES,
        containers=(CONFIG_CONTAINER,),
    )
