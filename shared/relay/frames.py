"""A stream of bytes → lines. Pure."""

from __future__ import annotations

MAX_FRAME = 16 * 1024 * 1024
"""Bytes. Longer ones are passed over: a Vault's entry is some kilobytes."""


class Frames:
    """What one connection sends, cut at its newlines, however it arrives. Keeps at most `limit` bytes."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._begun = bytearray()
        self._skipping = False
        self.too_long = 0
        """Frames that were passed over."""

    @property
    def kept(self) -> int:
        """Bytes of a frame that has not ended yet."""
        return len(self._begun)

    @property
    def in_the_middle(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._skipping or bool(self._begun)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that end in `data`, without their newlines."""
        first, *rest = data.split(b"\n")
        if not rest:
            self._keep(first)
            return []
        last = rest.pop()
        lines = []
        for line in (self._end(first), *rest):
            if line is None:
                continue
            if len(line) > self._limit:
                self.too_long += 1
            else:
                lines.append(line)
        self._keep(last)
        return lines

    def skip(self) -> None:
        """Pass over the frame that has begun."""
        if not self._skipping:
            self._skipping = True
            self.too_long += 1
        self._begun = bytearray()

    def _keep(self, data: bytes) -> None:
        if self._skipping:
            return
        if len(self._begun) + len(data) > self._limit:
            self.skip()
        else:
            self._begun += data

    def _end(self, data: bytes) -> bytes | None:
        if self._skipping:
            self._skipping = False
            return None
        if not self._begun:
            return data
        line = bytes(self._begun) + data
        self._begun = bytearray()
        return line
