"""relay: what a Vault's audit log tells, handed on to an app."""

from __future__ import annotations

from typing import Annotated

import typer

from shared.cli.session import FINE, LevelOption, begin_service


def register(app: typer.Typer) -> None:
    app.command()(relay)


def relay(
    context: typer.Context,
    listen: Annotated[
        list[str],
        typer.Option(
            "--listen", metavar="URL", help="udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH[?mode=0660]; repeatable."
        ),
    ],
    forward: Annotated[
        str,
        typer.Option("--forward", metavar="URL", help="The app's address, which ends in /audit. Plain http: loopback."),
    ],
    spool: Annotated[str, typer.Option("--spool", metavar="DIR", help="Where to keep what is not forwarded yet.")],
    vault: Annotated[
        str | None,
        typer.Option(
            "--vault", metavar="ID", help="What the app's configuration calls this Vault.", show_default=False
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Answer /health and /metrics there.", show_default=False),
    ] = None,
    log_level: LevelOption = None,
) -> None:
    """Listen to a Vault's audit device, and tell an app which secrets to look at, until Ctrl-C or SIGTERM.

    VAULTFERRY_API_KEY (or the file that VAULTFERRY_API_KEY_FILE names) is sent along; VAULTFERRY_AUDIT_SECRET (or
    VAULTFERRY_AUDIT_SECRET_FILE) signs what is sent, and stays here.
    """
    from shared.event_loop import run as run_loop
    from shared.relay.process import log_to_stderr, read_options, run

    session = begin_service(context, None, False, log_level)
    with session.failures_told():
        log_to_stderr(session.log_level)
        run_loop(run(read_options(listen, forward, spool, vault, http, session.env)))
        raise typer.Exit(FINE)
