"""What the configuration may say about a Vaultwarden."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import ConfigError
from shared.vaults.vaultwarden import Settings, connect

GOOD = {"kind": "vaultwarden", "url": "https://vw.example/", "email": " me@example.org ", "password": "p"}


def settings(**more: Any) -> Settings:
    return Settings(**(GOOD | more))


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://vw.example/", "https://vw.example"),
        ("https://vw.example:8443/vault/", "https://vw.example:8443/vault"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_may_have_a_path_and_is_https_but_to_this_machine(url: str, kept: str) -> None:
    assert settings(url=url).url == kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"url": "http://vw.example"}, "expected https"),
        ({"url": "http://127.0.0.1.example"}, "expected https"),
        ({"url": "vw.example"}, "expected an address"),
        ({"url": "https://me:secret@vw.example"}, "without credentials"),
        ({"url": "https://vw.example?x=1"}, "without credentials or a query"),
        ({"url": "https://vw.example:99999"}, "expected an address"),
        ({"email": "nobody"}, "e-mail"),
        ({"password": ""}, "at least 1"),
        ({"client_id": "user.1"}, "go together"),
        ({"client_secret": "x"}, "go together"),
        ({"client_id": "organization.1", "client_secret": "x"}, "API key of an account"),
        ({"organization": "Ops"}, "go together"),
        ({"collection": "Prod"}, "go together"),
        ({"organization": "Ops", "collection": "Prod", "folder": "x"}, "leave it out"),
        ({"folder": "a//b"}, "as the web vault shows it"),
        ({"folder": "a/"}, "as the web vault shows it"),
        ({"delete_mode": "burn"}, "'trash' or 'permanent'"),
    ],
)
def test_what_can_not_be_meant_is_refused_without_being_quoted(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        settings(**more)
    assert "secret@" not in str(caught.value)


def test_the_password_is_not_shown() -> None:
    shown = repr(settings(password="canary", client_id="user.1", client_secret="canary"))
    assert "canary" not in shown


def test_an_email_is_trimmed() -> None:
    assert settings().email == "me@example.org"


def test_only_secrets_are_carried() -> None:
    with pytest.raises(ConfigError, match="not policies"):
        connect("family", settings(), "policies")


def test_a_ca_bundle_that_can_not_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"family: the ca_bundle /nowhere\.pem can not be read"):
        connect("family", settings(ca_bundle="/nowhere.pem"))
