"""Filters, names and digests."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.mapping import Digester, Mapper, name_all, owner_mark, why_left_out
from shared.model import Granularity, NameEncoding, Source, Target
from shared.patterns import compile_pattern
from shared.vault import NameRule, check_name
from tests.world import one_way

KEY_VAULT = NameRule(re.compile("[0-9a-zA-Z-]"), 127, ignores_case=True, wording="letters, digits and -")
ANYTHING = NameRule()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("pattern", "matches", "misses"),
    [
        ("**", ["a", "a/b/c", ""], []),
        ("*", ["a", "a.b"], ["a/b"]),
        ("apps/*", ["apps/a"], ["apps/a/b", "apps", "xapps/a"]),
        ("apps/**", ["apps/a", "apps/a/b"], ["apps", "apps2/a"]),
        ("**/db", ["db", "a/db", "a/b/db"], ["adb", "a/xdb"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az"]),
        ("?b", ["ab"], ["b", "/b", "aab"]),
        ("a.b", ["a.b"], ["axb"]),
        ("[x]", ["[x]"], ["x"]),
        ("regex:a+/(b|c)", ["aa/b"], ["aa/bc", "xaa/b"]),
    ],
)
def test_a_pattern_covers_what_it_says(pattern: str, matches: list[str], misses: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [path for path in matches if not compiled.fullmatch(path)] == []
    assert [path for path in misses if compiled.fullmatch(path)] == []


@given(st.text(alphabet="ab/.*?", max_size=8), st.text(alphabet="ab/.", max_size=8))
def test_a_star_never_crosses_a_slash_unless_doubled(pattern: str, path: str) -> None:
    if "**" not in pattern and compile_pattern(pattern).fullmatch(path):
        assert pattern.count("/") == path.count("/")


def test_exclude_wins_and_the_rule_is_named() -> None:
    sync = one_way(include=("apps/**",), exclude=("**/tmp",))
    assert why_left_out(sync, "apps/a") is None
    assert why_left_out(sync, "apps/tmp") == "excluded by '**/tmp'"
    assert why_left_out(sync, "other") == "no include rule matches"


def test_forbidden_characters_become_hyphens_in_key_vault_names() -> None:
    mapper = Mapper(Target("t", "t", prefix="apps/"), KEY_VAULT)
    assert mapper.name("team a/db_main.é") == "apps-team-a-db-main--"


def test_a_path_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    mapper = Mapper(Target("t", "t", name="{path}-{field}", granularity=Granularity.FIELD), ANYTHING)
    assert mapper.name("{field}", "x") == "{field}-x"


@pytest.mark.parametrize("path", ["../up", "a//b", ".", "a/../b", "a/./b", "", "new\nline", "bell\x07", "a/\u2028"])
def test_a_name_that_could_leave_its_prefix_or_break_a_line_is_refused(path: str) -> None:
    with pytest.raises(InvalidSecret):
        check_name("v", path)


def test_too_long_a_name_is_refused_with_the_limit_in_the_message() -> None:
    with pytest.raises(InvalidSecret, match="at most 127"):
        Mapper(Target("t", "t"), KEY_VAULT).name("a" * 128)


def test_paths_that_share_a_name_are_all_refused_and_name_each_other() -> None:
    naming = name_all(Mapper(Target("t", "t"), KEY_VAULT), ["A_B", "a-b", "c", "a.b"])
    assert naming.names == {"c": ["c"]}
    assert set(naming.refused) == {"A_B", "a-b", "a.b"}
    assert all("would both be written to" in why for why in naming.refused.values())
    assert all("rename" in why and "name_encoding" in why for why in naming.refused.values())


def test_fields_that_share_a_name_are_refused() -> None:
    mapper = Mapper(Target("t", "t", name="{path}-{field}", granularity=Granularity.FIELD), KEY_VAULT)
    with pytest.raises(InvalidSecret, match=r"'a\.b' and 'a_b'"):
        mapper.render("p", {"a_b": 1, "a.b": 2})


def test_a_name_is_made_from_the_parts_of_a_path() -> None:
    mapper = Mapper(Target("t", "t", prefix="new/", name='{dir | upper}/{name | replace("_", "-")}'), ANYTHING)
    assert mapper.name("apps/shop/db_main") == "new/APPS/SHOP/db-main"
    assert mapper.name("db_main") == "new/db-main"


def test_a_renamed_path_has_the_name_of_the_table_and_the_others_that_of_all() -> None:
    mapper = Mapper(Target("t", "t", prefix="x/", name="all/{path}", rename={"old/db": "new/db"}), ANYTHING)
    assert mapper.name("old/db") == "x/new/db"
    assert mapper.name("old/queue") == "x/all/old/queue"
    assert not mapper.injective


def test_a_renamed_path_and_another_of_that_name_are_both_refused() -> None:
    naming = name_all(Mapper(Target("t", "t", rename={"a": "b"}), ANYTHING), ["a", "b", "c"])
    assert set(naming.refused) == {"a", "b"}


def test_the_recipe_changes_with_everything_that_changes_a_name() -> None:
    base = Target("t", "t")
    others = [
        Target("t", "t", prefix="x/"),
        Target("t", "t", name="x-{path}"),
        Target("t", "t", name="{path}-{field}", granularity=Granularity.FIELD),
        Target("t", "t", name="{path | upper}"),
        Target("t", "t", rename={"a": "b"}),
        Target("t", "t", name_encoding=NameEncoding.REVERSIBLE),
    ]
    recipes = {Mapper(target, ANYTHING).recipe for target in (base, *others)} | {Mapper(base, KEY_VAULT).recipe}
    assert len(recipes) == 8
    assert Mapper(base, ANYTHING).recipe == Mapper(Target("other", "other"), ANYTHING).recipe


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_digest_depends_on_the_fields_alone(fields: dict[str, object]) -> None:
    digester = Digester("k" * 40)
    backwards = dict(reversed(list(fields.items())))
    assert digester.digest(fields) == digester.digest(backwards)
    assert digester.digest(fields) != Digester("j" * 40).digest(fields)
    assert digester.digest({**fields, "one more": 1}) != digester.digest({**fields, "one more": 2})


def test_a_whole_number_is_the_same_however_it_is_written() -> None:
    digester = Digester("k" * 40)
    assert digester.digest({"n": [1.0, {"m": -0.0}]}) == digester.digest({"n": [1, {"m": 0}]})
    assert digester.digest({"n": 1.5}) != digester.digest({"n": 1})
    assert digester.digest({"n": True}) != digester.digest({"n": 1})


def test_what_is_no_json_is_refused_without_being_quoted() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (float("nan"), object(), "\ud800", endless):
        with pytest.raises(InvalidSecret) as caught:
            Digester("k" * 40).digest({"value": value})
        assert caught.value.__cause__ is None
        assert str(caught.value) == "its value is not JSON"


def test_an_owner_s_mark_knows_where_values_come_from_and_not_who_carries_them() -> None:
    one = owner_mark(one_way(), "https://vault secret")
    assert one == owner_mark(one_way("elsewhere"), "https://vault secret")
    assert one != owner_mark(one_way(), "https://other secret")
    assert one != owner_mark(one_way(source=Source("source", "apps/")), "https://vault secret")
    assert len(one) < 100
