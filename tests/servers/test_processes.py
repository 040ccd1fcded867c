"""The real servers start, answer, keep apart and go away."""

import os
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
from azure.storage.queue import QueueClient

from tests.servers import fetch, places, processes
from tests.servers.processes import RealVault


@pytest.mark.real
def test_several_vaults_run_side_by_side_and_share_nothing(
    real_vault: RealVault, more_vaults: Callable[..., RealVault]
) -> None:
    other = more_vaults()
    mount = real_vault.new_mount(2)
    real_vault.call("POST", f"{mount}/data/x", {"data": {"a": "b"}})
    assert real_vault.call("GET", f"{mount}/data/x")["data"]["data"] == {"a": "b"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        other.call("GET", f"{mount}/data/x")
    assert refused.value.code == 404
    refused.value.close()


@pytest.mark.real
def test_a_vault_is_gone_after_its_block() -> None:
    with processes.vault() as server:
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


@pytest.mark.real
def test_azurite_takes_queue_messages(azurite: str) -> None:
    with QueueClient.from_connection_string(azurite, "parcels") as queue:
        queue.create_queue()
        queue.send_message("hello")
        assert [each.content for each in queue.receive_messages()] == ["hello"]


@pytest.mark.parametrize("start", [processes.vault, processes.azurite])
def test_a_server_that_was_not_fetched_is_a_failure_that_says_what_to_run(
    start: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(processes.ServerMissing, match="run make servers"), start():  # type: ignore[attr-defined]
        pass


def test_fetching_without_the_tools_names_each_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.main() == 1
    said = capsys.readouterr().out
    assert "`go` is not on the PATH" in said
    assert "`node` is not on the PATH" in said
    assert not (tmp_path / "cache").exists()


def test_fetching_with_an_old_go_says_which_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go version go1.24.9 linux/amd64\n")
    go.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(fetch.FetchError, match=r"Go 1\.25 or newer"):
        fetch.fetch_vault()


def test_a_failed_step_shows_the_end_of_its_output_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho registry is on fire >&2\nexit 7\n")
    npm.chmod(0o755)
    (tmp_path / "node").symlink_to("/bin/true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for fetch_one in (fetch.fetch_azurite, fetch.fetch_bw):
        with pytest.raises(fetch.FetchError, match=r"(?s)exit code 7.*registry is on fire"):
            fetch_one()
    assert list(places.cache().iterdir()) == []


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    places.azurite_script().parent.mkdir(parents=True)
    places.azurite_script().touch()
    places.bw_script().parent.mkdir(parents=True)
    places.bw_script().touch()
    places.vault_binary().touch()
    assert fetch.main() == 0
