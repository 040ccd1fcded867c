"""Entries of Vault's audit log → notices, and notices as the relay sends them. Pure; nothing but the standard library.

An entry is projected onto a handful of its fields before anything else is done with it: numbers in responses are in the
clear, also a secret's, and with `log_raw` everything is. The format:
https://developer.hashicorp.com/vault/docs/audit#format-of-audit-log-entries
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shared.notices import AuditNotice, GapNotice

CHANGING = frozenset({"create", "update", "patch", "delete"})
KV_TYPES = ("kv", "generic")
POLICY_PATHS = ("sys/policies/acl/", "sys/policy/")
WHOLESALE = ("sys/remount", "sys/storage/raft/snapshot", "sys/storage/raft/snapshot-force")
"""What changes no secret in particular, and where many of them are."""
BRACES = 4
"""Opening braces that may be the object's: a prefix can have some of its own."""
MAX_VALUES = 1_000_000
"""JSON values of a line or a request, about: small ones take twenty times the memory that they take as text, and seconds to
read. Entries of a real Vault, as many as fit into a request, have three quarters of it."""
NEWEST = (1 << 53) - 1
"""No version is higher: it has to be a number to SQLite and to every reader of JSON."""
MARK = "vaultferry"
"""The key that tells our own records from Vault's entries."""

_CHANGES = re.compile(rb'"operation"\s*:\s*"(?:create|update|patch|delete)"')
_STEPS = frozenset({"", ".", ".."})


class Unreadable(ValueError):
    """A line that is no audit entry. Its text is fixed: it never quotes the line."""


def may_matter(line: bytes) -> bool:
    """A cheap test that lets every entry through that `project` would make something of, and few others."""
    return (
        b'"response"' in line
        and _CHANGES.search(line) is not None
        and (b'"kv"' in line or b"sys/" in line or b'"generic"' in line)
    )


def looks_whole(line: bytes) -> bool:
    """Whether a line could be a JSON object behind a prefix: what is cut off, or noise, is not."""
    return line.endswith(b"}") and b"{" in line


def holds_too_much(text: bytes) -> bool:
    """Whether reading it as JSON would take too long, and too much memory."""
    return len(text) > MAX_VALUES and sum(text.count(char) for char in (b",", b"[", b"{")) > MAX_VALUES


def read_line(line: bytes) -> Any:
    """The JSON object of a line, whatever `prefix` the device puts before it. Raises Unreadable."""
    start = line.find(b"{")
    if start < 0:
        raise Unreadable("jsonx" if b"<json:" in line else "no JSON object")
    for _ in range(BRACES):
        try:
            return json.loads(line[start:])
        except (ValueError, RecursionError):
            start = line.find(b"{", start + 1)
        if start < 0:
            break
    # Raised here, where no error that quotes the line is being handled.
    raise Unreadable("not JSON")


def project(entry: Any, vault: str | None = None) -> AuditNotice | GapNotice | None:
    """What an audit entry of Vault asks to be looked at; None: nothing. Raises Unreadable for what is no entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise Unreadable("no audit entry")
    request = entry.get("request")
    if entry["type"] != "response" or entry.get("error"):
        return None
    if not isinstance(request, dict):
        raise Unreadable("an entry without a request")
    operation, whole = request.get("operation"), request.get("path")
    if not isinstance(operation, str) or not isinstance(whole, str):
        raise Unreadable("an entry without operation or path")
    if operation not in CHANGING:
        return None
    namespace = _namespace(request.get("namespace"))
    path = whole.removeprefix(namespace)
    if path in WHOLESALE:
        return GapNotice(path.removeprefix("sys/"), vault)
    if path.startswith(POLICY_PATHS):
        return AuditNotice("sys/", _checked(path.removeprefix("sys/")), namespace, vault=vault)
    if request.get("mount_type") not in KV_TYPES:
        return None
    mount = request.get("mount_point")
    if not isinstance(mount, str) or not mount.endswith("/"):
        raise Unreadable("an entry without its mount")
    mount = mount.removeprefix(namespace) or mount
    # Told with the namespace before it or without, which a mount that is called as its namespace is can leave open.
    below = {each.removeprefix(mount) for each in (whole, path) if each.startswith(mount)}
    if len(below) != 1:
        raise Unreadable("an entry whose path is not in its mount")
    path = _checked(below.pop())
    # Only there is it a version: elsewhere a number in an answer could be a secret's.
    tells = operation in ("update", "patch") and path.startswith("data/")
    return AuditNotice(_text_only(mount), path, namespace, _version(entry.get("response")) if tells else None, vault)


def merge(one: AuditNotice, other: AuditNotice) -> AuditNotice:
    """Two notices of one path as one, whichever came first."""
    both = one.version is not None and other.version is not None
    version = max(one.version or 0, other.version or 0) if both else None
    return AuditNotice(one.mount, one.path, one.namespace, version, one.vault)


def to_record(notice: AuditNotice | GapNotice) -> dict[str, Any]:
    """A notice as the relay sends it: one JSON object."""
    if isinstance(notice, GapNotice):
        record: dict[str, Any] = {MARK: "gap", "why": notice.why}
    else:
        record = {MARK: "change", "mount": notice.mount, "path": notice.path}
        if notice.namespace:
            record["namespace"] = notice.namespace
        if notice.version is not None:
            record["version"] = notice.version
    if notice.vault is not None:
        record["vault"] = notice.vault
    return record


def from_record(record: Any, vault: str | None = None) -> AuditNotice | GapNotice | None:
    """The notice in one of our records or in one of Vault's own entries; None: nothing to look at. Raises Unreadable.

    `vault` is what the sender said for all of them; a record's own word goes first.
    """
    if not isinstance(record, dict) or MARK not in record:
        return project(record, vault)
    vault = _text(record, "vault", None) or vault
    if record[MARK] == "gap":
        return GapNotice(_text(record, "why", "")[:200], vault)
    if record[MARK] != "change":
        raise Unreadable("a record of an unknown sort")
    version = record.get("version")
    if version is not None and not _is_version(version):
        raise Unreadable("a record whose version is no number")
    mount = _text(record, "mount", "")
    if not mount.endswith("/"):
        raise Unreadable("a record without its mount")
    return AuditNotice(mount, _checked(_text(record, "path", "")), _text(record, "namespace", ""), version, vault)


def _text(record: Mapping[str, Any], key: str, default: Any) -> Any:
    value = record.get(key, default)
    if value is default:
        return value
    if not isinstance(value, str):
        raise Unreadable(f"a record whose {key} is no text")
    return _text_only(value)


def _text_only(text: str) -> str:
    """JSON can escape halves of characters, which no file and no socket takes."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise Unreadable("a name that is no text")
    return text


def _namespace(given: Any) -> str:
    if not isinstance(given, dict):
        return ""
    path = given.get("path")
    if isinstance(path, str):
        return f"{_text_only(path.strip('/'))}/" if path.strip("/") else ""
    if given.get("id") in (None, "", "root"):
        return ""
    raise Unreadable("an entry whose namespace has no path")


def _checked(path: str) -> str:
    """Paths are logged as they were sent; one that leaves its place is no secret's."""
    if not _STEPS.isdisjoint(path.rstrip("/").split("/")):
        raise Unreadable("a path with empty, '.' or '..' segments")
    return _text_only(path)


def _version(response: Any) -> int | None:
    data = response.get("data") if isinstance(response, dict) else None
    version = data.get("version") if isinstance(data, dict) else None
    return version if _is_version(version) else None


def _is_version(value: Any) -> bool:
    return type(value) is int and 0 < value <= NEWEST
