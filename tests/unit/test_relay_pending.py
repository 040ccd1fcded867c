"""What is in memory before it is on the disk: each path once, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.audit import merge
from shared.notices import AuditNotice, GapNotice
from shared.relay.pending import Pending


def change(path: str, version: int | None = None, mount: str = "secret/", namespace: str = "") -> AuditNotice:
    return AuditNotice(mount, f"data/{path}", namespace, version)


def test_a_path_is_kept_once_with_its_newest_version() -> None:
    pending = Pending()
    assert pending.add(change("a", 3)) is True
    assert pending.add(change("a", 5)) is False
    assert pending.add(change("a", 4)) is False
    assert pending.take(10) == [change("a", 5)]
    assert not pending
    assert pending.since is None


def test_equal_paths_of_other_mounts_and_namespaces_are_others() -> None:
    pending = Pending()
    notices = [change("a"), change("a", mount="other/"), change("a", namespace="team/")]
    assert [pending.add(notice) for notice in notices] == [True, True, True]
    assert pending.take(10) == notices


def test_gaps_are_kept_once_a_reason_and_go_first() -> None:
    pending = Pending("hub")
    pending.add(change("a"))
    assert [pending.gap("one"), pending.gap("one"), pending.gap("two")] == [True, False, True]
    assert pending.take(0) == [GapNotice("one", "hub"), GapNotice("two", "hub")]
    assert len(pending) == 1


def test_the_number_of_paths_is_bounded_and_known_ones_still_count() -> None:
    pending = Pending(max_paths=2)
    assert [pending.add(change(path)) for path in "abc"] == [True, True, None]
    assert pending.add(change("a", 2)) is False
    pending.take(1)
    assert pending.add(change("c")) is True


def test_the_bytes_are_bounded() -> None:
    pending = Pending(max_bytes=10_000)
    assert pending.add(change("a" * 9_000)) is True
    assert pending.add(change("b" * 9_000)) is None
    pending.take(1)
    assert pending.add(change("b" * 9_000)) is True


def test_what_is_taken_in_parts_leaves_room_for_as_much() -> None:
    pending = Pending(max_bytes=10_000)
    for number in range(50):
        assert pending.add(change(f"{number}" + "a" * 4_000)) is True
        assert pending.add(change(f"{number}" + "b" * 4_000)) is True
        assert len(pending.take(1)) == 1
        assert len(pending.take(1)) == 1


def test_the_time_is_that_of_the_oldest() -> None:
    pending = Pending()
    pending.add(change("a"))
    first = pending.since
    assert first is not None
    taken = pending.take(10)
    assert pending.since is None
    pending.put_back(taken, first)
    assert pending.since == first
    pending.put_back([], first - 5)
    pending.put_back([], first + 5)
    pending.put_back([], None)
    assert pending.since == first - 5


def test_what_is_put_back_is_older_than_what_came_meanwhile() -> None:
    pending = Pending()
    pending.add(change("a", 1))
    pending.gap("why")
    since = pending.since
    taken = pending.take(10)
    pending.add(change("a", 2))
    pending.put_back(taken, since)
    assert pending.take(10) == [GapNotice("why"), change("a", 2)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(1, 5)), max_size=20), st.data())
def test_taking_and_putting_back_loses_and_invents_nothing(
    heard: list[tuple[str, int | None]], data: st.DataObject
) -> None:
    pending = Pending()
    expected: dict[str, AuditNotice] = {}
    for path, version in heard:
        notice = change(path, version)
        expected[path] = merge(expected[path], notice) if path in expected else notice
        pending.add(notice)
        if data.draw(st.booleans()):
            since = pending.since
            pending.put_back(pending.take(data.draw(st.integers(0, 3))), since)
    assert {notice.path: notice for notice in pending.take(100)} == {n.path: n for n in expected.values()}
