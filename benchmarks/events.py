"""From a Vault's audit log to two destinations: three real Vaults, relay and serve as processes of their own, SQLite.

Fan-out: so many distinct secrets are written as fast as the source takes them; it ends when the last of twice as many
writes has arrived. Beside it a bare loop that reads once and writes twice with aiohttp alone, on Vaults of the same sort:
with an audit device on, as in our own measurement (a Vault that keeps a log takes nearly twice as long for a read); without
one; and with the device on while the source takes the same burst. The processor time of each process says where the rest
goes, also where the machine has other things to do.
Latency: writes spaced out, from the source's answer until the value can be read at the destination, beside a bare read and
write of the same secret in between. Nothing is skipped: the disk is waited for at each step.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from benchmarks.burst import burst
from benchmarks.throughput import CONCURRENCY, Bare, each, paths
from tests.event_stack import EventStack, Place, disable_audit, enable_audit
from tests.servers.processes import RealVault, vault

SECRETS = 10_000
SAMPLES = 200
PAUSE = 0.05
"""Seconds between spaced writes."""
PATIENCE = 300.0


@contextlib.contextmanager
def stack(vaults: dict[str, RealVault]) -> Iterator[EventStack]:
    """Relay and serve on mounts of their own, with the source's audit device switched on."""
    hub = vaults["hub"]
    targets = {name: Place(vaults[name], vaults[name].new_mount(2)) for name in ("one", "two")}
    with tempfile.TemporaryDirectory() as folder:
        running = EventStack(Path(folder), Place(hub, hub.new_mount(2)), targets, {"delete": {"propagate": True}})
        try:
            running.start_serve()
            running.start_relay()
            enable_audit(hub, running.audit_address, alone=True)
            settle(running)
            yield running
        finally:
            with contextlib.suppress(OSError):
                disable_audit(hub)
            running.close()


def settle(running: EventStack) -> None:
    """Wait for the full runs that a relay's start asks for."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.closing(sqlite3.connect(running.database)) as database:
            statuses = [status for (status,) in database.execute("SELECT status FROM syncs_run")]
        if statuses and all(status == "succeeded" for status in statuses):
            return
        time.sleep(0.05)
    raise SystemExit(f"the first run does not end:\n{running.log('serve')[-3000:]}")


def arrived(running: EventStack) -> int:
    with contextlib.closing(sqlite3.connect(running.database)) as database:
        (count,) = database.execute("SELECT count(*) FROM sync_objects WHERE last_sync_status = 'in_sync'").fetchone()
    return int(count)


def last_arrival(running: EventStack) -> datetime:
    with contextlib.closing(sqlite3.connect(running.database)) as database:
        (moment,) = database.execute("SELECT max(updated_at) FROM sync_objects").fetchone()
    return datetime.fromisoformat(moment)


@contextlib.asynccontextmanager
async def thrown_away(hub: RealVault) -> AsyncIterator[None]:
    """While inside, the Vault has an audit device whose entries are read and forgotten."""

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    device = await asyncio.start_server(read, "127.0.0.1", 0)
    host, port = device.sockets[0].getsockname()
    await asyncio.to_thread(enable_audit, hub, f"{host}:{port}", alone=True)
    try:
        yield
    finally:
        await asyncio.to_thread(disable_audit, hub)
        device.close()


class BareLoop:
    """Reads a secret once and writes it twice, on mounts of its own."""

    def __init__(self, session: aiohttp.ClientSession, vaults: dict[str, RealVault]) -> None:
        self.mount, *others = (server.new_mount(2) for server in vaults.values())
        hub, *servers = vaults.values()
        self.source = Bare(session, hub, self.mount)
        self._targets = [Bare(session, server, mount) for server, mount in zip(servers, others, strict=True)]

    async def copy(self, path: str) -> None:
        data = (await self.source.get("data", path))["data"]
        await asyncio.gather(*(target.put(path, data) for target in self._targets))


async def bare_fan_out(session: aiohttp.ClientSession, vaults: dict[str, RealVault], *, device: bool) -> float:
    """Seconds of the bare loop for secrets that are there already."""
    loop = BareLoop(session, vaults)
    await each(paths(SECRETS), lambda path: loop.source.put(path, _value(path)))
    async with thrown_away(vaults["hub"]) if device else contextlib.nullcontext():
        begin = time.perf_counter()
        await each(paths(SECRETS), loop.copy)
        return time.perf_counter() - begin


async def bare_beside_burst(session: aiohttp.ClientSession, vaults: dict[str, RealVault]) -> float:
    """Seconds of the bare loop from the burst's first write on."""
    loop = BareLoop(session, vaults)
    written: asyncio.Queue[str | None] = asyncio.Queue()

    async def copy() -> None:
        while (path := await written.get()) is not None:
            await loop.copy(path)

    async with thrown_away(vaults["hub"]):
        begin = time.perf_counter()
        copies = [asyncio.create_task(copy()) for _ in range(CONCURRENCY)]
        secrets = ((path, _value(path)) for path in paths(SECRETS))
        await burst(vaults["hub"], loop.mount, secrets, connections=CONCURRENCY, written=written.put_nowait)
        for _ in copies:
            written.put_nowait(None)
        await asyncio.gather(*copies)
        return time.perf_counter() - begin


def processor_time(pids: Mapping[str, int]) -> dict[str, float]:
    """Seconds that each process has had so far, user and system: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"""
    spent = {}
    for name, pid in pids.items():
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent[name] = (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def _value(path: str) -> dict[str, object]:
    return {"username": path, "password": f"{path}-is-no-password", "port": 5432}


async def fan_out(
    session: aiohttp.ClientSession, hub: RealVault, running: EventStack, pids: Mapping[str, int]
) -> tuple[float, float, dict[str, float]]:
    """Seconds for the writing of all secrets, until all have arrived everywhere, and of processor time by process."""
    secrets = ((path, _value(path)) for path in paths(SECRETS))
    before = processor_time(pids)
    begin, began = time.perf_counter(), datetime.now(UTC)
    await burst(hub, running.source.mount, secrets, connections=CONCURRENCY)
    written = time.perf_counter() - begin
    wanted = SECRETS * len(running.targets)
    while (there := await asyncio.to_thread(arrived, running)) < wanted:
        if time.perf_counter() - begin > PATIENCE:
            raise SystemExit(f"only {there} of {wanted} writes arrived:\n{running.log('serve')[-3000:]}")
        # Counting takes time that the others need.
        await asyncio.sleep(0.3)
    took = (last_arrival(running) - began).total_seconds()
    spent = {name: seconds - before[name] for name, seconds in processor_time(pids).items()}
    missing: list[str] = []
    for name, place in running.targets.items():
        target = Bare(session, place.vault, place.mount)  # type: ignore[arg-type]

        async def look(path: str, name: str = name, target: Bare = target) -> None:
            with contextlib.suppress(aiohttp.ClientResponseError):
                if (await target.get("data", path))["data"] == _value(path):
                    return
            missing.append(f"{name}:{path}")

        await each(paths(SECRETS), look)
    if missing:
        raise SystemExit(f"{len(missing)} writes never arrived: {missing[:5]}")
    return written, took, spent


async def latency(session: aiohttp.ClientSession, running: EventStack) -> tuple[list[float], list[float]]:
    """Milliseconds of ours and of the bare read-and-write, one pair a sample."""
    source = Bare(session, running.source.vault, running.source.mount)  # type: ignore[arg-type]
    place = running.targets["one"]
    target = Bare(session, place.vault, place.mount)  # type: ignore[arg-type]
    other = Bare(session, place.vault, place.vault.new_mount(2))  # type: ignore[attr-defined,arg-type]
    ours, bare = [], []
    for number in range(SAMPLES):
        path = f"latency/{number:04}"
        await source.put(path, _value(path))
        begin = time.perf_counter()
        while True:
            with contextlib.suppress(aiohttp.ClientResponseError):
                await target.get("data", path)
                break
            # Often enough, and yet leaving the machine to those who are measured.
            await asyncio.sleep(0.0005)
            if time.perf_counter() - begin > PATIENCE:
                raise SystemExit(f"{path} never arrived:\n{running.log('serve')[-3000:]}")
        ours.append((time.perf_counter() - begin) * 1000)
        await asyncio.sleep(PAUSE)
        begin = time.perf_counter()
        await other.put(path, (await source.get("data", path))["data"])
        bare.append((time.perf_counter() - begin) * 1000)
        await asyncio.sleep(PAUSE)
    return ours, bare


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@contextlib.contextmanager
def fresh_vaults() -> Iterator[dict[str, RealVault]]:
    """Three empty ones for each thing that is measured: one that holds some ten thousand secrets is a quarter slower."""
    with vault() as hub, vault() as one, vault() as two:
        yield {"hub": hub, "one": one, "two": two}


async def measure(parts: set[str]) -> None:
    connector = aiohttp.TCPConnector(limit=CONCURRENCY * 3)
    async with aiohttp.ClientSession(connector=connector) as session:
        if "latency" in parts:
            with fresh_vaults() as vaults, stack(vaults) as running:
                ours, bare = await latency(session, running)
            print(f"latency of {SAMPLES} writes, {PAUSE * 1000:.0f} ms apart, until they can be read at a destination")
            for percent in (50, 99):
                mine, theirs = percentile(ours, percent), percentile(bare, percent)
                print(
                    f"  p{percent}  {mine:6.1f} ms   bare read and write {theirs:5.1f} ms   ratio {mine / theirs:.1f}"
                )
        if "fan-out" in parts:
            with fresh_vaults() as vaults:
                bare = {"audit device on, as here": await bare_fan_out(session, vaults, device=True)}
            with fresh_vaults() as vaults:
                bare["no audit device"] = await bare_fan_out(session, vaults, device=False)
            with fresh_vaults() as vaults:
                bare["device on, beside the same burst"] = await bare_beside_burst(session, vaults)
            with fresh_vaults() as vaults, stack(vaults) as running:
                started = {name: process.pid for name, process in running.processes.items()}
                servers = {name: server.pid for name, server in vaults.items()}
                written, took, spent = await fan_out(
                    session, vaults["hub"], running, {**servers, **started, "burst": os.getpid()}
                )
            print(f"{SECRETS} secrets, one Vault → two, {CONCURRENCY} calls at once, all {2 * SECRETS} writes arrived")
            print(f"  the source took them at {SECRETS / written:.0f}/s, with its audit device on")
            print(f"  fan-out                                     {SECRETS / took:6.0f} secrets/s")
            for how, theirs in bare.items():
                print(f"  bare loop, {how:32} {SECRETS / theirs:6.0f} secrets/s   ratio {theirs / took:.2f}")
            shares = ", ".join(f"{name} {seconds / SECRETS * 1e6:.0f}" for name, seconds in spent.items())
            print(f"  µs of processor time a secret: {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["latency", "fan-out"])
    parts = set(parser.parse_args().parts)
    asyncio.run(measure(parts))


if __name__ == "__main__":
    main()
