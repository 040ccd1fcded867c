"""Any HTTP API that holds secrets: configured, not programmed.

settings.py    what the configuration may say, and what is wrong with it
templates.py   placeholders, and what they become
requests.py    addresses and bodies
shape.py       a secret as the API has it, and back
answers.py     answers: JMESPath, and what it finds
pages.py       how a listing goes on
auth.py        credentials
client.py      one aiohttp session: TLS, limits, what is a success
failures.py    statuses and aiohttp's exceptions become shared.errors
identity.py    which id belongs to a name, for APIs that know secrets by ids
api.py         the vault
"""

from __future__ import annotations

from shared.errors import ConfigError
from shared.vault import Vault
from shared.vaults.http_api.settings import Settings

__all__ = ["Settings", "connect"]


def connect(vault_id: str, settings: Settings, resource: str = "secrets") -> Vault:
    """The vault, not yet spoken to. Raises ConfigError for a resource other than secrets and for unusable certificates."""
    if resource != "secrets":
        raise ConfigError(f"vault {vault_id}: an http_api vault holds secrets, not {resource!r}")
    from shared.vaults.http_api.api import HttpApi

    return HttpApi(vault_id, settings)
