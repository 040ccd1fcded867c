"""What Vault answers below sys/: mounts, policies, capabilities, login methods, the list of audit devices.

API: https://developer.hashicorp.com/vault/api-docs/system
"""

import base64
import uuid
from typing import Any

from sandbox.vault_acl import BadPolicy, capabilities, reaches
from sandbox.vault_auth import names
from sandbox.vault_calls import UNSUPPORTED, UNSUPPORTED_PATH, Answer, Call, sys_answer
from sandbox.vault_kv import DEFAULT_LEASE, VaultError
from sandbox.vault_state import VaultState

VERSION = "1.21.0"
_SECOND = 1_000_000_000
_BUILT_IN: dict[str, tuple[str, list[str] | None]] = {
    "cubbyhole/": ("per-token private secret storage", None),
    "identity/": ("identity store", ["Authorization"]),
    "sys/": ("system endpoints used for control, policy and debugging", ["Accept"]),
}


def answer_health(state: VaultState, path: str) -> Answer:
    """The three questions that need no token."""
    common = {"initialized": True, "sealed": state.sealed, "version": VERSION, "cluster_id": state.cluster}
    if path == "sys/health":
        standby = {"standby": False, "performance_standby": False, "enterprise": False}
        document = {**common, **standby, "server_time_utc": state.now() // _SECOND, "cluster_name": "vault-sandbox"}
        return Answer(document, bare=True, status=503 if state.sealed else 200)
    if path == "sys/leader":
        return Answer({"ha_enabled": False, "is_self": False, "leader_address": ""}, bare=True)
    shares = {"type": "shamir", "t": 1, "n": 1, "progress": 0, "nonce": "", "migration": False}
    return Answer({**common, **shares, "storage_type": "inmem", "recovery_seal": False}, bare=True)


def answer_sys(state: VaultState, call: Call, path: str) -> Answer:
    """The answer for what follows `sys/`. Raises VaultError."""
    match path.rstrip("/").split("/"):
        case ["mounts"] if call.operation == "read":
            return sys_answer({each: _describe(state, each) for each in sorted(_all_mounts(state))})
        case ["mounts", *rest]:
            return _mount(state, call, "/".join(rest))
        case ["internal", "ui", "mounts", *rest] if call.operation == "read":
            return _ui_mounts(state, call, "/".join(rest))
        case ["remount"] if call.operation == "update":
            return _remount(state, call.data)
        case ["auth", *rest]:
            return _auth(state, call, "/".join(rest))
        case ["policies", "acl", *name]:
            return _policy(state, call, "/".join(name), "policy")
        case ["policy", *name]:
            return _policy(state, call, "/".join(name), "rules")
        case ["policies", *_]:
            raise VaultError(405, UNSUPPORTED)
        case ["capabilities-self"] if call.operation == "update":
            return _capabilities(state, call)
        case ["audit"] if call.operation == "read":
            return sys_answer({path: device.describe() for path, device in state.audit.devices.items()})
        case ["audit-hash", *rest] if call.operation == "update":
            return _audit_hash(state, "/".join(rest) + "/", call.data)
        case ["mounts" | "capabilities-self" | "audit" | "audit-hash" | "remount" | "internal", *_]:
            raise VaultError(405, UNSUPPORTED)
    raise VaultError(404, UNSUPPORTED_PATH)


def _all_mounts(state: VaultState) -> list[str]:
    return [*state.mounts, "cubbyhole/", "identity/", "sys/"]


def _describe(state: VaultState, path: str, *, lease: int = 0) -> dict[str, Any]:
    mount = state.mounts.get(path)
    description, headers = _BUILT_IN.get(path, ("", None))
    config = {"default_lease_ttl": lease, "force_no_cache": False, "max_lease_ttl": lease}
    return {
        "accessor": mount.accessor if mount else f"{path[:-1]}_{state.cluster[:8]}",
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
        "uuid": mount.uuid if mount else str(uuid.uuid5(uuid.NAMESPACE_OID, state.cluster + path)),
    }


def _mount(state: VaultState, call: Call, path: str) -> Answer:
    data = call.data
    if path.endswith("/tune"):
        mount = state.mounts.get(f"{path.removesuffix('/tune')}/")
        if mount is None:
            raise VaultError(400, f"cannot fetch sysview for path {path.removesuffix('tune')!r}")
        if call.operation == "update":
            mount.description = str(data.get("description", mount.description))
            keys = ("audit_non_hmac_request_keys", "audit_non_hmac_response_keys")
            mount.tuning.update({key: names(data[key]) for key in keys if key in data})
            return Answer(status=204)
        lease = {"default_lease_ttl": DEFAULT_LEASE, "max_lease_ttl": DEFAULT_LEASE, "force_no_cache": False}
        options = {"version": str(mount.version)}
        return sys_answer({**lease, **mount.tuning, "description": mount.description, "options": options})
    match call.operation:
        case "read":
            if f"{path}/" not in _all_mounts(state):
                raise VaultError(400, f"No secret engine mount at {path}/")
            return sys_answer(_describe(state, f"{path}/"))
        case "update":
            _enable(state, path, data)
        case "delete":
            state.remove_mount(path)
        case _:
            raise VaultError(405, UNSUPPORTED)
    return Answer(status=204)


def _enable(state: VaultState, path: str, data: dict[str, Any]) -> None:
    kind = data.get("type")
    if not kind:
        raise VaultError(400, "backend type must be specified as a string")
    if kind not in ("kv", "kv-v1", "kv-v2", "generic"):
        raise VaultError(400, f"plugin not found in the catalog: {kind}")
    version = str((data.get("options") or {}).get("version") or ("2" if kind == "kv-v2" else "1"))
    if version not in ("1", "2"):
        raise VaultError(400, 'nil backend of type "kv" returned from factory')
    state.add_mount(path, int(version), description=str(data.get("description") or ""))


def _remount(state: VaultState, data: dict[str, Any]) -> Answer:
    source, target = (f"{str(data.get(key) or '').strip('/')}/" for key in ("from", "to"))
    if source not in state.mounts:
        raise VaultError(400, f'no matching mount at "{source}"')
    if target in state.mounts:
        raise VaultError(400, f"path is already in use at {target}")
    state.mounts[target] = state.mounts.pop(source)
    warning = "Mount move has been queued. Progress will be reported in Vault's server log, tagged with the returned"
    return sys_answer({"migration_id": str(uuid.uuid4())}, warnings=[f"{warning} migration_id"])


def _ui_mounts(state: VaultState, call: Call, path: str) -> Answer:
    assert call.token is not None  # noqa: S101 - said by the caller
    rules = state.rules_of(call.token)
    always = ("cubbyhole/", "identity/", "sys/")
    seen = [each for each in _all_mounts(state) if call.token.root or each in always or reaches(rules, each)]
    if not path:
        secret = {each: _describe(state, each, lease=DEFAULT_LEASE) for each in sorted(seen)}
        return Answer({"auth": {}, "secret": secret})
    found = max((each for each in seen if f"{path}/".startswith(each)), key=len, default=None)
    if found is None:
        reason = "preflight capability check returned 403, please ensure client's policies grant access to path"
        raise VaultError(403, f'{reason} "{path}/"')
    return Answer({**_describe(state, found, lease=DEFAULT_LEASE), "path": found})


def _auth(state: VaultState, call: Call, path: str) -> Answer:
    described = {
        each: {"accessor": mount.accessor, "type": mount.kind, "description": "", "options": {}, "uuid": mount.uuid}
        for each, mount in sorted(state.logins.mounts.items())
    }
    match call.operation:
        case "read" if not path:
            return sys_answer({**described, "token/": {"type": "token", "description": "token based credentials"}})
        case "read" if f"{path}/" in described:
            return sys_answer(described[f"{path}/"])
        case "read":
            raise VaultError(400, f"No auth engine at {path}/")
        case "update":
            state.logins.enable(path, str(call.data.get("type")))
        case "delete":
            state.logins.mounts.pop(f"{path}/", None)
        case _:
            raise VaultError(405, UNSUPPORTED)
    return Answer(status=204)


def _policy(state: VaultState, call: Call, name: str, field_name: str) -> Answer:
    legacy = field_name == "rules"
    if not name:
        if call.operation != "list" and not (legacy and call.operation == "read"):
            raise VaultError(405, UNSUPPORTED)
        keys = sorted([*state.policies, "root"])
        listing: dict[str, Any] = {"keys": keys, "policies": keys} if legacy else {"keys": keys}
        return Answer(listing, mount_type="system", beside=legacy)
    lower = name.lower()
    match call.operation:
        case "read":
            text = "" if lower == "root" else state.policies.get(lower)
            if text is None:
                raise VaultError(404)
            return Answer({"name": lower, field_name: text}, mount_type="system", beside=legacy)
        case "update":
            return _write_policy(state, name, call.data, legacy=legacy)
        case "delete":
            if lower in ("default", "root"):
                raise VaultError(
                    400, 'cannot delete "root" policy' if lower == "root" else "cannot delete default policy"
                )
            state.policies.pop(lower, None)
            state.rules.pop(lower, None)
            return Answer(status=204)
    raise VaultError(405, UNSUPPORTED)


def _write_policy(state: VaultState, name: str, data: dict[str, Any], *, legacy: bool) -> Answer:
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
        state.set_policy(name, text)
    except BadPolicy as error:
        raise VaultError(400, f"failed to parse policy: {error}") from None
    warnings = []
    if legacy and not data.get("policy"):
        warnings.append("'rules' is deprecated, please use 'policy' instead")
    if name != name.lower():
        warnings.append(f"policy name was converted to {name.lower()}")
    return Answer(warnings=warnings, mount_type="system") if warnings else Answer(status=204)


def _capabilities(state: VaultState, call: Call) -> Answer:
    assert call.token is not None  # noqa: S101 - said by the caller
    asked = names(call.data.get("paths") or call.data.get("path"))
    if not asked:
        raise VaultError(400, "1 error occurred:\n\t* paths was not supplied\n\n")
    rules = state.rules_of(call.token)
    found = {path: ["root"] if call.token.root else sorted(capabilities(rules, path)) for path in asked}
    return sys_answer({**found, "capabilities": found[asked[0]]} if len(asked) == 1 else dict(found))


def _audit_hash(state: VaultState, path: str, data: dict[str, Any]) -> Answer:
    if path not in state.audit.devices:
        raise VaultError(400, f'unknown audit backend "{path}"')
    return sys_answer({"hash": state.audit.devices[path].hash(str(data.get("input")))})
