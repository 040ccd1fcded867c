"""The command line in a folder of its own: encrypted files as vaults, SQLite as the store."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.model import Secret
from shared.vaults.file import FileVault, Settings, connect

KEY = base64.b64encode(bytes(range(32))).decode()
"""Not a passphrase: a raw key opens a file at once."""
PROGRAM = Path(sys.executable).with_name("vaultferry")

CONFIG = """\
vaults:
  source: {kind: file, path: source.vault, key: "${FILE_KEY}"}
  target: {kind: file, path: target.vault, key: "${FILE_KEY}"}
syncs:
  apps:
    source: {vault: source, prefix: apps/}
    targets: [{vault: target}]
    delete: {propagate: true, min_count: 1}
    retry_policy: {max_retries: 0}
"""


@contextlib.contextmanager
def loggers_as_before() -> Iterator[None]:
    """Undo what a command that runs in this process does to logging."""
    loggers = (logging.root, logging.getLogger("vaultferry"))
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    raising = logging.raiseExceptions
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
    logging.raiseExceptions = raising


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Folder:
    """A person's folder, and the commands typed there."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Without what the machine's owner has set for vaults of their own."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT", "AZURE", "AzureWeb", "IDENTITY"))}
        return kept | {"FILE_KEY": KEY, "NO_COLOR": "", "COLUMNS": "80"} | self.env

    def configure(self, text: str = CONFIG) -> None:
        (self.path / "vaultferry.yaml").write_text(text, "utf-8")

    def run(self, *arguments: str) -> Ended:
        """A command in a process of its own."""
        ended = subprocess.run(
            [PROGRAM, *arguments], cwd=self.path, env=self.environment(), capture_output=True, text=True, timeout=60
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def vault(self, name: str) -> FileVault:
        return connect(name, Settings(kind="file", path=str(self.path / f"{name}.vault"), key=KEY))

    def put(self, secrets: Mapping[str, Mapping[str, Any]], vault: str = "source") -> None:
        async def write() -> None:
            opened = self.vault(vault)
            await asyncio.gather(*(opened.set_secret(name, Secret(fields)) for name, fields in secrets.items()))
            await opened.aclose()

        asyncio.run(write())

    def drop(self, *names: str, vault: str = "source") -> None:
        async def delete() -> None:
            opened = self.vault(vault)
            for name in names:
                await opened.delete_secret(name)
            await opened.aclose()

        asyncio.run(delete())

    def read(self, vault: str = "target") -> dict[str, Mapping[str, Any]]:
        """All that a vault holds."""

        async def read() -> dict[str, Mapping[str, Any]]:
            opened = self.vault(vault)
            names = [entry.name async for entry in opened.list_secrets() if entry.live]
            found = {name: (await opened.get_secret(name)).fields for name in names}
            await opened.aclose()
            return found

        return asyncio.run(read())
