"""What a Vaultwarden (or Bitwarden) vault is configured with."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from shared.settings import VaultSettings
from shared.vault import NameRule


def _path(text: str) -> str:
    if any(part.strip() != part or not part for part in text.split("/")) or not text.isprintable():
        raise ValueError("expected a name as the web vault shows it, like Prod or Ops/Prod")
    return text


PathName = Annotated[str, AfterValidator(_path)]


class Settings(VaultSettings):
    """One account's own vault, or one collection of an organisation that the account belongs to."""

    kind: Literal["vaultwarden"]
    url: str = Field(description="Where the web vault is, as in https://vw.example")
    email: str = Field(min_length=3, description="The account's e-mail.")
    password: SecretStr = Field(
        min_length=1, description="The account's master password; it never leaves this process."
    )
    client_id: str | None = Field(None, description="Of the account's API key: user.…")
    client_secret: SecretStr | None = Field(None, min_length=1, description="Of the account's API key.")
    organization: str | None = Field(None, min_length=1, description="An organisation's name; default: the own vault.")
    collection: PathName | None = Field(None, description="The organisation's collection that holds the secrets.")
    folder: PathName | None = Field(
        None, description="In the own vault: the folder that holds the secrets; default: all."
    )
    ca_bundle: str | None = Field(None, description="A PEM file of authorities to trust besides the system's.")
    delete_mode: Literal["trash", "permanent"] = Field("trash", description="What a delete does with an item.")

    @field_validator("url")
    @classmethod
    def _an_address(cls, text: str) -> str:
        try:
            parts = urlsplit(text)
            host, good = parts.hostname or "", parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            host, good = "", False
        if not good or not host or parts.scheme not in ("https", "http") or parts.query or parts.fragment:
            raise ValueError("expected an address like https://vw.example, without credentials or a query")
        if parts.scheme == "http" and not _is_loopback(host):
            raise ValueError("expected https: plain http is only spoken to this machine")
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"

    @field_validator("email")
    @classmethod
    def _an_email(cls, text: str) -> str:
        email = text.strip()
        if "@" not in email[1:-1]:
            raise ValueError("expected the account's e-mail")
        return email

    @field_validator("client_id")
    @classmethod
    def _an_own_key(cls, text: str | None) -> str | None:
        if text is not None and not text.startswith("user."):
            raise ValueError("expected the API key of an account, user.…; an organisation's key opens no items")
        return text

    @model_validator(mode="after")
    def _belongs_together(self) -> Settings:
        if (self.client_id is None) != (self.client_secret is None):
            raise ValueError("client_id and client_secret go together")
        if (self.organization is None) != (self.collection is None):
            raise ValueError("organization and collection go together")
        if self.organization is not None and self.folder is not None:
            raise ValueError("folder is of the own vault; leave it out beside an organization")
        return self

    def name_rule(self, resource: str) -> NameRule:
        return NameRule()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
