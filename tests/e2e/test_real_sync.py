"""From a real Vault to another one and to a Key Vault, through the real installation, as a person lives with it."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.key_vault import KeyVaultServer
from shared.app import App
from shared.model import Run, RunStatus
from shared.vault import Use
from tests.e2e.conftest import Installation, Place

pytestmark = pytest.mark.real

BOTH = """
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}, {vault: prod}]
    delete: {propagate: true, max_percent: 100}
"""
SECOND = """
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/}]
    delete: {propagate: true, max_percent: 100}
"""
IMPATIENT = "    retry_policy: {max_retries: 0}\n"

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----\n"
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"value": "v"},
    "db": {"user": "u", "password": "p\u00e4ss \u2713", "port": 5432, "tls": True, "hosts": ["a", {"b": None}]},
    "empty": {"value": ""},
    "pem": {"value": PEM},
    "looks-like-json": {"value": '{"value": "x"}'},
    "deep/er/key": {"value": "d"},
}


def counts(run: Run) -> dict[str, int]:
    names = ("written", "unchanged", "deleted", "failed", "conflicts", "drifted")
    return {name: getattr(run, name) for name in names if getattr(run, name)}


def at_key_vault(key_vault: KeyVaultServer) -> dict[str, str]:
    found = {name: key_vault.get(name) for name in key_vault.names()}
    return {name: version.value for name, version in found.items() if version is not None}


@contextmanager
def audited(folder: Path, hub: Place, second: Place) -> Iterator[Callable[[], Counter[tuple[str, str]]]]:
    """Both servers log what they are asked while the block runs; `calls()` counts it by place and operation."""
    device = f"count-{secrets.token_hex(4)}"
    files = {place: folder / f"{device}-{name}" for place, name in ((hub, "hub"), (second, "second"))}

    def calls() -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for place, file in files.items():
            for entry in map(json.loads, file.read_text().splitlines()):
                request = entry["request"]
                if entry["type"] == "request" and request["path"].startswith(f"{place.mount}/"):
                    section = request["path"].split("/")[1]
                    found["hub" if place is hub else "second", f"{request['operation']} {section}"] += 1
        return found

    for place, file in files.items():
        place.server.call("POST", f"sys/audit/{device}", {"type": "file", "options": {"file_path": str(file)}})
    try:
        yield calls
    finally:
        for place in files:
            place.server.call("DELETE", f"sys/audit/{device}")


async def synced(here: Installation, app: App, status: str = "succeeded", **options: bool) -> dict[str, int]:
    run = await here.run(app, **options)
    assert (str(run.status), run.error if status == "succeeded" else None) == (status, None)
    return counts(run)


async def test_a_secrets_life_is_followed_from_its_first_value_to_its_destruction(
    here: Installation, hub: Place, second: Place, key_vault: KeyVaultServer
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    for name, fields in FIELDS.items():
        hub.put(f"apps/{name}", fields)
    hub.put("elsewhere/secret", {"value": "not ours to carry"})
    total = 2 * len(FIELDS)
    async with here.app(BOTH) as app:
        assert await synced(here, app) == {"written": total}
        assert {name: second.get(f"copy/{name}") for name in FIELDS} == FIELDS
        stored = at_key_vault(key_vault)
        assert sorted(stored) == sorted(name.replace("/", "-") for name in FIELDS)
        assert (stored["pem"], stored["empty"], stored["plain"]) == (PEM, "", "v")
        assert await synced(here, app) == {"unchanged": total}
        assert second.metadata("copy/plain")["current_version"] == 1

        hub.put("apps/plain", {"value": "v2"})
        assert await synced(here, app) == {"written": 2, "unchanged": total - 2}
        assert (second.get("copy/plain"), at_key_vault(key_vault)["plain"]) == ({"value": "v2"}, "v2")

        hub.delete("apps/plain")
        assert await synced(here, app) == {"deleted": 2, "unchanged": total - 2}
        assert (second.get("copy/plain"), key_vault.get("plain")) == (None, None)
        assert second.metadata("copy/plain")["versions"]["2"]["destroyed"] is False, "it can be had back"
        assert await synced(here, app) == {"unchanged": total - 2}

        hub.post("apps/plain", {"versions": [2]}, "undelete")
        assert await synced(here, app) == {"written": 2, "unchanged": total - 2}
        assert (second.get("copy/plain"), at_key_vault(key_vault)["plain"]) == ({"value": "v2"}, "v2")

        # Gone with its metadata, and made anew: its versions start at 1 again, where they were before.
        hub.remove("apps/plain")
        hub.put("apps/plain", {"value": "another"})
        hub.put("apps/plain", {"value": "another 2"})
        assert await synced(here, app) == {"written": 2, "unchanged": total - 2}
        assert (second.get("copy/plain"), at_key_vault(key_vault)["plain"]) == ({"value": "another 2"}, "another 2")

        hub.post("apps/plain", {"versions": [2]}, "destroy")
        assert await synced(here, app) == {"deleted": 2, "unchanged": total - 2}
        hub.put("apps/plain", {"value": "after"})
        assert await synced(here, app) == {"written": 2, "unchanged": total - 2}

        # The other end of the same: what is at the destination is removed there, tombstone and all.
        second.remove("copy/db")
        key_vault.clock.advance(10)
        key_vault.delete("db")
        assert await synced(here, app) == {"written": 2, "drifted": 2, "unchanged": total - 2}
        assert second.get("copy/db") == FIELDS["db"]

        for target in ("second", "prod"):
            actions = await here.history(app, "plain", target)
            assert actions == ["create", "update", "delete", "create", "update", "delete", "create"]
        assert await here.verified(app) == total + 2 * 6 + 2


async def test_a_destination_changed_by_hand_is_shown_and_repaired(
    here: Installation, hub: Place, second: Place, key_vault: KeyVaultServer
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    for n in range(4):
        hub.put(f"apps/s{n}", {"value": f"v{n}"})
    async with here.app(BOTH) as app:
        assert await synced(here, app) == {"written": 8}
        key_vault.clock.advance(10)
        second.put("copy/s0", {"value": "by hand"})
        second.delete("copy/s1")
        second.remove("copy/s2")
        key_vault.put("s3", "by hand")
        dry = await here.run(app, dry_run=True)
        assert dry.planned == 4
        assert second.get("copy/s0") == {"value": "by hand"}
        assert await synced(here, app) == {"written": 4, "drifted": 4, "unchanged": 4}
        assert [second.get(f"copy/s{n}") for n in range(4)] == [{"value": f"v{n}"} for n in range(4)]
        assert at_key_vault(key_vault)["s3"] == "v3"
        assert await synced(here, app) == {"unchanged": 8}


async def test_an_unchanged_sync_costs_listings_and_one_look_a_side(
    here: Installation, hub: Place, second: Place, tmp_path: Path
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    for n in range(30):
        hub.put(f"apps/team{n % 3}/s{n}", {"value": f"v{n}"})
    async with here.app(SECOND) as app:
        with audited(tmp_path, hub, second) as calls:
            assert await synced(here, app) == {"written": 30}
            assert calls() == {
                ("hub", "list metadata"): 4,
                ("hub", "read data"): 30,
                ("second", "list metadata"): 1,
                ("second", "create data"): 30,
            }
        with audited(tmp_path, hub, second) as calls:
            assert await synced(here, app) == {"unchanged": 30}
            assert calls() == {
                ("hub", "list metadata"): 4,
                ("hub", "read metadata"): 30,
                ("second", "list metadata"): 4,
                ("second", "read metadata"): 30,
            }
        hub.put("apps/team1/s1", {"value": "new"})
        with audited(tmp_path, hub, second) as calls:
            assert await synced(here, app) == {"written": 1, "unchanged": 29}
            found = calls()
            assert (found["hub", "read data"], found["second", "update data"]) == (1, 1)
            assert found["second", "read data"] == 0
            assert found["hub", "read metadata"] == 30
            assert found["second", "read metadata"] <= 30


async def test_kv_version_1_on_either_side(here: Installation, hub: Place, second: Place, new_place: Any) -> None:
    old_hub, old_second = new_place(hub.server, 1), new_place(second.server, 1)
    for source, target in ((old_hub, second), (hub, old_second)):
        here.vaults.clear()
        here.tag = secrets.token_hex(3)
        here.add("hub", source)
        here.add("second", target)
        source.put("apps/a", {"value": "1", "n": 5})
        source.put("apps/b/c", {"value": "1"})
        async with here.app(SECOND) as app:
            assert await synced(here, app) == {"written": 2}
            assert target.get("copy/a") == {"value": "1", "n": 5}
            assert await synced(here, app) == {"unchanged": 2}
            source.put("apps/a", {"value": "2"})
            assert await synced(here, app) == {"written": 1, "unchanged": 1}
            target.put("copy/b/c", {"value": "by hand"})
            assert await synced(here, app) == {"written": 1, "drifted": 1, "unchanged": 1}
            source.delete("apps/a")
            assert await synced(here, app) == {"deleted": 1, "unchanged": 1}
            assert target.get("copy/a") is None
            assert target.get("copy/b/c") == {"value": "1"}
            assert await here.verified(app) == 5


async def test_a_target_that_demands_check_and_set_and_keeps_few_versions(
    here: Installation, hub: Place, second: Place
) -> None:
    second.server.call("POST", f"{second.mount}/config", {"cas_required": True, "max_versions": 2})
    here.add("hub", hub)
    here.add("second", second)
    hub.put("apps/a", {"value": "0"})
    hub.put("apps/b", {"value": "0"})
    async with here.app(SECOND) as app:
        assert await synced(here, app) == {"written": 2}
        for n in range(1, 4):
            hub.put("apps/a", {"value": str(n)})
            assert await synced(here, app) == {"written": 1, "unchanged": 1}
        assert sorted(second.metadata("copy/a")["versions"]) == ["3", "4"]
        second.post("copy/a", {"data": {"value": "by hand"}, "options": {"cas": 4}}, "data")
        second.delete("copy/b")
        assert await synced(here, app) == {"written": 2, "drifted": 2}
        assert [second.get(f"copy/{name}") for name in "ab"] == [{"value": "3"}, {"value": "0"}]
        hub.remove("apps/a")
        assert await synced(here, app) == {"deleted": 1, "unchanged": 1}
        hub.put("apps/a", {"value": "back"})
        assert await synced(here, app) == {"written": 1, "unchanged": 1}
        second.remove("copy/a")
        assert await synced(here, app) == {"written": 1, "drifted": 1, "unchanged": 1}
        assert second.get("copy/a") == {"value": "back"}


async def test_names_arrive_letter_by_letter_or_are_refused_by_name(
    here: Installation, hub: Place, second: Place
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    names = [
        "with space/and another",
        "\u00fcml\u00e4ut/\u65e5\u672c\u8a9e/\U0001f511",
        "%2e%2e/up",
        "%252e",
        "a%2Fb",
        "plus+and&and=",
        "question?mark",
        "hash#tag",
        "semi;colon,comma",
        "quote'\"",
        "...",
        "back\\slash",
        "UPPER/lower",
    ]
    for name in names:
        hub.put(f"apps/{name}", {"value": name})
    async with here.app(SECOND) as app:
        assert await synced(here, app) == {"written": len(names)}
        assert {name: second.get(f"copy/{name}") for name in names} == {name: {"value": name} for name in names}
        assert await synced(here, app) == {"unchanged": len(names)}
        for name in names:
            hub.delete(f"apps/{name}")
        assert await synced(here, app) == {"deleted": len(names)}
        assert [second.get(f"copy/{name}") for name in names] == [None] * len(names)


async def test_each_field_becomes_a_secret(
    here: Installation, hub: Place, second: Place, key_vault: KeyVaultServer
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    hub.put("apps/db", {"user": "u", "password": "p", "port": 5432})
    sync = """
    source: {vault: hub, prefix: apps/}
    targets: [{vault: second, prefix: copy/, granularity: field, name: "{path}/{field}"}, {vault: prod, granularity: field}]
    delete: {propagate: true, max_percent: 100}
"""
    async with here.app(sync) as app:
        assert await synced(here, app) == {"written": 2}
        assert second.get("copy/db/port") == {"value": 5432}
        assert sorted(at_key_vault(key_vault)) == ["db-password", "db-port", "db-user"]
        assert await synced(here, app) == {"unchanged": 2}
        hub.put("apps/db", {"user": "u", "password": "new", "host": "h"})
        assert await synced(here, app) == {"written": 2}
        assert second.metadata("copy/db/user")["current_version"] == 1, "what did not change is not written"
        assert second.get("copy/db/password") == {"value": "new"}
        assert second.get("copy/db/port") is None
        assert at_key_vault(key_vault) == {"db-user": "u", "db-password": "new", "db-host": "h"}
        hub.delete("apps/db")
        assert await synced(here, app) == {"deleted": 2}
        assert at_key_vault(key_vault) == {}
        assert [second.get(f"copy/db/{name}") for name in ("user", "password", "host")] == [None] * 3


# --- who may do what ----------------------------------------------------------------------------------------------------

SOURCE_RULES = {
    ("MOUNT/data/apps/*", "read"),
    ("MOUNT/metadata/apps/*", "list"),
    ("MOUNT/metadata/apps/*", "read"),
}
WRITE_RULES = {
    ("MOUNT/data/copy/*", "create"),
    ("MOUNT/data/copy/*", "update"),
    ("MOUNT/data/copy/*", "read"),
    ("MOUNT/metadata/copy/*", "list"),
    ("MOUNT/metadata/copy/*", "read"),
}
TARGET_RULES = WRITE_RULES | {("MOUNT/delete/copy/*", "update")}
"""The last one for `delete.propagate` alone."""
ASKING = ("sys/capabilities-self", "update")


def rules(granted: set[tuple[str, str]]) -> str:
    paths: dict[str, list[str]] = {}
    for path, capability in sorted(granted):
        paths.setdefault(path, []).append(f'"{capability}"')
    return "\n".join(f'path "{path}" {{ capabilities = [{", ".join(each)}] }}' for path, each in paths.items())


def auth(token: Any) -> str:
    return f"{{method: token, token: {token.text}}}"


async def everything_a_sync_does(here: Installation, app: App, hub: Place, second: Place) -> None:
    for name in ("a", "b/c"):
        hub.put(f"apps/{name}", {"value": "1"})
    assert await synced(here, app) == {"written": 2}
    assert await synced(here, app) == {"unchanged": 2}
    hub.put("apps/a", {"value": "2"})
    assert await synced(here, app) == {"written": 1, "unchanged": 1}
    second.put("copy/a", {"value": "by hand"})
    second.delete("copy/b/c")
    assert await synced(here, app) == {"written": 2, "drifted": 2}
    hub.delete("apps/a")
    assert await synced(here, app) == {"deleted": 1, "unchanged": 1}
    hub.post("apps/a", {"versions": [2]}, "undelete")
    assert await synced(here, app) == {"written": 1, "unchanged": 1}
    assert second.get("copy/a") == {"value": "2"}


async def test_the_least_privileges_are_enough_and_check_misses_each_that_is_taken_away(
    here: Installation, hub: Place, second: Place
) -> None:
    reader, writer = hub.policy(rules(SOURCE_RULES)), second.policy(rules(TARGET_RULES))
    here.add("hub", hub, auth(reader))
    here.add("second", second, auth(writer))
    async with here.app(SECOND) as app:
        await everything_a_sync_does(here, app, hub, second)
        source = await app.vaults.get(f"hub-{here.tag}")
        target = await app.vaults.get(f"second-{here.tag}")
        read_use, write_use = Use(prefix="apps/"), Use(prefix="copy/", write=True, delete=True)
        for vault, use, token, granted in (
            (source, read_use, reader, SOURCE_RULES),
            (target, write_use, writer, TARGET_RULES),
        ):
            # Syncing takes no more; asking takes what Vault's own default policy grants.
            unable = [finding for finding in await vault.check([use]) if not finding.ok]
            assert ["capabilities-self" in finding.hint for finding in unable] == [True]
            token.allow(rules(granted | {ASKING}))
            assert [finding for finding in await vault.check([use]) if not finding.ok] == []
            for rule in sorted(granted):
                token.allow(rules(granted - {rule} | {ASKING}))
                missing = [finding for finding in await vault.check([use]) if not finding.ok]
                assert len(missing) == 1, rule
                assert rule[1] in missing[0].detail
                assert rule[0].removeprefix("MOUNT") in missing[0].hint
            token.allow(rules(granted))


@pytest.mark.parametrize("here", ["sqlite"], indirect=True)
@pytest.mark.parametrize("rule", sorted(SOURCE_RULES | TARGET_RULES), ids=lambda rule: f"{rule[1]} {rule[0][6:-2]}")
async def test_without_any_one_of_them_a_sync_can_not_do_all_that_it_should(
    here: Installation, hub: Place, second: Place, rule: tuple[str, str]
) -> None:
    here.add("hub", hub, auth(hub.policy(rules(SOURCE_RULES - {rule}))))
    here.add("second", second, auth(second.policy(rules(TARGET_RULES - {rule}))))
    async with here.app(SECOND + IMPATIENT) as app:
        with pytest.raises(AssertionError):
            await everything_a_sync_does(here, app, hub, second)


async def test_an_app_role_logs_in_and_logs_in_again_when_its_token_is_gone(
    here: Installation, hub: Place, second: Place
) -> None:
    mount = f"roles-{secrets.token_hex(3)}"
    hub.server.call("POST", f"sys/auth/{mount}", {"type": "approle"})
    try:
        policy = hub.policy(rules(SOURCE_RULES)).policy
        asked = {"token_policies": [policy], "token_ttl": "1h", "token_no_default_policy": True}
        hub.server.call("POST", f"auth/{mount}/role/ferry", asked)
        role_id = hub.server.call("GET", f"auth/{mount}/role/ferry/role-id")["data"]["role_id"]
        secret_id = hub.server.call("POST", f"auth/{mount}/role/ferry/secret-id", {})["data"]["secret_id"]
        role = f"{{method: approle, role_id: {role_id}, secret_id: {secret_id}, mount: {mount}}}"
        here.add("hub", hub, role)
        here.add("second", second)
        async with here.app(SECOND) as app:
            hub.put("apps/a", {"value": "1"})
            assert await synced(here, app) == {"written": 1}
            hub.put("apps/a", {"value": "2"})
            hub.server.call("POST", f"sys/leases/revoke-prefix/auth/{mount}/login")
            assert await synced(here, app) == {"written": 1}
            assert second.get("copy/a") == {"value": "2"}
            # And where even a new login is refused, that is what the run says.
            hub.server.call("DELETE", f"auth/{mount}/role/ferry")
            hub.server.call("POST", f"sys/leases/revoke-prefix/auth/{mount}/login")
            run = await here.run(app)
            assert run.status is RunStatus.FAILED
            assert "approle" in (run.error or "")
            assert secret_id not in (run.error or "")
            assert second.get("copy/a") == {"value": "2"}
    finally:
        hub.server.call("DELETE", f"sys/auth/{mount}")


async def test_a_token_that_lost_its_permissions_fails_the_run_and_deletes_nothing(
    here: Installation, hub: Place, second: Place
) -> None:
    reader = hub.policy(rules(SOURCE_RULES))
    here.add("hub", hub, auth(reader))
    here.add("second", second)
    for name in ("a", "b", "team/c"):
        hub.put(f"apps/{name}", {"value": "1"})
    async with here.app(SECOND + IMPATIENT) as app:
        assert await synced(here, app) == {"written": 3}
        kept = {f"copy/{name}": second.get(f"copy/{name}") for name in ("a", "b", "team/c")}

        async def refused(granted: str) -> Run:
            reader.allow(granted)
            run = await here.run(app)
            assert {name: second.get(name) for name in kept} == kept
            assert counts(run).get("deleted", 0) == 0
            return run

        nothing = await refused('path "MOUNT/data/other/*" { capabilities = ["read"] }')
        assert nothing.status is RunStatus.FAILED
        assert f"hub-{here.tag}" in (nothing.error or "")
        # Half a listing is none. (For a LIST, Vault looks for a rule without the slash at the end first.)
        folder = await refused(rules(SOURCE_RULES) + '\npath "MOUNT/metadata/apps/team" { capabilities = ["deny"] }')
        assert folder.status is RunStatus.FAILED
        assert "apps/team/" in (folder.error or "")
        # The values of one secret alone: the others go on.
        for name in ("a", "b"):
            hub.put(f"apps/{name}", {"value": "2"})
        kept["copy/b"] = {"value": "2"}
        one = await refused(rules(SOURCE_RULES) + '\npath "MOUNT/data/apps/a" { capabilities = ["deny"] }')
        assert (one.status, counts(one)) == (RunStatus.PARTIAL, {"written": 1, "unchanged": 1, "failed": 1})
        errors = await here.errors(app)
        assert list(errors) == [("second", "a")]
        assert "apps/a" in errors["second", "a"]
        assert await here.history(app, "a", "second") == ["create", "fail"]
        reader.allow(rules(SOURCE_RULES))
        assert await synced(here, app) == {"written": 1, "unchanged": 2}
        assert await here.errors(app) == {}


@pytest.mark.parametrize("side", ["hub", "second"])
async def test_metadata_that_may_not_be_read_fails_that_secret_only(
    here: Installation, hub: Place, second: Place, side: str
) -> None:
    reader, writer = hub.policy(rules(SOURCE_RULES)), second.policy(rules(TARGET_RULES))
    here.add("hub", hub, auth(reader))
    here.add("second", second, auth(writer))
    for name in "abc":
        hub.put(f"apps/{name}", {"value": "1"})
    async with here.app(SECOND + IMPATIENT) as app:
        assert await synced(here, app) == {"written": 3}
        hub.put("apps/b", {"value": "2"})
        token, granted = (reader, SOURCE_RULES) if side == "hub" else (writer, TARGET_RULES)
        folder = "apps" if side == "hub" else "copy"
        token.allow(f'{rules(granted)}\npath "MOUNT/metadata/{folder}/a" {{ capabilities = ["deny"] }}')
        assert await synced(here, app, "partial") == {"written": 1, "unchanged": 1, "failed": 1}
        errors = await here.errors(app)
        assert list(errors) == [("second", "a")]
        assert f"metadata/{folder}/a" in errors["second", "a"]
        token.allow(rules(granted))
        assert await synced(here, app) == {"unchanged": 3}
        assert await here.errors(app) == {}


async def test_a_source_mount_that_is_gone_deletes_nothing(
    here: Installation, hub: Place, second: Place, new_place: Any
) -> None:
    here.add("hub", hub)
    here.add("second", second)
    hub.put("apps/a", {"value": "1"})
    async with here.app(SECOND + IMPATIENT) as app:
        assert await synced(here, app) == {"written": 1}
        hub.server.call("DELETE", f"sys/mounts/{hub.mount}")
        run = await here.run(app)
        assert run.status is RunStatus.FAILED
        assert hub.mount in (run.error or "") or "mount" in (run.error or "")
    # And for an app that has not seen it while it was there.
    async with here.app(SECOND + IMPATIENT) as app:
        assert (await here.run(app)).status is RunStatus.FAILED
        assert second.get("copy/a") == {"value": "1"}


async def test_a_target_that_refuses_writes_is_recorded_secret_by_secret(
    here: Installation, hub: Place, second: Place
) -> None:
    writer = second.policy(rules(TARGET_RULES - {("MOUNT/data/copy/*", "create")}))
    here.add("hub", hub)
    here.add("second", second, auth(writer))
    hub.put("apps/a", {"value": "1"})
    hub.put("apps/b", {"value": "1"})
    second.put("copy/b", {"value": "theirs"})
    async with here.app(SECOND + IMPATIENT) as app:
        run = await here.run(app)
        assert (run.status, counts(run)) == (RunStatus.PARTIAL, {"written": 1, "failed": 1})
        errors = await here.errors(app)
        assert "copy/a" in errors["second", "a"]
        assert second.get("copy/b") == {"value": "1"}
        writer.allow(rules(TARGET_RULES))
        replayed = await app.engine.runs.replay(f"s-{here.tag}")
        assert replayed.paths == ("a",)
        assert await synced(here, app) == {"written": 1}, "it joins the replay"
        assert second.get("copy/a") == {"value": "1"}
