"""`make azurite` and `vaultferry serve` side by side, with the settings file that is meant for both."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from azure.data.tables import TableServiceClient
from azure.storage.queue import QueueServiceClient

from shared.resources import resources
from tests.integration.conftest import Sandbox
from tests.integration.test_serve import SECONDS, Served
from tests.servers.processes import connection_string

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
vaults:
  hub: {kind: hashicorp, address: "${VAULT_ADDR}", mount: secret, auth: {method: token, token: "${VAULT_TOKEN}"}}
  copy: {kind: hashicorp, address: "<second>", mount: secret, auth: {method: token, token: "${SECOND_TOKEN}"}}
syncs:
  hub-to-copy:
    schedule: "0 0 1 1 *"
    source: {vault: hub, prefix: apps/}
    targets: [{vault: copy}]
"""


@asynccontextmanager
async def azurite(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str], str]]:
    """What `make azurite` runs, on free ports: its process, where each service answers, and what it said."""
    ports = [option for name in ("blob", "queue", "table") for option in (f"--{name}-port", "0")]
    command = (sys.executable, "-m", "tests.servers.azurite", "--folder", str(folder), *ports)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            said = (await process.stdout.readuntil(b"func start\n")).decode()
        urls = {
            name: url.rstrip("/") for name, url in re.findall(r"Azurite (\w+) service is .* listening at (\S+)", said)
        }
        yield process, urls, said
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    """`vaultferry serve` in a folder, with nothing of ours in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from shared.cli import main; main()", "--json", "serve", "--port", "0"),
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(SECONDS):
                told = await process.stdout.readuntil(b"}\n")
        except asyncio.IncompleteReadError:
            raise AssertionError((await process.communicate())[1].decode()) from None
        async with httpx.AsyncClient(base_url=json.loads(told)["url"], timeout=SECONDS) as client:
            yield Served(process, client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_sync_runs_on_azurite_with_the_example_settings(sandbox: Sandbox) -> None:
    folder = sandbox.folder
    sandbox.source.put("secret", "apps/db", {"value": "v"})
    (folder / "vaultferry.yaml").write_text(CONFIG.replace("<second>", str(sandbox.second.url)))
    document = json.loads((ROOT / "local.settings.example.json").read_text("utf-8"))
    async with azurite(folder / "azurite") as (process, urls, said):
        assert "cp local.settings.example.json local.settings.json" in said
        assert document["Values"]["AzureWebJobsStorage"] == "UseDevelopmentStorage=true"
        storage = connection_string(urls)
        document["Values"] |= {
            "AzureWebJobsStorage": storage,
            "VAULTFERRY_DIGEST_KEY": secrets.token_hex(32),
            "VAULT_ADDR": sandbox.source.url,
            "VAULT_TOKEN": sandbox.source.root_token,
            "SECOND_TOKEN": sandbox.second.root_token,
        }
        (folder / "local.settings.json").write_text(json.dumps(document))
        async with serving(folder) as served:
            assert (await served.get("/health"))["status"] == "ok"
            run = await served.ended((await served.post("/syncs/hub-to-copy/execute", 202))["run_id"])
            assert (run["status"], run["written"]) == ("succeeded", 1)
            code, log = await served.terminate()
        assert code == 0, log
        assert "local.settings.json sets AzureWebJobsStorage" in log
        assert sandbox.source.root_token not in log
        assert sandbox.second.get("secret", "db") == {"value": "v"}
        # It was really there: nothing fell back on a file.
        assert not list(folder.glob("*.db"))
        with QueueServiceClient.from_connection_string(storage) as queues:
            assert {queue.name for queue in queues.list_queues()} == set(resources(["copy"]).queues)
        with TableServiceClient.from_connection_string(storage) as tables:
            assert {table.name for table in tables.list_tables()} == set(resources(["copy"]).tables)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(urls["Queue"])


async def test_what_azurite_was_given_is_there_again(tmp_path: Path) -> None:
    for expected in ([], ["kept"]):
        async with azurite(tmp_path) as (_, urls, _):
            with QueueServiceClient.from_connection_string(connection_string(urls)) as queues:
                assert [queue.name for queue in queues.list_queues()] == expected
                if not expected:
                    queues.create_queue("kept").close()


async def test_a_port_that_is_taken_is_told_of(tmp_path: Path) -> None:
    async with azurite(tmp_path / "one") as (_, urls, _):
        port = urls["Blob"].rpartition(":")[2]
        command = (sys.executable, "-m", "tests.servers.azurite", "--folder", str(tmp_path / "two"))
        ports = ("--blob-port", port, "--queue-port", "0", "--table-port", "0")
        process = await asyncio.create_subprocess_exec(*command, *ports, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    assert "Something else has that port" in said.decode(), said
    assert process.returncode == 1
