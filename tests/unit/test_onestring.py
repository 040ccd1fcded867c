"""Fields in a vault that holds one string a secret."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.onestring import CONTENT_TYPE, pack, unpack

CANARY = "canary-8d1f"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text() | st.just("value"), json_values, max_size=4))
def test_fields_come_back_as_they_went(fields: dict[str, Any]) -> None:
    back = unpack(*pack(fields))
    assert back == fields
    assert json.dumps(back, sort_keys=True) == json.dumps(fields, sort_keys=True), "1, 1.0 and True are not the same"


@pytest.mark.parametrize("text", ["", "plain", '{"a": 1}', "null", "\n", f'{{"content_type": "{CONTENT_TYPE}"}}'])
def test_a_lone_string_called_value_is_stored_raw(text: str) -> None:
    assert pack({"value": text}) == (text, None)
    for content_type in (None, "text/plain", "application/json", CONTENT_TYPE.upper()):
        assert unpack(text, content_type) == {"value": text}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "{}"),
        ({"value": 5}, '{"value":5}'),
        ({"value": None}, '{"value":null}'),
        ({"password": "x"}, '{"password":"x"}'),
        ({"value": "x", "a": "ä"}, '{"a":"ä","value":"x"}'),
    ],
)
def test_everything_else_is_marked_canonical_json(fields: dict[str, Any], text: str) -> None:
    assert pack(fields) == (text, CONTENT_TYPE)


def _deep() -> list[Any]:
    inner: list[Any] = []
    for _ in range(100_000):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "fields",
    [
        {"a": float("nan"), "b": CANARY},
        {"a": CANARY.encode()},
        {"a": {1: CANARY}},
        {"a": [{"b": {None: CANARY}}]},
        {"a": {CANARY}},
        {"a": _deep()},
    ],
    ids=["nan", "bytes", "key", "inner key", "set", "deep"],
)
def test_what_json_can_not_hold_is_refused_without_being_quoted(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSecret) as refused:
        pack(fields)
    assert CANARY not in "".join(traceback.format_exception(refused.value))
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f'"{CANARY}"',
        f'["{CANARY}"]',
        f'{{"a": "{CANARY}"',
        f'{{"a": NaN, "b": "{CANARY}"}}',
        "",
        "null",
        "[" * 100_000,
    ],
    ids=["word", "string", "list", "cut", "nan", "empty", "null", "deep"],
)
def test_a_marked_text_that_is_no_object_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(InvalidSecret, match="not a JSON object") as refused:
        unpack(text, CONTENT_TYPE)
    assert CANARY not in "".join(traceback.format_exception(refused.value))
    assert refused.value.__context__ is None
