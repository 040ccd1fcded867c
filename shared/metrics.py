"""What GET /metrics tells: from the store, so that it is right however many instances there are.

Counts of secrets are those of finished runs. Nothing here is kept in memory between two requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from shared.model import Control, ObjectStatus, Run, Sync, iso
from shared.resources import resources

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from shared.app import App
    from shared.shapes import MetricsReport, SyncMetrics

SIDE_BY_SIDE = 8
"""Questions that the store is asked at once."""


@dataclass(frozen=True, slots=True)
class SyncSnapshot:
    sync: Sync
    control: Control
    last_run: Run | None
    """The last that has ended."""
    active: bool
    objects: Mapping[ObjectStatus, int]

    @property
    def seconds(self) -> float | None:
        """How long the last run took."""
        run = self.last_run
        if run is None or run.finished_at is None or run.started_at is None:
            return None
        return (run.finished_at - run.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment."""

    now: datetime
    syncs: tuple[SyncSnapshot, ...]
    queues: Mapping[str, int]
    """Messages by queue, poison queues too."""

    @property
    def calls(self) -> Counter[str]:
        """API calls of finished runs, by vault."""
        calls: Counter[str] = Counter()
        for sync in self.syncs:
            calls.update(sync.control.totals.get("calls", {}))
        return calls

    def age(self, sync: SyncSnapshot) -> float | None:
        """Seconds since a run last succeeded."""
        at = sync.control.last_success_at
        return None if at is None else max(0.0, (self.now - at).total_seconds())


async def collect(app: App) -> Snapshot:
    """Ask the store and the queues. Raises StoreError."""
    limit = asyncio.Semaphore(SIDE_BY_SIDE)

    async def look(sync: Sync) -> SyncSnapshot:
        async with limit:
            control = await app.store.get_control(sync.id)
            last = await app.store.get_run(control.last_run) if control.last_run else None
            active = await app.store.get_run(control.active_run) if control.active_run else None
            objects = await app.store.count_objects(sync.id)
        return SyncSnapshot(sync, control, last, active is not None and active.status.active, objects)

    async def depth(queue: str) -> tuple[str, int]:
        async with limit:
            return queue, await app.queues.depth(queue)

    syncs = await asyncio.gather(*(look(sync) for sync in app.config.syncs.values()))
    queues = await asyncio.gather(*(depth(queue) for queue in _queues(app.config.syncs.values())))
    return Snapshot(app.clock(), tuple(syncs), dict(queues))


def _queues(syncs: Iterable[Sync]) -> tuple[str, ...]:
    return resources(vault for sync in syncs for vault in sync.written_vaults).queues


# --- JSON ---------------------------------------------------------------------------------------------------------


def as_json(snapshot: Snapshot) -> MetricsReport:
    runs: Counter[str] = Counter()
    for sync in snapshot.syncs:
        runs.update(sync.control.totals.get("runs", {}))
    return {
        "syncs_configured": len(snapshot.syncs),
        "syncs_enabled": sum(sync.sync.enabled for sync in snapshot.syncs),
        # Store and queues have just answered, and that is all it takes.
        "runner_running": True,
        "runs_active": sum(sync.active for sync in snapshot.syncs),
        "runs": dict(runs),
        "calls": dict(snapshot.calls),
        "queues": dict(snapshot.queues),
        "syncs": {sync.sync.id: _sync_json(snapshot, sync) for sync in snapshot.syncs},
    }


def _sync_json(snapshot: Snapshot, sync: SyncSnapshot) -> SyncMetrics:
    totals = sync.control.totals
    return {
        "enabled": sync.sync.enabled,
        "paused": sync.control.paused,
        "active": sync.active,
        "runs": dict(totals.get("runs", {})),
        "targets": {target: dict(counts) for target, counts in totals.get("targets", {}).items()},
        "objects": dict(sync.objects),
        "last_run_status": None if sync.last_run is None else sync.last_run.status,
        "last_run_seconds": sync.seconds,
        "last_success_at": iso(sync.control.last_success_at),
        "last_success_age_seconds": snapshot.age(sync),
    }


# --- Prometheus ---------------------------------------------------------------------------------------------------


def as_prometheus(snapshot: Snapshot) -> tuple[bytes, str]:
    """The text that Prometheus reads, and its content type."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
    from prometheus_client.registry import Collector

    class Snapshots(Collector):
        def collect(self) -> list[Metric]:
            return _families(snapshot)

    # One of its own: the library's global one also tells of this process, which is one of many.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshots())
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def _families(snapshot: Snapshot) -> list[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    from shared import VERSION

    info = GaugeMetricFamily("vaultferry_info", "Always 1; the label says which version answers.", labels=["version"])
    info.add_metric([VERSION], 1)
    configured = GaugeMetricFamily("vaultferry_syncs_configured", "Syncs in the configuration.", len(snapshot.syncs))
    enabled = GaugeMetricFamily(
        "vaultferry_sync_enabled", "1 for an enabled sync, 0 for one that is not.", labels=["sync"]
    )
    paused = GaugeMetricFamily("vaultferry_sync_paused", "1 for a sync that somebody paused.", labels=["sync"])
    active = GaugeMetricFamily("vaultferry_sync_active", "1 while a run of the sync is on its way.", labels=["sync"])
    runs = CounterMetricFamily("vaultferry_runs", "Runs that have ended, by how they ended.", labels=["sync", "result"])
    secrets = CounterMetricFamily(
        "vaultferry_secrets",
        "Secrets that ended runs have dealt with, by what was done: written, drifted (written because the target had been "
        "changed by others), unchanged, skipped, deleted, failed or conflicts.",
        labels=["sync", "target", "outcome"],
    )
    objects = GaugeMetricFamily(
        "vaultferry_objects", "Secrets that are remembered, by their present status.", labels=["sync", "status"]
    )
    seconds = GaugeMetricFamily(
        "vaultferry_last_run_duration_seconds", "How long the last run that has ended took.", labels=["sync"]
    )
    age = GaugeMetricFamily(
        "vaultferry_last_success_age_seconds",
        "Seconds since a run of the sync last succeeded; absent until one has.",
        labels=["sync"],
    )
    for sync in snapshot.syncs:
        name, totals = sync.sync.id, sync.control.totals
        enabled.add_metric([name], sync.sync.enabled)
        paused.add_metric([name], sync.control.paused)
        active.add_metric([name], sync.active)
        for result, count in totals.get("runs", {}).items():
            runs.add_metric([name, result], count)
        for target, counts in totals.get("targets", {}).items():
            for outcome, count in counts.items():
                secrets.add_metric([name, target, outcome], count)
        for status, count in sync.objects.items():
            objects.add_metric([name, str(status)], count)
        if sync.seconds is not None:
            seconds.add_metric([name], sync.seconds)
        if (since := snapshot.age(sync)) is not None:
            age.add_metric([name], since)
    calls = CounterMetricFamily("vaultferry_api_calls", "Calls that ended runs have made to a vault.", labels=["vault"])
    for vault, count in snapshot.calls.items():
        calls.add_metric([vault], count)
    depth = GaugeMetricFamily(
        "vaultferry_queue_depth", "About how many messages a queue holds, invisible ones included.", labels=["queue"]
    )
    for queue, count in snapshot.queues.items():
        depth.add_metric([queue], count)
    return [info, configured, enabled, paused, active, runs, secrets, objects, seconds, age, calls, depth]
