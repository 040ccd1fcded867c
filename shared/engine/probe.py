"""When a vault was down until the retries ran out: see whether it answers again, and put back what failed."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace

from shared import jobs
from shared.engine.installation import Installation
from shared.engine.runs import Runs
from shared.errors import Refused, Unavailable, VaultError
from shared.jobs import ProbeJob
from shared.model import ObjectStatus, Sync

log = logging.getLogger("vaultferry.probe")

FIRST_DELAY = 30.0
LAST_DELAY = 900.0
"""Seconds between probes: doubled from the first to the last."""
SLACK = 300.0
"""How much longer than its delay a probe is taken to be on its way, before another may be sent."""


class Prober:
    def __init__(self, installation: Installation, runs: Runs) -> None:
        self._in = installation
        self._runs = runs

    async def schedule(self, vault_id: str, attempt: int = 0) -> None:
        """Send one delayed probe for a vault, unless one is on its way."""
        delay = min(FIRST_DELAY * 2**attempt, LAST_DELAY)
        # The probe holds the lease by its mere existence: nobody renews it, and its handler gives it back.
        if await self._in.store.acquire_lease(_lease(vault_id), uuid.uuid4().hex, delay + SLACK):
            await self._send(ProbeJob(vault_id, attempt), delay)

    async def handle(self, job: ProbeJob) -> None:
        """Ask the vault; if it answers, replay what failed on it for the time being. If not, ask again later."""
        waiting = [sync for sync in self._in.syncs.values() if await self._has_failed(sync, job.vault)]
        if not waiting:
            return
        try:
            for resource in {sync.source.resource for sync in waiting}:
                vault = await self._in.vaults.get(job.vault, resource)
                async for _ in vault.list_secrets():
                    break
        except Unavailable as error:
            log.info("%s still does not answer: %s", job.vault, error, extra={"attempt": job.attempt})
            await self._later(job)
            return
        except VaultError as error:
            log.warning("%s answers, but not as it should: %s", job.vault, error)
            return
        for sync in waiting:
            try:
                run = await self._runs.replay(sync.id, transient_only=True)
            except Refused as refused:
                log.info("nothing to replay: %s", refused, extra={"sync": sync.id})
                continue
            log.info("%s answers again: replaying what failed", job.vault, extra={"sync": sync.id, "run": run.run_id})
            if run.trigger != "replay":
                # It joined a run that may have passed these paths already.
                await self._later(job)

    async def _has_failed(self, sync: Sync, vault_id: str) -> bool:
        for target in sync.targets:
            if vault_id in (target.vault, sync.source.vault):
                rows = self._in.store.list_objects(sync.id, target=target.id, status=ObjectStatus.FAILED)
                async for state in rows:
                    if state.transient:
                        return True
        return False

    async def _later(self, job: ProbeJob) -> None:
        attempt = job.attempt + 1
        await self._send(replace(job, attempt=attempt), min(FIRST_DELAY * 2**attempt, LAST_DELAY))

    async def _send(self, job: ProbeJob, delay: float) -> None:
        await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(job), delay=delay)


def _lease(vault_id: str) -> str:
    return f"probe:{vault_id}"
