"""Two-way between each pair of kinds that promise it, through the real installation: Vault and Key Vault, Vault and
Vaultwarden, two Key Vaults, two Vaults; and two real Vaults, on SQLite and on Azurite."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import PBKDF2, Person
from sandbox.entra import EntraServer
from sandbox.key_vault import KeyVaultServer
from sandbox.server import SandboxServer
from sandbox.vault import VaultSandbox
from shared.app import App
from shared.config.build import parse
from shared.model import HistoryRow, ObjectStatus, Run, RunStatus, Secret
from shared.name_encoding import encode
from tests.e2e.conftest import Installation, Place
from tests.integration.conftest import run_sync
from tests.unit.test_name_encoding import KEY_VAULT

PASSWORD = "correct horse ☂"


def counts(run: Run) -> dict[str, int]:
    names = ("written", "unchanged", "deleted", "failed", "conflicts")
    return {name: getattr(run, name) for name in names if getattr(run, name)}


class End(ABC):
    """One side, and what people do there behind Vaultferry's back."""

    server: Any
    writing: frozenset[str]
    """The operations that change something, as the server counts them."""

    @abstractmethod
    async def put(self, path: str, text: str) -> None: ...
    @abstractmethod
    async def get(self, path: str) -> str | None: ...
    @abstractmethod
    async def delete(self, path: str) -> None: ...
    @abstractmethod
    def advance(self, seconds: float) -> None: ...

    def writes(self) -> int:
        return sum(self.server.calls[operation] for operation in self.writing)


@dataclass
class VaultEnd(End):
    server: VaultSandbox
    writing = frozenset({"write", "patch", "delete", "metadata_write"})

    async def put(self, path: str, text: str) -> None:
        self.server.put("secret", f"apps/{path}", {"value": text})

    async def get(self, path: str) -> str | None:
        fields = self.server.get("secret", f"apps/{path}")
        return fields and str(fields["value"])

    async def delete(self, path: str) -> None:
        self.server.soft_delete("secret", f"apps/{path}")

    def advance(self, seconds: float) -> None:
        self.server.advance(seconds)


@dataclass
class KeyVaultEnd(End):
    server: KeyVaultServer
    encoded: bool
    """Whether names were made from paths that it does not take as they are."""
    writing = frozenset({"set", "delete", "update", "recover", "purge"})

    async def put(self, path: str, text: str) -> None:
        self.server.put(self._name(path), text)

    async def get(self, path: str) -> str | None:
        version = self.server.get(self._name(path))
        return version and version.value

    async def delete(self, path: str) -> None:
        self.server.delete(self._name(path))

    def _name(self, path: str) -> str:
        return encode(KEY_VAULT, path) if self.encoded else path

    def advance(self, seconds: float) -> None:
        self.server.clock.advance(seconds)


@dataclass
class FamilyEnd(End):
    """A Vaultwarden account; people use a client of their own."""

    server: BitwardenServer
    ada: Person
    client: Callable[[], Any] = field(repr=False)
    writing = frozenset({"create", "update", "share", "partial", "trash", "delete"})

    async def put(self, path: str, text: str) -> None:
        await self._alone(lambda vault: vault.set_secret(path, Secret({"value": text})))

    async def get(self, path: str) -> str | None:
        item = self.ada.items().get(path)
        if item is None:
            return None
        (shown,) = [each["value"] for each in self.ada.read(item)["fields"] if each["name"] == "value"]
        return str(shown)

    async def delete(self, path: str) -> None:
        await self._alone(lambda vault: vault.delete_secret(path))

    async def _alone(self, act: Callable[[Any], Any]) -> None:
        async with self.client() as app:
            await act(await app.vaults.get("family"))
        self.server.reset_calls()

    def advance(self, seconds: float) -> None:
        self.server.clock.advance(seconds)


@dataclass
class Pair:
    """Two ends, and a file that names them."""

    folder: Path
    here: End
    there: End
    text: str
    env: dict[str, str]
    names: tuple[str, str, str]

    @property
    def ends(self) -> tuple[End, End]:
        return self.here, self.there

    def app(self, **options: Any) -> App:
        more = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in options.items())
        return App(parse(f"{self.text}{more}".encode(), self.env, "test.yaml"), self.env)

    def wait(self, seconds: float = 10) -> None:
        for end in self.ends:
            end.advance(seconds)

    def forget(self) -> None:
        for end in self.ends:
            end.server.reset_calls()

    async def both(self, path: str) -> str | None:
        """What both sides hold."""
        here, there = await self.here.get(path), await self.there.get(path)
        assert here == there
        return here

    async def sync(self, app: App, **options: bool) -> dict[str, int]:
        self.wait()
        run = await run_sync(app, **options)
        assert run.status is RunStatus.SUCCEEDED, run
        return counts(run)

    async def quiet(self, app: App) -> None:
        """Nothing is left to be done, and nothing is done."""
        self.wait()
        self.forget()
        run = await run_sync(app)
        assert (run.written, run.deleted, run.failed) == (0, 0, 0), run
        assert [end.writes() for end in self.ends] == [0, 0]


HASHICORP = '{name}: {{kind: hashicorp, address: "{url}", mount: secret, auth: {{method: token, token: "{token}"}}}}'
KEY_VAULT_TEXT = (
    '{name}: {{kind: azure_key_vault, url: "{url}", authority: "{entra}", ca_bundle: "{bundle}", '
    "requests_per_second: 100000, auth: {{method: service_principal, tenant_id: {tenant}, client_id: {client}, "
    'client_secret: "{secret}"}}}}'
)
FAMILY = (
    '{name}: {{kind: vaultwarden, url: "{url}", email: ada@example.org, password: "{password}", ca_bundle: "{ca}"}}'
)


class Hosting:
    """Starts the servers of a pair, and writes down how they are reached."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.encoded = True
        self.lines: list[str] = []

    async def start(self, server: SandboxServer) -> Any:
        return await self.stack.enter_async_context(server)

    async def vault(self, name: str) -> tuple[End, str]:
        server = await self.start(VaultSandbox())
        self.lines.append(HASHICORP.format(name=name, url=server.url, token=server.root_token))
        return VaultEnd(server), f"vault: {name}, prefix: apps/"

    async def key_vault(self, name: str) -> tuple[End, str]:
        server = await self.start(KeyVaultServer())
        server.create_limit = server.other_limit = 10**6
        entra = await self.start(EntraServer(server.authority))
        bundle = self.folder / f"{name}.pem"
        texts = [await asyncio.to_thread(Path(str(each.ca_bundle)).read_text) for each in (server, entra)]
        bundle.write_text("".join(texts))
        self.lines.append(
            KEY_VAULT_TEXT.format(
                name=name,
                url=server.url,
                entra=entra.url,
                bundle=bundle,
                tenant=server.authority.tenant_id,
                client=server.authority.client_id,
                secret=server.authority.client_secret,
            )
        )
        return KeyVaultEnd(server, self.encoded), f"vault: {name}"

    async def family(self, name: str) -> tuple[End, str]:
        server = await self.start(BitwardenServer())
        ada = server.register("ada@example.org", PASSWORD, PBKDF2)
        line = FAMILY.format(name=name, url=server.url, password=PASSWORD, ca=server.ca_bundle)
        self.lines.append(line)
        env = {"VAULTFERRY_STORE": f"sqlite:///{self.folder / 'client.db'}"}
        text = f"vaults:\n  {line.replace(name, 'family', 1)}\n".encode()
        return FamilyEnd(server, ada, lambda: App(parse(text, env, "client.yaml"), env)), f"vault: {name}"


PAIRS = {
    "Vault and Key Vault": ("vault", "key_vault", ", name_encoding: reversible"),
    "Vault and Vaultwarden": ("vault", "family", ""),
    "Key Vault and Key Vault": ("key_vault", "key_vault", ""),
    "Vault and Vault": ("vault", "vault", ""),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    one, other, more = request.param
    async with AsyncExitStack() as stack:
        hosting = Hosting(stack, tmp_path)
        hosting.encoded = one != other
        here, source = await getattr(hosting, one)("here")
        there, target = await getattr(hosting, other)("there")
        vaults = "".join(f"  {line}\n" for line in hosting.lines)
        sync = f"syncs:\n  s:\n    type: bidirectional\n    source: {{{source}}}\n    targets: [{{{target}{more}}}]\n"
        env = {"VAULTFERRY_STORE": f"sqlite:///{tmp_path / 'vaultferry.db'}"}
        # A Key Vault as the source gives its names as they are.
        names = ("web-db", "api", "tls") if one == "key_vault" else ("web/db", "api token", "t\u00fcls_\u2713")
        yield Pair(tmp_path, here, there, f"vaults:\n{vaults}{sync}", env, names)


async def told(app: App, path: str, action: str) -> list[tuple[HistoryRow, Any]]:
    page = await app.store.page_history("s", path=path, limit=1000)
    return [(row, json.loads(row.detail or "null")) for row in page.items if row.action == action]


async def test_each_sides_secrets_and_changes_reach_the_other(pair: Pair) -> None:
    mine, theirs, same = pair.names
    await pair.here.put(mine, "from here")
    await pair.there.put(theirs, "from there\n☂")
    await pair.here.put(same, "the same")
    await pair.there.put(same, "the same")
    async with pair.app(delete={"propagate": True, "max_percent": 100}) as app:
        assert (await pair.sync(app))["written"] == 2
        assert [await pair.both(name) for name in pair.names] == ["from here", "from there\n☂", "the same"]
        await pair.quiet(app)

        # Each changes what came from the other.
        await pair.there.put(mine, "changed there")
        await pair.here.put(theirs, "")
        assert (await pair.sync(app))["written"] == 2
        assert [await pair.both(name) for name in pair.names] == ["changed there", "", "the same"]
        await pair.quiet(app)

        # Both change in the same way.
        await pair.here.put(same, "x" * 20_000 if pair.here.writing == pair.there.writing else "y" * 5_000)
        await pair.there.put(same, str(await pair.here.get(same)))
        await pair.sync(app)
        await pair.quiet(app)

        # Deletions go both ways, and what is made anew comes back.
        await pair.here.delete(mine)
        await pair.there.delete(theirs)
        assert (await pair.sync(app))["deleted"] == 2
        assert [await pair.both(name) for name in (mine, theirs)] == [None, None]
        await pair.quiet(app)
        await pair.there.put(f"{mine}-2", "anew")
        await pair.sync(app)
        assert await pair.both(f"{mine}-2") == "anew"
        await pair.quiet(app)
        assert (await app.store.verify_history("s")).broken == ()


@pytest.mark.parametrize("later", ["here", "there"])
async def test_the_newest_change_wins_and_the_other_is_on_record(pair: Pair, later: str) -> None:
    name = pair.names[0]
    first, second = (pair.there, pair.here) if later == "here" else (pair.here, pair.there)
    await pair.here.put(name, "one")
    async with pair.app() as app:
        await pair.sync(app)
        await first.put(name, "the older")
        pair.wait(600)
        await second.put(name, "the newer")
        await pair.sync(app)
        assert await pair.both(name) == "the newer"
        ((row, detail),) = await told(app, name, "conflict")
        assert row.status is ObjectStatus.IN_SYNC
        assert detail["taken"] == ("source" if later == "here" else "there")
        assert len({each["digest"] for each in detail["sides"]}) == 2
        assert all(each["changed_at"] in detail["rule"] for each in detail["sides"])
        assert "the older" not in json.dumps(detail)
        await pair.quiet(app)


@pytest.mark.parametrize("take", ["source", "there"])
async def test_a_conflict_waits_for_a_person(pair: Pair, take: str) -> None:
    name, calm, _ = pair.names
    await pair.here.put(name, "one")
    async with pair.app(conflict="manual") as app:
        await pair.sync(app)
        await pair.here.put(name, "of here")
        await pair.there.put(name, "of there")
        await pair.there.put(calm, "calm")
        pair.wait()
        run = await run_sync(app)
        assert run.conflicts == 1
        assert [await end.get(name) for end in pair.ends] == ["of here", "of there"]
        assert await pair.both(calm) == "calm"
        rows = [row async for row in app.store.list_objects("s", status=ObjectStatus.CONFLICT)]
        assert [row.path for row in rows] == [name]
        await pair.quiet(app)
        await app.engine.runs.resolve("s", name, "source" if take == "source" else "target")
        # It joins the run that the decision began.
        await pair.sync(app)
        assert await pair.both(name) == ("of here" if take == "source" else "of there")
        assert len(await told(app, name, "resolve")) == 1
        await pair.quiet(app)


# --- two real Vaults ------------------------------------------------------------------------------------------------------

REAL = """
    type: bidirectional
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}]
    delete: {propagate: true, max_percent: 100}
    conflict: CONFLICT
"""
VALUES: dict[str, dict[str, Any]] = {
    "plain": {"value": "v"},
    "db": {"user": "u", "password": "p\u00e4ss \u2713", "port": 5432, "hosts": ["a", {"b": None}]},
    "empty": {"value": ""},
    "deep/er key/\u00fc%2F": {"value": "line\nline\n"},
    "large": {"value": "x" * 25_000},
}


async def synced(here: Installation, app: App, status: str = "succeeded") -> dict[str, int]:
    run = await here.run(app)
    assert str(run.status) == status, run
    return counts(run)


@pytest.mark.real
async def test_two_real_vaults_follow_each_other(here: Installation, hub: Place, second: Place) -> None:
    here.add("hub", hub)
    here.add("second", second)
    names = list(VALUES)
    for at, (name, fields) in enumerate(VALUES.items()):
        (hub if at % 2 else second).put(f"{'apps' if at % 2 else 'copy'}/{name}", fields)

    def both(name: str) -> Any:
        mine, theirs = hub.get(f"apps/{name}"), second.get(f"copy/{name}")
        assert mine == theirs
        return mine

    async with here.app(REAL.replace("CONFLICT", "manual")) as app:
        assert await synced(here, app) == {"written": len(VALUES)}
        assert {name: both(name) for name in names} == VALUES
        assert await synced(here, app) == {"unchanged": len(VALUES)}

        second.put("copy/db", {"user": "new"})
        hub.put("apps/plain", {"value": "new"})
        assert await synced(here, app) == {"written": 2, "unchanged": len(VALUES) - 2}
        assert (both("db"), both("plain")) == ({"user": "new"}, {"value": "new"})

        # A soft delete, and its undoing, on either side.
        second.delete("copy/db")
        hub.delete("apps/plain")
        assert await synced(here, app) == {"deleted": 2, "unchanged": len(VALUES) - 2}
        assert (both("db"), both("plain")) == (None, None)
        second.post("copy/db", {"versions": [second.metadata("copy/db")["current_version"]]}, "undelete")
        assert (await synced(here, app))["written"] == 1
        assert both("db") == {"user": "new"}

        # Wiped with its metadata, its versions begin anew.
        hub.remove("apps/empty")
        hub.put("apps/empty", {"value": "not empty"})
        assert (await synced(here, app))["written"] == 1
        assert both("empty") == {"value": "not empty"}

        hub.put("apps/large", {"value": "of the hub"})
        second.put("copy/large", {"value": "of the second"})
        run = await here.run(app)
        assert run.conflicts == 1
        assert (hub.get("apps/large"), second.get("copy/large")) == (
            {"value": "of the hub"},
            {"value": "of the second"},
        )
        await app.engine.runs.resolve(f"s-{here.tag}", "large", "target")
        await synced(here, app)
        assert both("large") == {"value": "of the second"}
        assert "written" not in await synced(here, app)
        assert await here.verified(app)


@pytest.mark.real
async def test_a_real_vault_that_refuses_or_is_gone_deletes_nothing_on_the_other(
    here: Installation, hub: Place, second: Place
) -> None:
    rules = "\n".join(
        f'path "MOUNT/{section}/copy/*" {{ capabilities = ["create", "read", "update", "list"] }}'
        for section in ("data", "metadata", "delete")
    )
    token = second.policy(rules)
    here.add("hub", hub)
    here.add("second", second, f"{{method: token, token: {token.text}}}")
    for name in ("a", "b", "team/c"):
        hub.put(f"apps/{name}", {"value": "1"})
    async with here.app(REAL.replace("CONFLICT", "newest") + "    retry_policy: {max_retries: 0}\n") as app:
        assert await synced(here, app) == {"written": 3}
        half = f'{rules}\npath "MOUNT/metadata/copy/team" {{ capabilities = ["deny"] }}'
        for granted in ('path "MOUNT/data/other/*" { capabilities = ["read"] }', half):
            token.allow(granted)
            run = await here.run(app)
            assert run.status is not RunStatus.SUCCEEDED
            assert run.deleted == 0
            assert [hub.get(f"apps/{name}") for name in ("a", "b", "team/c")] == [{"value": "1"}] * 3
        token.allow(rules)
        assert await synced(here, app) == {"unchanged": 3}
        second.server.call("DELETE", f"sys/mounts/{second.mount}")
        run = await here.run(app)
        assert run.status is not RunStatus.SUCCEEDED
        assert [hub.get(f"apps/{name}") for name in ("a", "b", "team/c")] == [{"value": "1"}] * 3
        second.server.call("POST", f"sys/mounts/{second.mount}", {"type": "kv", "options": {"version": "2"}})
