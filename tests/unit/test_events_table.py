"""What happens at a Vault and what becomes of it elsewhere: the table of docs/events.md, on the sandbox and a real one."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.vault import VaultSandbox
from shared import jobs
from shared.app import App
from shared.config.build import parse
from shared.notices import AuditNotice


@dataclass
class Hub:
    url: str
    token: str
    folder: Path
    version: int = 2
    tag: str = ""

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        def ask() -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                f"{self.url}/v1/{path}", method=method, data=data, headers={"X-Vault-Token": self.token}
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                error.close()
                return None

        return await asyncio.to_thread(ask)

    async def mount(self, version: int) -> None:
        self.version, self.tag = version, secrets.token_hex(4)
        for name, kv in (("from", version), ("to", 2)):
            await self.call("POST", f"sys/mounts/{name}-{self.tag}", {"type": "kv", "options": {"version": str(kv)}})

    def app(self) -> App:
        head = f'kind: hashicorp, address: "{self.url}", auth: {{method: token, token: {self.token}}}'
        text = f"""
vaults:
  hub: {{{head}, mount: from-{self.tag}, kv_version: {self.version}}}
  copy: {{{head}, mount: to-{self.tag}, kv_version: 2}}
syncs:
  s:
    source: {{vault: hub}}
    targets: [{{vault: copy}}]
    delete: {{propagate: true}}
"""
        env = {"VAULTFERRY_STORE": f"sqlite:///{self.folder / 'store.db'}"}
        return App(parse(text.encode(), env, "test.yaml"), env)

    async def put(self, value: str) -> None:
        data: Any = {"value": value}
        if self.version == 2:
            await self.call("POST", f"from-{self.tag}/data/a", {"data": data})
        else:
            await self.call("POST", f"from-{self.tag}/a", data)

    async def copied(self) -> str | None:
        answer = await self.call("GET", f"to-{self.tag}/data/a")
        return None if answer is None else answer["data"]["data"]["value"]

    def seen(self, section: str, version: int | None = None) -> AuditNotice:
        return AuditNotice(f"from-{self.tag}/", f"{section}a", version=version)


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
async def hub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hub]:
    async with AsyncExitStack() as stack:
        if request.param == "real":
            server = request.getfixturevalue("real_vault")
            yield Hub(server.url, server.token, tmp_path)
        else:
            box = await stack.enter_async_context(VaultSandbox())
            yield Hub(box.url, box.root_token, tmp_path)


async def told(app: App, notice: AuditNotice) -> None:
    assert await app.engine.events.take([notice]) == [True]
    while messages := await app.queues.receive(jobs.write_queue("copy")):
        for message in messages:
            await app.engine.handle(message.body)
            await app.queues.delete(message)


async def test_the_life_of_a_versioned_secret(hub: Hub) -> None:
    await hub.mount(2)
    at = f"from-{hub.tag}"
    async with hub.app() as app:
        await hub.put("1")
        await told(app, hub.seen("data/"))
        assert await hub.copied() == "1"
        await hub.put("2")
        await told(app, hub.seen("data/", 2))
        assert await hub.copied() == "2"
        await hub.call("POST", f"{at}/delete/a", {"versions": [1]})
        await told(app, hub.seen("delete/"))
        assert await hub.copied() == "2"
        await hub.call("DELETE", f"{at}/data/a")
        await told(app, hub.seen("data/"))
        assert await hub.copied() is None
        await hub.call("POST", f"{at}/undelete/a", {"versions": [2]})
        await told(app, hub.seen("undelete/"))
        assert await hub.copied() == "2"
        await hub.call("POST", f"{at}/metadata/a", {"max_versions": 5})
        await told(app, hub.seen("metadata/"))
        assert await hub.copied() == "2"
        await hub.call("POST", f"{at}/destroy/a", {"versions": [2]})
        await told(app, hub.seen("destroy/"))
        assert await hub.copied() is None
        await hub.put("3")
        await told(app, hub.seen("data/", 3))
        assert await hub.copied() == "3"
        await hub.call("DELETE", f"{at}/metadata/a")
        await told(app, hub.seen("metadata/"))
        assert await hub.copied() is None
        await hub.put("new")
        await told(app, hub.seen("data/"))
        assert await hub.copied() == "new"
        state = (await app.store.get_objects("s", "copy", ["a"]))["a"]
        assert state.source_version == "1"
        assert (await app.store.list_runs("s")).items == []


async def test_the_life_of_a_secret_without_versions(hub: Hub) -> None:
    await hub.mount(1)
    async with hub.app() as app:
        for value in ("1", "2", "2"):
            await hub.put(value)
            await told(app, hub.seen(""))
            assert await hub.copied() == value
        await hub.call("DELETE", f"from-{hub.tag}/a")
        await told(app, hub.seen(""))
        assert await hub.copied() is None
        await hub.put("3")
        await told(app, hub.seen(""))
        assert await hub.copied() == "3"


async def test_a_mount_that_is_gone_is_no_deleted_secret(hub: Hub) -> None:
    await hub.mount(2)
    async with hub.app() as app:
        await hub.put("1")
        await told(app, hub.seen("data/"))
        await hub.call("DELETE", f"sys/mounts/from-{hub.tag}")
        await told(app, hub.seen("data/"))
        assert await hub.copied() == "1"
        assert [str(row.action) for row in (await app.store.page_history("s")).items] == ["fail", "create"]
