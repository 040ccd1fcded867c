"""Which numbers a Vault gives back as they were.

KV v2 sends every number of a value through a 64-bit float (seen on Vault 1.21: 9007199254740993 comes back as
9007199254740992, 1.0 as 1, 10**21 as 1e+21); KV v1 keeps the text, but since 1.20 Vault takes no number that a float can
not hold. So a number is the same after its journey or the secret is refused, and below 1e21 a number without a fraction
is an int whatever it was written like, as KV v2 writes it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from shared.numbers import EXPONENT_FROM, exact_float

_EXACT = 2**53
"""Up to here each integer is a float."""


def exact_number(text: str) -> int | float:
    """What a JSON number with a fraction or an exponent stands for. Raises InexactNumber."""
    value = exact_float(text)
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < EXPONENT_FROM else value


def survives(value: Any, *, as_float64: bool) -> bool:
    """Whether Vault gives every integer of a JSON value back as it is: KV v2 (`as_float64`), or KV v1."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return True
        try:
            nearest = float(value)
        except OverflowError:
            return False
        return not as_float64 or (abs(value) < EXPONENT_FROM and int(Decimal(repr(nearest))) == value)
    if isinstance(value, dict):
        return all(survives(each, as_float64=as_float64) for each in value.values())
    if isinstance(value, list | tuple):
        return all(survives(each, as_float64=as_float64) for each in value)
    return True
