"""Real Vaults, a Key Vault in the sandbox, and the real installation on them: on SQLite, and again on Azurite."""

from __future__ import annotations

import asyncio
import secrets
import urllib.error
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sandbox.entra import EntraServer
from sandbox.key_vault import KeyVaultServer
from shared.app import App
from shared.config.build import parse
from shared.model import Run
from tests.integration.conftest import run_sync
from tests.servers import processes
from tests.servers.processes import RealVault


@dataclass(frozen=True)
class Place:
    """A KV mount of a test's own, and what a person does there behind Vaultferry's back."""

    server: RealVault
    mount: str
    version: int

    def put(self, name: str, fields: Mapping[str, Any]) -> None:
        self.post(name, {"data": dict(fields)} if self.version == 2 else dict(fields), "data")

    def get(self, name: str) -> Any:
        """The fields; None when there are none to be read."""
        answer = self._ask(name, "data")
        return answer and (answer["data"] if self.version == 1 else answer["data"]["data"])

    def metadata(self, name: str) -> Any:
        answer = self._ask(name, "metadata")
        return answer and answer["data"]

    def post(self, name: str, body: dict[str, Any], section: str) -> None:
        self.server.call("POST", self._url(name, section), body)

    def delete(self, name: str) -> None:
        """KV v2: the newest version softly; v1: for good."""
        self.server.call("DELETE", self._url(name, "data"))

    def remove(self, name: str) -> None:
        """KV v2: with all versions and the metadata, as if it had never been."""
        self.server.call("DELETE", self._url(name, "metadata"))

    def _ask(self, name: str, section: str) -> Any:
        try:
            return self.server.call("GET", self._url(name, section))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return None

    def _url(self, name: str, section: str) -> str:
        return f"{self.mount}/{section + '/' if self.version == 2 else ''}{quote(name)}"

    def policy(self, rules: str, *, default: bool = False) -> Token:
        """A token with these rules alone; `MOUNT` in them stands for this mount."""
        name = f"p-{secrets.token_hex(4)}"
        token = Token(self, name, "")
        token.allow(rules)
        asked = {"policies": [name], "no_default_policy": not default}
        answer = self.server.call("POST", "auth/token/create", asked)
        return Token(self, name, answer["auth"]["client_token"])


@dataclass(frozen=True)
class Token:
    place: Place
    policy: str
    text: str = field(repr=False)

    def allow(self, rules: str) -> None:
        """Replace its rules, with effect at once."""
        text = rules.replace("MOUNT", self.place.mount)
        self.place.server.call("POST", f"sys/policies/acl/{self.policy}", {"policy": text})


@dataclass
class Installation:
    """The vaults that a configuration names, and the environment that it is opened in."""

    env: dict[str, str]
    tag: str
    vaults: list[str] = field(default_factory=list)

    def add(self, vault_id: str, place: Place, auth: str | None = None, **options: Any) -> None:
        """A Vault under an id; with its root token unless `auth` says otherwise."""
        auth = auth or f"{{method: token, token: {place.server.token}}}"
        more = "".join(f", {name}: {value}" for name, value in options.items())
        self.vaults.append(
            f'  {vault_id}-{self.tag}: {{kind: hashicorp, address: "{place.server.url}", mount: {place.mount}, '
            f"auth: {auth}{more}}}\n"
        )

    def app(self, sync: str) -> App:
        """The app with one sync, whose text calls the vaults hub, second and prod. Their true ids are the test's own,
        for queues in a storage account are named after them."""
        text = sync.replace("{vault: hub", f"{{vault: hub-{self.tag}")
        for target in ("second", "prod"):
            text = text.replace(f"{{vault: {target}", f"{{id: {target}, vault: {target}-{self.tag}")
        document = f"vaults:\n{''.join(self.vaults)}syncs:\n  s-{self.tag}:\n{text}"
        return App(parse(document.encode(), self.env, "test.yaml"), self.env)

    async def run(self, app: App, **options: bool) -> Run:
        return await run_sync(app, f"s-{self.tag}", **options)

    async def history(self, app: App, path: str, target: str) -> list[str]:
        """What was done to a path, oldest first."""
        page = await app.store.page_history(f"s-{self.tag}", path=path, limit=1000)
        return [str(row.action) for row in reversed(page.items) if row.target == target]

    async def errors(self, app: App) -> dict[tuple[str, str], str]:
        """By target and path: what the store says of those that failed."""
        from shared.model import ObjectStatus

        rows = app.store.list_objects(f"s-{self.tag}", status=ObjectStatus.FAILED)
        return {(state.target, state.path): state.error or "" async for state in rows}

    async def verified(self, app: App) -> int:
        """Rows of the history, once it was found to be whole."""
        found = await app.store.verify_history(f"s-{self.tag}")
        assert found.broken == ()
        return found.rows


@pytest.fixture(scope="session")
def second_server() -> Iterator[RealVault]:
    """Another Vault than the session's."""
    try:
        with processes.vault() as server:
            yield server
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def new_place() -> Iterator[Callable[..., Place]]:
    """Makes mounts that are gone after the test."""
    made: list[Place] = []

    def make(server: RealVault, version: int = 2) -> Place:
        made.append(Place(server, server.new_mount(version), version))
        return made[-1]

    yield make
    for place in made:
        place.server.call("DELETE", f"sys/mounts/{place.mount}")


@pytest.fixture
def hub(real_vault: RealVault, new_place: Callable[..., Place]) -> Place:
    return new_place(real_vault)


@pytest.fixture
def second(second_server: RealVault, new_place: Callable[..., Place]) -> Place:
    return new_place(second_server)


@pytest.fixture(params=["sqlite", "azurite"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    """An installation without vaults yet."""
    if request.param == "sqlite":
        env = {"VAULTFERRY_STORE": f"sqlite:///{tmp_path / 'vaultferry.db'}"}
    else:
        env = {
            "AzureWebJobsStorage": request.getfixturevalue("azurite"),
            "VAULTFERRY_STORE": "tables",
            "VAULTFERRY_DIGEST_KEY": secrets.token_hex(32),
        }
    return Installation(env, secrets.token_hex(3))


@pytest.fixture
async def key_vault(here: Installation, tmp_path: Path) -> AsyncIterator[KeyVaultServer]:
    """A Key Vault in the sandbox, known to the installation as `prod`."""
    async with KeyVaultServer() as server, EntraServer(server.authority) as entra:
        server.create_limit = server.other_limit = 10**6
        bundle = tmp_path / "authorities.pem"
        texts = await asyncio.gather(
            *(asyncio.to_thread(Path(str(each.ca_bundle)).read_text) for each in (server, entra))
        )
        bundle.write_text("".join(texts))
        authority = server.authority
        here.vaults.append(
            f'  prod-{here.tag}: {{kind: azure_key_vault, url: "{server.url}", authority: "{entra.url}", '
            f'ca_bundle: "{bundle}", requests_per_second: 100000, auth: {{method: service_principal, '
            f"tenant_id: {authority.tenant_id}, client_id: {authority.client_id}, "
            f'client_secret: "{authority.client_secret}"}}}}\n'
        )
        yield server
