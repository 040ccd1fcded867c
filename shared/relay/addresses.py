"""Where a relay listens, as a person writes it: `udp://HOST:PORT`, `tcp://HOST:PORT`, `unix:///PATH`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

from shared.errors import ConfigError

Kind = Literal["udp", "tcp", "unix"]
UNIX_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Address:
    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    """Of a unix socket."""
    mode: int = UNIX_MODE
    """Who may write to a unix socket."""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


def parse_listen(text: str) -> Address:
    """Raises ConfigError."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _wrong(text) from None
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/") or parts.path.endswith("/") or parts.fragment:
            raise _wrong(text)
        return Address("unix", path=unquote(parts.path), mode=_mode(text, parts.query))
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("udp", "tcp") or not host or port is None or rest:
        raise _wrong(text)
    return Address(cast(Kind, parts.scheme), host, port)


def parse_http(text: str) -> tuple[str, int]:
    """`HOST:PORT`, or a port alone for loopback. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--http {text}: expected HOST:PORT, such as 127.0.0.1:8080")
    return host, int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mode(text: str, query: str) -> int:
    if not query:
        return UNIX_MODE
    given = parse_qs(query)
    digits = given.get("mode", [""])[0]
    if set(given) != {"mode"} or not digits or set(digits) - set("01234567") or int(digits, 8) > 0o777:
        raise ConfigError(f"--listen {text}: the one option of a unix socket is its mode, such as ?mode=0660")
    return int(digits, 8)


def _wrong(text: str) -> ConfigError:
    return ConfigError(
        f"--listen {text}: expected udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH, such as tcp://0.0.0.0:1269"
    )
