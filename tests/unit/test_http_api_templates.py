"""Requests are made of names and values that mean nothing to them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from shared.errors import InvalidSecret
from shared.vault import check_name
from shared.vaults.http_api import templates

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ["..", ".", "../../admin", "a/../b", "%2e%2e", "a%2Fb", "a?b=c", "a#b", "a;b", "//x", "\\..\\x", "a\nb", "{name}"]
)


def sent(path: str) -> str:
    """The path as it goes onto the wire."""
    return URL("https://api.example/v1" + path, encoded=True).raw_path_qs


@given(NAMES)
def test_a_name_is_one_segment_whatever_it_is(name: str) -> None:
    try:
        made = sent(templates.path("/secrets/{name}/versions", {"name": name}))
    except InvalidSecret:
        assert name in (".", "..")
        return
    segments = made.split("/")
    assert segments[:3] == ["", "v1", "secrets"]
    assert segments[4:] == ["versions"]
    assert unquote(segments[3]) == name
    assert "?" not in made


@given(NAMES)
def test_a_name_that_keeps_its_slashes_stays_below_its_place(name: str) -> None:
    try:
        check_name("legacy", name)
        made = sent(templates.path("/secrets/{name|path}", {"name": name}))
    except InvalidSecret:
        return
    assert made.startswith("/v1/secrets/")
    assert [unquote(segment) for segment in made.split("/")[3:]] == name.split("/")
    assert "?" not in made


VALUES = st.text(st.characters(exclude_categories=["Cs"]))


@given(VALUES, st.dictionaries(VALUES, VALUES))
def test_a_value_can_not_become_structure(value: str, fields: dict[str, str]) -> None:
    template: dict[str, Any] = {
        "a": "{value}",
        "b": ["x {value}", "{fields}"],
        "c": {"{name}": 1, "d": [{"{field}": "{field_value}"}]},
    }
    values = {"value": value, "fields": fields, "name": "{value}"}
    made = json.loads(json.dumps(templates.structure(template, values)))
    assert made == {
        "a": value,
        "b": [f"x {value}", fields],
        "c": {"{value}": 1, "d": [{field: each} for field, each in fields.items()]},
    }


def test_what_a_path_says_itself_is_encoded_around_its_placeholders_too() -> None:
    assert templates.path("/a b/{name}/č/%2F:{id}/z?", {"name": "x/y", "id": "1"}) == "/a%20b/x%2Fy/%C4%8D/%2F:1/z%3F"


@pytest.mark.parametrize("value", ["..", "."])
def test_no_value_leads_elsewhere(value: str) -> None:
    for template in ("/items/{id}", "/items/{id}/value", "/items/{id|path}"):
        with pytest.raises(InvalidSecret, match="lead elsewhere"):
            templates.path(template, {"id": value})
    assert templates.path("/items/x{id}", {"id": value}) == f"/items/x{value}"


def test_only_a_content_type_may_be_nothing_within_a_text() -> None:
    assert templates.text("a{content_type}b", {"content_type": None}) == "ab"
    with pytest.raises(InvalidSecret, match="not text"):
        templates.text("a{field:x}b", {"fields": {"x": None}})


def test_a_field_that_a_template_names_must_be_there_and_be_text_within_text() -> None:
    fields = {"fields": {"user": "ferry", "port": 1}}
    assert templates.structure({"u": "{field:user}", "p": "{field:port}"}, fields) == {"u": "ferry", "p": 1}
    with pytest.raises(InvalidSecret, match="no field 'password'"):
        templates.structure({"p": "{field:password}"}, fields)
    with pytest.raises(InvalidSecret, match="not text"):
        templates.text("port={field:port}", fields)


@pytest.mark.parametrize(("name", "folder", "base"), [("a/b/c", "a/b", "c"), ("c", "", "c")])
def test_a_name_has_a_folder_and_a_base(name: str, folder: str, base: str) -> None:
    assert templates.locators(name) == {"name": name, "folder": folder, "base": base}
