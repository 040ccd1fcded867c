"""Numbers are carried exactly or refused."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.vault_json import loads, plain, through_float64
from shared.errors import InvalidSecret
from shared.numbers import InexactNumber
from shared.vaults.hashicorp.adapter import decode, encode
from shared.vaults.hashicorp.numbers import exact_number, survives


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.1", 0.1), ("1.50", 1.5), ("1.0", 1), ("-0.0", 0), ("1e2", 100), ("1e+21", 1e21), ("1.5e-7", 1.5e-7)],
)
def test_a_number_that_a_float_holds_is_that_number(text: str, number: float) -> None:
    assert exact_number(text) == number
    assert type(exact_number(text)) is type(number)


@pytest.mark.parametrize(
    "text", ["1e400", "-1e309", "1e-400", "0.1000000000000000055511151231257827", "1.00000000000000001"]
)
def test_a_number_that_a_float_would_change_is_refused(text: str) -> None:
    with pytest.raises(InexactNumber):
        exact_number(text)
    with pytest.raises(InvalidSecret, match="can not be carried exactly") as caught:
        decode(f'{{"data": {{"a": {text}}}}}'.encode(), "hub")
    assert text not in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "9" * 5000])
def test_what_python_would_read_but_json_or_python_can_not_hold_is_refused(text: str) -> None:
    with pytest.raises(InvalidSecret, match="can not be carried exactly"):
        decode(f'{{"data": {text}}}'.encode(), "hub")


@given(st.integers(-(10**25), 10**25) | st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_let_through_to_kv_v2_comes_back_as_itself(number: float) -> None:
    if not survives({"a": [number]}, as_float64=True):
        assert isinstance(number, int)
        return
    stored = json.dumps(plain(through_float64(loads(encode(number, "hub")))))
    back = decode(f'{{"a": {stored}}}'.encode(), "hub")["a"]
    assert Decimal(repr(back)) == Decimal(repr(number))


@given(st.integers(-(2**53), 2**53))
def test_integers_of_up_to_53_bits_are_never_refused(number: int) -> None:
    assert survives(number, as_float64=True)


def test_kv_v1_keeps_long_integers_but_none_past_a_float() -> None:
    assert survives({"a": 2**64 + 1}, as_float64=False)
    assert not survives({"a": [{"b": 10**400}]}, as_float64=False)
    assert not survives({"a": 2**64 + 1}, as_float64=True)
    assert survives({"a": True, "b": None, "c": "12345678901234567890"}, as_float64=True)
