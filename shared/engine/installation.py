"""What the engine works with: handed in once, by the composition root or by a test."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from shared.history import Store
from shared.jobs import Queues
from shared.mapping import Digester
from shared.model import RetryPolicy, Sync, utcnow
from shared.vault import Vault


class Vaults(Protocol):
    """Opens vaults by their id, once each."""

    async def get(self, vault_id: str, resource: str = "secrets") -> Vault:
        """The vault, opened. Raises any VaultError when it can not be."""
        ...


@dataclass(frozen=True, slots=True)
class Installation:
    syncs: Mapping[str, Sync]
    store: Store
    queues: Queues
    vaults: Vaults
    digester: Digester
    owner_marks: Mapping[str, str] = field(default_factory=dict)
    """By sync id: what marks a secret as written by it, where the target has tags."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """By vault id: where it is. A plan for one place is not carried out in another."""
    clock: Callable[[], datetime] = utcnow
    planning_budget: float = 240.0
    """Seconds after which planning goes on in a new job, so that no execution outlives its host's patience."""


def backoff(policy: RetryPolicy, attempt: int, asked: float | None = None) -> float:
    """Seconds until redelivery number `attempt` (from 1), jittered, and never sooner than the server `asked` for."""
    ceiling = min(policy.max_backoff, policy.initial_backoff * policy.multiplier ** (attempt - 1)) / 1000
    jittered = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads retries; nothing secret hangs on it
    return max(jittered, asked or 0.0)
