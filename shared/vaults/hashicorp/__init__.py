"""HashiCorp Vault and OpenBao: KV version 1 and 2, and ACL policies (`resource: policies`).

settings.py   what the configuration may say, with the usual VAULT_* variables as defaults
adapter.py    hvac's requests on one aiohttp session
failures.py   statuses and SDK exceptions become shared.errors
numbers.py    which numbers can be carried exactly
login.py      the token: login, renewal, login again
base.py       what the vaults below have in common; `check`
kv.py         secrets: KV v1 and v2
policies.py   ACL policies
"""

from __future__ import annotations

from shared.errors import ConfigError
from shared.vault import Vault
from shared.vaults.hashicorp.settings import Settings

__all__ = ["Settings", "connect"]


def connect(vault_id: str, settings: Settings, resource: str = "secrets") -> Vault:
    """The vault, not yet spoken to. Raises ConfigError for a resource that this kind does not have."""
    # hvac and aiohttp are imported by these modules, so only where such a vault is configured.
    if resource == "secrets":
        from shared.vaults.hashicorp.kv import KvVault

        return KvVault(vault_id, settings)
    if resource == "policies":
        from shared.vaults.hashicorp.policies import PolicyVault

        return PolicyVault(vault_id, settings)
    raise ConfigError(
        f"vault {vault_id}: a hashicorp vault has the resources 'secrets' and 'policies', not {resource!r}"
    )
