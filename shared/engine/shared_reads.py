"""One read of a source for all targets of a sync that an event concerns.

The jobs of the targets run side by side in one process, and would each read the same secret at the same moment. A read is
handed to another target's job where that can not make an older value win:

- It began after the event was taken (told by this process's own count, no clock is asked), so it shows at least what
  the event tells of.
- What the job knows of its target is older than the read by more than two machines' clocks may differ: whatever anybody
  of ours has written there was read before this. Whoever settles the target between that look and the write takes the
  row's revision away, and the job begins anew.

Kept for a moment only, in memory, and dropped once every target has had it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from shared.model import Secret

KEPT = 10.0
"""Seconds: about as far apart as the targets' queues come under load."""
MOST = 2000
LARGEST = 8 * 1024
"""Secrets kept at once, and characters of each: no more than 16 MB of values lie about."""
SKEW = timedelta(seconds=30)
"""What the clocks of two machines may differ by."""

Key = tuple[str, str]
"""A sync and a path."""


@dataclass(slots=True)
class _Read:
    told: int
    began: datetime
    until: float
    others: int
    """How many targets may still ask for it."""
    result: asyncio.Future[Secret] = field(repr=False)


class SharedReads:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._reads: OrderedDict[Key, _Read] = OrderedDict()
        self._told = 0

    def tell(self) -> int:
        """The number of an event that is taken now: every read that begins later sees what it tells of."""
        self._told += 1
        return self._told

    async def read(
        self,
        key: Key,
        fetch: Callable[[], Awaitable[Secret]],
        *,
        told: int,
        settled_at: datetime | None,
        others: int,
    ) -> Secret:
        """What `fetch` reads, or another target's job has read already. Raises what `fetch` raises.

        `told` is the number of the event, `settled_at` the time that the target's row was last written, and `others` how
        many more targets will ask.
        """
        loop = asyncio.get_running_loop()
        read = self._reads.get(key)
        if read is not None and self._is_good(read, told, settled_at, loop.time()):
            read.others -= 1
            if read.others <= 0:
                del self._reads[key]
            if not read.result.done():
                # Waited for, and not awaited: whoever reads may fail or be cancelled without that being ours.
                await asyncio.wait([read.result])
            if not read.result.cancelled():
                return read.result.result()
        mine = _Read(self._told, self._clock(), loop.time() + KEPT, others, loop.create_future())
        self._keep(key, mine, loop.time())
        try:
            secret = await fetch()
        except BaseException:
            mine.result.cancel()
            if self._reads.get(key) is mine:
                del self._reads[key]
            raise
        mine.result.set_result(secret)
        if not _is_small(secret) and self._reads.get(key) is mine:
            del self._reads[key]
        return secret

    def _is_good(self, read: _Read, told: int, settled_at: datetime | None, now: float) -> bool:
        if read.told < told or read.until < now:
            return False
        return settled_at is None or settled_at + SKEW < read.began

    def _keep(self, key: Key, read: _Read, now: float) -> None:
        self._reads.pop(key, None)
        if read.others > 0:
            self._reads[key] = read
        while self._reads:
            oldest = next(iter(self._reads.values()))
            if len(self._reads) <= MOST and oldest.until >= now:
                break
            self._reads.popitem(last=False)


def _is_small(secret: Secret) -> bool:
    values = secret.fields.values()
    flat = all(isinstance(value, str | int | float | None) for value in values)
    return flat and sum(len(value) for value in values if isinstance(value, str)) <= LARGEST
