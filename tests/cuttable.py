"""Two ways to spoil a connection on loopback: a line that can be cut, and an HTTP front that answers as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from enum import Enum
from typing import Self

from tests.event_stack import free_port


class Line:
    """Forwards TCP from `address` to another port, until it is cut; then nobody answers there until it is mended."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(other_writer)
        try:
            await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))
        finally:
            for each in (writer, other_writer):
                each.transport.abort()
                self._writers.discard(each)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


class Answer(Enum):
    """What the front makes of one request."""

    PASSED_ON = "passed on"
    ERROR = "500, and nothing passed on"
    TOO_MANY = "429, and nothing passed on"
    LOST = "passed on, and the connection torn instead of an answer"
    HALF = "passed on, and half of the answer"


class Front:
    """An HTTP server before another one: the first requests get what `answers` says, all later ones are passed on."""

    def __init__(self, port: int, answers: Iterable[Answer]) -> None:
        self._to = port
        self.port = free_port()
        self.waiting = deque(answers)
        self.given: list[Answer] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while request := await _read_message(reader):
                answer = self.waiting.popleft() if self.waiting else Answer.PASSED_ON
                self.given.append(answer)
                if answer is Answer.ERROR:
                    writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
                elif answer is Answer.TOO_MANY:
                    writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
                else:
                    reply = await self._ask(request)
                    if answer is Answer.LOST:
                        break
                    writer.write(reply if answer is Answer.PASSED_ON else reply[: len(reply) // 2])
                    if answer is Answer.HALF:
                        await writer.drain()
                        break
                await writer.drain()
        writer.transport.abort()

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            writer.write(request)
            await writer.drain()
            return await _read_message(reader)
        finally:
            writer.transport.abort()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a Content-Length; empty at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)
