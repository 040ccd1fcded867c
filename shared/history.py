"""The store's contract: runs, what was last synced, and the history that nobody can rewrite.

Few primitives, each atomic; what they mean is decided above (`engine`). Every conditional save takes a record whose
`revision` is the one that was read (None: must not exist yet) and returns the record with its new revision, or None
when somebody else was faster: read again, and decide again.

Kept by every store, so that no caller has to:
- `sync_history` only grows. Rows of one object form a chain: each holds the hash of the one before it.
- Times of one object's history are strictly increasing, whatever the clock does.
- `history_count`, `history_hash`, `history_at`, `updated_at` of an object are the store's to set.
Failures of the store itself are StoreError.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from shared.model import (
    Chunk,
    Control,
    Event,
    HistoryRow,
    ObjectState,
    ObjectStatus,
    Progress,
    Run,
    canonical_json,
    iso,
)

T = TypeVar("T")

SCHEMA_VERSION = 1
LONGEST_MEMORY = timedelta(days=1)
"""How long `remember` may be asked to: what is forgotten is also removed, a day at a time."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `cursor` (opaque text) asks for the next one, None means that this was the last."""

    items: Sequence[T]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Save:
    """One object to be saved, and what the history shall say about it."""

    state: ObjectState
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A place where the history of an object does not fit together."""

    sync_object_id: str
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_history` found."""

    objects: int
    rows: int
    broken: Sequence[Broken] = field(default_factory=tuple)


class Store(ABC):
    """Where Vaultferry remembers. Safe for many tasks of one event loop, and for many processes at once."""

    owner: str
    """Names this process (or this open store): leases and claims begin with it, so that a dead holder can be told."""

    @abstractmethod
    async def open(self) -> None:
        """Create or migrate what is missing. Raises StoreError when the schema is newer than this program."""

    @abstractmethod
    async def aclose(self) -> None: ...

    # runs -------------------------------------------------------------------------------------------------------

    @abstractmethod
    async def save_run(self, run: Run) -> Run | None: ...

    @abstractmethod
    async def get_run(self, run_id: str) -> Run | None: ...

    @abstractmethod
    async def list_runs(self, sync_id: str | None = None, *, limit: int = 50, cursor: str | None = None) -> Page[Run]:
        """Newest first."""

    @abstractmethod
    async def save_slice(self, progress: Progress, chunks: Sequence[Chunk] = ()) -> Progress | None:
        """Save a target's progress and insert its new chunks, all or nothing. At most 90 chunks at once."""

    @abstractmethod
    async def list_progress(self, run_id: str) -> list[Progress]:
        """How far planning has come, for each target that has begun."""

    @abstractmethod
    async def get_chunk(self, run_id: str, chunk: str) -> Chunk | None: ...

    @abstractmethod
    async def list_chunks(self, run_id: str) -> list[Chunk]:
        """All of a run's chunks, in the order of their ids."""

    @abstractmethod
    async def has_open_chunks(self, run_id: str) -> bool:
        """Whether a chunk that is not held has a path without an outcome. Asked after every job, so it reads little."""

    @abstractmethod
    async def save_chunk(self, chunk: Chunk) -> Chunk | None: ...

    @abstractmethod
    async def save_plan_page(self, run_id: str, page: int, document: str) -> None:
        """Keep one page (text, at most 500 KB) of a dry run's plan. Saving it again replaces it."""

    @abstractmethod
    def plan_pages(self, run_id: str) -> AsyncIterator[str]:
        """The pages of a plan, in order."""

    # controls ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def get_control(self, sync_id: str) -> Control:
        """What is kept for a sync; a fresh `Control` (revision None) when nothing is."""

    @abstractmethod
    async def save_control(self, control: Control) -> Control | None: ...

    @abstractmethod
    async def acquire_lease(self, name: str, owner: str, seconds: float) -> bool:
        """Take or prolong the lease `name`. False: another owner holds it and it has not expired."""

    @abstractmethod
    async def release_lease(self, name: str, owner: str) -> None:
        """Give it back; nothing happens when somebody else holds it."""

    @abstractmethod
    async def remember(self, what: str, until: datetime) -> None:
        """Remember a word of at most 200 characters until then, at most `LONGEST_MEMORY` from now. Twice is once."""

    @abstractmethod
    async def remembers(self, what: str) -> bool:
        """Whether it was remembered, and is to be still."""

    # objects ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def list_objects(
        self, sync_id: str, *, target: str | None = None, status: ObjectStatus | None = None
    ) -> AsyncIterator[ObjectState]:
        """Every remembered object of a sync, in no particular order."""

    @abstractmethod
    async def page_objects(
        self, sync_id: str, *, status: ObjectStatus | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[ObjectState]: ...

    @abstractmethod
    async def count_objects(self, sync_id: str) -> Mapping[ObjectStatus, int]: ...

    @abstractmethod
    async def get_objects(self, sync_id: str, target: str, paths: Sequence[str]) -> dict[str, ObjectState]:
        """Those of `paths` (any number) that are remembered."""

    @abstractmethod
    async def save_objects(self, saves: Sequence[Save]) -> list[ObjectState | None]:
        """Save each object, and its event, if its revision still holds; one answer a save, in order.

        An object that lost leaves no event behind in SQLite; in Table Storage, where two tables share no transaction,
        its event may stay, because what it tells of has happened.
        """

    @abstractmethod
    async def reserve_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> dict[str, str]:
        """Reserve target names (key → path) for good. Returns those that another path has: key → that path."""

    @abstractmethod
    async def release_names(self, sync_id: str, target: str, names: Mapping[str, str]) -> None:
        """Give names (key → path) back that a path no longer writes."""

    # history ----------------------------------------------------------------------------------------------------

    @abstractmethod
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
        """Newest first."""

    @abstractmethod
    async def verify_history(self, sync_id: str | None = None) -> Verification:
        """Walk every chain (of one sync, or all) and say where a row was changed, lost or put in."""

    @abstractmethod
    async def archive(self, before: datetime, write: Any) -> int:
        """Hand finished runs and history rows older than `before` to `write(line)` (JSON text), then remove them.

        Nothing is removed before all lines are written and `write` has returned for each. Returns the number of
        lines. The newest row of every object stays, so that its chain goes on; where it was cut is remembered, so that
        `verify_history` still holds.
        """


def chain_hash(previous_hash: str | None, row: Mapping[str, Any]) -> str:
    """The hash of a history row: over the one before it and all of its own columns but `hash`.

    A `detail` that is None is left out, so that rows from before there were details keep their hashes.
    """
    without = ("hash", "previous_hash") if row.get("detail") is not None else ("hash", "previous_hash", "detail")
    own = {key: value for key, value in row.items() if key not in without}
    return hashlib.sha256(f"{previous_hash or ''}\n{canonical_json(own)}".encode()).hexdigest()


def history_columns(row: HistoryRow) -> dict[str, Any]:
    """A history row as both stores write it, and as it is hashed."""
    return {
        "id": row.id,
        "sync_object_id": row.sync_object_id,
        "sync_id": row.sync_id,
        "target": row.target,
        "path": row.path,
        "run_id": row.run_id,
        "action": str(row.action),
        "status": str(row.status),
        "direction": row.direction,
        "source_version": row.source_version,
        "target_version": row.target_version,
        "attempt": row.attempt,
        "error": row.error,
        "created_at": iso(row.created_at),
        "previous_hash": row.previous_hash,
        "hash": row.hash,
        "detail": row.detail,
    }


def history_document(row: HistoryRow) -> dict[str, Any]:
    """A history row as it is shown: `detail` as the object that it is."""
    return history_columns(row) | {"detail": None if row.detail is None else json.loads(row.detail)}
