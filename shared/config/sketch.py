"""A first look at a file: enough to register triggers, and many times cheaper than validating all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.config.result import Config, Outline
from shared.config.schedule import normalise_schedule

if TYPE_CHECKING:
    from shared.config.yaml_source import Document

_TRUTH = {"true": True, "false": False}


def sketch(document: Document) -> Outline | None:
    """The outline of a document, or None where anything that it is made from is in doubt."""
    vaults, syncs = document.data.get("vaults"), document.data.get("syncs", {})
    if document.problems or not isinstance(vaults, dict) or not isinstance(syncs, dict):
        return None
    schedules: dict[str, str] = {}
    written: dict[str, None] = {}
    for sync_id, sync in syncs.items():
        targets = sync.get("targets") if isinstance(sync, dict) else None
        if not isinstance(targets, list) or not all(_has_vault(target, vaults) for target in targets):
            return None
        if sync.get("type") == "bidirectional":
            source = sync.get("source")
            if not _has_vault(source, vaults):
                return None
            written[source["vault"]] = None
        written.update(dict.fromkeys(target["vault"] for target in targets))
        enabled = _TRUTH.get(sync.get("enabled", "true"))
        try:
            schedule = normalise_schedule(sync["schedule"]) if sync.get("schedule") is not None else None
        except (ValueError, AttributeError):
            return None
        if enabled is None:
            return None
        if enabled and schedule is not None:
            schedules[sync_id] = schedule
    return Outline(tuple(syncs), schedules, tuple(vaults), tuple(written))


def _has_vault(given: Any, vaults: dict[str, Any]) -> bool:
    return isinstance(given, dict) and isinstance(given.get("vault"), str) and given["vault"] in vaults


def outline_of(config: Config) -> Outline:
    syncs = config.syncs.values()
    return Outline(
        tuple(config.syncs),
        {sync.id: sync.schedule for sync in syncs if sync.enabled and sync.schedule},
        tuple(config.vaults),
        tuple(dict.fromkeys(vault for sync in syncs for vault in sync.written_vaults)),
    )
