"""What GET /health tells. It has no key, so it names syncs and settings, but no secret, no path and no run's errors.

`error`: nothing can be carried at all. `degraded`: the app works, but the last run of some sync did not go well, none has
succeeded for two turns of its schedule, or the relay that lives in this process is in trouble. Monitors go by the status
code: degraded is 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from shared.build_info import build_info
from shared.errors import ConfigError, StoreError
from shared.jobs import PLAN_QUEUE
from shared.model import Control, RunStatus, Sync, iso
from shared.queue_loop import describe
from shared.timer_loop import next_tick

if TYPE_CHECKING:
    from shared.app import App
    from shared.relay.relay import Relay
    from shared.shapes import Check, Checks, Health, HealthReport, SyncCheck

PATIENCE = 10.0
"""Seconds for each thing that is looked at: a monitor does not wait for ever."""
LATE = timedelta(minutes=5)


async def examine(get_app: Callable[[], Awaitable[App]]) -> HealthReport:
    """Look at everything, the app itself first. Raises nothing that it looks for."""
    checks: Checks = {}
    app: App | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            app = await get_app()
    except ConfigError as error:
        checks["config"] = _error(str(error))
    except (StoreError, TimeoutError) as error:
        checks["config"] = _ok()
        checks["store"] = _error(_reason(error))
    except Exception as error:  # noqa: BLE001 - a broken installation, such as a missing package: here is where it shows
        checks["app"] = _error(describe(error))
    if app is not None:
        checks["config"] = _ok()
        checks["store"], controls = await _store(app)
        checks["queues"] = await _queues(app)
        if app.relay is not None:
            checks["relay"] = _relay(app.relay)
        checks["syncs"] = {sync_id: await _sync(app, control) for sync_id, control in controls.items()}
    build = build_info()
    return {
        "status": _worst(checks),
        "version": build.version,
        "commit": build.commit,
        "build_date": build.date,
        "checks": checks,
    }


def _worst(checks: Checks) -> Health:
    whole = (checks.get("app"), checks.get("config"), checks.get("store"), checks.get("queues"))
    if any(check is not None and check["status"] == "error" for check in whole):
        return "error"
    parts = [*checks.get("syncs", {}).values(), checks.get("relay", _ok())]
    return "degraded" if any(check["status"] != "ok" for check in parts) else "ok"


async def _store(app: App) -> tuple[Check, dict[str, Control]]:
    try:
        async with asyncio.timeout(PATIENCE):
            return _ok(), {sync_id: await app.store.get_control(sync_id) for sync_id in app.config.syncs}
    except (StoreError, TimeoutError) as error:
        return _error(_reason(error)), {}


async def _queues(app: App) -> Check:
    try:
        async with asyncio.timeout(PATIENCE):
            await app.queues.depth(PLAN_QUEUE)
    except (StoreError, TimeoutError) as error:
        return _error(_reason(error))
    return _ok()


def _relay(relay: Relay) -> Check:
    told = relay.health()
    if told["status"] == "ok":
        return _ok()
    why = (f"{name}: {check}" for name, check in told["checks"].items() if isinstance(check, str) and check != "ok")
    return {"status": told["status"], "detail": "; ".join(why)}


async def _sync(app: App, control: Control) -> SyncCheck:
    sync = app.config.syncs[control.sync_id]
    last: RunStatus | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            run = await app.store.get_run(control.last_run) if control.last_run else None
            last = None if run is None else run.status
    except (StoreError, TimeoutError) as error:
        return {"status": "error", "detail": _reason(error), "last_success": iso(control.last_success_at)}
    check: SyncCheck = {"status": "ok", "last_success": iso(control.last_success_at), "last_run": last}
    if problem := _problem(sync, control, last, app.clock()):
        check["status"], check["detail"] = "degraded", problem
    return check


def _problem(sync: Sync, control: Control, last: RunStatus | None, now: datetime) -> str | None:
    if not sync.enabled:
        return None
    if last in (RunStatus.FAILED, RunStatus.PARTIAL, RunStatus.BLOCKED):
        return f"the last run is {last}; GET /syncs/{sync.id}/status says more"
    if sync.schedule is None or control.paused or control.active_run or control.last_success_at is None:
        return None
    second = next_tick(sync.schedule, next_tick(sync.schedule, control.last_success_at))
    if now - second > LATE:
        return "overdue: two turns of its schedule have passed without a success"
    return None


def _ok() -> Check:
    return {"status": "ok"}


def _error(detail: str) -> Check:
    return {"status": "error", "detail": detail}


def _reason(error: Exception) -> str:
    return f"no answer within {PATIENCE:g} seconds" if isinstance(error, TimeoutError) else str(error)
