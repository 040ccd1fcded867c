"""The spool: what was kept is there after any end, each path once, oldest first, and leaves only as it was sent."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.audit import merge
from shared.errors import ConfigError, StoreError
from shared.notices import AuditNotice, GapNotice
from shared.relay.spool import SPOOL_FULL, Spool
from tests.examples import examples

MANY = 1_000_000


def change(path: str, version: int | None = None) -> AuditNotice:
    return AuditNotice("secret/", f"data/{path}", "", version, "hub")


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", max_rows=100)
    await spool.open()
    yield spool
    await spool.aclose()


class Away:
    """In place of the file: whoever comes here would have read it."""

    async def read(self, _: object) -> None:
        pytest.fail("the file was read")


async def waiting(spool: Spool) -> list[AuditNotice | GapNotice]:
    # What was kept last is not read again the first time.
    await spool.oldest(1, MANY)
    rows = await spool.oldest(1000, MANY)
    assert spool.rows == len(rows)
    return [row.notice for row in rows]


async def test_a_path_is_one_row_whatever_happens_to_it(spool: Spool) -> None:
    assert await spool.add([change("a", 1), change("b")], 1.0) == 0
    assert await spool.add([change("a", 3), change("c")], 2.0) == 1
    assert await waiting(spool) == [change("a", 3), change("b"), change("c")]
    assert await spool.since() == 1.0


async def test_names_are_told_apart_and_come_back_as_they_were(spool: Spool) -> None:
    odd: list[AuditNotice | GapNotice] = [
        AuditNotice("secret/", "data/a b/ü/日本 \x00'\"%_", "", 2, "hub"),
        AuditNotice("secret/", "data/A B/ü/日本 \x00'\"%_", "", 2, "hub"),
        AuditNotice("secret/", "data/" + "x" * 8000, "", None, "hub"),
        AuditNotice("secret/", "a", "one/", 1, "hub"),
        AuditNotice("secret/", "a", "two/", 1, "hub"),
        AuditNotice("secret/", "a", "", 1, None),
        GapNotice("a", "hub"),
        GapNotice("a"),
    ]
    await spool.add(odd, 1.0)
    assert await waiting(spool) == odd


async def test_what_was_sent_leaves_but_what_changed_meanwhile_goes_to_the_end(spool: Spool) -> None:
    await spool.add([change("a", 1), change("b", 1), change("c", 1)], 1.0)
    sent = await spool.oldest(2, MANY)
    await spool.add([change("a", 2)], 2.0)
    await spool.done(sent)
    assert await waiting(spool) == [change("c", 1), change("a", 2)]
    await spool.done(sent)
    assert await waiting(spool) == [change("c", 1), change("a", 2)]
    await spool.done(await spool.oldest(10, MANY))
    assert await waiting(spool) == []
    assert await spool.since() is None


async def test_what_was_kept_alone_is_not_read_again_and_nor_is_an_empty_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[AuditNotice | GapNotice] = [change("a", 1), GapNotice("held"), change("b")]
    await spool.add(notices, 1.0)
    with monkeypatch.context() as without_file:
        without_file.setattr(spool.database, "read", Away().read)
        sent = await spool.oldest(10, MANY, [GapNotice("held")])
    assert [row.notice for row in sent] == [change("a", 1), change("b")]
    # Whatever became of them: the file has them until they are done.
    assert await waiting(spool) == [change("a", 1), GapNotice("held"), change("b")]
    await spool.done([*sent, *await spool.oldest(1, MANY)])
    await spool.done(await spool.oldest(10, MANY))
    with monkeypatch.context() as without_file:
        without_file.setattr(spool.database, "read", Away().read)
        assert await spool.oldest(10, MANY) == []


async def test_what_was_kept_alone_and_changes_before_or_while_it_is_sent_is_told_again(spool: Spool) -> None:
    await spool.add([change("a", 1)], 1.0)
    await spool.add([change("a", 2)], 2.0)
    sent = await spool.oldest(10, MANY)
    assert [row.notice for row in sent] == [change("a", 2)]
    await spool.done(sent)
    await spool.add([change("a", 3)], 3.0)
    sent = await spool.oldest(10, MANY)
    await spool.add([change("a", 4)], 4.0)
    await spool.done(sent)
    assert await waiting(spool) == [change("a", 4)]


async def test_rows_are_counted_right_while_some_come_and_others_leave(spool: Spool) -> None:
    await spool.add([change("a"), change("b")], 1.0)
    sent = await spool.oldest(1, MANY)
    await asyncio.gather(spool.done(sent), spool.add([change("c"), change("d")], 2.0), spool.add([change("e")], 3.0))
    assert await waiting(spool) == [change(path) for path in "bcde"]


async def test_a_gap_that_opens_again_while_its_mark_is_sent_stays(spool: Spool) -> None:
    await spool.add([GapNotice("why")], 1.0)
    sent = await spool.oldest(10, MANY)
    await spool.add([GapNotice("why")], 2.0)
    await spool.done(sent)
    assert await waiting(spool) == [GapNotice("why")]


async def test_batches_are_bounded_by_number_and_size_but_never_empty(spool: Spool) -> None:
    await spool.add([change(f"{number}" + "x" * 1000) for number in range(10)], 1.0)
    assert len(await spool.oldest(3, MANY)) == 3
    assert len(await spool.oldest(10, 3500)) == 3
    assert len(await spool.oldest(10, 1)) == 1


async def test_all_names_of_a_path_count_for_the_size_of_a_batch(spool: Spool) -> None:
    await spool.add([AuditNotice("m" * 400, f"{number}" + "p" * 300, "n" * 300) for number in range(10)], 1.0)
    assert len(await spool.oldest(10, 3500)) == 3
    await spool.done(await spool.oldest(100, MANY))
    await spool.add([GapNotice(f"{number}") for number in range(50)], 1.0)
    assert len(await spool.oldest(100, 2000)) < 50, "a gap takes room as well"


async def test_gaps_that_are_held_back_are_passed_over(spool: Spool) -> None:
    held = [GapNotice("one"), GapNotice("two")]
    await spool.add([*held, change("a")], 1.0)
    assert [row.notice for row in await spool.oldest(1, MANY, held)] == [change("a")]


async def test_more_rows_than_it_may_hold_become_one_gap(spool: Spool) -> None:
    await spool.add([change(f"{number}") for number in range(60)], 1.0)
    sent = await spool.oldest(10, MANY)
    await spool.add([change(f"{number}") for number in range(30, 90)], 2.0)
    assert len(await waiting(spool)) == 90
    await spool.add([change(f"{number}") for number in range(90, 120)], 3.0)
    assert await waiting(spool) == [GapNotice(SPOOL_FULL, "hub")]
    await spool.done(sent)
    assert await waiting(spool) == [GapNotice(SPOOL_FULL, "hub")]
    await spool.add([change("a")], 4.0)
    assert await waiting(spool) == [GapNotice(SPOOL_FULL, "hub"), change("a")]


async def test_it_may_be_filled_to_the_last_row(spool: Spool) -> None:
    await spool.add([change(f"{number}") for number in range(99)], 1.0)
    await spool.add([change("98"), change("99")], 2.0)
    assert len(await waiting(spool)) == 100
    await spool.add([change("one more")], 3.0)
    assert await waiting(spool) == [GapNotice(SPOOL_FULL, "hub")]


async def test_a_damaged_file_is_told_and_its_folder_is_free_once_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "spool.db"
    file.write_bytes(b"not a database, but longer than the header of one " * 100)
    with pytest.raises(StoreError, match="is not a SQLite database"):
        await Spool(tmp_path).open()
    file.unlink()
    spool = Spool(tmp_path)
    await spool.open()
    await spool.aclose()


async def test_what_was_kept_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    await first.open()
    await first.add([change("a", 1), GapNotice("why")], 1.0)
    sent = await first.oldest(10, MANY)
    await first.aclose()
    second = Spool(tmp_path)
    await second.open()
    await second.add([change("b"), change("a", 2)], 2.0)
    await second.done(sent)
    assert await waiting(second) == [change("b"), change("a", 2)]
    await second.aclose()


async def test_a_folder_serves_one_relay_at_a_time(spool: Spool) -> None:
    with pytest.raises(ConfigError, match="another relay uses the spool folder"):
        await Spool(spool.folder).open()
    assert await waiting(spool) == []


async def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name one that this user may write"):
        await Spool(tmp_path / "file" / "spool").open()


async def test_nobody_else_can_read_it(spool: Spool) -> None:
    assert spool.folder.stat().st_mode & 0o077 == 0
    assert spool.database.path.stat().st_mode & 0o077 == 0


async def test_a_full_disk_keeps_what_was_there_and_takes_more_when_there_is_room(spool: Spool) -> None:
    await spool.add([change("a")], 1.0)

    def no_more(connection: sqlite3.Connection) -> int:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        return int(connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0])

    await spool.database.write(no_more)
    with pytest.raises(StoreError, match="the disk is full"):
        await spool.add([change(f"{number}" + "x" * 4000) for number in range(20)], 2.0)
    assert await waiting(spool) == [change("a")]
    await spool.database.write(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone())
    await spool.add([change("b")], 3.0)
    assert await waiting(spool) == [change("a"), change("b")]


KILLED = """
import asyncio, os, signal, sys
from shared.notices import AuditNotice
from shared.relay.spool import Spool

async def main():
    spool = Spool(sys.argv[1])
    await spool.open()
    for number in range(100_000):
        await spool.add([AuditNotice("secret/", f"data/{number}")], 1.0)
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_it_said_was_kept_survives_a_kill(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(30):
        await process.stdout.readline()
    process.kill()
    said = 30 + len((await process.stdout.read()).splitlines())
    await process.wait()
    spool = Spool(tmp_path)
    await spool.open()
    assert said <= spool.rows <= said + 1
    await spool.aclose()


versions = st.none() | st.integers(1, 9)


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.sampled_from("abcd"), versions), min_size=1, max_size=6), max_size=8))
async def test_versions_are_merged_as_everywhere(spool: Spool, adds: list[list[tuple[str, int | None]]]) -> None:
    await spool.done(await spool.oldest(1000, MANY))
    expected: dict[str, AuditNotice] = {}
    for number, add in enumerate(adds):
        notices = {path: change(path, version) for path, version in add}
        for path, notice in notices.items():
            expected[path] = merge(expected[path], notice) if path in expected else notice
        await spool.add(list(notices.values()), float(number))
    assert await waiting(spool) == list(expected.values())
