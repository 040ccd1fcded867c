"""A person's decision about a conflict, and the engine: told at any moment, it is carried out, by whatever comes next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shared.engine.runs import RECOVERY
from shared.errors import Refused, Unavailable
from shared.model import ConflictPolicy, DeletePolicy, ObjectStatus, RetryPolicy, RunStatus, Source, Sync, Target
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
PATHS = ("a", "db")
SYNC = Sync(
    "s",
    Source("hub"),
    (Target("east", "east"), Target("west", "west")),
    type="bidirectional",
    conflict=ConflictPolicy.MANUAL,
    delete=DeletePolicy(propagate=True),
    retry_policy=RetryPolicy(max_retries=1),
)


@asynccontextmanager
async def contested(
    folder: Path, capabilities: Capabilities = KV2, spokes: tuple[str, ...] = ("east", "west")
) -> AsyncIterator[World]:
    """Vaults that hold other values each, and a run that has found that out."""
    vaults = [MemoryVault(name, capabilities) for name in ("hub", *spokes)]
    sync = replace(SYNC, targets=tuple(Target(spoke, spoke) for spoke in spokes))
    async with world(folder, vaults, sync) as w:
        for number, vault in enumerate(vaults, 1):
            for path in PATHS:
                vault.put(path, f"{path}{number}")
        assert (await w.sync()).conflicts == len(PATHS)
        yield w


def vault(w: World, name: str) -> MemoryVault:
    found = w.vaults[name]
    assert isinstance(found, MemoryVault)
    return found


def held(w: World, path: str = "db") -> list[str | None]:
    values = (vault(w, name).values().get(path) for name in w.vaults)
    return [value and value["value"] for value in values]


async def deliver(w: World, wanted: str = "") -> None:
    """One message, of those that are about what is wanted."""
    message = next(m for m in w.queues.messages if wanted in m[1])
    w.queues.messages.remove(message)
    await w.engine.handle(message[1])


async def in_conflict(w: World) -> set[str]:
    return {row.path async for row in w.store.list_objects("s", status=ObjectStatus.CONFLICT)}


@pytest.mark.parametrize("capabilities", [KV2, KV1], ids=["kv2", "kv1"])
@pytest.mark.parametrize(
    ("take", "target", "number"), [("source", None, 1), ("target", "east", 2), ("target", "west", 3)]
)
async def test_all_sides_get_what_was_taken_and_no_other_secret_is_touched(
    tmp_path: Path, capabilities: Capabilities, take: str, target: str | None, number: int
) -> None:
    async with contested(tmp_path, capabilities) as w:
        run = await w.engine.runs.resolve("s", "db", take, target)
        await w.drain()
        assert held(w) == [f"db{number}"] * 3
        assert held(w, "a") == ["a1", "a2", "a3"]
        assert await in_conflict(w) == {"a"}
        ended = await w.engine.runs.view(run.run_id)
        assert (ended.status, ended.conflicts) == (RunStatus.SUCCEEDED, 0)
        assert (await w.store.verify_history()).broken == ()
        assert (await w.sync()).written == 0


@pytest.mark.parametrize("messages", range(4))
async def test_told_between_the_jobs_of_a_run_it_is_carried_out(tmp_path: Path, messages: int) -> None:
    async with contested(tmp_path) as w:
        await w.engine.runs.start("s", trigger="timer")
        for _ in range(messages):
            if w.queues.messages:
                await deliver(w)
        await w.engine.runs.resolve("s", "db", "target", "west")
        await w.drain(copies=2)
        assert held(w) == ["db3"] * 3
        assert await in_conflict(w) == {"a"}


@pytest.mark.parametrize(("capabilities", "spokes"), [(KV2, ("east",)), (KV1, ("west", "east"))], ids=["one", "two"])
async def test_told_at_any_call_of_a_run_it_is_carried_out(
    tmp_path: Path, capabilities: Capabilities, spokes: tuple[str, ...]
) -> None:
    """Where a job has the path in its hands, the person is told to try again, and does."""
    number, refused = 0, set[str]()
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        async with contested(folder, capabilities, spokes) as w:
            calls, decided = 0, False

            async def tell(vault_id: str, operation: str, name: str, w: World = w, number: int = number) -> None:
                nonlocal calls, decided
                calls += 1
                if calls != number:
                    return
                try:
                    await w.engine.runs.resolve("s", "db", "target", "east")
                    decided = True
                except Refused as error:
                    refused.add(str(error))

            for name in w.vaults:
                vault(w, name).hook = tell
            await w.engine.runs.start("s", trigger="timer")
            await w.drain()
            if calls < number:
                break
            if not decided:
                await w.engine.runs.resolve("s", "db", "target", "east")
                await w.drain()
            winner = "db2" if spokes == ("east",) else "db3"
            assert held(w) == [winner] * (len(spokes) + 1), f"told at call {number}"
            assert await in_conflict(w) == {"a"}
            assert (await w.store.verify_history()).broken == ()
    assert number > 8
    assert all("being worked on this moment; try again" in each for each in refused)


async def test_a_source_that_is_silent_gets_the_decision_when_it_answers(tmp_path: Path) -> None:
    async with contested(tmp_path) as w:
        vault(w, "hub").faults.always = Unavailable("connection refused", vault="hub")
        run = await w.engine.runs.resolve("s", "db", "target", "west")
        await w.drain()
        assert (await w.engine.runs.view(run.run_id)).status is RunStatus.FAILED
        assert (await w.store.get_control("s")).again == RECOVERY
        vault(w, "hub").faults.always = None
        await deliver(w, '"job":"probe"')
        await w.drain()
        assert held(w) == ["db3"] * 3


@pytest.mark.parametrize(("name", "expected"), [("east", ["db3", "db2", "db3"]), ("west", ["db1", "db2", "db3"])])
async def test_a_target_that_is_silent_gets_the_decision_when_it_answers(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    async with contested(tmp_path) as w:
        vault(w, name).faults.always = Unavailable("connection refused", vault=name)
        await w.engine.runs.resolve("s", "db", "target", "west")
        await w.drain()
        vault(w, name).faults.always = None
        assert held(w) == expected
        await deliver(w, '"job":"probe"')
        await w.drain()
        assert held(w) == ["db3"] * 3
        assert await in_conflict(w) == {"a"}


async def test_what_another_side_became_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    async with contested(tmp_path) as w:
        await w.engine.runs.resolve("s", "db", "target", "west")
        vault(w, "east").put("db", "newer")
        await w.drain()
        assert held(w) == ["db1", "newer", "db3"]
        assert await in_conflict(w) == set(PATHS)
        rows = [row async for row in w.store.list_objects("s") if row.path == "db"]
        assert {row.contested and row.contested.take for row in rows} == {None}
        await w.engine.runs.resolve("s", "db", "target", "east")
        await w.drain()
        assert held(w) == ["newer"] * 3


async def test_jobs_that_come_thrice_record_it_once(tmp_path: Path) -> None:
    async with contested(tmp_path) as w:
        await w.engine.runs.resolve("s", "db", "source")
        await w.drain(copies=3)
        assert held(w) == ["db1"] * 3
        assert (await w.history(path="db")).count("resolve") == 2
