"""What the pages tell a reader to type, typed: see tests/pages.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pages import Scenario, first_missing, pages, play, scenarios, tools

ALL = [scenario for page in pages() for scenario in scenarios(page)]
WITH_VAULTS = [scenario for scenario in ALL if scenario.world == "sandbox"]


@pytest.mark.parametrize("scenario", ALL, ids=[f"{each.page}:{each.line}" for each in ALL])
def test_a_page_holds_what_it_says(scenario: Scenario, tmp_path: Path) -> None:
    if missing := {tool for tool in tools(scenario) if shutil.which(tool) is None}:
        pytest.skip(f"not on this machine: {', '.join(sorted(missing))}")
    play(scenario, tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("scenario", WITH_VAULTS, ids=[f"{each.page}:{each.line}" for each in WITH_VAULTS])
def test_it_does_so_with_real_vaults(scenario: Scenario, tmp_path: Path) -> None:
    play(scenario, tmp_path, real=True)


def test_what_is_marked_is_found() -> None:
    assert len(ALL) >= 12
    assert all(any(step.kind == "run" for step in scenario.steps) for scenario in ALL)


def test_lines_are_looked_for_in_their_order_and_times_are_not_compared() -> None:
    printed = "a  b\nat 2026-01-02 03:04:05 in 0.7\nc d e\n"
    assert first_missing(("a b", "at 2025-05-05 05:05:05 in 1.2", "c … e"), printed) is None
    assert first_missing(("c d e", "a b"), printed) == "a b"
    assert first_missing(("a",), printed) == "a"
