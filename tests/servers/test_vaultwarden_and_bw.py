"""The kind and the official `bw` client on one account: what either writes, the other reads."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sandbox.bitwarden_people import ARGON2ID, PBKDF2, Person
from sandbox.bitwarden_state import Collection
from shared.model import Secret
from shared.vaults.vaultwarden import Settings
from shared.vaults.vaultwarden.vault import VaultwardenVault
from tests.servers.bitwarden_cli import Bw, BwOpen, Hosted, login_item, note_item

pytestmark = pytest.mark.real

PASSWORD = "correct horse battery staple ☂"
UNICODE = 'naïve ☂ 𝕏 \N{ZERO WIDTH JOINER} "quoted"\ttab\nnewline'
LONG = ("☂ä\n" * 3_334)[:10_000]
FIELDS = {
    "username": "app",
    "password": UNICODE,
    "totp": "JBSWY3DPEHPK3PXP",
    "uri": "https://db.example",
    "uri2": "https://db2.example/ž",
    "notes": LONG,
    "port": 5432,
    "other": UNICODE,
}


@pytest.fixture(scope="module", params=[PBKDF2, ARGON2ID], ids=["pbkdf2", "argon2id"])
def person(request: pytest.FixtureRequest, bitwarden: Hosted) -> Person:
    email = f"both-{request.param.kind.name.lower()}@example.org"
    return bitwarden.do(lambda: bitwarden.server.register(email, PASSWORD, request.param))


@pytest.fixture(scope="module")
def prod(person: Person, bitwarden: Hosted) -> Collection:
    return bitwarden.do(lambda: person.add_collection(person.found("Both"), "Prod"))


@pytest.fixture(scope="module")
def bw(person: Person, prod: Collection, new_bw: Callable[[], Bw]) -> Iterator[BwOpen]:
    client = new_bw()
    client.login(person.email, PASSWORD)
    with client.open() as opened:
        yield opened


@pytest.fixture(params=["own", "organisation"])
async def vault(
    request: pytest.FixtureRequest, person: Person, prod: Collection, bitwarden: Hosted
) -> AsyncIterator[VaultwardenVault]:
    place: dict[str, Any] = {"organization": "Both", "collection": "Prod"} if request.param == "organisation" else {}
    settings = Settings(
        kind="vaultwarden",
        url=bitwarden.server.url,
        email=person.email,
        password=PASSWORD,
        ca_bundle=str(bitwarden.server.ca_bundle),
        **place,
    )
    vault = VaultwardenVault("family", settings)
    yield vault
    await vault.aclose()
    assert bitwarden.server.unknown == []


def placed(vault: VaultwardenVault, prod: Collection) -> dict[str, Any]:
    """What `bw` has to say to make an item where this vault is."""
    if vault._settings.organization is None:
        return {}
    return {"organizationId": prod.organization_id, "collectionIds": [prod.id]}


async def test_bw_reads_what_we_write(vault: VaultwardenVault, bw: BwOpen, person: Person) -> None:
    name = f"ours/ü {vault._where()}"
    await vault.set_secret(name, Secret(FIELDS))
    await vault.set_secret(name, Secret({**FIELDS, "password": "two"}))
    bw.sync()
    item = bw.items()[name]
    assert {each: item["login"][each] for each in ("username", "password", "totp")} == {
        "username": "app",
        "password": "two",
        "totp": "JBSWY3DPEHPK3PXP",
    }
    assert [each["uri"] for each in item["login"]["uris"]] == ["https://db.example", "https://db2.example/ž"]
    assert item["notes"] == LONG
    assert ("other", UNICODE, 1) in [(each["name"], each["value"], each["type"]) for each in item["fields"]]
    assert [each["password"] for each in item["passwordHistory"]] == [UNICODE]
    assert (await vault.get_secret(name)).fields == {**FIELDS, "password": "two"}


async def test_we_read_what_bw_makes_and_edits(vault: VaultwardenVault, bw: BwOpen, prod: Collection) -> None:
    name, where = f"theirs/ü {vault._where()}", placed(vault, prod)
    fields = [{"name": "text", "value": UNICODE, "type": 0}, {"name": "hidden", "value": "hush", "type": 1}]
    fields += [{"name": "yes", "value": "true", "type": 2}]
    item = login_item(
        name, username="u", password="one", totp="JBSWY3DPEHPK3PXP", uris=["https://a", "https://b"], fields=fields,
        notes=LONG, **where,
    )  # fmt: skip
    created = bw.create("item", item)
    expected: dict[str, Any] = {
        "username": "u",
        "password": "one",
        "totp": "JBSWY3DPEHPK3PXP",
        "uri": "https://a",
        "uri2": "https://b",
        "notes": LONG,
        "text": UNICODE,
        "hidden": "hush",
        "yes": "true",
    }
    read = await vault.get_secret(name)
    assert read.fields == expected
    created["login"]["password"] = "two"
    bw.edit("item", created["id"], created)
    again = await vault.get_secret(name)
    assert again.fields == {**expected, "password": "two"}
    assert read.entry is not None
    assert again.entry is not None
    assert again.entry.fingerprint != read.entry.fingerprint
    assert bw.create("item", note_item(f"note {name}", "by hand", **where))
    assert (await vault.get_secret(f"note {name}")).fields == {"notes": "by hand"}


async def test_what_bw_adds_to_our_item_stays(vault: VaultwardenVault, bw: BwOpen) -> None:
    name = f"shared {vault._where()}"
    await vault.set_secret(name, Secret({"username": "app", "password": "1"}))
    bw.sync()
    item = bw.items()[name]
    item["notes"] = "a person's"
    item["favorite"] = True
    item["login"]["uris"] = [{"uri": "https://a person's", "match": 3}]
    bw.edit("item", item["id"], item)
    await vault.set_secret(name, Secret({"username": "app", "password": "2"}))
    assert (await vault.get_secret(name)).fields == {"username": "app", "password": "2"}
    bw.sync()
    after = bw.items()[name]
    assert (after["notes"], after["favorite"], after["login"]["password"]) == ("a person's", True, "2")
    assert [(each["uri"], each["match"]) for each in after["login"]["uris"]] == [("https://a person's", 3)]


async def test_what_we_delete_is_in_bws_trash_and_comes_back(vault: VaultwardenVault, bw: BwOpen) -> None:
    name = f"deleted {vault._where()}"
    await vault.set_secret(name, Secret({"value": "x"}))
    bw.sync()
    item = bw.items()[name]
    await vault.delete_secret(name)
    bw.sync()
    assert name not in bw.items()
    bw.ask("POST", f"/restore/item/{item['id']}")
    assert (await vault.get_secret(name)).fields == {"value": "x"}
