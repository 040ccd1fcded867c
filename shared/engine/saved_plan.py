"""A plan that is carried out exactly as it was shown, or not at all: what it rests on, and whether that still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from shared.engine.installation import Installation
from shared.model import Sync

INDIFFERENT = ("schedule", "enabled", "retry_policy")
"""What of a sync's configuration changes nothing in what a plan would do."""


def configuration_of(installation: Installation, sync: Sync) -> str:
    """A digest of a sync's configuration and of where its vaults are: keyed, for there are constants and keys in it."""
    settings = {name: each for name, each in _settings(sync).items() if name not in INDIFFERENT}
    vaults = {sync.source.vault, *(target.vault for target in sync.targets)}
    places = {vault: installation.addresses.get(vault) for vault in vaults}
    return installation.digester.digest({"sync": settings, "places": places})


def _settings(setting: Any) -> Any:
    """A setting as JSON, whole: unlike a repr, it hides nothing."""
    if is_dataclass(setting):
        return {"": type(setting).__name__} | {
            each.name: _settings(getattr(setting, each.name)) for each in fields(setting)
        }
    if isinstance(setting, Mapping):
        return {key: _settings(value) for key, value in setting.items()}
    return [_settings(each) for each in setting] if isinstance(setting, tuple) else setting
