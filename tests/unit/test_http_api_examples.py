"""The examples as they are, against servers with the shapes that each API documents: only addresses and credentials
come from the environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import pytest

from sandbox.http_apis import DopplerApi, GitLabApi, HttpApi, InfisicalApi, OnePasswordApi
from sandbox.vault import VaultSandbox
from tests.cli_world import Ended, Folder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass
class Api:
    """One of the four: its server, its environment, and what it holds under the names of the hub's secrets."""

    server: Any
    environment: Callable[[Any], dict[str, str]]
    holds: Callable[[Any], dict[str, Any]]
    expected: Callable[[dict[str, dict[str, str]]], dict[str, Any]]
    by_hand: Callable[[Any], None]
    """Puts a secret there that no sync knows."""


def flat(separator: str, upper: bool) -> Callable[[dict[str, dict[str, str]]], dict[str, Any]]:
    def expected(secrets: dict[str, dict[str, str]]) -> dict[str, Any]:
        made = {
            f"{path.replace('/', separator)}{separator}{field}": value
            for path, fields in secrets.items()
            for field, value in fields.items()
        }
        return {name.upper(): value for name, value in made.items()} if upper else made

    return expected


def titles(server: OnePasswordApi) -> dict[str, Any]:
    return {
        item["title"]: {field["label"]: field["value"] for field in item["fields"]} for item in server.items.values()
    }


APIS: dict[str, Callable[[], Api]] = {
    "doppler": lambda: Api(
        DopplerApi(),
        lambda server: {
            "DOPPLER_API": server.url,
            "DOPPLER_TOKEN": server.token,
            "DOPPLER_PROJECT": server.project,
            "DOPPLER_CONFIG": server.config,
        },
        lambda server: server.values,
        flat("_", upper=True),
        lambda server: server.values.update(BY_HAND="x"),
    ),
    "infisical": lambda: Api(
        InfisicalApi(),
        lambda server: {
            "INFISICAL_API": server.url,
            "INFISICAL_TOKEN": server.token,
            "INFISICAL_PROJECT": server.project,
            "INFISICAL_ENVIRONMENT": server.environment,
        },
        lambda server: {each["secretKey"]: each["secretValue"] for each in server.secrets.values()},
        flat("-", upper=False),
        lambda server: server.put("BY_HAND", "x"),
    ),
    "gitlab": lambda: Api(
        GitLabApi(),
        lambda server: {"GITLAB_API": server.url, "GITLAB_TOKEN": server.token, "GITLAB_PROJECT": server.project},
        lambda server: {each["key"]: each["value"] for each in server.variables if each["environment_scope"] == "*"},
        flat("_", upper=True),
        lambda server: server.put("BY_HAND", "x"),
    ),
    "1password-connect": lambda: Api(
        OnePasswordApi(),
        lambda server: {
            "OP_CONNECT_HOST": server.url,
            "OP_CONNECT_TOKEN": server.token,
            "OP_VAULT": server.vault,
        },
        titles,
        lambda secrets: dict(secrets),
        lambda server: server.put("by hand", {"password": "x"}),
    ),
}
BY_HAND = {"BY_HAND": "x"}
SECRETS = {
    "shop/db": {"user": "app", "password": 'p$w${x} "q" {name} {value}\n2'},
    "shop/api": {"token": "žluťoučký 🦊"},
    **{f"many/n{number:02}": {"value": f"v{number}"} for number in range(25)},
}


@pytest.fixture(params=APIS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    api = APIS[request.param]()
    async with VaultSandbox() as hub, api.server:
        folder = Folder(tmp_path)
        text = (EXAMPLES / f"http-api-{request.param}.yaml").read_text()
        # The sandbox need not be spared.
        lines = [line for line in text.splitlines() if "requests_per_second" not in line]
        folder.configure("\n".join(lines))
        folder.env = {"VAULT_ADDR": hub.url, "VAULT_TOKEN": hub.root_token, **api.environment(api.server)}
        yield World(folder, hub, api)


@dataclass
class World:
    folder: Folder
    hub: VaultSandbox
    api: Api

    async def run(self, *arguments: str) -> Ended:
        ended = await asyncio.to_thread(self.folder.run, *arguments)
        assert "žluť" not in ended.out + ended.err
        return ended

    async def put(self, name: str, fields: dict[str, str]) -> None:
        client = hvac.Client(self.hub.url, self.hub.root_token)
        await asyncio.to_thread(client.secrets.kv.v2.create_or_update_secret, name, fields)

    async def drop(self, name: str) -> None:
        client = hvac.Client(self.hub.url, self.hub.root_token)
        await asyncio.to_thread(client.secrets.kv.v2.delete_metadata_and_all_versions, name)

    def holds(self) -> dict[str, Any]:
        return {name: value for name, value in self.api.holds(self.api.server).items() if name.upper()[:2] != "BY"}


async def test_an_example_plans_syncs_changes_and_deletes(world: World) -> None:
    server: HttpApi = world.api.server
    wanted = dict(SECRETS)
    for name, fields in wanted.items():
        await world.put(name, fields)
    world.api.by_hand(server)

    checked = await world.run("check")
    assert checked.code == 0, checked.out + checked.err
    planned = await world.run("plan")
    assert planned.code == 0, planned.err
    assert server.calls["write"] == 0

    synced = await world.run("sync")
    assert synced.code == 0, synced.out + synced.err
    assert world.holds() == world.api.expected(wanted)

    server.reset_calls()
    assert (await world.run("sync")).code == 0
    assert server.calls["write"] == server.calls["delete"] == 0

    wanted["shop/api"] = {"token": "another"}
    await world.put("shop/api", wanted["shop/api"])
    del wanted["shop/db"]
    await world.drop("shop/db")
    changed = await world.run("sync")
    assert changed.code == 0, changed.out + changed.err
    assert world.holds() == world.api.expected(wanted)
    assert len(world.api.holds(server)) == len(world.holds()) + 1
