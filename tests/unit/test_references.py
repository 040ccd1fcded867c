"""A Key Vault reference that does not resolve is nobody's key, secret or token."""

from __future__ import annotations

import pytest

from shared.app import audit_secrets, digest_key
from shared.config import InvalidConfig
from shared.config.build import parse
from shared.errors import ConfigError
from shared.references import is_unresolved

REFERENCE = "@Microsoft.KeyVault(VaultName=kv-shop;SecretName=vaultferry-digest-key)"


@pytest.mark.parametrize(
    "text", [REFERENCE, REFERENCE.lower(), f" {REFERENCE}", "@Microsoft.KeyVault(SecretUri=https://x"]
)
def test_a_reference_is_known_by_its_beginning(text: str) -> None:
    assert is_unresolved(text)


@pytest.mark.parametrize("text", ["", "k" * 64, "Microsoft.KeyVault(", "a@Microsoft.KeyVault(x)"])
def test_other_text_is_taken_as_it_is(text: str) -> None:
    assert not is_unresolved(text)


def test_it_is_no_digest_key_however_long() -> None:
    with pytest.raises(ConfigError, match=r"reference in VAULTFERRY_DIGEST_KEY does not resolve: create the secret"):
        digest_key({"VAULTFERRY_DIGEST_KEY": REFERENCE})


@pytest.mark.parametrize("given", [REFERENCE, f"{'s' * 32},{REFERENCE}"])
def test_it_is_no_audit_secret(given: str) -> None:
    with pytest.raises(ConfigError, match="reference in VAULTFERRY_AUDIT_SECRET does not resolve"):
        audit_secrets({"VAULTFERRY_AUDIT_SECRET": given})


def test_it_is_no_token_in_a_configuration() -> None:
    text = b"""
vaults:
  hub: {kind: hashicorp, address: https://vault.example, auth: {method: token, token: "${VAULT_TOKEN:-none}"}}
  copy: {kind: file, path: copy.vault, key: "${KEY}"}
syncs:
  s: {source: {vault: hub}, targets: [{vault: copy}]}
"""
    with pytest.raises(InvalidConfig) as caught:
        parse(text, {"VAULT_TOKEN": REFERENCE, "KEY": "k" * 32}, "f.yaml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "vaults.hub.auth.token")
    assert problem.message == "the Key Vault reference in VAULT_TOKEN does not resolve"
