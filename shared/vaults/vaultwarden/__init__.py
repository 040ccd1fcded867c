"""Vaultwarden and Bitwarden: a client that encrypts and decrypts here, so that the server sees ciphertext only.

settings.py   what the configuration may say
crypto.py     keys and EncStrings
items.py      an item's document, and the fields of the secret that it holds
places.py     which folders or collections belong to the vault, and the prefixes that they stand for
account.py    the login, the keys that it opens, and every call
failures.py   what the server refuses, and what breaks on the way to it, as shared.errors
vault.py      the contract: a copy of the account, kept for as long as its revision date proves it
"""

from __future__ import annotations

from shared.errors import ConfigError
from shared.vault import Vault
from shared.vaults.vaultwarden.settings import Settings

__all__ = ["Settings", "connect"]


def connect(vault_id: str, settings: Settings, resource: str = "secrets") -> Vault:
    """A vault that logs in when it is first used.

    Raises ConfigError for a resource other than secrets and for a CA bundle that can not be read.
    """
    if resource != "secrets":
        raise ConfigError(f"{vault_id}: a Vaultwarden holds secrets, not {resource}")
    # httpx and cryptography are imported by this module, so only where such a vault is configured.
    from shared.vaults.vaultwarden.vault import VaultwardenVault

    return VaultwardenVault(vault_id, settings)
