"""The relay under load, as a process of its own, with an app that takes everything and one that answers nothing.

Datagrams: at 20,000 a second and as fast as they can be sent. All that the kernel handed over has to be heard; what the
kernel itself threw away, because the relay did not run for too long (its buffer: net.core.rmem_max), is told apart. What
counts is the processor time per entry: on a busy machine nothing else says much.
Stall: the latency of a real Vault's own requests while its relay's app answers nothing, beside the same while it answers.
Noise: random bytes on every socket at once; what is forwarded must be gap marks and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from tests.event_stack import disable_audit, enable_audit, free_port
from tests.servers.processes import RealVault, vault

RATE = 20_000
"""Datagrams a second that a relay has to take."""
DATAGRAMS = 200_000
SECONDS = 60.0
CLIENTS = 8
"""Of the Vault, at once."""
PATIENCE = 120.0
SOCKETS = ("udp", "tcp", "unix")
ROOT = Path(__file__).resolve().parents[1]
HMAC = "hmac-sha256:" + "0123456789abcdef" * 4


class App:
    """POST /audit that takes everything, or, while it is stalled, answers nothing."""

    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.answering.set()
        self.records: dict[str, int] = {}
        """How many there were of each sort."""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/audit", self._audit)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/audit"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.answering.set()
        await self._runner.cleanup()

    async def _audit(self, request: web.Request) -> web.Response:
        body = await request.read()
        await self.answering.wait()
        for sort in ("change", "gap"):
            # The records are JSON without spaces: counting is cheaper than reading them, and this is not what is measured.
            found = body.count(f'"vaultferry":"{sort}"'.encode())
            self.records[sort] = self.records.get(sort, 0) + found
        return web.json_response({"accepted": 0, "ignored": 0, "duplicate": 0, "invalid": 0}, status=202)


@dataclass
class Running:
    """A relay that runs, seen from outside."""

    process: asyncio.subprocess.Process
    port: int
    http: int
    session: aiohttp.ClientSession = field(repr=False)

    async def metrics(self) -> dict[str, float]:
        async with self.session.get(f"http://127.0.0.1:{self.http}/metrics") as answer:
            rows = (await answer.text()).splitlines()
        told = (row.rsplit(" ", 1) for row in rows if not row.startswith("#"))
        return {name.removeprefix("vaultferry_relay_").removesuffix("_total"): float(value) for name, value in told}

    def cpu_seconds(self) -> float:
        """https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextlib.asynccontextmanager
async def relay(app: App, *kinds: str) -> AsyncIterator[Running]:
    """A relay with a socket of each kind; the unix one is `s` in its folder, which is the working directory."""
    port, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        where = {"udp": f"udp://127.0.0.1:{port}", "tcp": f"tcp://127.0.0.1:{port}", "unix": f"unix://{folder}/s"}
        arguments = ["--forward", app.url, "--spool", f"{folder}/spool", "--http", str(http), "--log-level", "error"]
        for kind in kinds:
            arguments += ["--listen", where[kind]]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "shared.relay", *arguments, cwd=ROOT)
        try:
            async with aiohttp.ClientSession() as session:
                running = Running(process, port, http, session)
                async with asyncio.timeout(PATIENCE):
                    while True:
                        with contextlib.suppress(aiohttp.ClientError):
                            await running.metrics()
                            break
                        await asyncio.sleep(0.02)
                with contextlib.chdir(folder):
                    yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def itself(*arguments: object) -> asyncio.subprocess.Process:
    """This module once more, with other things to do."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.relay", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


# --- datagrams --------------------------------------------------------------------------------------------------------


def entry(kind: str, operation: str, path: str) -> bytes:
    """As Vault 1.21 writes it, in length and order."""
    place = {"mount_accessor": "kv_5fe14ef0", "mount_class": "secret", "mount_point": "secret/", "mount_type": "kv"}
    data = {"data": {"password": HMAC, "username": HMAC}}
    request = {
        "client_id": HMAC[-44:], "client_token": HMAC, "client_token_accessor": HMAC,
        **({"data": data} if operation != "read" else {}),
        "headers": {"user-agent": ["Go-http-client/1.1"]}, "id": "c01d6881-fcf9-00ff-6f90-2c0283d5b96b", **place,
        "namespace": {"id": "root"}, "operation": operation, "path": path, "remote_address": "127.0.0.1",
        "remote_port": 51176,
    }  # fmt: skip
    facts = {"created_time": HMAC, "custom_metadata": None, "deletion_time": HMAC, "destroyed": False, "version": 7}
    answer = {"data": {**data, "metadata": facts} if operation == "read" else facts, **place}
    auth = {
        "accessor": HMAC, "client_token": HMAC, "display_name": "token", "policies": ["root"],
        "policy_results": {"allowed": True, "granting_policies": [{"type": ""}, {"name": "root", "type": "acl"}]},
        "token_policies": ["root"], "token_issue_time": "2026-01-01T00:00:00Z", "token_type": "service",
    }  # fmt: skip
    whole = {
        "auth": auth, "request": request, **({"response": answer} if kind == "response" else {}),
        "time": "2026-01-01T00:00:00.191545173Z", "type": kind,
    }  # fmt: skip
    return json.dumps(whole, separators=(",", ":")).encode() + b"\n"


def datagrams(what: str, count: int) -> list[bytes]:
    """`log`: what a Vault says while its secrets are read and written in turn; `distinct`: each changes another path."""
    if what == "distinct":
        before, after = entry("response", "update", "secret/data/team/NAME").split(b"NAME")
        return [before + b"app-%07d" % number + after for number in range(count)]
    four = []
    for number in range(10_000):
        path = f"secret/data/team/app-{number:05}"
        four += [entry(kind, operation, path) for operation in ("read", "update") for kind in ("request", "response")]
    return (four * (count // len(four) + 1))[:count]


def send(what: str, port: int, rate: int, count: int) -> None:
    """In a process of its own: the datagrams, so many a second (0: as fast as it goes)."""
    ready = datagrams(what, count)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("127.0.0.1", port))
        begin = time.perf_counter()
        for number, each in enumerate(ready):
            if rate and number % 20 == 0:
                early = begin + number / rate - time.perf_counter()
                if early > 0:
                    time.sleep(early)
            out.send(each)
        took = time.perf_counter() - begin
    print(took)


async def measure_datagrams(what: str, rate: int, count: int, *, answering: bool) -> None:
    async with App() as app, relay(app, "udp") as running:
        if not answering:
            app.answering.clear()
        await asyncio.sleep(0.5)
        before, heard_before = running.cpu_seconds(), (await running.metrics())["received"]
        sender = await itself("send", what, running.port, rate, count)
        out, _ = await sender.communicate()
        took = float(out)
        # The kernel's count is looked at once a second.
        end = time.monotonic() + PATIENCE
        while True:
            told = await running.metrics()
            heard = told["received"] - heard_before
            if heard + told["dropped_by_kernel"] >= count or time.monotonic() > end:
                break
            await asyncio.sleep(0.1)
        while answering and told["waiting"] and time.monotonic() < end:
            await asyncio.sleep(0.1)
            told = await running.metrics()
        cpu = (running.cpu_seconds() - before) / max(heard, 1) * 1e6
        print(
            f"  {what:8}  app {'answers' if answering else 'stalled'}  sent at {count / took:6.0f}/s  heard {heard:7.0f}"
            f"  thrown away by the kernel {told['dropped_by_kernel']:6.0f}, by the relay {told['dropped']:.0f}"
            f"   {cpu:5.1f} µs each   {running.peak_mb():4.0f} MB",
            flush=True,
        )
        if heard + told["dropped_by_kernel"] != count or told["dropped"]:
            raise SystemExit("some that the kernel delivered were not heard, or not kept")


# --- a stalled app ----------------------------------------------------------------------------------------------------


async def use(server: RealVault, mount: str, seconds: float) -> list[float]:
    """Milliseconds of each request that so many clients make in so long."""
    taken: list[float] = []
    headers = {"X-Vault-Token": server.token}
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while (begin := time.perf_counter()) < end:
            turn += 1
            url = f"{server.url}/v1/{mount}/data/{number}/{turn % 5000}"
            async with session.post(url, json={"data": {"password": "none"}}, headers=headers) as answer:
                answer.raise_for_status()
                await answer.read()
            taken.append((time.perf_counter() - begin) * 1000)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))
    return taken


async def measure_stall(seconds: float) -> None:
    async with App() as app, relay(app, "tcp") as running:
        with vault() as server:
            mount = server.new_mount(2)
            await asyncio.to_thread(enable_audit, server, f"127.0.0.1:{running.port}")
            await use(server, mount, min(seconds, 5.0))
            answered = await use(server, mount, seconds / 2)
            app.answering.clear()
            stalled = await use(server, mount, seconds)
            waiting = (await running.metrics())["waiting"]
            app.answering.set()
            answered += await use(server, mount, seconds / 2)
            told = await running.metrics()
            await asyncio.to_thread(disable_audit, server)
    print(f"  {len(answered)} writes while the app answers, {len(stalled)} in as long while it does not")
    for name, percent in (("p50", 50), ("p99", 99)):
        usual, then = percentile(answered, percent), percentile(stalled, percent)
        print(f"  {name}  {usual:6.2f} ms   app stalled {then:6.2f} ms   ratio {then / usual:.2f}")
    peak = f"{max(answered):.0f} ms, app stalled {max(stalled):.0f} ms"
    print(f"  longest  {peak}; {waiting:.0f} records waited at the end, {told['connections']:.0f} connection in all")


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


# --- noise ------------------------------------------------------------------------------------------------------------


def shout(kind: str, port: int, seconds: float) -> None:
    """In a process of its own, whose working directory has the unix socket: random bytes."""
    noise = random.Random(kind)
    sent, end = 0, time.monotonic() + seconds
    if kind == "udp":
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.connect(("127.0.0.1", port))
    elif kind == "tcp":
        out = socket.create_connection(("127.0.0.1", port))
    else:
        out = socket.socket(socket.AF_UNIX)
        out.connect("s")
    with out:
        while time.monotonic() < end:
            data = noise.randbytes(noise.randrange(1, 1500) if kind == "udp" else 65_536)
            out.sendall(data)
            sent += len(data)
    print(sent)


async def measure_noise(seconds: float) -> None:
    async with App() as app, relay(app, *SOCKETS) as running:
        speakers = [await itself("shout", kind, running.port, seconds) for kind in SOCKETS]
        sent = [int((await speaker.communicate())[0]) for speaker in speakers]
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(entry("response", "update", "secret/data/after"))
        writer.close()
        async with asyncio.timeout(PATIENCE):
            while not app.records.get("change"):  # noqa: ASYNC110 - as rare as the end of a benchmark
                await asyncio.sleep(0.05)
        told = await running.metrics()
        amounts = ", ".join(f"{each / 1e6:.0f} MB {kind}" for kind, each in zip(SOCKETS, sent, strict=True))
        print(
            f"  {seconds:.0f} s of random bytes: {amounts}; {told['unreadable']:.0f} lines were no entries;"
            f" forwarded {app.records.get('gap', 0)} gap marks and the one entry at the end; {running.peak_mb():.0f} MB"
        )
        if app.records["change"] != 1:
            raise SystemExit("noise was forwarded as changes")


async def measure(parts: set[str], seconds: float, count: int) -> None:
    if "datagrams" in parts:
        print(
            f"{count} datagrams of {len(entry('request', 'update', 'a'))} to {len(entry('response', 'read', 'a'))} bytes"
        )
        for answering in (False, True):
            for what in ("log", "distinct"):
                for rate in (RATE, 0):
                    await measure_datagrams(what, rate, count, answering=answering)
    if "stall" in parts:
        print(
            f"a real Vault with a TCP device, {CLIENTS} clients that write, its relay's app stalled for {seconds:.0f} s"
        )
        await measure_stall(seconds)
    if "noise" in parts:
        await measure_noise(seconds)


def main() -> None:
    if sys.argv[1:2] == ["send"]:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    if sys.argv[1:2] == ["shout"]:
        shout(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["datagrams", "stall", "noise"])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the stall, and of the noise")
    parser.add_argument("--datagrams", type=int, default=DATAGRAMS)
    given = parser.parse_args()
    asyncio.run(measure(set(given.parts), given.seconds, given.datagrams))


if __name__ == "__main__":
    main()
