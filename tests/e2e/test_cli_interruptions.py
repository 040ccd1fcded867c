"""A sync that is killed, stopped, or meets a destination that is down, and the one after it. Between sandbox Vaults."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Fault
from sandbox.vault import ROOT_TOKEN, VaultSandbox
from tests.cli_world import PROGRAM, Ended, Folder

SECRETS = {f"apps/team-{n:02d}/token": {"value": f"value-{n}"} for n in range(40)}

CONFIG = """\
vaults:
  hub: {{kind: hashicorp, address: "{hub}", auth: {{method: token, token: "${{TOKEN}}"}}}}
  copy: {{kind: hashicorp, address: "{copy}", concurrency: {concurrency}, auth: {{method: token, token: "${{TOKEN}}"}}}}
syncs:
  apps:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: copy, prefix: apps/}}]
    retry_policy: {{max_retries: 0}}
"""


@dataclass
class Place:
    """Two Vaults, and a person's folder."""

    hub: VaultSandbox
    copy: VaultSandbox
    folder: Folder

    def configure(self, concurrency: int = 16) -> None:
        self.folder.configure(CONFIG.format(hub=self.hub.url, copy=self.copy.url, concurrency=concurrency))

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            cwd=self.folder.path,
            env=self.folder.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> Ended:
        return await ended(await self.start(*arguments))

    def copied(self) -> dict[str, Any]:
        found = {path: self.copy.get("secret", path) for path in self.copy.secret_paths("secret")}
        return {path: fields for path, fields in found.items() if fields is not None}


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def until(server: VaultSandbox, operation: str, count: int) -> None:
    """Return when a server has had so many calls."""
    async with asyncio.timeout(30):
        while server.calls[operation] < count:  # noqa: ASYNC110 - the sandbox counts, it does not call back
            await asyncio.sleep(0.01)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with VaultSandbox() as hub, VaultSandbox() as copy:
        for path, fields in SECRETS.items():
            hub.put("secret", path, fields)
        where = Place(hub, copy, Folder(tmp_path, {"TOKEN": ROOT_TOKEN}))
        where.configure()
        yield where


async def test_after_kill_9_the_next_sync_goes_on_and_counts_are_exact(place: Place) -> None:
    place.copy.faults.add(Fault("slow", "write", seconds=0.4, times=None))
    process = await place.start("sync")
    await until(place.copy, "write", 20)
    process.kill()
    assert (await ended(process)).code == -signal.SIGKILL
    place.copy.faults.clear()

    again = await place.run("sync", "--json")
    assert again.code == 0, again.err
    assert "which was on its way" in again.err
    (run,) = again.json["runs"]
    assert (run["status"], run["planned"], run["failed"]) == ("succeeded", 40, 0)
    assert run["written"] + run["unchanged"] == 40
    assert place.copied() == SECRETS
    assert (await place.run("history", "--verify")).code == 0

    (third,) = (await place.run("sync", "--json")).json["runs"]
    assert (third["planned"], third["unchanged"]) == (0, 40)


async def test_ctrl_c_stops_cleanly_says_what_is_left_and_the_next_sync_goes_on(place: Place) -> None:
    place.configure(concurrency=1)
    place.copy.faults.add(Fault("slow", "write", seconds=0.4, times=None))
    process = await place.start("sync")
    await until(place.copy, "write", 3)
    process.send_signal(signal.SIGINT)
    stopped = await ended(process)
    assert stopped.code == 130
    first, last = stopped.err.splitlines()
    assert first.startswith("Stopping;")
    assert last.startswith("Stopped. apps: ")
    assert "of 40 secrets done" in last
    assert last.endswith("left. `vaultferry sync apps` goes on from there.")
    assert len(place.copied()) < 40
    place.copy.faults.clear()
    place.configure()

    (run,) = (await place.run("sync", "--json")).json["runs"]
    assert (run["status"], run["written"] + run["unchanged"]) == ("succeeded", 40)
    assert place.copied() == SECRETS


async def test_ctrl_c_while_planning_leaves_a_run_that_goes_on(place: Place) -> None:
    place.hub.faults.add(Fault("slow", "list", seconds=60, times=None))
    process = await place.start("sync", "--json")
    await until(place.hub, "list", 1)
    process.send_signal(signal.SIGINT)
    stopped = await ended(process)
    assert stopped.code == 130
    assert stopped.json["interrupted"]
    assert "planning had not ended" in stopped.err
    place.hub.faults.clear()
    again = await place.run("sync", "--json")
    assert [run["written"] for run in again.json["runs"]] == [40]
    assert again.json["runs"][0]["run_id"] == stopped.json["runs"][0]["run_id"]


async def test_a_second_ctrl_c_ends_it_at_once(place: Place) -> None:
    place.hub.faults.add(Fault("slow", "list", seconds=60, times=None))
    process = await place.start("sync")
    await until(place.hub, "list", 1)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert (await asyncio.wait_for(process.stderr.readline(), 30)).startswith(b"Stopping;")
    process.send_signal(signal.SIGINT)
    assert (await ended(process)).code == -signal.SIGINT


async def test_a_destination_that_is_down_fails_with_the_next_command_and_is_caught_up(place: Place) -> None:
    place.copy.faults.add(Fault("status", status=503, times=None))
    down = await place.run("sync")
    assert down.code == 1
    assert "failed" in down.out.splitlines()[1]
    assert down.out.count("  ! ") == 20
    assert "and 20 more: vaultferry history apps --status failed" in down.out
    assert "Next: this may pass, as the reasons say." in down.out
    assert "`vaultferry replay apps`" in down.out
    place.copy.faults.clear()
    up = await place.run("sync", "--json")
    assert (up.code, up.json["runs"][0]["failed"]) == (0, 0)
    assert place.copied() == SECRETS


async def test_waits_are_told_in_a_pipe(place: Place) -> None:
    place.folder.configure(
        (place.folder.path / "vaultferry.yaml")
        .read_text("utf-8")
        .replace("max_retries: 0", "max_retries: 1, initial_backoff: 4000")
    )
    place.copy.faults.add(Fault("status", "write", status=503, times=None))
    process = await place.start("sync")
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    place.copy.faults.clear()
    assert line.startswith("apps: 0 of 40 secrets done, ")
    assert "40 paths are tried again in " in line
    assert (await ended(process)).code == 0
    assert place.copied() == SECRETS


async def test_a_plan_does_not_say_that_all_is_well_where_it_could_not_look(place: Place) -> None:
    assert (await place.run("sync")).code == 0
    assert (await place.run("plan", "--detailed-exitcode")).code == 0
    place.copy.faults.add(Fault("status", status=503, times=None))
    told = await place.run("plan")
    assert told.out.splitlines()[-2:] == [
        "Plan, as far as can be seen: nothing to do.",
        "copy: it could not be looked at, so nobody knows whether it holds what it should",
    ]
    assert told.code == 1
    asked = await place.run("plan", "--json", "--detailed-exitcode")
    assert (asked.code, list(asked.json["unseen"]), asked.json["error"]) == (1, ["copy"], None)
    kept = await place.run("plan", "--out", "saved.plan")
    assert "the plan is not saved: copy did not answer when it was made" in kept.err


async def test_a_vault_that_does_not_answer_is_named_while_it_is_waited_for(place: Place) -> None:
    place.hub.faults.add(Fault("timeout_before", times=None))
    process = await place.start("plan")
    assert process.stdout is not None
    line = ""
    async with asyncio.timeout(60):
        # On a slow machine, the call may be young when the first line comes.
        while "no answer" not in line:
            line = (await process.stdout.readline()).decode()
    process.send_signal(signal.SIGINT)
    assert re.fullmatch(r"apps: planning, \d+ s \(no answer from hub for \d+ s\)\n", line)
    assert (await ended(process)).code == 130


async def test_serve_and_sync_share_the_work_on_one_store(place: Place) -> None:
    process = await place.start("serve", "--port", "0", "--json")
    assert process.stdout is not None
    lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(3)]
    assert json.loads(b"".join(lines))["url"].startswith("http://127.0.0.1:")
    (run,) = (await place.run("sync", "--json")).json["runs"]
    assert (run["status"], run["written"]) == ("succeeded", 40)
    process.send_signal(signal.SIGTERM)
    assert (await ended(process)).code == 0
