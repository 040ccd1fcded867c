"""Templates of requests: what `{name}` and its like stand for in paths, queries, headers and bodies.

Nothing is ever inserted into a finished text that means something: a path gets each value percent-encoded, a JSON body
is a structure into which values are put, a form is encoded afterwards. Values never go into addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from shared.errors import InvalidSecret

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+(?::[^{}]*)?)(\|[a-z]*)?\}")

LOCATORS = {
    "name": "the secret's whole name",
    "folder": "its name up to the last '/', without that",
    "base": "its name behind the last '/'",
    "id": "what the listing's `id` says of it",
}
LISTING = {"prefix": "the prefix that is listed"}
VALUES = {
    "value": "the secret as one text",
    "content_type": "what the text is, or null",
    "fields": "all fields, as an object",
    "field:NAME": "one field",
    "field": "a field's name, and",
    "field_value": "its value: an element of a list that mentions them is repeated for each field",
}
REPEATED = frozenset({"field", "field_value"})
# What a path's literal part may hold as it is: https://www.rfc-editor.org/rfc/rfc3986#section-3.3
_LITERAL = "/%:@!$&'()*+,;=~-._"


def placeholders(template: Any) -> Iterator[str]:
    """Every placeholder in a text, or in the keys and texts of a structure, without its braces."""
    if isinstance(template, str):
        for match in _PLACEHOLDER.finditer(template):
            yield match[1] + (match[2] or "")
    elif isinstance(template, Mapping):
        for key, value in template.items():
            yield from placeholders(key)
            yield from placeholders(value)
    elif isinstance(template, list):
        for item in template:
            yield from placeholders(item)


def wrong_placeholder(template: Any, known: Mapping[str, str], *, in_path: bool = False) -> str | None:
    """What is wrong with a template's placeholders, without repeating them; None: nothing."""
    for found in placeholders(template):
        word, bar, modifier = found.partition("|")
        if bar and (modifier != "path" or not in_path):
            return "behind a '|' there can be 'path' only, and that in a path: it keeps the slashes"
        if word.startswith("field:") and "field:NAME" in known and len(word) > len("field:"):
            continue
        if word not in known:
            listed = ", ".join(f"{{{each}}}" for each in known)
            return f"a placeholder that is not known here; known: {listed or 'none'}"
    if in_path and re.search("[{}]", _PLACEHOLDER.sub("", template)):
        return "a brace that belongs to no placeholder: they are written as {name}"
    return None


def path(template: str, values: Mapping[str, str]) -> str:
    """A path with each value encoded whole. Raises InvalidSecret where a segment would lead elsewhere."""

    def insert(match: re.Match[str]) -> str:
        return quote(values[match[1]], safe="/" if match[2] else "")

    pieces: list[str] = []
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        pieces += [quote(template[end : match.start()], safe=_LITERAL), insert(match)]
        end = match.end()
    pieces.append(quote(template[end:], safe=_LITERAL))
    made = "".join(pieces)
    if any(segment in (".", "..") for segment in made.split("/")):
        raise InvalidSecret("no path can be made of this name: it would lead elsewhere")
    return made


def text(template: str, values: Mapping[str, Any]) -> str:
    """A text with values in it. Raises InvalidSecret for a value that is no text, or is not there."""

    def insert(match: re.Match[str]) -> str:
        value = _value(match[1], values)
        if value is None and match[1] == "content_type":
            return ""
        if not isinstance(value, str):
            raise InvalidSecret("a field holds something that is not text, which this API's template can not carry")
        return value

    return _PLACEHOLDER.sub(insert, template)


def structure(template: Any, values: Mapping[str, Any]) -> Any:
    """A JSON body. A text that is one placeholder becomes the value itself. Raises InvalidSecret as `text`."""
    if isinstance(template, str):
        whole = _PLACEHOLDER.fullmatch(template)
        return _value(whole[1], values) if whole else text(template, values)
    if isinstance(template, Mapping):
        return keyed((text(key, values), structure(value, values)) for key, value in template.items())
    if isinstance(template, list):
        made = []
        for item in template:
            if REPEATED & set(placeholders(item)):
                made += [
                    structure(item, {**values, "field": field, "field_value": value})
                    for field, value in values["fields"].items()
                ]
            else:
                made.append(structure(item, values))
        return made
    return template


def keyed(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Keys and values of a request. Raises InvalidSecret where a name makes one key of two."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise InvalidSecret("its name is that of another key of this API's request")
        made[key] = value
    return made


def _value(word: str, values: Mapping[str, Any]) -> Any:
    if not word.startswith("field:"):
        return values[word]
    name = word.removeprefix("field:")
    if name not in values["fields"]:
        raise InvalidSecret(f"it has no field {name!r}, which this API needs")
    return values["fields"][name]


def locators(name: str) -> dict[str, str]:
    """What a secret's name gives to templates."""
    folder, _, base = name.rpartition("/")
    return {"name": name, "folder": folder, "base": base}
