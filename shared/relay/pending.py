"""What was heard and is not on the disk yet. In memory, bounded; no I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable

from shared.audit import merge
from shared.notices import AuditNotice, GapNotice

MAX_PATHS = 200_000
MAX_BYTES = 64 * 1024 * 1024
_OVERHEAD = 500
"""Bytes that a path costs here besides its text."""

Key = tuple[str, str, str]


class Pending:
    """Changed paths, each once, and gaps, each reason once."""

    def __init__(self, vault: str | None = None, *, max_paths: int = MAX_PATHS, max_bytes: int = MAX_BYTES) -> None:
        self._vault = vault
        self._max_paths = max_paths
        self._max_bytes = max_bytes
        self._paths: dict[Key, AuditNotice] = {}
        self._gaps: dict[str, GapNotice] = {}
        self._bytes = 0
        self.since: float | None = None
        """When the oldest of what is here was heard (seconds since the epoch); None: nothing is."""

    def __len__(self) -> int:
        return len(self._paths) + len(self._gaps)

    def add(self, notice: AuditNotice) -> bool | None:
        """Keep a changed path. True: it is new; False: it was known; None: there is no room for it."""
        key = (notice.namespace, notice.mount, notice.path)
        known = self._paths.get(key)
        if known is not None:
            self._paths[key] = merge(known, notice)
            return False
        cost = _cost(notice)
        if len(self._paths) >= self._max_paths or self._bytes + cost > self._max_bytes:
            return None
        self._paths[key] = notice
        self._bytes += cost
        self._note_time()
        return True

    def gap(self, why: str) -> bool:
        """Keep a gap mark; False: one for the same reason waits already."""
        if why in self._gaps:
            return False
        self._gaps[why] = GapNotice(why, self._vault)
        self._note_time()
        return True

    def take(self, limit: int) -> list[AuditNotice | GapNotice]:
        """Up to `limit` paths, the oldest first, and all gaps. Hand back with `put_back` what could not be kept."""
        gaps: list[AuditNotice | GapNotice] = list(self._gaps.values())
        self._gaps.clear()
        if len(self._paths) <= limit:
            paths = list(self._paths.values())
            self._paths.clear()
            self._bytes = 0
        else:
            keys = [key for key, _ in zip(self._paths, range(limit), strict=False)]
            paths = [self._paths.pop(key) for key in keys]
            self._bytes -= sum(_cost(notice) for notice in paths)
        if not self._paths:
            self.since = None
        return [*gaps, *paths]

    def put_back(self, notices: Iterable[AuditNotice | GapNotice], since: float | None) -> None:
        """Take in again what `take` gave, whatever the bounds: it was within them."""
        for notice in notices:
            if isinstance(notice, GapNotice):
                self._gaps.setdefault(notice.why, notice)
                continue
            key = (notice.namespace, notice.mount, notice.path)
            newer = self._paths.get(key)
            if newer is None:
                self._bytes += _cost(notice)
            self._paths[key] = notice if newer is None else merge(notice, newer)
        if since is not None:
            self.since = since if self.since is None else min(since, self.since)

    def _note_time(self) -> None:
        if self.since is None:
            self.since = time.time()


def _cost(notice: AuditNotice) -> int:
    return _OVERHEAD + len(notice.namespace) + len(notice.mount) + len(notice.path)
