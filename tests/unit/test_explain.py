"""`plan --explain`: from a source's name and fields to a target's, with every rule and without a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from typer.testing import CliRunner

from shared.cli import app as commands
from shared.explanation import Told, coverage, explain
from shared.mapping import Mapper
from shared.model import Granularity, NameEncoding, Target
from shared.rules import FieldRules
from shared.vault import NameRule
from tests.cli_world import Ended, Folder
from tests.world import one_way

KEY_VAULT = NameRule(re.compile("[0-9a-zA-Z-]"), 127, ignores_case=True, wording="letters, digits and -")
CANARY = "s3cret-canary"
CONFIG = """\
vaults:
  source: {kind: file, path: source.vault, key: "${FILE_KEY}"}
  target: {kind: file, path: target.vault, key: "${FILE_KEY}"}
syncs:
  apps:
    source: {vault: source, prefix: apps/}
    exclude: ["tmp/**"]
    targets:
      - vault: target
        prefix: new/
        name: '{dir | upper}/{name}'
        fields:
          split: {config: json}
          exclude: [debug]
          rename: {pass: password}
          set: {env: s3cret-canary}
        transform:
          - {trim: both, fields: [password]}
          - {encrypt: {age: ["PUBLIC"]}, fields: [password]}
"""


class Here(Folder):
    def run(self, *arguments: str) -> Ended:
        ended = CliRunner().invoke(commands, list(arguments), env=self.environment(), prog_name="vaultferry")
        return Ended(ended.exit_code, ended.stdout, ended.stderr)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.chdir(tmp_path)
    folder = Here(tmp_path)
    public = str(pyrage.x25519.Identity.generate().to_public())
    folder.configure(CONFIG.replace("PUBLIC", public))
    folder.put(
        {
            "apps/shop/db": {"config": f'{{"pass": " {CANARY} ", "debug": true}}', "user": "u"},
            "apps/bad": {"config": CANARY},
        }
    )
    return folder


def test_every_rule_is_told_in_its_order(here: Here) -> None:
    ended = here.run("plan", "apps", "--explain", "shop/db")
    assert (ended.code, ended.err) == (0, "")
    assert [line.rstrip() for line in ended.out.splitlines()] == [
        "apps: source:apps/shop/db",
        "  fields: config, user",
        "  included by '**'",
        "→ target",
        "  fields.split.config   'config' becomes 'pass', 'debug'",
        "  fields.exclude        'debug' is left out by 'debug'",
        "  fields.rename.pass    'pass' is called 'password'",
        "  fields.set.env        'env' is set",
        "  transform[0].trim     changes 'password'",
        "  transform[1].encrypt  changes 'password'",
        "  name                  {dir | upper}/{name} gives 'SHOP/db'",
        "  prefix                'new/' before it gives 'new/SHOP/db'",
        "  is target:new/SHOP/db with env, password, user",
    ]
    assert here.read() == {}, "nothing was written"


def test_as_json_it_says_the_same_and_no_value(here: Here) -> None:
    ended = here.run("plan", "apps", "--explain", "shop/db", "--json")
    assert CANARY not in ended.out + ended.err
    told = ended.json
    assert told["source"] == {"vault": "source", "name": "apps/shop/db", "fields": ["config", "user"], "error": None}
    (target,) = told["targets"]
    assert target["names"] == [{"name": "new/SHOP/db", "fields": ["env", "password", "user"]}]
    assert {"rule": "fields.rename.pass", "what": "'pass' is called 'password'"} in target["rules"]


def test_a_secret_that_can_not_be_carried_says_why(here: Here) -> None:
    ended = here.run("plan", "--explain", "bad")
    assert ended.code == 1
    assert "can not be written: its field 'config' is not JSON" in " ".join(ended.out.split())
    assert CANARY not in ended.out + ended.err


def test_what_is_not_there_is_explained_by_its_name(here: Here) -> None:
    ended = here.run("plan", "--explain", "a/b", "--json")
    assert ended.code == 0
    assert ended.json["source"]["error"] == "there is no such secret, so only its name is explained"
    whole = here.run("plan", "--explain", "apps/team/nothing", "--json")
    assert whole.json["source"]["error"].startswith("there is no such secret (a path is what follows 'apps/'), so")
    assert ended.json["targets"][0]["names"] == [{"name": "new/A/b", "fields": None}]


def test_what_the_sync_leaves_alone_is_said(here: Here) -> None:
    ended = here.run("plan", "--explain", "tmp/x", "--json")
    assert ended.json | {"source": None} == {
        "sync_id": "apps",
        "path": "tmp/x",
        "covered": False,
        "by": "excluded by 'tmp/**'",
        "source": None,
        "targets": [],
    }


def test_fields_names_tables_and_encodings_are_told() -> None:
    target = Target(
        "t",
        "t",
        granularity=Granularity.FIELD,
        name="{path}-{field}",
        rename={"db": "main/{field | lower}"},
        name_encoding=NameEncoding.REVERSIBLE,
        fields=FieldRules(include=("USER",)),
    )
    found = explain(Mapper(target, KEY_VAULT), "db", {"USER": CANARY, "x": CANARY})
    assert found.rules == (
        Told("fields.include", "'x' is left out: no pattern matches"),
        Told("rename.db", "main/{field | lower} gives 'main/user'"),
        Told("name_encoding", "reversible, for this vault takes letters, digits and -: 'main-suser'"),
    )
    assert [(each.name, each.fields) for each in found.names] == [("main-suser", ("USER",))]
    assert coverage(one_way(include=("a/*",)), "b") == (False, Told("include", "no include rule matches"))


def test_what_leads_to_a_refused_name_is_told_too() -> None:
    mapper = Mapper(Target("t", "t", prefix="apps/", name="{path | upper}"), KEY_VAULT)
    for fields in (None, {"value": "1"}):
        found = explain(mapper, "x" * 128, fields)
        assert found.names == ()
        assert found.error is not None
        assert "at most 127" in found.error
        assert [told.rule for told in found.rules] == ["name", "prefix"]


@pytest.mark.parametrize("path", ["../x", "a//b", "a/", ""])
def test_a_path_that_no_secret_has_gets_no_name(path: str) -> None:
    found = explain(Mapper(Target("t", "t"), KEY_VAULT), path, None)
    assert found.names == ()
    assert found.error == "a name can not have empty, '.' or '..' segments"
