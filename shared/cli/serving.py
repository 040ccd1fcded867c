"""serve: the functions of function_app.py on this machine."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.session import FINE, ConfigOption, JsonOption, LevelOption, Session, begin_service

if TYPE_CHECKING:
    from shared.app import App
    from shared.relay.addresses import Address
    from shared.relay.forwarder import Batch
    from shared.relay.relay import Relay


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    context: typer.Context,
    host: Annotated[
        str, typer.Option("--host", help="Others than loopback need VAULTFERRY_API_KEY in the environment.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 7071,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="URL",
            help="Be the relay too: udp://HOST:PORT, tcp://HOST:PORT or unix:///PATH[?mode=0660]; repeatable.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Run schedules, HTTP and queues on this machine, until Ctrl-C or SIGTERM."""
    session = begin_service(context, config, as_json, log_level)

    async def within(_: object) -> int:
        from shared.relay.addresses import parse_listen

        return await _serve(session, host, port, [parse_listen(each) for each in listen or ()])

    session.with_config(within)


async def _serve(session: Session, host: str, port: int, listen: list[Address]) -> int:
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

    async with contextlib.AsyncExitStack() as stack:
        app = await function_app.lazy_app.get()
        stack.push_async_callback(function_app.lazy_app.aclose)
        if listen:
            app.relay = await stack.enter_async_context(_relay(app, listen))
        # A full collection would look through all that was loaded: some 200 ms in which nothing else is done.
        gc.freeze()
        await serve_functions(
            function_app.app,
            queues=app.queues,
            env=session.env,
            host=host,
            port=port,
            ticks=SqliteTicks(app.database) if app.database is not None else None,
            ready=ready,
        )
    return FINE


def _relay(app: App, listen: list[Address]) -> Relay:
    """A relay that hands over to the app itself. What it has not handed over yet lies beside the store."""
    from shared.relay.forwarder import Answer
    from shared.relay.relay import Relay

    async def take(batch: Batch) -> Answer:
        return Answer(heeded=any(await app.engine.events.take(batch.notices)))

    spool = Path("vaultferry.relay") if app.database is None else app.database.path.with_suffix(".relay")
    return Relay(listen, spool, take)
