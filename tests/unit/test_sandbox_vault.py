"""The sandbox's Vault through the official client, its misbehaviour, and what it counts and logs.

That it answers as the real one does is the business of tests/servers/test_sandbox_parity.py.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import hvac
import pytest
import requests

from sandbox.faults import Fault, Faults
from sandbox.vault import VaultSandbox


@pytest.fixture
async def vault() -> AsyncIterator[VaultSandbox]:
    async with VaultSandbox() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as client:
        yield client


async def with_hvac(vault: VaultSandbox, work: Callable[[hvac.Client], Any], token: str | None = None) -> Any:
    """hvac blocks, so it runs beside the event loop that serves it."""

    def run() -> Any:
        client = hvac.Client(vault.url, token=vault.root_token if token is None else token, verify=_ca(vault))
        try:
            return work(client)
        finally:
            client.adapter.close()

    return await asyncio.to_thread(run)


def _ca(vault: VaultSandbox) -> str | bool:
    return str(vault.ca_bundle) if vault.ca_bundle else True


def root(vault: VaultSandbox) -> dict[str, str]:
    return {"X-Vault-Token": vault.root_token}


# The official client


async def test_a_secret_written_by_hvac_is_read_listed_deleted_and_undeleted(vault: VaultSandbox) -> None:
    def work(client: hvac.Client) -> None:
        kv = client.secrets.kv.v2
        fields = {"user": "ü\n", "empty": "", "nested": {"a": [1, None, True]}, "pi": 3.14}
        assert kv.create_or_update_secret("apps/db", fields, cas=0)["data"]["version"] == 1
        assert kv.read_secret_version("apps/db", raise_on_deleted_version=True)["data"]["data"] == fields
        assert kv.list_secrets("")["data"]["keys"] == ["apps/"]
        merge = {"Content-Type": "application/merge-patch+json"}
        patched = client.adapter.request("patch", "/v1/secret/data/apps/db", json={"data": {"pi": None}}, headers=merge)
        assert patched["data"]["version"] == 2
        with pytest.raises(hvac.exceptions.InvalidRequest, match="did not match the current version"):
            kv.create_or_update_secret("apps/db", {}, cas=1)
        kv.delete_latest_version_of_secret("apps/db")
        with pytest.raises(hvac.exceptions.InvalidPath):
            kv.read_secret_version("apps/db", raise_on_deleted_version=True)
        gone = kv.read_secret_version("apps/db", raise_on_deleted_version=False)["data"]
        assert gone["data"] is None
        assert gone["metadata"]["deletion_time"].endswith("Z")
        kv.undelete_secret_versions("apps/db", [2])
        kv.destroy_secret_versions("apps/db", [1])
        metadata = kv.read_secret_metadata("apps/db")["data"]
        assert metadata["current_version"] == 2
        assert metadata["versions"]["1"]["destroyed"] is True
        kv.delete_metadata_and_all_versions("apps/db")
        with pytest.raises(hvac.exceptions.InvalidPath):
            kv.list_secrets("")

    await with_hvac(vault, work)
    assert vault.secret_paths("secret") == []


async def test_a_kv_v1_mount_keeps_fields_as_written_and_no_past(vault: VaultSandbox) -> None:
    def work(client: hvac.Client) -> None:
        kv = client.secrets.kv.v1
        kv.create_or_update_secret("a/b", {"x": "1"}, mount_point="kv1")
        kv.create_or_update_secret("a/b", {"y": "2"}, mount_point="kv1")
        assert kv.read_secret("a/b", mount_point="kv1")["data"] == {"y": "2"}
        assert kv.list_secrets("a", mount_point="kv1")["data"]["keys"] == ["b"]
        kv.delete_secret("a/b", mount_point="kv1")

    await with_hvac(vault, work)
    assert vault.get("kv1", "a/b") is None


async def test_numbers_stay_as_written_on_v1_and_become_floats_on_v2(
    vault: VaultSandbox, session: aiohttp.ClientSession
) -> None:
    texts = {}
    for path, body in (("kv1/n", '{"n":1.10}'), ("secret/data/n", '{"data":{"n":1.10}}')):
        async with session.put(f"{vault.url}/v1/{path}", data=body, headers=root(vault)):
            pass
        async with session.get(f"{vault.url}/v1/{path}", headers=root(vault)) as response:
            texts[path] = await response.text()
    assert '"n":1.10' in texts["kv1/n"]
    assert '"n":1.1}' in texts["secret/data/n"]


async def test_logging_in_with_an_approle_gives_a_token_that_runs_out(vault: VaultSandbox) -> None:
    vault.set_policy("reader", 'path "secret/data/*" { capabilities = ["read"] }')
    vault.put("secret", "a", {"k": "v"})
    role_id, secret_id = vault.add_approle("app", "reader", ttl=60, max_ttl=100)

    def login(client: hvac.Client) -> str:
        with pytest.raises(hvac.exceptions.InvalidRequest, match="invalid role or secret ID"):
            client.auth.approle.login(role_id, "wrong")
        client.auth.approle.login(role_id, secret_id)
        assert client.auth.token.lookup_self()["data"]["ttl"] <= 60
        return str(client.token)

    def read(client: hvac.Client) -> Any:
        return client.secrets.kv.v2.read_secret_version("a", raise_on_deleted_version=True)["data"]["data"]

    def renew(client: hvac.Client) -> int:
        return int(client.auth.token.renew_self()["auth"]["lease_duration"])

    token = await with_hvac(vault, login, token="")
    assert await with_hvac(vault, read, token) == {"k": "v"}
    vault.advance(59)
    assert await with_hvac(vault, renew, token) <= 41, "a renewal does not go past max_ttl"
    vault.advance(42)
    with pytest.raises(hvac.exceptions.Forbidden, match="permission denied"):
        await with_hvac(vault, read, token)


@pytest.mark.parametrize("kind", ["jwt", "kubernetes", "azure"])
async def test_a_role_takes_the_jwt_that_it_was_made_with_and_no_other(vault: VaultSandbox, kind: str) -> None:
    vault.add_jwt_role("app", "ey.good", "reader", kind=kind)

    def work(client: hvac.Client) -> list[str]:
        login = {"role": "app", "jwt": "ey.bad"}
        with pytest.raises((hvac.exceptions.InvalidRequest, hvac.exceptions.Forbidden)):
            client.adapter.login(f"/v1/auth/{kind}/login", json=login)
        answer = client.adapter.login(f"/v1/auth/{kind}/login", json={"role": "app", "jwt": "ey.good"})
        policies: list[str] = answer["auth"]["policies"]
        return policies

    assert await with_hvac(vault, work, token="") == ["default", "reader"]


async def test_a_token_may_do_what_its_policies_say_and_see_which_mount_it_has(vault: VaultSandbox) -> None:
    vault.put("secret", "team/a", {"k": "v"})
    vault.put("secret", "other/a", {"k": "v"})
    token = vault.create_token("team")

    def work(client: hvac.Client) -> None:
        kv = client.secrets.kv.v2
        assert kv.read_secret_version("team/a", raise_on_deleted_version=True)["data"]["data"] == {"k": "v"}
        assert kv.list_secrets("team")["data"]["keys"] == ["a"]
        for refused in (
            lambda: kv.read_secret_version("other/a", raise_on_deleted_version=True),
            lambda: kv.list_secrets(""),
            lambda: kv.create_or_update_secret("team/a", {}),
            lambda: client.sys.list_mounted_secrets_engines(),
        ):
            with pytest.raises(hvac.exceptions.Forbidden):
                refused()
        assert client.adapter.get("/v1/sys/internal/ui/mounts/secret/team")["data"]["options"] == {"version": "2"}
        asked = client.sys.get_capabilities(["secret/data/team/a", "secret/data/other/a"])["data"]
        assert asked["secret/data/team/a"] == ["read"]
        assert asked["secret/data/other/a"] == ["deny"]

    with pytest.raises(hvac.exceptions.Forbidden):
        await with_hvac(vault, work, token)
    rules = 'path "secret/data/team/*" { capabilities = ["read"] } path "secret/metadata/team/" { policy = "read" }'
    vault.set_policy("team", rules)
    await with_hvac(vault, work, token)


async def test_policies_are_written_listed_read_and_deleted(vault: VaultSandbox) -> None:
    def work(client: hvac.Client) -> None:
        client.sys.create_or_update_acl_policy("team", 'path "x" { capabilities = ["read"] }')
        assert client.sys.list_acl_policies()["data"]["keys"] == ["default", "root", "team"]
        assert "capabilities" in client.sys.read_acl_policy("team")["data"]["policy"]
        with pytest.raises(hvac.exceptions.InvalidRequest, match='invalid capability "fly"'):
            client.sys.create_or_update_acl_policy("team", 'path "x" { capabilities = ["fly"] }')
        client.sys.delete_acl_policy("team")

    await with_hvac(vault, work)
    assert list(vault.policies) == ["default"]


async def test_a_sealed_vault_answers_503(vault: VaultSandbox) -> None:
    vault.sealed = True
    with pytest.raises(hvac.exceptions.VaultDown):
        await with_hvac(vault, lambda client: client.secrets.kv.v2.list_secrets(""))


async def test_tls_is_trusted_through_the_bundle_alone() -> None:
    async with VaultSandbox(tls=True) as vault:
        assert vault.url.startswith("https://")
        assert await with_hvac(vault, lambda client: client.is_authenticated())
        with pytest.raises(requests.exceptions.SSLError):
            await asyncio.to_thread(lambda: requests.get(f"{vault.url}/v1/sys/health", timeout=5))
        bundle = vault.ca_bundle
    assert bundle is not None
    assert not await asyncio.to_thread(bundle.exists), "keys do not outlive the server"


# The clock and the state


async def test_delete_version_after_runs_out_with_the_servers_clock(vault: VaultSandbox) -> None:
    vault.set_metadata("secret", "a", delete_version_after="1h")
    vault.put("secret", "a", {"k": "v"})
    vault.advance(3599)
    assert vault.get("secret", "a") == {"k": "v"}
    vault.advance(2)
    assert vault.get("secret", "a") is None


async def test_versions_start_again_at_one_after_a_metadata_delete(vault: VaultSandbox) -> None:
    assert [vault.put("secret", "a", {"k": str(each)}) for each in range(3)] == [1, 2, 3]
    vault.remove("secret", "a")
    assert vault.put("secret", "a", {"k": "v"}) == 1


async def test_the_oldest_versions_go_when_there_are_too_many(vault: VaultSandbox) -> None:
    for each in range(12):
        vault.put("secret", "a", {"k": str(each)})
    assert vault.get("secret", "a", version=2) is None
    assert vault.get("secret", "a", version=3) == {"k": "2"}


async def test_folders_vanish_with_their_last_secret(vault: VaultSandbox, session: aiohttp.ClientSession) -> None:
    for path in ("a/b/c", "a/b", "a/d/e"):
        vault.put("secret", path, {})
    vault.remove("secret", "a/d/e")
    assert await listing(vault, session, "a") == ["b", "b/"]
    vault.remove("secret", "a/b/c")
    assert await listing(vault, session, "a") == ["b"]


async def listing(vault: VaultSandbox, session: aiohttp.ClientSession, folder: str) -> list[str]:
    async with session.request("LIST", f"{vault.url}/v1/secret/metadata/{folder}", headers=root(vault)) as response:
        keys: list[str] = (await response.json())["data"]["keys"]
        return keys


async def test_calls_are_counted_by_what_they_ask_for(vault: VaultSandbox) -> None:
    vault.put("secret", "a", {"k": "v"})
    assert not vault.calls, "what a test does past HTTP is no call"

    def work(client: hvac.Client) -> None:
        kv = client.secrets.kv.v2
        kv.list_secrets("")
        kv.read_secret_metadata("a")
        kv.read_secret_version("a", raise_on_deleted_version=True)
        kv.create_or_update_secret("b", {})
        kv.update_metadata("b", max_versions=3)
        kv.delete_secret_versions("a", [1])
        kv.undelete_secret_versions("a", [1])
        kv.delete_metadata_and_all_versions("a")
        client.secrets.kv.v1.list_secrets("", mount_point="kv1")

    with pytest.raises(hvac.exceptions.InvalidPath):
        await with_hvac(vault, work)
    assert vault.calls == {
        "list": 2,
        "metadata": 1,
        "read": 1,
        "write": 1,
        "metadata_write": 1,
        "delete": 2,
        "undelete": 1,
    }
    assert vault.log[1] == ("metadata", "secret/metadata/a")
    vault.reset_calls()
    assert not vault.calls
    assert not vault.log


# Faults


async def put(vault: VaultSandbox, session: aiohttp.ClientSession, value: str) -> aiohttp.ClientResponse:
    body = {"data": {"k": value}}
    async with session.put(f"{vault.url}/v1/secret/data/a", json=body, headers=root(vault)) as response:
        await response.read()
        return response


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_status_fault_answers_as_told_without_the_effect(
    vault: VaultSandbox, session: aiohttp.ClientSession, status: int
) -> None:
    vault.faults.add(Fault(kind="status", status=status, retry_after=1.5, times=1))
    answer = await put(vault, session, "v")
    assert (answer.status, answer.headers["Retry-After"]) == (status, "1.5")
    assert list(await answer.json()) == ["errors"]
    assert vault.get("secret", "a") is None
    assert (await put(vault, session, "v")).status == 200
    assert vault.calls["write"] == 2


@pytest.mark.parametrize(("kind", "applied"), [("timeout_before", None), ("timeout_after", {"k": "v"})])
async def test_a_call_without_an_answer_hangs_until_the_client_gives_up(
    vault: VaultSandbox, session: aiohttp.ClientSession, kind: Any, applied: dict[str, str] | None
) -> None:
    vault.faults.add(Fault(kind=kind))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await put(vault, session, "v")
    assert vault.get("secret", "a") == applied
    assert (await put(vault, session, "w")).status == 200


async def test_closing_the_server_ends_a_call_that_hangs(vault: VaultSandbox, session: aiohttp.ClientSession) -> None:
    vault.faults.add(Fault(kind="timeout_before", operation="write"))
    call = asyncio.create_task(put(vault, session, "v"))
    async with asyncio.timeout(5):
        while not vault.calls["write"]:
            (await session.get(f"{vault.url}/v1/sys/health")).release()
        await vault.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await call


@pytest.mark.parametrize(
    ("kind", "error", "applied"),
    [
        ("torn_before", aiohttp.ServerDisconnectedError, None),
        ("torn_after", aiohttp.ClientPayloadError, {"k": "v"}),
    ],
)
async def test_a_torn_connection_breaks_off_before_the_effect_or_in_mid_answer(
    vault: VaultSandbox,
    session: aiohttp.ClientSession,
    kind: Any,
    error: type[Exception],
    applied: dict[str, str] | None,
) -> None:
    # Twice, because aiohttp silently tries an idempotent method again when the server hung up without an answer.
    vault.faults.add(Fault(kind=kind, times=2))
    with pytest.raises(error):
        await put(vault, session, "v")
    assert vault.get("secret", "a") == applied


async def test_a_slow_answer_comes_late_and_is_right(vault: VaultSandbox, session: aiohttp.ClientSession) -> None:
    vault.faults.add(Fault(kind="slow", seconds=0.05))
    began = asyncio.get_running_loop().time()
    assert (await put(vault, session, "v")).status == 200
    assert asyncio.get_running_loop().time() - began >= 0.05


async def test_half_a_listing_is_json_cut_in_the_middle(vault: VaultSandbox, session: aiohttp.ClientSession) -> None:
    for each in range(20):
        vault.put("secret", f"a/{each}", {})
    vault.faults.add(Fault(kind="cut_body", operation="list"))
    with pytest.raises(json.JSONDecodeError):
        await listing(vault, session, "a")
    assert len(await listing(vault, session, "a")) == 20


async def test_a_listing_can_fail_after_its_first_folder(vault: VaultSandbox, session: aiohttp.ClientSession) -> None:
    vault.put("secret", "a/b/c", {})
    vault.faults.add(Fault(kind="status", operation="list", skip=1, times=None))
    assert await listing(vault, session, "a") == ["b/"]
    with pytest.raises(KeyError):
        await listing(vault, session, "a/b")
    vault.faults.clear()
    assert await listing(vault, session, "a/b") == ["c"]


def test_a_fault_hits_the_calls_that_it_speaks_of_and_is_used_up() -> None:
    faults = Faults()
    first = Fault(kind="status", operation="write", path="secret/data/a*", times=2, skip=1)
    second = Fault(kind="slow", times=None)
    faults.add(first, second)
    calls = [("read", "secret/data/a"), ("write", "secret/data/b"), *[("write", "secret/data/a/x")] * 4]
    assert [faults.take(*call) for call in calls] == [second, second, second, first, first, second]
    assert list(faults) == [second]


@pytest.mark.parametrize("document", [{"kind": "fire"}, {"status": 500}, {"kind": "slow", "speed": 1}, [1], "x"])
async def test_a_fault_that_makes_no_sense_is_refused_over_http(
    vault: VaultSandbox, session: aiohttp.ClientSession, document: Any
) -> None:
    async with session.post(f"{vault.url}/_sandbox/faults", json=document) as response:
        assert response.status == 400
    assert list(vault.faults) == []


def test_a_vault_in_a_process_of_its_own_takes_faults_over_http_and_stops_on_a_signal() -> None:
    command = [sys.executable, "-m", "sandbox.vault", "--root-token", "t"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            fault = {"kind": "status", "status": 429, "retry_after": 2, "operation": "list"}
            with requests.Session() as client:
                assert client.post(f"{url}/_sandbox/faults", json=[fault], timeout=5).status_code == 204
                path, headers = f"{url}/v1/secret/metadata/", {"X-Vault-Token": "t"}
                first, second = (client.request("LIST", path, headers=headers, timeout=5) for _ in range(2))
                assert (first.status_code, first.headers["Retry-After"], second.status_code) == (429, "2", 404)
                assert client.get(f"{url}/_sandbox/calls", timeout=5).json()["calls"] == {"list": 2}
                assert client.delete(f"{url}/_sandbox/faults", timeout=5).status_code == 204
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


# Audit devices


def enable(vault: VaultSandbox, path: str, kind: str, **options: str) -> Callable[[hvac.Client], Any]:
    return lambda client: client.sys.enable_audit_device(kind, options=options, path=path)


async def test_an_audit_file_gets_a_request_and_a_response_without_a_value_in_the_clear(
    vault: VaultSandbox, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    await with_hvac(vault, enable(vault, "f", "file", file_path=str(log)))
    await with_hvac(vault, lambda client: client.secrets.kv.v2.create_or_update_secret("a/b", {"p": "s3cr3t", "n": 5}))
    text = await asyncio.to_thread(log.read_text)
    entries = [json.loads(line) for line in text.splitlines()][2:]
    assert [(each["type"], each["request"]["operation"], each["request"]["path"]) for each in entries] == [
        ("request", "create", "secret/data/a/b"),
        ("response", "create", "secret/data/a/b"),
    ]
    assert entries[0]["request"]["id"] == entries[1]["request"]["id"]
    assert entries[1]["response"]["data"]["version"] == 1
    assert entries[0]["request"]["data"]["data"]["n"].startswith("hmac-sha256:")
    assert "s3cr3t" not in text
    assert vault.root_token not in text


async def test_a_tuned_mount_shows_versions_and_times_in_the_clear(
    vault: VaultSandbox, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    tuning = {"audit_non_hmac_request_keys": "versions", "audit_non_hmac_response_keys": ["created_time"]}
    async with session.post(f"{vault.url}/v1/sys/mounts/secret/tune", json=tuning, headers=root(vault)) as response:
        assert response.status == 204
    await with_hvac(vault, enable(vault, "f", "file", file_path=str(log)))
    await put(vault, session, "v")
    await with_hvac(vault, lambda client: client.secrets.kv.v2.delete_secret_versions("a", [1]))
    entries = [json.loads(line) for line in (await asyncio.to_thread(log.read_text)).splitlines()][2:]
    assert entries[1]["response"]["data"]["created_time"] == vault.metadata("secret", "a")["created_time"]
    assert entries[2]["request"]["data"]["versions"] == [1]


async def test_raw_logging_with_a_prefix_is_what_the_device_was_told(
    vault: VaultSandbox, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    options = {"file_path": str(log), "log_raw": "true", "prefix": "audit: "}
    await with_hvac(vault, enable(vault, "f", "file", **options))
    await put(vault, session, "in the clear")
    lines = (await asyncio.to_thread(log.read_text)).splitlines()
    assert all(line.startswith("audit: {") for line in lines)
    assert "in the clear" in lines[2]


async def test_udp_entries_are_one_to_a_datagram_and_nobody_needs_to_listen(
    vault: VaultSandbox, session: aiohttp.ClientSession
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        address = f"127.0.0.1:{receiver.getsockname()[1]}"
        await with_hvac(vault, enable(vault, "u", "socket", address=address, socket_type="udp"))
        await put(vault, session, "v")
        datagrams = [receiver.recv(65536) for _ in range(4)]
    paths = [json.loads(each)["request"]["path"] for each in datagrams]
    assert paths == ["sys/audit/test", "sys/audit/u", "secret/data/a", "secret/data/a"]
    assert all(each.endswith(b"}\n") for each in datagrams)
    assert (await put(vault, session, "w")).status == 200


async def test_an_entry_too_large_for_udp_fails_only_when_no_other_device_takes_it(
    vault: VaultSandbox, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    await with_hvac(vault, enable(vault, "u", "socket", address="127.0.0.1:9", socket_type="udp"))
    body = {"data": {f"field {each}": "v" for each in range(1000)}}
    url = f"{vault.url}/v1/secret/data/large"
    async with session.put(url, json=body, headers=root(vault)) as response:
        assert response.status == 500
    assert vault.get("secret", "large") is None
    await with_hvac(vault, enable(vault, "f", "file", file_path=str(tmp_path / "log")))
    async with session.put(url, json=body, headers=root(vault)) as response:
        assert response.status == 200


async def test_a_reader_that_stops_stalls_the_vault_and_then_loses_its_connection(
    vault: VaultSandbox, session: aiohttp.ClientSession
) -> None:
    connected: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connected.put(writer)

    server = await asyncio.start_server(never_read, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await with_hvac(vault, enable(vault, "s", "socket", address=address, write_timeout="50ms"))
    first = await connected.get()
    body = {"data": {f"field {each}": "v" for each in range(9000)}}
    async with asyncio.timeout(20):
        while connected.empty():
            async with session.put(f"{vault.url}/v1/secret/data/large", json=body, headers=root(vault)):
                pass
    for writer in (first, connected.get_nowait()):
        writer.transport.abort()
    server.close()
    with contextlib.suppress(asyncio.QueueEmpty):
        while True:
            connected.get_nowait().transport.abort()
