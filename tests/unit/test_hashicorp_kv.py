"""What is peculiar to KV mounts: versions, permissions, `check`, costs, TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox.faults import Fault
from sandbox.vault import VaultSandbox
from shared.errors import AccessDenied, InvalidSecret, MountNotFound, Unavailable, Unsupported
from shared.model import Expect, Secret
from shared.pacing import Pacer
from shared.vault import FingerprintCost, Use
from shared.vaults.hashicorp import Settings
from shared.vaults.hashicorp.kv import KvVault


@pytest.fixture
async def server() -> AsyncIterator[VaultSandbox]:
    async with VaultSandbox() as vault:
        yield vault


class Vaults:
    def __init__(self, server: VaultSandbox) -> None:
        self._server = server
        self.made: list[KvVault] = []

    def __call__(self, *, token: str | None = None, **settings: Any) -> KvVault:
        settings = {"address": self._server.url, **settings}
        auth = {"method": "token", "token": token or self._server.root_token}
        vault = KvVault("hub", Settings(kind="hashicorp", auth=auth, **settings))

        async def sleep(_seconds: float) -> None:
            await asyncio.sleep(0)

        vault.pacer = Pacer("hub", concurrency=vault.pacer.concurrency, sleep=sleep)
        self.made.append(vault)
        return vault


@pytest.fixture
async def make(server: VaultSandbox) -> AsyncIterator[Vaults]:
    vaults = Vaults(server)
    yield vaults
    for vault in vaults.made:
        await vault.aclose()


# The mount.


@pytest.mark.parametrize(("mount", "cost"), [("secret", FingerprintCost.PER_SECRET), ("kv1", FingerprintCost.VALUE)])
async def test_the_version_comes_from_the_mount(make: Vaults, mount: str, cost: FingerprintCost) -> None:
    vault = make(mount=f"/{mount}/")
    with pytest.raises(Unsupported):
        _ = vault.capabilities
    await vault.open()
    await vault.open()
    assert vault.capabilities.fingerprint is cost


async def test_a_mount_may_lie_below_folders(server: VaultSandbox, make: Vaults) -> None:
    server.add_mount("team/a b/kv", 2)
    vault = make(mount="team/a b/kv")
    await vault.open()
    await vault.set_secret("x/y", Secret({"value": "1"}))
    assert server.get("team/a b/kv", "x/y") == {"value": "1"}


async def test_a_folder_of_a_mount_is_not_taken_for_a_mount(make: Vaults) -> None:
    with pytest.raises(MountNotFound, match="nearest one is 'secret/'"):
        await make(mount="secret/apps").open()


async def test_a_missing_mount_is_said_to_be_missing(make: Vaults) -> None:
    with pytest.raises(MountNotFound, match="no such mount"):
        await make(mount="nope").open()


@pytest.mark.parametrize(("mount", "version"), [("secret", 1), ("kv1", 2)])
async def test_a_wrong_kv_version_is_an_error_and_no_empty_listing(make: Vaults, mount: str, version: int) -> None:
    with pytest.raises(MountNotFound, match="kv_version"):
        await make(mount=mount, kv_version=version).open()


async def test_the_version_is_found_with_no_permission_but_those_of_a_sync(server: VaultSandbox, make: Vaults) -> None:
    server.set_policy("read", 'path "secret/data/apps/*" { capabilities = ["read"] }')
    vault = make(token=server.create_token("read"))
    await vault.open()
    assert vault.capabilities.compare_and_set


async def test_a_forbidden_mount_is_forbidden_unless_its_version_is_given(server: VaultSandbox, make: Vaults) -> None:
    token = server.create_token()
    with pytest.raises(AccessDenied, match="kv_version"):
        await make(token=token).open()
    await make(token=token, kv_version=2).open()


# Costs.


async def test_an_unchanged_secret_costs_one_metadata_read_and_no_value(server: VaultSandbox, make: Vaults) -> None:
    for number in range(30):
        server.put("secret", f"apps/{number % 3}/n{number}", {"value": "x"})
    vault = make()
    await vault.open()
    server.reset_calls()
    names = [entry.name async for entry in vault.list_secrets("apps/")]
    await asyncio.gather(*(vault.describe_secret(name) for name in names))
    assert dict(server.calls) == {"list": 4, "metadata": 30}


async def test_a_changed_secret_costs_one_read_and_one_write(server: VaultSandbox, make: Vaults) -> None:
    vault = make()
    await vault.open()
    server.reset_calls()
    entry = await vault.set_secret("one", Secret({"value": "1"}), expect=Expect.ABSENT)
    await vault.get_secret("one")
    assert dict(server.calls) == {"write": 1, "read": 1}
    await vault.delete_secret("one", expect=str(entry.version))
    assert dict(server.calls) == {"write": 1, "read": 1, "metadata": 1, "delete": 1}


async def test_a_listing_walks_several_folders_at_once_but_no_more_than_allowed(
    server: VaultSandbox, make: Vaults
) -> None:
    for number in range(20):
        server.put("secret", f"f{number}/one", {"value": "x"})
    vault = make(concurrency=4)
    await vault.open()
    running = most = 0
    list_folder = vault._list_folder

    async def watched(folder: str) -> list[str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await list_folder(folder)
        finally:
            running -= 1

    vault._list_folder = watched  # type: ignore[method-assign]
    assert len([entry async for entry in vault.list_secrets()]) == 20
    assert most == 4


# Names.


async def test_a_listed_name_that_no_url_may_be_built_for_is_shown_and_not_followed(
    server: VaultSandbox, make: Vaults
) -> None:
    server.put("secret", "a/../../x", {"value": "x"})
    server.put("secret", "a/ok", {"value": "x"})
    vault = make()
    await vault.open()
    server.reset_calls()
    assert sorted([entry.name async for entry in vault.list_secrets()]) == ["a/../", "a/ok"]
    assert [path for _, path in server.log] == ["secret/metadata/", "secret/metadata/a/"]


async def test_kv_v1_can_not_store_two_dots_in_a_name_and_v2_can(server: VaultSandbox, make: Vaults) -> None:
    old, new = make(mount="kv1"), make()
    await old.open()
    await new.open()
    with pytest.raises(InvalidSecret, match=r"'\.\.'"):
        await old.set_secret("a..b", Secret({"value": "x"}))
    await new.set_secret("a..b", Secret({"value": "x"}))


# Versions.


async def test_a_key_with_metadata_but_no_version_can_be_created(server: VaultSandbox, make: Vaults) -> None:
    server.set_metadata("secret", "one", max_versions=3)
    vault = make()
    await vault.open()
    entry = await vault.describe_secret("one")
    assert (entry.live, entry.version) == (False, "0")
    assert (await vault.set_secret("one", Secret({"value": "1"}), expect="0")).version == "1"


async def test_destroyed_is_a_tombstone_too(server: VaultSandbox, make: Vaults) -> None:
    vault = make()
    await vault.open()
    before = await vault.set_secret("one", Secret({"value": "1"}))
    server.destroy("secret", "one", 1)
    entry = await vault.describe_secret("one")
    assert not entry.live
    assert entry.fingerprint != before.fingerprint
    assert (await vault.set_secret("one", Secret({"value": "2"}), expect="1")).live


async def test_a_delete_takes_only_the_version_that_was_seen(server: VaultSandbox, make: Vaults) -> None:
    vault = make()
    await vault.open()
    await vault.set_secret("one", Secret({"value": "1"}))
    describe = vault.describe_secret

    async def described_and_overtaken(name: str) -> Any:
        entry = await describe(name)
        server.put("secret", "one", {"value": "newer"})
        return entry

    vault.describe_secret = described_and_overtaken  # type: ignore[method-assign]
    await vault.delete_secret("one")
    assert server.get("secret", "one") == {"value": "newer"}
    assert server.metadata("secret", "one")["versions"]["1"]["deletion_time"]


async def test_a_mount_that_demands_check_and_set_says_so(server: VaultSandbox, make: Vaults) -> None:
    server.set_metadata("secret", "one", cas_required=True)
    vault = make()
    await vault.open()
    with pytest.raises(Unsupported, match="demands check-and-set"):
        await vault.set_secret("one", Secret({"value": "1"}))


async def test_a_value_past_a_limit_of_the_server_is_invalid(make: Vaults) -> None:
    vault = make()
    await vault.open()
    for fields in ({"value": "x" * (1024 * 1024 + 1)}, {"value": ["x"] * 10_001}):
        with pytest.raises(InvalidSecret, match="limits"):
            await vault.set_secret("one", Secret(fields))
    with pytest.raises(InvalidSecret, match="bytes"):
        await vault.set_secret("one", Secret({str(number): "x" * 1_000_000 for number in range(34)}))


async def test_a_sealed_vault_is_unavailable_and_says_why(server: VaultSandbox, make: Vaults) -> None:
    vault = make()
    await vault.open()
    server.sealed = True
    with pytest.raises(Unavailable, match="sealed"):
        await vault.get_secret("one")


async def test_the_servers_clock_decides_what_has_expired(server: VaultSandbox, make: Vaults) -> None:
    server.set_metadata("secret", "one", delete_version_after="1h")
    server.put("secret", "one", {"value": "1"})
    vault = make()
    await vault.open()
    assert (await vault.describe_secret("one")).live
    ahead = vault.adapter.server_time
    vault.adapter.server_time = lambda: ahead() + 3700  # type: ignore[method-assign]
    assert not (await vault.describe_secret("one")).live


@pytest.mark.parametrize(("header", "ahead"), [(3600, 3600), (-3600, -3600), (1, 0), (0, 0)])
def test_the_servers_clock_comes_from_its_date_header(header: int, ahead: int) -> None:
    import time
    from email.utils import formatdate

    from shared.vaults.hashicorp.adapter import AsyncAdapter

    settings = Settings(kind="hashicorp", address="http://x", auth={"method": "token", "token": "t"})
    adapter = AsyncAdapter("hub", settings)
    adapter._read_clock(formatdate(time.time() + header, usegmt=True))
    assert adapter.server_time() - time.time() == pytest.approx(ahead, abs=1.5)
    adapter._read_clock("once upon a time")
    assert adapter.server_time() - time.time() == pytest.approx(0, abs=0.1)


# check


async def test_check_names_each_missing_permission_and_the_policy_that_would_grant_it(
    server: VaultSandbox, make: Vaults
) -> None:
    server.set_policy(
        "some",
        """
        path "secret/data/apps/*" { capabilities = ["read", "create"] }
        path "secret/metadata/apps/*" { capabilities = ["list"] }
        """,
    )
    vault = make(token=server.create_token("some"))
    findings = await vault.check([Use("apps/", write=True, delete=True), Use("apps/")])
    assert [finding.ok for finding in findings] == [True, True, True, False, False]
    both, reading = findings[3:]
    assert both.subject == "permissions on apps/"
    for missing in (
        "read on secret/metadata/apps/vaultferry-check (to see changes)",
        "update on secret/data/apps/vaultferry-check (to write)",
        "update on secret/delete/apps/vaultferry-check (to delete)",
    ):
        assert missing in both.detail
    assert "create" not in both.detail
    assert 'path "secret/delete/apps/*" { capabilities = ["update"] }' in both.hint
    assert "write" not in reading.detail


@pytest.mark.parametrize("mount", ["secret", "kv1"])
async def test_the_policy_that_check_asks_for_is_enough(server: VaultSandbox, make: Vaults, mount: str) -> None:
    server.set_policy("growing", f'path "{mount}/nothing" {{ capabilities = ["read"] }}')
    vault = make(token=server.create_token("growing"), mount=mount)
    use = [Use("apps/", write=True, delete=True)]
    (finding,) = [each for each in await vault.check(use) if not each.ok]
    server.set_policy("growing", finding.hint.partition(": ")[2].replace("} path", "}\npath"))
    assert all(each.ok for each in await vault.check(use))
    await vault.set_secret("apps/a/b", Secret({"value": "1"}))
    assert [entry.name async for entry in vault.list_secrets("apps/")] == ["apps/a/b"]
    await vault.get_secret("apps/a/b")
    await vault.delete_secret("apps/a/b")


async def test_check_fails_when_the_namespace_is_ignored(make: Vaults) -> None:
    findings = await make(namespace="team-a").check([])
    (finding,) = [each for each in findings if not each.ok]
    assert finding.subject == "namespace"
    assert "ignored" in finding.detail


async def test_check_is_content_with_a_server_that_looks_at_the_namespace(server: VaultSandbox, make: Vaults) -> None:
    # A namespace that nobody made: such a server denies the call.
    server.faults.add(Fault("status", operation="token", status=403, skip=2))
    server.faults.add(Fault("status", operation="health", status=200, skip=1))
    findings = await make(namespace="team-a").check([])
    assert [finding for finding in findings if finding.subject == "namespace" and finding.ok]


async def test_check_of_a_sealed_vault_or_none_at_all_says_so(server: VaultSandbox, make: Vaults) -> None:
    server.sealed = True
    (finding,) = await make().check([Use("")])
    assert "sealed" in finding.detail
    assert not finding.ok
    (finding,) = await make(address="http://127.0.0.1:1").check([Use("")])
    assert "can not be reached" in finding.detail
    assert not finding.ok


# TLS


async def test_tls_is_verified_against_the_given_authority(make: Vaults) -> None:
    async with VaultSandbox(tls=True) as secure:
        vault = make(address=secure.url, ca_bundle=str(secure.ca_bundle))
        await vault.open()
        await vault.set_secret("one", Secret({"value": "1"}))
        stranger = make(address=secure.url)
        with pytest.raises(AccessDenied, match="ca_bundle"):
            await stranger.open()
        with pytest.raises(Unavailable):
            await make(address=secure.url.replace("https", "http")).open()


async def test_a_server_without_tls_is_told_apart(server: VaultSandbox, make: Vaults) -> None:
    with pytest.raises(AccessDenied, match="does it speak https"):
        await make(address=server.url.replace("http", "https")).open()


@pytest.mark.parametrize(
    "given", [{"ca_bundle": "/nowhere.pem"}, {"client_cert": "/nowhere.pem"}, {"ca_bundle": __file__}]
)
async def test_an_unusable_file_is_named(make: Vaults, given: dict[str, str]) -> None:
    with pytest.raises(AccessDenied, match=next(iter(given))):
        await make(address="https://127.0.0.1:1", **given).open()
