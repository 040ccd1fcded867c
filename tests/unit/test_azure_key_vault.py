"""The azure_key_vault kind, through the official client, against the sandbox's Key Vault and its tokens."""

import asyncio
import inspect
import logging
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.keyvault.secrets._shared import http_challenge_cache
from pydantic import TypeAdapter, ValidationError

from sandbox.entra import EntraServer, ManagedIdentityServer
from sandbox.faults import Fault
from sandbox.key_vault import EVERY_PERMISSION, KeyVaultServer
from shared.errors import (
    AccessDenied,
    ConfigError,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.model import Entry, Expect, Secret
from shared.onestring import CONTENT_TYPE
from shared.pacing import counting
from shared.vault import FingerprintCost, Use
from shared.vaults import kinds
from shared.vaults.azure_key_vault import KeyVault, Settings, connect
from shared.vaults.azure_key_vault.failures import explain, failures
from shared.vaults.azure_key_vault.settings import suffix

NOON = 1_800_000_000
CANARY = "canary-51c2"


class Patience:
    """Stands for asyncio.sleep: keeps what was asked for, and waits no longer than a turn of the loop."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeyVaultServer]:
    async with KeyVaultServer() as server, ManagedIdentityServer(server.authority) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        server.clock.freeze(NOON)
        # The client remembers challenges by host and port for the whole process: another test may have had this one.
        http_challenge_cache.clear()
        yield server


def settings_for(server: KeyVaultServer, **given: Any) -> Settings:
    document = {
        "kind": "azure_key_vault",
        "url": server.url,
        "ca_bundle": str(server.ca_bundle),
        "auth": {"method": "managed_identity"},
    }
    return Settings.model_validate(document | given)


@pytest.fixture
def patience() -> Patience:
    return Patience()


@pytest.fixture
async def vault(server: KeyVaultServer, patience: Patience) -> AsyncIterator[KeyVault]:
    vault = KeyVault("prod", settings_for(server), timeout=5.0, sleep=patience)
    yield vault
    await vault.aclose()


async def listed(vault: KeyVault, prefix: str = "") -> dict[str, Entry]:
    return {entry.name: entry async for entry in vault.list_secrets(prefix)}


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


# Settings.


@pytest.mark.parametrize(
    "url",
    [
        "http://contoso.vault.azure.net",
        "contoso.vault.azure.net",
        "https://contoso.vault.azure.net/secrets/db",
        "https://contoso.vault.azure.net?a=b",
        f"https://user:{CANARY}@contoso.vault.azure.net",
        "https://",
        "https://contoso.vault.azure.net:port",
        " https://contoso.vault.azure.net",
        "",
    ],
)
def test_only_an_https_address_without_a_path_is_a_vault(url: str) -> None:
    with pytest.raises(ValidationError, match=r"like https://NAME\.vault\.azure\.net") as refused:
        Settings.model_validate({"kind": "azure_key_vault", "url": url})
    assert CANARY not in text_of(refused.value)


def test_the_address_loses_its_last_slash_and_the_identity_defaults() -> None:
    settings = Settings.model_validate({"kind": "azure_key_vault", "url": "https://contoso.vault.azure.net/"})
    assert settings.url == "https://contoso.vault.azure.net"
    assert settings.auth.method == "default"


@pytest.mark.parametrize(
    "auth",
    [
        {"method": "magic"},
        {"method": "service_principal", "tenant_id": "t", "client_id": "c"},
        {"method": "service_principal", "tenant_id": "t", "client_id": "c", "client_secret": ""},
        {"method": "default", "client_id": "c"},
        {"method": "managed_identity", "secret": CANARY},
    ],
)
def test_an_incomplete_or_overfull_identity_is_refused(auth: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"kind": "azure_key_vault", "url": "https://a.vault.azure.net", "auth": auth})
    assert CANARY not in text_of(refused.value)


def test_a_client_secret_is_in_no_repr() -> None:
    auth = {"method": "service_principal", "tenant_id": "t", "client_id": "c", "client_secret": CANARY}
    settings = Settings.model_validate({"kind": "azure_key_vault", "url": "https://a.vault.azure.net", "auth": auth})
    assert CANARY not in repr(settings)
    assert CANARY not in settings.model_dump_json()


def test_the_settings_have_a_json_schema() -> None:
    assert TypeAdapter(Settings).json_schema()["properties"]["kind"]["const"] == "azure_key_vault"


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://a.vault.azure.net", "login.microsoftonline.com"),
        ("https://a.vault.usgovcloudapi.net", "login.microsoftonline.us"),
        ("https://a.vault.azure.cn", "login.chinacloudapi.cn"),
    ],
)
async def test_each_cloud_has_its_own_source_of_tokens(
    url: str, authority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.vaults.azure_key_vault import client

    monkeypatch.delenv("AZURE_AUTHORITY_HOST", raising=False)
    auth = {"method": "service_principal", "tenant_id": "t", "client_id": "c", "client_secret": "s"}
    settings = Settings.model_validate({"kind": "azure_key_vault", "url": url, "auth": auth})
    assert suffix(url) is not None
    credential: Any = client._credential(settings, None)
    assert credential._client._authority == f"https://{authority}"
    await credential.close()


def test_the_folder_of_kinds_knows_it() -> None:
    assert kinds()["azure_key_vault"].Settings is Settings


def test_importing_the_kind_loads_no_sdk() -> None:
    code = (
        "import sys, shared.vaults.azure_key_vault as kind\n"
        "kind.connect('a', kind.Settings.model_validate({'kind': 'azure_key_vault', 'url': 'https://a.vault.azure.net'}))\n"
        "print([name for name in ('azure', 'aiohttp', 'tenacity', 'cryptography') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_only_secrets_can_be_asked_for() -> None:
    settings = Settings.model_validate({"kind": "azure_key_vault", "url": "https://a.vault.azure.net"})
    with pytest.raises(ConfigError, match="policies"):
        connect("prod", settings, "policies")


def test_a_ca_bundle_that_can_not_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nothing")
    for bundle in (nonsense, tmp_path / "missing.pem"):
        document = {"kind": "azure_key_vault", "url": "https://a.vault.azure.net", "ca_bundle": str(bundle)}
        with pytest.raises(ConfigError, match=r"prod: the ca_bundle .*\.pem can not be read"):
            connect("prod", Settings.model_validate(document))


# Round trips.


@pytest.mark.parametrize(
    "fields",
    [
        {"value": "one"},
        {"value": ""},
        {"value": '{"looks": "like JSON"}'},
        {"value": "-----BEGIN-----\nä€🔑\r\n\x00\ufeff"},
        {"value": 5},
        {"user": "u", "pass": "p", "port": 5432, "nested": {"a": [1, None, True, 0.5]}},
        {},
        {"value": "x" * 25_600},
    ],
    ids=str,
)
async def test_fields_come_back_as_they_went(vault: KeyVault, fields: dict[str, Any]) -> None:
    entry = await vault.set_secret("db", Secret(fields))
    secret = await vault.get_secret("db")
    assert secret.fields == fields
    assert secret.entry == entry


async def test_a_lone_string_is_stored_for_others_to_read(server: KeyVaultServer, vault: KeyVault) -> None:
    await vault.set_secret("db", Secret({"value": "one"}, content_type="text/plain"))
    stored = server.get("db")
    assert stored
    assert (stored.value, stored.content_type) == ("one", "text/plain")
    await vault.set_secret("db", Secret({"a": "one"}, content_type="text/plain"))
    stored = server.get("db")
    assert stored
    assert (stored.value, stored.content_type) == ('{"a":"one"}', CONTENT_TYPE)
    assert (await vault.get_secret("db")).content_type is None


async def test_what_others_stored_as_json_stays_a_string(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", '{"a": 1}', content_type="application/json")
    secret = await vault.get_secret("db")
    assert (secret.fields, secret.content_type) == ({"value": '{"a": 1}'}, "application/json")


async def test_a_raw_value_never_passes_for_one_of_ours(vault: KeyVault) -> None:
    await vault.set_secret("db", Secret({"value": "plain"}, content_type=CONTENT_TYPE))
    assert (await vault.get_secret("db")).fields == {"value": "plain"}


async def test_a_marked_value_that_is_no_json_is_refused_without_being_quoted(
    server: KeyVaultServer, vault: KeyVault
) -> None:
    server.put("db", CANARY, content_type=CONTENT_TYPE)
    with pytest.raises(InvalidSecret, match=r"prod:db: .*not a JSON object") as refused:
        await vault.get_secret("db")
    assert CANARY not in text_of(refused.value)


async def test_tags_and_expiry_travel_and_ours_stays_hidden(server: KeyVaultServer, vault: KeyVault) -> None:
    until = datetime(2031, 5, 6, 7, 8, 9, 654_321, tzinfo=UTC)
    entry = await vault.set_secret("db", Secret({"value": "x"}, tags={"team": "ops"}, expires_at=until), owner="a/b")
    secret = await vault.get_secret("db")
    assert (secret.tags, secret.expires_at) == ({"team": "ops"}, until.replace(microsecond=0))
    assert entry.owner == "a/b"
    stored = server.get("db")
    assert stored
    assert stored.tags
    assert stored.tags["vaultferry"].startswith("a/b/")
    assert (await vault.set_secret("db", Secret({"value": "x"}))).owner is None


async def test_an_expired_secret_is_a_tombstone(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one", expires=NOON - 1)
    with pytest.raises(SecretNotFound, match="expired"):
        await vault.get_secret("db")
    assert not (await vault.describe_secret("db")).live
    assert not (await listed(vault))["db"].live
    await vault.delete_secret("db")
    assert server.names() == [], "to Key Vault it is still there, so it can be cleared away"


async def test_expiry_goes_by_the_server_s_clock(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("later", "one", expires=NOON + 1)
    assert (await vault.get_secret("later")).fields == {"value": "one"}
    assert (await listed(vault))["later"].live
    server.clock.advance(1)
    with pytest.raises(SecretNotFound):
        await vault.get_secret("later")


# What is refused before anything is sent.


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("", Secret({"value": CANARY})),
        ("a/b", Secret({"value": CANARY})),
        ("../x", Secret({"value": CANARY})),
        ("%2e%2e", Secret({"value": CANARY})),
        ("a_b", Secret({"value": CANARY})),
        ("a\n", Secret({"value": CANARY})),
        ("ä", Secret({"value": CANARY})),
        ("x" * 128, Secret({"value": CANARY})),
        ("db", Secret({"value": CANARY + "x" * 25_600})),
        ("db", Secret({"value": CANARY + "ä" * 12_800})),
        ("db", Secret({"a": CANARY + "x" * 25_590})),
        ("db", Secret({"value": CANARY + "\ud800"})),
        ("db", Secret({"a": float("nan"), "b": CANARY})),
        ("db", Secret({"value": CANARY}, content_type="t" * 256)),
        ("db", Secret({"value": CANARY}, tags={str(number): "x" for number in range(15)})),
        ("db", Secret({"value": CANARY}, tags={"a": "x" * 257})),
        ("db", Secret({"value": CANARY}, tags={"a" * 257: "x"})),
        ("db", Secret({"value": CANARY}, tags={"a": "\ud800"})),
    ],
)
async def test_what_can_not_be_stored_is_refused_before_anything_is_sent(
    server: KeyVaultServer, vault: KeyVault, name: str, secret: Secret
) -> None:
    with pytest.raises(InvalidSecret) as refused:
        await vault.set_secret(name, secret)
    assert CANARY not in text_of(refused.value)
    assert refused.value.vault == "prod"
    assert server.log == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x" * 128, "a b"])
async def test_a_bad_name_reaches_no_server(server: KeyVaultServer, vault: KeyVault, name: str) -> None:
    for call in (vault.get_secret(name), vault.describe_secret(name), vault.delete_secret(name)):
        with pytest.raises(InvalidSecret):
            await call
    assert server.log == []


async def test_the_limits_themselves_are_inside(vault: KeyVault) -> None:
    tags = {str(number): "x" * 256 for number in range(14)}
    await vault.set_secret("x" * 127, Secret({"value": "ä" * 12_800}, content_type="t" * 255, tags=tags))
    assert (await vault.get_secret("X" * 127)).tags == tags


async def test_comparing_is_unsupported(server: KeyVaultServer, vault: KeyVault) -> None:
    for expect in ("1", Expect.ABSENT):
        with pytest.raises(Unsupported):
            await vault.set_secret("db", Secret({"value": "x"}), expect=expect)
        with pytest.raises(Unsupported):
            await vault.delete_secret("db", expect=expect)
    assert server.log == []
    assert not vault.capabilities.compare_and_set
    assert vault.capabilities.fingerprint is FingerprintCost.LISTED


# Fingerprints.


async def test_set_get_describe_and_list_tell_one_fingerprint_at_once(vault: KeyVault) -> None:
    told = {(await vault.set_secret("db", Secret({"value": "one"}, tags={"a": "b"}), owner="me")).fingerprint}
    entry = (await vault.get_secret("db")).entry
    assert entry
    told |= {entry.fingerprint, (await vault.describe_secret("db")).fingerprint}
    told.add((await listed(vault))["db"].fingerprint)
    assert len(told) == 1
    assert None not in told


async def test_two_writes_of_ours_in_one_second_differ(vault: KeyVault) -> None:
    first = await vault.set_secret("db", Secret({"value": "one"}))
    second = await vault.set_secret("db", Secret({"value": "one"}))
    assert first.updated_at == second.updated_at
    assert first.fingerprint != second.fingerprint


async def test_a_foreign_write_in_the_second_of_ours_shows(server: KeyVaultServer, vault: KeyVault) -> None:
    ours = await vault.set_secret("db", Secret({"value": "one"}, content_type="t"))
    server.put("db", "two", content_type="t")
    assert (await listed(vault))["db"].fingerprint is None
    entry = (await vault.get_secret("db")).entry
    assert entry
    assert entry.fingerprint is None
    server.clock.advance(2)
    settled = (await listed(vault))["db"]
    assert settled.fingerprint not in (None, ours.fingerprint)
    assert settled.owner is None


@pytest.mark.parametrize(
    ("seconds", "settled"), [(0, False), (1, False), (1.9, False), (2, True), (60, True), (-60, False)]
)
async def test_a_foreign_secret_is_unsettled_while_it_is_young_by_the_server_s_clock(
    server: KeyVaultServer, vault: KeyVault, seconds: float, settled: bool
) -> None:
    server.put("db", "one")
    server.clock.advance(seconds)
    assert ((await listed(vault))["db"].fingerprint is not None) == settled


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": {"enabled": False}},
        {"attributes": {"exp": NOON + 100}},
        {"attributes": {"nbf": NOON - 100}},
        {"contentType": "other"},
    ],
)
async def test_a_changed_property_in_the_second_of_our_write_changes_the_fingerprint(
    server: KeyVaultServer, vault: KeyVault, change: dict[str, Any]
) -> None:
    ours = await vault.set_secret("db", Secret({"value": "one"}))
    server.secrets.update("db", "", change)
    assert (await listed(vault))["db"].fingerprint not in (None, ours.fingerprint)


async def test_a_value_is_as_old_as_its_version_whatever_is_set_on_it_later(
    server: KeyVaultServer, vault: KeyVault
) -> None:
    server.secrets.set("db", {"value": "1"})
    server.clock.advance(3600)
    server.secrets.update("db", "", {"tags": {"team": "shop"}})
    for entry in (await vault.describe_secret("db"), (await listed(vault))["db"], (await vault.get_secret("db")).entry):
        assert entry is not None
        assert entry.updated_at == datetime.fromtimestamp(NOON, UTC)


async def test_a_mark_that_is_not_quite_ours_settles_nothing(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one", tags={"vaultferry": "by hand"})
    entry = (await listed(vault))["db"]
    assert (entry.fingerprint, entry.owner) == (None, None)


# Listings.


async def test_a_listing_is_by_prefix_whatever_the_case_without_certificates(
    server: KeyVaultServer, vault: KeyVault
) -> None:
    for number in range(60):
        server.put(f"App-{number:02}", "x")
    server.put("other", "x")
    server.put("app-cert", "pem", managed=True)
    server.put("app-off", "x")
    server.disable("app-off")
    with counting() as calls:
        found = await listed(vault, "app-")
    assert sorted(found) == sorted([*(f"App-{number:02}" for number in range(60)), "app-off"])
    assert [name for name, entry in found.items() if not entry.enabled] == ["app-off"]
    assert server.calls["list"] == calls["prod"] == 3
    assert await listed(vault, "nope") == {}
    assert server.calls["get"] == 0


async def test_half_a_listing_raises(server: KeyVaultServer, vault: KeyVault) -> None:
    for number in range(30):
        server.put(f"s{number}", "x")
    for fault in (
        Fault("status", operation="list", skip=1, times=None),
        Fault("cut_body", operation="list", times=None),
    ):
        server.faults.add(fault)
        with pytest.raises(Unavailable):
            await listed(vault)
        server.faults.clear()
    server.faults.add(Fault("cut_body", operation="list"), Fault("torn_after", operation="list", skip=1))
    assert len(await listed(vault)) == 30, "a page that is asked for again goes on where it was"


async def test_an_empty_vault_lists_nothing(vault: KeyVault) -> None:
    assert await listed(vault) == {}


# Disabled and managed ones.


async def test_a_disabled_secret_is_described_but_not_read(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    server.disable("db")
    assert not (await vault.describe_secret("db")).enabled
    with pytest.raises(AccessDenied, match="disabled"):
        await vault.get_secret("db")
    await vault.set_secret("db", Secret({"value": "two"}))
    assert (await vault.describe_secret("db")).enabled


async def test_a_certificate_s_secret_is_never_read_as_gone(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("cert", "pem", managed=True)
    for call in (vault.get_secret("cert"), vault.describe_secret("cert")):
        with pytest.raises(InvalidSecret, match="certificate"):
            await call
    with pytest.raises(AccessDenied, match="certificate"):
        await vault.set_secret("cert", Secret({"value": "x"}))


# Deleting and recovering.


async def test_a_deletion_is_one_call_and_a_second_one_finds_nothing(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    server.secrets.delete_steps = 3
    await vault.delete_secret("db")
    assert server.calls["delete"] == 1
    assert server.calls["get_deleted"] == 0
    for _ in range(5):
        with pytest.raises(SecretNotFound):
            await vault.delete_secret("db")
    for call in (vault.get_secret("db"), vault.describe_secret("db"), vault.delete_secret("never")):
        with pytest.raises(SecretNotFound):
            await call
    assert await listed(vault) == {}


@pytest.mark.parametrize("steps", [0, 1, 3])
async def test_a_deleted_name_is_recovered_before_it_is_written(
    server: KeyVaultServer, vault: KeyVault, patience: Patience, steps: int
) -> None:
    server.put("db", "one")
    server.delete("db")
    server.secrets.recover_steps = steps
    await vault.set_secret("db", Secret({"value": "two"}))
    assert (await vault.get_secret("db")).fields == {"value": "two"}
    assert [version.value for version in server.versions("db")] == ["one", "two"]
    assert server.calls["recover"] == 1
    assert patience.waits == sorted(patience.waits)
    assert len(patience.waits) == steps + 1


async def test_a_recovery_that_takes_too_long_is_for_later(
    server: KeyVaultServer, vault: KeyVault, patience: Patience
) -> None:
    server.put("db", "one")
    server.delete("db")
    server.secrets.recover_steps = 1_000
    with pytest.raises(Unavailable, match="being recovered") as late:
        await vault.set_secret("db", Secret({"value": "two"}))
    assert late.value.retry_after
    assert not late.value.ambiguous
    assert sum(patience.waits) < 20
    with pytest.raises(Unavailable, match="deleted or recovered"):
        await vault.set_secret("db", Secret({"value": "two"}))
    server.secrets.settle()
    await vault.set_secret("db", Secret({"value": "two"}))


async def test_a_deletion_under_way_is_for_later(server: KeyVaultServer, vault: KeyVault, patience: Patience) -> None:
    server.put("db", "one")
    server.secrets.delete_steps = 1_000
    await vault.delete_secret("db")
    with pytest.raises(Unavailable) as late:
        await vault.set_secret("db", Secret({"value": "two"}))
    assert late.value.retry_after
    assert patience.waits == []


async def test_a_purge_in_between_frees_the_name(server: KeyVaultServer, patience: Patience) -> None:
    server.put("db", "one")
    server.delete("db")

    async def purging(seconds: float) -> None:
        server.secrets.settle()
        server.secrets.delete("db")
        server.secrets.settle()
        server.secrets.purge("db")

    vault = KeyVault("prod", settings_for(server), sleep=purging)
    await vault.set_secret("db", Secret({"value": "two"}))
    await vault.aclose()
    assert [version.value for version in server.versions("db")] == ["two"]


async def test_a_missing_permission_to_recover_is_said(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    server.delete("db")
    server.permissions = EVERY_PERMISSION - {"recover"}
    with pytest.raises(AccessDenied, match="permission 'recover'"):
        await vault.set_secret("db", Secret({"value": "two"}))


# Failures.


@pytest.mark.parametrize(
    ("fault", "expected", "ambiguous"),
    [
        (Fault("timeout_before", operation="set", times=None), Unavailable, True),
        (Fault("timeout_after", operation="set", times=None), Unavailable, True),
        (Fault("torn_before", operation="set", times=None), Unavailable, True),
        (Fault("torn_after", operation="set", times=None), Unavailable, True),
        (Fault("cut_body", operation="set", times=None), Unavailable, True),
        (Fault("status", operation="set", times=None, status=500), Unavailable, True),
        (Fault("status", operation="set", times=None, status=503), Unavailable, False),
        (Fault("status", operation="set", times=None, status=429), Unavailable, False),
        (Fault("status", operation="set", times=None, status=404), MountNotFound, None),
        (Fault("status", operation="set", times=None, status=418), InvalidSecret, None),
        (Fault("status", operation="set", times=None, status=403), AccessDenied, None),
        (Fault("status", operation="set", times=None, status=401), AccessDenied, None),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else None,
)
async def test_every_misbehaviour_has_its_error_and_quotes_no_value(
    server: KeyVaultServer,
    patience: Patience,
    fault: Fault,
    expected: type[VaultError],
    ambiguous: bool | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vault = KeyVault("prod", settings_for(server), timeout=0.3, sleep=patience)
    server.put("db", "old")
    await vault.describe_secret("db")
    server.faults.add(fault)
    with caplog.at_level(logging.DEBUG), pytest.raises(expected) as failed:
        await vault.set_secret("db", Secret({"value": CANARY}))
    await vault.aclose()
    assert isinstance(failed.value, Unavailable) == (ambiguous is not None)
    assert getattr(failed.value, "ambiguous", None) == ambiguous
    if ambiguous:
        assert server.calls["set"] == 1, "what may have had its effect is not repeated"
    assert (failed.value.vault, failed.value.path) == ("prod", "db")
    assert CANARY not in text_of(failed.value)
    assert CANARY not in caplog.text
    assert failed.value.__cause__ is None


@pytest.mark.parametrize("kind", ["cut_body", "torn_after"])
async def test_a_cut_answer_leaves_no_trace_of_its_value(server: KeyVaultServer, vault: KeyVault, kind: Any) -> None:
    server.put("db", CANARY)
    server.faults.add(Fault(kind, operation="get", times=None))
    with pytest.raises(Unavailable) as failed:
        await vault.get_secret("db")
    error: BaseException | None = failed.value
    while error is not None:
        assert isinstance(error, VaultError), "nothing of the SDK's is chained"
        assert CANARY not in repr(vars(error))
        error = error.__cause__ or error.__context__


async def test_a_read_is_quickly_tried_again(server: KeyVaultServer, vault: KeyVault, patience: Patience) -> None:
    server.put("db", "one")
    server.faults.add(
        Fault("status", operation="get", status=429, retry_after=1), Fault("torn_before", operation="get")
    )
    assert (await vault.get_secret("db")).fields == {"value": "one"}
    assert server.calls["get"] == 3
    assert patience.waits[0] == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), (format(datetime.fromtimestamp(NOON + 9, UTC), "%a, %d %b %Y %H:%M:%S GMT"), 9.0), ("soon", None)],
)
def test_both_forms_of_retry_after_are_understood(header: str, seconds: float | None) -> None:
    from shared.vaults.azure_key_vault.failures import _retry_after

    class Answer:
        headers = {
            "Retry-After": header,
            "Date": format(datetime.fromtimestamp(NOON, UTC), "%a, %d %b %Y %H:%M:%S GMT"),
        }

    assert _retry_after(Answer()) == seconds


async def test_a_server_that_asks_for_long_is_left_alone(
    server: KeyVaultServer, vault: KeyVault, patience: Patience
) -> None:
    server.faults.add(Fault("status", operation="get", status=429, retry_after=60))
    with pytest.raises(Unavailable, match="too many") as failed:
        await vault.get_secret("db")
    assert failed.value.retry_after == 60
    assert patience.waits == []


async def test_a_vault_that_does_not_resolve_or_answer_is_told_apart(patience: Patience) -> None:
    for url, hint in (
        ("https://vaultferry-nowhere.invalid", "is not known; does the vault exist"),
        ("https://127.0.0.1:1", "no connection to 127"),
    ):
        settings = Settings.model_validate(
            {"kind": "azure_key_vault", "url": url, "auth": {"method": "managed_identity"}}
        )
        vault = KeyVault("prod", settings, sleep=patience)
        with pytest.raises(Unavailable, match=hint) as failed:
            await vault.set_secret("db", Secret({"value": "x"}))
        assert not failed.value.ambiguous
        await vault.aclose()


async def test_an_untrusted_certificate_names_the_setting(server: KeyVaultServer) -> None:
    settings = settings_for(server, ca_bundle=None)
    vault = KeyVault("prod", settings)
    with pytest.raises(AccessDenied, match="ca_bundle"):
        await vault.get_secret("db")
    await vault.aclose()


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("get", lambda vault: vault.get_secret("db")),
        ("get", lambda vault: vault.describe_secret("db")),
        ("set", lambda vault: vault.set_secret("db", Secret({"value": "x"}))),
        ("delete", lambda vault: vault.delete_secret("db")),
        ("list", lambda vault: listed(vault)),
    ],
)
async def test_a_missing_permission_names_the_role(
    server: KeyVaultServer, vault: KeyVault, operation: str, call: Callable[[KeyVault], Any]
) -> None:
    server.put("db", "one")
    server.permissions = EVERY_PERMISSION - {operation}
    with pytest.raises(AccessDenied, match="Key Vault Secrets Officer"):
        await call(vault)


@pytest.mark.parametrize(
    ("inner", "text"),
    [("ForbiddenByFirewall", "firewall"), ("ForbiddenByConnection", "private endpoint"), ("ForbiddenByRbac", "role")],
)
async def test_a_closed_firewall_is_not_taken_for_a_missing_role(
    server: KeyVaultServer, vault: KeyVault, monkeypatch: pytest.MonkeyPatch, inner: str, text: str
) -> None:
    from sandbox.key_vault_secrets import KeyVaultError

    def refuse(*_: Any) -> None:
        raise KeyVaultError(403, "Forbidden", "Client address is not authorized", inner=inner)

    monkeypatch.setattr(server, "_authorize", refuse)
    with pytest.raises(AccessDenied, match=text):
        await vault.get_secret("db")
    assert text in (await vault.check([]))[0].detail


def _sdk_exceptions() -> list[type[BaseException]]:
    import azure.core.exceptions as core
    import azure.identity

    return [
        cls
        for module in (core, azure.identity)
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__.startswith("azure.")
    ]


@pytest.mark.parametrize("cls", _sdk_exceptions(), ids=lambda cls: cls.__name__)
def test_every_exception_of_the_sdk_is_mapped(cls: type[BaseException]) -> None:
    assert cls in failures(), f"say in failures() what {cls.__name__} means"
    error = cls.__new__(cls)
    for name in ("inner_exception", "status_code", "response", "error"):
        setattr(error, name, None)
    error.message = CANARY  # type: ignore[attr-defined]
    told = explain(error, "db", "https://a.vault.azure.net")
    assert isinstance(told, VaultError)
    assert CANARY not in str(told)


# Signing in.


async def test_one_connection_and_one_token_serve_many_calls(server: KeyVaultServer, vault: KeyVault) -> None:
    for number in range(5):
        await vault.set_secret("db", Secret({"value": str(number)}))
    assert server.calls == {"challenge": 1, "set": 5}


async def test_many_first_calls_sign_in_once(
    server: KeyVaultServer, vault: KeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ManagedIdentityServer(server.authority) as identity:
        for name, setting in identity.environment.items():
            monkeypatch.setenv(name, setting)
        for number in range(10):
            server.put(f"s{number}", "x")
        await asyncio.gather(*(vault.get_secret(f"s{number}") for number in range(10)))
        assert identity.calls["token"] == 1


async def test_a_token_that_has_ended_is_replaced(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    server.authority.lifetime = 0
    with pytest.raises(AccessDenied):
        await vault.get_secret("db")
    server.authority.lifetime = 600
    assert (await vault.get_secret("db")).fields == {"value": "one"}


async def test_a_service_principal_signs_in_and_a_wrong_secret_is_said(
    server: KeyVaultServer, tmp_path: Path, patience: Patience
) -> None:
    authority = server.authority
    async with EntraServer(authority) as entra:
        assert server.ca_bundle
        assert entra.ca_bundle
        bundle = tmp_path / "both.pem"
        bundle.write_text(server.ca_bundle.read_text() + entra.ca_bundle.read_text())
        auth = {"method": "service_principal", "tenant_id": authority.tenant_id, "client_id": authority.client_id}
        server.put("db", "one")
        for secret in (authority.client_secret, CANARY):
            settings = settings_for(
                server, ca_bundle=str(bundle), authority=entra.url, auth=auth | {"client_secret": secret}
            )
            vault = KeyVault("prod", settings, sleep=patience)
            if secret != CANARY:
                assert (await vault.get_secret("db")).fields == {"value": "one"}
                entra.faults.add(Fault("status", operation="token", status=503, times=None))
            else:
                with pytest.raises(Unavailable, match="source of tokens answered 503"):
                    await vault.get_secret("db")
                entra.faults.clear()
                with pytest.raises(AccessDenied, match=r"signing in failed: .*AADSTS7000215") as denied:
                    await vault.get_secret("db")
                assert CANARY not in text_of(denied.value)
            await vault.aclose()


async def test_revoked_tokens_are_replaced(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    await vault.get_secret("db")
    server.authority.revoke_all()
    # azure-identity still holds the old token: the vault says so, and nothing is taken for a missing secret.
    with pytest.raises(AccessDenied, match="AKV10046"):
        await vault.get_secret("db")


async def test_without_any_identity_the_ways_to_have_one_are_named(
    server: KeyVaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    # Nothing on this machine may answer in Azure's place.
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    vault = KeyVault("prod", settings_for(server, auth={"method": "default"}))
    with pytest.raises(AccessDenied, match="AZURE_CLIENT_ID"):
        await vault.get_secret("db")
    await vault.aclose()
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "nonsense")
    vault = KeyVault("prod", settings_for(server, auth={"method": "default"}))
    for _ in range(2):
        with pytest.raises(AccessDenied, match="can not be made"):
            await vault.get_secret("db")
    await vault.aclose()


# Pacing.


async def test_a_new_vault_keeps_to_the_published_limits(server: KeyVaultServer) -> None:
    clock = asyncio.get_running_loop().time

    class Fast:
        """Time that passes only in sleeps, on the server too."""

        async def __call__(self, seconds: float) -> None:
            waits.append(seconds)

    waits: list[float] = []
    vault = KeyVault("prod", settings_for(server), sleep=Fast())
    begin = clock()
    for number in range(40):
        await vault.set_secret(f"s{number}", Secret({"value": "x"}))
    await vault.aclose()
    # 40 creates at 27 a second after a burst of 13: the last one starts a second after the first.
    assert max(waits) > (40 - 13) / 27 - (clock() - begin) - 0.1


# check.


async def test_check_finds_all_well_and_writes_nothing(server: KeyVaultServer, vault: KeyVault) -> None:
    server.put("db", "one")
    findings = await vault.check([Use("", write=True, delete=True)])
    assert [(finding.subject, finding.ok) for finding in findings] == [
        ("list", True),
        ("read", True),
        ("write", True),
        ("recover", True),
        ("delete", True),
    ]
    assert server.names() == ["db"]
    assert len(server.versions("db")) == 1
    assert [finding.subject for finding in await vault.check([Use("")])] == ["list", "read"]


@pytest.mark.parametrize(
    ("permission", "subject"),
    [("list", "list"), ("get", "read"), ("set", "write"), ("recover", "recover"), ("delete", "delete")],
)
async def test_check_names_the_one_permission_that_is_missing(
    server: KeyVaultServer, vault: KeyVault, permission: str, subject: str
) -> None:
    server.permissions = EVERY_PERMISSION - {permission}
    findings = await vault.check([Use("", write=True, delete=True)])
    missing = [finding for finding in findings if not finding.ok]
    assert [finding.subject for finding in missing] == [subject]
    assert permission in missing[0].hint
    assert "role" in missing[0].hint


async def test_check_of_a_vault_that_is_not_there_raises_nothing(patience: Patience) -> None:
    settings = Settings.model_validate(
        {"kind": "azure_key_vault", "url": "https://vaultferry-nowhere.invalid", "auth": {"method": "managed_identity"}}
    )
    vault = KeyVault("prod", settings, sleep=patience)
    findings = await vault.check([Use("", write=True)])
    await vault.aclose()
    assert [finding.ok for finding in findings] == [False]
    assert "does the vault exist" in findings[0].detail


async def test_nothing_is_left_open_when_nothing_was_used(server: KeyVaultServer) -> None:
    vault = KeyVault("prod", settings_for(server))
    await vault.aclose()
    assert vault.capabilities.time_resolution == timedelta(seconds=1)
    assert server.log == []
