"""A vault is down when nothing of it is answered; some of its secrets may fail as long as they like."""

from __future__ import annotations

from shared.engine.outage import DOWN_AFTER, Outage
from shared.errors import Unavailable

ERROR = Unavailable("no answer", vault="hub")


def test_it_is_down_after_some_failures_in_a_row() -> None:
    outage = Outage()
    for _ in range(DOWN_AFTER):
        assert outage.error is None
        outage.failed(outage.begin(), ERROR)
    assert outage.error is ERROR


def test_an_answer_in_between_begins_the_row_anew() -> None:
    outage = Outage()
    for _ in range(DOWN_AFTER - 1):
        outage.failed(outage.begin(), ERROR)
    outage.answered()
    for _ in range(DOWN_AFTER - 1):
        outage.failed(outage.begin(), ERROR)
    assert outage.error is None


def test_an_answer_shows_that_it_is_up_again() -> None:
    outage = Outage()
    for _ in range(DOWN_AFTER):
        outage.failed(outage.begin(), ERROR)
    outage.answered()
    assert outage.error is None


def test_what_is_slow_to_fail_does_not_count_where_others_were_answered_meanwhile() -> None:
    outage = Outage()
    slow = [outage.begin() for _ in range(50)]
    outage.answered()
    for begun in slow:
        outage.failed(begun, ERROR)
    assert outage.error is None
