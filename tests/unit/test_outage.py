"""A vault is down when nothing of it is answered; some of its secrets may fail as long as they like."""

from __future__ import annotations

from shared.engine.outage import DOWN_AFTER, Outage
from shared.errors import Unavailable
from shared.pacing import Pacer

ERROR = Unavailable("no answer", vault="hub")


def test_it_is_down_after_some_failures_in_a_row() -> None:
    outage, pacer = Outage(), Pacer("hub")
    for _ in range(DOWN_AFTER):
        assert outage.error(pacer) is None
        outage.failed(pacer, pacer.answered, ERROR)
    assert outage.error(pacer) is ERROR


def test_an_answer_in_between_begins_the_row_anew() -> None:
    outage, pacer = Outage(), Pacer("hub")
    for _ in range(DOWN_AFTER - 1):
        outage.failed(pacer, pacer.answered, ERROR)
    pacer.answered += 1
    for _ in range(DOWN_AFTER - 1):
        outage.failed(pacer, pacer.answered, ERROR)
    assert outage.error(pacer) is None
    outage.failed(pacer, pacer.answered, ERROR)
    assert outage.error(pacer) is ERROR


def test_an_answer_to_anybody_shows_that_it_is_up_again() -> None:
    outage, pacer = Outage(), Pacer("hub")
    for _ in range(DOWN_AFTER):
        outage.failed(pacer, pacer.answered, ERROR)
    pacer.answered += 1
    assert outage.error(pacer) is None


def test_what_is_slow_to_fail_does_not_count_where_others_were_answered_meanwhile() -> None:
    outage, pacer = Outage(), Pacer("hub")
    slow = [pacer.answered for _ in range(50)]
    pacer.answered += 1
    for begun in slow:
        outage.failed(pacer, begun, ERROR)
    assert outage.error(pacer) is None
