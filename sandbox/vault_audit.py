"""Vault's audit devices: a request and a response entry for every operation, to files and sockets.

The shape of the entries and what is hashed in them is as observed on Vault 1.21: strings and a request's numbers
are HMAC'd, a response's numbers, booleans, null and the names of fields are in the clear. `format` is accepted and
reported back, as Vault does, but the entries are JSON all the same.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sandbox.vault_json import Float, dumps
from sandbox.vault_kv import VaultError, parse_duration

_CLEAR_AUTH = (
    "display_name",
    "policies",
    "policy_results",
    "token_policies",
    "token_issue_time",
    "token_ttl",
    "token_type",
)


class AuditFailed(Exception):
    """No device took an entry: Vault answers 500 then, whether or not the effect has happened."""


class Device:
    """One enabled device. `options` are those that it was enabled with."""

    def __init__(self, path: str, kind: str, description: str, options: dict[str, str]) -> None:
        self.path = path
        self.kind = kind
        self.description = description
        self.options = options
        self._key = secrets.token_bytes(32)
        self._raw = options.get("log_raw", "").lower() == "true"
        self._lock = asyncio.Lock()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        if kind not in ("file", "socket"):
            raise VaultError(400, f'unknown backend type: "{kind}": invalid configuration')
        needed = "file_path" if kind == "file" else "address"
        if not options.get(needed):
            raise VaultError(400, f'unable to create new audit backend: "{needed}" is required: invalid configuration')
        self._timeout = parse_duration(options.get("write_timeout", "2s")) / 1_000_000_000

    def describe(self) -> dict[str, Any]:
        """As `sys/audit` lists it."""
        return {
            "description": self.description,
            "local": False,
            "options": self.options,
            "path": self.path,
            "type": self.kind,
        }

    def hash(self, value: str) -> str:
        """The device's HMAC of a string, what `sys/audit-hash` answers."""
        return "hmac-sha256:" + hmac.new(self._key, value.encode(), hashlib.sha256).hexdigest()

    async def send(self, entry: dict[str, Any]) -> None:
        """Write one entry as a line. Raises OSError."""
        line = (self.options.get("prefix", "") + dumps(self._cover(entry)) + "\n").encode()
        async with self._lock:
            if self.kind == "file":
                if self.options["file_path"] not in ("discard", "stdout"):
                    _append(Path(self.options["file_path"]), line)
            elif self.options.get("socket_type", "tcp") == "udp":
                _datagram(self.options["address"], line)
            else:
                try:
                    await self._write(line)
                except OSError:
                    # Vault makes the connection anew once, then gives the entry up.
                    await self.close()
                    await self._write(line)

    async def close(self) -> None:
        """Hang up."""
        if self._stream is not None:
            self._stream[1].transport.abort()
            self._stream = None

    async def _write(self, line: bytes) -> None:
        if self._stream is not None and (self._stream[0].at_eof() or self._stream[1].is_closing()):
            await self.close()
        if self._stream is None:
            self._stream = await asyncio.wait_for(self._connect(), self._timeout)
            # Without a buffer of its own the writer feels at once that the other side has stopped reading.
            self._stream[1].transport.set_write_buffer_limits(high=0)
        self._stream[1].write(line)
        await asyncio.wait_for(self._stream[1].drain(), self._timeout)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.options.get("socket_type") == "unix":
            return await asyncio.open_unix_connection(self.options["address"])
        host, _, port = self.options["address"].rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port))

    def _cover(self, entry: dict[str, Any]) -> dict[str, Any]:
        covered = dict(entry)
        tuned_request, tuned_response = covered.pop("_clear_keys", ((), ()))
        if self._raw:
            return covered
        if "auth" in covered:
            auth = covered["auth"]
            covered["auth"] = {key: each if key in _CLEAR_AUTH else self._hashed(each) for key, each in auth.items()}
        for part, clear in (("request", tuned_request), ("response", tuned_response)):
            if part not in covered:
                continue
            covered[part] = dict(covered[part])
            for key in ("client_token", "client_token_accessor"):
                if key in covered[part]:
                    covered[part][key] = self._hashed(covered[part][key])
            if covered[part].get("data"):
                covered[part]["data"] = self._hashed(covered[part]["data"], clear)
            if "wrap_info" in covered[part]:
                info = covered[part]["wrap_info"]
                hashed = {key: self.hash(info[key]) for key in ("token", "accessor")}
                covered[part]["wrap_info"] = {**info, **hashed}
            if "auth" in covered[part]:
                auth = covered[part]["auth"]
                covered[part]["auth"] = {
                    key: each if key in _CLEAR_AUTH else self._hashed(each) for key, each in auth.items()
                }
        return covered

    def _hashed(self, value: Any, clear: Collection[str] = ()) -> Any:
        if isinstance(value, Float):
            return value
        if isinstance(value, str):
            return self.hash(value)
        if isinstance(value, dict):
            return {key: each if key in clear else self._hashed(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._hashed(each) for each in value]
        return value


class Audit:
    """The devices of one server."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.by_api = True
        """False: as OpenBao 2.3.2, which takes devices from its configuration file only."""

    async def enable(self, device: Device, test_entry: dict[str, Any]) -> None:
        """Add a device that has taken a test entry. Raises VaultError."""
        if not self.by_api:
            instead = "use declarative, config-based audit device management instead"
            raise VaultError(400, f"cannot enable audit device via API; {instead}")
        if device.path in self.devices:
            raise VaultError(400, "path already in use: invalid configuration")
        try:
            await device.send(test_entry)
        except (OSError, TimeoutError, ValueError) as error:
            await device.close()
            raise VaultError(400, f"audit backend failed test message: {error}") from None
        self.devices[device.path] = device

    async def disable(self, path: str) -> None:
        """Remove a device; one that does not exist is no error."""
        device = self.devices.pop(path, None)
        if device is not None:
            await device.close()

    async def log(self, entry: dict[str, Any]) -> None:
        """To every device. Raises AuditFailed when there are devices and none took it."""
        results = [await _try(device, entry) for device in list(self.devices.values())]
        if results and not any(results):
            raise AuditFailed

    async def close(self) -> None:
        """Hang up everywhere; the devices stay enabled."""
        for device in self.devices.values():
            await device.close()


async def _try(device: Device, entry: dict[str, Any]) -> bool:
    try:
        await device.send(entry)
    except (OSError, TimeoutError):
        await device.close()
        return False
    return True


def _append(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def _datagram(address: str, line: bytes) -> None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # Not connected, so that nobody listening goes unnoticed, as with Vault.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(line, (host, int(port)))
