"""The guard over deletes that events ask for: they come one at a time, and are counted together all the same.

A window's count is kept with the sync (`Control.event_deletes`), and is raised before anything is deleted: what is
counted twice after a crash makes the guard more careful, never less.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from shared.engine.installation import Installation
from shared.engine.runs import ATTEMPTS_TO_SAVE
from shared.errors import StoreError
from shared.history import Store
from shared.model import Control, ObjectStatus, Sync, from_iso, iso
from shared.plan import guard

WINDOW = timedelta(minutes=10)


def recent_deletes(control: Control, target_id: str, now: datetime) -> int:
    """How many deletes events have asked for in the present window: a plan counts them as its own."""
    window = control.event_deletes.get(target_id)
    began = from_iso(window["since"]) if window else None
    # A window that seems to begin later than now was opened by a clock that is ahead, or ours went back.
    return int(window["count"]) if window and began and abs(now - began) < WINDOW else 0


async def owned_by(store: Store, sync_id: str, target_id: str) -> int:
    """How many secrets of a target this sync wrote."""
    owned = 0
    async for state in store.list_objects(sync_id, target=target_id):
        owned += state.status is not ObjectStatus.DELETED and any(part.owned for part in state.parts)
    return owned


class DeleteWindow:
    def __init__(self, installation: Installation) -> None:
        self._store = installation.store
        self._clock = installation.clock

    async def reserve(self, sync: Sync, target_id: str, number: int) -> str | None:
        """Count deletes that are about to happen; or why they need somebody's approval, and are not counted."""
        for _ in range(ATTEMPTS_TO_SAVE):
            now = self._clock()
            control = await self._store.get_control(sync.id)
            recent = recent_deletes(control, target_id, now)
            window: dict[str, Any] = dict(control.event_deletes.get(target_id, {})) if recent else {"since": iso(now)}
            window["count"] = recent + number
            if recent + number > sync.delete.min_count:
                # Counted once a window, for it costs a look at every row.
                if "owned" not in window:
                    window["owned"] = recent + await owned_by(self._store, sync.id, target_id)
                why = guard(sync.delete, window["owned"], recent + number)
                if why is not None:
                    return why
            # Windows that are over go: a target that was renamed leaves nothing behind.
            windows = {key: kept for key, kept in control.event_deletes.items() if recent_deletes(control, key, now)}
            if await self._store.save_control(replace(control, event_deletes={**windows, target_id: window})):
                return None
        raise StoreError(f"sync {sync.id!r} could not be saved: its record keeps changing")
