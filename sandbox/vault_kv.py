"""Vault's two key/value engines as plain state: what a mount holds and how each operation changes it.

Answers and messages follow Vault 1.21, observed; `tests/servers/test_sandbox_parity.py` keeps them so.
API: https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2
"""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.vault_json import Number, number, through_float64

DEFAULT_LEASE = 2_764_800
ANY = object()  # no check-and-set was asked for
_MAX_VERSIONS = 10
_SECOND = 1_000_000_000
_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "ms": 1_000_000, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND}


class VaultError(Exception):
    """An answer that is not a success: its status and the strings in `errors`."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(*errors)
        self.status = status
        self.errors = list(errors)


class DeletedVersion(VaultError):
    """The 404 that says when the version went, in the shape of a read."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        super().__init__(404)
        self.metadata = metadata
        self.data: dict[str, Any] = {"data": None, "metadata": metadata}


def rfc3339(nanoseconds: int) -> str:
    """Go's RFC3339Nano in UTC: no trailing zeros in the fraction, and no fraction at all when it is zero."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{moment}{fraction}Z"


def parse_duration(value: Any) -> int:
    """Nanoseconds from whole seconds or from Go's notation (`1h30m`). Raises ValueError."""
    text = str(value)
    if re.fullmatch(r"-?\d+", text):
        return int(text) * _SECOND
    match = re.fullmatch(r"(-?)((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+)", text)
    if not match:
        raise ValueError(f'time: invalid duration "{text}"')
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", match[2])
    total = sum(int(float(amount) * _UNITS[unit]) for amount, unit in parts)
    return -total if match[1] else total


def format_duration(nanoseconds: int) -> str:
    """Go's notation, from `0s` to `768h0m0s`; parts of a second are cut."""
    seconds = abs(nanoseconds) // _SECOND
    sign = "-" if nanoseconds < 0 else ""
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds % 60}s"
    return f"{sign}{minutes}m{seconds % 60}s" if minutes else f"{sign}{seconds}s"


class Paths:
    """The names in each folder, so that a listing costs what it shows."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}

    def add(self, path: str) -> None:
        folder, slash, name = path.rpartition("/")
        while name not in self._folders.setdefault(folder + slash, set()):
            self._folders[folder + slash].add(name)
            if not folder:
                return
            folder, slash, name = (*folder.rpartition("/")[:2], folder.rpartition("/")[2] + "/")

    def remove(self, path: str) -> None:
        folder, slash, name = path.rpartition("/")
        while True:
            names = self._folders.get(folder + slash, set())
            names.discard(name)
            if names:
                return
            self._folders.pop(folder + slash, None)
            if not folder:
                return
            folder, slash, name = (*folder.rpartition("/")[:2], folder.rpartition("/")[2] + "/")

    def list(self, folder: str) -> list[str]:
        """Sorted names, folders ending in "/". Raises the 404 of an empty folder."""
        names = self._folders.get(f"{folder.rstrip('/')}/" if folder.rstrip("/") else "")
        if not names:
            raise VaultError(404)
        return sorted(names)


class KvV1:
    """One mount of the first version: a map of fields to a path, and nothing about its past."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.paths = Paths()

    def read(self, path: str) -> dict[str, Any]:
        """The fields. Raises the 404 of a missing path."""
        if path not in self.secrets:
            raise VaultError(404)
        return self.secrets[path]

    def write(self, path: str, data: dict[str, Any]) -> None:
        """Replace all fields."""
        if not data:
            raise VaultError(400, "missing data fields")
        self.secrets[path] = data
        self.paths.add(path)

    def delete(self, path: str) -> None:
        """Deleting what is not there is fine, as in Vault."""
        if self.secrets.pop(path, None) is not None:
            self.paths.remove(path)

    def lease(self, path: str) -> int:
        """Seconds of the lease_duration that a read reports: the field `ttl` or `lease`, else the system's default."""
        data = self.secrets[path]
        try:
            return parse_duration(data.get("ttl") or data.get("lease")) // _SECOND
        except ValueError:
            return DEFAULT_LEASE


@dataclass(slots=True)
class Version:
    """One version of a secret; times in nanoseconds since the epoch, `deletion` may lie ahead."""

    data: dict[str, Any] | None
    created: int
    created_by: dict[str, Any]
    deletion: int | None = None
    destroyed: bool = False
    deleted_by: dict[str, Any] | None = None

    def gone(self, now: int) -> bool:
        return self.destroyed or (self.deletion is not None and self.deletion <= now)


@dataclass(slots=True)
class Key:
    """A secret's metadata and versions."""

    created: int
    updated: int
    current: int = 0
    oldest: int = 0
    versions: dict[int, Version] = field(default_factory=dict)
    max_versions: int = 0
    cas_required: bool = False
    delete_version_after: int = 0
    custom: dict[str, str] | None = None
    updated_by: dict[str, Any] | None = None


class KvV2:
    """One mount of the second version. `clock` gives nanoseconds since the epoch."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.keys: dict[str, Key] = {}
        self.paths = Paths()
        self.max_versions = 0
        self.cas_required = False
        self.delete_version_after = 0
        self._clock = clock

    # data/

    def read(self, path: str, version: int = 0) -> dict[str, Any]:
        """{"data", "metadata"} of a version, 0 being the newest. Raises a bare 404, or DeletedVersion."""
        key = self.keys.get(path)
        wanted = version or (key.current if key else 0)
        found = key.versions.get(wanted) if key else None
        if key is None or found is None:
            raise VaultError(404)
        metadata = self._version_metadata(key, wanted)
        if found.gone(self._clock()):
            raise DeletedVersion(metadata)
        return {"data": found.data, "metadata": metadata}

    def write(self, path: str, data: dict[str, Any] | None, *, cas: Any = ANY, by: dict[str, Any]) -> dict[str, Any]:
        """A new version; its metadata. `cas`: the version that must be the newest one, 0 (or JSON's null) for none yet."""
        key = self.keys.get(path)
        self._check_cas(key, cas)
        now = self._clock()
        if key is None:
            key = self._new_key(path, now)
        lifetimes = [each for each in (key.delete_version_after, self.delete_version_after) if each > 0]
        deletion = now + min(lifetimes) if lifetimes and key.delete_version_after >= 0 else None
        key.current += 1
        key.versions[key.current] = Version(through_float64(data), now, by, deletion)
        key.updated, key.updated_by = now, by
        self._trim(key)
        return self._version_metadata(key, key.current)

    def patch(self, path: str, data: dict[str, Any], *, cas: Any = ANY, by: dict[str, Any]) -> dict[str, Any]:
        """A new version from the newest one, merged as RFC 7396 says. Raises a 404 when there is none to merge with."""
        merged = merge(self.read(path)["data"] or {}, data)
        return self.write(path, merged, cas=cas, by=by)

    def soft_delete(self, path: str, versions: list[int] | None = None, *, by: dict[str, Any]) -> None:
        """Mark these versions as deleted, the newest one without a list. What is missing stays missing."""
        now = self._clock()
        key = self.keys.get(path)
        for each in self._pick(key, versions):
            if not each.gone(now):
                each.deletion, each.deleted_by = now, by
                self._touch(key, by)

    def undelete(self, path: str, versions: list[int], *, by: dict[str, Any]) -> None:
        """Take the mark away again; a destroyed version stays destroyed."""
        key = self.keys.get(path)
        for each in self._pick(key, versions):
            self._touch(key, by)
            if not each.destroyed:
                each.deletion, each.deleted_by = None, None

    def destroy(self, path: str, versions: list[int]) -> None:
        """Remove these versions' data for good; their numbers stay."""
        for each in self._pick(self.keys.get(path), versions):
            each.destroyed, each.data = True, None

    # metadata/

    def metadata(self, path: str) -> dict[str, Any]:
        """All that is known about a secret but its values. Raises a bare 404."""
        key = self.keys.get(path)
        if key is None:
            raise VaultError(404)
        return {
            "cas_required": key.cas_required,
            "created_time": rfc3339(key.created),
            "current_version": key.current,
            "custom_metadata": key.custom,
            "delete_version_after": format_duration(key.delete_version_after),
            "last_updated_by": key.updated_by,
            "max_versions": key.max_versions,
            "oldest_version": key.oldest,
            "updated_time": rfc3339(key.updated),
            "versions": {
                str(each): {
                    "created_by": version.created_by,
                    "created_time": rfc3339(version.created),
                    "deleted_by": version.deleted_by,
                    "deletion_time": rfc3339(version.deletion) if version.deletion is not None else "",
                    "destroyed": version.destroyed,
                }
                for each, version in key.versions.items()
            },
        }

    def write_metadata(self, path: str, settings: dict[str, Any]) -> None:
        """Settings of one secret; a new one comes into being without versions."""
        changes = _key_settings(settings)
        if not changes:
            return
        key = self.keys.get(path) or self._new_key(path, self._clock())
        for name, value in changes.items():
            setattr(key, name, value)

    def patch_metadata(self, path: str, settings: dict[str, Any]) -> None:
        """Like write_metadata on what is there, custom metadata merged. Raises a bare 404."""
        key = self.keys.get(path)
        if key is None:
            raise VaultError(404)
        custom = settings.get("custom_metadata")
        if isinstance(custom, dict):
            settings = {**settings, "custom_metadata": merge(dict(key.custom or {}), custom)}
        self.write_metadata(path, settings)

    def delete_metadata(self, path: str) -> None:
        """Forget the secret with all its versions; the next write is version 1 again."""
        if self.keys.pop(path, None) is not None:
            self.paths.remove(path)

    # config

    def config(self) -> dict[str, Any]:
        """The mount's own settings."""
        return {
            "cas_required": self.cas_required,
            "delete_version_after": format_duration(self.delete_version_after),
            "max_versions": self.max_versions,
        }

    def write_config(self, settings: dict[str, Any]) -> None:
        """Change those that are given."""
        for name, value in _key_settings(
            {key: each for key, each in settings.items() if key != "custom_metadata"}
        ).items():
            setattr(self, name, value)

    def _new_key(self, path: str, now: int) -> Key:
        key = self.keys[path] = Key(created=now, updated=now)
        self.paths.add(path)
        return key

    def _check_cas(self, key: Key | None, cas: Any) -> None:
        if cas is ANY:
            if self.cas_required or (key is not None and key.cas_required):
                raise VaultError(400, "check-and-set parameter required for this call")
            return
        wanted = 0 if cas is None else number(cas)
        if wanted is None:
            raise VaultError(400, "error parsing check-and-set parameter")
        if wanted != (key.current if key else 0):
            raise VaultError(400, "check-and-set parameter did not match the current version")

    def _trim(self, key: Key) -> None:
        keep = key.max_versions or self.max_versions or _MAX_VERSIONS
        for each in [each for each in key.versions if each <= key.current - keep]:
            del key.versions[each]
            key.oldest = key.current - keep + 1

    @staticmethod
    def _pick(key: Key | None, versions: list[int] | None) -> list[Version]:
        if key is None:
            return []
        wanted = [key.current] if versions is None else versions
        return [key.versions[each] for each in wanted if each in key.versions]

    @staticmethod
    def _touch(key: Key | None, by: dict[str, Any]) -> None:
        if key is not None:
            key.updated_by = by

    @staticmethod
    def _version_metadata(key: Key, number_: int) -> dict[str, Any]:
        version = key.versions[number_]
        return {
            "created_time": rfc3339(version.created),
            "custom_metadata": key.custom,
            "deletion_time": rfc3339(version.deletion) if version.deletion is not None else "",
            "destroyed": version.destroyed,
            "version": number_,
        }


def merge(target: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """JSON merge patch, RFC 7396."""
    merged = dict(target)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            before = merged.get(key)
            merged[key] = merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _key_settings(settings: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if settings.get("max_versions") is not None:
        changes["max_versions"] = number(settings["max_versions"]) or 0
    if settings.get("cas_required") is not None:
        changes["cas_required"] = str(settings["cas_required"]).lower() == "true"
    if settings.get("delete_version_after") is not None:
        try:
            changes["delete_version_after"] = parse_duration(settings["delete_version_after"])
        except ValueError as error:
            message = f'error converting input for field "delete_version_after": {error}'
            raise VaultError(400, message) from None
    if settings.get("custom_metadata") is not None:
        changes["custom"] = _custom_metadata(settings["custom_metadata"]) or None
    return changes


def _custom_metadata(values: Any) -> dict[str, str]:
    if not isinstance(values, dict):
        message = "error converting input for field \"custom_metadata\": '' expected a map, got 'string'"
        raise VaultError(400, message)
    custom = {key: str(value) if isinstance(value, (str, Number)) else _go_text(value) for key, value in values.items()}
    for key, value in custom.items():
        if not 0 < len(key.encode()) <= 128:
            problem = f'length of key "{key}" is {len(key.encode())} but must be 0 < len(key) <= 128'
        elif not 0 < len(value.encode()) <= 512:
            problem = f'length of value for key "{key}" is {len(value.encode())} but must be 0 < len(value) <= 512'
        else:
            continue
        raise VaultError(400, f"1 error occurred:\n\t* custom_metadata validation failed: {problem}\n\n")
    if len(custom) > 64:
        problem = f"payload must contain at most 64 keys, provided {len(custom)}"
        raise VaultError(400, f"1 error occurred:\n\t* custom_metadata validation failed: {problem}\n\n")
    return custom


def _go_text(value: Any) -> str:
    # mapstructure's weak decoding: true becomes "1".
    if isinstance(value, (dict, list)):
        raise VaultError(400, "custom_metadata validation failed: '' expected type 'string'")
    return ("1" if value else "0") if isinstance(value, bool) else ""
