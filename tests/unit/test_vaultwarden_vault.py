"""The kind against the sandbox's server: logins, places, one sync for all, and items that are damaged or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import ARGON2ID, Person
from sandbox.bitwarden_state import Access, Item
from sandbox.faults import Fault
from shared.errors import AccessDenied, InvalidSecret, MountNotFound, SecretNotFound, Unavailable, VaultError
from shared.model import Secret
from shared.pacing import Pacer
from shared.vault import Use
from shared.vaults.vaultwarden import Settings, account, connect, crypto
from shared.vaults.vaultwarden import vault as vault_module
from shared.vaults.vaultwarden.crypto import SymmetricKey
from shared.vaults.vaultwarden.vault import VaultwardenVault
from tests.contract.vaults.harness import everything_told_by

PASSWORD = "correct horse battery staple"


class World:
    """One server with one account, and vaults on it."""

    def __init__(self, server: BitwardenServer) -> None:
        self.server = server
        self.ada = server.register("ada@example.org", PASSWORD)
        self.vaults: list[VaultwardenVault] = []

    def connect(self, **more: Any) -> VaultwardenVault:
        given = {"url": self.server.url, "email": "ada@example.org", "password": PASSWORD} | more
        settings = Settings(kind="vaultwarden", ca_bundle=str(self.server.ca_bundle), **given)
        vault = connect("family", settings)
        assert isinstance(vault, VaultwardenVault)

        async def no_wait(_: float) -> None:
            await asyncio.sleep(0)

        vault.pacer = Pacer("family", concurrency=vault.pacer.concurrency, sleep=no_wait)
        self.vaults.append(vault)
        return vault

    def called(self, operation: str) -> int:
        return self.server.calls[operation]

    def settle(self) -> None:
        """What was done until now lies an hour back."""
        for each in self.server.state.accounts.values():
            each.updated = each.updated.replace(year=2020)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with BitwardenServer() as server:
        world = World(server)
        yield world
        for vault in world.vaults:
            await vault.aclose()


async def names(vault: VaultwardenVault, prefix: str = "") -> list[str]:
    return sorted([entry.name async for entry in vault.list_secrets(prefix)])


async def fields(vault: VaultwardenVault, name: str) -> Mapping[str, Any]:
    return (await vault.get_secret(name)).fields


def only(person: Person) -> Item:
    (item,) = person.items().values()
    return item


# --- logins -------------------------------------------------------------------------------------------------------


async def test_an_argon2id_account_is_opened(world: World) -> None:
    bob = world.server.register("bob@example.org", PASSWORD, ARGON2ID)
    bob.add_login("db", username="app", password="s3cret")
    assert await fields(world.connect(email="Bob@Example.org"), "db") == {"username": "app", "password": "s3cret"}


async def test_the_api_key_goes_past_two_step_login(world: World) -> None:
    world.ada.account.two_factor = (0,)
    world.ada.add_note("token", fields={"value": "x"})
    with pytest.raises(AccessDenied, match="client_id and client_secret, the account's API key"):
        await world.connect().open()
    vault = world.connect(client_id=world.ada.account.client_id, client_secret=world.ada.account.api_key)
    assert await fields(vault, "token") == {"value": "x"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"password": "wrong"}, "e-mail or master password are wrong"),
        ({"email": "nobody@example.org"}, "e-mail or master password are wrong"),
        ({"key": "wrong"}, "the API key is wrong"),
        ({"key": "right", "password": "wrong"}, "the API key is right, but e-mail or master password"),
        ({"key": "right", "email": "bob@example.org"}, "the API key is right, but e-mail or master password"),
    ],
)
async def test_a_login_that_fails_says_what_was_wrong(world: World, more: dict[str, str], message: str) -> None:
    key = more.pop("key", None)
    if key is not None:
        secret = world.ada.account.api_key if key == "right" else "wrong"
        more |= {"client_id": world.ada.account.client_id, "client_secret": secret}
    vault = world.connect(**more)
    with pytest.raises(AccessDenied, match=message) as caught:
        await vault.open()
    assert PASSWORD not in everything_told_by(caught.value)
    (finding,) = await vault.check([])
    assert (finding.subject, finding.ok) == ("login", False)
    assert message in finding.detail


async def test_a_refused_login_is_not_tried_again_at_once(world: World) -> None:
    vault = world.connect(password="wrong")
    tries = await asyncio.gather(*(vault.get_secret("one") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(each, AccessDenied) for each in tries)
    assert world.called("login") == 1


class Hours:
    """A clock that tests turn, in the place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


async def test_a_wrong_password_is_tried_ever_more_rarely(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hours()
    monkeypatch.setattr(account, "time", clock)
    vault = world.connect(password="wrong")
    for _ in range(24 * 60):
        with pytest.raises(AccessDenied, match="e-mail or master password"):
            await vault.open()
        clock.now += 60
    # After 1, 3, 7, 15, 31, 63 minutes, then each hour.
    assert 25 <= world.called("login") <= 31


async def test_a_password_that_is_right_again_opens_the_account(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Hours()
    monkeypatch.setattr(account, "time", clock)
    vault = world.connect()
    world.ada.change_password("another")
    for _ in range(2):
        with pytest.raises(AccessDenied):
            await vault.open()
        clock.now += 61
    world.ada.change_password(PASSWORD)
    with pytest.raises(AccessDenied):
        await vault.open()
    clock.now += 60
    await vault.open()
    assert world.called("login") == 3


async def test_nothing_is_encrypted_with_a_key_that_the_account_has_no_more(world: World) -> None:
    vault = world.connect()
    await vault.set_secret("before", Secret({"value": "1"}))
    person = world.ada
    person.account.private_key = crypto.encrypt(
        crypto.decrypt(person.account.private_key, person.user_key), new := SymmetricKey.generate()
    )
    (item,) = person.items().values()
    item.body["key"] = crypto.wrap(crypto.unwrap(item.body["key"], person.user_key), new)
    object.__setattr__(person, "user_key", new)
    person.change_password(PASSWORD)
    await vault.set_secret("after", Secret({"value": "2"}))
    await vault.set_secret("before", Secret({"value": "3"}))
    assert set(person.items()) == {"before", "after"}
    assert (await fields(vault, "before"), await fields(vault, "after")) == ({"value": "3"}, {"value": "2"})


async def test_an_old_server_that_capitalises_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = world.connect()
    get = vault._account.get

    async def capitals(path: str) -> Any:
        answer = await get(path)
        return {name.capitalize(): value for name, value in answer.items()} if path.startswith("/sync") else answer

    monkeypatch.setattr(vault._account, "get", capitals)
    with pytest.raises(AccessDenied, match="update it"):
        await vault.open()


async def test_a_disabled_account_is_told(world: World) -> None:
    world.ada.account.enabled = False
    with pytest.raises(AccessDenied, match="disabled or locked"):
        await world.connect().open()


async def test_a_server_that_has_had_enough_of_logins_is_left_alone(world: World) -> None:
    world.server.login_burst = 0
    vault = world.connect()
    for _ in range(3):
        with pytest.raises(Unavailable, match="locked out for now") as caught:
            await vault.open()
        assert caught.value.retry_after == 60
    assert world.called("login") == 1
    (finding,) = await vault.check([])
    assert "locked out" in finding.detail


async def test_a_server_can_not_ask_for_a_weak_key(world: World) -> None:
    world.ada.account.kdf["iterations"] = 1
    with pytest.raises(AccessDenied, match="unsafe way to make the master key"):
        await world.connect().open()
    assert world.called("login") == 0


async def test_an_account_of_the_newer_format_is_told_as_such(world: World) -> None:
    world.ada.account.key = "7.g1gcowE6AAERb"
    with pytest.raises(AccessDenied, match="newer account format"):
        await world.connect().open()


async def test_a_token_that_has_ended_is_refreshed_once_for_all(world: World) -> None:
    vault = world.connect()
    await vault.open()
    world.server.forget_access_tokens()
    await asyncio.gather(*(vault.set_secret(f"n{number}", Secret({"value": "x"})) for number in range(10)))
    assert (world.called("refresh"), world.called("login")) == (1, 1)
    assert len(world.ada.items()) == 10


async def test_a_session_that_can_not_be_refreshed_is_begun_anew(world: World) -> None:
    vault = world.connect(client_id=world.ada.account.client_id, client_secret=world.ada.account.api_key)
    await vault.open()
    world.server.forget_access_tokens()
    await vault.set_secret("one", Secret({"value": "x"}))
    assert world.called("api_key_login") == 2


async def test_a_token_is_renewed_before_it_ends(world: World) -> None:
    vault = world.connect()
    await vault.open()
    session = vault._account._session
    assert session is not None
    vault._account._session = replace(session, ends=0.0)
    await vault.open()
    assert (world.called("refresh"), world.called("login")) == (1, 1)


async def test_requests_look_like_those_of_the_official_client(world: World) -> None:
    await world.connect().set_secret("one", Secret({"value": "x"}))
    (device,) = world.ada.account.devices
    await world.connect().open()
    assert world.ada.account.devices == {device}
    assert world.server.unknown == []


async def test_nothing_of_the_account_is_shown(world: World) -> None:
    world.ada.add_login("db", password="s3cret-canary")
    vault = world.connect()
    got = await vault.get_secret("db")
    shown = "\n".join([repr(vault), repr(vars(vault)), repr(vars(vault._account)), repr(vault._copy), repr(got)])
    for secret in (PASSWORD, "s3cret-canary", world.ada.user_key.raw().hex(), repr(world.ada.user_key.encryption)):
        assert secret not in shown


# --- places -------------------------------------------------------------------------------------------------------


async def test_folders_of_the_own_vault_are_prefixes(world: World) -> None:
    world.ada.add_note("top", fields={"value": "1"})
    world.ada.add_note("db", folder=world.ada.add_folder("apps/shop"), fields={"value": "2"})
    vault = world.connect()
    assert await names(vault) == ["apps/shop/db", "top"]
    assert await names(vault, "apps/") == ["apps/shop/db"]
    await vault.set_secret("apps/shop/cache", Secret({"value": "3"}))
    await vault.set_secret("apps/other", Secret({"value": "4"}))
    assert {"db", "cache", "apps/other", "top"} == set(world.ada.items())
    assert await fields(vault, "apps/shop/cache") == {"value": "3"}


async def test_one_folder_is_a_vault_of_its_own(world: World) -> None:
    folders = [world.ada.add_folder(name) for name in ("Prod", "Prod/apps", "Production")]
    for folder in folders:
        world.ada.add_note("db", folder=folder)
    world.ada.add_note("elsewhere")
    vault = world.connect(folder="Prod")
    assert await names(vault) == ["apps/db", "db"]
    await vault.set_secret("new", Secret({"value": "x"}))
    assert world.ada.items()["new"].folders == {world.ada.account.id: folders[0].id}


async def test_a_collection_and_those_nested_in_it_are_a_vault(world: World) -> None:
    ops = world.ada.found("Ops")
    prod, apps, test = (world.ada.add_collection(ops, name) for name in ("Prod", "Prod/apps", "Test"))
    world.ada.add_login("db", password="1", collections=[prod], own_key=True)
    world.ada.add_login("shop", password="2", collections=[apps])
    world.ada.add_login("both", password="3", collections=[apps, prod])
    world.ada.add_login("other", password="4", collections=[test])
    world.ada.add_login("mine", password="5")
    vault = world.connect(organization="Ops", collection="Prod")
    assert await names(vault) == ["apps/shop", "both", "db"]
    assert await fields(vault, "apps/shop") == {"password": "2"}
    await vault.set_secret("apps/cache", Secret({"value": "x"}))
    assert world.ada.items()["cache"].collections == {apps.id}
    await vault.set_secret("db", Secret({"password": "changed"}))
    assert await fields(vault, "db") == {"password": "changed"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"organization": "Opps", "collection": "Prod"}, "in no organisation 'Opps'; there are: 'Ops'"),
        (
            {"organization": "Ops", "collection": "prod"},
            "no collection 'prod' of 'Ops' that this account sees; there are: 'Prod'",
        ),
        ({"folder": "Prod"}, "no folder 'Prod' in this account; there are: 'Private'"),
    ],
)
async def test_what_is_not_there_is_named_with_what_there_is(world: World, more: dict[str, str], message: str) -> None:
    world.ada.add_collection(world.ada.found("Ops"), "Prod")
    world.ada.add_folder("Private")
    vault = world.connect(**more)
    with pytest.raises(MountNotFound, match=message):
        await vault.open()
    login, place = await vault.check([])
    assert (login.ok, place.ok) == (True, False)
    assert message in place.detail


async def test_an_organisation_that_has_not_confirmed_the_account_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ada.add_collection(world.ada.found("Ops"), "Prod")
    vault = world.connect(organization="Ops", collection="Prod")
    get = vault._account.get

    async def invited(path: str) -> Any:
        answer = await get(path)
        if path.startswith("/sync"):
            answer["profile"]["organizations"][0] |= {"status": 1, "key": None}
        return answer

    monkeypatch.setattr(vault._account, "get", invited)
    with pytest.raises(MountNotFound, match="has not confirmed this account yet"):
        await vault.open()


async def test_a_collection_without_a_readable_name_makes_its_items_doubtful(world: World) -> None:
    ops = world.ada.found("Ops")
    prod, apps = world.ada.add_collection(ops, "Prod"), world.ada.add_collection(ops, "Prod/apps")
    world.ada.add_note("fine", collections=[prod], fields={"value": "x"})
    item = world.ada.add_note("db", collections=[apps])
    apps.name = damaged(apps.name, "cut")
    vault = world.connect(organization="Ops", collection="Prod")
    assert await names(vault) == ["fine", f"unreadable item {item.id}"]
    assert await fields(vault, "fine") == {"value": "x"}
    with pytest.raises(InvalidSecret, match="can not be read"):
        await vault.get_secret("apps/db")


async def test_two_collections_of_one_name_are_told(world: World) -> None:
    ops = world.ada.found("Ops")
    ids = sorted(world.ada.add_collection(ops, "Prod").id for _ in range(2))
    with pytest.raises(MountNotFound, match=", ".join(ids)):
        await world.connect(organization="Ops", collection="Prod").open()


async def test_a_collection_that_may_only_be_read_is_told_by_check_and_when_written(world: World) -> None:
    ops = world.ada.found("Ops")
    prod = world.ada.add_collection(ops, "Prod")
    world.ada.add_login("db", password="1", collections=[prod])
    bob = world.server.register("bob@example.org", PASSWORD)
    world.ada.invite(ops, bob, {prod.id: Access(read_only=True)})
    vault = world.connect(email="bob@example.org", organization="Ops", collection="Prod")
    assert await fields(vault, "db") == {"password": "1"}
    for name in ("db", "new"):
        with pytest.raises(AccessDenied):
            await vault.set_secret(name, Secret({"password": "2"}))
    with pytest.raises(AccessDenied, match="may only read this item"):
        await vault.delete_secret("db")
    findings = await vault.check([Use("", write=True)])
    assert [finding.subject for finding in findings if not finding.ok] == ["write"]


async def test_passwords_that_a_collection_hides_are_listed_and_not_handed_out(world: World) -> None:
    ops = world.ada.found("Ops")
    prod = world.ada.add_collection(ops, "Prod")
    world.ada.add_login("db", password="1", collections=[prod])
    bob = world.server.register("bob@example.org", PASSWORD)
    world.ada.invite(ops, bob, {prod.id: Access(hide_passwords=True)})
    vault = world.connect(email="bob@example.org", organization="Ops", collection="Prod")
    assert [entry.enabled async for entry in vault.list_secrets()] == [False]
    with pytest.raises(AccessDenied, match="hides its passwords"):
        await vault.get_secret("db")
    (finding,) = [finding for finding in await vault.check([Use("")]) if not finding.ok]
    assert (finding.subject, finding.detail) == ("passwords", "those of 1 items are hidden from the account")


async def test_a_password_that_is_hidden_is_not_written_blindly(world: World) -> None:
    ops = world.ada.found("Ops")
    prod = world.ada.add_collection(ops, "Prod")
    item = world.ada.add_login("db", password="1", collections=[prod])
    bob = world.server.register("bob@example.org", PASSWORD)
    member = world.ada.invite(ops, bob, {prod.id: Access(hide_passwords=True)})
    vault = world.connect(email="bob@example.org", organization="Ops", collection="Prod")
    await vault.open()
    with pytest.raises(AccessDenied, match="hides its passwords"):
        await vault.set_secret("db", Secret({"password": "2"}))
    assert item.writes == 1
    member.access[prod.id] = Access()
    world.server.state.touch([bob.account.id])
    await vault.set_secret("db", Secret({"password": "2"}))
    assert await fields(vault, "db") == {"password": "2"}


async def test_an_item_whose_collections_are_not_told_is_saved_once_and_not_taken_for_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bitwarden's own server tells them in `/sync` and in an item's details only."""
    ops = world.ada.found("Ops")
    prod = world.ada.add_collection(ops, "Prod")
    vault = world.connect(organization="Ops", collection="Prod")
    get, send = vault._account.get, vault._account.send

    async def sent(method: str, path: str, *rest: Any, **more: Any) -> Any:
        answer = await send(method, path, *rest, **more)
        return answer and {name: value for name, value in answer.items() if name != "collectionIds"}

    async def got(path: str) -> Any:
        answer = await get(path)
        if path.startswith("/ciphers/") and not path.endswith("/details"):
            del answer["collectionIds"]
        return answer

    monkeypatch.setattr(vault._account, "send", sent)
    monkeypatch.setattr(vault._account, "get", got)
    for value in ("1", "2"):
        await vault.set_secret("one", Secret({"value": value}))
        assert await fields(vault, "one") == {"value": value}
    item = only(world.ada)
    assert (item.writes, item.collections) == (2, {prod.id})
    assert world.called("sync") < 3


async def test_half_a_listing_that_leaves_out_collections_has_lost_no_secret(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = world.ada.found("Ops")
    item = world.ada.add_login("db", password="1", collections=[world.ada.add_collection(ops, "Prod")])
    vault = world.connect(organization="Ops", collection="Prod")
    get = vault._account.get

    async def half(path: str) -> Any:
        answer = await get(path)
        if path.startswith("/sync"):
            answer["ciphers"][0]["collectionIds"] = None
        return answer

    monkeypatch.setattr(vault._account, "get", half)
    assert await names(vault) == [f"unreadable item {item.id}"]
    with pytest.raises(InvalidSecret, match="it may be one of them"):
        await vault.get_secret("db")


# --- how much is asked --------------------------------------------------------------------------------------------


async def test_one_sync_is_a_listing_and_the_revision_date_saves_the_next(world: World) -> None:
    for number in range(300):
        world.ada.add_note(f"n{number}", fields={"value": str(number)})
    world.settle()
    vault = world.connect()
    await vault.open()
    for _ in range(3):
        assert len(await names(vault)) == 300
    await asyncio.gather(*(vault.get_secret(f"n{number}") for number in range(300)))
    assert (world.called("sync"), world.called("get")) == (1, 0)
    assert world.called("revision_date") < 60
    world.ada.add_note("new")
    assert len(await names(vault)) == 301
    assert world.called("sync") == 2


async def test_many_new_secrets_do_not_cost_a_sync_each(world: World) -> None:
    vault = world.connect()
    await vault.open()

    async def make(name: str) -> None:
        with pytest.raises(SecretNotFound):
            await vault.describe_secret(name)
        await vault.set_secret(name, Secret({"value": "x"}))

    await asyncio.gather(*(make(f"n{number}") for number in range(50)))
    assert world.called("create") == 50
    assert world.called("sync") < 20


async def test_a_change_in_the_second_of_the_copy_is_not_missed(world: World) -> None:
    world.server.clock.freeze()
    item = world.ada.add_note("n", fields={"value": "1"})
    vault = world.connect()
    assert await fields(vault, "n") == {"value": "1"}
    item.body = world.ada.add_note("m", fields={"value": "2"}).body | {"name": item.body["name"]}
    assert await fields(vault, "n") == {"value": "2"}


async def test_what_was_written_while_a_sync_was_under_way_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ada.add_note("known", fields={"value": "1"})
    vault = world.connect()
    await vault.open()
    answered, go_on = asyncio.Event(), asyncio.Event()
    get = vault._account.get

    async def slowly(path: str) -> Any:
        answer = await get(path)
        if path.startswith("/sync"):
            answered.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(vault._account, "get", slowly)
    listing = asyncio.create_task(names(vault))
    await answered.wait()
    monkeypatch.undo()
    await vault.set_secret("known", Secret({"value": "2"}))
    go_on.set()
    await listing
    assert await fields(vault, "known") == {"value": "2"}
    assert vault._copy is not None
    assert vault._copy.items[only(world.ada).id].entry == await vault.describe_secret("known")


# --- writes -------------------------------------------------------------------------------------------------------


async def test_a_delete_goes_into_the_trash_and_what_is_written_then_is_a_new_item(world: World) -> None:
    vault = world.connect()
    await vault.set_secret("one", Secret({"value": "1"}))
    old = only(world.ada)
    await vault.delete_secret("one")
    assert old.deleted is not None
    await vault.set_secret("one", Secret({"value": "2"}))
    assert only(world.ada).id != old.id


async def test_a_permanent_delete_leaves_nothing(world: World) -> None:
    vault = world.connect(delete_mode="permanent")
    await vault.set_secret("one", Secret({"value": "1"}))
    await vault.delete_secret("one")
    assert world.server.state.items == {}


@pytest.mark.parametrize("gone", ["trash", "delete"])
async def test_an_item_that_a_person_removes_while_it_is_known_is_made_anew(world: World, gone: str) -> None:
    vault = world.connect()
    await vault.set_secret("one", Secret({"value": "1"}))
    old = only(world.ada).id
    getattr(world.server.state, f"{gone}_item")(world.ada.account, old)
    await vault.set_secret("one", Secret({"value": "2"}))
    assert only(world.ada).id != old
    assert await fields(vault, "one") == {"value": "2"}


async def test_an_item_that_a_person_moves_away_is_made_anew(world: World) -> None:
    ops = world.ada.found("Ops")
    prod, test = world.ada.add_collection(ops, "Prod"), world.ada.add_collection(ops, "Test")
    vault = world.connect(organization="Ops", collection="Prod")
    await vault.set_secret("one", Secret({"value": "1"}))
    old = only(world.ada)
    old.collections = {test.id}
    await vault.set_secret("one", Secret({"value": "2"}))
    assert [each.collections for each in world.server.state.items.values()] == [{test.id}, {prod.id}]
    assert await fields(vault, "one") == {"value": "2"}


async def test_an_item_that_a_person_gives_to_an_organisation_is_made_anew(world: World) -> None:
    prod = world.ada.add_collection(world.ada.found("Ops"), "Prod")
    vault = world.connect()
    await vault.set_secret("one", Secret({"value": "1"}))
    old = only(world.ada)
    old.account_id, old.organization_id, old.collections = None, prod.organization_id, {prod.id}
    await vault.set_secret("one", Secret({"value": "2"}))
    assert (old.writes, len(world.server.state.items)) == (1, 2)
    assert await fields(vault, "one") == {"value": "2"}


async def test_one_who_may_only_read_sees_each_change(world: World) -> None:
    ops = world.ada.found("Ops")
    prod = world.ada.add_collection(ops, "Prod")
    writer = world.connect(organization="Ops", collection="Prod")
    bob = world.server.register("bob@example.org", PASSWORD)
    world.ada.invite(ops, bob, {prod.id: Access(read_only=True)})
    reader = world.connect(email="bob@example.org", organization="Ops", collection="Prod")
    for value in ("1", "2"):
        await writer.set_secret("one", Secret({"value": value}))
        assert await fields(reader, "one") == {"value": value}
    assert world.called("get") == 0


async def test_what_a_person_saved_meanwhile_is_looked_at_before_it_is_saved_over(world: World) -> None:
    vault = world.connect()
    await vault.set_secret("one", Secret({"password": "1"}))
    item = only(world.ada)
    world.server.clock.advance(60)
    notes = crypto.encrypt("by hand", crypto.unwrap(item.body["key"], world.ada.user_key))
    item.body, item.updated = {**item.body, "notes": notes}, world.server.clock()
    await vault.set_secret("one", Secret({"password": "2"}))
    assert world.ada.read(item)["notes"] == "by hand"
    assert await fields(vault, "one") == {"password": "2"}


async def test_what_a_person_saved_just_after_us_is_not_lost_hours_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server compares dates with a second's grace, so it does not refuse this one."""
    monkeypatch.setattr(vault_module, "_SEEN_FOR", 0.0)
    vault = world.connect()
    await vault.set_secret("one", Secret({"password": "1"}))
    item = only(world.ada)
    world.server.clock.freeze()
    notes = crypto.encrypt("by hand", crypto.unwrap(item.body["key"], world.ada.user_key))
    item.body, item.updated = {**item.body, "notes": notes}, world.server.clock()
    world.server.clock.advance(3600)
    await vault.set_secret("one", Secret({"password": "2"}))
    assert world.ada.read(item)["notes"] == "by hand"
    assert await fields(vault, "one") == {"password": "2"}


async def test_a_folder_that_a_person_removes_while_it_is_known_is_not_insisted_on(world: World) -> None:
    folder = world.ada.add_folder("apps")
    vault = world.connect()
    await vault.set_secret("apps/db", Secret({"value": "1"}))
    world.server.state.delete_folder(world.ada.account, folder.id)
    await vault.set_secret("apps/new", Secret({"value": "2"}))
    assert set(world.ada.items()) == {"db", "apps/new"}
    assert await names(vault) == ["apps/new", "db"]


async def test_only_a_changed_password_adds_to_the_history(world: World) -> None:
    vault = world.connect()
    for password in ("1", "1", "2"):
        await vault.set_secret("one", Secret({"username": "app", "password": password}))
    assert [each["password"] for each in world.ada.read(only(world.ada))["passwordHistory"]] == ["1"]


async def test_attachments_and_the_items_key_stay(world: World) -> None:
    item = world.ada.add_login("db", password="1", own_key=True)
    item.attachments.append({"id": "a", "fileName": "2.x"})
    key = item.body["key"]
    await world.connect().set_secret("db", Secret({"password": "2"}))
    assert (item.attachments, item.body["key"]) == ([{"id": "a", "fileName": "2.x"}], key)


async def test_a_note_that_is_too_long_is_told_without_its_text(world: World) -> None:
    world.server.state.max_note_size = 10_000
    secret = Secret({"notes": "canary" * 2_000})
    with pytest.raises(InvalidSecret, match="Notes exceeds the maximum") as caught:
        await world.connect().set_secret("one", secret)
    assert "canary" not in everything_told_by(caught.value)


# --- damage -------------------------------------------------------------------------------------------------------


async def test_two_items_of_one_name_are_an_error_that_names_both_and_the_others_go_on(world: World) -> None:
    ids = sorted(world.ada.add_note("twice", fields={"value": str(number)}).id for number in range(2))
    world.ada.add_note("fine", fields={"value": "x"})
    vault = world.connect()
    assert await names(vault) == ["fine", "twice"]
    for call in (
        vault.get_secret("twice"),
        vault.describe_secret("twice"),
        vault.set_secret("twice", Secret({"value": "y"})),
        vault.delete_secret("twice"),
    ):
        with pytest.raises(InvalidSecret, match=", ".join(ids)):
            await call
    assert await fields(vault, "fine") == {"value": "x"}
    findings = await vault.check([])
    assert [finding.subject for finding in findings if not finding.ok] == ["name twice"]


def damaged(text: str, how: str) -> str:
    if how == "wrong MAC":
        return crypto.encrypt("x", SymmetricKey.generate())
    if how == "cut":
        return text[: len(text) // 2]
    return {"wrong type": "4.AAAA", "old type": "0.AA==|AA==", "newer type": "7.AAAA", "unknown type": "9.AAAA"}[how]


DAMAGE = ["wrong MAC", "cut", "wrong type", "old type", "newer type", "unknown type"]


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_field_is_an_error_of_its_item_and_of_no_other(world: World, how: str) -> None:
    item = world.ada.add_login("broken", username="app", password="1")
    world.ada.add_login("fine", password="2")
    item.body["data"]["password"] = damaged(item.body["data"]["password"], how)
    vault = world.connect()
    assert await names(vault) == ["broken", "fine"]
    with pytest.raises(InvalidSecret) as caught:
        await vault.get_secret("broken")
    assert (caught.value.vault, caught.value.path) == ("family", "broken")
    assert await fields(vault, "fine") == {"password": "2"}
    await vault.set_secret("new", Secret({"value": "x"}))


@pytest.mark.parametrize("part", ["name", "key"])
@pytest.mark.parametrize("how", DAMAGE)
async def test_an_item_without_a_readable_name_is_told_and_nothing_is_taken_for_deleted(
    world: World, part: str, how: str
) -> None:
    item = world.ada.add_login("broken", password="1", own_key=True)
    world.ada.add_login("fine", password="2")
    item.body[part] = damaged(item.body[part], how)
    vault = world.connect()
    assert await names(vault) == ["fine", f"unreadable item {item.id}"]
    assert f"apps/unreadable item {item.id}" in await names(vault, "apps/")
    for name in ("broken", f"unreadable item {item.id}", f"apps/unreadable item {item.id}"):
        for call in (vault.get_secret(name), vault.describe_secret(name), vault.delete_secret(name)):
            with pytest.raises(InvalidSecret, match="can not be read"):
                await call
    assert await fields(vault, "fine") == {"password": "2"}
    await vault.set_secret("fine", Secret({"password": "3"}))
    findings = await vault.check([])
    assert [finding.subject for finding in findings if not finding.ok] == [f"item {item.id}"]


async def test_a_folder_without_a_readable_name_makes_its_items_doubtful(world: World) -> None:
    folder = world.ada.add_folder("apps")
    item = world.ada.add_note("db", folder=folder)
    folder.name = damaged(folder.name, "wrong MAC")
    assert await names(world.connect()) == [f"unreadable item {item.id}"]


async def test_an_organisation_key_that_does_not_open_is_told(world: World) -> None:
    ops = world.ada.found("Ops")
    world.ada.add_collection(ops, "Prod")
    ops.members[world.ada.account.id].key = "4.AAAA"
    with pytest.raises(MountNotFound, match="key of the organisation 'Ops' can not be opened"):
        await world.connect(organization="Ops", collection="Prod").open()


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("status", [400, 403, 404, 410])
async def test_a_server_that_refuses_everything_has_lost_no_secret(world: World, status: int, settled: bool) -> None:
    world.ada.add_note("one", fields={"value": "x"})
    if settled:
        world.settle()
    vault = world.connect()
    await vault.open()
    world.server.faults.add(Fault("status", status=status, times=None))
    for call in (vault.get_secret("one"), vault.get_secret("none"), vault.describe_secret("one"), names(vault)):
        with pytest.raises(AccessDenied):
            await call
    with pytest.raises((AccessDenied, InvalidSecret, Unavailable)):
        await vault.set_secret("one", Secret({"value": "y"}))


async def test_a_new_item_that_got_no_answer_is_found_when_it_is_looked_for(world: World) -> None:
    vault = world.connect()
    await vault.set_secret("one", Secret({"value": "x"}))
    world.server.faults.add(Fault("torn_after", operation="create"))
    with pytest.raises(Unavailable) as caught:
        await vault.set_secret("two", Secret({"value": "y"}))
    assert caught.value.ambiguous
    assert await fields(vault, "two") == {"value": "y"}
    await vault.set_secret("two", Secret({"value": "z"}))
    assert set(world.ada.items()) == {"one", "two"}


@pytest.mark.parametrize("junk", [None, 7, "x", [], [7], [{}], [{"id": 7}], {}], ids=repr)
@pytest.mark.parametrize("part", ["", "profile", "ciphers", "folders", "collections", "profile.organizations"])
async def test_an_answer_of_another_shape_is_no_empty_vault(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str, junk: Any
) -> None:
    world.ada.add_note("one", folder=world.ada.add_folder("apps"), fields={"value": "x"})
    vault = world.connect()
    get = vault._account.get

    async def spoilt(path: str) -> Any:
        answer = await get(path)
        if path.startswith("/sync"):
            *way, last = part.split(".")
            place = answer
            for step in way:
                place = place[step]
            if not part:
                return junk
            place[last] = junk
        return answer

    monkeypatch.setattr(vault._account, "get", spoilt)
    if part != "" and junk in (None, []) and part not in ("profile", "ciphers"):
        # There may be none of these; but the folder that the item is in must be somewhere.
        (name,) = await names(vault)
        assert name.startswith("unreadable item" if part == "folders" else "apps/one")
    elif (part, junk) == ("ciphers", []):
        assert await names(vault) == []
    else:
        with pytest.raises(Unavailable, match="not a Bitwarden server's"):
            await names(vault)


@pytest.mark.parametrize("path", ["/nowhere", "/identity"])
async def test_an_address_where_no_such_server_is_is_told(world: World, path: str) -> None:
    with pytest.raises(VaultError, match="look at `url`"):
        await world.connect(url=world.server.url + path).open()


async def test_a_certificate_that_is_not_trusted_is_told(world: World) -> None:
    settings = Settings(kind="vaultwarden", url=world.server.url, email="ada@example.org", password=PASSWORD)
    vault = VaultwardenVault("family", settings)
    with pytest.raises(AccessDenied, match="give its authority as ca_bundle"):
        await vault.open()
    await vault.aclose()
