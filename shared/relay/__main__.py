"""`python -m shared.relay`: what `vaultferry relay` does, with nothing but the standard library and aiohttp (and uvloop)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from shared.build_info import build_info
from shared.errors import ConfigError, SyncError
from shared.event_loop import run as run_loop
from shared.relay.process import LEVELS, log_to_stderr, read_options, run


def main(arguments: Sequence[str] | None = None) -> int:
    """0: stopped as it was told; 1: failed; 2: the use is wrong."""
    parser = argparse.ArgumentParser(
        prog="vaultferry relay", description="Tell Vaultferry what a Vault's audit log tells."
    )
    parser.add_argument("--listen", action="append", required=True, metavar="URL",
                        help="udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH[?mode=0660]; repeatable")  # fmt: skip
    parser.add_argument("--forward", required=True, metavar="URL", help="the app's address, which ends in /audit")
    parser.add_argument("--spool", required=True, metavar="DIR", help="where to keep what is not forwarded yet")
    parser.add_argument("--vault", metavar="ID", help="what the app's configuration calls this Vault")
    parser.add_argument("--http", metavar="HOST:PORT", help="answer /health and /metrics there")
    parser.add_argument("--log-level", choices=LEVELS, default=None, help="default: VAULTFERRY_LOG_LEVEL, or info")
    parser.add_argument("--version", action="version", version=str(build_info()))
    given = parser.parse_args(arguments)
    level = given.log_level or os.environ.get("VAULTFERRY_LOG_LEVEL", "").strip().lower()
    log_to_stderr(level if level in LEVELS else "info")
    try:
        run_loop(run(read_options(given.listen, given.forward, given.spool, given.vault, given.http, os.environ)))
    except SyncError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
