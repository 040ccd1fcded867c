"""What a sync costs, counted where it costs: on the servers."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Sandbox, run_sync

SYNC = """
  s:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod}}, {{vault: second, prefix: copy/}}]
    verify_targets: {verify}
    delete: {{propagate: true}}
"""
READS = ("read", "get")


def counted(server: object, *operations: str) -> int:
    calls = server.calls  # type: ignore[attr-defined]
    return sum(calls[operation] for operation in operations)


@pytest.mark.parametrize("verify", ["true", "false"])
async def test_an_unchanged_second_sync_of_2000_secrets_reads_no_value_anywhere(sandbox: Sandbox, verify: str) -> None:
    count = 2000
    for n in range(count):
        sandbox.source.put("secret", f"apps/team{n % 20:02}/service{n:04}", {"value": f"v{n}"})
    async with sandbox.app(SYNC.format(verify=verify)) as app:
        first = await run_sync(app)
        assert (first.status, first.written) == ("succeeded", 2 * count)
        assert counted(sandbox.source, "read") == 2 * count, "one value read a destination"
        assert counted(sandbox.second, "write") == count
        assert counted(sandbox.key_vault, "set") == count
        assert counted(sandbox.key_vault, "get") == 0
        sandbox.key_vault.clock.advance(10)
        sandbox.reset_calls()
        again = await run_sync(app)
        assert (again.status, again.unchanged, again.written) == ("succeeded", 2 * count, 0)
        for server in (sandbox.source, sandbox.second, sandbox.key_vault):
            assert counted(server, "read", "get", "write", "set", "delete") == 0
        assert counted(sandbox.source, "metadata") == count
        assert counted(sandbox.second, "metadata") == (count if verify == "true" else 0)
        if verify == "false":
            assert counted(sandbox.second, "list") == counted(sandbox.key_vault, "list") == 0


async def test_a_changed_secret_costs_one_read_one_write_a_destination_and_one_look_a_side(sandbox: Sandbox) -> None:
    for n in range(5):
        sandbox.source.put("secret", f"apps/s{n}", {"value": f"v{n}"})
    async with sandbox.app(SYNC.format(verify="true")) as app:
        await run_sync(app)
        sandbox.key_vault.clock.advance(10)
        sandbox.source.put("secret", "apps/s3", {"value": "new"})
        sandbox.reset_calls()
        run = await run_sync(app)
        assert (run.written, run.unchanged) == (2, 8)
        assert counted(sandbox.source, "read") == 2, "one a destination"
        assert counted(sandbox.source, "metadata") == 5
        assert counted(sandbox.second, "write") == counted(sandbox.key_vault, "set") == 1
        assert counted(sandbox.second, "metadata") <= 5
        assert counted(sandbox.second, "read") == counted(sandbox.key_vault, "get") == 0
        assert sandbox.second.get("secret", "copy/s3") == {"value": "new"}


async def test_a_value_changed_by_hand_at_the_destination_is_repaired(sandbox: Sandbox) -> None:
    sandbox.source.put("secret", "apps/db", {"user": "u", "password": "p"})
    sandbox.source.put("secret", "apps/key", {"value": "k"})
    async with sandbox.app(SYNC.format(verify="true")) as app:
        await run_sync(app)
        sandbox.key_vault.clock.advance(10)
        sandbox.key_vault.put("key", "by hand")
        sandbox.second.put("secret", "copy/db", {"value": "by hand"})
        run = await run_sync(app)
        assert (run.written, run.drifted, run.unchanged) == (2, 2, 2)
        assert sandbox.second.get("secret", "copy/db") == {"user": "u", "password": "p"}
        found = sandbox.key_vault.get("key")
        assert found is not None
        assert found.value == "k"


async def test_a_deleted_secret_goes_everywhere_and_comes_back(sandbox: Sandbox) -> None:
    sandbox.source.put("secret", "apps/a", {"value": "1"})
    sandbox.source.put("secret", "apps/b", {"value": "1"})
    async with sandbox.app(SYNC.format(verify="true")) as app:
        await run_sync(app)
        sandbox.key_vault.clock.advance(10)
        sandbox.source.soft_delete("secret", "apps/a")
        run = await run_sync(app)
        assert (run.deleted, run.unchanged) == (2, 2)
        assert sandbox.key_vault.get("a") is None
        assert sandbox.second.get("secret", "copy/a") is None
        sandbox.source.undelete("secret", "apps/a", 1)
        run = await run_sync(app)
        assert run.written == 2
        assert sandbox.second.get("secret", "copy/a") == {"value": "1"}
        sandbox.source.remove("secret", "apps/a")
        assert (await run_sync(app)).deleted == 2
