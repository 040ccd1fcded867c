"""`make demo`: the real command line carrying secrets between throw-away servers, and proof that they arrived.

Nothing leaves this machine. The servers end with the demo; its folder, `.demo` unless told otherwise, keeps the
configuration and the history. Exits with 1 when anything is not as it says.
"""

import argparse
import base64
import contextlib
import json
import os
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from sandbox.vault import ROOT_TOKEN

ROOT = Path(__file__).resolve().parent.parent
SYNC = "hub-to-all"
CHANGED, DELETED = "shop/api/db", "shop/cart/cache"
MOVED_IN_STORM = 10
STORM = 3.0
"""Seconds that the destinations misbehave: less than the retries of a sync's defaults last."""
PATIENCE = 45
"""Seconds that any one command may take."""
PASSWORD = "correct horse battery staple"
NEWCOMER = "shop/checkout/api-key"
SOON = 10.0
"""Seconds within which an event must have had its effect; it takes milliseconds."""

CONFIG = """\
# Written by `make demo`. The servers behind these addresses live as long as the demo does.
vaults:
  hub:                                # where the applications' owners keep their secrets
    kind: hashicorp
    address: {hub}
    auth: {{method: token, token: "${{DEMO_TOKEN}}"}}
  prod:
    kind: azure_key_vault
    url: {prod}
    ca_bundle: ca.pem
    auth: {{method: managed_identity}}
  twin:
    kind: hashicorp
    address: {twin}
    auth: {{method: token, token: "${{DEMO_TOKEN}}"}}

syncs:
  {sync}:
    source: {{vault: hub, prefix: apps/}}
    targets:
      - {{vault: prod}}                 # shop/api/db is called shop-api-db there
      - {{vault: twin, prefix: copy/}}
    exclude: ["scratch/**"]
    delete: {{propagate: true}}
"""


PEOPLE = """\
# Written by `make demo`, too: people keep theirs in Vaultwarden, which never sees more than ciphertext.
vaults:
  hub: {{kind: hashicorp, address: "{hub}", auth: {{method: token, token: "${{DEMO_TOKEN}}"}}}}
  people:
    kind: vaultwarden
    url: {people}
    ca_bundle: people-ca.pem
    email: {email}
    password: "${{DEMO_PASSWORD}}"
    organization: {organization}
    collection: {collection}
  prod: {{kind: azure_key_vault, url: "{prod}", ca_bundle: ca.pem, auth: {{method: managed_identity}}}}

syncs:
  teams-to-people:
    source: {{vault: hub, prefix: apps/teams/}}
    targets: [{{vault: people}}]
  people-to-prod:
    source: {{vault: people}}
    targets: [{{vault: prod, prefix: people/}}]        # people-deploy-token-01
"""


class Failed(Exception):
    """Something is not as the demo claims."""


# --- what is carried ----------------------------------------------------------------------------------------------


def seeds() -> dict[str, dict[str, Any]]:
    """Secrets of every shape, new ones at each run: path → fields."""
    made: dict[str, dict[str, Any]] = {}
    for part in ("web", "api", "worker", "cart"):
        made[f"shop/{part}/db"] = {"user": f"shop_{part}", "password": secrets.token_urlsafe(18), "port": 5432}
        made[f"shop/{part}/cache"] = {"value": secrets.token_urlsafe(24)}
        made[f"shop/{part}/queue"] = {"endpoint": f"amqps://{part}.example:5671", "key": secrets.token_urlsafe(32)}
    for region in ("eu", "us", "asia"):
        for service in ("stripe", "paypal", "invoices"):
            made[f"billing/{region}/{service}"] = {"value": f"sk_{region}_{secrets.token_hex(16)}"}
    for number in range(1, 11):
        made[f"teams/deploy-token-{number:02d}"] = {"value": secrets.token_urlsafe(30)}
    made |= {
        "platform/limits": {"requests": 1500, "burst": 2.5, "enabled": True, "comment": None},
        "platform/features": {"flags": {"beta": ["eu", "us"], "dark-mode": {"percent": 25}}, "revision": 17},
        "platform/tls/key": {"value": pem()},
        "platform/tls/bundle": {"key": pem(), "chain": [pem("CERTIFICATE"), pem("CERTIFICATE")]},
        "strings/json-object": {"value": '{"not": "fields", "but": "text"}'},
        "strings/json-list": {"value": "[1, 2, 3]"},
        "strings/number": {"value": "0042"},
        "strings/true": {"value": "true"},
        "strings/empty": {"value": ""},
        "strings/spaces": {"value": "  kept, at both ends \t\n"},
        "international/greeting": {"value": "Grüße aus 東京, с любовью 🛳"},
        "international/größe": {"prénom": "Zoë", "город": "Тверь"},
        "a name with spaces": {"value": secrets.token_urlsafe(12)},
    }
    return made


def pem(label: str = "PRIVATE KEY") -> str:
    """Looks like one: many lines, and nothing that opens a door."""
    text = base64.b64encode(secrets.token_bytes(900)).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


# --- the servers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """A sandbox server in a process of its own, and what it said about itself."""

    about: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.about["url"])

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """The answer's JSON; None for 404. Raises Failed."""
        data = None if body is None else json.dumps(body).encode()
        sent = urllib.request.Request(self.url + path, data, dict(headers or {}), method=method)  # noqa: S310 - loopback
        bundle = self.about.get("ca_bundle")
        context = ssl.create_default_context(cafile=bundle) if bundle else None
        try:
            with urllib.request.urlopen(sent, timeout=10, context=context) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise Failed(f"{method} {path.partition('?')[0]} was answered with {error.code}") from None
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def misbehave(self, *faults: dict[str, Any]) -> None:
        self.request("POST", "/_sandbox/faults", list(faults))

    def behave(self) -> None:
        self.request("DELETE", "/_sandbox/faults")

    def forget_calls(self) -> None:
        self.request("DELETE", "/_sandbox/calls")

    def calls(self) -> dict[str, int]:
        return dict((self.request("GET", "/_sandbox/calls") or {})["calls"])


class Vault(Server):
    """The secrets in a Vault, past Vaultferry."""

    def put(self, path: str, fields: dict[str, Any]) -> None:
        self.request("POST", f"/v1/secret/data/{quote(path)}", {"data": fields}, {"X-Vault-Token": ROOT_TOKEN})

    def get(self, path: str) -> Any:
        answer = self.request("GET", f"/v1/secret/data/{quote(path)}", headers={"X-Vault-Token": ROOT_TOKEN})
        return None if answer is None else answer["data"]["data"]

    def delete(self, path: str) -> None:
        self.request("DELETE", f"/v1/secret/data/{quote(path)}", headers={"X-Vault-Token": ROOT_TOKEN})


class KeyVault(Server):
    """The secrets in a Key Vault, past Vaultferry."""

    def token(self) -> str:
        environment = self.about["environment"]
        query = "?api-version=2019-08-01&resource=https://vault.azure.net"
        sent = urllib.request.Request(  # noqa: S310 - loopback
            environment["IDENTITY_ENDPOINT"] + query, headers={"X-IDENTITY-HEADER": environment["IDENTITY_HEADER"]}
        )
        with urllib.request.urlopen(sent, timeout=10) as answer:  # noqa: S310
            return str(json.load(answer)["access_token"])

    def get(self, name: str, token: str) -> Any:
        """A secret's fields, as whoever reads them there would take them apart."""
        headers = {"Authorization": f"Bearer {token}"}
        answer = self.request("GET", f"/secrets/{name}?api-version=7.5", headers=headers)
        if answer is None:
            return None
        if answer.get("contentType") == "application/vnd.vaultferry+json":
            return json.loads(answer["value"])
        return {"value": answer["value"]}


@contextlib.contextmanager
def servers() -> Iterator[tuple[Vault, KeyVault, Vault, Server]]:
    """Two Vaults, a Key Vault and a Vaultwarden, each in a process of its own, for as long as the block runs."""
    modules = ("sandbox.vault", "sandbox.key_vault", "sandbox.vault", "sandbox.bitwarden")
    processes = [
        subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", module],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the demo; it ends them itself.
            start_new_session=True,
        )
        for module in modules
    ]
    try:
        hub, prod, twin, people = (_about(process) for process in processes)
        yield Vault(hub), KeyVault(prod), Vault(twin), Server(people)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate()


def _about(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise Failed("a sandbox server did not start")
    about: dict[str, Any] = json.loads(line)
    return about


# --- the show -----------------------------------------------------------------------------------------------------


class Demo:
    def __init__(self, folder: Path, hub: Vault, prod: KeyVault, twin: Vault, people: Server) -> None:
        self.folder = folder
        self.hub, self.prod, self.twin, self.people = hub, prod, twin, people
        self.secrets = seeds()
        self.program = Path(sys.executable).with_name("vaultferry")
        # What belongs to the person's own vaults has no place in here.
        own = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT_", "VAULTFERRY_", "AZURE_", "AzureWeb"))}
        self.environment = own | prod.about["environment"] | {"DEMO_TOKEN": ROOT_TOKEN, "DEMO_PASSWORD": PASSWORD}

    def prepare(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        shutil.copy(self.prod.about["ca_bundle"], self.folder / "ca.pem")
        text = CONFIG.format(hub=self.hub.url, prod=self.prod.url, twin=self.twin.url, sync=SYNC)
        (self.folder / "vaultferry.yaml").write_text(text, "utf-8")
        shutil.copy(self.people.about["ca_bundle"], self.folder / "people-ca.pem")
        about = {key: self.people.about[key] for key in ("email", "organization", "collection")}
        text = PEOPLE.format(hub=self.hub.url, prod=self.prod.url, people=self.people.url, **about)
        (self.folder / "people.yaml").write_text(text, "utf-8")
        lines = (f"export DEMO_TOKEN={ROOT_TOKEN}", f"export PATH={shlex.quote(str(self.program.parent))}:$PATH")
        (self.folder / "env").write_text("\n".join(lines) + "\n", "utf-8")
        for path, fields in self.secrets.items():
            self.hub.put(f"apps/{path}", fields)
        self.hub.put("apps/scratch/notes", {"value": "excluded, so it stays here"})

    def run(self, *arguments: str, cut: bool = False) -> None:
        """A command as a person would type it; with `cut`, only the begin and the end of what it says. Raises Failed."""
        say(f"\n{bold('$ vaultferry ' + ' '.join(arguments))}")
        ended = subprocess.run(  # noqa: S603 - our own program
            [self.program, *arguments],
            cwd=self.folder,
            env=self.environment,
            timeout=PATIENCE,
            check=False,
            stdout=subprocess.PIPE if cut else None,
            text=True,
        )
        if cut:
            lines = ended.stdout.splitlines()
            say("\n".join([*lines[:10], quiet(f"  … {len(lines) - 14} lines more …"), *lines[-4:]]))
        if ended.returncode != 0:
            raise Failed(f"`vaultferry {' '.join(arguments)}` ended with {ended.returncode}")

    def verify(self) -> None:
        """Every secret in both destinations, field by field, and nothing that does not belong there."""
        token = self.prod.token()
        for path, fields in self.secrets.items():
            if self.twin.get(f"copy/{path}") != fields:
                raise Failed(f"{path} is not in the second Vault as it should be")
            if self.prod.get(key_vault_name(path), token) != fields:
                raise Failed(f"{path} is not in the Key Vault as it should be")
        gone = [path for path in (DELETED, "scratch/notes") if path not in self.secrets]
        for path in gone:
            if self.twin.get(f"copy/{path}") is not None or self.prod.get(key_vault_name(path), token) is not None:
                raise Failed(f"{path} is in a destination, and should not be")
        say(good(f"✓ Looked for ourselves: all {len(self.secrets)} secrets are in both destinations, field by field."))

    def verify_people(self) -> None:
        """What went through Vaultwarden's encryption, and back, is what it was."""
        token = self.prod.token()
        teams = {path: fields for path, fields in self.secrets.items() if path.startswith("teams/")}
        for path, fields in teams.items():
            name = key_vault_name(path.removeprefix("teams/"))
            if self.prod.get(f"people-{name}", token) != fields:
                raise Failed(f"{path} did not come through Vaultwarden as it should")
        say(
            good(f"✓ All {len(teams)} went to Vaultwarden, which saw only ciphertext, and from there to the Key Vault.")
        )

    def change_one_delete_one(self) -> None:
        self.secrets[CHANGED] = {**self.secrets[CHANGED], "password": secrets.token_urlsafe(18)}
        self.hub.put(f"apps/{CHANGED}", self.secrets[CHANGED])
        del self.secrets[DELETED]
        self.hub.delete(f"apps/{DELETED}")

    def show_calls(self) -> None:
        """What the servers counted, and that only two secrets moved."""
        hub, prod, twin = self.hub.calls(), self.prod.calls(), self.twin.calls()
        say("\nWhat the servers counted:")
        for name, calls, values in (("hub", hub, "read"), ("prod", prod, "get"), ("twin", twin, "read")):
            told = ", ".join(f"{count} {word}" for word, count in sorted(calls.items()))
            say(f"  {name:5} {sum(calls.values()):3} calls, {calls.get(values, 0)} of them for a value   {quiet(told)}")
        moved = (prod.get("set", 0), prod.get("delete", 0), twin.get("write", 0), twin.get("delete", 0))
        if moved != (1, 1, 1, 1):
            raise Failed(f"more or less than two secrets moved: {moved}")
        say(good(f"✓ Of {len(self.secrets) + 1} secrets, one was written and one deleted in each destination."))

    def storm(self) -> None:
        """Ten secrets change while the Key Vault answers 429, and the second Vault 503."""
        for path in [path for path in self.secrets if path.startswith("teams/")][:MOVED_IN_STORM]:
            self.secrets[path] = {"value": secrets.token_urlsafe(30)}
            self.hub.put(f"apps/{path}", self.secrets[path])
        self.prod.misbehave({"kind": "status", "operation": "set", "status": 429, "retry_after": 1, "times": None})
        self.twin.misbehave({"kind": "status", "operation": "write", "status": 503, "times": None})

    def calm(self) -> None:
        self.prod.behave()
        self.twin.behave()

    # events

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Serve and the relay beside it, and the hub's audit log on its way there, for as long as the block runs."""
        serve, relay, relay_http = (free_port() for _ in range(3))
        self.environment["VAULTFERRY_AUDIT_SECRET"] = secrets.token_hex(16)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._in_background("serve", "--port", str(serve)))
            self._wait(f"http://127.0.0.1:{serve}/health")
            relay_options = ["--listen", f"tcp://127.0.0.1:{relay}", "--forward", f"http://127.0.0.1:{serve}/audit"]
            relay_options += ["--spool", "spool", "--vault", "hub", "--http", f"127.0.0.1:{relay_http}"]
            stack.enter_context(self._in_background("relay", *relay_options))
            self._wait(f"http://127.0.0.1:{relay_http}/health")
            audit_log = str(self.folder / "audit.log")
            self.run("setup", "hub", "--address", f"127.0.0.1:{relay}", "--add-file", audit_log)
            self._settle(f"http://127.0.0.1:{serve}/syncs/{SYNC}/status")
            yield

    @contextlib.contextmanager
    def _in_background(self, *arguments: str) -> Iterator[None]:
        say(f"\n{bold('$ vaultferry ' + ' '.join(arguments) + ' &')}")
        with (self.folder / f"{arguments[0]}.log").open("w") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [self.program, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)

    def _wait(self, url: str) -> None:
        until(lambda: answers(url), f"{url} does not answer; see the logs in {shown(self.folder)}/")

    def _settle(self, url: str) -> None:
        """A relay that starts has missed what came before: it asks for a full run, which must not be in the way."""

        def settled() -> bool:
            last = json.loads(urllib.request.urlopen(url, timeout=10).read())["last_run"]  # noqa: S310 - loopback
            return bool(last and last["trigger"] == "event" and last["finished_at"])

        until(settled, "the full run at the relay's start does not end")

    def one_event(self) -> None:
        """A secret that is new at the source, and then deleted there; how long each took to have its effect."""
        fields = {"user": "checkout", "password": secrets.token_urlsafe(18)}
        token = self.prod.token()
        looks = {
            "twin": lambda: self.twin.get(f"copy/{NEWCOMER}"),
            "prod": lambda: self.prod.get(key_vault_name(NEWCOMER), token),
        }
        self.hub.put(f"apps/{NEWCOMER}", fields)
        self._show("written", looks, fields)
        self.hub.delete(f"apps/{NEWCOMER}")
        self._show("deleted", looks, None)

    def _show(self, what: str, looks: Mapping[str, Callable[[], Any]], wanted: Any) -> None:
        began = time.monotonic()
        took: dict[str, float] = {}

        def all_there() -> bool:
            for name, look in looks.items():
                if name not in took and look() == wanted:
                    took[name] = time.monotonic() - began
            return len(took) == len(looks)

        until(all_there, f"{NEWCOMER} was {what} at the source, and not everywhere else")
        told = ", ".join(f"in {name} after {seconds * 1000:.0f} ms" for name, seconds in took.items())
        say(good(f"✓ {what.capitalize()} at the source: {told}."))

    def play(self) -> None:
        self.prepare()
        say(
            bold(
                f"Vaultferry carries {len(self.secrets)} secrets from a Vault to an Azure Key Vault and to a second Vault."
            )
        )
        say(
            "Then through a Vaultwarden, then by events. All are sandbox servers on this machine, and end with the demo."
        )
        say(f"Configuration and history are in {shown(self.folder)}/, where these commands run.")

        head("Is the configuration right, and do the vaults answer?")
        self.run("validate")
        self.run("check")

        head("What would be done?")
        self.run("plan", cut=True)

        head("Do it.")
        self.run("sync")
        self.verify()

        head(f"At the source, {CHANGED} gets a new password, and {DELETED} is deleted.")
        self.change_one_delete_one()
        self.run("plan")
        for server in (self.hub, self.prod, self.twin):
            server.forget_calls()
        self.run("sync")
        self.show_calls()
        self.verify()

        head(f"For {STORM:g} seconds the Key Vault answers 429, and the second Vault 503, while ten secrets change.")
        self.storm()
        timer = threading.Timer(STORM, self.calm)
        timer.start()
        try:
            self.run("sync")
        finally:
            timer.join()
        self.verify()

        head("The teams' tokens, for people in Vaultwarden; and what is there, for machines in the Key Vault.")
        self.run("sync", "teams-to-people", "-c", "people.yaml")
        self.run("sync", "people-to-prod", "-c", "people.yaml")
        self.verify_people()

        head("Nobody runs a sync any more: the hub's audit log says what has changed.")
        with self.listening():
            say(f"\n{NEWCOMER} is written in the hub, and then deleted:")
            self.one_event()

        head("What was done, and how things stand.")
        self.run("history", SYNC, "--limit", "12")
        self.run("history", "--verify")
        self.run("status")


def until(done: Callable[[], bool], problem: str) -> None:
    """Look again and again until it is so. Raises Failed after `SOON`."""
    end = time.monotonic() + SOON
    while not done():
        if time.monotonic() > end:
            raise Failed(problem)
        time.sleep(0.001)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - loopback
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def key_vault_name(path: str) -> str:
    """What the sync calls a path there: letters, digits and dashes."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in path)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_step = 0


def head(text: str) -> None:
    global _step
    _step += 1
    say("\n" + bold(f"{_step}. {text}"))


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def bold(text: str) -> str:
    return _styled(text, "1")


def good(text: str) -> str:
    return _styled(text, "32")


def quiet(text: str) -> str:
    return _styled(text, "2")


def shown(path: Path) -> str:
    """A path as it would be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def play(folder: Path) -> int:
    began = time.monotonic()
    try:
        with servers() as (hub, prod, twin, people):
            demo = Demo(folder, hub, prod, twin, people)
            demo.play()
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        say(f"\nThe demo failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nThe demo was stopped.")
        return 130
    say(
        f"\n{good('✓ All as it should be')}, in {time.monotonic() - began:.0f} seconds. The servers are gone, the history "
        f"is in {shown(folder)}/vaultferry.db.\n"
        f"Try next:  {bold(f'cd {shown(folder)} && . ./env && vaultferry history {SYNC} --path {CHANGED}')}\n"
        "Your own vaults: README.md, “Your own vaults in five minutes”."
    )
    return 0


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description="Vaultferry on throw-away servers.")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".demo", help="made anew; default: .demo of this checkout"
    )
    sys.exit(play(parser.parse_args().folder.resolve()))


if __name__ == "__main__":
    main()
