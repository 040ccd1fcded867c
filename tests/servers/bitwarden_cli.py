"""The official `bw` client, as tests use it."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import Person
from sandbox.bitwarden_state import date
from tests.servers import places
from tests.servers.hosting import Host
from tests.servers.processes import ServerMissing

_CALL_SECONDS = 120.0
_LOOKS = 100
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
    """One installation of the client, with its own state. Each call takes seconds: a process waiting for its own locks."""

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

    def __call__(self, *arguments: str) -> str:
        """What the command prints. Raises BwError with what it says instead."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
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

    @contextlib.contextmanager
    def open(self, person: Person) -> "Iterator[BwOpen]":
        """The client as one process that stays (`bw serve`); logged in before, as this person."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            descriptor = listener.fileno()
            # No browser is near that the protection would be against.
            options = ("--disable-origin-protection", "--hostname", f"fd+listening://{descriptor}")
            process = subprocess.Popen(
                [*self.command, "serve", *options],
                env=self.environment,
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            port = listener.getsockname()[1]
        try:
            yield BwOpen(port, person)
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class BwOpen:
    """The same commands without a second's start for each: https://bitwarden.com/help/vault-management-api/"""

    port: int
    person: Person = field(repr=False)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Raises BwError with what the client says instead."""
        return self._data(self._call(method, path, None if body is None else json.dumps(body).encode()))

    def _call(
        self, method: str, path: str, content: bytes | None = None, content_type: str = "application/json"
    ) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_CALL_SECONDS)
        try:
            connection.request(method, path, content, {"Content-Type": content_type})
            return connection.getresponse().read()
        finally:
            connection.close()

    def _data(self, content: bytes) -> Any:
        answer = json.loads(content)
        if not answer["success"]:
            raise BwError(answer["message"])
        data = answer.get("data")
        return data["data"] if isinstance(data, dict) and data.get("object") == "list" else data

    def attach(self, item_id: str, name: str, content: bytes) -> None:
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        form = head + content + b"\r\n--b--\r\n"
        self._data(self._call("POST", f"/attachment?itemid={item_id}", form, "multipart/form-data; boundary=b"))

    def download(self, item_id: str, attachment_id: str) -> bytes:
        return self._call("GET", f"/object/attachment/{attachment_id}?itemid={item_id}")

    def sync(self) -> None:
        self.ask("POST", "/sync?force=true")

    def create(self, kind: str, document: Any, query: str = "") -> Any:
        created = self.ask("POST", f"/object/{kind}{query}", document)
        if kind == "item":
            self.wait(lambda: bool(self.get("item", created["id"])))
        return created

    def wait(self, there: Callable[[], bool]) -> None:
        """The client answers before it knows what it has just saved, and a sync on its way makes it forget that again."""
        for _ in range(_LOOKS):
            # What it does not know is "Not found", which is an error of its own.
            with contextlib.suppress(BwError):
                if there():
                    return
            self.sync()
        raise BwError("it does not know what it has just saved or fetched")

    def edit(self, kind: str, object_id: str, document: Any) -> Any:
        return self.ask("PUT", f"/object/{kind}/{object_id}", document)

    def get(self, kind: str, object_id: str) -> Any:
        return self.ask("GET", f"/object/{kind}/{quote(object_id, safe='')}")

    def delete(self, kind: str, object_id: str, query: str = "") -> None:
        self.ask("DELETE", f"/object/{kind}/{object_id}{query}")

    def list(self, kind: str, query: str = "") -> Any:
        return self.ask("GET", f"/list/object/{kind}{query}")

    def items(self) -> dict[str, Any]:
        """What there is after a sync, by name."""
        self.sync()
        state, account = self.person.state, self.person.account
        there = [item for item in state.visible_items(account) if item.deleted is None]
        # Its own dates end after milliseconds.
        dates = {item.id: str(date(item.updated))[:-4] for item in there}
        self.wait(lambda: {each["id"]: each["revisionDate"][:-1] for each in self.list("items")} == dates)
        return {item["name"]: item for item in self.list("items")}


def login_item(name: str, **rest: Any) -> dict[str, Any]:
    """An item as people hand it to `bw create item`."""
    login = {key: rest.pop(key, None) for key in ("username", "password", "totp")}
    uris = [{"match": None, "uri": uri} for uri in rest.pop("uris", ())]
    return {"type": 1, "name": name, "notes": None, "fields": [], **rest, "login": {**login, "uris": uris}}


def note_item(name: str, notes: str, **rest: Any) -> dict[str, Any]:
    return {"type": 2, "name": name, "notes": notes, "fields": [], **rest, "secureNote": {"type": 0}}
