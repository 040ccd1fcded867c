"""ACL policies as secrets, on the sandbox and on a real Vault."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from sandbox.vault import VaultSandbox
from shared.errors import InvalidSecret, SecretNotFound, Unsupported
from shared.model import Expect, Secret
from shared.vault import FingerprintCost, Use, Vault
from shared.vaults.hashicorp import Settings, connect

POLICY = '# read only\npath "secret/data/apps/*" {\n  capabilities = ["read"]\n}\n'


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
async def vault(request: pytest.FixtureRequest) -> AsyncIterator[Vault]:
    async with VaultSandbox() as server:
        where = request.getfixturevalue("real_vault") if request.param == "real" else server
        token = where.token if request.param == "real" else server.root_token
        settings = Settings(kind="hashicorp", address=where.url, auth={"method": "token", "token": token})
        policies = connect("hub", settings, "policies")
        await policies.open()
        yield policies
        await policies.aclose()


@pytest.fixture
def name() -> str:
    return f"apps-{secrets.token_hex(6)}"


async def names(vault: Vault, prefix: str = "") -> list[str]:
    return [entry.name async for entry in vault.list_secrets(prefix)]


async def test_a_policy_comes_back_as_it_was_written_until_it_is_deleted(vault: Vault, name: str) -> None:
    await vault.set_secret(name, Secret({"value": POLICY}))
    got = await vault.get_secret(name)
    assert got.fields == {"value": POLICY}
    assert name in await names(vault)
    assert await names(vault, name[:-2]) == [name]
    await vault.delete_secret(name)
    for call in (vault.get_secret(name), vault.delete_secret(name)):
        with pytest.raises(SecretNotFound):
            await call


async def test_case_does_not_count(vault: Vault, name: str) -> None:
    assert (await vault.set_secret(name.upper(), Secret({"value": POLICY}))).name == name
    assert (await vault.get_secret(name.title())).fields == {"value": POLICY}
    assert vault.capabilities.names.key(name.upper()) == name
    await vault.delete_secret(name.upper())
    assert name not in await names(vault)


@pytest.mark.parametrize("hostile", ["%2e%2e", "a b", "{x}", "a/b", "é", "a%b"])
async def test_a_hostile_name_is_that_name(vault: Vault, name: str, hostile: str) -> None:
    await vault.set_secret(f"{name}{hostile}", Secret({"value": POLICY}))
    assert await names(vault, name) == [f"{name}{hostile}"]
    assert (await vault.get_secret(f"{name}{hostile}")).fields == {"value": POLICY}
    await vault.delete_secret(f"{name}{hostile}")
    assert await names(vault, name) == []


async def test_what_every_server_has_of_its_own_is_left_alone(vault: Vault) -> None:
    assert not {"default", "root"} & set(await names(vault))
    for name in ("root", "Default"):
        for call in (
            vault.get_secret(name),
            vault.set_secret(name, Secret({"value": POLICY})),
            vault.delete_secret(name),
        ):
            with pytest.raises(InvalidSecret, match="left alone"):
                await call


@pytest.mark.parametrize(
    "fields", [{}, {"value": ""}, {"value": " \n"}, {"value": 5}, {"text": POLICY}, {"value": POLICY, "more": "x"}]
)
async def test_what_is_no_policy_is_refused(vault: Vault, name: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidSecret):
        await vault.set_secret(name, Secret(fields))
    assert name not in await names(vault)


async def test_a_policy_that_vault_can_not_parse_is_invalid_and_not_quoted(vault: Vault, name: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        await vault.set_secret(name, Secret({"value": 'path "canary-3" {'}))
    assert "canary-3" not in str(caught.value)


async def test_only_the_text_tells_of_a_change(vault: Vault, name: str) -> None:
    assert vault.capabilities.fingerprint is FingerprintCost.VALUE
    assert not vault.capabilities.fields
    with pytest.raises(Unsupported):
        await vault.describe_secret(name)
    with pytest.raises(Unsupported):
        await vault.set_secret(name, Secret({"value": POLICY}), expect=Expect.ABSENT)
    with pytest.raises(Unsupported):
        await vault.delete_secret(name, expect="1")


async def test_check_of_policies(vault: Vault) -> None:
    findings = await vault.check([Use("", write=True, delete=True)])
    assert findings
    assert all(finding.ok for finding in findings)
