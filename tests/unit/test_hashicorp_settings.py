"""What the configuration of a hashicorp vault may say, and what it costs to have one configured."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import ConfigError
from shared.vaults.hashicorp import Settings, connect

VARIABLES = [
    "VAULT_ADDR",
    "VAULT_TOKEN",
    "VAULT_CACERT",
    "VAULT_CLIENT_CERT",
    "VAULT_CLIENT_KEY",
    "VAULT_NAMESPACE",
    "VAULT_SKIP_VERIFY",
]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def settings(**given: Any) -> Settings:
    given.setdefault("address", "https://vault.example:8200")
    given.setdefault("auth", {"method": "token", "token": "hvs.x"})
    return Settings(kind="hashicorp", **{key: value for key, value in given.items() if value is not ...})


def test_the_usual_variables_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "https://from.env:8200/")
    monkeypatch.setenv("VAULT_TOKEN", "hvs.env\n")
    monkeypatch.setenv("VAULT_CACERT", "/ca.pem")
    monkeypatch.setenv("VAULT_CLIENT_CERT", "/c.pem")
    monkeypatch.setenv("VAULT_CLIENT_KEY", "/k.pem")
    monkeypatch.setenv("VAULT_NAMESPACE", "team/a/")
    found = Settings(kind="hashicorp")
    assert (found.url, found.ca_bundle, found.client_cert, found.client_key, found.namespace) == (
        "https://from.env:8200",
        "/ca.pem",
        "/c.pem",
        "/k.pem",
        "team/a",
    )
    assert found.auth.method == "token"
    assert found.auth.token is not None
    assert found.auth.token.get_secret_value() == "hvs.env"


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "https://from.env:8200")
    monkeypatch.setenv("VAULT_NAMESPACE", "env")
    assert settings(address="http://127.0.0.1:8200/v1/", namespace="mine").url == "http://127.0.0.1:8200"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"address": ...}, "VAULT_ADDR"),
        ({"auth": ...}, "VAULT_TOKEN"),
        ({"auth": {"method": "token", "token": "  "}}, "VAULT_TOKEN"),
        ({"address": "vault.example:8200"}, "such as https://"),
        ({"address": "ftp://vault.example"}, "such as https://"),
        ({"address": "https://user:pw@vault.example"}, "credentials belong under auth"),
        ({"address": "https://vault.example/?a=b"}, "only scheme, host, port"),
        ({"mount": ""}, "such as 'secret'"),
        ({"mount": "a//b"}, "such as 'secret'"),
        ({"mount": "../sys"}, "such as 'secret'"),
        ({"namespace": "a/../b"}, "such as 'secret'"),
        ({"auth": {"method": "approle", "role_id": "x", "mount": "../sys"}}, "such as 'secret'"),
        ({"client_key": "/k.pem"}, "without client_cert"),
        ({"kv_version": 3}, "1"),
        ({"auth": {"method": "userpass"}}, "approle"),
        ({"auth": {"method": "approle"}}, "role_id"),
        ({"skip_verify": True}, "skip_verify"),
    ],
)
def test_what_can_not_be_right_is_refused_with_the_reason(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**given)
    assert told in str(caught.value)


def test_credentials_show_neither_in_a_repr_nor_in_a_validation_error() -> None:
    canary = "canary-7d1f"
    good = [
        {"method": "token", "token": canary},
        {"method": "approle", "role_id": "r", "secret_id": canary},
        {"method": "jwt", "role": "r", "jwt": canary},
    ]
    assert canary not in "".join(repr(settings(auth=each)) for each in good)
    with pytest.raises(ValidationError) as caught:
        settings(auth={"method": "approle", "secret_id": canary, "role": canary}, address=f"ftp://{canary}")
    assert canary not in str(caught.value)


def test_a_resource_that_this_kind_does_not_have_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="policies"):
        connect("hub", settings(), "certificates")


def test_a_configured_vault_loads_no_sdk() -> None:
    code = (
        "import sys; from shared.vaults.hashicorp import Settings, connect; "
        "Settings(kind='hashicorp', address='http://x', auth={'method': 'token', 'token': 't'}); "
        "sys.exit(', '.join({'hvac', 'aiohttp', 'requests', 'azure.identity'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_token_hides_no_other_mistake() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"kind": "hashicorp", "adress": "https://vault.example"})
    assert [error["loc"] for error in caught.value.errors()] == [("address",), ("auth", "token", "token"), ("adress",)]
