"""A plan that is carried out exactly as it was shown, or not at all: what it rests on, and whether that still holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from shared.engine.document import read_whole_plan
from shared.engine.installation import Installation
from shared.errors import StoreError
from shared.history import Store
from shared.model import Op, Run, Sync
from shared.plan import Basis, ChangeKind, Trace, has_moved

TRIGGER = "plan"
"""Of a run that carries out a saved plan: its pages are kept with the run."""

INDIFFERENT = ("schedule", "enabled", "retry_policy")
"""What of a sync's configuration changes nothing in what a plan would do."""


def carries_out_plan(run: Run) -> bool:
    return run.trigger == TRIGGER and not run.dry_run


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


# --- what stands in a plan ------------------------------------------------------------------------------------------

WRITES = (ChangeKind.CREATE, ChangeKind.UPDATE, ChangeKind.DRIFT)
NAMED = 5
"""Differences that are told one by one."""


def why_not(sync: Sync, plan: Mapping[str, Any]) -> str | None:
    """Why a plan can not be kept to be carried out later; None: it can."""
    if sync.two_way:
        return "a plan of a two-way sync can not be carried out later: its sides are looked at together, and anew"
    if plan["sync_id"] != sync.id or not plan["configuration"]:
        return f"it is no plan of sync {sync.id!r} that this version has made"
    if plan.get("unseen"):
        return f"{', '.join(plan['unseen'])} did not answer when it was made"
    blind = [item for item in plan["items"] if _kind(item).op is not None and item["basis"] is None]
    if not blind:
        return None
    more = f" and {len(blind) - 1:,} more" if len(blind) > 1 else ""
    return f"{blind[0]['path']!r} → {blind[0]['target']}{more} could not be looked at when it was made"


@dataclass(frozen=True)
class SavedPlan:
    """What a run shall carry out: the items of a plan, as `shared.engine.document` keeps them."""

    configuration: str
    unchanged: int
    items: Sequence[Mapping[str, Any]]

    def due(self, target_id: str, op: Op) -> list[str]:
        """The paths that a write job is to be asked for. What a write cleans up on its way needs no job of its own."""
        items = [item for item in self.items if item["target"] == target_id]
        written = {item["path"] for item in items if _kind(item) in WRITES}
        paths = {item["path"] for item in items if _kind(item).op is op}
        return sorted(paths - written if op is Op.DELETE else paths)

    def hopeless(self, target_id: str) -> list[Mapping[str, Any]]:
        """What can not be carried, and is not tried."""
        return [item for item in self.items if item["target"] == target_id and _kind(item).sign == "!"]

    def bases(self, target_id: str, op: Op, paths: Iterable[str]) -> dict[str, Basis]:
        """By path: what a job of this sort must find."""
        items = self._by_op.get((target_id, op), {})
        return {path: _basis(items[path]["basis"]) for path in paths if path in items}

    @cached_property
    def _by_op(self) -> dict[tuple[str, Op], dict[str, Mapping[str, Any]]]:
        # Once for all jobs: each has a few of the paths only.
        found: dict[tuple[str, Op], dict[str, Mapping[str, Any]]] = {}
        for item in self.items:
            op = _kind(item).op
            if op is not None and item["basis"] is not None:
                found.setdefault((item["target"], op), {})[item["path"]] = item
        return found


class SavedPlans:
    """The plans that runs carry out, read from the store once."""

    KEPT = 2

    def __init__(self, store: Store) -> None:
        self._store = store
        self._plans: dict[str, SavedPlan] = {}

    async def get(self, run_id: str) -> SavedPlan:
        """The plan of a run. Raises StoreError where its pages are missing."""
        plan = self._plans.get(run_id)
        if plan is None:
            found = await read_whole_plan(self._store, run_id)
            if found is None:
                raise StoreError(f"the plan that run {run_id} is to carry out is not in the store")
            plan = self._plans[run_id] = SavedPlan(found["configuration"], found["unchanged"], found["items"])
            while len(self._plans) > self.KEPT:
                self._plans.pop(next(iter(self._plans)))
        return plan


def _kind(item: Mapping[str, Any]) -> ChangeKind:
    return ChangeKind(item["change"])


def _basis(found: Mapping[str, Any]) -> Basis:
    target = {name: None if each is None else Trace(**each) for name, each in found["target"].items()}
    return Basis(None if found["source"] is None else Trace(**found["source"]), target)


# --- whether the world has moved ------------------------------------------------------------------------------------


def what_moved(saved: SavedPlan, configuration: str, fresh: Sequence[Mapping[str, Any]]) -> str | None:
    """What is not as it was when the plan was made, in words; None: a plan that is made now says the same."""
    if saved.configuration != configuration:
        return "the configuration of the sync, or the digest key, is another one now"
    before, now = _by_path(saved.items), _by_path(fresh)
    found = [_difference(before.get(key), now.get(key)) for key in sorted(before.keys() | now.keys())]
    told = [each for each in found if each]
    if not told:
        return None
    more = f"; and {len(told) - NAMED:,} more" if len(told) > NAMED else ""
    return "; ".join(told[:NAMED]) + more


def _by_path(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, bool], Mapping[str, Any]]:
    """By target and path. A path that is renamed has two items: what is written, and the old names that go (True)."""
    found = {(item["target"], item["path"], False): item for item in items if _kind(item) is not ChangeKind.DELETE}
    for item in items:
        if _kind(item) is ChangeKind.DELETE:
            place = item["target"], item["path"]
            found[(*place, (*place, False) in found)] = item
    return found


def _difference(saved: Mapping[str, Any] | None, fresh: Mapping[str, Any] | None) -> str | None:
    item = saved or fresh
    assert item is not None, "a key of one of them"  # noqa: S101
    where = f"{item['path']!r} → {item['target']}"
    if saved is None:
        return f"{where} was not in the plan, and is now ({item['reason']})"
    if fresh is None:
        return f"{where} was in the plan ({item['reason']}), and is no more"
    if saved["change"] != fresh["change"]:
        return f"{where} was planned as {saved['change']}, and would be {fresh['change']} now ({fresh['reason']})"
    if _kind(saved).op is None:
        return None
    if fresh["basis"] is None:
        return f"{where} can not be looked at now"
    before, now = _basis(saved["basis"]), _basis(fresh["basis"])
    if set(saved["names"]) != set(fresh["names"]) or before.target.keys() != now.target.keys():
        return f"{where} has other names now"
    if _kind(saved) in WRITES and has_moved(before.source, now.source):
        return f"{where} has changed in the source{_versions(before.source, now.source)}"
    for name, trace in before.target.items():
        if has_moved(trace, now.target[name]):
            return f"{where}: {name!r} has changed in the target{_versions(trace, now.target[name])}"
    return None


def _versions(before: Trace | None, now: Trace | None) -> str:
    if before is None or now is None or None in (before.version, now.version) or before.version == now.version:
        return ""
    return f" (from version {before.version} to {now.version})"
