"""Whatever happens, in whatever order: after quiet the target is what the source says, and nothing foreign is gone.

Hypothesis edits both sides, delivers jobs late, twice and out of order, makes calls fail before and after their effect,
and kills jobs in the middle. The model is a dictionary and who wrote last; it knows nothing of plans or states.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shared.errors import AccessDenied, Unavailable
from shared.model import DeletePolicy, Granularity, ObjectStatus, Target
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
VALUES = st.sampled_from(["1", "2", "3"])
FIELDS = st.dictionaries(st.sampled_from(["x", "y"]), VALUES, min_size=1)
OPERATIONS = st.sampled_from(["get", "set", "describe", "delete", "list"])


class Killed(BaseException):
    pass


class Watched(MemoryVault):
    """A target that knows who wrote each name last, and complains when somebody else's secret is deleted."""

    def __init__(self, vault_id: str, capabilities: Capabilities) -> None:
        super().__init__(vault_id, capabilities)
        self.by_hand: set[str] = set()
        self.wrongly_deleted: list[str] = []
        self.source: MemoryVault | None = None

    def _looks_carried(self, name: str) -> bool:
        """Where only values tell, what holds the source's value may be anybody's: nothing is lost with it."""
        by_value = self.capabilities.fingerprint is FingerprintCost.VALUE
        return by_value and self.source is not None and self.values()[name] in self.source.values().values()

    def put(self, name: str, fields: object) -> None:
        super().put(name, fields)  # type: ignore[arg-type]
        self.by_hand.add(name)

    async def set_secret(self, name, secret, **options):  # type: ignore[no-untyped-def]
        before = len(self.writes)
        try:
            return await super().set_secret(name, secret, **options)
        finally:
            if len(self.writes) > before:
                self.by_hand.discard(name)

    async def delete_secret(self, name, **options):  # type: ignore[no-untyped-def]
        if name in self.by_hand and name in self.values() and not self._looks_carried(name):
            self.wrongly_deleted.append(name)
        await super().delete_secret(name, **options)


class Convergence(RuleBasedStateMachine):
    by_field = False
    watched = Watched

    @initialize(reads=st.sampled_from(KINDS), writes=st.sampled_from(KINDS))
    def begin(self, reads: Capabilities, writes: Capabilities) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.source, self.target = MemoryVault("source", reads), self.watched("target", writes)
        self.target.source = self.source
        self.prefix = ""
        self.kills = 0
        self.stack = AsyncExitStack()
        sync = one_way(self._target(), delete=DeletePolicy(propagate=True, max_percent=100))
        made = world(Path(self.folder.name), [self.source, self.target], sync)
        self.w = self.runner.run(self.stack.enter_async_context(made))

    def _target(self) -> Target:
        if self.by_field:
            return Target("target", "target", self.prefix, "{path}-{field}", Granularity.FIELD)
        return Target("target", "target", self.prefix)

    # what people do ----------------------------------------------------------------------------------------------

    @rule(name=NAMES, fields=FIELDS)
    def edit_the_source(self, name: str, fields: dict[str, str]) -> None:
        self.source.put(name, fields)

    @rule(name=NAMES)
    def delete_in_the_source(self, name: str) -> None:
        if name in self.source.values():
            self.source.remove(name)

    @rule(name=NAMES, fields=FIELDS)
    def edit_the_target(self, name: str, fields: dict[str, str]) -> None:
        for key in fields if self.by_field else [""]:
            self.target.put(f"{self.prefix}{name}-{key}" if self.by_field else self.prefix + name, fields)

    @rule(name=NAMES)
    def delete_in_the_target(self, name: str) -> None:
        if self.prefix + name in self.target.values():
            self.target.remove(self.prefix + name)

    @rule(prefix=st.sampled_from(["", "p/"]))
    def change_the_mapping(self, prefix: str) -> None:
        self.prefix = prefix
        self.w.syncs["s"] = replace(self.w.syncs["s"], targets=(self._target(),))

    @rule()
    def change_the_digest_key(self) -> None:
        self.w.key = f"{self.w.key}x"

    # what machines do ----------------------------------------------------------------------------------------------

    @rule()
    def the_timer_fires(self) -> None:
        self.runner.run(self.w.engine.runs.start("s", trigger="timer"))

    @rule(
        operation=OPERATIONS,
        where=st.booleans(),
        after=st.booleans(),
        times=st.integers(1, 4),
        permanent=st.booleans(),
    )
    def a_call_fails(self, operation: str, where: bool, after: bool, times: int, permanent: bool) -> None:
        vault = self.source if where else self.target
        error = AccessDenied("no", vault=vault.id) if permanent else Unavailable("x", vault=vault.id, ambiguous=after)
        vault.faults.add(operation, error, after=after and not permanent, times=times)

    @rule(which=st.integers(0, 9), kill=st.none() | st.integers(1, 6), again=st.booleans())
    def a_job_is_delivered(self, which: int, kill: int | None, again: bool) -> None:
        messages = self.w.queues.messages
        if not messages:
            return
        message = messages[which % len(messages)]
        calls = 0

        async def hook(vault: str, operation: str, name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == kill:
                raise Killed

        self.source.hook = self.target.hook = hook
        try:
            self.runner.run(self._handle(message[1]))
        except Killed:
            # It stays in the queue, as a message does whose worker died.
            self.kills += 1
        else:
            if not again:
                messages.remove(message)
        finally:
            self.source.hook = self.target.hook = None

    async def _handle(self, body: str) -> None:
        await self.w.engine.handle(body)

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
        self.source.faults.queued.clear()
        self.target.faults.queued.clear()
        self.w.clock.advance(seconds=1000)
        await self.w.drain()
        await self.w.sync(allow_deletes=True)
        run = await self.w.sync(allow_deletes=True)
        assert not run.failed, run
        wanted = self._wanted()
        held = self.target.values()
        assert {name: held.get(name) for name in wanted} == wanted
        assert not self.target.wrongly_deleted
        states = [state async for state in self.w.store.list_objects("s")]
        assert all(state.claim is None for state in states)
        told = {part.name for s in states if s.status is ObjectStatus.CONFLICT for part in s.parts}
        strays = set(held) - set(wanted) - self.target.by_hand - told
        assert not strays, f"ours, and left behind: {strays}"
        writes = len(self.target.writes)
        again = await self.w.sync()
        assert (again.written, again.deleted) == (0, 0)
        assert len(self.target.writes) == writes
        assert not (await self.w.store.verify_history()).broken

    def _wanted(self) -> dict[str, object]:
        if not self.by_field:
            return {self.prefix + name: fields for name, fields in self.source.values().items()}
        return {
            f"{self.prefix}{name}-{field}": {"value": value}
            for name, fields in self.source.values().items()
            for field, value in fields.items()
        }


class ConvergenceByField(Convergence):
    by_field = True


_settings = settings(
    max_examples=examples(100),
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestConvergence = Convergence.TestCase
TestConvergence.settings = _settings
TestConvergenceByField = ConvergenceByField.TestCase
TestConvergenceByField.settings = _settings
