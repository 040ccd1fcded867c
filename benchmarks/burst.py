"""Writes to a KV v2 mount that cost the machine next to nothing: what is measured is who follows them.

aiohttp's client takes a third of what Vault itself does for such a write, on the processors that everything else shares.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from tests.servers.processes import RealVault


async def burst(
    server: RealVault,
    mount: str,
    secrets: Iterable[tuple[str, object]],
    *,
    connections: int,
    written: Callable[[str], None] | None = None,
) -> None:
    """Create secrets (path and fields; plain names only), so many at once; `written` is told of each that was taken."""
    address = urlsplit(server.url)
    head = f"Host: {address.netloc}\r\nX-Vault-Token: {server.token}\r\nContent-Type: application/json\r\n"
    rest = iter(secrets)

    def request(path: str, fields: object) -> bytes:
        body = json.dumps({"data": fields, "options": {"cas": 0}})
        return f"POST /v1/{mount}/data/{path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode(
            "ascii"
        )

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            for path, fields in rest:
                writer.write(request(path, fields))
                await _taken(reader)
                if written is not None:
                    written(path)
        finally:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(connections)))


async def _taken(reader: asyncio.StreamReader) -> None:
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    if b" 200 " not in status:
        raise SystemExit(f"the burst is refused: {status.decode()}")
    length = next(value for name, _, value in (line.partition(b":") for line in headers) if name == b"Content-Length")
    await reader.readexactly(int(length))
