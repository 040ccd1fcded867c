"""The engine: plan jobs and write jobs, free of any kind of vault, store or queue.

`planner` compares and sends, `writer` settles what it is sent (one path at a time: `path_work`), `runs` keeps a run's life,
`tally` its counts, `probe` catches up what a vault that was down has missed. `events` takes what others have seen, and
`event_writer` looks at it without a run. Of two-way syncs, `two_way_survey` is what a planning sees, and `merger` settles
what it is sent: one path on all its sides at a time (`two_way`).
"""

from __future__ import annotations

from shared.engine.event_writer import EventWriter
from shared.engine.events import Events
from shared.engine.installation import Installation
from shared.engine.merger import Merger
from shared.engine.planner import Planner
from shared.engine.probe import Prober
from shared.engine.runs import Runs
from shared.engine.shared_reads import SharedReads
from shared.engine.writer import Writer
from shared.jobs import EventJob, Job, PlanJob, ProbeJob, WriteJob, decode

__all__ = ["Engine", "Installation"]


class Engine:
    """Deals with jobs, whoever delivers them."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.runs = Runs(installation)
        self._prober = Prober(installation, self.runs)
        self._planner = Planner(installation, self.runs, self._prober)
        merger = Merger(installation, self.runs, self._prober)
        self._writer = Writer(installation, self.runs, self._prober, merger)
        reads = SharedReads(installation.clock)
        self.events = Events(installation, self.runs, reads)
        self._event_writer = EventWriter(installation, self.runs, self._prober, reads, merger)

    async def handle(self, body: str | bytes) -> None:
        """Deal with one message. What it raises makes the queue deliver it again."""
        job = decode(body)
        match job:
            case PlanJob():
                await self._planner.handle(job)
            case WriteJob():
                await self._writer.handle(job)
            case EventJob():
                await self._event_writer.handle(job)
            case ProbeJob():
                await self._prober.handle(job)

    async def give_up(self, body: str | bytes) -> None:
        """Deal with a message from a poison queue: its run must end, and a person must be able to see why."""
        job: Job = decode(body)
        match job:
            case PlanJob():
                await self.runs.fail(job.run, "its planning ended without an answer several times; see the log")
            case WriteJob():
                await self._writer.give_up(job)
            case EventJob():
                await self._event_writer.give_up(job)
            case ProbeJob():
                await self._prober.later(job)
