"""What a sync costs where it is billed: calls of each vault, queue messages, and requests to tables, per 1,000 secrets.

The real installation, its state in tables and its jobs in queues of an Azurite, from a sandbox Vault to a sandbox Key Vault.
docs/cost.md holds these numbers; tests/integration/test_cost.py holds it to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from sandbox.entra import EntraServer
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from shared import jobs
from shared.app import App
from shared.config.build import parse
from shared.jobs import Message
from shared.notices import AuditNotice
from shared.queue_loop import QueueLoop

SECRETS = 1_000
CHANGED = 10
PATIENCE = 180.0
"""Seconds that any one scenario may take."""

CONFIG = """
vaults:
  hub: {{kind: hashicorp, address: "{hub}", mount: secret, auth: {{method: token, token: "{token}"}}}}
  prod-{tag}:
    kind: azure_key_vault
    url: "{prod}"
    authority: "{entra}"
    ca_bundle: "{bundle}"
    auth: {{method: service_principal, tenant_id: "{tenant}", client_id: "{client}", client_secret: "{secret}"}}
    requests_per_second: 100000
syncs:
  s-{tag}:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod-{tag}}}]
    verify_targets: {verify}
"""


@dataclass
class Bill:
    """What was counted. `executions`: messages that were handled, each of which is one of a queue function."""

    executions: int = 0
    messages: int = 0
    table_requests: int = 0
    table_entities: int = 0
    """Of writes: a batch is one request with up to a hundred of them."""
    vault: int = 0
    key_vault: int = 0
    seconds: float = 0.0
    """From the start to the end, on this machine, with servers that answer at once."""
    detail: Counter[str] = field(default_factory=Counter)


COLUMNS = ("executions", "messages", "table_requests", "table_entities", "vault", "key_vault")


@contextlib.contextmanager
def counted(bill: Bill, connection_string: str) -> Iterator[None]:
    """Count what goes to the storage account. Every SDK here sends through aiohttp's one method."""
    places = dict(re.findall(r"(Queue|Table)Endpoint=(http://[^;/]+)", connection_string))
    send = aiohttp.ClientSession._request

    async def request(session: aiohttp.ClientSession, method: str, url: Any, **options: Any) -> Any:
        parts = urlsplit(str(url))
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin == places["Table"]:
            body = options.get("data")
            bill.table_requests += 1
            bill.table_entities += _entities(method, parts.path, body)
            bill.detail[f"table {method} {'batch' if parts.path.endswith('$batch') else ''}".strip()] += 1
        elif origin == places["Queue"]:
            bill.messages += method == "POST"
            bill.detail[f"queue {method}"] += 1
        return await send(session, method, url, **options)

    aiohttp.ClientSession._request = request  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        aiohttp.ClientSession._request = send  # type: ignore[method-assign]


def _entities(method: str, path: str, body: Any) -> int:
    if not path.endswith("$batch"):
        return int(method != "GET")
    text = body if isinstance(body, bytes) else str(body).encode()
    return len(re.findall(rb"(?:POST|PUT|PATCH|MERGE|DELETE) https?://", text))


@dataclass
class Ground:
    """The servers, and the installation on them."""

    hub: VaultSandbox
    prod: KeyVaultServer
    app: App
    account: str
    sync: str
    queues: tuple[str, ...]

    async def bill(self, start: Callable[[], Any], ended: Callable[[], Any]) -> Bill:
        """What it costs from `start` until `ended` says so, asked after each job."""
        bill, over = Bill(), asyncio.Event()
        self.hub.reset_calls()
        self.prod.reset_calls()
        # Key Vault's clock counts whole seconds: what is as young as that is read again.
        self.prod.clock.advance(10)

        async def handle(message: Message) -> None:
            bill.executions += 1
            await self.app.engine.handle(message.body)
            if await ended():
                over.set()

        begun = time.perf_counter()
        with counted(bill, self.account):
            await start()
            loops = [QueueLoop(self.app.queues, queue, handle) for queue in self.queues]
            for loop in loops:
                loop.start()
            try:
                await asyncio.wait_for(over.wait(), PATIENCE)
                bill.seconds = time.perf_counter() - begun
            finally:
                await asyncio.gather(*(loop.stop() for loop in loops))
        bill.vault, bill.key_vault = sum(self.hub.calls.values()), sum(self.prod.calls.values())
        bill.detail.update({f"vault {name}": count for name, count in self.hub.calls.items()})
        bill.detail.update({f"key vault {name}": count for name, count in self.prod.calls.items()})
        return bill

    async def run(self) -> Bill:
        """A run, as a schedule begins it."""
        found: list[str] = []

        async def start() -> None:
            found.append((await self.app.engine.runs.start(self.sync, trigger="timer")).run_id)

        async def ended() -> bool:
            run = await self.app.store.get_run(found[0])
            return run is not None and not run.status.active

        bill = await self.bill(start, ended)
        run = await self.app.engine.runs.view(found[0])
        if run.status != "succeeded":
            raise SystemExit(f"the run is {run.status}: {run.error}")
        # Asking for the run's status is ours, once a job.
        bill.table_requests -= bill.executions
        bill.detail["table GET"] -= bill.executions
        return bill

    async def hear(self, names: list[str], value: str) -> Bill:
        """These secrets are written at the source, and one request tells of them all."""
        for name in names:
            self.hub.put("secret", f"apps/{name}", {"value": value})
        notices = [AuditNotice("secret/", f"data/apps/{name}", vault="hub") for name in names]

        async def start() -> None:
            await self.app.engine.events.take(notices)

        async def ended() -> bool:
            return self.prod.calls["set"] >= len(names)

        return await self.bill(start, ended)


@asynccontextmanager
async def ground(account: str, folder: Path, *, verify: bool = True) -> AsyncIterator[Ground]:
    """Servers with `SECRETS` secrets at the source, and nothing at the target."""
    async with VaultSandbox() as hub, KeyVaultServer() as prod, EntraServer(prod.authority) as entra:
        prod.create_limit = prod.other_limit = 10**6
        bundle = folder / "authorities.pem"
        await asyncio.to_thread(_write_bundle, bundle, [Path(str(each.ca_bundle)) for each in (prod, entra)])
        for name in names():
            hub.put("secret", f"apps/{name}", {"value": f"first-{name}"})
        tag = secrets.token_hex(3)
        text = CONFIG.format(
            hub=hub.url,
            token=hub.root_token,
            prod=prod.url,
            entra=entra.url,
            bundle=bundle,
            tenant=prod.authority.tenant_id,
            client=prod.authority.client_id,
            secret=prod.authority.client_secret,
            tag=tag,
            verify=str(verify).lower(),
        )
        env = {
            "AzureWebJobsStorage": account,
            "VAULTFERRY_STORE": "tables",
            "VAULTFERRY_DIGEST_KEY": secrets.token_hex(32),
        }
        queues = (jobs.PLAN_QUEUE, jobs.write_queue(f"prod-{tag}"))
        async with App(parse(text.encode(), env, "cost.yaml"), env) as app:
            await app.queues.ensure(queues)
            yield Ground(hub, prod, app, account, f"s-{tag}", queues)


def _write_bundle(bundle: Path, authorities: list[Path]) -> None:
    bundle.write_text("".join(each.read_text() for each in authorities))


def names() -> list[str]:
    """Twenty folders of fifty."""
    return [f"team{number % 20:02}/service{number:04}" for number in range(SECRETS)]


async def measure(account: str, folder: Path) -> dict[str, Bill]:
    """Every scenario of docs/cost.md, by the name that it has there."""
    bills: dict[str, Bill] = {}
    async with ground(account, folder) as here:
        bills["first sync, all new"] = await here.run()
        bills["unchanged"] = await here.run()
        for name in names()[:CHANGED]:
            here.hub.put("secret", f"apps/{name}", {"value": f"second-{name}"})
        bills["10 of 1,000 changed"] = await here.run()
        bills["one event, one secret"] = await here.hear(names()[:1], "third")
        bills["1,000 secrets by events"] = await here.hear(names(), "fourth")
    async with ground(account, folder, verify=False) as here:
        await here.run()
        bills["unchanged, `verify_targets: false`"] = await here.run()
    return bills


def main() -> None:
    from tests.servers import processes

    with tempfile.TemporaryDirectory() as folder, processes.azurite() as account:
        bills = asyncio.run(measure(account, Path(folder)))
    print(f"Vault KV v2 to Key Vault, {SECRETS:,} secrets")
    for name, bill in bills.items():
        print(
            f"  {name}: " + ", ".join(f"{column} {getattr(bill, column):,}" for column in COLUMNS),
            f"in {bill.seconds:.1f} s",
        )
        print("    " + ", ".join(f"{what} {count}" for what, count in sorted(bill.detail.items())))


if __name__ == "__main__":
    main()
