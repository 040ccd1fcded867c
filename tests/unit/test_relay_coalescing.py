"""When a busy connection is read again: what comes alone at once; what comes in a rush gathers, and never too much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.relay.coalescing import LONGEST, Coalescing

LINE = 1500
BUFFER = 128 * 1024
"""Bytes that a kernel keeps for a connection that nobody reads, at least."""


def rests(rate: float, *, seconds: float) -> list[float]:
    """The rests of a reader to whom so many bytes a second are sent evenly."""
    coalescing, now, told, answers = Coalescing(), 0.0, 0.0, list[float]()
    while now < seconds:
        now = max(now, (told + LINE) / rate)
        size = min(rate * now - told, BUFFER)
        told += size
        answers.append(coalescing.rest(now, int(size)))
        now += answers[-1]
    return answers


def test_entries_that_come_one_by_one_are_read_at_once() -> None:
    assert set(rests(LINE * 100.0, seconds=10)) == {0.0}


def test_a_request_and_its_answer_do_not_wait_for_each_other() -> None:
    coalescing = Coalescing()
    for moment in range(100):
        assert coalescing.rest(moment * 0.05, LINE) == 0.0
        # After the second nothing more is to come.
        coalescing.rest(moment * 0.05 + 0.0003, LINE)


def test_a_rush_gathers_for_as_long_as_is_allowed() -> None:
    answers = rests(LINE * 1500.0, seconds=1)
    assert len(answers) < 150, "fifteen hundred entries"
    assert answers[-1] == LONGEST


def test_a_faster_rush_gathers_what_is_worth_a_read() -> None:
    size = LINE * 10_000.0 * rests(LINE * 10_000.0, seconds=1)[-1]
    assert 16 * 1024 < size < BUFFER


def test_a_rush_that_ends_is_forgotten() -> None:
    coalescing = Coalescing()
    for step in range(20):
        coalescing.rest(step * 0.0001, LINE)
    assert coalescing.rest(1.0, LINE) == 0.0


def test_a_kernel_that_is_nearly_full_is_read_at_once() -> None:
    coalescing = Coalescing()
    for step in range(20):
        coalescing.rest(step * 0.0001, LINE)
    assert coalescing.rest(0.01, BUFFER) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1 << 20)), max_size=50))
def test_no_rest_is_longer_than_allowed(reads: list[tuple[float, int]]) -> None:
    coalescing, now = Coalescing(), 0.0
    for after, size in reads:
        now += after
        assert 0.0 <= coalescing.rest(now, size) <= LONGEST
