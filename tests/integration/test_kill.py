"""A process that syncs is killed in the middle of it (SIGKILL, at a certain call to a server); the next one goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Fault
from tests.integration.conftest import Sandbox

SYNC = """
  s:
    source: {{vault: hub, prefix: apps/}}
    targets:
      - {{vault: prod, granularity: {granularity}}}
      - {{vault: second, prefix: copy/, granularity: {granularity}}}
    delete: {{propagate: true, max_percent: 100}}
    retry_policy: {{max_retries: 3, initial_backoff: 1, max_backoff: 4}}
"""
COUNT = 8
KILLS = [1, 2, 3, 5, 8, 13, 21, 34]
AT_ONCE = 20.0
"""Seconds: far more than going on takes, far less than any lease or claim lasts that a dead process could have left."""


@dataclass
class Driver:
    """Runs syncs in processes of their own, and kills them at the call that it is told."""

    process: subprocess.Popen[str]

    async def sync(
        self, sandbox: Sandbox, granularity: str, *, kill_at: int | None = None, effect: bool = True
    ) -> dict[str, Any] | None:
        """The run as it ended, or None: killed as the call number `kill_at` came in. With `effect`, the calls that were
        under way are carried out by their servers all the same."""
        folder = sandbox.folder
        text = sandbox.text(SYNC.format(granularity=granularity))
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        pid = (await self._ask({"config": text, "env": sandbox.env, "sync": "s", "result": f"{result}"}))["pid"]
        with killing(sandbox, pid, kill_at, effect):
            status = (await self._ask("go"))["status"]
        if status == -signal.SIGKILL:
            assert not result.exists()
            return None
        assert status == 0
        ended: dict[str, Any] = json.loads(result.read_text())
        return ended

    async def _ask(self, document: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(await asyncio.to_thread(self.process.stdout.readline))
        return answer


class killing:  # noqa: N801 - reads as what it does
    """Watch the calls to all three vaults, and kill a process when number `at` arrives."""

    def __init__(self, sandbox: Sandbox, pid: int, at: int | None, effect: bool) -> None:
        self.servers = (sandbox.source, sandbox.second, sandbox.key_vault)
        self.pid, self.at, self.effect = pid, at, effect
        self.seen = 0

    def __enter__(self) -> None:
        for server in self.servers:
            server.faults.take = self.take  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            del server.faults.take  # type: ignore[attr-defined]

    def take(self, operation: str, path: str) -> Fault | None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(self.pid, signal.SIGKILL)
        dead = self.at is not None and self.seen >= self.at
        return Fault("torn_before") if dead and not self.effect else None


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.kill_driver"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Driver(process)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def put(sandbox: Sandbox, name: str, value: str) -> None:
    sandbox.source.put("secret", f"apps/{name}", {"password": f"p-{value}", "user": f"u-{value}"})


def wanted(granularity: str, values: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """What the Key Vault and the second Vault should hold."""
    if granularity == "secret":
        prod = {n: f'{{"password":"p-{v}","user":"u-{v}"}}' for n, v in values.items()}
        return prod, {f"copy/{n}": {"password": f"p-{v}", "user": f"u-{v}"} for n, v in values.items()}
    fields = {f"{n}-{field}": f"{field[0]}-{v}" for n, v in values.items() for field in ("password", "user")}
    return fields, {f"copy/{name}": {"value": value} for name, value in fields.items()}


def held(sandbox: Sandbox) -> tuple[dict[str, str], dict[str, Any]]:
    prod = {name: found.value for name in sandbox.key_vault.names() if (found := sandbox.key_vault.get(name))}
    paths = sandbox.second.secret_paths("secret")
    return prod, {path: found for path in paths if (found := sandbox.second.get("secret", path)) is not None}


def check_counts(run: dict[str, Any], **counts: int) -> None:
    assert run["status"] == "succeeded"
    assert run["error"] is None
    shown = {name: run[name] for name in ("written", "unchanged", "deleted", "failed", "conflicts")}
    assert shown == {**dict.fromkeys(shown, 0), **counts}
    assert run["broken"] == []


def case(granularity: str, at: int, effect: bool) -> Any:
    return pytest.param(granularity, at, effect, id=f"{granularity}-{at}-{'after' if effect else 'before'}")


FIRST = [
    case(granularity, at, (number % 2 == 0) == (granularity == "secret"))
    for number, at in enumerate(KILLS)
    for granularity in ("secret", "field")
]
LATER = [case(("secret", "field")[number % 2], at, number // 2 % 2 == 0) for number, at in enumerate(KILLS)]


@pytest.mark.parametrize(("granularity", "at", "effect"), FIRST)
async def test_a_first_sync_that_is_killed_goes_on_at_once_and_counts_exactly(
    sandbox: Sandbox, driver: Driver, granularity: str, at: int, effect: bool
) -> None:
    values = {f"s{n}": f"{n}" for n in range(COUNT)}
    for name, value in values.items():
        put(sandbox, name, value)
    assert await driver.sync(sandbox, granularity, kill_at=at, effect=effect) is None
    began = time.monotonic()
    run = await driver.sync(sandbox, granularity)
    assert time.monotonic() - began < AT_ONCE
    assert run is not None
    check_counts(run, written=2 * COUNT)
    assert run["planned"] == 2 * COUNT
    assert held(sandbox) == wanted(granularity, values)
    assert {len(sandbox.key_vault.versions(name)) for name in sandbox.key_vault.names()} == {1}
    paths = sandbox.second.secret_paths("secret")
    assert {sandbox.second.metadata("secret", path)["current_version"] for path in paths} == {1}
    assert run["rows"] == 2 * COUNT, "one row of history a secret: what was written, by whichever process"


@pytest.mark.parametrize(("granularity", "at", "effect"), LATER)
async def test_a_sync_of_changes_and_deletes_that_is_killed_goes_on_at_once_and_counts_exactly(
    sandbox: Sandbox, driver: Driver, granularity: str, at: int, effect: bool
) -> None:
    values = {f"s{n}": f"{n}" for n in range(COUNT)}
    for name, value in values.items():
        put(sandbox, name, value)
    first = await driver.sync(sandbox, granularity)
    assert first is not None
    check_counts(first, written=2 * COUNT)
    sandbox.key_vault.clock.advance(10)
    changed = {"s0": "new0", "s1": "new1", "s2": "new2", "added": "x"}
    for name, value in changed.items():
        put(sandbox, name, value)
    sandbox.source.soft_delete("secret", "apps/s6")
    sandbox.source.remove("secret", "apps/s7")
    values = {name: value for name, value in (values | changed).items() if name not in ("s6", "s7")}
    assert await driver.sync(sandbox, granularity, kill_at=at, effect=effect) is None
    began = time.monotonic()
    run = await driver.sync(sandbox, granularity)
    assert time.monotonic() - began < AT_ONCE
    assert run is not None
    check_counts(run, written=8, deleted=4, unchanged=6)
    # What is compared and found equal costs no job, so it is not among what was planned.
    assert run["planned"] == 12
    assert held(sandbox) == wanted(granularity, values)
    counts = {name: len(sandbox.key_vault.versions(name)) for name in sandbox.key_vault.names()}
    assert {name: count for name, count in counts.items() if count > 1}.keys() == {
        name for name in counts if name.startswith(("s0", "s1", "s2"))
    }
    assert max(counts.values()) == 2, "a change is one version, whichever process wrote it"
    assert run["rows"] == 2 * COUNT + 12


@pytest.mark.parametrize("at", [13, 21, 34])
async def test_what_changes_between_death_and_new_life_is_never_overwritten_by_what_was_there_before(
    sandbox: Sandbox, driver: Driver, at: int
) -> None:
    names = [f"s{n}" for n in range(COUNT)]
    for name in names:
        put(sandbox, name, "1")
    assert await driver.sync(sandbox, "secret", kill_at=at) is None
    for name in names:
        put(sandbox, name, "2")
    run = await driver.sync(sandbox, "secret")
    assert run is not None
    check_counts(run, written=2 * COUNT)
    # What the dead process had finished is an older value still: the next run sees that the source has moved on.
    sandbox.key_vault.clock.advance(10)
    again = await driver.sync(sandbox, "secret")
    assert again is not None
    assert again["status"] == "succeeded"
    assert held(sandbox) == wanted("secret", dict.fromkeys(names, "2"))
    for name in names:
        values = [version.value for version in sandbox.key_vault.versions(name)]
        assert values == sorted(values)
        assert len(values) <= 2


async def test_the_command_that_is_killed_goes_on_when_it_is_given_again(sandbox: Sandbox) -> None:
    values = {f"s{n}": f"{n}" for n in range(COUNT)}
    for name, value in values.items():
        put(sandbox, name, value)
    config = sandbox.folder / "test.yaml"
    config.write_text(sandbox.text(SYNC.format(granularity="secret")))
    command = [sys.executable, "-c", "from shared.cli import main; main()", "sync", "-c", f"{config}", "--json"]
    options: dict[str, Any] = {
        "env": {**os.environ, **sandbox.env},
        "stdout": asyncio.subprocess.PIPE,
        "stderr": asyncio.subprocess.PIPE,
        "cwd": Path(__file__).parents[2],
    }
    process = await asyncio.create_subprocess_exec(*command, **options)
    with killing(sandbox, process.pid, 30, True):
        await process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = await asyncio.create_subprocess_exec(*command, **options)
    async with asyncio.timeout(AT_ONCE):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert told["runs"][0]["written"] == told["runs"][0]["planned"] == 2 * COUNT
    assert held(sandbox) == wanted("secret", values)
    assert {len(sandbox.key_vault.versions(name)) for name in values} == {1}
