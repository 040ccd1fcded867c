"""Tags, content type and expiry between a Key Vault and a Vault, as their own servers tell of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.model import Secret, Source, Target
from shared.rules import Aspect, MetadataRules
from tests.contract.vaults.azure_key_vault import SandboxKeyVault
from tests.contract.vaults.hashicorp import SandboxV2
from tests.world import one_way, world

LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
TAGS = MetadataRules((Aspect.TAGS,), exclude_tags=("tmp-*",))


@pytest.fixture
async def key_vault() -> AsyncIterator[SandboxKeyVault]:
    harness = SandboxKeyVault()
    await harness.start()
    yield harness
    await harness.stop()


@pytest.fixture
async def hub() -> AsyncIterator[SandboxV2]:
    harness = SandboxV2()
    await harness.start()
    yield harness
    await harness.stop()


async def _custom(hub: SandboxV2, tags: dict[str, str]) -> None:
    """By hand: this makes no version."""
    await hub._request("POST", f"{hub._mount}/metadata/db", {"custom_metadata": tags})


async def test_custom_metadata_of_a_vault_become_tags_of_a_key_vault(
    hub: SandboxV2, key_vault: SandboxKeyVault, tmp_path: Path
) -> None:
    await hub.put("db", {"value": "1"})
    await _custom(hub, {"team": "ops", "tmp-1": "x"})
    sync = one_way(Target("prod", "prod", metadata=TAGS), source=Source("hub"))
    async with world(tmp_path, [hub.vault, key_vault.vault], sync) as w:
        await w.sync()
        assert (await key_vault.vault.get_secret("db")).tags == {"team": "ops"}
        assert (await w.sync()).written == 0
        await _custom(hub, {"team": "dev", "tmp-1": "y"})
        assert (await w.sync()).written == 1
        assert (await key_vault.vault.get_secret("db")).tags == {"team": "dev"}
        await _custom(hub, {"team": "dev"})
        assert (await w.sync()).written == 0
        await _custom(hub, {})
        assert (await w.sync()).written == 1
        assert (await key_vault.vault.get_secret("db")).tags == {}


async def test_tags_of_a_key_vault_become_custom_metadata_and_drift_is_put_right(
    hub: SandboxV2, key_vault: SandboxKeyVault, tmp_path: Path
) -> None:
    given = Secret({"value": "1"}, "text/plain", {"team": "ops", "tmp-1": "x"}, LATER)
    await key_vault.vault.set_secret("db", given, owner="somebody")
    sync = one_way(Target("hub", "hub", metadata=TAGS), source=Source("prod"))
    async with world(tmp_path, [hub.vault, key_vault.vault], sync) as w:
        await w.sync()
        assert (await hub.vault.get_secret("db")).tags == {"team": "ops"}
        assert (await w.sync()).written == 0
        await _custom(hub, {"team": "mine"})
        assert (await w.sync()).drifted == 1
        assert (await hub.vault.get_secret("db")).tags == {"team": "ops"}
        assert (await w.sync()).written == 0


async def test_a_token_that_may_not_write_tags_makes_no_versions(hub: SandboxV2, tmp_path: Path) -> None:
    """Nothing is written before it is known that all of it can be."""
    from shared.errors import AccessDenied
    from shared.vaults.hashicorp import Settings, connect

    mount = hub._mount
    rules = {
        f"{mount}/data/*": ["create", "read", "update"],
        f"{mount}/metadata/*": ["read", "list"],
    }
    policy = "\n".join(f'path "{path}" {{ capabilities = {can} }}' for path, can in rules.items()).replace("'", '"')
    await hub._request("POST", "sys/policies/acl/narrow", {"policy": policy})
    token = (await hub._request("POST", "auth/token/create", {"policies": ["narrow"]}))["auth"]["client_token"]
    auth: Any = {"method": "token", "token": token}
    vault = connect("hub", Settings(kind="hashicorp", address=hub._url, mount=mount, auth=auth))
    try:
        await vault.open()
        with pytest.raises(AccessDenied, match="to carry tags, the token needs"):
            await vault.set_secret("db", Secret({"value": "1"}, tags={"team": "ops"}))
        assert await hub.look("db") is None
        # None to write is none to be allowed.
        await vault.set_secret("db", Secret({"value": "1"}, tags={}))
    finally:
        await vault.aclose()


async def test_other_settings_of_a_key_stay_as_they_are(hub: SandboxV2) -> None:
    await hub._request("POST", f"{hub._mount}/metadata/db", {"max_versions": 3, "delete_version_after": "1h"})
    await hub.vault.set_secret("db", Secret({"value": "1"}, tags={"team": "ops"}))
    async with aiohttp.ClientSession(headers={"X-Vault-Token": hub._token}) as session:
        answer = await session.get(f"{hub._url}/v1/{hub._mount}/metadata/db")
        kept = (await answer.json())["data"]
    assert (kept["max_versions"], kept["delete_version_after"]) == (3, "1h0m0s")
    assert kept["custom_metadata"] == {"team": "ops"}
