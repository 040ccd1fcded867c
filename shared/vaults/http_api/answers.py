"""Answers taken apart: what the configured JMESPath expressions find in them. No message here ever quotes one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from shared.errors import InvalidSecret, Unavailable, Unsupported, VaultError

_SHOWN = re.compile(r"[A-Za-z_$@][A-Za-z0-9_.$@-]{0,39}")
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+")


class Unmapped(Unsupported):
    """The API answered, and not as the configuration says that it does."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A success: its body (parsed where JSON was expected) and the headers that count."""

    body: Any
    etag: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """What a listing says about one secret."""

    name: str
    id: str | None
    version: str | None
    updated_at: datetime | None
    wanted: bool
    """False for one that `where` leaves out: it still counts as part of its page."""


def parse(content: bytes) -> Any:
    """JSON. Raises Unavailable where it is none, InvalidSecret for what Python can not hold."""
    failure: InvalidSecret | Unavailable
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_no_constant)
    except (json.JSONDecodeError, UnicodeDecodeError):
        failure = Unavailable("the answer is not JSON, or was cut short: check base_url, and the proxies on the way")
        failure.ambiguous = True
    except RecursionError:
        failure = InvalidSecret("the answer is nested too deeply to be carried")
    except ValueError:
        failure = InvalidSecret("the answer holds a number that can not be carried")
    raise failure


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("too large")
    return number


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@cache
def _compiled(expression: str) -> Any:
    import jmespath

    return jmespath.compile(expression)


def find(expression: str | None, body: Any) -> Any:
    """What an expression finds, None for nothing. Raises Unmapped where it does not fit what is there."""
    if expression is None:
        return None
    from jmespath.exceptions import JMESPathError

    try:
        return _compiled(expression).search(body)
    except (JMESPathError, RecursionError, ValueError, TypeError, AttributeError):
        pass
    # Out here: what jmespath raises quotes the data.
    raise Unmapped("a JMESPath function does not fit what the answer holds")


def truthy(expression: str | None, body: Any) -> bool:
    """As JMESPath has it: false, null and what is empty are not."""
    found = find(expression, body)
    return found is not None and found is not False and found not in ("", [], {})


def says(expression: str | None, content: bytes) -> bool:
    """Whether an expression finds something in an answer that need not be JSON; one that is none says nothing."""
    if expression is None:
        return False
    try:
        return truthy(expression, parse(content))
    except VaultError:
        return False


def keys_of(body: Any) -> str:
    """What stands in an answer, for messages: names of keys, never values. A key that may be a value is left out."""
    if isinstance(body, Mapping):
        shown = [key for key in body if _SHOWN.fullmatch(key)][:12]
        hidden = len(body) - len(shown)
        listed = ", ".join(shown) + (f" and {hidden} more" if hidden and shown else "")
        return f"keys and values: {listed}" if shown else f"{len(body)} keys"
    if isinstance(body, list):
        return f"a list of {len(body)}" + (f", the first with {keys_of(body[0])}" if body and body[0] else "")
    return {str: "a text", bool: "true or false", type(None): "null"}.get(type(body), "a number")


def items(listing: Any, body: Any, folder: str = "") -> Iterator[Item]:
    """The secrets in one page of a listing (settings.Listing). Raises Unmapped where there is no list."""
    found = find(listing.items, body)
    pairs: list[tuple[str | None, Any]]
    if isinstance(found, Mapping):
        pairs = list(found.items())
    elif isinstance(found, list):
        pairs = [(None, item) for item in found]
    else:
        raise Unmapped(f"`list.items` finds no list in the answer, which is {keys_of(body)}")
    for key, item in pairs:
        name = find(listing.name, item) if listing.name or key is None else key
        if listing.name is None and key is None:
            name = item
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name:
            raise Unmapped(f"`list.name` finds no name in an item, which is {keys_of(item)}")
        if listing.name_pattern is not None:
            match = re.search(listing.name_pattern, name)
            if match is None or not match[1]:
                raise Unmapped("`list.name_pattern` finds nothing in what `list.name` found")
            name = match[1]
        within = find(listing.folder, item)
        if within is not None and not isinstance(within, str):
            raise Unmapped(f"`list.folder` finds no text in an item, which is {keys_of(item)}")
        parent = f"{within.strip('/')}/" if within and within.strip("/") else folder
        identity = scalar(find(listing.id, item))
        if listing.id is not None and identity is None:
            raise Unmapped(f"`list.id` finds nothing in an item, which is {keys_of(item)}")
        yield Item(
            parent + name,
            identity,
            scalar(find(listing.version, item)),
            moment(find(listing.updated_at, item)),
            listing.where is None or truthy(listing.where, item),
        )


def scalar(found: Any) -> str | None:
    """A version, an id or a cursor as text; None: there is none that could be sent or kept."""
    if isinstance(found, str):
        return found if found and sendable(found) else None
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def sendable(text: str) -> bool:
    """Whether it holds no half of a character: JSON can, and nothing else."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def moment(found: Any) -> datetime | None:
    """A time, or None for none and for what is none."""
    try:
        if isinstance(found, str):
            time = datetime.fromisoformat(found)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            # https://262.ecma-international.org/#sec-time-values: clocks of JavaScript count milliseconds.
            return datetime.fromtimestamp(found / 1000 if found > 1e11 else found, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def one_text(getting: Any, body: Any) -> tuple[str, str | None]:
    """The value and its content type (settings.Getting). Raises Unmapped where there is no text."""
    found = body if getting.answer == "text" else find(getting.value, body)
    if not isinstance(found, str):
        raise Unmapped(f"`get.value` finds no text in the answer, which is {keys_of(body)}")
    kind = find(getting.content_type, body)
    return found, kind if isinstance(kind, str) and _MEDIA_TYPE.fullmatch(kind) else None


def fields(getting: Any, body: Any, ours: Mapping[str, str], named: Sequence[str] = ()) -> dict[str, Any]:
    """The fields under our names (settings.Getting). `named`: those that there can be; null is then "not there".

    Raises Unmapped where there are none, InvalidSecret where two have one name.
    """
    found = find(getting.fields, body)
    pairs: list[tuple[Any, Any]]
    if isinstance(found, Mapping):
        pairs = list(found.items())
    elif isinstance(found, list) and all(
        isinstance(each, Mapping) and {"name", "value"} <= each.keys() for each in found
    ):
        pairs = [(each["name"], each["value"]) for each in found]
    else:
        raise Unmapped(f"`get.fields` finds no fields in the answer, which is {keys_of(body)}")
    if named:
        pairs = [(key, value) for key, value in pairs if value is not None]
    made: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise Unmapped(f"`get.fields` finds a field without a name in the answer, which is {keys_of(body)}")
        field = ours.get(key, key)
        if field in made:
            # Of other names nobody knows whether a mapping the wrong way round has not made them of values.
            called = f"called {field!r}" if field in ours.values() else "of one name"
            raise InvalidSecret(f"it has two fields {called}: rename one of them there")
        made[field] = value
    return made
