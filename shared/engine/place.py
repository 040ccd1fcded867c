"""A vault as the engine uses it: a look that misses nothing, and a write after which nothing is unclear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.errors import AccessDenied, InvalidSecret, SecretNotFound, Unavailable
from shared.mapping import Digester
from shared.metadata import content
from shared.model import Entry, Expect, Part, Secret
from shared.rules import MetadataRules
from shared.vault import FingerprintCost, Vault


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at one name saw; `digest` None: it is there and can not be read."""

    entry: Entry | None = None
    digest: str | None = None
    live: bool = False
    secret: Secret | None = field(default=None, repr=False)

    def holds(self, stored: str, digest: str, part: Part | None) -> bool:
        """Whether this is what is wanted: just what would be stored now, or what was stored before and means the same."""
        before = part.intended if part is not None and part.digest == digest else None
        return self.live and self.digest is not None and self.digest in (stored, before)


@dataclass(frozen=True, slots=True)
class Place:
    vault: Vault
    digester: Digester
    owner: str | None = None
    """What marks a secret as written by this sync, on vaults with tags."""
    metadata: MetadataRules = field(default_factory=MetadataRules)
    """What is compared besides fields."""

    @property
    def by_value(self) -> bool:
        return self.vault.capabilities.fingerprint is FingerprintCost.VALUE

    async def look(self, name: str, *, tombstones: bool = True) -> Found:
        """Read what a name holds now. Raises AccessDenied and Unavailable.

        Where nothing is, a vault that compares and sets is asked for what is left of it, unless `tombstones` are none of
        the caller's concern: a write that expects nothing there tells as well.
        """
        try:
            secret = await self.vault.get_secret(name)
        except SecretNotFound:
            return await self._tombstone(name) if tombstones else Found()
        except AccessDenied:
            if self.by_value:
                raise
            try:
                entry = await self.vault.describe_secret(name)
            except SecretNotFound:
                # Not there, and not readable if it were: whether it may be written is for the write to find out.
                return Found()
            if entry.enabled and entry.live:
                raise
            return Found(entry, None, entry.live)
        except InvalidSecret:
            # It is there, and is nothing that we could have written.
            return Found(Entry(name), None, True) if self.vault.capabilities.fields else Found(None, None, True)
        return Found(secret.entry or Entry(name), self.digest(secret), True, secret)

    async def current(self, listed: Entry) -> Entry | None:
        """A listed secret with its fingerprint, at the least cost; None: it is gone. Raises any VaultError."""
        cost = self.vault.capabilities.fingerprint
        if cost is FingerprintCost.LISTED or not listed.live:
            return listed if listed.live else None
        try:
            if cost is FingerprintCost.PER_SECRET:
                entry = await self.vault.describe_secret(listed.name)
                return entry if entry.live else None
            secret = await self.vault.get_secret(listed.name)
        except SecretNotFound:
            return None
        return replace(secret.entry or Entry(listed.name), fingerprint=self.fingerprint(secret))

    async def _tombstone(self, name: str) -> Found:
        # Where only values tell, what is gone tells nothing.
        if not self.vault.capabilities.compare_and_set or self.by_value:
            return Found()
        try:
            return Found(await self.vault.describe_secret(name))
        except SecretNotFound:
            return Found()

    async def set(
        self, name: str, secret: Secret, stored: str, expect: str | Expect, unsure: Callable[[str], None]
    ) -> Entry:
        """Write once. After a time-out it may have worked: look before it is called a failure. Raises any VaultError.

        `stored` is the digest of what is written; `unsure` is told of a name that may have been written all the same.
        """
        try:
            return await self.vault.set_secret(name, secret, expect=expect, owner=self.owner)
        except Unavailable as error:
            if not error.ambiguous:
                raise
            unsure(name)
            found = await self.look(name)
            if found.live and found.digest == stored and found.entry is not None:
                return found.entry
            raise

    def part(self, name: str, entry: Entry, digest: str, stored: str) -> Part:
        """A name that holds what `digest` tells, to be remembered."""
        fingerprint = f"{self.digester.key_id}:{stored}" if self.by_value else entry.fingerprint
        return Part(name, fingerprint, entry.version, digest, intended=stored if stored != digest else None)

    def digest(self, secret: Secret) -> str:
        """Equal ones mean that nothing is to be carried. Raises InvalidSecret for what is not JSON."""
        return self.digester.digest(content(self.metadata, secret))

    def fingerprint(self, secret: Secret) -> str | None:
        """What tells this value of a vault from its next one."""
        if self.by_value:
            return self.digester.fingerprint(secret.fields)
        return secret.entry.fingerprint if secret.entry else None
