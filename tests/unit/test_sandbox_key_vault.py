"""The sandbox's Key Vault and its tokens, as the official asynchronous clients see them."""

import asyncio
import datetime
import email.utils
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import aiohttp
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.rest import HttpRequest
from azure.identity.aio import ClientSecretCredential, ManagedIdentityCredential
from azure.keyvault.secrets._shared import http_challenge_cache
from azure.keyvault.secrets.aio import SecretClient

from sandbox.entra import EntraServer, ManagedIdentityServer, TokenAuthority
from sandbox.faults import Fault
from sandbox.key_vault import EVERY_PERMISSION, KeyVaultServer

NOON = 1_800_000_000


class TokenFrom:
    """A credential that hands out one token for ever, good or not."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)

    async def close(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: Any) -> None:
        return None


def connect(vault: KeyVaultServer, credential: Any = None, **options: Any) -> SecretClient:
    return SecretClient(
        vault.url,
        credential or TokenFrom(vault.authority.issue()[0]),
        verify_challenge_resource=False,
        retry_total=0,
        connection_verify=str(vault.ca_bundle),
        **options,
    )


@pytest.fixture
async def vault() -> AsyncIterator[KeyVaultServer]:
    async with KeyVaultServer() as server:
        server.clock.freeze(NOON)
        # The client remembers challenges by host and port for the whole process: another test may have had this one.
        http_challenge_cache.clear()
        yield server


@pytest.fixture
async def client(vault: KeyVaultServer) -> AsyncIterator[SecretClient]:
    async with connect(vault) as connected:
        yield connected


def inner_code(error: HttpResponseError) -> str | None:
    assert error.error is not None
    return (error.error.innererror or {}).get("code")


def code(error: HttpResponseError) -> str | None:
    assert error.error is not None
    return error.error.code


async def names(client: SecretClient) -> list[str]:
    return [properties.name or "" async for properties in client.list_properties_of_secrets()]


async def start_delete(client: SecretClient, name: str) -> int:
    """What a worker does that will not wait for the deletion to finish."""
    return (await client.send_request(HttpRequest("DELETE", f"/secrets/{name}"))).status_code


# Who may do what.


async def test_one_challenge_serves_all_later_requests(vault: KeyVaultServer, client: SecretClient) -> None:
    await client.set_secret("db", "one")
    await client.get_secret("db")
    assert vault.calls == {"challenge": 1, "set": 1, "get": 1}


async def test_the_challenge_names_the_resource_that_clients_verify(vault: KeyVaultServer) -> None:
    token = TokenFrom(vault.authority.issue()[0])
    async with SecretClient(vault.url, token, retry_total=0, connection_verify=str(vault.ca_bundle)) as strict:
        with pytest.raises(ValueError, match=r"challenge resource 'vault\.azure\.net' does not match"):
            await strict.get_secret("db")


async def test_an_expired_a_foreign_and_a_revoked_token_are_refused(vault: KeyVaultServer) -> None:
    vault.put("db", "one")
    revoked = vault.authority.issue()[0]
    vault.authority.revoke_all()
    vault.authority.lifetime = -1
    expired = vault.authority.issue()[0]
    vault.authority.lifetime = 60
    foreign = vault.authority.issue("https://storage.azure.com")[0]
    reasons = {"nonsense": "AKV10046", revoked: "AKV10046", expired: "expired", foreign: "AKV10022"}
    for token, reason in reasons.items():
        async with connect(vault, TokenFrom(token)) as refused:
            with pytest.raises(ClientAuthenticationError, match=reason):
                await refused.get_secret("db")


@pytest.mark.parametrize(
    ("permission", "call"),
    [
        ("get", lambda client: client.get_secret("db")),
        ("get", lambda client: client.get_deleted_secret("gone")),
        ("list", lambda client: names(client)),
        ("set", lambda client: client.set_secret("db", "two")),
        ("set", lambda client: client.update_secret_properties("db", tags={"a": "b"})),
        ("delete", lambda client: client.delete_secret("db")),
        ("recover", lambda client: client.recover_deleted_secret("gone")),
        ("purge", lambda client: client.purge_deleted_secret("gone")),
    ],
)
async def test_each_permission_can_be_missing_alone(
    vault: KeyVaultServer, client: SecretClient, permission: str, call: Callable[[SecretClient], Any]
) -> None:
    vault.put("db", "one")
    vault.put("gone", "one")
    vault.delete("gone")
    vault.permissions = EVERY_PERMISSION - {permission}
    with pytest.raises(HttpResponseError, match="not authorized to perform action") as denied:
        await call(client)
    assert (denied.value.status_code, code(denied.value), inner_code(denied.value)) == (
        403,
        "Forbidden",
        "ForbiddenByRbac",
    )
    vault.permissions = {permission, "get"}
    await call(client)


@pytest.mark.parametrize("version", ["7.0", "7.6", "2025-07-01", "2026-04-01"])
async def test_speaks_the_versions_that_the_clients_send(vault: KeyVaultServer, version: str) -> None:
    async with connect(vault, api_version=version) as client:
        await client.set_secret("db", "one")
        assert (await client.get_secret("db")).value == "one"


@pytest.mark.parametrize("query", ["?api-version=", "?api-version=1999-01-01"])
async def test_a_missing_or_unknown_api_version_is_a_bad_request(client: SecretClient, query: str) -> None:
    answer = await client.send_request(HttpRequest("GET", f"/secrets{query}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadParameter")


# Values, versions, attributes.


async def test_every_set_makes_a_version_and_the_last_is_current(vault: KeyVaultServer, client: SecretClient) -> None:
    first = await client.set_secret("Db-Pass", "one", content_type="text/plain", tags={"team": "ops"})
    vault.clock.advance(5)
    second = await client.set_secret("db-pass", "two")
    assert first.properties.version
    assert len(first.properties.version) == 32
    assert first.id == f"{vault.url}/secrets/Db-Pass/{first.properties.version}"
    assert second.name == "Db-Pass"
    current = await client.get_secret("DB-PASS")
    assert (current.value, current.id) == ("two", second.id)
    assert (current.properties.content_type, current.properties.tags) == (None, None)
    old = await client.get_secret("db-pass", first.properties.version)
    assert (old.value, old.properties.content_type, old.properties.tags) == ("one", "text/plain", {"team": "ops"})
    assert await names(client) == ["Db-Pass"]


@pytest.mark.parametrize("value", ["", "\x00\r\n\ufeff", "-----BEGIN-----\nä€🔑\n", "x" * 25_600, '{"a": 1}'])
async def test_values_come_back_as_they_went(client: SecretClient, value: str) -> None:
    await client.set_secret("db", value)
    assert (await client.get_secret("db")).value == value


@pytest.mark.parametrize(
    "options",
    [
        {"value": "x" * 25_601},
        {"value": "ä" * 12_801},
        {"value": "\ud800"},
        {"value": "x", "tags": {"a": "b" * 257}},
        {"value": "x", "tags": {"a" * 257: "b"}},
        {"value": "x", "tags": {str(number): "b" for number in range(16)}},
        {"value": "x", "content_type": "t" * 256},
    ],
    ids=["value", "bytes", "surrogate", "tag value", "tag name", "tags", "content type"],
)
async def test_what_is_too_big_is_a_bad_parameter(
    vault: KeyVaultServer, client: SecretClient, options: dict[str, Any]
) -> None:
    with pytest.raises(HttpResponseError) as refused:
        await client.set_secret("db", **options)
    assert (refused.value.status_code, code(refused.value)) == (400, "BadParameter")
    assert vault.names() == []


@pytest.mark.parametrize("name", ["a/b", "a b", "ä", "a_b", "a.b", "%2e%2e", "x" * 128])
async def test_a_bad_name_is_a_bad_parameter(vault: KeyVaultServer, client: SecretClient, name: str) -> None:
    for call in (client.get_secret(name), client.set_secret(name, "x")):
        with pytest.raises(HttpResponseError, match="invalid name") as refused:
            await call
        assert (refused.value.status_code, code(refused.value)) == (400, "BadParameter")
    assert vault.log[-1] == ("set", name)


async def test_the_longest_name_is_stored(client: SecretClient) -> None:
    await client.set_secret("-" + "9" * 126, "x")
    assert await names(client) == ["-" + "9" * 126]


async def test_an_update_changes_what_it_names_and_keeps_the_value(vault: KeyVaultServer, client: SecretClient) -> None:
    first = await client.set_secret("db", "one", tags={"team": "ops"}, content_type="text/plain")
    await client.set_secret("db", "two")
    vault.clock.advance(7.9)
    until = datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    changed = await client.update_secret_properties("db", first.properties.version, tags={}, expires_on=until)
    assert (changed.version, changed.tags, changed.expires_on) == (first.properties.version, {}, until)
    assert changed.content_type == "text/plain"
    assert changed.created_on
    assert changed.updated_on
    assert (changed.updated_on - changed.created_on).total_seconds() == 7
    assert (await client.get_secret("db")).value == "two"
    assert (await client.get_secret("db", first.properties.version)).value == "one"
    assert (await client.update_secret_properties("db", content_type="new")).version != changed.version
    with pytest.raises(ResourceNotFoundError):
        await client.update_secret_properties("nope", tags={})


async def test_a_disabled_secret_is_listed_but_not_readable(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    vault.disable("db")
    assert [item.enabled async for item in client.list_properties_of_secrets()] == [False]
    with pytest.raises(HttpResponseError, match="disabled secret") as refused:
        await client.get_secret("db")
    assert (refused.value.status_code, code(refused.value), inner_code(refused.value)) == (
        403,
        "Forbidden",
        "SecretDisabled",
    )
    assert (await client.set_secret("db", "two")).properties.enabled is True


async def test_expired_and_not_yet_valid_secrets_are_readable(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("old", "one", expires=NOON - 60)
    vault.put("early", "two", not_before=NOON + 60)
    old, early = await client.get_secret("old"), await client.get_secret("early")
    assert (old.value, old.properties.expires_on) == ("one", datetime.datetime.fromtimestamp(NOON - 60, datetime.UTC))
    assert (early.value, early.properties.not_before) == (
        "two",
        datetime.datetime.fromtimestamp(NOON + 60, datetime.UTC),
    )


async def test_what_is_not_there_is_not_found(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    for name, version in (("nope", None), ("db", "0" * 32)):
        with pytest.raises(ResourceNotFoundError) as missing:
            await client.get_secret(name, version)
        assert code(missing.value) == "SecretNotFound"
    with pytest.raises(ResourceNotFoundError):
        await client.delete_secret("nope")


async def test_a_secret_of_a_certificate_says_so_and_is_not_written(
    vault: KeyVaultServer, client: SecretClient
) -> None:
    vault.put("cert", "pem", managed=True)
    vault.put("db", "one")
    assert {item.name: item.managed async for item in client.list_properties_of_secrets()} == {"cert": True, "db": None}
    assert (await client.get_secret("cert")).properties.key_id
    for call in (client.set_secret("cert", "x"), client.delete_secret("cert")):
        with pytest.raises(HttpResponseError) as refused:
            await call
        assert refused.value.status_code == 403


# Listings.


async def test_a_listing_comes_in_pages_of_25_without_versions_and_values(
    vault: KeyVaultServer, client: SecretClient
) -> None:
    for number in range(60):
        vault.put(f"s{number:02}", "hidden", tags={"n": str(number)}, content_type="t")
    pages = [[item async for item in page] async for page in client.list_properties_of_secrets().by_page()]
    assert [len(page) for page in pages] == [25, 25, 10]
    assert vault.calls["list"] == 3
    item = pages[2][-1]
    assert (item.name, item.version, item.tags, item.content_type) == ("s59", None, {"n": "59"}, "t")
    assert (item.enabled, item.recovery_level, item.recoverable_days) == (True, "Recoverable+Purgeable", 90)
    assert item.created_on == item.updated_on == datetime.datetime.fromtimestamp(NOON, datetime.UTC)


async def test_a_smaller_page_may_be_asked_for_and_a_bigger_may_not(
    vault: KeyVaultServer, client: SecretClient
) -> None:
    for number in range(5):
        vault.put(f"s{number}", "x")
    assert len([item async for item in client.list_properties_of_secrets(max_page_size=2)]) == 5
    assert vault.calls["list"] == 3
    with pytest.raises(HttpResponseError, match="maxresults"):
        [item async for item in client.list_properties_of_secrets(max_page_size=26)]


async def test_a_listing_goes_on_after_a_change_between_its_pages(vault: KeyVaultServer, client: SecretClient) -> None:
    for number in range(50):
        vault.put(f"s{number:02}", "x")
    listing = client.list_properties_of_secrets().by_page()
    first = [item.name async for item in await anext(listing)]
    vault.delete("s00")
    vault.delete("s24")
    vault.put("s000", "x")
    second = [item.name async for item in await anext(listing)]
    assert first + second == [f"s{number:02}" for number in range(50)]


async def test_versions_are_listed_by_id_in_pages(vault: KeyVaultServer, client: SecretClient) -> None:
    made = [vault.put("db", str(number)).id for number in range(30)]
    listed = [item.version async for item in client.list_properties_of_secret_versions("db")]
    assert listed == sorted(made)
    assert vault.calls["list_versions"] == 2
    assert [item async for item in client.list_properties_of_secret_versions("nope")] == []


# Soft delete.


async def test_a_deleted_secret_is_gone_and_its_name_taken_until_recovered(
    vault: KeyVaultServer, client: SecretClient
) -> None:
    await client.set_secret("Db", "one")
    await client.set_secret("db", "two")
    deleted = await client.delete_secret("db")
    assert deleted.recovery_id == f"{vault.url}/deletedsecrets/Db"
    assert deleted.deleted_date
    assert deleted.scheduled_purge_date
    assert (deleted.scheduled_purge_date - deleted.deleted_date).days == 90
    assert await names(client) == []
    assert [item.name async for item in client.list_deleted_secrets()] == ["Db"]
    with pytest.raises(ResourceNotFoundError):
        await client.get_secret("db")
    with pytest.raises(ResourceNotFoundError):
        await client.delete_secret("db")
    with pytest.raises(ResourceExistsError, match="only be recovered or purged") as taken:
        await client.set_secret("dB", "three")
    assert (code(taken.value), inner_code(taken.value)) == ("Conflict", "ObjectIsDeletedButRecoverable")
    await client.recover_deleted_secret("db")
    assert (await client.get_secret("db")).value == "two"
    assert len(vault.versions("db")) == 2


async def test_a_deletion_shows_after_as_many_polls_as_told(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    vault.secrets.delete_steps = 4
    assert await start_delete(client, "db") == 200
    assert await names(client) == []
    assert [item async for item in client.list_deleted_secrets()] == []
    with pytest.raises(ResourceExistsError) as busy:
        await client.set_secret("db", "two")
    assert inner_code(busy.value) == "ObjectIsBeingDeleted"
    for call in (client.recover_deleted_secret("db"), client.purge_deleted_secret("db")):
        with pytest.raises(ResourceExistsError) as busy:
            await call
        assert inner_code(busy.value) == "ObjectIsBeingDeleted"
    with pytest.raises(ResourceNotFoundError):
        await client.get_deleted_secret("db")
    assert (await client.get_deleted_secret("db")).name == "db"


async def test_a_recovery_shows_after_as_many_polls_as_told(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    vault.delete("db")
    vault.secrets.recover_steps = 2
    answer = await client.send_request(HttpRequest("POST", "/deletedsecrets/db/recover"))
    assert answer.json()["id"].startswith(f"{vault.url}/secrets/db/")
    with pytest.raises(ResourceExistsError) as busy:
        await client.set_secret("db", "two")
    assert (code(busy.value), inner_code(busy.value)) == ("Conflict", "ObjectIsBeingRecovered")
    with pytest.raises(ResourceNotFoundError):
        await client.get_secret("db")
    assert (await client.set_secret("db", "two")).value == "two"


async def test_a_purged_and_an_outdated_name_are_free_again(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("purged", "one")
    vault.put("outdated", "one")
    vault.delete("purged")
    vault.delete("outdated")
    await client.purge_deleted_secret("purged")
    vault.clock.advance(90 * 86_400)
    with pytest.raises(ResourceNotFoundError):
        await client.recover_deleted_secret("purged")
    for name in ("purged", "outdated"):
        await client.set_secret(name, "two")
        assert len(vault.versions(name)) == 1


async def test_deleting_without_polling_is_one_request(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    vault.secrets.delete_steps = 99
    assert await start_delete(client, "db") == 200
    assert vault.calls == {"challenge": 1, "delete": 1}
    assert await start_delete(client, "nope") == 404


# Time and limits.


async def test_times_are_whole_seconds_and_the_answer_tells_the_server_s_clock(
    vault: KeyVaultServer, client: SecretClient
) -> None:
    dates: list[str] = []
    vault.clock.advance(3.7)
    secret = await client.set_secret(
        "db", "one", raw_response_hook=lambda answer: dates.append(answer.http_response.headers["Date"])
    )
    assert secret.properties.updated_on == datetime.datetime.fromtimestamp(NOON + 3, datetime.UTC)
    assert email.utils.parsedate_to_datetime(dates[0]) == secret.properties.updated_on


async def test_entries_can_be_made_older(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.put("db", "one")
    vault.put("young", "one")
    vault.age(60, "DB")
    listed = {item.name: item.updated_on async for item in client.list_properties_of_secrets()}
    assert listed["db"]
    assert listed["young"]
    assert (listed["young"] - listed["db"]).total_seconds() == 60


async def test_creates_and_other_requests_have_their_own_limits(vault: KeyVaultServer, client: SecretClient) -> None:
    vault.create_limit, vault.other_limit = 2, 1
    await client.set_secret("a", "x")
    vault.clock.advance(4)
    await client.set_secret("b", "x")
    with pytest.raises(HttpResponseError) as throttled:
        await client.set_secret("c", "x")
    assert (throttled.value.status_code, code(throttled.value)) == (429, "Throttled")
    assert throttled.value.response is not None
    assert throttled.value.response.headers["Retry-After"] == "6"
    assert vault.get("c") is None
    await client.get_secret("a")
    with pytest.raises(HttpResponseError) as throttled:
        await client.get_secret("a")
    assert throttled.value.status_code == 429
    vault.clock.advance(6)
    await client.set_secret("c", "x")


# Misbehaviour.


@pytest.mark.parametrize(
    ("kind", "expected", "happened"),
    [
        ("status", HttpResponseError, False),
        ("timeout_before", ServiceResponseTimeoutError, False),
        ("timeout_after", ServiceResponseTimeoutError, True),
        ("torn_after", IncompleteReadError, True),
        ("cut_body", DecodeError, True),
    ],
)
async def test_faults_reach_the_client_with_or_without_their_effect(
    vault: KeyVaultServer, kind: Any, expected: type[AzureError], happened: bool
) -> None:
    vault.faults.add(Fault(kind, operation="set", path="db", retry_after=7, status=503))
    async with connect(vault, read_timeout=0.3) as client:
        with pytest.raises(expected) as failed:
            await client.set_secret("db", "one")
    assert (vault.get("db") is not None) == happened
    if kind == "status":
        assert isinstance(failed.value, HttpResponseError)
        assert failed.value.response is not None
        assert (failed.value.status_code, failed.value.response.headers["Retry-After"]) == (503, "7")


async def test_half_a_listing_can_fail(vault: KeyVaultServer, client: SecretClient) -> None:
    for number in range(30):
        vault.put(f"s{number}", "x")
    vault.faults.add(Fault("status", operation="list", skip=1))
    pages = client.list_properties_of_secrets().by_page()
    assert len([item async for item in await anext(pages)]) == 25
    with pytest.raises(HttpResponseError) as failed:
        await anext(pages)
    assert failed.value.status_code == 503


# Tokens.


async def test_a_managed_identity_reads_over_a_session_of_the_caller(
    vault: KeyVaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("db", "one")
    async with ManagedIdentityServer(vault.authority) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(vault.ca_bundle)))
        async with (
            aiohttp.ClientSession(connector=trusting, auto_decompress=False) as session,
            ManagedIdentityCredential(client_id=vault.authority.client_id, retry_total=0) as credential,
            SecretClient(
                vault.url,
                credential,
                verify_challenge_resource=False,
                retry_total=0,
                transport=AioHttpTransport(session=session, session_owner=False),
            ) as client,
        ):
            for _ in range(3):
                assert (await client.get_secret("db")).value == "one"
        assert identity.calls == {"token": 1}
        assert identity.log == [("token", "https://vault.azure.net")]
        for options, environment in (({"client_id": "someone-else"}, {}), ({}, {"IDENTITY_HEADER": "wrong"})):
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            async with ManagedIdentityCredential(retry_total=0, **options) as credential:
                with pytest.raises(ClientAuthenticationError):
                    await credential.get_token("https://vault.azure.net/.default")


async def test_a_short_lived_token_is_fetched_anew(vault: KeyVaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("db", "one")
    async with ManagedIdentityServer(vault.authority) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        vault.authority.lifetime = 0
        async with ManagedIdentityCredential(retry_total=0) as credential, connect(vault, credential) as client:
            with pytest.raises(ClientAuthenticationError, match="expired"):
                await client.get_secret("db")
            vault.authority.lifetime = 600
            assert (await client.get_secret("db")).value == "one"
        assert identity.calls["token"] >= 2


async def test_a_service_principal_signs_in_at_the_sandbox_s_authority() -> None:
    authority = TokenAuthority()
    async with KeyVaultServer(authority) as vault, EntraServer(authority) as entra:
        vault.put("db", "one")
        options = {"authority": entra.url, "connection_verify": str(entra.ca_bundle), "retry_total": 0}
        tenant, application = authority.tenant_id, authority.client_id
        async with (
            ClientSecretCredential(tenant, application, authority.client_secret, **options) as credential,
            connect(vault, credential) as client,
        ):
            assert (await client.get_secret("db")).value == "one"
        for wrong in ((tenant, application, "wrong"), (tenant, "nobody", "x"), ("nowhere", application, "x")):
            async with ClientSecretCredential(*wrong, **options) as credential:
                with pytest.raises(ClientAuthenticationError, match="AADSTS"):
                    await credential.get_token("https://vault.azure.net/.default")


async def test_the_synchronous_credential_finds_its_way_by_the_discovery_documents() -> None:
    from azure.identity import ClientSecretCredential as Synchronous

    authority = TokenAuthority()

    def sign_in(url: str, ca_bundle: str) -> str:
        arguments = (authority.tenant_id, authority.client_id, authority.client_secret)
        with Synchronous(
            *arguments, authority=url, disable_instance_discovery=True, connection_verify=ca_bundle
        ) as credential:
            return credential.get_token("https://vault.azure.net/.default").token

    async with EntraServer(authority) as entra:
        token = await asyncio.to_thread(sign_in, entra.url, str(entra.ca_bundle))
        assert authority.check(token)["appid"] == authority.client_id
        assert entra.calls == {"discovery": 1, "token": 1}


async def test_runs_alone_with_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sandbox.key_vault", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        for name, value in ready["environment"].items():
            monkeypatch.setenv(name, value)
        async with (
            ManagedIdentityCredential(retry_total=0) as credential,
            SecretClient(
                ready["url"], credential, verify_challenge_resource=False, connection_verify=ready["ca_bundle"]
            ) as client,
        ):
            await client.set_secret("db", "one")
            assert (await client.get_secret("db")).value == "one"
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
