"""Hints that a secret may have changed, in the words of whoever saw it.

A notice is never an effect: all it can say is "look at this". The vault that it speaks of says which secret is meant
(`Vault.heard`), and what is done about it is found out from the source itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class AuditNotice:
    """What is left of an entry of Vault's audit log."""

    mount: str
    """With the slash at its end, and without the namespace: `secret/`."""
    path: str
    """Below the mount, as it was sent: `data/apps/db`."""
    namespace: str = ""
    """With the slash at its end; empty for the root."""
    version: int | None = None
    """The version that an update or a patch wrote: whoever has it, or a newer one, has nothing to look at. None for all
    else, creations included: after a key was wiped, versions start again at 1."""
    vault: str | None = None
    """The id of the vault that it was logged by, where the sender knows it."""


@dataclass(frozen=True, slots=True)
class KeyVaultNotice:
    """A new version of a secret in a Key Vault, as Event Grid tells it."""

    host: str
    """In lower case: `contoso.vault.azure.net`, or the vault's bare name."""
    name: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class GapNotice:
    """Something was missed: everything that came from there has to be looked at."""

    why: str
    vault: str | None = None
    """None: every vault whose changes are told in this way."""


Notice: TypeAlias = AuditNotice | KeyVaultNotice | GapNotice


@dataclass(frozen=True, slots=True)
class Hint:
    """A secret to look at, by its full name in the vault that was asked."""

    name: str
    version: str | None = None
    """Whoever has this version, or a newer one where versions are numbers, has nothing to look at."""


def is_known(have: str | None, hinted: str | None) -> bool:
    """Whether the version `have` says that a hint at `hinted` is old news."""
    if have is None or hinted is None:
        return False
    if have.isdecimal() and hinted.isdecimal():
        return int(have) >= int(hinted)
    return have == hinted


def merged(hints: Sequence[tuple[str, str | None]]) -> dict[str, str | None]:
    """One hint a path: the newest version, or none where one of them told of none."""
    one: dict[str, str | None] = {}
    for path, version in hints:
        if path not in one:
            one[path] = version
        elif not is_known(one[path], version):
            # Two versions that are no numbers can not be told apart: whichever it is, it is looked at.
            one[path] = version if is_known(version, one[path]) else None
    return one
