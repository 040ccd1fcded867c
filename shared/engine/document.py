"""A dry run's plan as it is kept and handed out: JSON pages, the first of which says how many there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shared.history import Store
from shared.plan import Change, ChangeKind

PAGE_BYTES = 400_000
"""Of JSON on one page, which may have 500 KB, unless a single change has more."""

COUNTED = ("planned", "unchanged", "failed")


def item_of(target: str, change: Change, *, held: bool = False) -> dict[str, Any]:
    """A change as it stands in a plan; `basis` is for a plan that is to be carried out, and not shown."""
    return {
        "target": target,
        "path": change.path,
        "change": str(change.kind),
        "reason": change.reason,
        "names": list(change.names),
        "side": change.side or None,
        "fields": None if change.fields is None else {key: list(names) for key, names in asdict(change.fields).items()},
        "held": held,
        "basis": None if change.basis is None else asdict(change.basis),
    }


class PlanDocument:
    """Written page by page while planning; not readable before it is closed."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._pages = 0
        self._guards: dict[str, str] = {}

    async def add(self, target: str, changes: Sequence[Change], guard: str | None = None) -> None:
        """Add some changes of a target; `guard` tells why its deletes would wait for an approval."""
        if guard:
            self._guards[target] = guard
        await self.add_items(
            [item_of(target, each, held=bool(guard) and each.kind is ChangeKind.DELETE) for each in changes]
        )

    async def add_items(self, items: Sequence[Mapping[str, Any]]) -> None:
        page: list[str] = []
        size = 0
        for item in items:
            text = json.dumps(item)
            if len(text) > PAGE_BYTES:
                # A secret with thousands of names: told without them.
                text = json.dumps({**item, "names": item["names"][:100], "fields": None, "basis": None})
            if page and size + len(text) > PAGE_BYTES:
                await self._save(page)
                page, size = [], 0
            page.append(text)
            size += len(text)
        if page:
            await self._save(page)

    async def _save(self, items: Sequence[str]) -> None:
        self._pages += 1
        await self._store.save_plan_page(self._run_id, self._pages, f'{{"items": [{", ".join(items)}]}}')

    async def close(
        self, sync_id: str, counts: Mapping[str, int], configuration: str, unseen: Mapping[str, str]
    ) -> None:
        head = {
            "run_id": self._run_id,
            "sync_id": sync_id,
            "pages": self._pages,
            "blocked": self._guards,
            "unseen": unseen,
            "configuration": configuration,
            **counts,
        }
        await self._store.save_plan_page(self._run_id, 0, json.dumps(head))

    async def save(self, plan: Mapping[str, Any]) -> None:
        """Keep a plan that was made elsewhere, as `read_whole_plan` gives it."""
        await self.add_items(plan["items"])
        self._guards = plan["blocked"]
        counts = {name: plan[name] for name in COUNTED}
        await self.close(plan["sync_id"], counts, plan["configuration"], {})


async def read_plan(store: Store, run_id: str) -> dict[str, Any] | None:
    """A finished plan: `{run_id, sync_id, planned, unchanged, failed, blocked, unseen, items: [...]}`; None while there is
    none."""
    plan = await read_whole_plan(store, run_id)
    if plan is None:
        return None
    plan.pop("configuration")
    return {**plan, "items": [{key: item[key] for key in item if key != "basis"} for item in plan["items"]]}


async def read_whole_plan(store: Store, run_id: str) -> dict[str, Any] | None:
    """The same with what it rests on: the `configuration`'s digest, and each item's `basis`."""
    head: dict[str, Any] | None = None
    items: list[Any] = []
    number = 0
    async for text in store.plan_pages(run_id):
        page = json.loads(text)
        if head is None:
            if "pages" not in page:
                return None
            head = {"configuration": "", "unseen": {}, **page}
            continue
        number += 1
        # Pages beyond the head's count are what an interrupted planning left behind.
        if number <= head["pages"]:
            # A plan that was made by an earlier version says less.
            items += [{"side": None, "fields": None, "held": False, "basis": None, **item} for item in page["items"]]
    if head is None:
        return None
    head.pop("pages")
    return {**head, "items": sorted(items, key=lambda item: (item["target"], item["path"]))}
