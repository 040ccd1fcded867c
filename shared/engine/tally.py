"""Pure: from what planning and chunks recorded to a run's counts. Nothing is counted twice, because nothing is added up
as it happens: identities are summed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.model import Chunk, Outcome, Progress, Run, RunStatus

SILENT = "it could not be looked at, so nobody knows whether it holds what it should"
"""Of a target that was planned blindly."""
HELD_SUFFIX = "-held"
"""Ends the id of a chunk that was recorded for approval."""


def summarise(run: Run, progress: Iterable[Progress], chunks: Sequence[Chunk]) -> Run:
    """The run with the counts that its parts add up to; its status stays as it is."""
    outcomes: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    planned = unchanged = failed = 0
    for part in progress:
        planned += part.failed
        unchanged += part.unchanged
        failed += part.failed
        calls.update(part.calls)
    for chunk in chunks:
        calls.update(chunk.calls)
        if not chunk.held:
            planned += len(chunk.paths)
            outcomes.update(chunk.outcomes)
    return replace(
        run,
        planned=planned,
        written=outcomes[Outcome.WRITTEN] + outcomes[Outcome.REPAIRED],
        unchanged=unchanged
        + sum(outcomes[o] for o in (Outcome.UNCHANGED, Outcome.ADOPTED, Outcome.SKIPPED, Outcome.DROPPED)),
        deleted=outcomes[Outcome.DELETED],
        failed=failed + outcomes[Outcome.FAILED],
        conflicts=outcomes[Outcome.CONFLICT],
        drifted=outcomes[Outcome.REPAIRED],
        calls=dict(calls),
    )


def troubled(target: str, error: str) -> str:
    """A target's error, named once: where it has the name of its vault, the error begins with that already."""
    return error if error.startswith(f"{target}:") else f"{target}: {error}"


def verdict(run: Run, progress: Sequence[Progress], chunks: Sequence[Chunk]) -> tuple[RunStatus, str | None]:
    """How a run whose work is done has ended, and what a person should know about it. `run` is summarised already."""
    done = {Outcome.WRITTEN, Outcome.REPAIRED, Outcome.ADOPTED, Outcome.DELETED}
    answered = {chunk.target for chunk in chunks if done.intersection(chunk.outcomes)}

    def made_up_for(part: Progress) -> bool:
        return part.error == SILENT and part.target in answered and not part.unchanged

    errors = [troubled(part.target, part.error) for part in progress if part.error and not made_up_for(part)]
    blocked = [f"{part.target}: {part.blocked}" for part in progress if part.blocked]
    if blocked and any(chunk.held for chunk in chunks):
        why = "; ".join(blocked + errors)
        return RunStatus.BLOCKED, f"{why}. Approve run {run.run_id}, or sync once with --allow-deletes"
    error = "; ".join(errors) or None
    if not errors and not run.failed and not run.conflicts:
        return RunStatus.SUCCEEDED, None
    if run.written or run.deleted or run.unchanged:
        return RunStatus.PARTIAL, error
    return RunStatus.FAILED, error


def add_to_totals(
    totals: Mapping[str, Any], run: Run, progress: Sequence[Progress], chunks: Sequence[Chunk]
) -> dict[str, Any]:
    """A sync's totals with a finished run added: what /metrics shows.

    A run that goes on after an approval comes here twice; the second time only what was held counts.
    """
    again = run.finished_at is not None
    if again:
        progress = []
        chunks = [chunk for chunk in chunks if chunk.chunk.endswith(HELD_SUFFIX)]
    runs = Counter(totals.get("runs", {}))
    runs[run.status] += 1
    calls = Counter(totals.get("calls", {}))
    targets: dict[str, Counter[str]] = {name: Counter(counts) for name, counts in totals.get("targets", {}).items()}
    for part in progress:
        calls.update(part.calls)
        targets.setdefault(part.target, Counter()).update({"unchanged": part.unchanged, "failed": part.failed})
    for chunk in chunks:
        calls.update(chunk.calls)
        if not chunk.held:
            counts = targets.setdefault(chunk.target, Counter())
            for outcome, name in _NAMES.items():
                counts[name] += chunk.outcomes.count(outcome)
    return {
        "runs": dict(runs),
        "calls": dict(calls),
        "targets": {name: dict(counts) for name, counts in targets.items()},
    }


_NAMES = {
    Outcome.WRITTEN: "written",
    Outcome.REPAIRED: "drifted",
    Outcome.UNCHANGED: "unchanged",
    Outcome.ADOPTED: "unchanged",
    Outcome.SKIPPED: "skipped",
    Outcome.DROPPED: "unchanged",
    Outcome.DELETED: "deleted",
    Outcome.FAILED: "failed",
    Outcome.CONFLICT: "conflicts",
}
