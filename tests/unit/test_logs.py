"""Log lines: their fields, where they go, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.logs import CHATTY, HIDDEN, RedactingFilter, invocation, log_to, log_to_host, redact_text

CANARY = "canary-5e9b"
NAMES = ("vaultferry", *CHATTY)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    saved = [(each, each.handlers[:], each.level, each.propagate) for each in (root, *map(logging.getLogger, NAMES))]
    yield
    for logger, handlers, level, propagate in saved:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# --- lines --------------------------------------------------------------------------------------------------------


def test_a_record_becomes_one_line_of_json_with_its_fields() -> None:
    stream = io.StringIO()
    log_to(stream)
    where = {"run": "r1", "sync": "hub-to-prod", "target": "prod", "path": "apps/ü", "attempt": 2}
    logging.getLogger("vaultferry.writer").warning("tried %s\nagain", "it", extra=where)
    (line,) = lines(stream)
    assert list(line)[:4] == ["time", "level", "logger", "message"]
    assert line["time"].endswith("Z")
    assert {
        "level": "warning",
        "logger": "vaultferry.writer",
        "message": "tried it\nagain",
        **where,
    }.items() <= line.items()
    assert stream.getvalue().count("\n") == 1
    assert "ü" in stream.getvalue()


def test_lines_of_an_invocation_carry_its_trace() -> None:
    stream = io.StringIO()
    log_to(stream)
    log = logging.getLogger("vaultferry.api")
    with invocation(PARENT, "i-1"):
        log.info("inside")
    with invocation("", "i-2"):
        log.info("without a trace")
    log.info("outside")
    first, second, third = lines(stream)
    assert (first["trace_id"], first["invocation_id"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "i-1")
    assert ("trace_id" in second, second["invocation_id"]) == (False, "i-2")
    assert "invocation_id" not in third


def test_the_level_is_the_arguments_then_the_environments_then_info() -> None:
    for level, env, expected in [
        (None, {}, ["info"]),
        (None, {"VAULTFERRY_LOG_LEVEL": "DEBUG"}, ["debug", "info"]),
        ("error", {"VAULTFERRY_LOG_LEVEL": "debug"}, []),
    ]:
        stream = io.StringIO()
        log_to(stream, level, env)
        log = logging.getLogger("vaultferry.x")
        log.debug("d")
        log.info("i")
        assert [line["level"] for line in lines(stream)] == expected


def test_a_level_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--log-level must be one of debug, info"):
        log_to(io.StringIO(), "loud")
    with pytest.raises(ConfigError, match=r"VAULTFERRY_LOG_LEVEL must be one of"):
        log_to(io.StringIO(), None, {"VAULTFERRY_LOG_LEVEL": "loud"})


def test_setting_it_up_twice_writes_each_line_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    log_to(first)
    log_to(second)
    logging.getLogger("vaultferry.x").info("once")
    assert (lines(first), len(lines(second))) == ([], 1)


def test_libraries_that_log_requests_are_kept_to_warnings() -> None:
    log_to(io.StringIO(), "debug")
    policy = "azure.core.pipeline.policies.http_logging_policy"
    for name in (policy, "urllib3.connectionpool", "hvac.adapters", "httpx"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)


# --- under the Functions worker -----------------------------------------------------------------------------------


def test_the_host_gets_rendered_lines_through_its_own_handlers() -> None:
    host = Kept()
    root = logging.getLogger()
    root.addHandler(host)
    before = root.handlers[:]
    log_to_host({})
    logging.getLogger("vaultferry.runs").info("run queued", extra={"run": "r1"})
    logging.getLogger("vaultferry.runs").debug("not asked for")
    assert root.handlers == before
    (record,) = host.records
    line = json.loads(record.getMessage())
    assert (record.name, record.levelname, line["message"], line["run"]) == (
        "vaultferry.runs",
        "INFO",
        "run queued",
        "r1",
    )


def test_debug_lines_on_demand_pass_a_host_that_drops_debug_records() -> None:
    host = Kept()
    logging.getLogger().addHandler(host)
    log_to_host({"VAULTFERRY_LOG_LEVEL": "debug"})
    logging.getLogger("vaultferry.x").debug("details")
    (record,) = host.records
    assert (record.levelno, json.loads(record.getMessage())["level"]) == (logging.INFO, "debug")


def test_a_wrong_level_in_the_hosts_environment_is_said_and_info_is_used() -> None:
    host = Kept()
    logging.getLogger().addHandler(host)
    log_to_host({"VAULTFERRY_LOG_LEVEL": "loud"})
    logging.getLogger("vaultferry.x").info("works")
    assert "VAULTFERRY_LOG_LEVEL" in host.records[0].getMessage()
    assert json.loads(host.records[-1].getMessage())["message"] == "works"


def test_what_serve_has_set_up_stays() -> None:
    stream = io.StringIO()
    log_to(stream)
    log_to_host({})
    logging.getLogger("vaultferry.x").info("here")
    assert [line["message"] for line in lines(stream)] == ["here"]


# --- telemetry ----------------------------------------------------------------------------------------------------


def test_without_the_package_telemetry_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.monitor.opentelemetry", None)
    stream = io.StringIO()
    log_to(stream, None, {"APPLICATIONINSIGHTS_CONNECTION_STRING": f"InstrumentationKey={CANARY}"})
    (line,) = lines(stream)
    assert "azure-monitor-opentelemetry is not installed" in line["message"]
    assert CANARY not in stream.getvalue()


def test_what_is_exported_is_redacted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = Kept()
    package = types.ModuleType("azure.monitor.opentelemetry")
    calls: list[str] = []

    def configure_azure_monitor(*, logger_name: str) -> None:
        calls.append(logger_name)
        logging.getLogger(logger_name).addHandler(exporter)

    package.configure_azure_monitor = configure_azure_monitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "azure.monitor.opentelemetry", package)
    env = {"APPLICATIONINSIGHTS_CONNECTION_STRING": "InstrumentationKey=0"}
    log_to(io.StringIO(), None, env)
    log_to(io.StringIO(), None, env)
    logging.getLogger("vaultferry.x").info(
        "Authorization: Bearer %s", CANARY * 2, extra={"password": CANARY, "run": "r"}
    )
    (record,) = exporter.records
    assert calls == ["vaultferry"]
    assert vars(record)["run"] == "r"
    assert CANARY not in f"{vars(record)}"


# --- redaction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {CANARY}abcdef",
        f"authorization={CANARY}",
        f"{{'X-Vault-Token': '{CANARY}'}}",
        f"token hvs.CAESI{CANARY}xxxx was refused",
        f"hvb.{CANARY}{CANARY}",
        "s." + CANARY.replace("-", "") * 3,
        f"eyJhbGciOiJIUzI1NiJ9.eyJ{CANARY}.{CANARY}",
        f"https://x.blob.core.windows.net/c/b?sv=1&sig={CANARY}%3D&se=2",
        f"http://127.0.0.1/syncs?code={CANARY}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}==;EndpointSuffix=x",
        f"https://user:{CANARY}@vault.example/v1",
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}",
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str) -> None:
    assert CANARY not in redact_text(text)
    assert CANARY.replace("-", "") not in redact_text(text)
    assert HIDDEN in redact_text(text)
    stream = io.StringIO()
    log_to(stream)
    logging.getLogger("vaultferry.x").error(
        "%s", text, extra={"error": text, "deep": {"list": [text, {"token": CANARY}]}}
    )
    assert CANARY not in stream.getvalue()
    assert CANARY.replace("-", "") not in stream.getvalue()


@pytest.mark.parametrize(
    "key", ["password", "client_secret", "VAULT_TOKEN", "apiKey", "api-key", "x.token", "value", "fields"]
)
def test_a_field_that_is_called_like_a_secret_is_hidden(key: str) -> None:
    stream = io.StringIO()
    log_to(stream)
    logging.getLogger("vaultferry.x").info("m", extra={key: CANARY})
    (line,) = lines(stream)
    assert line[key] == HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        "prod:apps/token/password: the secret is not there",
        "vault hub answered 403: permission denied on secret/data/apps/basic auth",
        "20261122-174429-123456-9f3c1a",
        "http://127.0.0.1:8200/v1/secret/data/apps/db?version=3",
    ],
)
def test_what_is_no_credential_stays_readable(text: str) -> None:
    assert redact_text(text) == text


def test_an_exceptions_text_is_not_told() -> None:
    stream, exported = io.StringIO(), Kept()
    log_to(stream)
    exported.addFilter(RedactingFilter())
    logging.getLogger("vaultferry").addHandler(exported)
    try:
        int(CANARY)
    except ValueError:
        logging.getLogger("vaultferry.x").exception("it failed")
    (line,) = lines(stream)
    assert line["exception"].startswith("ValueError at test_logs.py:")
    assert CANARY not in stream.getvalue()
    (record,) = exported.records
    assert "ValueError" in record.getMessage()
    assert CANARY not in logging.Formatter().format(record)
