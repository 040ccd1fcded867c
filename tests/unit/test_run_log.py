"""The line of an ended run, which alerts and charts are made from."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.engine.runs import COUNTS
from shared.logs import log_to
from shared.vault import Capabilities, FingerprintCost
from tests.cli_world import loggers_as_before
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    listed = Capabilities(FingerprintCost.LISTED, tags=True)
    async with world(tmp_path, [MemoryVault("source", listed), MemoryVault("target", listed)], one_way()) as made:
        yield made


async def test_it_has_the_sync_the_run_and_what_was_done(w: World) -> None:
    source = w.vaults["source"]
    source.put("a", "1")
    source.put("b", "2")
    stream = io.StringIO()
    with loggers_as_before():
        log_to(stream, "info", {})
        run = await w.sync()
        logging.getLogger("vaultferry").handlers[-1].flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (line,) = [line for line in lines if line["message"] == "run succeeded"]
    assert (line["sync"], line["run"], line["level"]) == (run.sync_id, run.run_id, "info")
    assert {name: line[name] for name in COUNTS} == {name: getattr(run, name) for name in COUNTS}
    assert (line["written"], line["conflicts"]) == (2, 0)
