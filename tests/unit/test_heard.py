"""Which secret of a vault a notice speaks of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.entra import ManagedIdentityServer
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from shared.model import Secret
from shared.notices import AuditNotice, GapNotice, Hint, KeyVaultNotice, Notice, is_known
from shared.vault import Vault
from shared.vaults import azure_key_vault, hashicorp

VERSION_ID = "ee059b2bb5bc48398a53b168c6cdcb10"


@pytest.fixture
async def server() -> AsyncIterator[VaultSandbox]:
    async with VaultSandbox() as server:
        yield server


async def opened(server: VaultSandbox, resource: str = "secrets", **given: object) -> Vault:
    settings = {"kind": "hashicorp", "address": server.url, "auth": {"method": "token", "token": server.root_token}}
    vault = hashicorp.connect("hub", hashicorp.Settings.model_validate(settings | given), resource)
    await vault.open()
    return vault


def change(path: str, mount: str = "secret/", **more: object) -> AuditNotice:
    return AuditNotice(mount, path, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("notice", "hint"),
    [
        (change("data/apps/db", version=4), Hint("apps/db", "4")),
        (change("data/apps/db"), Hint("apps/db")),
        (change("data/a b/ünï/data/x", version=1), Hint("a b/ünï/data/x", "1")),
        (change("metadata/apps/db", version=4), Hint("apps/db")),
        (change("delete/apps/db"), Hint("apps/db")),
        (change("undelete/apps/db"), Hint("apps/db")),
        (change("destroy/apps/db"), Hint("apps/db")),
        (change("data/x", vault="hub"), Hint("x")),
        (change("data/x", mount="/secret"), Hint("x")),
        (change("data/x", vault="other"), None),
        (change("data/x", mount="kv1/"), None),
        (change("data/x", namespace="team/"), None),
        (change("data/apps/"), None),
        (change("data"), None),
        (change("data/"), None),
        (change("config"), None),
        (change("subkeys/apps/db"), None),
        (change("data/a\x85b"), None),
        (change("policies/acl/x", mount="sys/"), None),
        (GapNotice("overflow"), Hint("")),
        (GapNotice("overflow", vault="hub"), Hint("")),
        (GapNotice("overflow", vault="other"), None),
        (KeyVaultNotice("127.0.0.1", "x"), None),
    ],
)
async def test_an_entry_of_the_audit_log_speaks_of_a_secret_of_kv_version_2(
    server: VaultSandbox, notice: Notice, hint: Hint | None
) -> None:
    vault = await opened(server)
    assert vault.heard(notice) == hint
    await vault.aclose()


@pytest.mark.parametrize(
    ("notice", "hint"),
    [
        (change("apps/db", mount="kv1/"), Hint("apps/db")),
        (change("data/apps/db", mount="kv1/", version=3), Hint("data/apps/db")),
        (change("config", mount="kv1/"), Hint("config")),
        (change("apps/", mount="kv1/"), None),
        (change("a..b", mount="kv1/"), None),
        (change("apps/db"), None),
        (GapNotice("overflow"), Hint("")),
    ],
)
async def test_an_entry_of_the_audit_log_speaks_of_a_secret_of_kv_version_1(
    server: VaultSandbox, notice: Notice, hint: Hint | None
) -> None:
    vault = await opened(server, mount="kv1")
    assert vault.heard(notice) == hint
    await vault.aclose()


@pytest.mark.parametrize(
    ("namespace", "mount", "hint"),
    [
        ("eng/team/", "secret/", Hint("x")),
        ("/eng/team", "/secret/", Hint("x")),
        ("eng/", "team/secret/", Hint("x")),
        ("", "secret/", None),
        ("eng/other/", "secret/", None),
        ("eng/team/", "secret/sub/", None),
    ],
)
async def test_namespaces_count(server: VaultSandbox, namespace: str, mount: str, hint: Hint | None) -> None:
    # Synthetic: the Community edition has no namespaces, and ignores the setting.
    vault = await opened(server, namespace="eng/team", kv_version=2)
    assert vault.heard(change("data/x", mount=mount, namespace=namespace)) == hint
    await vault.aclose()


@pytest.mark.parametrize(
    ("notice", "hint"),
    [
        (change("policies/acl/My-Pol", mount="sys/"), Hint("my-pol")),
        (change("policy/My-Pol", mount="sys/"), Hint("my-pol")),
        (change("policies/acl/team/one", mount="sys/"), Hint("team/one")),
        (change("policies/acl/ROOT", mount="sys/"), None),
        (change("policies/acl/default", mount="sys/"), None),
        (change("policies/acl/a/", mount="sys/"), None),
        (change("policies/acl/", mount="sys/"), None),
        (change("policies/egp/x", mount="sys/"), None),
        (change("policy/x", mount="sys/", namespace="team/"), None),
        (change("policy/x", mount="sys/", vault="other"), None),
        (change("data/policy/x"), None),
        (GapNotice("remount"), Hint("")),
    ],
)
async def test_an_entry_of_the_audit_log_speaks_of_a_policy(
    server: VaultSandbox, notice: Notice, hint: Hint | None
) -> None:
    vault = await opened(server, "policies")
    assert vault.heard(notice) == hint
    await vault.aclose()


@pytest.mark.parametrize(
    ("notice", "hint"),
    [
        (KeyVaultNotice("contoso.vault.azure.net", "db", VERSION_ID), Hint("db", VERSION_ID)),
        (KeyVaultNotice("Contoso.Vault.Azure.Net", "Db-1"), Hint("Db-1")),
        (KeyVaultNotice("contoso", "db"), Hint("db")),
        (KeyVaultNotice("contoso2.vault.azure.net", "db"), None),
        (KeyVaultNotice("vault.azure.net", "db"), None),
        (KeyVaultNotice("", "db"), None),
        (KeyVaultNotice("contoso", "not/a/name"), None),
        (KeyVaultNotice("contoso", ""), None),
        (GapNotice("overflow"), None),
        (GapNotice("overflow", vault="prod"), Hint("")),
        (GapNotice("overflow", vault="other"), None),
        (change("data/db"), None),
        (change("data/db", vault="prod"), None),
    ],
)
async def test_an_event_speaks_of_a_secret_of_a_key_vault(notice: Notice, hint: Hint | None) -> None:
    settings = {"kind": "azure_key_vault", "url": "https://CONTOSO.vault.azure.net"}
    vault = azure_key_vault.connect("prod", azure_key_vault.Settings.model_validate(settings))
    assert vault.heard(notice) == hint
    await vault.aclose()


async def test_what_was_read_from_a_key_vault_has_the_version_that_an_event_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with KeyVaultServer() as server, ManagedIdentityServer(server.authority) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        settings = {"kind": "azure_key_vault", "url": server.url, "ca_bundle": str(server.ca_bundle)}
        settings |= {"auth": {"method": "managed_identity"}}
        vault = azure_key_vault.connect("prod", azure_key_vault.Settings.model_validate(settings))
        first = await vault.set_secret("db", Secret({"value": "1"}))
        second = await vault.set_secret("db", Secret({"value": "2"}))
        read = (await vault.get_secret("db")).entry
        described = await vault.describe_secret("db")
        listed = [entry async for entry in vault.list_secrets()]
        await vault.aclose()
    assert first.version
    assert second.version
    assert first.version != second.version
    assert read is not None
    assert read.version == described.version == second.version
    assert [entry.version for entry in listed] == [None]
    assert is_known(read.version, second.version)
    assert not is_known(first.version, second.version)
