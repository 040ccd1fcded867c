"""What a configuration alone says about a vault's names is what the open vault says, too."""

from __future__ import annotations

from typing import Any

import pytest

from shared import vaults
from shared.vault import NameRule
from shared.vaults.hashicorp.kv import _V1, _V2
from shared.vaults.http_api.settings import Names

GIVEN: dict[str, dict[str, Any]] = {
    "azure_key_vault": {"url": "https://hub.vault.azure.net"},
    "file": {"path": "/x", "key": "k" * 20},
    "hashicorp": {"address": "https://vault.example", "auth": {"method": "token", "token": "t"}},
    "vaultwarden": {"url": "https://warden.example", "email": "a@example", "password": "p"},
    "http_api": {
        "base_url": "https://api.example",
        "auth": {"type": "none"},
        "operations": {
            "list": {"path": "/s", "items": "[]", "name": "@"},
            "get": {"path": "/s/{name}", "value": "value"},
        },
        "names": {"allowed": "[A-Z0-9_]", "replacement": "_", "upper_case": True, "max_length": 50},
    },
}


def settings_of(kind: str) -> Any:
    return vaults.kinds()[kind].Settings.model_validate({"kind": kind, **GIVEN[kind]})


@pytest.mark.parametrize("kind", sorted(GIVEN))
def test_a_kind_says_its_names_before_it_is_opened(kind: str) -> None:
    rule = settings_of(kind).name_rule("secrets")
    if kind == "hashicorp":  # Its version is only known once it is open.
        assert rule == _V1.names == _V2.names
    else:
        assert rule == vaults.kinds()[kind].connect("v", settings_of(kind)).capabilities.names


def test_policies_have_a_rule_of_their_own() -> None:
    settings = settings_of("hashicorp")
    vault = vaults.kinds()["hashicorp"].connect("v", settings, "policies")
    assert settings.name_rule("policies") == vault.capabilities.names
    assert settings.name_rule("policies").ignores_case


def test_names_of_an_api_are_as_it_was_configured() -> None:
    rule = settings_of("http_api").name_rule("secrets")
    assert rule.fit("db-main") == "DB_MAIN"
    assert rule.max_length == 50
    plain = settings_of("http_api").model_copy(update={"names": Names()})
    assert plain.name_rule("secrets") == NameRule()
