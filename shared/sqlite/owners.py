"""Which processes that use a file are alive.

Each open database has a random token, and holds a lock on one byte of `<file>-owners`. The kernel drops the lock when the
process ends, however it ends, so that it is known at once what a killed process left claimed. Where the platform has no
`fcntl`, nobody is ever known to be dead.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

_TOKEN = re.compile(r"[0-9a-f]{14}")


class _Owners:
    """The descriptor of one `-owners` file, and which tokens this process holds on it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.tokens: set[str] = set()


_registry: dict[str, _Owners] = {}
"""One descriptor a file and process: closing any other one would drop all of the process's locks on it (fcntl(2))."""
_registry_lock = threading.Lock()


def _owners_path(path: Path) -> str:
    return os.path.realpath(path) + "-owners"


def hold(path: Path, token: str) -> None:
    if fcntl is None:
        return
    name = _owners_path(path)
    with _registry_lock:
        owners = _registry.get(name)
        if owners is None:
            owners = _registry[name] = _Owners(os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        fcntl.lockf(owners.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(token, 16))
        owners.tokens.add(token)


def let_go(path: Path, token: str) -> None:
    if fcntl is None:
        return
    name = _owners_path(path)
    with _registry_lock:
        owners = _registry.get(name)
        if owners is None or token not in owners.tokens:
            return
        owners.tokens.remove(token)
        fcntl.lockf(owners.descriptor, fcntl.LOCK_UN, 1, int(token, 16))
        if not owners.tokens:
            os.close(owners.descriptor)
            del _registry[name]


def dead(path: Path, tokens: Iterable[str]) -> set[str]:
    dead: set[str] = set()
    if fcntl is None:
        return dead
    with _registry_lock:
        owners = _registry.get(_owners_path(path))
        if owners is None:
            return dead
        for token in tokens:
            # A process never meets its own locks, so those are known from the registry.
            if not _TOKEN.fullmatch(token) or token in owners.tokens:
                continue
            try:
                # Shared: two processes that ask at the same time do not take each other for the owner.
                fcntl.lockf(owners.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, int(token, 16))
            except OSError:
                continue
            fcntl.lockf(owners.descriptor, fcntl.LOCK_UN, 1, int(token, 16))
            dead.add(token)
    return dead
