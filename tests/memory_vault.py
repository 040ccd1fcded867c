"""A vault in memory, for tests of the engine: any mix of capabilities, faults on demand, and every call counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.errors import Conflict, SecretNotFound, Unsupported, VaultError
from shared.model import Entry, Expect, Fields, Secret
from shared.notices import AuditNotice, GapNotice, Hint, Notice
from shared.pacing import Pacer
from shared.vault import Capabilities, Finding, FingerprintCost, Use, Vault, check_name


@dataclass
class Kept:
    fields: Fields
    version: int
    live: bool = True
    enabled: bool = True
    owner: str | None = None
    updated_at: datetime | None = None
    made: int = 0
    """As a KV v2's time of creation, it tells version 1 of a key from that of one that was wiped and written anew."""


Hook = Callable[[str, str, str], Awaitable[None]]


@dataclass
class Faults:
    """Errors to raise, by operation: each is raised once, in order; `after` raises it when the effect is done."""

    queued: list[tuple[str, VaultError, bool]] = field(default_factory=list)
    always: VaultError | None = None

    def add(self, operation: str, error: VaultError, *, after: bool = False, times: int = 1) -> None:
        self.queued += [(operation, error, after)] * times

    def take(self, operation: str, after: bool) -> None:
        if self.always is not None and not after:
            raise self.always
        for at, (wanted, error, late) in enumerate(self.queued):
            if wanted == operation and late == after:
                del self.queued[at]
                raise error


class MemoryVault(Vault):
    kind = "memory"

    def __init__(
        self,
        vault_id: str,
        capabilities: Capabilities | None = None,
        *,
        clock: Callable[[], datetime] | None = None,
        tombstones: bool | None = None,
    ) -> None:
        """`clock`: what its times are told by, in steps of the capabilities' resolution; None: it tells no times.
        `tombstones`: whether a deleted secret's version stays; by default, where it compares and sets."""
        super().__init__(vault_id, Pacer(vault_id, concurrency=64, sleep=_no_sleep))
        self._capabilities = capabilities or Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
        self._clock = clock
        self._tombstones = self._capabilities.compare_and_set if tombstones is None else tombstones
        self._removed: dict[str, Kept] = {}
        self.kept: dict[str, Kept] = {}
        self.calls: Counter[str] = Counter()
        self.faults = Faults()
        self.hook: Hook | None = None
        self.writes: list[tuple[str, Fields]] = []
        self._revision = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # what a person does behind Vaultferry's back ---------------------------------------------------------------------

    def put(self, name: str, fields: Fields | str) -> None:
        value = {"value": fields} if isinstance(fields, str) else dict(fields)
        self.kept[name] = Kept(value, self._next(name), updated_at=self._stamp(), made=self._revision)

    def _next(self, name: str) -> int:
        """The version of the next write. Without tombstones, no two secrets that ever had a name share one."""
        kept = self.kept.get(name)
        self._revision += 1
        if not self._capabilities.compare_and_set or not self._tombstones:
            return self._revision
        return kept.version + 1 if kept else 1

    def _stamp(self) -> datetime | None:
        if self._clock is None:
            return None
        now, step = self._clock(), self._capabilities.time_resolution
        return now if step is None else now - (now - datetime.min.replace(tzinfo=now.tzinfo)) % step

    def remove(self, name: str) -> None:
        if self._tombstones:
            self.kept[name].live = False
        else:
            self._removed[name] = self.kept.pop(name)

    def restore(self, name: str) -> bool:
        """Bring back what was removed last, as it was: its version and its time are the old ones. False: there is none."""
        kept = self.kept.get(name)
        if kept is None and name in self._removed:
            self.kept[name] = self._removed.pop(name)
            return True
        if kept is None or kept.live:
            return False
        kept.live = True
        return True

    def values(self) -> dict[str, Any]:
        return {name: kept.fields for name, kept in sorted(self.kept.items()) if kept.live}

    # the contract ----------------------------------------------------------------------------------------------------

    async def _call(self, operation: str, name: str, effect: Callable[[], Any], *, write: bool = False) -> Any:
        async def attempt() -> Any:
            self.calls[operation] += 1
            if self.hook:
                await self.hook(self.id, operation, name)
            self.faults.take(operation, after=False)
            result = effect()
            self.faults.take(operation, after=True)
            if self.hook:
                await self.hook(self.id, f"{operation} done", name)
            return result

        return await self.pacer.call(attempt, write=write)

    def _entry(self, name: str, kept: Kept, *, listed: bool = False) -> Entry:
        cost = self._capabilities.fingerprint
        tells = cost is FingerprintCost.LISTED or (cost is FingerprintCost.PER_SECRET and not listed)
        return Entry(
            name,
            fingerprint=f"v{kept.version}@{kept.made}-{kept.live}-{kept.owner}" if tells else None,
            version=str(kept.version) if self._capabilities.compare_and_set else None,
            updated_at=kept.updated_at,
            live=kept.live if tells else True,
            enabled=kept.enabled,
            owner=kept.owner,
        )

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        def effect() -> list[Entry]:
            return [self._entry(n, k, listed=True) for n, k in sorted(self.kept.items()) if n.startswith(prefix)]

        for entry in await self._call("list", prefix, effect):
            yield entry

    def _find(self, name: str, *, live: bool) -> Kept:
        kept = self.kept.get(name)
        if kept is None or (live and not kept.live):
            raise SecretNotFound("no such secret", vault=self.id, path=name)
        return kept

    async def describe_secret(self, name: str) -> Entry:
        if self._capabilities.fingerprint is FingerprintCost.VALUE:
            raise Unsupported("only the value tells", vault=self.id, path=name)
        check_name(self.id, name, self._capabilities.names)
        return await self._call("describe", name, lambda: self._entry(name, self._find(name, live=False)))

    async def get_secret(self, name: str) -> Secret:
        check_name(self.id, name, self._capabilities.names)

        def effect() -> Secret:
            kept = self._find(name, live=True)
            return Secret(dict(kept.fields), entry=self._entry(name, kept))

        return await self._call("get", name, effect)

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        check_name(self.id, name, self._capabilities.names)
        if expect is not Expect.ANY and not self._capabilities.compare_and_set:
            raise Unsupported("no compare-and-set", vault=self.id, path=name)

        def effect() -> Entry:
            kept = self.kept.get(name)
            have = str(kept.version) if kept else Expect.ABSENT
            if expect is not Expect.ANY and expect != have:
                raise Conflict(f"expected {expect}, found {have}", vault=self.id, path=name)
            mark = owner if self._capabilities.tags else None
            new = Kept(dict(secret.fields), self._next(name), owner=mark, updated_at=self._stamp(), made=self._revision)
            self.kept[name] = new
            self.writes.append((name, dict(secret.fields)))
            return self._entry(name, new)

        return await self._call("set", name, effect, write=True)

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        def effect() -> None:
            kept = self._find(name, live=True)
            if expect is not Expect.ANY and expect != str(kept.version):
                raise Conflict("changed since", vault=self.id, path=name)
            self.remove(name)

        await self._call("delete", name, effect, write=True)

    def heard(self, notice: Notice) -> Hint | None:
        if isinstance(notice, GapNotice):
            return Hint("") if notice.vault in (None, self.id) else None
        if isinstance(notice, AuditNotice) and notice.mount == f"{self.id}/":
            return Hint(notice.path, None if notice.version is None else str(notice.version))
        return None

    async def check(self, uses: list[Use]) -> list[Finding]:
        return []

    async def aclose(self) -> None:
        return None


async def _no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)
