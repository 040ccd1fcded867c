"""The sandbox's Vault against the real one: the same requests, and the answers must be the same.

What differs by nature (ids, times, tokens) is replaced by its kind before the comparison; all else, the texts of errors
included, is compared as it stands. This is what makes a green test against the sandbox worth something.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from sandbox.vault import VaultSandbox
from tests.servers import processes
from tests.servers.processes import RealVault

pytestmark = pytest.mark.real

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_VOLATILE = {
    "accessor", "client_id", "client_token", "creation_time", "display_name", "entity_id", "hash", "id", "last_renewal_time",
    "migration_id", "request_id", "role_id", "running_plugin_version", "secret_id", "secret_id_accessor", "ttl", "uuid",
}  # fmt: skip
PATCH = {"Content-Type": "application/merge-patch+json"}


@dataclass(frozen=True)
class Step:
    """One request. `$name` in path, body and token stands for what an earlier step saved."""

    method: str
    path: str
    body: str | None = None
    token: str | None = "$root"
    headers: dict[str, str] = field(default_factory=dict)
    texts: bool = True  # False: the status alone, where Vault's words come from Go's libraries
    save: tuple[str, ...] = ()  # name, then the keys that lead to the value


def s(method: str, path: str, body: Any = None, **more: Any) -> Step:
    return Step(method, path, body if body is None or isinstance(body, str) else json.dumps(body), **more)


def patch(path: str, body: Any, **more: Any) -> Step:
    return s("PATCH", path, body, headers=PATCH, **more)


KV2 = [
    s("POST", "sys/mounts/two", {"type": "kv", "options": {"version": "2"}}),
    s("GET", "two/data/none"),
    s("GET", "two/metadata/none"),
    s("LIST", "two/metadata/"),
    s("POST", "two/data/a/b", {"data": {"s": '<&>é\n"', "z": None, "o": {"b": True, "a": [1, "2"]}, "e": ""}}),
    s("GET", "two/data/a/b"),
    s("POST", "two/data/a/b", {"options": {"cas": 0}, "data": {"n": 1}}),
    s("POST", "two/data/a/b", {"options": {"cas": 1}, "data": {"n": 1}}),
    s("POST", "two/data/a/b", {"options": {"cas": "2"}, "data": {"n": 2}}),
    s("POST", "two/data/a/b", {"options": {"cas": "x"}, "data": {"n": 1}}),
    s("POST", "two/data/a/b", '{"options":{"cas":3.0},"data":{"n":1}}'),
    s("POST", "two/data/a/b", {"options": {"cas": None}, "data": {"n": 1}}),
    s("POST", "two/data/a/b", {"options": {"cas": -1}, "data": {"n": 1}}),
    s("POST", "two/data/fresh", {"options": {"cas": 0}, "data": {"n": 1}}),
    s("POST", "two/data/a/b", {"options": {}}),
    s("POST", "two/data/a/b", {"data": "x"}),
    s("POST", "two/data/a/b"),
    s("PUT", "two/data/a/b", {"data": {}}),
    s("POST", "two/data/a/b", {"data": None}),
    s("GET", "two/data/a/b"),
    s("GET", "two/data/a/b?version=1"),
    s("GET", "two/data/a/b?version=0"),
    s("GET", "two/data/a/b?version=99"),
    s("GET", "two/data/a/b?version=x"),
    s("LIST", "two/metadata"),
    s("LIST", "two/metadata/"),
    s("LIST", "two/metadata/a"),
    s("LIST", "two/metadata/a/"),
    s("LIST", "two/metadata/a/b"),
    s("LIST", "two/metadata/zzz"),
    s("GET", "two/metadata/a?list=true"),
    s("GET", "two/metadata/a/?list=true"),
    s("GET", "two/metadata/a/"),
    s("GET", "two/metadata/a/b"),
    s("POST", "two/data/a/", {"data": {}}),
    s("POST", "two/data/", {"data": {}}),
    s("GET", "two/data/a/"),
    s("LIST", "two/data/a"),
    s("DELETE", "two/data/"),
    s("GET", "two/"),
    s("GET", "two"),
    s("GET", "two/foo"),
    s("POST", "two/foo", {}),
    s("DELETE", "two/foo"),
]
KV2_DELETE = [
    s("POST", "sys/mounts/del", {"type": "kv-v2"}),
    s("POST", "del/data/k", {"data": {"a": "1"}}),
    s("POST", "del/data/k", {"data": {"a": "2"}}),
    s("DELETE", "del/data/k"),
    s("GET", "del/data/k"),
    s("GET", "del/data/k?version=1"),
    s("LIST", "del/metadata/"),
    s("GET", "del/metadata/k"),
    s("POST", "del/data/k", {"options": {"cas": 0}, "data": {"a": "3"}}),
    patch("del/data/k", {"data": {"a": "3"}}),
    s("POST", "del/undelete/k", {"versions": [2]}),
    s("GET", "del/data/k"),
    s("GET", "del/metadata/k"),
    s("POST", "del/delete/k", {"versions": [1, 99]}),
    s("POST", "del/delete/k", {"versions": "2"}),
    s("GET", "del/data/k?version=1"),
    s("POST", "del/data/k", {"options": {"cas": 2}, "data": {"a": "3"}}),
    s("PUT", "del/destroy/k", {"versions": ["3"]}),
    s("GET", "del/data/k"),
    s("POST", "del/undelete/k", {"versions": [3]}),
    s("GET", "del/data/k"),
    s("GET", "del/metadata/k"),
    *(s("POST", f"del/{action}/k", {}) for action in ("delete", "undelete", "destroy")),
    *(s("POST", f"del/{action}/none", {"versions": [1]}) for action in ("delete", "undelete", "destroy")),
    s("DELETE", "del/data/none"),
    s("DELETE", "del/metadata/none"),
    s("DELETE", "del/metadata/k"),
    s("GET", "del/metadata/k"),
    s("LIST", "del/metadata/"),
    s("POST", "del/data/k", {"data": {"a": "again"}}),
    s("GET", "del/metadata/k"),
]
KV2_METADATA = [
    s("POST", "sys/mounts/meta", {"type": "kv-v2"}),
    s("POST", "meta/metadata/only", {"max_versions": 5}),
    s("GET", "meta/metadata/only"),
    s("GET", "meta/data/only"),
    s("LIST", "meta/metadata/"),
    s("DELETE", "meta/data/only"),
    s("POST", "meta/data/only", {"options": {"cas": 0}, "data": {"n": "1"}}),
    s("GET", "meta/metadata/only"),
    s("POST", "meta/metadata/empty", {}),
    s("GET", "meta/metadata/empty"),
    s("POST", "meta/data/k", {"data": {"m": "1", "n": {"x": "1", "y": "2"}, "l": ["1"]}}),
    patch("meta/data/k", {"data": {"m": None, "n": {"x": None, "z": {"deep": "1", "no": None}}, "l": ["2", None]}}),
    s("GET", "meta/data/k"),
    patch("meta/data/k", {"options": {"cas": 9}, "data": {"m": "2"}}),
    patch("meta/data/k", {"options": {"cas": 2}, "data": {"m": "2"}}),
    patch("meta/data/k", {"dat": {}}),
    patch("meta/data/none", {"data": {"m": "2"}}),
    s("PATCH", "meta/data/k", {"data": {"m": "2"}}, headers={"Content-Type": "application/json"}),
    s(
        "POST",
        "meta/metadata/k",
        {"max_versions": 2, "cas_required": True, "delete_version_after": "1h", "custom_metadata": {"k": "v"}},
    ),
    s("GET", "meta/metadata/k"),
    s("POST", "meta/data/k", {"data": {"n": "1"}}),
    s("POST", "meta/data/k", {"options": {"cas": 3}, "data": {"n": "1"}}),
    s("GET", "meta/data/k"),
    s("GET", "meta/data/k?version=1"),
    s("GET", "meta/metadata/k"),
    patch("meta/metadata/k", {"custom_metadata": {"k": None, "j": "w"}, "cas_required": False}),
    s("GET", "meta/metadata/k"),
    patch("meta/metadata/k", {}),
    patch("meta/metadata/none", {"custom_metadata": {"j": "w"}}),
    s("POST", "meta/metadata/k", {"custom_metadata": {"n": 5, "t": True, "f": False}, "delete_version_after": "0s"}),
    s("GET", "meta/metadata/k"),
    s("POST", "meta/metadata/k", {"custom_metadata": {"": "5"}}),
    s("POST", "meta/metadata/k", {"custom_metadata": {"n": None}}),
    s("POST", "meta/metadata/k", {"custom_metadata": "l"}),
    s("POST", "meta/metadata/k", {"custom_metadata": {"k" * 129: "l"}}),
    s("POST", "meta/metadata/k", {"custom_metadata": {"k": "l" * 513}}),
    s("POST", "meta/metadata/k", {"delete_version_after": "xx"}),
    s("POST", "meta/metadata/k", {"delete_version_after": "90m1s"}),
    s("GET", "meta/metadata/k"),
    s("GET", "meta/config"),
    s("POST", "meta/config", {"max_versions": 3, "cas_required": True, "delete_version_after": "10m"}),
    s("GET", "meta/config"),
    s("POST", "meta/data/new", {"data": {}}),
    s("POST", "meta/data/new", {"data": {}, "options": {"cas": 0}}),
]
_NUMBERS = [
    "1.10", "-0", "1E5", "100000000000000000000000", "0.1e-7", "1e308", "123456789012345678901", "9007199254740993",
    "-1.50e+2", "5e-324", "1e-400", "3.0", "0.000001", "1e20", "1e21", "12.5e21", "0",
]  # fmt: skip
NUMBERS = [
    s("POST", "sys/mounts/num2", {"type": "kv-v2"}),
    s("POST", "sys/mounts/num1", {"type": "kv"}),
    *(
        step
        for number in _NUMBERS
        for step in (
            s("POST", "num2/data/n", f'{{"data":{{"a":{number},"l":[{number}]}}}}'),
            s("GET", "num2/data/n"),
            s("POST", "num1/n", f'{{"a":{number},"l":[{number}]}}'),
            s("GET", "num1/n"),
        )
    ),
]
BODIES = [
    s("POST", "secret/data/bad", '{"data":', texts=False),
    s("POST", "secret/data/bad", "nonsense", texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":1e400}}', texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":NaN}}', texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":1,"a":2}}', texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":"\\ud800"}}', texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":1}} trailing', texts=False),
    s("POST", "secret/data/bad", '{"data":{"a":"' + "x" * (1024 * 1024) + '"}}'),
    s("POST", "secret/data/bad", '{"data":{"a":"' + "x" * (1024 * 1024 + 1) + '"}}'),
    s("POST", "secret/data/bad", json.dumps({"data": {str(each): "" for each in range(10_001)}})),
    s("POST", "secret/data/bad", '{"data":' + '{"a":' * 301 + "1" + "}" * 302),
    s("POST", "secret/data/bad", '{"data":{"a":["' + "x" * 1000 + '"' + (',"' + "x" * 1_000_000 + '"') * 34 + "]}}"),
    s("POST", "secret/data/bad", "[]"),
    s("POST", "secret/data/bad", "null"),
]
PATHS = [
    s("POST", "sys/mounts/paths", {"type": "kv-v2"}),
    s("POST", "paths/data/x%20y/%C3%A9", {"data": {"a": "b"}}),
    s("POST", "paths/data/p%2Fq", {"data": {"a": "b"}}),
    s("POST", "paths/data/%2e%2e/q", {"data": {"a": "b"}}),
    s("POST", "paths/data/end%20", {"data": {"a": "b"}}),
    s("POST", "paths/data/pl+us%25", {"data": {"a": "b"}}),
    s("POST", "paths/data/a%00b", {"data": {"a": "b"}}),
    s("POST", "paths/data/a%0ab", {"data": {"a": "b"}}),
    s("POST", "paths/data/p//q", {"data": {"a": "b"}}),
    s("GET", "paths/data/p//q"),
    s("GET", "paths/data/../data/x"),
    s("LIST", "paths/metadata/"),
    s("LIST", "paths/metadata/p"),
    s("LIST", "paths/metadata/x%20y"),
    s("GET", "nomount/data/none"),
    s("LIST", "nomount/metadata/"),
    s("POST", "nomount/data/none", {"data": {}}),
    s("DELETE", "nomount/data/none"),
    s("GET", "sys/none"),
    s("GET", "secret/data/none", headers={"X-Vault-Namespace": "team"}),
    s("GET", "secret/data/none", headers={"X-Vault-Request": "true"}),
    s("OPTIONS", "secret/data/none"),
]
KV1 = [
    s("POST", "sys/mounts/one", {"type": "kv", "options": {"version": "1"}}),
    s("GET", "one/none"),
    s("LIST", "one/"),
    s("POST", "one/a/b", {"t": "x", "ttl": "30m", "n": None}),
    s("GET", "one/a/b"),
    s("PUT", "one/a/b", {"k": "v"}),
    s("GET", "one/a/b"),
    s("GET", "one/a"),
    s("GET", "one/a/"),
    s("POST", "one/e", {}),
    s("POST", "one/e"),
    s("POST", "one/dir/", {"a": "b"}),
    s("POST", "one/a", {"both": "file and folder"}),
    s("LIST", "one"),
    s("LIST", "one/"),
    s("LIST", "one/a"),
    s("GET", "one/a?list=true"),
    s("LIST", "one/zz"),
    s("GET", "one"),
    s("DELETE", "one/a/b"),
    s("DELETE", "one/a/b"),
    s("LIST", "one/"),
    patch("one/a", {"k": "v"}),
]
MOUNTS = [
    s("GET", "sys/mounts"),
    s("POST", "sys/mounts/m1", {"type": "kv", "description": "first"}),
    s("POST", "sys/mounts/m1", {"type": "kv"}),
    s("POST", "sys/mounts/deep/er", {"type": "kv", "options": {"version": "2"}}),
    s("POST", "sys/mounts/deep", {"type": "kv"}),
    s("POST", "sys/mounts/bad", {"type": "nope"}),
    s("POST", "sys/mounts/bad", {}),
    s("POST", "sys/mounts/bad", {"type": "kv", "options": {"version": "3"}}),
    s("GET", "sys/mounts/deep/er"),
    s("GET", "sys/mounts/none"),
    s("GET", "sys/mounts/deep/er/tune"),
    s("POST", "sys/mounts/deep/er/tune", {"description": "x"}),
    s("GET", "sys/internal/ui/mounts/deep/er"),
    s("GET", "sys/internal/ui/mounts/deep/er/data/x"),
    s("GET", "sys/internal/ui/mounts/deep"),
    s("GET", "sys/internal/ui/mounts/none"),
    s("POST", "deep/er/data/x", {"data": {"a": "b"}}),
    s("DELETE", "sys/mounts/deep/er"),
    s("DELETE", "sys/mounts/deep/er"),
    s("GET", "deep/er/data/x"),
    s("DELETE", "sys/mounts/m1"),
]
_POLICY = """
# rules of every kind
path "pol/data/team/+/x" { capabilities = ["read"] }
path "pol/data/team/a*" { capabilities = ["create"] }
path "pol/data/team/ab/*" { capabilities = ["deny"] }
path "pol/metadata/*" { capabilities = ["list"] }
path "pol/data/pw" { capabilities = ["patch"] }
path "pol/data/pu" { capabilities = ["create", "update", "patch"] }
path "pol/metadata/rd/*" { capabilities = ["read"] }
path "pol/data/+/one" { capabilities = ["read"] }
path "pol/data/a+b" { capabilities = ["read"] }
path "sys/policies/acl/seen" { policy = "read" }
"""
POLICIES = [
    s("POST", "sys/mounts/pol", {"type": "kv-v2"}),
    s("POST", "sys/mounts/unseen", {"type": "kv-v2"}),
    s("PUT", "sys/policies/acl/My-Pol", {"policy": 'path "secret/*" { capabilities = ["read","list"] }'}),
    s("GET", "sys/policies/acl/My-Pol"),
    s("GET", "sys/policy/my-pol"),
    s("GET", "sys/policies/acl/nope"),
    s("GET", "sys/policy/nope"),
    s("GET", "sys/policies/acl/root"),
    s("LIST", "sys/policies/acl"),
    s("LIST", "sys/policies/acl/"),
    s("GET", "sys/policies/acl?list=true"),
    s("GET", "sys/policies/acl"),
    s("GET", "sys/policy"),
    s("LIST", "sys/policy"),
    s("PUT", "sys/policies/acl/bad", {"policy": 'path "secret/*" { capabilities = ["fly"] }'}),
    s("PUT", "sys/policies/acl/bad", {"policy": "path { "}, texts=False),
    s("PUT", "sys/policies/acl/bad", {"policy": ""}),
    s("PUT", "sys/policies/acl/root", {"policy": 'path "x" { capabilities = ["read"] }'}),
    s("PUT", "sys/policies/acl/json", {"policy": '{"path": {"x": {"capabilities": ["read"]}}}'}),
    s("GET", "sys/policies/acl/json"),
    s("DELETE", "sys/policies/acl/default"),
    s("DELETE", "sys/policies/acl/root"),
    s("DELETE", "sys/policies/acl/nope"),
    s("PUT", "sys/policy/legacy", {"rules": 'path "x" {policy="write"}'}),
    s("GET", "sys/policies/acl/legacy"),
    s("DELETE", "sys/policy/legacy"),
    s("DELETE", "sys/policies/acl/json"),
    s("PUT", "sys/policies/acl/p1", {"policy": _POLICY}),
    s("POST", "pol/data/q/one", {"data": {"a": "b"}}),
    s(
        "POST",
        "auth/token/create",
        {"policies": ["p1"], "ttl": "1h"},
        save=("p1", "auth", "client_token"),
    ),
    *(
        Step(each.method, each.path, each.body, "$p1", each.headers)
        for each in [
            s("GET", "pol/data/team/zz/x"),
            s("GET", "pol/data/team/ab/x"),
            s("GET", "pol/data/team/ac/x"),
            s("POST", "pol/data/team/ac", {"data": {}}),
            s("POST", "pol/data/team/ac", {"data": {}}),
            s("LIST", "pol/metadata/"),
            s("LIST", "pol/metadata"),
            s("LIST", "pol/metadata/team"),
            s("LIST", "pol/metadata/rd/x"),
            s("LIST", "pol/metadata/rd/"),
            s("LIST", "pol/metadata/rd"),
            s("GET", "pol/metadata/team/ac"),
            s("GET", "pol/data/q/one"),
            s("GET", "pol/data/a+b"),
            s("GET", "pol/data/axb"),
            patch("pol/data/pw", {"data": {"a": "b"}}),
            s("POST", "pol/data/pu", {"data": {"a": "b"}}),
            patch("pol/data/pu", {"data": {"a": "c"}}),
            s("DELETE", "pol/data/pu"),
            s("GET", "unseen/data/x"),
            s("GET", "nomount/data/x"),
            s("GET", "sys/mounts"),
            s("GET", "sys/audit"),
            s("GET", "sys/policies/acl/p1"),
            s("GET", "sys/policies/acl/seen"),
            s("GET", "sys/internal/ui/mounts/pol"),
            s("GET", "sys/internal/ui/mounts/pol/data/x"),
            s("GET", "sys/internal/ui/mounts/unseen"),
            s("GET", "sys/internal/ui/mounts/nomount"),
            s(
                "POST",
                "sys/capabilities-self",
                {
                    "paths": [
                        "pol/data/team/ac",
                        "pol/data/team/ab/x",
                        "pol/data/team/zz/x",
                        "pol/metadata/",
                        "pol/metadata",
                        "pol/data/pu",
                        "sys/mounts",
                        "sys/policies/acl/seen",
                    ]
                },
            ),
        ]
    ),
    s("POST", "sys/capabilities-self", {"path": "pol/data/a"}),
    s("POST", "sys/capabilities-self", {"paths": ["pol/data/a", "sys/mounts"]}),
]
TOKENS = [
    s("GET", "auth/token/lookup-self"),
    s("POST", "auth/token/renew-self"),
    *(
        s(*each, token="bad")
        for each in [("GET", "secret/data/a"), ("GET", "auth/token/lookup-self"), ("GET", "nomount/x")]
    ),
    *(
        s(*each, token=None)
        for each in [("GET", "secret/data/a"), ("GET", "auth/token/lookup-self"), ("GET", "nomount/x")]
    ),
    s("GET", "sys/internal/ui/mounts/secret", token=None),
    s("GET", "sys/internal/ui/mounts", token=None),
    s("POST", "auth/nope/login", {}, token=None),
    s("GET", "sys/seal-status", token=None, texts=False),
    s("GET", "sys/health", token=None, texts=False),
    s("POST", "auth/token/create", {"policies": ["nowhere"], "ttl": "1h"}, save=("t", "auth", "client_token")),
    s("GET", "auth/token/lookup-self", token="$t"),
    s("GET", "auth/token/lookup-self", token=None, headers={"Authorization": "Bearer $t"}),
    s("POST", "auth/token/renew-self", {}, token="$t"),
    s("PUT", "auth/token/renew-self", {"increment": "2h"}, token="$t"),
    s("GET", "auth/token/lookup-self", token="$t"),
    s("POST", "auth/token/lookup", {"token": "$t"}),
    s("POST", "auth/token/revoke-self", token="$t"),
    s("GET", "auth/token/lookup-self", token="$t"),
    s("POST", "auth/token/create", {"policies": ["default"], "ttl": "1h"}, save=("u", "auth", "client_token")),
    s("POST", "auth/token/revoke", {"token": "$u"}),
    s("GET", "auth/token/lookup-self", token="$u"),
    s(
        "POST",
        "auth/token/create",
        {"policies": ["default"], "ttl": "1h", "renewable": False},
        save=("v", "auth", "client_token"),
    ),
    s("POST", "auth/token/renew-self", token="$v"),
]
SUDO_RULES = """
path "sys/audit" { capabilities = ["read"] }
path "sys/audit/*" { capabilities = ["create", "update", "delete"] }
path "sys/auth/*" { capabilities = ["create", "update", "delete", "sudo"] }
path "sys/remount" { capabilities = ["update"] }
"""
SUDO = [
    s("PUT", "sys/policies/acl/almost", {"policy": SUDO_RULES}),
    s("POST", "auth/token/create", {"policies": ["almost"], "ttl": "1h"}, save=("t", "auth", "client_token")),
    s("GET", "sys/audit", token="$t"),
    s("PUT", "sys/audit/f", {"type": "file", "options": {"file_path": "stdout"}}, token="$t"),
    s("DELETE", "sys/audit/f", token="$t"),
    s("POST", "sys/remount", {"from": "secret", "to": "elsewhere"}, token="$t"),
    s("POST", "sys/auth/approle", {"type": "approle"}, token="$t"),
    s("PUT", "sys/policies/acl/almost", {"policy": SUDO_RULES.replace('["read"]', '["read", "sudo"]')}),
    s("GET", "sys/audit", token="$t"),
]
LOGINS = [
    s("POST", "sys/auth/approle", {"type": "approle"}),
    s("POST", "sys/auth/approle", {"type": "approle"}),
    s("POST", "auth/approle/role/r1", {"token_policies": "my-pol", "token_ttl": "20m"}),
    s("GET", "auth/approle/role/r1/role-id", save=("role", "data", "role_id")),
    s("POST", "auth/approle/role/r1/secret-id", {}, save=("secret", "data", "secret_id")),
    s("POST", "auth/approle/login", {"role_id": "x", "secret_id": "y"}, token=None),
    s("POST", "auth/approle/login", {"role_id": "$role", "secret_id": "y"}, token=None),
    s("POST", "auth/approle/login", {"role_id": "$role"}, token=None),
    s("POST", "auth/approle/login", {"secret_id": "y"}, token=None),
    s("POST", "auth/approle/login", {}, token=None),
    s(
        "POST",
        "auth/approle/login",
        {"role_id": "$role", "secret_id": "$secret"},
        token=None,
        save=("t", "auth", "client_token"),
    ),
    s("GET", "auth/token/lookup-self", token="$t"),
    s("POST", "auth/token/renew-self", {"increment": "1h"}, token="$t"),
    s("POST", "auth/token/renew-self", token="$t"),
    s("GET", "secret/data/none", token="$t"),
    *(s("POST", f"sys/auth/{kind}", {"type": kind}) for kind in ("kubernetes", "azure")),
    s("POST", "auth/kubernetes/login", {"role": "x", "jwt": "y"}, token=None),
    s("POST", "auth/kubernetes/login", {"role": "x"}, token=None),
    s("POST", "auth/kubernetes/login", {"jwt": "x"}, token=None),
    s("POST", "auth/azure/login", {"role": "x", "jwt": "y"}, token=None),
    s("POST", "auth/azure/login", {}, token=None),
]
AUDIT = [
    s("GET", "sys/audit"),
    s("PUT", "sys/audit/f", {"type": "file", "options": {"file_path": "$folder/audit.log"}}),
    s("PUT", "sys/audit/f", {"type": "file", "options": {"file_path": "$folder/audit.log"}}),
    s("PUT", "sys/audit/s", {"type": "socket", "options": {"address": "127.0.0.1:1"}}, texts=False),
    s("PUT", "sys/audit/s", {"type": "socket", "options": {}}),
    s("PUT", "sys/audit/s", {"type": "file", "options": {}}, texts=False),
    s("PUT", "sys/audit/n", {"type": "nope"}),
    s("PUT", "sys/audit-hash/f", {"input": "abc"}),
    s("PUT", "sys/audit-hash/none", {"input": "abc"}),
    s("POST", "sys/mounts/aud", {"type": "kv-v2"}),
    s("POST", "sys/mounts/aud1", {"type": "kv"}),
    s("POST", "aud/data/k", {"data": {"a": "secret", "n": 5, "b": True, "z": None}, "options": {"cas": 0}}),
    s("GET", "aud/data/k"),
    s("POST", "aud/data/k", {"data": {"a": "secret"}, "options": {"cas": 0}}),
    patch("aud/data/k", {"data": {"m": "2"}}),
    s("LIST", "aud/metadata/"),
    s("GET", "aud/metadata/k"),
    s("DELETE", "aud/data/k"),
    s("GET", "aud/data/k"),
    s("POST", "aud/undelete/k", {"versions": [2]}),
    s("POST", "aud/data/k", {"data": {"w": "x"}}, headers={"X-Vault-Wrap-TTL": "60s"}, texts=False),
    s("DELETE", "aud/data/k", headers={"X-Vault-Wrap-TTL": "60s"}),
    s("POST", "aud/metadata/k", {"custom_metadata": {"k": "v"}}),
    s("DELETE", "aud/metadata/k"),
    s("DELETE", "aud/metadata/k"),
    s("POST", "aud1/k", {"a": "b"}),
    s("POST", "aud1/k", {"a": "c", "n": 1.5}),
    s("GET", "aud1/k"),
    s("DELETE", "aud1/k"),
    s("GET", "nomount/x"),
    s("GET", "aud/data/k", token="bad"),
    s("PUT", "sys/policies/acl/Aud", {"policy": 'path "x" {capabilities=["read"]}'}),
    s("DELETE", "sys/policies/acl/Aud"),
    s("POST", "auth/token/create", {"policies": ["default"], "ttl": "1h"}, save=("t", "auth", "client_token")),
    s("GET", "aud/data/k", token="$t"),
    s("DELETE", "sys/audit/none"),
    s("DELETE", "sys/audit/f"),
]
AUDIT_AWAY = [
    s("PUT", "sys/audit/away", {"type": "socket", "options": {"address": "$address", "socket_type": "$kind"}}),
    s("POST", "secret/data/x", {"data": {"a": "b"}}),
    s("POST", "secret/data/y", {"data": {"a": "b"}}),
    s("GET", "secret/data/x"),
    s("DELETE", "sys/audit/away"),
    s("GET", "secret/data/x"),
    s("DELETE", "sys/audit/away"),
    s("GET", "secret/data/x"),
]
GROUPS = {
    "KV2": KV2,
    "KV2_DELETE": KV2_DELETE,
    "KV2_METADATA": KV2_METADATA,
    "NUMBERS": NUMBERS,
    "BODIES": BODIES,
    "PATHS": PATHS,
    "KV1": KV1,
    "MOUNTS": MOUNTS,
    "POLICIES": POLICIES,
    "TOKENS": TOKENS,
    "SUDO": SUDO,
    "LOGINS": LOGINS,
}


@pytest.fixture
def real() -> Iterator[RealVault]:
    with processes.vault() as server:
        yield server


@pytest.fixture
async def sandbox() -> AsyncIterator[VaultSandbox]:
    async with VaultSandbox() as server:
        server.remove_mount("kv1")  # a fresh dev server has none
        yield server


@pytest.mark.parametrize("name", GROUPS)
async def test_the_sandbox_answers_as_the_real_vault_does(name: str, real: RealVault, sandbox: VaultSandbox) -> None:
    expected = await play(GROUPS[name], real.url, {"root": real.token})
    found = await play(GROUPS[name], sandbox.url, {"root": sandbox.root_token})
    different = [
        f"{step.method} {step.path} {(step.body or '')[:200]}\n    real    {a}\n    sandbox {b}"
        for step, a, b in zip(GROUPS[name], expected, found, strict=True)
        if a != b
    ]
    assert not different, "\n".join(different)


async def test_the_sandbox_logs_as_the_real_vault_does(real: RealVault, sandbox: VaultSandbox, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "sandbox").mkdir()
    answers = await play(AUDIT, real.url, {"root": real.token, "folder": str(tmp_path / "real")})
    ours = await play(AUDIT, sandbox.url, {"root": sandbox.root_token, "folder": str(tmp_path / "sandbox")})
    blank = str(tmp_path / "real"), str(tmp_path / "sandbox")
    assert [str(each).replace(blank[1], "") for each in ours] == [str(each).replace(blank[0], "") for each in answers]
    expected, found = (audit_entries(tmp_path / each / "audit.log") for each in ("real", "sandbox"))
    different = [f"\n  real    {a}\n  sandbox {b}" for a, b in zip(expected, found, strict=False) if a != b]
    assert not different, "".join(different)
    assert len(found) == len(expected)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_both_answer_500_to_everything_while_their_only_audit_device_is_away(
    kind: str, real: RealVault, sandbox: VaultSandbox
) -> None:
    answers = []
    for url, token in ((real.url, real.token), (sandbox.url, sandbox.root_token)):
        # A unix socket's path has a limit of about 100 characters, which pytest's own folders can pass.
        with tempfile.TemporaryDirectory() as folder:
            listener = Listener(kind, f"{folder}/s")
            address = await listener.listen()
            saved = {"root": token, "address": address, "kind": kind}
            enabled = await play(AUDIT_AWAY[:2], url, saved)
            await listener.close()
            away = await play(AUDIT_AWAY[2:5], url, saved)
            await listener.listen()
            back = await play(AUDIT_AWAY[5:], url, saved)
            await listener.close()
        answers.append([enabled, away, back])
        assert b'"path":"secret/data/x"' in listener.received
    assert answers[1] == answers[0]


class Listener:
    """A relay's end of an audit socket that can go away and come back at the same address."""

    def __init__(self, kind: str, path: str) -> None:
        self.received = b""
        self._kind, self._path, self._port = kind, path, 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def listen(self) -> str:
        if self._kind == "unix":
            self._server = await asyncio.start_unix_server(self._serve, self._path)
            return self._path
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{self._port}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        if self._kind == "unix":
            with contextlib.suppress(FileNotFoundError):  # newer Pythons remove it themselves
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.received += data


async def play(steps: list[Step], url: str, saved: dict[str, str]) -> list[Any]:
    """The answers, with what differs by nature replaced."""
    answers = []
    # Raw paths go out as they are written: yarl would clean them.

    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for step in steps:
            headers = {"User-Agent": "parity", "Content-Type": "application/json"}
            headers |= {key: fill(value, saved) for key, value in step.headers.items()}
            if step.token is not None:
                headers["X-Vault-Token"] = fill(step.token, saved)
            body = None if step.body is None else io.BytesIO(fill(step.body, saved).encode())
            target = URL(f"{url}/v1/{step.path}", encoded=True)
            async with session.request(
                step.method, target, data=body, headers=headers, allow_redirects=False
            ) as response:
                text = await response.text()
                location = response.headers.get("Location")
                document = (
                    json.loads(text, parse_float=str, parse_int=str)
                    if response.content_type == "application/json" and text
                    else text
                )
                if step.save:
                    value = document
                    for key in step.save[1:]:
                        value = value[key]
                    saved[step.save[0]] = value
                answers.append(
                    (response.status, location, response.content_type, neutral(document))
                    if step.texts
                    else response.status
                )
    return answers


def fill(text: str, saved: dict[str, str]) -> str:
    for name, value in saved.items():
        text = text.replace(f"${name}", value)
    return text


def neutral(value: Any, key: str = "") -> Any:
    if key in _VOLATILE and value and not isinstance(value, dict):
        return f"<{key}>"
    if isinstance(value, dict):
        return {each: neutral(inner, each) for each, inner in sorted(value.items())}
    if isinstance(value, list):
        return [neutral(each) for each in value]
    if isinstance(value, str) and _TIME.fullmatch(value):
        return "<time>"
    return value


def audit_entries(log: Path) -> list[Any]:
    entries = []
    for line in log.read_text().splitlines():
        entry = neutral(json.loads(line))
        for part in ("request", "response", "auth"):
            for name in ("remote_port", "mount_accessor", "mount_running_version", "mount_running_plugin_version"):
                entry.get(part, {}).pop(name, None)
        # An empty entity is in the log of the real one, though in no answer.
        entry = json.loads(re.sub(r'"entity_id": "[^"]*", ', "", json.dumps(entry)))
        entries.append(json.loads(re.sub(r"hmac-sha256:[0-9a-f]{64}", "<hmac>", json.dumps(entry))))
    return entries
