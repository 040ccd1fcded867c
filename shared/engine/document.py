"""A dry run's plan as it is kept and handed out: JSON pages, the first of which says how many there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared.history import Store
from shared.model import Run
from shared.plan import Change

PAGE = 500
"""Changes on one page: well under a page's 500 KB even with long names."""


class PlanDocument:
    """Written page by page while planning; not readable before it is closed."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._run = run
        self._pages = 0
        self._guards: dict[str, str] = {}

    async def add(self, target: str, changes: Sequence[Change], guard: str | None = None) -> None:
        if guard:
            self._guards[target] = guard
        for at in range(0, len(changes), PAGE):
            items = [
                {
                    "target": target,
                    "path": change.path,
                    "change": str(change.kind),
                    "reason": change.reason,
                    "names": list(change.names),
                }
                for change in changes[at : at + PAGE]
            ]
            self._pages += 1
            await self._store.save_plan_page(self._run.run_id, self._pages, json.dumps({"items": items}))

    async def close(self, sync_id: str, counts: Mapping[str, int]) -> None:
        head = {"run_id": self._run.run_id, "sync_id": sync_id, "pages": self._pages, "blocked": self._guards, **counts}
        await self._store.save_plan_page(self._run.run_id, 0, json.dumps(head))


async def read_plan(store: Store, run_id: str) -> dict[str, Any] | None:
    """A finished plan: `{run_id, sync_id, planned, unchanged, failed, blocked, items: [...]}`; None while there is none."""
    head: dict[str, Any] | None = None
    items: list[Any] = []
    number = 0
    async for text in store.plan_pages(run_id):
        page = json.loads(text)
        if head is None:
            if "pages" not in page:
                return None
            head = page
            continue
        number += 1
        # Pages beyond the head's count are what an interrupted planning left behind.
        if number <= head["pages"]:
            items += page["items"]
    if head is None:
        return None
    head.pop("pages")
    return {**head, "items": sorted(items, key=lambda item: (item["target"], item["path"]))}
