"""Planning that is cut in pieces comes to the same as planning in one piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared.engine import Engine, planner
from shared.engine.document import read_plan
from shared.model import DeletePolicy
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

LISTED = Capabilities(FingerprintCost.LISTED, fields=True)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SLICE", 3)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    vaults = [MemoryVault("source"), MemoryVault("one", LISTED), MemoryVault("two")]
    deletes = DeletePolicy(propagate=True, max_percent=100)
    async with world(tmp_path, vaults, one_way("one", "two", delete=deletes)) as w:
        yield w


def memory(w: World, vault_id: str) -> MemoryVault:
    vault = w.vaults[vault_id]
    assert isinstance(vault, MemoryVault)
    return vault


async def hurried(w: World, **options: bool) -> str:
    """A run each of whose planning jobs does one slice only."""
    engine = Engine(replace(w.engine.installation, planning_budget=0.0))
    run = await engine.runs.start("s", trigger="manual", **options)  # type: ignore[arg-type]
    while w.queues.messages:
        await engine.handle(w.queues.messages.pop(0)[1])
    return run.run_id


async def test_a_deletion_that_only_a_look_told_is_not_forgotten_by_the_next_job(w: World) -> None:
    source = memory(w, "source")
    for n in range(10):
        source.put(f"s{n}", "1")
    await w.sync()
    source.remove("s1")
    source.remove("s8")
    run = await w.engine.runs.view(await hurried(w))
    assert (run.status, run.deleted, run.unchanged) == ("succeeded", 4, 16)
    assert sorted(memory(w, "one").values()) == sorted(memory(w, "two").values()) == sorted(source.values())


async def test_the_plan_of_a_dry_run_is_whole_however_many_jobs_it_takes(w: World) -> None:
    source = memory(w, "source")
    for n in range(10):
        source.put(f"s{n}", "1")
    await w.sync()
    source.put("s0", "2")
    source.remove("s1")
    source.put("s9", "2")
    run_id = await hurried(w, dry_run=True)
    plan = await read_plan(w.store, run_id)
    assert plan is not None
    assert [(item["target"], item["path"], item["change"]) for item in plan["items"]] == [
        (target, path, change)
        for target in ("one", "two")
        for path, change in (("s0", "update"), ("s1", "delete"), ("s9", "update"))
    ]
    run = await w.engine.runs.view(run_id)
    assert (plan["planned"], plan["unchanged"]) == (run.planned, run.unchanged) == (6, 14)
