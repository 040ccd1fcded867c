"""5,000 items of a Vaultwarden: listed in one sync, and how many fields a second one core decrypts.

The sandbox's server runs in a process of its own, so that the times are the client's. `python -m benchmarks.vaultwarden`
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from multiprocessing.connection import Connection

from sandbox.bitwarden import BitwardenServer
from shared.model import Secret
from shared.pacing import counting
from shared.vaults.vaultwarden import Settings, items
from shared.vaults.vaultwarden.vault import VaultwardenVault

ITEMS = 5_000
PASSWORD = "correct horse battery staple"
FIELDS = {"username": "app", "password": "s3cret-value-of-a-usual-length", "uri": "https://db.example", "port": 5432}
NEW = 500
EXPECTED = 5_000
"""Fields a second."""


def main() -> None:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    url, ca_bundle = here.recv()
    try:
        asyncio.run(_measure(url, ca_bundle))
    finally:
        here.send("done")
        server.join()


async def _measure(url: str, ca_bundle: str) -> None:
    settings = Settings(
        kind="vaultwarden", url=url, email="ada@example.org", password=PASSWORD, ca_bundle=ca_bundle, concurrency=16
    )
    vault = VaultwardenVault("family", settings)
    stalls = asyncio.create_task(_stalls())
    try:
        calls, seconds = await _listed(vault)
        print(f"login, {ITEMS:,} items listed      {seconds:6.2f} s, {calls} calls, of which one sync")
        calls, seconds = await _listed(vault)
        print(f"listed when nothing changed    {seconds:6.2f} s, {calls} call")
        assert vault._copy is not None
        everything = list(vault._copy.items.values())
        with counting() as counted:
            began = time.perf_counter()
            await asyncio.gather(*(vault.get_secret(each.name) for each in everything))
            seconds = time.perf_counter() - began
        print(f"every secret read            {len(everything) / seconds:8,.0f} secrets/s, {counted.total()} calls")
        with counting() as counted:
            began = time.perf_counter()
            await asyncio.gather(*(vault.set_secret(f"new/{number}", Secret(FIELDS)) for number in range(NEW)))
            seconds = time.perf_counter() - began
        print(f"{NEW} new secrets              {NEW / seconds:8,.0f} secrets/s, {counted.total()} calls")
    finally:
        stalls.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stalls
        await vault.aclose()
    began = time.process_time()
    decrypted = sum(len(items.fields_of(each)) for each in everything)
    rate = decrypted / (time.process_time() - began)
    print(f"decrypted on one core        {rate:8,.0f} fields/s of {decrypted:,}  (to stay over {EXPECTED:,})")


async def _listed(vault: VaultwardenVault) -> tuple[int, float]:
    with counting() as counted:
        began = time.perf_counter()
        found = [entry async for entry in vault.list_secrets()]
        seconds = time.perf_counter() - began
    assert len(found) >= ITEMS
    return counted.total(), seconds


async def _stalls() -> None:
    """How long the event loop was held up at most."""
    longest = 0.0
    try:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)
    finally:
        print(f"event loop held up           {longest * 1000:8,.0f} ms at most")


def _serve(pipe: Connection) -> None:
    async def serve() -> None:
        async with BitwardenServer() as server:
            server.clock.advance(-3600)
            ada = server.register("ada@example.org", PASSWORD)
            for number in range(ITEMS):
                body = items.created(f"team{number % 40:02}/service{number:05}", FIELDS, ada.user_key)
                server.state.create_item(ada.account, body)
            server.clock.advance(3600)
            pipe.send((server.url, str(server.ca_bundle)))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
