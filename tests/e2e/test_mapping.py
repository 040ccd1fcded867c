"""Names and values on the way, on real Vaults (KV v2 and v1) and a Key Vault: encrypted here, and read again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyrage
import pytest

from sandbox.key_vault import KeyVaultServer
from shared.model import Run
from shared.name_encoding import decode
from tests.e2e.conftest import Installation, Place
from tests.servers.processes import RealVault
from tests.unit.test_name_encoding import KEY_VAULT

pytestmark = pytest.mark.real

IDENTITY = pyrage.x25519.Identity.generate()
PUBLIC = str(IDENTITY.to_public())
CANARY = "s3cret-canary"
SEALED = f"""
    source: {{vault: hub, prefix: apps/}}
    targets:
      - {{vault: second, transform: [{{encrypt: {{age: [{PUBLIC}]}}}}]}}
      - {{vault: prod, name_encoding: reversible, transform: [{{encrypt: {{age: [{PUBLIC}]}}, fields: [password]}}]}}
"""
OPENED = """
    source: {vault: hub}
    targets: [{vault: second, transform: [{decrypt: {age: "${AGE_KEY}"}}]}]
"""
SHAPED = """
    source: {vault: hub, prefix: apps/}
    targets:
      - <<: {vault: prod}
        name: '{dir | slug}-{name | lower}'
        rename: {eu/DB_main: main-db}
        fields:
          split: {config: json}
          exclude: ["tmp*"]
          rename: {pass: password}
          set: {engine: postgres}
          build: {value: {template: "{fields.engine}://{fields.user}:{fields.password}@{fields.host}"}}
"""


def counts(run: Run) -> dict[str, int]:
    assert run.error is None
    names = ("written", "unchanged", "failed", "conflicts", "drifted")
    return {name: getattr(run, name) for name in names if getattr(run, name)}


def opened(text: str) -> str:
    return pyrage.decrypt(text.encode(), [IDENTITY]).decode()


@pytest.mark.parametrize("version", [1, 2])
async def test_what_a_destination_may_not_read_it_carries_all_the_same(
    here: Installation,
    hub: Place,
    key_vault: KeyVaultServer,
    second_server: RealVault,
    new_place: Callable[..., Place],
    version: int,
) -> None:
    second = new_place(second_server, version)
    here.add("hub", hub)
    here.add("second", second)
    hub.put("apps/eu/DB_main", {"user": "u", "password": CANARY})
    hub.put("apps/eu/db/main", {"value": "pässwort ✓\n"})

    def held() -> list[Any]:
        names = [(name, version) for name in key_vault.names() if (version := key_vault.get(name)) is not None]
        return [second.get("eu/DB_main"), second.get("eu/db/main"), *((n, v.value) for n, v in names)]

    async with here.app(SEALED) as app:
        assert counts(await here.run(app)) == {"written": 4}
        before = held()
        assert CANARY not in str(before)
        assert {key: opened(text) for key, text in before[0].items()} == {"user": "u", "password": CANARY}
        assert opened(before[1]["value"]) == "pässwort ✓\n"
        assert sorted(decode(KEY_VAULT, name) for name in key_vault.names()) == ["eu/DB_main", "eu/db/main"]
        key_vault.clock.advance(10)
        for _ in range(2):
            assert counts(await here.run(app)) == {"unchanged": 4}
        assert held() == before

        second.put("eu/DB_main", {"password": "tampered"})
        assert counts(await here.run(app)) == {"written": 1, "drifted": 1, "unchanged": 3}
        assert opened(second.get("eu/DB_main")["password"]) == CANARY
        assert counts(await here.run(app)) == {"unchanged": 4}
        assert await here.verified(app) == 5

    far = Installation(here.env | {"AGE_KEY": str(IDENTITY)}, f"{here.tag}f")
    back = new_place(second_server)
    far.add("hub", second)
    far.add("second", back)
    async with far.app(OPENED) as app:
        assert counts(await far.run(app)) == {"written": 2}
        assert back.get("eu/DB_main") == {"user": "u", "password": CANARY}
        assert back.get("eu/db/main") == {"value": "pässwort ✓\n"}


async def test_a_changed_rule_is_applied_to_what_did_not_change(
    here: Installation, hub: Place, key_vault: KeyVaultServer
) -> None:
    here.add("hub", hub)
    for name in ("eu/DB_main", "us/db"):
        hub.put(f"apps/{name}", {"config": '{"host": "h", "tmp": 1}', "user": "u", "pass": "p", "tmp-note": "x"})

    def held() -> dict[str, str]:
        found = {name: key_vault.get(name) for name in key_vault.names()}
        return {name: version.value for name, version in found.items() if version is not None}

    async with here.app(SHAPED) as app:
        assert counts(await here.run(app)) == {"written": 2}
        assert held() == {"main-db": "postgres://u:p@h", "us-db": "postgres://u:p@h"}
        key_vault.clock.advance(10)
        assert counts(await here.run(app)) == {"unchanged": 2}
    async with here.app(SHAPED.replace("set: {engine: postgres}", "set: {engine: mysql}")) as app:
        assert counts(await here.run(app)) == {"written": 2}
        assert held() == {"main-db": "mysql://u:p@h", "us-db": "mysql://u:p@h"}
