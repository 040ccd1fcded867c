"""`make azurite`: the real Azurite in the foreground, where `UseDevelopmentStorage=true` finds it, its data in .azurite/."""

import argparse
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.servers import places
from tests.servers.fetch import FetchError, fetch_azurite, say

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".azurite"
PORTS = {"blob": 10000, "queue": 10001, "table": 10002}
"""Those that storage SDKs know by heart: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite"""
LISTENING = re.compile(r"Azurite (\w+) service is successfully listening at (http://\S+)")
NEXT_STEP = """\
Azurite answers; what it is given is kept in {folder}. Ctrl-C stops it.
Next, in another terminal:
  cp local.settings.example.json local.settings.json     # and fill in what is empty there
  vaultferry serve                                       # or, with the Azure Functions Core Tools: func start"""


def main(arguments: list[str] | None = None) -> int:
    """Run it until it ends or is stopped; 0 when it was stopped."""
    parser = argparse.ArgumentParser(prog="make azurite")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    for service, port in PORTS.items():
        parser.add_argument(f"--{service}-port", type=int, default=port)
    given = parser.parse_args(arguments)
    try:
        script = places.azurite_script(fetch_azurite())
    except FetchError as error:
        say(f"Azurite {places.AZURITE_VERSION}: {error}")
        return 1
    node = shutil.which("node")
    if node is None:
        say("`node` is not on the PATH, and Azurite needs it: Node.js 20 or newer, https://nodejs.org/")
        return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    ports = [each for name in PORTS for each in (f"--{name}Port", str(getattr(given, f"{name}_port")))]
    # The newest SDKs speak an API version that this Azurite does not know yet.
    quiet = ["--disableTelemetry", "--silent", "--skipApiVersionCheck"]
    command = [node, str(script), *ports, "--location", str(given.folder), *quiet]
    return follow(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), given.folder)


def follow(process: "subprocess.Popen[str]", folder: Path) -> int:
    """Show what it says, and the next step as soon as all three services answer."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        # A terminal's Ctrl-C reaches it anyway; a signal to this process alone does not.
        process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    answering: set[str] = set()
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip())
        found = LISTENING.search(line)
        if found and found[1] not in answering:
            answering.add(found[1])
            if len(answering) == len(PORTS):
                say(NEXT_STEP.format(folder=folder))
        if "EADDRINUSE" in line:
            say("Something else has that port, an Azurite of another terminal perhaps. It has to be stopped first.")
    code = process.wait()
    return 0 if stopped else code or 1


if __name__ == "__main__":
    sys.exit(main())
