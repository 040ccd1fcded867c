"""Vault's tokens and the login methods that give them out: AppRole, Kubernetes, JWT, Azure.

A role of the last three accepts exactly the JWT that it was made with: nothing here verifies a signature.
"""

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.vault_kv import VaultError, parse_duration, rfc3339

_SECOND = 1_000_000_000
_MAX_TTL = 2_764_800
_LOGIN_METHODS = ("approle", "kubernetes", "jwt", "azure")


@dataclass(slots=True)
class Token:
    """A service token. `ttl` and `max_ttl` in seconds, 0 for none; times in nanoseconds since the epoch."""

    id: str
    accessor: str
    policies: list[str]
    created: int
    expires: int | None
    ttl: int
    max_ttl: int = 0
    renewable: bool = False
    renewed: int | None = None
    display_name: str = "token"
    path: str = "auth/token/create"
    meta: dict[str, str] | None = None
    orphan: bool = False
    entity_id: str = ""

    @property
    def root(self) -> bool:
        return "root" in self.policies


@dataclass(slots=True)
class Role:
    """Who may log in at an auth mount, and what the token is like."""

    policies: list[str]
    ttl: int
    max_ttl: int
    role_id: str = ""
    secret_ids: set[str] = field(default_factory=set)
    jwt: str = ""


@dataclass(slots=True)
class AuthMount:
    """One enabled login method."""

    kind: str
    accessor: str
    uuid: str
    roles: dict[str, Role] = field(default_factory=dict)


class Tokens:
    """All tokens of one server. `clock` gives nanoseconds since the epoch."""

    def __init__(self, root_token: str, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._tokens: dict[str, Token] = {}
        root = Token(root_token, accessor(), ["root"], clock(), None, 0, orphan=True)
        self._tokens[root.id] = root

    def find(self, token_id: str) -> Token | None:
        """The token, unless it is unknown, revoked or expired."""
        token = self._tokens.get(token_id)
        if token is not None and token.expires is not None and token.expires <= self._clock():
            del self._tokens[token_id]
            return None
        return token

    def create(self, policies: list[str], *, ttl: int, **properties: Any) -> Token:
        """A new token; ttl in seconds."""
        now = self._clock()
        token = Token(
            f"hvs.{secrets.token_urlsafe(66)}",
            accessor(),
            sorted(policies),
            now,
            now + ttl * _SECOND,
            ttl,
            **properties,
        )
        self._tokens[token.id] = token
        return token

    def renew(self, token: Token, increment: int) -> Token:
        """Let it live `increment` seconds from now, its own ttl if 0, but not past its max_ttl."""
        if not token.renewable:
            raise VaultError(400, "lease is not renewable")
        now = self._clock()
        end = token.created + (token.max_ttl or _MAX_TTL) * _SECOND
        token.expires = min(now + (increment or token.ttl) * _SECOND, end)
        token.renewed = now
        return token

    def revoke(self, token_id: str) -> None:
        """Revoking what is gone is fine."""
        self._tokens.pop(token_id, None)

    def expire(self, token_id: str | None = None) -> None:
        """End one token's life now, or that of every token that has an end."""
        for token in [self._tokens[token_id]] if token_id else list(self._tokens.values()):
            if token.expires is not None:
                token.expires = 0

    def seconds_left(self, token: Token) -> int:
        """Whole seconds to live, 0 for a token without end."""
        return 0 if token.expires is None else max(0, (token.expires - self._clock()) // _SECOND)

    def describe(self, token: Token) -> dict[str, Any]:
        """As `lookup-self` answers."""
        renewal = (
            {"last_renewal": rfc3339(token.renewed), "last_renewal_time": token.renewed // _SECOND}
            if token.renewed
            else {}
        )
        return {
            "accessor": token.accessor,
            "creation_time": token.created // _SECOND,
            "creation_ttl": token.ttl,
            "display_name": token.display_name,
            "entity_id": token.entity_id,
            "expire_time": None if token.expires is None else rfc3339(token.expires),
            "explicit_max_ttl": 0,
            "id": token.id,
            "issue_time": rfc3339(token.created),
            **renewal,
            "meta": token.meta,
            "num_uses": 0,
            "orphan": token.orphan,
            "path": token.path,
            "policies": token.policies,
            "renewable": token.renewable,
            "ttl": self.seconds_left(token),
            "type": "service",
        }

    def grant(self, token: Token) -> dict[str, Any]:
        """The `auth` part of an answer that hands out or renews a token."""
        left = 0 if token.expires is None else -((self._clock() - token.expires) // _SECOND)
        return {
            "client_token": token.id,
            "accessor": token.accessor,
            "policies": token.policies,
            "token_policies": token.policies,
            "metadata": token.meta,
            "lease_duration": left,
            "renewable": token.renewable,
            "entity_id": token.entity_id,
            "token_type": "service",
            "orphan": token.orphan,
            "mfa_requirement": None,
            "num_uses": 0,
        }


class AuthMounts:
    """The enabled login methods, by path ("approle/")."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.mounts: dict[str, AuthMount] = {}

    def enable(self, path: str, kind: str) -> None:
        """Enable a method at a path. Raises VaultError."""
        if f"{path}/" in self.mounts or path == "token":
            raise VaultError(400, f"path is already in use at {path}/")
        if kind not in _LOGIN_METHODS:
            raise VaultError(400, f"plugin not found in the catalog: {kind}")
        self.mounts[f"{path}/"] = AuthMount(kind, f"auth_{kind}_{secrets.token_hex(4)}", str(uuid.uuid4()))

    def find(self, path: str) -> tuple[str, AuthMount] | None:
        """The mount that a path after `auth/` belongs to."""
        fitting = [each for each in self.mounts if path.startswith(each)]
        best = max(fitting, key=len, default=None)
        return None if best is None else (best, self.mounts[best])

    def login(self, path: str, mount: AuthMount, data: dict[str, Any]) -> Token:
        """A token for who shows what the role asks for. Raises VaultError as the method does."""
        name = self._approle(mount, data) if mount.kind == "approle" else self._jwt(mount, data)
        role = mount.roles[name]
        meta = {"role_name": name} if mount.kind == "approle" else {"role": name}
        return self._tokens.create(
            sorted({"default", *role.policies}),
            ttl=role.ttl,
            max_ttl=role.max_ttl,
            renewable=True,
            display_name=path.rstrip("/"),
            path=f"auth/{path}login",
            meta=meta,
            orphan=True,
            entity_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path}{name}")),
        )

    @staticmethod
    def _approle(mount: AuthMount, data: dict[str, Any]) -> str:
        if not data.get("role_id"):
            raise VaultError(500, "failed to determine alias name from login request")
        name = next((name for name, role in mount.roles.items() if role.role_id == data["role_id"]), None)
        if name is None:
            raise VaultError(400, "invalid role or secret ID")
        if not data.get("secret_id"):
            raise VaultError(400, "missing secret_id")
        if data["secret_id"] not in mount.roles[name].secret_ids:
            raise VaultError(400, "invalid role or secret ID")
        return name

    @staticmethod
    def _jwt(mount: AuthMount, data: dict[str, Any]) -> str:
        name = str(data.get("role") or "")
        if mount.kind != "jwt" and not data.get("jwt"):
            raise VaultError(400, "jwt is required" if mount.kind == "azure" else "missing jwt")
        if not name:
            raise VaultError(400, "missing role")
        role = mount.roles.get(name)
        if role is None:
            missing = f'role "{name}" could not be found' if mount.kind == "jwt" else f'invalid role name "{name}"'
            raise VaultError(400, missing)
        if data.get("jwt") != role.jwt:
            if mount.kind == "kubernetes":
                raise VaultError(403, "permission denied")
            raise VaultError(400, "error validating token: error verifying token signature: no known key")
        return name


def accessor() -> str:
    """An opaque handle of Vault's length."""
    return secrets.token_urlsafe(18)


def seconds(value: Any) -> int:
    """Whole seconds from a duration as Vault's fields take it; 0 for none. Raises VaultError."""
    try:
        return parse_duration(value) // _SECOND if value not in (None, "") else 0
    except ValueError as error:
        raise VaultError(400, str(error)) from None


def names(value: Any) -> list[str]:
    """A list, or a comma-separated string of them."""
    return (
        [str(each) for each in value]
        if isinstance(value, list)
        else [each for each in str(value or "").split(",") if each]
    )
