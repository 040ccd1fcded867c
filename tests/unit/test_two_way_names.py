"""Names in a two-way sync whose sides tell them apart differently."""

from __future__ import annotations

from pathlib import Path

from shared.model import DeletePolicy, Source, Sync, Target
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.memory_vault import MemoryVault
from tests.world import world

FOLDING = Capabilities(FingerprintCost.LISTED, names=NameRule(ignores_case=True))
EXACT = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)


async def test_two_names_of_a_target_that_are_one_to_the_source_are_both_refused(tmp_path: Path) -> None:
    source, target = MemoryVault("source", FOLDING), MemoryVault("target", EXACT)
    sync = Sync("s", Source("source"), (Target("target", "target"),), "bidirectional", delete=DeletePolicy(True))
    async with world(tmp_path, [source, target], sync) as w:
        target.put("DB", "1")
        target.put("db", "2")
        target.put("other", "3")
        run = await w.sync()
        assert source.values() == {"other": {"value": "3"}}
        assert target.values() == {"DB": {"value": "1"}, "db": {"value": "2"}, "other": {"value": "3"}}
        assert (run.written, run.failed) == (1, 1)
        (failed,) = [state async for state in w.store.list_objects("s") if state.error]
        assert "'DB' and 'db' of target are one secret to the source" in str(failed.error)
