"""The engine where two things go wrong at once: a crash beside an edit by hand, a fault in the middle of several fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import AccessDenied, Unavailable
from shared.model import (
    DeletePolicy,
    Granularity,
    ObjectState,
    RetryPolicy,
    Target,
)
from shared.vault import Capabilities, FingerprintCost
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

KV2 = Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True)
KV1 = Capabilities(FingerprintCost.VALUE)
LISTED = Capabilities(FingerprintCost.LISTED, tags=True)
KINDS = [pytest.param(KV2, id="kv2"), pytest.param(KV1, id="kv1"), pytest.param(LISTED, id="listed")]
BY_FIELD = Target("target", "target", name="{path}-{field}", granularity=Granularity.FIELD)
PROPAGATE = DeletePolicy(propagate=True)


class Killed(BaseException):
    """What a job sees of kill -9."""


async def one(w: World, path: str, sync: str = "s") -> ObjectState:
    return (await w.store.get_objects(sync, "target", [path]))[path]


async def planned(w: World, sync: str = "s") -> None:
    """Begin a run and plan it: its write jobs are in the queues."""
    await w.engine.runs.start(sync, trigger="manual")
    await w.engine.handle(w.queues.messages.pop()[1])


async def killed(w: World, vault: MemoryVault, moment: str) -> str:
    """Deliver the next job to a worker that dies at `moment`. The message, which is still there."""

    async def hook(vault: str, operation: str, name: str) -> None:
        if operation == moment:
            raise Killed

    body = w.queues.messages[0][1]
    vault.hook = hook
    with pytest.raises(Killed):
        await w.engine.handle(body)
    vault.hook = None
    w.clock.advance(seconds=400)
    return body


# what of several fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("503", vault="target"), AccessDenied("no", vault="target")])
async def test_a_field_that_fails_gives_its_claim_back_at_once(tmp_path: Path, error: Exception) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(BY_FIELD, retry_policy=RetryPolicy(max_retries=1))) as w:
        source.put("db", {"user": "u", "password": "p"})
        await planned(w)
        target.faults.add("set", error, times=3)  # type: ignore[arg-type]
        await w.engine.handle(w.queues.messages.pop()[1])
        assert (await one(w, "db")).claim is None


# whose is it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", KINDS)
async def test_an_equal_value_put_there_while_nobody_wrote_is_adopted_after_a_crash_too(
    tmp_path: Path, capabilities: Capabilities
) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", capabilities)
    async with world(tmp_path, [source, target], one_way(delete=PROPAGATE)) as w:
        target.put("a", "theirs")
        source.put("a", "ours")
        await planned(w)
        await killed(w, target, "set")
        source.put("a", "theirs")
        await w.drain()
        await w.sync()
        source.remove("a")
        await w.sync()
        assert target.values() == {"a": {"value": "theirs"}}


# runs that must end, and say what happened ----------------------------------------------------------------------------


# a target that is planned blindly ----------------------------------------------------------------------------------


# the probe ----------------------------------------------------------------------------------------------------------


def probes(w: World) -> list[str]:
    found = [body for _, body, _ in w.queues.messages if '"job":"probe"' in body]
    w.queues.messages = [message for message in w.queues.messages if message[1] not in found]
    return found


DOWN = Unavailable("connection refused", vault="target")


async def test_a_vault_that_goes_down_again_soon_is_probed_again(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        (first,) = probes(w)
        w.clock.advance(seconds=30)
        target.faults.always = None
        await w.engine.handle(first)
        target.faults.always = DOWN
        await w.drain()
        assert len(probes(w)) == 1


async def test_a_vault_that_stays_down_for_long_is_probed_by_one_at_a_time(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        for _ in range(5):
            (probe,) = probes(w)
            w.clock.advance(seconds=600)
            await w.engine.handle(probe)
            await w.sync()


async def test_a_probe_whose_worker_died_too_often_goes_on(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    async with world(tmp_path, [source, target], one_way(retry_policy=RetryPolicy(max_retries=0))) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        (probe,) = probes(w)
        await w.engine.give_up(probe)
        assert len(probes(w)) == 1


async def test_a_probe_asks_for_no_more_than_the_sync_may_see(tmp_path: Path) -> None:
    source, target = MemoryVault("source", KV2), MemoryVault("target", KV2)
    sync = one_way(Target("target", "target", prefix="team/"), retry_policy=RetryPolicy(max_retries=0))
    async with world(tmp_path, [source, target], sync) as w:
        source.put("a", "1")
        target.faults.always = DOWN
        await w.sync()
        target.faults.always = None

        async def hook(vault: str, operation: str, name: str) -> None:
            if operation == "list" and not name.startswith("team/"):
                raise AccessDenied("no", vault=vault, path=name)

        target.hook = hook
        (probe,) = probes(w)
        await w.engine.handle(probe)
        await w.drain()
        assert target.values() == {"team/a": {"value": "1"}}


# a worker that was frozen -------------------------------------------------------------------------------------------
