"""Whether a vault is down, or only some of its secrets fail. Pure."""

from __future__ import annotations

from shared.errors import VaultError

DOWN_AFTER = 5
"""Failures in a row after which the rest of a job is not even tried."""


class Outage:
    """The failures of a vault's calls, in a row. A call that fails while another one is answered tells of itself alone:
    what is slow to fail would else seem to come after all that went well.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._answers = 0
        self.error: VaultError | None = None
        """Why nothing more need be tried for now; None: the vault is not down."""

    def begin(self) -> int:
        """Of a call; to be handed to `failed` if it fails."""
        return self._answers

    def answered(self) -> None:
        self._answers += 1
        self._failures = 0
        self.error = None

    def failed(self, begun: int, error: VaultError) -> None:
        if begun == self._answers:
            self._failures += 1
            if self._failures >= DOWN_AFTER:
                self.error = error
