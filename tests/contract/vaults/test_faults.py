"""A server that misbehaves, and what becomes known of a secret's value when things fail: nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable

import pytest

from sandbox.faults import FaultKind
from shared.errors import SyncError, Unavailable
from shared.model import Expect, Secret
from shared.pacing import QUICK_TRIES
from shared.vault import Vault
from tests.contract.vaults.harness import Harness, everything_told_by, needs

CANARY = "canary-b5d0c1-do-not-show"


@pytest.fixture
async def impatient(harness: Harness) -> AsyncIterator[Vault]:
    """A vault that gives a silent server up soon."""
    vault = harness.connect(patient=False)
    await vault.open()
    yield vault
    await vault.aclose()


@needs("faults")
async def test_a_server_that_asks_for_a_moment_is_asked_again_after_it(harness: Harness) -> None:
    await harness.put("one", {"value": "1"})
    harness.misbehave("status", "read", status=429, retry_after=1)
    harness.misbehave("status", "write", status=429, retry_after=2)
    assert (await harness.vault.get_secret("one")).fields == {"value": "1"}
    await harness.vault.set_secret("one", Secret({"value": "2"}))
    assert await harness.look("one") == {"value": "2"}
    assert {1.0, 2.0} <= set(harness.waits)


@needs("faults")
async def test_a_server_that_asks_for_a_long_rest_gets_it(harness: Harness) -> None:
    harness.misbehave("status", "write", status=429, retry_after=60)
    before = harness.calls()
    with pytest.raises(Unavailable) as caught:
        await harness.vault.set_secret("one", Secret({"value": CANARY}))
    assert caught.value.retry_after == 60
    assert not caught.value.ambiguous
    assert harness.waits == []
    assert harness.calls() <= before + 2
    assert await harness.look("one") is None


@needs("faults")
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_read_is_tried_a_few_times_and_then_the_vault_is_unavailable(harness: Harness, status: int) -> None:
    await harness.put("one", {"value": "1"})
    harness.misbehave("status", "read", times=QUICK_TRIES - 1, status=status)
    assert (await harness.vault.get_secret("one")).fields == {"value": "1"}
    harness.misbehave("status", "read", times=QUICK_TRIES, status=status)
    with pytest.raises(Unavailable):
        await harness.vault.get_secret("one")
    assert (await harness.vault.get_secret("one")).fields == {"value": "1"}


READ_FAULTS: list[FaultKind] = ["timeout_before", "timeout_after", "torn_before", "torn_after", "cut_body"]


@needs("faults")
@pytest.mark.parametrize("kind", READ_FAULTS)
async def test_a_read_without_an_answer_is_made_again(harness: Harness, kind: FaultKind) -> None:
    vault = harness.connect(patient=False)
    try:
        await vault.open()
        await harness.put("one", {"value": "1"})
        harness.misbehave(kind, "read")
        assert (await vault.get_secret("one")).fields == {"value": "1"}
    finally:
        await vault.aclose()


@needs("faults")
@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("timeout_before", False),
        ("timeout_after", True),
        ("torn_before", False),
        ("torn_after", True),
        ("cut_body", True),
    ],
)
async def test_a_write_without_an_answer_is_ambiguous_and_not_repeated(
    harness: Harness, impatient: Vault, kind: FaultKind, done: bool
) -> None:
    await impatient.set_secret("one", Secret({"value": "1"}))
    harness.misbehave(kind, "write")
    if kind == "cut_body" and "write-answers" not in harness.traits:
        # Nothing to be cut: the answer to this write has no body.
        await impatient.set_secret("one", Secret({"value": "2"}))
        return
    before = harness.calls()
    with pytest.raises(Unavailable) as caught:
        await impatient.set_secret("one", Secret({"value": "2"}))
    assert caught.value.ambiguous
    assert caught.value.path == "one"
    assert harness.calls() == before + 1
    assert await harness.look("one") == {"value": "2" if done else "1"}


@needs("faults")
async def test_a_server_that_is_not_there_leaves_no_doubt(harness: Harness) -> None:
    vault = harness.connect()
    await vault.open()
    await harness.unplug()
    # On a connection that was kept, a server that stops can not be told from one that stops answering.
    with contextlib.suppress(Unavailable):
        await vault.get_secret("one")
    with pytest.raises(Unavailable) as caught:
        await vault.set_secret("one", Secret({"value": CANARY}))
    await vault.aclose()
    assert not caught.value.ambiguous
    assert CANARY not in everything_told_by(caught.value)


async def failure_of(call: Awaitable[object]) -> SyncError | None:
    try:
        await call
    except SyncError as error:
        return error
    return None


FAILURES: list[FaultKind] = ["status", "torn_before", "torn_after", "cut_body", "timeout_after"]


@needs("faults")
@pytest.mark.parametrize("kind", FAILURES)
async def test_no_failure_tells_a_value(
    harness: Harness, impatient: Vault, kind: FaultKind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await harness.put("one", {"value": CANARY, "list": [CANARY]})
    for status in (400, 403, 404, 500) if kind == "status" else (500,):
        for operation in ("read", "write"):
            harness.misbehave(kind, operation, times=QUICK_TRIES, status=status)  # type: ignore[arg-type]
        for call in (impatient.get_secret("one"), impatient.set_secret("one", Secret({"value": CANARY}))):
            failure = await failure_of(call)
            assert failure is None or CANARY not in everything_told_by(failure)
    assert CANARY not in caplog.text


async def test_no_refusal_tells_a_value(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    vault, told = harness.vault, []
    await vault.set_secret("one", Secret({"value": CANARY}))
    refused = [
        vault.set_secret("../x", Secret({"value": CANARY})),
        vault.set_secret("two", Secret({"value": CANARY + "\ud800"})),
        vault.set_secret("two", Secret({"value": {CANARY}})),
        vault.set_secret("two", Secret({"value": [CANARY, float("nan")]})),
        vault.set_secret("two", Secret({CANARY.encode(): CANARY})),  # type: ignore[dict-item]
        vault.set_secret("one", Secret({"value": CANARY}), expect=Expect.ABSENT),
        vault.set_secret("one", Secret({"value": CANARY}), expect="77"),
        vault.set_secret("two", Secret({"value": [CANARY, 10**5000]})),
    ]
    for call in refused:
        with pytest.raises(SyncError) as caught:
            await call
        told.append(everything_told_by(caught.value))
    told += [repr(vault), str(vars(vault)), repr(await vault.get_secret("one")), caplog.text]
    told.append(repr(await vault.check([])))
    assert CANARY not in "\n".join(told)
