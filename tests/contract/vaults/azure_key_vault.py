"""A sandbox Key Vault for each test, with a service principal that signs in at a sandbox of Entra."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox.entra import EntraServer
from sandbox.faults import Fault, FaultKind
from sandbox.key_vault import KeyVaultServer
from shared.onestring import pack, unpack
from shared.vault import Vault
from shared.vaults.azure_key_vault import KeyVault, Settings
from tests.contract.vaults.harness import Harness, Operation

_OPERATIONS = {"read": "get", "write": "set", "list": "list"}


class SandboxKeyVault(Harness):
    # Not "expiry": its secrets may expire, but are still there then and can be deleted; tests/unit/test_azure_key_vault.py
    # looks.
    traits = frozenset(
        {"fingerprints", "listed", "soft-delete", "write-answers", "faults", "metadata", "metadata-limits"}
    )

    def __init__(self) -> None:
        super().__init__()
        self._server = KeyVaultServer()
        self._entra = EntraServer(self._server.authority)
        self._folder = tempfile.TemporaryDirectory(prefix="vaultferry-test-")

    async def start(self) -> None:
        await self._server.start()
        await self._entra.start()
        self._bundle = Path(self._folder.name, "authorities.pem")
        self._bundle.write_text("".join(server.ca_bundle.read_text() for server in (self._server, self._entra)))  # type: ignore[union-attr]
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        await super().stop()
        await self._server.close()
        await self._entra.close()
        self._folder.cleanup()

    async def unplug(self) -> None:
        await self._server.close()

    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        authority = self._server.authority
        settings = Settings(
            kind="azure_key_vault",
            # A server that answers, but is no Key Vault.
            url=self._server.url if container else self._entra.url,
            authority=self._entra.url,
            ca_bundle=str(self._bundle),
            auth={
                "method": "service_principal",
                "tenant_id": authority.tenant_id,
                "client_id": authority.client_id,
                "client_secret": authority.client_secret if credentials else "wrong",
            },
        )

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            await asyncio.sleep(0)

        return self.hasty(KeyVault("prod", settings, timeout=30.0 if patient else 0.3, sleep=sleep))

    def calls(self) -> int:
        return self._server.calls.total()

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        text, content_type = pack(fields)
        self._server.put(name, text, content_type=content_type)

    async def look(self, name: str) -> dict[str, Any] | None:
        found = self._server.get(name)
        return None if found is None else dict(unpack(found.value, found.content_type))

    async def wipe(self, name: str) -> None:
        self._server.delete(name)
        self._server.secrets.purge(name)

    async def soft_delete(self, name: str) -> None:
        self._server.delete(name)

    async def undelete(self, name: str) -> None:
        self._server.secrets.recover(name)
        self._server.secrets.settle()

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
        fault = Fault(
            kind, operation=_OPERATIONS[operation], times=times, skip=skip, status=status, retry_after=retry_after
        )
        self._server.faults.add(fault)
