"""Listings: complete, within their prefix, and of one mind with reading."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.errors import Unavailable
from shared.model import Secret
from shared.vault import Vault
from tests.contract.vaults.harness import Harness, needs


async def names(vault: Vault, prefix: str = "") -> list[str]:
    return sorted([entry.name async for entry in vault.list_secrets(prefix)])


async def test_an_empty_vault_lists_nothing(vault: Vault) -> None:
    assert await names(vault) == []


async def test_every_secret_is_listed_once(vault: Vault) -> None:
    written = sorted(vault.capabilities.names.fit(f"apps/{number % 5}/{number % 3}/n{number}") for number in range(40))
    for name in written:
        await vault.set_secret(name, Secret({"value": "x"}))
    assert await names(vault) == written


async def test_what_is_listed_can_be_read_and_the_other_way_round(vault: Vault) -> None:
    for name in ("one", "two", "three"):
        await vault.set_secret(name, Secret({"value": name}))
    assert {entry.name: entry.live async for entry in vault.list_secrets()} == {"one": True, "two": True, "three": True}
    for name in await names(vault):
        got = await vault.get_secret(name)
        assert got.fields == {"value": name}
        assert got.entry is not None
        assert (got.entry.name, got.entry.live) == (name, True)


@needs("folders")
async def test_a_prefix_is_a_folder_and_not_the_start_of_a_word(vault: Vault) -> None:
    for name in ("apps", "apps/a", "apps/a/b", "apps/b/c/d", "appsx/e", "other/apps/f"):
        await vault.set_secret(name, Secret({"value": "x"}))
    assert await names(vault, "apps/") == ["apps/a", "apps/a/b", "apps/b/c/d"]
    assert await names(vault, "apps/a/") == ["apps/a/b"]
    assert await names(vault, "nothing/here/") == []
    assert len(await names(vault)) == 6


async def test_a_listing_can_be_left_early(vault: Vault) -> None:
    for number in range(5):
        await vault.set_secret(vault.capabilities.names.fit(f"a{number}/b"), Secret({"value": "x"}))
    listing = vault.list_secrets()
    async for _ in listing:
        break
    await listing.aclose()  # type: ignore[attr-defined]
    assert len(await names(vault)) == 5


@needs("listed")
async def test_listed_fingerprints_are_those_of_a_description(vault: Vault) -> None:
    await vault.set_secret("one", Secret({"value": "x"}))
    described = await vault.describe_secret("one")
    # A listing may leave the version out.
    assert [replace(entry, version=described.version) async for entry in vault.list_secrets()] == [described]


@needs("faults")
@pytest.mark.parametrize("kind", ["status", "torn_before", "cut_body", "torn_after"])
async def test_half_a_listing_raises(harness: Harness, kind: str) -> None:
    vault = harness.vault
    for number in range(60):
        await harness.put(vault.capabilities.names.fit(f"folder{number % 3}/n{number}"), {"value": "x"})
    harness.misbehave(kind, "list", skip=1, times=None, status=500)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await names(vault)


@needs("faults")
async def test_a_listing_that_stumbles_is_complete_all_the_same(harness: Harness) -> None:
    vault = harness.vault
    written = sorted(vault.capabilities.names.fit(f"folder{number % 3}/n{number}") for number in range(60))
    for name in written:
        await harness.put(name, {"value": "x"})
    harness.misbehave("status", "list", skip=1, status=500)
    harness.misbehave("torn_after", "list", skip=2)
    assert await names(vault) == written
