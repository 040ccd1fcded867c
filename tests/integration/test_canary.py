"""No secret value and no credential is anywhere but where it belongs, whatever goes well or wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from sandbox.entra import EntraServer, TokenAuthority
from sandbox.faults import Fault
from sandbox.key_vault import KeyVaultServer
from sandbox.key_vault_secrets import KeyVaultError
from sandbox.server import SandboxServer
from sandbox.vault import VaultSandbox
from sandbox.vault_json import Number
from shared import api, jobs
from shared.app import App
from shared.config.build import parse
from shared.errors import SyncError, VaultError
from shared.host_settings import HostSettings
from shared.http import Request, Route
from shared.jobs import Message, WriteJob
from shared.model import Expect, Secret
from shared.queue_loop import QueueLoop
from shared.vault import Use, Vault
from shared.vaults import azure_key_vault, file, hashicorp
from tests.integration.canaries import Logs, Searcher
from tests.integration.conftest import Sandbox, run_sync

ROOT = Path(__file__).parents[2]


def canary(kind: str) -> str:
    return f"{secrets.token_hex(8)}-{kind}-{secrets.token_hex(4)}"


def digits() -> int:
    """Fifteen of them: a number that every JSON parser keeps."""
    return secrets.randbelow(8 * 10**14) + 10**14


@dataclass
class Planted(Sandbox):
    """Vaults full of canaries, and credentials that are canaries themselves."""

    secret: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    """Signatures of the access tokens that were handed out."""

    @property
    def env(self) -> dict[str, str]:
        return {
            **super().env,
            "FILE_KEY": self.secret["file key"],
            "VAULTFERRY_DIGEST_KEY": self.secret["digest key"],
        }

    def text(self, syncs: str) -> str:
        more = (
            f'vaults:\n  backup: {{kind: file, path: "{self.folder / "backup.vault"}", key: "${{FILE_KEY}}"}}\n'
            f'  old: {{kind: hashicorp, address: "{self.source.url}", mount: kv1, '
            'auth: {method: token, token: "${HUB_TOKEN}"}}\n'
        )
        return super().text(syncs).replace("vaults:\n", more, 1)

    def searcher(self) -> Searcher:
        return Searcher([*self.secret.values(), *self.tokens])

    def plant(self, **values: str) -> None:
        self.secret |= values


VALUES = (
    "lone",
    "field",
    "other",
    "nested",
    "deep",
    "lines",
    "umlaut",
    "number",
    "float",
    "hand",
    "after",
    "big",
    "wide",
)


@pytest.fixture
async def planted(tmp_path: Path) -> AsyncIterator[Planted]:
    secret = {kind: canary(kind) for kind in (*VALUES, "hub token", "second token", "client secret", "digest key")}
    secret["lines"] = f'{secret["lines"]}\n{canary("line2")}\r\n\t"quoted" \\ {canary("line3")}\n'
    secret["umlaut"] = f"{secret['umlaut']} Geheimnis für Zoë ✓"
    secret["number"] = str(digits())
    secret["float"] = f"0.{digits()}{digits()}"
    secret["wide"] = f"{digits()}{digits()}"
    secret["file key"] = base64.b64encode(secrets.token_bytes(32)).decode()
    secret["digest key"] += secrets.token_hex(16)
    tokens: list[str] = []
    authority = TokenAuthority()
    authority.client_secret = secret["client secret"]
    issue = authority.issue

    def recorded(*args: Any, **options: Any) -> tuple[str, int]:
        token, until = issue(*args, **options)
        tokens.append(token.rpartition(".")[2])
        return token, until

    authority.issue = recorded  # type: ignore[method-assign]
    async with (
        VaultSandbox(root_token=secret["hub token"]) as source,
        VaultSandbox(root_token=secret["second token"]) as second,
        KeyVaultServer(authority) as key_vault,
        EntraServer(authority) as entra,
    ):
        key_vault.create_limit = key_vault.other_limit = 10**6
        folder = tmp_path / "work"
        folder.mkdir()
        yield Planted(source, second, key_vault, entra, folder, secret, tokens)


SYNCS = """
  s:
    source: {vault: hub, prefix: apps/}
    targets:
      - {vault: prod}
      - {vault: second, prefix: copy/, granularity: field}
      - {vault: backup}
    delete: {propagate: true, max_percent: 100}
    retry_policy: {max_retries: 1, initial_backoff: 1, max_backoff: 1}
  old:
    source: {vault: old, prefix: apps/}
    targets: [{vault: prod, name: "old-{path}"}, {vault: second, prefix: old/}]
    retry_policy: {max_retries: 1, initial_backoff: 1, max_backoff: 1}
"""


def fill(p: Planted) -> None:
    values: dict[str, dict[str, Any]] = {
        "lone": {"value": p.secret["lone"]},
        "fields": {"user": p.secret["field"], "password": p.secret["other"]},
        "nested": {"config": {"db": {"password": p.secret["nested"], "hosts": [{"key": p.secret["deep"]}]}}},
        "number": {"pin": int(p.secret["number"])},
        "lines": {"value": p.secret["lines"]},
        "umlaut": {"value": p.secret["umlaut"]},
    }
    for name, fields in values.items():
        p.source.put("secret", f"apps/{name}", fields)


def fill_with_trouble(p: Planted) -> None:
    p.source.put("secret", "apps/big", {"value": p.secret["big"] * 900})
    p.source.put("secret", "apps/dir/a-b", {"value": p.secret["field"]})
    p.source.put("secret", "apps/dir/a.b", {"value": p.secret["other"]})
    p.source.put("kv1", "apps/float", {"pin": Number(p.secret["float"])})
    p.source.put("kv1", "apps/wide", {"pin": Number(p.secret["wide"])})
    p.source.put("kv1", "apps/fine", {"value": p.secret["deep"]})


def unhidden(searcher: Searcher) -> None:
    assert searcher.seen
    assert searcher.found() == []


# --- the searcher ---------------------------------------------------------------------------------------------------


def test_the_searcher_finds_what_it_should() -> None:
    value = canary("für ✓\n")
    looks: dict[str, Any] = {
        "plain": f"some {value} text",
        "bytes": b"\0\1" + value.encode() + b"\0",
        "cut": f"it was {value[:12]}…",
        "json": json.dumps({"a": [value]}),
        "repr": repr({"a": value}),
        "url": f"/x?y={quote(value)}&z=",
        "hex": value.encode().hex(),
        **{f"base64 {shift}": base64.b64encode(b"x" * shift + value.encode() + b"yz") for shift in range(4)},
    }
    for where, what in looks.items():
        searcher = Searcher([canary("another"), value])
        searcher.add(where, what)
        searcher.add("elsewhere", "nothing to see")
        assert searcher.found() == [f"canary 1 in {where}"]


def test_the_searcher_looks_behind_suppressed_causes_and_into_groups() -> None:
    value = canary("cause")
    try:
        try:
            int(f"bad {value}")
        except ValueError:
            raise RuntimeError("harmless") from None
    except RuntimeError as error:
        for one in (error, ExceptionGroup("several", [error])):
            searcher = Searcher([value])
            searcher.add_exception("here", one)
            assert searcher.found()


def test_the_searcher_reads_the_log_and_files(tmp_path: Path) -> None:
    import logging

    value = canary("log")
    searcher = Searcher([value])
    with Logs(searcher):
        logging.getLogger("vaultferry.writer").debug("see", extra={"note": value})
    assert len(searcher.found()) >= 2
    searcher = Searcher([value])
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as database, database:
        database.execute("CREATE TABLE t (x TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (value,))
    searcher.add_files(tmp_path)
    assert searcher.found() == ["canary 0 in file x.db"]


# --- when all goes well ---------------------------------------------------------------------------------------------


class Apps:
    def __init__(self, app: App) -> None:
        self._app = app

    async def get(self) -> App:
        return self._app


async def ask_everything(app: App, searcher: Searcher) -> None:
    """Every GET route, for each sync and run."""
    runs = [run.run_id for run in (await app.store.list_runs(limit=100)).items]

    async def ask(route: Route, params: Mapping[str, str] | None = None, **given: str) -> None:
        path = "/" + route.template.format(**given)
        answer = await api.answer(route, Apps(app), Request(path, route_params=given, params=params or {}))
        searcher.add(f"GET {path}", answer.body + repr(answer).encode())
        assert answer.status in (200, 404), path

    for route in api.ROUTES:
        if route.method != "GET":
            continue
        if "{id}" in route.template:
            for sync_id in app.config.syncs:
                await ask(route, id=sync_id)
        elif "{run_id}" in route.template:
            for run_id in runs:
                await ask(route, run_id=run_id)
        elif route.name == "metrics":
            await ask(route, {"format": "json"})
            await ask(route, {"format": "prometheus"})
        else:
            await ask(route)


def look_at_rest(p: Planted, searcher: Searcher) -> None:
    """All that is left on the disk. The file vault may hold values, and shows none."""
    searcher.add_files(p.folder)


async def test_a_life_without_failures_shows_no_value(planted: Planted) -> None:
    p = planted
    fill(p)
    searcher = p.searcher()
    with Logs(searcher) as logs:
        async with p.app(SYNCS) as app:
            assert (await run_sync(app, dry_run=True)).planned == 18
            first = await run_sync(app)
            assert (first.status, first.written) == ("succeeded", 18)
            # By hand at the targets, anew in the source, and gone.
            p.key_vault.clock.advance(10)
            p.key_vault.put("lone", p.secret["hand"])
            p.second.put("secret", "copy/fields-user", {"value": p.secret["hand"]})
            p.source.put("secret", "apps/fields", {"user": p.secret["after"], "password": p.secret["other"]})
            p.source.soft_delete("secret", "apps/nested")
            p.source.remove("secret", "apps/umlaut")
            await run_sync(app, dry_run=True)
            second = await run_sync(app)
            assert (second.status, second.deleted) == ("succeeded", 6)
            assert second.written >= 4
            found = p.key_vault.get("lone")
            assert found is not None
            assert found.value == p.secret["lone"]
            replayed = await app.engine.runs.replay("s", "lines")
            assert replayed.trigger == "replay"
            assert (await run_sync(app)).status == "succeeded"
            await ask_everything(app, searcher)
            searcher.add("what the queues hold", repr(await _messages(p)))
            look_at_rest(p, searcher)
        look_at_rest(p, searcher)
    assert '"level": "debug"' in logs.text
    assert p.tokens
    searcher.forms |= p.searcher().forms
    unhidden(searcher)


async def _messages(p: Planted) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(p.folder / "vaultferry.db")) as database:
        return database.execute("SELECT * FROM queue_messages").fetchall()


async def test_no_repr_shows_a_value(planted: Planted) -> None:
    p = planted
    fill(p)
    searcher = p.searcher()
    async with p.app(SYNCS) as app:
        await run_sync(app)
        hub, prod, backup = [await app.vaults.get(each) for each in ("hub", "prod", "backup")]
        read = [await hub.get_secret("apps/fields"), await prod.get_secret("fields"), await backup.get_secret("fields")]
        assert all(p.secret["other"] in str(secret.fields) for secret in read)
        shown: list[Any] = [
            *read, hub, prod, backup, app, app.config, app.vaults, app.engine, app.engine.installation, app.store,
            app.queues, app.engine.installation.digester, *app.config.vaults.values(),
            *(vars(each) for each in app.config.vaults.values()),
            hub.adapter, hub.login, prod._client, backup._file, *backup._records.values(), *backup._waiting,  # type: ignore[attr-defined]
            *[state async for state in app.store.list_objects("s")],
            Request("/", headers={"x-functions-key": p.secret["lone"]}, body=p.secret["lone"].encode()),
            *(each.model_dump() for each in app.config.vaults.values()),
            *(each.model_dump_json() for each in app.config.vaults.values()),
        ]  # fmt: skip
        for each in shown:
            searcher.add(f"repr of {type(each).__name__}", f"{each!r} {each}")
    unhidden(searcher)


# --- when something goes wrong --------------------------------------------------------------------------------------

FAULTS = [
    Fault("status", status=400), Fault("status", status=401), Fault("status", status=403), Fault("status", status=404),
    Fault("status", status=409), Fault("status", status=413), Fault("status", status=429), Fault("status", status=500),
    Fault("torn_before"), Fault("torn_after"), Fault("cut_body"), Fault("timeout_before"), Fault("timeout_after"),
]  # fmt: skip
OPERATIONS = ("read", "write", "delete", "metadata", "get", "set")


async def make_impatient(app: App, *vault_ids: str) -> None:
    for vault_id in vault_ids:
        vault: Any = await app.vaults.get(vault_id)
        if vault_id == "prod":
            vault._client._timeout = 0.05
        else:
            await vault.adapter.aclose()
            vault.adapter.seconds = 0.05


# A Key Vault's 409 is a matter of ten seconds.
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.status != 409], ids=lambda f: f"{f.kind}{f.status if f.kind == 'status' else ''}"
)
async def test_a_sync_that_fails_in_many_ways_shows_no_value(planted: Planted, fault: Fault) -> None:
    p = planted
    fill(p)
    fill_with_trouble(p)
    searcher = p.searcher()
    with Logs(searcher):
        async with p.app(SYNCS) as app:
            if fault.kind.startswith("timeout"):
                await make_impatient(app, "hub", "second", "prod", "old")
            for server in (p.source, p.second, p.key_vault):
                server.faults.add(
                    *(replace(fault, operation=operation, skip=skip) for operation in OPERATIONS for skip in (0, 2))
                )
            run = await run_sync(app)
            assert run.status in ("partial", "failed")
            old = await run_sync(app, "old")
            assert old.failed >= 1
            for server in (p.source, p.second, p.key_vault):
                server.faults.clear()
            p.key_vault.clock.advance(10)
            await run_sync(app)
            await run_sync(app, "s", dry_run=True)
            await ask_everything(app, searcher)
        look_at_rest(p, searcher)
    searcher.forms |= p.searcher().forms
    unhidden(searcher)


async def gather_errors(searcher: Searcher, *calls: Callable[[], Awaitable[object]]) -> int:
    """Make the calls; how many raised something that the contract of a vault knows."""
    raised = 0
    for call in calls:
        try:
            await call()
        except SyncError as error:
            searcher.add_exception("a call", error)
            raised += 1
    return raised


def calls_of(vault: Vault, name: str, secret: Secret) -> list[Callable[[], Awaitable[object]]]:
    # Nobody waits between the quick tries.
    vault.pacer._sleep = lambda seconds: asyncio.sleep(0)

    async def listing() -> None:
        async for _ in vault.list_secrets():
            pass

    calls: list[Callable[[], Awaitable[object]]] = [
        listing,
        lambda: vault.get_secret(name),
        lambda: vault.set_secret(name, secret, owner="somebody"),
        lambda: vault.set_secret(name, secret, expect="99"),
        lambda: vault.set_secret(name, secret, expect=Expect.ABSENT),
        lambda: vault.delete_secret(name, expect="99"),
        lambda: vault.delete_secret(name),
        lambda: vault.check([Use("", write=True, delete=True)]),
    ]
    return calls


@pytest.mark.parametrize(
    "fault", [None, *FAULTS], ids=lambda f: f and f"{f.kind}{f.status if f.kind == 'status' else ''}"
)
async def test_no_error_of_a_vault_quotes_a_value(planted: Planted, fault: Fault | None) -> None:
    p = planted
    fill(p)
    p.key_vault.put("fields", json.dumps({"a": p.secret["field"]})[:-1], content_type="application/vnd.vaultferry+json")
    p.source.put("kv1", "x/float", {"pin": Number(p.secret["float"])})
    searcher = p.searcher()
    bad: list[dict[str, Any]] = [
        {"value": p.secret["big"] * 900},
        {"a": {p.secret["nested"]: float("nan"), "b": p.secret["deep"]}},
        {"value": p.secret["lone"] + "\ud800"},
        {"pin": int(p.secret["wide"]), "half": p.secret["other"]},
        {"bytes": p.secret["lone"].encode()},
        {1: p.secret["field"]},  # type: ignore[dict-item]
        {"value": {"deep": [[[p.secret["deep"]]]], "set": {p.secret["field"]}}},
    ]
    with Logs(searcher):
        async with p.app(SYNCS) as app:
            vaults = {each: await app.vaults.get(each) for each in ("hub", "prod", "backup", "old")}
            if fault is not None:
                if fault.kind.startswith("timeout"):
                    await make_impatient(app, "hub", "prod", "old")
                for server in (p.source, p.key_vault):
                    server.faults.add(replace(fault, times=None))
            raised = 0
            good = Secret({"user": p.secret["field"], "pin": int(p.secret["number"])})
            for vault_id, name in (("hub", "apps/fields"), ("prod", "fields"), ("old", "x/float"), ("backup", "new")):
                if fault is not None and vault_id == "backup":
                    continue
                raised += await gather_errors(searcher, *calls_of(vaults[vault_id], name, good))
                if fault is None:
                    for fields in bad:
                        raised += await gather_errors(
                            searcher,
                            lambda v=vaults[vault_id], n=name, f=fields: v.set_secret(n, Secret(f)),  # type: ignore[misc]
                        )
            assert raised >= (20 if fault is None else 12)
    searcher.forms |= p.searcher().forms
    unhidden(searcher)


class Odd(SandboxServer):
    """Answers every call with the same thing."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__()
        self._status, self._text = status, body

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/{anything:.*}", self._answer)

    def classify(self, request: web.Request) -> tuple[str, str]:
        return "any", request.path

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(status=self._status, text=self._text, content_type="application/json")


ODD_ANSWERS = [
    (200, '{"data": {"data": "%s", "metadata": {"version": 1}}}'),
    (200, '{"data": {"data": ["%s"], "metadata": {"version": "x%s", "created_time": "%s"}}}'),
    (200, '{"data": {"data": {"a": "%s"}, "metadata": {"version": 1, "created_time": "%s", "deletion_time": 7}}}'),
    (200, '{"data": {"data": {"a": "%s", "b": 1e999}, "metadata": {"version": 1}}}'),
    (200, '{"data": "%s"}'),
    (200, '["%s"]'),
    (200, '"%s"'),
    (200, '{"data": {"keys": "%s"}}'),
    (200, '{"data": {"data": {"a": "%s'),
    (200, '{"auth": "%s"}'),
    (200, "<html>%s</html>"),
    (200, "[" * 100_000 + '"%s"'),
]


@pytest.mark.parametrize(("status", "body"), ODD_ANSWERS, ids=[f"{n}" for n in range(len(ODD_ANSWERS))])
async def test_no_answer_of_a_wrong_shape_is_quoted(status: int, body: str) -> None:
    value = canary("odd")
    searcher = Searcher([value])
    async with Odd(status, body.replace("%s", value)) as server:
        given = {"address": server.url, "auth": {"method": "token", "token": "unimportant"}}
        with Logs(searcher):
            for version in ("auto", 1, 2):
                settings = hashicorp.Settings.model_validate({"kind": "hashicorp", "kv_version": version, **given})
                vault = hashicorp.connect("odd", settings)
                try:
                    await gather_errors(searcher, vault.open, lambda v=vault: v.check([Use("", write=True)]))  # type: ignore[misc]
                    if version != "auto":
                        # As if it had been opened in better times.
                        vault.adapter.token, vault._opened = "unimportant", True  # type: ignore[attr-defined]
                        calls = calls_of(vault, "x", Secret({"a": "1"}))
                        assert await gather_errors(searcher, *calls) >= 3
                finally:
                    await vault.aclose()
    assert value.encode() not in b"".join(data for _, data in searcher.seen)
    unhidden(searcher)


@pytest.mark.parametrize("status", [400, 403, 405, 422, 500])
async def test_what_a_vault_says_to_a_write_is_not_repeated(status: int) -> None:
    value = canary("quoted")
    searcher = Searcher([value])
    async with Odd(status, json.dumps({"errors": [f"failed to parse {value}", value]})) as server:
        settings = hashicorp.Settings.model_validate(
            {"kind": "hashicorp", "address": server.url, "kv_version": 2, "auth": {"method": "token", "token": "x"}}
        )
        vault = hashicorp.connect("odd", settings)
        vault.adapter.token, vault._opened = "x", True  # type: ignore[attr-defined]
        with Logs(searcher):
            raised = await gather_errors(searcher, lambda: vault.set_secret("x", Secret({"a": value})))
        await vault.aclose()
        assert raised == 1
    unhidden(searcher)


class OddKeyVault(KeyVaultServer):
    """Does what it is asked, and answers something else."""

    answer: Any = None

    def _perform(self, request: web.Request, operation: str, *args: Any) -> dict[str, Any] | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


async def test_no_answer_of_a_wrong_shape_from_a_key_vault_is_quoted(planted: Planted) -> None:
    p, value = planted, canary("odd")
    searcher = Searcher([value, p.secret["client secret"]])
    answers: list[Any] = [
        {"value": {"nested": value}, "id": 5},
        {"value": 5, "id": value},
        {"value": value, "id": f"https://elsewhere/{value}", "attributes": {"updated": value}},
        {"value": value, "id": f"{p.key_vault.url}/secrets/x/1", "attributes": value},
        {"value": [{"id": value, "attributes": {"updated": "soon"}}], "nextLink": value},
        {"value": value},
        {value: value},
        KeyVaultError(400, "BadParameter", f"the value {value} is not allowed"),
        KeyVaultError(403, "Forbidden", f"{value} is not allowed", inner=value),
        KeyVaultError(409, "Conflict", value, inner=value),
        KeyVaultError(500, "InternalError", value),
    ]
    async with OddKeyVault(p.key_vault.authority) as server:
        bundle = p.folder / "odd.pem"
        bundle.write_text(server.ca_bundle.read_text() + p.entra.ca_bundle.read_text())  # type: ignore[union-attr]
        settings = azure_key_vault.Settings.model_validate(
            {
                "kind": "azure_key_vault",
                "url": server.url,
                "authority": p.entra.url,
                "ca_bundle": str(bundle),
                "auth": {
                    "method": "service_principal",
                    "tenant_id": p.key_vault.authority.tenant_id,
                    "client_id": p.key_vault.authority.client_id,
                    "client_secret": p.secret["client secret"],
                },
                "requests_per_second": 100_000,
            }
        )
        vault = azure_key_vault.connect("odd", settings)
        raised = 0
        with Logs(searcher):
            try:
                for answer in answers:
                    server.answer = answer
                    raised += await gather_errors(searcher, *calls_of(vault, "x", Secret({"value": value})))
            finally:
                await vault.aclose()
        assert raised >= 3 * len(answers)
    unhidden(searcher)


# --- credentials ----------------------------------------------------------------------------------------------------


async def test_no_wrong_credential_is_quoted(planted: Planted) -> None:
    p = planted
    fill(p)
    wrong = {each: canary(each) for each in ("HUB_TOKEN", "SECOND_TOKEN", "PROD_SECRET", "FILE_KEY")}
    async with p.app(SYNCS) as app:
        await run_sync(app)
    p.plant(**wrong)
    searcher = p.searcher()
    with Logs(searcher):
        for name, given in wrong.items():
            env = {**p.env, name: given}
            async with App(parse(p.text(SYNCS).encode(), env, "test.yaml"), env) as app:
                run = await run_sync(app)
                assert (run.status, run.deleted) in (("failed", 0), ("partial", 0))
                assert run.error
                for vault_id in app.config.vaults:
                    with contextlib.suppress(VaultError):
                        vault = await app.vaults.get(vault_id)
                        for finding in await vault.check([Use("", write=True)]):
                            searcher.add("a finding", finding)
                await ask_everything(app, searcher)
        look_at_rest(p, searcher)
    searcher.forms |= p.searcher().forms
    unhidden(searcher)


async def test_a_server_that_is_not_trusted_is_told_and_shown_nothing(planted: Planted) -> None:
    p = planted
    searcher = p.searcher()
    async with VaultSandbox(tls=True, root_token=p.secret["hub token"]) as server:
        bundle = p.entra.ca_bundle
        vaults: list[Vault] = [
            hashicorp.connect(
                "hub",
                hashicorp.Settings.model_validate(
                    {
                        "kind": "hashicorp",
                        "address": server.url,
                        "ca_bundle": str(bundle),
                        "auth": {"method": "token", "token": p.secret["hub token"]},
                    }
                ),
            ),
            azure_key_vault.connect(
                "prod",
                azure_key_vault.Settings.model_validate(
                    {
                        "kind": "azure_key_vault",
                        "url": p.key_vault.url,
                        "authority": p.entra.url,
                        "ca_bundle": str(bundle),
                        "auth": {
                            "method": "service_principal",
                            "tenant_id": "t",
                            "client_id": "c",
                            "client_secret": p.secret["client secret"],
                        },
                    }
                ),
            ),
        ]
        # What a handshake that fails leaves in the server's loop is no business of this test.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with Logs(searcher):
            for vault in vaults:
                calls = calls_of(vault, "x", Secret({"value": p.secret["lone"]}))
                assert await gather_errors(searcher, vault.open, calls[0]) >= 1
                await vault.aclose()
        assert isinstance(bundle, Path)
        assert ssl.create_default_context(cafile=str(bundle))
        assert server.calls.total() == p.key_vault.calls.total() == 0
    unhidden(searcher)


async def test_a_damaged_file_vault_and_a_wrong_key_show_nothing(tmp_path: Path) -> None:
    value, key, other = canary("kept"), *(base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    searcher = Searcher([value, key, other])
    path = tmp_path / "x.vault"

    def opened(with_key: str) -> Vault:
        return file.connect(
            "backup", file.Settings.model_validate({"kind": "file", "path": str(path), "key": with_key})
        )

    vault = opened(key)
    await vault.set_secret("a", Secret({"value": value}))
    await vault.aclose()
    whole = path.read_bytes()
    with Logs(searcher):
        for with_key, content in ((other, whole), (key, whole[:-1]), (key, whole[:40]), (key, value.encode())):
            path.write_bytes(content)
            vault = opened(with_key)
            assert await gather_errors(searcher, *calls_of(vault, "a", Secret({"value": value}))) >= 5
            await vault.aclose()
    path.write_bytes(whole)
    searcher.add_files(tmp_path)
    unhidden(searcher)


# --- jobs that come back --------------------------------------------------------------------------------------------


async def test_a_job_that_ends_in_the_poison_queue_shows_no_value(planted: Planted) -> None:
    p = planted
    fill(p)
    searcher = p.searcher()
    with Logs(searcher) as logs:
        async with p.app(SYNCS) as app:
            run = await app.engine.runs.start("s", trigger="manual")
            for message in await app.queues.receive(jobs.PLAN_QUEUE):
                await app.engine.handle(message.body)
                await app.queues.delete(message)

            async def breaks(message: Message) -> None:
                try:
                    json.loads(f'{{"value": "{p.secret["lone"]}')
                except ValueError as error:
                    raise RuntimeError(p.secret["field"]) from error

            given_up = asyncio.Event()

            async def gives_up(message: Message) -> None:
                job = jobs.decode(message.body)
                assert isinstance(job, WriteJob)
                await app.engine.give_up(jobs.encode(replace(job, split=True)))
                given_up.set()

            queue, settings = jobs.write_queue("prod"), HostSettings(visibility_timeout=0, max_dequeue_count=2)
            loops = [
                QueueLoop(app.queues, queue, breaks, settings),
                QueueLoop(app.queues, queue + jobs.POISON_SUFFIX, gives_up, settings),
            ]
            for loop in loops:
                loop.start()
            await asyncio.wait_for(given_up.wait(), 20)
            await asyncio.gather(*(loop.stop() for loop in loops))
            view = await app.engine.runs.view(run.run_id)
            assert view.failed == 6
            await ask_everything(app, searcher)
        look_at_rest(p, searcher)
    assert "poison" in logs.text
    unhidden(searcher)


# --- the configuration ----------------------------------------------------------------------------------------------

BROKEN = {
    "an open quote": 'vaults: {hub: {kind: hashicorp, auth: {method: token, token: "%s}}}',
    "a bracket too many": "vaults: {hub: {auth: {token: %s}}}}",
    "a tab": "vaults:\n\thub: %s",
    "a key twice": "vaults:\n  hub: {kind: file, key: %s, key: %s}",
    "a bad escape": 'vaults: {hub: {kind: file, key: "\\q%s"}}',
    "an unknown anchor": "vaults: {hub: *%s}",
    "a tag": "vaults: {hub: !!python/object:os.%s x}",
    "text for a section": "vaults: {hub: %s}",
    "text for a login": "vaults: {hub: {kind: hashicorp, address: 'http://127.0.0.1:1', auth: %s}}",
    "a login without its kind": "vaults: {hub: {kind: hashicorp, address: 'http://127.0.0.1:1', auth: {token: %s}}}",
    "an unknown login": "vaults: {hub: {kind: hashicorp, address: 'http://x', auth: {method: tokken, token: %s}}}",
    "a list for a token": "vaults: {hub: {kind: hashicorp, address: 'http://x', auth: {method: token, token: [%s]}}}",
    "a password in an address": "vaults: {hub: {kind: hashicorp, address: 'http://u:%s@x', auth: {method: token}}}",
    "a password in a url": "vaults: {hub: {kind: azure_key_vault, url: 'https://u:%s@x.vault.azure.net'}}",
    "a short key": "vaults: {hub: {kind: file, path: x, key: '%s'}}",
    "a number that is text": "vaults: {hub: {kind: file, path: x, key: '%s', concurrency: '%s'}}",
    "from the environment": "vaults: {hub: {kind: file, path: x, key: '${LEAKY}', concurrency: '${LEAKY}', x: '${LEAKY}'}}",
    "an unknown key beside": "vaults: {hub: {kind: azure_key_vault, url: 'https://x', client_secret: %s}}",
    "a default that is secret": "vaults: {hub: {kind: file, path: x, key: '${MISSING:-%s', keyy: 1}}",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_no_broken_configuration_is_quoted(text: str) -> None:
    # Short enough to be refused as a key, long enough to be recognised.
    value = secrets.token_hex(8)
    searcher = Searcher([value])
    with Logs(searcher), pytest.raises(SyncError) as raised:
        parse(text.replace("%s", value).encode(), {"LEAKY": value}, "test.yaml")
    searcher.add_exception("the error", raised.value)
    for problem in getattr(raised.value, "problems", ()):
        searcher.add("a problem", repr(problem))
    unhidden(searcher)


# --- the command line -----------------------------------------------------------------------------------------------


async def test_the_command_line_shows_no_value(planted: Planted) -> None:
    p = planted
    fill(p)
    fill_with_trouble(p)
    p.plant(wrong=canary("wrong"))
    searcher = p.searcher()
    config = p.folder / "test.yaml"
    config.write_text(p.text(SYNCS))
    broken = p.folder / "broken.yaml"
    broken.write_text(f'vaults: {{hub: {{kind: file, path: x, key: "{p.secret["lone"]}')

    async def run(*command: str, env: Mapping[str, str] | None = None) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from shared.cli import main; main()", *command, "--log-level", "debug",
            env={**os.environ, **p.env, "COLUMNS": "300", **(env or {})}, cwd=ROOT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        searcher.add(f"vaultferry {' '.join(command)}", out + err)
        assert out + err, command
        assert process.returncode is not None
        return process.returncode

    c = ("-c", str(config))
    assert await run("plan", *c, "--json") == 1, "two names that are one in Key Vault"
    assert await run("sync", *c) == 1, "what can not be carried is told"
    looks = [
        run("status", *c, "--json"), run("status", "s", *c), run("history", "s", *c, "--json"), run("check", *c),
        run("validate", "-c", str(broken)), run("sync", "s", *c, "--json", env={"HUB_TOKEN": p.secret["wrong"]}),
    ]  # fmt: skip
    codes = [code for at in range(0, len(looks), 2) for code in await asyncio.gather(*looks[at : at + 2])]
    assert codes[:3] == [0, 0, 0]
    assert codes[4:] == [2, 1]
    searcher.add_files(p.folder, "broken.yaml")
    searcher.forms |= p.searcher().forms
    unhidden(searcher)
