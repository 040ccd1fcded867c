"""From what somebody has seen to jobs: which syncs cover it, and which of their targets have to look.

Nothing is asked of a vault here, and nothing is believed: a notice becomes a path to look at. What can not be
told path by path (a gap, a vault that can not be opened, a paused sync) becomes a run of the whole sync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shared import jobs
from shared.engine.event_writer import merged
from shared.engine.installation import Installation
from shared.engine.runs import Runs
from shared.engine.shared_reads import SharedReads
from shared.errors import ConfigError, InvalidSecret, Refused, VaultError
from shared.jobs import EventJob
from shared.mapping import path_below, why_left_out
from shared.model import Sync
from shared.notices import GapNotice, Hint, KeyVaultNotice, Notice
from shared.vault import Vault, check_name

log = logging.getLogger("vaultferry.events")


AT_ONCE = 200
"""Notices after which others get their turn: thousands of them are a second's work."""


@dataclass
class _Due:
    """What one sync is to look at."""

    hints: list[tuple[str, str | None]] = field(default_factory=list)
    all: bool = False


class Events:
    def __init__(self, installation: Installation, runs: Runs, reads: SharedReads) -> None:
        self._in = installation
        self._runs = runs
        self._reads = reads

    async def take(self, notices: Sequence[Notice]) -> list[bool]:
        """Queue what these notices ask for. When it returns, it is durable; the answer says which of them were of use.

        Raises StoreError; then some of it may be queued already, and all of it can be taken again.
        """
        useful = [False] * len(notices)
        due: dict[str, _Due] = {}
        groups = list(self._by_source().items())
        opened = await asyncio.gather(*(self._open(*source, notices) for source, _ in groups))
        for ((vault_id, _), syncs), vault in zip(groups, opened, strict=True):
            if vault is None:
                continue
            if isinstance(vault, VaultError | ConfigError):
                log.warning("what was seen in %s is left to a run: %s", vault_id, vault)
                for at, notice in enumerate(notices):
                    useful[at] = useful[at] or _may_concern(notice, vault_id)
                for sync in syncs:
                    due.setdefault(sync.id, _Due()).all = True
                continue
            for at, notice in enumerate(notices):
                if at % AT_ONCE == 0:
                    await asyncio.sleep(0)
                hint = vault.heard(notice)
                if hint is not None and self._note(syncs, vault, hint, isinstance(notice, GapNotice), due):
                    useful[at] = True
        await self._queue(due)
        return useful

    async def look(self, sync_id: str, paths: Iterable[str]) -> None:
        """Queue a look at paths of one sync. Raises Refused, InvalidSecret for what is no name, and StoreError."""
        sync = self._enabled(sync_id)
        chosen = list(paths)
        for path in chosen:
            check_name(sync.source.vault, sync.source.prefix + path)
            if why := why_left_out(sync, path):
                raise Refused(f"sync {sync_id!r} does not cover {path!r}: {why}")
        await self._queue({sync_id: _Due([(path, None) for path in chosen])})

    async def touched(self, vault_id: str, names: Sequence[str]) -> list[bool]:
        """Queue a look at secrets by their full names in a vault, for all syncs that read it. Says which any of them
        covers. Raises Refused where no sync reads this vault, any VaultError and ConfigError where it can not be opened, and
        StoreError.
        """
        groups = [(resource, syncs) for (vault, resource), syncs in self._by_source().items() if vault == vault_id]
        if not groups:
            raise Refused(f"no enabled sync reads the vault {vault_id!r}", unknown=True)
        useful = [False] * len(names)
        due: dict[str, _Due] = {}
        for resource, syncs in groups:
            vault = await self._in.vaults.get(vault_id, resource)
            for at, name in enumerate(names):
                try:
                    check_name(vault_id, name)
                except InvalidSecret:
                    continue
                if self._note(syncs, vault, Hint(name), False, due):
                    useful[at] = True
        await self._queue(due)
        return useful

    def _enabled(self, sync_id: str) -> Sync:
        sync = self._runs.sync(sync_id)
        if not sync.enabled:
            raise Refused(f"sync {sync_id!r} is disabled in the configuration")
        return sync

    def _by_source(self) -> dict[tuple[str, str], list[Sync]]:
        groups: dict[tuple[str, str], list[Sync]] = {}
        for sync in self._in.syncs.values():
            if sync.enabled:
                groups.setdefault((sync.source.vault, sync.source.resource), []).append(sync)
        return groups

    async def _open(
        self, vault_id: str, resource: str, notices: Sequence[Notice]
    ) -> Vault | VaultError | ConfigError | None:
        """The vault, to be asked whether it knows what was seen; None: none of it can be about this one."""
        if not any(_may_concern(notice, vault_id) for notice in notices):
            return None
        try:
            return await self._in.vaults.get(vault_id, resource)
        except (VaultError, ConfigError) as error:
            return error

    def _note(self, syncs: Sequence[Sync], vault: Vault, hint: Hint, gap: bool, due: dict[str, _Due]) -> bool:
        """Whether a hint concerns any of these syncs, which all read `vault`."""
        found = False
        for sync in syncs:
            if gap:
                due.setdefault(sync.id, _Due()).all = True
                found = True
                continue
            path = path_below(sync.source.prefix, hint.name, vault.capabilities.names)
            if path and why_left_out(sync, path) is None:
                due.setdefault(sync.id, _Due()).hints.append((path, hint.version))
                found = True
        return found

    # queueing ---------------------------------------------------------------------------------------------------------

    async def _queue(self, due: Mapping[str, _Due]) -> None:
        """Send all of it at once: a store that commits in groups has one disk write for it all."""
        told = (self._in.store.owner, self._reads.tell())
        await asyncio.gather(*(self._queue_sync(self._in.syncs[sync_id], each, told) for sync_id, each in due.items()))

    async def _queue_sync(self, sync: Sync, due: _Due, told: tuple[str, int]) -> None:
        if due.all or (await self._in.store.get_control(sync.id)).paused:
            # Of a paused sync nothing is written; it catches up when it is resumed.
            await self._runs.rerun(sync.id)
            return
        parts = list(jobs.cut(merged(due.hints).items(), _size))
        sends = [
            self._in.queues.send(
                jobs.write_queue(target.vault),
                jobs.encode(EventJob(sync=sync.id, vault=target.vault, target=target.id, hints=part, told=told)),
            )
            for part in parts
            for target in sync.targets
        ]
        await asyncio.gather(*sends)


def _may_concern(notice: Notice, vault_id: str) -> bool:
    return isinstance(notice, KeyVaultNotice) or notice.vault in (None, vault_id)


def _size(hint: tuple[str, str | None]) -> int:
    path, version = hint
    return jobs.path_size(path) + 12 + len(version or "")
