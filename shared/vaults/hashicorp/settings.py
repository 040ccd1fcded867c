"""What the configuration may say about a `hashicorp` vault.

Defaults come from the variables that Vault's own command line reads:
https://developer.hashicorp.com/vault/docs/commands#configure-environment-variables
VAULT_SKIP_VERIFY is not one of them: an unverified server could be given every secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from shared.rules import Aspect
from shared.settings import Settings as Part
from shared.settings import VaultSettings
from shared.vault import NameRule


def _variable(name: str) -> Callable[[], str | None]:
    return lambda: os.environ.get(name) or None


def _path(value: str) -> str:
    """A mount or namespace as it goes into a URL: no slashes around it, nothing that leads elsewhere."""
    path = value.strip("/")
    if any(segment in ("", ".", "..") for segment in path.split("/")) or not path.isprintable():
        raise ValueError("expected a path such as 'secret' or 'team/kv', without empty, '.' or '..' segments")
    return path


class _Mounted(Part):
    @field_validator("mount", check_fields=False)
    @classmethod
    def _check_mount(cls, value: str) -> str:
        return _path(value)


class TokenAuth(Part):
    """A token that somebody issued. It is renewed where it can be, and never replaced."""

    method: Literal["token"] = "token"
    token: SecretStr | None = Field(
        default_factory=lambda: _secret("VAULT_TOKEN"), validate_default=True, description="Default: VAULT_TOKEN."
    )

    @field_validator("token")
    @classmethod
    def _given(cls, value: SecretStr | None) -> SecretStr:
        if value is None or not value.get_secret_value().strip():
            raise ValueError("no token: give auth.token, set VAULT_TOKEN, or choose another auth.method")
        return SecretStr(value.get_secret_value().strip())


class AppRoleAuth(_Mounted):
    """https://developer.hashicorp.com/vault/docs/auth/approle"""

    method: Literal["approle"]
    role_id: str = Field(description="Which role.")
    secret_id: SecretStr | None = Field(None, description="For roles that ask for one.")
    mount: str = Field("approle", description="Where the method is enabled.")


class KubernetesAuth(_Mounted):
    """https://developer.hashicorp.com/vault/docs/auth/kubernetes; the file is read at each login, since it is rotated."""

    method: Literal["kubernetes"]
    role: str = Field(description="Which role.")
    mount: str = Field("kubernetes", description="Where the method is enabled.")
    token_path: str = Field(
        "/var/run/secrets/kubernetes.io/serviceaccount/token", description="The file with the service account's token."
    )


class JwtAuth(_Mounted):
    """https://developer.hashicorp.com/vault/docs/auth/jwt"""

    method: Literal["jwt"]
    role: str = Field(description="Which role.")
    jwt: SecretStr = Field(description="The token of the other party, from the environment.")
    mount: str = Field("jwt", description="Where the method is enabled.")


class AzureAuth(_Mounted):
    """The managed identity of the machine or app: https://developer.hashicorp.com/vault/docs/auth/azure"""

    method: Literal["azure"]
    role: str = Field(description="Which role.")
    resource: str = Field("https://management.azure.com/", description="Whom the identity's token is made out to.")
    mount: str = Field("azure", description="Where the method is enabled.")
    client_id: str | None = Field(None, description="Of a user-assigned identity; default: the system-assigned one.")


Auth = Annotated[TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth | AzureAuth, Field(discriminator="method")]


def _by_token() -> Any:
    return {"method": "token"}


def _secret(name: str) -> SecretStr | None:
    value = os.environ.get(name)
    return SecretStr(value) if value else None


METADATA = frozenset({Aspect.TAGS})
"""Of KV version 2. Its delete_version_after counts from each write, so it tells no moment that could be carried."""
POLICY_NAMES = NameRule(ignores_case=True, wording="names of policies, in which case does not count")


class Settings(VaultSettings):
    """A HashiCorp Vault or an OpenBao: the secrets of one KV engine, or its ACL policies."""

    kind: Literal["hashicorp"]
    address: str | None = Field(
        default_factory=_variable("VAULT_ADDR"), validate_default=True, description="Default: VAULT_ADDR."
    )
    mount: str = Field("secret", description="Where the KV engine is mounted.")
    kv_version: Literal["auto", 1, 2] = Field("auto", description="The engine's version; auto asks the vault.")
    namespace: str | None = Field(
        default_factory=_variable("VAULT_NAMESPACE"), validate_default=True, description="Default: VAULT_NAMESPACE."
    )
    ca_bundle: str | None = Field(
        default_factory=_variable("VAULT_CACERT"), description="PEM file of authorities. Default: VAULT_CACERT."
    )
    client_cert: str | None = Field(
        default_factory=_variable("VAULT_CLIENT_CERT"), description="PEM file. Default: VAULT_CLIENT_CERT."
    )
    client_key: str | None = Field(
        default_factory=_variable("VAULT_CLIENT_KEY"), description="PEM file. Default: VAULT_CLIENT_KEY."
    )
    # A raw default that is validated like what a person wrote: an error in it then stands beside all others.
    auth: Auth = Field(default_factory=_by_token, validate_default=True, description="How to log in.")

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return self.address or ""

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | None) -> str:
        if not value:
            raise ValueError("no address: give it, or set VAULT_ADDR")
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as https://vault.example:8200")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("expected only scheme, host, port and perhaps a path: credentials belong under auth")
        return value.rstrip("/").removesuffix("/v1")

    @field_validator("mount")
    @classmethod
    def _check_mount(cls, value: str) -> str:
        return _path(value)

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, value: str | None) -> str | None:
        return _path(value) if value and value.strip("/") else None

    @model_validator(mode="after")
    def _check_certificate(self) -> Settings:
        if self.client_key and not self.client_cert:
            raise ValueError("client_key is given without client_cert")
        return self

    @property
    def place(self) -> tuple[str | None, ...]:
        return self.url.lower(), self.namespace, self.mount

    def name_rule(self, resource: str) -> NameRule:
        return POLICY_NAMES if resource == "policies" else NameRule()

    def metadata(self, resource: str) -> frozenset[Aspect]:
        return METADATA if resource == "secrets" and self.kv_version != 1 else frozenset()
