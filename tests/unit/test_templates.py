"""Templates: what they give, when they keep names apart, and what is said of those that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mapping import PLACEHOLDERS
from shared.templates import Template, TemplateError, of_path, parse

PATHS = st.lists(st.text("abAB.-_ é{}|", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)


def rendered(text: str, path: str = "Shop/eu/DB main", field: str = "user") -> str:
    return parse(text, PLACEHOLDERS).render(of_path(path, field).__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{path}", "Shop/eu/DB main"),
        ("{ path }", "Shop/eu/DB main"),
        ("{dir}/{name}", "Shop/eu/DB main"),
        ("{name}-{field}", "DB main-user"),
        ("{path | upper}", "SHOP/EU/DB MAIN"),
        ("{name|lower}", "db main"),
        ("{path | slug}", "shop-eu-db-main"),
        ('{path | replace("/", "--")}', "Shop--eu--DB main"),
        ("{path | replace('/', '') | upper}", "SHOPEUDB MAIN"),
        (r'{path | replace("\"", "\\")}', "Shop/eu/DB main"),
        ('{name | replace(" ", "}")}', "DB}main"),
        ("{{{name}}}", "{DB main}"),
        ("{{name}}", "{name}"),
        ("plain", "plain"),
    ],
)
def test_a_template_gives_what_it_says(text: str, expected: str) -> None:
    assert rendered(text) == expected


def test_a_secret_in_no_folder_has_no_folder_s_slash() -> None:
    assert rendered("x/{dir}/{name}", "db") == "x/db"
    assert rendered("x/{dir}/{name}", "a/db") == "x/a/db"


@given(PATHS)
def test_a_path_s_folder_and_name_are_the_path(path: str) -> None:
    assert rendered("{dir}/{name}", path) == rendered("{path}", path) == path


@given(PATHS, PATHS, st.sampled_from(["{path}", "x-{path}", "{path}{path}", "a/{dir}/{name}-z", "x{path}y{path}"]))
def test_what_keeps_paths_apart_never_gives_two_of_them_one_name(one: str, other: str, text: str) -> None:
    template = parse(text, PLACEHOLDERS)
    assert template.keeps("path")
    assert (rendered(text, one) == rendered(text, other)) is (one == other)


@pytest.mark.parametrize(
    "text", ["x", "{name}", "{dir}", "{path | upper}", "{path | slug}", "{name}/{dir}", "{dir}-{name}", "{name}{path}"]
)
def test_what_may_give_two_paths_one_name_is_known(text: str) -> None:
    assert not parse(text, PLACEHOLDERS).keeps("path")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("{pth}", "an unknown placeholder; there are {path}, {name}, {dir}, {field}", "did you mean {path}?"),
        ("{zzz}", "an unknown placeholder", ""),
        ("{path | uper}", 'an unknown filter; there are upper, lower, slug, replace("a", "b")', "did you mean upper?"),
        ("{path", "not closed", "'{{'"),
        ("path}", "belongs to no placeholder", "'}}'"),
        ("{}", "without a placeholder", ""),
        ("{path upper}", "expected '|' and a filter", "filters are"),
        ("{path |}", "expected '|' and a filter", ""),
        ("{path | replace}", "arguments of replace", "takes two texts"),
        ('{path | replace("a")}', "arguments of replace", ""),
        ('{path | replace("", "b")}', "arguments of replace", "not empty"),
        ('{path | replace("a", "b"}', "arguments of replace", ""),
        ('{path | upper("a")}', "arguments of upper", ""),
        ("{path & x}", "a placeholder is a word", "{path | upper}"),
        ("{{path}", "belongs to no placeholder", ""),
    ],
)
def test_what_is_wrong_is_said_with_what_there_is(text: str, message: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(text, PLACEHOLDERS)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["{fields.my key}", "{fields.user@host}", "{fields.a b | upper}"])
def test_a_field_whose_name_is_no_word_is_to_be_renamed_first(text: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(text, ("path",), "fields.")
    assert "a field is named here by letters" in caught.value.message
    assert "renamed first: fields.rename" in caught.value.hint


@given(st.text("{}|()\"'\\, abpth", max_size=30))
def test_any_text_is_a_template_or_said_to_be_wrong(text: str) -> None:
    try:
        assert isinstance(parse(text, PLACEHOLDERS), Template)
    except TemplateError:
        return


@given(st.text(max_size=20))
def test_text_with_doubled_braces_means_itself(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert rendered(escaped) == text
