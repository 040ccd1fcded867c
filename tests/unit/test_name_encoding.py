"""Reversible names: read back exactly, apart from each other, with a vault's own characters alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.mapping import Mapper, name_all
from shared.model import NameEncoding, Target
from shared.name_encoding import decode, encode
from shared.vault import NameRule

KEY_VAULT = NameRule(re.compile("[0-9a-zA-Z-]"), 127, ignores_case=True, wording="letters, digits and -")
RULES = [
    KEY_VAULT,
    NameRule(re.compile("[A-Z0-9_]"), 200, replacement="_", upper_case=True),
    NameRule(re.compile("[0-9a-zA-Z_]"), 255),
    NameRule(re.compile("[0-9a-zA-Z.]"), ignores_case=True),
    NameRule(ignores_case=True),
    NameRule(),
]
NAMES = st.text(max_size=20) | st.text("abzABZ019-_./ kKsuéßſKİς", max_size=30)


def reversible(**options: object) -> Target:
    return Target("t", "t", name_encoding=NameEncoding.REVERSIBLE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apps/db", "apps-sdb"),
        ("apps/DB_main", "apps-s-kdb-u-kmain"),
        ("DB_PASSWORD", "-kdb-upassword"),
        ("a-b", "a--b"),
        ("a b.c", "a-wb-pc"),
        ("🔒é", "-1f512--e9-"),
        ("", ""),
    ],
)
def test_a_name_for_key_vault(name: str, expected: str) -> None:
    assert encode(KEY_VAULT, name) == expected
    assert decode(KEY_VAULT, expected) == name
    assert decode(KEY_VAULT, expected.upper()) == name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.wording)
@given(name=NAMES, other=NAMES)
@example(name="a-sb", other="a/b")
@example(name="A", other="a")
def test_names_are_read_back_and_kept_apart(rule: NameRule, name: str, other: str) -> None:
    encoded = encode(rule, name)
    assert rule.fit(encoded) == encoded
    assert decode(rule, encoded) == name
    assert (rule.key(encoded) == rule.key(encode(rule, other))) is (name == other)
    assert encode(rule, name + other).startswith(encoded), "a prefix stays one, for listings"


@given(st.text("abk-s1f0u9", max_size=12))
def test_what_was_never_encoded_is_refused(name: str) -> None:
    try:
        found = decode(KEY_VAULT, name)
    except InvalidSecret:
        return
    assert encode(KEY_VAULT, found) == name


def test_a_vault_with_too_few_characters_says_so() -> None:
    with pytest.raises(InvalidSecret, match="too few characters"):
        encode(NameRule(re.compile("[a-z]")), "a")


def test_paths_that_differ_in_case_or_punctuation_are_not_the_same_secret_any_more() -> None:
    mapper = Mapper(reversible(prefix="apps/"), KEY_VAULT)
    naming = name_all(mapper, ["A_B", "a-b", "a.b", "a_b"])
    assert naming.refused == {}
    assert mapper.prefix == "apps-s"
    assert all(name.startswith("apps-s") for names in naming.names.values() for name in names)


def test_no_two_paths_share_a_reversible_name_unless_the_template_lets_them() -> None:
    assert Mapper(reversible(), KEY_VAULT).injective
    assert not Mapper(Target("t", "t"), KEY_VAULT).injective
    assert not Mapper(reversible(name="{path | upper}"), KEY_VAULT).injective
    assert not Mapper(reversible(name="{name}"), KEY_VAULT).injective
    assert not Mapper(reversible(rename={"a": "b"}), KEY_VAULT).injective


def test_a_name_that_encoding_makes_too_long_is_refused_with_both_figures() -> None:
    with pytest.raises(InvalidSecret, match=r"132 characters once it is encoded .* at most 127"):
        Mapper(reversible(), KEY_VAULT).name("/".join(["a" * 42] * 3) + "-")


@pytest.mark.parametrize("path", ["../up", "a//b", ".", "", "new\nline"])
def test_an_encoded_name_can_not_leave_its_prefix_once_it_is_read_back(path: str) -> None:
    with pytest.raises(InvalidSecret):
        Mapper(reversible(prefix="apps/"), KEY_VAULT).name(path)
