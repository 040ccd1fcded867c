"""`vaultferry serve --listen`: the relay inside, from a Vault's audit device to a destination, without HTTP between."""

from __future__ import annotations

import asyncio
import json

import httpx

from tests.event_stack import enable_audit, free_port
from tests.integration.conftest import Sandbox
from tests.integration.test_serve import KEY, start, until
from tests.servers.sinks import AnyVault

SYNC = """
  s:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}]
    delete: {propagate: true}
"""


async def test_what_is_written_in_the_source_arrives_and_what_is_deleted_goes(sandbox: Sandbox) -> None:
    port = free_port()
    listen = f"tcp://127.0.0.1:{port}"
    process = await start(sandbox, sandbox.text(SYNC), "--port", "0", "--listen", listen)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            url = json.loads(await process.stdout.readuntil(b"}\n"))["url"]
        source = AnyVault("source", sandbox.source.url, sandbox.source.root_token)
        await asyncio.to_thread(enable_audit, source, f"127.0.0.1:{port}")

        async def copy() -> object:
            return sandbox.second.get("secret", "copy/a b/ü")

        async def gone() -> bool:
            return await copy() is None

        await source.fine("POST", "secret/data/apps/a%20b/%C3%BC", {"data": {"value": "one"}})
        assert await until(copy) == {"value": "one"}
        await source.fine("DELETE", "secret/data/apps/a%20b/%C3%BC")
        assert await until(gone)
        async with httpx.AsyncClient(base_url=url, headers={"x-functions-key": KEY}) as person:
            health = (await person.get("/health")).json()
            assert (health["status"], health["checks"]["relay"]) == ("ok", {"status": "ok"})
            metrics = (await person.get("/metrics", params={"format": "prometheus"})).text
        told = dict(each.rsplit(" ", 1) for each in metrics.splitlines() if not each.startswith("#"))
        # Of the write and the delete, the answers; of each, the request goes before it.
        assert int(told["vaultferry_relay_received_total"]) >= 4
        assert "vaultferry_info" in metrics
        await source.without_devices()
        process.terminate()
        async with asyncio.timeout(40):
            _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
        assert (sandbox.folder / "vaultferry.relay" / "spool.db").exists()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
