"""A write job of a saved plan: it writes exactly what was planned, and leaves alone what has moved since."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

from shared.engine.field_changes import look_or_describe, trace_of, trace_of_value
from shared.engine.path_work import Draft, Later, PathWork, Settled, Wanted
from shared.engine.place import Found, Place
from shared.errors import SecretNotFound, VaultError
from shared.model import Fields, ObjectState, Op, Secret
from shared.plan import Basis, Trace, has_moved


def _left(vault: str, path: str, why: str) -> VaultError:
    return VaultError(f"left for the next plan: it {why} since this one was made", vault=vault, path=path)


@dataclass(frozen=True)
class _PlannedPlace(Place):
    """Sees what was planned, or what this job has written itself; raises VaultError for anything else."""

    planned: Mapping[str, Trace | None] = field(default_factory=dict)
    ours: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By name: digests of what this job was about to write."""

    async def look(self, name: str, *, tombstones: bool = True) -> Found:
        found = await look_or_describe(Place(self.vault, self.digester, self.owner, self.metadata), name)
        if found.live and found.digest is not None and found.digest in self.ours.get(name, ()):
            return found
        if name not in self.planned or has_moved(self.planned[name], trace_of(self, found)):
            raise _left(self.vault.id, name, "has changed in the target")
        return found


@dataclass(frozen=True)
class PlannedWork(PathWork):
    """Work on paths of which it is known what they must hold."""

    planned: Mapping[str, Basis] = field(default_factory=dict)
    """By path."""
    ours: dict[str, set[str]] = field(default_factory=dict)

    @staticmethod
    def of(work: PathWork, planned: Mapping[str, Basis]) -> PlannedWork:
        return PlannedWork(**{each.name: getattr(work, each.name) for each in fields(work)}, planned=planned)

    @cached_property
    def place(self) -> Place:
        names = {name: trace for basis in self.planned.values() for name, trace in basis.target.items()}
        return _PlannedPlace(self.vault, self.digester, self.owner, self.target.metadata, names, self.ours)

    def is_certain(self, op: Op, before: ObjectState) -> bool:
        # What the row tells is older than the plan.
        return False

    async def run(
        self, op: Op, before: ObjectState, state: ObjectState, *, cleanup: bool, early: Wanted | None = None
    ) -> Settled | Later:
        if op is not Op.DELETE and before.run_id == self.run_id:
            # A job of this run has begun with it: what it wrote is no surprise.
            for part in before.parts:
                if part.digest is None and part.intended is not None:
                    self.ours.setdefault(part.name, set()).add(part.intended)
            with contextlib.suppress(VaultError):
                self.wanted(state.path, await self.read_source(state.path))
        return await super().run(op, before, state, cleanup=cleanup, early=early)

    async def read_source(self, path: str) -> Secret:
        try:
            secret = await super().read_source(path)
        except SecretNotFound:
            secret = None
        if secret is None:
            raise _left(self.source.id, path, "has gone from the source")
        if has_moved(self.planned[path].source, trace_of_value(self.source_place, secret)):
            raise _left(self.source.id, path, "has changed in the source")
        return secret

    def wanted(self, path: str, secret: Secret) -> Wanted:
        wanted = super().wanted(path, secret)
        for name, digest in wanted.stored.items():
            self.ours.setdefault(name, set()).add(digest)
        return wanted

    async def _source_fields(self, path: str, draft: Draft) -> Fields | None:
        found = await super()._source_fields(path, draft)
        if found is not None and self.planned[path].source is None:
            raise _left(self.source.id, path, "has come back in the source")
        return found

    async def _remove(self, name: str, draft: Draft, digests: Collection[str] = ()) -> None:
        if not any(name in basis.target for basis in self.planned.values()):
            raise _left(self.vault.id, name, "has come to be called so")
        await super()._remove(name, draft, digests)
