"""serve: the functions of function_app.py on this machine."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from shared.cli.session import FINE, ConfigOption, JsonOption, LevelOption, Session, begin


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    context: typer.Context,
    host: Annotated[
        str, typer.Option("--host", help="Others than loopback need VAULTFERRY_API_KEY in the environment.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 7071,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Run schedules, HTTP and queues on this machine, until Ctrl-C or SIGTERM."""
    session = begin(context, config, as_json, log_level, default_level="info")
    session.with_config(lambda _: _serve(session, host, port))


async def _serve(session: Session, host: str, port: int) -> int:
    from shared.config import SETTING, find_config
    from shared.logs import log_to

    log_to(sys.stderr, session.log_level)
    # function_app.py knows the environment only, as on Azure.
    os.environ[SETTING] = find_config(session.config_option, session.env)
    import function_app
    from shared.host import serve as serve_functions
    from shared.timer_loop import SqliteTicks

    def ready(url: str) -> None:
        if session.out.as_json:
            session.out.json({"url": url})
        session.out.line(f"Vaultferry answers at {url} (health: {url}/health). Ctrl-C stops it.")

    app = await function_app.lazy_app.get()
    try:
        await serve_functions(
            function_app.app,
            queues=app.queues,
            env=session.env,
            host=host,
            port=port,
            ticks=SqliteTicks(app.database) if app.database is not None else None,
            ready=ready,
        )
    finally:
        await function_app.lazy_app.aclose()
    return FINE
