"""How a vault that holds one string a secret stores a secret's fields.

A lone string field called `value` is stored raw, so that other programs read what they expect. Everything else becomes
canonical JSON under a content type of our own, and only what carries that mark is ever taken apart again: a foreign
value that merely looks like JSON stays the string that it is.
"""

from __future__ import annotations

import json
from typing import NoReturn

from shared.errors import InvalidSecret
from shared.model import Fields, canonical_json

CONTENT_TYPE = "application/vnd.vaultferry+json"
"""The mark. Never change it: it stands beside values in other people's vaults."""


def pack(fields: Fields) -> tuple[str, str | None]:
    """The text to store and the content type to mark it with; None: raw, the content type is the secret's own.

    Raises InvalidSecret for what JSON can not hold (NaN, bytes, keys that are no strings). The caller, which knows the
    vault and the secret, fills in where.
    """
    lone = fields.get("value")
    if len(fields) == 1 and isinstance(lone, str):
        return lone, None
    return to_json(fields), CONTENT_TYPE


def to_json(fields: Fields) -> str:
    """Fields as canonical JSON. Raises InvalidSecret for what JSON can not hold and bring back as it was."""
    text: str | None
    try:
        text = canonical_json(fields) if _keys_are_text(fields) else None
    except (ValueError, TypeError, RecursionError):
        text = None
    # Raised out here so that nothing is chained to an error that could quote a value.
    if text is None:
        raise InvalidSecret("a field holds something that JSON can not express")
    return text


def unpack(text: str, content_type: str | None) -> Fields:
    """The fields that `pack` was given, or one field `value` where the text does not carry our mark.

    Raises InvalidSecret, without quoting the text, where it is marked but no JSON object.
    """
    if content_type != CONTENT_TYPE:
        return {"value": text}
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidSecret(f"its content type is {CONTENT_TYPE}, but its value is not a JSON object")
    return fields


def _keys_are_text(value: object) -> bool:
    # json.dumps would silently turn the keys 1, True and None into strings: another secret than the one given.
    if isinstance(value, dict):
        return all(isinstance(key, str) and _keys_are_text(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(_keys_are_text(each) for each in value)
    return True


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
