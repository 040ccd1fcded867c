"""A relay's sockets: every kind at once, in any pieces, with nonsense, cuts and reconnects; and it as a process that is
killed, stopped, and short of disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.audit import MAX_VALUES
from shared.errors import ConfigError
from shared.relay import listeners
from shared.relay import relay as relay_module
from shared.relay.addresses import Address, parse_http, parse_listen
from shared.relay.coalescing import Coalescing
from shared.relay.forwarder import Answer, Batch
from shared.relay.listeners import CONNECTION, CUT, KERNEL, TOO_LONG, StreamListener, kernel_drops
from shared.relay.relay import JSONX, OVERFLOW, PATH_TOO_LONG, START, UNREADABLE, Bounds, Relay
from shared.relay.status import as_prometheus, serve_status
from tests.event_stack import free_port
from tests.integration.relay_world import ROOT, FakeApp, connected, line, process, send_datagram, until

CANARY = "canary-55e1"


class Heard:
    """The other side of a relay, in this process."""

    def __init__(self) -> None:
        self.notices: list[Any] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, batch: Batch) -> Answer:
        await self.open.wait()
        self.notices += batch.notices
        return Answer()

    @property
    def paths(self) -> set[str]:
        return {notice.path.removeprefix("data/") for notice in self.notices if hasattr(notice, "path")}

    @property
    def gaps(self) -> list[str]:
        return [notice.why for notice in self.notices if hasattr(notice, "why")]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def short() -> Iterator[Path]:
    """A unix socket's path has a limit of about 100 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@asynccontextmanager
async def listening(heard: Heard, folder: Path, *where: str, **more: Any) -> AsyncIterator[Relay]:
    async with Relay([parse_listen(each) for each in where], folder / "spool", heard, hold=0.0, **more) as relay:
        yield relay


async def test_every_kind_of_socket_at_once(heard: Heard, tmp_path: Path, short: Path) -> None:
    where = ["udp://127.0.0.1:0", "udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]
    where += [f"unix://{short}/a", f"unix://{short}/b"]
    async with listening(heard, tmp_path, *where) as relay:
        for number, address in enumerate(relay.addresses):
            if address.kind == "udp":
                send_datagram(address, line(f"p{number}"))
            else:
                async with connected(address) as writer:
                    writer.write(line(f"p{number}"))
        await until(lambda: heard.paths == {f"p{number}" for number in range(6)})


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


async def test_a_name_of_several_addresses_is_heard_at_each_that_this_machine_has(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if has_ipv6() else socket.AF_INET
    places = [
        (socket.AF_INET, ("192.0.2.1", 0)),  # nobody's: RFC 5737
        (family, ("::1", 0, 0, 0) if family == socket.AF_INET6 else ("127.0.0.2", 0)),
        (socket.AF_INET, ("127.0.0.1", 0)),
    ]

    async def found(*_: Any, **__: Any) -> list[Any]:
        return [(family, socket.SOCK_DGRAM, 17, "", where) for family, where in places]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    async with listening(heard, tmp_path, "udp://localhost:0") as relay:
        port = relay.addresses[0].port
        for number, (family, where) in enumerate(places[1:]):
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                out.sendto(line(f"p{number}"), (where[0], port))
        await until(lambda: heard.paths == {"p0", "p1"})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        taken = f"udp://localhost:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="another process listens there"):
            await Relay([parse_listen(taken)], tmp_path / "other", heard).start()
    del places[1:]
    with pytest.raises(ConfigError, match=r"can not listen on udp://localhost:0 \(Cannot assign requested address"):
        await Relay([parse_listen("udp://localhost:0")], tmp_path / "other", heard).start()


@pytest.mark.parametrize("size", [1, 7, 1000, 1_000_000])
async def test_entries_in_pieces_or_many_at_once(heard: Heard, tmp_path: Path, size: int) -> None:
    stream = b"".join(line(f"{number}/ü b/" + "x" * 200) for number in range(50))
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, connected(relay.addresses[0]) as writer:
        for at in range(0, len(stream), size):
            writer.write(stream[at : at + size])
            await writer.drain()
        await until(lambda: len(heard.paths) == 50)
        assert UNREADABLE not in heard.gaps


async def test_a_burst_on_one_path_is_one_record_that_waits(heard: Heard, tmp_path: Path) -> None:
    heard.open.clear()
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, connected(relay.addresses[0]) as writer:
        for version in range(1, 1001):
            writer.write(line("a", version))
        await until(lambda: relay.counters.received == 1000)
        heard.open.set()
        await until(lambda: relay.waiting == 0)
    versions = [notice.version for notice in heard.notices if hasattr(notice, "version")]
    # One batch may have been on its way when the others came, and one change on its way to the disk.
    assert versions[-1] == 1000
    assert len(versions) <= 3
    assert 1000 - len(versions) <= relay.counters.merged <= 999


async def test_a_new_connection_and_one_that_is_cut_are_gaps_but_a_look_at_the_port_is_none(
    heard: Heard, tmp_path: Path
) -> None:
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay:
        async with connected(relay.addresses[0]):
            pass
        await until(lambda: heard.gaps == [START])
        async with connected(relay.addresses[0]) as writer:
            writer.write(line("a"))
        await until(lambda: heard.gaps == [START, CONNECTION])
        async with connected(relay.addresses[0]) as writer:
            writer.write(line("b") + line("c")[:40])
        await until(lambda: sorted(heard.gaps) == sorted([START, CONNECTION, CONNECTION, CUT]))
    assert heard.paths == {"a", "b"}


async def test_a_frame_without_end_takes_bounded_memory_and_is_a_gap(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, connected(relay.addresses[0]) as writer:
        (stream,) = relay._listeners
        assert isinstance(stream, StreamListener)
        stream.max_frame = 10_000
        async with connected(relay.addresses[0]) as other:
            for _ in range(100):
                other.write(b"x" * 10_000)
                await other.drain()
            other.write(b"\n" + line("after"))
            await until(lambda: "after" in heard.paths)
            assert stream.begun < 10_000
        writer.write(line("still"))
        await until(lambda: {"still"} <= heard.paths and TOO_LONG in heard.gaps)
        assert relay.counters.too_long == 1


async def test_connections_are_bounded_and_it_is_said_once(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 2)
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, contextlib.AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(connected(relay.addresses[0])) for _ in range(2)]
        for number, writer in enumerate(writers):
            writer.write(line(f"first{number}"))
        await until(lambda: heard.paths == {"first0", "first1"})
        for _ in range(3):
            # A Vault whose device is not let in tries again with each request.
            reader, extra = await asyncio.open_connection("127.0.0.1", relay.addresses[0].port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            extra.close()
        assert caplog.text.count("no more are taken") == 1
        writers[0].write(line("a"))
        await until(lambda: "a" in heard.paths)


async def test_connections_that_never_say_anything_keep_nobody_out(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listeners, "MAX_CONNECTIONS", 3)
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, contextlib.AsyncExitStack() as stack:
        vault = await stack.enter_async_context(connected(relay.addresses[0]))
        vault.write(line("a"))
        await until(lambda: heard.paths == {"a"})
        port = relay.addresses[0].port
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        other = await stack.enter_async_context(connected(relay.addresses[0]))
        other.write(line("b"))
        await until(lambda: heard.paths == {"a", "b"})
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b""
        vault.write(line("c"))
        await until(lambda: heard.paths == {"a", "b", "c"})
        assert heard.gaps.count(CONNECTION) == 2
        assert CUT not in heard.gaps
        assert "no more are taken" not in caplog.text
        for _, writer in silent:
            writer.close()


def fast_loop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, fast_loop])
def test_a_vault_that_is_gone_without_a_word_does_not_keep_its_connection(
    heard: Heard, tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay, connected(relay.addresses[0]) as writer:
            writer.write(line("a"))
            await until(lambda: "a" in heard.paths)
            (stream,) = relay._listeners
            assert isinstance(stream, StreamListener)
            (connection,) = stream.connections
            assert connection._transport is not None
            server_side = connection._transport.get_extra_info("socket")
            assert server_side.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            # With the system's own patience, it would be asked for the first time after two hours.
            assert server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


class AlwaysResting(Coalescing):
    def rest(self, now: float, size: int) -> float:
        return 0.005


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, fast_loop])
def test_what_a_vault_says_while_it_is_not_read_is_heard_to_the_last_byte(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr(listeners, "Coalescing", AlwaysResting)

    async def main() -> None:
        async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay:
            async with connected(relay.addresses[0]) as writer:
                for number in range(200):
                    writer.write(line(f"p{number}"))
                    await asyncio.sleep(0)
                writer.write(line("cut")[:-9])
            await until(lambda: CUT in heard.gaps)
            assert heard.paths == {f"p{number}" for number in range(200)}
            async with connected(relay.addresses[0]) as writer:
                writer.write(line("again"))
                await until(lambda: "again" in heard.paths)
                # It rests now: ending here is no error.
                writer.write(line("unheard"))

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("kind", ["udp", "tcp", "unix"])
async def test_random_bytes_are_nothing_but_a_gap(heard: Heard, tmp_path: Path, short: Path, kind: str) -> None:
    where = f"unix://{short}/s" if kind == "unix" else f"{kind}://127.0.0.1:0"
    noise = random.Random(7)
    async with listening(heard, tmp_path, where) as relay:
        address = relay.addresses[0]
        if kind == "udp":
            for _ in range(2000):
                send_datagram(address, noise.randbytes(1000))
                await asyncio.sleep(0)
            send_datagram(address, line("after"))
        else:
            async with connected(address) as writer:
                for _ in range(300):
                    writer.write(noise.randbytes(10_000))
                    await writer.drain()
                writer.write(b"\n" + line("after"))
        await until(lambda: "after" in heard.paths)
        assert relay.counters.unreadable > 1000
    assert heard.paths == {"after"}
    assert set(heard.gaps) <= {START, CONNECTION, UNREADABLE, JSONX}


async def test_jsonx_is_told_apart(heard: Heard, tmp_path: Path) -> None:
    async with listening(heard, tmp_path, "udp://127.0.0.1:0") as relay:
        send_datagram(relay.addresses[0], b'<json:object name="auth"><json:string>x</json:string></json:object>\n')
        await until(lambda: JSONX in heard.gaps)
        assert relay.counters.jsonx == 1
        assert (relay.health()["status"], relay.health()["checks"]["device"]) == ("error", JSONX)
        send_datagram(relay.addresses[0], line("a"))
        await until(lambda: "a" in heard.paths)
        assert relay.health()["status"] == "ok", "somebody has put it right"


async def test_a_line_that_would_take_seconds_to_read_is_a_gap(heard: Heard, tmp_path: Path) -> None:
    many = line("a")[:-2] + b',"x":[' + b"[]," * MAX_VALUES + b"0]}"
    async with listening(heard, tmp_path) as relay:
        relay.line(many)
        await until(lambda: UNREADABLE in heard.gaps)
        relay.line(line("b"))
        await until(lambda: heard.paths == {"b"})


async def test_what_can_not_be_read_is_told_once_and_counted_each_time(
    heard: Heard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vaultferry.relay")
    async with listening(heard, tmp_path) as relay:
        for number in range(3):
            relay.line(b"noise")
            await until(lambda number=number: heard.gaps.count(UNREADABLE) == number + 1)  # type: ignore[misc]
        assert relay.counters.gaps == 4, "and the start"
    assert caplog.text.count(f"gap: {UNREADABLE}") == 1


async def test_what_does_not_fit_into_memory_is_a_gap(heard: Heard, tmp_path: Path) -> None:
    async with listening(heard, tmp_path, bounds=Bounds(pending_paths=3)) as relay:
        for number in range(10):
            relay.line(line(f"p{number}"))
        relay.line(line("x" * 10_000))
        await until(lambda: {OVERFLOW, PATH_TOO_LONG} <= set(heard.gaps) and relay.waiting == 0)
        assert relay.counters.dropped == 8
    assert heard.paths == {"p0", "p1", "p2"}


async def test_a_full_disk_costs_nothing_but_time(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RETRY_DISK", 0.01)
    async with listening(heard, tmp_path) as relay:
        await until(lambda: relay.waiting == 0)
        pages = await relay.spool.database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await relay.spool.database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        for number in range(200):
            relay.line(line(f"{number}/" + "x" * 1000))
        await until(lambda: relay.counters.spool_failures > 2)
        assert relay.health()["status"] == "error"
        assert "disk is full" in relay.health()["checks"]["spool"]
        relay.line(line("meanwhile"))
        await relay.spool.database.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        await until(lambda: len(heard.paths) == 201)
        assert relay.health()["status"] == "ok"


async def test_a_stale_socket_is_replaced_and_a_living_one_is_not(heard: Heard, tmp_path: Path, short: Path) -> None:
    where, file = f"unix://{short}/s", short / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(file))
    async with listening(heard, tmp_path, where):
        assert stat.S_IMODE(file.stat().st_mode) == 0o660
        with pytest.raises(ConfigError, match="another process listens there"):
            await Relay([parse_listen(where)], tmp_path / "other", heard).start()
    assert not file.exists()
    file.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        await Relay([parse_listen(where)], tmp_path / "other", heard).start()
    assert file.read_text() == "precious"


async def test_a_port_that_is_taken_is_named_and_nothing_stays_open(heard: Heard, tmp_path: Path) -> None:
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0") as relay:
        again = Relay([parse_listen("udp://127.0.0.1:0"), relay.addresses[0]], tmp_path / "other", heard)
        with pytest.raises(ConfigError, match=f"{relay.addresses[0].port} .*another process listens there"):
            await again.start()


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="only Linux tells")
async def test_what_the_kernel_drops_is_told(heard: Heard, tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as full,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        full.bind(("127.0.0.1", 0))
        for _ in range(100):
            out.sendto(b"x" * 1000, full.getsockname())
        drops = kernel_drops(os.fstat(full.fileno()).st_ino)
    assert drops is not None
    assert 50 < drops < 100
    assert kernel_drops(1 << 62) is None


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="only Linux tells")
async def test_what_the_kernel_drops_is_counted_once_and_is_a_gap(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "RECEIVE_BUFFER", 4096)
    async with listening(heard, tmp_path, "udp://127.0.0.1:0") as relay:
        (udp,) = relay._listeners
        for _ in range(2):
            # Nobody reads meanwhile: this is one step of the loop.
            for _ in range(100):
                send_datagram(relay.addresses[0], line("a"))
            udp.watch()
            udp.watch()
            await until(lambda: relay.counters.received + relay.counters.dropped_by_kernel in (100, 200))
        await until(lambda: heard.gaps.count(KERNEL) >= 1)
        assert relay.counters.received + relay.counters.dropped_by_kernel == 200
        assert relay.counters.dropped_by_kernel > 100


async def test_health_and_metrics(heard: Heard, tmp_path: Path) -> None:
    async with (
        listening(heard, tmp_path, "udp://127.0.0.1:0") as relay,
        serve_status(relay, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as session,
    ):
        send_datagram(relay.addresses[0], line("a"))
        send_datagram(relay.addresses[0], line("a", operation="read"))
        send_datagram(relay.addresses[0], b'{"type": "response", "operation": "update", "kv": 7, "request": 7}')
        await until(lambda: relay.counters.forwarded == 3 and relay.counters.received == 3)
        async with session.get(f"{url}/health") as answer:
            assert answer.status == 200
            assert (await answer.json())["status"] == "ok"
        async with session.get(f"{url}/metrics") as answer:
            assert answer.content_type == "text/plain"
            text = await answer.text()
    values = dict(each.rsplit(" ", 1) for each in text.splitlines() if not each.startswith("#"))
    assert values["vaultferry_relay_received_total"] == "3"
    assert values["vaultferry_relay_filtered_total"] == "1"
    assert values["vaultferry_relay_unreadable_total"] == "1"
    assert values["vaultferry_relay_forwarded_total"] == "3"
    assert values["vaultferry_relay_waiting"] == "0"
    assert values["vaultferry_relay_lag_seconds"] == "0.0"


async def test_a_vault_that_is_not_connected_any_more_is_told(heard: Heard, tmp_path: Path, short: Path) -> None:
    async with listening(heard, tmp_path, "tcp://127.0.0.1:0", f"unix://{short}/s", "udp://127.0.0.1:0") as relay:
        assert relay.open_connections == 0
        async with connected(relay.addresses[0]), connected(relay.addresses[1]):
            await until(lambda: relay.open_connections == 2)
            assert "vaultferry_relay_open_connections 2\n" in await as_prometheus(relay)
        await until(lambda: relay.open_connections == 0)


@pytest.mark.parametrize(
    "text",
    ["", "tcp://", "tcp://:1269", "tcp://h", "tcp://h:99999", "tcp://h:1/x", "http://h:1", "unix://x/y", "unix:///",
     "unix:///s?mode=9", "unix:///s?mode=7777", "unix:///s?owner=me", "1269"],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_addresses() -> None:
    assert parse_listen("udp://0.0.0.0:1269") == Address("udp", "0.0.0.0", 1269)
    assert str(parse_listen("tcp://[::1]:1269")) == "tcp://[::1]:1269"
    assert parse_listen("unix:///run/a%20b?mode=0666") == Address("unix", path="/run/a b", mode=0o666)
    assert [parse_http(text) for text in ("8080", ":8080", "0.0.0.0:1", "[::1]:1")] == [
        ("127.0.0.1", 8080), ("127.0.0.1", 8080), ("0.0.0.0", 1), ("::1", 1),
    ]  # fmt: skip


# --- as a process -----------------------------------------------------------------------------------------------------


async def test_no_value_of_a_raw_log_reaches_disk_log_or_wire(tmp_path: Path) -> None:
    port = free_port()
    raw = json.loads(line("apps/db", 3))
    raw["request"] |= {"data": {"data": {"password": CANARY}}, "client_token": CANARY}
    raw["response"] |= {"headers": {CANARY: [CANARY]}}
    read = {**raw, "request": {**raw["request"], "operation": "read"}}
    lines = [json.dumps(each).encode() + b"\n" for each in (raw, read)]
    lines += [lines[0][:-9] + b"\n", b"{" + lines[0]]
    async with FakeApp() as app, process(tmp_path, app, port, "--log-level", "debug") as running:
        async with connected(Address("tcp", "127.0.0.1", port)) as writer:
            writer.write(b"".join(lines))
            await app.until(lambda: "apps/db" in app.paths and UNREADABLE in app.gaps)
        running.send_signal(signal.SIGTERM)
        _, logged = await running.communicate()
        assert running.returncode == 0
        assert CANARY.encode() not in logged
        for request in app.requests:
            assert CANARY not in json.dumps(request.records) + json.dumps(request.headers)
    for file in (tmp_path / "spool").iterdir():
        assert CANARY.encode() not in file.read_bytes()


async def test_the_container_holds_all_that_the_relay_imports_and_no_sdk(tmp_path: Path) -> None:
    copied = tmp_path / "app"
    for instruction in (ROOT / "infra/relay/Dockerfile").read_text().splitlines():
        if not instruction.startswith("COPY shared"):
            continue
        *sources, target = instruction.split()[1:]
        for source in sources:
            (copied / target).mkdir(parents=True, exist_ok=True)
            if source.endswith("/"):
                shutil.copytree(ROOT / source, copied / target, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, copied / target)
    port = free_port()
    async with FakeApp() as app, process(tmp_path, app, port, "--http", "0", root=copied, PYTHONPATH=str(copied)):
        await app.until(lambda: app.gaps == [START])
    check = (
        "import sys, shared.relay.process, shared.relay.__main__, aiohttp.web\n"
        "foreign = {name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(foreign & {'azure', 'hvac', 'pydantic', 'typer', 'rich', 'structlog', 'yaml', 'httpx', 'click'}))"
    )
    checking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", check, cwd=copied, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""}
    )
    out, _ = await checking.communicate()
    assert out.strip() == b"[]"
