"""What a relay tells over HTTP: /health and /metrics, without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from shared.build_info import build_info
from shared.errors import ConfigError
from shared.relay.counters import Counters
from shared.relay.relay import Relay

if TYPE_CHECKING:
    from aiohttp.web import Request, Response

HELP = {
    "received": "Entries that came in.",
    "filtered": "Entries that ask for nothing.",
    "merged": "Changes of a path that was waiting already.",
    "forwarded": "Records that the other side took.",
    "refused": "Records that the other side did not take; each became a gap.",
    "gaps": "Times that something may have been missed.",
    "unreadable": "Lines that are no audit entries.",
    "jsonx": "Lines of a device with format=jsonx.",
    "too_long": "Entries that were too long.",
    "dropped": "Changes for which there was no room.",
    "dropped_by_kernel": "Datagrams that came faster than they were read.",
    "connections": "Connections that said something.",
    "spool_failures": "Times that the disk failed.",
    "forward_failures": "Times that the other side could not be told.",
}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def as_prometheus(relay: Relay) -> str:
    """https://prometheus.io/docs/instrumenting/exposition_formats/"""
    lines = []
    for each in fields(Counters):
        name = f"vaultferry_relay_{each.name}_total"
        value = getattr(relay.counters, each.name)
        lines += [f"# HELP {name} {HELP[each.name]}", f"# TYPE {name} counter", f"{name} {value}"]
    now = {
        "open_connections": ("Vaults that are connected, over TCP or a unix socket.", relay.open_connections),
        "waiting": ("Records that are not forwarded yet.", relay.waiting),
        "lag_seconds": ("How long the oldest of them has waited.", round(await relay.lag(), 3)),
    }
    for gauge, (text, number) in now.items():
        name = f"vaultferry_relay_{gauge}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {number}"]
    return "".join(f"{line}\n" for line in lines)


@asynccontextmanager
async def serve_status(relay: Relay, host: str, port: int) -> AsyncIterator[str]:
    """Answer at HOST:PORT while inside; the address, with the port that was taken. Raises ConfigError."""
    from aiohttp import web

    async def health(_: Request) -> Response:
        told, build = relay.health(), build_info()
        of_build = {"version": build.version, "commit": build.commit, "build_date": build.date}
        return web.json_response(
            {"status": told["status"], **of_build, "checks": told["checks"]},
            status=503 if told["status"] == "error" else 200,
        )

    async def metrics(_: Request) -> Response:
        return web.Response(body=(await as_prometheus(relay)).encode(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"can not listen on {host}:{port} for --http ({error.strerror})") from None
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
