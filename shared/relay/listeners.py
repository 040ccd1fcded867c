"""The sockets: they hand over each line that they hear, and say when something may have been missed.

Nothing here waits for anybody but the network, and none is read for long while others have something to say. A stream that
is busy is read every few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from typing import Any, Protocol, cast

from shared.errors import ConfigError
from shared.relay.addresses import Address
from shared.relay.coalescing import Coalescing
from shared.relay.frames import MAX_FRAME, Frames

log = logging.getLogger("vaultferry.relay")

BURST = 128
"""Datagrams that are read before other sockets get their turn."""
LARGEST = 65_536
"""No datagram is longer."""
RECEIVE_BUFFER = 8 * 1024 * 1024
"""Bytes that the kernel is asked to keep for us while we do something else."""
MAX_CONNECTIONS = 64
"""A listener's. Each Vault has one."""
KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""Seconds of silence after which the other end is asked whether it is there, seconds between two such questions, and how
many may stay unanswered. A Vault whose machine or network is gone would else keep its connection for ever: tcp(7)."""
MAX_BEGUN = 64 * 1024 * 1024
"""Bytes of frames that have not ended yet, on all connections of a listener."""

CONNECTION = "a new connection: what was said before it may be lost"
CUT = "a connection ended in the middle of an entry"
TOO_LONG = "an entry was too long"
KERNEL = "datagrams came faster than they were read"


class Ears(Protocol):
    """Who is told what the sockets hear."""

    def line(self, line: bytes) -> None: ...

    def gap(self, why: str) -> None: ...

    def connected(self) -> None: ...

    def passed_over(self, frames: int) -> None: ...

    def dropped_by_kernel(self, datagrams: int) -> None: ...


class Listener(Protocol):
    address: Address
    """Where it listens; with the port that was taken, once it is open."""

    async def open(self) -> None:
        """Raises ConfigError."""

    def watch(self) -> None:
        """Look at what can only be asked for. Called about once a second."""

    async def aclose(self) -> None: ...


def listener(address: Address, ears: Ears) -> Listener:
    return UdpListener(address, ears) if address.kind == "udp" else StreamListener(address, ears)


# --- datagrams --------------------------------------------------------------------------------------------------------


class UdpListener:
    def __init__(self, address: Address, ears: Ears) -> None:
        self.address = address
        self._ears = ears
        self._sockets: dict[socket.socket, int] = {}
        """Each with the kernel's last count of what it dropped. One, unless the host has several addresses."""

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._bind_all()
        except OSError as error:
            self._close()
            raise _not_listening(self.address, error) from None
        for receiver in self._sockets:
            loop.add_reader(receiver, self._read, receiver)

    async def _bind_all(self) -> None:
        """Whoever sends to localhost may mean ::1 or 127.0.0.1, and is not told when nobody listens there."""
        found = await asyncio.get_running_loop().getaddrinfo(
            self.address.host, self.address.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        missing: OSError | None = None
        for family, _, _, _, where in dict.fromkeys(found):
            try:
                self._bind(family, (where[0], self.address.port, *where[2:]))
            except OSError as error:
                # Of a name's addresses, this machine need not have all: without IPv6, localhost is ::1 all the same.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
        if missing is not None and not self._sockets:
            raise missing

    def _bind(self, family: int, where: tuple[Any, ...]) -> None:
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        try:
            receiver.setblocking(False)
            receiver.bind(where)
        except OSError:
            receiver.close()
            raise
        self._sockets[receiver] = 0
        self._ask_for_room(receiver)
        self.address = Address("udp", self.address.host, receiver.getsockname()[1])

    def watch(self) -> None:
        for receiver, before in self._sockets.items():
            drops = kernel_drops(os.fstat(receiver.fileno()).st_ino)
            if drops is None or drops == before:
                continue
            # The kernel's count is of 32 bits.
            self._ears.dropped_by_kernel((drops - before) % (1 << 32))
            self._sockets[receiver] = drops
            self._ears.gap(KERNEL)

    async def aclose(self) -> None:
        for receiver in self._sockets:
            for _ in range(100):
                # What has come is heard before the socket is gone.
                if not self._read(receiver):
                    break
        self.watch()
        for receiver in self._sockets:
            asyncio.get_running_loop().remove_reader(receiver)
        self._close()

    def _close(self) -> None:
        for receiver in self._sockets:
            receiver.close()
        self._sockets = {}

    def _read(self, receiver: socket.socket) -> bool:
        """Read what is there; whether there may be more."""
        for _ in range(BURST):
            try:
                data = receiver.recv(LARGEST)
            except OSError:
                # Nothing there; or what somebody else's datagram met on its way, which is no concern of ours.
                return False
            if b"\n" not in data[:-1]:
                self._ears.line(data)
            else:
                for line in data.split(b"\n"):
                    self._ears.line(line)
        return True

    def _ask_for_room(self, receiver: socket.socket) -> None:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        # Linux answers with twice of what it gives: socket(7).
        given = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if given < RECEIVE_BUFFER:
            log.warning(
                "%s: the kernel keeps %d KiB for bursts, %d KiB were asked for: raise net.core.rmem_max",
                self.address,
                given // 1024,
                RECEIVE_BUFFER // 1024,
            )


def kernel_drops(inode: int) -> int | None:
    """How many datagrams the kernel threw away for want of room on the socket with this inode; None: it does not tell.

    https://docs.kernel.org/networking/proc_net_tcp.html has the same columns, but for the last.
    """
    wanted = str(inode)
    for name in ("/proc/net/udp", "/proc/net/udp6"):
        with contextlib.suppress(OSError, ValueError), open(name, encoding="ascii") as table:
            for row in table:
                columns = row.split()
                if len(columns) >= 13 and columns[9] == wanted:
                    return int(columns[12])
    return None


# --- streams ----------------------------------------------------------------------------------------------------------


class StreamListener:
    """A TCP port or a unix socket."""

    def __init__(self, address: Address, ears: Ears, *, max_frame: int = MAX_FRAME) -> None:
        self.address = address
        self.max_frame = max_frame
        self.ears = ears
        self.connections: dict[_Connection, None] = {}
        """In the order in which they came."""
        self.quiet = asyncio.Event()
        """Set when the last connection ends."""
        self._server: asyncio.Server | None = None
        self._file: tuple[int, int] | None = None
        self._said_full = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.address.kind == "unix":
                receiver = self._bind_unix()
                self._server = await loop.create_unix_server(lambda: _Connection(self), sock=receiver)
                return
            self._server = await loop.create_server(
                lambda: _Connection(self), self.address.host, self.address.port, reuse_address=True
            )
        except OSError as error:
            raise _not_listening(self.address, error) from None
        self.address = Address("tcp", self.address.host, self._server.sockets[0].getsockname()[1])

    def watch(self) -> None:
        """Nothing: streams tell by themselves."""

    async def aclose(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            connection.hang_up()
        if self.connections:
            await self.quiet.wait()
        self._server = None
        if self._file is not None:
            with contextlib.suppress(OSError):
                found = os.stat(self.address.path)
                if (found.st_dev, found.st_ino) == self._file:
                    os.unlink(self.address.path)
            self._file = None

    def make_room(self) -> bool:
        """Whether one more connection is taken: also in the place of one that never said anything, and so loses nothing.

        Said once while there is none: who is not let in tries again with each request.
        """
        full = len(self.connections) >= MAX_CONNECTIONS
        if full and (silent := next((one for one in self.connections if not one.heard), None)) is not None:
            del self.connections[silent]
            silent.hang_up()
            full = False
        if full and not self._said_full:
            log.warning("%s has %d connections: no more are taken", self.address, MAX_CONNECTIONS)
        self._said_full = full
        return not full

    @property
    def begun(self) -> int:
        return sum(connection.frames.kept for connection in self.connections)

    def _bind_unix(self) -> socket.socket:
        path = self.address.path
        _remove_stale(path)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Not chmod after bind: in between, anybody could connect.
        before = os.umask(0o777 & ~self.address.mode)
        try:
            receiver.bind(path)
        except OSError:
            receiver.close()
            raise
        finally:
            os.umask(before)
        found = os.stat(path)
        self._file = (found.st_dev, found.st_ino)
        return receiver


class _Connection(asyncio.Protocol):
    def __init__(self, listener: StreamListener) -> None:
        self.frames = Frames(listener.max_frame)
        self._listener = listener
        self._ears = listener.ears
        self._coalescing = Coalescing()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._listener.make_room():
            self._transport.abort()
            return
        if self._listener.address.kind == "tcp":
            _keep_alive(transport.get_extra_info("socket"))
        self._listener.connections[self] = None
        self._listener.quiet.clear()

    def data_received(self, data: bytes) -> None:
        if not self.heard:
            # Only now: whoever merely looks whether somebody listens loses nothing.
            self.heard = True
            self._ears.connected()
            self._ears.gap(CONNECTION)
        before = self.frames.too_long
        for line in self.frames.feed(data):
            self._ears.line(line)
        if self.frames.kept > len(data) and self._listener.begun > MAX_BEGUN:
            self.frames.skip()
        if self.frames.too_long > before:
            self._ears.passed_over(self.frames.too_long - before)
            self._ears.gap(TOO_LONG)
        if self._transport is not None and (rest := self._coalescing.rest(self._loop.time(), len(data))):
            self._transport.pause_reading()
            self._loop.call_later(rest, self._go_on)

    def _go_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.pop(self, None)
        if not self._listener.connections:
            self._listener.quiet.set()
        if self.frames.in_the_middle:
            self._ears.gap(CUT)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _keep_alive(connected: socket.socket) -> None:
    # Some systems refuse it for one that is gone already.
    with contextlib.suppress(OSError):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# --- what can go wrong ------------------------------------------------------------------------------------------------


def _remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone. Raises ConfigError where it is another's, or no socket."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"unix://{path}: there is a file of this name, and it is no socket: name another")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener whose queue is full would keep a blocking call waiting.
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer in (0, errno.EAGAIN):
        raise ConfigError(f"unix://{path}: another process listens there: stop it, or name another")
    os.unlink(path)


def _not_listening(address: Address, error: OSError) -> ConfigError:
    why = error.strerror or type(error).__name__
    if isinstance(error, PermissionError) and address.kind != "unix" and address.port < 1024:
        why += ": ports below 1024 are root's; choose a higher one, or grant CAP_NET_BIND_SERVICE"
    elif error.errno == errno.EADDRINUSE:
        why += ": another process listens there; stop it, or choose another"
    return ConfigError(f"can not listen on {address} ({why})")
