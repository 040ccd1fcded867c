"""APIs that know secrets by ids: which item a name means, also when names move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.http_apis import OnePasswordApi
from shared.errors import InvalidSecret, SecretNotFound
from shared.model import Secret
from shared.vault import Vault
from shared.vaults.http_api import Settings, connect

LISTED = {"path": "/items", "name": "title", "id": "id", "version": "join('/', [id, to_string(version)])"}
TOLD = {"version": LISTED["version"], "updated_at": "updatedAt"}
ITEM = {
    "title": "{name}",
    "category": "API_CREDENTIAL",
    "fields": [{"label": "{field}", "value": "{field_value}", "type": "CONCEALED"}],
}


@pytest.fixture
async def api() -> AsyncIterator[OnePasswordApi]:
    async with OnePasswordApi() as server:
        yield server


@pytest.fixture(params=["with find", "without"])
async def vault(request: pytest.FixtureRequest, api: OnePasswordApi) -> AsyncIterator[Vault]:
    body = ITEM | {"vault": {"id": api.vault}}
    operations: dict[str, Any] = {
        "list": LISTED | {"updated_at": "updatedAt"},
        "get": {"path": "/items/{id}", "name": "title", "fields": "fields[].{name: label, value: value}", **TOLD},
        "set": {"path": "/items/{id}", "body": body | {"id": "{id}"}, **TOLD},
        "create": {"path": "/items", "body": body, **TOLD},
        "delete": {"path": "/items/{id}"},
    }
    if request.param == "with find":
        operations["find"] = LISTED | {"query": {"filter": 'title eq "{name}"'}}
    settings = Settings(
        kind="http_api",
        base_url=f"{api.url}/v1/vaults/{api.vault}",
        auth={"type": "bearer", "token": api.token},
        operations=operations,
    )
    vault = connect("team", settings)
    yield vault
    await vault.aclose()


async def names(vault: Vault) -> list[str]:
    return [entry.name async for entry in vault.list_secrets()]


async def test_a_life_of_an_item(api: OnePasswordApi, vault: Vault) -> None:
    first = await vault.set_secret('a "quoted"/name', Secret({"user": "ferry", "password": "x"}))
    assert len(api.items) == 1
    second = await vault.set_secret('a "quoted"/name', Secret({"password": "y"}))
    assert len(api.items) == 1
    assert first.fingerprint != second.fingerprint
    got = await vault.get_secret('a "quoted"/name')
    assert got.fields == {"password": "y"}
    assert [entry async for entry in vault.list_secrets()] == [got.entry] == [second]
    await vault.delete_secret('a "quoted"/name')
    for call in (vault.get_secret('a "quoted"/name'), vault.delete_secret('a "quoted"/name')):
        with pytest.raises(SecretNotFound):
            await call
    assert api.items == {}


async def test_a_listing_saves_looking_ids_up_for_reading(api: OnePasswordApi, vault: Vault) -> None:
    for number in range(10):
        api.put(f"n{number}", {"password": str(number)})
    listed = await names(vault)
    await asyncio.gather(*map(vault.get_secret, listed))
    assert api.calls == {"list": 1, "read": 10}


async def test_two_items_of_one_name_are_an_error_that_names_both(api: OnePasswordApi, vault: Vault) -> None:
    ids = [api.put("twins", {"password": "x"}), api.put("twins", {"password": "y"})]
    assert await names(vault) == ["twins"]
    for call in (
        vault.get_secret("twins"),
        vault.set_secret("twins", Secret({"password": "z"})),
        vault.delete_secret("twins"),
    ):
        with pytest.raises(InvalidSecret) as caught:
            await call
        assert all(each in str(caught.value) for each in ids)
    assert [item["fields"][0]["value"] for item in api.items.values()] == ["x", "y"]


async def test_a_search_that_finds_more_than_the_name_is_narrowed(api: OnePasswordApi) -> None:
    # This one ignores what is searched for.
    operations = {
        "list": LISTED,
        "find": LISTED | {"query": {"like": "{name}"}},
        "get": {"path": "/items/{id}", "fields": "fields[].{name: label, value: value}", "version": LISTED["version"]},
    }
    settings = Settings(
        kind="http_api",
        base_url=f"{api.url}/v1/vaults/{api.vault}",
        auth={"type": "bearer", "token": api.token},
        operations=operations,
    )
    vault = connect("team", settings)
    api.put("db", {"password": "x"})
    api.put("db2", {"password": "y"})
    assert (await vault.get_secret("db")).fields == {"password": "x"}
    assert (await vault.get_secret("db2")).fields == {"password": "y"}
    assert api.calls == {"list": 2, "read": 2}
    with pytest.raises(SecretNotFound):
        await vault.get_secret("d")
    await vault.aclose()


async def test_a_write_goes_to_what_has_the_name_now(api: OnePasswordApi, vault: Vault) -> None:
    old = api.put("db", {"password": "old"})
    assert await names(vault) == ["db"]
    api.items[old]["title"] = "db before"
    new = api.put("db", {"password": "new"})
    await vault.set_secret("db", Secret({"password": "newest"}))
    assert api.items[old]["fields"][0]["value"] == "old"
    assert api.items[new]["fields"][0]["value"] == "newest"
    await vault.delete_secret("db")
    assert list(api.items) == [old]


async def test_an_item_that_was_renamed_is_not_read_for_what_it_was(api: OnePasswordApi, vault: Vault) -> None:
    old = api.put("db", {"password": "old"})
    assert await names(vault) == ["db"]
    api.items[old]["title"] = "db before"
    with pytest.raises(SecretNotFound):
        await vault.get_secret("db")
    api.put("db", {"password": "new"})
    assert (await vault.get_secret("db")).fields == {"password": "new"}


async def test_an_item_that_was_made_anew_is_read_under_its_new_id(api: OnePasswordApi, vault: Vault) -> None:
    old = api.put("db", {"password": "old"})
    assert await names(vault) == ["db"]
    del api.items[old]
    api.put("db", {"password": "new"})
    assert (await vault.get_secret("db")).fields == {"password": "new"}


async def test_an_item_that_goes_while_it_is_written_is_made_anew(api: OnePasswordApi, vault: Vault) -> None:
    from sandbox.faults import Fault

    api.put("db", {"password": "old"})
    api.faults.add(Fault("status", operation="write", status=404))
    await vault.set_secret("db", Secret({"password": "new"}))
    assert "new" in [item["fields"][0]["value"] for item in api.items.values()]
