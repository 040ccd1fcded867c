"""Sandbox servers in a thread of their own, for tests that block: those that run a command line and wait for it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from sandbox.server import SandboxServer

_Server = TypeVar("_Server", bound=SandboxServer)
_Result = TypeVar("_Result")


class Host:
    """A running event loop and the servers in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started: list[SandboxServer] = []

    def start(self, server: _Server) -> _Server:
        asyncio.run_coroutine_threadsafe(server.start(), self._loop).result()
        self._started.append(server)
        return server

    def do(self, action: Callable[[], _Result]) -> _Result:
        """Does this where the servers live, between two requests."""

        async def once() -> _Result:
            return action()

        return asyncio.run_coroutine_threadsafe(once(), self._loop).result()

    def close(self) -> None:
        for server in reversed(self._started):
            asyncio.run_coroutine_threadsafe(server.close(), self._loop).result()


@contextlib.contextmanager
def hosting() -> Iterator[Host]:
    """A thread until the block ends, and with it its servers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="sandbox", daemon=True)
    thread.start()
    host = Host(loop)
    try:
        yield host
    finally:
        try:
            host.close()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
