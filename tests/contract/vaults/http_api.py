"""Four APIs by configuration: one with ETags and fields, one that holds one text, the sandbox's Vault and Key Vault."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from sandbox.entra import EntraServer
from sandbox.faults import Fault, FaultKind
from sandbox.http_apis import AnyApi
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from shared.onestring import CONTENT_TYPE, pack, unpack
from shared.vault import Vault
from shared.vaults.http_api import Settings, connect
from tests.contract.vaults.harness import Harness, Operation

TOLD = {"version": "version", "updated_at": "updated_at"}
ETAG: dict[str, Any] = {
    "list": {
        "path": "/secrets",
        "items": "data",
        "name": "name",
        "version": "etag",
        "updated_at": "updated_at",
        "pages": {"type": "cursor", "next": "next"},
    },
    "get": {"path": "/secrets/{name}", "fields": "fields", "etag": True, "updated_at": "updated_at"},
    "set": {
        "path": "/secrets/{name}",
        "body": {"fields": "{fields}"},
        "etag": True,
        "updated_at": "updated_at",
    },
    "delete": {"path": "/secrets/{name}", "etag": True},
}
TEXT: dict[str, Any] = {
    "list": {"path": "/secrets", "items": "data", "name": "name", "pages": {"type": "page"}},
    "get": {"path": "/secrets/{name}", "value": "fields.value", "content_type": "content_type"},
    "set": {
        "method": "PATCH",
        "path": "/secrets/{name}",
        "body": {"fields": {"value": "{value}"}, "content_type": "{content_type}"},
    },
    "create": {
        "path": "/secrets",
        "body": {"name": "{name}", "fields": {"value": "{value}"}, "content_type": "{content_type}"},
    },
    "delete": {"path": "/secrets/{name}"},
}


class OverHttp(Harness):
    """What the four have in common."""

    def __init__(self, server: Any) -> None:
        super().__init__()
        self._server = server

    async def start(self) -> None:
        await self._server.start()
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        await super().stop()
        await self._server.close()

    def settings(self, *, credentials: bool, container: bool) -> dict[str, Any]:
        raise NotImplementedError

    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        given = self.settings(credentials=credentials, container=container)
        return self.hasty(connect("legacy", Settings(kind="http_api", timeout=30.0 if patient else 0.3, **given)))

    def calls(self) -> int:
        return int(self._server.calls.total())

    async def unplug(self) -> None:
        await self._server.close()

    def misbehave(
        self,
        kind: FaultKind,
        operation: Operation,
        *,
        times: int | None = 1,
        skip: int = 0,
        status: int = 503,
        retry_after: float | None = None,
    ) -> None:
        self._server.faults.add(
            Fault(kind, operation=operation, times=times, skip=skip, status=status, retry_after=retry_after)
        )


class _OnAnyApi(OverHttp):
    operations: dict[str, Any]
    names: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__(AnyApi())

    def settings(self, *, credentials: bool, container: bool) -> dict[str, Any]:
        return {
            "base_url": f"{self._server.url}/{'v1' if container else 'v0'}",
            "auth": {"type": "bearer", "token": self._server.token if credentials else "wrong"},
            "operations": self.operations,
            "names": self.names,
        }

    async def wipe(self, name: str) -> None:
        del self._server.secrets[name]


class WithEtags(_OnAnyApi):
    operations = ETAG
    traits = frozenset({"fingerprints", "listed", "compare-and-set", "folders", "write-answers", "faults"})

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        self._server.put(name, fields)

    async def look(self, name: str) -> dict[str, Any] | None:
        found = self._server.secrets.get(name)
        return None if found is None else dict(found["fields"])


class WithOneText(_OnAnyApi):
    operations = TEXT
    names = {"allowed": "[A-Za-z0-9_]", "replacement": "_", "max_length": 200}
    traits = frozenset({"faults"})

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        text, mark = pack(fields)
        self._server.put(name, {"value": text}, mark)

    async def look(self, name: str) -> dict[str, Any] | None:
        found = self._server.secrets.get(name)
        if found is None:
            return None
        assert found["content_type"] in (None, CONTENT_TYPE)
        return dict(unpack(found["fields"]["value"], found["content_type"]))


VERSION = "join('@', [to_string({0}.version), {0}.created_time])"


class SandboxVault(OverHttp):
    """KV version 2 of the sandbox's Vault: https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2"""

    traits = frozenset({"fingerprints", "folders", "write-answers", "faults"})

    def __init__(self) -> None:
        super().__init__(VaultSandbox())
        self._mount = f"kv-{secrets.token_hex(4)}"

    async def start(self) -> None:
        await self._server.start()
        await self._request("POST", f"sys/mounts/{self._mount}", {"type": "kv", "options": {"version": "2"}})
        self._server.reset_calls()
        self.vault = self.connect()
        await self.vault.open()

    def settings(self, *, credentials: bool, container: bool) -> dict[str, Any]:
        mount = self._mount if container else "nowhere"
        token = self._server.root_token if credentials else "hvs.wrong"
        return {
            "base_url": f"{self._server.url}/v1/{mount}",
            "auth": {"type": "headers", "headers": {"X-Vault-Token": token}},
            "names": {"allowed": "[ -~À-ž]"},
            "operations": {
                "list": {
                    "method": "LIST",
                    "path": "/metadata/{prefix|path}",
                    "items": "data.keys",
                    "tree": True,
                    "empty": "errors == `[]`",
                },
                "get": {
                    "path": "/data/{name|path}",
                    "fields": "data.data",
                    "version": VERSION.format("data.metadata"),
                    "updated_at": "data.metadata.created_time",
                    "absent": "errors == `[]` || data.metadata",
                },
                "set": {
                    "method": "POST",
                    "path": "/data/{name|path}",
                    "body": {"data": "{fields}"},
                    "version": VERSION.format("data"),
                    "updated_at": "data.created_time",
                },
                "delete": {"path": "/metadata/{name|path}", "look_first": True},
            },
        }

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        await self._request("POST", f"{self._mount}/data/{quote(name)}", {"data": dict(fields)})

    async def look(self, name: str) -> dict[str, Any] | None:
        data = (await self._request("GET", f"{self._mount}/data/{quote(name)}")).get("data")
        return data["data"] if data else None

    async def wipe(self, name: str) -> None:
        await self._request("DELETE", f"{self._mount}/metadata/{quote(name)}")

    async def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(headers={"X-Vault-Token": self._server.root_token}) as session,
            session.request(method, URL(f"{self._server.url}/v1/{path}", encoded=True), json=body) as response,
        ):
            content = await response.read()
            answer: dict[str, Any] = json.loads(content) if content else {}
            return answer


_API = {"api-version": "2025-07-01"}
KEY_VAULT: dict[str, Any] = {
    "list": {
        "path": "/secrets",
        "query": _API,
        "items": "value",
        "where": "attributes.enabled && !managed",
        "name": "id",
        "name_pattern": "/secrets/([^/]+)$",
        "pages": {"type": "link", "next": "nextLink"},
    },
    "get": {
        "path": "/secrets/{name}",
        "query": _API,
        "value": "value",
        "content_type": "contentType",
        "version": "id",
        "absent": "error.code == 'SecretNotFound'",
    },
    "set": {
        "path": "/secrets/{name}",
        "query": _API,
        "body": {"value": "{value}", "contentType": "{content_type}"},
        "version": "id",
    },
    "delete": {"path": "/secrets/{name}", "query": _API, "absent": "error.code == 'SecretNotFound'"},
}


class SandboxKeyVault(OverHttp):
    """A Key Vault without soft delete: to recover what was deleted is more than a configuration can say."""

    traits = frozenset({"fingerprints", "write-answers", "faults"})

    def __init__(self) -> None:
        self._entra: EntraServer
        super().__init__(KeyVaultServer())
        self._server.secrets.soft_delete = False
        self._entra = EntraServer(self._server.authority)
        self._folder = tempfile.TemporaryDirectory(prefix="vaultferry-test-")

    async def start(self) -> None:
        await self._entra.start()
        await self._server.start()
        self._bundle = Path(self._folder.name, "authorities.pem")
        self._bundle.write_text("".join(server.ca_bundle.read_text() for server in (self._server, self._entra)))  # type: ignore[union-attr]
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        await super().stop()
        await self._entra.close()
        self._folder.cleanup()

    def settings(self, *, credentials: bool, container: bool) -> dict[str, Any]:
        authority = self._server.authority
        return {
            # The other answers as well, and is no Key Vault.
            "base_url": self._server.url if container else self._entra.url,
            "ca_bundle": str(self._bundle),
            "names": {"allowed": "[0-9a-zA-Z-]", "max_length": 127, "ignores_case": True},
            "max_bytes": 25 * 1024,
            "auth": {
                "type": "oauth2_client_credentials",
                "token_url": f"{self._entra.url}/{authority.tenant_id}/oauth2/v2.0/token",
                "client_id": authority.client_id,
                "client_secret": authority.client_secret if credentials else "wrong",
                "scope": "https://vault.azure.net/.default",
            },
            "operations": KEY_VAULT,
        }

    def calls(self) -> int:
        return int(self._server.calls.total() + self._entra.calls.total())

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        text, content_type = pack(fields)
        self._server.put(name, text, content_type=content_type)

    async def look(self, name: str) -> dict[str, Any] | None:
        found = self._server.get(name)
        return None if found is None else dict(unpack(found.value, found.content_type))

    async def wipe(self, name: str) -> None:
        self._server.delete(name)

    def misbehave(
        self,
        kind: FaultKind,
        operation: Operation,
        *,
        times: int | None = 1,
        skip: int = 0,
        status: int = 503,
        retry_after: float | None = None,
    ) -> None:
        named: dict[Operation, Any] = {"read": "get", "write": "set", "list": "list"}
        super().misbehave(kind, named[operation], times=times, skip=skip, status=status, retry_after=retry_after)
