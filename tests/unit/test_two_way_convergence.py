"""Whatever happens on all sides, in whatever order: after quiet they agree or a conflict is listed, and nothing is lost.

Hypothesis edits, deletes, renames, restores and conflicts on every side, delivers jobs late, twice, out of order and side by
side, tells what was changed late, twice or never, makes calls fail before and after their effect, takes vaults down, kills
jobs in the middle, and lets each vault's clock be wrong by up to a minute. What must come of it, `tests/two_way_model.py`
says.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from shared.engine import Engine
from shared.errors import AccessDenied, Refused, Unavailable
from shared.mapping import Digester
from shared.model import Action, ConflictPolicy, DeletePolicy, ObjectStatus, Source, Sync, Target
from shared.notices import AuditNotice, Notice
from shared.vault import Capabilities, FingerprintCost
from tests.examples import examples
from tests.two_way_model import SECOND, Ledger, Side
from tests.world import Clock, world

FINE = timedelta(microseconds=1)


@dataclass(frozen=True)
class Kind:
    """What a vault can do, and what of a secret stays when it is deleted."""

    capabilities: Capabilities
    tombstones: bool = False
    tells_times: bool = True


KINDS = [
    Kind(Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True, time_resolution=FINE), tombstones=True),
    Kind(Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True, time_resolution=FINE)),
    Kind(Capabilities(FingerprintCost.PER_SECRET, time_resolution=FINE)),
    Kind(Capabilities(FingerprintCost.VALUE), tells_times=False),
    Kind(Capabilities(FingerprintCost.VALUE, compare_and_set=True, time_resolution=FINE)),
    Kind(Capabilities(FingerprintCost.LISTED, time_resolution=FINE)),
    Kind(Capabilities(FingerprintCost.LISTED), tombstones=True, tells_times=False),
    Kind(Capabilities(FingerprintCost.LISTED, tags=True, time_resolution=SECOND)),
    Kind(Capabilities(FingerprintCost.LISTED, compare_and_set=True, time_resolution=FINE), tombstones=True),
]
PATHS = st.sampled_from(["a", "b", "c/d"])
SIDES = st.integers(0, 2)
OPERATIONS = st.sampled_from(["get", "set", "describe", "delete", "list"])


Trouble: TypeAlias = "tuple[str, int, str, int] | None"
"""At this operation, the so-manieth of its kind: the process is killed, or somebody writes or deletes that very secret,
there or so many sides further on."""
MOMENTS = st.sampled_from(["set", "get done", "set done", "describe done", "delete", "delete done"])
TROUBLE = st.tuples(MOMENTS, st.integers(1, 2), st.sampled_from(["write", "kill", "delete"]), SIDES)


class Killed(BaseException):
    pass


class TwoWay(RuleBasedStateMachine):
    spokes = ("one",)

    @initialize(
        kinds=st.tuples(*[st.sampled_from(KINDS)] * 3),
        skews=st.tuples(*[st.integers(-60, 60)] * 3),
        policy=st.sampled_from(ConflictPolicy),
        propagate=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def begin(
        self,
        kinds: tuple[Kind, Kind, Kind],
        skews: tuple[int, int, int],
        policy: ConflictPolicy,
        propagate: bool,
        seed: int,
    ) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.random = random.Random(seed)
        self.policy, self.propagate = policy, propagate
        self.clock = Clock()
        names = ("source", *self.spokes)
        self.ledger = Ledger(lambda: self.clock.now, names)
        self.sides = [
            Side(
                name,
                kind.capabilities,
                self.ledger,
                prefix=prefix,
                skew=skew,
                tombstones=kind.tombstones,
                tells_times=kind.tells_times,
            )
            for name, kind, skew, prefix in zip(names, kinds, skews, ("apps/", "", "copy/"), strict=False)
        ]
        self.timed = all(kind.tells_times for kind, _ in zip(kinds, names, strict=False))
        self.wire: list[Notice] = []
        self.values = 0
        self.keys = ["a-digest-key-of-at-least-thirty-two-characters"]
        sync = Sync(
            "s",
            Source("source", "apps/"),
            tuple(Target(side.id, side.id, side.prefix) for side in self.sides[1:]),
            type="bidirectional",
            conflict=policy,
            delete=DeletePolicy(propagate=propagate, max_percent=100),
        )
        self.stack = AsyncExitStack()
        made = world(Path(self.folder.name), self.sides, sync, clock=self.clock)
        self.w = self.runner.run(self.stack.enter_async_context(made))
        self.engine: Engine = self.w.engine

    def _side(self, at: int) -> Side:
        return self.sides[at % len(self.sides)]

    def _new_value(self) -> str:
        self.values += 1
        return f"{self.values:04d}"

    def _tell(self, side: Side, path: str) -> None:
        kept = side.kept.get(side.prefix + path)
        version = kept.version if kept and kept.version > 1 and side.capabilities.compare_and_set else None
        self.wire.append(AuditNotice(f"{side.id}/", side.prefix + path, version=version))

    # what people do ----------------------------------------------------------------------------------------------

    @rule(at=SIDES, path=PATHS)
    def somebody_writes(self, at: int, path: str) -> None:
        self._side(at).write(path, self._new_value())
        self._tell(self._side(at), path)

    @rule(at=SIDES, path=PATHS)
    def somebody_deletes(self, at: int, path: str) -> None:
        if self._side(at).delete(path):
            self._tell(self._side(at), path)

    @rule(at=SIDES, path=PATHS)
    def somebody_restores(self, at: int, path: str) -> None:
        if self._side(at).bring_back(path):
            self._tell(self._side(at), path)

    @rule(at=SIDES, path=PATHS, to=PATHS)
    def somebody_renames(self, at: int, path: str, to: str) -> None:
        # Under its new name it is another value, so that each value has one path.
        if path != to and self._side(at).delete(path):
            self._tell(self._side(at), path)
            self.somebody_writes(at, to)

    @rule(path=PATHS)
    def all_sides_are_given_the_same_value(self, path: str) -> None:
        value = self._new_value()
        for side in self.sides:
            side.write(path, value)
            self._tell(side, path)

    @rule(path=PATHS)
    def all_sides_are_given_different_values(self, path: str) -> None:
        for at in range(len(self.sides)):
            self.somebody_writes(at, path)

    @rule(which=st.integers(0, 5), take=SIDES)
    def somebody_settles_a_conflict(self, which: int, take: int) -> None:
        self.runner.run(self._settle(which, self._side(take).id))

    async def _settle(self, which: int, take: str) -> None:
        listed = sorted(await self._listed())
        if not listed:
            return
        path = listed[which % len(listed)]
        self.ledger.decided.add(path)
        with suppress(Refused):
            if take == "source":
                await self.w.engine.runs.resolve("s", path, "source")
            else:
                await self.w.engine.runs.resolve("s", path, "target", take)

    @rule()
    def the_digest_key_is_changed(self) -> None:
        # Where only values tell, that is a first contact: a deletion from before can not be told from a new secret.
        if any(side.capabilities.fingerprint is FingerprintCost.VALUE for side in self.sides):
            self.ledger.disturbed = True
        self.keys.append(f"{self.w.key}x")
        self.w.key = self.keys[-1]
        self.engine = self.w.engine

    # what machines do ----------------------------------------------------------------------------------------------

    @rule()
    def the_timer_fires(self) -> None:
        self.runner.run(self.engine.runs.start("s", trigger="timer"))

    @rule()
    def a_run_goes_through(self) -> None:
        for side in self.sides:
            side.job += 1
        self.runner.run(self.w.sync(allow_deletes=True, copies=self.random.choice([1, 2]), shuffle=self.random))

    @rule(which=st.integers(0, 9), number=st.integers(1, 4), again=st.booleans())
    def it_is_told(self, which: int, number: int, again: bool) -> None:
        if self.wire:
            at = which % len(self.wire)
            some = self.wire[at : at + number]
            if not again:
                del self.wire[at : at + number]
            self.runner.run(self.engine.events.take(some))

    @rule()
    def the_process_starts_anew(self) -> None:
        self.engine = self.w.engine

    @rule(operation=OPERATIONS, at=SIDES, after=st.booleans(), times=st.integers(1, 4), permanent=st.booleans())
    def a_call_fails(self, operation: str, at: int, after: bool, times: int, permanent: bool) -> None:
        vault = self._side(at)
        self.ledger.disturbed = True
        error = AccessDenied("no", vault=vault.id) if permanent else Unavailable("x", vault=vault.id, ambiguous=after)
        vault.faults.add(operation, error, after=after and not permanent, times=times)

    @rule(at=SIDES, permanent=st.booleans())
    def a_vault_goes_down(self, at: int, permanent: bool) -> None:
        vault = self._side(at)
        self.ledger.disturbed = True
        vault.faults.always = AccessDenied("no", vault=vault.id) if permanent else Unavailable("down", vault=vault.id)

    @rule()
    def all_vaults_are_up(self) -> None:
        for side in self.sides:
            side.faults.always = None

    @rule(which=st.integers(0, 9), number=st.integers(1, 3), trouble=st.none() | TROUBLE, again=st.booleans())
    def jobs_are_delivered(self, which: int, number: int, trouble: Trouble, again: bool) -> None:
        messages = self.w.queues.messages
        if messages:
            at = which % len(messages)
            self.runner.run(self._side_by_side(messages[at : at + number], trouble, again))

    async def _side_by_side(self, some: list[tuple[str, str, float]], trouble: Trouble, again: bool) -> None:
        self._begin(trouble)
        tasks = [asyncio.create_task(self.engine.handle(body)) for _, body, _ in some]
        try:
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._end()
        for message, result in zip(some, ended, strict=True):
            if isinstance(result, BaseException):
                # It stays in the queue, as a message does whose worker died.
                if not isinstance(result, Killed):
                    raise result
            elif not again and message in self.w.queues.messages:
                self.w.queues.messages.remove(message)

    @rule(trouble=TROUBLE, path=PATHS, changed=st.sets(SIDES, min_size=1), delete=st.booleans())
    def a_run_is_in_trouble(self, trouble: Trouble, path: str, changed: set[int], delete: bool) -> None:
        """Something changes, and a run carries it: one job after the other, until the process dies, if it does. Its
        message stays in the queue."""
        for at in sorted(changed):
            (self.somebody_deletes if delete and at == min(changed) else self.somebody_writes)(at, path)
        self.runner.run(self.engine.runs.start("s", trigger="timer", allow_deletes=True))
        self.runner.run(self._one_by_one(trouble))

    @rule(path=PATHS, at=SIDES, moment=st.sampled_from(["set", "set done"]), kill=st.booleans())
    def a_secret_is_written_while_it_is_being_written(self, path: str, at: int, moment: str, kill: bool) -> None:
        self.a_run_is_in_trouble((moment, 1, "kill" if kill else "write", 0), path, {at}, False)

    async def _one_by_one(self, trouble: Trouble) -> None:
        messages = self.w.queues.messages
        self._begin(trouble)
        try:
            for _ in range(20):
                waiting = [message for message in messages if '"job":"probe"' not in message[1]]
                if not waiting:
                    return
                await self.engine.handle(waiting[0][1])
                messages.remove(waiting[0])
                for side in self.sides:
                    side.job += 1
        except Killed:
            self.engine = self.w.engine
        finally:
            self._end()

    def _begin(self, trouble: Trouble) -> None:
        calls: Counter[str] = Counter()

        async def hook(vault: str, operation: str, name: str) -> None:
            calls[operation] += 1
            if trouble is not None and (operation, calls[operation]) == trouble[:2]:
                _, _, what, where = trouble
                self.ledger.disturbed = True
                at = [side.id for side in self.sides].index(vault)
                path = name.removeprefix(self.sides[at].prefix)
                if what == "kill":
                    raise Killed
                if what == "write":
                    self.somebody_writes(at + where, path)
                else:
                    self.somebody_deletes(at + where, path)
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)

        for side in self.sides:
            side.hook = hook
            side.job += 1

    def _end(self) -> None:
        for side in self.sides:
            side.hook = None

    @rule(seconds=st.sampled_from([1, 30, 100, 400]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

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
        for side in self.sides:
            side.faults.queued.clear()
            side.faults.always = None
            side.job += 1
        self.clock.advance(seconds=1000)
        await self.w.engine.events.take(self.wire)
        await self.w.drain()
        while self.w.queues.messages:
            await self.w.engine.handle(self.w.queues.messages.pop()[1])
            await self.w.drain()
        await self.w.sync(allow_deletes=True)
        run = await self.w.sync(allow_deletes=True)
        assert not run.failed, run
        listed = await self._listed()
        complaints = self.ledger.complaints(
            {side.id: side.paths() for side in self.sides},
            listed=listed,
            recorded=await self._recorded(),
            propagate=self.propagate,
            by_time=self.policy is ConflictPolicy.NEWEST and self.timed,
        )
        assert not complaints, "\n".join([*complaints, *map(str, self.ledger.losses)])
        if len(self.sides) == 2 and self.policy in (ConflictPolicy.SOURCE, ConflictPolicy.TARGET):
            held = [set(side.paths()) for side in self.sides]
            assert not listed & held[0] & held[1], "the policy settles these"
        states = [state async for state in self.w.store.list_objects("s")]
        assert all(state.claim is None for state in states)
        control = await self.w.store.get_control("s")
        assert (control.active_run, control.again) == (None, None)
        await self._nothing_more_happens(listed)
        assert not (await self.w.store.verify_history()).broken

    async def _nothing_more_happens(self, listed: set[str]) -> None:
        before = [(len(side.writes), side.calls["delete"], side.paths()) for side in self.sides]
        rows = len(await self._history())
        run = await self.w.sync(allow_deletes=True)
        assert (run.written, run.deleted, run.failed) == (0, 0, 0)
        assert [(len(side.writes), side.calls["delete"], side.paths()) for side in self.sides] == before
        assert len(await self._history()) == rows
        assert await self._listed() == listed

    async def _listed(self) -> set[str]:
        rows = self.w.store.list_objects("s", status=ObjectStatus.CONFLICT)
        return {state.path async for state in rows}

    async def _history(self) -> list[object]:
        rows: list[object] = []
        cursor = None
        while True:
            page = await self.w.store.page_history("s", limit=1000, cursor=cursor)
            rows += page.items
            cursor = page.cursor
            if cursor is None:
                return rows

    async def _recorded(self) -> set[tuple[str, str]]:
        """Path and value of all that a row of the history says has lost, or may lose."""
        texts = {f"{number:04d}" for number in range(1, self.values + 1)}
        named = {Digester(key).digest({"value": text}): text for key in self.keys for text in texts}
        found: set[tuple[str, str]] = set()
        for row in await self._history():
            if row.action in (Action.CONFLICT, Action.RESOLVE) and row.detail:  # type: ignore[attr-defined]
                detail = json.loads(row.detail)  # type: ignore[attr-defined]
                digests = {sight["side"]: sight.get("digest") for sight in detail["sides"]}
                won = digests.get(detail["taken"])
                for digest in digests.values():
                    if digest and digest != won and digest in named:
                        found.add((row.path, named[digest]))  # type: ignore[attr-defined]
        return found


class Hub(TwoWay):
    spokes = ("one", "two")


_settings = settings(
    max_examples=examples(30),
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestTwoWay = TwoWay.TestCase
TestTwoWay.settings = _settings
TestHub = Hub.TestCase
TestHub.settings = _settings
