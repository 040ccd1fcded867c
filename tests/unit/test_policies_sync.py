"""ACL policies from one server to another, by a run and by events: the sandbox's, and real Vaults."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sandbox.vault import VaultSandbox
from shared import jobs
from shared.app import App
from shared.audit import project
from shared.config.build import parse
from shared.engine.document import read_plan
from shared.model import Run, RunStatus
from shared.notices import AuditNotice

TEXT = '# größer\r\npath "secret/data/apps/*" {\n\tcapabilities = ["read"]  \n}\n\n'
OTHER = 'path "secret/data/other/*" { capabilities = ["list"] }'


@dataclass
class Server:
    url: str
    token: str

    async def _ask(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> Any:
        def ask() -> Any:
            request = urllib.request.Request(
                f"{self.url}/v1/sys/policies/acl/{quote(name)}",
                method=method,
                data=None if body is None else json.dumps(body).encode(),
                headers={"X-Vault-Token": self.token},
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    text = answer.read()
                    return json.loads(text)["data"] if text else None
            except urllib.error.HTTPError as error:
                error.close()
                return None

        return await asyncio.to_thread(ask)

    async def put(self, name: str, text: str) -> None:
        await self._ask("POST", name, {"policy": text})

    async def get(self, name: str) -> str | None:
        found = await self._ask("GET", name)
        return None if found is None else found["policy"]

    async def delete(self, name: str) -> None:
        await self._ask("DELETE", name)


@dataclass
class Pair:
    source: Server
    target: Server
    folder: Path

    def app(self, options: str = "") -> App:
        text = f"""
vaults:
  hub: {{kind: hashicorp, address: "{self.source.url}", auth: {{method: token, token: {self.source.token}}}}}
  copy: {{kind: hashicorp, address: "{self.target.url}", auth: {{method: token, token: {self.target.token}}}}}
syncs:
  rules:
    source: {{vault: hub, resource: policies{options}}}
    targets: [{{vault: copy}}]
    delete: {{propagate: true, max_percent: 100}}
"""
        env = {"VAULTFERRY_STORE": f"sqlite:///{self.folder / 'store.db'}"}
        return App(parse(text.encode(), env, "test.yaml"), env)


@pytest.fixture(params=["sandbox", pytest.param("real", marks=pytest.mark.real)])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        if request.param == "real":
            start = request.getfixturevalue("more_vaults")
            source, target = (Server(each.url, each.token) for each in (start(), start()))
        else:
            boxes = [await stack.enter_async_context(VaultSandbox()) for _ in range(2)]
            source, target = (Server(box.url, box.root_token) for box in boxes)
        yield Pair(source, target, tmp_path)


async def drain(app: App) -> None:
    queues = [jobs.PLAN_QUEUE, jobs.write_queue("copy")]
    while any([await app.queues.depth(queue) for queue in queues]):
        for queue in queues:
            for message in await app.queues.receive(queue):
                await app.engine.handle(message.body)
                await app.queues.delete(message)


async def run(app: App, *, dry_run: bool = False) -> Run:
    started = await app.engine.runs.start("rules", trigger="manual", dry_run=dry_run)
    await drain(app)
    return await app.engine.runs.view(started.run_id)


def logged(operation: str, path: str) -> AuditNotice:
    """What Vault logs of a change to a policy, as the relay reads it."""
    entry = {
        "type": "response",
        "request": {"operation": operation, "path": path, "mount_point": "sys/", "mount_type": "system"},
        "response": {},
    }
    notice = project(entry)
    assert isinstance(notice, AuditNotice)
    return notice


async def test_policies_are_planned_carried_and_deleted_by_runs(pair: Pair) -> None:
    await pair.source.put("My-Pol", TEXT)
    await pair.source.put("default", OTHER)
    await pair.target.put("theirs", OTHER)
    theirs = await pair.target.get("default")
    async with pair.app() as app:
        plan = await read_plan(app.store, (await run(app, dry_run=True)).run_id)
        assert plan is not None
        assert [(item["change"], item["path"]) for item in plan["items"]] == [("create", "my-pol")]
        first = await run(app)
        assert (first.status, first.written) == (RunStatus.SUCCEEDED, 1)
        assert await pair.target.get("my-pol") == TEXT
        assert (await run(app)).unchanged == 1
        await pair.source.put("my-pol", OTHER)
        assert (await run(app)).written == 1
        assert await pair.target.get("my-pol") == OTHER
        await pair.source.delete("MY-POL")
        assert (await run(app)).deleted == 1
        assert await pair.target.get("my-pol") is None
        assert await pair.target.get("theirs") == OTHER
        assert await pair.target.get("default") == theirs


async def test_policies_are_carried_and_deleted_by_events(pair: Pair) -> None:
    await pair.target.put("theirs", OTHER)
    async with pair.app(", prefix: Team/") as app:

        async def seen(operation: str, path: str) -> list[bool]:
            useful = await app.engine.events.take([logged(operation, path)])
            await drain(app)
            return useful

        await pair.source.put("Team/A", TEXT)
        assert await seen("update", "sys/policies/acl/Team/A") == [True]
        assert await pair.target.get("a") == TEXT
        await pair.source.put("team/a", OTHER)
        assert await seen("update", "sys/policy/TEAM/a") == [True]
        assert await pair.target.get("a") == OTHER
        assert await seen("update", "sys/policies/acl/theirs") == [False]
        assert await seen("update", "sys/policies/acl/default") == [False]
        await pair.source.delete("team/a")
        assert await seen("delete", "sys/policy/team/a") == [True]
        assert await pair.target.get("a") is None
        assert await pair.target.get("theirs") == OTHER
        # What a run finds is what events have left.
        assert (await run(app)).planned == 0
        await pair.source.put("team/default", TEXT)
        await seen("update", "sys/policies/acl/team/default")
        assert await pair.target.get("default") != TEXT


async def test_a_policy_whose_name_is_taken_by_a_stranger_is_left_to_a_run(pair: Pair) -> None:
    await pair.target.put("shared", OTHER)
    await pair.source.put("shared", TEXT)
    async with pair.app() as app:
        await app.engine.events.take([logged("update", "sys/policies/acl/shared")])
        await drain(app)
        assert await pair.target.get("shared") == TEXT
        assert [each.trigger for each in (await app.store.list_runs("rules")).items] == ["event"]
