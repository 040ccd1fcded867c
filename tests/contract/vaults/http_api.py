"""Three APIs by configuration alone: one with ETags and fields, one that holds one text, and the sandbox's own Vault."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from sandbox.faults import Fault, FaultKind
from sandbox.http_apis import AnyApi
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
    """What the three have in common."""

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
