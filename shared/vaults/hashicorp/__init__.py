"""HashiCorp Vault and OpenBao: KV version 1 and 2, and ACL policies (`resource: policies`).

settings.py   what the configuration may say, with the usual VAULT_* variables as defaults
adapter.py    hvac's requests on one aiohttp session
failures.py   statuses and SDK exceptions become shared.errors
numbers.py    which numbers can be carried exactly
login.py      the token: login, renewal, login again
base.py       what the vaults below have in common; `check`
kv.py         secrets: KV v1 and v2
policies.py   ACL policies
audit_device.py    the audit device that `vaultferry setup` enables
least_policies.py  the policies that `vaultferry setup --print-policy` prints
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.vault import Vault
from shared.vaults.hashicorp.settings import Settings

if TYPE_CHECKING:
    from shared.model import Sync
    from shared.vaults.hashicorp.audit_device import AuditDevices

__all__ = ["Settings", "audit_devices", "connect", "least_policy"]


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


def audit_devices(vault_id: str, settings: Settings) -> AuditDevices:
    """What `vaultferry setup` works on: kinds without it tell of their changes in another way, or not at all."""
    from shared.vaults.hashicorp.audit_device import AuditDevices

    return AuditDevices(vault_id, settings)


async def least_policy(vault_id: str, settings: Settings, syncs: Sequence[Sync]) -> str:
    """The least ACL policy for what these syncs do in this vault. Raises ConfigError, and VaultErrors where the mount's
    version has to be asked for."""
    from shared.vaults.hashicorp.least_policies import kv_version, policy

    secrets = [sync for sync in syncs if sync.source.resource == "secrets"]
    version = await kv_version(vault_id, settings) if secrets else 2
    return policy(vault_id, settings, version, syncs)
