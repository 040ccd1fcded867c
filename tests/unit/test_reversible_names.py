"""From a name on a target back to its path, and the proof that there is just one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.mapping import Mapper, why_not_reversible
from shared.model import Granularity, NameEncoding, Target
from shared.vault import NameRule

KEY_VAULT = NameRule(re.compile("[0-9a-zA-Z-]"), 127, ignores_case=True, wording="letters, digits and -")
CAPITALS = NameRule(re.compile("[A-Z0-9_]"), 200, replacement="_", upper_case=True)
WORDS = NameRule(re.compile("[0-9a-zA-Z_]"), 255)
FOLDED = NameRule(ignores_case=True)
ANYTHING = NameRule()
RULES = [KEY_VAULT, CAPITALS, WORDS, NameRule(re.compile("[0-9a-zA-Z.]"), ignores_case=True), FOLDED, ANYTHING]

TEXTS = st.text("aB-_/.x0", max_size=5) | st.text(max_size=3)
PATHS = st.text("abKsz0-_./ ", min_size=1, max_size=12) | st.text("aé/ßK🔒", min_size=1, max_size=6)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@st.composite
def targets(draw: st.DrawFn, encoding: NameEncoding | None = None) -> Target:
    """Targets whose names can be read backwards, as far as their templates go."""
    path = draw(st.sampled_from(["{path}", "{ path }", "{dir}/{name}"]))
    return Target(
        "t",
        "t",
        prefix=draw(TEXTS),
        name=escaped(draw(TEXTS)) + path + escaped(draw(TEXTS)),
        rename=draw(st.dictionaries(PATHS, (TEXTS | PATHS).map(escaped), max_size=3)),
        name_encoding=encoding or draw(st.sampled_from(NameEncoding)),
    )


@pytest.mark.parametrize("to", RULES, ids=lambda rule: rule.wording)
@pytest.mark.parametrize("source", RULES, ids=lambda rule: rule.wording)
@settings(deadline=None)  # Which characters a rule takes is found out once, and that takes its time.
@given(target=targets(), path=PATHS)
def test_a_path_is_found_again_by_its_name(source: NameRule, to: NameRule, target: Target, path: str) -> None:
    assume(why_not_reversible(target, source, to) is None)
    path = source.fit(path)
    mapper = Mapper(target, to)
    try:
        name = mapper.name(path)
        others = {mapper.rule.key(mapper.name(each)) for each in target.rename if each != path}
    except InvalidSecret:
        return
    assume(to.key(name) not in others)  # Two paths of one name are refused where all are named.
    found = mapper.path_of(name)
    assert found is not None
    if target.name_encoding is NameEncoding.REVERSIBLE:
        assert found == path
    assert source.key(found) == source.key(path)


@pytest.mark.parametrize("to", RULES, ids=lambda rule: rule.wording)
@given(target=targets(), name=st.text(max_size=20) | st.text("aB-_/.x0ksu1f", max_size=15))
def test_a_foreign_name_has_no_path_or_one_of_that_very_name(to: NameRule, target: Target, name: str) -> None:
    mapper = Mapper(target, to)
    path = mapper.path_of(name)
    if path is not None:
        assert path != ""
        assert to.key(mapper.name(path)) == to.key(name)


@pytest.mark.parametrize("to", RULES, ids=lambda rule: rule.wording)
@settings(deadline=None)
@given(target=targets(), path=PATHS, other=PATHS)
def test_what_was_proven_holds_for_any_two_paths(to: NameRule, target: Target, path: str, other: str) -> None:
    for source in RULES:
        if why_not_reversible(target, source, to) is not None:
            continue
        mapper = Mapper(replace(target, rename={}), to)
        a, b = source.fit(path), source.fit(other)
        try:
            same = to.key(mapper.name(a)) == to.key(mapper.name(b))
        except InvalidSecret:
            continue
        assert same is (source.key(a) == source.key(b)) or not same


@pytest.mark.parametrize(
    ("target", "rule", "name", "path"),
    [
        (Target("t", "t", prefix="x/"), ANYTHING, "x/a/b", "a/b"),
        (Target("t", "t", prefix="x/"), ANYTHING, "y/a/b", None),
        (Target("t", "t", prefix="x/"), ANYTHING, "x/", None),
        (Target("t", "t", prefix="x/"), ANYTHING, "x", None),
        (Target("t", "t", prefix="x"), ANYTHING, "x", None),
        (Target("t", "t", prefix="x/"), ANYTHING, "x/a//b", None),
        (Target("t", "t", prefix="x/"), ANYTHING, "x/../b", None),
        (Target("t", "t", prefix="x/"), ANYTHING, "X/a", None),
        (Target("t", "t", prefix="x/", name="a-{path}-z"), ANYTHING, "x/a-p/q-z", "p/q"),
        (Target("t", "t", prefix="x/", name="a-{path}-z"), ANYTHING, "x/a-z", None),
        (Target("t", "t", name="a-{dir}/{name}"), ANYTHING, "a-p/q/r", "p/q/r"),
        (Target("t", "t", name="a-{dir}/{name}"), ANYTHING, "a-p", "p"),
        (Target("t", "t", prefix="a", name="{dir}/{name}"), ANYTHING, "a/p", "/p"),
        (Target("t", "t", rename={"old": "new"}), ANYTHING, "new", "old"),
        (Target("t", "t", rename={"old": "new"}), ANYTHING, "old", None),
        (Target("t", "t", prefix="apps/"), KEY_VAULT, "Apps-DB", "DB"),
        (Target("t", "t", rename={"db": "Main"}), KEY_VAULT, "MAIN", "db"),
        (Target("t", "t"), KEY_VAULT, "a_b", None),
        (Target("t", "t"), CAPITALS, "DB_MAIN", "DB_MAIN"),
        (Target("t", "t", name_encoding=NameEncoding.REVERSIBLE), KEY_VAULT, "apps-sdb", "apps/db"),
        (Target("t", "t", name_encoding=NameEncoding.REVERSIBLE), KEY_VAULT, "APPS-SDB", "apps/db"),
        (Target("t", "t", name_encoding=NameEncoding.REVERSIBLE), KEY_VAULT, "apps-db", None),
        (Target("t", "t", name_encoding=NameEncoding.REVERSIBLE), KEY_VAULT, "apps-", None),
        (Target("t", "t", prefix="A/", name_encoding=NameEncoding.REVERSIBLE), KEY_VAULT, "a-sb", None),
        (Target("t", "t", name="{path | upper}"), ANYTHING, "A", None),
        (Target("t", "t", name="{path}-{field}", granularity=Granularity.FIELD), ANYTHING, "a-b", None),
    ],
)
def test_a_name_and_its_path(target: Target, rule: NameRule, name: str, path: str | None) -> None:
    assert Mapper(target, rule).path_of(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "{path | lower}",
        "{name}",
        "{dir}-{name}",
        "{name}/{dir}",
        "{path}/{path}",
        "{dir}/{name}/{path}",
        "fixed",
        "{dir}",
    ],
)
def test_a_template_that_can_not_be_read_backwards_is_told_without_any_vault(name: str) -> None:
    assert "{dir}/{name}" in str(why_not_reversible(Target("t", "t", name=name), None, None))


@pytest.mark.parametrize(
    ("source", "to", "reason"),
    [
        (ANYTHING, KEY_VAULT, "tells capital from small letters"),
        (ANYTHING, FOLDED, "tells capital from small letters"),
        (FOLDED, KEY_VAULT, "takes any name, the target's only letters, digits and -"),
        (FOLDED, CAPITALS, "tells capital from small letters"),
        (WORDS, CAPITALS, "tells capital from small letters"),
        (WORDS, KEY_VAULT, "tells capital from small letters"),
        (WORDS, NameRule(re.compile("[0-9a-zA-Z-]")), "takes '_' in a name"),
        (WORDS, NameRule(re.compile("[0-9a-z_-]")), "takes 'A' in a name"),
        (CAPITALS, KEY_VAULT, "takes '_' in a name"),
        (WORDS, NameRule(re.compile("[0-9a-zA-Z_-]")), None),
        (WORDS, ANYTHING, None),
        (CAPITALS, WORDS, None),
        (KEY_VAULT, KEY_VAULT, None),
        (KEY_VAULT, ANYTHING, None),
        (KEY_VAULT, FOLDED, None),
        (FOLDED, FOLDED, None),
        (CAPITALS, CAPITALS, None),
        (CAPITALS, FOLDED, None),
    ],
)
def test_readable_names_are_reversible_where_the_target_tells_all_apart_that_the_source_does(
    source: NameRule, to: NameRule, reason: str | None
) -> None:
    why = why_not_reversible(Target("t", "t"), source, to)
    assert why == reason if reason is None else reason in str(why)
    assert why_not_reversible(Target("t", "t", name_encoding=NameEncoding.REVERSIBLE), source, to) is None


def test_an_encoding_that_needs_more_characters_than_there_are_is_no_way_out() -> None:
    target = Target("t", "t", name_encoding=NameEncoding.REVERSIBLE)
    assert "too few characters" in str(why_not_reversible(target, ANYTHING, NameRule(re.compile("[a-z]"))))
    assert Mapper(target, NameRule(re.compile("[a-z]"))).path_of("a") is None
