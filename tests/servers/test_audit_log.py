"""What a Vault tells its audit devices about what people do, and what is made of it: a real one and the sandbox's.

This is what the event-driven part is built on, so each row of what was once observed is held here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.vault import VaultSandbox
from shared.audit import Unreadable, may_matter, project, read_line, to_record
from shared.notices import AuditNotice, GapNotice
from tests.servers import processes
from tests.servers.processes import RealVault
from tests.servers.sinks import AnyVault, Kind, Sink

Step = tuple[str, str, Any]
BOTH = ["sandbox", pytest.param("real", marks=pytest.mark.real)]
KINDS: list[Kind] = ["tcp", "udp", "unix"]


@pytest.fixture(scope="module")
def own_vault() -> Iterator[RealVault]:
    """Not the session's: audit devices are the whole server's."""
    try:
        with processes.vault() as server:
            yield server
    except processes.ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(params=BOTH)
async def vault(request: pytest.FixtureRequest) -> AsyncIterator[AnyVault]:
    """With mounts of the test's own: two/ (KV v2) and one/ (KV v1)."""
    if request.param == "sandbox":
        async with VaultSandbox() as server:
            server.add_mount("two", 2)
            server.add_mount("one", 1)
            yield AnyVault("sandbox", server.url, server.root_token)
        return
    own: RealVault = request.getfixturevalue("own_vault")
    real = AnyVault("real", own.url, own.token)
    for path, version in (("two", "2"), ("one", "1")):
        await real.fine("POST", f"sys/mounts/{path}", {"type": "kv", "options": {"version": version}})
    await asyncio.to_thread(own.wait_for_upgrade, "two")
    yield real
    for path in (await real.fine("GET", "sys/mounts"))["data"]:
        if path in ("two/", "one/", "moved/"):
            await real.fine("DELETE", f"sys/mounts/{path}")


@asynccontextmanager
async def listening(vault: AnyVault, kind: Kind) -> AsyncIterator[Sink]:
    """A listener whose devices are gone before it is: a device that is left alone would stop the server."""
    async with Sink(kind) as sink:
        try:
            yield sink
        finally:
            await vault.without_devices()


async def told(vault: AnyVault, sink: Sink) -> list[dict[str, Any]]:
    """Everything that was logged up to now."""
    marker = f"sys/audit-hash/{secrets.token_hex(8)}"
    await vault.call("PUT", marker, {"input": ""})
    entries = []
    while True:
        entry = read_line(await sink.line())
        if entry["request"]["path"] == marker:
            if entry["type"] == "response":
                return entries
        else:
            entries.append(entry)


def notices(entries: list[dict[str, Any]]) -> list[Any]:
    """What a relay makes of them. The cheap test never hides what the thorough one would find."""
    found = []
    for entry in entries:
        notice = project(entry)
        if notice is not None:
            assert may_matter(json.dumps(entry, separators=(",", ":")).encode())
            found.append(notice)
    return found


def change(path: str, version: int | None = None) -> AuditNotice:
    mount, _, rest = path.partition("/")
    return AuditNotice(f"{mount}/", rest, "", version)


V1: Step = ("POST", "two/data/a/b", {"data": {"p": "1", "n": 7, "b": True, "z": None}})
V2: Step = ("POST", "two/data/a/b", {"data": {"p": "2"}})
DELETED: Step = ("DELETE", "two/data/a/b", None)
OLD: Step = ("POST", "one/a/b", {"p": "1", "n": 7})
POLICY = 'path "x" { capabilities = ["read"] }'

ROWS: dict[str, tuple[list[Step], Step, list[Any]]] = {
    "v2 create": ([], V1, [change("two/data/a/b")]),
    "v2 create with cas": (
        [],
        ("POST", "two/data/a/b", {"data": {}, "options": {"cas": 0}}),
        [change("two/data/a/b")],
    ),
    "v2 update": ([V1], V2, [change("two/data/a/b", 2)]),
    "v2 update after a soft delete": ([V1, DELETED], V2, [change("two/data/a/b", 2)]),
    "v2 patch": ([V1], ("PATCH", "two/data/a/b", {"data": {"p": "3"}}), [change("two/data/a/b", 2)]),
    "v2 delete": ([V1], DELETED, [change("two/data/a/b")]),
    "v2 delete of nothing": ([], DELETED, [change("two/data/a/b")]),
    "v2 delete versions": ([V1], ("POST", "two/delete/a/b", {"versions": [1]}), [change("two/delete/a/b")]),
    "v2 undelete": ([V1, DELETED], ("POST", "two/undelete/a/b", {"versions": [1]}), [change("two/undelete/a/b")]),
    "v2 undelete of nothing": ([], ("POST", "two/undelete/a/b", {"versions": [1]}), [change("two/undelete/a/b")]),
    "v2 destroy": ([V1], ("PUT", "two/destroy/a/b", {"versions": [1]}), [change("two/destroy/a/b")]),
    "v2 metadata write": (
        [V1],
        ("POST", "two/metadata/a/b", {"custom_metadata": {"k": "v"}}),
        [change("two/metadata/a/b")],
    ),
    "v2 metadata patch": (
        [V1],
        ("PATCH", "two/metadata/a/b", {"custom_metadata": {"k": "w"}}),
        [change("two/metadata/a/b")],
    ),
    "v2 metadata delete": ([V1], ("DELETE", "two/metadata/a/b", None), [change("two/metadata/a/b")]),
    "v2 made anew": ([V1, V2, ("DELETE", "two/metadata/a/b", None)], V1, [change("two/data/a/b")]),
    "v2 with another version expected": (
        [V1],
        ("POST", "two/data/a/b", {"data": {}, "options": {"cas": 5}}),
        [],
    ),
    "v2 read": ([V1], ("GET", "two/data/a/b", None), []),
    "v2 list": ([V1], ("LIST", "two/metadata/a", None), []),
    "v1 create": ([], OLD, [change("one/a/b")]),
    "v1 update": ([OLD], ("PUT", "one/a/b", {"p": "2"}), [change("one/a/b")]),
    "v1 delete": ([OLD], ("DELETE", "one/a/b", None), [change("one/a/b")]),
    "v1 patch": ([OLD], ("PATCH", "one/a/b", {"p": "2"}), []),
    "v1 read": ([OLD], ("GET", "one/a/b", None), []),
    "policy write": ([], ("PUT", "sys/policies/acl/My-Pol", {"policy": POLICY}), [change("sys/policies/acl/My-Pol")]),
    "policy write by its old path": (
        [],
        ("PUT", "sys/policy/My-Pol", {"policy": POLICY}),
        [change("sys/policy/My-Pol")],
    ),
    "policy delete": (
        [("PUT", "sys/policies/acl/my-pol", {"policy": POLICY})],
        ("DELETE", "sys/policies/acl/my-pol", None),
        [change("sys/policies/acl/my-pol")],
    ),
    "policy read": ([], ("GET", "sys/policies/acl/default", None), []),
    "remount": ([], ("POST", "sys/remount", {"from": "one", "to": "moved"}), [GapNotice("remount")]),
    "a mount's configuration": ([], ("POST", "two/config", {"max_versions": 3}), [change("two/config")]),
    "a login that fails": ([], ("POST", "auth/token/create", {"ttl": "nonsense"}), []),
}


@pytest.mark.parametrize("row", ROWS)
async def test_what_a_person_does_is_noticed_as_it_should_be(vault: AnyVault, row: str) -> None:
    before, action, expected = ROWS[row]
    async with listening(vault, "tcp") as sink:
        for method, path, body in before:
            await vault.fine(method, path, body)
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.call(*action)
        entries = await told(vault, sink)
        assert notices(entries) == expected
        if action[0] != "PATCH" or expected:
            kinds = [entry["type"] for entry in entries]
            assert kinds == ["request", "response"]
            assert entries[0]["request"]["id"] == entries[1]["request"]["id"]


async def test_a_write_whose_answer_is_wrapped_tells_no_version(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.fine(*V1)
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.fine(*V2, headers={"X-Vault-Wrap-TTL": "60s"})
        assert set(notices(await told(vault, sink))) == {change("two/data/a/b")}


async def test_a_denied_write_is_not_noticed(vault: AnyVault) -> None:
    answer = await vault.fine("POST", "auth/token/create", {"policies": ["default"]})
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        for token in (answer["auth"]["client_token"], "hvs.nonsense"):
            status, _ = await vault.call(*V1, token=token)
            assert status == 403
        assert notices(await told(vault, sink)) == []


NAMES = {
    "200 characters": ("x" * 200, "x" * 200),
    "deep": ("/".join("abcdefghijkl"), "/".join("abcdefghijkl")),
    "unicode": ("%C3%BCml%C3%A4ut/%E6%97%A5%E6%9C%AC/%F0%9F%94%91", "\u00fcml\u00e4ut/\u65e5\u672c/\U0001f511"),
    "spaces": ("with%20space/and%20another", "with space/and another"),
    "signs": ("%252e%2B%26%3D%3F%23%3B%27%22%5C%3C%3E", "%2e+&=?#;'\"\\<>"),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_names_arrive_letter_by_letter_over_each_kind_of_socket(vault: AnyVault, kind: Kind) -> None:
    async with listening(vault, kind) as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        for sent, name in NAMES.values():
            await vault.fine("POST", f"two/data/{sent}", {"data": {"v": "1"}})
            await vault.fine("POST", f"one/{sent}", {"v": "1"})
            await vault.fine("DELETE", f"two/metadata/{sent}")
            expected = [f"two/data/{name}", f"one/{name}", f"two/metadata/{name}"]
            assert notices(await told(vault, sink)) == [change(path) for path in expected]


async def test_a_path_that_leaves_its_place_is_no_secrets(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.call("POST", "two/data/a/%2e%2e/%2e%2e/other", {"data": {"v": "1"}})
        for entry in await told(vault, sink):
            try:
                assert project(entry) is None
            except Unreadable:
                assert ".." in entry["request"]["path"]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_entry_is_one_line_and_enabling_sends_one_of_its_own(vault: AnyVault, kind: Kind) -> None:
    async with listening(vault, kind) as sink:
        await vault.enable("t", "socket", **sink.options)
        first = read_line(await sink.line())
        assert (first["type"], first["request"]["path"]) == ("request", "sys/audit/test")
        assert project(first) is None
        for n in range(50):
            await vault.fine("POST", f"two/data/n{n}", {"data": {"v": str(n)}})
        found = notices(await told(vault, sink))
        assert found == [change(f"two/data/n{n}") for n in range(50)]
        assert sink.connections == (0 if kind == "udp" else 1)
        assert all(each.endswith(b"}\n") and each.count(b"\n") == 1 for each in sink.datagrams)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_after_a_clean_reconnect_nothing_is_lost_and_what_was_logged_meanwhile_never_comes(
    vault: AnyVault, kind: Kind, tmp_path: Path
) -> None:
    async with listening(vault, kind) as sink:
        # Beside another device, or Vault would stop answering.
        await vault.enable("f", "file", file_path=str(tmp_path / "log"))
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await sink.hang_up()
        for n in range(3):
            await vault.fine("POST", f"two/data/away{n}", {"data": {"v": "1"}})
        await sink.listen()
        await vault.fine("POST", "two/data/back", {"data": {"v": "1"}})
        found = notices(await told(vault, sink))
        assert found[-1] == change("two/data/back")
        assert change("two/data/away1") not in found


@pytest.mark.parametrize("kind", KINDS)
async def test_with_raw_logging_no_value_is_left_in_what_the_relay_keeps(vault: AnyVault, kind: Kind) -> None:
    canary = f"canary-{secrets.token_hex(8)}"
    async with listening(vault, kind) as sink:
        await vault.enable("t", "socket", **sink.options, log_raw="true")
        await told(vault, sink)
        await vault.fine("POST", "two/data/a", {"data": {"password": canary, "n": 31337_31337}})
        await vault.fine("PATCH", "two/data/a", {"data": {"other": canary}})
        await vault.fine("GET", "two/data/a")
        await vault.fine("POST", "one/a", {"password": canary})
        await vault.fine("PUT", "sys/policies/acl/c", {"policy": f"# {canary}\n{POLICY}"})
        entries = await told(vault, sink)
        assert json.dumps(entries).count(canary) >= 5, "the log holds it"
        found = notices(entries)
        assert found == [
            change("two/data/a"),
            change("two/data/a", 2),
            change("one/a"),
            change("sys/policies/acl/c"),
        ]
        kept = repr(found) + json.dumps([to_record(notice) for notice in found])
        assert canary not in kept
        assert "3133731337" not in kept


async def test_a_number_in_an_answer_is_in_the_clear_and_dropped(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await vault.fine("POST", "two/data/a", {"data": {"pin": 31337_31337}})
        await vault.fine("GET", "two/data/a")
        entries = await told(vault, sink)
        assert "3133731337" in json.dumps(entries)
        assert notices(entries) == [change("two/data/a")]


@pytest.mark.parametrize("prefix", ["ferry: ", "@cee:", "\u00fc "])
async def test_a_prefix_before_each_line_is_looked_past(vault: AnyVault, prefix: str) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options, prefix=prefix)
        assert (await sink.line()).startswith(prefix.encode())
        await vault.fine(*V1)
        assert notices(await told(vault, sink)) == [change("two/data/a/b")]


async def test_the_order_of_entries_is_not_that_of_versions_so_a_notice_says_its_own(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.fine(*V1)
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await asyncio.gather(*(vault.fine(*V2) for _ in range(40)))
        found = notices(await told(vault, sink))
        assert sorted(notice.version for notice in found) == list(range(2, 42))


async def test_what_is_hashed_and_what_is_in_the_clear(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.fine(
            "POST", "two/data/a", {"data": {"s": "x", "n": 7, "b": True, "z": None}, "options": {"cas": 0}}
        )
        request, response = await told(vault, sink)
        given = request["request"]["data"]
        assert given == response["request"]["data"]
        assert all(value.startswith("hmac-sha256:") for value in (given["data"]["s"], given["data"]["n"]))
        assert given["options"]["cas"].startswith("hmac-sha256:")
        assert (given["data"]["b"], given["data"]["z"]) == (True, None)
        answer = response["response"]["data"]
        assert (answer["version"], answer["destroyed"]) == (1, False)
        assert answer["created_time"].startswith("hmac-sha256:")

        await vault.fine("POST", "two/destroy/a", {"versions": [1]})
        request, response = await told(vault, sink)
        assert all(value.startswith("hmac-sha256:") for value in request["request"]["data"]["versions"])
        assert "response" not in response


async def test_a_tuned_mount_tells_versions_and_times_in_the_clear(vault: AnyVault) -> None:
    tuning = {"audit_non_hmac_request_keys": ["versions"], "audit_non_hmac_response_keys": ["created_time"]}
    await vault.fine("POST", "sys/mounts/two/tune", tuning)
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.fine(*V1)
        _, response = await told(vault, sink)
        assert response["response"]["data"]["created_time"].startswith("20")
        await vault.fine("POST", "two/destroy/a/b", {"versions": [1]})
        request, _ = await told(vault, sink)
        assert [str(each) for each in request["request"]["data"]["versions"]] == ["1"]


async def test_over_udp_large_entries_are_lost_without_a_word_beside_another_device(
    vault: AnyVault, tmp_path: Path
) -> None:
    async with listening(vault, "udp") as sink:
        await vault.enable("f", "file", file_path=str(tmp_path / "log"))
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        large = {f"field {n}": "v" for n in range(1000)}
        await vault.fine("POST", "two/data/large", {"data": large})
        await vault.fine("POST", "two/data/small", {"data": {"v": "1"}})
        assert notices(await told(vault, sink)) == [change("two/data/small")]
        assert "two/data/large" in await asyncio.to_thread((tmp_path / "log").read_text)


async def test_over_tcp_entries_of_any_size_arrive_whole(vault: AnyVault) -> None:
    async with listening(vault, "tcp") as sink:
        await vault.enable("t", "socket", **sink.options)
        await told(vault, sink)
        await vault.fine("POST", "two/data/large", {"data": {f"field {n}": "v" for n in range(5000)}})
        entries = await told(vault, sink)
        assert notices(entries) == [change("two/data/large")]
        assert len(json.dumps(entries[1])) > 300_000


async def test_over_udp_nobody_has_to_listen(vault: AnyVault) -> None:
    async with listening(vault, "udp") as sink:
        options = sink.options
        await sink.hang_up()
        await vault.enable("t", "socket", **options)
        for _ in range(5):
            await vault.fine(*V1)
