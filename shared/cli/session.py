"""What every command has in common: its options, the configuration, and how failures are told.

Exit codes: 0 fine, 1 something failed, 2 the configuration or the use is wrong, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias

import typer

from shared.cli.output import BAD, QUIET, UNSURE, Output
from shared.errors import ConfigError, Refused, StoreError, SyncError, VaultError
from shared.host_settings import LOCAL_SETTINGS, read_local_settings

if TYPE_CHECKING:
    from shared.app import App
    from shared.config import Config
    from shared.model import Sync

log = logging.getLogger("vaultferry.cli")

FINE, FAILED, WRONG_USE, CHANGES, INTERRUPTED = 0, 1, 2, 3, 130


def _level(text: str | None) -> str | None:
    from shared.logs import LEVELS

    if text is not None and text.lower() not in LEVELS:
        raise typer.BadParameter(f"expected one of {', '.join(LEVELS)}")
    return text and text.lower()


def _from_environment() -> str | None:
    from shared.logs import LEVEL, LEVELS

    given = os.environ.get(LEVEL, "").strip().lower()
    return given if given in LEVELS else None


def _adopt_local_settings() -> tuple[list[str], ConfigError | None]:
    """Set what local.settings.json sets and the environment does not: a command and `func start` in the same folder work
    on the same store. Which names; or what is wrong with the file."""
    try:
        found = {name: value for name, value in read_local_settings().items() if not os.environ.get(name)}
    except ConfigError as error:
        return [], error
    os.environ.update(found)
    return sorted(found), None


ConfigOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "-c", "--config", metavar="FILE", help="Default: VAULTFERRY_CONFIG, else ./vaultferry.yaml.", show_default=False
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
LevelOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        metavar="LEVEL",
        help="debug, info, warning or error: what is logged on standard error.",
        show_default=False,
        callback=_level,
    ),
]


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes, before its name or behind it."""

    config: str | None = None
    as_json: bool = False
    log_level: str | None = None


class Session:
    """One command that is being carried out."""

    def __init__(
        self,
        context: typer.Context,
        config: str | None,
        as_json: bool,
        log_level: str | None,
        *,
        default_level: str,
        goes_on: str = "with the next `vaultferry sync`",
    ) -> None:
        """`goes_on` says when work goes on that a failing store has interrupted."""
        before: Common = context.obj or Common()
        self._settings, self._trouble = _adopt_local_settings()
        self.config_option = config or before.config
        self.out = Output(as_json=as_json or before.as_json)
        self.env = os.environ
        self._goes_on = goes_on
        self.log_level = log_level or before.log_level or _from_environment() or default_level

    def command(self, text: str) -> str:
        """A command to type next, with the configuration that this one was given."""
        given = f" -c {shlex.quote(self.config_option)}" if self.config_option else ""
        return f"vaultferry {text}{given}"

    # what commands work with ------------------------------------------------------------------------------------

    def config(self) -> Config:
        """The configuration. Raises ConfigError."""
        from shared.config import find_config, load

        return load(find_config(self.config_option, self.env), self.env)

    # carrying out -----------------------------------------------------------------------------------------------

    def with_app(self, body: Callable[[App], Awaitable[int]]) -> NoReturn:
        """Carry out a command on the opened installation, and exit with what it returns."""

        async def within(config: Config) -> int:
            from shared.app import App

            async with App(config, self.env) as app:
                return await body(app)

        self.with_config(within)

    def with_config(self, body: Callable[[Config], Awaitable[int]]) -> NoReturn:
        """Carry out a command that needs no store, and exit with what it returns."""
        from shared.event_loop import run

        async def main() -> int:
            return await body(config)

        with self.failures_told():
            config = self.config()
            raise typer.Exit(run(main()))
        raise AssertionError("failures_told lets nothing pass")

    @contextlib.contextmanager
    def failures_told(self) -> Iterator[None]:
        """Turn whatever is raised into a message and an exit code."""
        self._log()
        try:
            self._tell_settings()
            yield
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            self.out.note("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except SyncError as error:
            raise typer.Exit(self._tell(error)) from None
        except Exception as error:  # noqa: BLE001 - a person gets a message, whatever it is
            self._tell_unexpected(error)
            raise typer.Exit(FAILED) from None

    def _tell_settings(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        if self._settings:
            log.info("%s sets %s", LOCAL_SETTINGS, ", ".join(self._settings))

    def _log(self) -> None:
        from shared.cli.logs import to_stderr

        to_stderr(self.log_level)

    def _tell(self, error: SyncError) -> int:
        from shared.config.problems import InvalidConfig

        document: dict[str, Any] = {"error": str(error)}
        code = FAILED
        if isinstance(error, InvalidConfig):
            code = WRONG_USE
            document["problems"] = [
                {"file": p.file, "line": p.line, "key": p.key, "message": p.message, "hint": p.hint}
                for p in error.problems
            ]
            for problem in error.problems:
                where = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
                key = f"{problem.key}: " if problem.key else ""
                hint: list[str | tuple[str, str]] = [(f" ({problem.hint})", QUIET)] if problem.hint else []
                self.out.note(("error: ", BAD), f"{where}: {key}{problem.message}", *hint)
        else:
            next_step = self._next_step(error)
            if isinstance(error, ConfigError) or (isinstance(error, Refused) and error.unknown):
                code = WRONG_USE
            self.out.note(("error: ", BAD), str(error))
            if next_step:
                self.out.note(next_step)
        if self.out.as_json:
            self.out.json(document)
        return code

    def _next_step(self, error: SyncError) -> str:
        if isinstance(error, VaultError) and error.vault:
            return f"`{self.command(f'check {error.vault}')}` says what this vault is missing."
        if isinstance(error, StoreError) and error.transient:
            return f"Nothing is lost: what was under way goes on {self._goes_on}."
        return ""

    def _tell_unexpected(self, error: Exception) -> None:
        from shared.queue_loop import describe

        # The text of an exception that is not ours could quote a secret value, so it is never shown.
        self.out.note(("error: ", BAD), f"an unexpected failure: {describe(error)}")
        if self.log_level == "debug":
            sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        else:
            self.out.note("Once more with --log-level debug shows where it happened.")
        if self.out.as_json:
            self.out.json({"error": f"an unexpected failure: {describe(error)}"})

    def warn(self, text: str) -> None:
        self.out.note(("warning: ", UNSURE), text)


def begin(
    context: typer.Context,
    config: str | None,
    as_json: bool,
    log_level: str | None,
    *,
    default_level: str = "error",
) -> Session:
    """What a command starts with."""
    return Session(context, config, as_json, log_level, default_level=default_level)


def begin_service(context: typer.Context, config: str | None, as_json: bool, log_level: str | None) -> Session:
    """What a command starts with that runs until it is stopped."""
    goes_on = "when it is started again"
    return Session(context, config, as_json, log_level, default_level="info", goes_on=goes_on)


def chosen(config: Config, names: list[str] | None) -> list[Sync]:
    """The syncs that were named, or all that are enabled. Raises ConfigError."""
    from shared.config.problems import closest, listed

    if not names:
        enabled = [sync for sync in config.syncs.values() if sync.enabled]
        if not enabled:
            raise ConfigError("there is no enabled sync in the configuration")
        return enabled
    for name in names:
        if name not in config.syncs:
            hint = closest(name, config.syncs) or f"there are: {listed(config.syncs) or 'none'}"
            raise ConfigError(f"there is no sync {name!r} in the configuration ({hint})")
    return [config.syncs[name] for name in dict.fromkeys(names)]
