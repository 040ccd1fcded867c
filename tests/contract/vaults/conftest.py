"""Every kind on every server it can have: each test of this folder runs on all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.vault import Vault
from tests.contract.vaults import azure_key_vault, file, hashicorp, http_api, vaultwarden
from tests.contract.vaults.harness import Harness

# A kind joins the suite with a line here. A harness on a real server is built with the fixture that is named.
HARNESSES: dict[str, tuple[type[Harness], str | None]] = {
    "azure-key-vault": (azure_key_vault.SandboxKeyVault, None),
    "file": (file.LocalFile, None),
    "hashicorp-v2": (hashicorp.SandboxV2, None),
    "hashicorp-v1": (hashicorp.SandboxV1, None),
    "http-api-etags": (http_api.WithEtags, None),
    "http-api-text": (http_api.WithOneText, None),
    "http-api-key-vault": (http_api.SandboxKeyVault, None),
    "http-api-vault": (http_api.SandboxVault, None),
    "vaultwarden": (vaultwarden.SandboxVaultwarden, None),
    "hashicorp-v2-real": (hashicorp.RealV2, "real_vault"),
    "hashicorp-v1-real": (hashicorp.RealV1, "real_vault"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test on each kind that has what it needs: none passes because there was nothing to test."""
    if "harness" not in metafunc.fixturenames:
        return
    needed = getattr(metafunc.function, "needs", frozenset())
    lacking = getattr(metafunc.function, "lacks", frozenset())
    params = [
        pytest.param(name, marks=pytest.mark.real if fixture else (), id=name)
        for name, (kind, fixture) in HARNESSES.items()
        if needed <= kind.traits and not lacking & kind.traits
    ]
    metafunc.parametrize("harness", params, indirect=True)


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    make, fixture = HARNESSES[request.param]
    if fixture is None:
        harness = make()
    else:
        server: Any = request.getfixturevalue(fixture)
        harness = make(server.url, server.token)
    await harness.start()
    try:
        yield harness
    finally:
        await harness.stop()


@pytest.fixture
def vault(harness: Harness) -> Vault:
    return harness.vault
