"""A throw-away HashiCorp Vault: the HTTP protocol of Vault 1.21 Community, as far as secrets, policies and tokens go.

Behaviour and texts are those observed on the real server, and `tests/servers/test_sandbox_parity.py` sends both the
same requests. Not here: response wrapping, namespaces (their header is ignored, as Community does), subkeys,
identity, leases of dynamic secrets, parameter constraints in policies.

    async with VaultSandbox() as vault:
        vault.put("secret", "apps/db", {"password": "..."})
        ...  # a client at vault.url with vault.root_token
        assert vault.calls["read"] == 1

As a process of its own: `python -m sandbox.vault --port 8200`.
"""

import argparse
import base64
import hashlib
import posixpath
import re
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import unquote

from aiohttp import web

from sandbox.server import SandboxServer, method_of, run_forever
from sandbox.vault_acl import DEFAULT_POLICY, BadPolicy, Rule, capabilities, parse_policy, reaches
from sandbox.vault_audit import Audit, AuditFailed, Device
from sandbox.vault_auth import AuthMounts, Role, Token, Tokens, names, seconds
from sandbox.vault_json import BadJSON, dumps, loads, number, plain
from sandbox.vault_kv import ANY, DEFAULT_LEASE, DeletedVersion, KvV1, KvV2, VaultError, rfc3339

VERSION = "1.21.0"
ROOT_TOKEN = "sandbox-root"
_Found = TypeVar("_Found")
_SECOND = 1_000_000_000
_DENIED = "1 error occurred:\n\t* permission denied\n\n"
_BAD_TOKEN = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
_UNSUPPORTED = "1 error occurred:\n\t* unsupported operation\n\n"
_UNSUPPORTED_PATH = "1 error occurred:\n\t* unsupported path\n\n"
_OPERATIONS = {"GET": "read", "LIST": "list", "POST": "update", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_BUILT_IN: dict[str, tuple[str, list[str] | None]] = {
    "cubbyhole/": ("per-token private secret storage", None),
    "identity/": ("identity store", ["Authorization"]),
    "sys/": ("system endpoints used for control, policy and debugging", ["Accept"]),
}
_UNCLEAN = re.compile(r"//|/\.\.?(/|$)")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}


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


@dataclass(slots=True)
class _Call:
    """One request, taken apart."""

    id: str
    operation: str
    path: str
    query: dict[str, str]
    data: dict[str, Any]
    token_id: str
    remote: tuple[str, int]
    user_agent: str
    token: Token | None = None


@dataclass(slots=True)
class _Answer:
    """A success: what goes into the envelope."""

    data: dict[str, Any] | None = None
    auth: dict[str, Any] | None = None
    warnings: list[str] | None = None
    lease: int = 0
    mount_type: str = ""
    beside: bool = False  # sys/ answers of old repeat their data beside the envelope
    bare: bool = False  # no envelope at all
    status: int = 200


class _InvalidPath(VaultError):
    """A path that a KV v2 mount knows nothing about."""

    def __init__(self, command: str) -> None:
        super().__init__(404)
        self.warning = (
            "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to "
            f"use. If using the Vault CLI, use 'vault kv {command}' for this operation."
        )


class VaultSandbox(SandboxServer):
    """A Vault with `secret/` (KV v2) and `kv1/` (KV v1), unsealed, and a root token.

    Operations, as `calls` and faults name them: read, list, metadata, write, patch, delete, undelete, metadata_write,
    config, login, token, mounts, capabilities, policy_read, policy_list, policy_write, policy_delete, audit, health,
    other. The path is what follows `/v1/`, decoded ("secret/data/apps/db").
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: bool = False, root_token: str = ROOT_TOKEN
    ) -> None:
        super().__init__(host=host, port=port, tls=tls)
        self.root_token = root_token
        self.sealed = False
        self._offset = 0
        self._cluster = str(uuid.uuid4())
        self.mounts: dict[str, Mount] = {}
        self.policies: dict[str, str] = {}
        self._rules: dict[str, list[Rule]] = {}
        self.tokens = Tokens(root_token, self.now)
        self.logins = AuthMounts(self.tokens)
        self.audit = Audit()
        self.set_policy("default", DEFAULT_POLICY)
        self.add_mount("secret", 2, description="key/value secret storage")
        self.add_mount("kv1", 1)

    # For tests: the state without a request.

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
        written = engine.write(path, kept, cas=ANY if cas is None else cas, by=_actor(None, operation))
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
        self._v2(mount).soft_delete(path, list(versions) or None, by=_actor(None, "delete"))

    def undelete(self, mount: str, path: str, *versions: int) -> None:
        """Take the mark from these versions."""
        self._v2(mount).undelete(path, list(versions), by=_actor(None, "undelete"))

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
        self._rules[name.lower()] = parse_policy(text)
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

    # What the common ground asks for.

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", r"/{path:[\s\S]*}", self._serve)

    async def close(self) -> None:
        await super().close()
        await self.audit.close()

    def error_answer(self, status: int, message: str) -> web.Response:
        return _json({"errors": [message] if message else []}, status)

    def classify(self, request: web.Request) -> tuple[str, str]:
        path = unquote(request.raw_path.partition("?")[0]).removeprefix("/v1/")
        operation = _operation(request)
        return self._name(operation, path), path

    def _name(self, operation: str, path: str) -> str:
        reading, listing = operation == "read", operation == "list"
        match path.split("/"):
            case ["sys", "policies" | "policy", *_]:
                named = {"read": "policy_read", "list": "policy_list", "delete": "policy_delete"}
                return "policy_list" if path == "sys/policy" and reading else named.get(operation, "policy_write")
            case ["sys", "mounts" | "auth" | "remount" | "internal", *_]:
                return "mounts"
            case ["sys", "audit" | "audit-hash", *_]:
                return "audit"
            case ["sys", "capabilities-self", *_]:
                return "capabilities"
            case ["sys", "health" | "seal-status" | "leader" | "init", *_]:
                return "health"
            case ["auth", "token", *_]:
                return "token"
            case ["auth", *_, "login"]:
                return "login"
        found = self._find_mount(path)
        if found is None:
            return "other"
        if listing:
            return "list"
        part = "data" if found[1].version == 1 else path[len(found[0]) :].partition("/")[0]
        verb = {"read": "read", "delete": "delete", "patch": "patch"}.get(operation, "write")
        match part:
            case "data":
                return verb
            case "metadata":
                return {"read": "metadata", "delete": "delete"}.get(verb, "metadata_write")
            case "delete" | "destroy":
                return "delete"
            case "undelete" | "config":
                return part
        return "other"

    # A request from its arrival to its answer.

    async def _serve(self, request: web.Request) -> web.Response:
        raw_path, _, query = request.raw_path.partition("?")
        if _UNCLEAN.search(raw_path):
            clean = posixpath.normpath("/" + raw_path.lstrip("/")) + ("/" if raw_path.endswith("/") else "")
            location = clean + (f"?{query}" if query else "")
            page = f'<a href="{location}">Temporary Redirect</a>.\n\n' if request.method == "GET" else ""
            headers = {"Location": location, "Content-Type": "text/html; charset=utf-8"}
            if not page:
                del headers["Content-Type"]
            return web.Response(status=307, headers=headers, body=page.encode())
        path = unquote(raw_path)
        if not path.removeprefix("/v1/").isprintable():
            return web.Response(status=400)
        if not path.startswith("/v1/"):
            return self.error_answer(404, "")
        try:
            return _respond(await self._call(await _parse(request, path.removeprefix("/v1/"))))
        except BadJSON as error:
            return self.error_answer(500, str(error))
        except AuditFailed:
            return self.error_answer(500, "internal error")
        except DeletedVersion as gone:
            return _json(_envelope(_Answer(gone.data)), 404)
        except _InvalidPath as invalid:
            return _json(_envelope(_Answer(warnings=[invalid.warning])), 404)
        except _NoBody as empty:
            return web.Response(status=empty.status, headers=_HEADERS)
        except VaultError as error:
            return _json({"errors": error.errors}, error.status)

    async def _call(self, call: _Call) -> _Answer:
        if call.operation == "read" and call.path in ("sys/health", "sys/seal-status", "sys/leader"):
            return self._health(call.path)
        if self.sealed:
            raise VaultError(503, "Vault is sealed")
        login = self.logins.find(call.path.removeprefix("auth/")) if call.path.startswith("auth/") else None
        if login and call.path == f"auth/{login[0]}login" and call.operation == "update":
            return await self._audited(call, lambda: self._login(call))
        if not call.token_id:
            if call.path == "sys/internal/ui/mounts":
                return _Answer({"auth": {}, "secret": {}})
            raise VaultError(403, "permission denied")
        call.token = self.tokens.find(call.token_id)
        if call.operation == "update" and self._creates(call.path):
            call.operation = "create"
        if call.token is None:
            await self._refuse(call, _BAD_TOKEN)
        elif not self._allowed(call):
            await self._refuse(call, _DENIED)
        if call.path.startswith("sys/audit/"):
            return await self._audit_device(call)
        return await self._audited(call, lambda: self._act(call))

    async def _audited(self, call: _Call, act: Callable[[], _Answer]) -> _Answer:
        await self._log(call, "request")
        try:
            answer = act()
        except DeletedVersion:
            await self._log(
                call,
                "response",
                _Answer({"http_content_type": "application/json", "http_raw_body": "", "http_status_code": 404}),
            )
            raise
        except VaultError as error:
            if error.errors and call.path.startswith(("auth/", "sys/audit-hash/")):
                await self._log(call, "response", _Answer({"error": error.errors[0]}))
            elif error.errors:
                wording = "unsupported path" if error.status == 404 else "invalid request"
                failed = f"1 error occurred:\n\t* {wording}\n\n"
                await self._log(call, "response", _Answer({"error": error.errors[0]}), failed)
            else:
                await self._log(call, "response")
            raise
        await self._log(call, "response", answer)
        return answer

    async def _refuse(self, call: _Call, error: str) -> None:
        await self._log(call, "request", error=error)
        await self._log(call, "response", _Answer({"error": error}), error)
        raise VaultError(403, error)

    def _act(self, call: _Call) -> _Answer:
        if call.path.startswith("sys/"):
            return self._sys(call, call.path.removeprefix("sys/"))
        if call.path.startswith("auth/"):
            return self._auth(call, call.path.removeprefix("auth/"))
        found = self._find_mount(call.path)
        if found is None:
            raise VaultError(404, f'no handler for route "{call.path}". route entry not found.')
        mount, rest = found[1], call.path.removeprefix(found[0].rstrip("/")).removeprefix("/")
        if isinstance(mount.engine, KvV1):
            return self._kv1(call, mount.engine, rest)
        return self._kv2(call, mount.engine, rest)

    def _find_mount(self, path: str) -> tuple[str, Mount] | None:
        fitting = [each for each in self.mounts if f"{path}/".startswith(each)]
        best = max(fitting, key=len, default=None)
        return None if best is None else (best, self.mounts[best])

    def _creates(self, path: str) -> bool:
        found = self._find_mount(path)
        if found is None:
            return False
        engine, rest = found[1].engine, path[len(found[0]) :]
        if isinstance(engine, KvV1):
            return rest not in engine.secrets
        return rest.startswith("data/") and rest.removeprefix("data/") not in engine.keys

    # Permissions.

    def _rules_of(self, token: Token) -> list[Rule]:
        return [rule for name in token.policies for rule in self._rules.get(name, ())]

    def _allowed(self, call: _Call) -> bool:
        assert call.token is not None  # noqa: S101 - said by the caller
        # The mount table of the UI answers to any token, and filters by itself.
        if call.token.root or call.path.startswith("sys/internal/ui/mounts"):
            return True
        listing = call.operation == "list"
        path = f"{call.path.rstrip('/')}/" if listing else call.path
        return call.operation in capabilities(self._rules_of(call.token), path, listing=listing)

    # KV

    def _kv1(self, call: _Call, engine: KvV1, path: str) -> _Answer:
        match call.operation:
            case "list":
                return _Answer({"keys": engine.paths.list(path)}, mount_type="kv")
            case "read":
                return _Answer(engine.read(path), lease=engine.lease(path), mount_type="kv")
            case "create" | "update":
                _refuse_folder(path)
                engine.write(path, call.data)
                return _Answer(status=204)
            case "delete":
                engine.delete(path)
                return _Answer(status=204)
        raise VaultError(405, _UNSUPPORTED)

    def _kv2(self, call: _Call, engine: KvV2, rest: str) -> _Answer:
        part, _, path = rest.partition("/")
        by = _actor(call.token, call.operation if part == "data" else part)
        writing = call.operation in ("create", "update")
        match part, call.operation:
            case "data", "create" | "update" | "patch" if not writing or not path.endswith("/"):
                if not path:
                    _refuse_folder("/")
                return self._kv2_write(call, engine, path, by)
            case "data", "read" if path and not path.endswith("/"):
                return _Answer(engine.read(path, _version(call.query)), mount_type="kv")
            case "data", "delete" if path and not path.endswith("/"):
                engine.soft_delete(path, by=by)
                return _Answer(status=204)
            case "metadata", "list":
                return _Answer({"keys": engine.paths.list(path)}, mount_type="kv")
            case "metadata", "read":
                return _Answer(engine.metadata(path), mount_type="kv")
            case "metadata", "update":
                _refuse_folder(path)
                engine.write_metadata(path, call.data)
            case "metadata", "patch":
                _or_no_body(lambda: engine.patch_metadata(path, call.data))
            case "metadata", "delete":
                engine.delete_metadata(path)
            case "delete", "update":
                engine.soft_delete(path, _versions(call.data), by=_actor(call.token, call.operation))
            case "undelete", "update":
                engine.undelete(path, _versions(call.data), by=by)
            case "destroy", "update":
                engine.destroy(path, _versions(call.data, none="no version number provided"))
            case "config", "read" if not path:
                return _Answer(engine.config(), mount_type="kv")
            case "config", "update" if not path:
                engine.write_config(call.data)
            case _ if writing and rest.endswith("/"):
                _refuse_folder(rest)
            case _:
                command = {"read": "get", "list": "list", "delete": "delete", "patch": "patch"}
                raise _InvalidPath(command.get(call.operation, "put"))
        return _Answer(status=204)

    def _kv2_write(self, call: _Call, engine: KvV2, path: str, by: dict[str, Any]) -> _Answer:
        if "data" not in call.data:
            raise VaultError(400, "no data provided")
        data = call.data["data"]
        if data is not None and not isinstance(data, dict):
            raise VaultError(400, "error converting input for field \"data\": '' expected a map, got 'string'")
        options = call.data.get("options")
        cas = options["cas"] if isinstance(options, dict) and "cas" in options else ANY
        if call.operation != "patch":
            return _Answer(engine.write(path, data, cas=cas, by=by), mount_type="kv")
        try:
            return _Answer(_or_no_body(lambda: engine.patch(path, data or {}, cas=cas, by=by)), mount_type="kv")
        except DeletedVersion as gone:
            gone.data = gone.metadata
            raise

    # sys/

    def _health(self, path: str) -> _Answer:
        common = {"initialized": True, "sealed": self.sealed, "version": VERSION, "cluster_id": self._cluster}
        if path == "sys/health":
            standby = {"standby": False, "performance_standby": False, "enterprise": False}
            document = {**common, **standby, "server_time_utc": self.now() // _SECOND, "cluster_name": "vault-sandbox"}
            return _Answer(document, bare=True, status=503 if self.sealed else 200)
        if path == "sys/leader":
            return _Answer({"ha_enabled": False, "is_self": False, "leader_address": ""}, bare=True)
        shares = {"type": "shamir", "t": 1, "n": 1, "progress": 0, "nonce": "", "migration": False}
        return _Answer({**common, **shares, "storage_type": "inmem", "recovery_seal": False}, bare=True)

    def _sys(self, call: _Call, path: str) -> _Answer:
        match path.rstrip("/").split("/"):
            case ["mounts"] if call.operation == "read":
                return _sys_answer({each: self._describe(each) for each in sorted(self._all_mounts())})
            case ["mounts", *rest]:
                return self._sys_mount(call, "/".join(rest))
            case ["internal", "ui", "mounts", *rest] if call.operation == "read":
                return self._ui_mounts(call, "/".join(rest))
            case ["remount"] if call.operation == "update":
                return self._remount(call.data)
            case ["auth", *rest]:
                return self._sys_auth(call, "/".join(rest))
            case ["policies", "acl", *name]:
                return self._policy(call, "/".join(name), "policy")
            case ["policy", *name]:
                return self._policy(call, "/".join(name), "rules")
            case ["policies", *_]:
                raise VaultError(405, _UNSUPPORTED)
            case ["capabilities-self"] if call.operation == "update":
                return self._capabilities(call)
            case ["audit"] if call.operation == "read":
                return _sys_answer({path: device.describe() for path, device in self.audit.devices.items()})
            case ["audit-hash", *rest] if call.operation == "update":
                return self._audit_hash("/".join(rest) + "/", call.data)
            case ["mounts" | "capabilities-self" | "audit" | "audit-hash" | "remount" | "internal", *_]:
                raise VaultError(405, _UNSUPPORTED)
        raise VaultError(404, _UNSUPPORTED_PATH)

    def _all_mounts(self) -> list[str]:
        return [*self.mounts, "cubbyhole/", "identity/", "sys/"]

    def _describe(self, path: str, *, lease: int = 0) -> dict[str, Any]:
        mount = self.mounts.get(path)
        description, headers = _BUILT_IN.get(path, ("", None))
        config = {"default_lease_ttl": lease, "force_no_cache": False, "max_lease_ttl": lease}
        return {
            "accessor": mount.accessor if mount else f"{path[:-1]}_{self._cluster[:8]}",
            "config": {
                **config,
                **({"passthrough_request_headers": headers} if headers else {}),
                **(mount.tuning if mount else {}),
            },
            **({"deprecation_status": "supported"} if mount else {}),
            "description": mount.description if mount else description,
            "external_entropy_access": False,
            "local": path == "cubbyhole/",
            "options": {"version": str(mount.version)} if mount else None,
            "plugin_version": "",
            "running_plugin_version": "v0.25.0+builtin" if mount else f"v{VERSION}+builtin.vault",
            "running_sha256": "",
            "seal_wrap": path == "sys/",
            "type": "kv" if mount else {"sys/": "system"}.get(path, path[:-1]),
            "uuid": mount.uuid if mount else str(uuid.uuid5(uuid.NAMESPACE_OID, self._cluster + path)),
        }

    def _sys_mount(self, call: _Call, path: str) -> _Answer:
        data = call.data
        if path.endswith("/tune"):
            mount = self.mounts.get(f"{path.removesuffix('/tune')}/")
            if mount is None:
                raise VaultError(400, f"cannot fetch sysview for path {path.removesuffix('tune')!r}")
            if call.operation == "update":
                mount.description = str(data.get("description", mount.description))
                keys = ("audit_non_hmac_request_keys", "audit_non_hmac_response_keys")
                mount.tuning.update({key: names(data[key]) for key in keys if key in data})
                return _Answer(status=204)
            lease = {"default_lease_ttl": DEFAULT_LEASE, "max_lease_ttl": DEFAULT_LEASE, "force_no_cache": False}
            options = {"version": str(mount.version)}
            return _sys_answer({**lease, **mount.tuning, "description": mount.description, "options": options})
        match call.operation:
            case "read":
                if f"{path}/" not in self._all_mounts():
                    raise VaultError(400, f"No secret engine mount at {path}/")
                return _sys_answer(self._describe(f"{path}/"))
            case "update":
                self._enable(path, data)
            case "delete":
                self.remove_mount(path)
            case _:
                raise VaultError(405, _UNSUPPORTED)
        return _Answer(status=204)

    def _enable(self, path: str, data: dict[str, Any]) -> None:
        kind = data.get("type")
        if not kind:
            raise VaultError(400, "backend type must be specified as a string")
        if kind not in ("kv", "kv-v1", "kv-v2", "generic"):
            raise VaultError(400, f"plugin not found in the catalog: {kind}")
        version = str((data.get("options") or {}).get("version") or ("2" if kind == "kv-v2" else "1"))
        if version not in ("1", "2"):
            raise VaultError(400, 'nil backend of type "kv" returned from factory')
        self.add_mount(path, int(version), description=str(data.get("description") or ""))

    def _remount(self, data: dict[str, Any]) -> _Answer:
        source, target = (f"{str(data.get(key) or '').strip('/')}/" for key in ("from", "to"))
        if source not in self.mounts:
            raise VaultError(400, f'no matching mount at "{source}"')
        if target in self.mounts:
            raise VaultError(400, f"path is already in use at {target}")
        self.mounts[target] = self.mounts.pop(source)
        warning = (
            "Mount move has been queued. Progress will be reported in Vault's server log, tagged with the returned"
        )
        return _sys_answer({"migration_id": str(uuid.uuid4())}, warnings=[f"{warning} migration_id"])

    def _ui_mounts(self, call: _Call, path: str) -> _Answer:
        assert call.token is not None  # noqa: S101 - said by the caller
        rules = self._rules_of(call.token)
        always = ("cubbyhole/", "identity/", "sys/")
        seen = [each for each in self._all_mounts() if call.token.root or each in always or reaches(rules, each)]
        if not path:
            secret = {each: self._describe(each, lease=DEFAULT_LEASE) for each in sorted(seen)}
            return _Answer({"auth": {}, "secret": secret})
        found = max((each for each in seen if f"{path}/".startswith(each)), key=len, default=None)
        if found is None:
            reason = "preflight capability check returned 403, please ensure client's policies grant access to path"
            raise VaultError(403, f'{reason} "{path}/"')
        return _Answer({**self._describe(found, lease=DEFAULT_LEASE), "path": found})

    def _sys_auth(self, call: _Call, path: str) -> _Answer:
        described = {
            each: {"accessor": mount.accessor, "type": mount.kind, "description": "", "options": {}, "uuid": mount.uuid}
            for each, mount in sorted(self.logins.mounts.items())
        }
        match call.operation:
            case "read" if not path:
                return _sys_answer({**described, "token/": {"type": "token", "description": "token based credentials"}})
            case "read" if f"{path}/" in described:
                return _sys_answer(described[f"{path}/"])
            case "read":
                raise VaultError(400, f"No auth engine at {path}/")
            case "update":
                self.logins.enable(path, str(call.data.get("type")))
            case "delete":
                self.logins.mounts.pop(f"{path}/", None)
            case _:
                raise VaultError(405, _UNSUPPORTED)
        return _Answer(status=204)

    def _policy(self, call: _Call, name: str, field_name: str) -> _Answer:
        legacy = field_name == "rules"
        if not name:
            if call.operation != "list" and not (legacy and call.operation == "read"):
                raise VaultError(405, _UNSUPPORTED)
            keys = sorted([*self.policies, "root"])
            listing: dict[str, Any] = {"keys": keys, "policies": keys} if legacy else {"keys": keys}
            return _Answer(listing, mount_type="system", beside=legacy)
        lower = name.lower()
        match call.operation:
            case "read":
                text = "" if lower == "root" else self.policies.get(lower)
                if text is None:
                    raise VaultError(404)
                return _Answer({"name": lower, field_name: text}, mount_type="system", beside=legacy)
            case "update":
                return self._write_policy(name, call.data, legacy=legacy)
            case "delete":
                if lower in ("default", "root"):
                    raise VaultError(
                        400, 'cannot delete "root" policy' if lower == "root" else "cannot delete default policy"
                    )
                self.policies.pop(lower, None)
                self._rules.pop(lower, None)
                return _Answer(status=204)
        raise VaultError(405, _UNSUPPORTED)

    def _write_policy(self, name: str, data: dict[str, Any], *, legacy: bool) -> _Answer:
        if name.lower() == "root":
            raise VaultError(400, 'cannot update "root" policy')
        text = data.get("policy") or (data.get("rules") if legacy else None)
        if not text:
            raise VaultError(400, "'policy' parameter not supplied or empty")
        try:
            text = base64.b64decode(str(text), validate=True).decode()
        except ValueError:
            text = str(text)
        try:
            self.set_policy(name, text)
        except BadPolicy as error:
            raise VaultError(400, f"failed to parse policy: {error}") from None
        warnings = []
        if legacy and not data.get("policy"):
            warnings.append("'rules' is deprecated, please use 'policy' instead")
        if name != name.lower():
            warnings.append(f"policy name was converted to {name.lower()}")
        return _Answer(warnings=warnings, mount_type="system") if warnings else _Answer(status=204)

    def _capabilities(self, call: _Call) -> _Answer:
        assert call.token is not None  # noqa: S101 - said by the caller
        asked = names(call.data.get("paths") or call.data.get("path"))
        if not asked:
            raise VaultError(400, "1 error occurred:\n\t* paths was not supplied\n\n")
        rules = self._rules_of(call.token)
        found = {path: ["root"] if call.token.root else sorted(capabilities(rules, path)) for path in asked}
        return _sys_answer({**found, "capabilities": found[asked[0]]} if len(asked) == 1 else dict(found))

    # auth/

    def _login(self, call: _Call) -> _Answer:
        path, mount = self.logins.find(call.path.removeprefix("auth/")) or (None, None)
        assert path is not None  # noqa: S101 - said by the caller
        assert mount is not None  # noqa: S101
        return _Answer(auth=self.tokens.grant(self.logins.login(path, mount, call.data)))

    def _auth(self, call: _Call, path: str) -> _Answer:
        if path.startswith("token/"):
            return self._token(call, path.removeprefix("token/"))
        found = self.logins.find(path)
        if found is None:
            raise VaultError(404, f'no handler for route "{call.path}". route entry not found.')
        mount_path, mount = found
        match path.removeprefix(mount_path).split("/"), call.operation:
            case ["role", name], "update":
                role = mount.roles.get(name) or Role([], 0, 0, str(uuid.uuid4()))
                role.policies = names(call.data.get("token_policies") or call.data.get("policies"))
                role.ttl = seconds(call.data.get("token_ttl")) or role.ttl or DEFAULT_LEASE
                role.max_ttl = seconds(call.data.get("token_max_ttl")) or role.max_ttl
                mount.roles[name] = role
                return _Answer(status=204)
            case ["role", name, "role-id"], "read" if name in mount.roles:
                return _Answer({"role_id": mount.roles[name].role_id}, mount_type="approle")
            case ["role", name, "secret-id"], "update" if name in mount.roles:
                mount.roles[name].secret_ids.add(secret_id := str(uuid.uuid4()))
                handle = {"secret_id_accessor": str(uuid.uuid4()), "secret_id_num_uses": 0, "secret_id_ttl": 0}
                return _Answer({"secret_id": secret_id, **handle}, mount_type="approle")
        raise VaultError(404)

    def _token(self, call: _Call, action: str) -> _Answer:
        token, data = call.token, call.data
        assert token is not None  # noqa: S101 - said by the caller
        match action, call.operation:
            case "lookup-self", "read" | "update":
                return _Answer(self.tokens.describe(token), mount_type="token")
            case "lookup", "update":
                other = self.tokens.find(str(data.get("token") or ""))
                if other is None:
                    raise VaultError(403, "bad token")
                return _Answer(self.tokens.describe(other), mount_type="token")
            case "renew-self", "update":
                renewed = self.tokens.renew(token, seconds(data.get("increment")))
                return _Answer(auth=self.tokens.grant(renewed), mount_type="token")
            case "revoke-self", "update":
                self.tokens.revoke(token.id)
                return _Answer(status=204)
            case "revoke", "update":
                self.tokens.revoke(str(data.get("token") or ""))
                return _Answer(status=204)
            case "create", "update":
                policies = names(data.get("policies")) or list(token.policies)
                default = [] if data.get("no_default_policy") or "root" in policies else ["default"]
                ttl = seconds(data.get("ttl")) or DEFAULT_LEASE
                made = self.tokens.create(
                    sorted({*policies, *default}),
                    ttl=ttl,
                    max_ttl=seconds(data.get("explicit_max_ttl")),
                    renewable=data.get("renewable", True) is not False,
                    meta=data.get("meta"),
                )
                unknown = [each for each in policies if each not in self.policies and each != "root"]
                warnings = [f'Policy "{each}" does not exist' for each in unknown] or None
                return _Answer(auth=self.tokens.grant(made), warnings=warnings, mount_type="token")
        raise VaultError(404, _UNSUPPORTED_PATH)

    # Audit devices.

    async def _audit_device(self, call: _Call) -> _Answer:
        # Enabled last and disabled first: a device sees the response of its enabling and the request of its end.
        if call.operation not in ("update", "delete"):
            raise VaultError(405, _UNSUPPORTED)
        path = call.path.removeprefix("sys/audit/").strip("/") + "/"
        await self._log(call, "request")
        try:
            if call.operation == "update":
                options = {key: str(each) for key, each in (call.data.get("options") or {}).items()}
                kind, description = str(call.data.get("type")), str(call.data.get("description") or "")
                await self.audit.enable(Device(path, kind, description, options), self._test_entry())
            else:
                await self.audit.disable(path)
        except VaultError as error:
            failed = "1 error occurred:\n\t* invalid request\n\n"
            await self._log(call, "response", _Answer({"error": error.errors[0]}), failed)
            raise
        await self._log(call, "response")
        return _Answer(status=204)

    def _audit_hash(self, path: str, data: dict[str, Any]) -> _Answer:
        if path not in self.audit.devices:
            raise VaultError(400, f'unknown audit backend "{path}"')
        return _sys_answer({"hash": self.audit.devices[path].hash(str(data.get("input")))})

    def _test_entry(self) -> dict[str, Any]:
        request = {
            "id": str(uuid.uuid4()),
            "namespace": {"id": "root"},
            "operation": "update",
            "path": "sys/audit/test",
        }
        return {"request": request, "time": rfc3339(self.now()), "type": "request"}

    async def _log(self, call: _Call, kind: str, answer: _Answer | None = None, error: str = "") -> None:
        if not self.audit.devices:
            return
        mount, tuning = self._mount_fields(call.path)
        token = call.token
        identity = {"client_token": call.token_id} if call.token_id else {}
        if token is not None:
            identity |= {"client_id": _client_id(token), "client_token_accessor": token.accessor}
        request: dict[str, Any] = {
            **identity,
            **({"data": call.data} if call.data else {}),
            "headers": {"user-agent": [call.user_agent]},
            "id": call.id,
            **mount,
            "namespace": {"id": "root"},
            "operation": call.operation,
            "path": call.path,
            "remote_address": call.remote[0],
            "remote_port": call.remote[1],
        }
        entry: dict[str, Any] = {
            **({"auth": self._auth_fields(token, refused=error == _DENIED)} if token else {}),
            **({"error": error} if error else {}),
            "request": request,
            "time": rfc3339(self.now()),
            "type": kind,
            "_clear_keys": (
                tuning.get("audit_non_hmac_request_keys", ()),
                tuning.get("audit_non_hmac_response_keys", ()),
            ),
        }
        if answer is not None and answer.status != 204:
            entry["response"] = {
                **({"auth": self._granted(answer.auth)} if answer.auth else {}),
                **({"data": answer.data} if answer.data is not None else {}),
                **mount,
                **({"secret": {}} if answer.lease else {}),
                **({"warnings": answer.warnings} if answer.warnings else {}),
            }
        await self.audit.log(entry)

    def _mount_fields(self, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found = self._find_mount(path)
        if found is not None:
            point, kind, handle, group = found[0], "kv", found[1].accessor, "secret"
        elif path.startswith("sys/"):
            point, kind, handle, group = "sys/", "system", f"system_{self._cluster[:8]}", "secret"
        elif path.startswith("auth/token/"):
            point, kind, handle, group = "auth/token/", "token", f"auth_token_{self._cluster[:8]}", "auth"
        elif path.startswith("auth/") and (login := self.logins.find(path.removeprefix("auth/"))):
            point, kind, handle, group = f"auth/{login[0]}", login[1].kind, login[1].accessor, "auth"
        else:
            return {}, {}
        version = "v0.25.0+builtin" if kind == "kv" else f"v{VERSION}+builtin.vault"
        fields = {
            "mount_accessor": handle,
            "mount_class": group,
            "mount_point": point,
            "mount_running_version": version,
        }
        return {**fields, "mount_type": kind}, found[1].tuning if found else {}

    def _granted(self, auth: dict[str, Any]) -> dict[str, Any]:
        token = self.tokens.find(auth["client_token"])
        fields = self._auth_fields(token, refused=False) if token else {}
        return {key: each for key, each in fields.items() if key not in ("policy_results", "token_issue_time")}

    @staticmethod
    def _auth_fields(token: Token, *, refused: bool) -> dict[str, Any]:
        granting = [{"type": ""}, *({"name": each, "namespace_id": "root", "type": "acl"} for each in token.policies)]
        return {
            "accessor": token.accessor,
            "client_token": token.id,
            "display_name": token.display_name,
            "policies": token.policies,
            "policy_results": {"allowed": False} if refused else {"allowed": True, "granting_policies": granting},
            "token_policies": token.policies,
            "token_issue_time": rfc3339(token.created // _SECOND * _SECOND),
            **({"token_ttl": token.ttl} if token.ttl else {}),
            "token_type": "service",
        }


class _NoBody(VaultError):
    """A PATCH of what is not there: 404 without a word."""


def _or_no_body(act: Callable[[], _Found]) -> _Found:
    try:
        return act()
    except DeletedVersion:
        raise
    except VaultError as error:
        raise error if error.errors else _NoBody(error.status) from None


def _operation(request: web.Request) -> str:
    operation = _OPERATIONS.get(method_of(request), "")
    return "list" if operation == "read" and request.query.get("list") in ("true", "1") else operation


async def _parse(request: web.Request, path: str) -> _Call:
    operation = _operation(request)
    if not operation:
        raise VaultError(405, _UNSUPPORTED)
    data: Any = {}
    if operation in ("update", "patch"):
        if operation == "patch" and request.content_type != "application/merge-patch+json":
            needed = "PATCH requires Content-Type of application/merge-patch+json, provided"
            raise VaultError(415, f"{needed} {request.headers.get('Content-Type', '')}")
        body = await request.read()
        try:
            data = loads(body) if body.strip() else None
        except BadJSON as error:
            if body.lstrip().startswith(b"{"):
                raise
            raise VaultError(400, f"error parsing JSON: failed to parse JSON input: {error}") from None
        data = {} if data is None else data
        if not isinstance(data, dict):
            kind = "array" if isinstance(data, list) else "string"
            reason = f"json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
            raise VaultError(400, f"error parsing JSON: failed to parse JSON input: {reason}")
    bearer = request.headers.get("Authorization", "")
    token = request.headers.get("X-Vault-Token") or (
        bearer.removeprefix("Bearer ") if bearer.startswith("Bearer ") else ""
    )
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return _Call(
        str(uuid.uuid4()),
        operation,
        path,
        dict(request.query),
        data,
        token,
        (peer[0], peer[1]) if peer else ("", 0),
        request.headers.get("User-Agent", ""),
    )


def _respond(answer: _Answer) -> web.Response:
    if answer.status == 204:
        return web.Response(status=204, headers=_HEADERS)
    return _json(answer.data if answer.bare else _envelope(answer), answer.status)


def _envelope(answer: _Answer) -> dict[str, Any]:
    return {
        **(answer.data if answer.beside and answer.data else {}),
        "request_id": str(uuid.uuid4()),
        "lease_id": "",
        "renewable": False,
        "lease_duration": answer.lease,
        "data": answer.data,
        "wrap_info": None,
        "warnings": answer.warnings,
        "auth": answer.auth,
        "mount_type": answer.mount_type,
    }


def _json(document: Any, status: int) -> web.Response:
    return web.Response(status=status, body=(dumps(document) + "\n").encode("utf-8", "replace"), headers=_HEADERS)


def _sys_answer(data: dict[str, Any], *, warnings: list[str] | None = None) -> _Answer:
    return _Answer(data, warnings=warnings, mount_type="system", beside=True)


def _refuse_folder(path: str) -> None:
    if path.endswith("/"):
        raise VaultError(400, "cannot write to a path ending in '/'")


def _version(query: dict[str, str]) -> int:
    text = query.get("version", "0")
    found = number(text)
    if found is None:
        reason = f"cannot parse '' as int: strconv.ParseInt: parsing \"{text}\": invalid syntax"
        raise VaultError(400, f'Field validation failed: error converting input for field "version": {reason}')
    return found


def _versions(data: dict[str, Any], *, none: str = "No version number provided") -> list[int]:
    found = [number(each) for each in names(data.get("versions"))]
    if not found:
        raise VaultError(400, none)
    if None in found:
        raise VaultError(400, 'Field validation failed: error converting input for field "versions": invalid syntax')
    return [each for each in found if each is not None]


def _actor(token: Token | None, operation: str) -> dict[str, Any]:
    who = {"actor": token.display_name if token else "token", "operation": operation}
    entity = {"entity_id": token.entity_id} if token and token.entity_id else {}
    return {**who, **entity, "client_id": _client_id(token)}


def _client_id(token: Token | None) -> str:
    if token and token.entity_id:
        return token.entity_id
    return base64.b64encode(hashlib.sha256(",".join(token.policies if token else ["root"]).encode()).digest()).decode()


def main() -> None:
    """`python -m sandbox.vault`: serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.vault", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one (default)")
    parser.add_argument("--tls", action="store_true", help="https with a certificate made at start")
    parser.add_argument("--root-token", default=ROOT_TOKEN)
    options = parser.parse_args()
    run_forever(VaultSandbox(port=options.port, tls=options.tls, root_token=options.root_token))


if __name__ == "__main__":
    main()
