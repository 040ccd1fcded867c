"""How the store's records become Table Storage entities: keys, pieces of long text, transactions within the limits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.histories.tables import MAX_BYTES, after, batches, key, pack, size, unpack

FORBIDDEN = re.compile(r"[/\\#?\x00-\x1f\x7f-\x9f]")
text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text)
def test_a_key_holds_nothing_that_the_service_refuses(value: str) -> None:
    assert not FORBIDDEN.search(key(value))
    assert "|" not in key(value)
    assert "" < key(value) < after("|")
    assert len(key(value)) <= 200


@given(text, text)
def test_two_texts_have_two_keys(one: str, two: str) -> None:
    assert (key(one) == key(two)) == (one == two)


@given(text, text)
def test_a_range_is_all_keys_with_its_prefix(one: str, two: str) -> None:
    prefix = f"o|{key(one)}|"
    row = f"o|{key(two)}|{'0' * 40}"
    assert (prefix <= row < after(prefix)) == row.startswith(prefix)


@pytest.mark.parametrize(
    "value",
    ["", "plain", "x" * 500_000, "秘" * 40_000, "🔑" * 20_000, "".join(chr(33 + n % 12_000) for n in range(60_000))],
)
def test_long_text_comes_back_and_each_property_is_within_the_limit(value: str) -> None:
    entity = pack({"text": value, "none": None, "number": 3})
    assert unpack(entity, ["text", "none", "number"]) == {"text": value, "none": None, "number": 3}
    for one in entity.values():
        if isinstance(one, bytes):
            assert len(one) <= 65_536
        elif isinstance(one, str):
            assert len(one.encode("utf-16-le")) <= 65_536
    assert size(entity) < 1_048_576


def test_transactions_hold_at_most_a_hundred_operations_and_tear_no_group() -> None:
    groups = [(n, [("create", {"RowKey": f"{n}-{m}"}) for m in range(1 + n % 3)]) for n in range(200)]
    packed = batches(groups)
    assert [item for batch in packed for item in batch] == groups
    assert max(sum(len(operations) for _, operations in batch) for batch in packed) in (99, 100)


def test_transactions_stay_below_the_largest_body() -> None:
    groups = [(n, [("create", {"data": b"x" * 60_000})]) for n in range(40)]
    for batch in batches(groups):
        assert sum(size(operation[1]) for _, operations in batch for operation in operations) <= MAX_BYTES
    assert batches([]) == []
