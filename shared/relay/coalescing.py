"""When a busy connection is read again. Pure.

Each read of a few lines costs a change of context at both ends, and the other end is a Vault that has requests to answer. So
what comes in a rush is left to gather in the kernel for some milliseconds, as network cards do with their interrupts
(https://docs.kernel.org/networking/net_dim.html). What comes alone is read at once.
"""

from __future__ import annotations

LONGEST = 0.01
"""Seconds. Vault waits two for a socket that is full before it gives up."""
_SHORTEST = 0.001
_AT_ONCE = 0.001
"""Seconds within which the next bytes come where many do."""
_ENOUGH = 32 * 1024
"""Bytes of one read, after which longer rests save little."""
_PLENTY = 64 * 1024
"""Bytes of one read, after which the kernel's room for more may be used up before a rest ends."""


class Coalescing:
    """How long one connection is left alone after each read. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._rest = 0.0
        self._ready = float("-inf")

    def rest(self, now: float, size: int) -> float:
        """Seconds until it is read again, after `size` bytes came; 0: at once."""
        if size >= _PLENTY or now > self._ready + _AT_ONCE:
            self._rest = 0.0
        elif size < _ENOUGH:
            self._rest = min(max(self._rest * 2, _SHORTEST), LONGEST)
        self._ready = now + self._rest
        return self._rest
