"""Vault → Vaultwarden and Vaultwarden → Key Vault, through the command line, as a person lives with it.

The sandbox's servers speak all three protocols; that their Bitwarden is one, the official client says
(tests/servers/test_bitwarden_cli.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import ARGON2ID, PBKDF2, Person
from sandbox.bitwarden_state import Item
from sandbox.entra import EntraServer
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from shared.vaults.vaultwarden.items import PLACES
from tests.cli_world import Ended, Folder
from tests.servers.hosting import Host, hosting

PASSWORD = "correct horse ☂"
CONFIG = """\
vaults:
  hub: {{kind: hashicorp, address: "{hub}", mount: secret, auth: {{method: token, token: "${{HUB_TOKEN}}"}}}}
  family: {{kind: vaultwarden, url: "{family}", email: Ada@example.org, password: "${{VW_PASSWORD}}",
           ca_bundle: "{family_ca}"{where}}}
  prod: {{kind: azure_key_vault, url: "{prod}", authority: "{entra}", ca_bundle: "{azure_ca}",
         auth: {{method: service_principal, tenant_id: {tenant}, client_id: {client}, client_secret: "${{AZ_SECRET}}"}}}}
syncs:
  in:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: family}}]
    delete: {{propagate: true, max_percent: 100}}
    retry_policy: {{max_retries: 0}}
  out:
    source: {{vault: family}}
    targets: [{{vault: prod}}]
    delete: {{propagate: true, max_percent: 100}}
    retry_policy: {{max_retries: 0}}
"""
SECRETS: dict[str, dict[str, str]] = {
    "web/db": {"username": "app", "password": "p\u00e4ss ☂", "port": "5432"},
    "web/token": {"value": "line one\nline two\n"},
    "notes only": {"notes": ("☂\u00e4\n" * 3_334)[:10_000]},
    "empty": {"password": "", "extra": ""},
}


@dataclass
class World:
    """Three servers, and a person's folder beside them."""

    host: Host
    folder: Folder
    hub: VaultSandbox
    family: BitwardenServer
    prod: KeyVaultServer
    ada: Person

    def run(self, *arguments: str) -> Ended:
        ended = self.folder.run(*arguments)
        assert PASSWORD not in ended.out + ended.err
        return ended

    def planned(self, sync: str) -> dict[str, str]:
        """What `plan` says would be done, by path; its exit code must agree."""
        ended = self.run("plan", sync, "--json", "--detailed-exitcode")
        changes = {each["path"]: each["change"] for each in ended.json["items"]}
        assert ended.code == (3 if changes else 0), ended.err
        return changes

    def synced(self, sync: str) -> dict[str, int]:
        """The counts of a run that went well."""
        ended = self.run("sync", sync, "--json")
        assert ended.code == 0, ended.out + ended.err
        (run,) = ended.json["runs"]
        return {each: run[each] for each in ("written", "unchanged", "deleted", "failed", "conflicts") if run[each]}

    def put(self, name: str, fields: dict[str, str]) -> None:
        self.host.do(lambda: self.hub.put("secret", f"apps/{name}", fields))

    def items(self) -> dict[str, Item]:
        return self.host.do(self.ada.items)

    def fields(self, name: str) -> dict[str, str]:
        """What a person who opens the item sees, field by field."""
        body = self.ada.read(self.items()[name])
        found = {each["name"]: each["value"] for each in body["fields"] if each["name"] != PLACES}
        found |= {
            key: body["data"][key] for key in ("username", "password", "totp") if body["data"].get(key) is not None
        }
        return found if body["notes"] is None else {**found, "notes": body["notes"]}

    def history(self, name: str) -> list[str]:
        """The passwords that the item had before."""
        return [each["password"] for each in self.ada.read(self.items()[name])["passwordHistory"]]

    def at_prod(self) -> dict[str, str]:
        versions = {name: self.prod.get(name) for name in self.prod.names()}
        return {name: version.value for name, version in versions.items() if version is not None}

    def quiet(self) -> None:
        """A minute passes; count the servers' calls from zero."""
        self.host.do(lambda: self.family.clock.advance(60))
        for server in (self.hub, self.family, self.prod):
            self.host.do(server.reset_calls)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with hosting() as host:
        hub, family, prod = host.start(VaultSandbox()), host.start(BitwardenServer()), host.start(KeyVaultServer())
        entra = host.start(EntraServer(prod.authority))
        shared = getattr(request, "param", "collection") == "collection"
        ada = host.do(lambda: family.register("ada@example.org", PASSWORD, ARGON2ID if shared else PBKDF2))
        if shared:
            ops = host.do(lambda: ada.found("Ops"))
            host.do(lambda: ada.add_collection(ops, "Prod"))
        bundle = tmp_path / "azure.pem"
        bundle.write_text("".join(Path(str(each.ca_bundle)).read_text() for each in (prod, entra)))
        env = {"HUB_TOKEN": hub.root_token, "VW_PASSWORD": PASSWORD, "AZ_SECRET": prod.authority.client_secret}
        folder = Folder(tmp_path, env)
        folder.configure(
            CONFIG.format(
                hub=hub.url,
                family=family.url,
                family_ca=family.ca_bundle,
                where=", organization: Ops, collection: Prod" if shared else "",
                prod=prod.url,
                entra=entra.url,
                azure_ca=bundle,
                tenant=prod.authority.tenant_id,
                client=prod.authority.client_id,
            )
        )
        yield World(host, folder, hub, family, prod, ada)
        assert family.unknown == []


def test_vaults_secrets_live_their_life_in_vaultwarden(world: World) -> None:
    for name, fields in SECRETS.items():
        world.put(name, fields)
    assert world.planned("in") == dict.fromkeys(SECRETS, "create")
    assert world.items() == {}
    assert world.synced("in") == {"written": len(SECRETS)}
    assert {name: world.fields(name) for name in world.items()} == SECRETS

    # Nothing has changed: nothing is written, and no password looks as if it had.
    before = world.items()
    revisions = {name: item.updated for name, item in before.items()}
    assert world.planned("in") == {}
    world.quiet()
    assert world.synced("in") == {"unchanged": len(SECRETS)}
    assert {name: item.updated for name, item in world.items().items()} == revisions
    assert [item.writes for item in world.items().values()] == [1] * len(SECRETS)
    assert not {"create", "update", "share", "partial", "trash", "delete"} & set(world.family.calls)
    assert world.family.calls["sync"] == 1
    assert [world.history(name) for name in SECRETS] == [[]] * len(SECRETS)

    # One password changes: one item is written, and it remembers the old one.
    world.put("web/db", {**SECRETS["web/db"], "password": "two"})
    assert world.planned("in") == {"web/db": "update"}
    assert world.synced("in") == {"written": 1, "unchanged": len(SECRETS) - 1}
    assert world.fields("web/db") == {**SECRETS["web/db"], "password": "two"}
    assert {name: item.writes for name, item in world.items().items()} == {**dict.fromkeys(SECRETS, 1), "web/db": 2}
    assert world.items()["web/db"].id == before["web/db"].id
    assert world.history("web/db") == [SECRETS["web/db"]["password"]]
    assert world.synced("in") == {"unchanged": len(SECRETS)}
    assert world.history("web/db") == [SECRETS["web/db"]["password"]]

    # One is deleted, and comes back.
    world.host.do(lambda: world.hub.soft_delete("secret", "apps/web/token"))
    assert world.planned("in") == {"web/token": "delete"}
    assert world.synced("in") == {"deleted": 1, "unchanged": len(SECRETS) - 1}
    assert "web/token" not in world.items()
    assert before["web/token"].deleted is not None, "it lies in the trash"
    world.put("web/token", {"value": "again"})
    assert world.synced("in") == {"written": 1, "unchanged": len(SECRETS) - 1}
    assert world.fields("web/token") == {"value": "again"}


@pytest.mark.parametrize("world", ["own vault"], indirect=True)
def test_an_accounts_own_vault_takes_secrets_as_well(world: World) -> None:
    world.put("web/db", SECRETS["web/db"])
    assert world.synced("in") == {"written": 1}
    world.put("web/db", {**SECRETS["web/db"], "password": "two"})
    assert world.synced("in") == {"written": 1}
    assert world.planned("in") == {}
    item = world.items()["web/db"]
    assert (item.account_id, item.organization_id, item.writes) == (world.ada.account.id, None, 2)
    assert world.history("web/db") == [SECRETS["web/db"]["password"]]
    assert world.synced("out") == {"written": 1}
    assert json.loads(world.at_prod()["web-db"]) == {**SECRETS["web/db"], "password": "two"}


def test_what_people_keep_in_vaultwarden_reaches_key_vault(world: World) -> None:
    state, ada = world.family.state, world.ada
    collections = world.host.do(lambda: state.visible_collections(ada.account))

    def add() -> None:
        ada.add_login("db", username="app", password="p\u00e4ss ☂", uris=["https://db"], collections=collections)
        ada.add_login("login", password="hush", own_key=True, collections=collections)
        ada.add_note("note", "☂\n" * 100, fields={"pin": "1234"}, collections=collections)

    world.host.do(add)
    assert world.planned("out") == dict.fromkeys(("db", "login", "note"), "create")
    assert world.synced("out") == {"written": 3}
    stored = world.at_prod()
    assert sorted(stored) == ["db", "login", "note"]
    assert json.loads(stored["note"]) == {"notes": "☂\n" * 100, "pin": "1234"}
    db = json.loads(stored["db"])
    assert (db["username"], db["password"]) == ("app", "p\u00e4ss ☂")
    assert "https://db" in stored["db"]

    assert world.planned("out") == {}
    world.quiet()
    assert world.synced("out") == {"unchanged": 3}
    assert world.prod.calls["set"] == 0
    assert world.family.calls["sync"] == 1

    def change() -> None:
        item = ada.items()["note"]
        edited = ada.resealed(item, notes="two")
        state.update_item(ada.account, item.id, edited)

    world.host.do(change)
    assert world.planned("out") == {"note": "update"}
    assert world.synced("out") == {"written": 1, "unchanged": 2}
    assert json.loads(world.at_prod()["note"]) == {"notes": "two", "pin": "1234"}

    world.host.do(lambda: state.trash_item(ada.account, ada.items()["login"].id))
    assert world.planned("out") == {"login": "delete"}
    assert world.synced("out") == {"deleted": 1, "unchanged": 2}
    assert sorted(world.at_prod()) == ["db", "note"]
    assert world.synced("out") == {"unchanged": 2}


def test_check_says_which_credential_or_collection_is_wrong(world: World) -> None:
    assert world.run("check").code == 0
    said: dict[str, Any] = {}
    world.folder.env["VW_PASSWORD"] = "wrong"
    said["password"] = world.run("check", "family")
    world.folder.env["VW_PASSWORD"] = PASSWORD
    world.ada.account.enabled = False
    said["disabled"] = world.run("check", "family")
    world.ada.account.enabled = True
    world.ada.account.two_factor = (0,)
    said["API key"] = world.run("check", "family")
    world.ada.account.two_factor = ()
    path = world.folder.path / "vaultferry.yaml"
    path.write_text(path.read_text().replace("collection: Prod", "collection: Prd"))
    said["Prd"] = world.run("check", "family")
    for word, ended in said.items():
        assert ended.code == 1, word
        assert word in ended.out, ended.out
