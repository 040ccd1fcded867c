"""A relay as a process of its own: options and environment → a running relay, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import ConfigError
from shared.relay.addresses import Address, parse_http, parse_listen
from shared.relay.http_forward import HttpForward, check_url
from shared.relay.relay import Relay
from shared.relay.status import serve_status
from shared.signing import MIN_SECRET

log = logging.getLogger("vaultferry.relay")

API_KEY = "VAULTFERRY_API_KEY"
AUDIT_SECRET = "VAULTFERRY_AUDIT_SECRET"  # noqa: S105
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    listen: tuple[Address, ...]
    forward: str
    spool: str
    vault: str | None = None
    http: tuple[str, int] | None = None
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)


def read_options(
    listen: Sequence[str], forward: str, spool: str, vault: str | None, http: str | None, env: Mapping[str, str]
) -> Options:
    """Raises ConfigError."""
    if not listen:
        raise ConfigError("--listen is missing: where to listen, such as tcp://0.0.0.0:1269")
    # Of two, the app takes both; the first is the newer one.
    secret = (credential(env, AUDIT_SECRET) or "").partition(",")[0].strip() or None
    if secret is not None and len(secret) < MIN_SECRET:
        raise ConfigError(f"{AUDIT_SECRET} is too short: it has at least {MIN_SECRET} characters, on both sides")
    return Options(
        tuple(parse_listen(each) for each in listen),
        check_url(forward),
        spool,
        vault or None,
        parse_http(http) if http else None,
        credential(env, API_KEY),
        secret,
    )


def credential(env: Mapping[str, str], name: str) -> str | None:
    """From the environment, or from the file that NAME_FILE names. Raises ConfigError where that can not be read."""
    path = env.get(f"{name}_FILE")
    if not path:
        return env.get(name) or None
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        raise ConfigError(f"{name}_FILE names {path}, which can not be read or is empty")
    return text


async def run(options: Options) -> None:
    """Until SIGTERM or SIGINT. Raises ConfigError and StoreError when it can not begin."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    if options.secret is None:
        log.warning("%s is not set: what is forwarded is not signed", AUDIT_SECRET)
    async with contextlib.AsyncExitStack() as stack:
        forward = await stack.enter_async_context(HttpForward(options.forward, key=options.key, secret=options.secret))
        relay = await stack.enter_async_context(Relay(options.listen, options.spool, forward, vault=options.vault))
        if options.http is not None:
            url = await stack.enter_async_context(serve_status(relay, *options.http))
            log.info("health and metrics at %s", url)
        # A full collection would look through all that was loaded: some 20 ms in which nobody reads the sockets.
        gc.freeze()
        log.info("listening on %s", ", ".join(str(address) for address in relay.addresses))
        await stopping.wait()
        log.info("stopping")
    log.info("stopped; waiting for the next start: %d", relay.waiting)


# --- logs -------------------------------------------------------------------------------------------------------------


class JsonLines(logging.Formatter):
    """One JSON object a line, with the fields that the other logs have."""

    def format(self, record: logging.LogRecord) -> str:
        # No traceback: what others log about an exception repeats its text.
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        return json.dumps(
            {
                "time": moment.replace("+00:00", "Z"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage().partition("\n")[0],
            }
        )


def log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("vaultferry").setLevel(level.upper())
    logging.raiseExceptions = False
