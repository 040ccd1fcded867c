"""A file of its own for each test, and hands that open it with its key."""

from __future__ import annotations

import base64
import json
import secrets
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from shared.model import iso, utcnow
from shared.pacing import counting
from shared.vault import Vault
from shared.vaults.file import Settings, connect
from shared.vaults.file.sealed import SealedFile
from tests.contract.vaults.harness import Harness

_LIFETIMES = {"": None, "moment": timedelta(seconds=-1), "hour": timedelta(hours=1)}


class LocalFile(Harness):
    traits = frozenset({"fingerprints", "listed", "compare-and-set", "folders", "expiry", "metadata"})

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="vaultferry-test-")
        self._path = Path(self._folder.name, "test.vault")
        self._key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._counting = counting()

    async def start(self) -> None:
        self._counted = self._counting.__enter__()
        self._write({})
        self.vault = self.connect()
        await self.vault.open()

    async def stop(self) -> None:
        self._counting.__exit__(None, None, None)
        await super().stop()
        self._folder.cleanup()

    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        settings = Settings(
            kind="file",
            path=str(self._path if container else self._path.parent / "nowhere" / self._path.name),
            key=self._key if credentials else "a passphrase that is another one",  # type: ignore[arg-type]
        )
        return self.hasty(connect("backup", settings))

    def calls(self) -> int:
        return self._counted.total()

    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        lines = self._read()
        version = int(lines[name]["version"]) + 1 if name in lines else 1
        after = _LIFETIMES[lifetime]
        lines[name] = {
            "name": name,
            "version": str(version),
            "fingerprint": secrets.token_hex(4),
            "updated_at": iso(utcnow()),
            "expires_at": None if after is None else iso(utcnow() + after),
            "owner": None,
            "live": True,
            "content_type": None,
            "tags": {},
            "fields": dict(fields),
        }
        self._write(lines)

    async def look(self, name: str) -> dict[str, Any] | None:
        line = self._read().get(name)
        return line["fields"] if line is not None and line["live"] else None

    async def wipe(self, name: str) -> None:
        lines = self._read()
        del lines[name]
        self._write(lines)

    def _read(self) -> dict[str, Any]:
        content = SealedFile(self._path, self._key).read()[1].decode()
        return {line["name"]: line for line in map(json.loads, filter(None, content.split("\n")))}

    def _write(self, lines: Mapping[str, Any]) -> None:
        file = SealedFile(self._path, self._key)
        if file.stamp() is not None:
            file.read()  # what holds the salt
        file.write("\n".join(map(json.dumps, lines.values())).encode())
