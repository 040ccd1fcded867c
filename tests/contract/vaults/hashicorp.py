"""A KV mount of its own for each test, on the sandbox's Vault or on a real one."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import quote

import aiohttp
from yarl import URL

from sandbox.faults import Fault, FaultKind
from sandbox.vault import VaultSandbox
from shared.pacing import counting
from shared.vault import Vault
from shared.vaults.hashicorp import Settings, connect
from shared.vaults.hashicorp.kv import KvVault
from tests.contract.vaults.harness import Harness, Operation


class HashicorpHarness(Harness):
    """Any Vault at an address, with its root token."""

    version: ClassVar[Literal[1, 2]]

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._url = url
        self._token = token
        self._mount = f"kv-{secrets.token_hex(6)}"
        self._counting = counting()

    async def start(self) -> None:
        await self._request(
            "POST", f"sys/mounts/{self._mount}", {"type": "kv", "options": {"version": str(self.version)}}
        )
        self._counted = self._counting.__enter__()
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        self._counting.__exit__(None, None, None)
        await super().stop()

    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        settings = Settings(
            kind="hashicorp",
            address=self._url,
            mount=self._mount if container else "nowhere",
            kv_version="auto" if container else self.version,
            auth={"method": "token", "token": self._token if credentials else "hvs.wrong"},
        )
        vault = connect("hub", settings)
        assert isinstance(vault, KvVault)
        if not patient:
            vault.adapter.seconds = 0.3
        return self.hasty(vault)

    def calls(self) -> int:
        return self._counted.total()

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        if self.version == 1:
            await self._request("POST", f"{self._mount}/{quote(name)}", dict(fields))
            return
        if lifetime:
            # Nothing shorter than a second: Vault cuts parts of it off.
            after = {"moment": "1s", "hour": "1h"}[lifetime]
            await self._request("POST", f"{self._mount}/metadata/{quote(name)}", {"delete_version_after": after})
        await self._request("POST", f"{self._mount}/data/{quote(name)}", {"data": dict(fields)})

    async def look(self, name: str) -> dict[str, Any] | None:
        answer = await self._request("GET", f"{self._mount}/{'data/' if self.version == 2 else ''}{quote(name)}")
        data = answer.get("data")
        if self.version == 2:
            return data["data"] if data else None
        return data

    async def wipe(self, name: str) -> None:
        await self._request("DELETE", f"{self._mount}/{'metadata/' if self.version == 2 else ''}{quote(name)}")

    async def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(headers={"X-Vault-Token": self._token}) as session,
            session.request(method, URL(f"{self._url}/v1/{path}", encoded=True), json=body) as response,
        ):
            content = await response.read()
            if response.status not in (200, 204, 404):
                raise AssertionError(f"{method} {path}: {response.status} {content!r}")
            answer: dict[str, Any] = json.loads(content) if content else {}
            return answer


class _V1(HashicorpHarness):
    version = 1
    traits = frozenset({"folders"})


class _V2(HashicorpHarness):
    version = 2
    traits = frozenset(
        {
            "fingerprints",
            "compare-and-set",
            "folders",
            "soft-delete",
            "expiry",
            "write-answers",
            "metadata",
            "metadata-limits",
        }
    )

    async def soft_delete(self, name: str) -> None:
        await self._request("DELETE", f"{self._mount}/data/{quote(name)}")

    async def undelete(self, name: str) -> None:
        metadata = await self._request("GET", f"{self._mount}/metadata/{quote(name)}")
        body = {"versions": [metadata["data"]["current_version"]]}
        await self._request("POST", f"{self._mount}/undelete/{quote(name)}", body)


class _OnReal(HashicorpHarness):
    """On a server that others use as well: what was mounted is taken away again."""

    async def stop(self) -> None:
        await super().stop()
        await self._request("DELETE", f"sys/mounts/{self._mount}")


class RealV1(_OnReal, _V1):
    pass


class RealV2(_OnReal, _V2):
    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        await super().put(name, fields, lifetime=lifetime)
        if lifetime == "moment":
            await asyncio.sleep(1.1)


class _OnSandbox(HashicorpHarness):
    """The same on a sandbox server that lives as long as the test, counts for itself, and misbehaves when told to."""

    def __init__(self) -> None:
        self._server = VaultSandbox()
        super().__init__("", self._server.root_token)

    async def start(self) -> None:
        await self._server.start()
        self._url = self._server.url
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self._server.close()

    async def unplug(self) -> None:
        await self._server.close()

    def calls(self) -> int:
        return self._server.calls.total()

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


class SandboxV1(_OnSandbox, _V1):
    traits = _V1.traits | {"faults"}


class SandboxV2(_OnSandbox, _V2):
    traits = _V2.traits | {"faults"}

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        past = 60 if lifetime == "moment" else 0
        self._server.advance(-past)
        await super().put(name, fields, lifetime=lifetime)
        self._server.advance(past)
