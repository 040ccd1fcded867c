"""What goes over HTTP, in shape: the answers that `shared.api` and its neighbours build, and the records of the relay.

mypy holds whoever builds an answer to its shape, and tests hold each answer to the document that `shared.openapi` makes
of them. Other modules import this for type checkers only: a cold start has no use for pydantic.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from shared.model import Action, ObjectStatus, RunStatus
from shared.plan import ChangeKind

Time: TypeAlias = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""UTC, ISO 8601, with microseconds."""
Count: TypeAlias = Annotated[int, Field(ge=0)]
Page: TypeAlias = Annotated[str | None, Field(description="What `cursor` takes to go on; null: this is the end.")]


@with_config(ConfigDict(use_attribute_docstrings=True))
class Shape(TypedDict):
    """What they have in common: docstrings of keys become descriptions."""


# --- problems -----------------------------------------------------------------------------------------------------


class ProblemDetails(Shape):
    """Why a request was not granted (RFC 9457). It never repeats the request's body."""

    type: Literal["about:blank"]
    title: str
    """What the status means."""
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    """What is wrong, and what to do about it."""
    instance: NotRequired[str]
    """The path that was asked for. Absent where the host itself answers."""


# --- runs ---------------------------------------------------------------------------------------------------------


class RunBegun(Shape):
    """The run that was begun, or the one that is on its way."""

    run_id: str
    sync_id: str
    status: RunStatus


class RunReport(Shape):
    """A run: the columns of the table `syncs_run`, counted as they are this moment."""

    run_id: str
    sync_id: str
    trigger: str
    """timer, manual, event, replay, plan or resolve."""
    dry_run: bool
    status: RunStatus
    created_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    planned: Count
    """Secrets that were looked at, on all targets."""
    written: Count
    unchanged: Count
    deleted: Count
    failed: Count
    conflicts: Count
    drifted: Count
    """Of those written: because others had changed the target."""
    error: str | None
    calls: dict[str, Count]
    """API calls, by vault."""


# --- syncs --------------------------------------------------------------------------------------------------------


class SyncReport(Shape):
    """A sync as it is configured, but for keys, constants and templates of values."""

    sync_id: str
    paused: bool
    next_run: Time | None
    """When its schedule starts it next; null: nothing will."""


class SyncList(Shape):
    items: list[SyncReport]
    next_cursor: Page


class PauseReport(Shape):
    sync_id: str
    paused: bool


class ObjectCounts(Shape):
    """Secrets that are remembered, by how they stand now."""

    in_sync: Count
    pending: Count
    failed: Count
    conflict: Count
    skipped: Count


class StatusReport(Shape):
    """How a sync is doing."""

    sync_id: str
    type: str
    enabled: bool
    paused: bool
    schedule: str | None
    """Six cron fields, in UTC."""
    next_run: Time | None
    last_run: RunReport | None
    """The one that is on its way, else the last that has ended."""
    objects: ObjectCounts


class ChangedFields(Shape):
    """Which fields would change, by their names; with granularity `field`, which names on the target."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class PlannedChange(Shape):
    """What would become of one secret on one target. It holds no value."""

    target: str
    path: str
    change: ChangeKind
    reason: str
    names: list[str]
    """What it is called on the target."""
    side: str | None
    """Of a two-way sync: the side that would be written, `source` or a target. null: the target."""
    fields: ChangedFields | None
    """null: not known, because a value could not be read or is encrypted on the way, or because nothing is written."""
    held: bool
    """Whether it would wait for somebody's approval: see `blocked`."""


class PlanReport(Shape):
    """A finished plan: what a run would do. Secrets that nothing would happen to are only counted."""

    run_id: str
    sync_id: str
    status: RunStatus
    created_at: Time | None
    finished_at: Time | None
    error: str | None
    planned: Count
    unchanged: Count
    failed: Count
    blocked: dict[str, str]
    """By target: why its deletes would wait for somebody's approval."""
    unseen: dict[str, str]
    """By target: why nobody could look at it. What is due by the source is planned, the rest counts as unchanged."""
    items: list[PlannedChange]


class Held(Shape):
    """What one side of a two-way sync held when a conflict was found. It tells no value."""

    side: str
    """`source`, or the id of a target."""
    fingerprint: str | None
    version: str | None
    digest: str | None
    """Keyed: equal for equal secrets. Null: it held nothing."""
    changed_at: Time | None
    """By the vault's own clock, where it tells."""


class ConflictDetail(Shape):
    """What a conflict was about, and how it was settled."""

    rule: str
    """Why that side was taken, or why none was."""
    taken: str | None
    """The side whose value the others got; null: it was not settled then."""
    sides: list[Held]


class HistoryEntry(Shape):
    """A row of the table `sync_history`: something that was done to one secret on one target."""

    id: str
    sync_object_id: str
    sync_id: str
    target: str
    path: str
    run_id: str | None
    """Null: an event asked for it."""
    action: Action
    status: ObjectStatus
    direction: str
    """source_to_target or target_to_source."""
    source_version: str | None
    target_version: str | None
    attempt: Count
    error: str | None
    detail: ConflictDetail | None
    """Of a conflict, settled or not."""
    created_at: Time | None
    previous_hash: str | None
    """`hash` of the row before it of the same secret."""
    hash: str


class LookedAt(Shape):
    """What tells this value of a name from its next one. The hashes are of keyed digests, and cut short."""

    fingerprint: str | None
    version: str | None
    digest: str | None


class RestsOn(Shape):
    """Both sides of a change as they were when it was planned; null: there was nothing."""

    source: LookedAt | None
    target: dict[str, LookedAt | None]
    """By name."""


class SavedChange(PlannedChange):
    """A change that can be carried out later."""

    basis: RestsOn | None
    """null: nothing is written, or it could not be looked at."""


class SavedPlan(Shape):
    """What `vaultferry plan SYNC --out FILE` writes, and `vaultferry sync --plan FILE` carries out."""

    vaultferry: Literal["plan 1"]
    """What the file is, and its format."""
    run_id: str
    sync_id: str
    created_at: Time
    configuration: str
    """A keyed digest of the sync's configuration and of where its vaults are."""
    planned: Count
    unchanged: Count
    failed: Count
    blocked: dict[str, str]
    unseen: NotRequired[dict[str, str]]
    items: list[SavedChange]


class HistoryPage(Shape):
    items: list[HistoryEntry]
    next_cursor: Page


class ConflictReport(Shape):
    """A secret in conflict on one target. With several targets, one is told of for each that differs."""

    sync_id: str
    target: str
    path: str
    since: Time | None
    error: str | None
    """Why nothing was done. One-way: what to do about it as well."""
    decided: str | None
    """The side that was taken by hand, which a run is about to carry out; null: nobody has decided."""
    sides: list[Held]
    """What they held when the conflict was found. One-way: empty."""


class ConflictPage(Shape):
    items: list[ConflictReport]
    next_cursor: Page


# --- what others tell of ------------------------------------------------------------------------------------------


class ChangeRecord(Shape):
    """A path in a Vault that was written, as the relay tells it."""

    vaultferry: Literal["change"]
    mount: Annotated[str, Field(pattern="/$")]
    """With the slash at its end, and without the namespace."""
    path: str
    """Below the mount, as it was sent: `data/apps/db`."""
    namespace: NotRequired[str]
    """With the slash at its end. Absent: the root."""
    version: NotRequired[Annotated[int, Field(ge=1)]]
    """The version that was written, where that is known."""
    vault: NotRequired[str]
    """The vault of the configuration that it comes from."""


class GapRecord(Shape):
    """Something may have been missed: all syncs that read there have a full run."""

    vaultferry: Literal["gap"]
    why: str
    vault: NotRequired[str]
    """Absent: every Vault."""


# --- monitoring ---------------------------------------------------------------------------------------------------

Health: TypeAlias = Literal["ok", "degraded", "error"]


class Check(Shape):
    status: Health
    detail: NotRequired[str]
    """What is wrong."""


class SyncCheck(Check):
    last_success: Time | None
    last_run: NotRequired[RunStatus | None]
    """How the last run ended. Absent: the store did not say."""


class Checks(Shape, total=False):
    """What was looked at; what could not be is absent."""

    app: Check
    config: Check
    store: Check
    queues: Check
    relay: Check
    """Where it lives in the same process."""
    syncs: dict[str, SyncCheck]


class HealthReport(Shape):
    """error: nothing can be carried at all. degraded: some sync did not go well or is overdue, or the relay inside fails."""

    status: Health
    version: str
    commit: str | None
    build_date: str | None
    checks: Checks


class SyncMetrics(Shape):
    enabled: bool
    paused: bool
    active: bool
    """Whether a run is on its way."""
    runs: dict[str, Count]
    """Runs that have ended, by how."""
    targets: dict[str, dict[str, Count]]
    """By target and outcome: secrets that ended runs have dealt with."""
    objects: dict[ObjectStatus, Count]
    last_run_status: RunStatus | None
    last_run_seconds: float | None
    last_success_at: Time | None
    last_success_age_seconds: float | None


class MetricsReport(Shape):
    """From the store, so that it is right however many instances there are."""

    syncs_configured: Count
    syncs_enabled: Count
    runner_running: bool
    """True: store and queues answer."""
    runs_active: Count
    runs: dict[str, Count]
    """Runs that have ended, by how."""
    calls: dict[str, Count]
    """API calls of ended runs, by vault."""
    queues: dict[str, Count]
    """About how many messages each holds."""
    syncs: dict[str, SyncMetrics]


Document: TypeAlias = dict[str, Any]
"""JSON whose own rules are told elsewhere."""
