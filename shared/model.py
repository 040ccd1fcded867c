"""The things that Vaultferry speaks of: frozen, without I/O, and silent about values.

A *path* is a secret's name below a sync's source prefix; a *name* is what a secret is called in one vault, prefix
included. A *fingerprint* says whether a secret changed and is only ever compared with the same vault's past; a
*digest* (keyed) says whether two secrets hold the same fields, in whatever vaults they are.
"""

from __future__ import annotations

import enum
import json
import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from shared.rules import FieldRules, MetadataRules, Step

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Fields: TypeAlias = Mapping[str, Any]
"""A secret's fields: names to JSON values. (`Json` in full; json.loads gives `Any`.)"""


# --- what a vault holds ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What a vault says about one secret without its value."""

    name: str
    fingerprint: str | None = None
    """None: the listing does not tell, or the secret is so young that another write could still look the same."""
    version: str | None = None
    """What `expect` takes, on vaults that compare and set; what events name, where they name versions."""
    updated_at: datetime | None = None
    live: bool = True
    """False for a tombstone: deleted or expired, but its version still counts."""
    enabled: bool = True
    """False where the vault lists the secret but will not hand out its value."""
    owner: str | None = None
    """The mark of the sync that wrote it, on vaults with tags."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret's value and what travels with it. Its repr tells nothing."""

    fields: Fields = field(repr=False)
    content_type: str | None = None
    tags: Mapping[str, str] | None = field(default=None, repr=False)
    """In a write, None: nobody asks for any. A vault that keeps them apart from the value leaves them as they are."""
    expires_at: datetime | None = None
    entry: Entry | None = None
    """Set on what was read from a vault."""


class Expect(enum.Enum):
    """What a conditional write may expect besides a version."""

    ANY = "any"
    ABSENT = "absent"


# --- what a person configured ------------------------------------------------------------------------------------


class Granularity(enum.StrEnum):
    SECRET = "secret"  # noqa: S105
    FIELD = "field"


class OnExisting(enum.StrEnum):
    OVERWRITE = "overwrite"
    SKIP = "skip"
    FAIL = "fail"


class ConflictPolicy(enum.StrEnum):
    """Two-way: which value the others get where several sides changed."""

    NEWEST = "newest"
    SOURCE = "source"
    TARGET = "target"
    MANUAL = "manual"
    """None of them, until a person has decided."""


class NameEncoding(enum.StrEnum):
    READABLE = "readable"
    """Characters that the vault does not take become another one."""
    REVERSIBLE = "reversible"
    """They are written so that the name can be read back exactly."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how many milliseconds, a path is delivered again."""

    max_retries: int = 3
    initial_backoff: int = 1_000
    max_backoff: int = 60_000
    multiplier: float = 2.0


@dataclass(frozen=True, slots=True)
class DeletePolicy:
    propagate: bool = False
    max_percent: float = 25
    min_count: int = 5


@dataclass(frozen=True, slots=True)
class Source:
    vault: str
    prefix: str = ""
    resource: str = "secrets"


@dataclass(frozen=True, slots=True)
class Target:
    id: str
    """Names this target in the store; the vault's id unless the file says otherwise."""
    vault: str
    prefix: str = ""
    name: str = "{path}"
    """A template of names."""
    granularity: Granularity = Granularity.SECRET
    rename: Mapping[str, str] = field(default_factory=dict)
    """Templates of single paths, which go before `name`."""
    name_encoding: NameEncoding = NameEncoding.READABLE
    fields: FieldRules = field(default_factory=FieldRules)
    transform: tuple[Step, ...] = ()
    metadata: MetadataRules = field(default_factory=MetadataRules)


@dataclass(frozen=True, slots=True)
class Sync:
    id: str
    source: Source
    targets: tuple[Target, ...]
    type: str = "unidirectional"
    schedule: str | None = None
    enabled: bool = True
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    verify_targets: bool = True
    on_existing: OnExisting = OnExisting.OVERWRITE
    delete: DeletePolicy = DeletePolicy()
    conflict: ConflictPolicy = ConflictPolicy.NEWEST
    retry_policy: RetryPolicy = RetryPolicy()

    @property
    def two_way(self) -> bool:
        return self.type == "bidirectional"

    def target(self, target_id: str) -> Target | None:
        return next((target for target in self.targets if target.id == target_id), None)

    @property
    def units(self) -> tuple[Target, ...]:
        """What is planned, queued and counted on its own: each target; two-way, where a path is settled on all sides at
        once, the source's vault alone, which stands for all of them."""
        if self.two_way:
            return (Target(self.source.vault, self.source.vault, self.source.prefix),)
        return self.targets

    def unit(self, unit_id: str) -> Target | None:
        return next((unit for unit in self.units if unit.id == unit_id), None)

    def row_target(self, unit_id: str) -> str:
        """The target whose rows stand for the paths of a unit: its own; two-way, the first one's."""
        return self.targets[0].id if self.two_way else unit_id

    @property
    def written_vaults(self) -> tuple[str, ...]:
        """The ids of the vaults that it may write to, each once."""
        sides = (self.source.vault,) if self.two_way else ()
        return tuple(dict.fromkeys((*sides, *(target.vault for target in self.targets))))


# --- what the store remembers ------------------------------------------------------------------------------------


class RunStatus(enum.StrEnum):
    QUEUED = "queued"
    PLANNING = "planning"
    RUNNING = "running"
    BLOCKED = "blocked"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        return self in (RunStatus.QUEUED, RunStatus.PLANNING, RunStatus.RUNNING)


class ObjectStatus(enum.StrEnum):
    IN_SYNC = "in_sync"
    PENDING = "pending"
    FAILED = "failed"
    CONFLICT = "conflict"
    DELETED = "deleted"
    SKIPPED = "skipped"


class Action(enum.StrEnum):
    """What a row of the history says was done."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    ADOPT = "adopt"
    CONFLICT = "conflict"
    RESOLVE = "resolve"
    FAIL = "fail"


class Outcome(enum.StrEnum):
    """How one path of one chunk ended: a letter, so that a chunk's outcomes are a short string."""

    OPEN = "."
    WRITTEN = "w"
    REPAIRED = "r"
    """Written because the target had drifted."""
    ADOPTED = "a"
    UNCHANGED = "u"
    SKIPPED = "s"
    DELETED = "d"
    FAILED = "f"
    CONFLICT = "c"
    DROPPED = "n"
    """Nothing was done: the run was cancelled, or the sync is no longer configured."""


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one sync."""

    run_id: str
    sync_id: str
    trigger: str
    created_at: datetime
    status: RunStatus = RunStatus.QUEUED
    dry_run: bool = False
    allow_deletes: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    planned: int = 0
    written: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: int = 0
    conflicts: int = 0
    drifted: int = 0
    error: str | None = None
    calls: Mapping[str, int] = field(default_factory=dict)
    """API calls made, by vault id."""
    paths: tuple[str, ...] | None = None
    """A replay's paths; None: all that the sync covers."""
    revision: str | None = None
    """The store's concurrency token; None: not stored yet."""


class Op(enum.StrEnum):
    """What a chunk asks of its paths. Only a hint: the writer looks for itself before anything irreversible."""

    CREATE = "create"
    """The names were not there when the plan was made."""
    UPDATE = "update"
    REPAIR = "repair"
    """The target is not as it was left: look before writing."""
    DELETE = "delete"
    """Remove the names that the source and the mapping no longer ask for."""
    MERGE = "merge"
    """Two-way: give all sides the value that one of them was given. Deletes nothing."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a run: some paths of one target, and how each ended. The identity by which a run is counted."""

    run_id: str
    chunk: str
    """Unique in its run, and sorted in the order of planning."""
    target: str
    op: Op
    paths: tuple[str, ...]
    outcomes: str
    """One `Outcome` letter a path, in the same order."""
    held: bool = False
    """Recorded, but not sent until somebody approves."""
    cleanup: bool = True
    """Whether names that the mapping no longer yields may be deleted on the way."""
    calls: Mapping[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def complete(self) -> bool:
        return Outcome.OPEN not in self.outcomes


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run's planning for one target has come: saved in one step with the chunks of a slice."""

    run_id: str
    target: str
    cursor: str | None = None
    """The last path that was planned; planning goes on behind it."""
    slices: int = 0
    planned: int = 0
    unchanged: int = 0
    failed: int = 0
    """Paths that failed at plan time: two on one name, a name that can not be stored."""
    finished: bool = False
    blocked: str | None = None
    """Why deletes are held back, if they are."""
    error: str | None = None
    """Why this target could not be planned at all, if so."""
    calls: Mapping[str, int] = field(default_factory=dict)
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One name that a path was written to."""

    name: str
    fingerprint: str | None = None
    version: str | None = None
    digest: str | None = None
    """None: about to be written, or found there and never compared."""
    owned: bool = True
    """Whether this sync wrote it. Only what it wrote is ever deleted."""
    intended: str | None = None
    """Without a digest: the one that was about to be written, where that was known. Beside one: the digest of what is
    stored, where that is another: encrypted on the way, a value never gives the same text twice."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one side held of a path when a conflict was found."""

    side: str
    """`source`, or the id of a target."""
    fingerprint: str | None = None
    version: str | None = None
    digest: str | None = None
    """None: it held nothing."""
    changed_at: str | None = None
    """By the vault's own clock, ISO 8601, where it tells."""


@dataclass(frozen=True, slots=True)
class Contested:
    """A conflict that nobody has settled yet: what the sides held when it was found, and what a person has decided."""

    sides: tuple[Sight, ...]
    take: str | None = None
    """The side whose value the others get; None: not decided."""
    taken: str | None = None
    """The side whose value the others were about to get when this was noted: a job has begun to settle it."""
    again: tuple[str, ...] = ()
    """The sides that changed again after the conflict had been found, while another party was away."""

    def sight(self, side: str | None) -> Sight | None:
        """What a side held."""
        return next((sight for sight in self.sides if sight.side == side), None)


SOURCE_SIDE = "source"
"""Names the source among the sides of a two-way sync; the others are called by their target's id."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What is remembered of one path on one target of one sync (a row of `sync_objects`)."""

    sync_id: str
    target: str
    path: str
    parts: tuple[Part, ...] = ()
    source_fingerprint: str | None = None
    source_version: str | None = None
    """The version that was carried, where the source tells versions: what makes an event old news."""
    digest_key_id: str | None = None
    recipe: str | None = None
    status: ObjectStatus = ObjectStatus.PENDING
    last_sync_at: datetime | None = None
    direction: str = "source_to_target"
    error: str | None = None
    transient: bool = False
    """With status failed: whether a replay may help."""
    run_id: str | None = None
    outcome: Outcome = Outcome.OPEN
    """How the path ended in `run_id`, for a job that is delivered again."""
    contested: Contested | None = None
    """Two-way, with status conflict. What is remembered besides is what the sides last agreed on."""
    claim: str | None = None
    claim_expires_at: datetime | None = None
    updated_at: datetime | None = None
    history_count: int = 0
    history_hash: str | None = None
    history_at: datetime | None = None
    """The tail of this object's history: the store keeps these three."""
    revision: str | None = None
    """The store's concurrency token; None: there must be no such row yet."""

    @property
    def object_id(self) -> str:
        return object_id(self.sync_id, self.target, self.path)

    @property
    def owned(self) -> bool:
        """Whether this sync wrote something of it that is still there."""
        return self.status is not ObjectStatus.DELETED and any(part.owned for part in self.parts)

    def claim_left(self, now: datetime) -> timedelta:
        """For how long a job still has it to itself; zero: nobody works on it."""
        if not self.claim or self.claim_expires_at is None:
            return timedelta(0)
        return max(timedelta(0), self.claim_expires_at - now)

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)


def object_id(sync_id: str, target: str, path: str) -> str:
    """The deterministic id of a path on a target of a sync: 40 hex digits."""
    import hashlib

    # "\0" can be in none of the three, so no two triples share an id.
    return hashlib.sha256(f"{sync_id}\0{target}\0{path}".encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to one object, to be written into the history."""

    action: Action
    status: ObjectStatus
    run_id: str | None
    direction: str = "source_to_target"
    source_version: str | None = None
    target_version: str | None = None
    attempt: int = 0
    error: str | None = None
    detail: str | None = None
    """Of a conflict, as JSON: what the sides held (fingerprint, version, digest, time), which of them was taken, and by
    which rule."""


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A row of `sync_history`: an `Event` with its place in the object's hash chain."""

    id: str
    sync_object_id: str
    sync_id: str
    target: str
    path: str
    run_id: str | None
    action: Action
    status: ObjectStatus
    direction: str
    source_version: str | None
    target_version: str | None
    attempt: int
    error: str | None
    created_at: datetime
    previous_hash: str | None
    hash: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """What is kept per sync across runs."""

    sync_id: str
    paused: bool = False
    active_run: str | None = None
    last_run: str | None = None
    last_success_at: datetime | None = None
    totals: Mapping[str, Any] = field(default_factory=dict)
    """Sums over finished runs: `runs` by status, `targets` by target and outcome, `calls` by vault, `seconds`."""
    again: str | None = None
    """The trigger of a full run that must begin after the active one, or when the sync is resumed; None: none must."""
    event_deletes: Mapping[str, Any] = field(default_factory=dict)
    """By target: how many deletes events have asked for in the present window (`count`), and when it began (`since`)."""
    revision: str | None = None


# --- small helpers ------------------------------------------------------------------------------------------------


def utcnow() -> datetime:
    return datetime.now(UTC)


def iso(moment: datetime | None) -> str | None:
    """UTC, ISO 8601, always with microseconds: text that sorts as the times do."""
    if moment is None:
        return None
    # Much faster than strftime, and every row of the store has several.
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{utc.isoformat(timespec='microseconds')[:-6]}Z"


def from_iso(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def strictly_after(moment: datetime, earlier: datetime | None) -> datetime:
    """`moment`, or just past `earlier` where a clock stood still or went back."""
    if earlier is not None and moment <= earlier:
        return earlier + timedelta(microseconds=1)
    return moment


def new_run_id(now: datetime) -> str:
    """Sorts by time, and can be read aloud: `20261122-174429-123456-9f3c`."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S-%f}-{random.token_hex(3)}"


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """The one text for a JSON value: sorted keys, no spaces, unicode as it is. ValueError on NaN and infinities."""
    return _CANONICAL.encode(value)
