"""One schedule and its handler: what the Functions host does around a timer trigger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from shared.errors import ConfigError, StoreError
from shared.model import from_iso, iso
from shared.sqlite import Database

LATE = timedelta(minutes=1)
"""How much after its tick a firing is called past due: the machine slept, or its clock was set."""
LOOK = 60.0
"""Seconds until the wall clock is looked at again: it may have been set."""

log = logging.getLogger("vaultferry.host")


class Clock(Protocol):
    def now(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Ticks(Protocol):
    """Remembers each timer's last tick, so that one that was missed while nothing ran is made up for at start."""

    async def get(self, timer: str) -> datetime | None: ...

    async def set(self, timer: str, tick: datetime) -> None: ...


class SqliteTicks:
    """The last ticks, in the database that store and queues share. It must be open."""

    SCHEMA = ("CREATE TABLE host_timers (timer TEXT PRIMARY KEY, last_tick TEXT NOT NULL);",)

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, timer: str) -> datetime | None:
        await self._database.migrate("timers", self.SCHEMA)
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT last_tick FROM host_timers WHERE timer = ?", (timer,)
            ).fetchone()
        )
        return from_iso(row[0]) if row else None

    async def set(self, timer: str, tick: datetime) -> None:
        await self._database.write(
            lambda connection: (
                connection.execute(
                    "INSERT INTO host_timers VALUES (?, ?) ON CONFLICT DO UPDATE SET last_tick = excluded.last_tick",
                    (timer, iso(tick)),
                ).rowcount
            )
        )


def next_tick(schedule: str, after: datetime) -> datetime:
    """The first tick of an NCRONTAB expression (UTC) later than `after`. Raises ConfigError.

    Six fields, seconds first, or five; a day must match both day fields, unlike in cron
    (https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer#ncrontab-expressions).
    """
    from croniter import croniter

    try:
        tick = croniter(schedule, after.astimezone(UTC), second_at_beginning=True, day_or=False).get_next(datetime)
    except (ValueError, KeyError):
        raise ConfigError(f'"{schedule}" is not a schedule with six fields, or never comes') from None
    return tick.astimezone(UTC)


class TimerLoop:
    """Calls `fire(past_due)` at each tick of `schedule`, never twice at once.

    Ticks that pass while a firing runs are skipped. With `ticks`, one that passed while nothing ran fires at start.
    `fire` deals with its own failures: a timer is not retried.
    """

    def __init__(
        self,
        name: str,
        schedule: str,
        fire: Callable[[bool], Awaitable[None]],
        *,
        clock: Clock | None = None,
        ticks: Ticks | None = None,
    ) -> None:
        self._name = name
        self._schedule = schedule
        self._fire = fire
        self._clock = clock or SystemClock()
        self._ticks = ticks
        self._firing: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin. The task ends only by `stop`, or by a defect of its own."""
        self._task = asyncio.create_task(self._run(), name=f"timer {self._name}")
        return self._task

    async def stop(self, grace: float = 10.0) -> None:
        """Fire no more; a firing that runs may end within `grace` seconds, and is cancelled then."""
        if self._task is None:
            return
        # The firing is a task of its own, and goes on.
        self._task.cancel()
        await asyncio.wait({self._task})
        if self._firing is not None:
            try:
                await asyncio.wait({self._firing}, timeout=grace)
            finally:
                self._firing.cancel()
                await asyncio.wait({self._firing})
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        due = await self._last()
        past_due = next_tick(self._schedule, due) <= self._clock.now()
        while True:
            if not past_due:
                now = self._clock.now()
                # A clock that was set back a little does not bring the same tick again.
                due = next_tick(self._schedule, due if now < due < now + LATE else now)
                while (left := (due - self._clock.now()).total_seconds()) > 0:
                    await self._clock.sleep(min(left, LOOK))
                past_due = self._clock.now() - due > LATE
            self._firing = asyncio.create_task(self._call(past_due), name=f"firing {self._name}")
            await asyncio.wait({self._firing})
            self._firing.result()
            past_due = False

    async def _call(self, past_due: bool) -> None:
        began = self._clock.now()
        await self._fire(past_due)
        await self._remember(began)

    async def _last(self) -> datetime:
        """The last tick that was seen; now, for a timer that is new."""
        now = self._clock.now()
        if self._ticks is None:
            return now
        try:
            if (last := await self._ticks.get(self._name)) is not None:
                return last
        except StoreError as error:
            log.warning("the last tick of %s can not be read: %s", self._name, error)
            return now
        await self._remember(now)
        return now

    async def _remember(self, tick: datetime) -> None:
        if self._ticks is None:
            return
        try:
            await self._ticks.set(self._name, tick)
        except StoreError as error:
            log.warning("the tick of %s is not remembered: %s", self._name, error)
