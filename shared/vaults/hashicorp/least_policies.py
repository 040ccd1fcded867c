"""The least that syncs need of a Vault's token, as an ACL policy in HCL.

Of several rules that fit a path, Vault heeds the most specific one only, so a rule also grants what wider rules of the
same policy grant: https://developer.hashicorp.com/vault/docs/concepts/policies#priority-matching
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from shared.errors import ConfigError, VaultError
from shared.model import Granularity, Sync
from shared.vaults.hashicorp.settings import Settings

_ORDER = ("create", "read", "update", "delete", "list")


class _Rules:
    """Capabilities by path, and what each is for."""

    def __init__(self) -> None:
        self.granted: dict[str, set[str]] = {}
        self.reasons: dict[str, list[str]] = {}

    def add(self, path: str, capabilities: Iterable[str], reason: str) -> None:
        self.granted.setdefault(path, set()).update(capabilities)
        reasons = self.reasons.setdefault(path, [])
        if reason not in reasons:
            reasons.append(reason)

    def complete(self, path: str) -> list[str]:
        wider = (q for q in self.granted if q == path or (q.endswith("*") and path.startswith(q[:-1])))
        together = set[str]().union(*(self.granted[q] for q in wider))
        return [each for each in _ORDER if each in together]


async def kv_version(vault_id: str, settings: Settings) -> Literal[1, 2]:
    """Of the mount: as configured, or as the server says. Raises VaultErrors that say how to do without asking."""
    if settings.kv_version != "auto":
        return settings.kv_version
    from shared.vaults.hashicorp.kv import KvVault

    vault = KvVault(vault_id, settings)
    try:
        await vault.open()
        return 2 if vault.capabilities.compare_and_set else 1
    except VaultError as error:
        error.message += "; with `kv_version: 1` or `2` in the configuration, its policy can be told without asking"
        raise
    finally:
        await vault.aclose()


def policy(vault_id: str, settings: Settings, version: Literal[1, 2], syncs: Iterable[Sync]) -> str:
    """The text of a policy that allows exactly what these syncs do in this vault. Raises ConfigError for a prefix that
    no policy can name."""
    rules = _Rules()
    later: dict[str, str] = {}
    for sync in syncs:
        if sync.source.vault == vault_id and sync.two_way:
            prefix, removes = sync.source.prefix, sync.delete.propagate
            _write(rules, settings.mount, version, sync, prefix, f"{sync.id}: its source", removes=removes)
        elif sync.source.vault == vault_id:
            _read(rules, settings.mount, version, sync)
        for target in sync.targets:
            if target.vault != vault_id:
                continue
            removes = sync.delete.propagate or target.granularity is Granularity.FIELD
            reason = f"{sync.id}: its target"
            if target.metadata.carry and version == 2:
                metadata = f"{settings.mount}/metadata/{target.prefix}*"
                rules.add(metadata, ["create", "update"], f"{reason}, to write tags")
            spot = _write(rules, settings.mount, version, sync, target.prefix, reason, removes=removes)
            if not removes and not sync.two_way:
                later[spot] = f"{sync.id}: names that its mapping no longer yields can only be removed with this"
    blocks = [_block(path, rules.complete(path), rules.reasons[path]) for path in rules.granted]
    for spot, reason in later.items():
        path, _, capability = spot.partition(" ")
        if capability not in rules.complete(path):
            blocks.append(_commented(_block(path, [*rules.complete(path), capability], [reason])))
    return "\n".join([*_heading(vault_id, settings), *blocks])


def _heading(vault_id: str, settings: Settings) -> list[str]:
    namespace = f"-namespace={settings.namespace} " if settings.namespace else ""
    lines = [
        f"# What Vaultferry needs in {vault_id} ({settings.url}).",
        f"# vault policy write {namespace}vaultferry-{vault_id} FILE",
        "# `vaultferry check` and a token's renewal need what Vault's own policy `default` grants.",
    ]
    if settings.namespace:
        lines.insert(1, f"# It belongs into the namespace {settings.namespace}/; its paths are relative to that.")
    return [*lines, ""]


def _block(path: str, capabilities: list[str], reasons: list[str]) -> str:
    if "${" in path or "{{" in path:
        raise ConfigError(f"no policy can name {path!r}: '${{' and '{{{{' have a meaning of their own there")
    if "+" in path.split("/"):
        # https://developer.hashicorp.com/vault/docs/concepts/policies#policy-syntax: it would allow more than is meant.
        raise ConfigError(f"no policy can name {path!r} alone: between slashes, '+' stands for every name there")
    comments = "".join(f"# {reason}\n" for reason in reasons)
    listed = ", ".join(f'"{each}"' for each in capabilities)
    return f"{comments}path {json.dumps(path, ensure_ascii=False)} {{\n  capabilities = [{listed}]\n}}\n"


def _commented(block: str) -> str:
    return "".join(line if line.startswith("#") else f"# {line}" for line in block.splitlines(keepends=True))


def _read(rules: _Rules, mount: str, version: int, sync: Sync) -> None:
    prefix, reason = sync.source.prefix, f"{sync.id}: its source"
    if sync.source.resource == "policies":
        rules.add("sys/policies/acl", ["list"], reason)
        rules.add(f"sys/policies/acl/{prefix.lower()}*", ["read"], reason)
    elif version == 2:
        rules.add(f"{mount}/data/{prefix}*", ["read"], reason)
        rules.add(f"{mount}/metadata/{prefix}*", ["read", "list"], reason)
    else:
        rules.add(f"{mount}/{prefix}*", ["read", "list"], reason)


def _write(rules: _Rules, mount: str, version: int, sync: Sync, prefix: str, reason: str, *, removes: bool) -> str:
    """Add what a side that is written needs; what removing takes besides is returned, as path and capability.

    `verify_targets` makes no difference: the first run lists the target, and what was interrupted, deleted or changed
    there is looked at before it is written again.
    """
    if sync.source.resource == "policies":
        rules.add("sys/policies/acl", ["list"], reason)
        path, capability = f"sys/policies/acl/{prefix.lower()}*", "delete"
        # Vault takes every write of a policy for an update.
        rules.add(path, ["read", "update"], reason)
    elif version == 2:
        rules.add(f"{mount}/data/{prefix}*", ["create", "read", "update"], reason)
        rules.add(f"{mount}/metadata/{prefix}*", ["read", "list"], reason)
        path, capability = f"{mount}/delete/{prefix}*", "update"
    else:
        path, capability = f"{mount}/{prefix}*", "delete"
        rules.add(path, ["create", "read", "update", "list"], reason)
    if removes:
        rules.add(path, [capability], f"{reason}, to remove what is gone")
    return f"{path} {capability}"
