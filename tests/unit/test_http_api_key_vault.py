"""A Key Vault by configuration alone, with tokens from Entra: proof that nothing in the kind knows any API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.entra import EntraServer
from sandbox.key_vault import PAGE_SIZE, KeyVaultServer
from sandbox.vault import VaultSandbox
from shared.errors import AccessDenied, InvalidSecret, SecretNotFound
from shared.model import Secret
from shared.onestring import CONTENT_TYPE
from shared.vault import FingerprintCost, Use, Vault
from shared.vaults.hashicorp import Settings as HubSettings
from shared.vaults.hashicorp import connect as connect_hub
from shared.vaults.http_api import Settings, connect
from tests.cli_world import Folder
from tests.contract.vaults.http_api import KEY_VAULT


@pytest.fixture
async def server() -> AsyncIterator[KeyVaultServer]:
    async with KeyVaultServer() as server:
        yield server


@pytest.fixture
async def entra(server: KeyVaultServer) -> AsyncIterator[EntraServer]:
    async with EntraServer(server.authority) as entra:
        yield entra


@pytest.fixture
async def vault(server: KeyVaultServer, entra: EntraServer, tmp_path: Path) -> AsyncIterator[Vault]:
    vault = connect("prod", settings(server, entra, tmp_path))
    yield vault
    await vault.aclose()


def settings(server: KeyVaultServer, entra: EntraServer, folder: Path, **auth: Any) -> Settings:
    bundle = folder / "authorities.pem"
    bundle.write_text("".join(each.ca_bundle.read_text() for each in (server, entra)))  # type: ignore[union-attr]
    authority = server.authority
    return Settings(
        kind="http_api",
        base_url=server.url,
        ca_bundle=str(bundle),
        names={"allowed": "[0-9a-zA-Z-]", "max_length": 127, "ignores_case": True},
        max_bytes=25 * 1024,
        auth={
            "type": "oauth2_client_credentials",
            "token_url": f"{entra.url}/{authority.tenant_id}/oauth2/v2.0/token",
            "client_id": authority.client_id,
            "client_secret": authority.client_secret,
            "scope": "https://vault.azure.net/.default",
        }
        | auth,
        operations=KEY_VAULT,
    )


async def test_every_page_of_the_listing_is_followed(server: KeyVaultServer, entra: EntraServer, vault: Vault) -> None:
    wanted = [f"name-{number:03}" for number in range(2 * PAGE_SIZE + 3)]
    for name in wanted:
        server.put(name, "x")
    server.disable(wanted.pop())
    assert [entry.name async for entry in vault.list_secrets()] == wanted
    assert server.calls == {"list": 3}
    assert entra.calls == {"token": 1}


async def test_what_is_written_is_read_and_changes_show(server: KeyVaultServer, vault: Vault) -> None:
    assert vault.capabilities.fingerprint is FingerprintCost.PER_SECRET
    fields = {"user": "app", "password": "žluť\n"}
    first = await vault.set_secret("apps-db", Secret(fields))
    stored = server.get("apps-db")
    assert stored is not None
    assert stored.content_type == CONTENT_TYPE
    got = await vault.get_secret("apps-db")
    assert got.fields == fields
    assert got.entry == first == await vault.describe_secret("apps-db")
    server.put("apps-db", "by hand", content_type="text/plain")
    again = await vault.get_secret("apps-db")
    assert (again.fields, again.content_type) == ({"value": "by hand"}, "text/plain")
    assert again.entry != first


async def test_what_is_missing_wrong_or_forbidden_is_told_as_such(
    server: KeyVaultServer, entra: EntraServer, vault: Vault, tmp_path: Path
) -> None:
    with pytest.raises(SecretNotFound):
        await vault.get_secret("none")
    with pytest.raises(InvalidSecret, match="this vault takes names of the characters"):
        await vault.set_secret("apps/db", Secret({"value": "x"}))
    await vault.set_secret("one", Secret({"value": "x"}))
    await vault.delete_secret("one")
    with pytest.raises(SecretNotFound):
        await vault.delete_secret("one")
    server.permissions = {"get", "list"}
    with pytest.raises(AccessDenied, match="403 on set"):
        await vault.set_secret("two", Secret({"value": "x"}))
    wrong = connect("prod", settings(server, entra, tmp_path, client_secret="wrong"))
    [finding] = await wrong.check([Use("")])
    assert "credentials: no token was given (401 invalid_client from auth.token_url)" in finding.detail
    await wrong.aclose()


CONFIG = """
vaults:
  hub:
    kind: http_api
    base_url: "${HUB}/v1/secret"
    auth: {type: headers, headers: {X-Vault-Token: "${TOKEN}"}}
    operations:
      list: {method: LIST, path: "/metadata/{prefix|path}", items: data.keys, tree: true, empty: "errors == `[]`"}
      get:
        path: "/data/{name|path}"
        fields: data.data
        version: "join('@', [to_string(data.metadata.version), data.metadata.created_time])"
        absent: "errors == `[]` || data.metadata"
  prod:
    kind: http_api
    base_url: "${PROD}"
    ca_bundle: "${CA}"
    names: {allowed: "[0-9a-zA-Z-]", max_length: 127, ignores_case: true}
    auth:
      type: oauth2_client_credentials
      token_url: "${ENTRA}"
      client_id: "${CLIENT}"
      client_secret: "${SECRET}"
      scope: https://vault.azure.net/.default
    operations: KEY_VAULT
syncs:
  hub-to-prod:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: prod}]
    delete: {propagate: true}
"""


async def test_from_a_vault_to_a_key_vault_and_both_by_configuration(
    server: KeyVaultServer, entra: EntraServer, tmp_path: Path
) -> None:
    bundle = settings(server, entra, tmp_path).ca_bundle
    authority = server.authority
    async with VaultSandbox() as hub:
        folder = Folder(tmp_path)
        folder.configure(CONFIG.replace("KEY_VAULT", json.dumps(KEY_VAULT)))
        folder.env = {
            "HUB": hub.url,
            "TOKEN": hub.root_token,
            "PROD": server.url,
            "CA": str(bundle),
            "ENTRA": f"{entra.url}/{authority.tenant_id}/oauth2/v2.0/token",
            "CLIENT": authority.client_id,
            "SECRET": authority.client_secret,
        }
        source = connect_hub(
            "hub", HubSettings(kind="hashicorp", address=hub.url, auth={"method": "token", "token": hub.root_token})
        )
        await source.open()
        for number in range(30):
            await source.set_secret(f"apps/team{number % 3}/n{number}", Secret({"value": f"v{number}"}))
        await source.set_secret("elsewhere", Secret({"value": "x"}))
        server.put("by-hand", "x")

        ended = await asyncio.to_thread(folder.run, "sync")
        assert ended.code == 0, ended.out + ended.err
        assert len(server.names()) == 31
        found = server.get("team1-n4")
        assert found is not None
        assert (found.value, found.content_type) == ("v4", None)

        server.reset_calls()
        assert (await asyncio.to_thread(folder.run, "sync")).code == 0
        assert server.calls["set"] == server.calls["delete"] == 0

        await source.set_secret("apps/team1/n4", Secret({"user": "a", "password": "b"}))
        await source.delete_secret("apps/team2/n5")
        await source.aclose()
        ended = await asyncio.to_thread(folder.run, "sync")
        assert ended.code == 0, ended.out + ended.err
        changed = server.get("team1-n4")
        assert changed is not None
        assert changed.content_type == CONTENT_TYPE
        assert "team2-n5" not in server.names()
        assert "by-hand" in server.names()
        assert server.calls["set"] == server.calls["delete"] == 1
