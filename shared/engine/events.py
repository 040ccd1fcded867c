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
from shared.engine.installation import Installation
from shared.engine.runs import Runs
from shared.engine.shared_reads import SharedReads
from shared.errors import ConfigError, InvalidSecret, Refused, VaultError
from shared.jobs import EventJob
from shared.mapping import Mapper, path_below, why_left_out
from shared.model import SOURCE_SIDE, Sync
from shared.notices import GapNotice, Hint, KeyVaultNotice, Notice, merged
from shared.vault import Vault, check_name

log = logging.getLogger("vaultferry.events")


AT_ONCE = 200
"""Notices after which others get their turn: thousands of them are a second's work."""


@dataclass
class _Watch:
    """A sync that wants to know of changes in a vault."""

    sync: Sync
    side: str
    """`source`; of a two-way sync also the id of a target."""
    mapper: Mapper | None = None
    """A target's, once it was asked for: made anew for each of thousands of names, it would cost more than all else."""

    def path(self, vault: Vault, name: str) -> str | None:
        """The path that a name there has; None: the sync does not cover it."""
        rule = vault.capabilities.names
        target = self.sync.target(self.side)
        if target is not None:
            self.mapper = self.mapper or Mapper(target, rule)
        path = self.mapper.path_of(name) if self.mapper else path_below(self.sync.source.prefix, name, rule)
        return path if path and why_left_out(self.sync, path) is None else None


@dataclass
class _Due:
    """What one side of a sync is to look at."""

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
        due: dict[tuple[str, str], _Due] = {}
        groups = list(self._watched().items())
        opened = await asyncio.gather(*(self._open(*watched, notices) for watched, _ in groups))
        for ((vault_id, _), watches), vault in zip(groups, opened, strict=True):
            if vault is None:
                continue
            if isinstance(vault, VaultError | ConfigError):
                log.warning("what was seen in %s is left to a run: %s", vault_id, vault)
                for at, notice in enumerate(notices):
                    useful[at] = useful[at] or _may_concern(notice, vault_id)
                for watch in watches:
                    due.setdefault((watch.sync.id, watch.side), _Due()).all = True
                continue
            for at, notice in enumerate(notices):
                if at % AT_ONCE == 0:
                    await asyncio.sleep(0)
                hint = vault.heard(notice)
                if hint is not None and self._note(watches, vault, hint, isinstance(notice, GapNotice), due):
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
        await self._queue({(sync_id, SOURCE_SIDE): _Due([(path, None) for path in chosen])})

    async def touched(self, vault_id: str, names: Sequence[str]) -> list[bool]:
        """Queue a look at secrets by their full names in a vault, for all syncs that read it. Says which any of them
        covers. Raises Refused where no sync reads this vault, any VaultError and ConfigError where it can not be opened, and
        StoreError.
        """
        groups = [(resource, watches) for (vault, resource), watches in self._watched().items() if vault == vault_id]
        if not groups:
            raise Refused(f"no enabled sync reads the vault {vault_id!r}", unknown=True)
        useful = [False] * len(names)
        due: dict[tuple[str, str], _Due] = {}
        for resource, watches in groups:
            vault = await self._in.vaults.get(vault_id, resource)
            for at, name in enumerate(names):
                try:
                    check_name(vault_id, name)
                except InvalidSecret:
                    continue
                if self._note(watches, vault, Hint(name), False, due):
                    useful[at] = True
        await self._queue(due)
        return useful

    def _enabled(self, sync_id: str) -> Sync:
        sync = self._runs.sync(sync_id)
        if not sync.enabled:
            raise Refused(f"sync {sync_id!r} is disabled in the configuration")
        return sync

    def _watched(self) -> dict[tuple[str, str], list[_Watch]]:
        """Who wants to know of a vault, by its id and resource."""
        groups: dict[tuple[str, str], list[_Watch]] = {}
        for sync in self._in.syncs.values():
            sides = [(SOURCE_SIDE, sync.source.vault)]
            if sync.two_way:
                sides += [(target.id, target.vault) for target in sync.targets]
            for side, vault in sides if sync.enabled else ():
                groups.setdefault((vault, sync.source.resource), []).append(_Watch(sync, side))
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

    def _note(
        self, watches: Sequence[_Watch], vault: Vault, hint: Hint, gap: bool, due: dict[tuple[str, str], _Due]
    ) -> bool:
        """Whether a hint concerns any of these, who all watch `vault`."""
        found = False
        for watch in watches:
            here = (watch.sync.id, watch.side)
            if gap:
                due.setdefault(here, _Due()).all = True
                found = True
            elif (path := watch.path(vault, hint.name)) is not None:
                due.setdefault(here, _Due()).hints.append((path, hint.version))
                found = True
        return found

    # queueing ---------------------------------------------------------------------------------------------------------

    async def _queue(self, due: Mapping[tuple[str, str], _Due]) -> None:
        """Send all of it at once: a store that commits in groups has one disk write for it all."""
        told = (self._in.store.owner, self._reads.tell())
        await asyncio.gather(
            *(self._queue_side(self._in.syncs[sync_id], side, each, told) for (sync_id, side), each in due.items())
        )

    async def _queue_side(self, sync: Sync, side: str, due: _Due, told: tuple[str, int]) -> None:
        if due.all or (await self._in.store.get_control(sync.id)).paused:
            # Of a paused sync nothing is written; it catches up when it is resumed.
            await self._runs.rerun(sync.id)
            return
        parts = list(jobs.cut(merged(due.hints).items(), _size))
        sends = [
            self._in.queues.send(
                jobs.write_queue(unit.vault),
                jobs.encode(
                    EventJob(
                        sync=sync.id,
                        vault=unit.vault,
                        target=side if sync.two_way else unit.id,
                        hints=part,
                        told=told,
                    )
                ),
            )
            for part in parts
            for unit in sync.units
        ]
        await asyncio.gather(*sends)


def _may_concern(notice: Notice, vault_id: str) -> bool:
    return isinstance(notice, KeyVaultNotice) or notice.vault in (None, vault_id)


def _size(hint: tuple[str, str | None]) -> int:
    path, version = hint
    return jobs.path_size(path) + 12 + len(version or "")
