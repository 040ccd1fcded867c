"""What a configuration comes to, once it was found to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    from shared.model import Sync
    from shared.settings import VaultSettings


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration, whole."""

    vaults: Mapping[str, VaultSettings]
    syncs: Mapping[str, Sync]
    history_retention: timedelta | None
    """None: for ever."""
    origin: str
    """The path or address that it came from, fit to be shown."""
    warnings: tuple[str, ...] = ()
    """What is allowed and yet unwise, and what did not go as planned while it was read."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What triggers are made from. Not a promise that the rest of the file is valid: `load` says that."""

    syncs: tuple[str, ...]
    schedules: Mapping[str, str]
    """Six fields, by sync id: enabled syncs with a schedule only."""
    vaults: tuple[str, ...]
    written_vaults: tuple[str, ...]
    """Those that some sync writes to."""
