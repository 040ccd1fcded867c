"""What relay tests share: an app that answers as it is told to, and lines as a Vault sends them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from shared.relay.addresses import Address

ROOT = Path(__file__).resolve().parents[2]

Answer = Callable[[web.Request], Any]


def line(path: str, version: int | None = None, *, operation: str = "update") -> bytes:
    request = {
        "operation": operation,
        "mount_point": "secret/",
        "mount_type": "kv",
        "namespace": {"id": "root"},
        "path": f"secret/data/{path}",
    }
    response = {"data": {} if version is None else {"version": version}}
    return json.dumps({"type": "response", "request": request, "response": response}).encode() + b"\n"


@dataclass
class Request:
    headers: dict[str, str]
    body: bytes
    records: list[dict[str, Any]]

    @property
    def batch(self) -> str:
        return self.headers["X-Vaultferry-Batch"]


class FakeApp:
    """POST /audit of an app that takes everything, unless it is told how to answer the next requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.taken: list[dict[str, Any]] = []
        self.answers: deque[Answer] = deque()
        self.always: Answer | None = None
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/audit", self._audit)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/audit"

    @property
    def paths(self) -> dict[str, int | None]:
        """What was taken, with the newest version."""
        found = [record for record in self.taken if record["vaultferry"] == "change"]
        return {record["path"].removeprefix("data/"): record.get("version") for record in found}

    @property
    def gaps(self) -> list[str]:
        return [record["why"] for record in self.taken if record["vaultferry"] == "gap"]

    async def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def _audit(self, request: web.Request) -> web.StreamResponse:
        raw = bytearray()
        # Not request.read(): it would unpack what is signed as it was sent.
        async for part in request.content.iter_any():
            raw += part
        # aiohttp has unpacked it already; what was signed is packed again in the same way.
        body = bytes(raw)
        records = json.loads(body)
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.compress(body, compresslevel=1, mtime=0)
        async with self._changed:
            self.requests.append(Request(dict(request.headers), body, records))
            answer = self.answers.popleft() if self.answers else self.always
            given = answer(request) if answer is not None else None
            if asyncio.iscoroutine(given):
                given = await given
            if given is None:
                self.taken += records
                given = web.json_response(
                    {"accepted": len(records), "ignored": 0, "duplicate": 0, "invalid": 0}, status=202
                )
            self._changed.notify_all()
        return given  # type: ignore[no-any-return]


def status(code: int, **headers: str) -> Answer:
    return lambda _: web.Response(status=code, headers=headers)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """For what a relay counts, which tells nobody when it changes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def send_datagram(address: Address, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (address.host, address.port))


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[asyncio.StreamWriter]:
    if address.kind == "unix":
        _, writer = await asyncio.open_unix_connection(address.path)
    else:
        _, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def process(
    folder: Path, app: FakeApp, port: int, *more: str, root: Path = ROOT, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = ["-m", "shared.relay", "--listen", f"tcp://127.0.0.1:{port}", "--forward", app.url]
    secrets = {"VAULTFERRY_AUDIT_SECRET": "the-newer-secret,the-older-secret"}
    started = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, "--spool", str(folder / "spool"), *more,
        cwd=root, env={**os.environ, **secrets, **env}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert started.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b"listening on" not in (said := await started.stderr.readline()):
                assert said, "it does not start"
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()
