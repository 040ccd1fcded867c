"""What a vault keeps of a secret besides its fields: each kind that says so, in each way that it says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.errors import Conflict, InvalidSecret
from shared.model import Expect, Secret
from shared.rules import Aspect
from shared.vault import Vault
from tests.contract.vaults.harness import Harness, needs

LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
ALL: dict[Aspect, dict[str, Any]] = {
    Aspect.CONTENT_TYPE: {"content_type": "text/plain"},
    Aspect.EXPIRES: {"expires_at": LATER},
    Aspect.TAGS: {"tags": {"team": "ops", "Größe": "groß, sehr"}},
}
OTHER: dict[Aspect, dict[str, Any]] = {
    Aspect.CONTENT_TYPE: {"content_type": "application/x-pem-file"},
    Aspect.EXPIRES: {"expires_at": LATER + timedelta(seconds=1)},
    Aspect.TAGS: {"tags": {"team": "dev"}},
}


def _secret(vault: Vault, kept: dict[Aspect, dict[str, Any]]) -> Secret:
    given = {key: value for aspect in vault.capabilities.metadata for key, value in kept[aspect].items()}
    return Secret({"value": "1"}, **given)


def _kept(secret: Secret) -> tuple[object, ...]:
    return secret.content_type, secret.expires_at, dict(secret.tags or {})


@needs("metadata")
async def test_metadata_come_back_as_they_were(vault: Vault) -> None:
    for given in (_secret(vault, ALL), _secret(vault, OTHER)):
        written = await vault.set_secret("one", given)
        secret = await vault.get_secret("one")
        assert (secret.fields, _kept(secret)) == ({"value": "1"}, _kept(given))
        assert secret.entry is not None
        assert (secret.entry.fingerprint, secret.entry.version) == (written.fingerprint, written.version)
        assert (await vault.describe_secret("one")).fingerprint == written.fingerprint


@needs("metadata")
async def test_metadata_that_are_given_up_are_gone(vault: Vault) -> None:
    await vault.set_secret("one", _secret(vault, ALL))
    await vault.set_secret("one", Secret({"value": "1"}, tags={}))
    assert _kept(await vault.get_secret("one")) == (None, None, {})


@needs("metadata")
async def test_another_word_in_the_metadata_alone_shows_in_the_fingerprint(vault: Vault) -> None:
    if Aspect.TAGS not in vault.capabilities.metadata:
        pytest.skip("keeps no tags")
    seen = [
        (await vault.set_secret("one", Secret({"value": "1"}, tags=tags))).fingerprint
        for tags in ({"team": "ops"}, {"team": "dev"}, {})
    ]
    assert len(set(seen)) == 3


@needs("metadata", "compare-and-set")
async def test_a_stale_write_leaves_metadata_alone_too(vault: Vault) -> None:
    await vault.set_secret("one", _secret(vault, ALL), expect=Expect.ABSENT)
    with pytest.raises(Conflict):
        await vault.set_secret("one", _secret(vault, OTHER), expect=Expect.ABSENT)
    assert _kept(await vault.get_secret("one")) == _kept(_secret(vault, ALL))


@needs("metadata-limits")
async def test_what_passes_a_limit_is_refused_with_it_before_anything_is_sent(harness: Harness) -> None:
    before = harness.calls()
    for tags, limit in (
        ({str(number): "x" for number in range(65)}, r"at most (15|64)"),
        ({"x" * 257: "x"}, "more than (256|128)"),
        ({"team": "x" * 513}, "more than (256|512)"),
    ):
        with pytest.raises(InvalidSecret, match=limit):
            await harness.vault.set_secret("one", Secret({"value": "1"}, tags=tags))
    assert harness.calls() == before


async def test_the_suite_knows_what_a_vault_keeps(harness: Harness) -> None:
    assert bool(harness.vault.capabilities.metadata) == ("metadata" in harness.traits)
