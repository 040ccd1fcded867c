"""The official `bw` client, as tests use it."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sandbox.bitwarden import BitwardenServer
from tests.servers import places
from tests.servers.hosting import Host
from tests.servers.processes import ServerMissing

_CALL_SECONDS = 120.0
_Result = TypeVar("_Result")


class BwError(Exception):
    """What `bw` says when it fails."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A Bitwarden server that runs in another thread."""

    server: BitwardenServer
    host: Host

    def do(self, action: Callable[[], _Result]) -> _Result:
        """Does this where the server lives, between two requests."""
        return self.host.do(action)


@dataclass(slots=True)
class Bw:
    """One installation of the client, with its own state. Each call is a process: count on a second."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)

    @classmethod
    def new(cls, server: BitwardenServer, folder: Path) -> "Bw":
        """Points a fresh client at a server. Raises ServerMissing."""
        script, node = places.bw_script(), shutil.which("node")
        if not script.exists():
            raise ServerMissing(f"Bitwarden CLI {places.BW_VERSION} is not at {places.bw_folder()}: run make servers")
        if node is None:
            raise ServerMissing("`node` is not on the PATH, and the Bitwarden CLI needs it")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("BW_", "BITWARDEN"))}
        environment |= {"BITWARDENCLI_APPDATA_DIR": str(folder), "NODE_EXTRA_CA_CERTS": str(server.ca_bundle)}
        client = cls((node, str(script), "--nointeraction"), environment)
        client("config", "server", server.url)
        return client

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What the command prints. Raises BwError with what it says instead."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise BwError(done.stderr.strip() or done.stdout.strip())
        return done.stdout.strip()

    def login(self, email: str, password: str, *options: str) -> None:
        self.environment["BW_PASSWORD"] = password
        self.environment["BW_SESSION"] = self("login", email, "--passwordenv", "BW_PASSWORD", "--raw", *options)

    def login_with_api_key(self, client_id: str, client_secret: str, password: str) -> None:
        self.environment |= {"BW_CLIENTID": client_id, "BW_CLIENTSECRET": client_secret, "BW_PASSWORD": password}
        self("login", "--apikey")
        self.environment["BW_SESSION"] = self("unlock", "--passwordenv", "BW_PASSWORD", "--raw")

    def read(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self(*arguments))

    def write(self, verb: str, kind: str, document: dict[str, Any], *arguments: str) -> Any:
        """`bw create item`, `bw edit item ID` and so on."""
        encoded = base64.b64encode(json.dumps(document).encode()).decode()
        return json.loads(self(verb, kind, *arguments, stdin=encoded))

    def items(self, *arguments: str) -> dict[str, Any]:
        """What `bw` lists after a sync, by name."""
        self("sync")
        return {item["name"]: item for item in self.read("list", "items", *arguments)}


def login_item(name: str, **rest: Any) -> dict[str, Any]:
    """An item as people hand it to `bw create item`."""
    login = {key: rest.pop(key, None) for key in ("username", "password", "totp")}
    uris = [{"match": None, "uri": uri} for uri in rest.pop("uris", ())]
    return {"type": 1, "name": name, "notes": None, "fields": [], **rest, "login": {**login, "uris": uris}}


def note_item(name: str, notes: str, **rest: Any) -> dict[str, Any]:
    return {"type": 2, "name": name, "notes": notes, "fields": [], **rest, "secureNote": {"type": 0}}
