"""Relay and serve as processes of their own, next to Vaults that are there: what event tests and benchmarks start, kill
and start again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PATIENCE = 60.0
SECRET = "a secret that only these processes share"


class AnyVault(Protocol):
    """What a sandbox Vault's and a real one's handles have in common."""

    @property
    def url(self) -> str: ...

    @property
    def token(self) -> str: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(url: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """The JSON of an answer (also of a 503, which /health may give). Raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        text = error.read()
    return json.loads(text) if text else None


@dataclass
class Place:
    """A Vault's mount as one end of the sync."""

    vault: AnyVault
    mount: str

    def settings(self) -> dict[str, Any]:
        auth = {"method": "token", "token": self.vault.token}
        return {"kind": "hashicorp", "address": self.vault.url, "mount": self.mount, "auth": auth}


@dataclass
class EventStack:
    """One sync, `bench`, from `source` to each of `targets`, driven by a relay's events."""

    folder: Path
    source: Place
    targets: dict[str, Place]
    sync: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.serve_port, self.relay_port, self.relay_http = free_port(), free_port(), free_port()
        vaults = {
            name: {**place.settings(), "concurrency": self.concurrency}
            for name, place in {"hub": self.source, **self.targets}.items()
        }
        sync = {"source": {"vault": "hub"}, "targets": [{"vault": name} for name in self.targets], **self.sync}
        # JSON is YAML, and the tokens of these servers open nothing.
        self.config = self.folder / "vaultferry.yaml"
        self.config.write_text(json.dumps({"vaults": vaults, "syncs": {"bench": sync}}))
        self.database = self.folder / "vaultferry.db"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.serve_port}"

    @property
    def relay_url(self) -> str:
        return f"http://127.0.0.1:{self.relay_http}"

    @property
    def audit_address(self) -> str:
        return f"127.0.0.1:{self.relay_port}"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT", "AzureWebJobs"))}
        return {**kept, "VAULTFERRY_STORE": f"sqlite:///{self.database}", "VAULTFERRY_AUDIT_SECRET": SECRET}

    def start_serve(self) -> None:
        self._start("serve", ["serve", "-c", str(self.config), "--port", str(self.serve_port)])
        self._until_healthy("serve", f"{self.url}/health")

    def start_relay(self, *, forward: str | None = None, listen: list[str] | None = None) -> None:
        listeners = listen or [f"tcp://{self.audit_address}"]
        arguments = ["relay", "--forward", forward or f"{self.url}/audit", "--spool", str(self.folder / "spool")]
        arguments += ["--vault", "hub", "--http", f"127.0.0.1:{self.relay_http}"]
        for listener in listeners:
            arguments += ["--listen", listener]
        self._start("relay", arguments)
        self._until_healthy("relay", f"{self.relay_url}/health")

    def kill(self, name: str) -> None:
        """As kill -9 does."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    @contextlib.contextmanager
    def full_disk(self, name: str) -> Iterator[None]:
        """While inside, no file of a process grows: as on a disk that is full."""
        import resource

        pid = self.processes[name].pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(timeout=PATIENCE)

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, arguments: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", "from shared.cli import main; main()", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=Path(__file__).resolve().parents[1],
            )

    def _until_healthy(self, name: str, url: str) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.processes[name].poll() is None:
            with contextlib.suppress(OSError):
                fetch(url)
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} does not start:\n{self.log(name)[-4000:]}")


def enable_audit(vault: AnyVault, address: str, *, kind: str = "tcp", alone: bool = False) -> None:
    """A device that goes nowhere (unless `alone`), so that Vault never depends on the socket, and then the socket."""
    headers = {"X-Vault-Token": vault.token}
    base = f"{vault.url}/v1/sys/audit"
    if not alone and "nowhere/" not in fetch(base, headers=headers)["data"]:
        fetch(f"{base}/nowhere", "PUT", {"type": "file", "options": {"file_path": "discard"}}, headers)
    options = {"address": address, "socket_type": kind}
    fetch(f"{base}/relay", "PUT", {"type": "socket", "options": options}, headers)


def disable_audit(vault: AnyVault) -> None:
    fetch(f"{vault.url}/v1/sys/audit/relay", "DELETE", headers={"X-Vault-Token": vault.token})
