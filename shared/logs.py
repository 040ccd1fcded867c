"""Logs: one JSON object a line, with run, sync, target, path and attempt, the invocation's trace id, and no secret.

Modules log to `vaultferry.*` with the standard library and put their fields into `extra`. What is done with that:
- `log_to(stream)`: lines on a stream, for the command line and `serve`.
- `log_to_host()`: lines handed to the root logger's handlers, for the Functions worker. Its own handlers stay as they
  are and alone, for a handler of ours on the root, or `basicConfig(force=True)`, would take the logs from the host.
  It drops debug records, so asked-for ones travel as info; their line still says debug.
- With APPLICATIONINSIGHTS_CONNECTION_STRING set and `azure-monitor-opentelemetry` installed (the extra `telemetry`),
  traces and logs go to Application Insights by OpenTelemetry as well. On Azure Functions set `"telemetryMode":
  "OpenTelemetry"` in host.json then, or each line arrives twice
  (https://learn.microsoft.com/azure/azure-functions/opentelemetry-howto).

`VAULTFERRY_LOG_LEVEL` (debug, info, warning, error) says how much; info by default.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from shared.errors import ConfigError

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

LEVEL = "VAULTFERRY_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
TELEMETRY = "APPLICATIONINSIGHTS_CONNECTION_STRING"
NAME = "vaultferry"
CHATTY = (
    # Not "azure" as a whole: the Functions worker's own loggers are below it.
    *(f"azure.{name}" for name in ("core", "data", "identity", "keyvault", "monitor", "storage")),
    *("hvac", "urllib3", "httpx", "httpcore", "aiohttp", "asyncio", "uvicorn"),
)
"""Libraries whose loggers tell of requests, and some of headers: only warnings of theirs are let through."""

_trace: ContextVar[Mapping[str, str] | None] = ContextVar("vaultferry_trace", default=None)


@contextlib.contextmanager
def invocation(trace_parent: str, invocation_id: str) -> Iterator[None]:
    """Put the trace id (https://www.w3.org/TR/trace-context/) and the invocation's on all that is logged inside."""
    parts = trace_parent.split("-")
    fields = {"trace_id": parts[1] if len(parts) == 4 else "", "invocation_id": invocation_id}
    token = _trace.set({name: value for name, value in fields.items() if value})
    try:
        yield
    finally:
        _trace.reset(token)


# --- where lines go -----------------------------------------------------------------------------------------------


def log_to(stream: TextIO, level: str | None = None, env: Mapping[str, str] = os.environ) -> None:
    """Write lines to `stream`. `level` wins over the environment. Raises ConfigError for a level that there is not."""
    handler = logging.StreamHandler(stream)
    _install(handler, _level(level, env), env)


def log_to_host(env: Mapping[str, str] = os.environ) -> None:
    """Hand lines to the root logger's handlers, unless they go somewhere already, as under `serve`.

    A level in the environment that there is not is said, not raised.
    """
    if _ours():
        return
    try:
        level = _level(None, env)
    except ConfigError as error:
        level = logging.INFO
        logging.getLogger(NAME).warning("%s; info is used", error)
    _install(_ToRoot(), level, env)


def _level(level: str | None, env: Mapping[str, str]) -> int:
    given = (level or env.get(LEVEL) or "info").strip().lower()
    if given not in LEVELS:
        raise ConfigError(f"{'--log-level' if level else LEVEL} must be one of {', '.join(LEVELS)}")
    return getattr(logging, given.upper())  # type: ignore[no-any-return]


def _install(handler: logging.Handler, level: int, env: Mapping[str, str]) -> None:
    logger = logging.getLogger(NAME)
    for old in _ours():
        logger.removeHandler(old)
    handler.of_vaultferry = True  # type: ignore[attr-defined]
    handler.setFormatter(_formatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if env.get(TELEMETRY):
        _export(logger)


def _ours() -> list[logging.Handler]:
    return [handler for handler in logging.getLogger(NAME).handlers if getattr(handler, "of_vaultferry", False)]


class _ToRoot(logging.Handler):
    """Hands a copy of each record, already rendered, to whatever handles the root logger's records."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)
            return
        level = max(record.levelno, logging.INFO)
        copy = logging.LogRecord(record.name, level, record.pathname, record.lineno, line, None, None)
        logging.getLogger().handle(copy)


def _export(logger: logging.Logger) -> None:
    try:
        from azure.monitor.opentelemetry import configure_azure_monitor  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        # On Azure the host sends what it is handed, so nothing is amiss there.
        logger.info("azure-monitor-opentelemetry is not installed: %s is left to the host, if there is one", TELEMETRY)
        return
    if any(isinstance(each, RedactingFilter) for handler in logger.handlers for each in handler.filters):
        return
    before = set(logger.handlers)
    configure_azure_monitor(logger_name=NAME)
    for handler in set(logger.handlers) - before:
        handler.addFilter(RedactingFilter())


# --- how a line looks ---------------------------------------------------------------------------------------------


def _formatter() -> ProcessorFormatter:
    import structlog

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.ExtraAdder(),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _add_trace,
            _describe_exception,
            redact,
            _in_order,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ],
    )


def _add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in (_trace.get() or {}).items():
        event.setdefault(name, value)
    return event


def _describe_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception's type and place. Its text, and the frames of others, could quote a value."""
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        from shared.queue_loop import describe

        event["exception"] = describe(error)
    event.pop("stack_info", None)
    return event


_FIRST = ("time", "level", "logger")


def _in_order(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    head = {name: event.pop(name) for name in _FIRST if name in event}
    return {**head, "message": event.pop("event", ""), **event}


# --- redaction ----------------------------------------------------------------------------------------------------

HIDDEN = "[redacted]"

_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_.\-])(?:password|passwd|passphrase|secret|token|api[_\-]?key|account[_\-]?key|private[_\-]?key|"
    r"authorization|credential|connection[_\-]?string|signature|cookie|value|values|fields|body)s?$"
)
_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Authorization headers, whoever wrote them down.
        (r"(?i)\b(bearer|basic|sharedkey(?:lite)?)\s+[A-Za-z0-9+/=_.:~\-]{8,}", rf"\1 {HIDDEN}"),
        (r"(?i)\b(x-vault-token|x-functions-key|x-api-key|authorization)(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;]+",
         rf"\1\2{HIDDEN}"),
        # Vault's tokens: service, batch, recovery, and those before 1.10
        # (https://developer.hashicorp.com/vault/docs/concepts/tokens#token-prefixes).
        (r"\b(?:hv[sbr]\.[A-Za-z0-9_-]{8,}|[sbr]\.[A-Za-z0-9]{24,})", HIDDEN),
        # JSON web tokens (https://www.rfc-editor.org/rfc/rfc7519).
        (r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*", HIDDEN),
        # Signatures of shared access, and function keys, in addresses.
        (r"(?i)([?&;](?:sig|code|sv_sig|token|key)=)[^&\s'\"]+", rf"\1{HIDDEN}"),
        # Connection strings.
        (r"(?i)\b((?:AccountKey|SharedAccessKey|SharedAccessSignature|InstrumentationKey|Password|Pwd)=)[^;\s'\"]+",
         rf"\1{HIDDEN}"),
        # Passwords in addresses.
        (r"(://[^/\s:@]*:)[^/\s@]+@", rf"\1{HIDDEN}@"),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", HIDDEN),
    )
)  # fmt: skip


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last line of defence, as a structlog processor: what looks like a secret is hidden, by its key or by its look.

    Nothing that Vaultferry logs holds one on purpose; this is for what a server or a library may say.
    """
    for key in list(event):
        event[key] = _hidden(key, event[key])
    return event


def _hidden(key: str, value: Any) -> Any:
    if _SECRET_KEY.search(key) and value is not None and not isinstance(value, bool | int | float):
        return HIDDEN
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {inner: _hidden(str(inner), held) for inner, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(key, held) for held in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_text(str(value))


def redact_text(text: str) -> str:
    """A text without what looks like a credential."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime"}


class RedactingFilter(logging.Filter):
    """The same for handlers that look at records rather than at lines: each record is hidden in place."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact_text(record.getMessage()), None
        if record.exc_info is not None and record.exc_info[1] is not None:
            from shared.queue_loop import describe

            record.msg = f"{record.msg} ({describe(record.exc_info[1])})"
            record.exc_info = record.exc_text = None
        for key in [key for key in vars(record) if key not in _STANDARD]:
            setattr(record, key, _hidden(key, getattr(record, key)))
        return True
