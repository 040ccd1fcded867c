"""POST /audit and POST /events of `vaultferry serve`: what they name is carried, what is not in order is refused."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from shared.signing import sign
from tests.integration.conftest import Sandbox
from tests.integration.test_serve import KEY, ROOT, Served, serving, until

NEW, OLD = "the-new-secret-that-signs", "the-old-secret-that-signs"
ENV = {"VAULTFERRY_AUDIT_SECRET": f"{NEW},{OLD}"}
SYNC = """
  s:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}]
    delete: {propagate: true}
"""


def signed(body: bytes, *, batch: str, secret: str = NEW, age: int = 0) -> dict[str, str]:
    seconds = int(time.time()) - age
    return {
        "X-Vaultferry-Timestamp": str(seconds),
        "X-Vaultferry-Batch": batch,
        "X-Vaultferry-Signature": sign(secret, seconds, batch, body),
    }


def line(path: str, operation: str = "update", version: int | None = None) -> bytes:
    """An entry as a Vault logs it."""
    request = {"operation": operation, "mount_point": "secret/", "mount_type": "kv", "path": f"secret/{path}"}
    return json.dumps({"type": "response", "request": request, "response": {"data": {"version": version}}}).encode()


async def arrived(sandbox: Sandbox, name: str, value: str | None) -> None:
    async def same() -> bool:
        found = sandbox.second.get("secret", f"copy/{name}")
        return (found and found.get("value")) == value

    await until(same)


@pytest.mark.parametrize("secret", [NEW, OLD])
async def test_what_a_signed_batch_names_is_carried_and_deleted(sandbox: Sandbox, secret: str) -> None:
    async with serving(sandbox, SYNC, env=ENV) as served:

        async def send(batch: str, *lines: bytes) -> dict[str, int]:
            body = gzip.compress(b"\n".join(lines))
            headers = {**signed(body, batch=batch, secret=secret), "Content-Encoding": "gzip"}
            response = await served.client.post("/audit", content=body, headers=headers)
            assert response.status_code == 202, response.text
            counts: dict[str, int] = response.json()
            return counts

        sandbox.source.put("secret", "apps/a", {"value": "1"})
        sandbox.source.put("secret", "apps/ä b/c", {"value": "2"})
        told = (
            line("data/apps/a", "create"),
            b"vault-1: " + line("data/apps/ä b/c", "create"),
            line("data/else"),
            b"?",
        )
        assert await send("b1", *told) == {"accepted": 2, "ignored": 1, "duplicate": 0, "invalid": 1}
        await arrived(sandbox, "a", "1")
        await arrived(sandbox, "ä b/c", "2")
        assert await send("b1", *told) == {"accepted": 0, "ignored": 0, "duplicate": 3, "invalid": 1}

        sandbox.source.put("secret", "apps/a", {"value": "3"})
        assert (await send("b2", line("data/apps/a", "update", 2)))["accepted"] == 1
        await arrived(sandbox, "a", "3")
        async with httpx.AsyncClient(headers={"X-Vault-Token": sandbox.source.root_token}) as person:
            (await person.delete(f"{sandbox.source.url}/v1/secret/data/apps/a")).raise_for_status()
        assert (await send("b3", line("data/apps/a", "delete")))["accepted"] == 1
        await arrived(sandbox, "a", None)
        code, log = await served.terminate()
    assert code == 0, log
    assert secret not in log


async def test_what_an_event_names_is_carried(sandbox: Sandbox) -> None:
    async with serving(sandbox, SYNC, env=ENV) as served:
        for number, named in enumerate(({"sync": "s", "path": "x/y"}, {"vault": "hub", "path": "apps/x/y"})):
            sandbox.source.put("secret", "apps/x/y", {"value": str(number)})
            # It needs the key, and no signature.
            assert await served.post("/events", 202, named) == {
                "accepted": 1,
                "ignored": 0,
                "duplicate": 0,
                "invalid": 0,
            }
            await arrived(sandbox, "x/y", str(number))


async def refused(served: Served, status: int, body: Any, headers: Mapping[str, str]) -> str:
    response = await served.client.post("/audit", content=body, headers=dict(headers))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["type"]) == (status, "about:blank")
    return str(problem["detail"])


async def test_each_request_that_is_not_in_order_is_refused(sandbox: Sandbox) -> None:
    sandbox.source.put("secret", "apps/a", {"value": "1"})
    body = line("data/apps/a", "create")
    good = signed(body, batch="b1")
    async with serving(sandbox, SYNC, env=ENV) as served:
        key = {"x-functions-key": KEY}
        assert "key" in await refused(served, 401, body, {**good, "x-functions-key": ""})
        assert "key" in await refused(served, 401, body, {**good, "x-functions-key": "wrong"})
        assert "missing" in await refused(served, 401, body, key)
        for other in (
            signed(body, batch="b1", secret="x" * 32),
            signed(body + b" ", batch="b1"),
            good | {"X-Vaultferry-Batch": "b"},
        ):
            assert "wrong" in await refused(served, 401, body, {**key, **other})
        assert "400 seconds old" in await refused(served, 401, body, {**key, **signed(body, batch="b1", age=400)})
        assert "seconds ahead" in await refused(served, 401, body, {**key, **signed(body, batch="b1", age=-400)})

        packer = zlib.compressobj(9, wbits=31)
        bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(200)) + packer.flush()
        encoded = {**key, **signed(bomb, batch="b2"), "Content-Encoding": "gzip"}
        assert "unpacks to more than" in await refused(served, 413, bomb, encoded)
        assert "smaller batches" in await refused(served, 413, bytes(100_000_000), {**key, **good})
        assert "at most" in await refused(served, 413, bytes(101 * 1024 * 1024), {**key, **good})

        broken = b'{"type": "response", "request"'
        assert "not JSON" in await refused(served, 400, broken, {**key, **signed(broken, batch="b3")})
        outside = line("data/apps/../../a")
        assert "'..' segments" in await refused(served, 400, outside, {**key, **signed(outside, batch="b4")})

        assert await served.post("/syncs/s/execute", 202), "it still works"
        await arrived(sandbox, "a", "1")
        async with httpx.AsyncClient(base_url=served.client.base_url) as stranger:
            assert (await stranger.post("/events", json={"sync": "s", "path": "a"})).status_code == 401
        code, log = await served.terminate()
    assert code == 0, log
    assert NEW not in log
    assert OLD not in log


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "gzip", "openssl"))), reason="the example needs them")
async def test_the_example_in_the_docs_is_taken(sandbox: Sandbox) -> None:
    sandbox.source.put("secret", "apps/a", {"value": "1"})
    (sandbox.folder / "audit.log").write_bytes(line("data/apps/a", "create") + b"\n")
    (example,) = re.findall(r"```bash\n(gzip .*?)```", (ROOT / "docs" / "events.md").read_text(), re.DOTALL)
    async with serving(sandbox, SYNC, env=ENV) as served:
        env = {**os.environ, "URL": str(served.client.base_url).rstrip("/"), "VAULTFERRY_API_KEY": KEY}
        process = await asyncio.create_subprocess_exec(
            *("bash", "-eu", "-o", "pipefail", "-c", example),
            cwd=sandbox.folder,
            env=env | {"VAULTFERRY_AUDIT_SECRET": NEW, "no_proxy": "*"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        answer, told = await process.communicate()
        assert process.returncode == 0, told.decode()
        assert json.loads(answer) == {"accepted": 1, "ignored": 0, "duplicate": 0, "invalid": 0}
        await arrived(sandbox, "a", "1")
