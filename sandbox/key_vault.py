"""An Azure Key Vault that the official clients cannot tell from a real one: secrets over TLS, version 7.0 and later.

Written from https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups. Backup and restore are left out.
One server is one vault. `python -m sandbox.key_vault --port N` runs it with its own source of tokens beside it.
"""

import argparse
import asyncio
import base64
import binascii
import json
import math
import re
import signal
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from email.utils import formatdate
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from aiohttp import web

from sandbox.entra import EntraServer, InvalidTokenError, ManagedIdentityServer, TokenAuthority
from sandbox.key_vault_secrets import (
    RECOVERABLE_DAYS,
    Clock,
    KeyVaultError,
    Phase,
    Secrets,
    SecretVersion,
    StoredSecret,
)
from sandbox.server import SandboxServer

PAGE_SIZE = 25
_API_VERSION = re.compile(r"7\.\d+(-preview\.\d+)?|20(16-10-01|2[5-9]-\d\d-\d\d)")
# The permission that the REST reference names for each operation, and the data action that RBAC calls it by.
_PERMISSIONS = {
    "list": ("list", "readMetadata/action"),
    "list_versions": ("list", "readMetadata/action"),
    "list_deleted": ("list", "readMetadata/action"),
    "get": ("get", "getSecret/action"),
    "get_deleted": ("get", "readMetadata/action"),
    "set": ("set", "setSecret/action"),
    "update": ("set", "update/action"),
    "delete": ("delete", "delete"),
    "recover": ("recover", "recover/action"),
    "purge": ("purge", "purge/action"),
}
EVERY_PERMISSION = frozenset({"get", "list", "set", "delete", "recover", "purge"})
_Item = TypeVar("_Item")


class KeyVaultServer(SandboxServer):
    """One vault. Its `url` is what a client takes as vault_url, with verify_challenge_resource=False.

    Counted operations: list, get, set, delete, recover, list_versions, update, get_deleted, purge, list_deleted,
    "challenge" for a request without a token, and "other". The path that is logged, and that faults match, is the name
    of the secret as it was sent, "" for listings.

    What tests may change at any time: `permissions`; `clock`; `secrets.delete_steps` and `secrets.recover_steps`;
    `create_limit` and `other_limit`, the requests allowed in any 10 seconds of the clock
    (https://learn.microsoft.com/azure/key-vault/general/service-limits).
    """

    def __init__(self, authority: TokenAuthority | None = None, *, port: int = 0) -> None:
        super().__init__(port=port, tls=True)
        self.authority = authority or TokenAuthority()
        self.clock = Clock()
        self.secrets = Secrets(self.clock)
        self.permissions: Iterable[str] = EVERY_PERMISSION
        self.create_limit = 300
        self.other_limit = 4_000
        self._creates: deque[float] = deque()
        self._others: deque[float] = deque()

    # What tests do behind the service's back: no permission, no limit, no delay, nothing counted.

    def put(
        self,
        name: str,
        value: str,
        *,
        content_type: str | None = None,
        tags: Mapping[str, str] | None = None,
        enabled: bool = True,
        expires: int | None = None,
        not_before: int | None = None,
        managed: bool = False,
    ) -> SecretVersion:
        """Adds a version; `managed` makes the secret belong to a certificate. Raises KeyVaultError as the service."""
        attributes = {"enabled": enabled, "exp": expires, "nbf": not_before}
        body = {"value": value, "contentType": content_type, "tags": tags and dict(tags), "attributes": attributes}
        stored, version = self.secrets.set(name, body)
        stored.managed = managed
        return version

    def get(self, name: str) -> SecretVersion | None:
        """The current version of a secret that is not deleted, disabled ones included, or None."""
        stored = self.secrets.stored(name)
        return stored.current if stored is not None and stored.phase is Phase.ACTIVE else None

    def names(self) -> list[str]:
        """The names of the secrets that are not deleted, sorted."""
        return [stored.name for stored in self.secrets.list_secrets()]

    def versions(self, name: str) -> list[SecretVersion]:
        """All versions kept under a name, deleted or not, oldest first."""
        stored = self.secrets.stored(name)
        return list(stored.versions.values()) if stored is not None else []

    def delete(self, name: str) -> None:
        """Soft-deletes at once. Raises KeyVaultError when there is no such secret."""
        self.secrets.delete(name)
        self.secrets.settle()

    def disable(self, name: str) -> None:
        """Disables the current version."""
        self.secrets.update(name, "", {"attributes": {"enabled": False}})

    def age(self, seconds: int, name: str | None = None) -> None:
        """Makes the versions of one secret, or of all, older by so many seconds."""
        for stored in self.secrets.all():
            if name is None or stored.name.lower() == name.lower():
                for key, version in stored.versions.items():
                    older = replace(version, created=version.created - seconds, updated=version.updated - seconds)
                    stored.versions[key] = older

    # The protocol.

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/{anything:.*}", self._answer)

    def classify(self, request: web.Request) -> tuple[str, str]:
        operation, name, _ = _operation(request)
        return (operation if _bearer(request) else "challenge"), name

    def error_answer(self, status: int, message: str) -> web.Response:
        code = {429: "Throttled", 403: "Forbidden", 401: "Unauthorized"}.get(status, "ServiceError")
        return self._error(KeyVaultError(status, code, message))

    async def _answer(self, request: web.Request) -> web.Response:
        operation, name, version_id = _operation(request)
        try:
            claims = self.authority.check(_bearer(request))
        except InvalidTokenError as error:
            return self._challenge("" if not _bearer(request) else str(error))
        try:
            self._throttle(operation)
            _check_api_version(request)
            self._authorize(operation, name, claims)
            document = self._perform(request, operation, name, version_id, await _json_object(request))
        except KeyVaultError as error:
            return self._error(error)
        if document is None:
            return web.Response(status=204, headers=self._headers())
        return web.json_response(document, headers=self._headers())

    def _perform(
        self, request: web.Request, operation: str, name: str, version_id: str, body: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        match operation:
            case "list":
                return self._page(request, self.secrets.list_secrets(), lambda stored: stored.name.lower(), self._item)
            case "list_deleted":
                deleted = self.secrets.list_deleted()
                return self._page(request, deleted, lambda stored: stored.name.lower(), self._deleted_item)
            case "list_versions":
                stored, versions = self.secrets.list_versions(name)
                return self._page(request, versions, lambda v: v.id, lambda v: self._version_item(stored, v))
            case "get":
                return self._bundle(*self.secrets.get(name, version_id))
            case "set":
                return self._bundle(*self.secrets.set(name, body))
            case "update":
                return self._without_value(*self.secrets.update(name, version_id, body))
            case "delete":
                return self._deleted_bundle(self.secrets.delete(name))
            case "get_deleted":
                return self._deleted_bundle(self.secrets.get_deleted(name))
            case "recover":
                recovered = self.secrets.recover(name)
                return self._without_value(recovered, recovered.current)
            case "purge":
                self.secrets.purge(name)
                return None
        raise KeyVaultError(405, "MethodNotAllowed", "The sandbox's Key Vault does not do this.")

    def _throttle(self, operation: str) -> None:
        limit, recent = (self.create_limit, self._creates) if operation == "set" else (self.other_limit, self._others)
        now = self.clock()
        # The comparison with `now` keeps a clock that a test moved backwards from throttling for ever.
        while recent and not now - 10 < recent[0] <= now:
            recent.popleft()
        if len(recent) >= limit:
            wait = recent[0] + 10 - now if recent else 10
            raise _ThrottledError(max(1, math.ceil(wait)))
        recent.append(now)

    def _authorize(self, operation: str, name: str, claims: Mapping[str, Any]) -> None:
        permission, action = _PERMISSIONS.get(operation, ("", ""))
        if not permission or permission in self.permissions:
            return
        message = (
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role "
            "definitions were changed recently, please observe propagation time.\r\n"
            f"Caller: appid={claims['appid']};oid={claims['oid']};iss={claims['iss']}\r\n"
            f"Action: 'Microsoft.KeyVault/vaults/secrets/{action}'\r\nResource: '/secrets/{name.lower()}'\r\n"
            "Assignment: (not found)\r\n"
        )
        raise KeyVaultError(403, "Forbidden", message, inner="ForbiddenByRbac")

    def _page(
        self,
        request: web.Request,
        items: Sequence[_Item],
        key: Callable[[_Item], str],
        render: Callable[[_Item], dict[str, Any]],
    ) -> dict[str, Any]:
        size = _page_size(request)
        after = _read_skip_token(request.query.get("$skiptoken"))
        left = [item for item in items if after is None or key(item) > after]
        next_link = None
        if len(left) > size:
            token = _skip_token(key(left[size - 1]))
            version = request.query["api-version"]
            next_link = f"{self.url}{request.path}?api-version={version}&$skiptoken={quote(token)}&maxresults={size}"
        return {"value": [render(item) for item in left[:size]], "nextLink": next_link}

    def _challenge(self, description: str) -> web.Response:
        message = description or "AKV10000: Request is missing a Bearer or PoP token."
        answer = self._error(KeyVaultError(401, "Unauthorized", message))
        parameters = [
            f'authorization="https://login.microsoftonline.com/{self.authority.tenant_id}"',
            'resource="https://vault.azure.net"',
        ]
        if description:
            # The clients split the parameters at commas and equals signs.
            parameters += ['error="invalid_token"', f'error_description="{re.sub("[,=]", "", description)}"']
        answer.headers["WWW-Authenticate"] = "Bearer " + ", ".join(parameters)
        return answer

    def _error(self, error: KeyVaultError) -> web.Response:
        document: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.inner is not None:
            document["innererror"] = {"code": error.inner}
        answer = web.json_response({"error": document}, status=error.status, headers=self._headers())
        if isinstance(error, _ThrottledError):
            answer.headers["Retry-After"] = str(error.retry_after)
        return answer

    def _headers(self) -> dict[str, str]:
        return {
            "Date": formatdate(self.clock(), usegmt=True),
            "Cache-Control": "no-cache",
            "x-ms-request-id": str(uuid.uuid4()),
            "x-ms-keyvault-region": "sandbox",
        }

    # Documents.

    def _bundle(self, stored: StoredSecret, version: SecretVersion) -> dict[str, Any]:
        return {"value": version.value, **self._without_value(stored, version)}

    def _without_value(self, stored: StoredSecret, version: SecretVersion) -> dict[str, Any]:
        kid = {"kid": f"{self.url}/keys/{stored.name}/{version.id}"} if stored.managed else {}
        return {**self._version_item(stored, version), **kid}

    def _version_item(self, stored: StoredSecret, version: SecretVersion) -> dict[str, Any]:
        return {**_properties(stored, version), "id": f"{self.url}/secrets/{stored.name}/{version.id}"}

    def _item(self, stored: StoredSecret) -> dict[str, Any]:
        return {**_properties(stored, stored.current), "id": f"{self.url}/secrets/{stored.name}"}

    def _deleted_item(self, stored: StoredSecret) -> dict[str, Any]:
        return {**self._deletion(stored), **self._item(stored)}

    def _deleted_bundle(self, stored: StoredSecret) -> dict[str, Any]:
        return {**self._deletion(stored), **self._without_value(stored, stored.current)}

    def _deletion(self, stored: StoredSecret) -> dict[str, Any]:
        return {
            "recoveryId": f"{self.url}/deletedsecrets/{stored.name}",
            "deletedDate": stored.deleted,
            "scheduledPurgeDate": stored.scheduled_purge,
        }


class _ThrottledError(KeyVaultError):
    def __init__(self, retry_after: int) -> None:
        message = (
            "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached"
        )
        super().__init__(429, "Throttled", message)
        self.retry_after = retry_after


def _operation(request: web.Request) -> tuple[str, str, str]:
    """(operation, name, version) of a request, decoded by segments: an encoded slash stays in its name."""
    parts = [unquote(part) for part in request.rel_url.raw_path.split("/") if part]
    match request.method, parts:
        case "GET", ["secrets"]:
            return "list", "", ""
        case "GET", ["deletedsecrets"]:
            return "list_deleted", "", ""
        case "GET", ["secrets", name, "versions"]:
            return "list_versions", name, ""
        case "GET", ["secrets", name, *version] if len(version) < 2:
            return "get", name, "".join(version)
        case "PUT", ["secrets", name]:
            return "set", name, ""
        case "PATCH", ["secrets", name, *version] if len(version) < 2:
            return "update", name, "".join(version)
        case "DELETE", ["secrets", name]:
            return "delete", name, ""
        case "GET", ["deletedsecrets", name]:
            return "get_deleted", name, ""
        case "DELETE", ["deletedsecrets", name]:
            return "purge", name, ""
        case "POST", ["deletedsecrets", name, "recover"]:
            return "recover", name, ""
    return "other", "", ""


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _check_api_version(request: web.Request) -> None:
    version = request.query.get("api-version")
    if not version:
        raise KeyVaultError(400, "BadParameter", "api-version must be specified")
    if not _API_VERSION.fullmatch(version):
        raise KeyVaultError(400, "BadParameter", f"The specified version ({version}) is not recognized.")


async def _json_object(request: web.Request) -> Mapping[str, Any]:
    if request.method not in ("PUT", "PATCH"):
        return {}
    try:
        document = json.loads(await request.read())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise KeyVaultError(400, "BadParameter", "The request body is not a valid JSON object.")
    return document


def _page_size(request: web.Request) -> int:
    text = request.query.get("maxresults", str(PAGE_SIZE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= PAGE_SIZE:
        raise KeyVaultError(400, "BadParameter", f"maxresults must be between 1 and {PAGE_SIZE}.")
    return int(text)


def _skip_token(after: str) -> str:
    return base64.urlsafe_b64encode(f"after!{after}".encode()).decode()


def _read_skip_token(token: str | None) -> str | None:
    if token is None:
        return None
    try:
        mark, _, after = base64.urlsafe_b64decode(token).decode().partition("!")
    except (binascii.Error, ValueError):
        mark, after = "", ""
    if mark != "after":
        raise KeyVaultError(400, "BadParameter", "The skip token is invalid.")
    return after


def _properties(stored: StoredSecret, version: SecretVersion) -> dict[str, Any]:
    attributes = {
        "enabled": version.enabled,
        "nbf": version.not_before,
        "exp": version.expires,
        "created": version.created,
        "updated": version.updated,
        "recoveryLevel": "Recoverable+Purgeable",
        "recoverableDays": RECOVERABLE_DAYS,
    }
    properties = {
        "attributes": {key: value for key, value in attributes.items() if value is not None},
        "contentType": version.content_type,
        "tags": None if version.tags is None else dict(version.tags),
        "managed": True if stored.managed else None,
    }
    return {key: value for key, value in properties.items() if value is not None}


async def _serve(port: int) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    authority = TokenAuthority()
    async with (
        KeyVaultServer(authority, port=port) as vault,
        EntraServer(authority) as entra,
        ManagedIdentityServer(authority) as identity,
    ):
        ready = {
            "url": vault.url,
            "ca_bundle": str(vault.ca_bundle),
            "environment": identity.environment,
            "authority": entra.url,
            "authority_ca_bundle": str(entra.ca_bundle),
            "tenant_id": authority.tenant_id,
            "client_id": authority.client_id,
            "client_secret": authority.client_secret,
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Serves one vault and the sources of its tokens until SIGINT or SIGTERM; prints a line of JSON when it listens."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.key_vault", description="A throw-away Azure Key Vault.")
    parser.add_argument("--port", type=int, default=0, help="the vault's port; 0 picks a free one")
    asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
