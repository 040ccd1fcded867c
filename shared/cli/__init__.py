"""The command line: `vaultferry COMMAND`. One file for each group of commands.

`--version` and `-h` stay quick: whatever is heavier than Typer is imported inside the commands.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shared.cli import configuring, deploying, looking, relaying, serving, setting_up, syncing
from shared.cli.session import Common, ConfigOption, JsonOption, LevelOption

__all__ = ["app", "main"]

app = typer.Typer(
    name="vaultferry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from shared.build_info import build_info

        typer.echo(f"vaultferry {build_info()}")
        raise typer.Exit


@app.callback()
def vaultferry(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version, commit and build date.")
    ] = False,
) -> None:
    """Carries secrets between vaults.

    Exit codes: 0 fine, 1 something failed, 2 configuration or usage wrong, 130 interrupted.
    """
    context.obj = Common(config, as_json, log_level)


for group in (configuring, syncing, looking, setting_up, serving, relaying, deploying):
    group.register(app)


def main() -> None:
    """What the `vaultferry` script calls."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="vaultferry")
