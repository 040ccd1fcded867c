"""From a real Vault's audit log to two destinations, while everything between them fails in turn.

There is no schedule: what arrives, arrives by events and by the full runs that gaps ask for. In the end both destinations
equal the source, and no destination was ever written an older value after a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cuttable import Answer, Front, Line
from tests.event_stack import EventStack, Place, disable_audit, enable_audit, fetch
from tests.servers.processes import RealVault

pytestmark = pytest.mark.real

PATIENCE = 90.0
"""Seconds until all must have arrived; a fault's own waits included."""
PATHS = [f"team{number % 7}/service {number:03}" for number in range(60)]


class Hand:
    """Somebody who works in the source, and looks at the targets, past Vaultferry. Values only ever grow."""

    def __init__(self, session: aiohttp.ClientSession, stack: EventStack) -> None:
        self.session = session
        self.stack = stack
        self._numbers = itertools.count(1)
        self._random = random.Random(7)

    async def ask(self, place: Place, method: str, what: str, body: Any = None) -> Any:
        url = f"{place.vault.url}/v1/{place.mount}/{what}"
        async with self.session.request(method, url, json=body, headers={"X-Vault-Token": place.vault.token}) as answer:
            if answer.status == 404:
                return await answer.json()
            answer.raise_for_status()
            return await answer.json() if answer.status != 204 else None

    async def put(self, path: str) -> None:
        await self.ask(self.stack.source, "POST", f"data/{path}", {"data": {"n": next(self._numbers)}})

    async def delete(self, path: str) -> None:
        await self.ask(self.stack.source, "DELETE", f"data/{path}")

    async def burst(self, rounds: int = 4, *, during: Callable[[], Any] | None = None) -> None:
        """Write every path in each round, from 16 hands at once; one in ten is deleted now and then. In the middle
        something may happen."""
        work = [path for _ in range(rounds) for path in PATHS]
        half = len(work) // 2
        await self._all(work[:half])
        if during is not None:
            await asyncio.gather(self._all(work[half:]), during())
        else:
            await self._all(work[half:])

    async def _all(self, work: list[str]) -> None:
        rest = iter(work)

        async def one() -> None:
            for path in rest:
                await self.put(path)
                if self._random.random() < 0.1:
                    await self.delete(path)

        await asyncio.gather(*(one() for _ in range(16)))

    async def contents(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def look(path: str) -> None:
            answer = await self.ask(place, "GET", f"data/{path}")
            data = (answer.get("data") or {}).get("data")
            if data is not None:
                found[path] = data

        await asyncio.gather(*(look(path) for path in PATHS))
        return found

    async def until_equal(self) -> None:
        """Wait until both targets hold what the source holds; fail with the differences."""
        wanted = await self.contents(self.stack.source)
        end = time.monotonic() + PATIENCE
        for name, place in self.stack.targets.items():
            while (found := await self.contents(place)) != wanted:
                if time.monotonic() > end:
                    wrong = {p for p in PATHS if found.get(p) != wanted.get(p)}
                    pytest.fail(f"{name}: {sorted(wrong)} differ\n{self.stack.log('serve')[-5000:]}")
                await asyncio.sleep(0.1)

    async def never_went_back(self) -> None:
        """Every version that a target was ever given, in order: the numbers in them only grow."""
        for place in self.stack.targets.values():
            seen = 0
            for path in PATHS:
                answer = await self.ask(place, "GET", f"metadata/{path}")
                numbers = []
                for version in sorted(int(v) for v in ((answer.get("data") or {}).get("versions") or {})):
                    found = await self.ask(place, "GET", f"data/{path}?version={version}")
                    data = (found.get("data") or {}).get("data")
                    if data is not None:
                        numbers.append(data["n"])
                assert numbers == sorted(numbers), f"{path}: {numbers}"
                seen += len(numbers)
            assert seen >= len(PATHS) // 2


@pytest.fixture
async def stack(real_vault: RealVault, second_server: RealVault, tmp_path: Path) -> AsyncIterator[EventStack]:
    """Nothing runs yet. Source and first target are two mounts of one Vault, the second target is another Vault."""
    mounts = [real_vault.new_mount(2), real_vault.new_mount(2), second_server.new_mount(2)]
    places = [Place(real_vault, mounts[0]), Place(real_vault, mounts[1]), Place(second_server, mounts[2])]
    for place in places:
        # Every version must be there to be looked at.
        real_vault_config = {"max_versions": 1000}
        place.vault.call("POST", f"{place.mount}/config", real_vault_config)  # type: ignore[attr-defined]
    sync = {"delete": {"propagate": True, "max_percent": 100}, "retry_policy": {"initial_backoff": 100}}
    made = EventStack(tmp_path, places[0], {"one": places[1], "two": places[2]}, sync)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(disable_audit, real_vault)
        made.close()


@pytest.fixture
async def hand(stack: EventStack) -> AsyncIterator[Hand]:
    async with aiohttp.ClientSession() as session:
        yield Hand(session, stack)


async def start(stack: EventStack, *, forward: str | None = None, address: str | None = None) -> None:
    """Everything, in the order in which a person would start it."""
    await asyncio.to_thread(stack.start_serve)
    await asyncio.to_thread(stack.start_relay, forward=forward)
    await asyncio.to_thread(enable_audit, stack.source.vault, address or stack.audit_address)


async def both(hand: Hand) -> None:
    await hand.until_equal()
    await hand.never_went_back()


async def test_a_burst_arrives_whole(stack: EventStack, hand: Hand) -> None:
    await start(stack)
    await hand.burst()
    await both(hand)


async def test_a_burst_while_the_app_is_down_arrives_when_it_is_back(stack: EventStack, hand: Hand) -> None:
    await start(stack)
    await asyncio.to_thread(stack.stop, "serve")
    await hand.burst()
    await asyncio.to_thread(stack.start_serve)
    await both(hand)


async def test_answers_of_all_bad_sorts_lose_nothing(stack: EventStack, hand: Hand) -> None:
    bad = [Answer.ERROR, Answer.TOO_MANY, Answer.LOST, Answer.HALF, Answer.PASSED_ON] * 2
    async with Front(stack.serve_port, bad).running() as front:
        await start(stack, forward=f"http://127.0.0.1:{front.port}/audit")
        await hand.burst()
        await both(hand)
        while front.waiting:
            # A burst that went in few batches has not met them all.
            await hand.put(PATHS[0])
            await both(hand)
    assert set(front.given) == set(Answer)


async def test_a_relay_that_is_killed_in_mid_burst_and_started_again_loses_nothing(
    stack: EventStack, hand: Hand
) -> None:
    await start(stack)

    def restart() -> None:
        stack.kill("relay")
        stack.start_relay()

    await hand.burst(during=lambda: asyncio.to_thread(restart))
    await both(hand)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the files of another process")
async def test_a_relay_whose_disk_is_full_in_mid_burst_loses_nothing(stack: EventStack, hand: Hand) -> None:
    await start(stack)
    told: list[str] = []

    async def fill_and_make_room() -> None:
        with stack.full_disk("relay"):
            while not told:
                await hand.put(PATHS[0])
                health = await asyncio.to_thread(fetch, f"{stack.relay_url}/health")
                told.extend([health["checks"]["spool"]] if health["status"] == "error" else [])

    await hand.burst(during=fill_and_make_room)
    await both(hand)
    assert told[0] != "ok"


async def test_an_app_that_is_killed_in_mid_burst_and_started_again_loses_nothing(
    stack: EventStack, hand: Hand
) -> None:
    await start(stack)

    def restart() -> None:
        stack.kill("serve")
        stack.start_serve()

    await hand.burst(during=lambda: asyncio.to_thread(restart))
    await both(hand)


async def test_a_vault_that_was_cut_off_from_the_relay_is_caught_up_with(stack: EventStack, hand: Hand) -> None:
    async with Line(stack.relay_port) as line:
        await start(stack, address=line.address)
        await hand.burst(2)
        await both(hand)
        await line.cut()
        await hand.burst(2)
        await line.mend()
        # The first entry after the cut makes Vault connect anew, and the relay tell of a gap.
        await hand.put(PATHS[0])
        await both(hand)


async def test_a_destination_that_is_down_gets_everything_once_it_is_back(
    stack: EventStack, hand: Hand, second_server: RealVault
) -> None:
    async with Line(int(second_server.url.rpartition(":")[2])) as line:
        settings = stack.config.read_text().replace(second_server.url, f"http://{line.address}")
        stack.config.write_text(settings)
        await start(stack)
        await hand.burst(1)
        await both(hand)
        await line.cut()
        await hand.burst(2)
        await line.mend()
        await both(hand)
