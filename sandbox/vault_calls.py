"""A request to Vault taken apart, and an answer put together: the HTTP side of the sandbox's Vault."""

import base64
import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from sandbox.server import method_of
from sandbox.vault_auth import Token, seconds
from sandbox.vault_json import BadJSON, dumps, loads
from sandbox.vault_kv import DeletedVersion, VaultError

UNSUPPORTED = "1 error occurred:\n\t* unsupported operation\n\n"
UNSUPPORTED_PATH = "1 error occurred:\n\t* unsupported path\n\n"
_OPERATIONS = {"GET": "read", "LIST": "list", "POST": "update", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}
_Found = TypeVar("_Found")


@dataclass(slots=True)
class Call:
    """One request, taken apart."""

    id: str
    operation: str
    path: str
    query: dict[str, str]
    data: dict[str, Any]
    token_id: str
    remote: tuple[str, int]
    user_agent: str
    wrap_ttl: int = 0
    token: Token | None = None


@dataclass(slots=True)
class Answer:
    """A success: what goes into the envelope."""

    data: dict[str, Any] | None = None
    auth: dict[str, Any] | None = None
    warnings: list[str] | None = None
    lease: int = 0
    mount_type: str = ""
    beside: bool = False  # sys/ answers of old repeat their data beside the envelope
    bare: bool = False  # no envelope at all
    wrap_info: dict[str, Any] | None = None  # in place of everything else: the answer waits under a token of its own
    status: int = 200


class InvalidPath(VaultError):
    """A path that a KV v2 mount knows nothing about."""

    def __init__(self, command: str) -> None:
        super().__init__(404)
        self.warning = (
            "Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to "
            f"use. If using the Vault CLI, use 'vault kv {command}' for this operation."
        )


class NoBody(VaultError):
    """A PATCH of what is not there: 404 without a word."""


def or_no_body(act: Callable[[], _Found]) -> _Found:
    """What `act` finds; a bare 404 of its becomes one without a body."""
    try:
        return act()
    except DeletedVersion:
        raise
    except VaultError as error:
        raise error if error.errors else NoBody(error.status) from None


def operation_of(request: web.Request) -> str:
    """Vault's word for what is asked, "" for a method that it does not know. A create is still an update here."""
    operation = _OPERATIONS.get(method_of(request), "")
    return "list" if operation == "read" and request.query.get("list") in ("true", "1") else operation


async def parse(request: web.Request, path: str) -> Call:
    """The request without its envelope. Raises VaultError, BadJSON."""
    operation = operation_of(request)
    if not operation:
        raise VaultError(405, UNSUPPORTED)
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
    return Call(
        str(uuid.uuid4()),
        operation,
        path,
        dict(request.query),
        data,
        token,
        (peer[0], peer[1]) if peer else ("", 0),
        request.headers.get("User-Agent", ""),
        seconds(request.headers.get("X-Vault-Wrap-TTL")),
    )


def respond(answer: Answer) -> web.Response:
    """A success as HTTP."""
    if answer.status == 204:
        return empty_answer(204)
    return json_answer(answer.data if answer.bare else envelope(answer), answer.status)


def envelope(answer: Answer) -> dict[str, Any]:
    """The document that Vault wraps every answer in."""
    return {
        **(answer.data if answer.beside and answer.data else {}),
        "request_id": "" if answer.wrap_info else str(uuid.uuid4()),
        "lease_id": "",
        "renewable": False,
        "lease_duration": answer.lease,
        "data": answer.data,
        "wrap_info": answer.wrap_info,
        "warnings": answer.warnings,
        "auth": answer.auth,
        "mount_type": answer.mount_type,
    }


def empty_answer(status: int) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status, headers=_HEADERS)


def json_answer(document: Any, status: int) -> web.Response:
    """Any document as HTTP, numbers as they were kept."""
    return web.Response(status=status, body=(dumps(document) + "\n").encode("utf-8", "replace"), headers=_HEADERS)


def sys_answer(data: dict[str, Any], *, warnings: list[str] | None = None) -> Answer:
    """An answer of the system mount, in its old double shape."""
    return Answer(data, warnings=warnings, mount_type="system", beside=True)


def actor(token: Token | None, operation: str) -> dict[str, Any]:
    """Who did what, as a secret's metadata keeps it."""
    who = {"actor": token.display_name if token else "token", "operation": operation}
    entity = {"entity_id": token.entity_id} if token and token.entity_id else {}
    return {**who, **entity, "client_id": client_id(token)}


def client_id(token: Token | None) -> str:
    """The id that Vault bills a token's owner under: the entity, else a digest of the policies."""
    if token and token.entity_id:
        return token.entity_id
    return base64.b64encode(hashlib.sha256(",".join(token.policies if token else ["root"]).encode()).digest()).decode()
