"""Fixtures of the real servers; started on first use, one of each per test session (per worker under xdist).

They are shared: a Vault test works on a mount of its own (`real_vault.new_mount(2)`), a storage test on names of its
own. Whoever stops, seals or floods a server starts one with `more_vaults`.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.servers import processes
from tests.servers.processes import RealVault


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


@contextlib.contextmanager
def _present() -> Iterator[None]:
    try:
        yield
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)
