"""One source Vault, a second Vault and a Key Vault in the sandbox, and the real installation on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.entra import EntraServer
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from shared import jobs
from shared.app import App
from shared.config.build import parse
from shared.jobs import Message
from shared.model import Run
from shared.queue_loop import QueueLoop

VAULTS = """
vaults:
  hub: {{kind: hashicorp, address: "{source.url}", mount: secret, auth: {{method: token, token: "${{HUB_TOKEN}}"}}}}
  second: {{kind: hashicorp, address: "{second.url}", mount: secret, auth: {{method: token, token: "${{SECOND_TOKEN}}"}}}}
  prod:
    kind: azure_key_vault
    url: "{key_vault.url}"
    authority: "{entra.url}"
    ca_bundle: "{bundle}"
    auth:
      method: service_principal
      tenant_id: "{authority.tenant_id}"
      client_id: "{authority.client_id}"
      client_secret: "${{PROD_SECRET}}"
    requests_per_second: 100000
"""


@dataclass
class Sandbox:
    """The servers, and a folder for the store."""

    source: VaultSandbox
    second: VaultSandbox
    key_vault: KeyVaultServer
    entra: EntraServer
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "HUB_TOKEN": self.source.root_token,
            "SECOND_TOKEN": self.second.root_token,
            "PROD_SECRET": self.key_vault.authority.client_secret,
            "VAULTFERRY_STORE": f"sqlite:///{self.folder / 'vaultferry.db'}",
        }

    def text(self, syncs: str) -> str:
        bundle = self.folder / "authorities.pem"
        bundle.write_text("".join(server.ca_bundle.read_text() for server in (self.key_vault, self.entra)))  # type: ignore[union-attr]
        head = VAULTS.format(**vars(self), bundle=bundle, authority=self.key_vault.authority)
        return f"{head}\nsyncs:\n{syncs}"

    def app(self, syncs: str) -> App:
        return App(parse(self.text(syncs).encode(), self.env, "test.yaml"), self.env)

    def reset_calls(self) -> None:
        for server in (self.source, self.second, self.key_vault):
            server.reset_calls()


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with VaultSandbox() as source, VaultSandbox() as second, KeyVaultServer() as key_vault:
        key_vault.create_limit = key_vault.other_limit = 10**6
        async with EntraServer(key_vault.authority) as entra:
            yield Sandbox(source, second, key_vault, entra, tmp_path)


@asynccontextmanager
async def working(app: App, queues: Sequence[str]) -> AsyncIterator[None]:
    """Deliver jobs, as a host does, for as long as the block runs."""

    async def handle(message: Message) -> None:
        await app.engine.handle(message.body)

    loops = [QueueLoop(app.queues, queue, handle) for queue in (jobs.PLAN_QUEUE, *queues)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        await asyncio.gather(*(loop.stop() for loop in loops))


async def run_sync(app: App, sync_id: str = "s", **options: bool) -> Run:
    """One run, from its start to its end, on the installation's own queues."""
    run = await app.engine.runs.start(sync_id, trigger="manual", **options)  # type: ignore[arg-type]
    ended = asyncio.Event()

    async def handle(message: Message) -> None:
        await app.engine.handle(message.body)
        if not (await app.engine.runs.view(run.run_id)).status.active:
            ended.set()

    queues = {jobs.PLAN_QUEUE} | {jobs.write_queue(unit.vault) for unit in app.config.syncs[sync_id].units}
    loops = [QueueLoop(app.queues, queue, handle) for queue in sorted(queues)]
    for loop in loops:
        loop.start()
    try:
        await asyncio.wait_for(ended.wait(), 120)
    finally:
        await asyncio.gather(*(loop.stop() for loop in loops))
    return await app.engine.runs.view(run.run_id)
