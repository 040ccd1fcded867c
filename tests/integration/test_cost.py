"""docs/cost.md: its table says what is measured, and its arithmetic is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.cost import COLUMNS, measure

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cost.md").read_text("utf-8")
EXACT = ("executions", "messages", "vault", "key_vault")


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading, by its first column."""
    part = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.real
async def test_the_table_is_what_is_measured(azurite: str, tmp_path: Path) -> None:
    """Calls of vaults and jobs to the last one. How rows are batched depends on what is ready together."""
    shown = rows("What 1,000 secrets cost")
    bills = await measure(azurite, tmp_path)
    assert set(shown) == set(bills)
    for name, bill in bills.items():
        for column, cell in zip(COLUMNS, shown[name], strict=True):
            found, told = getattr(bill, column), number(cell)
            slack = 0 if column in EXACT else max(3, told // 10)
            assert abs(found - told) <= slack, (name, column, told, found, dict(bill.detail))


def test_the_month_adds_up() -> None:
    checked = 0
    for name, cells in rows("The arithmetic for a month").items():
        results = []
        for cell in cells[:2]:
            formula, result = cell.split(" = ")
            plain = re.sub(r"[a-zA-Z,]", "", formula).replace("×", "*")
            assert re.fullmatch(r"[\d*+() ]+", plain)
            assert eval(plain) == number(result), (name, cell)
            results.append(number(result))
        assert sum(results) == number(cells[2]), name
        checked += 1
    assert checked == 6


def test_the_month_is_made_of_the_measured_numbers() -> None:
    measured, month = rows("What 1,000 secrets cost"), rows("The arithmetic for a month")
    unchanged, event = (
        dict(zip(COLUMNS, measured[name], strict=True)) for name in ("unchanged", "one event, one secret")
    )
    assert month["Key Vault operations"][0].startswith(f"720 × {unchanged['key_vault']} ")
    assert month["Key Vault operations"][1].startswith(f"3,000 × {event['key_vault']} ")
    assert month["requests to tables"][0].startswith(f"720 × {unchanged['table_requests']} ")
    assert month["requests to tables"][1].startswith(f"3,000 × {event['table_requests']} ")
