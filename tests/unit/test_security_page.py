"""docs/security.md names everything that is stored, and nothing that is not."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from shared.histories.sqlite import SqliteStore
from shared.queues.sqlite import SqliteQueues
from shared.resources import TABLES
from shared.sqlite import Database
from shared.timer_loop import SqliteTicks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text("utf-8")


def table_rows() -> list[list[str]]:
    part = PAGE.partition("\n## What is stored where\n")[2].partition("\n| elsewhere |")[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return lines[2:]


async def test_every_table_is_named(tmp_path: Path) -> None:
    database = Database(tmp_path / "vaultferry.db")
    store, queues = SqliteStore(database), SqliteQueues(database)
    await store.open()
    await queues.open()
    await SqliteTicks(database).get("any")
    await queues.aclose()
    await store.aclose()
    await database.aclose()
    with sqlite3.connect(tmp_path / "vaultferry.db") as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        found = {name for (name,) in names}
    connection.close()
    assert {cells[0].strip("`") for cells in table_rows()} == found


def test_every_table_of_a_storage_account_is_named() -> None:
    assert {name for cells in table_rows() for name in re.findall(r"`(\w+)`", cells[2])} == set(TABLES)
