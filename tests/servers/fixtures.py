"""Fixtures of the real servers; started on first use, one of each per test session (per worker under xdist).

They are shared: a Vault test works on a mount of its own (`real_vault.new_mount(2)`), a storage test on names of its
own. Whoever stops, seals or floods a server starts one with `more_vaults`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import processes
from tests.servers.processes import RealVault

if TYPE_CHECKING:
    from tests.servers.bitwarden_cli import Bw, Hosted


@pytest.fixture(scope="session")
def real_vault() -> Iterator[RealVault]:
    """The session's Vault: `.url`, `.token`, `.call(...)`, `.new_mount(version)`."""
    with _present(), processes.vault() as server:
        yield server


@pytest.fixture
def more_vaults() -> Iterator[Callable[..., RealVault]]:
    """Start another Vault with each call, extra command-line arguments allowed; all stop after the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> RealVault:
            with _present():
                return stack.enter_context(processes.vault(*arguments))

        yield start


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The session's Azurite, as a storage connection string."""
    with _present(), processes.azurite() as connection_string:
        yield connection_string


@pytest.fixture(scope="module")
def bitwarden() -> "Iterator[Hosted]":
    """The module's Bitwarden-compatible sandbox server, in a thread of its own."""
    # Every test session reads this file; few need a server and its packages.
    from sandbox.bitwarden import BitwardenServer
    from tests.servers.bitwarden_cli import Hosted
    from tests.servers.hosting import hosting

    with hosting() as host:
        yield Hosted(host.start(BitwardenServer()), host)


@pytest.fixture(scope="module")
def new_bw(bitwarden: "Hosted", tmp_path_factory: pytest.TempPathFactory) -> "Callable[[], Bw]":
    """Another official client of that server with each call, logged in nowhere."""

    from tests.servers.bitwarden_cli import Bw

    def new() -> Bw:
        folder: Path = tmp_path_factory.mktemp("bw")
        with _present():
            return Bw.new(bitwarden.server, folder)

    return new


@contextlib.contextmanager
def _present() -> Iterator[None]:
    try:
        yield
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)
