"""Carries runs out in this process, on the same store and queues as everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from shared.cli.progress import Look, Notices, progress

if TYPE_CHECKING:
    from shared.app import App
    from shared.cli.output import Output
    from shared.jobs import Message
    from shared.model import Run
    from shared.queue_loop import QueueLoop

GRACE = 3.0
"""Seconds that jobs under way may still take after Ctrl-C."""
AGAIN = 5.0
"""Seconds until a job that broke off is tried again: somebody sits and waits."""
SILENT_AFTER = 1.5
"""Seconds without an answer from which a vault is named."""
SOMEBODY_ELSE = 1.0
"""Seconds until the store is looked at again when nothing happened here: another process may have ended the run."""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C. `looks` tell how far the runs had come when this process had let go of them."""

    def __init__(self, looks: Sequence[Look]) -> None:
        super().__init__("interrupted")
        self.looks = looks


async def carry_out(app: App, out: Output, runs: Sequence[Run], *, write: bool) -> list[Run]:
    """Work on the queues until these runs have ended; the runs as they ended, in the same order.

    Without `write`, only planning is done here. Raises Interrupted after Ctrl-C or SIGTERM: jobs under way were given
    a few seconds, the rest is back in the queue.
    """
    news, stop = asyncio.Event(), asyncio.Event()
    vaults = {
        unit.vault
        for run in runs
        if write and run.sync_id in app.config.syncs
        for unit in app.config.syncs[run.sync_id].units
    }
    loops = _loops(app, sorted(vaults), news)
    with Notices() as notices, _interruptible(stop, out):

        def note(sync_id: str) -> str:
            return notices.of(sync_id) or silent(app, sync_id)

        tasks = [loop.start() for loop in loops]
        try:
            with progress(out, note, leave=write) as shown:
                await _until_ended(app, runs, tasks, news, stop, shown.show, shown.every)
        finally:
            # Side by side: none waits for another's patience.
            await asyncio.gather(*(loop.stop(GRACE) for loop in loops))
    looks = [await look(app, run.run_id) for run in runs]
    if stop.is_set() and any(seen.run.status.active for seen in looks):
        raise Interrupted(looks)
    return [seen.run for seen in looks]


async def look(app: App, run_id: str) -> Look:
    """A run with its counts, and how many of its paths are settled."""
    run = await app.engine.runs.view(run_id)
    if run.dry_run:
        return Look(run, run.planned, run.planned)
    still_open = sum(chunk.outcomes.count(".") for chunk in await app.store.list_chunks(run_id) if not chunk.held)
    return Look(run, run.planned, run.planned - still_open)


def silent(app: App, sync_id: str) -> str:
    """Which vaults of a sync do not answer at the moment."""
    sync = app.config.syncs.get(sync_id)
    vaults = [] if sync is None else [sync.source.vault, *(target.vault for target in sync.targets)]
    waits = {vault: app.vaults.silence(vault) for vault in vaults}
    return ", ".join(
        f"no answer from {vault} for {seconds:.0f} s" for vault, seconds in waits.items() if seconds >= SILENT_AFTER
    )


def _loops(app: App, vaults: Iterable[str], news: asyncio.Event) -> list[QueueLoop]:
    from shared.host_settings import HostSettings
    from shared.jobs import PLAN_QUEUE, POISON_SUFFIX, write_queue
    from shared.queue_loop import QueueLoop

    async def handle(message: Message) -> None:
        await app.engine.handle(message.body)

    async def give_up(message: Message) -> None:
        await app.engine.give_up(message.body)

    def handled(message: Message) -> None:
        news.set()

    settings = HostSettings(visibility_timeout=AGAIN)
    names = [PLAN_QUEUE, *(write_queue(vault) for vault in vaults)]
    return [
        *(QueueLoop(app.queues, name, handle, settings, handled=handled) for name in names),
        *(QueueLoop(app.queues, name + POISON_SUFFIX, give_up, settings, handled=handled) for name in names),
    ]


async def _until_ended(
    app: App,
    runs: Sequence[Run],
    tasks: Sequence[asyncio.Task[None]],
    news: asyncio.Event,
    stop: asyncio.Event,
    show: Callable[[dict[str, Look]], None],
    every: float,
) -> None:
    active = {run.run_id for run in runs}
    # The first look waits as long as any: a run that is over in a moment needs no line.
    due = time.monotonic() + every
    while True:
        news.clear()
        for run_id in list(active):
            run = await app.store.get_run(run_id)
            if run is None or not run.status.active:
                active.discard(run_id)
        if time.monotonic() >= due or not active:
            began = time.monotonic()
            show({run.run_id: await look(app, run.run_id) for run in runs})
            # A run of 100,000 paths is not summed up five times a second.
            due = time.monotonic() + max(every, 10 * (time.monotonic() - began))
        if not active or stop.is_set():
            return
        await _first(tasks, news, stop, timeout=min(SOMEBODY_ELSE, max(0.0, due - time.monotonic())))


async def _first(
    tasks: Sequence[asyncio.Task[None]], news: asyncio.Event, stop: asyncio.Event, *, timeout: float
) -> None:
    """Return when there is news, a wish to stop, or after `timeout`. Raises what a loop broke on."""
    waiters = [asyncio.create_task(news.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait({*waiters, *tasks}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
    for task in tasks:
        if task.done():
            task.result()


@contextlib.contextmanager
def _interruptible(stop: asyncio.Event, out: Output) -> Iterator[None]:
    """Set `stop` at the first Ctrl-C or SIGTERM. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def heed() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        # Said last: from here on it is true.
        out.note("Stopping; what is under way may take a few seconds. Once more ends it at once.")

    try:
        for number in numbers:
            # Windows has no such handlers; there Ctrl-C cancels the main task.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, heed)
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
