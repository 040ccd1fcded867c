"""The contract of a vault: what each `kind:` must do, and how it says what it can not do. Read this first.

A kind is one file in `shared/vaults/`. It holds a pydantic settings model called `Settings` (whose `kind` is the file's
name) and a function `connect(vault_id, settings, resource) -> Vault`. SDKs are imported inside functions: a
vault that is not configured costs nothing at start-up.

What every kind promises beyond the signatures:
- Names are full names in the vault. A name that could leave its prefix is refused (`check_name`) before a URL is built.
- Each request goes through the vault's `Pacer`, which paces, counts and retries it; the SDK's own retries are off.
- Each failure is one of `shared.errors`, raised without a cause that could quote a value.
- A listing that fails half-way raises; it never just ends.
"""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import ClassVar

from shared.errors import InvalidSecret
from shared.model import Entry, Expect, Secret
from shared.notices import Hint, Notice
from shared.pacing import Pacer
from shared.rules import Aspect

OWN_TAG = "vaultferry"
"""The tag that Vaultferry's own mark is kept in, on vaults with tags: never carried, and no part of what is compared."""


class FingerprintCost(enum.Enum):
    """What it takes to learn whether a secret has changed."""

    LISTED = "listed"
    """The listing says it."""
    PER_SECRET = "per_secret"  # noqa: S105
    """One `describe_secret` each."""
    VALUE = "value"
    """Only the value itself tells."""


@dataclass(frozen=True, slots=True)
class NameRule:
    """Which names a vault takes. Characters outside `allowed` become `replacement` on the way there."""

    allowed: re.Pattern[str] | None = None
    """Matches one allowed character; None: any."""
    max_length: int | None = None
    ignores_case: bool = False
    wording: str = "any name"
    """The rule in words, for messages."""
    replacement: str = "-"
    upper_case: bool = False
    """Names are written in capital letters."""

    def fit(self, name: str) -> str:
        if self.upper_case:
            name = name.upper()
        if self.allowed is None:
            return name
        allowed = self.allowed
        return "".join(char if allowed.fullmatch(char) else self.replacement for char in name)

    def key(self, name: str) -> str:
        """What two names that are the same secret to this vault have in common."""
        return name.lower() if self.ignores_case else name


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one vault, as it is configured and mounted, can do."""

    fingerprint: FingerprintCost
    compare_and_set: bool = False
    write: bool = True
    delete: bool = True
    fields: bool = True
    """False: one string a secret. Several fields are then stored as marked canonical JSON."""
    tags: bool = False
    """Tags ride along with a write, so an owner's mark costs no extra call."""
    metadata: frozenset[Aspect] = frozenset()
    """What it reads and writes besides fields. All of it is part of the fingerprint."""
    time_resolution: timedelta | None = None
    """How coarse the times of its entries are; None: it tells none, or none to be relied on."""
    max_bytes: int | None = None
    """Of one secret as it is stored."""
    names: NameRule = field(default_factory=NameRule)


@dataclass(frozen=True, slots=True)
class Use:
    """What a sync wants of a vault, for `check`."""

    prefix: str
    write: bool = False
    delete: bool = False
    metadata: bool = False
    """Whether metadata are written, too."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `vaultferry check`: what was looked at, whether it is well, and what to do if not."""

    subject: str
    ok: bool
    detail: str
    hint: str = ""


class Vault(ABC):
    """One configured vault (or one resource of it). Safe for many tasks of one event loop at once."""

    kind: ClassVar[str]

    def __init__(self, vault_id: str, pacer: Pacer) -> None:
        self.id = vault_id
        self.pacer = pacer

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Valid once `open` has returned: a mount's version decides what it can do."""

    async def open(self) -> None:  # noqa: B027 - most kinds have nothing to find out before they are used
        """Find out what can only be asked of the server. May be called again; raises any `VaultError`."""

    @abstractmethod
    def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        """Every secret whose name starts with `prefix`, without values, tombstones included where the vault lists them.

        An empty prefix or folder yields nothing. Raises AccessDenied, MountNotFound, Unavailable; whatever was yielded
        before an error is worth nothing.
        """

    @abstractmethod
    async def describe_secret(self, name: str) -> Entry:
        """Its fingerprint and version, in one call and without the value, where the vault can (`live` tells).

        Raises SecretNotFound where there is not even a tombstone, Unsupported where only the value tells.
        """

    @abstractmethod
    async def get_secret(self, name: str) -> Secret:
        """The newest value, with its `entry`. Raises SecretNotFound for what is gone, deleted or expired."""

    @abstractmethod
    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        """Write a new version and say what it is now.

        With compare-and-set, `expect` is the version (a tombstone's too) that must be there, or ABSENT: else Conflict.
        `expect` other than ANY raises Unsupported where the vault can not compare; `owner` is ignored without tags.
        Raises InvalidSecret before anything is sent when name or value can not be stored. After an ambiguous
        `Unavailable` the caller must read back: a kind never repeats a write that may have had its effect.
        """

    @abstractmethod
    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        """Delete it, recoverably where the vault can. Raises SecretNotFound when it is gone already.

        With compare-and-set, exactly the version `expect` is deleted and a newer one raises Conflict.
        """

    def heard(self, notice: Notice) -> Hint | None:
        """Which secret of this vault a notice speaks of; None: none of them. Asks nobody. Valid once `open` has returned.

        A `GapNotice` speaks of no secret: answer a hint with an empty name where this vault's changes are told in that
        way at all.
        """
        return None

    @abstractmethod
    async def check(self, uses: list[Use]) -> list[Finding]:
        """Connect and say what is well and what is missing for these uses. Writes nothing; raises no VaultError."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release sockets. The vault is not used afterwards."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@lru_cache(maxsize=8192)
def _why_not(name: str) -> str | None:
    # Each secret's name is checked several times on its way.
    if _CONTROL.search(name):
        return "a name can not hold control characters"
    if any(segment in ("", ".", "..") for segment in name.split("/")):
        return "a name can not have empty, '.' or '..' segments"
    return None


def check_name(vault_id: str, name: str, rule: NameRule | None = None) -> None:
    """Refuse a name that no vault should see: it could leave its prefix, or break a line of a log.

    Raises InvalidSecret for empty, `.` and `..` segments, control characters, and whatever `rule` does not take.
    """

    def refuse(why: str) -> InvalidSecret:
        shown = _CONTROL.sub("?", name if len(name) <= 200 else f"{name[:200]}…")
        return InvalidSecret(why, vault=vault_id, path=shown)

    if why := _why_not(name):
        raise refuse(why)
    if rule is not None:
        if rule.max_length is not None and len(name) > rule.max_length:
            raise refuse(f"the name has {len(name)} characters; at most {rule.max_length} are allowed")
        if rule.fit(name) != name:
            raise refuse(f"this vault takes {rule.wording}")
