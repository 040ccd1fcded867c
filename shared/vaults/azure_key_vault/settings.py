"""What a Key Vault is configured with."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from shared.rules import Aspect
from shared.settings import Settings as BaseSettings
from shared.settings import VaultSettings
from shared.vault import NameRule

NAMES = NameRule(
    allowed=re.compile(r"[0-9a-zA-Z-]"),
    max_length=127,
    ignores_case=True,
    wording="1 to 127 letters (a-z), digits and dashes",
)
METADATA = frozenset(Aspect)

# Where the tokens for each cloud's vaults come from; None: where azure-identity looks by itself.
# https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates#dns-suffixes-for-object-identifiers
AUTHORITIES: dict[str, str | None] = {
    ".vault.azure.net": None,
    ".vault.usgovcloudapi.net": "https://login.microsoftonline.us",
    ".vault.azure.cn": "https://login.chinacloudapi.cn",
}


class DefaultAuth(BaseSettings):
    """DefaultAzureCredential: environment, workload or managed identity, Azure CLI ..., whichever answers first."""

    method: Literal["default"] = "default"


class ManagedIdentityAuth(BaseSettings):
    """The identity of the app or machine; `client_id` picks a user-assigned one."""

    method: Literal["managed_identity"]
    client_id: str | None = Field(
        None, min_length=1, description="Of a user-assigned identity; default: the system-assigned one."
    )


class ServicePrincipalAuth(BaseSettings):
    """An app registration with a client secret."""

    method: Literal["service_principal"]
    tenant_id: str = Field(min_length=1, description="The directory that the registration is in.")
    client_id: str = Field(min_length=1, description="The registration's application id.")
    client_secret: SecretStr = Field(min_length=1, description="A secret of the registration.")


Auth = Annotated[DefaultAuth | ManagedIdentityAuth | ServicePrincipalAuth, Field(discriminator="method")]


class Settings(VaultSettings):
    """One vault in Azure (or a server that speaks as one)."""

    kind: Literal["azure_key_vault"]
    url: str = Field(description="https://NAME.vault.azure.net")
    auth: Auth = Field(default_factory=DefaultAuth, description="Who calls the vault.")
    authority: str | None = Field(
        None, description="Where tokens come from, in a sovereign cloud: derived from the url unless given."
    )
    ca_bundle: str | None = Field(None, description="A PEM file of authorities to trust besides the system's.")

    @field_validator("url")
    @classmethod
    def _an_address(cls, text: str) -> str:
        return _https_address(text, "https://NAME.vault.azure.net")

    @field_validator("authority")
    @classmethod
    def _a_login_address(cls, text: str | None) -> str | None:
        return None if text is None else _https_address(text, "https://login.microsoftonline.us")

    @property
    def place(self) -> tuple[str]:
        return (self.url.lower(),)

    def name_rule(self, resource: str) -> NameRule:
        return NAMES

    def metadata(self, resource: str) -> frozenset[Aspect]:
        return METADATA


def _https_address(text: str, example: str) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good or parts.path not in ("", "/") or parts.query or parts.fragment or text != text.strip():
        raise ValueError(f"expected an https address and nothing behind the host, like {example}")
    return f"https://{parts.netloc}"


def suffix(url: str) -> str | None:
    """Which cloud's vault this is, or None."""
    host = urlsplit(url).hostname or ""
    return next((suffix for suffix in AUTHORITIES if host.endswith(suffix)), None)
