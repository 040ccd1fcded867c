"""`make servers`: get the real Vault, Azurite and the Bitwarden command line into the user's cache.

Vault is built from its published Go module, since no package registry carries its binary; the others come from npm.
Idempotent: what is there is kept. Each of them is made in a folder of its own beside its place and moved there in one
step, so that an interrupted or doubled run never leaves half of one. Versions that do not build this way: Vault
1.21.4 (its module asks for an sdk that does not match). `bw` 2026.9.0 insists on an endpoint that Vaultwarden does not
have.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.servers import places

_VAULT_MODULE = "github.com/hashicorp/vault"
_GO_NEEDED = (1, 25)
_PROGRESS_SECONDS = 20.0


class FetchError(Exception):
    """Why a server could not be had, and what to do about it."""


def main() -> int:
    """Fetch what is missing; 0 when all of them are there."""
    missing = []
    for name, fetch in (
        (f"HashiCorp Vault {places.VAULT_VERSION}", fetch_vault),
        (f"Azurite {places.AZURITE_VERSION}", fetch_azurite),
        (f"Bitwarden CLI {places.BW_VERSION}", fetch_bw),
    ):
        try:
            place = fetch()
        except FetchError as error:
            missing.append(name)
            say(f"{name}: {error}")
        else:
            say(f"{name}: {place}")
    return 1 if missing else 0


def fetch_vault() -> Path:
    """The path of a Vault that has said its version. Raises FetchError."""
    place = places.vault_binary()
    if place.exists():
        return place
    go = require("go", "Go 1.25 or newer, https://go.dev/dl/")
    version = re.search(r"go(\d+)\.(\d+)", output([go, "version"]))
    if version is None or (int(version[1]), int(version[2])) < _GO_NEEDED:
        raise FetchError("Go 1.25 or newer is needed to build it, https://go.dev/dl/")
    say(f"building HashiCorp Vault {places.VAULT_VERSION}: 6 to 10 minutes with a cold Go cache")
    with workshop() as folder:
        module = Path(folder)
        run([go, "mod", "init", "servers"], module, "go mod init")
        run([go, "get", "-tool", f"{_VAULT_MODULE}@v{places.VAULT_VERSION}"], module, "go get")
        run([go, "build", "-o", "vault", _VAULT_MODULE], module, "go build")
        said = output([str(module / "vault"), "version"])
        if f"v{places.VAULT_VERSION}" not in said:
            raise FetchError(f"the build says {said!r} instead of {places.VAULT_VERSION}")
        (module / "vault").replace(place)
    return place


def fetch_azurite() -> Path:
    """The folder of an installed Azurite. Raises FetchError."""
    return from_npm("Azurite", f"azurite@{places.AZURITE_VERSION}", places.azurite_folder(), places.azurite_script)


def fetch_bw() -> Path:
    """The folder of an installed Bitwarden command line. Raises FetchError."""
    return from_npm("Bitwarden CLI", f"@bitwarden/cli@{places.BW_VERSION}", places.bw_folder(), places.bw_script)


def from_npm(name: str, package: str, place: Path, script: Callable[[Path], Path]) -> Path:
    """Install an npm package under a folder of its own. Raises FetchError."""
    if script(place).exists():
        return place
    require("node", "Node.js 20 or newer, https://nodejs.org/")
    npm = require("npm", "npm, it comes with Node.js, https://nodejs.org/")
    say(f"installing {name}: {package}")
    with workshop() as folder:
        prefix = Path(folder) / "npm"
        prefix.mkdir()
        run([npm, "install", "--prefix", str(prefix), "--no-audit", "--no-fund", package], prefix, "npm install")
        if not script(prefix).exists():
            raise FetchError("npm installed it, but its start script is missing")
        shutil.rmtree(place, ignore_errors=True)
        prefix.replace(place)
    return place


def workshop() -> tempfile.TemporaryDirectory[str]:
    """A folder on the same file system as the cache, where a rename is one step."""
    places.cache().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".making-", dir=places.cache(), ignore_cleanup_errors=True)


def require(tool: str, what: str) -> str:
    """The path of a tool, or a FetchError that names it."""
    found = shutil.which(tool)
    if found is None:
        raise FetchError(f"`{tool}` is not on the PATH; install {what}, then run `make servers` again")
    return found


def output(command: list[str]) -> str:
    """What a quick command prints."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout.strip()


def run(command: list[str], folder: Path, step: str) -> None:
    """Run a slow command, saying now and then that it is still at it. Raises FetchError with the end of its output."""
    began = time.monotonic()
    log = folder / ".log"
    # GOFLAGS and GOWORK of the caller's own projects would change what is built.
    environment = {key: value for key, value in os.environ.items() if key not in ("GOFLAGS", "GOWORK")}
    with log.open("w+") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            while True:
                try:
                    status = process.wait(timeout=_PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  {step}: {time.monotonic() - began:.0f} s")
        except BaseException:
            process.kill()
            process.wait()
            raise
    if status != 0:
        tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-15:])
        raise FetchError(f"{step} failed with exit code {status}:\n    {tail}")


def say(line: str) -> None:
    """A line that a watcher sees at once."""
    print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
