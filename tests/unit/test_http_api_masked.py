"""What the four APIs hand out in place of a value, and what they call a success that is none: by the examples."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from shared.errors import InvalidSecret, Unsupported, VaultError
from shared.model import Secret
from shared.vault import Vault
from shared.vaults.http_api import Settings, connect

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HIDDEN = "<hidden-by-infisical>"


class Server:
    def __init__(self) -> None:
        self.url = ""
        self.answer: Callable[[web.Request], Any] = lambda request: {}

    async def handle(self, request: web.Request) -> web.Response:
        answered = self.answer(request)
        return answered if isinstance(answered, web.Response) else web.json_response(answered)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def vault_of(example: str, server: Server) -> Vault:
    text = (EXAMPLES / f"http-api-{example}.yaml").read_text()
    text = re.sub(r"\$\{[A-Z_]+:-(http[^}]*)\}|\$\{OP_CONNECT_HOST\}", server.url, text)
    vaults = yaml.safe_load(re.sub(r"\$\{[A-Z_]+(?::-([^}]*))?\}", lambda match: match[1] or "x", text))["vaults"]
    [given] = [each for each in vaults.values() if each["kind"] == "http_api"]
    return connect(example, Settings.model_validate(given | {"requests_per_second": 1_000}))


@pytest.mark.parametrize(
    ("example", "name", "answer", "kind"),
    [
        ("infisical", "A", {"secret": {"secretValue": HIDDEN, "secretValueHidden": True}}, InvalidSecret),
        ("gitlab", "A", {"key": "A", "value": None, "masked": True, "hidden": True}, Unsupported),
        ("doppler", "A", {"name": "A", "value": {"raw": None, "rawVisibility": "restricted"}}, Unsupported),
        ("doppler", "A", {"success": False, "messages": ["maintenance"]}, InvalidSecret),
    ],
)
async def test_a_mask_is_no_value(
    server: Server, example: str, name: str, answer: dict[str, Any], kind: type[VaultError]
) -> None:
    server.answer = lambda request: answer
    vault = vault_of(example, server)
    with pytest.raises(kind):
        await vault.get_secret(name)
    await vault.aclose()


async def test_a_write_that_waits_for_approval_is_not_done(server: Server) -> None:
    server.answer = lambda request: {"approval": {"id": "1", "status": "open"}}
    vault = vault_of("infisical", server)
    for call in (vault.set_secret("A", Secret({"value": "x"})), vault.delete_secret("A")):
        with pytest.raises(InvalidSecret, match="`error`"):
            await call
    server.answer = lambda request: (
        web.json_response({}, status=404) if request.method == "PATCH" else {"approval": {"id": "1"}}
    )
    with pytest.raises(InvalidSecret, match="`error`"):
        await vault.set_secret("A", Secret({"value": "x"}))
    await vault.aclose()


async def test_what_is_archived_is_not_there(server: Server) -> None:
    item = {"title": "db", "id": "a", "version": 1, "updatedAt": "2024-01-01T00:00:00Z"}
    server.answer = lambda request: [item | {"state": "ARCHIVED"}, item | {"title": "web", "id": "b"}]
    vault = vault_of("1password-connect", server)
    assert [entry.name async for entry in vault.list_secrets()] == ["web"]
    await vault.aclose()
