"""What a valid configuration comes to."""

import itertools
import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
import yaml
from croniter import croniter
from hypothesis import given
from hypothesis import strategies as st

from shared.config import InvalidConfig, find_config, load, outline, schema
from shared.config.build import parse
from shared.config.scaffold import scaffold
from shared.config.schedule import normalise_schedule
from shared.config.sketch import outline_of
from shared.errors import ConfigError
from shared.model import DeletePolicy, Granularity, OnExisting, RetryPolicy, Source, Sync, Target

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
ENVIRONMENT = dict.fromkeys(
    (
        "VAULT_TOKEN", "ROLE_ID", "SECRET_ID", "IDENTITY_CLIENT_ID", "CHINA_TENANT_ID", "CHINA_CLIENT_ID",
        "CHINA_CLIENT_SECRET", "BRANCH_JWT", "BACKUP_KEY", "DOPPLER_TOKEN", "DOPPLER_PROJECT", "DOPPLER_CONFIG",
        "INFISICAL_TOKEN", "INFISICAL_PROJECT", "INFISICAL_ENVIRONMENT", "GITLAB_TOKEN", "GITLAB_PROJECT",
        "OP_CONNECT_TOKEN", "OP_VAULT", "VW_PASSWORD", "VW_CLIENT_SECRET", "LEGACY_API_KEY",
    ),
    "a value from the environment",
) | {
    "VAULT_ADDR": "https://vault.example:8200", "OP_CONNECT_HOST": "https://connect.example",
    "VW_EMAIL": "ferry@example.org", "VW_CLIENT_ID": "user.1",
    "AGE_RECIPIENT": "age199jv5jcdprx58s7j838zf7wu8804l7aklnpqemnhqjx3vafr4e8su333dl",
}  # fmt: skip
VAULTS = """\
vaults:
  hub: {kind: azure_key_vault, url: https://hub.vault.azure.net}
  prod: {kind: azure_key_vault, url: https://prod.vault.azure.net}
"""


def one_sync(body: str = "", env: dict[str, str] | None = None) -> Sync:
    text = VAULTS + "syncs:\n  nightly:\n    source: {vault: hub}\n    targets: [{vault: prod}]\n"
    text += "".join(f"    {line}\n" for line in body.splitlines())
    return parse(text.encode(), env or {}, "vaultferry.yaml").syncs["nightly"]


def test_the_defaults_are_those_of_the_interface() -> None:
    assert one_sync() == Sync(
        id="nightly",
        source=Source("hub", "", "secrets"),
        targets=(Target("prod", "prod", "", "{path}", Granularity.SECRET),),
        type="unidirectional",
        schedule=None,
        enabled=True,
        include=("**",),
        exclude=(),
        verify_targets=True,
        on_existing=OnExisting.OVERWRITE,
        delete=DeletePolicy(propagate=False, max_percent=25, min_count=5),
        conflict="newest",
        retry_policy=RetryPolicy(3, 1_000, 60_000, 2.0),
    )


def test_everything_that_is_given_arrives() -> None:
    text = (
        VAULTS
        + """
history: {retention: 36h}
syncs:
  all:
    schedule: "0 */6 * * mon"
    enabled: false
    source: {vault: hub, prefix: apps/, resource: policies}
    targets:
      - {id: first, vault: prod, prefix: x/, granularity: field}
      - {vault: prod, name: "{path}.json"}
    include: [a/*, "regex:b+"]
    exclude: [c]
    verify_targets: false
    on_existing: fail
    delete: {propagate: true, max_percent: 12.5, min_count: 0}
    conflict: manual
    retry_policy: {max_retries: 0, initial_backoff: 5, max_backoff: 6, multiplier: 1}
"""
    )
    config = parse(text.encode(), {}, "here")
    assert (config.history_retention, config.origin, list(config.vaults)) == (
        timedelta(hours=36),
        "here",
        ["hub", "prod"],
    )
    assert config.syncs["all"] == Sync(
        id="all",
        source=Source("hub", "apps/", "policies"),
        targets=(
            Target("first", "prod", "x/", "{path}-{field}", Granularity.FIELD),
            Target("prod", "prod", "", "{path}.json", Granularity.SECRET),
        ),
        schedule="0 0 */6 * * mon",
        enabled=False,
        include=("a/*", "regex:b+"),
        exclude=("c",),
        verify_targets=False,
        on_existing=OnExisting.FAIL,
        delete=DeletePolicy(True, 12.5, 0),
        conflict="manual",
        retry_policy=RetryPolicy(0, 5, 6, 1.0),
    )


def test_a_configuration_can_not_be_changed() -> None:
    config = parse(VAULTS.encode(), {}, "here")
    with pytest.raises(TypeError):
        config.vaults["x"] = config.vaults["hub"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "meant"),
    [("on", True), ("yes", True), ("true", True), ("TRUE", True), ("off", False), ("no", False), ('"false"', False)],
)
def test_yaml_1_1_booleans_mean_what_they_say(text: str, meant: bool) -> None:
    assert one_sync(f"enabled: {text}").enabled is meant


def test_scalars_are_what_their_key_expects() -> None:
    text = """
vaults:
  "no": {kind: hashicorp, address: https://vault.example, mount: 0123, kv_version: 2, namespace: ~,
         concurrency: 0x10, auth: {method: approle, role_id: 2024-01-01, secret_id: 1_000}}
"""
    with pytest.raises(InvalidConfig, match=r"vaults\.no\.concurrency: expected a whole number"):
        parse(text.encode(), {}, "here")
    vault = parse(text.replace("0x10", "16").encode(), {}, "here").vaults["no"].model_dump()
    assert (vault["mount"], vault["kv_version"], vault["namespace"], vault["concurrency"]) == ("0123", 2, None, 16)
    assert vault["auth"]["role_id"] == "2024-01-01"
    assert vault["auth"]["secret_id"].get_secret_value() == "1_000"


def test_merge_keys_give_way_to_what_is_written_and_to_earlier_ones() -> None:
    text = """
vaults:
  a: &a {kind: azure_key_vault, url: https://a.vault.azure.net, concurrency: 1, requests_per_second: 1}
  b: &b {<<: *a, url: https://b.vault.azure.net, concurrency: 2}
  c: {url: https://c.vault.azure.net, <<: [*b, *a]}
"""
    vaults = parse(text.encode(), {}, "here").vaults
    seen = [(vault.model_dump()["url"][8], vault.concurrency, vault.requests_per_second) for vault in vaults.values()]
    assert seen == [("a", 1, 1.0), ("b", 2, 1.0), ("c", 2, 1.0)]


# --- the environment ----------------------------------------------------------------------------------------------


def test_references_are_resolved_before_types_are() -> None:
    body = "enabled: ${ON:-false}\nretry_policy:\n  max_retries: ${N:-4}\n  max_backoff: '${A}00${B:-0}'"
    assert one_sync(body, {"A": "10", "N": "7"}).retry_policy == RetryPolicy(7, 1_000, 10_000, 2.0)
    assert one_sync(body, {"A": "10", "N": ""}).retry_policy.max_retries == 4
    assert one_sync(body, {"A": "10", "ON": "on"}).enabled is True


def test_a_dollar_can_be_meant() -> None:
    assert one_sync("include: ['$${X}', '$X', 'a$$b', '$$', '${Y:-$}']").include == ("${X}", "$X", "a$$b", "$$", "$")


def test_an_unset_optional_is_as_if_it_were_not_there() -> None:
    assert one_sync("schedule: ${WHEN:-}").schedule is None


@given(st.text())
def test_the_environment_can_never_become_structure(value: str) -> None:
    body = 'include: ["x${V}"]\nexclude:\n  - x${V}y'
    sync = one_sync(body, {"V": value})
    assert (sync.include, sync.exclude) == ((f"x{value}",), (f"x{value}y",))


def test_the_variables_of_all_missing_references_are_named_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        one_sync("schedule: ${ONE}\nconflict: ${TWO}")
    assert [problem.message for problem in caught.value.problems] == [
        "the environment variable ONE is not set",
        "the environment variable TWO is not set",
    ]


# --- warnings -----------------------------------------------------------------------------------------------------


def test_unwise_things_are_warned_about_without_their_values() -> None:
    text = """
vaults:
  a: {kind: hashicorp, address: http://vault.example:8200, auth: {method: approle, role_id: r, secret_id: CANARY}}
  b: {kind: hashicorp, address: http://127.0.0.1:8200, auth: {method: approle, role_id: r, secret_id: "${S}"}}
  c: {kind: hashicorp, address: "http://[::1]:8200", auth: {method: approle, role_id: r, secret_id: "${X:-CANARY}"}}
"""
    config = parse(text.encode(), {"S": "CANARY"}, "f")
    assert sorted(config.warnings) == [
        "f:3: vaults.a.address: plain http: secrets and credentials cross the network unencrypted",
        "f:3: vaults.a.auth.secret_id: a credential stands in the file; put it in the environment and write ${NAME}",
        "f:5: vaults.c.auth.secret_id: a credential stands in the file; put it in the environment and write ${NAME}",
    ]
    assert "CANARY" not in repr(config)


# --- schedules ----------------------------------------------------------------------------------------------------

FIELDS = [
    st.one_of(
        st.just("*"),
        st.integers(1, high).map(lambda n: f"*/{n}"),
        st.lists(st.integers(low, high).map(str), min_size=1, max_size=3).map(",".join),
        st.tuples(st.integers(low, high), st.integers(low, high), st.sampled_from(["", "/2"])).map(
            lambda span: f"{min(span[:2])}-{max(span[:2])}{span[2]}"
        ),
    )
    for low, high in ((0, 59), (0, 59), (0, 23), (1, 28), (1, 12), (0, 6))
]


@given(st.tuples(*FIELDS).map(" ".join))
def test_each_accepted_schedule_is_one_to_croniter_too(schedule: str) -> None:
    normal = normalise_schedule(schedule)
    timer = croniter(normal, datetime(2026, 1, 1), second_at_beginning=True, day_or=False)
    assert timer.get_next(datetime) > datetime(2026, 1, 1)


def test_five_fields_fire_at_second_zero() -> None:
    assert normalise_schedule("*/5  1-3 * Jan,MAR sun") == "0 */5 1-3 * Jan,MAR sun"
    assert normalise_schedule("30 0 0 1 1 *") == "30 0 0 1 1 *"


@pytest.mark.parametrize("text", ["", "* * * *", "* * * * * * *", "a * * * *", "5/2 * * * *", "*/0 * * * *", "3-1 * * * *",
                                  "-1 * * * *", "1,,2 * * * *", "* * 0 * *", "* * L * *", "* * * * mon#1", "٣ * * * *",
                                  "*/x * * * *", "1- * * * *", "* * 31 2,4 *"])  # fmt: skip
def test_what_only_some_cron_understands_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(expected|the |there )"):
        normalise_schedule(text)


# --- finding and outlining ----------------------------------------------------------------------------------------


def test_the_file_is_searched_in_the_promised_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="VAULTFERRY_CONFIG is not set") as caught:
        find_config(None, {})
    assert "vaultferry init" in str(caught.value)
    Path("vaultferry.yaml").touch()
    assert find_config(None, {}) == "vaultferry.yaml"
    assert find_config(None, {"VAULTFERRY_CONFIG": "other.yaml"}) == "other.yaml"
    assert find_config("mine.yaml", {"VAULTFERRY_CONFIG": "other.yaml"}) == "mine.yaml"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_outline_agrees_with_the_whole(path: Path) -> None:
    assert outline(str(path), ENVIRONMENT) == outline_of(load(str(path), ENVIRONMENT))


@pytest.mark.parametrize("enabled", ["yes", "'${E:-on}'", "'false'"])
def test_an_outline_in_doubt_asks_the_whole(tmp_path: Path, enabled: str) -> None:
    path = tmp_path / "vaultferry.yaml"
    path.write_text(
        VAULTS + "syncs:\n  a: {source: {vault: hub}, targets: [{vault: prod}], schedule: 0 1 * * *, "
        f"enabled: {enabled}}}\n"
    )
    found = outline(str(path), {})
    assert found == outline_of(load(str(path), {}))
    assert found.schedules == ({} if "false" in enabled else {"a": "0 0 1 * * *"})
    assert found.written_vaults == ("prod",)


def test_an_outline_of_what_makes_no_sense_tells_all_problems(tmp_path: Path) -> None:
    path = tmp_path / "vaultferry.yaml"
    path.write_text(VAULTS + "syncs:\n  a: {targets: [{vault: nowhere}], schedule: x}\n")
    with pytest.raises(InvalidConfig) as caught:
        outline(str(path), {})
    assert len(caught.value.problems) == 3


def test_an_outline_loads_neither_pydantic_nor_an_sdk() -> None:
    code = (
        "import sys, shared.config as c; c.outline(sys.argv[1], {'VAULT_TOKEN': 'x'});"
        "print([name for name in ('pydantic', 'croniter', 'azure', 'hvac', 'aiohttp') if name in sys.modules])"
    )
    example = str(EXAMPLES[0].parent / "vault-to-key-vault.yaml")
    done = subprocess.run([sys.executable, "-c", code, example], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_takes_no_sdk() -> None:
    code = (
        "import sys, shared.config as c; c.load(sys.argv[1], {'VAULT_TOKEN': 'x'});"
        "print([name for name in ('croniter', 'azure', 'hvac', 'aiohttp') if name in sys.modules])"
    )
    example = str(EXAMPLES[0].parent / "vault-to-key-vault.yaml")
    done = subprocess.run([sys.executable, "-c", code, example], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- examples, schema, scaffold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_valid_to_us_and_to_editors(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=./vaultferry.schema.json\n")
    assert load(str(path), ENVIRONMENT).warnings == ()
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(path.read_text()))


def test_each_example_is_in_their_table() -> None:
    table = (EXAMPLES[0].parent / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"\]\((\S+\.yaml)\)", table)) == [path.name for path in EXAMPLES]


def test_the_committed_schema_is_current() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    committed = json.loads((EXAMPLES[0].parent / "vaultferry.schema.json").read_text())
    assert committed == schema(), "write it anew: make reference"


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for word in ("unknown-key-on-top", "required-key-missing", "auth-method-misspelt", "granularity", "max-percent",
                     "concurrency-as-text", "sync-id", "targets-empty")
        for path in (Path(__file__).parent / "broken").glob(f"{word}.yaml")
    ),
    ids=lambda path: path.stem,
)  # fmt: skip
def test_editors_see_what_is_wrong_too(path: Path) -> None:
    assert not jsonschema.Draft202012Validator(schema()).is_valid(yaml.safe_load(path.read_text()))


SIDES = ("hashicorp=http://127.0.0.1:8200", "VAULT=https://vault.example", "azure_key_vault=https://a.vault.azure.net",
         "akv=https://b.vault.azure.net", "https://c.vault.azure.cn", "http://localhost:8200", "file=backup.vault",
         "http_api=https://api.example/v1",
         "bitwarden=https://vw.example/", "./my 'odd' ${file}.vault")  # fmt: skip


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(SIDES, 2)))
def test_a_first_file_is_always_valid(source: str, target: str) -> None:
    text = scaffold([source], [target])
    keys = {"HUB_KEY", "BACKUP_KEY", "API_KEY", "MY-ODD-FILE_KEY".replace("-", "_")}
    config = parse(text.encode(), {**ENVIRONMENT, **dict.fromkeys(keys, "a passphrase long enough")}, "f")
    (sync,) = config.syncs.values()
    assert len(sync.targets) == 1
    assert not [warning for warning in config.warnings if "credential" in warning]


def test_a_first_file_has_one_sync_to_several_targets() -> None:
    text = scaffold(["vault=http://127.0.0.1:8200"], ["akv=https://a.vault.azure.net", "akv=https://b.vault.azure.net"])
    config = parse(text.encode(), ENVIRONMENT, "f")
    assert [target.vault for target in config.syncs["hub-to-all"].targets] == ["a", "b"]
    assert config.vaults["a"].model_dump()["url"] == "https://a.vault.azure.net"


def test_several_sources_do_not_meet_on_one_name() -> None:
    text = scaffold(["https://a.vault.azure.net", "https://b.vault.azure.net"], ["vault=http://127.0.0.1:8200"])
    syncs = parse(text.encode(), ENVIRONMENT, "f").syncs
    assert [(sync.source.vault, sync.targets[0].prefix) for sync in syncs.values()] == [("a", "a/"), ("b", "b/")]


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([], ["file=x"], "init needs at least one --source and one --target"),
        (["hashicrop=http://x"], ["file=x"], "did you mean 'hashicorp'"),
        (["hashicorp="], ["file=x"], "expected an address behind 'hashicorp='"),
        (["file=x"], ["file=x"], "a source can not be a target"),
        (["ftp://x"], ["file=x"], "expected KIND=ADDRESS"),
        (["a\nb"], ["file=x"], "an address can not hold control characters"),
    ],
)
def test_a_first_file_of_nonsense_is_refused(sources: list[str], targets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scaffold(sources, targets)


MANY = ["http://127.0.0.1:8201,https://vault-east.example:8200/", "akv=https://contoso.vault.azure.net,backup.vault"]
FIRST_FILE = """\
# Vaultferry's configuration. `vaultferry validate` checks it, `vaultferry check` connects to the vaults,
# `vaultferry plan` shows what a sync would do, `vaultferry sync` does it.
# ${NAME} and ${NAME:-default} come from the environment: no credential belongs in here.
# `vaultferry setup hub --print-policy` prints the least that its token has to be allowed.
# One VAULT_TOKEN serves all Vaults; one with a token of its own gets its own name, as ${OTHER_TOKEN}.
# Changes in hub arrive in moments while `vaultferry serve --listen tcp://127.0.0.1:1269` runs on
# its machine, once `vaultferry setup hub --address 127.0.0.1:1269` has made Vault tell of them.

vaults:
  hub:
    kind: hashicorp
    address: 'http://127.0.0.1:8200'
    mount: secret                   # where the KV engine is; its version is found out
    auth: {method: token, token: "${VAULT_TOKEN}"}   # or approle, kubernetes, jwt, azure
  copy:
    kind: hashicorp
    address: 'http://127.0.0.1:8201'
    mount: secret                   # where the KV engine is; its version is found out
    auth: {method: token, token: "${VAULT_TOKEN}"}   # or approle, kubernetes, jwt, azure
  vault-east:
    kind: hashicorp
    address: 'https://vault-east.example:8200'
    mount: secret                   # where the KV engine is; its version is found out
    auth: {method: token, token: "${VAULT_TOKEN}"}   # or approle, kubernetes, jwt, azure
  contoso:
    kind: azure_key_vault
    url: 'https://contoso.vault.azure.net'
    auth: {method: default}         # environment, managed identity or Azure CLI; or managed_identity, service_principal
  backup:
    kind: file
    path: 'backup.vault'
    key: "${BACKUP_KEY}"            # 32 bytes in base64, or a passphrase of at least 20 characters

syncs:
  hub-to-all:
    # schedule: "0 */6 * * *"       # UTC; without one, events and `vaultferry sync` run it
    source: {vault: hub, prefix: ""}   # a prefix ends at a '/'
    targets:
      - {vault: copy, prefix: ""}
      - {vault: vault-east, prefix: ""}
      - {vault: contoso, prefix: ""}
      - {vault: backup, prefix: ""}
    include: ["**"]                 # '*' stops at '/', '**' does not
    exclude: []
    delete: {propagate: false}      # true: what is deleted at the source is deleted on the targets
"""


def test_plain_addresses_and_lists_make_the_whole_file() -> None:
    text = scaffold(["http://127.0.0.1:8200"], MANY)
    assert text == FIRST_FILE
    environment = {"VAULT_TOKEN": "hvs.x", "BACKUP_KEY": "a passphrase long enough"}
    config = parse(text.encode(), environment, "f")
    assert config.warnings == ()
    assert [target.vault for target in config.syncs["hub-to-all"].targets] == [
        "copy",
        "vault-east",
        "contoso",
        "backup",
    ]


@pytest.mark.parametrize(
    ("source", "target", "ids"),
    [
        ("http://a:1/,http://b:1", "http://c:1", ["hub", "b", "c"]),
        (
            "http://localhost:1",
            "http://localhost:2,http://[::1]:3,http://10.0.0.1:4",
            ["hub", "copy", "copy-2", "copy-3"],
        ),
        ("https://a.vault.azure.net", "http://b:1", ["a", "b"]),
        ("http://a:1", "http://b:1, http://b:1/", ["hub", "b"]),
        ("HTTPS://A.VAULT.AZURE.NET", "./x.vault,/tmp/x.vault", ["a", "x", "x-2"]),
    ],
)
def test_vaults_get_ids_that_tell_them_apart(source: str, target: str, ids: list[str]) -> None:
    text = scaffold([source], [target])
    keys = {"X_KEY", "X_2_KEY"}
    config = parse(text.encode(), {**ENVIRONMENT, **dict.fromkeys(keys, "a passphrase long enough")}, "f")
    assert list(config.vaults) == ids


@pytest.mark.parametrize("targets", ["http://a:1,", ",", "http://a:1,,http://b:1"])
def test_a_list_with_nothing_between_its_commas_is_refused(targets: str) -> None:
    with pytest.raises(ConfigError, match="expected KIND=ADDRESS, a URL or the path of a file"):
        scaffold(["http://127.0.0.1:8200"], [targets])
