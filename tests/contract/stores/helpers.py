"""Small things to store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from shared.history import Page, Save, Store
from shared.model import Action, Chunk, Event, ObjectState, ObjectStatus, Op, Part, Run, new_run_id

T = TypeVar("T")

SYNC = "hub-to-prod"
TARGET = "prod"

HOSTILE = [
    "plain",
    "with/slash/and space",
    "it's \"quoted\" 'twice'",
    "'; DROP TABLE sync_objects; --",
    "ünïcödé/秘密/🔑",
    "back\\slash#hash?question%2e%2e",
    "tab\tand\x7fdelete",
    "|pipes|and;semicolons,commas",
    "x" * 600,
    "🔑" * 300,
    "A-B",
    "a-b",
    "A_B",
]


def run(at: datetime, sync_id: str = SYNC, **more: Any) -> Run:
    return Run(new_run_id(at), sync_id, more.pop("trigger", "manual"), at, **more)


def chunk(run_id: str, number: int, *, paths: tuple[str, ...] = ("a", "b")) -> Chunk:
    return Chunk(run_id, f"{number:06d}", TARGET, Op.CREATE, paths, "." * len(paths))


def state(path: str, status: ObjectStatus = ObjectStatus.IN_SYNC, **more: Any) -> ObjectState:
    return ObjectState(
        more.pop("sync_id", SYNC), more.pop("target", TARGET), path, parts=(Part(path, "f1"),), status=status, **more
    )


def event(action: Action = Action.UPDATE, status: ObjectStatus = ObjectStatus.IN_SYNC, **more: Any) -> Event:
    return Event(action, status, "run-1", **more)


async def saved(store: Store, one: ObjectState, what: Event | None = None) -> ObjectState:
    """Save one object, which must succeed."""
    (answer,) = await store.save_objects([Save(one, what)])
    assert answer is not None
    return answer


async def every(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


async def all_pages(fetch: Callable[[str | None], Awaitable[Page[T]]]) -> list[T]:
    items: list[T] = []
    cursor = None
    while True:
        page = await fetch(cursor)
        items += page.items
        cursor = page.cursor
        if cursor is None:
            return items
