"""What becomes of a path of a two-way sync: each line of the tables in docs/two-way.md, and what holds for all there are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.merge import SKEW, Merge, Side, Verdict, merge
from shared.model import SOURCE_SIDE, ConflictPolicy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "two-way.md"
START = datetime(2026, 11, 22, tzinfo=UTC)
_FACT = re.compile(r"(?P<side>\w+) (?:(?P<begin>\d+)(?:–(?P<end>\d+))?|(?P<word>moved|again|unseen|taken|begun))")
_OUTCOME = re.compile(r"nothing|noted|conflict|deleted on all|(?P<value>[a-z]) to all")


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line of one of the page's tables."""

    number: int
    source: Side
    targets: tuple[Side, ...]
    policy: ConflictPolicy | None
    """None: it makes no difference."""
    take: str | None
    begun: str | None
    outcome: str


def lines() -> Iterator[Line]:
    headers: list[str] = []
    for number, text in enumerate(PAGE.read_text().splitlines(), 1):
        cells = [cell.strip() for cell in text.strip("|").split("|")] if text.startswith("|") else []
        if not cells or set(text) <= set("|- "):
            headers = headers if cells else []
        elif not headers:
            headers = cells
        else:
            yield _line(number, dict(zip(headers, cells, strict=True)))


def _line(number: int, row: dict[str, str]) -> Line:
    facts = [_FACT.fullmatch(fact) for fact in row.pop("also known", "").split(", ") if fact]
    assert None not in facts, f"line {number}: what is known can not be read"
    outcome, policy = row.pop("what happens"), row.pop("conflict", None)
    del row["because"]
    assert _OUTCOME.fullmatch(outcome), f"line {number}: {outcome}"
    sides = [_side(name, cell, [fact for fact in facts if fact and fact["side"] == name]) for name, cell in row.items()]
    assert sides[0].id == SOURCE_SIDE
    said = {fact["word"]: fact["side"] for fact in facts if fact}
    chosen = ConflictPolicy(policy) if policy else None
    return Line(number, sides[0], tuple(sides[1:]), chosen, said.get("taken"), said.get("begun"), outcome)


def _side(name: str, cell: str, facts: Sequence[re.Match[str]]) -> Side:
    values = [None if value == "–" else value for value in cell.split(" → ")]
    assert len(values) == (1 if name == SOURCE_SIDE else 2), cell
    side = Side(name, values[-1], None if name == SOURCE_SIDE else values[0])
    for fact in facts:
        if fact["begin"]:
            begin, end = int(fact["begin"]), int(fact["end"] or fact["begin"])
            moment, coarse = START + timedelta(seconds=begin), timedelta(seconds=end - begin)
            side = replace(side, changed_at=moment, resolution=coarse)
        if fact["word"] in ("moved", "again", "unseen"):
            side = replace(side, **{"seen": False} if fact["word"] == "unseen" else {fact["word"]: True})
    return side


LINES = list(lines())


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"line-{line.number}")
def test_the_page_says_what_happens(line: Line) -> None:
    for policy in [line.policy] if line.policy else ConflictPolicy:
        merged = merge(line.source, line.targets, policy, line.take, line.begun)
        # Without a policy, a line tells whether it is a conflict, not what becomes of it.
        outcome = "conflict" if line.policy is None and merged.contested else _outcome(merged)
        assert outcome == line.outcome, f"conflict: {policy}"


def _outcome(merged: Merge) -> str:
    match merged.verdict:
        case Verdict.SAME:
            return "nothing"
        case Verdict.NOTE:
            return "noted"
        case Verdict.CONFLICT:
            return "conflict"
        case Verdict.CARRY:
            return "deleted on all" if merged.value is None else f"{merged.value} to all"


def test_every_case_of_two_sides_has_one_line() -> None:
    told = [
        _named(line.source.value, line.targets[0].base, line.targets[0].value)
        for line in LINES
        if len(line.targets) == 1 and line.policy is None
    ]
    every = {_named(*values) for values in product([None, "a", "b", "c"], repeat=3)}
    assert len(told) == len(set(told))
    assert set(told) == every


def test_every_policy_has_lines_for_all_sorts_of_conflicts() -> None:
    of_two = [(line.policy, line.source.value, line.targets[0].value) for line in LINES if len(line.targets) == 1]
    for policy in (ConflictPolicy.NEWEST, ConflictPolicy.SOURCE, ConflictPolicy.TARGET):
        sorts = {(source is None, target is None) for each, source, target in of_two if each is policy}
        assert sorts == {(False, False), (True, False), (False, True)}
    assert {line.policy for line in LINES if len(line.targets) == 2} == {None, *ConflictPolicy}


def _named(*values: str | None) -> tuple[int, ...]:
    """Values by the order in which they first appear; 0: nothing."""
    order: list[str] = []
    for value in values:
        if value is not None and value not in order:
            order.append(value)
    return tuple(0 if value is None else 1 + order.index(value) for value in values)


# --- what holds for all ------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([None, "a", "b", "c", "d"])
RESOLUTIONS = st.sampled_from([None, timedelta(0), timedelta(seconds=1)])
POLICIES = st.sampled_from(ConflictPolicy)


@st.composite
def sides(draw: st.DrawFn, *, moved: bool = True) -> list[Side]:
    """The source, and up to four targets."""
    ids = [SOURCE_SIDE, *(f"t{number}" for number in range(draw(st.integers(1, 4))))]

    def side(each: str) -> Side:
        return Side(
            each,
            draw(VALUES),
            None if each == SOURCE_SIDE else draw(VALUES),
            draw(st.none() | st.integers(0, 200).map(lambda seconds: START + timedelta(seconds=seconds))),
            draw(RESOLUTIONS),
            moved=draw(st.booleans()) if moved else False,
            again=draw(st.booleans()) if moved else False,
            seen=draw(st.booleans()) if moved else True,
        )

    return [side(each) for each in ids]


TAKES = st.sampled_from([None, SOURCE_SIDE, "t0", "t1", "gone"])


def settled(all_sides: Sequence[Side], merged: Merge) -> list[Side]:
    """All sides, once it has been carried out and noted."""
    value = merged.value if merged.verdict is not Verdict.SAME else all_sides[0].value
    return [replace(side, value=value, base=value, moved=False) for side in all_sides]


@given(sides(), POLICIES, TAKES, st.randoms())
def test_the_order_of_targets_makes_no_difference(
    found: list[Side], policy: ConflictPolicy, take: str | None, random: object
) -> None:
    source, targets = found[0], found[1:]
    other = targets[::-1]
    one, two = merge(source, targets, policy, take), merge(source, other, policy, take)
    assert (one.verdict, one.value, set(one.contested)) == (two.verdict, two.value, set(two.contested))


@given(sides(), POLICIES, TAKES)
def test_only_what_somebody_holds_is_carried(found: list[Side], policy: ConflictPolicy, take: str | None) -> None:
    merged = merge(found[0], found[1:], policy, take)
    if merged.verdict in (Verdict.CARRY, Verdict.NOTE):
        winner = next(side for side in found if side.id == merged.winner)
        assert winner.value == merged.value
    else:
        assert (merged.winner, merged.value) == (None, None)


@given(sides(), POLICIES, TAKES)
def test_a_verdict_says_whether_sides_differ(found: list[Side], policy: ConflictPolicy, take: str | None) -> None:
    merged = merge(found[0], found[1:], policy, take)
    alike = len({side.value for side in found}) == 1
    assert (merged.verdict in (Verdict.SAME, Verdict.NOTE)) is alike
    agreed = all(side.base == found[0].value for side in found[1:])
    assert (merged.verdict is Verdict.SAME) is (alike and agreed)


@given(sides(), POLICIES, TAKES)
def test_a_second_look_finds_nothing_to_do(found: list[Side], policy: ConflictPolicy, take: str | None) -> None:
    merged = merge(found[0], found[1:], policy, take)
    assume(merged.verdict is not Verdict.CONFLICT)
    after = settled(found, merged)
    assert merge(after[0], after[1:], policy, take).verdict is Verdict.SAME


@given(sides(), POLICIES, st.data())
def test_carrying_may_stop_anywhere_behind_the_source(
    found: list[Side], policy: ConflictPolicy, data: st.DataObject
) -> None:
    """The source is given the value first, then the targets in any order, noted or not: a new look ends in that value."""
    merged = merge(found[0], found[1:], policy)
    assume(merged.verdict is Verdict.CARRY and not merged.contested)
    after = [replace(found[0], value=merged.value, moved=False)]
    for target in found[1:]:
        has_it = target.value == merged.value or data.draw(st.booleans())
        base = merged.value if has_it and data.draw(st.booleans()) else target.base
        after.append(replace(target, value=merged.value if has_it else target.value, base=base, moved=False))
    again = merge(after[0], after[1:], policy)
    assert again.verdict is Verdict.SAME or again.value == merged.value
    assert (again.verdict is Verdict.CARRY) is any(side.value != merged.value for side in after)


@given(VALUES, VALUES, st.integers(1, 4), st.integers(0, 4), POLICIES)
def test_what_only_one_side_changed_wins(
    before: str | None, now: str | None, targets: int, who: int, policy: ConflictPolicy
) -> None:
    assume(before != now and who <= targets)
    found = [Side(SOURCE_SIDE, before), *(Side(f"t{number}", before, before) for number in range(targets))]
    found[who] = replace(found[who], value=now)
    merged = merge(found[0], found[1:], policy)
    assert (merged.verdict, merged.winner, merged.value) == (Verdict.CARRY, found[who].id, now)
    assert merged.contested == ()


@given(sides())
def test_newest_never_gives_a_changed_value_up_for_a_deletion(found: list[Side]) -> None:
    merged = merge(found[0], found[1:], ConflictPolicy.NEWEST)
    if merged.deletes:
        assert merged.contested == ()
        assert not any(side.value is not None and side.changed for side in found[1:])


@given(sides(), POLICIES)
def test_a_decision_by_hand_holds_unless_another_side_moved(found: list[Side], policy: ConflictPolicy) -> None:
    still = [replace(side, moved=False, seen=True) for side in found]
    conflict = merge(still[0], still[1:], ConflictPolicy.MANUAL)
    assume(conflict.verdict is Verdict.CONFLICT)
    for side in still:
        merged = merge(still[0], still[1:], policy, side.id)
        assert (merged.verdict, merged.winner, merged.value) == (Verdict.CARRY, side.id, side.value)
        for other in still:
            if other.id not in conflict.contested or other.value == side.value:
                continue
            moved = [replace(each, moved=each.id == other.id) for each in still]
            lapsed = merge(moved[0], moved[1:], policy, side.id)
            assert lapsed == merge(moved[0], moved[1:], policy)


@given(sides(), POLICIES, st.data())
def test_what_is_settled_is_not_settled_otherwise_while_it_is_carried(
    found: list[Side], policy: ConflictPolicy, data: st.DataObject
) -> None:
    """The source and some targets have been given the value, and say that they moved; others could not be written."""
    still = [replace(side, moved=False, seen=True) for side in found]
    merged = merge(still[0], still[1:], policy)
    assume(merged.verdict is Verdict.CARRY and merged.contested)
    after = [replace(still[0], value=merged.value, moved=still[0].value != merged.value)]
    for target in still[1:]:
        given = target.value == merged.value or data.draw(st.booleans())
        moved = given and target.value != merged.value
        after.append(replace(target, value=merged.value, base=merged.value, moved=moved) if given else target)
    again = merge(after[0], after[1:], policy, begun=merged.winner)
    assert again.value == merged.value or again.verdict is Verdict.SAME


@given(sides(), POLICIES)
def test_a_side_that_was_taken_and_does_not_answer_is_waited_for(found: list[Side], policy: ConflictPolicy) -> None:
    still = [replace(side, moved=False, seen=True) for side in found]
    merged = merge(still[0], still[1:], policy, "away")
    if merged.contested:
        assert merged.verdict is Verdict.CONFLICT
        assert "away was taken by hand" in merged.reason


# All in milliseconds: nothing is lost in adding them.
HALF = SKEW // timedelta(milliseconds=2)
OFFSETS = st.integers(-HALF, HALF)
"""How wrong a clock is, so that two are never further apart than SKEW."""
GRAINS = st.sampled_from([0, 1_000, 60_000])


def _shown(at: int, offset: int, grain: int) -> tuple[datetime, timedelta]:
    """What a vault tells of a write at `at`: its clock's time, cut to whole grains."""
    shown = at + offset
    shown = shown // grain * grain if grain else shown
    return START + timedelta(milliseconds=shown), timedelta(milliseconds=grain)


@st.composite
def written(draw: st.DrawFn) -> tuple[list[Side], dict[str, int]]:
    """Sides that were all written at some true time, by clocks that are wrong by up to a minute between them."""
    count = draw(st.integers(1, 4))
    values = draw(st.permutations(["b", "c", "d", "e", "f"]))
    true: dict[str, int] = {}
    found: list[Side] = []
    for number, each in enumerate([SOURCE_SIDE, *(f"t{at}" for at in range(count))]):
        at = true[values[number]] = draw(st.integers(0, 300_000))
        base = None if number == 0 else "a"
        found.append(Side(each, values[number], base, *_shown(at, draw(OFFSETS), draw(GRAINS))))
    return found, true


@given(written())
def test_clocks_that_differ_by_a_minute_never_flip_a_decision(case: tuple[list[Side], dict[str, int]]) -> None:
    found, true = case
    merged = merge(found[0], found[1:], ConflictPolicy.NEWEST)
    if merged.verdict is Verdict.CARRY:
        assert merged.value is not None
        assert true[merged.value] == max(true.values())
    ages = sorted(true.values())
    coarsest = max(side.resolution for side in found if side.resolution is not None)
    if timedelta(milliseconds=ages[-1] - ages[-2]) > 2 * SKEW + 2 * coarsest:
        assert merged.verdict is Verdict.CARRY, "what is far apart can be told"


@given(written(), st.integers(0, 3_000_000), OFFSETS, GRAINS)
def test_a_value_that_was_carried_is_as_old_as_where_it_is_the_oldest(
    case: tuple[list[Side], dict[str, int]], later: int, offset: int, grain: int
) -> None:
    """One target's value was carried to the source, later: when that was says nothing."""
    found, true = case
    assume(len(found) >= 3)
    first = found[1]
    assert first.value is not None
    moment, coarse = _shown(true[first.value] + later, offset, grain)
    source = replace(found[0], value=first.value, changed_at=moment, resolution=coarse)
    agreed = replace(first, base=first.value)
    merged = merge(source, [agreed, *found[2:]], ConflictPolicy.NEWEST)
    if merged.verdict is Verdict.CARRY:
        mine = {value: moment for value, moment in true.items() if value != found[0].value}
        assert merged.value is not None
        assert mine[merged.value] == max(mine.values())


def test_what_a_target_missed_does_not_make_a_value_old() -> None:
    """South holds a for a year and did not hear of b. North was put back to a just now: that is new."""
    year, now = START - timedelta(days=365), START
    exact = timedelta(0)
    source = Side(SOURCE_SIDE, "b", None, now - timedelta(hours=2), exact)
    south = Side("south", "a", "a", year, exact)
    north = Side("north", "a", "b", now, exact)
    east = Side("east", "c", "b", now - timedelta(hours=1), exact)
    merged = merge(source, [south, north, east], ConflictPolicy.NEWEST)
    assert (merged.verdict, merged.value) == (Verdict.CARRY, "a")


def test_the_newest_is_newer_than_all_others_and_not_only_than_the_next() -> None:
    """South tells coarse times: its value may be younger than north's, and as young as the source's."""
    exact = timedelta(0)
    source = Side(SOURCE_SIDE, "b", None, START + timedelta(seconds=165), exact)
    north = Side("north", "c", "a", START + timedelta(seconds=100), exact)
    south = Side("south", "d", "a", START, timedelta(seconds=150))
    assert merge(source, [north, south], ConflictPolicy.NEWEST).verdict is Verdict.CONFLICT
    precise = replace(south, resolution=exact)
    assert merge(source, [north, precise], ConflictPolicy.NEWEST).value == "b"
