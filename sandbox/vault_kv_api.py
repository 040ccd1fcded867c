"""What a request to a key/value mount is answered: paths and bodies in, the engines of `vault_kv` underneath.

API: https://developer.hashicorp.com/vault/api-docs/secret/kv
"""

from typing import Any

from sandbox.vault_auth import names
from sandbox.vault_calls import UNSUPPORTED, Answer, Call, InvalidPath, actor, or_no_body
from sandbox.vault_json import number
from sandbox.vault_kv import ANY, DeletedVersion, KvV1, KvV2, VaultError
from sandbox.vault_state import VaultState


def answer_kv(state: VaultState, call: Call) -> Answer:
    """The answer for a path that is neither under sys/ nor under auth/. Raises VaultError."""
    found = state.find_mount(call.path)
    if found is None:
        raise VaultError(404, f'no handler for route "{call.path}". route entry not found.')
    engine, rest = found[1].engine, call.path.removeprefix(found[0].rstrip("/")).removeprefix("/")
    return _v1(call, engine, rest) if isinstance(engine, KvV1) else _v2(call, engine, rest)


def _v1(call: Call, engine: KvV1, path: str) -> Answer:
    match call.operation:
        case "list":
            return Answer({"keys": engine.paths.list(path)}, mount_type="kv")
        case "read":
            return Answer(engine.read(path), lease=engine.lease(path), mount_type="kv")
        case "create" | "update":
            _refuse_folder(path)
            engine.write(path, call.data)
            return Answer(status=204)
        case "delete":
            engine.delete(path)
            return Answer(status=204)
    raise VaultError(405, UNSUPPORTED)


def _v2(call: Call, engine: KvV2, rest: str) -> Answer:
    part, _, path = rest.partition("/")
    by = actor(call.token, call.operation if part == "data" else part)
    writing = call.operation in ("create", "update")
    match part, call.operation:
        case "data", "create" | "update" | "patch" if not writing or not path.endswith("/"):
            if not path:
                _refuse_folder("/")
            return _v2_write(call, engine, path, by)
        case "data", "read" if path and not path.endswith("/"):
            return Answer(engine.read(path, _version(call.query)), mount_type="kv")
        case "data", "delete" if path and not path.endswith("/"):
            engine.soft_delete(path, by=by)
            return Answer(status=204)
        case "metadata", "list":
            return Answer({"keys": engine.paths.list(path)}, mount_type="kv")
        case "metadata", "read":
            return Answer(engine.metadata(path), mount_type="kv")
        case "metadata", "create" | "update":
            _refuse_folder(path)
            engine.write_metadata(path, call.data)
        case "metadata", "patch":
            or_no_body(lambda: engine.patch_metadata(path, call.data))
        case "metadata", "delete":
            engine.delete_metadata(path)
        case "delete", "update":
            engine.soft_delete(path, _versions(call.data), by=actor(call.token, call.operation))
        case "undelete", "update":
            engine.undelete(path, _versions(call.data), by=by)
        case "destroy", "update":
            engine.destroy(path, _versions(call.data, none="no version number provided"))
        case "config", "read" if not path:
            return Answer(engine.config(), mount_type="kv")
        case "config", "update" if not path:
            engine.write_config(call.data)
        case _ if writing and rest.endswith("/"):
            _refuse_folder(rest)
        case _:
            command = {"read": "get", "list": "list", "delete": "delete", "patch": "patch"}
            raise InvalidPath(command.get(call.operation, "put"))
    return Answer(status=204)


def _v2_write(call: Call, engine: KvV2, path: str, by: dict[str, Any]) -> Answer:
    if "data" not in call.data:
        raise VaultError(400, "no data provided")
    data = call.data["data"]
    if data is not None and not isinstance(data, dict):
        raise VaultError(400, "error converting input for field \"data\": '' expected a map, got 'string'")
    options = call.data.get("options")
    cas = options["cas"] if isinstance(options, dict) and "cas" in options else ANY
    if call.operation != "patch":
        return Answer(engine.write(path, data, cas=cas, by=by), mount_type="kv")
    try:
        return Answer(or_no_body(lambda: engine.patch(path, data or {}, cas=cas, by=by)), mount_type="kv")
    except DeletedVersion as gone:
        gone.data = gone.metadata
        raise


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
