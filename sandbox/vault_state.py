"""What the sandbox's Vault knows: mounts, policies, tokens, and a clock that tests can move. No HTTP in here."""

import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sandbox.vault_acl import DEFAULT_POLICY, Rule, parse_policy
from sandbox.vault_audit import Audit
from sandbox.vault_auth import AuthMounts, Role, Token, Tokens
from sandbox.vault_calls import actor
from sandbox.vault_json import dumps, loads, plain
from sandbox.vault_kv import ANY, KvV1, KvV2, VaultError

_SECOND = 1_000_000_000


@dataclass(slots=True)
class Mount:
    """One key/value mount."""

    engine: KvV1 | KvV2
    description: str = ""
    accessor: str = field(default_factory=lambda: f"kv_{secrets.token_hex(4)}")
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    tuning: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return 2 if isinstance(self.engine, KvV2) else 1


class VaultState:
    """The state of one server, and what a test does to it without a request."""

    def __init__(self, root_token: str) -> None:
        self.root_token = root_token
        self.sealed = False
        self._offset = 0
        self.cluster = str(uuid.uuid4())
        self.mounts: dict[str, Mount] = {}
        self.policies: dict[str, str] = {}
        self.rules: dict[str, list[Rule]] = {}
        self.tokens = Tokens(root_token, self.now)
        self.logins = AuthMounts(self.tokens)
        self.audit = Audit()
        self.set_policy("default", DEFAULT_POLICY)
        self.add_mount("secret", 2, description="key/value secret storage")
        self.add_mount("kv1", 1)

    def now(self) -> int:
        """The server's clock, nanoseconds since the epoch."""
        return time.time_ns() + self._offset

    def advance(self, seconds: float) -> None:
        """Move the server's clock: `delete_version_after` and token ttls run out by it."""
        self._offset += int(seconds * _SECOND)

    def add_mount(self, path: str, version: int, *, description: str = "") -> None:
        """Enable a KV engine. Raises VaultError when the path is in use."""
        key = f"{path.strip('/')}/"
        for taken in self.mounts:
            if key.startswith(taken) or taken.startswith(key):
                raise VaultError(400, f"path is already in use at {taken}")
        self.mounts[key] = Mount(KvV2(self.now) if version == 2 else KvV1(), description)

    def remove_mount(self, path: str) -> None:
        """Disable a KV engine and forget what it held."""
        self.mounts.pop(f"{path.strip('/')}/", None)

    def put(self, mount: str, path: str, data: dict[str, Any], *, cas: int | None = None) -> int:
        """Write a secret past HTTP; the version (0 on a v1 mount). Raises VaultError."""
        engine = self._engine(mount)
        kept = loads(dumps(data).encode())
        if isinstance(engine, KvV1):
            engine.write(path, kept)
            return 0
        operation = "update" if path in engine.keys else "create"
        written = engine.write(path, kept, cas=ANY if cas is None else cas, by=actor(None, operation))
        return int(written["version"])

    def get(self, mount: str, path: str, *, version: int = 0) -> dict[str, Any] | None:
        """A secret's fields as Python values, None when it is missing or deleted."""
        engine = self._engine(mount)
        try:
            found = engine.read(path) if isinstance(engine, KvV1) else engine.read(path, version)["data"]
        except VaultError:
            return None
        fields: dict[str, Any] | None = plain(found)
        return fields

    def secret_paths(self, mount: str) -> list[str]:
        """Every path on a mount, sorted; on v2 the deleted ones too."""
        engine = self._engine(mount)
        return sorted(engine.secrets if isinstance(engine, KvV1) else engine.keys)

    def metadata(self, mount: str, path: str) -> dict[str, Any]:
        """As the metadata read answers. Raises VaultError when missing."""
        return self._v2(mount).metadata(path)

    def set_metadata(self, mount: str, path: str, **settings: Any) -> None:
        """max_versions, cas_required, delete_version_after ("1h"), custom_metadata of one secret."""
        self._v2(mount).write_metadata(path, settings)

    def soft_delete(self, mount: str, path: str, *versions: int) -> None:
        """Mark versions as deleted, the newest if none is named."""
        self._v2(mount).soft_delete(path, list(versions) or None, by=actor(None, "delete"))

    def undelete(self, mount: str, path: str, *versions: int) -> None:
        """Take the mark from these versions."""
        self._v2(mount).undelete(path, list(versions), by=actor(None, "undelete"))

    def destroy(self, mount: str, path: str, *versions: int) -> None:
        """Remove these versions' data for good."""
        self._v2(mount).destroy(path, list(versions))

    def remove(self, mount: str, path: str) -> None:
        """Forget a secret altogether: v1's delete, v2's metadata delete."""
        engine = self._engine(mount)
        if isinstance(engine, KvV1):
            engine.delete(path)
        else:
            engine.delete_metadata(path)

    def set_policy(self, name: str, text: str) -> None:
        """Write an ACL policy. Raises BadPolicy."""
        self.rules[name.lower()] = parse_policy(text)
        self.policies[name.lower()] = text

    def create_token(self, *policies: str, ttl: int = 3600, renewable: bool = True) -> str:
        """A token with these policies and `default`; ttl in seconds."""
        return self.tokens.create(["default", *policies], ttl=ttl, renewable=renewable).id

    def expire_tokens(self, token_id: str | None = None) -> None:
        """End one token's life now, or that of every token but root."""
        self.tokens.expire(token_id)

    def add_approle(
        self, name: str, *policies: str, ttl: int = 1200, max_ttl: int = 0, mount: str = "approle"
    ) -> tuple[str, str]:
        """A role that may log in; its role_id and one secret_id."""
        role = Role(list(policies), ttl, max_ttl, str(uuid.uuid4()), {secret_id := str(uuid.uuid4())})
        self._login_mount(mount, "approle")[name] = role
        return role.role_id, secret_id

    def add_jwt_role(
        self, name: str, jwt: str, *policies: str, kind: str = "jwt", mount: str | None = None, ttl: int = 1200
    ) -> None:
        """A role of kind jwt, kubernetes or azure that takes exactly this JWT."""
        self._login_mount(mount or kind, kind)[name] = Role(list(policies), ttl, 0, jwt=jwt)

    def find_mount(self, path: str) -> tuple[str, Mount] | None:
        """The KV mount that a path belongs to, with its own path ("secret/")."""
        fitting = [each for each in self.mounts if f"{path}/".startswith(each)]
        best = max(fitting, key=len, default=None)
        return None if best is None else (best, self.mounts[best])

    def creates(self, path: str) -> bool:
        """Whether a write to this path is a create in the eyes of policies and audit, rather than an update."""
        found = self.find_mount(path)
        if found is None:
            return False
        engine, rest = found[1].engine, path[len(found[0]) :]
        if isinstance(engine, KvV1):
            return rest not in engine.secrets
        verb, _, name = rest.partition("/")
        return verb in ("data", "metadata") and name not in engine.keys

    def rules_of(self, token: Token) -> list[Rule]:
        """All rules of a token's policies; a policy that does not exist grants nothing."""
        return [rule for name in token.policies for rule in self.rules.get(name, ())]

    def _login_mount(self, path: str, kind: str) -> dict[str, Role]:
        if f"{path}/" not in self.logins.mounts:
            self.logins.enable(path, kind)
        return self.logins.mounts[f"{path}/"].roles

    def _engine(self, mount: str) -> KvV1 | KvV2:
        return self.mounts[f"{mount.strip('/')}/"].engine

    def _v2(self, mount: str) -> KvV2:
        engine = self._engine(mount)
        if not isinstance(engine, KvV2):
            raise TypeError(f"{mount} is a KV v1 mount")
        return engine
