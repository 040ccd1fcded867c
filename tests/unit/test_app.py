"""The composition root: which store, which key, and vaults that are opened once."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from shared import vaults
from shared.app import VaultPool, audit_secrets, digest_key, store_file, vault_address
from shared.config.build import parse
from shared.errors import ConfigError, Unavailable
from tests.memory_vault import MemoryVault

CANARY = "canary-a81c"
ACCOUNT = {"AzureWebJobsStorage": "UseDevelopmentStorage=true"}


# --- which store --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "vaultferry.db"),
        (ACCOUNT, None),
        ({"AzureWebJobsStorage__accountName": "a"}, None),
        ({"VAULTFERRY_STORE": "tables", **ACCOUNT}, None),
        ({"VAULTFERRY_STORE": "sqlite:///relative/v.db", **ACCOUNT}, "relative/v.db"),
        ({"VAULTFERRY_STORE": "sqlite:////absolute/v.db"}, "/absolute/v.db"),
    ],
)
def test_the_environment_says_where_the_store_is(env: dict[str, str], expected: str | None) -> None:
    assert store_file(env) == (None if expected is None else Path(expected))


@pytest.mark.parametrize(
    "given", ["tables", "sqlite://v.db", "sqlite:///", "sqlite:///folder/", f"AccountKey={CANARY}"]
)
def test_a_store_that_there_is_not_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match="VAULTFERRY_STORE") as caught:
        store_file({"VAULTFERRY_STORE": given})
    assert CANARY not in str(caught.value)


# --- the digest key -----------------------------------------------------------------------------------------------


def test_a_given_key_is_used_and_a_short_one_refused() -> None:
    assert digest_key({"VAULTFERRY_DIGEST_KEY": "k" * 32}) == "k" * 32
    with pytest.raises(ConfigError, match="31 characters; at least 32") as caught:
        digest_key({"VAULTFERRY_DIGEST_KEY": "k" * 31})
    assert "kkk" not in str(caught.value)


def test_tables_need_a_key() -> None:
    with pytest.raises(ConfigError, match="VAULTFERRY_DIGEST_KEY is not set"):
        digest_key(ACCOUNT)


def test_a_key_is_made_once_beside_the_file_for_its_owner_alone(tmp_path: Path) -> None:
    env = {"VAULTFERRY_STORE": f"sqlite:///{tmp_path}/v.db"}
    key = digest_key(env)
    assert len(key) >= 32
    assert digest_key(env) == key
    assert [path.name for path in tmp_path.iterdir()] == ["v.db.key"]
    assert stat.S_IMODE((tmp_path / "v.db.key").stat().st_mode) == 0o600


def test_a_key_that_is_gone_from_beside_its_database_is_not_replaced_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "v.db").touch()
    digest_key({"VAULTFERRY_STORE": f"sqlite:///{tmp_path}/v.db"})
    told = f"{tmp_path}/v.db.key is not there, so a new digest key is made: all values are compared anew"
    assert told in [record.getMessage() for record in caplog.records]


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    script = "import sys; from shared.app import digest_key; print(digest_key({'VAULTFERRY_STORE': sys.argv[1]}))"
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/v.db"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v.db.key"]


def test_a_folder_without_links_still_gets_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    env = {"VAULTFERRY_STORE": f"sqlite:///{tmp_path}/v.db"}
    assert digest_key(env) == digest_key(env)
    assert [path.name for path in tmp_path.iterdir()] == ["v.db.key"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_a_damaged_key_is_not_used_or_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v.db.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"v\.db\.key does not hold a digest key"):
        digest_key({"VAULTFERRY_STORE": f"sqlite:///{tmp_path}/v.db"})
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file or directory; set VAULTFERRY_DIGEST_KEY"):
        digest_key({"VAULTFERRY_STORE": f"sqlite:///{tmp_path}/missing/v.db"})


# --- vaults -------------------------------------------------------------------------------------------------------


class Opened(MemoryVault):
    def __init__(self, vault_id: str, bench: Bench) -> None:
        super().__init__(vault_id)
        self.bench = bench

    async def open(self) -> None:
        self.bench.log.append(f"open {self.id}")
        self.bench.started.set()
        await self.bench.gate.wait()
        if self.bench.failures:
            raise self.bench.failures.pop()

    async def aclose(self) -> None:
        self.bench.log.append(f"close {self.id}")


class Bench:
    """A pool of vaults in memory, and what became of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.started, self.gate = asyncio.Event(), asyncio.Event()
        self.failures: list[Exception] = []
        kind = types.SimpleNamespace(
            connect=lambda vault_id, settings, resource: Opened(f"{vault_id}/{resource}", self)
        )
        monkeypatch.setattr(vaults, "kinds", lambda: {"memory": kind})
        settings: Any = {"a": types.SimpleNamespace(kind="memory"), "b": types.SimpleNamespace(kind="memory")}
        self.pool = VaultPool(settings)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


async def test_a_vault_is_opened_once_for_all_who_ask(bench: Bench) -> None:
    asking = [asyncio.create_task(bench.pool.get("a")) for _ in range(5)]
    await asyncio.sleep(0)
    bench.gate.set()
    opened = await asyncio.gather(*asking)
    assert len(set(map(id, opened))) == 1
    assert await bench.pool.get("a", "policies") is not opened[0]
    await bench.pool.aclose()
    assert bench.log == ["open a/secrets", "open a/policies", "close a/secrets", "close a/policies"]


async def test_a_failed_opening_is_closed_and_tried_anew_by_the_next(bench: Bench) -> None:
    bench.gate.set()
    bench.failures.append(Unavailable("no answer", vault="a"))
    results = await asyncio.gather(bench.pool.get("a"), bench.pool.get("a"), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert (await bench.pool.get("a")).id == "a/secrets"
    await bench.pool.aclose()
    assert bench.log == ["open a/secrets", "close a/secrets"] * 2


async def test_one_who_gives_up_does_not_take_the_vault_from_the_others(bench: Bench) -> None:
    impatient, patient = asyncio.create_task(bench.pool.get("a")), asyncio.create_task(bench.pool.get("a"))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait({impatient})
    bench.gate.set()
    assert (await patient).id == "a/secrets"
    assert bench.log == ["open a/secrets"]
    await bench.pool.aclose()


async def test_closing_ends_an_opening_that_is_under_way(bench: Bench) -> None:
    asking = asyncio.create_task(bench.pool.get("a"))
    await bench.started.wait()
    await bench.pool.aclose()
    assert asking.done() or await asyncio.wait({asking})
    assert bench.log == ["open a/secrets", "close a/secrets"]


async def test_a_vault_that_is_not_configured_is_a_mistake_in_the_configuration(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="no vault 'c'"):
        await bench.pool.get("c")


def test_an_address_tells_places_apart_and_holds_no_credential() -> None:
    text = f"""
vaults:
  one: {{kind: hashicorp, address: "http://127.0.0.1:8200/", auth: {{method: token, token: "{CANARY}"}}}}
  same: {{kind: hashicorp, address: "http://127.0.0.1:8200", auth: {{method: token, token: "other"}}}}
  mounted: {{kind: hashicorp, address: "http://127.0.0.1:8200", mount: kv, auth: {{method: token, token: "x"}}}}
  kv: {{kind: azure_key_vault, url: "https://contoso.vault.azure.net"}}
  disk: {{kind: file, path: a.vault, key: "{CANARY} and as long as it must be"}}
"""
    configured = parse(text.encode(), {}, "f").vaults
    addresses = {vault_id: vault_address(settings) for vault_id, settings in configured.items()}
    assert addresses.pop("same") == addresses["one"]
    assert len(set(addresses.values())) == len(addresses) == 4
    assert all(addresses.values())
    assert CANARY not in str(addresses)


# --- the secret that signs audit entries --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", ()),
        (" , ", ()),
        ("n" * 16, ("n" * 16,)),
        (f" {'n' * 32} ,{'o' * 16},", ("n" * 32, "o" * 16)),
    ],
)
def test_audit_entries_are_signed_with_one_secret_or_two(given: str, found: tuple[str, ...]) -> None:
    assert audit_secrets({"VAULTFERRY_AUDIT_SECRET": given}) == found
    assert audit_secrets({}) == ()


@pytest.mark.parametrize("given", ["short", f"{'n' * 32},short", ",".join(["n" * 32] * 3)])
def test_a_weak_audit_secret_is_refused_without_being_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match="VAULTFERRY_AUDIT_SECRET") as caught:
        audit_secrets({"VAULTFERRY_AUDIT_SECRET": given})
    assert "short" not in str(caught.value).replace("too short", "")
    assert "n" * 32 not in str(caught.value)
