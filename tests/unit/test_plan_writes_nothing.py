"""A plan, of whatever and however it goes, writes to no vault, and leaves the state and the history as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyrage import x25519

from shared.errors import AccessDenied, MountNotFound, Unavailable, VaultError
from shared.model import ConflictPolicy, DeletePolicy, Entry, Expect, Granularity, OnExisting, Secret, Target
from shared.rules import Encrypt
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
BY_VALUE = Capabilities(FingerprintCost.VALUE)
DELETES = DeletePolicy(propagate=True, max_percent=100)
TWO_WAY = one_way("target", "second", type="bidirectional", delete=DELETES, conflict=ConflictPolicy.MANUAL)


class Sealed(MemoryVault):
    """Can be written until it is shut. `put` and `remove` are a person's."""

    shut = False

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        assert not self.shut, f"a plan wrote {name} to {self.id}"
        return await super().set_secret(name, secret, expect=expect, owner=owner)

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        assert not self.shut, f"a plan deleted {name} from {self.id}"
        await super().delete_secret(name, expect=expect)


Happening = Callable[[World, Sealed, Sealed, Sealed], None]


def nothing(w: World, *_: Sealed) -> None: ...


def everything(w: World, source: Sealed, target: Sealed, second: Sealed) -> None:
    """Changes, drift, deletions and new secrets, on all sides."""
    source.put("a", {"user": "u", "password": "2"})
    source.put("new", "n")
    source.remove("b")
    target.put("c", "by hand")
    target.put("theirs", "t")
    if "d" in second.kept:
        second.remove("d")
    second.put("a", "against it")


def all_gone(w: World, source: Sealed, *_: Sealed) -> None:
    for name in "abcde":
        source.remove(name)


def another(**changes: object) -> Happening:
    def happen(w: World, *vaults: Sealed) -> None:
        everything(w, *vaults)
        w.syncs["s"] = replace(w.syncs["s"], **changes)  # type: ignore[arg-type]

    return happen


def renamed(w: World, *_: Sealed) -> None:
    targets = tuple(replace(target, prefix="moved/") for target in w.syncs["s"].targets)
    w.syncs["s"] = replace(w.syncs["s"], targets=targets)


def failing(vault: int, operation: str, error: type[VaultError]) -> Happening:
    def happen(w: World, *vaults: Sealed) -> None:
        everything(w, *vaults)
        vaults[vault].faults.add(operation, error("as the test wants it", vault=vaults[vault].id), times=100)

    return happen


FAILURES = (
    ("list", Unavailable),
    ("list", AccessDenied),
    ("list", MountNotFound),
    ("describe", Unavailable),
    ("describe", AccessDenied),
    ("get", Unavailable),
    ("get", AccessDenied),
)
FIRST = ("nothing", "everything", "skip", "fail")
"""What happens at first contact too."""
HAPPENINGS: dict[str, Happening] = {
    "nothing": nothing,
    "everything": everything,
    "an empty source": all_gone,
    "the guard": another(delete=DeletePolicy(propagate=True, max_percent=1, min_count=0)),
    "no deletes": another(delete=DeletePolicy()),
    "filters": another(exclude=("a", "c*")),
    "skip": another(on_existing=OnExisting.SKIP),
    "fail": another(on_existing=OnExisting.FAIL),
    "unverified": another(verify_targets=False),
    "renamed": renamed,
    **{
        f"{error.__name__} of {operation} on {name}": failing(vault, operation, error)
        for vault, name in enumerate(("the source", "a target"))
        for operation, error in FAILURES
    },
}
BY_FIELD = one_way(
    *(Target(each, each, name="{path}-{field}", granularity=Granularity.FIELD) for each in ("target", "second")),
    delete=DELETES,
)
ENCRYPTED = one_way(
    *(
        Target(each, each, transform=(Encrypt((str(x25519.Identity.generate().to_public()),)),))
        for each in ("target", "second")
    ),
    delete=DELETES,
)
SYNCS = {
    "one way": one_way("target", "second", delete=DELETES),
    "by field": BY_FIELD,
    "encrypted": ENCRYPTED,
    "two ways": TWO_WAY,
}


@pytest.mark.parametrize("costs", [(KV2, LISTED), (BY_VALUE, BY_VALUE)], ids=["versions", "values"])
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize(
    ("happening", "synced"), [*((each, True) for each in HAPPENINGS), *((each, False) for each in FIRST)]
)
async def test_a_plan_writes_nothing(
    tmp_path: Path, happening: str, sync: str, costs: tuple[Capabilities, Capabilities], synced: bool
) -> None:
    source, target, second = Sealed("source", costs[0]), Sealed("target", costs[1]), Sealed("second", costs[1])
    vaults = (source, target, second)
    for name in "abcde":
        source.put(name, {"user": name, "password": "1"})
    async with world(tmp_path, vaults, SYNCS[sync]) as w:
        if synced:
            await w.sync()
        HAPPENINGS[happening](w, *vaults)
        for vault in vaults:
            vault.shut = True
        before = [vault.values() for vault in vaults], await w.states(), await w.history()
        run = await w.sync(dry_run=True)
        assert not run.status.active
        assert ([vault.values() for vault in vaults], await w.states(), await w.history()) == before
        assert (await w.store.get_control("s")).active_run is None
