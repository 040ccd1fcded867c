"""Start and stop the real servers: each on free ports, with a temporary folder, and gone when its `with` block ends.

A server that has not been fetched is a failure that says `make servers`, never a skip: a suite against real servers
that silently runs against none proves nothing.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import places

_START_SECONDS = 60.0
# The account that Azurite and every storage SDK know by heart; published, so no secret.
# https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_AZURITE_ACCOUNT = "devstoreaccount1"
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class ServerMissing(Exception):
    """A real server is not there."""


@dataclass(frozen=True, slots=True)
class RealVault:
    """A running HashiCorp Vault in dev mode: unsealed, in memory, KV v2 at `secret/`."""

    url: str
    token: str = field(repr=False)
    pid: int

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None) -> Any:
        """One request ("secret/data/x"), blocking; the decoded answer, None without one. Raises HTTPError."""
        headers = {"X-Vault-Token": token or self.token, "Content-Type": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def new_mount(self, version: int) -> str:
        """A fresh KV mount of its own for a test; its path."""
        path = f"kv-{secrets.token_hex(4)}"
        self.call("POST", f"sys/mounts/{path}", {"type": "kv", "options": {"version": str(version)}})
        if version == 2:
            self.wait_for_upgrade(path)
        return path

    def wait_for_upgrade(self, mount: str) -> None:
        """Until a fresh KV v2 mount answers, blocking."""
        # A v2 mount answers 400 "Upgrading from non-versioned to versioned data" for its first moments.
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.call("GET", f"{mount}/config")
                return
            except urllib.error.HTTPError as error:
                error.close()
                if time.monotonic() > end:
                    raise
            time.sleep(0.01)


@contextlib.contextmanager
def vault(*arguments: str) -> Iterator[RealVault]:
    """A Vault of its own until the block ends. Raises ServerMissing, or RuntimeError with the end of its log."""
    binary = places.vault_binary()
    if not binary.exists():
        raise ServerMissing(f"HashiCorp Vault {places.VAULT_VERSION} is not at {binary}: run make servers")
    with tempfile.TemporaryDirectory(prefix="vaultferry-vault-") as folder:
        log = Path(folder) / "log"
        process, server = _start_vault(binary, arguments, log)
        try:
            yield server
        finally:
            _stop(process)


def _start_vault(binary: Path, arguments: tuple[str, ...], log: Path) -> tuple["subprocess.Popen[bytes]", RealVault]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VAULT_")}
    for _ in range(5):
        # Vault also takes the port above its own, for its cluster; either may be lost to another process meanwhile.
        port, token = _free_port_pair(), f"root-{secrets.token_hex(8)}"
        command = [str(binary), "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={token}"]
        command += [f"-dev-listen-address=127.0.0.1:{port}", *arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=log.parent,
            )
        server = RealVault(f"http://127.0.0.1:{port}", token, process.pid)
        try:
            if _wait_for_vault(process, server):
                return process, server
        except BaseException:
            _stop(process)
            raise
    raise RuntimeError(f"Vault does not start:\n{_tail(log)}")


def _wait_for_vault(process: "subprocess.Popen[bytes]", server: RealVault) -> bool:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        try:
            # Only ours knows the token, should another process have taken the port.
            server.call("GET", "auth/token/lookup-self")
            server.call("GET", "secret/config")
            return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        time.sleep(0.05)
    _stop(process)
    return False


@contextlib.contextmanager
def azurite() -> Iterator[str]:
    """An Azurite of its own until the block ends; its connection string, for blobs, queues and tables.

    Raises ServerMissing, or RuntimeError with the end of its log.
    """
    script = places.azurite_script()
    if not script.exists():
        raise ServerMissing(f"Azurite {places.AZURITE_VERSION} is not at {places.azurite_folder()}: run make servers")
    node = shutil.which("node")
    if node is None:
        raise ServerMissing("`node` is not on the PATH, and Azurite needs it")
    with tempfile.TemporaryDirectory(prefix="vaultferry-azurite-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        ports = [option for service in ("blob", "queue", "table") for option in (f"--{service}Port", "0")]
        # The newest SDKs speak an API version that this Azurite does not know yet.
        quiet = ["--disableTelemetry", "--silent", "--skipApiVersionCheck"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [node, str(script), *ports, "--location", folder, *quiet],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        try:
            yield connection_string(_wait_for_azurite(process, log))
        finally:
            _stop(process)


def _wait_for_azurite(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, str]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.findall(r"Azurite (\w+) service is successfully listening at (http://\S+)", log.read_text())
        if len(found) == 3:
            return {service: url.rstrip("/") for service, url in found}
        time.sleep(0.05)
    raise RuntimeError(f"Azurite does not start:\n{_tail(log)}")


def connection_string(urls: dict[str, str]) -> str:
    """Of Azurite's one account, by the addresses of its services: Blob, Queue, Table."""
    endpoints = ";".join(f"{service}Endpoint={url}/{_AZURITE_ACCOUNT}" for service, url in urls.items())
    return f"DefaultEndpointsProtocol=http;AccountName={_AZURITE_ACCOUNT};AccountKey={_AZURITE_KEY};{endpoints};"


def _free_port_pair() -> int:
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
