"""From the spool to the other side: oldest first, one batch under way at a time, each until it is answered.

A batch that is not answered is sent again as it is, under the same id. Batches grow by themselves: while one is under way,
the next gathers; and when there is much to tell, a moment longer, so that the sockets have the processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shared.errors import AccessDenied, Refused, StoreError, SyncError, Unavailable
from shared.notices import AuditNotice, GapNotice
from shared.relay.counters import Counters
from shared.relay.spool import Row, Spool

log = logging.getLogger("vaultferry.relay")

BATCH_RECORDS = 2_000
BATCH_BYTES = 1_000_000
"""About, and before they are packed."""
BUSY = 64
"""Records in a batch from which on more are gathered before the next: each request costs as much as many records."""
GATHER = 0.02
"""Seconds that they are gathered for."""
FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
LONGEST_WISH = 300.0
"""Seconds that a Retry-After is honoured at most."""
HOLD = 10.0
LONGEST_HOLD = 600.0
"""Seconds between two gap marks for the same reason, at first and while they keep coming: each starts full runs, and what is
read in these may be what cannot be understood."""
HOLD_REFUSED = 60.0
REFUSED = "a record was refused"
UNHEEDED = "no sync of the app reads this Vault: check --vault, and the app's configuration"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some notices, and the id under which they are sent, however often."""

    id: str
    notices: tuple[AuditNotice | GapNotice, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side made of a batch."""

    unread: int = 0
    """Notices that could not be read."""
    heeded: bool = True
    """Whether any of them concerns a sync there."""


Forward: TypeAlias = Callable[[Batch], Awaitable[Answer]]
"""Hands a batch over and returns once it is durable there. Raises Unavailable and StoreError when it should be tried again,
AccessDenied when a person must do something first, and Refused when this very batch will never be taken."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A mark that was sent: for how long the next one for the same reason waits."""

    until: float
    """By the loop's clock."""
    seconds: float

    @property
    def forgotten(self) -> float:
        """When it would count as the first again."""
        return self.until + self.seconds


class Forwarder:
    def __init__(self, spool: Spool, forward: Forward, counters: Counters, *, hold: float = HOLD) -> None:
        self._spool = spool
        self._forward = forward
        self._counters = counters
        self._hold = hold
        self._held: dict[GapNotice, _Held] = {}
        self._unwanted: dict[GapNotice, float] = {}
        """Until when marks wait that were refused, by the loop's clock."""
        self._looked = 0.0
        """When it was last asked which marks wait."""
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._failures = 0
        self._said_at = 0.0
        self._said = ""
        self.trouble: str | None = None
        """Why the last attempt failed; None: it did not."""
        self.denied = False
        """Whether a person must do something first."""
        self.unheeded = False
        """Whether the last mark concerned no sync of the other side."""

    def wake(self) -> None:
        """There is something new in the spool."""
        self._wake.set()

    def stop(self) -> None:
        """Forward what there is, and end; at the first failure at once."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Until `stop`."""
        while True:
            self._wake.clear()
            try:
                rows = await self._spool.oldest(BATCH_RECORDS, BATCH_BYTES, self._waiting_gaps())
                if rows:
                    if not await self._deliver(rows):
                        return
                    if BUSY <= len(rows) < BATCH_RECORDS and not self._stopping.is_set():
                        await asyncio.sleep(GATHER)
                    continue
            except StoreError as error:
                self._counters.spool_failures += 1
                self._say("the spool can not be read: %s", error)
                if not await self._pause(None):
                    return
                continue
            if self._stopping.is_set():
                return
            await self._something_new()

    async def _something_new(self) -> None:
        times = (*(held.until for held in self._held.values()), *self._unwanted.values())
        # Also what came due since the spool was looked into: it was passed over then.
        soonest = min((until for until in times if until > self._looked), default=None)
        wait = None if soonest is None else max(0.0, soonest - asyncio.get_running_loop().time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._wake.wait()

    def _waiting_gaps(self) -> set[GapNotice]:
        """The marks that are held back for now."""
        if self._stopping.is_set():
            return set(self._unwanted)
        self._looked = now = asyncio.get_running_loop().time()
        self._held = {gap: held for gap, held in self._held.items() if held.forgotten > now}
        self._unwanted = {gap: until for gap, until in self._unwanted.items() if until > now}
        return {*(gap for gap, held in self._held.items() if held.until > now), *self._unwanted}

    async def _deliver(self, rows: Sequence[Row]) -> bool:
        """Send rows until each is taken or refused. False: it is time to stop."""
        parts = [list(rows)]
        while parts:
            part = parts.pop()
            batch = Batch(secrets.token_hex(16), tuple(row.notice for row in part))
            while True:
                try:
                    answer = await self._forward(batch)
                except Refused as error:
                    log.warning("a batch of %d was refused: %s", len(part), error)
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                    else:
                        await self._settle(lambda part=part: self._give_up(part[0]))  # type: ignore[misc]
                    break
                except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be lost by it
                    if not await self._failed(error):
                        return False
                    continue
                await self._settle(lambda part=part, answer=answer: self._taken(part, answer))  # type: ignore[misc]
                break
        return True

    async def _taken(self, rows: Sequence[Row], answer: Answer) -> None:
        await self._spool.done(rows)
        gaps = [row.notice for row in rows if isinstance(row.notice, GapNotice)]
        for gap in gaps:
            self._hold_back(gap)
        if answer.heeded:
            self.unheeded = False
        elif gaps and not self.unheeded:
            log.error(UNHEEDED)
            self.unheeded = True
        self._counters.forwarded += len(rows)
        if answer.unread and len(gaps) < len(rows):
            self._counters.refused += answer.unread
            log.warning("%d of %d records could not be read by the other side: is it older than this relay?",
                        answer.unread, len(rows))  # fmt: skip
            await self._mark(rows[0].notice.vault)
        if self._failures:
            log.info("forwarding works again")
        self._failures, self.trouble, self.denied = 0, None, False

    def _hold_back(self, gap: GapNotice) -> None:
        now = asyncio.get_running_loop().time()
        before = self._held.get(gap)
        seconds = self._hold
        if before is not None and now < before.forgotten:
            seconds = min(2 * before.seconds, LONGEST_HOLD)
        self._held[gap] = _Held(now + seconds, seconds)

    async def _give_up(self, row: Row) -> None:
        """A record that nobody will ever take: a full run finds what it would have told."""
        self._counters.refused += 1
        if isinstance(row.notice, GapNotice):
            # The last thing that there is to say: it stays, and is tried again now and then.
            self._unwanted[row.notice] = asyncio.get_running_loop().time() + HOLD_REFUSED
            self.trouble = "a gap mark was refused; check --forward, --vault and that both sides have one version"
            return
        await self._mark(row.notice.vault)
        await self._spool.done([row])

    async def _mark(self, vault: str | None) -> None:
        self._counters.gaps += 1
        await self._spool.add([GapNotice(REFUSED, vault)], time.time())

    async def _settle(self, step: Callable[[], Awaitable[None]]) -> None:
        """Write down what became of a batch, however long the disk takes it: to send it again would be for nothing."""
        while True:
            try:
                await step()
                return
            except StoreError as error:
                self._counters.spool_failures += 1
                self._say("what was forwarded can not be removed from the spool: %s", error)
                if not await self._pause(None):
                    return

    async def _failed(self, error: Exception) -> bool:
        """Note why, and wait. False: it is time to stop."""
        # The text of what is not ours could quote anything.
        self.trouble = str(error) if isinstance(error, SyncError) else type(error).__name__
        self.denied = isinstance(error, AccessDenied)
        self._counters.forward_failures += 1
        self._say("nothing is forwarded: %s", self.trouble)
        return await self._pause(error.retry_after if isinstance(error, Unavailable) else None)

    async def _pause(self, wish: float | None) -> bool:
        """Back off, longer each time, each relay for a time of its own. False: it is time to stop.

        Whoever is told to stop in the meantime tries once more.
        """
        if self._stopping.is_set():
            return False
        ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 20))
        self._failures += 1
        delay = max(random.uniform(0, ceiling), min(wish or 0.0, LONGEST_WISH))  # noqa: S311 - no secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        return True

    def _say(self, text: str, why: object) -> None:
        """Loudly the first time, for another reason, and once a minute."""
        now, why = time.monotonic(), str(why)
        news = self._failures == 0 or why != self._said
        level = logging.ERROR if news or now - self._said_at >= 60 else logging.DEBUG
        if level == logging.ERROR:
            self._said_at, self._said = now, why
        log.log(level, text, why)
