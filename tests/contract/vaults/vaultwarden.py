"""A sandbox Vaultwarden for each test: an organisation's collection, and hands that hold the account's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_state import Item as Stored
from sandbox.bitwarden_state import item_document
from sandbox.faults import Fault, FaultKind
from shared.vault import Vault
from shared.vaults.vaultwarden import Settings, items
from shared.vaults.vaultwarden.vault import VaultwardenVault
from tests.contract.vaults.harness import Harness, Operation

# A read asks for the account's revision date or for the item itself; a listing is one sync.
_OPERATIONS = {"read": ("revision_date", "get"), "write": ("create", "update"), "list": ("sync",)}
PASSWORD = "correct horse battery staple"


class SandboxVaultwarden(Harness):
    traits = frozenset({"fingerprints", "listed", "folders", "soft-delete", "write-answers", "faults"})

    def __init__(self) -> None:
        super().__init__()
        self._server = BitwardenServer()

    async def start(self) -> None:
        await self._server.start()
        # Nobody has just changed something when a test begins.
        self._server.clock.advance(-3600)
        self._ada = self._server.register("ada@example.org", PASSWORD)
        self._organization = self._ada.found("Ops")
        self._collection = self._ada.add_collection(self._organization, "Prod")
        self._server.clock.advance(3600)
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        await super().stop()
        await self._server.close()

    async def unplug(self) -> None:
        await self._server.close()

    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        settings = Settings(
            kind="vaultwarden",
            url=self._server.url,
            email="ada@example.org",
            password=PASSWORD if credentials else "wrong",
            organization="Ops",
            collection="Prod" if container else "Elsewhere",
            ca_bundle=str(self._server.ca_bundle),
        )
        return self.hasty(VaultwardenVault("family", settings, timeout=30.0 if patient else 0.3))

    def calls(self) -> int:
        return self._server.calls.total()

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        stored = self._ada.items().get(name)
        if stored is None:
            self._ada.add_note(name, collections=[self._collection], own_key=True)
            stored = self._ada.items()[name]
        opened = self._opened(stored)
        request = items.updated(opened, fields, stored.updated)
        self._server.state.update_item(self._ada.account, stored.id, request)

    async def look(self, name: str) -> dict[str, Any] | None:
        stored = self._ada.items().get(name)
        return None if stored is None else items.fields_of(self._opened(stored))

    async def wipe(self, name: str) -> None:
        self._server.state.delete_item(self._ada.account, self._ada.items()[name].id)

    async def soft_delete(self, name: str) -> None:
        self._server.state.trash_item(self._ada.account, self._ada.items()[name].id)

    async def undelete(self, name: str) -> None:
        for each in list(self._server.state.items.values()):
            if each.deleted is not None and self._ada.read(each)["name"] == name:
                self._server.state.restore_item(self._ada.account, each.id)

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
        for each in _OPERATIONS[operation]:
            # The one call of a listing is its first.
            self._server.faults.add(
                Fault(kind, operation=each, times=times, skip=0, status=status, retry_after=retry_after)
            )

    def _opened(self, stored: Stored) -> items.Item:
        document = item_document(self._server.state, stored, self._ada.account)
        return items.opened(document, "", self._ada.organization_key(self._organization.id))
