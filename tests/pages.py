"""The pages of docs/ as scenarios that can be run: what a reader would type, typed.

Comments in HTML, which no reader sees, say what is to be done with the fenced block that follows:

    <!-- scenario: own -->          a new folder and a new shell; what the page starts itself is all there is
    <!-- scenario: sandbox -->      the same, with a Vault (hub), a second one and a Key Vault of the sandbox
    <!-- seed: apps/db {"a": 1} --> a secret is in the hub's mount `secret` (stands alone)
    <!-- file: NAME -->             the block is this file; without `-->` on its line, what stands until there is
    <!-- given: COMMAND -->         is typed, though the page does not show it (stands alone)
    <!-- run -->                    the block is typed: lines behind `$ `, or all of it where it is `bash`
    <!-- run: exit 2 -->            the same, and its last command ends so
    <!-- run: serving -->           its first command is `vaultferry serve`: it runs in the background from then on
    <!-- printed: TEXT -->          the last command has printed a line with this in it (stands alone)

In a `console` block, what stands below a command is what it prints, as far as it is stable: lines in this order, others
may stand between. `…` stands for anything, and times and counts of seconds are not compared. Addresses and ports
of the page are other ones in the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sandbox.entra import EntraServer, ManagedIdentityServer
from sandbox.key_vault import KeyVaultServer
from sandbox.vault import VaultSandbox
from tests.servers import processes
from tests.servers.hosting import hosting

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
"""Seconds that any one command may take."""
_MARK = re.compile(r"<!-- (scenario|seed|file|given|run|printed)(?:: (.*?))? -->")
_HIDDEN_FILE = re.compile(r"<!-- file: (\S+)$")
_FENCE = re.compile(r"( *)(`{3,})(\w*)")
_PORTS = re.compile(r"\b(8200|8201|7071|1269|1270)\b")
_UNSTABLE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+Z?)?|\b\d+\.\d\b")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: `kind` is file, seed, given, run or printed."""

    kind: str
    argument: str
    text: str
    line: int
    language: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Steps that share a folder and a shell."""

    page: str
    line: int
    world: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Typed:
    """A command, and the lines that the page shows below it."""

    command: str
    shown: tuple[str, ...]
    line: int


def pages() -> list[Path]:
    """Every page that a person reads."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "infra").rglob("*.md"))]


def scenarios(page: Path) -> list[Scenario]:
    """What a page has to be run, in its order."""
    name = page.relative_to(ROOT).as_posix()
    found: list[tuple[int, str, list[Step]]] = []
    lines = page.read_text("utf-8").splitlines()
    waiting: tuple[str, str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        if fence := _FENCE.match(line):
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == fence[2])
            if waiting is not None:
                text = "\n".join(each.removeprefix(fence[1]) for each in lines[number + 1 : end]) + "\n"
                found[-1][2].append(Step(*waiting, text, number + 2, fence[3]))
                waiting = None
            number = end
        elif hidden := _HIDDEN_FILE.match(line):
            end = lines.index("-->", number)
            text = "\n".join(lines[number + 1 : end]) + "\n"
            found[-1][2].append(Step("file", hidden[1], text, number + 2))
            number = end
        elif mark := _MARK.search(line):
            kind, argument = mark[1], mark[2] or ""
            assert waiting is None, f"{name}:{number + 1}: the mark before this one has no block"
            if kind == "scenario":
                found.append((number + 1, argument, []))
            elif kind in ("seed", "given", "printed"):
                found[-1][2].append(Step(kind, argument, "", number + 1))
            else:
                waiting = kind, argument
        number += 1
    assert waiting is None, f"{name}: a mark at the end has no block"
    return [Scenario(name, line, world, tuple(steps)) for line, world, steps in found]


def typed(step: Step) -> list[Typed]:
    """The commands of a block, each with what the page says that it prints."""
    if step.language == "bash":
        return [Typed(step.text, (), step.line)]
    commands: list[tuple[list[str], list[str], int]] = []
    goes_on = False
    for number, line in enumerate(step.text.splitlines(), step.line):
        if goes_on:
            commands[-1][0].append(line)
        elif line.startswith("$ "):
            commands.append(([line[2:]], [], number))
        else:
            commands[-1][1].append(line)
            continue
        goes_on = line.endswith("\\")
    return [Typed("\n".join(command), tuple(shown), line) for command, shown, line in commands]


@dataclass
class World:
    """Where a scenario takes place: a folder, a shell in it, and other addresses than the page has."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    put: Callable[[str, dict[str, Any]], object] | None = None
    """Writes a secret into the hub's mount `secret`."""
    ports: dict[str, str] = field(default_factory=dict)

    def there(self, text: str) -> str:
        """The page's text with the addresses of this world."""
        for page, here in self.addresses.items():
            text = text.replace(page, here)
        return _PORTS.sub(lambda port: self._port(port[0]), text)

    def _port(self, port: str) -> str:
        # One that the system gave was free a moment ago; the page's own may be anybody's.
        if port not in self.ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[port] = str(probe.getsockname()[1])
        return self.ports[port]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT", "AZURE", "AzureWeb", "IDENTITY"))}
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        fixed = {"CHECKOUT": str(ROOT), "PATH": tools, "NO_COLOR": "1", "COLUMNS": "160", "LC_ALL": "C.UTF-8"}
        return kept | fixed | self.env


@dataclass(frozen=True, slots=True)
class Vaults:
    """The hub, and another one; each with KV v2 at `secret/` and KV v1 at `kv1/`."""

    hub: str
    hub_token: str = field(repr=False)
    put: Callable[[str, dict[str, Any]], object]
    copy: str
    copy_token: str = field(repr=False)


@contextlib.contextmanager
def sandbox_vaults() -> Iterator[Vaults]:
    with hosting() as host:
        hub, copy = host.start(VaultSandbox()), host.start(VaultSandbox())
        yield Vaults(hub.url, hub.root_token, partial(hub.put, "secret"), copy.url, copy.root_token)


@contextlib.contextmanager
def real_vaults() -> Iterator[Vaults]:
    """Raises ServerMissing."""
    with processes.vault() as hub, processes.vault() as copy:
        for server in (hub, copy):
            server.call("POST", "sys/mounts/kv1", {"type": "kv", "options": {"version": "1"}})
            server.wait_for_upgrade("secret")

        def put(path: str, fields: dict[str, Any]) -> object:
            return hub.call("POST", f"secret/data/{path}", {"data": fields})

        yield Vaults(hub.url, hub.token, put, copy.url, copy.token)


@contextlib.contextmanager
def world(kind: str, folder: Path, *, real: bool = False) -> Iterator[World]:
    """`own` or `sandbox`; `real`: the Vaults in it are real ones."""
    if kind == "own":
        yield World(folder)
        return
    assert kind == "sandbox", f"there is no world {kind!r}"
    with hosting() as host, real_vaults() if real else sandbox_vaults() as vaults:
        prod = host.start(KeyVaultServer())
        identity = host.start(ManagedIdentityServer(prod.authority))
        entra = host.start(EntraServer(prod.authority))
        bundle = folder / ".authorities.pem"
        bundle.write_text("".join(Path(str(each.ca_bundle)).read_text() for each in (prod, entra)))
        yield World(
            folder,
            {
                **identity.environment,
                "SSL_CERT_FILE": str(bundle),
                "VAULT_TOKEN": vaults.hub_token,
                "COPY_TOKEN": vaults.copy_token,
                "BACKUP_KEY": "a passphrase of many characters",
            },
            {
                "http://127.0.0.1:8200": vaults.hub,
                "https://vault.example:8200": vaults.hub,
                "http://127.0.0.1:8201": vaults.copy,
                "https://copy.example:8200": vaults.copy,
                "https://contoso.vault.azure.net": prod.url,
                "/var/log/vault/audit.log": str(folder / "audit.log"),
            },
            vaults.put,
        )


class Shell:
    """One bash for a whole scenario, so that `export`, `cd` and what was started in the background last."""

    def __init__(self, world: World, logs: Path) -> None:
        self._logs = logs
        self._number = 0
        self.printed = ""
        """By the last command."""
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=world.folder,
            env=world.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def type(self, command: str) -> tuple[int, str]:
        """The exit code, and all that was printed until then."""
        self._number += 1
        script, printed = (self._logs / f"{self._number}.{kind}" for kind in ("sh", "out"))
        script.write_text(command + "\n", "utf-8")
        there = shlex.quote(str(printed))
        code = self._say(f"source {shlex.quote(str(script))} >{there} 2>&1 </dev/null; echo $?")
        self.printed = printed.read_text("utf-8", errors="replace")
        return int(code or "-1"), self.printed

    def serve(self, command: str) -> tuple[int, str]:
        """Start it in the background, at a port that is free, and wait until it answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program, _, comment = command.partition("#")
        log = f"serve-{port}.log"
        self.type(f"{program} --port {port} > {log} 2>&1 & # {comment}")
        return self.type(
            f"curl -sf --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:{port}/health || cat {log}"
        )

    def _say(self, line: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        watch = threading.Timer(PATIENCE, self._bash.kill)
        watch.start()
        try:
            self._bash.stdin.write(line + "\n")
            self._bash.stdin.flush()
            return self._bash.stdout.readline().strip()
        finally:
            watch.cancel()

    def close(self) -> None:
        """End it, and what it has in the background."""
        if self._bash.poll() is None:
            self._say('jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs 2>/dev/null; wait; echo ended')
        for stream in (self._bash.stdin, self._bash.stdout):
            assert stream is not None
            stream.close()
        self._bash.wait(PATIENCE)


def tools(scenario: Scenario) -> set[str]:
    """What it takes besides Python and Vaultferry, of what a machine may lack."""
    text = "\n".join((*(step.text for step in scenario.steps), *(step.argument for step in scenario.steps)))
    return {"bash"} | {tool for tool in ("curl", "jq", "openssl", "sed", "gzip") if re.search(rf"\b{tool}\b", text)}


def play(scenario: Scenario, folder: Path, *, real: bool = False) -> None:
    """Do all of it. Raises AssertionError with the page's line where something is not as the page says."""
    here, logs = folder / "here", folder / "logs"
    here.mkdir()
    logs.mkdir()
    with world(scenario.world, here, real=real) as place:
        shell = Shell(place, logs)
        try:
            for step in scenario.steps:
                _play_step(scenario, step, place, shell)
        finally:
            shell.close()


def _play_step(scenario: Scenario, step: Step, place: World, shell: Shell) -> None:
    where = f"{scenario.page}:{step.line}"
    if step.kind == "file":
        target = place.folder / step.argument
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(place.there(step.text), "utf-8")
    elif step.kind == "seed":
        path, _, fields = step.argument.partition(" ")
        assert place.put is not None, f"{where}: there is no hub in this world"
        document: Mapping[str, Any] = json.loads(fields)
        place.put(path, dict(document))
    elif step.kind == "given":
        code, printed = shell.type(place.there(step.argument))
        assert code == 0, f"{where}: `{step.argument}` ended with {code} and printed\n{printed}"
    elif step.kind == "printed":
        assert first_missing((f"…{place.there(step.argument)}…",), shell.printed) is None, f"{where}: {shell.printed}"
    else:
        serving = step.argument == "serving"
        wanted = 0 if serving else int(step.argument.removeprefix("exit ") or "0")
        commands = typed(step)
        for each in commands:
            command = place.there(each.command)
            code, printed = shell.serve(command) if serving and each is commands[0] else shell.type(command)
            expected = wanted if each is commands[-1] else 0
            told = f"{scenario.page}:{each.line}: `{each.command.strip()}` printed\n{printed}"
            assert code == expected, f"{told}\nand ended with {code}, not {expected}"
            missing = first_missing(tuple(place.there(line) for line in each.shown), printed)
            assert missing is None, f"{told}\nand the page shows: {missing}"


def first_missing(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line that a page shows and that was not printed, at its place in the order; None: all were."""
    lines = iter([_plain(line) for line in printed.splitlines()])
    for wanted in shown:
        pattern = ".*".join(re.escape(part) for part in _plain(wanted).split("…"))
        if wanted.strip() and not any(re.fullmatch(pattern, line) for line in lines):
            return wanted
    return None


def _plain(line: str) -> str:
    return " ".join(_UNSTABLE.sub("~", line).split())
