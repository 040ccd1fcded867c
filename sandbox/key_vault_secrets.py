"""What an Azure Key Vault does with secrets, without the network: names, versions, soft delete, limits, errors.

Written from Microsoft's REST reference (https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups) and
from answers of the real service quoted in public issues. Times are whole seconds since the epoch, as Key Vault keeps
them. Nothing here knows about HTTP, tokens or permissions: that is sandbox/key_vault.py.
"""

import re
import secrets as randomness
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

MAX_VALUE_BYTES = 25_600
MAX_TAGS = 15
MAX_TAG_CHARACTERS = 256
MAX_CONTENT_TYPE_CHARACTERS = 255
RECOVERABLE_DAYS = 90
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")
_VERSION = re.compile(r"[0-9a-fA-F]{32}")
_INVALID_PROPERTY = "Property  has invalid value\r\n"


class KeyVaultError(Exception):
    """An error answer of Key Vault: an HTTP status, a code, a message and sometimes an inner code."""

    def __init__(self, status: int, code: str, message: str, inner: str | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.inner = inner


class Clock:
    """The server's time, in seconds since the epoch. It runs, until a test moves or freezes it."""

    def __init__(self) -> None:
        self._offset = 0.0
        self._frozen_at: float | None = None

    def __call__(self) -> float:
        return (time.time() if self._frozen_at is None else self._frozen_at) + self._offset

    def advance(self, seconds: float) -> None:
        """Moves the time by so many seconds, backwards when negative."""
        self._offset += seconds

    def freeze(self, at: float | None = None) -> None:
        """Stops the time, now or at a moment of the test's choice; `advance` still moves it."""
        self._frozen_at = self() if at is None else at
        self._offset = 0.0


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret."""

    id: str
    value: str = field(repr=False)
    created: int
    updated: int
    enabled: bool = True
    expires: int | None = None
    not_before: int | None = None
    content_type: str | None = None
    tags: Mapping[str, str] | None = None


class Phase(Enum):
    """Where a secret stands between existing and being soft-deleted. The middle two last for seconds in reality."""

    ACTIVE = "active"
    DELETING = "deleting"
    DELETED = "deleted"
    RECOVERING = "recovering"


@dataclass(slots=True)
class StoredSecret:
    """All versions of one name, oldest first."""

    name: str
    versions: dict[str, SecretVersion]
    managed: bool = False
    phase: Phase = Phase.ACTIVE
    steps_left: int = 0
    deleted: int = 0

    @property
    def current(self) -> SecretVersion:
        return next(reversed(self.versions.values()))

    @property
    def scheduled_purge(self) -> int:
        return self.deleted + RECOVERABLE_DAYS * 86_400


class Secrets:
    """The secrets of one vault.

    `delete_steps` and `recover_steps` say how many requests that name a secret are still answered as if its deletion
    or recovery had not finished; listings never count as a step. Without `soft_delete`, as vaults could be made until 2025,
    a deletion is for good: https://learn.microsoft.com/azure/key-vault/general/soft-delete-change
    """

    def __init__(self, clock: Callable[[], float], *, delete_steps: int = 0, recover_steps: int = 0) -> None:
        self._clock = clock
        self.delete_steps = delete_steps
        self.recover_steps = recover_steps
        self.soft_delete = True
        # Names fold case: `Db` and `db` are one secret, shown as it was first written.
        self._by_folded_name: dict[str, StoredSecret] = {}

    def set(self, name: str, body: Mapping[str, Any]) -> tuple[StoredSecret, SecretVersion]:
        """Adds a version, from a SecretSetParameters body."""
        check_name(name)
        value = body.get("value")
        if not isinstance(value, str) or not _storable(value):
            raise KeyVaultError(400, "BadParameter", _INVALID_PROPERTY)
        changes = _changes(body)
        stored = self._touch(name)
        if stored is not None:
            _refuse_unless_writable(stored)
        now = int(self._clock())
        version = SecretVersion(id=randomness.token_hex(16), value=value, created=now, updated=now)
        version = replace(version, **changes)
        if stored is None:
            stored = StoredSecret(name, {})
            self._by_folded_name[name.lower()] = stored
        stored.versions[version.id] = version
        return stored, version

    def get(self, name: str, version_id: str = "") -> tuple[StoredSecret, SecretVersion]:
        """A version with its value, the current one without an id. Expired and not yet valid ones are readable too
        (https://learn.microsoft.com/azure/key-vault/secrets/about-secrets#date-time-controlled-operations)."""
        stored, version = self._version(name, version_id)
        if not version.enabled:
            raise KeyVaultError(
                403, "Forbidden", "Operation get is not allowed on a disabled secret.", inner="SecretDisabled"
            )
        return stored, version

    def update(self, name: str, version_id: str, body: Mapping[str, Any]) -> tuple[StoredSecret, SecretVersion]:
        """Changes what is not the value, from a SecretUpdateParameters body; what the body leaves out stays."""
        changes = _changes(body)
        stored, version = self._version(name, version_id)
        _refuse_unless_writable(stored)
        # The place in the dictionary stays, so an update of an old version does not make it the current one.
        stored.versions[version.id] = replace(version, updated=int(self._clock()), **changes)
        return stored, stored.versions[version.id]

    def list_secrets(self) -> list[StoredSecret]:
        return self._all_in(Phase.ACTIVE)

    def list_versions(self, name: str) -> tuple[StoredSecret, list[SecretVersion]]:
        """By ascending id, as the real service sorts them: the newest is anywhere. Unknown names have none."""
        check_name(name)
        stored = self._touch(name)
        if stored is None or stored.phase is not Phase.ACTIVE:
            return StoredSecret(name, {}), []
        return stored, sorted(stored.versions.values(), key=lambda version: version.id)

    def delete(self, name: str) -> StoredSecret:
        check_name(name)
        stored = self._touch(name)
        if stored is None or stored.phase is Phase.DELETED:
            raise _not_found(name)
        _refuse_unless_writable(stored)
        if not self.soft_delete:
            del self._by_folded_name[name.lower()]
        stored.phase, stored.steps_left, stored.deleted = Phase.DELETING, self.delete_steps, int(self._clock())
        return stored

    def get_deleted(self, name: str) -> StoredSecret:
        check_name(name)
        stored = self._touch(name)
        if stored is None or stored.phase is not Phase.DELETED:
            raise _deleted_not_found(name)
        return stored

    def list_deleted(self) -> list[StoredSecret]:
        return self._all_in(Phase.DELETED)

    def recover(self, name: str) -> StoredSecret:
        stored = self._deleted(name)
        stored.phase, stored.steps_left = Phase.RECOVERING, self.recover_steps
        return stored

    def purge(self, name: str) -> None:
        stored = self._deleted(name)
        del self._by_folded_name[stored.name.lower()]

    # What tests do behind the service's back.

    def stored(self, name: str) -> StoredSecret | None:
        """What is kept under a name, deleted or not, or None."""
        return self._by_folded_name.get(name.lower())

    def all(self) -> list[StoredSecret]:
        return list(self._by_folded_name.values())

    def settle(self) -> None:
        """Finishes every deletion and recovery that is under way."""
        for stored in self.all():
            stored.steps_left = 0
            self._settle(stored)

    def _all_in(self, phase: Phase) -> list[StoredSecret]:
        for stored in self.all():
            self._settle(stored)
        return [stored for _, stored in sorted(self._by_folded_name.items()) if stored.phase is phase]

    def _touch(self, name: str) -> StoredSecret | None:
        """What a request that names a secret finds, counting as one step of a deletion or recovery under way."""
        stored = self._by_folded_name.get(name.lower())
        if stored is None:
            return None
        if not self._settle(stored):
            stored.steps_left -= 1
        return self._by_folded_name.get(name.lower())

    def _settle(self, stored: StoredSecret) -> bool:
        if stored.phase is Phase.DELETED and self._clock() >= stored.scheduled_purge:
            self._by_folded_name.pop(stored.name.lower(), None)
        if stored.phase in (Phase.ACTIVE, Phase.DELETED):
            return True
        if stored.steps_left > 0:
            return False
        stored.phase = Phase.DELETED if stored.phase is Phase.DELETING else Phase.ACTIVE
        return True

    def _version(self, name: str, version_id: str) -> tuple[StoredSecret, SecretVersion]:
        check_name(name)
        if version_id and not _VERSION.fullmatch(version_id):
            raise KeyVaultError(400, "BadParameter", f"The request URI contains an invalid version: {version_id}")
        stored = self._touch(name)
        if stored is None or stored.phase is not Phase.ACTIVE:
            raise _not_found(name)
        version = stored.versions.get(version_id.lower()) if version_id else stored.current
        if version is None:
            raise _not_found(f"{name}/{version_id}")
        return stored, version

    def _deleted(self, name: str) -> StoredSecret:
        check_name(name)
        stored = self._touch(name)
        if stored is None or stored.phase is Phase.ACTIVE:
            raise _deleted_not_found(name)
        if stored.phase is Phase.DELETING:
            raise KeyVaultError(409, "Conflict", "Secret is currently being deleted.", inner="ObjectIsBeingDeleted")
        if stored.phase is Phase.RECOVERING:
            raise KeyVaultError(409, "Conflict", "Secret is currently being recovered.", inner="ObjectIsBeingRecovered")
        return stored


def check_name(name: str) -> None:
    """Refuses what Key Vault refuses as the name of a secret."""
    if not _NAME.fullmatch(name):
        raise KeyVaultError(400, "BadParameter", f"The request URI contains an invalid name: {name}")


def _storable(value: str) -> bool:
    try:
        return len(value.encode()) <= MAX_VALUE_BYTES
    except UnicodeEncodeError:
        return False


def _refuse_unless_writable(stored: StoredSecret) -> None:
    if stored.phase is Phase.DELETING:
        message = f"Secret {stored.name} is currently being deleted and cannot be re-created; retry later."
        raise KeyVaultError(409, "Conflict", message, inner="ObjectIsBeingDeleted")
    if stored.phase is Phase.RECOVERING:
        message = f"Secret {stored.name} is currently being recovered and cannot be re-created; retry later."
        raise KeyVaultError(409, "Conflict", message, inner="ObjectIsBeingRecovered")
    if stored.phase is Phase.DELETED:
        message = (
            f"Secret {stored.name} is currently in a deleted but recoverable state, and its name cannot be reused; "
            "in this state, the secret can only be recovered or purged."
        )
        raise KeyVaultError(409, "Conflict", message, inner="ObjectIsDeletedButRecoverable")
    if stored.managed:
        raise KeyVaultError(403, "Forbidden", "The operation is not allowed on a secret managed by a certificate.")


def _not_found(name: str) -> KeyVaultError:
    return KeyVaultError(
        404,
        "SecretNotFound",
        f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted this secret you may "
        "be able to recover it using the correct recovery command.",
    )


def _deleted_not_found(name: str) -> KeyVaultError:
    return KeyVaultError(404, "SecretNotFound", f"Deleted Secret not found: {name}")


def _changes(body: Mapping[str, Any]) -> dict[str, Any]:
    """The properties that a body sets, under the names of SecretVersion; null and absent both mean "leave it"."""
    attributes = body.get("attributes") or {}
    given = {
        "content_type": body.get("contentType"),
        "tags": body.get("tags"),
        "enabled": attributes.get("enabled"),
        "expires": attributes.get("exp"),
        "not_before": attributes.get("nbf"),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not _acceptable(changes):
        raise KeyVaultError(400, "BadParameter", _INVALID_PROPERTY)
    return changes


def _acceptable(changes: Mapping[str, Any]) -> bool:
    tags = changes.get("tags", {})
    expires, not_before = changes.get("expires", 0), changes.get("not_before", 0)
    return (
        isinstance(tags, dict)
        and len(tags) <= MAX_TAGS
        and all(isinstance(text, str) and len(text) <= MAX_TAG_CHARACTERS for pair in tags.items() for text in pair)
        and isinstance(changes.get("content_type", ""), str)
        and len(changes.get("content_type", "")) <= MAX_CONTENT_TYPE_CHARACTERS
        and isinstance(changes.get("enabled", True), bool)
        and isinstance(expires, int)
        and isinstance(not_before, int)
        and not ("expires" in changes and "not_before" in changes and expires <= not_before)
    )
