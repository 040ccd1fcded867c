"""Which numbers can be carried exactly.

JSON numbers have no bounds, Python's floats do, and KV v2 sends every number of a value through a 64-bit float (seen on
Vault 1.21: 9007199254740993 comes back as 9007199254740992, 1.0 as 1, 1e22 as 1e+22; KV v1 keeps the text). So a number
is the same after its journey, or the secret is refused; and a number without a fraction is always an int, so that it
compares equal whatever engine it was in.
"""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import Any


class InexactNumber(ValueError):
    """A number that would not be the same at the other end. Says nothing about which."""


def exact_number(text: str) -> int | float:
    """What a JSON number with a fraction or an exponent stands for. Raises InexactNumber."""
    value = float(text)
    if not isfinite(value):
        raise InexactNumber
    shortest = repr(value)
    if shortest != text and Decimal(shortest) != Decimal(text):
        raise InexactNumber
    return int(Decimal(shortest)) if value.is_integer() else value


def no_number(_text: str) -> float:
    """For NaN and the infinities, which are not JSON."""
    raise InexactNumber


def survives_float64(value: Any) -> bool:
    """Whether every integer in a JSON value comes back from a 64-bit float as itself, as KV v2 stores them."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        if -(2**53) <= value <= 2**53:
            return True
        try:
            return int(Decimal(repr(float(value)))) == value
        except OverflowError:
            return False
    if isinstance(value, dict):
        return all(survives_float64(each) for each in value.values())
    if isinstance(value, list | tuple):
        return all(survives_float64(each) for each in value)
    return True
