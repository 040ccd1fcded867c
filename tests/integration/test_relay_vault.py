"""A Vault, real and the sandbox's, talks to a relay over each kind of socket."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from sandbox.vault import VaultSandbox
from shared.relay.addresses import parse_listen
from shared.relay.http_forward import HttpForward
from shared.relay.listeners import CONNECTION
from shared.relay.relay import START, Relay
from tests.integration.relay_world import FakeApp
from tests.servers import processes
from tests.servers.processes import RealVault
from tests.servers.sinks import AnyVault, Kind

CANARY = "canary-a41c"
NAMES = ["apps/db", "a b/ü/日本", "deep/" + "x" * 190, "with-all/of it/" + "é" * 60]


@pytest.fixture(scope="module")
def own_vault() -> Iterator[RealVault]:
    """Not the session's: audit devices are the whole server's."""
    try:
        with processes.vault() as server:
            yield server
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
async def vault(request: pytest.FixtureRequest) -> AsyncIterator[AnyVault]:
    """With a KV v2 mount of the test's own: two/."""
    if request.param == "sandbox":
        async with VaultSandbox() as server:
            server.add_mount("two", 2)
            yield AnyVault("sandbox", server.url, server.root_token)
        return
    own: RealVault = request.getfixturevalue("own_vault")
    real = AnyVault("real", own.url, own.token)
    await real.fine("POST", "sys/mounts/two", {"type": "kv", "options": {"version": "2"}})
    await asyncio.to_thread(own.wait_for_upgrade, "two")
    yield real
    await real.fine("DELETE", "sys/mounts/two")


@asynccontextmanager
async def told(vault: AnyVault, kind: Kind, folder: Path) -> AsyncIterator[FakeApp]:
    """What a relay forwards that the Vault writes its raw log to."""
    with tempfile.TemporaryDirectory() as short:
        where = f"unix://{short}/s" if kind == "unix" else f"{kind}://127.0.0.1:0"
        async with (
            FakeApp() as app,
            HttpForward(app.url) as forward,
            Relay([parse_listen(where)], folder / "spool", forward, hold=0.0) as relay,
        ):
            address = relay.addresses[0]
            options = {"address": address.path or f"{address.host}:{address.port}", "socket_type": kind}
            await vault.enable("nowhere", "file", file_path="discard")
            await vault.enable("relay", "socket", log_raw="true", prefix="{hub} ", **options)
            try:
                yield app
            finally:
                await vault.without_devices()


@pytest.mark.parametrize("kind", ["tcp", "udp", "unix"])
async def test_every_kind_of_name_and_change_arrives_and_no_value_does(
    vault: AnyVault, kind: Kind, tmp_path: Path
) -> None:
    async with told(vault, kind, tmp_path) as app:
        for name in NAMES:
            where = "two/data/" + "/".join(quote(part) for part in name.split("/"))
            await vault.fine("POST", where, {"data": {"password": CANARY, "pin": 471147}})
            await vault.fine("POST", where, {"data": {"password": CANARY, "pin": 471147}})
            await vault.fine("GET", where)
        await vault.fine("DELETE", "two/data/apps/db")
        await app.until(lambda: set(app.paths) >= set(NAMES))
        assert set(app.paths) == set(NAMES)
        assert set(app.gaps) == ({START} if kind == "udp" else {START, CONNECTION})
        sent = json.dumps([request.records for request in app.requests])
        assert CANARY not in sent
        assert "471147" not in sent
    for file in (tmp_path / "spool").iterdir():
        content = file.read_bytes()
        assert CANARY.encode() not in content
        assert b"471147" not in content
