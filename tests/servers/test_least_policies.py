"""`vaultferry setup VAULT --print-policy`: a sync's whole life under exactly those policies, and without any part of them.

On the sandbox's Vaults and on real ones: what decides is how a server reads rules, so both must agree.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sandbox.vault import VaultSandbox
from sandbox.vault_acl import Rule, parse_policy
from shared.app import App
from shared.cli.configuring import uses
from shared.config.build import parse
from shared.errors import ConfigError
from shared.model import DeletePolicy, Granularity, Source, Sync, Target
from shared.vaults.hashicorp import Settings, least_policy
from shared.vaults.hashicorp.least_policies import policy
from tests.integration.conftest import run_sync
from tests.servers import processes
from tests.servers.processes import RealVault
from tests.servers.sinks import AnyVault

BOTH = ["sandbox", pytest.param("real", marks=pytest.mark.real)]


@dataclass(frozen=True)
class Case:
    """What a sync is like."""

    source: int = 2
    """The KV version."""
    target: int = 2
    source_prefix: str = "apps/"
    target_prefix: str = "copy/"
    options: str = ""
    """Of the target."""
    propagate: bool = True
    verify: bool = True
    resource: str = "secrets"

    @property
    def by_field(self) -> bool:
        return "field" in self.options

    @property
    def tagged(self) -> bool:
        return "tags" in self.options


CASES = {
    "v2 to v2": Case(),
    "v2 to v1": Case(target=1),
    "v1 to v2": Case(source=1),
    "whole mounts": Case(source_prefix="", target_prefix=""),
    "deep prefixes": Case(source_prefix="a/b c/", target_prefix="\u00fc/z/"),
    "each field": Case(options=', granularity: field, name: "{path}/{field}"', propagate=False),
    "each field in v1": Case(target=1, options=', granularity: field, name: "{path}/{field}"', propagate=False),
    "no deletes": Case(propagate=False),
    "tags": Case(options=", metadata: {carry: [tags]}"),
    "targets not verified": Case(verify=False),
    "policies": Case(resource="policies", source_prefix="src/", target_prefix="dst/"),
}


@dataclass
class Two:
    """Two Vaults with a mount of the test's own each, and what a person does there."""

    hub: AnyVault
    second: AnyVault
    mounts: dict[str, str]
    case: Case
    tokens: dict[str, str] = field(default_factory=dict)

    def url(self, name: str, side: str, section: str = "data") -> str:
        prefix = self.case.source_prefix if side == "hub" else self.case.target_prefix
        if self.case.resource == "policies":
            return f"sys/policies/acl/{quote(prefix + name)}"
        version = self.case.source if side == "hub" else self.case.target
        return f"{self.mounts[side]}/{f'{section}/' if version == 2 else ''}{quote(prefix + name)}"

    async def put(self, name: str, fields: Mapping[str, Any], side: str = "hub") -> None:
        body: dict[str, Any] = dict(fields)
        if self.case.resource == "policies":
            body = {"policy": f"# {json.dumps(body)}"}
        elif (self.case.source if side == "hub" else self.case.target) == 2:
            body = {"data": body}
        await getattr(self, side).fine("POST", self.url(name, side), body)

    async def tag(self, name: str, value: str) -> None:
        if self.case.tagged:
            body = {"custom_metadata": {"tag": value}}
            await self.hub.fine("POST", self.url(name, "hub", "metadata"), body)

    async def get(self, name: str, side: str = "second") -> Any:
        status, answer = await getattr(self, side).call("GET", self.url(name, side))
        if status == 404:
            return None
        if self.case.resource == "policies":
            return json.loads(answer["data"]["policy"].removeprefix("# "))
        version = self.case.source if side == "hub" else self.case.target
        return answer["data"]["data"] if version == 2 else answer["data"]

    async def delete(self, name: str, side: str = "hub") -> None:
        await getattr(self, side).fine("DELETE", self.url(name, side))

    @property
    def text(self) -> str:
        """The configuration."""
        vaults = "".join(
            f'  {name}: {{kind: hashicorp, address: "{vault.url}", mount: {self.mounts[name]}, '
            f'auth: {{method: token, token: "${{{name.upper()}}}"}}}}\n'
            for name, vault in (("hub", self.hub), ("second", self.second))
        )
        case = self.case
        return f"""\
vaults:
{vaults}
syncs:
  s:
    source: {{vault: hub, prefix: "{case.source_prefix}", resource: {case.resource}}}
    targets: [{{vault: second, prefix: "{case.target_prefix}"{case.options}}}]
    verify_targets: {json.dumps(case.verify)}
    delete: {{propagate: {json.dumps(case.propagate)}, max_percent: 100}}
    retry_policy: {{max_retries: 0}}
"""

    async def policies(self) -> dict[str, str]:
        """As they are told to whoever has every permission."""
        config = parse(self.text.encode(), {"HUB": self.hub.token, "SECOND": self.second.token}, "test.yaml")
        told = {}
        for vault_id, settings in config.vaults.items():
            assert isinstance(settings, Settings)
            told[vault_id] = await least_policy(vault_id, settings, list(config.syncs.values()))
        return told

    async def grant(self, texts: Mapping[str, str], *, default: bool = False) -> dict[str, str]:
        """New tokens with these policies and no more, by the name of the variable that the configuration reads."""
        granted = {}
        for side, text in texts.items():
            vault: AnyVault = getattr(self, side)
            name = f"least-{secrets.token_hex(4)}"
            await vault.fine("PUT", f"sys/policies/acl/{name}", {"policy": text})
            asked = {"policies": [name], "no_default_policy": not default, "ttl": "1h"}
            granted[side.upper()] = (await vault.fine("POST", "auth/token/create", asked))["auth"]["client_token"]
        return granted

    def app(self, tokens: Mapping[str, str], folder: Path) -> App:
        env = {**tokens, "VAULTFERRY_STORE": f"sqlite:///{folder / secrets.token_hex(4)}.db"}
        return App(parse(self.text.encode(), env, "test.yaml"), env)


@pytest.fixture(scope="module")
def real_pair() -> Iterator[tuple[RealVault, RealVault]]:
    try:
        with processes.vault() as one, processes.vault() as other:
            yield one, other
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@asynccontextmanager
async def two_vaults(request: pytest.FixtureRequest, where: str, case: Case) -> AsyncIterator[Two]:
    if where == "real":
        pair: tuple[RealVault, RealVault] = request.getfixturevalue("real_pair")
        mounts = {
            "hub": await asyncio.to_thread(pair[0].new_mount, case.source),
            "second": await asyncio.to_thread(pair[1].new_mount, case.target),
        }
        hub, second = (AnyVault("real", server.url, server.token) for server in pair)
        two = Two(hub, second, mounts, case)
        yield two
        for side, vault in (("hub", hub), ("second", second)):
            await vault.fine("DELETE", f"sys/mounts/{mounts[side]}")
            for name in (await vault.fine("LIST", "sys/policies/acl"))["data"]["keys"]:
                if name.startswith((case.source_prefix or "-", case.target_prefix or "-")):
                    await vault.fine("DELETE", f"sys/policies/acl/{name}")
        return
    async with VaultSandbox() as one, VaultSandbox() as other:
        one.add_mount("from", case.source)
        other.add_mount("to", case.target)
        hub, second = (AnyVault("sandbox", server.url, server.root_token) for server in (one, other))
        yield Two(hub, second, {"hub": "from", "second": "to"}, case)


async def life(two: Two, app: App) -> None:
    """All that a sync ever does. Fails wherever something can not be done."""
    case = two.case
    fields = ({"u": "1", "p": "1"}, {"u": "1"}, {"u": "2"}) if case.by_field else ({"value": "1"},) * 3

    async def synced() -> tuple[int, int, int]:
        run = await run_sync(app)
        assert (str(run.status), run.error) == ("succeeded", None)
        return run.written, run.deleted, run.unchanged

    await two.put("a", fields[0])
    await two.put("b/c", {"value": "1"})
    await two.tag("a", "1")
    assert await synced() == (2, 0, 0)
    assert await synced() == (0, 0, 2)
    await two.put("a", fields[1] if case.by_field else {"value": "2"})
    await two.tag("a", "2")
    await synced()
    held = {"value": "1"} if case.by_field else {"value": "2"}
    name = "a/u" if case.by_field else "a"
    assert await two.get(name) == held
    if case.by_field:
        assert await two.get("a/p") is None

    # Changed and deleted over there by somebody else.
    await two.put(name, {"value": "by hand"}, "second")
    await two.delete("b/c/value" if case.by_field else "b/c", "second")
    if not case.verify:
        await two.put("a", {"value": "3"})
        await two.put("b/c", {"value": "3"})
    await synced()
    await synced()
    assert await two.get(name) == (held if case.verify else {"value": "3"})
    assert await two.get("b/c/value" if case.by_field else "b/c") == {"value": "1" if case.verify else "3"}

    await two.delete("a")
    assert await synced() == ((0, 1, 1) if case.propagate else (0, 0, 1))
    assert (await two.get(name) is None) == case.propagate
    await two.put("a", fields[2])
    await synced()
    assert await two.get(name) == ({"value": "2"} if case.by_field else {"value": "1"})


@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize("case", CASES)
async def test_a_whole_life_under_exactly_the_printed_policies(
    where: str, case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with two_vaults(request, where, CASES[case]) as two:
        texts = await two.policies()
        assert set(texts) == {"hub", "second"}
        async with two.app(await two.grant(texts), tmp_path) as app:
            await life(two, app)
        # Asking what a token may do takes what Vault's own default policy grants.
        async with two.app(await two.grant(texts, default=True), tmp_path) as app:
            for vault_id in ("hub", "second"):
                vault = await app.vaults.get(vault_id, CASES[case].resource)
                findings = await vault.check(uses(app.config, vault_id)[CASES[case].resource])
                assert [finding for finding in findings if not finding.ok] == []


def render(rules: list[Rule]) -> str:
    return "\n".join(
        f"path {json.dumps(rule.path, ensure_ascii=False)} {{ capabilities = {json.dumps(sorted(rule.capabilities))} }}"
        for rule in rules
    )


NEEDED = [
    *(("sandbox", case) for case in ("v2 to v2", "v2 to v1", "v1 to v2", "each field", "no deletes", "tags")),
    *(("sandbox", case) for case in ("targets not verified", "policies")),
    *(pytest.param("real", case, marks=pytest.mark.real) for case in ("v2 to v2", "v1 to v2", "policies", "tags")),
]


@pytest.mark.parametrize(("where", "case"), NEEDED)
async def test_every_capability_in_them_is_needed(
    where: str, case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with two_vaults(request, where, CASES[case]) as two:
        texts = await two.policies()
    needless = []
    for side, text in texts.items():
        rules = parse_policy(text)
        for rule in rules:
            for capability in sorted(rule.capabilities):
                left = [
                    Rule(each.path, each.capabilities - ({capability} if each is rule else frozenset()))
                    for each in rules
                ]
                async with two_vaults(request, where, CASES[case]) as fresh:
                    less = {**texts, side: render(left)}
                    moved = {key: move(each, two, fresh, key) for key, each in less.items()}
                    async with fresh.app(await fresh.grant(moved), tmp_path) as app:
                        try:
                            await life(fresh, app)
                        except AssertionError:
                            continue
                        needless.append((side, rule.path, capability))
    assert needless == []


def move(text: str, before: Two, now: Two, side: str) -> str:
    """A policy for another mount: a real server's mounts have names of their own."""
    return text.replace(f'"{before.mounts[side]}/', f'"{now.mounts[side]}/')


# --- the text -----------------------------------------------------------------------------------------------------------

SETTINGS = Settings.model_validate(
    {"kind": "hashicorp", "address": "https://vault.example", "auth": {"method": "token", "token": "hvs.x"}}
)


def sync(name: str, source: str = "", target: str = "", *, vaults: tuple[str, str] = ("hub", "second")) -> Sync:
    return Sync(name, Source(vaults[0], source), (Target("t", vaults[1], target),))


def test_the_text_says_what_it_is_for_and_what_a_changed_mapping_would_take() -> None:
    assert policy("second", SETTINGS, 2, [sync("apps", target="copy/")]) == (
        "# What Vaultferry needs in second (https://vault.example).\n"
        "# vault policy write vaultferry-second FILE\n"
        "# `vaultferry check` and a token's renewal need what Vault's own policy `default` grants.\n"
        "\n"
        "# apps: its target\n"
        'path "secret/data/copy/*" {\n  capabilities = ["create", "read", "update"]\n}\n'
        "\n"
        "# apps: its target\n"
        'path "secret/metadata/copy/*" {\n  capabilities = ["read", "list"]\n}\n'
        "\n"
        "# apps: names that its mapping no longer yields can only be removed with this\n"
        '# path "secret/delete/copy/*" {\n#   capabilities = ["update"]\n# }\n'
    )


def test_a_namespace_is_where_the_policy_belongs() -> None:
    text = policy("hub", SETTINGS.model_copy(update={"namespace": "team/a"}), 2, [sync("apps")])
    assert "# It belongs into the namespace team/a/; its paths are relative to that." in text
    assert "# vault policy write -namespace=team/a vaultferry-hub FILE" in text
    assert all(not rule.path.startswith("team/") for rule in parse_policy(text))


def test_a_narrow_rule_does_not_take_away_what_a_wide_one_grants() -> None:
    writes_all = sync("in", vaults=("other", "hub"))
    reads_some = sync("out", source="apps/", vaults=("hub", "other"))
    for version in (1, 2):
        rules = {
            rule.path: rule.capabilities
            for rule in parse_policy(policy("hub", SETTINGS, version, [writes_all, reads_some]))
        }
        wide, narrow = ("secret/*", "secret/apps/*") if version == 1 else ("secret/data/*", "secret/data/apps/*")
        assert rules[narrow] == rules[wide]
        assert {"create", "update"} <= rules[narrow]


def test_fields_can_vanish_so_deletes_are_granted_for_them() -> None:
    by_field = Sync("f", Source("hub"), (Target("t", "second", "copy/", "{path}-{field}", Granularity.FIELD),))
    rules = {rule.path for rule in parse_policy(policy("second", SETTINGS, 2, [by_field]))}
    assert "secret/delete/copy/*" in rules


@pytest.mark.parametrize("resource", ["secrets", "policies"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("propagate", [True, False])
def test_both_sides_of_a_two_way_sync_may_do_the_same(version: Any, propagate: bool, resource: str) -> None:
    two_way = Sync(
        "s",
        Source("hub", "apps/", resource),
        (Target("second", "second", "apps/"),),
        "bidirectional",
        delete=DeletePolicy(propagate),
    )
    hub, second = (policy(side, SETTINGS, version, [two_way]) for side in ("hub", "second"))
    assert parse_policy(hub) == parse_policy(second)
    assert "# s: its source\n" in hub
    granted = [rule.capabilities for rule in parse_policy(hub) if rule.path.endswith("apps/*")]
    assert any("update" in each for each in granted)
    removing = [rule for rule in parse_policy(hub) if "delete" in rule.capabilities or "/delete/" in rule.path]
    assert bool(removing) is propagate


UNUSUAL = ['say "x"/', "back\\slash/", "$x/", "{x}/", "a+b/", "*/", "\U0001f511/"]


@pytest.mark.real
@pytest.mark.parametrize("prefix", UNUSUAL)
async def test_unusual_prefixes_are_understood_by_a_real_vault(
    prefix: str, real_pair: tuple[RealVault, RealVault]
) -> None:
    vault = AnyVault("real", real_pair[0].url, real_pair[0].token)
    await vault.fine("PUT", "sys/policies/acl/unusual", {"policy": policy("hub", SETTINGS, 1, [sync("s", prefix)])})
    made = await vault.fine("POST", "auth/token/create", {"policies": ["unusual"], "ttl": "1h"})
    asked = {"paths": [f"secret/{prefix}x", "secret/elsewhere"]}
    answer = await vault.fine("POST", "sys/capabilities-self", asked, token=made["auth"]["client_token"])
    assert [answer["data"][path] for path in asked["paths"]] == [["list", "read"], ["deny"]]


@pytest.mark.parametrize("prefix", UNUSUAL)
def test_unusual_prefixes_are_written_so_that_they_are_read_as_meant(prefix: str) -> None:
    rules = parse_policy(policy("hub", SETTINGS, 1, [sync("s", prefix)]))
    assert [rule.path for rule in rules] == [f"secret/{prefix}*"]


@pytest.mark.parametrize("prefix", ["${x}/", "{{identity.entity.id}}/", "+/", "a/+/b/"])
def test_a_prefix_that_a_policy_would_take_for_something_else_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="no policy can name"):
        policy("hub", SETTINGS, 2, [sync("s", prefix)])
