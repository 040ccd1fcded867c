"""http_api in the configuration: what is found at validation, and how it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from shared.config import InvalidConfig
from shared.config.build import parse
from shared.config.result import Config

OPERATIONS: dict[str, Any] = {
    "list": {"path": "/secrets", "items": "data", "name": "name"},
    "get": {"path": "/secrets/{name}", "value": "value"},
    "set": {"path": "/secrets/{name}", "body": {"value": "{value}"}},
    "delete": {"path": "/secrets/{name}"},
}
FIELDS: dict[str, Any] = OPERATIONS | {
    "get": {"path": "/secrets/{name}", "fields": "fields"},
    "set": {"path": "/secrets/{name}", "body": {"fields": "{fields}"}},
}
ONE = ["get", "set", "delete"]
LITERAL = "s3cr3t-in-the-file"


def load(vault: dict[str, Any], sync: dict[str, Any] | None = None) -> Config:
    given = {"kind": "http_api", "base_url": "https://api.example", "auth": {"type": "none"}, "operations": OPERATIONS}
    document = {
        "vaults": {"legacy": given | vault, "backup": {"kind": "file", "path": "x", "key": "${KEY}"}},
        "syncs": {"nightly": sync} if sync else {},
    }
    environment = {"KEY": "a passphrase that is long enough", "TOKEN": "from-the-environment"}
    return parse(yaml.safe_dump(document).encode(), environment, "vaultferry.yaml")


def problems(vault: dict[str, Any], sync: dict[str, Any] | None = None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        load(vault, sync)
    return "\n".join(map(str, caught.value.problems))


def without(*names: str) -> dict[str, Any]:
    return {name: each for name, each in OPERATIONS.items() if name not in names}


def changed(name: str, **more: Any) -> dict[str, Any]:
    return {"operations": OPERATIONS | {name: OPERATIONS.get(name, {}) | more}}


TO_IT = {"source": {"vault": "backup"}, "targets": [{"vault": "legacy"}]}
FROM_IT = {"source": {"vault": "legacy"}, "targets": [{"vault": "backup"}]}


@pytest.mark.parametrize(
    ("lacking", "sync", "told"),
    [
        ("set", TO_IT, "targets[0].vault: sync 'nightly' writes to vault 'legacy', which has no operation 'set'"),
        ("list", TO_IT, "no operation 'list'"),
        ("list", FROM_IT, "source.vault: sync 'nightly' reads from vault 'legacy', which has no operation 'list'"),
        ("get", FROM_IT, "no operation 'get'"),
        ("delete", TO_IT | {"delete": {"propagate": True}}, "no operation 'delete'"),
    ],
)  # fmt: skip
def test_a_sync_that_needs_what_is_not_configured_fails_validation(
    lacking: str, sync: dict[str, Any], told: str
) -> None:
    assert told in problems({"operations": without(lacking)}, sync)


def test_a_sync_that_does_not_need_it_is_well() -> None:
    assert load({"operations": without("delete")}, TO_IT).syncs
    assert load({"operations": without("set", "delete")}, FROM_IT).syncs


@pytest.mark.parametrize(
    ("auth", "place"),
    [
        ({"type": "bearer", "token": LITERAL}, "vaults.legacy.auth.token"),
        ({"type": "basic", "username": "ferry", "password": LITERAL}, "vaults.legacy.auth.password"),
        ({"type": "api_key", "key": LITERAL}, "vaults.legacy.auth.key"),
        ({"type": "headers", "headers": {"X-A": LITERAL, "X-B": "${TOKEN}"}}, "vaults.legacy.auth.headers.X-A"),
        (
            {
                "type": "oauth2_client_credentials",
                "token_url": "https://login.example/token",
                "client_id": "ferry",
                "client_secret": LITERAL,
            },
            "vaults.legacy.auth.client_secret",
        ),
    ],
)
def test_a_credential_in_the_file_is_a_warning_and_one_from_the_environment_is_not(
    auth: dict[str, Any], place: str
) -> None:
    [warning] = load({"auth": auth}).warnings
    assert place in warning
    assert LITERAL not in warning
    assert load({"auth": json.loads(json.dumps(auth).replace(LITERAL, "${TOKEN}"))}).warnings == ()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"headers": {"X-Tenant-Token": LITERAL}}, "headers.X-Tenant-Token"),
        (changed("get", headers={"X-Secret": LITERAL}), "operations.get.headers.X-Secret"),
        (changed("get", query={"token": LITERAL}), "operations.get.query.token"),
        (changed("set", body={"value": "{value}", "auth": {"password": LITERAL}}), "operations.set.body.auth.password"),
    ],
)
def test_what_is_called_like_a_credential_in_a_request_is_a_warning_too(given: dict[str, Any], place: str) -> None:
    [warning] = load(given).warnings
    assert place in warning
    assert LITERAL not in warning
    assert load(json.loads(json.dumps(given).replace(LITERAL, "${TOKEN}"))).warnings == ()


def test_what_is_no_credential_is_no_warning() -> None:
    given = changed("set", body={"password": "{value}", "tokens": "none"}, query={"page_token": ""})
    assert load(given | {"headers": {"X-Client": "ferry"}}).warnings == ()
    mapped = {"operations": FIELDS, "field_mapping": {"password": "secret"}}
    assert load(mapped).warnings == ()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (changed("get", path="/secrets/{nmae}"), "known: {name}, {folder}, {base}, {id}"),
        (changed("get", path="/x/{value}"), "a placeholder that is not known here"),
        (changed("set", body={"value": "{field:}"}), "a placeholder that is not known here"),
        (changed("set", query={"v": "{value}"}), "`query` has a placeholder that is not known here"),
        (changed("list", path="/x/{name}"), "known: {prefix}"),
        (changed("get", query={"n": "{name|path}"}), "behind a '|'"),
        (changed("get", value="a[?b"), "not a JMESPath expression, from its character 5 on"),
        (changed("list", items="a..b"), "not a JMESPath expression"),
        (changed("get", path="secrets/{name}"), "begins with a '/'"),
        (changed("get", path="/a/../b/{name}"), "'.' or '..' segments"),
        (changed("get", path="/a?x={name}"), "belong under `query`"),
        (changed("get", headers={"Authorization": "x"}), "belong under `auth`"),
        (changed("get", path="/secrets/{Name}"), "a placeholder that is not known here"),
        (changed("get", path="/secrets/{{name}}"), "a brace that belongs to no placeholder"),
        (changed("get", path="/secrets/{name"), "a brace that belongs to no placeholder"),
        *((changed(each, path="/secrets"), f"`{each}` says nowhere which secret is meant") for each in ONE),
        (changed("get", value="nosuch(data)"), "no function of that name"),
        (changed("list", where="!(a && nosuch(b[?c].d))"), "no function of that name"),
        (changed("get", method="get"), "matches ^[A-Z]+$"),
        (changed("get", headers={"X-Auth-Token": "x"}), "belong under `auth`"),
        (changed("get", query={"API_KEY": "x"}), "belong under `auth`"),
        (changed("describe", path="/{name}", version="v"), "HEAD has no body"),
        (changed("describe", path="/{name}", etag=True, absent="e"), "HEAD has no body"),
        (changed("get", fields="fields"), "give one of `value`"),
        (changed("get", value=None), "give one of `value`"),
        (changed("set", body={"value": "x"}), "`body` needs one of {value}"),
        (changed("set", body={"value": "{value}", "all": "{fields}"}), "`body` needs one of"),
        (changed("set", body={"fields": "{fields}"}), "`get` and `set` differ"),
        (changed("set", method="GET"), "values never go into an address"),
        (changed("set", body={"value": "a {fields}"}), "stands alone"),
        (changed("set", body={"a": "{field}", "b": "{field_value}"}), "elements of a list"),
        (changed("set", body="{value}"), "add `body_type: text`"),
        (changed("set", body={"value": "{value}", "kind": "{content_type}"}), "go together"),
        (changed("delete", path="/{id}"), "`delete` has {id}"),
        (changed("list", version="v"), "`list` has `version`, so `get`"),
        (changed("set", etag=True), "with `etag` on `set`"),
        (changed("delete", etag=True), "goes with `etag` on `set`"),
        (changed("list", pages={"type": "cursor"}), "need `next`"),
        (changed("list", pages={"type": "page", "next": "x"}), "belongs to pages of type cursor or link"),
        (changed("list", items="data[?a]", pages={"type": "page"}), "put the condition into `where`"),
        (changed("list", tree=True), "{prefix} says which folder"),
        (changed("list", expect=[20]), "at least 100"),
        (changed("list", name_pattern="secrets/.*"), "a regular expression with one group"),
        ({"operations": {"set": OPERATIONS["set"]}}, "at least `list` and `get`"),
        ({"field_mapping": {"password": "pw"}}, "of no use here"),
        ({"operations": FIELDS, "field_mapping": {"a": "x", "b": "x"}}, "two fields that the API would call the same"),
        (
            {
                "operations": FIELDS | {"set": {"path": "/{name}", "body": {"user": "{field:user}"}}},
                "field_mapping": {"password": "pw"},
            },
            "fields that `set` does not carry",
        ),
        ({"base_url": "https://user:pw@api.example"}, "credentials belong under auth"),
        ({"base_url": "api.example"}, "expected an address"),
        ({"client_key": "x.pem"}, "without client_cert"),
        ({"names": {"allowed": "[A-Z"}}, "not a regular expression"),
        ({"names": {"allowed": "[A-Z]"}}, "`replacement` is not an allowed character"),
        ({"transient": [400], "permanent": [400]}, "both `transient` and `permanent`"),
        ({"auth": {"type": "api_key", "key": "${TOKEN}", "header": "X", "query": "k"}}, "not both"),
        ({"auth": {"type": "bearer", "token": "${TOKEN}\n"}}, "line break at its end"),
        ({"auth": {"type": "basic", "username": "a:b", "password": "${TOKEN}"}}, "a name without ':'"),
        ({"auth": {"type": "baerer"}}, "did you mean 'bearer'"),
    ],
)
def test_what_is_wrong_is_told_with_what_would_be_right(given: dict[str, Any], told: str) -> None:
    assert told in problems(given)


def test_no_message_repeats_what_was_given() -> None:
    given = changed("get", path=f"/{{{LITERAL.replace('-', '_')}}}", value=f"[{LITERAL}") | {
        "auth": {"type": "bearer", "token": f"{LITERAL}\n"}
    }
    told = problems(given)
    assert LITERAL not in told
    assert LITERAL.replace("-", "_") not in told


@pytest.mark.parametrize(
    "given",
    [
        changed("get", path="/secret", query={"key": "{folder}/{base}"}),
        changed("get", path="/secret", headers={"X-Name": "{name}"}),
        changed("set", path="/secrets", body={"secrets": {"{name}": "{value}"}}),
        changed("delete", path="/delete", method="POST", body={"names": ["{name}"]}),
    ],
)
def test_which_secret_is_meant_may_be_said_anywhere(given: dict[str, Any]) -> None:
    assert load(given).vaults


def test_a_body_may_be_written_as_json_where_there_are_numbers() -> None:
    config = load(changed("set", body='{"value": "{value}", "hidden": true, "ttl": 60, "of": null}'))
    body = config.vaults["legacy"].operations.set.body  # type: ignore[attr-defined]
    assert body == {"value": "{value}", "hidden": True, "ttl": 60, "of": None}
