"""host.json: read here as the Functions host reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.host_settings import HOST_JSON, HostSettings, read_host_settings


def write(path: Path, document: Any) -> Path:
    file = path / "host.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def test_what_is_not_installed_along_has_the_same_settings(tmp_path: Path) -> None:
    assert HOST_JSON.exists()
    assert read_host_settings() == read_host_settings(tmp_path / "absent.json") == HostSettings()


def test_azure_hands_messages_over_as_we_send_them() -> None:
    document = json.loads(HOST_JSON.read_text())
    assert document["version"] == "2.0"
    assert document["extensions"]["queues"]["messageEncoding"] == "base64"
    assert document["extensions"]["http"]["routePrefix"] == ""
    assert document["extensionBundle"]["version"] == "[4.*, 5.0.0)"


def test_every_setting_is_read(tmp_path: Path) -> None:
    queues = {"batchSize": 4, "maxDequeueCount": 2, "visibilityTimeout": "00:01:30", "maxPollingInterval": "00:00:05"}
    file = write(tmp_path, {"functionTimeout": "1.00:00:01", "extensions": {"queues": queues}})
    assert read_host_settings(file) == HostSettings(4, 2, 2, 90, 5, 86401)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        {"functionTimeout": "five minutes"},
        {"functionTimeout": "-1"},
        {"extensions": {"queues": {"batchSize": "many"}}},
        {"extensions": {"queues": 3}},
    ],
)
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, document: Any) -> None:
    with pytest.raises(ConfigError, match=r"host\.json"):
        read_host_settings(write(tmp_path, document))
