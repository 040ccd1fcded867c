"""What both stores have in common: the columns of each record, and the walk along a chain of history.

Columns hold text, integers and None alone; times are ISO 8601 text and mappings are JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from shared.errors import permanent
from shared.history import Broken, chain_hash
from shared.model import (
    Action,
    Chunk,
    Contested,
    Control,
    Event,
    HistoryRow,
    ObjectState,
    ObjectStatus,
    Op,
    Outcome,
    Part,
    Progress,
    Run,
    RunStatus,
    Sight,
    canonical_json,
    from_iso,
    iso,
    strictly_after,
)

Columns = dict[str, Any]

RUN_COLUMNS = (
    "run_id",
    "sync_id",
    "trigger",
    "dry_run",
    "status",
    "created_at",
    "started_at",
    "finished_at",
    "planned",
    "written",
    "unchanged",
    "deleted",
    "failed",
    "conflicts",
    "error",
    "drifted",
    "allow_deletes",
    "calls",
    "paths",
)
OBJECT_COLUMNS = (
    "sync_object_id",
    "sync_id",
    "target",
    "path",
    "target_names",
    "source_fingerprint",
    "target_fingerprint",
    "digest",
    "digest_key_id",
    "recipe",
    "last_sync_status",
    "last_sync_at",
    "direction",
    "error",
    "run_id",
    "updated_at",
    "parts",
    "transient",
    "outcome",
    "claim",
    "claim_expires_at",
    "history_count",
    "history_hash",
    "history_at",
    "source_version",
    "contested",
)
HISTORY_COLUMNS = (
    "id",
    "sync_object_id",
    "sync_id",
    "target",
    "path",
    "run_id",
    "action",
    "status",
    "direction",
    "source_version",
    "target_version",
    "attempt",
    "error",
    "created_at",
    "previous_hash",
    "hash",
    "detail",
)


# --- cursors ------------------------------------------------------------------------------------------------------


def encode_cursor(*position: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, length: int) -> list[str]:
    """The position in a cursor. Raises StoreError when it is none of ours."""
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        position = None
    if isinstance(position, list) and len(position) == length and all(isinstance(part, str) for part in position):
        return position
    raise permanent("the cursor is not one that an earlier page returned: start again without it")


# --- runs ---------------------------------------------------------------------------------------------------------


def run_columns(run: Run) -> Columns:
    return {
        "run_id": run.run_id,
        "sync_id": run.sync_id,
        "trigger": run.trigger,
        "dry_run": int(run.dry_run),
        "status": str(run.status),
        "created_at": iso(run.created_at),
        "started_at": iso(run.started_at),
        "finished_at": iso(run.finished_at),
        "planned": run.planned,
        "written": run.written,
        "unchanged": run.unchanged,
        "deleted": run.deleted,
        "failed": run.failed,
        "conflicts": run.conflicts,
        "error": run.error,
        "drifted": run.drifted,
        "allow_deletes": int(run.allow_deletes),
        "calls": canonical_json(run.calls),
        "paths": None if run.paths is None else canonical_json(run.paths),
    }


def run_from(row: Mapping[str, Any], revision: str) -> Run:
    return Run(
        run_id=row["run_id"],
        sync_id=row["sync_id"],
        trigger=row["trigger"],
        created_at=_moment(row["created_at"]),
        status=RunStatus(row["status"]),
        dry_run=bool(row["dry_run"]),
        allow_deletes=bool(row["allow_deletes"]),
        started_at=from_iso(row["started_at"]),
        finished_at=from_iso(row["finished_at"]),
        planned=row["planned"],
        written=row["written"],
        unchanged=row["unchanged"],
        deleted=row["deleted"],
        failed=row["failed"],
        conflicts=row["conflicts"],
        drifted=row["drifted"],
        error=row["error"],
        calls=json.loads(row["calls"]),
        paths=None if row["paths"] is None else tuple(json.loads(row["paths"])),
        revision=revision,
    )


def chunk_columns(chunk: Chunk) -> Columns:
    return {
        "run_id": chunk.run_id,
        "chunk": chunk.chunk,
        "target": chunk.target,
        "op": str(chunk.op),
        "outcomes": chunk.outcomes,
        "held": int(chunk.held),
        "cleanup": int(chunk.cleanup),
        "calls": canonical_json(chunk.calls),
        "paths": canonical_json(chunk.paths),
    }


def chunk_from(row: Mapping[str, Any], revision: str) -> Chunk:
    return Chunk(
        run_id=row["run_id"],
        chunk=row["chunk"],
        target=row["target"],
        op=Op(row["op"]),
        paths=tuple(json.loads(row["paths"])),
        outcomes=row["outcomes"],
        held=bool(row["held"]),
        cleanup=bool(row["cleanup"]),
        calls=json.loads(row["calls"]),
        revision=revision,
    )


def progress_columns(progress: Progress) -> Columns:
    return {
        "run_id": progress.run_id,
        "target": progress.target,
        "cursor": progress.cursor,
        "slices": progress.slices,
        "planned": progress.planned,
        "unchanged": progress.unchanged,
        "failed": progress.failed,
        "finished": int(progress.finished),
        "blocked": progress.blocked,
        "error": progress.error,
        "calls": canonical_json(progress.calls),
    }


def progress_from(row: Mapping[str, Any], revision: str) -> Progress:
    return Progress(
        run_id=row["run_id"],
        target=row["target"],
        cursor=row["cursor"],
        slices=row["slices"],
        planned=row["planned"],
        unchanged=row["unchanged"],
        failed=row["failed"],
        finished=bool(row["finished"]),
        blocked=row["blocked"],
        error=row["error"],
        calls=json.loads(row["calls"]),
        revision=revision,
    )


def control_columns(control: Control) -> Columns:
    return {
        "sync_id": control.sync_id,
        "paused": int(control.paused),
        "active_run": control.active_run,
        "last_run": control.last_run,
        "last_success_at": iso(control.last_success_at),
        "totals": canonical_json(control.totals),
        "again": control.again,
        "event_deletes": canonical_json(control.event_deletes),
    }


def control_from(row: Mapping[str, Any], revision: str) -> Control:
    return Control(
        sync_id=row["sync_id"],
        paused=bool(row["paused"]),
        active_run=row["active_run"],
        last_run=row["last_run"],
        last_success_at=from_iso(row["last_success_at"]),
        totals=json.loads(row["totals"]),
        again=row["again"],
        # None in a table's row that was written before there were events.
        event_deletes=json.loads(row["event_deletes"] or "{}"),
        revision=revision,
    )


# --- objects ------------------------------------------------------------------------------------------------------


def object_columns(sync_object_id: str, state: ObjectState) -> Columns:
    parts = state.parts
    return {
        "sync_object_id": sync_object_id,
        "sync_id": state.sync_id,
        "target": state.target,
        "path": state.path,
        "target_names": canonical_json([part.name for part in parts]),
        "source_fingerprint": state.source_fingerprint,
        "target_fingerprint": _of_parts(parts, [part.fingerprint for part in parts]),
        "digest": _of_parts(parts, [part.digest for part in parts]),
        "digest_key_id": state.digest_key_id,
        "recipe": state.recipe,
        "last_sync_status": str(state.status),
        "last_sync_at": iso(state.last_sync_at),
        "direction": state.direction,
        "error": state.error,
        "run_id": state.run_id,
        "updated_at": iso(state.updated_at),
        "parts": canonical_json(
            [[part.name, part.fingerprint, part.version, part.digest, int(part.owned), part.intended] for part in parts]
        ),
        "transient": int(state.transient),
        "outcome": str(state.outcome),
        "claim": state.claim,
        "claim_expires_at": iso(state.claim_expires_at),
        "history_count": state.history_count,
        "history_hash": state.history_hash,
        "history_at": iso(state.history_at),
        "source_version": state.source_version,
        "contested": None if state.contested is None else canonical_json(asdict(state.contested)),
    }


def _of_parts(parts: tuple[Part, ...], values: list[str | None]) -> str | None:
    """One column for a person to read: the only part's value, or a JSON map of names to values."""
    if len(parts) == 1:
        return values[0]
    if not parts:
        return None
    return canonical_json({part.name: value for part, value in zip(parts, values, strict=True)})


def _contested(text: str | None) -> Contested | None:
    if text is None:
        return None
    columns = json.loads(text)
    sides = tuple(Sight(**side) for side in columns["sides"])
    return Contested(sides, columns["take"], columns["taken"], tuple(columns.get("again", ())))


def object_from(row: Mapping[str, Any], revision: str) -> ObjectState:
    return ObjectState(
        sync_id=row["sync_id"],
        target=row["target"],
        path=row["path"],
        parts=tuple(
            Part(name, fingerprint, version, digest, bool(owned), intended)
            for name, fingerprint, version, digest, owned, intended in json.loads(row["parts"])
        ),
        source_fingerprint=row["source_fingerprint"],
        source_version=row["source_version"],
        digest_key_id=row["digest_key_id"],
        recipe=row["recipe"],
        status=ObjectStatus(row["last_sync_status"]),
        last_sync_at=from_iso(row["last_sync_at"]),
        direction=row["direction"],
        error=row["error"],
        transient=bool(row["transient"]),
        run_id=row["run_id"],
        outcome=Outcome(row["outcome"]),
        contested=_contested(row["contested"]),
        claim=row["claim"],
        claim_expires_at=from_iso(row["claim_expires_at"]),
        updated_at=from_iso(row["updated_at"]),
        history_count=row["history_count"],
        history_hash=row["history_hash"],
        history_at=from_iso(row["history_at"]),
        revision=revision,
    )


# --- history ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tail:
    """Where an object's history ends: the number of rows ever written, the last one's hash and time."""

    count: int = 0
    hash: str | None = None
    at: datetime | None = None


def history_id(sync_object_id: str, number: int) -> str:
    """Sorts by object, then by age. Numbers begin at 1."""
    return f"{sync_object_id}-{number:010d}"


def history_number(row_id: str) -> int:
    """The number in a row's id; 0 where somebody put another id in."""
    _, _, number = row_id.rpartition("-")
    return int(number) if number.isascii() and number.isdigit() else 0


def next_row(sync_object_id: str, state: ObjectState, event: Event, tail: Tail, at: datetime) -> Columns:
    """The columns of the row that says `event` of `state`, linked behind `tail`; `at` is after the tail's time."""
    columns = {
        "id": history_id(sync_object_id, tail.count + 1),
        "sync_object_id": sync_object_id,
        "sync_id": state.sync_id,
        "target": state.target,
        "path": state.path,
        "run_id": event.run_id,
        "action": str(event.action),
        "status": str(event.status),
        "direction": event.direction,
        "source_version": event.source_version,
        "target_version": event.target_version,
        "attempt": event.attempt,
        "error": event.error,
        "created_at": iso(at),
        "previous_hash": tail.hash,
        "detail": event.detail,
    }
    return columns | {"hash": chain_hash(tail.hash, columns)}


def stamped(state: ObjectState, tail: Tail, now: datetime, revision: str | None) -> ObjectState:
    """`state` with what is the store's to set."""
    return replace(
        state,
        history_count=tail.count,
        history_hash=tail.hash,
        history_at=tail.at,
        updated_at=strictly_after(now, state.updated_at),
        revision=revision,
    )


def history_from(row: Mapping[str, Any]) -> HistoryRow:
    return HistoryRow(
        id=row["id"],
        sync_object_id=row["sync_object_id"],
        sync_id=row["sync_id"],
        target=row["target"],
        path=row["path"],
        run_id=row["run_id"],
        action=Action(row["action"]),
        status=ObjectStatus(row["status"]),
        direction=row["direction"],
        source_version=row["source_version"],
        target_version=row["target_version"],
        attempt=row["attempt"],
        error=row["error"],
        created_at=_moment(row["created_at"]),
        previous_hash=row["previous_hash"],
        hash=row["hash"],
        detail=row["detail"],
    )


def check_chain(
    sync_object_id: str, path: str, rows: Iterable[Columns], cut: Tail, known: Tail | None, *, may_be_ahead: bool
) -> Iterator[Broken]:
    """What does not fit in one object's rows, which come in the order of their ids.

    `cut` is the last row that was archived, `known` the tail that the object's own record names (None: no such record).
    `may_be_ahead`: rows behind `known` are allowed, because a crash between the two tables leaves such rows.
    """
    number, previous, at, checked = cut.count, cut.hash, iso(cut.at), known is None or known.count <= cut.count

    def broken(detail: str) -> Broken:
        return Broken(sync_object_id, path, detail)

    for row in rows:
        found = history_number(row["id"])
        if row["id"] != history_id(sync_object_id, found) or row["sync_object_id"] != sync_object_id or found <= number:
            yield broken(f"row {row['id']} was put in: it has no place in this chain")
            continue
        if found > number + 1:
            missing = f"row {found - 1} is" if found == number + 2 else f"rows {number + 1} to {found - 1} are"
            yield broken(f"{missing} missing")
        elif row["previous_hash"] != previous:
            yield broken(f"row {found} does not follow the row before it: one of them was changed or put in")
        if row["hash"] != chain_hash(row["previous_hash"], {name: row[name] for name in HISTORY_COLUMNS}):
            yield broken(f"row {found} was changed")
        elif at is not None and row["created_at"] <= at:
            yield broken(f"row {found} is not younger than the row before it")
        if known is not None and found == known.count:
            checked = True
            if row["hash"] != known.hash:
                yield broken(f"row {found} is not the one that was recorded last")
        if not may_be_ahead and known is not None and found > known.count:
            yield broken(f"row {found} was put in: the object's record does not know it")
        number, previous, at = found, row["hash"], row["created_at"]
    if not checked and known is not None and number < known.count:
        missing = f"row {known.count} is" if known.count == number + 1 else f"rows {number + 1} to {known.count} are"
        yield broken(f"{missing} missing at the end")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
