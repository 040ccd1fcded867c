"""The same, with values that are encrypted on the way, and so never the same text twice: what is quiet stays unwritten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyrage
from hypothesis import HealthCheck, settings

from shared.model import Target
from shared.rules import Base64, Encrypt
from tests.examples import examples
from tests.unit.test_convergence import Convergence, Watched

IDENTITY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()


def opened(text: str) -> str:
    if not text.startswith("-----BEGIN AGE"):
        # Edited by hand.
        return text
    return pyrage.decrypt(text.encode(), [IDENTITY]).decode()


class WatchedSealed(Watched):
    def values(self) -> dict[str, Any]:
        """What a holder of the private key reads."""
        return {name: {key: opened(text) for key, text in fields.items()} for name, fields in super().values().items()}


class ConvergenceSealed(Convergence):
    watched = WatchedSealed

    def _target(self) -> Target:
        # Another prefix, another recipient: a changed mapping changes both.
        both = [str(IDENTITY.to_public()), *([str(OTHER.to_public())] if self.prefix else [])]
        return replace(super()._target(), transform=(Base64(), Base64(decode=True), Encrypt(tuple(both))))


class ConvergenceSealedByField(ConvergenceSealed):
    by_field = True


_settings = settings(
    max_examples=examples(60),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestConvergenceSealed = ConvergenceSealed.TestCase
TestConvergenceSealed.settings = _settings
TestConvergenceSealedByField = ConvergenceSealedByField.TestCase
TestConvergenceSealedByField.settings = _settings
