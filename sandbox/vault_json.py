"""JSON as Vault reads and writes it: numbers keep the text they came with, and the limits of 1.21 are enforced."""

import json
import math
import re
from decimal import Decimal
from typing import Any

# The listener's defaults, https://developer.hashicorp.com/vault/docs/configuration/listener/tcp
MAX_DEPTH = 300
MAX_STRING_BYTES = 1024 * 1024
MAX_ENTRIES = 10_000

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Number(str):
    """A JSON number as it was written: `1.10` is not `1.1`."""

    __slots__ = ()


class Float(Number):
    """A number that went through a Go float64 and was written anew."""

    __slots__ = ()


class BadJSON(ValueError):
    """What Vault answers when a body is not JSON, or too much of it."""


def loads(text: bytes) -> Any:
    """The value, with `Number` for each number. Raises BadJSON with a message of Vault's kind."""
    try:
        value = json.loads(
            text.decode("utf-8", "replace"),
            parse_int=_number,
            parse_float=_number,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise BadJSON("JSON input exceeds allowed nesting depth") from None
    except json.JSONDecodeError as error:
        # Vault's words differ from fault to fault, and the body may hold a secret: neither is worth quoting.
        raise BadJSON(f"malformed JSON at offset {error.pos}") from None
    _check(value, 0)
    return value


def dumps(value: Any) -> str:
    """Compact JSON; a `Number` is written as it stands."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{dumps(each)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """The value with Python's own numbers, for tests to compare with."""
    return json.loads(dumps(value))


def number(value: Any) -> int | None:
    """An integer sent as a number or as a string of one, as Vault's fields take it."""
    try:
        return int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    except ValueError:
        return None


def through_float64(value: Any) -> Any:
    """What KV v2 makes of the numbers in a value: observed on Vault 1.21, it writes `1.10` back as `1.1` and
    123456789012345678901 as 123456789012345680000. KV v1 leaves them alone."""
    if isinstance(value, Number):
        return _go_float(float(value))
    if isinstance(value, dict):
        return {key: through_float64(each) for key, each in value.items()}
    if isinstance(value, list):
        return [through_float64(each) for each in value]
    return value


def _go_float(value: float) -> Float:
    """As encoding/json prints a float64: shortest digits, an exponent only below 1e-6 and from 1e21 on."""
    if value == 0:
        return Float("-0" if math.copysign(1, value) < 0 else "0")
    if 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return Float(text.rstrip("0").rstrip(".") if "." in text else text)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    mantissa = "".join(map(str, digits))
    power = int(exponent) + len(mantissa) - 1
    fraction = "." + mantissa[1:] if len(mantissa) > 1 else ""
    return Float(
        f"{'-' if sign else ''}{mantissa[0]}{fraction}e{'+' if power > 0 else '-'}{abs(power):02d}".replace("e-0", "e-")
    )


def _number(text: str) -> Number:
    if math.isinf(float(text)):
        raise BadJSON("malformed JSON, invalid number syntax")
    return Number(text)


def _constant(text: str) -> Any:
    raise BadJSON(f"invalid character '{text.lstrip('-')[0]}' looking for beginning of value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise BadJSON("duplicate key in object")
    return members


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadJSON("JSON input exceeds allowed nesting depth")
    if isinstance(value, str):
        if len(value) > MAX_STRING_BYTES // 4 and len(value.encode("utf-8", "replace")) > MAX_STRING_BYTES:
            raise BadJSON("JSON string value exceeds allowed length")
        if _LONE_SURROGATE.search(value):
            raise BadJSON("malformed JSON, unterminated surrogate pair in string")
    elif isinstance(value, dict):
        if len(value) > MAX_ENTRIES:
            raise BadJSON("JSON object exceeds allowed entry count")
        for key, each in value.items():
            _check(key, depth)
            _check(each, depth + 1)
    elif isinstance(value, list):
        if len(value) > MAX_ENTRIES:
            raise BadJSON("JSON array exceeds allowed element count")
        for each in value:
            _check(each, depth + 1)
