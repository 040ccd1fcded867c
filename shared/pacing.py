"""How calls to one vault are spaced, counted and quickly tried again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from shared.errors import Unavailable, VaultError

T = TypeVar("T")

_calls: ContextVar[Counter[str] | None] = ContextVar("vaultferry_calls", default=None)

QUICK_TRIES = 3
"""How often one call is made before its job goes back to the queue."""
QUICK_WAIT = 2.0
"""Seconds: a server that asks for more than this is left alone, and the path goes back to the queue."""
SLOW = 5.0
"""Seconds: a call that took longer to fail is not quickly tried again."""


@contextlib.contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the API calls that this task, and those it starts, make: by vault id."""
    counter: Counter[str] = Counter()
    token = _calls.set(counter)
    try:
        yield counter
    finally:
        _calls.reset(token)


class Rate:
    """At most `per_second` starts a second, evenly spaced after a burst of `burst`."""

    def __init__(self, per_second: float, burst: int = 1) -> None:
        self._gap = 1.0 / per_second
        self._slack = self._gap * (burst - 1)
        self._next = 0.0

    def delay(self, now: float) -> float:
        """Take the next place in the row: the seconds to wait for it."""
        start = max(self._next, now - self._slack)
        self._next = start + self._gap
        return max(0.0, start - now)


class Pacer:
    """The one way to a vault's server.

    `concurrency` calls at once, `requests_per_second` of any sort, `writes_per_second` of those that make a version.
    """

    def __init__(
        self,
        vault_id: str,
        *,
        concurrency: int = 16,
        requests_per_second: float | None = None,
        writes_per_second: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._vault_id = vault_id
        self._slots = asyncio.Semaphore(concurrency)
        self.concurrency = concurrency
        # A burst of half a second's worth keeps short jobs fast and stays far inside ten-second budgets.
        self._rate = _rate(requests_per_second)
        self._write_rate = _rate(writes_per_second)
        self._sleep = sleep
        self._quiet_until = 0.0
        self._under_way = 0
        self._heard_at = 0.0
        self.answered = 0
        """Calls that the server has answered, also with a no."""

    def silence(self) -> float:
        """Seconds for which the server has been asked and has answered nothing; 0: nobody waits for it."""
        return asyncio.get_running_loop().time() - self._heard_at if self._under_way else 0.0

    async def call(self, attempt: Callable[[], Awaitable[T]], *, write: bool = False) -> T:
        """Make a call; where it raises Unavailable, try a few times more, with jitter and as the server asks.

        A write that may have had its effect (`ambiguous`) is not repeated: that error goes to the caller.
        """
        try:
            return await self._once(attempt, write)
        except Unavailable as error:
            self._heed(error)
            if not _worth_repeating(error, write):
                raise
            first = error
        return await self._again(attempt, write, first)

    async def _once(self, attempt: Callable[[], Awaitable[T]], write: bool) -> T:
        await self._slots.acquire()
        try:
            if self._quiet_until:
                await self._wait_out()
            for rate in (self._rate, self._write_rate if write else None):
                if rate is not None:
                    delay = rate.delay(asyncio.get_running_loop().time())
                    if delay:
                        await self._sleep(delay)
            counter = _calls.get()
            if counter is not None:
                counter[self._vault_id] += 1
            return await self._asked(attempt)
        finally:
            self._slots.release()

    async def _asked(self, attempt: Callable[[], Awaitable[T]]) -> T:
        clock = asyncio.get_running_loop().time
        begun = clock()
        if not self._under_way:
            self._heard_at = begun
        self._under_way += 1
        try:
            result = await attempt()
            self.answered += 1
            return result
        except VaultError as error:
            self.answered += not error.transient
            if isinstance(error, Unavailable):
                error.waited = clock() - begun
            raise
        finally:
            self._under_way -= 1
            self._heard_at = clock()

    def _heed(self, error: Unavailable) -> None:
        """A server that asked one call to wait a moment means them all."""
        if error.retry_after and error.retry_after <= QUICK_WAIT:
            self._quiet_until = max(self._quiet_until, asyncio.get_running_loop().time() + error.retry_after)

    async def _wait_out(self) -> None:
        rest = self._quiet_until - asyncio.get_running_loop().time()
        if rest > 0:
            await self._sleep(rest)
        else:
            self._quiet_until = 0.0

    async def _again(self, attempt: Callable[[], Awaitable[T]], write: bool, first: Unavailable) -> T:
        from tenacity import (
            AsyncRetrying,
            RetryCallState,
            retry_if_exception,
            stop_after_attempt,
            wait_random_exponential,
        )

        jitter = wait_random_exponential(multiplier=0.1, max=QUICK_WAIT)
        earlier: list[Unavailable] = [first]

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, Unavailable) else None
            return jitter(state) if asked is None else asked

        def repeat(error: BaseException) -> bool:
            return isinstance(error, Unavailable) and _worth_repeating(error, write)

        async def next_try() -> T:
            # tenacity is loaded only once a call has failed, so it starts with that failure as its first try.
            if earlier:
                raise earlier.pop()
            try:
                return await self._once(attempt, write)
            except Unavailable as error:
                self._heed(error)
                raise

        retrying = AsyncRetrying(
            sleep=self._sleep,
            wait=wait,
            retry=retry_if_exception(repeat),
            stop=stop_after_attempt(QUICK_TRIES),
            reraise=True,
        )
        return await retrying(next_try)


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second, burst=max(1, int(per_second / 2)))


def _worth_repeating(error: Unavailable, write: bool) -> bool:
    if write and error.ambiguous:
        return False
    # Who took half a minute to say nothing would take as long again.
    return error.waited < SLOW and (error.retry_after is None or error.retry_after <= QUICK_WAIT)
