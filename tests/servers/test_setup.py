"""`vaultferry setup`: the audit device on a real Vault and on the sandbox's, enabled, shown and removed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sandbox.faults import Fault, FaultKind
from sandbox.vault import VaultSandbox
from shared.cli import app as commands
from tests.cli_world import Ended, Folder
from tests.servers import processes
from tests.servers.processes import RealVault
from tests.servers.sinks import AnyVault, Kind, Sink

BOTH = ["sandbox", pytest.param("real", marks=pytest.mark.real)]
KINDS: list[Kind] = ["tcp", "udp", "unix"]
CONFIG = """\
vaults:
  hub: {{kind: hashicorp, address: "{url}", auth: {{method: token, token: "${{TOKEN}}"}}}}
  backup: {{kind: file, path: backup.vault, key: "${{FILE_KEY}}"}}
"""


class Here(Folder):
    """Commands in this process, on threads: the sandbox and the relay's double live in the test's own event loop."""

    def run(self, *arguments: str) -> Ended:
        ended = CliRunner().invoke(commands, list(arguments), env=self.environment(), prog_name="vaultferry")
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    async def setup(self, *arguments: str) -> Ended:
        return await asyncio.to_thread(self.run, "setup", *arguments)


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
    if request.param == "sandbox":
        async with VaultSandbox() as server:
            yield AnyVault("sandbox", server.url, server.root_token)
        return
    own: RealVault = request.getfixturevalue("own_vault")
    real = AnyVault("real", own.url, own.token)
    yield real
    await real.without_devices()


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of one's own, without what the machine's owner has set; and the loggers as they were."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VAULT", "AZURE", "AzureWeb")):
            monkeypatch.delenv(name)
    loggers = (logging.root, logging.getLogger("vaultferry"))
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    raising = logging.raiseExceptions
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
    logging.raiseExceptions = raising


@pytest.fixture
def here(vault: AnyVault, tmp_path: Path) -> Here:
    folder = Here(tmp_path, {"TOKEN": vault.token})
    folder.configure(CONFIG.format(url=vault.url))
    return folder


@pytest.fixture
async def with_file(vault: AnyVault, tmp_path: Path) -> None:
    """Another audit device is there first, as it should be."""
    await vault.enable("log", "file", file_path=str(tmp_path / "audit.log"))


async def devices(vault: AnyVault) -> dict[str, dict[str, str]]:
    return {path: one["options"] for path, one in (await vault.fine("GET", "sys/audit"))["data"].items()}


@pytest.mark.usefixtures("with_file")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_device_is_enabled_once_shown_and_removed(vault: AnyVault, here: Here, kind: Kind) -> None:
    async with Sink(kind) as relay:
        given = ["hub", "--address", relay.address, "--type", kind]
        nothing = await here.setup("hub")
        assert nothing.code == 0
        assert "None is Vaultferry's" in nothing.out

        enabled = await here.setup(*given)
        assert (enabled.code, enabled.out.splitlines()[0]) == (
            0,
            f"Enabled vaultferry/: Vault tells {kind}://{relay.address} what is written.",
        )
        assert b"sys/audit/test" in await relay.line()
        assert (await devices(vault))["vaultferry/"] == {"address": relay.address, "socket_type": kind}
        assert ("prefer tcp or unix" in enabled.err) == (kind == "udp")

        again = await here.setup(*given)
        assert (again.code, again.out.splitlines()[0]) == (
            0,
            f"Nothing to do: vaultferry/ is there already, and sends to {kind}://{relay.address}.",
        )
        shown = await here.setup("hub", "--json")
        ours = {"path": "vaultferry/", "type": "socket", "place": f"{kind}://{relay.address}", "ours": True}
        assert shown.json["devices"][1] == ours
        assert (shown.json["done"], shown.json["error"]) == ([], None)

        removed = await here.setup("hub", "--remove", "--json")
        assert removed.json["done"] == ["removed vaultferry/"]
        assert list(await devices(vault)) == ["log/"]
        gone = await here.setup("hub", "--remove")
        assert (gone.code, gone.out.splitlines()[0]) == (0, "There is no audit device of ours; nothing was done.")


async def test_a_socket_is_never_the_only_device_but_a_file_is_added_first_when_asked(
    vault: AnyVault, here: Here, tmp_path: Path
) -> None:
    async with Sink("tcp") as relay:
        refused = await here.setup("hub", "--address", relay.address)
        assert refused.code == 1
        assert "has no other audit device" in refused.err
        assert f"`vaultferry setup hub --add-file /var/log/vault/audit.log --address {relay.address}`" in refused.err
        assert (await devices(vault), relay.connections) == ({}, 0)

        log = tmp_path / "vault audit.log"
        added = await here.setup("hub", "--address", relay.address, "--add-file", str(log))
        assert added.code == 0, added.err
        assert set(await devices(vault)) == {"file/", "vaultferry/"}
        assert added.out.splitlines()[:2] == [
            f"Enabled file/: Vault writes every request to {log}.",
            f"Enabled vaultferry/: Vault tells tcp://{relay.address} what is written.",
        ]
        assert log.exists()
        await vault.fine("DELETE", "sys/audit/file")
        alone = await here.setup("hub", "--json")
        assert any("only audit device" in warning for warning in alone.json["warnings"])
        last = await here.setup("hub", "--remove")
        assert (last.code, await devices(vault)) == (0, {})
        assert "no audit device any more" in last.err


@pytest.mark.usefixtures("with_file")
async def test_another_device_makes_a_further_file_needless(vault: AnyVault, here: Here, tmp_path: Path) -> None:
    async with Sink("tcp") as relay:
        ended = await here.setup("hub", "--address", relay.address, "--add-file", str(tmp_path / "more.log"))
        assert "There is another audit device already (log/), so none was added." in ended.out
        assert set(await devices(vault)) == {"log/", "vaultferry/"}


async def test_a_device_that_ends_where_ours_does_is_no_other_one(vault: AnyVault, here: Here, tmp_path: Path) -> None:
    async with Sink("tcp") as relay:
        await vault.enable("byhand", "socket", **relay.options)
        refused = await here.setup("hub", "--address", relay.address)
        assert refused.code == 1
        assert f"has no other audit device but byhand/, at tcp://{relay.address} too" in refused.err
        assert list(await devices(vault)) == ["byhand/"]
        added = await here.setup("hub", "--address", relay.address, "--add-file", str(tmp_path / "audit.log"))
        assert added.code == 0, added.err
        assert "only audit device" not in added.err
        await vault.fine("DELETE", "sys/audit/file")
        alone = await here.setup("hub")
        assert "no other audit device than what sends to" in alone.err
        # While it still answers: afterwards, Vault would not let go of them any more.
        await vault.without_devices()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_where_no_relay_answers_vault_refuses_and_a_person_is_told_why(
    vault: AnyVault, here: Here, kind: Kind, tmp_path: Path
) -> None:
    async with Sink(kind) as relay:
        address = relay.address
        await relay.hang_up()
        ended = await here.setup("hub", "--address", address, "--type", kind, "--add-file", str(tmp_path / "log"))
        assert ended.code == 1
        cause = "connection refused" if kind == "tcp" else "no such file or directory"
        why = "" if vault.name == "sandbox" else f" ({cause})"
        assert f"nobody takes entries at {kind}://{address}{why}. Start the relay first" in ended.err
        assert ("firewall" in ended.err) is (kind == "tcp")
        assert ended.err.count(address) == 1
        assert "What was enabled file/ stays" in ended.err
        assert list(await devices(vault)) == ["file/"]


@pytest.mark.usefixtures("with_file")
async def test_a_device_with_another_address_is_left_alone(vault: AnyVault, here: Here) -> None:
    async with Sink("tcp") as relay, Sink("tcp") as other:
        await here.setup("hub", "--address", relay.address)
        ended = await here.setup("hub", "--address", other.address)
        assert ended.code == 1
        assert f"sends to tcp://{relay.address}, not to tcp://{other.address}" in ended.err
        assert "`vaultferry setup hub --remove`, then `vaultferry setup hub --address " in ended.err
        kept = await here.setup("hub", "--address", other.address, "--remove")
        assert (kept.code, "without --address" in kept.err) == (1, True)
        assert (await devices(vault))["vaultferry/"]["address"] == relay.address
        assert other.connections == 0


@pytest.mark.usefixtures("with_file")
async def test_options_that_spoil_the_entries_are_reported(vault: AnyVault, here: Here) -> None:
    async with Sink("tcp") as relay:
        await vault.enable("vaultferry", "socket", **relay.options, log_raw="true", prefix="x ")
        raw = await here.setup("hub", "--address", relay.address)
        assert raw.code == 0
        assert "log_raw is on" in raw.err
        await vault.fine("DELETE", "sys/audit/vaultferry")
        await vault.enable("vaultferry", "socket", **relay.options, format="jsonx")
        useless = await here.setup("hub", "--address", relay.address, "--json")
        assert useless.code == 1
        assert useless.json["error"] == "vaultferry/: it writes XML (format=jsonx), and the relay reads JSON"


LEAST = """
path "sys/audit" { capabilities = ["read", "sudo"] }
path "sys/audit/vaultferry" { capabilities = ["update", "delete", "sudo"] }
path "sys/audit/file" { capabilities = ["update", "sudo"] }
"""


async def test_a_token_that_may_not_is_told_the_policy_which_is_the_least(
    vault: AnyVault, here: Here, tmp_path: Path
) -> None:
    async def token(rules: str) -> str:
        await vault.fine("PUT", "sys/policies/acl/installer", {"policy": rules})
        made = await vault.fine("POST", "auth/token/create", {"policies": ["installer"], "ttl": "1h"})
        text: str = made["auth"]["client_token"]
        return text

    async with Sink("tcp") as relay:
        given = ["hub", "--address", relay.address, "--add-file", str(tmp_path / "log")]
        for index, line in enumerate(LEAST.strip().splitlines()):
            here.env["TOKEN"] = await token(LEAST.replace(line, line.replace(', "sudo"', "")))
            ended = await here.setup(*given)
            assert ended.code == 1, line
            assert all(rule in ended.err for rule in LEAST.strip().splitlines())
            here.env["TOKEN"] = vault.token
            await vault.without_devices()
            assert index < 3
        here.env["TOKEN"] = await token(LEAST)
        assert (await here.setup(*given)).code == 0
        assert (await here.setup("hub", "--remove")).code == 0
        here.env["TOKEN"] = await token(LEAST.replace(', "delete"', ""))
        assert (await here.setup("hub", "--address", relay.address)).code == 0
        denied = await here.setup("hub", "--remove")
        assert (denied.code, '"delete"' in denied.err) == (1, True)


async def test_a_vault_that_its_dead_device_has_stopped_is_told_as_such(vault: AnyVault, here: Here) -> None:
    async with Sink("tcp") as relay:
        await vault.enable("only", "socket", **relay.options)
        await relay.hang_up()
        ended = await here.setup("hub")
        assert ended.code == 1
        assert "when none of its audit devices takes entries, Vault answers so to everything" in ended.err
        await relay.listen()
        assert (await here.setup("hub")).code == 0
        await vault.without_devices()


@pytest.mark.parametrize("kind", ["torn_before", "torn_after"])
async def test_what_came_of_a_call_without_an_answer_is_looked_up(kind: FaultKind, tmp_path: Path) -> None:
    async with VaultSandbox() as server, Sink("tcp") as relay:
        vault = AnyVault("sandbox", server.url, server.root_token)
        folder = Here(tmp_path, {"TOKEN": server.root_token})
        folder.configure(CONFIG.format(url=server.url))
        await vault.enable("log", "file", file_path=str(tmp_path / "log"))
        done = kind == "torn_after"
        for arguments, what in ((["--address", relay.address], "enabled"), (["--remove"], "removed")):
            server.faults.add(Fault(kind, "audit", "sys/audit/vaultferry"))
            ended = await folder.setup("hub", *arguments, "--json")
            assert ended.code == (0 if done else 1)
            assert ended.json.get("done") == ([f"{what} vaultferry/"] if done else None)
            again = await folder.setup("hub", *arguments, "--json")
            assert (again.code, again.json["done"]) == (0, [] if done else [f"{what} vaultferry/"])
        assert list(await devices(vault)) == ["log/"]


async def test_a_token_that_is_not_valid_is_told_as_such(here: Here) -> None:
    here.env["TOKEN"] = "hvs.nonsense"
    ended = await here.setup("hub")
    assert (ended.code, "the token is not valid" in ended.err, "sys/audit" in ended.err) == (1, True, False)


async def test_openbao_wants_its_devices_in_a_file_and_is_given_what_to_write(tmp_path: Path) -> None:
    async with VaultSandbox() as server:
        folder = Here(tmp_path, {"TOKEN": server.root_token})
        folder.configure(CONFIG.format(url=server.url))
        await AnyVault("sandbox", server.url, server.root_token).enable("log", "file", file_path=str(tmp_path / "log"))
        server.audit.by_api = False
        ended = await folder.setup("hub", "--address", "10.0.0.5:1269")
    assert ended.code == 1
    assert ended.err.endswith(
        "Write this into the server's configuration, and send the server a SIGHUP: "
        'audit "socket" "vaultferry" { options { address = "10.0.0.5:1269", socket_type = "tcp" } }\n'
    )


WRONG: dict[str, tuple[list[str], str]] = {
    "no port": (["hub", "--address", "relay.example"], "expected --address HOST:PORT"),
    "a port that is none": (["hub", "--address", "relay.example:70000"], "expected --address HOST:PORT"),
    "a URL": (["hub", "--address", "tcp://relay.example:1269"], "expected --address HOST:PORT"),
    "where it listens": (["hub", "--address", "0.0.0.0:1269"], "give the address by which Vault reaches it"),
    "no full path": (["hub", "--address", "relay.sock", "--type", "unix"], "full path of the relay's socket"),
    "another type": (["hub", "--address", "a:1", "--type", "sctp"], "expected --type tcp, udp or unix"),
    "a type alone": (["hub", "--type", "udp"], "give that too"),
    "a file alone": (["hub", "--add-file", "/x"], "give its --address too"),
    "a relative file": (["hub", "--address", "127.0.0.1:9", "--add-file", "x"], "full path on Vault's machine"),
    "remove and add": (["hub", "--remove", "--add-file", "/x"], "leave --add-file out"),
    "policy and device": (["hub", "--print-policy", "--remove"], "stands alone"),
    "no such vault": (["hbu"], "did you mean 'hub'?"),
    "another kind": (["backup"], "backup is of kind file, which has no audit devices: setup is for 'hashicorp'"),
    "a policy for nothing": (["hub", "--print-policy"], "no sync uses hub"),
}


@pytest.fixture
def wrong_use(tmp_path: Path) -> Callable[[list[str]], Ended]:
    folder = Here(tmp_path, {"TOKEN": "hvs.x"})
    folder.configure(CONFIG.format(url="http://127.0.0.1:9"))
    return lambda arguments: folder.run("setup", *arguments)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_told_before_anybody_is_asked(case: str, wrong_use: Callable[[list[str]], Ended]) -> None:
    arguments, message = WRONG[case]
    ended = wrong_use(arguments)
    assert (ended.code, message in ended.err) == (2, True), ended.err


# --- policies -----------------------------------------------------------------------------------------------------------

SYNC = """\
syncs:
  apps:
    source: {vault: hub, prefix: apps/}
    targets: [{vault: backup}]
"""


def offline(folder: Path, *, version: str = "") -> Here:
    """A Vault that nobody can reach."""
    here = Here(folder, {"TOKEN": "hvs.x"})
    text = CONFIG.format(url="http://127.0.0.1:9").replace("kind: hashicorp,", f"kind: hashicorp, {version}")
    here.configure(text + SYNC)
    return here


def test_policies_are_printed_as_they_can_be_piped_on(tmp_path: Path) -> None:
    ended = offline(tmp_path, version="kv_version: 2,").run("setup", "hub", "--print-policy")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "# What Vaultferry needs in hub (http://127.0.0.1:9).\n"
        "# vault policy write vaultferry-hub FILE\n"
        "# `vaultferry check` and a token's renewal need what Vault's own policy `default` grants.\n"
        "\n"
        "# apps: its source\n"
        'path "secret/data/apps/*" {\n'
        '  capabilities = ["read"]\n'
        "}\n"
        "\n"
        "# apps: its source\n"
        'path "secret/metadata/apps/*" {\n'
        '  capabilities = ["read", "list"]\n'
        "}\n"
        "\n"
        "# backup is of kind file: its permissions are no policies of Vault's\n"
    )


def test_a_version_that_can_not_be_asked_for_may_be_configured(tmp_path: Path) -> None:
    ended = offline(tmp_path).run("setup", "hub", "--print-policy")
    assert ended.code == 1
    assert "with `kv_version: 1` or `2` in the configuration, its policy can be told without asking" in ended.err
