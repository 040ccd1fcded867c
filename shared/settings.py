"""What the configuration's pydantic models have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from shared.rules import Aspect
    from shared.vault import NameRule


class Settings(BaseModel):
    """A part of the configuration file: unknown keys are errors, and no message repeats what was given."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)


class VaultSettings(Settings):
    """What every vault may be given besides its kind's own keys."""

    concurrency: int | None = Field(None, ge=1, le=256, description="Calls to this vault at once.")
    requests_per_second: float | None = Field(None, gt=0, description="Calls to this vault a second, at most.")

    def can(self) -> frozenset[str]:
        """Which of list, get, set and delete a vault configured so can do at all: what a sync may need of it."""
        return frozenset({"list", "get", "set", "delete"})

    @property
    def place(self) -> tuple[str | None, ...] | None:
        """Where its secrets are: equal for two that surely are one and the same vault. None: nobody can tell."""
        return None

    def name_rule(self, resource: str) -> NameRule | None:
        """Which names such a vault takes, the same as its capabilities say once it is open; None: not known before."""
        return None

    def metadata(self, resource: str) -> frozenset[Aspect]:
        """Which metadata such a vault may hold: its capabilities say it for sure once it is open."""
        return frozenset()
