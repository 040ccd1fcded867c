"""The audit devices of a Vault server, and the one among them that tells a relay what was written.

What counts here was seen on Vault 1.21. A device is sent a test entry when it is enabled, and is refused where nobody
takes it. A request that no device takes an entry of gets a 500, so a sole socket device whose listener dies stops Vault.
API: https://developer.hashicorp.com/vault/api-docs/system/audit
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import AccessDenied, ConfigError, InvalidSecret, Refused, Unavailable, VaultError
from shared.vaults.hashicorp.failures import Answer, Forbidden
from shared.vaults.hashicorp.kv import KvVault
from shared.vaults.hashicorp.settings import Settings

OURS = "vaultferry/"
FILE = "file/"
DESCRIPTION = "Vaultferry's relay: hints of what was written"
SOCKETS = ("tcp", "udp", "unix")

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_ANY_HOST = ("0.0.0.0", "[::]", "*")  # noqa: S104 - refused, not bound
_NEEDED = (
    'path "sys/audit" { capabilities = ["read", "sudo"] } '
    'path "sys/audit/vaultferry" { capabilities = ["update", "delete", "sudo"] } '
    'path "sys/audit/file" { capabilities = ["update", "sudo"] }'
)


@dataclass(frozen=True, slots=True)
class Device:
    """An audit device as Vault lists it."""

    path: str
    """With the slash at its end: `vaultferry/`."""
    type: str
    options: Mapping[str, str]

    @property
    def ours(self) -> bool:
        return self.path == OURS

    @property
    def place(self) -> str:
        """Where its entries go: `tcp://127.0.0.1:1269`, `/var/log/vault/audit.log`."""
        if self.type == "socket":
            return f"{self.options.get('socket_type') or 'tcp'}://{self.options.get('address', '')}"
        return self.options.get("file_path") or self.options.get("tag") or self.type

    @property
    def useless(self) -> str:
        """Why a relay can make nothing of its entries; empty: it can."""
        if self.options.get("format", "json").lower() == "jsonx":
            return "it writes XML (format=jsonx), and the relay reads JSON"
        return ""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is unwise about it as the relay's device."""
        found = []
        if self.options.get("log_raw", "").lower() in ("true", "1", "t"):
            found.append("log_raw is on: values cross the network to the relay in the clear; it drops them at once")
        if self.options.get("filter") or self.options.get("exclude"):
            found.append("filter or exclude is set: changes whose entries are left out wait for the schedule")
        if self.place.startswith("udp://"):
            found.append(
                "over udp nobody can tell whether the relay listens, and entries of more than 65,507 bytes are lost; "
                "prefer tcp or unix"
            )
        return tuple(found)


class AuditDevices:
    """The audit devices of one server. Needs a token that may see and change them, which no sync needs."""

    def __init__(self, vault_id: str, settings: Settings) -> None:
        self._id = vault_id
        self._settings = settings
        self._vault = KvVault(vault_id, settings)

    async def aclose(self) -> None:
        await self._vault.aclose()

    def for_relay(self, address: str, socket_type: str | None) -> Device:
        """The device for a relay at this address. Raises ConfigError for what is no address that Vault could reach."""
        kind = socket_type or ("unix" if address.startswith("/") else "tcp")
        if kind not in SOCKETS:
            raise ConfigError(f"expected --type {', '.join(SOCKETS[:-1])} or {SOCKETS[-1]}")
        if kind == "unix":
            if not address.startswith("/") or not address.isprintable():
                raise ConfigError(
                    "expected the full path of the relay's socket on Vault's machine, from the first '/' on"
                )
        else:
            match = _HOST_AND_PORT.fullmatch(address)
            if match is None or not 0 < int(match[2]) < 65536:
                raise ConfigError("expected --address HOST:PORT, as Vault reaches the relay, such as 10.0.0.5:1269")
            if match[1] in _ANY_HOST:
                raise ConfigError(f"{match[1]} is where a relay listens; give the address by which Vault reaches it")
        return Device(OURS, "socket", {"address": address, "socket_type": kind})

    def for_file(self, file_path: str) -> Device:
        """A device beside ours, so that a relay that stops does not stop Vault. Raises ConfigError."""
        if not file_path.startswith("/") and file_path != "stdout":
            raise ConfigError("expected --add-file with a full path on Vault's machine, or stdout")
        return Device(FILE, "file", {"file_path": file_path})

    async def found(self) -> list[Device]:
        """All of them, sorted by path. Raises AccessDenied naming the policy, Unavailable."""
        answer = await self._call("get", "")
        devices = answer.get("data")
        if not isinstance(devices, dict):
            self._vault.not_understood(None)
        return [
            Device(path, str(one.get("type")), {key: str(value) for key, value in (one.get("options") or {}).items()})
            for path, one in sorted(devices.items())
        ]

    async def enable(self, device: Device) -> None:
        """Raises Refused with what to do where Vault takes no such device, AccessDenied, Unavailable."""
        body = {"type": device.type, "description": DESCRIPTION, "options": dict(device.options)}
        if device.path != OURS:
            del body["description"]
        try:
            # Without `skip_test`, always: with it, Vault would take a device that nobody listens to, and stop.
            await self._call("put", device.path, body)
            return
        except InvalidSecret as error:
            reason = error.message
        except Unavailable as error:
            if error.ambiguous and (device.path, device.place) in {
                (each.path, each.place) for each in await self.found()
            }:
                return
            raise
        raise Refused(_why(device, reason, self._id))

    async def disable(self, device: Device) -> None:
        """One that is gone already is no error. Raises AccessDenied, Unavailable."""
        try:
            await self._call("delete", device.path)
        except Unavailable as error:
            if not error.ambiguous or device.path in {each.path for each in await self.found()}:
                raise

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        adapter = self._vault.adapter
        url = f"/v1/sys/audit/{path}".rstrip("/")

        async def attempt() -> Answer:
            # Devices are the whole server's, and live in its root namespace.
            headers = adapter.headers_for(adapter.token or "", "") if self._settings.namespace else None
            return await adapter.request(method, url, headers=headers, json=body, harmless=True)

        failure: VaultError
        try:
            return await self._vault.call(attempt, write=method != "get")
        except Forbidden as error:
            hint = f"audit devices want a token with {_NEEDED}"
            if self._settings.namespace:
                hint += " in the root namespace"
            failure = AccessDenied(f"{error.message}; {hint}", vault=self._id)
        except Unavailable as error:
            if "(500 on" not in error.message:
                raise
            failure = Unavailable(
                f"{error.message}; when none of its audit devices takes entries, Vault answers so to everything: "
                "start what listens there, and look again",
                vault=self._id,
                ambiguous=error.ambiguous,
            )
        raise failure


_CAUSES = (
    *("connection refused", "no such file or directory", "permission denied", "i/o timeout", "no such host"),
    *("no route to host", "network is unreachable", "deadline exceeded"),
)
"""Why Vault's test message did not arrive, in its own words."""


def _why(device: Device, reason: str, vault_id: str) -> str:
    """Vault's refusal of a device, in words that say what to do."""
    refused = f"Vault {vault_id} does not take the device {device.path}"
    if "test message" in reason and device.type == "socket":
        why = next((f" ({cause})" for cause in _CAUSES if cause in reason), "")
        start = f"{refused}: nobody takes entries at {device.place}{why}"
        if device.options.get("socket_type") == "unix":
            return (
                f"{start}. Start the relay first, on Vault's own machine, with a socket that Vault's user may write to"
            )
        return (
            f"{start}. Start the relay first; then, is that the address by which Vault's own machine reaches it, and does "
            "no firewall stand between"
        )
    said = f"{refused} ({reason})"
    if "already in use" in reason:
        return f"{said}: something is there already; without --address, setup shows what"
    if "via API" in reason:
        # OpenBao 2.3.2 and newer: https://openbao.org/docs/configuration/audit
        options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in device.options.items())
        stanza = f'audit "{device.type}" "{device.path.rstrip("/")}" {{ options {{ {options} }} }}'
        return f"{said}. Write this into the server's configuration, and send the server a SIGHUP: {stanza}"
    if device.type != "socket":
        return f"{said}: can Vault's own user write there, on Vault's own machine?"
    return f"{said}: nothing was changed"
