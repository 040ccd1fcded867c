"""Two jobs for one secret, stepped through in every order, with an edit in between, a crash, and a claim that runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import pytest

from shared.model import ObjectState
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED)

_actor: ContextVar[str] = ContextVar("actor")
GATES = ("get done", "set done")


class Killed(BaseException):
    """What a job sees of kill -9: nothing it could catch by mistake."""


class Steps:
    """Lets one actor at a time go from gate to gate, in the order of a schedule."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self._moved = asyncio.Event()

    async def gate(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting[_actor.get()] = future
        self._moved.set()
        await future

    async def hook(self, vault: str, operation: str, name: str) -> None:
        """A vault's: each of its reads and writes ends at a gate."""
        if operation in GATES:
            await self.gate()

    async def run(
        self, actors: dict[str, Callable[[], Awaitable[None]]], schedule: list[int], kill: tuple[str, int] | None
    ) -> list[int]:
        """Returns how many choices there were at each step."""

        async def live(name: str, body: Callable[[], Awaitable[None]]) -> None:
            _actor.set(name)
            try:
                await self.gate()
                await body()
            except Killed:
                pass
            finally:
                self._moved.set()

        tasks = {name: asyncio.create_task(live(name, body)) for name, body in actors.items()}
        choices: list[int] = []
        passed = dict.fromkeys(actors, 0)
        while not all(task.done() for task in tasks.values()):
            while any(not task.done() and name not in self.waiting for name, task in tasks.items()):
                self._moved.clear()
                await self._moved.wait()
            ready = sorted(self.waiting)
            if not ready:
                break
            step = len(choices)
            choices.append(len(ready))
            name = ready[schedule[step] if step < len(schedule) else 0]
            passed[name] += 1
            future = self.waiting.pop(name)
            if kill == (name, passed[name]):
                future.set_exception(Killed())
            else:
                future.set_result(None)
        for task in tasks.values():
            await task
        return choices


def schedules() -> Iterator[tuple[list[int], Callable[[list[int]], None]]]:
    """Every schedule, depth first: each run says how many choices it had, and the last one that has another is moved on."""
    schedule: list[int] = []
    while True:
        taken: list[int] = []
        yield schedule, taken.extend
        path = schedule + [0] * (len(taken) - len(schedule))
        while path and path[-1] + 1 >= taken[len(path) - 1]:
            path.pop()
        if not path:
            return
        schedule = [*path[:-1], path[-1] + 1]


async def prepare(w: World, source: MemoryVault) -> str:
    """A write job for `a`, taken from its queue as two workers would get it."""
    source.put("a", "1")
    await w.sync()
    source.put("a", "2")
    await w.engine.runs.start("s", trigger="manual")
    await w.engine.handle(w.queues.messages.pop()[1])
    return w.queues.messages.pop()[1]


async def explore(
    folder: Path, capabilities: Capabilities, kill: tuple[str, int] | None, *, clock_runs: bool = False
) -> int:
    runs = 0
    for schedule, report in schedules():
        source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
        place = folder / str(runs)
        place.mkdir()
        async with world(place, [source, target], one_way()) as w:
            job = await prepare(w, source)
            steps = Steps()
            source.hook = target.hook = steps.hook

            async def first(w: World = w, job: str = job) -> None:
                await w.engine.handle(job)

            async def second(w: World = w, job: str = job) -> None:
                await w.engine.handle(job)

            async def edit(w: World = w, source: MemoryVault = source) -> None:
                source.put("a", "3")
                if clock_runs:
                    w.clock.advance(seconds=400)

            report(await steps.run({"first": first, "second": second, "edit": edit}, schedule, kill))
            source.hook = target.hook = None
            # Whoever was killed has its message delivered again, once its claim has run out.
            w.clock.advance(seconds=400)
            await w.engine.handle(job)
            await w.drain()
            if target.values() != {"a": {"value": "3"}}:
                await w.sync()
            assert target.values() == {"a": {"value": "3"}}, schedule
            values = [fields["value"] for _, fields in target.writes]
            if not clock_runs:
                assert values == sorted(values), f"an older value after a newer one: {schedule}"
            state = (await w.states())["target", "a"]
            assert isinstance(state, ObjectState)
            assert (state.claim, str(state.status)) == (None, "in_sync"), schedule
            source.calls.clear(), target.calls.clear()
            assert (await w.sync()).unchanged == 1
            assert target.calls["set"] == 0
        runs += 1
    return runs


@pytest.mark.parametrize("capabilities", [KV2, KV1, LISTED], ids=["kv2", "kv1", "listed"])
async def test_two_jobs_and_an_edit_in_every_order_leave_the_newest_value(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    assert await explore(tmp_path, capabilities, None) >= 20


@pytest.mark.parametrize("capabilities", [KV2, LISTED], ids=["kv2", "listed"])
@pytest.mark.parametrize("gate", [2, 3])
async def test_a_job_killed_while_it_holds_the_claim_leaves_no_stuck_claim(
    tmp_path: Path, capabilities: Capabilities, gate: int
) -> None:
    assert await explore(tmp_path, capabilities, ("first", gate)) >= 10


@pytest.mark.parametrize("capabilities", [KV2, LISTED], ids=["kv2", "listed"])
async def test_a_job_whose_claim_ran_out_while_it_was_frozen_does_not_have_the_last_word(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    assert await explore(tmp_path, capabilities, None, clock_runs=True) >= 20
