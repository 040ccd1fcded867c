"""Which two-way syncs there can be, what they write, and who gets in their way."""

from __future__ import annotations

import pytest

from shared.config import Config, InvalidConfig
from shared.config.build import parse
from shared.config.sketch import outline_of, sketch
from shared.config.yaml_source import read_document

VAULTS = """
vaults:
  vault-a: {kind: hashicorp, address: https://a.example, auth: {method: token, token: t}}
  vault-b: {kind: hashicorp, address: https://b.example, auth: {method: token, token: t}}
  keys-a: {kind: azure_key_vault, url: https://a.vault.azure.net}
  keys-b: {kind: azure_key_vault, url: https://b.vault.azure.net}
  warden: {kind: vaultwarden, url: https://warden.example, email: a@example.org, password: p}
  capitals:
    kind: http_api
    base_url: https://api.example
    auth: {type: none}
    operations:
      list: {path: /s, items: "[]", name: "@"}
      get: {path: "/s/{name}", value: value}
      set: {path: "/s/{name}", body: {value: "{value}"}}
    names: {allowed: "[A-Z0-9_]", replacement: _, upper_case: true}
syncs:
"""


def two_way(sync_id: str, source: str, *targets: str, options: str = "") -> str:
    lines = [f"  {sync_id}:", "    type: bidirectional", f"    source: {{{source}}}", "    targets:"]
    return "\n".join([*lines, *(f"      - {{{each}}}" for each in targets), options]) + "\n"


def one_way(sync_id: str, source: str, target: str, options: str = "") -> str:
    return two_way(sync_id, source, target, options=options).replace("    type: bidirectional\n", "")


def load(*syncs: str) -> Config:
    return parse((VAULTS + "".join(syncs)).encode(), {}, "vaultferry.yaml")


def refused(*syncs: str) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        load(*syncs)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("vault: vault-a", "vault: vault-b"),
        ("vault: vault-a", "vault: vault-b, name: 'team-{dir}/{name}'"),
        ("vault: vault-a", "vault: vault-b, rename: {old: new}"),
        ("vault: vault-a", "vault: warden"),
        ("vault: vault-a", "vault: keys-a, name_encoding: reversible"),
        ("vault: vault-a", "vault: capitals, name_encoding: reversible"),
        ("vault: keys-a", "vault: keys-b"),
        ("vault: keys-a", "vault: vault-a, prefix: azure/"),
        ("vault: keys-a", "vault: capitals, name_encoding: reversible"),
        ("vault: capitals", "vault: vault-a"),
        ("vault: vault-a, resource: policies", "vault: vault-b"),
        ("vault: vault-a, prefix: one/", "vault: vault-a, prefix: two/, id: other"),
    ],
)
def test_a_pair_whose_names_can_be_told_from_each_other(source: str, target: str) -> None:
    config = load(two_way("s", source, target))
    assert config.syncs["s"].two_way


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("vault: vault-a", "vault: keys-a", "tells capital from small letters"),
        ("vault: vault-a, resource: policies", "vault: keys-a", "takes names of policies"),
        ("vault: capitals", "vault: keys-a", "takes '_' in a name"),
        ("vault: keys-a", "vault: capitals", "tells capital from small letters"),
        ("vault: vault-a", "vault: vault-b, name: '{name}'", "around one {path}"),
        ("vault: vault-a", "vault: vault-b, name: '{path | slug}'", "around one {path}"),
    ],
)
def test_a_pair_whose_names_can_not(source: str, target: str, why: str) -> None:
    (problem,) = refused(two_way("s", source, target))
    assert why in problem
    assert load(one_way("s", source, target)).syncs["s"].written_vaults != ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("prefix: a/", "prefix: a/b/"),
        ("name: 'x-{path}'", "name: '{path}'"),
        ("name: 'x-{path}'", "name: '{path}-y'"),
        ("name: 'x-{path}', rename: {a: b}", "name: 'y-{path}'"),
    ],
)
def test_targets_that_would_take_each_others_names_for_their_own(one: str, other: str) -> None:
    targets = [f"vault: vault-b, id: {each}, {how}" for each, how in (("one", one), ("two", other))]
    assert "a loop" in refused(two_way("s", "vault: vault-a", *targets))[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("prefix: a/", "prefix: b/"), ("name: 'x-{path}'", "name: 'y-{path}'"), ("name: '{path}-x'", "name: '{path}-y'")],
)
def test_targets_side_by_side_in_one_vault(one: str, other: str) -> None:
    targets = [f"vault: vault-b, id: {each}, {how}" for each, how in (("one", one), ("two", other))]
    assert load(two_way("s", "vault: vault-a", *targets)).syncs["s"].written_vaults == ("vault-a", "vault-b")


def test_prefixes_that_are_one_in_the_vaults_own_characters_are_a_loop() -> None:
    targets = ["vault: keys-b, id: one, prefix: a/", "vault: keys-b, id: two, prefix: a/b/"]
    assert "a loop" in refused(two_way("s", "vault: keys-a", *targets))[0]
    targets = ["vault: keys-b, id: one, prefix: a/", "vault: keys-b, id: two, prefix: A-b/"]
    assert "a loop" in refused(two_way("s", "vault: keys-a", *targets))[0]


def test_an_operation_that_the_source_lacks_is_missed_where_it_is_written() -> None:
    lacking = VAULTS.replace('      set: {path: "/s/{name}", body: {value: "{value}"}}\n', "")
    text = lacking + two_way("s", "vault: capitals", "vault: vault-a")
    with pytest.raises(
        InvalidConfig, match=r"source\.vault: sync 's' writes to vault 'capitals', .* no operation 'set'"
    ):
        parse(text.encode(), {}, "vaultferry.yaml")
    parse((lacking + one_way("s", "vault: capitals", "vault: vault-a")).encode(), {}, "vaultferry.yaml")


def test_two_way_syncs_of_one_source_are_told_to_be_one() -> None:
    syncs = two_way("s", "vault: vault-a", "vault: vault-b"), two_way("t", "vault: vault-a", "vault: warden")
    (problem,) = refused(*syncs)
    assert "syncs.t.source.vault: two-way sync 't' and two-way sync 's' would write the same names" in problem
    assert "make all targets those of one sync" in problem


def test_who_writes_a_side_of_a_two_way_sync_is_warned_and_both_ends_are_named() -> None:
    config = load(two_way("s", "vault: vault-a", "vault: vault-b"), one_way("t", "vault: warden", "vault: vault-a"))
    (warning,) = [each for each in config.warnings if "credential" not in each]
    assert (
        "syncs.t.targets[0].vault: sync 't' and two-way sync 's' may write the same names to vault 'vault-a'" in warning
    )
    assert "for an edit by hand" in warning


def test_a_ring_through_a_two_way_sync_names_its_ways() -> None:
    syncs = two_way("s", "vault: vault-a", "vault: vault-b"), one_way("t", "vault: vault-b", "vault: vault-a")
    (problem,) = refused(*syncs)
    assert "'s' (vault-a to vault-b), 't' (vault-b to vault-a), and 's' again" in problem


def test_a_policy_for_conflicts_says_nothing_in_a_one_way_sync() -> None:
    config = load(one_way("s", "vault: vault-a", "vault: vault-b", options="    conflict: source"))
    assert any("syncs.s.conflict: says nothing here" in each for each in config.warnings)


def test_the_first_look_knows_that_both_sides_are_written() -> None:
    text = (
        VAULTS + two_way("s", "vault: vault-a", "vault: vault-b") + one_way("t", "vault: keys-a", "vault: keys-b")
    ).encode()
    first = sketch(read_document(text, {}, "vaultferry.yaml"))
    assert first == outline_of(parse(text, {}, "vaultferry.yaml"))
    assert first is not None
    assert first.written_vaults == ("vault-a", "vault-b", "keys-b")
