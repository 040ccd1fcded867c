"""Whether a vault is down, or only some of its secrets fail. Pure."""

from __future__ import annotations

from shared.errors import VaultError
from shared.pacing import Pacer

DOWN_AFTER = 5
"""Failures in a row after which the rest of a job is not even tried."""


class Outage:
    """What a job saw of one vault's failures, in a row. A call that fails while another one is answered, whoever made it,
    tells of itself alone: what is slow to fail would else seem to come after all that went well.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._answered = 0
        self._last: VaultError | None = None

    def failed(self, pacer: Pacer, begun: int, error: VaultError) -> None:
        """`begun`: how many calls the vault had answered (`Pacer.answered`) when this was begun."""
        if begun != pacer.answered:
            return
        if self._answered != pacer.answered:
            self._failures = 0
        self._answered, self._last = pacer.answered, error
        self._failures += 1

    def error(self, pacer: Pacer) -> VaultError | None:
        """Why nothing more need be tried for now; None: the vault is not down."""
        return self._last if self._failures >= DOWN_AFTER and self._answered == pacer.answered else None
