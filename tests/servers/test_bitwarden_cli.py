"""The official `bw` client on the sandbox's server: both sides agree on every key and every byte."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sandbox.bitwarden_people import ARGON2ID, PBKDF2, Person
from shared.errors import SecretNotFound
from shared.model import Secret
from shared.vault import Vault
from shared.vaults.vaultwarden import Settings, connect
from shared.vaults.vaultwarden.crypto import Kdf, decrypt_text
from tests.servers.bitwarden_cli import Bw, BwError, BwOpen, Hosted, login_item, note_item

pytestmark = pytest.mark.real

PASSWORD = "correct horse battery staple ☂"
PEM = b"-----BEGIN CERTIFICATE-----\r\n\x00\xff\r\n-----END CERTIFICATE-----\r\n"
UNICODE = 'naïve ☂ 𝕏 \N{ZERO WIDTH JOINER} "quoted"\ttab\nnewline'


@pytest.fixture(scope="module")
def ada(bitwarden: Hosted) -> Person:
    return bitwarden.do(lambda: bitwarden.server.register("Ada@Example.org", PASSWORD))


@pytest.fixture(scope="module")
def bw(ada: Person, bitwarden: Hosted, new_bw: Callable[[], Bw]) -> Iterator[BwOpen]:
    """Logged in as Ada."""
    client = new_bw()
    # The first token lasts so short that the client renews it at once, and from then on keeps the new one.
    bitwarden.server.token_seconds, usual = 60, bitwarden.server.token_seconds
    client.login("ada@example.org", PASSWORD)
    bitwarden.server.token_seconds = usual
    with client.open(ada) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_unknown(bitwarden: Hosted) -> Iterator[None]:
    """A path that the client asked for and the server does not have would be an error that nobody sees."""
    yield
    assert bitwarden.server.unknown == []


@pytest.mark.parametrize("kdf", [PBKDF2, ARGON2ID], ids=["pbkdf2", "argon2id"])
def test_a_password_login_opens_what_lies_there(kdf: Kdf, bitwarden: Hosted, new_bw: Callable[[], Bw]) -> None:
    email = f"{kdf.kind.name.lower()}@example.org"
    person = bitwarden.do(lambda: bitwarden.server.register(email, PASSWORD, kdf))
    bitwarden.do(lambda: person.add_login("db/prod", username="app", password=UNICODE, own_key=True))
    client = new_bw()
    client.login(email, PASSWORD)
    assert client("get", "password", "db/prod") == UNICODE


def test_the_api_key_logs_in_and_the_password_unlocks(ada: Person, bitwarden: Hosted, new_bw: Callable[[], Bw]) -> None:
    before = bitwarden.server.calls["login"]
    client = new_bw()
    client.login_with_api_key(ada.account.client_id, ada.account.api_key, PASSWORD)
    assert client.environment["BW_SESSION"]
    assert bitwarden.server.calls["api_key_login"] == 1
    assert bitwarden.server.calls["login"] == before


def test_wrong_credentials_are_refused_in_words(ada: Person, new_bw: Callable[[], Bw]) -> None:
    client = new_bw()
    with pytest.raises(BwError, match="Username or password is incorrect"):
        client.login("ada@example.org", "wrong")
    with pytest.raises(BwError, match="Incorrect client_secret"):
        client.login_with_api_key(ada.account.client_id, "wrong", PASSWORD)


def test_two_step_login_takes_the_code_and_nothing_else(bitwarden: Hosted, new_bw: Callable[[], Bw]) -> None:
    person = bitwarden.do(lambda: bitwarden.server.register("two-step@example.org", PASSWORD))
    person.account.two_factor, person.account.two_factor_code = (0,), "123456"
    client = new_bw()
    with pytest.raises(BwError, match=r"(?i)code|two"):
        client.login("two-step@example.org", PASSWORD)
    client.login("two-step@example.org", PASSWORD, "--method", "0", "--code", "123456")
    assert client.environment["BW_SESSION"]


def test_an_item_is_created_edited_trashed_restored_and_deleted(bw: BwOpen, ada: Person, bitwarden: Hosted) -> None:
    fields = [{"name": "text", "value": UNICODE, "type": 0}, {"name": "hidden", "value": "hush", "type": 1}]
    item = login_item(
        "edited ü", username="u", password="one", totp="JBSWY3DPEHPK3PXP", uris=["https://a", "https://b"],
        fields=fields, notes=UNICODE,
    )  # fmt: skip
    created = bw.create("item", item)
    stored = ada.items()["edited ü"]
    opened = ada.read(stored)
    assert opened["notes"] == UNICODE
    assert [(each["name"], each["value"], each["type"]) for each in opened["fields"]] == [
        ("text", UNICODE, 0), ("hidden", "hush", 1),
    ]  # fmt: skip
    assert opened["data"]["totp"] == "JBSWY3DPEHPK3PXP"
    assert [each["uri"] for each in opened["data"]["uris"]] == ["https://a", "https://b"]
    created["login"]["password"] = "two"
    edited = bw.edit("item", created["id"], created)
    assert [each["password"] for each in edited["passwordHistory"]] == ["one"]
    assert ada.read(stored)["data"]["password"] == "two"
    assert stored.writes == 2
    bw.delete("item", created["id"])
    assert "edited ü" not in bw.items()
    assert stored.deleted is not None
    bw.wait(lambda: created["id"] in [each["id"] for each in bw.list("items", "?trash=true")])
    bw.ask("POST", f"/restore/item/{created['id']}")
    assert bw.items()["edited ü"]["login"]["password"] == "two"
    bw.delete("item", created["id"], "?permanent=true")
    assert created["id"] not in bitwarden.server.state.items


def test_a_note_of_ten_thousand_characters_keeps_every_one(bw: BwOpen, ada: Person) -> None:
    notes = ("☂ä\n" * 3_334)[:10_000]
    assert bw.create("item", note_item("long note", notes))["notes"] == notes
    assert ada.read(ada.items()["long note"])["notes"] == notes
    assert bw.items()["long note"]["notes"] == notes


def test_a_note_above_the_servers_limit_is_refused_in_words(bw: BwOpen, bitwarden: Hosted) -> None:
    bitwarden.server.state.max_note_size = 10_000
    try:
        with pytest.raises(BwError, match="exceeds the maximum encrypted value length of 10000"):
            bw.create("item", note_item("too long", "x" * 8_000))
    finally:
        bitwarden.server.state.max_note_size = 100_000
    assert "too long" not in bw.items()


def test_folders_hold_items_and_leave_them_behind(bw: BwOpen, ada: Person, bitwarden: Hosted) -> None:
    folder = bw.create("folder", {"name": "apps/web"})
    bw.create("item", login_item("in a folder", password="p", folderId=folder["id"]))
    assert ada.items()["in a folder"].folders == {ada.account.id: folder["id"]}
    bw.edit("folder", folder["id"], {"name": "apps/api"})
    assert decrypt_text(bitwarden.server.state.folders[folder["id"]].name, ada.user_key) == "apps/api"
    bw.delete("folder", folder["id"])
    assert bw.items()["in a folder"].get("folderId") is None


def test_an_organisations_items_are_read_and_written_under_its_own_key(
    bw: BwOpen, ada: Person, bitwarden: Hosted
) -> None:
    ops = bitwarden.do(lambda: ada.found("Ops"))
    prod = bitwarden.do(lambda: ada.add_collection(ops, "Teams/Prod"))
    bitwarden.do(lambda: ada.add_login("seeded", password="s", collections=[prod]))
    assert bw.items()["seeded"]["login"]["password"] == "s"
    assert [each["name"] for each in bw.list("organizations")] == ["Ops"]
    assert [each["name"] for each in bw.list("org-collections", f"?organizationId={ops.id}")] == ["Teams/Prod"]

    item = login_item("theirs", password="t", organizationId=ops.id, collectionIds=[prod.id])
    stored = bitwarden.server.state.items[bw.create("item", item)["id"]]
    assert (stored.account_id, stored.organization_id, stored.collections) == (None, ops.id, {prod.id})
    assert ada.read(stored)["data"]["password"] == "t"

    made: dict[str, Any] = {"organizationId": ops.id, "name": "Teams/Test", "externalId": None}
    test = bw.create("org-collection", {**made, "groups": [], "users": []}, f"?organizationId={ops.id}")
    bw.sync()
    bw.wait(lambda: test["id"] in [each["id"] for each in bw.list("collections")])
    moved = bw.create("item", login_item("moved", password="m"))
    bw.ask("POST", f"/move/{moved['id']}/{ops.id}", [test["id"]])
    stored = bitwarden.server.state.items[moved["id"]]
    assert (stored.account_id, stored.organization_id, stored.collections) == (None, ops.id, {test["id"]})
    assert ada.read(stored)["data"]["password"] == "m"
    bw.wait(lambda: bw.get("item", moved["id"])["collectionIds"] == [test["id"]])
    bw.edit("item-collections", moved["id"], [prod.id])
    assert stored.collections == {prod.id}
    bw.delete("org-collection", test["id"], f"?organizationId={ops.id}")
    assert list(bitwarden.server.state.collections) == [prod.id]


def test_a_stale_copy_is_refused_and_a_sync_makes_it_fresh(bw: BwOpen, ada: Person, bitwarden: Hosted) -> None:
    created = bw.create("item", login_item("raced", password="one"))
    stored = bitwarden.server.state.items[created["id"]]

    def another_client_saves() -> None:
        bitwarden.server.clock.advance(5)
        stored.updated = bitwarden.server.clock()
        ada.state.touch([ada.account.id])

    bitwarden.do(another_client_saves)
    created["login"]["password"] = "two"
    with pytest.raises(BwError, match="out of date"):
        bw.edit("item", created["id"], created)
    assert ada.read(stored)["data"]["password"] == "one"
    fresh = bw.items()["raced"]
    fresh["login"]["password"] = "two"
    bw.edit("item", created["id"], fresh)
    assert ada.read(stored)["data"]["password"] == "two"


def test_a_token_that_is_about_to_end_is_renewed(bw: BwOpen, bitwarden: Hosted) -> None:
    bw.sync()
    assert bitwarden.server.calls["refresh"] >= 1


# The official client and ours, on the same items.


@dataclass(frozen=True)
class Both:
    """One account, opened by the official client and by ours."""

    person: Person
    bw: BwOpen
    settings: Settings
    where: dict[str, Any]
    """What the official client adds to an item that belongs to our vault."""


@pytest.fixture(scope="module", params=["own vault, pbkdf2", "collection, argon2id"])
def both(request: pytest.FixtureRequest, bitwarden: Hosted, new_bw: Callable[[], Bw]) -> Iterator[Both]:
    shared = request.param.startswith("collection")
    email = "grace@example.org" if shared else "alan@example.org"
    server = bitwarden.server
    person = bitwarden.do(lambda: server.register(email, PASSWORD, ARGON2ID if shared else PBKDF2))
    told: dict[str, Any] = {"organization": "Navy", "collection": "Teams/Prod"} if shared else {"folder": "Teams/Prod"}
    where: dict[str, Any] = {}
    if shared:
        navy = bitwarden.do(lambda: person.found("Navy"))
        prod = bitwarden.do(lambda: person.add_collection(navy, "Teams/Prod"))
        where = {"organizationId": navy.id, "collectionIds": [prod.id]}
    else:
        where = {"folderId": bitwarden.do(lambda: person.add_folder("Teams/Prod")).id}
    client = new_bw()
    client.login(email, PASSWORD)
    settings = Settings.model_validate(
        {
            "kind": "vaultwarden",
            "url": server.url,
            "email": email,
            "password": PASSWORD,
            "ca_bundle": str(server.ca_bundle),
            **told,
        }
    )
    with client.open(person) as opened:
        yield Both(person, opened, settings, where)


@pytest.fixture
async def ours(both: Both) -> AsyncIterator[Vault]:
    vault = connect("family", both.settings)
    await vault.open()
    yield vault
    await vault.aclose()


async def test_what_the_official_client_creates_we_read(both: Both, ours: Vault) -> None:
    fields = [{"name": "text \u00fc", "value": UNICODE, "type": 0}, {"name": "pin", "value": "1234", "type": 1}]
    item = login_item(
        "theirs/login", username="u", password=UNICODE, totp="JBSWY3DPEHPK3PXP", uris=["https://a", "https://b"],
        fields=fields, **both.where,
    )  # fmt: skip
    created = await asyncio.to_thread(both.bw.create, "item", item)
    notes = ("☂\u00e4\n" * 3_334)[:10_000]
    await asyncio.to_thread(both.bw.create, "item", note_item("theirs/note", notes, **both.where))
    seen = {entry.name: entry.fingerprint async for entry in ours.list_secrets("theirs/")}
    assert sorted(seen) == ["theirs/login", "theirs/note"]
    assert (await ours.get_secret("theirs/login")).fields == {
        "username": "u", "password": UNICODE, "totp": "JBSWY3DPEHPK3PXP", "uri": "https://a", "uri2": "https://b",
        "text \u00fc": UNICODE, "pin": "1234",
    }  # fmt: skip
    assert (await ours.get_secret("theirs/note")).fields == {"notes": notes}

    created["login"]["password"] = "two"
    await asyncio.to_thread(both.bw.edit, "item", created["id"], created)
    assert (await ours.get_secret("theirs/login")).fields["password"] == "two"
    assert (await ours.describe_secret("theirs/login")).fingerprint != seen["theirs/login"]
    await asyncio.to_thread(both.bw.delete, "item", created["id"])
    with pytest.raises(SecretNotFound):
        await ours.get_secret("theirs/login")


async def test_what_we_write_the_official_client_reads(both: Both, ours: Vault) -> None:
    notes = ("☂\u00e4\n" * 3_334)[:10_000]
    fields = {
        "username": "u", "password": UNICODE, "totp": "JBSWY3DPEHPK3PXP", "uri": "https://a", "notes": notes,
        "pin \u00fc": UNICODE,
    }  # fmt: skip
    await ours.set_secret("ours/login", Secret(fields))
    await ours.set_secret("ours/note", Secret({"value": UNICODE}))
    seen = await asyncio.to_thread(both.bw.items)
    login = seen["ours/login"]
    assert {key: login["login"][key] for key in ("username", "password", "totp")} == {
        key: fields[key] for key in ("username", "password", "totp")
    }
    assert [each["uri"] for each in login["login"]["uris"]] == ["https://a"]
    assert login["notes"] == notes
    assert {"pin \u00fc": UNICODE}.items() <= {each["name"]: each["value"] for each in login["fields"]}.items()
    assert {key: login.get(key) for key in both.where} == both.where
    assert [(each["value"], each["type"]) for each in seen["ours/note"]["fields"]] == [(UNICODE, 1)]

    await ours.set_secret("ours/login", Secret({**fields, "password": "two"}))
    login = (await asyncio.to_thread(both.bw.items))["ours/login"]
    assert login["login"]["password"] == "two"
    assert [each["password"] for each in login["passwordHistory"]] == [UNICODE]
    await ours.delete_secret("ours/login")
    assert "ours/login" not in await asyncio.to_thread(both.bw.items)
    trash = await asyncio.to_thread(both.bw.list, "items", "?trash=true")
    assert [each["name"] for each in trash if each["name"].startswith("ours/")] == ["ours/login"]


async def test_an_update_of_ours_keeps_what_people_have_put_there(both: Both, ours: Vault) -> None:
    item = login_item(
        "both", username="u", password="one", uris=["https://a"], notes="by hand",
        fields=[{"name": "linked", "type": 3, "linkedId": 100}], favorite=True, reprompt=1, **both.where,
    )  # fmt: skip
    created = await asyncio.to_thread(both.bw.create, "item", item)
    await asyncio.to_thread(both.bw.attach, created["id"], "key.pem", PEM)
    await ours.set_secret("both", Secret({"username": "u", "password": "two"}))
    after = (await asyncio.to_thread(both.bw.items))["both"]
    assert after["login"]["password"] == "two"
    assert [each["uri"] for each in after["login"]["uris"]] == ["https://a"]
    assert (after["notes"], after["favorite"], after["reprompt"]) == ("by hand", True, 1)
    assert ("linked", 3, 100) in [(each["name"], each["type"], each.get("linkedId")) for each in after["fields"]]
    assert [each["password"] for each in after["passwordHistory"]] == ["one"]
    assert [each["fileName"] for each in after["attachments"]] == ["key.pem"]
    attachment = await asyncio.to_thread(both.bw.download, created["id"], after["attachments"][0]["id"])
    assert attachment == PEM
    after["login"]["password"] = "three"
    await asyncio.to_thread(both.bw.edit, "item", created["id"], after)
    assert (await ours.get_secret("both")).fields["password"] == "three"
