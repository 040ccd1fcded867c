"""The file kind: one encrypted file, written whole and never half."""
# ruff: noqa: ASYNC240 - a test may block its own loop for a look at the file

import asyncio
import base64
import json
import os
import stat
import subprocess
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import (
    AccessDenied,
    ConfigError,
    Conflict,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    VaultError,
)
from shared.model import Entry, Expect, Secret
from shared.vault import Use
from shared.vaults import kinds
from shared.vaults.file import FileVault, Settings, connect
from shared.vaults.file import sealed as sealed_module
from shared.vaults.file.sealed import SealedFile, raw_key

CANARY = "canary-e77a"
KEY = base64.b64encode(bytes(range(32))).decode()
PASSPHRASE = "correct horse battery staple"
NOON = datetime(2027, 1, 15, 12, tzinfo=UTC)


def settings_for(path: Path, key: str = KEY, **given: Any) -> Settings:
    return Settings.model_validate({"kind": "file", "path": str(path), "key": key} | given)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backup.vault"


@pytest.fixture
async def vault(path: Path, clock: Clock) -> AsyncIterator[FileVault]:
    vault = FileVault("backup", settings_for(path), now=clock)
    yield vault
    await vault.aclose()


async def listed(vault: FileVault, prefix: str = "") -> dict[str, Entry]:
    return {entry.name: entry async for entry in vault.list_secrets(prefix)}


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


def value(text: str) -> Secret:
    return Secret({"value": text})


# Settings.


@pytest.mark.parametrize("key", ["", "too short", "x" * 19, base64.b64encode(b"x" * 9).decode()])
def test_a_weak_key_is_refused_without_being_shown(path: Path, key: str) -> None:
    with pytest.raises(ValidationError, match="32 bytes in base64, or a passphrase of at least 20") as refused:
        settings_for(path, key)
    assert not key or key not in text_of(refused.value)


def test_a_key_is_in_no_repr(path: Path) -> None:
    assert PASSPHRASE not in repr(settings_for(path, PASSPHRASE))


def test_both_alphabets_of_base64_are_the_same_key() -> None:
    key = bytes([251, 255] * 16)
    assert raw_key(base64.b64encode(key).decode()) == raw_key(base64.urlsafe_b64encode(key).decode()) == key
    assert raw_key(PASSPHRASE) is None
    assert raw_key("ä" * 44) is None


def test_the_folder_of_kinds_knows_it() -> None:
    assert kinds()["file"].Settings is Settings


def test_windows_and_other_resources_are_configuration_errors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="policies"):
        connect("backup", settings_for(path), "policies")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="Windows is not supported"):
        connect("backup", settings_for(path))


def test_importing_the_kind_loads_no_cryptography() -> None:
    code = "import sys, shared.vaults.file; print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Secrets.


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"value": ""},
        {"value": "-----BEGIN-----\nä€🔑\r\n\x00\u2028\x85"},
        {"value": '{"looks": "like JSON"}'},
        {"a": 1, "b": 1.0, "c": True, "d": None, "e": {"f": [[], {}, "x" * 100_000]}, "": 2**70},
    ],
)
async def test_any_json_comes_back_also_from_the_disk(vault: FileVault, path: Path, fields: dict[str, Any]) -> None:
    until = NOON + timedelta(days=1, microseconds=7)
    written = await vault.set_secret(
        "a b/ü", Secret(fields, content_type="text/x", tags={"team": "ä"}, expires_at=until), owner="me"
    )
    again = FileVault("again", settings_for(path), now=lambda: NOON)
    for reader in (vault, again):
        secret = await reader.get_secret("a b/ü")
        assert json.dumps(secret.fields) == json.dumps(fields, sort_keys=True)
        assert (secret.content_type, secret.tags, secret.expires_at) == ("text/x", {"team": "ä"}, until)
        assert secret.entry == written == await reader.describe_secret("a b/ü") == (await listed(reader))["a b/ü"]
    assert (written.owner, written.version) == ("me", "1")


async def test_what_one_caller_changes_no_other_sees(vault: FileVault) -> None:
    await vault.set_secret("db", Secret({"list": [1]}))
    secret: Any = await vault.get_secret("db")
    secret.fields["list"].append(2)
    assert (await vault.get_secret("db")).fields == {"list": [1]}


@pytest.mark.parametrize(
    "fields", [{"a": float("nan")}, {"a": b"x"}, {"a": {1: 2}}, {"a": "\ud800"}, {"\udfff": "x"}], ids=str
)
async def test_what_is_no_json_is_refused_before_a_file_is_made(
    vault: FileVault, path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidSecret, match=r"^backup:db: ") as refused:
        await vault.set_secret("db", Secret({**fields, "other": CANARY}))
    assert CANARY not in text_of(refused.value)
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "../x", "a//b", "a/", "/a", "a\nb", "."])
async def test_a_bad_name_is_refused(vault: FileVault, path: Path, name: str) -> None:
    calls = (vault.get_secret(name), vault.describe_secret(name), vault.delete_secret(name))
    for call in (*calls, vault.set_secret(name, value("x"))):
        with pytest.raises(InvalidSecret):
            await call
    assert not path.exists()


async def test_a_listing_is_sorted_and_by_prefix(vault: FileVault) -> None:
    for name in ("b/2", "a/1", "b/1", "%2e%2e", "B/3"):
        await vault.set_secret(name, value("x"))
    assert list(await listed(vault)) == ["%2e%2e", "B/3", "a/1", "b/1", "b/2"]
    assert list(await listed(vault, "b/")) == ["b/1", "b/2"]
    assert await listed(vault, "c/") == {}


async def test_a_missing_file_is_an_empty_vault_and_stays_missing(vault: FileVault, path: Path) -> None:
    assert await listed(vault) == {}
    for call in (vault.get_secret("db"), vault.describe_secret("db"), vault.delete_secret("db")):
        with pytest.raises(SecretNotFound, match=r"^backup:db: "):
            await call
    assert not path.exists()


async def test_fingerprints_change_on_write_and_stay_on_read(vault: FileVault) -> None:
    first = await vault.set_secret("db", value("one"))
    await vault.set_secret("other", value("one"))
    assert (await vault.describe_secret("db")).fingerprint == first.fingerprint
    second = await vault.set_secret("db", value("one"))
    assert second.fingerprint != first.fingerprint
    assert (first.version, second.version) == ("1", "2")
    assert first.updated_at
    assert second.updated_at
    assert second.updated_at > first.updated_at, "also on a clock that stands still"


async def test_versions_survive_deletion_and_expiry_as_tombstones(vault: FileVault, clock: Clock) -> None:
    live = await vault.set_secret("db", value("one"))
    await vault.delete_secret("db")
    tombstone = await vault.describe_secret("db")
    assert (tombstone.live, tombstone.version) == (False, "1")
    assert tombstone.fingerprint != live.fingerprint
    assert (await listed(vault))["db"] == tombstone
    for call in (vault.get_secret("db"), vault.delete_secret("db")):
        with pytest.raises(SecretNotFound):
            await call
    assert (await vault.set_secret("db", Secret({}, expires_at=NOON + timedelta(seconds=1)))).version == "2"
    assert (await vault.describe_secret("db")).live
    clock.now += timedelta(seconds=1)
    for call in (vault.get_secret("db"), vault.delete_secret("db")):
        with pytest.raises(SecretNotFound):
            await call
    assert not (await listed(vault))["db"].live
    assert (await vault.set_secret("db", value("three"))).version == "3"


async def test_a_deleted_value_is_not_kept(vault: FileVault, path: Path) -> None:
    await vault.set_secret("db", value(CANARY))
    await vault.delete_secret("db")
    assert CANARY.encode() not in SealedFile(path, KEY).read()[1]


async def test_only_what_is_expected_is_overwritten_or_deleted(vault: FileVault) -> None:
    with pytest.raises(Conflict, match="nothing is there"):
        await vault.set_secret("db", value("x"), expect="1")
    await vault.set_secret("db", value("one"), expect=Expect.ABSENT)
    for stale in (Expect.ABSENT, "0", "2"):
        with pytest.raises(Conflict, match="version 1 is there"):
            await vault.set_secret("db", value("x"), expect=stale)
        with pytest.raises(Conflict):
            await vault.delete_secret("db", expect=stale)
    await vault.set_secret("db", value("two"), expect="1")
    await vault.delete_secret("db", expect="2")
    with pytest.raises(Conflict):
        await vault.set_secret("db", value("x"), expect=Expect.ABSENT)
    assert (await vault.set_secret("db", value("three"), expect="2")).version == "3"


async def test_of_many_writers_that_expect_one_version_one_wins(vault: FileVault, path: Path) -> None:
    other = FileVault("other", settings_for(path))
    outcomes = await asyncio.gather(
        *(
            each.set_secret("db", value(str(number)), expect=Expect.ABSENT)
            for number in range(10)
            for each in (vault, other)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Entry) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


# Many at once.


async def test_thousands_of_sets_share_few_rewrites(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = FileVault("backup", settings_for(path))
    rewrites: list[int] = []
    write = SealedFile.write
    monkeypatch.setattr(SealedFile, "write", lambda self, data: (rewrites.append(len(data)), write(self, data))[1])
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(vault.set_secret(f"s/{number}", value(str(number))) for number in range(5_000)))
    assert asyncio.get_running_loop().time() - started < 20
    assert len(rewrites) <= 40
    again = FileVault("again", settings_for(path))
    assert len(await listed(again)) == 5_000
    assert (await again.get_secret("s/4999")).fields == {"value": "4999"}


async def test_an_unchanged_file_is_read_once(vault: FileVault, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await vault.set_secret("db", value("one"))
    reader = FileVault("reader", settings_for(path))
    reads: list[None] = []
    read = SealedFile.read
    monkeypatch.setattr(SealedFile, "read", lambda self: (reads.append(None), read(self))[1])
    for _ in range(20):
        await reader.get_secret("db")
        await vault.get_secret("db")
    assert len(reads) == 1
    await vault.set_secret("db", value("two"))
    assert (await reader.get_secret("db")).fields == {"value": "two"}
    assert len(reads) == 2


async def test_two_processes_lose_nothing_of_each_other(path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from shared.model import Secret
        from shared.vaults.file import FileVault, Settings

        async def main(path, key, who):
            vault = FileVault(who, Settings.model_validate({"kind": "file", "path": path, "key": key}))
            for number in range(25):
                await vault.set_secret(f"{who}/{number}", Secret({"value": who}))
                await vault.set_secret("shared", Secret({"value": who}))

        asyncio.run(main(*sys.argv[1:]))
        """
    )
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path), KEY, who) for who in ("a", "b")
    ]
    assert [await writer.wait() for writer in writers] == [0, 0]
    vault = FileVault("backup", settings_for(path))
    assert len(await listed(vault)) == 51
    assert (await vault.describe_secret("shared")).version == "50"


async def test_a_caller_that_gives_up_stops_nobody_else(vault: FileVault) -> None:
    calls = [asyncio.ensure_future(vault.set_secret(f"s{number}", value("x"))) for number in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Entry) for outcome in outcomes[1::2])
    assert {f"s{number}" for number in range(1, 50, 2)} <= set(await listed(vault))


async def test_a_bug_in_one_batch_keeps_nobody_waiting(vault: FileVault, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SealedFile) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(SealedFile, "stamp", broken)
        with pytest.raises(ZeroDivisionError):
            await vault.get_secret("db")
    await vault.set_secret("db", value("one"))


# The file.


@pytest.mark.parametrize("key", [KEY, PASSPHRASE])
async def test_the_file_tells_nothing_and_opens_to_its_key_alone(path: Path, key: str) -> None:
    vault = FileVault("backup", settings_for(path, key))
    await vault.set_secret("names-are-secret-too", value(CANARY))
    data = path.read_bytes()
    assert b"names-are-secret-too" not in data
    assert CANARY.encode() not in data
    assert key.encode() not in data
    again = FileVault("again", settings_for(path, key))
    assert (await again.get_secret("names-are-secret-too")).fields == {"value": CANARY}
    for wrong in (base64.b64encode(bytes(32)).decode(), PASSPHRASE + "!"):
        stranger = FileVault("backup", settings_for(path, wrong))
        for call in (stranger.get_secret("a"), stranger.set_secret("a", value("x")), listed(stranger)):
            with pytest.raises(AccessDenied, match="the key does not open this file") as denied:
                await call
            assert wrong not in text_of(denied.value)
    assert path.read_bytes() == data, "a wrong key never overwrites"


async def test_every_write_has_a_fresh_nonce_under_the_same_header(vault: FileVault, path: Path) -> None:
    sealed = []
    for _ in range(3):
        await vault.set_secret("db", value("one"))
        header, _, rest = path.read_bytes().partition(b"\n")
        sealed.append((header, rest[:12]))
    assert len({header for header, _ in sealed}) == 1
    assert len({nonce for _, nonce in sealed}) == 3


def _flip(position: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1
        return bytes(changed)

    return flip


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def rewrite(data: bytes) -> bytes:
        header, _, rest = data.partition(b"\n")
        magic, _, text = header.partition(b"{")
        asked = json.loads(b"{" + text)
        change(asked)
        return magic + json.dumps(asked).encode() + b"\n" + rest

    return rewrite


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: b"", InvalidSecret),
        (lambda data: data[:10], InvalidSecret),
        (lambda data: data[: data.index(b"\n") + 1], InvalidSecret),
        (lambda data: data[: data.index(b"\n") + 20], InvalidSecret),
        (lambda data: data[: len(data) // 2], InvalidSecret),
        (lambda data: data[:-1], InvalidSecret),
        (lambda data: data + b"\n", InvalidSecret),
        (_flip(-1), InvalidSecret),
        (_flip(-40), InvalidSecret),
        (_flip(0), InvalidSecret),
        (lambda data: b"PK\x03\x04" + data, InvalidSecret),
        (lambda data: b"vaultferry-vault 1 \xff\n" + data, InvalidSecret),
        (lambda data: b"vaultferry-vault 1 []\n" + data, InvalidSecret),
        (_header(lambda asked: asked.update(extra=1)), InvalidSecret),
        (_header(lambda asked: asked.update(kdf="none")), InvalidSecret),
        (_header(lambda asked: asked.update(salt=5)), InvalidSecret),
        (_header(lambda asked: asked.pop("check")), InvalidSecret),
        (_header(lambda asked: asked.update(check=base64.b64encode(bytes(16)).decode())), AccessDenied),
        (_header(lambda asked: asked.update(kdf="scrypt", n=2**40, r=8, p=1)), AccessDenied),
    ],
)
async def test_a_damaged_file_is_said_to_be_and_never_overwritten(
    path: Path, damage: Callable[[bytes], bytes], expected: type[VaultError]
) -> None:
    writer = FileVault("backup", settings_for(path))
    await writer.set_secret("db", value(CANARY))
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    for vault in (writer, FileVault("fresh", settings_for(path))):
        calls = (vault.set_secret("db", value("two")), vault.get_secret("db"), listed(vault), vault.delete_secret("x"))
        for call in calls:
            with pytest.raises(expected) as refused:
                await call
            assert CANARY not in text_of(refused.value)
    assert path.read_bytes() == damaged


async def test_a_header_that_asks_for_the_whole_memory_is_not_obeyed(path: Path) -> None:
    await FileVault("backup", settings_for(path, PASSPHRASE)).set_secret("db", value("one"))
    path.write_bytes(_header(lambda asked: asked.update(n=2**30))(path.read_bytes()))
    with pytest.raises(InvalidSecret, match="damaged"):
        await FileVault("backup", settings_for(path, PASSPHRASE)).get_secret("db")


async def test_content_of_another_program_is_refused(path: Path) -> None:
    SealedFile(path, KEY).write(b'{"name": "db"}')
    with pytest.raises(InvalidSecret, match="did not write"):
        await FileVault("backup", settings_for(path)).get_secret("db")


async def test_only_the_owner_may_read_what_is_written(vault: FileVault, path: Path) -> None:
    old = os.umask(0)
    try:
        await vault.set_secret("db", value("one"))
    finally:
        os.umask(old)
    path.chmod(0o644)
    await vault.set_secret("db", value("two"))
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert sorted(each.name for each in path.parent.iterdir()) == ["backup.vault", "backup.vault.lock"]


async def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "real.vault")
    await FileVault("backup", settings_for(path)).set_secret("db", value("one"))
    assert path.is_symlink()
    assert (tmp_path / "elsewhere" / "real.vault").exists()


async def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(vault: FileVault, path: Path) -> None:
    await vault.set_secret("db", value("one"))
    (path.parent / ".backup.vault.tmp").write_bytes(b"half of a file")
    assert (await vault.get_secret("db")).fields == {"value": "one"}
    await vault.set_secret("db", value("two"))
    assert not (path.parent / ".backup.vault.tmp").exists()


async def test_a_full_disk_is_for_later_and_the_old_file_is_whole(vault: FileVault, path: Path) -> None:
    await vault.set_secret("db", value("one"))
    old = path.read_bytes()
    # A limit on the size of files, in a process of its own, stands for the full disk.
    script = textwrap.dedent(
        """
        import asyncio, resource, signal, sys
        from shared.errors import Unavailable
        from shared.model import Secret
        from shared.vaults.file import FileVault, Settings

        async def main(path, key):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            vault = FileVault("backup", Settings.model_validate({"kind": "file", "path": path, "key": key}))
            calls = [vault.set_secret(f"s{n}", Secret({"value": "x" * 4096})) for n in range(3)]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, Unavailable) and not error.ambiguous, error
                assert "no room left" in str(error), error
            await vault.set_secret("small", Secret({"value": "x"}))

        asyncio.run(main(*sys.argv[1:]))
        """
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), KEY, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert path.read_bytes() != old
    assert list(await listed(vault)) == ["db", "small"], "what failed is in no later write"


async def test_a_failed_write_changes_nothing_that_is_read(
    vault: FileVault, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await vault.set_secret("db", value("one"))
    old = path.read_bytes()

    def failing(source: Any, target: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        outcomes = await asyncio.gather(
            vault.set_secret("db", value("two")), vault.get_secret("db"), return_exceptions=True
        )
    assert isinstance(outcomes[0], Unavailable)
    assert isinstance(outcomes[1], Secret)
    assert outcomes[1].fields == {"value": "one"}
    assert path.read_bytes() == old
    assert sorted(each.name for each in path.parent.iterdir()) == ["backup.vault", "backup.vault.lock"]
    assert (await vault.set_secret("db", value("three"))).version == "2"


async def test_a_missing_folder_is_never_an_empty_vault(tmp_path: Path) -> None:
    vault = FileVault("backup", settings_for(tmp_path / "missing" / "backup.vault"))
    for call in (vault.get_secret("db"), vault.set_secret("db", value("x")), listed(vault)):
        with pytest.raises(MountNotFound, match="missing does not exist"):
            await call
    assert not (tmp_path / "missing").exists()


async def test_a_folder_in_the_file_s_place_is_said(tmp_path: Path) -> None:
    vault = FileVault("backup", settings_for(tmp_path))
    with pytest.raises(MountNotFound, match="leads to no file"):
        await vault.get_secret("db")


async def test_a_lock_that_is_never_released_is_for_later(
    vault: FileVault, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_module, "LOCK_PATIENCE", 0.01)
    with SealedFile(path, KEY).locked():
        with pytest.raises(Unavailable, match="locked"):
            await vault.set_secret("db", value("x"))
        assert await listed(vault) == {}, "reading needs no lock"
    await vault.set_secret("db", value("x"))


async def test_an_older_copy_put_back_is_read_and_told_apart(vault: FileVault, path: Path) -> None:
    await vault.set_secret("db", value("one"))
    copy = path.read_bytes()
    second = await vault.set_secret("db", value("two"))
    path.write_bytes(copy)
    assert (await vault.get_secret("db")).fields == {"value": "one"}
    again = await vault.set_secret("db", value("three"))
    assert again.version == second.version
    assert again.fingerprint != second.fingerprint


# check.


async def test_check_says_what_is_well_and_what_is_not(vault: FileVault, path: Path, tmp_path: Path) -> None:
    def told(findings: Any) -> list[tuple[str, bool]]:
        return [(finding.subject, finding.ok) for finding in findings]

    use = Use("", write=True)
    findings = await vault.check([use])
    assert told(findings) == [("open", True), ("write", True)]
    assert "no file yet" in findings[0].detail
    assert list(tmp_path.iterdir()) == []
    await vault.set_secret("db", value("one"))
    findings = await vault.check([Use("")])
    assert (told(findings), findings[0].detail) == ([("open", True)], "the key opens it; 1 secrets")
    findings = await FileVault("x", settings_for(path, PASSPHRASE)).check([use])
    assert (told(findings), findings[0].detail) == (
        [("open", False), ("write", True)],
        "the key does not open this file",
    )
    findings = await FileVault("x", settings_for(tmp_path / "no" / "file")).check([use])
    assert told(findings) == [("open", False), ("write", False)]
