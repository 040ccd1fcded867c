"""What audit devices write to: plain listeners over TCP, UDP and unix sockets, and the Vaults that write there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from yarl import URL

Kind = Literal["tcp", "udp", "unix"]


class Sink:
    """A listener that keeps what it hears as lines. `hang_up` and `listen` make it go away and come back."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.connections = 0
        self.datagrams: list[bytes] = []
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._transport: asyncio.DatagramTransport | None = None
        # A unix socket's path has a limit of about 100 characters, which pytest's own folders can pass.
        self._folder = tempfile.TemporaryDirectory()
        self._port = 0

    @property
    def address(self) -> str:
        return f"{self._folder.name}/s" if self.kind == "unix" else f"127.0.0.1:{self._port}"

    @property
    def options(self) -> dict[str, str]:
        return {"address": self.address, "socket_type": self.kind}

    async def __aenter__(self) -> Sink:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()
        self._folder.cleanup()

    async def listen(self) -> None:
        if self.kind == "udp":
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            receiver.bind(("127.0.0.1", self._port))
            receiver.setblocking(False)
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=receiver)
            self._port = receiver.getsockname()[1]
        elif self.kind == "unix":
            self._server = await asyncio.start_unix_server(self._serve, self.address, limit=1 << 24)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 24)
            self._port = self._server.sockets[0].getsockname()[1]

    async def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            if self.kind == "unix":
                with contextlib.suppress(FileNotFoundError):  # newer Pythons remove it themselves
                    os.unlink(self.address)

    async def line(self) -> bytes:
        """The next one, without its end."""
        async with asyncio.timeout(10):
            return await self._lines.get()

    def heard(self, data: bytes) -> None:
        self.datagrams.append(data)
        self._lines.put_nowait(data.removesuffix(b"\n"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self._lines.put_nowait(line.removesuffix(b"\n"))
        self._writers.discard(writer)
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def datagram_received(self, data: bytes, _: Any) -> None:
        self._sink.heard(data)


@dataclass
class AnyVault:
    """A Vault, real or the sandbox's, and requests to it with its root token."""

    name: str
    url: str
    token: str = field(repr=False)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and answer of one request to a path that is written as it goes into the URL."""
        sent = {"X-Vault-Token": token or self.token, **(headers or {})}
        if method == "PATCH":
            sent["Content-Type"] = "application/merge-patch+json"
        async with (
            aiohttp.ClientSession(headers=sent) as session,
            session.request(
                method, URL(f"{self.url}/v1/{path}", encoded=True), json=body, allow_redirects=False
            ) as response,
        ):
            answer = await response.json() if response.content_type == "application/json" else await response.text()
            return response.status, answer or None

    async def fine(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The answer of a request that must succeed."""
        status, answer = await self.call(method, path, body, **more)
        assert status in (200, 204), f"{method} {path}: {status} {answer}"
        return answer

    async def enable(self, path: str, kind: str, **options: str) -> None:
        await self.fine("PUT", f"sys/audit/{path}", {"type": kind, "options": options})

    async def without_devices(self) -> None:
        """Sockets go first: one that is left alone, and whose listener is gone, stops the server."""
        found = (await self.fine("GET", "sys/audit"))["data"]
        for path in sorted(found, key=lambda path: found[path]["type"], reverse=True):
            await self.fine("DELETE", f"sys/audit/{path}")
