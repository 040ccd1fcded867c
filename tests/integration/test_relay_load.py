"""A relay as a process that is killed while much is said, and one that hears nothing but noise."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp.web
import pytest

from shared.relay.addresses import Address
from shared.relay.listeners import CONNECTION, CUT, KERNEL, TOO_LONG
from shared.relay.relay import JSONX, START, UNREADABLE
from tests.event_stack import free_port
from tests.integration.relay_world import FakeApp, connected, line, process, until

MB = 1_000_000
STREAM = 40 * MB
"""Bytes of noise on each stream; longer than the longest frame."""
DATAGRAMS = 20_000


@pytest.mark.parametrize("requests", [1, 2, 4])
async def test_what_was_on_the_disk_when_it_was_killed_is_forwarded_by_the_next(tmp_path: Path, requests: int) -> None:
    port = free_port()
    heard = asyncio.Event()

    async def talk() -> None:
        async with connected(Address("tcp", "127.0.0.1", port)) as writer:
            for number in range(100_000):
                writer.write(line(f"p{number}", 7))
                if number % 100 == 0:
                    await writer.drain()
                    heard.set()

    def on_disk() -> set[str]:
        with contextlib.closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as database:
            return {path for (path,) in database.execute("SELECT path FROM waiting WHERE mount <> ''")}

    async with FakeApp() as app:
        # It is offered what is on the disk already, and takes nothing.
        app.always = lambda _: aiohttp.web.Response(status=503)
        async with process(tmp_path, app, port) as first:
            talking = asyncio.create_task(talk())
            await heard.wait()
            await app.until(lambda: len(app.requests) >= requests)
            # The first request may tell of nothing but the start.
            await until(lambda: bool(on_disk()))
            first.kill()
            await first.wait()
            with contextlib.suppress(ConnectionError):
                await talking
        offered = {record["path"] for request in app.requests for record in request.records if "path" in record}
        kept = on_disk()
        assert kept
        assert offered <= kept
        app.always = None
        async with process(tmp_path, app, port):
            await app.until(lambda: START in app.gaps and len(app.paths) >= len(kept), 60)
    assert app.paths == {path.removeprefix("data/"): 7 for path in kept}


@pytest.fixture
def short() -> Iterator[Path]:
    """A unix socket's path has a limit of about 100 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_megabytes_of_noise_on_every_socket_cost_little_memory_and_become_gaps(
    tmp_path: Path, short: Path
) -> None:
    tcp, udp = free_port(), free_port()
    more = ("--listen", f"udp://127.0.0.1:{udp}", "--listen", f"unix://{short}/s")
    async with FakeApp() as app, process(tmp_path, app, tcp, *more) as running:
        await app.until(lambda: START in app.gaps)
        before = peak_mb(running.pid)
        await asyncio.gather(
            asyncio.to_thread(shout, lambda: socket.create_connection(("127.0.0.1", tcp)), with_newlines=True),
            asyncio.to_thread(shout, lambda: to_unix(short / "s"), with_newlines=False),
            asyncio.to_thread(shout_datagrams, udp),
        )
        async with connected(Address("tcp", "127.0.0.1", tcp)) as writer:
            writer.write(line("after"))
            await app.until(lambda: "after" in app.paths and {UNREADABLE, TOO_LONG} <= set(app.gaps), 60)
        assert running.returncode is None
        assert peak_mb(running.pid) - before < 100
    assert set(app.paths) == {"after"}
    assert set(app.gaps) <= {START, CONNECTION, CUT, TOO_LONG, UNREADABLE, JSONX, KERNEL}


def shout(connect: Callable[[], socket.socket], *, with_newlines: bool) -> None:
    noise = random.Random(3)
    with connect() as out:
        for _ in range(STREAM // MB):
            data = noise.randbytes(MB)
            out.sendall(data if with_newlines else data.replace(b"\n", b""))


def shout_datagrams(port: int) -> None:
    noise = random.Random(4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(DATAGRAMS):
            out.sendto(noise.randbytes(noise.randrange(1, 1500)), ("127.0.0.1", port))


def to_unix(path: Path) -> socket.socket:
    out = socket.socket(socket.AF_UNIX)
    out.connect(str(path))
    return out


def peak_mb(pid: int) -> float:
    """https://man7.org/linux/man-pages/man5/proc_pid_status.5.html; 0 where there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB
