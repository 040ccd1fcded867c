"""Syncs in each other's way: found when it is certain, warned of when it may be, and never for prefixes side by side."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import InvalidConfig
from shared.config.build import parse
from shared.mapping import Mapper, why_left_out
from shared.model import Granularity, NameEncoding, Source, Sync, Target
from shared.overlaps import Ground, find_cycles, find_overlaps
from shared.rules import FieldRules
from shared.vault import NameRule
from tests.examples import examples


def sync(sync_id: str, way: str, prefix: str = "", to: str = "", **options: Any) -> Sync:
    """A sync along `way`, as in `a>b`; `to` is the target's prefix."""
    source, target = way.split(">")
    shape = {key: options.pop(key) for key in list(options) if key in Target.__dataclass_fields__}
    return Sync(sync_id, Source(source, prefix), (Target(target, target, prefix=to, **shape),), **options)


def two_way(sync_id: str, way: str, prefix: str = "", to: str = "", **options: Any) -> Sync:
    return sync(sync_id, way, prefix, to, type="bidirectional", **options)


def overlaps(*syncs: Sync) -> list[bool]:
    """For each overlap that is found, whether it is certain."""
    return [each.certain for each in find_overlaps(syncs)]


def cycles(*syncs: Sync) -> list[tuple[list[str], bool]]:
    return [([route.sync.id for route in each.routes], each.certain) for each in find_cycles(syncs)]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Certain: one secret of one source, one name.
        (sync("s", "a>t"), sync("t", "a>t"), [True]),
        (sync("s", "a>t", "apps/"), sync("t", "a>t", "apps/"), [True]),
        (sync("s", "a>t"), sync("t", "a>t", "apps/", "apps/"), [True]),
        (sync("s", "a>t"), sync("t", "a>t", name="{dir}/{name}"), [True]),
        (sync("s", "a>t", include=("x/*",)), sync("t", "a>t", include=("**",)), [True]),
        (sync("s", "a>t", name="x", include=("x",)), sync("t", "a>t", include=("x",)), [True]),
        # Possible: other sources, or names that only some paths bring together.
        (sync("s", "a>t"), sync("t", "b>t"), [False]),
        (sync("s", "a>t"), sync("t", "a>t", "apps/"), [False]),
        (sync("s", "a>t"), sync("t", "b>t", to="apps/"), [False]),
        (sync("s", "a>t", include=("regex:.*",)), sync("t", "a>t", include=("regex:.*",)), [False]),
        (sync("s", "a>t"), sync("t", "a>t", name_encoding=NameEncoding.REVERSIBLE), [False]),
        (sync("s", "a>t", to="x/"), sync("t", "b>t", to="y/", rename={"p": "q"}), []),
        (sync("s", "a>t", to="x/", rename={"p": "q"}), sync("t", "b>t", to="x/q"), [False]),
        # Side by side.
        (sync("s", "a>t"), sync("t", "a>u"), []),
        (sync("s", "a>t", to="x/"), sync("t", "a>t", to="y/"), []),
        (sync("s", "a>t", "x/", "x/"), sync("t", "b>t", "y/", "y/"), []),
        (sync("s", "a>t", include=("x/**",)), sync("t", "a>t", include=("y/**",)), []),
        (sync("s", "a>t", include=("x",)), sync("t", "b>t", include=("xy", "y")), []),
        (sync("s", "a>t", exclude=("x/**",)), sync("t", "b>t", include=("x/**",)), []),
        (sync("s", "a>t", exclude=("x/**",)), sync("t", "b>t", "x/", "x/"), []),
        (sync("s", "a>t", exclude=("x",)), sync("t", "b>t", include=("x",)), []),
        (sync("s", "a>t", name="one-{path}"), sync("t", "a>t", name="two-{path}"), []),
        # Both sides of a two-way sync are written.
        (two_way("s", "a>b"), two_way("t", "a>c"), [True]),
        (two_way("s", "a>b"), sync("t", "a>b"), [True]),
        (two_way("s", "a>b"), sync("t", "c>a"), [False]),
        (two_way("s", "a>b"), sync("t", "c>b"), [False]),
        (two_way("s", "a>b"), two_way("t", "b>c"), [False]),
        (two_way("s", "a>b"), sync("t", "a>c"), []),
        (two_way("s", "a>b", "x/"), two_way("t", "a>c", "y/"), []),
        (two_way("s", "a>b", "x/"), sync("t", "c>a", to="y/"), []),
    ],
)
def test_two_syncs_on_one_vault(one: Sync, other: Sync, expected: list[bool]) -> None:
    assert overlaps(one, other) == expected
    assert overlaps(other, one) == expected


def test_policies_and_secrets_do_not_meet() -> None:
    policies = Sync("p", Source("a", resource="policies"), (Target("t", "t"),))
    assert overlaps(sync("s", "a>t"), policies) == []


def test_syncs_that_take_fields_of_their_own_may_meet_and_need_not() -> None:
    shape = {"granularity": Granularity.FIELD, "name": "{path}-{field}"}
    users = sync("s", "a>t", **shape, fields=FieldRules(include=("user",)))
    others = sync("t", "a>t", **shape, fields=FieldRules(exclude=("user",)))
    assert overlaps(users, others) == [False]
    assert overlaps(users, sync("t", "a>t", **shape, fields=FieldRules(include=("user",)))) == [True]


def test_targets_of_one_sync_meet_where_it_is_certain_only() -> None:
    def both(**options: Any) -> list[bool]:
        return overlaps(Sync("s", Source("a"), (Target("one", "t"), Target("two", "t", **options))))

    assert both() == [True]
    assert both(name="{dir}/{name}") == [True]
    assert both(name="json-{path}") == []
    assert both(prefix="x/") == []


@pytest.mark.parametrize(
    ("syncs", "expected"),
    [
        ([sync("s", "a>b"), sync("t", "b>a")], [(["s", "t"], True)]),
        ([sync("s", "a>b", "x/", "x/"), sync("t", "b>a", "x/", "x/")], [(["s", "t"], True)]),
        ([sync("s", "a>b"), sync("t", "b>c"), sync("u", "c>a")], [(["s", "t", "u"], True)]),
        # Each round goes one folder deeper.
        ([sync("s", "a>b", to="x/"), sync("t", "b>a", to="y/")], [(["s", "t"], True)]),
        ([sync("s", "a>b", "x/"), sync("t", "b>a", "y/")], [(["s", "t"], False)]),
        ([sync("s", "a>b"), sync("t", "b>a", name_encoding=NameEncoding.REVERSIBLE)], [(["s", "t"], False)]),
        ([sync("s", "a>b", "x/", "x/"), sync("t", "b>a", "y/", "y/")], []),
        ([sync("s", "a>b", exclude=("y/**",)), sync("t", "b>a", "y/", "y/")], []),
        ([sync("s", "a>b"), sync("t", "b>c")], []),
        ([sync("s", "a>b"), sync("t", "a>b")], []),
        # What goes both ways closes a ring with fewer.
        ([sync("s", "a>b"), two_way("t", "b>a")], [(["s", "t"], True)]),
        ([two_way("s", "a>b"), two_way("t", "b>a")], [(["s", "t"], True)]),
        ([two_way("s", "a>b"), sync("t", "b>a")], [(["s", "t"], True)]),
        ([two_way("s", "a>b"), two_way("t", "b>c"), two_way("u", "c>a")], [(["s", "t", "u"], True)]),
        ([two_way("s", "a>b", to="x/"), sync("t", "b>a", "x/")], [(["s", "t"], True)]),
        ([two_way("s", "a>b", rename={"x": "y"}), sync("t", "b>a", "z/")], [(["s", "t"], False)]),
        ([two_way("s", "a>b")], []),
        ([two_way("s", "a>b"), two_way("t", "b>c")], []),
        ([two_way("s", "a>b"), two_way("t", "a>c")], []),
        ([two_way("s", "a>b"), sync("t", "a>c")], []),
        ([two_way("s", "a>b", "x/", "x/"), sync("t", "b>a", "y/", "y/")], []),
    ],
)
def test_syncs_in_a_ring(syncs: list[Sync], expected: list[tuple[list[str], bool]]) -> None:
    assert cycles(*syncs) == expected


PREFIXES = st.sampled_from(["", "a/", "b/", "a/b/"])
PATTERNS = st.sampled_from(["**", "a/**", "*", "a*", "b/*", "a", "b/a", "**/b", "regex:a.*"])
NAMES = st.sampled_from(["{path}", "{dir}/{name}", "a-{path}", "a/{path}", "{name}", "{path}-x", "a", "{path | slug}"])
PATHS = ["/".join(parts) for length in (1, 2, 3) for parts in product("ab", repeat=length)] + ["ab", "a-a", "a-x"]


@st.composite
def one_sync(draw: st.DrawFn, sync_id: str) -> Sync:
    return sync(
        sync_id,
        draw(st.sampled_from(["v>t", "w>t"])),
        draw(PREFIXES),
        draw(PREFIXES),
        name=draw(NAMES),
        rename=draw(st.dictionaries(st.sampled_from(["a", "b/a"]), st.sampled_from(["a", "b/{name}"]), max_size=1)),
        include=tuple(draw(st.lists(PATTERNS, min_size=1, max_size=2))),
        exclude=tuple(draw(st.lists(PATTERNS, max_size=2))),
    )


def written(of: Sync) -> dict[str, str]:
    """Names of the source, by the name that they get."""
    mapper = Mapper(of.targets[0], NameRule())
    return {mapper.name(path): of.source.prefix + path for path in PATHS if why_left_out(of, path) is None}


@settings(max_examples=examples(400))
@given(one_sync("s"), one_sync("t"))
def test_no_two_syncs_meet_without_a_word(one: Sync, other: Sync) -> None:
    found = overlaps(one, other)
    if written(one).keys() & written(other).keys():
        assert found, "both write a name, and nothing was said"
    if True in found:
        assert one.source.vault == other.source.vault


# --- as the vaults know them ----------------------------------------------------------------------------------------

KEY_VAULT = NameRule(re.compile(r"[0-9a-zA-Z-]"), 127, ignores_case=True)
GROUNDS = {("t", "secrets"): Ground("t", KEY_VAULT), ("t2", "secrets"): Ground("t", KEY_VAULT)} | {
    (other, "secrets"): Ground("a") for other in ("a", "a2")
}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Names that are one name there, however they are written.
        (sync("s", "a>t", to="shop/"), sync("t", "a>t", to="Shop/"), [True]),
        (sync("s", "a>t", to="shop/"), sync("t", "a>t", name="SHOP_{path}"), [True]),
        (sync("s", "b>t", to="shop/"), sync("t", "c>t", name="shop-{path}"), [False]),
        (sync("s", "b>t", to="shop/"), sync("t", "c>t", name="ship-{path}"), []),
        (sync("s", "a>t", include=("x",), name="A_B"), sync("t", "a>t", include=("x",), name="a.b"), [True]),
        # A code in its place is another name, but where there is nothing to encode.
        (sync("s", "a>t", to="x/", name_encoding=NameEncoding.REVERSIBLE), sync("t", "a>t", to="x/"), [False]),
        (sync("s", "a>t", to="x/", name_encoding=NameEncoding.REVERSIBLE), sync("t", "b>t", to="x/t/"), []),
        (
            sync("s", "a>t", to="x/", name_encoding=NameEncoding.REVERSIBLE),
            sync("t", "b>t", name="x-sy{path}"),
            [False],
        ),
        (sync("s", "a>t", name_encoding=NameEncoding.REVERSIBLE), sync("t", "a>t"), [True]),
        # One vault under two ids, on either side.
        (sync("s", "a>t", to="x/"), sync("t", "a2>t2", to="X/"), [True]),
        (sync("s", "b>a", to="x/"), sync("t", "c>a2", to="x/"), [False]),
        (sync("s", "b>a", to="x/"), sync("t", "c>a2", to="y/"), []),
        (two_way("s", "a>b"), two_way("t", "a2>c"), [True]),
        # Elsewhere case and characters count.
        (sync("s", "b>a", to="x/"), sync("t", "b>a", to="X/"), []),
    ],
)
def test_names_are_compared_as_the_vault_takes_them_and_vaults_by_where_they_are(
    one: Sync, other: Sync, expected: list[bool]
) -> None:
    assert [each.certain for each in find_overlaps((one, other), GROUNDS)] == expected
    assert [each.certain for each in find_overlaps((other, one), GROUNDS)] == expected


def test_targets_of_one_sync_meet_where_their_names_are_one_there() -> None:
    targets = (Target("one", "t", prefix="x/"), Target("two", "t2", prefix="X/"))
    assert [each.certain for each in find_overlaps([Sync("s", Source("a"), targets)], GROUNDS)] == [True]


@pytest.mark.parametrize(
    ("syncs", "expected"),
    [
        ([sync("s", "a>b"), sync("t", "b>a2")], [True]),
        ([sync("s", "a>b", "x/", "x/"), sync("t", "b>a2", "x/", "y/")], []),
        ([sync("s", "a>t", to="x/"), sync("t", "t2>a")], [True]),
        # What is called x/… here is called x-… there, so nothing of it is read as x/….
        ([sync("s", "a>t", to="x/"), sync("t", "t2>a", include=("x/**",))], []),
        ([sync("s", "a>t", to="X/"), sync("t", "t2>a", include=("x-*",))], [True]),
        ([sync("s", "a>t", name_encoding=NameEncoding.REVERSIBLE), sync("t", "t>a")], [True]),
    ],
)
def test_a_ring_is_seen_through_names_and_ids(syncs: list[Sync], expected: list[bool]) -> None:
    assert [each.certain for each in find_cycles(syncs, GROUNDS)] == expected


# --- in a file ----------------------------------------------------------------------------------------------------

VAULTS = """\
vaults:
  hub: {kind: file, path: a, key: "${KEY}"}
  west: {kind: file, path: b, key: "${KEY}"}
  north: {kind: file, path: c, key: "${KEY}"}
syncs:
"""


def told(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    try:
        config = parse((VAULTS + text).encode(), {"KEY": "A" * 43 + "="}, "f")
    except InvalidConfig as error:
        return [str(problem) for problem in error.problems], []
    return [], list(config.warnings)


def test_both_syncs_that_write_the_same_are_named() -> None:
    text = "".join(f"  {name}: {{source: {{vault: hub}}, targets: [{{vault: west}}]}}\n" for name in ("one", "two"))
    assert told(text) == (
        [
            "f:7: syncs.two.targets[0].vault: sync 'two' and sync 'one' would write the same names to vault 'west' (give "
            "one of them another `prefix` or `name`, or leave out in one what the other carries)"
        ],
        [],
    )
    errors, warnings = told(text.replace("two: {", "two: {enabled: false, "))
    assert errors == []
    assert [warning.partition(" may write ")[0] for warning in warnings] == [
        "f:7: syncs.two.targets[0].vault: sync 'two' and sync 'one'"
    ]


def test_all_syncs_of_a_ring_are_named() -> None:
    ring = "".join(
        f"  {name}: {{source: {{vault: {source}}}, targets: [{{vault: {target}}}]}}\n"
        for name, source, target in [("one", "hub", "west"), ("two", "west", "north"), ("three", "north", "hub")]
    )
    (error,), _ = told(ring)
    assert error == (
        "f:6: syncs.one.targets[0].vault: a cycle: what one of these writes, the next reads: 'one' (hub to west), 'two' "
        "(west to north), 'three' (north to hub), and 'one' again (choose prefixes side by side, or leave out in one what "
        "another has written)"
    )


def test_what_only_may_be_is_a_warning() -> None:
    text = (
        "  one: {source: {vault: hub, prefix: x/}, targets: [{vault: west}]}\n"
        "  two: {source: {vault: west, prefix: y/}, targets: [{vault: hub}]}\n"
    )
    errors, (warning,) = told(text)
    assert errors == []
    assert "what one of these writes, the next may read: 'one' (hub to west), 'two' (west to hub)" in warning


ONE_VAULT = [
    '{kind: hashicorp, address: "http://127.0.0.1:8200", auth: {method: token, token: "${KEY}"}}',
    '{kind: hashicorp, address: "http://127.0.0.1:8200/", mount: secret/, auth: {method: token, token: "${KEY}"}}',
]


def test_one_vault_under_two_ids_is_told_with_both() -> None:
    vaults = f"vaults:\n  reader: {ONE_VAULT[0]}\n  writer: {ONE_VAULT[1]}\n"
    hub = '  hub: {kind: file, path: a, key: "${KEY}"}\n'
    file = '  again: {kind: file, path: ./x/../a, key: "${KEY}"}\n'
    above = vaults + hub + file + "syncs:\n"

    def problems(text: str) -> list[str]:
        with pytest.raises(InvalidConfig) as caught:
            parse((above + text).encode(), {"KEY": "A" * 43 + "="}, "f")
        return [str(each) for each in caught.value.problems]

    (loop,) = problems("  s: {source: {vault: reader}, targets: [{vault: writer}]}\n")
    assert "a loop: this sync would read what it has written" in loop
    assert "in one vault ('reader' is 'writer')" in loop
    both = "".join(
        f"  s-{each}: {{source: {{vault: hub}}, targets: [{{vault: {each}}}]}}\n" for each in ("reader", "writer")
    )
    (met,) = problems(both)
    assert (
        "sync 's-writer' and sync 's-reader' would write the same names to vault 'writer', which is 'reader' as well"
        in met
    )
    ring = (
        "  s: {source: {vault: hub}, targets: [{vault: writer}]}\n"
        "  t: {source: {vault: reader}, targets: [{vault: again}]}\n"
    )
    (cycle,) = problems(ring)
    assert "'s' (hub to writer), 't' (reader to again), and 's' again" in cycle


def test_other_mounts_namespaces_and_files_are_other_vaults() -> None:
    other = ONE_VAULT[0].replace("auth:", "mount: kv, auth:"), ONE_VAULT[0].replace("auth:", "namespace: team, auth:")
    for each in other:
        vaults = f"vaults:\n  one: {ONE_VAULT[0]}\n  two: {each}\nsyncs:\n"
        text = vaults + "  s: {source: {vault: one}, targets: [{vault: two}]}\n"
        assert parse(text.encode(), {"KEY": "t"}, "f").syncs


def test_a_key_vault_that_is_read_and_written_is_a_loop_in_any_case() -> None:
    vaults = "vaults:\n" + "".join(
        f"  {name}: {{kind: azure_key_vault, url: {url}}}\n"
        for name, url in (("one", "https://a.vault.azure.net"), ("two", "https://A.vault.azure.net/"))
    )
    text = vaults + "syncs:\n  s: {source: {vault: one, prefix: X/}, targets: [{vault: two, prefix: x/y/}]}\n"
    with pytest.raises(InvalidConfig, match="a loop"):
        parse(text.encode(), {}, "f")
