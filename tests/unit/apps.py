"""Apps for tests: real store, real queues, real engine, and vaults in files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared import jobs
from shared.api import ROUTES, answer
from shared.app import App
from shared.config.build import parse
from shared.history import Save
from shared.host_settings import HostSettings
from shared.http import Request, Response
from shared.jobs import Message
from shared.model import Action, Contested, Event, ObjectState, ObjectStatus, Run, Secret, Sight
from shared.queue_loop import QueueLoop
from tests.openapi import hold

KEY = base64.b64encode(bytes(range(32))).decode()
CONFIG = """
vaults:
  hub: {{kind: file, path: "{folder}/hub.vault", key: "${{KEY}}"}}
  prod: {{kind: file, path: "{folder}/prod.vault", key: "${{KEY}}"}}
syncs:
  hub-to-prod:
    schedule: "0 */6 * * *"
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod}}]
    delete: {{propagate: true}}
  by-hand:
    source: {{vault: hub, prefix: other/}}
    targets: [{{vault: prod, prefix: other/}}]
  resting:
    enabled: false
    schedule: "0 0 * * *"
    source: {{vault: hub, prefix: third/}}
    targets: [{{vault: prod, prefix: third/}}]
"""

TWO_WAY = """
vaults:
  hub: {{kind: file, path: "{folder}/hub.vault", key: "${{KEY}}"}}
  prod: {{kind: file, path: "{folder}/prod.vault", key: "${{KEY}}"}}
  west: {{kind: file, path: "{folder}/west.vault", key: "${{KEY}}"}}
syncs:
  both-ways:
    type: bidirectional
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod}}]
    conflict: manual
  wheel:
    type: bidirectional
    source: {{vault: hub, prefix: other/}}
    targets: [{{vault: prod, prefix: other/}}, {{vault: west}}]
    conflict: manual
  one-way:
    source: {{vault: hub, prefix: third/}}
    targets: [{{vault: prod, prefix: third/}}]
"""


def environment(folder: Path) -> dict[str, str]:
    return {"VAULTFERRY_STORE": f"sqlite:///{folder}/vaultferry.db", "KEY": KEY}


def write_config(folder: Path, text: str = CONFIG) -> Path:
    path = folder / "vaultferry.yaml"
    path.write_text(text.format(folder=folder))
    return path


def make_app(folder: Path, text: str = CONFIG, *, env: Mapping[str, str] | None = None, **options: Any) -> App:
    env = {**environment(folder), **(env or {})}
    return App(parse(text.format(folder=folder).encode(), env, "vaultferry.yaml"), env, **options)


async def seed(app: App, vault_id: str, values: Mapping[str, str]) -> None:
    vault = await app.vaults.get(vault_id)
    for name, value in values.items():
        await vault.set_secret(name, Secret({"value": value}))


async def contest(app: App, sync_id: str, path: str, **held: str | None) -> None:
    """A conflict in a two-way sync as the engine records it: what each side held (`None`: nothing)."""
    sides = tuple(
        Sight(side, f"f-{value}", "3", value and hashlib.sha256(value.encode()).hexdigest(), "2026-01-01T00:00:00Z")
        for side, value in held.items()
    )
    why = "changed on several sides (conflict: manual)"
    detail = json.dumps({"rule": why, "taken": None, "sides": [asdict(side) for side in sides]})
    event = Event(Action.CONFLICT, ObjectStatus.CONFLICT, None, error=why, detail=detail)
    rows = [
        ObjectState(sync_id, target, path, status=ObjectStatus.CONFLICT, error=why, contested=Contested(sides))
        for target, value in held.items()
        if target != "source" and value != held["source"]
    ]
    assert None not in await app.store.save_objects([Save(row, event) for row in rows])


@dataclass
class Client:
    """Calls the routes by method and path, as a host would."""

    app: App

    async def get(self) -> App:
        return self.app

    async def call(
        self, method: str, path: str, *, body: Any = None, params: Mapping[str, str] | None = None, **headers: str
    ) -> Response:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        for route in sorted(ROUTES, key=lambda route: route.method != method):
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.template)
            if match := re.fullmatch(pattern, path.strip("/")):
                request = Request(path, method, match.groupdict(), params or {}, headers, raw)
                response = await answer(route, self, request)
                hold(route, request, response)
                return response
        raise LookupError(path)

    async def json(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        response = await self.call(method, path, **options)
        assert response.status == status, response.body
        content = json.loads(response.body)
        if status >= 400:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert (content["status"], content["type"], content["instance"]) == (status, "about:blank", path)
            assert content["title"]
            assert content["detail"]
        else:
            assert response.headers["Content-Type"] == "application/json"
        return content

    async def ended(self, run_id: str) -> Run:
        async with asyncio.timeout(20):
            while (run := await self.app.engine.runs.view(run_id)).status.active:  # noqa: ASYNC110 - as callers do
                await asyncio.sleep(0.01)
        return run


@contextlib.asynccontextmanager
async def working(app: App) -> AsyncIterator[None]:
    """Deal with the app's queues, as a host does."""

    async def handle(message: Message) -> None:
        await app.engine.handle(message.body)

    targets = {target.vault for sync in app.config.syncs.values() for target in sync.targets}
    queues = [jobs.PLAN_QUEUE, *(jobs.write_queue(vault) for vault in targets)]
    loops = [QueueLoop(app.queues, queue, handle, HostSettings()) for queue in queues]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            await loop.stop()
