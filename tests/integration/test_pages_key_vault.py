"""docs/vaults/azure-key-vault.md: the permissions that it names are enough, and none of them is too much."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sandbox.key_vault import _PERMISSIONS, EVERY_PERMISSION
from shared.cli.configuring import uses
from shared.vaults import azure_key_vault
from tests.integration.conftest import Sandbox, run_sync

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "vaults" / "azure-key-vault.md").read_text("utf-8")
BEGIN = "Microsoft.KeyVault/vaults/secrets/"
TO = """
  s:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: prod}]
    delete: {propagate: %s}
"""
FROM = """
  s:
    source: {vault: prod}
    targets: [{vault: second, prefix: copy/}]
"""


def in_policy(begin: str) -> set[str]:
    """The permissions in the last column of the page's table, as an access policy has them."""
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {begin} |"))
    return {each.strip().lower() for each in row.strip("|").split("|")[-1].split(",")}


def in_role() -> set[str]:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    actions = {each.removeprefix(BEGIN) for each in json.loads(block)["DataActions"]}
    assert actions <= {action for _, action in _PERMISSIONS.values()}
    return actions


def test_the_role_and_the_access_policy_of_a_target_with_deletes_say_the_same() -> None:
    granted = {permission for permission, action in _PERMISSIONS.values() if action in in_role()}
    assert granted == in_policy("a target with `delete.propagate`")


async def found(sandbox: Sandbox, syncs: str) -> dict[str, bool]:
    """What `check` says of the Key Vault."""
    app = sandbox.app(syncs)
    settings = app.config.vaults["prod"]
    vault = azure_key_vault.connect("prod", settings)  # type: ignore[arg-type]
    try:
        findings = await vault.check(uses(app.config, "prod")["secrets"])
    finally:
        await vault.aclose()
    return {finding.subject: finding.ok for finding in findings}


async def test_a_source_needs_no_more(sandbox: Sandbox) -> None:
    sandbox.key_vault.put("db", "v")
    sandbox.key_vault.permissions = in_policy("a source")
    assert all((await found(sandbox, FROM)).values())
    async with sandbox.app(FROM) as app:
        run = await run_sync(app)
    assert (run.status, run.written) == ("succeeded", 1)


@pytest.mark.parametrize("deletes", [False, True])
async def test_a_target_needs_no_more(sandbox: Sandbox, deletes: bool) -> None:
    """Also for a name that a deleted secret has taken, and for a value that is there already."""
    sandbox.source.put("secret", "apps/new", {"value": "v"})
    sandbox.source.put("secret", "apps/there", {"value": "v"})
    sandbox.key_vault.put("there", "other")
    sandbox.key_vault.permissions = in_policy("a target with `delete.propagate`" if deletes else "a target")
    syncs = TO % str(deletes).lower()
    assert all((await found(sandbox, syncs)).values())
    async with sandbox.app(syncs) as app:
        run = await run_sync(app)
        assert (run.status, run.written) == ("succeeded", 2)
        sandbox.key_vault.clock.advance(10)
        if deletes:
            sandbox.source.soft_delete("secret", "apps/new")
            assert (await run_sync(app)).deleted == 1
            sandbox.source.undelete("secret", "apps/new", 1)
            run = await run_sync(app)
            assert (run.status, run.written) == ("succeeded", 1)


@pytest.mark.parametrize("missing", sorted(in_policy("a target with `delete.propagate`")))
async def test_check_tells_which_one_is_missing(sandbox: Sandbox, missing: str) -> None:
    sandbox.key_vault.permissions = EVERY_PERMISSION - {missing}
    lines = {"list": "list", "get": "read", "set": "write", "recover": "recover", "delete": "delete"}
    assert {subject for subject, ok in (await found(sandbox, TO % "true")).items() if not ok} == {lines[missing]}
