"""What others tell of changes → notices for the engine, counted: POST /audit, POST /events, and Event Grid's messages.

Nothing that comes in here is believed, only looked into; what can not be read is counted and never repeated. A request is
granted once everything that it asked for is durably queued.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.audit import MAX_VALUES, Unreadable, from_record, holds_too_much, merge, read_line
from shared.errors import ConfigError, InvalidSecret, VaultError
from shared.http import RETRY_AFTER, Problem, Request
from shared.notices import AuditNotice, GapNotice, KeyVaultNotice, Notice
from shared.signing import sign

if TYPE_CHECKING:
    from shared.app import App
    from shared.bodies import Look
    from shared.model import Sync

log = logging.getLogger("vaultferry.intake")

MAX_SENT = 4 * 1024 * 1024
"""Bytes of a request as they arrive."""
MAX_UNPACKED = 16 * 1024 * 1024
"""Bytes of what a request unpacks to: it is unpacked no further."""
MAX_ENTRIES = 20_000
MAX_PATH = 8192
"""Characters of a path: what surely fits a queue's message. A longer one is left to the schedule."""
MAX_SKEW = 300
"""Seconds that the sender's clock and ours may differ."""
REMEMBERED = timedelta(days=1)
"""How long a batch that was taken is known again."""
SECRET_CREATED = "Microsoft.KeyVault.SecretNewVersionCreated"  # noqa: S105

TIMESTAMP, BATCH, SIGNATURE = "X-Vaultferry-Timestamp", "X-Vaultferry-Batch", "X-Vaultferry-Signature"

_LARGE = 64 * 1024
"""Bytes from which on reading a body would hold up everything else for too long."""
_BATCH = re.compile(r"[!-~]{1,100}")
_VERSION = re.compile(r"[0-9a-zA-Z]{1,64}")
_SECONDS = re.compile(r"0|[1-9][0-9]{0,11}")


@dataclass(slots=True)
class Counts:
    """What became of the entries of a request."""

    accepted: int = 0
    """Durably queued."""
    ignored: int = 0
    """Of no concern to any sync."""
    duplicate: int = 0
    """Said before: in the same request, or in the same batch sent earlier."""
    invalid: int = 0
    """Not readable as what they should be."""


@dataclass(slots=True)
class _Told:
    """What the entries of a request say, each thing once."""

    notices: dict[tuple[object, ...], Notice] = field(default_factory=dict)
    times: Counter[tuple[object, ...]] = field(default_factory=Counter)
    ignored: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    """By reason, none of which quotes anything."""

    @property
    def entries(self) -> int:
        return self.times.total() + self.ignored + self.invalid.total()

    def add(self, notice: Notice) -> None:
        key = _key(notice)
        known = self.notices.get(key)
        if isinstance(known, AuditNotice) and isinstance(notice, AuditNotice):
            notice = merge(known, notice)
        self.notices[key] = notice
        self.times[key] += 1


def _key(notice: Notice) -> tuple[object, ...]:
    match notice:
        case AuditNotice():
            return ("path", notice.vault, notice.namespace, notice.mount, notice.path)
        case KeyVaultNotice():
            return ("secret", notice.host, notice.name, notice.version)
        case GapNotice():
            return ("gap", notice.vault)


async def _take(app: App, told: _Told) -> Counts:
    """Queue what was told. Raises StoreError."""
    counts = Counts(ignored=told.ignored, invalid=told.invalid.total())
    if told.notices:
        answers = await app.engine.events.take(list(told.notices.values()))
        for times, useful in zip((told.times[key] for key in told.notices), answers, strict=True):
            if useful:
                counts.accepted += 1
                counts.duplicate += times - 1
            else:
                counts.ignored += times
    return counts


# --- POST /audit ----------------------------------------------------------------------------------------------------


async def audit(app: App, request: Request) -> Counts:
    """Take records of the relay, or entries of Vault's audit log. Raises Problem and StoreError."""
    check_size(request.body)
    batch = _batch(request)
    check_signature(app.audit_secrets, request, batch, int(app.clock().timestamp()))
    vault = _vault(app, request)
    seen = batch is not None and await app.store.remembers(f"batch:{batch}")
    body = unpack(request)
    told = await asyncio.to_thread(_read, body, vault) if len(body) > _LARGE else _read(body, vault)
    if seen:
        # What can not be read is told again: the first answer may never have arrived.
        invalid = told.invalid.total()
        return Counts(duplicate=told.entries - invalid, invalid=invalid)
    _refuse_if_all(told.invalid, told.entries)
    counts = await _take(app, told)
    if batch is not None:
        # Only now: had we died before, the batch would have to be taken when it comes again.
        await app.store.remember(f"batch:{batch}", app.clock() + REMEMBERED)
    return counts


def _batch(request: Request) -> str | None:
    batch = request.headers.get(BATCH.lower())
    if batch is not None and not _BATCH.fullmatch(batch):
        raise Problem(400, f"{BATCH} must be 1 to 100 visible ASCII characters")
    return batch


def _vault(app: App, request: Request) -> str | None:
    for name in request.params:
        if name not in ("vault", "code", "clientId"):
            raise Problem(400, "the only query parameter is vault, the id of the vault that all entries come from")
    vault = request.params.get("vault") or None
    if vault is not None:
        _check_known("vault", vault, app.config.vaults)
    return vault


def check_signature(secrets: Sequence[str], request: Request, batch: str | None, now: int) -> None:
    """Refuse what none of `secrets` signed, and what was signed too long ago. Without secrets nothing is asked for.

    `now` is in seconds since the epoch. Raises Problem.
    """
    if not secrets:
        return
    for name in (TIMESTAMP, BATCH, SIGNATURE):
        if not request.headers.get(name.lower()):
            raise Problem(401, f"the header {name} is missing: VAULTFERRY_AUDIT_SECRET is set, so requests are signed")
    text = request.headers[TIMESTAMP.lower()]
    if not _SECONDS.fullmatch(text):
        raise Problem(401, f"{TIMESTAMP} must be whole seconds since 1970, without a sign or a zero before them")
    given = request.headers[SIGNATURE.lower()].lower().encode(errors="replace")
    expected = [sign(secret, int(text), batch or "", request.body).encode() for secret in secrets]
    fits = [hmac.compare_digest(given, one) for one in expected]
    if not any(fits):
        raise Problem(
            401,
            f"{SIGNATURE} is wrong: it must be the HMAC-SHA256 of timestamp.batch.body, in hex, under a secret that both"
            " sides know, of the body as it is sent",
        )
    skew = now - int(text)
    if abs(skew) > MAX_SKEW:
        side = "old" if skew > 0 else "ahead"
        raise Problem(
            401,
            f"{TIMESTAMP} is {abs(skew)} seconds {side}, at most {MAX_SKEW} are allowed: sign again, check the clocks",
        )


# --- bodies ---------------------------------------------------------------------------------------------------------


def check_size(body: bytes) -> None:
    if len(body) > MAX_SENT:
        raise Problem(413, f"the body has {len(body)} bytes, at most {MAX_SENT} are taken: send smaller batches")


def unpack(request: Request) -> bytes:
    """The body without its Content-Encoding, never more than MAX_UNPACKED of it. Raises Problem."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        body = _gunzip(request.body)
    elif encoding in ("", "identity"):
        body = request.body
    else:
        raise Problem(415, "the body may be plain or gzip, nothing else", {"Accept-Encoding": "gzip, identity"})
    if not body.strip():
        # The Functions host hands on nothing of a chunked request.
        raise Problem(400, "the body is empty; on Azure it must come with a Content-Length")
    if holds_too_much(body):
        raise Problem(413, f"the body holds more than {MAX_VALUES} JSON values: send smaller batches")
    return body


def _gunzip(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(packed, MAX_UNPACKED + 1)
    except zlib.error:
        body = None
    if body is None or (len(body) <= MAX_UNPACKED and not unpacker.eof) or unpacker.unused_data:
        raise Problem(400, "the body is not one whole gzip stream")
    if len(body) > MAX_UNPACKED:
        raise Problem(413, f"the body unpacks to more than {MAX_UNPACKED} bytes: send smaller batches")
    return body


def _read(body: bytes, vault: str | None) -> _Told:
    told = _Told()
    for entry in _entries(body):
        try:
            notice = from_record(read_line(entry) if isinstance(entry, bytes) else entry, vault)
        except Unreadable as error:
            told.invalid[str(error)] += 1
            continue
        if notice is None:
            told.ignored += 1
        elif isinstance(notice, AuditNotice) and len(notice.path) > MAX_PATH:
            told.invalid[f"a path of more than {MAX_PATH} characters"] += 1
        else:
            told.add(notice)
    return told


def _entries(body: bytes) -> Iterator[Any]:
    """The items of a JSON array, the one JSON object, or the lines (bytes) of anything else. Raises Problem."""
    content = _json(body)
    if isinstance(content, list):
        items: Sequence[Any] = content
    elif content is not None:
        items = [content]
    elif body.count(b"\n") > MAX_ENTRIES:
        raise _too_many()
    else:
        items = [line for line in body.split(b"\n") if line.strip()]
    if len(items) > MAX_ENTRIES:
        raise _too_many()
    return iter(items)


def _json(body: bytes) -> Any:
    """The JSON document that a body is as a whole, or None. Its numbers and texts may be anybody's."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _too_many() -> Problem:
    return Problem(413, f"there are more than {MAX_ENTRIES} entries: send smaller batches")


def _refuse_if_all(invalid: Counter[str], entries: int) -> None:
    if entries and invalid.total() == entries:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in invalid.most_common(5))
        raise Problem(400, f"none of the {entries} entries can be read: {reasons}")


# --- POST /events ---------------------------------------------------------------------------------------------------


async def events(app: App, request: Request) -> Counts:
    """Take `{"sync" | "vault": ID, "path": …}`, one or an array of them. Raises Problem, Refused and StoreError."""
    check_size(request.body)
    content = _json(unpack(request))
    looks = _looks(content if isinstance(content, list) else [content])
    syncs: dict[str, Counter[str]] = {}
    vaults: dict[str, Counter[str]] = {}
    for look in looks:
        known = app.config.syncs if look.sync is not None else app.config.vaults
        what, groups = ("sync", syncs) if look.sync is not None else ("vault", vaults)
        name = look.sync or look.vault or ""
        _check_known(what, name, known)
        groups.setdefault(name, Counter())[look.path] += 1
    counts, invalid = Counts(), Counter[str]()
    chosen = {sync_id: _sort(app.config.syncs[sync_id], paths, counts, invalid) for sync_id, paths in syncs.items()}
    named = {vault_id: _well_named(vault_id, names, invalid) for vault_id, names in vaults.items()}
    _refuse_if_all(invalid, len(looks))
    counts.invalid = invalid.total()
    try:
        for sync_id, paths in chosen.items():
            await app.engine.events.look(sync_id, paths)
            _count(counts, syncs[sync_id], paths, [True] * len(paths))
        for vault_id, names in named.items():
            _count(counts, vaults[vault_id], names, await app.engine.events.touched(vault_id, names))
    except (VaultError, ConfigError) as error:
        log.warning("an event is refused for now: %s", error)
        problem = Problem(503, str(error), {"Retry-After": RETRY_AFTER})
    else:
        return counts
    raise problem


def _looks(items: Sequence[Any]) -> list[Look]:
    from pydantic import ValidationError

    from shared.bodies import Look
    from shared.config.explain import explain
    from shared.config.problems import dotted

    if len(items) > MAX_ENTRIES:
        raise _too_many()
    looks: list[Look] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise Problem(400, 'the body must be {"sync" or "vault": ID, "path": PATH}, or a JSON array of these')
        try:
            looks.append(Look.model_validate(item))
            continue
        except ValidationError as error:
            found = explain(error, Look, item)
        place = f"entry {number + 1}: " if len(items) > 1 else ""
        told = (f"{dotted(at)}: {message}" + (f" ({hint})" if hint else "") for at, message, hint in found)
        raise Problem(400, place + "; ".join(told))
    return looks


def _check_known(what: str, given: str, known: Mapping[str, object]) -> None:
    if given not in known:
        from shared.config.problems import closest, listed, presentable

        shown = repr(given) if presentable(given) else "of that name"
        hint = closest(given, known) or f"there are: {listed(known)}"
        raise Problem(404, f"there is no {what} {shown} in the configuration; {hint}")


def _sort(sync: Sync, paths: Counter[str], counts: Counts, invalid: Counter[str]) -> list[str]:
    """The paths that a sync covers; the others are counted."""
    from shared.mapping import why_left_out

    chosen = []
    for path, times in paths.items():
        if not _is_name(sync.source.vault, sync.source.prefix + path):
            invalid[_NO_NAME] += times
        elif why_left_out(sync, path):
            counts.ignored += times
        else:
            chosen.append(path)
    return chosen


def _well_named(vault_id: str, names: Counter[str], invalid: Counter[str]) -> list[str]:
    for name, times in names.items():
        if not _is_name(vault_id, name):
            invalid[_NO_NAME] += times
    return [name for name in names if _is_name(vault_id, name)]


_NO_NAME = "a path with empty, '.' or '..' segments, or control characters"


def _is_name(vault_id: str, name: str) -> bool:
    from shared.vault import check_name

    try:
        check_name(vault_id, name)
    except InvalidSecret:
        return False
    return True


def _count(counts: Counts, times: Counter[str], names: Sequence[str], useful: Sequence[bool]) -> None:
    for name, was_useful in zip(names, useful, strict=True):
        if was_useful:
            counts.accepted += 1
            counts.duplicate += times[name] - 1
        else:
            counts.ignored += times[name]


# --- Event Grid -----------------------------------------------------------------------------------------------------


async def event_grid(app: App, body: str) -> Counts:
    """Take a queue message of Event Grid. What can not be read is logged and dropped. Raises StoreError."""
    told = _Told()
    for event in _grid_events(body):
        if (notice := _key_vault_notice(event)) is None:
            told.ignored += 1
        elif not notice.host or not notice.name:
            told.invalid["no vault or no name"] += 1
        else:
            told.add(notice)
    counts = await _take(app, told)
    if counts.invalid or not told.entries:
        log.error("a message that is no event of Event Grid came in, and is dropped")
    elif not counts.accepted:
        log.debug("an event that concerns no sync came in")
    return counts


def _grid_events(body: str) -> list[Mapping[str, Any]]:
    """One event or an array of them, in Event Grid's schema or as CloudEvents 1.0.

    https://learn.microsoft.com/azure/event-grid/event-schema-key-vault
    """
    content = _json(body.encode(errors="replace"))
    items = content if isinstance(content, list) else [content]
    return [item for item in items if isinstance(item, Mapping)]


def _key_vault_notice(event: Mapping[str, Any]) -> KeyVaultNotice | None:
    """Which secret has a new version; None: it speaks of something else."""
    kind = event.get("eventType", event.get("type"))
    if kind != SECRET_CREATED:
        # Near its expiry, expired, a key, an access policy: no value changed.
        return None
    data = event.get("data")
    # The documentation has the keys in both cases (`vaultName`, `VaultName`), and some with a space behind them.
    known = {str(key).strip().lower(): value for key, value in data.items()} if isinstance(data, Mapping) else {}
    text = {key: value.strip() for key, value in known.items() if isinstance(value, str)}
    host, name, version = text.get("vaultname", ""), text.get("objectname", ""), text.get("version")
    try:
        place = urlsplit(text.get("id", ""))
        # The whole host, where the event says it: a bare name may be that of another cloud's vault too.
        host = place.hostname or host
    except ValueError:
        place = urlsplit("")
    match place.path.split("/"):
        case ["", "secrets", named, *rest]:
            name = named or name
            version = rest[0] if rest and rest[0] else version
    return KeyVaultNotice(host.lower(), name, version if version and _VERSION.fullmatch(version) else None)
