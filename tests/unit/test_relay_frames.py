"""Streams come in any pieces: the lines are the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shared.relay.frames import Frames

LIMIT = 20
streams = st.lists(st.binary(max_size=30), max_size=20).map(b"\n".join) | st.binary(max_size=200)


def heard(stream: bytes, cuts: list[int]) -> tuple[list[bytes], int, bool]:
    """Lines, frames that were passed over, and whether a frame has begun, when `stream` arrives cut at `cuts`."""
    frames = Frames(LIMIT)
    places = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    lines = [line for begin, end in pairwise(places) for line in frames.feed(stream[begin:end])]
    assert frames.kept <= LIMIT
    return lines, frames.too_long, frames.in_the_middle


@given(streams, st.lists(st.integers(0, 1000)))
def test_any_pieces_of_a_stream_give_the_same_lines(stream: bytes, cuts: list[int]) -> None:
    *ended, begun = stream.split(b"\n")
    expected = [line for line in ended if len(line) <= LIMIT]
    too_long = sum(len(line) > LIMIT for line in (*ended, begun))
    assert heard(stream, cuts) == (expected, too_long, bool(begun))


@given(streams)
def test_byte_by_byte_gives_the_same_lines(stream: bytes) -> None:
    assert heard(stream, list(range(len(stream)))) == heard(stream, [])


def test_many_lines_in_one_piece() -> None:
    frames = Frames()
    assert frames.feed(b"".join(b"%d\n" % number for number in range(1000))) == [b"%d" % n for n in range(1000)]
    assert not frames.in_the_middle


def test_too_long_ones_among_many_in_one_piece_are_counted() -> None:
    frames = Frames(LIMIT)
    assert frames.feed(b"a\n" + b"x" * 21 + b"\n" + b"y" * 20 + b"\n" + b"z" * 22 + b"\n") == [b"a", b"y" * 20]
    assert frames.too_long == 2


def test_a_frame_can_be_passed_over_by_hand_and_the_next_is_heard() -> None:
    frames = Frames()
    assert frames.feed(b"begun") == []
    frames.skip()
    frames.skip()
    assert (frames.kept, frames.too_long, frames.in_the_middle) == (0, 1, True)
    assert frames.feed(b" and ended\nnext\n") == [b"next"]
    assert not frames.in_the_middle
