"""The whole installation while its vaults misbehave: complete in the end, nothing twice, nothing deleted by mistake."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from sandbox.faults import Fault
from shared import jobs
from shared.app import App
from shared.config.build import parse
from shared.engine.tally import SILENT
from shared.model import HistoryRow, ObjectStatus, Run, RunStatus
from tests.integration.conftest import Sandbox, run_sync, working

RETRY = "retry_policy: {max_retries: 8, initial_backoff: 1, max_backoff: 4}"
ONCE = "retry_policy: {max_retries: 1, initial_backoff: 1, max_backoff: 1}"
# The guard against many deletes would hide what these tests look for, so it is off.
UNGUARDED = "delete: {propagate: true, max_percent: 100, min_count: 100000}"
TO_BOTH = f"""
  s:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod}}, {{vault: second, prefix: copy/}}]
    {UNGUARDED}
    {RETRY}
"""
FROM_KEY_VAULT = f"""
  s:
    source: {{vault: prod}}
    targets: [{{vault: second, prefix: copy/}}]
    {UNGUARDED}
    {RETRY}
"""
COUNT = 12


def installed(sandbox: Sandbox, syncs: str, env: dict[str, str]) -> App:
    return App(parse(sandbox.text(syncs).encode(), env, "test.yaml"), env)


def fill(sandbox: Sandbox, count: int = COUNT, text: str = "v") -> dict[str, str]:
    wanted = {f"s{n:02}": f"{text}{n}" for n in range(count)}
    for name, value in wanted.items():
        sandbox.source.put("secret", f"apps/{name}", {"value": value})
    return wanted


def held(sandbox: Sandbox) -> tuple[dict[str, str], dict[str, Any]]:
    """What the Key Vault and the second Vault hold."""
    prod = {name: found.value for name in sandbox.key_vault.names() if (found := sandbox.key_vault.get(name))}
    second = {
        path.removeprefix("copy/"): found["value"]
        for path in sandbox.second.secret_paths("secret")
        if (found := sandbox.second.get("secret", path)) is not None
    }
    return prod, second


def versions(sandbox: Sandbox, names: dict[str, str]) -> set[int]:
    """How often each of these was written, at both."""
    prod = {len(sandbox.key_vault.versions(name)) for name in names}
    return prod | {sandbox.second.metadata("secret", f"copy/{name}")["current_version"] for name in names}


async def impatient(app: App) -> None:
    """Have the vaults' clients wait a fifth of a second for an answer."""
    for vault_id in ("hub", "second"):
        vault: Any = await app.vaults.get(vault_id)
        await vault.adapter.aclose()
        vault.adapter.seconds = 0.2
    prod: Any = await app.vaults.get("prod")
    prod._client._timeout = 0.2


def settled(run: Run) -> int:
    return run.written + run.unchanged + run.deleted + run.failed + run.conflicts


async def reasons(app: App, path: str | None = None) -> list[HistoryRow]:
    page = await app.store.page_history("s", path=path, status=ObjectStatus.FAILED, limit=1000)
    return list(page.items)


# --- for a while ----------------------------------------------------------------------------------------------------

PASSING: list[dict[str, Any]] = [
    {"kind": "status", "status": 429, "retry_after": 0.05},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 500},
    {"kind": "torn_before"},
    {"kind": "torn_after"},
    {"kind": "cut_body"},
    {"kind": "timeout_before"},
    {"kind": "timeout_after"},
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f['kind']}{f.get('status', '')}")
async def test_writes_that_fail_for_a_while_end_complete_with_one_version_each(
    sandbox: Sandbox, fault: dict[str, Any]
) -> None:
    wanted = fill(sandbox)
    async with sandbox.app(TO_BOTH) as app:
        if fault["kind"].startswith("timeout"):
            await impatient(app)
        # What had its effect is found to have had it, and is not sent a second time.
        times = COUNT if fault["kind"] in ("torn_after", "cut_body", "timeout_after") else 20
        sandbox.second.faults.add(Fault(operation="write", times=times, **fault))
        sandbox.key_vault.faults.add(Fault(operation="set", times=times, **fault))
        run = await run_sync(app)
        assert not list(sandbox.second.faults)
        assert not list(sandbox.key_vault.faults)
        assert (run.status, run.planned, run.written, run.error) == ("succeeded", 2 * COUNT, 2 * COUNT, None)
        assert settled(run) == run.planned
        assert held(sandbox) == (wanted, wanted)
        assert versions(sandbox, wanted) == {1}
        assert (await app.store.verify_history("s")).broken == ()
        assert (await app.store.page_history("s", limit=1000)).items[0].action == "create"
        assert not await reasons(app), "what passed is no failure"


@pytest.mark.parametrize("fault", PASSING[:6], ids=lambda f: f"{f['kind']}{f.get('status', '')}")
async def test_every_seventh_call_of_any_sort_may_fail_anywhere(sandbox: Sandbox, fault: dict[str, Any]) -> None:
    wanted = fill(sandbox)
    async with sandbox.app(TO_BOTH) as app:
        for server in (sandbox.source, sandbox.second, sandbox.key_vault):
            # Each of them counts the calls that pass, too.
            server.faults.add(*(Fault(skip=7 * n + 2, **fault) for n in range(10)))
        run = await run_sync(app)
        assert (run.status, run.planned, run.written) == ("succeeded", 2 * COUNT, 2 * COUNT)
        assert held(sandbox) == (wanted, wanted)
        assert versions(sandbox, wanted) == {1}


async def test_a_source_of_tokens_that_fails_for_a_while_costs_nothing_but_time(sandbox: Sandbox) -> None:
    wanted = fill(sandbox)
    sandbox.entra.faults.add(Fault("status", "token", status=503, times=4), Fault("torn_before", "token", times=2))
    async with sandbox.app(TO_BOTH) as app:
        run = await run_sync(app)
        assert (run.status, run.written) == ("succeeded", 2 * COUNT)
        assert held(sandbox) == (wanted, wanted)


@pytest.mark.parametrize("kind", ["torn_before", "torn_after", "cut_body"])
async def test_deletes_and_changes_that_fail_for_a_while_are_each_done_once(sandbox: Sandbox, kind: str) -> None:
    wanted = fill(sandbox)
    async with sandbox.app(TO_BOTH) as app:
        await run_sync(app)
        sandbox.key_vault.clock.advance(10)
        again = fill(sandbox, 4, "new")
        for name in ("s10", "s11"):
            sandbox.source.soft_delete("secret", f"apps/{name}")
            del wanted[name]
        fault = {"kind": kind, "times": 4}
        sandbox.second.faults.add(Fault(operation="write", **fault), Fault(operation="delete", **fault))  # type: ignore[arg-type]
        sandbox.key_vault.faults.add(Fault(operation="set", **fault), Fault(operation="delete", **fault))  # type: ignore[arg-type]
        run = await run_sync(app)
        assert (run.status, run.deleted, run.failed) == ("succeeded", 4, 0)
        assert run.written == 8
        assert held(sandbox) == (wanted | again, wanted | again)
        assert versions(sandbox, again) == {2}
        assert versions(sandbox, {name: "" for name in wanted if name not in again}) == {1}


# --- half a listing -------------------------------------------------------------------------------------------------

BROKEN_LISTS = [Fault("status", "list", status=500), Fault("cut_body", "list"), Fault("torn_after", "list")]


def lasting(fault: Fault, *, skip: int, times: int | None) -> Fault:
    return Fault(fault.kind, fault.operation, status=fault.status, skip=skip, times=times)


async def _synced(app: App, sandbox: Sandbox, count: int) -> None:
    first = await run_sync(app)
    assert (first.status, first.failed) == ("succeeded", 0)
    assert first.written >= count
    sandbox.key_vault.clock.advance(10)


@pytest.mark.parametrize("fault", BROKEN_LISTS, ids=lambda f: f.kind)
@pytest.mark.parametrize("times", [8, None], ids=["passing", "lasting"])
async def test_half_a_listing_of_a_vault_deletes_nothing(sandbox: Sandbox, fault: Fault, times: int | None) -> None:
    # Folders, so that the listing takes several calls.
    for n in range(8):
        sandbox.source.put("secret", f"apps/f{n}/x", {"value": f"v{n}"})
    async with sandbox.app(TO_BOTH if times else TO_BOTH.replace(RETRY, ONCE)) as app:
        await _synced(app, sandbox, 16)
        before = held(sandbox)
        sandbox.source.faults.add(lasting(fault, skip=4, times=times))
        run = await run_sync(app)
        assert run.deleted == run.written == 0
        assert held(sandbox) == before
        if times is None:
            assert run.status == "failed"
            assert run.error is not None
            assert "hub" in run.error
        else:
            assert (run.status, run.unchanged) == ("succeeded", 16)


@pytest.mark.parametrize("fault", BROKEN_LISTS, ids=lambda f: f.kind)
@pytest.mark.parametrize("times", [5, None], ids=["passing", "lasting"])
async def test_half_a_listing_of_a_key_vault_deletes_nothing(sandbox: Sandbox, fault: Fault, times: int | None) -> None:
    for n in range(60):
        sandbox.key_vault.put(f"s{n:02}", f"v{n}")
    sandbox.key_vault.age(60)
    async with sandbox.app(FROM_KEY_VAULT if times else FROM_KEY_VAULT.replace(RETRY, ONCE)) as app:
        await _synced(app, sandbox, 60)
        sandbox.key_vault.faults.add(lasting(fault, skip=1, times=times))
        run = await run_sync(app)
        assert run.deleted == run.written == 0
        assert len(held(sandbox)[1]) == 60
        assert run.status == ("failed" if times is None else "succeeded")
        assert (run.error is not None and "prod" in run.error) == (times is None)


@pytest.mark.parametrize("fault", BROKEN_LISTS, ids=lambda f: f.kind)
async def test_half_a_listing_of_the_targets_writes_nothing_anew_and_deletes_nothing(
    sandbox: Sandbox, fault: Fault
) -> None:
    for n in range(30):
        sandbox.source.put("secret", f"apps/f{n % 5}/x{n:02}", {"value": f"v{n}"})
    async with sandbox.app(TO_BOTH) as app:
        await _synced(app, sandbox, 60)
        sandbox.source.put("secret", "apps/f0/x00", {"value": "new"})
        for server in (sandbox.second, sandbox.key_vault):
            server.faults.add(lasting(fault, skip=1, times=None))
        run = await run_sync(app)
        # What was due is written; whether the rest is as it should be, nobody could see.
        assert (run.status, run.written, run.unchanged, run.deleted) == ("partial", 2, 58, 0)
        assert (run.error or "").count(SILENT) == 2
        for server in (sandbox.second, sandbox.key_vault):
            server.faults.clear()
        assert len(sandbox.key_vault.names()) == 30
        assert {len(sandbox.key_vault.versions(name)) for name in sandbox.key_vault.names()} == {1, 2}
        assert sandbox.second.get("secret", "copy/f0/x00") == {"value": "new"}


# --- a permission that was lost ------------------------------------------------------------------------------------

READER = 'path "secret/*" { capabilities = ["read", "list"] }'
LIST_DENIED = 'path "secret/data/*" { capabilities = ["read"] }'
FOLDER_DENIED = READER + '\npath "secret/metadata/apps/inner/" { capabilities = ["deny"] }'


def _deny(sandbox: Sandbox) -> None:
    sandbox.source.set_policy("reader", 'path "secret/*" { capabilities = ["deny"] }')


def _deny_listing(sandbox: Sandbox) -> None:
    sandbox.source.set_policy("reader", LIST_DENIED)


def _deny_folder(sandbox: Sandbox) -> None:
    sandbox.source.set_policy("reader", FOLDER_DENIED)


def _forget_policy(sandbox: Sandbox) -> None:
    sandbox.source.policies.pop("reader")
    sandbox.source.rules.pop("reader")


def _remove_mount(sandbox: Sandbox) -> None:
    sandbox.source.remove_mount("secret")


def _expire_token(sandbox: Sandbox) -> None:
    sandbox.source.expire_tokens()


def _seal(sandbox: Sandbox) -> None:
    sandbox.source.sealed = True


LOSSES = [
    _deny, _deny_listing, _deny_folder, _forget_policy, _remove_mount, _expire_token, _seal,
]  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("lose", LOSSES, ids=lambda each: each.__name__.strip("_"))
async def test_a_source_that_may_no_longer_be_read_is_not_an_empty_source(
    sandbox: Sandbox, lose: Callable[[Sandbox], None], restarted: bool
) -> None:
    sandbox.source.set_policy("reader", READER)
    env = {**sandbox.env, "HUB_TOKEN": sandbox.source.create_token("reader")}
    wanted = fill(sandbox, 3)
    sandbox.source.put("secret", "apps/inner/x", {"value": "inner"})
    syncs = TO_BOTH.replace(RETRY, ONCE)
    async with installed(sandbox, syncs, env) as app:
        await _synced(app, sandbox, 8)
        before = held(sandbox)
        lose(sandbox)
        if not restarted:
            run = await run_sync(app)
    if restarted:
        async with installed(sandbox, syncs, env) as app:
            run = await run_sync(app)
    assert (run.status, run.deleted, run.written) == ("failed", 0, 0)
    assert run.error is not None
    assert "hub" in run.error
    assert held(sandbox) == before
    assert before[0] == {**wanted, "inner-x": "inner"}


async def test_a_mount_that_was_replaced_by_an_empty_one_waits_for_an_approval(sandbox: Sandbox) -> None:
    wanted = fill(sandbox)
    async with sandbox.app(TO_BOTH.replace(UNGUARDED, "delete: {propagate: true}")) as app:
        await _synced(app, sandbox, 24)
        sandbox.source.remove_mount("secret")
        sandbox.source.add_mount("secret", 2)
        run = await run_sync(app)
        assert (run.status, run.deleted) == ("blocked", 0)
        assert run.error is not None
        assert run.run_id in run.error
        assert held(sandbox) == (wanted, wanted)


async def test_a_key_vault_that_may_no_longer_be_listed_is_not_an_empty_one(sandbox: Sandbox) -> None:
    for n in range(5):
        sandbox.key_vault.put(f"s{n}", "v")
    sandbox.key_vault.age(60)
    async with sandbox.app(FROM_KEY_VAULT) as app:
        await _synced(app, sandbox, 5)
        sandbox.key_vault.permissions = frozenset({"get"})
        run = await run_sync(app)
        assert (run.status, run.deleted) == ("failed", 0)
        assert run.error is not None
        assert "prod" in run.error
        assert "permission" in run.error
        assert len(held(sandbox)[1]) == 5


async def test_one_source_secret_that_may_not_be_read_fails_alone(sandbox: Sandbox) -> None:
    sandbox.source.set_policy("reader", READER)
    env = {**sandbox.env, "HUB_TOKEN": sandbox.source.create_token("reader")}
    wanted = fill(sandbox, 4)
    async with installed(sandbox, TO_BOTH, env) as app:
        await _synced(app, sandbox, 8)
        denied = "\n".join(
            f'path "secret/{part}/apps/s01" {{ capabilities = ["deny"] }}' for part in ("data", "metadata")
        )
        sandbox.source.set_policy("reader", f"{READER}\n{denied}")
        fill(sandbox, 4, "new")
        run = await run_sync(app)
        assert (run.status, run.written, run.failed, run.deleted) == ("partial", 6, 2, 0)
        assert run.planned == settled(run)
        rows = await reasons(app)
        assert {(row.target, row.path) for row in rows} == {("prod", "s01"), ("second", "s01")}
        assert all(row.error and "hub:apps/s01" in row.error and "policies" in row.error for row in rows)
        assert held(sandbox)[0] == {"s00": "new0", "s01": wanted["s01"], "s02": "new2", "s03": "new3"}
        # Given back, it catches up.
        sandbox.source.set_policy("reader", READER)
        sandbox.key_vault.clock.advance(10)
        run = await run_sync(app)
        assert (run.status, run.written, run.unchanged) == ("succeeded", 2, 6)
        assert held(sandbox)[1]["s01"] == "new1"


# --- refused for good -----------------------------------------------------------------------------------------------


async def test_a_secret_that_a_destination_refuses_fails_alone_with_its_reason(sandbox: Sandbox) -> None:
    sandbox.second.set_policy(
        "writer",
        'path "secret/*" { capabilities = ["create", "read", "update", "delete", "list"] }\n'
        'path "secret/data/copy/s02" { capabilities = ["deny"] }',
    )
    env = {**sandbox.env, "SECOND_TOKEN": sandbox.second.create_token("writer")}
    fill(sandbox, 5)
    sandbox.source.put("secret", "apps/s03", {"value": "x" * 26_000})
    async with installed(sandbox, TO_BOTH, env) as app:
        run = await run_sync(app)
        assert (run.status, run.planned, run.written, run.failed) == ("partial", 10, 8, 2)
        why = {(row.target, row.path): row.error or "" for row in await reasons(app)}
        assert why.keys() == {("second", "s02"), ("prod", "s03")}
        assert "second:copy/s02" in why["second", "s02"]
        assert "policies" in why["second", "s02"]
        assert "prod:s03" in why["prod", "s03"]
        assert "25,600" in why["prod", "s03"]
        assert "26,000" in why["prod", "s03"]
        writes = sandbox.second.calls["write"], sandbox.key_vault.calls["set"]
        assert writes == (5, 4), "what is refused is not tried again, what can never fit is not even sent"
        # The same failure again: counted, tried, and not written into the history twice.
        sandbox.key_vault.clock.advance(10)
        run = await run_sync(app)
        assert (run.status, run.written, run.failed, run.unchanged) == ("partial", 0, 2, 8)
        assert len(await reasons(app)) == 2


async def test_a_throttled_run_that_runs_out_of_retries_is_partial_and_says_so(sandbox: Sandbox) -> None:
    wanted = fill(sandbox, 4)
    sandbox.second.faults.add(Fault("status", "write", "secret/data/copy/s01", times=None, status=429))
    async with sandbox.app(TO_BOTH.replace(RETRY, ONCE)) as app:
        run = await run_sync(app)
        assert (run.status, run.written, run.failed) == ("partial", 7, 1)
        assert run.planned == settled(run) == 8
        (row,) = await reasons(app)
        assert (row.target, row.path, row.attempt) == ("second", "s01", 1)
        assert row.error is not None
        assert "429" in row.error
        sandbox.second.faults.clear()
        sandbox.key_vault.clock.advance(10)
        again = await run_sync(app)
        assert (again.status, again.written, again.unchanged) == ("succeeded", 1, 7)
        assert held(sandbox) == (wanted, wanted)
        assert versions(sandbox, wanted) == {1}


# --- a dead destination ---------------------------------------------------------------------------------------------


def probes(sandbox: Sandbox, vault_id: str) -> list[str]:
    """The probe jobs that wait for their time in a vault's queue."""
    with sqlite3.connect(sandbox.folder / "vaultferry.db") as database:
        rows = database.execute("SELECT body FROM queue_messages WHERE queue = ?", (jobs.write_queue(vault_id),))
        found = [body for (body,) in rows if isinstance(jobs.decode(body), jobs.ProbeJob)]
    database.close()
    return found


async def test_a_dead_destination_holds_up_no_other_and_is_caught_up_by_a_probe(sandbox: Sandbox) -> None:
    wanted = fill(sandbox)
    syncs = TO_BOTH.replace(RETRY, ONCE)
    async with sandbox.app(syncs) as app:
        await sandbox.second.close()
        run = await run_sync(app)
        assert (run.status, run.planned, run.written, run.failed) == ("partial", 2 * COUNT, COUNT, COUNT)
        assert held(sandbox)[0] == wanted
        assert {row.target for row in await reasons(app)} == {"second"}
        assert all("can not be reached" in (row.error or "") for row in await reasons(app))
        (probe,) = probes(sandbox, "second")
        assert probes(sandbox, "prod") == []

        # It is still down when the probe comes: another one follows, and nothing else happens.
        await app.engine.handle(probe)
        assert len(probes(sandbox, "second")) == 2
        assert (await app.store.get_control("s")).active_run is None

        await sandbox.second.start()
        await app.engine.handle(probe)
        replay = (await app.store.get_control("s")).active_run
        assert replay is not None
        async with working(app, [jobs.write_queue("second"), jobs.write_queue("prod")]):
            while (await app.engine.runs.view(replay)).status.active:
                await app.queues.wait("nothing comes here", 0.02)
        caught_up = await app.engine.runs.view(replay)
        assert (caught_up.trigger, caught_up.status, caught_up.failed) == ("replay", RunStatus.SUCCEEDED, 0)
        assert caught_up.written == COUNT
        assert held(sandbox) == (wanted, wanted)
        assert versions(sandbox, wanted) == {1}


async def test_a_dead_source_of_a_second_sync_fails_with_its_name_and_the_first_goes_on(sandbox: Sandbox) -> None:
    wanted = fill(sandbox, 3)
    syncs = (
        TO_BOTH.replace(RETRY, ONCE)
        + f"""
  back:
    source: {{vault: second, prefix: copy/}}
    targets: [{{vault: hub, prefix: back/}}]
    {UNGUARDED}
    {ONCE}
"""
    )
    async with sandbox.app(syncs) as app:
        await run_sync(app)
        assert (await run_sync(app, "back")).written == 3
        sandbox.key_vault.clock.advance(10)
        await sandbox.second.close()
        back = await run_sync(app, "back")
        assert (back.status, back.deleted) == ("failed", 0)
        assert back.error is not None
        assert "second" in back.error
        run = await run_sync(app)
        assert (run.unchanged, run.failed, run.deleted) == (6, 0, 0)
        assert held(sandbox)[0] == wanted
