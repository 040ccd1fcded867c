"""What Vault answers below auth/: logins, the tokens' own calls, AppRole's roles.

API: https://developer.hashicorp.com/vault/api-docs/auth
"""

import uuid

from sandbox.vault_auth import Role, names, seconds
from sandbox.vault_calls import UNSUPPORTED_PATH, Answer, Call
from sandbox.vault_kv import DEFAULT_LEASE, VaultError
from sandbox.vault_state import VaultState


def answer_login(state: VaultState, call: Call) -> Answer:
    """A token for who shows what the role asks for; no token is needed to ask."""
    path, mount = state.logins.find(call.path.removeprefix("auth/")) or (None, None)
    assert path is not None  # noqa: S101 - said by the caller
    assert mount is not None  # noqa: S101
    return Answer(auth=state.tokens.grant(state.logins.login(path, mount, call.data)))


def answer_auth(state: VaultState, call: Call, path: str) -> Answer:
    """The answer for what follows `auth/`. Raises VaultError."""
    if path.startswith("token/"):
        return _token(state, call, path.removeprefix("token/"))
    found = state.logins.find(path)
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
            return Answer(status=204)
        case ["role", name, "role-id"], "read" if name in mount.roles:
            return Answer({"role_id": mount.roles[name].role_id}, mount_type="approle")
        case ["role", name, "secret-id"], "update" if name in mount.roles:
            mount.roles[name].secret_ids.add(secret_id := str(uuid.uuid4()))
            handle = {"secret_id_accessor": str(uuid.uuid4()), "secret_id_num_uses": 0, "secret_id_ttl": 0}
            return Answer({"secret_id": secret_id, **handle}, mount_type="approle")
    raise VaultError(404)


def _token(state: VaultState, call: Call, action: str) -> Answer:
    token, data = call.token, call.data
    assert token is not None  # noqa: S101 - said by the caller
    match action, call.operation:
        case "lookup-self", "read" | "update":
            return Answer(state.tokens.describe(token), mount_type="token")
        case "lookup", "update":
            other = state.tokens.find(str(data.get("token") or ""))
            if other is None:
                raise VaultError(403, "bad token")
            return Answer(state.tokens.describe(other), mount_type="token")
        case "renew-self", "update":
            renewed = state.tokens.renew(token, seconds(data.get("increment")))
            return Answer(auth=state.tokens.grant(renewed), mount_type="token")
        case "revoke-self", "update":
            state.tokens.revoke(token.id)
            return Answer(status=204)
        case "revoke", "update":
            state.tokens.revoke(str(data.get("token") or ""))
            return Answer(status=204)
        case "create", "update":
            policies = names(data.get("policies")) or list(token.policies)
            default = [] if data.get("no_default_policy") or "root" in policies else ["default"]
            ttl = seconds(data.get("ttl")) or DEFAULT_LEASE
            made = state.tokens.create(
                sorted({*policies, *default}),
                ttl=ttl,
                max_ttl=seconds(data.get("explicit_max_ttl")),
                renewable=data.get("renewable", True) is not False,
                meta=data.get("meta"),
            )
            unknown = [each for each in policies if each not in state.policies and each != "root"]
            warnings = [f'Policy "{each}" does not exist' for each in unknown] or None
            return Answer(auth=state.tokens.grant(made), warnings=warnings, mount_type="token")
    raise VaultError(404, UNSUPPORTED_PATH)
