"""Which id belongs to a name, for APIs that know secrets by ids: from listings, and asked for anew where it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from shared.errors import InvalidSecret
from shared.vaults.http_api.answers import Item

FRESH = 60.0
"""Seconds that an id from a listing is good for reading. For writing it is always asked for: names move."""


class Ids:
    """What listings told. `None` for an id: not known, or known for too long.

    `key`: what names that are one secret to the API have in common.
    """

    def __init__(self, key: Callable[[str], str]) -> None:
        self._key = key
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}

    def learn(self, items: Iterable[Item]) -> None:
        """What one whole listing (or a search) says."""
        now = time.monotonic()
        found: dict[str, list[str]] = {}
        for item in items:
            if item.id is not None and item.id not in (ids := found.setdefault(self._key(item.name), [])):
                ids.append(item.id)
        self._known.update({name: (tuple(ids), now) for name, ids in found.items()})

    def forget(self, name: str) -> None:
        self._known.pop(self._key(name), None)

    def known(self, name: str) -> str | None:
        """Raises InvalidSecret where several secrets have the name."""
        ids, since = self._known.get(self._key(name), ((), 0.0))
        if not ids or time.monotonic() - since > FRESH:
            return None
        if len(ids) > 1:
            shown = ", ".join(each for each in ids[:4] if each.isprintable() and len(each) <= 80)
            raise InvalidSecret(f"{len(ids)} secrets have this name there ({shown}): rename all but one")
        return ids[0]
