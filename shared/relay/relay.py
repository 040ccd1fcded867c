"""The relay itself: what its sockets hear is projected at once, and goes on to the disk and to the other side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from shared.audit import Unreadable, holds_too_much, looks_whole, may_matter, project, read_line
from shared.errors import StoreError
from shared.notices import GapNotice
from shared.relay.addresses import Address
from shared.relay.counters import Counters
from shared.relay.forwarder import HOLD, UNHEEDED, Forward, Forwarder
from shared.relay.listeners import Listener, StreamListener, listener
from shared.relay.pending import MAX_BYTES, MAX_PATHS, Pending
from shared.relay.spool import MAX_ROWS, Spool

log = logging.getLogger("vaultferry.relay")

FLUSH = 5_000
"""Paths that go to the disk in one transaction at most, so that the first of them does not wait for all."""
BUSY = 64
"""Paths in one transaction from which on more are gathered before the next: each costs a wait for the disk."""
GATHER = 0.02
"""Seconds that they are gathered for."""
LONGEST_PATH = 8_192
"""Characters of namespace, mount and path. None of Vault's own clients comes near."""
WATCH_EVERY = 1.0
SAY_EVERY = 60.0
RETRY_DISK = 1.0
GRACE = 5.0
"""Seconds that a relay takes to forward what it has before it stops."""

START = "the relay was started"
UNREADABLE = "what was heard could not be read"
JSONX = "the audit device has format=jsonx, which can not be read: enable it with format=json"
OVERFLOW = "changes came faster than the disk took them"
PATH_TOO_LONG = "a path was too long"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a relay keeps at most."""

    pending_paths: int = MAX_PATHS
    pending_bytes: int = MAX_BYTES
    spool_rows: int = MAX_ROWS


class Relay:
    """Listens from `start` until `stop`, or as an async context manager. One event loop."""

    def __init__(
        self,
        listen: Sequence[Address],
        spool: str | Path,
        forward: Forward,
        *,
        vault: str | None = None,
        bounds: Bounds = Bounds(),
        hold: float = HOLD,
    ) -> None:
        """`vault` is the id of the Vault whose log this is, and `hold` how many seconds lie between equal gap marks."""
        self.counters = Counters()
        self.spool = Spool(spool, max_rows=bounds.spool_rows)
        self._vault = vault
        self._pending = Pending(vault, max_paths=bounds.pending_paths, max_bytes=bounds.pending_bytes)
        self._forwarder = Forwarder(self.spool, forward, self.counters, hold=hold)
        self._listeners: list[Listener] = [listener(address, self) for address in listen]
        self._heard = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._said: dict[str, float] = {}
        """When a gap was last told of in the log, by its reason."""
        self._jsonx = False
        """Whether the last entry was of a device that nobody can read."""
        self.disk_trouble: str | None = None
        """Why the disk did not take the last of what was to be kept; None: it did."""

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the ports that were taken."""
        return [each.address for each in self._listeners]

    async def start(self) -> None:
        """Raises ConfigError and StoreError; then nothing is left open."""
        await self.spool.open()
        opened: list[Listener] = []
        try:
            self.gap(START)
            for each in self._listeners:
                await each.open()
                opened.append(each)
        except BaseException:
            for each in opened:
                await each.aclose()
            await self.spool.aclose()
            raise
        self._tasks = [
            asyncio.create_task(self._flush(), name="relay-flush"),
            asyncio.create_task(self._forwarder.run(), name="relay-forward"),
            asyncio.create_task(self._watch(), name="relay-watch"),
        ]

    async def stop(self, grace: float = GRACE) -> None:
        """Stop listening, write down what was heard, and forward what can be within `grace` seconds."""
        for each in self._listeners:
            await each.aclose()
        self._stopping = True
        self._heard.set()
        end = asyncio.get_running_loop().time() + grace
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                flush, forward, _ = self._tasks
                await asyncio.shield(flush)
                self._forwarder.stop()
                await asyncio.shield(forward)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.spool.aclose()

    async def __aenter__(self) -> Relay:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    # what the sockets say -----------------------------------------------------------------------------------------------

    def line(self, line: bytes) -> None:
        line = line.rstrip()
        if not line:
            return
        self.counters.received += 1
        if not looks_whole(line):
            self._unreadable(jsonx=b"<json:" in line)
            return
        self._jsonx = False
        if not may_matter(line):
            self.counters.filtered += 1
            return
        if holds_too_much(line):
            # Whoever reads it does not read the sockets.
            self._unreadable(jsonx=False)
            return
        try:
            notice = project(read_line(line), self._vault)
        except Unreadable:
            self._unreadable(jsonx=False)
            return
        if notice is None:
            self.counters.filtered += 1
        elif isinstance(notice, GapNotice):
            self.gap(notice.why)
        elif len(notice.namespace) + len(notice.mount) + len(notice.path) > LONGEST_PATH:
            self.counters.dropped += 1
            self.gap(PATH_TOO_LONG)
        else:
            new = self._pending.add(notice)
            if new is None:
                self.counters.dropped += 1
                self.gap(OVERFLOW)
            elif not new:
                self.counters.merged += 1
            self._heard.set()

    def gap(self, why: str) -> None:
        if self._pending.gap(why):
            self.counters.gaps += 1
            self._say(why)
            self._heard.set()

    def _say(self, why: str) -> None:
        """Once a minute: what can not be read may come with every entry."""
        now = time.monotonic()
        if now - self._said.get(why, -math.inf) >= SAY_EVERY:
            self._said[why] = now
            log.info("gap: %s", why)

    def connected(self) -> None:
        self.counters.connections += 1

    def passed_over(self, frames: int) -> None:
        self.counters.too_long += frames

    def dropped_by_kernel(self, datagrams: int) -> None:
        self.counters.dropped_by_kernel += datagrams

    def _unreadable(self, *, jsonx: bool) -> None:
        self.counters.unreadable += 1
        self.counters.jsonx += jsonx
        self._jsonx = self._jsonx or jsonx
        self.gap(JSONX if jsonx else UNREADABLE)

    # what goes on -----------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """From memory to the disk, until it is time to stop and nothing is left."""
        while True:
            if not self._pending:
                if self._stopping:
                    return
                await self._heard.wait()
            self._heard.clear()
            since = self._pending.since
            notices = self._pending.take(FLUSH)
            if not notices:
                continue
            try:
                known = await self.spool.add(notices, since or time.time())
            except BaseException as error:
                self._pending.put_back(notices, since)
                if not isinstance(error, StoreError):
                    raise
                self.counters.spool_failures += 1
                if self.disk_trouble is None:
                    log.error("what was heard stays in memory: %s", error)  # noqa: TRY400 - its text is enough
                self.disk_trouble = str(error)
                await asyncio.sleep(RETRY_DISK)
                continue
            self.counters.merged += known
            if self.disk_trouble is not None:
                log.info("the disk takes what was heard again")
                self.disk_trouble = None
            self._forwarder.wake()
            if len(notices) >= BUSY and not self._stopping:
                await asyncio.sleep(GATHER)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY)
            for each in self._listeners:
                each.watch()

    # what can be asked ------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Records that are not forwarded yet."""
        return len(self._pending) + self.spool.rows

    @property
    def open_connections(self) -> int:
        """How many streams are connected."""
        return sum(len(each.connections) for each in self._listeners if isinstance(each, StreamListener))

    async def lag(self) -> float:
        """Seconds that the oldest of what waits has waited; 0 when nothing does."""
        times = [self._pending.since]
        with contextlib.suppress(StoreError):
            times.append(await self.spool.since())
        oldest = min((each for each in times if each is not None), default=None)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest)

    def health(self) -> dict[str, Any]:
        """`status` is ok, degraded (it will be well by itself) or error (a person must do something), `checks` say why."""
        dead = [task.get_name() for task in self._tasks if task.done() and not self._stopping]
        forwarding = self._forwarder.trouble
        status = "ok"
        if forwarding is not None:
            status = "error" if self._forwarder.denied else "degraded"
        unheeded, jsonx = self._forwarder.unheeded, self._jsonx
        if self.disk_trouble is not None or dead or unheeded or jsonx:
            status = "error"
        return {
            "status": status,
            "checks": {
                "listening": [str(address) for address in self.addresses],
                "spool": self.disk_trouble or (f"ended: {', '.join(dead)}" if dead else "ok"),
                "forwarding": forwarding or "ok",
                "device": JSONX if jsonx else "ok",
                "vault": UNHEEDED if unheeded else "ok",
                "waiting": self.waiting,
            },
        }
