"""The stack that a person with Docker starts: what can be said of it without Docker."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from shared.config.build import parse

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "sandbox"


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    return document


def test_its_configuration_is_valid_and_names_the_stacks_own_vaults() -> None:
    text = (FOLDER / "vaultferry.yaml").read_bytes()
    config = parse(text, {"VAULT_TOKEN": "sandbox"}, "vaultferry.yaml")
    assert all("plain http" in warning for warning in config.warnings)
    services = compose()["services"]
    for vault_id, settings in config.vaults.items():
        assert str(settings.address) == f"http://{vault_id}:8200"  # type: ignore[attr-defined]
        assert vault_id in services


def test_what_it_builds_and_mounts_is_there() -> None:
    for name, service in compose()["services"].items():
        if "build" in service:
            context = FOLDER / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file(), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).is_file(), name


def test_the_functions_image_copies_what_is_there() -> None:
    root = FOLDER.parents[1]
    for line in (FOLDER / "functions.Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (root / source).exists(), line


def test_nothing_is_reachable_from_other_machines() -> None:
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_relay_and_the_app_share_key_and_secret() -> None:
    services = compose()["services"]
    relay, app = services["relay"]["environment"], services["functions"]["environment"]
    assert relay["VAULTFERRY_AUDIT_SECRET"] == app["VAULTFERRY_AUDIT_SECRET"]
    keys = json.loads((FOLDER / "function-keys.json").read_text("utf-8"))["functionKeys"]
    assert relay["VAULTFERRY_API_KEY"] == keys[0]["value"]


def test_the_relay_listens_where_the_audit_device_will_send() -> None:
    services = compose()["services"]
    setup = services["setup"]["command"]
    host, _, port = setup[setup.index("--address") + 1].partition(":")
    # It shares the network of that service.
    assert services["relay"]["network_mode"] == f"service:{host}"
    listeners = [word for word in services["relay"]["command"] if word.startswith("--listen=")]
    assert all(re.search(rf":{port}$", word) for word in listeners)
