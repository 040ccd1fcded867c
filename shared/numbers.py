"""Which JSON numbers are carried exactly.

JSON's numbers have no bounds, and Python's floats do: what would be rounded on the way is refused, for nobody would notice.
"""

from __future__ import annotations

from decimal import Decimal
from math import isfinite

EXPONENT_FROM = 1e21
"""From here on Go writes a float with an exponent: https://pkg.go.dev/encoding/json#Marshal"""


class InexactNumber(ValueError):
    """A number that would not be the same at the other end. Says nothing about which."""


def exact_float(text: str) -> float:
    """What a JSON number with a fraction or an exponent stands for. Raises InexactNumber."""
    value = float(text)
    shortest = repr(value)
    if not isfinite(value) or (shortest != text and Decimal(shortest) != Decimal(text)):
        raise InexactNumber
    return value


def no_number(_text: str) -> float:
    """For NaN and the infinities, which are not JSON."""
    raise InexactNumber
