"""Timers: NCRONTAB in UTC, one firing at a time, nothing missed at start. The clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.errors import ConfigError, StoreError
from shared.sqlite import Database
from shared.timer_loop import SqliteTicks, TimerLoop, next_tick

START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


class FakeClock:
    """Time passes when the test says so, once somebody sleeps."""

    def __init__(self) -> None:
        self.time = START
        self._sleeper: asyncio.Future[None] | None = None
        self._asleep = asyncio.Event()
        self._wakes_at = START

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self._wakes_at = self.time + timedelta(seconds=seconds)
        self._sleeper = asyncio.get_running_loop().create_future()
        self._asleep.set()
        await self._sleeper

    async def until_asleep(self) -> None:
        await asyncio.wait_for(self._asleep.wait(), 10)

    async def advance(self, to: datetime) -> None:
        """Let the sleeper sleep on until `to`."""
        while True:
            await self.until_asleep()
            if self._wakes_at > to:
                self.time = to
                return
            self.time = self._wakes_at
            self.wake()
            # The sleeper runs: it sleeps again, or calls its handler.
            for _ in range(5):
                await asyncio.sleep(0)
            if not self._asleep.is_set():
                return

    def wake(self) -> None:
        assert self._sleeper is not None
        self._asleep.clear()
        self._sleeper.set_result(None)


class Firings:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seen: list[tuple[datetime, bool]] = []
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, past_due: bool) -> None:
        self.seen.append((self.clock.now(), past_due))
        self.began.set()
        await self.may_end.wait()


class MemoryTicks:
    def __init__(self, last: datetime | None = None) -> None:
        self.last = last

    async def get(self, timer: str) -> datetime | None:
        return self.last

    async def set(self, timer: str, tick: datetime) -> None:
        self.last = tick


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def firings(clock: FakeClock) -> Firings:
    return Firings(clock)


def at(minute: int, second: int = 0) -> datetime:
    return START.replace(minute=minute, second=second)


@pytest.mark.parametrize(
    ("schedule", "tick"),
    [
        ("0 */5 * * * *", datetime(2026, 3, 1, 12, 5, tzinfo=UTC)),
        ("*/5 * * * * *", datetime(2026, 3, 1, 12, 0, 35, tzinfo=UTC)),
        ("0 0 */6 * * *", datetime(2026, 3, 1, 18, tzinfo=UTC)),
        ("0 */6 * * *", datetime(2026, 3, 1, 18, tzinfo=UTC)),
        # Both day fields must match: the first 13th that is a Friday, not the next 13th or Friday.
        ("0 0 0 13 * 5", datetime(2026, 3, 13, tzinfo=UTC)),
        ("0 0 0 14 * 5", datetime(2026, 8, 14, tzinfo=UTC)),
        ("0 0 0 1 Jan Mon-Fri", datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_schedules_mean_what_they_mean_on_azure(schedule: str, tick: datetime) -> None:
    assert next_tick(schedule, START) == tick


@pytest.mark.parametrize("schedule", ["", "x", "* * *", "61 * * * * *", "0 0 0 30 2 *"])
def test_a_schedule_that_never_comes_is_refused(schedule: str) -> None:
    with pytest.raises(ConfigError, match="is not a schedule"):
        next_tick(schedule, START)


async def test_it_fires_at_each_tick_and_not_before(clock: FakeClock, firings: Firings) -> None:
    timer = TimerLoop("t", "0 */5 * * * *", firings, clock=clock)
    timer.start()
    await clock.advance(at(4, 59))
    assert firings.seen == []
    await clock.advance(at(11))
    await timer.stop()
    assert firings.seen == [(at(5), False), (at(10), False)]


async def test_ticks_that_pass_while_a_firing_runs_are_skipped(clock: FakeClock, firings: Firings) -> None:
    firings.may_end.clear()
    timer = TimerLoop("t", "0 * * * * *", firings, clock=clock)
    timer.start()
    await clock.advance(at(1))
    await asyncio.wait_for(firings.began.wait(), 10)
    clock.time = at(7, 10)
    firings.may_end.set()
    await clock.advance(at(8))
    await timer.stop()
    assert firings.seen == [(at(1), False), (at(8), False)]


async def test_a_tick_that_the_machine_slept_through_is_past_due(clock: FakeClock, firings: Firings) -> None:
    timer = TimerLoop("t", "0 5 * * * *", firings, clock=clock)
    timer.start()
    await clock.until_asleep()
    clock.time = at(45)
    clock.wake()
    await asyncio.wait_for(firings.began.wait(), 10)
    await timer.stop()
    assert firings.seen == [(at(45), True)]


async def test_a_clock_that_is_set_back_a_little_does_not_fire_twice(clock: FakeClock, firings: Firings) -> None:
    firings.may_end.clear()
    timer = TimerLoop("t", "0 */5 * * * *", firings, clock=clock)
    timer.start()
    await clock.advance(at(5))
    await asyncio.wait_for(firings.began.wait(), 10)
    clock.time = at(4, 50)
    firings.may_end.set()
    await clock.advance(at(10))
    await timer.stop()
    assert firings.seen == [(at(5), False), (at(10), False)]


async def test_a_tick_that_was_missed_while_nothing_ran_fires_once_at_start(clock: FakeClock, firings: Firings) -> None:
    ticks = MemoryTicks(START - timedelta(hours=9))
    timer = TimerLoop("t", "0 0 * * * *", firings, clock=clock, ticks=ticks)
    timer.start()
    await clock.until_asleep()
    await timer.stop()
    assert firings.seen == [(START, True)]
    assert ticks.last == START


async def test_a_timer_that_missed_nothing_waits_for_its_tick(clock: FakeClock, firings: Firings) -> None:
    for last in (None, START - timedelta(seconds=10), START + timedelta(days=9)):
        timer = TimerLoop("t", "0 0 * * * *", firings, clock=clock, ticks=MemoryTicks(last))
        timer.start()
        await clock.until_asleep()
        await timer.stop()
        clock._asleep.clear()
    assert firings.seen == []


async def test_a_store_that_fails_stops_no_timer(clock: FakeClock, firings: Firings) -> None:
    class Broken(MemoryTicks):
        async def get(self, timer: str) -> datetime | None:
            raise StoreError("no")

        async def set(self, timer: str, tick: datetime) -> None:
            raise StoreError("no")

    timer = TimerLoop("t", "0 */5 * * * *", firings, clock=clock, ticks=Broken())
    timer.start()
    await clock.advance(at(11))
    await timer.stop()
    assert len(firings.seen) == 2


async def test_stopping_lets_a_firing_end(clock: FakeClock, firings: Firings) -> None:
    firings.may_end.clear()
    ticks = MemoryTicks()
    timer = TimerLoop("t", "0 * * * * *", firings, clock=clock, ticks=ticks)
    timer.start()
    await clock.advance(at(1))
    await asyncio.wait_for(firings.began.wait(), 10)
    stopping = asyncio.create_task(timer.stop(10))
    await asyncio.sleep(0)
    firings.may_end.set()
    await asyncio.wait_for(stopping, 5)
    assert ticks.last == at(1)


async def test_a_firing_that_outlasts_the_grace_is_cancelled_and_made_up_for(
    clock: FakeClock, firings: Firings
) -> None:
    firings.may_end.clear()
    ticks = MemoryTicks()
    timer = TimerLoop("t", "0 * * * * *", firings, clock=clock, ticks=ticks)
    timer.start()
    await clock.advance(at(1))
    await asyncio.wait_for(firings.began.wait(), 10)
    await asyncio.wait_for(timer.stop(0), 5)
    assert ticks.last == START
    firings.may_end.set()
    again = TimerLoop("t", "0 * * * * *", firings, clock=clock, ticks=ticks)
    again.start()
    clock._asleep.clear()
    await clock.until_asleep()
    await again.stop()
    assert firings.seen == [(at(1), False), (at(1), True)]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "v.db")
    await database.open()
    yield database
    await database.aclose()


async def test_ticks_are_remembered_in_the_database(database: Database) -> None:
    ticks = SqliteTicks(database)
    assert await ticks.get("a") is None
    await ticks.set("a", START)
    await ticks.set("a", START + timedelta(microseconds=1))
    await ticks.set("b", START)
    assert await SqliteTicks(database).get("a") == START + timedelta(microseconds=1)
