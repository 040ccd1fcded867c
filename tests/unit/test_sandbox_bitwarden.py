"""The sandbox's Bitwarden: what it answers, what it refuses, and that it never sees a value."""

import asyncio
import base64
import json
import ssl
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import ARGON2ID, Person, seal
from sandbox.bitwarden_state import Access, Collection, Organization
from sandbox.faults import Fault
from shared.vaults.vaultwarden import crypto

PASSWORD = "correct horse"
DEVICE = "0f1f2a3b-1111-4222-8333-444455556666"


@dataclass
class Client:
    """As little of a client as it takes to see what the server answers."""

    server: BitwardenServer
    http: aiohttp.ClientSession
    token: str = ""
    last: dict[str, Any] = field(default_factory=dict)

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        sent = {"Authorization": f"Bearer {self.token}", "Bitwarden-Client-Version": "2026.6.0", **headers}
        async with self.http.request(method, self.server.url + path, json=body, headers=sent) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def grant(self, **form: str) -> tuple[int, Any]:
        sent = {"deviceType": "25", "deviceIdentifier": DEVICE, "deviceName": "linux", **form}
        wanted = {key: value for key, value in sent.items() if value != "-"}
        async with self.http.post(self.server.url + "/identity/connect/token", data=wanted) as answer:
            return answer.status, await answer.json()

    async def login(self, person: Person, **form: str) -> tuple[int, Any]:
        kdf = person.account.kdf
        how = crypto.Kdf(
            crypto.KdfKind(kdf["kdfType"] or 0), kdf["iterations"] or 0, kdf["memory"] or 0, kdf["parallelism"] or 0
        )
        shown = crypto.login_hash(crypto.master_key(person.password, person.email, how), person.password)
        sent = {"scope": "api offline_access", "client_id": "cli", "username": person.email, "password": shown, **form}
        status, document = await self.grant(grant_type="password", **sent)
        if status == 200:
            self.token, self.last = document["access_token"], document
        return status, document


@pytest.fixture
async def server() -> AsyncIterator[BitwardenServer]:
    async with BitwardenServer() as running:
        yield running


@pytest.fixture
async def client(server: BitwardenServer) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(ssl=server.client_tls())
    async with aiohttp.ClientSession(connector=connector) as http:
        yield Client(server, http)


@pytest.fixture
async def ada(server: BitwardenServer, client: Client) -> Person:
    person = server.register("Ada@Example.org", PASSWORD)
    assert (await client.login(person))[0] == 200
    return person


def note(person: Person, name: str, key: crypto.SymmetricKey | None = None, **rest: Any) -> dict[str, Any]:
    sealed = seal({"name": name, "notes": f"{name}'s value"}, key or person.user_key)
    return {"type": 2, **sealed, "secureNote": {"type": 0}, "encryptedFor": person.account.id, **rest}


def message(document: Any) -> str:
    assert document["object"] == "error"
    return str(document["errorModel"]["message"])


# Logging in.


async def test_prelogin_tells_the_kdf_and_hides_who_has_an_account(server: BitwardenServer, client: Client) -> None:
    server.register("argon@example.org", PASSWORD, ARGON2ID)
    _, known = await client.call("POST", "/identity/accounts/prelogin", {"email": "ARGON@example.org"})
    assert (known["kdf"], known["kdfIterations"], known["kdfMemory"], known["kdfParallelism"]) == (1, 2, 16, 1)
    status, unknown = await client.call("POST", "/identity/accounts/prelogin/password", {"email": "nobody@example.org"})
    assert status == 200
    assert (unknown["kdf"], unknown["kdfIterations"], unknown["kdfMemory"]) == (0, 600_000, None)


async def test_the_login_hands_out_keys_that_only_the_password_opens(client: Client, ada: Person) -> None:
    kdf = crypto.Kdf(crypto.KdfKind.PBKDF2, client.last["KdfIterations"])
    opener = crypto.stretched(crypto.master_key(PASSWORD, "ada@example.org", kdf))
    user_key = crypto.unwrap(client.last["Key"], opener)
    assert user_key == ada.user_key
    assert crypto.private_key(client.last["PrivateKey"], user_key).key_size == 2048
    assert client.last["UserDecryptionOptions"]["MasterPasswordUnlock"]["Salt"] == "ada@example.org"
    claims = json.loads(base64.urlsafe_b64decode(client.last["access_token"].split(".")[1] + "=="))
    assert (claims["sub"], claims["device"]) == (ada.account.id, DEVICE)


async def test_a_wrong_password_an_unknown_and_a_disabled_account_are_told_apart_as_vaultwarden_does(
    client: Client, ada: Person
) -> None:
    status, answer = await client.login(ada, password="wrong")
    assert (status, message(answer)) == (400, "Username or password is incorrect. Try again")
    status, answer = await client.login(ada, username="nobody@example.org")
    assert (status, message(answer)) == (400, "Username or password is incorrect. Try again")
    ada.account.enabled = False
    status, answer = await client.login(ada)
    assert (status, message(answer)) == (400, "This user has been disabled")


@pytest.mark.parametrize(
    "missing", ["client_id", "password", "scope", "username", "deviceIdentifier", "deviceName", "deviceType"]
)
async def test_a_login_says_what_it_misses(missing: str, client: Client, ada: Person) -> None:
    status, answer = await client.login(ada, **{missing: "-"})
    assert status == 400
    assert message(answer).replace("_", "").startswith(missing.lower().replace("_", ""))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("deviceType", "linux", "No device information"),
        ("deviceType", "99", "No device information"),
        ("deviceIdentifier", "mine", "No device information"),
        ("deviceName", "", "No device information"),
        ("scope", "api", "Scope not supported"),
    ],
)
async def test_a_login_of_no_known_client_is_refused(
    name: str, value: str, error: str, client: Client, ada: Person
) -> None:
    status, answer = await client.login(ada, **{name: value})
    assert status == 400
    assert error in message(answer)


async def test_two_step_login_names_its_providers_and_the_api_key_passes_it_by(client: Client, ada: Person) -> None:
    ada.account.two_factor, ada.account.two_factor_code = (0, 1), "123456"
    status, answer = await client.login(ada)
    assert status == 400
    assert answer["TwoFactorProviders"] == ["0", "1"]
    assert answer["error_description"] == "Two factor required."
    assert (await client.login(ada, twoFactorToken="000000", twoFactorProvider="0"))[0] == 400
    assert (await client.login(ada, twoFactorToken="123456", twoFactorProvider="0"))[0] == 200
    status, answer = await client.grant(
        grant_type="client_credentials", scope="api", client_id=ada.account.client_id, client_secret=ada.account.api_key
    )
    assert status == 200
    assert "refresh_token" not in answer


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"client_id": "ada"}, "Malformed client_id"),
        ({"client_id": "user.nobody"}, "Invalid client_id"),
        ({"client_secret": "wrong"}, "Incorrect client_secret"),
        ({"scope": "api offline_access"}, "Scope not supported"),
    ],
)
async def test_an_api_key_that_is_wrong_says_in_what(
    form: dict[str, str], error: str, client: Client, ada: Person
) -> None:
    right = {"scope": "api", "client_id": ada.account.client_id, "client_secret": ada.account.api_key}
    status, answer = await client.grant(grant_type="client_credentials", **{**right, **form})
    assert (status, message(answer)) == (400, error)


async def test_a_refresh_token_gives_access_again_and_ends_with_the_password(client: Client, ada: Person) -> None:
    old = client.last["refresh_token"]
    client.server.clock.advance(client.server.token_seconds + 1)
    assert (await client.call("GET", "/api/sync"))[0] == 401
    status, answer = await client.grant(grant_type="refresh_token", refresh_token=old, client_id="cli")
    assert status == 200
    client.token = answer["access_token"]
    assert (await client.call("GET", "/api/sync"))[0] == 200
    ada.change_password("another")
    assert (await client.call("GET", "/api/sync"))[0] == 401
    status, answer = await client.grant(grant_type="refresh_token", refresh_token=old, client_id="cli")
    assert (status, answer) == (400, {"error": "invalid_grant"})
    assert client.server.calls["refresh"] == 2


async def test_too_many_logins_are_429_until_a_minute_has_passed(client: Client, ada: Person) -> None:
    client.server.clock.freeze()
    client.server.login_burst = 2
    assert [(await client.login(ada))[0] for _ in range(3)] == [200, 200, 429]
    client.server.clock.advance(61)
    assert (await client.login(ada))[0] == 200


# Items.


async def test_nothing_is_told_without_a_token(client: Client) -> None:
    for path in ("/api/sync", "/api/ciphers", "/api/accounts/profile", "/api/accounts/revision-date"):
        status, answer = await client.call("GET", path, Authorization="")
        assert (status, answer["error"]["code"]) == (401, 401)


async def test_one_sync_tells_everything_and_holds_no_value(
    server: BitwardenServer, client: Client, ada: Person
) -> None:
    folder = ada.add_folder("apps/web")
    ops = ada.found("Ops")
    prod = ada.add_collection(ops, "Teams/Prod")
    mine = ada.add_login("db/prod", password="s3cret-value", uris=["https://a"], folder=folder, own_key=True)
    theirs = ada.add_note("shared", "s3cret-note", collections=[prod], fields={"f": "s3cret-field"})
    server.reset_calls()
    _, sync = await client.call("GET", "/api/sync?excludeDomains=true")
    assert server.calls == {"sync": 1}
    assert "s3cret" not in json.dumps(sync)
    assert {each["id"]: (each["folderId"], each["collectionIds"]) for each in sync["ciphers"]} == {
        mine.id: (folder.id, []), theirs.id: (None, [prod.id]),
    }  # fmt: skip
    first = next(each for each in sync["ciphers"] if each["id"] == mine.id)
    assert first["login"]["uri"] == first["login"]["uris"][0]["uri"]
    assert (first["secureNote"], first["attachments"], first["passwordHistory"]) == (None, None, [])
    assert first["revisionDate"].endswith("Z")
    assert len(first["revisionDate"]) == len("2026-01-01T00:00:00.000000Z")
    assert sync["domains"] is None
    assert [each["name"] for each in sync["profile"]["organizations"]] == ["Ops"]
    key = crypto.unwrap_shared(sync["profile"]["organizations"][0]["key"], ada.rsa_key)
    assert crypto.decrypt_text(sync["collections"][0]["name"], key) == "Teams/Prod"


async def test_the_accounts_revision_date_moves_with_every_change_and_with_nothing_else(
    server: BitwardenServer, client: Client, ada: Person
) -> None:
    server.clock.freeze()

    async def revision() -> int:
        server.clock.advance(1)
        status, answer = await client.call("GET", "/api/accounts/revision-date")
        assert status == 200
        return int(answer)

    before = await revision()
    await client.call("GET", "/api/sync")
    assert await revision() == before
    _, item = await client.call("POST", "/api/ciphers", note(ada, "a"))
    path = f"/api/ciphers/{item['id']}"
    for method, where, body in (
        ("PUT", path, note(ada, "a")),
        ("PUT", f"{path}/partial", {"folderId": None, "favorite": True}),
        ("PUT", f"{path}/delete", None),
        ("PUT", f"{path}/restore", None),
        ("DELETE", path, None),
        ("POST", "/api/folders", seal({"name": "f"}, ada.user_key)),
    ):
        server.clock.advance(1)
        assert (await client.call(method, where, body))[0] == 200
        after = await revision()
        assert after > before, where
        before = after


async def test_a_write_replaces_everything_that_it_does_not_send(client: Client, ada: Person) -> None:
    folder = ada.add_folder("f")
    fields = seal([{"type": 1, "name": "n", "value": "v"}], ada.user_key)
    _, item = await client.call(
        "POST", "/api/ciphers", note(ada, "a", folderId=folder.id, fields=fields, favorite=True)
    )
    name, key = seal(["file", "key"], ada.user_key)
    attachment = client.server.state.attach(client.server.state.items[item["id"]], name, key, 3)
    _, item = await client.call("PUT", f"/api/ciphers/{item['id']}", note(ada, "b"))
    assert (item["fields"], item["folderId"], item["favorite"]) == ([], None, True)
    assert [(each["id"], each["fileName"]) for each in item["attachments"]] == [(attachment, name)]
    assert ada.read(client.server.state.items[item["id"]])["name"] == "b"


@pytest.mark.parametrize(("seconds", "status"), [(0, 200), (1.9, 200), (2, 400), (3600, 400), (-60, 200)])
async def test_a_copy_two_seconds_older_than_the_servers_is_refused(
    seconds: float, status: int, client: Client, ada: Person
) -> None:
    # Whole seconds above one: https://github.com/dani-garcia/vaultwarden, update_cipher_from_data.
    client.server.clock.freeze()
    _, item = await client.call("POST", "/api/ciphers", note(ada, "a"))
    stored = client.server.state.items[item["id"]]
    client.server.clock.advance(seconds)
    stored.updated = client.server.clock()
    told, answer = await client.call(
        "PUT", f"/api/ciphers/{item['id']}", note(ada, "b", lastKnownRevisionDate=item["revisionDate"])
    )
    assert told == status
    if status == 400:
        assert "out of date" in message(answer)
        assert stored.writes == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"type": 9}, 400),
        ({"type": "2"}, 422),
        ({"name": None}, 422),
        ({"name": "in clear"}, 400),
        ({"notes": "in clear"}, 400),
        ({"fields": [{"type": 1, "name": None, "value": "in clear"}]}, 400),
        ({"secureNote": None}, 400),
        ({"encryptedFor": str(uuid.UUID(int=1))}, 400),
        ({"folderId": str(uuid.UUID(int=1))}, 400),
        ({"organizationId": str(uuid.UUID(int=1))}, 400),
        ({"notes": f"2.{'A' * 24}|{'A' * 100_000}|{'A' * 44}"}, 400),
    ],
)
async def test_what_a_server_would_not_store_is_refused(
    change: dict[str, Any], status: int, client: Client, ada: Person
) -> None:
    told, _ = await client.call("POST", "/api/ciphers", {**note(ada, "a"), **change})
    assert told == status
    assert client.server.state.items == {}


async def test_trash_restore_and_delete(client: Client, ada: Person) -> None:
    _, item = await client.call("POST", "/api/ciphers", note(ada, "a"))
    path = f"/api/ciphers/{item['id']}"
    assert await client.call("PUT", f"{path}/delete") == (200, None)
    _, trashed = await client.call("GET", path)
    assert trashed["deletedDate"] == trashed["revisionDate"]
    _, restored = await client.call("PUT", f"{path}/restore")
    assert restored["deletedDate"] is None
    assert await client.call("DELETE", path) == (200, None)
    for method, where in (("GET", path), ("DELETE", path), ("PUT", f"{path}/delete")):
        status, answer = await client.call(method, where)
        assert (status, message(answer)) == (400, "Cipher doesn't exist")


# Organisations, and other people.


async def test_one_account_never_sees_anothers(server: BitwardenServer, client: Client, ada: Person) -> None:
    _, item = await client.call("POST", "/api/ciphers", note(ada, "a"))
    folder = ada.add_folder("f")
    eve = server.register("eve@example.org", PASSWORD)
    await client.login(eve)
    _, sync = await client.call("GET", "/api/sync")
    assert (sync["ciphers"], sync["folders"]) == ([], [])
    assert (await client.call("GET", f"/api/ciphers/{item['id']}"))[0] == 400
    assert (await client.call("PUT", f"/api/ciphers/{item['id']}", note(eve, "mine")))[0] == 400
    assert (await client.call("DELETE", f"/api/ciphers/{item['id']}"))[0] == 400
    assert (await client.call("DELETE", f"/api/folders/{folder.id}"))[0] == 400
    assert (await client.call("POST", "/api/ciphers", note(eve, "b", folderId=folder.id)))[0] == 400


@pytest.fixture
def shared(ada: Person) -> tuple[Organization, Collection, Collection]:
    ops = ada.found("Ops")
    return ops, ada.add_collection(ops, "Prod"), ada.add_collection(ops, "Test")


async def test_a_new_item_of_an_organisation_needs_a_collection_that_one_may_write(
    server: BitwardenServer, client: Client, ada: Person, shared: tuple[Organization, Collection, Collection]
) -> None:
    ops, prod, test = shared
    bob = server.register("bob@example.org", PASSWORD)
    ada.invite(ops, bob, {prod.id: Access(), test.id: Access(read_only=True)})
    await client.login(bob)
    body = note(bob, "a", bob.organization_key(ops.id), organizationId=ops.id)
    for collections, status in (([], 400), ([test.id], 400), ([str(uuid.UUID(int=1))], 400), ([prod.id], 200)):
        told, item = await client.call("POST", "/api/ciphers/create", {"cipher": body, "collectionIds": collections})
        assert told == status, collections
    assert (item["organizationId"], item["collectionIds"]) == (ops.id, [prod.id])
    assert (await client.call("POST", "/api/ciphers", body))[0] == 400
    assert ada.items().keys() == {"a"}


async def test_a_member_sees_only_what_its_collections_hold_and_writes_only_where_it_may(
    server: BitwardenServer, client: Client, ada: Person, shared: tuple[Organization, Collection, Collection]
) -> None:
    ops, prod, test = shared
    hidden = ada.add_note("hidden", "x", collections=[prod])
    fixed = ada.add_note("fixed", "x", collections=[test])
    bob = server.register("bob@example.org", PASSWORD)
    ada.invite(ops, bob, {test.id: Access(read_only=True)})
    await client.login(bob)
    _, sync = await client.call("GET", "/api/sync")
    assert [(each["id"], each["edit"]) for each in sync["ciphers"]] == [(fixed.id, False)]
    assert [(each["id"], each["readOnly"]) for each in sync["collections"]] == [(test.id, True)]
    body = note(bob, "b", bob.organization_key(ops.id), organizationId=ops.id)
    status, answer = await client.call("PUT", f"/api/ciphers/{fixed.id}", body)
    assert (status, message(answer)) == (400, "Cipher is not write accessible")
    assert (await client.call("GET", f"/api/ciphers/{hidden.id}"))[0] == 400


async def test_an_organisations_item_stays_in_it_and_changes_its_collections_only_when_asked(
    client: Client, ada: Person, shared: tuple[Organization, Collection, Collection]
) -> None:
    ops, prod, test = shared
    item = ada.add_note("a", "x", collections=[prod])
    status, answer = await client.call("PUT", f"/api/ciphers/{item.id}", note(ada, "a"))
    assert (status, "Organization mismatch" in message(answer)) == (400, True)
    body = note(ada, "b", ada.organization_key(ops.id), organizationId=ops.id)
    _, written = await client.call("PUT", f"/api/ciphers/{item.id}", body)
    assert written["collectionIds"] == [prod.id]
    _, moved = await client.call("PUT", f"/api/ciphers/{item.id}/collections_v2", {"collectionIds": [test.id]})
    assert moved["cipher"]["collectionIds"] == [test.id]
    assert ada.read(item)["name"] == "b"


# The server itself.


async def test_an_unknown_path_is_404_and_remembered(server: BitwardenServer, client: Client) -> None:
    status, answer = await client.call("GET", "/api/sends?x=1")
    assert (status, answer["error"]["code"]) == (404, 404)
    assert server.unknown == [("GET", "/api/sends?x=1")]


async def test_faults_befall_what_they_name(server: BitwardenServer, client: Client, ada: Person) -> None:
    server.faults.add(Fault("status", "sync", status=429, retry_after=3), Fault("status", "api_key_login", status=503))
    status, answer = await client.call("GET", "/api/sync")
    assert (status, answer["object"]) == (429, "error")
    assert (await client.call("GET", "/api/sync"))[0] == 200
    assert (await client.login(ada))[0] == 200
    _, item = await client.call("POST", "/api/ciphers", note(ada, "a"))
    server.faults.add(Fault("torn_after", "update", item["id"]))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await client.call("PUT", f"/api/ciphers/{item['id']}", note(ada, "b"))
    assert ada.items().keys() == {"b"}


@pytest.mark.parametrize("body", ["no json", "[]", '"text"', "{}"])
async def test_a_body_of_a_wrong_shape_is_refused(body: str, client: Client, ada: Person) -> None:
    headers = {"Authorization": f"Bearer {client.token}"}
    async with client.http.post(client.server.url + "/api/ciphers", data=body, headers=headers) as answer:
        assert answer.status in (400, 422)
    assert client.server.state.items == {}


async def test_it_runs_as_a_process_of_its_own_with_an_account_to_use() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox.bitwarden", "--email", "me@example.org", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        tls = ssl.create_default_context(cafile=ready["ca_bundle"])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            form = {
                "grant_type": "client_credentials", "scope": "api", "client_id": ready["client_id"],
                "client_secret": ready["client_secret"], "deviceType": "25", "deviceIdentifier": DEVICE,
                "deviceName": "linux",
            }  # fmt: skip
            async with http.post(ready["url"] + "/identity/connect/token", data=form) as answer:
                assert (await answer.json())["UserDecryptionOptions"]["MasterPasswordUnlock"][
                    "Salt"
                ] == "me@example.org"
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_an_attachment_is_announced_uploaded_and_downloaded_with_its_token(client: Client, ada: Person) -> None:
    item = ada.add_note("a", "x")
    name, key = seal(["file", "key"], ada.user_key)
    body = {"fileName": name, "key": key, "fileSize": 4}
    status, announced = await client.call("POST", f"/api/ciphers/{item.id}/attachment/v2", body)
    assert status == 200
    form = aiohttp.FormData()
    form.add_field("data", b"\x00\r\n\xff", filename=name)
    headers = {"Authorization": f"Bearer {client.token}"}
    url = client.server.url + "/api" + announced["url"]
    async with client.http.post(url, data=form, headers=headers) as answer:
        assert answer.status == 200
    _, told = await client.call("GET", "/api" + announced["url"])
    assert (told["fileName"], told["size"]) == (name, "4")
    async with client.http.get(told["url"]) as answer:
        assert await answer.read() == b"\x00\r\n\xff"
    async with client.http.get(told["url"] + "x") as answer:
        assert answer.status == 404
    assert (await client.call("POST", f"/api/ciphers/{item.id}/attachment/v2", {**body, "key": "clear"}))[0] == 400
