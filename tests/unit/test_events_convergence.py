"""Whatever becomes of notices and jobs: after quiet both targets are what the source says, without any schedule.

Hypothesis edits the source, delivers notices late, twice, out of order or not at all (then a gap is told, as the relay
does), runs jobs side by side, makes calls fail before and after their effect, and kills jobs in the middle. Values count
upwards, so that an older one after a newer is seen wherever it happens.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shared.engine import Engine
from shared.errors import Unavailable
from shared.model import DeletePolicy, Granularity, ObjectStatus, Target
from shared.notices import AuditNotice, GapNotice, Notice
from shared.vault import Capabilities, FingerprintCost
from tests.examples import examples
from tests.memory_vault import MemoryVault
from tests.world import one_way, world

KINDS = [
    Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True),
    Capabilities(FingerprintCost.VALUE),
    Capabilities(FingerprintCost.LISTED, tags=True),
    Capabilities(FingerprintCost.LISTED, compare_and_set=True),
]
NAMES = st.sampled_from(["a", "b", "c/d"])
OPERATIONS = st.sampled_from(["get", "set", "describe", "delete", "list"])


class Killed(BaseException):
    pass


class Events(RuleBasedStateMachine):
    by_field = False

    @initialize(reads=st.sampled_from(KINDS), writes=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
    def begin(self, reads: Capabilities, writes: Capabilities, seed: int) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.source = MemoryVault("source", reads)
        self.targets = [MemoryVault("one", writes), MemoryVault("two", writes)]
        self.random = random.Random(seed)
        self.count = 0
        self.wire: list[Notice] = []
        self.lost = False
        self.stack = AsyncExitStack()
        name, granularity = ("{path}-{field}", Granularity.FIELD) if self.by_field else ("{path}", Granularity.SECRET)
        sync = one_way(
            *(Target(vault.id, vault.id, "", name, granularity) for vault in self.targets),
            delete=DeletePolicy(propagate=True, max_percent=100),
        )
        made = world(Path(self.folder.name), [self.source, *self.targets], sync)
        self.w = self.runner.run(self.stack.enter_async_context(made))
        self.engine: Engine = self.w.engine

    def _tell(self, name: str, version: int | None = None) -> None:
        self.wire.append(AuditNotice("source/", name, version=version))

    # what people do ----------------------------------------------------------------------------------------------

    @rule(name=NAMES, fields=st.sets(st.sampled_from("xy"), min_size=1))
    def write(self, name: str, fields: set[str]) -> None:
        self.count += 1
        before = self.source.kept.get(name)
        self.source.put(name, dict.fromkeys(sorted(fields), f"{self.count:04d}"))
        versioned = self.source.capabilities.compare_and_set and before is not None
        self._tell(name, self.source.kept[name].version if versioned else None)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.source.values():
            self.source.remove(name)
            self._tell(name)

    @rule(name=NAMES)
    def undelete(self, name: str) -> None:
        kept = self.source.kept.get(name)
        if kept is not None and not kept.live:
            kept.live = True
            self._tell(name)

    @rule(name=NAMES)
    def wipe(self, name: str) -> None:
        if self.source.kept.pop(name, None) is not None:
            self._tell(name)

    # what machines do ----------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 9), number=st.integers(1, 4), again=st.booleans())
    def notices_arrive(self, which: int, number: int, again: bool) -> None:
        if self.wire:
            at = which % len(self.wire)
            some = self.wire[at : at + number]
            if not again:
                del self.wire[at : at + number]
            self.runner.run(self.engine.events.take(some))  # type: ignore[arg-type]

    @rule(which=st.integers(0, 9))
    def a_notice_is_lost(self, which: int) -> None:
        if self.wire:
            del self.wire[which % len(self.wire)]
            self.lost = True

    @rule()
    def the_gap_is_told(self) -> None:
        if self.lost:
            self.lost = False
            self.runner.run(self.engine.events.take([GapNotice("cut", "source")]))  # type: ignore[arg-type]

    @rule()
    def the_timer_fires(self) -> None:
        self.runner.run(self.engine.runs.start("s", trigger="timer"))  # type: ignore[arg-type]

    @rule()
    def the_process_starts_anew(self) -> None:
        self.engine = self.w.engine

    @rule(operation=OPERATIONS, where=st.integers(0, 2), after=st.booleans(), times=st.integers(1, 4))
    def a_call_fails(self, operation: str, where: int, after: bool, times: int) -> None:
        vault = [self.source, *self.targets][where]
        vault.faults.add(operation, Unavailable("x", vault=vault.id, ambiguous=after), after=after, times=times)

    @rule(which=st.integers(0, 9), number=st.integers(1, 3), kill=st.none() | st.integers(1, 8), again=st.booleans())
    def jobs_are_delivered(self, which: int, number: int, kill: int | None, again: bool) -> None:
        messages = self.w.queues.messages
        if messages:
            at = which % len(messages)
            self.runner.run(self._side_by_side(messages[at : at + number], kill, again))

    async def _side_by_side(self, some: list[tuple[str, str, float]], kill: int | None, again: bool) -> None:
        calls = 0

        async def hook(vault: str, operation: str, name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == kill:
                raise Killed
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)

        for vault in (self.source, *self.targets):
            vault.hook = hook
        tasks = [asyncio.create_task(self.engine.handle(body)) for _, body, _ in some]
        try:
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for vault in (self.source, *self.targets):
                vault.hook = None
        for message, result in zip(some, ended, strict=True):
            if isinstance(result, BaseException):
                # It stays in the queue, as a message does whose worker died.
                if not isinstance(result, Killed):
                    raise result
            elif not again and message in self.w.queues.messages:
                self.w.queues.messages.remove(message)

    @rule(seconds=st.sampled_from([1, 100, 400]))
    def time_passes(self, seconds: int) -> None:
        self.w.clock.advance(seconds=seconds)

    # what must be true once it is quiet ---------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "w"):
            return
        try:
            self.runner.run(self._after_quiet())
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    async def _after_quiet(self) -> None:
        for vault in (self.source, *self.targets):
            vault.faults.queued.clear()
        self.w.clock.advance(seconds=1000)
        await self.w.engine.events.take([*self.wire, *([GapNotice("cut", "source")] if self.lost else [])])
        await self.w.drain()
        while self.w.queues.messages:
            await self.w.engine.handle(self.w.queues.messages.pop()[1])
            await self.w.drain()
        wanted = self._wanted()
        states = [state async for state in self.w.store.list_objects("s")]
        for target in self.targets:
            held = target.values()
            assert {name: held.get(name) for name in wanted} == wanted, target.id
            # What a job wrote that died is not deleted unless it is known for ours: a person is told instead.
            told = [s for s in states if s.status is ObjectStatus.CONFLICT and s.target == target.id]
            assert set(held) - set(wanted) <= {part.name for state in told for part in state.parts}
            newest: dict[str, str] = defaultdict(str)
            for name, fields in target.writes:
                value = max(fields.values())
                assert value >= newest[name], f"an older value after a newer one: {target.writes}"
                newest[name] = value
        control = await self.w.store.get_control("s")
        assert (control.active_run, control.again) == (None, None)
        assert all(state.claim is None for state in states)
        writes = [len(target.writes) for target in self.targets]
        again = await self.w.sync()
        assert (again.written, again.deleted, again.failed) == (0, 0, 0)
        assert [len(target.writes) for target in self.targets] == writes
        assert not (await self.w.store.verify_history()).broken

    def _wanted(self) -> dict[str, object]:
        if not self.by_field:
            return self.source.values()
        return {
            f"{name}-{field}": {"value": value}
            for name, fields in self.source.values().items()
            for field, value in fields.items()
        }


class EventsByField(Events):
    by_field = True


_settings = settings(
    max_examples=examples(100),
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestEvents = Events.TestCase
TestEvents.settings = _settings
TestEventsByField = EventsByField.TestCase
TestEventsByField.settings = _settings
