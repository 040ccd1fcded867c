"""What a target's names, fields and steps in the file come to."""

from __future__ import annotations

import re
from pathlib import Path

import pyrage
import pytest

from shared.config import InvalidConfig, load
from shared.config.build import parse
from shared.mapping import Mapper
from shared.model import Granularity, NameEncoding, Target
from shared.rules import Base64, Build, Decrypt, Encrypt, Ends, FieldRules, Fill, Form, JsonPick, Trim
from shared.vault import NameRule

IDENTITY = pyrage.x25519.Identity.generate()
PUBLIC = str(IDENTITY.to_public())
ENVIRONMENT = {"KEY": "A" * 43 + "=", "AGE_KEY": f"# created by age-keygen\n{IDENTITY}\n", "ENGINE": "postgres"}
FILE = """\
vaults:
  hub: {kind: file, path: a, key: "${KEY}"}
  west: {kind: file, path: b, key: "${KEY}"}
syncs:
  nightly:
    source: {vault: hub}
    targets:
      - vault: west
"""
ALL = """\
        prefix: shop/
        name: '{dir | upper}/{name | replace("_", "-")}.{field}'
        granularity: field
        rename: {old/db: 'main.{field}'}
        name_encoding: reversible
        fields:
          split: {config: json}
          include: ["*"]
          exclude: [debug, "tmp-*"]
          rename: {user: login}
          set: {engine: "${ENGINE}"}
          build:
            env: {dotenv: ["DB_*"], keep: true}
            url: {template: "{fields.login}@{path}"}
            all: {json: [a, b]}
        transform:
          - {base64: decode, fields: [cert]}
          - {base64: encode}
          - {trim: end}
          - {json_pick: "a.b"}
          - {template: "x{value}"}
          - {encrypt: {age: [PUBLIC]}, fields: ["pass*"]}
          - {decrypt: {age: "${AGE_KEY}"}}
"""


def target(text: str) -> Target:
    text = (FILE + text).replace("PUBLIC", PUBLIC)
    return parse(text.encode(), ENVIRONMENT, "f").syncs["nightly"].targets[0]


def test_everything_that_can_be_said_of_a_target_is_read() -> None:
    assert target(ALL) == Target(
        id="west",
        vault="west",
        prefix="shop/",
        name='{dir | upper}/{name | replace("_", "-")}.{field}',
        granularity=Granularity.FIELD,
        rename={"old/db": "main.{field}"},
        name_encoding=NameEncoding.REVERSIBLE,
        fields=FieldRules(
            split=("config",),
            include=("*",),
            exclude=("debug", "tmp-*"),
            rename={"user": "login"},
            constants={"engine": "postgres"},
            build=(
                Build("env", Form.DOTENV, ("DB_*",), keep=True),
                Build("url", Form.TEMPLATE, template="{fields.login}@{path}"),
                Build("all", Form.JSON, ("a", "b")),
            ),
        ),
        transform=(
            Base64(decode=True, fields=("cert",)),
            Base64(),
            Trim(Ends.END),
            JsonPick("a.b"),
            Fill("x{value}"),
            Encrypt((PUBLIC,), fields=("pass*",)),
            Decrypt((str(IDENTITY),)),
        ),
    )


def test_a_target_that_says_nothing_is_what_it_always_was() -> None:
    plain = target("")
    assert plain == Target("west", "west")
    # Stands in rows of installations: another one would make all of their secrets due again.
    assert Mapper(plain, NameRule()).recipe == "9554a5152beb"


def test_a_private_key_may_not_stand_in_the_file() -> None:
    with pytest.raises(InvalidConfig) as caught:
        target(f"        transform: [{{decrypt: {{age: {IDENTITY}}}}}]\n")
    assert str(caught.value) == (
        "f:9: syncs.nightly.targets[0].transform[0].decrypt.age: a private key can not stand in the file (put it in the "
        "environment: '${NAME}')"
    )


def test_a_renamed_path_that_the_sync_leaves_out_is_a_warning() -> None:
    text = FILE + "        rename: {tmp: a, kept: b}\n    exclude: [tmp]\n"
    assert parse(text.encode(), ENVIRONMENT, "f").warnings == (
        "f:9: syncs.nightly.targets[0].rename.tmp: this path is not carried: excluded by 'tmp'",
    )


def test_keys_and_constants_are_in_no_repr_of_the_configuration() -> None:
    config = parse((FILE + ALL).replace("PUBLIC", PUBLIC).encode(), ENVIRONMENT, "f")
    assert str(IDENTITY) not in repr(config)
    assert "postgres" not in repr(config)


DOCUMENTED = re.findall(
    r"^```yaml\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "mapping.md").read_text("utf-8"), re.M | re.S
)


@pytest.mark.parametrize("text", DOCUMENTED)
def test_what_the_documentation_shows_is_valid(text: str) -> None:
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    file = FILE.partition("    targets:")[0] + indented
    vaults = "".join(f'  {name}: {{kind: file, path: {name}, key: "${{KEY}}"}}\n' for name in ("prod", "escrow"))
    config = parse(
        file.replace("vaults:\n", "vaults:\n" + vaults, 1).encode(),
        ENVIRONMENT | {"AGE_RECIPIENT": PUBLIC},
        "docs/mapping.md",
    )
    assert config.warnings == ()


def test_the_example_is_read() -> None:
    example = Path(__file__).parents[2] / "examples" / "names-and-values.yaml"
    config = load(str(example), {"VAULT_TOKEN": "t", "AGE_RECIPIENT": PUBLIC})
    plain, sealed = (Mapper(each, NameRule()) for each in config.syncs["shop"].targets)
    fields = {"host": "h", "user": "u", "pass": "p", "debug": "1"}
    assert {name: dict(each.secret.fields) for name, each in plain.render("eu/DB", fields).items()} == {
        "shop-eu-db": {"value": "postgres://u:p@h/shop"}
    }
    assert sealed.seals
