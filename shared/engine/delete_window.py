"""The guard over deletes that events ask for: they come one at a time, and are counted together all the same.

A window's count is kept with the sync (`Control.event_deletes`). It is raised before anything is deleted, and lowered again
by what could not be, for that is counted when it is tried again. What is counted twice after a crash makes the guard more
careful, never less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from shared.engine.installation import Installation
from shared.engine.runs import ATTEMPTS_TO_SAVE
from shared.errors import StoreError
from shared.history import Store
from shared.model import Control, RunStatus, Sync, from_iso, iso
from shared.plan import guard

WINDOW = timedelta(minutes=10)
RUNS_LOOKED_AT = 50
"""How many of the latest runs are asked whether they hold deletes back."""
RUN_EVERY = timedelta(seconds=30)
"""How often a run is begun at once for deletes that are held back. The others wait for a probe, and share a run."""


@dataclass(frozen=True, slots=True)
class Held:
    """Deletes that need somebody's approval, and so a plan."""

    why: str
    first: bool
    """Whether no run was begun for such deletes a moment ago."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Deletes that may happen: they are counted."""

    sync: Sync
    target: str
    window: str
    """When the window began that they are counted in."""


def recent_deletes(control: Control, target_id: str, now: datetime) -> int:
    """How many deletes events have asked for in the present window: a plan counts them as its own."""
    return int(_window(control, target_id, now).get("count", 0))


def _window(control: Control, target_id: str, now: datetime) -> Mapping[str, Any]:
    """The present window; empty: none is open."""
    window: Mapping[str, Any] = control.event_deletes.get(target_id, {})
    return window if _is_within(window.get("since"), now, WINDOW) else {}


def _is_within(moment: str | None, now: datetime, length: timedelta) -> bool:
    # What seems to begin later than now was noted by a clock that is ahead, or ours went back.
    began = from_iso(moment)
    return began is not None and abs(now - began) < length


async def owned_by(store: Store, sync_id: str, target_id: str) -> int:
    """How many secrets of a target this sync wrote."""
    owned = 0
    async for state in store.list_objects(sync_id, target=target_id):
        owned += state.owned
    return owned


class DeleteWindow:
    def __init__(self, installation: Installation) -> None:
        self._store = installation.store
        self._clock = installation.clock

    async def reserve(self, sync: Sync, target_id: str, number: int) -> Reserved | Held:
        """Count deletes that are about to happen; or why they need somebody's approval, and are not counted."""
        if run := await self._waiting(sync.id):
            return Held(f"run {run} waits for an approval", first=False)
        for _ in range(ATTEMPTS_TO_SAVE):
            now = self._clock()
            control = await self._store.get_control(sync.id)
            window: dict[str, Any] = {"since": iso(now), "count": 0, **_window(control, target_id, now)}
            number_then = window["count"] + number
            held = None
            if number_then > sync.delete.min_count:
                first = not _is_within(window.get("asked"), now, RUN_EVERY)
                # Seldom counted, for it costs a look at every row: once a window, and before somebody is asked.
                if "owned" not in window or (first and guard(sync.delete, window["owned"], number_then)):
                    window["owned"] = window["count"] + await owned_by(self._store, sync.id, sync.row_target(target_id))
                why = guard(sync.delete, window["owned"], number_then)
                if why is not None:
                    held = Held(why, first)
            if held is None:
                window["count"] = number_then
            elif held.first:
                window["asked"] = iso(now)
            else:
                return held
            if await self._save(control, target_id, window, now):
                return held or Reserved(sync, target_id, window["since"])
        raise _keeps_changing(sync)

    async def _waiting(self, sync_id: str) -> str | None:
        """The run that holds deletes back: those must not trickle away meanwhile, window by window. A run that was about
        some paths, or could not look, says nothing of them."""
        for run in (await self._store.list_runs(sync_id, limit=RUNS_LOOKED_AT)).items:
            if run.status is RunStatus.BLOCKED:
                return run.run_id
            if run.paths is None and not run.dry_run and run.status in (RunStatus.SUCCEEDED, RunStatus.PARTIAL):
                return None
        return None

    async def give_back(self, reserved: Reserved, number: int) -> None:
        """So many of them were not deleted."""
        if number == 0:
            return
        for _ in range(ATTEMPTS_TO_SAVE):
            now = self._clock()
            control = await self._store.get_control(reserved.sync.id)
            window = dict(_window(control, reserved.target, now))
            if window.get("since") != reserved.window:
                return
            window["count"] -= number
            if await self._save(control, reserved.target, window, now):
                return
        raise _keeps_changing(reserved.sync)

    async def _save(self, control: Control, target_id: str, window: Mapping[str, Any], now: datetime) -> bool:
        # Windows that are over go: a target that was renamed leaves nothing behind.
        windows = {key: kept for key, kept in control.event_deletes.items() if _window(control, key, now)}
        saved = await self._store.save_control(replace(control, event_deletes={**windows, target_id: window}))
        return saved is not None


def _keeps_changing(sync: Sync) -> StoreError:
    return StoreError(f"sync {sync.id!r} could not be saved: its record keeps changing")
