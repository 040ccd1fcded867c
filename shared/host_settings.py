"""What host.json and local.settings.json say to the Functions host, for those who do its work on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

HOST_JSON = Path(__file__).parent.parent / "host.json"
LOCAL_SETTINGS = Path("local.settings.json")
"""In the current folder, where `func start` looks for it."""

_TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d+):([0-5]?\d):([0-5]?\d)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Times in seconds. The defaults are those of our host.json, for where it was not installed along.

    What each setting means: https://learn.microsoft.com/azure/azure-functions/functions-bindings-storage-queue#host-json
    """

    batch_size: int = 16
    new_batch_threshold: int = 8
    max_dequeue_count: int = 5
    visibility_timeout: float = 30
    """Until a message whose handler failed is delivered again."""
    max_polling_interval: float = 2
    function_timeout: float = 600


def read_host_settings(path: Path = HOST_JSON) -> HostSettings:
    """The settings in host.json. Raises ConfigError when the file is there and not right."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return HostSettings()
    except (OSError, ValueError):
        raise ConfigError(f"{path} can not be read as JSON") from None
    try:
        queues: Mapping[str, Any] = document.get("extensions", {}).get("queues", {})
        default = HostSettings()
        batch_size = int(queues.get("batchSize", default.batch_size))
        return HostSettings(
            batch_size=batch_size,
            new_batch_threshold=int(queues.get("newBatchThreshold", batch_size // 2)),
            max_dequeue_count=int(queues.get("maxDequeueCount", default.max_dequeue_count)),
            visibility_timeout=_seconds(queues, "visibilityTimeout", default.visibility_timeout),
            max_polling_interval=_seconds(queues, "maxPollingInterval", default.max_polling_interval),
            function_timeout=_seconds(document, "functionTimeout", default.function_timeout),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def read_local_settings(path: Path = LOCAL_SETTINGS) -> dict[str, str]:
    """What stands for environment variables that are not set (`Values`), but for what is left empty there; nothing when
    there is no such file. Raises ConfigError, which quotes nothing of it.

    https://learn.microsoft.com/azure/azure-functions/functions-develop-local#local-settings-file
    """
    problem = None
    document: Any = None
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        problem = f"{path} can not be read: {error.strerror}"
    except json.JSONDecodeError as error:
        problem = f"{path}:{error.lineno}: not JSON"
    except (ValueError, RecursionError):
        problem = f"{path} is not JSON in UTF-8"
    if problem:
        raise ConfigError(problem)
    values = document.get("Values", {}) if isinstance(document, dict) else None
    if not isinstance(values, dict):
        raise ConfigError(f'{path} must be {{"Values": {{NAME: TEXT}}}}, as in local.settings.example.json')
    if document.get("IsEncrypted"):
        raise ConfigError(f"{path} is encrypted: `func settings decrypt` writes it in the clear")
    for name, value in values.items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {name} must be text, in quotes")
        if not name or "=" in name or "\0" in name + value:
            raise ConfigError(f"{path}: {name!r} can not be an environment variable")
    return {name: value for name, value in values.items() if value}


def _seconds(settings: Mapping[str, Any], name: str, default: float) -> float:
    """A .NET TimeSpan, `[d.]hh:mm:ss`."""
    text = settings.get(name)
    if text is None:
        return default
    match = _TIME_SPAN.fullmatch(str(text))
    if match is None:
        raise ValueError(f'{name} must be a time such as "00:00:30"')
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
