"""Fingerprints, deletes, tombstones, expiry, and conditional writes."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import AccessDenied, Conflict, MountNotFound, SecretNotFound, Unsupported, VaultError
from shared.model import Entry, Expect, Secret
from shared.vault import FingerprintCost, Use, Vault
from tests.contract.vaults.harness import Harness, lacks, needs


async def look(vault: Vault, name: str) -> Entry:
    """What the vault says about a secret, for as little as it can."""
    if vault.capabilities.fingerprint is FingerprintCost.VALUE:
        entry = (await vault.get_secret(name)).entry
        assert entry is not None
        return entry
    return await vault.describe_secret(name)


def tells(vault: Vault) -> bool:
    """Whether there are fingerprints at all."""
    return vault.capabilities.fingerprint is not FingerprintCost.VALUE


@needs("fingerprints")
async def test_reading_leaves_the_fingerprint_and_writing_changes_it(vault: Vault) -> None:
    await vault.set_secret("one", Secret({"value": "1"}))
    first = await look(vault, "one")
    await vault.get_secret("one")
    [entry async for entry in vault.list_secrets()]
    assert await look(vault, "one") == first
    assert first.fingerprint is not None
    seen = {first.fingerprint}
    for value in ("2", "2", "1"):
        await vault.set_secret("one", Secret({"value": value}))
        seen.add(str((await look(vault, "one")).fingerprint))
    assert len(seen) == 4


async def test_a_write_a_read_and_a_description_tell_the_same_of_a_secret(vault: Vault) -> None:
    written = await vault.set_secret("one", Secret({"value": "1"}))
    assert written.name == "one"
    assert written.live
    assert (await vault.get_secret("one")).entry == written
    assert await look(vault, "one") == written


@lacks("fingerprints")
async def test_a_vault_that_only_the_value_tells_of_has_no_fingerprint(vault: Vault) -> None:
    assert (await vault.set_secret("one", Secret({"value": "1"}))).fingerprint is None
    with pytest.raises(Unsupported):
        await vault.describe_secret("one")


@needs("fingerprints")
async def test_a_change_by_hand_shows(harness: Harness) -> None:
    before = await harness.vault.set_secret("one", Secret({"value": "1"}))
    await harness.put("one", {"value": "2"})
    assert (await look(harness.vault, "one")).fingerprint != before.fingerprint


async def test_deleted_and_written_again_is_another_secret(vault: Vault) -> None:
    before = await vault.set_secret("one", Secret({"value": "1"}))
    await vault.delete_secret("one")
    after = await vault.set_secret("one", Secret({"value": "2"}))
    assert (await vault.get_secret("one")).fields == {"value": "2"}
    assert [entry.name async for entry in vault.list_secrets()] == ["one"]
    if tells(vault):
        assert before.fingerprint != after.fingerprint == (await look(vault, "one")).fingerprint


async def test_wiped_by_hand_and_written_again_is_another_secret(harness: Harness) -> None:
    vault = harness.vault
    before = await vault.set_secret("one", Secret({"value": "1"}))
    await harness.wipe("one")
    with pytest.raises(SecretNotFound):
        await look(vault, "one")
    after = await vault.set_secret("one", Secret({"value": "1"}), expect=_absent(vault))
    if tells(vault):
        assert before.fingerprint != after.fingerprint


async def test_deleting_twice_says_that_it_is_gone_already(vault: Vault) -> None:
    await vault.set_secret("one", Secret({"value": "1"}))
    await vault.delete_secret("one")
    with pytest.raises(SecretNotFound):
        await vault.delete_secret("one")


async def test_a_missing_secret_is_not_found(vault: Vault) -> None:
    for call in (vault.get_secret("none"), vault.delete_secret("none"), look(vault, "none")):
        with pytest.raises(SecretNotFound) as caught:
            await call
        assert caught.value.path == "none"
        assert caught.value.vault == vault.id


async def test_a_missing_mount_is_never_taken_for_a_missing_secret(harness: Harness) -> None:
    vault = harness.connect(container=False)
    try:
        try:
            await vault.open()
        except VaultError as error:
            assert isinstance(error, MountNotFound | AccessDenied)  # noqa: PT017
            return
        for call in (
            vault.get_secret("one"),
            vault.delete_secret("one"),
            vault.set_secret("one", Secret({"value": "x"})),
            look(vault, "one"),
            anext(aiter(vault.list_secrets())),
            anext(aiter(vault.list_secrets("folder/"))),
        ):
            with pytest.raises(MountNotFound):
                await call
    finally:
        await vault.aclose()


async def test_wrong_credentials_are_denied(harness: Harness) -> None:
    vault = harness.connect(credentials=False)
    try:

        async def use() -> None:
            await vault.open()
            await vault.get_secret("one")

        with pytest.raises(AccessDenied):
            await use()
        assert not all(finding.ok for finding in await vault.check([]))
    finally:
        await vault.aclose()


# tombstones


@needs("soft-delete")
async def test_what_is_soft_deleted_is_gone_until_it_is_undeleted(harness: Harness) -> None:
    vault = harness.vault
    before = await vault.set_secret("one", Secret({"value": "1"}))
    await harness.soft_delete("one")
    with pytest.raises(SecretNotFound):
        await vault.get_secret("one")
    with pytest.raises(SecretNotFound):
        await vault.delete_secret("one")
    gone = await _tombstone(vault, "one")
    if gone is not None:
        assert gone.fingerprint != before.fingerprint
    await harness.undelete("one")
    back = await vault.get_secret("one")
    assert back.fields == {"value": "1"}
    assert back.entry is not None
    assert back.entry.live
    assert back.entry == await look(vault, "one")


@needs("soft-delete")
async def test_our_own_delete_leaves_what_can_be_undeleted(harness: Harness) -> None:
    await harness.vault.set_secret("one", Secret({"value": "1"}))
    await harness.vault.delete_secret("one")
    assert await harness.look("one") is None
    await harness.undelete("one")
    assert await harness.look("one") == {"value": "1"}


@needs("soft-delete", "compare-and-set")
async def test_a_tombstone_is_written_over_in_the_version_that_it_has(harness: Harness) -> None:
    vault = harness.vault
    await vault.set_secret("one", Secret({"value": "1"}))
    await harness.soft_delete("one")
    tombstone = await _tombstone(vault, "one")
    assert tombstone is not None
    with pytest.raises(Conflict):
        await vault.set_secret("one", Secret({"value": "2"}), expect=Expect.ABSENT)
    assert await harness.look("one") is None
    assert tombstone.version is not None
    written = await vault.set_secret("one", Secret({"value": "2"}), expect=tombstone.version)
    assert written.live
    assert await harness.look("one") == {"value": "2"}


@needs("expiry")
async def test_what_has_expired_is_a_tombstone_and_what_will_is_not(harness: Harness) -> None:
    vault = harness.vault
    await harness.put("over", {"value": "1"}, lifetime="moment")
    await harness.put("later", {"value": "1"}, lifetime="hour")
    with pytest.raises(SecretNotFound):
        await vault.get_secret("over")
    with pytest.raises(SecretNotFound):
        await vault.delete_secret("over")
    gone = await _tombstone(vault, "over")
    assert gone is None or not gone.live
    later = await vault.get_secret("later")
    assert later.fields == {"value": "1"}
    assert later.entry == await look(vault, "later")
    assert later.entry is not None
    assert later.entry.live
    await vault.delete_secret("later")
    with pytest.raises(SecretNotFound):
        await vault.get_secret("later")


async def _tombstone(vault: Vault, name: str) -> Entry | None:
    """What is left of a deleted secret, where the vault shows it."""
    try:
        entry = await look(vault, name)
    except SecretNotFound:
        return None
    assert not entry.live
    return entry


# conditional writes


@needs("compare-and-set")
async def test_a_stale_expectation_is_a_conflict_and_nothing_is_written(harness: Harness) -> None:
    vault = harness.vault
    first = await vault.set_secret("one", Secret({"value": "1"}), expect=Expect.ABSENT)
    assert first.version is not None
    second = await vault.set_secret("one", Secret({"value": "2"}), expect=first.version)
    for stale in (first.version, Expect.ABSENT):
        with pytest.raises(Conflict) as caught:
            await vault.set_secret("one", Secret({"value": "3"}), expect=stale)
        assert caught.value.path == "one"
        with pytest.raises(Conflict):
            await vault.delete_secret("one", expect=stale)
    assert await harness.look("one") == {"value": "2"}
    assert await look(vault, "one") == second


@needs("compare-and-set")
async def test_expecting_a_version_of_what_is_not_there_is_a_conflict(harness: Harness) -> None:
    with pytest.raises(Conflict):
        await harness.vault.set_secret("one", Secret({"value": "1"}), expect="3")
    assert await harness.look("one") is None


@needs("compare-and-set")
async def test_exactly_the_expected_version_is_deleted(harness: Harness) -> None:
    vault = harness.vault
    first = await vault.set_secret("one", Secret({"value": "1"}))
    assert first.version is not None
    await vault.delete_secret("one", expect=first.version)
    assert await harness.look("one") is None


@needs("compare-and-set")
async def test_only_the_first_of_many_writers_creates(vault: Vault) -> None:
    tries = await asyncio.gather(
        *(vault.set_secret("one", Secret({"value": str(number)}), expect=Expect.ABSENT) for number in range(8)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in tries) == ["Conflict"] * 7 + ["Entry"]


@lacks("compare-and-set")
async def test_a_vault_that_can_not_compare_says_so_before_it_writes(harness: Harness) -> None:
    vault = harness.vault
    before = harness.calls()
    for expect in ("1", Expect.ABSENT):
        with pytest.raises(Unsupported):
            await vault.set_secret("one", Secret({"value": "1"}), expect=expect)
        with pytest.raises(Unsupported):
            await vault.delete_secret("one", expect=expect)
    assert harness.calls() == before


async def test_the_suite_knows_what_the_vault_can_do(harness: Harness) -> None:
    can = harness.vault.capabilities
    assert can.write
    assert can.delete
    assert can.compare_and_set == ("compare-and-set" in harness.traits)
    assert (can.fingerprint is not FingerprintCost.VALUE) == ("fingerprints" in harness.traits)
    assert (can.fingerprint is FingerprintCost.LISTED) == ("listed" in harness.traits)
    assert (can.names.fit("a/b") == "a/b") == ("folders" in harness.traits)


async def test_check_finds_all_well_and_writes_nothing(harness: Harness) -> None:
    findings = await harness.vault.check([Use("", write=True, delete=True)])
    assert findings
    assert [finding for finding in findings if not finding.ok] == []
    assert [entry async for entry in harness.vault.list_secrets()] == []


def _absent(vault: Vault) -> Expect:
    return Expect.ABSENT if vault.capabilities.compare_and_set else Expect.ANY
