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
from shared.model import Sync

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

    async def schedule(self, vault_id: str) -> None:
        """Send a delayed probe for a vault, unless one is on its way."""
        # A store tells by its own name in front that a holder is alive.
        await self._send(ProbeJob(vault_id, holder=f"{self._in.store.owner}:{uuid.uuid4().hex}"))

    async def later(self, job: ProbeJob) -> None:
        """Send the probe that follows `job`, unless another one has begun meanwhile."""
        await self._send(replace(job, attempt=job.attempt + 1))

    async def _send(self, job: ProbeJob) -> None:
        delay = min(FIRST_DELAY * 2 ** min(job.attempt, 10), LAST_DELAY)
        # The lease is held by the message's mere existence: whoever deals with it prolongs it or gives it back.
        if await self._in.store.acquire_lease(_lease(job.vault), job.holder, delay + SLACK):
            await self._in.queues.send(jobs.write_queue(job.vault), jobs.encode(job), delay=delay)

    async def handle(self, job: ProbeJob) -> None:
        """Ask the vault; if it answers, replay what failed on it for the time being. If not, ask again later."""
        ready: list[Sync] = []
        silent = False
        waiting = [sync for sync in self._in.syncs.values() if await self._waits(sync, job.vault)]
        for sync in waiting:
            try:
                await self._ask(sync, job.vault)
                ready.append(sync)
            except Unavailable as error:
                log.info("%s still does not answer: %s", error.vault, error, extra={"attempt": job.attempt})
                silent = True
                if error.vault == job.vault:
                    break
            except VaultError as error:
                log.warning("%s answers, but not as it should: %s", error.vault, error)
        if not silent:
            # Given back first: what is replayed may fail again, and that asks for a new probe.
            await self._in.store.release_lease(_lease(job.vault), job.holder)
        # Whoever asked for a probe while this one looked was told that one is on its way.
        others = [sync for sync in self._in.syncs.values() if sync not in waiting]
        passed = not silent and any([await self._waits(sync, job.vault) for sync in others])
        for sync in ready:
            if (await self._in.store.get_control(sync.id)).again:
                log.info("%s answers again: a run makes up for what was missed", job.vault, extra={"sync": sync.id})
                await self._runs.go_on(sync.id)
                passed = passed or (await self._in.store.get_control(sync.id)).again is not None
                continue
            try:
                run = await self._runs.replay(sync.id, transient_only=True)
            except Refused as refused:
                log.info("nothing to replay: %s", refused, extra={"sync": sync.id})
                continue
            log.info("%s answers again: replaying what failed", job.vault, extra={"sync": sync.id, "run": run.run_id})
            # It joined a run that may have passed these paths already.
            passed = passed or run.trigger != "replay"
        if silent or passed:
            await self.later(job)

    async def _ask(self, sync: Sync, vault_id: str) -> None:
        """List this vault and the source as the sync does: it may be allowed no more than that. Raises any VaultError."""
        places = {(target.vault, target.prefix) for target in sync.targets if target.vault == vault_id}
        for place, prefix in [*sorted(places), (sync.source.vault, sync.source.prefix)]:
            vault = await self._in.vaults.get(place, sync.source.resource)
            async for _ in vault.list_secrets(vault.capabilities.names.fit(prefix)):
                break

    async def _waits(self, sync: Sync, vault_id: str) -> bool:
        """Whether something was not done for want of an answer, maybe of this vault's."""
        if sync.enabled and any(vault_id in (target.vault, sync.source.vault) for target in sync.targets):
            control = await self._in.store.get_control(sync.id)
            if control.again and not control.paused:
                return True
        for target in sync.targets:
            if vault_id in (target.vault, sync.source.vault):
                async for _ in self._runs.unanswered(sync.id, target.id):
                    return True
        return False


def _lease(vault_id: str) -> str:
    return f"probe:{vault_id}"
