"""A real Vault's own audit log, posted to /audit as it is: what was done at the source is done at the destinations."""

from __future__ import annotations

import asyncio
import gzip
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.app import App
from shared.config.build import parse
from shared.errors import SecretNotFound
from shared.intake import MAX_UNPACKED, MAX_VALUES
from tests.servers.processes import RealVault
from tests.unit.apps import Client, environment, working

CONFIG = """
vaults:
  hub: {{kind: hashicorp, address: "{url}", mount: secret, auth: {{method: token, token: "${{TOKEN}}"}}}}
  old: {{kind: hashicorp, address: "{url}", mount: one, auth: {{method: token, token: "${{TOKEN}}"}}}}
  rules: {{kind: hashicorp, address: "{url}", auth: {{method: token, token: "${{TOKEN}}"}}}}
  away: {{kind: hashicorp, address: "{away}", auth: {{method: token, token: "${{AWAY}}"}}}}
  prod: {{kind: file, path: "{folder}/prod.vault", key: "${{KEY}}"}}
syncs:
  two: {{source: {{vault: hub, prefix: apps/}}, targets: [{{vault: prod, prefix: two/}}], delete: {{propagate: true}}}}
  one: {{source: {{vault: old}}, targets: [{{vault: prod, prefix: one/}}], delete: {{propagate: true}}}}
  pol: {{source: {{vault: rules, resource: policies}}, targets: [{{vault: away}}], delete: {{propagate: true}}}}
"""
CANARY = "canary-61c09e"
AWKWARD = "ä b/c%20d?e#f"


class Person:
    """Somebody at work, and the log of it."""

    def __init__(self, vault: RealVault, log: Path) -> None:
        self._vault = vault
        self._log = log
        self._read = 0

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        try:
            self._vault.call(method, path, body)
        except urllib.error.HTTPError as error:
            error.close()

    def logged(self) -> bytes:
        """What was logged since the last time."""
        lines = self._log.read_bytes()[self._read :]
        self._read += len(lines)
        return lines


@pytest.mark.real
async def test_an_audit_log_as_it_is_brings_the_destination_up_to_date(
    more_vaults: Callable[..., RealVault], tmp_path: Path
) -> None:
    vault, away = await asyncio.to_thread(lambda: (more_vaults(), more_vaults()))
    vault.call("POST", "sys/mounts/one", {"type": "kv", "options": {"version": "1"}})
    log = tmp_path / "audit.log"
    options = {"file_path": str(log), "log_raw": "true"}
    vault.call("PUT", "sys/audit/file", {"type": "file", "options": options})
    person = Person(vault, log)
    env = {**environment(tmp_path), "TOKEN": vault.token, "AWAY": away.token}
    config = CONFIG.format(url=vault.url, away=away.url, folder=tmp_path)
    async with App(parse(config.encode(), env, "test.yaml"), env) as app, working(app):
        client = Client(app)
        places = {"prod": await app.vaults.get("prod"), "away": await app.vaults.get("away", "policies")}

        async def taken() -> dict[str, int]:
            body = gzip.compress(person.logged())
            counts: dict[str, int] = await client.json("POST", "/audit", 202, body=body, **{"content-encoding": "gzip"})
            assert counts["invalid"] == 0
            return counts

        async def becomes(expected: dict[str, str | None]) -> None:
            async def same(name: str, value: str | None) -> bool:
                vault_id, _, name = name.partition(":")
                try:
                    return (await places[vault_id].get_secret(name)).fields.get("value") == value
                except SecretNotFound:
                    return value is None

            async with asyncio.timeout(30):
                for name, value in expected.items():
                    while not await same(name, value):  # noqa: ASYNC110 - as somebody who waits for it looks
                        await asyncio.sleep(0.01)

        person("POST", "secret/data/apps/a", {"data": {"value": f"{CANARY}-1"}})
        person("POST", "secret/data/apps/b", {"data": {"value": "1"}})
        person("POST", "secret/data/apps/%C3%A4%20b/c%2520d%3Fe%23f", {"data": {"value": "odd"}})
        person("POST", "secret/data/elsewhere/c", {"data": {"value": "1"}})
        person("POST", "secret/data/apps/a", {"data": {"value": f"{CANARY}-2"}})
        person("POST", "secret/data/apps/a", {"options": {"cas": 0}, "data": {"value": "refused"}})
        person("POST", "one/x/y", {"value": "v1"})
        person("PUT", "sys/policies/acl/My-Rules", {"policy": 'path "x" {}'})
        person("GET", "secret/data/apps/b")
        counts = await taken()
        assert (counts["accepted"], counts["duplicate"]) == (5, 1)
        await becomes(
            {
                "prod:two/a": f"{CANARY}-2",
                "prod:two/b": "1",
                f"prod:two/{AWKWARD}": "odd",
                "prod:one/x/y": "v1",
                "away:my-rules": 'path "x" {}',
            }
        )

        person("DELETE", "secret/data/apps/a")
        person("DELETE", "one/x/y")
        person("DELETE", "sys/policy/my-rules")
        person("POST", "secret/destroy/apps/b", {"versions": [1]})
        assert (await taken())["accepted"] == 4
        await becomes(
            {
                "prod:two/a": None,
                "prod:one/x/y": None,
                "away:my-rules": None,
                "prod:two/b": None,
                f"prod:two/{AWKWARD}": "odd",
            }
        )

        person("POST", "secret/undelete/apps/a", {"versions": [2]})
        person("DELETE", "secret/metadata/apps/b")
        person("POST", "secret/data/apps/b", {"data": {"value": "again"}})
        assert (await taken())["accepted"] == 3
        await becomes({"prod:two/a": f"{CANARY}-2", "prod:two/b": "again"})
    text = log.read_bytes()
    assert CANARY.encode() in text, "raw logging was on"
    values = sum(text.count(char) for char in (b",", b"[", b"{"))
    assert values / len(text) * MAX_UNPACKED < 0.9 * MAX_VALUES, "as much of a log as fits is taken"
    assert not _holding(tmp_path, CANARY.encode())


def _holding(folder: Path, canary: bytes) -> list[Path]:
    """The files of the store that hold a canary."""
    return [path for path in folder.glob("vaultferry.db*") if canary in path.read_bytes()]
