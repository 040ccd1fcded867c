"""Each way to say who one is, against a server that checks it; tokens that are fetched, kept and replaced."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Fault
from sandbox.http_apis import AnyApi
from shared.errors import AccessDenied, ConfigError, Unavailable
from shared.model import Secret
from shared.pacing import Pacer
from shared.vault import Vault
from shared.vaults.http_api import Settings, connect
from shared.vaults.http_api.auth import fixed
from tests.contract.vaults.harness import everything_told_by
from tests.contract.vaults.http_api import ETAG


@pytest.fixture
async def api() -> AsyncIterator[AnyApi]:
    async with AnyApi() as server:
        server.put("one", {"value": "x"})
        yield server


def vault_of(api: AnyApi, auth: dict[str, Any], **more: Any) -> Vault:
    settings = Settings(kind="http_api", base_url=f"{api.url}/v1", auth=auth, operations=ETAG, **more)
    vault = connect("legacy", settings)

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0)

    vault.pacer = Pacer(vault.id, sleep=at_once)
    return vault


def oauth(api: AnyApi, **more: Any) -> dict[str, Any]:
    return {
        "type": "oauth2_client_credentials",
        "token_url": f"{api.url}/token",
        "client_id": "ferry",
        "client_secret": api.token,
    } | more


WAYS: dict[str, Any] = {
    "bearer": lambda api: {"type": "bearer", "token": api.token},
    "basic": lambda api: {"type": "basic", "username": "ferry", "password": api.token},
    "a key in X-API-Key": lambda api: {"type": "api_key", "key": api.token},
    "a key in another header": lambda api: {"type": "api_key", "key": f"Bearer {api.token}", "header": "Authorization"},
    "a key in the query": lambda api: {"type": "api_key", "key": api.token, "query": "key"},
    "headers": lambda api: {"type": "headers", "headers": {"X-API-Key": api.token, "X-Team": "ops"}},
    "client credentials": oauth,
    "client credentials in a header": lambda api: oauth(api, client_auth="header", scope="secrets", audience="api"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_is_let_in_for_every_request(api: AnyApi, way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for number in range(20):
        api.put(f"n{number:02}", {"value": "x"})
    vault = vault_of(api, WAYS[way](api))
    assert len([entry async for entry in vault.list_secrets()]) == 21
    await vault.set_secret("two", Secret({"value": "y"}))
    await vault.delete_secret("two")
    assert (await vault.get_secret("one")).fields == {"value": "x"}
    await vault.aclose()
    assert api.token not in caplog.text
    assert api.token not in repr(vault) + str(vars(vault)) + repr(fixed(vars(vault)["_settings"].auth))


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_is_not_let_in_is_told_so_without_the_credential(api: AnyApi, way: str) -> None:
    given = WAYS[way](api)
    old, api.token = api.token, "another"
    vault = vault_of(api, given)
    with pytest.raises(AccessDenied) as caught:
        await vault.get_secret("one")
    [finding] = await vault.check([])
    assert not finding.ok
    assert finding.detail.startswith("credentials: ")
    await vault.aclose()
    assert old not in everything_told_by(caught.value) + repr(finding)
    assert caught.value.path == "one"


async def test_a_token_is_fetched_once_for_many_calls_at_once(api: AnyApi) -> None:
    vault = vault_of(api, oauth(api))
    await asyncio.gather(*(vault.get_secret("one") for _ in range(20)))
    await vault.aclose()
    assert api.calls == {"token": 1, "read": 20}


@pytest.mark.parametrize(("lifetime", "tokens"), [(3600, 1), (None, 1), (0.000001, 3)])
async def test_a_token_is_replaced_before_it_ends(api: AnyApi, lifetime: float | None, tokens: int) -> None:
    api.lifetime = lifetime
    vault = vault_of(api, oauth(api))
    for _ in range(3):
        await vault.get_secret("one")
    await vault.aclose()
    assert api.calls["token"] == tokens


async def test_a_token_that_is_refused_is_replaced_once(api: AnyApi) -> None:
    vault = vault_of(api, oauth(api))
    await vault.get_secret("one")
    api.issued.clear()
    await asyncio.gather(*(vault.get_secret("one") for _ in range(5)))
    assert api.calls["token"] == 2
    api.faults.add(Fault("status", operation="read", status=401, times=2))
    with pytest.raises(AccessDenied):
        await vault.get_secret("one")
    await vault.aclose()
    assert api.calls["token"] == 3


async def test_a_token_endpoint_that_is_down_leaves_a_write_without_doubt(api: AnyApi) -> None:
    api.faults.add(Fault("torn_after", operation="token", times=None))
    vault = vault_of(api, oauth(api))
    with pytest.raises(Unavailable, match="no token was fetched") as caught:
        await vault.set_secret("two", Secret({"value": "y"}))
    await vault.aclose()
    assert not caught.value.ambiguous
    assert caught.value.path == "two"
    assert api.calls["write"] == 0


async def test_a_refused_client_is_told_in_the_words_of_the_standard(api: AnyApi) -> None:
    vault = vault_of(api, oauth(api, client_id="nobody"))
    with pytest.raises(AccessDenied, match=r"401 invalid_client from auth\.token_url"):
        await vault.get_secret("one")
    await vault.aclose()


async def test_what_is_no_token_endpoint_is_found_out(api: AnyApi) -> None:
    # It answers, and with JSON.
    vault = vault_of(api, oauth(api, token_url=f"{api.url}/v1/secrets/none"))
    with pytest.raises(AccessDenied):
        await vault.get_secret("one")
    await vault.aclose()


# certificates


class WithClientCertificates(AnyApi):
    """Lets nobody in without a certificate of its own authority."""

    def _server_tls(self) -> ssl.SSLContext | None:
        context = super()._server_tls()
        assert context is not None
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(str(self.clients))
        return context

    clients: Path


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[WithClientCertificates]:
    server = WithClientCertificates(tls=True)
    server.clients = _client_certificates(tmp_path)
    async with server:
        server.put("one", {"value": "x"})
        yield server


def _client_certificates(folder: Path) -> Path:
    """An authority with a certificate for clients: `ca.pem` (returned), `client.pem` with its key in it."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a client")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    (folder / "client.pem").write_bytes(made.public_bytes(pem) + private)
    return folder / "ca.pem"


async def test_a_client_certificate_alone_or_beside_a_token(strict: WithClientCertificates, tmp_path: Path) -> None:
    certificate = str(tmp_path / "client.pem")
    bundle = str(strict.ca_bundle)
    bearer = {"type": "bearer", "token": strict.token}
    beside = vault_of(strict, bearer, client_cert=certificate, ca_bundle=bundle)
    assert (await beside.get_secret("one")).fields == {"value": "x"}
    await beside.aclose()
    alone = vault_of(strict, {"type": "mtls", "client_cert": certificate}, ca_bundle=bundle)
    with pytest.raises(AccessDenied, match="401"):
        await alone.get_secret("one")
    await alone.aclose()


async def test_without_a_client_certificate_nothing_is_asked(strict: WithClientCertificates) -> None:
    vault = vault_of(strict, {"type": "bearer", "token": strict.token}, ca_bundle=str(strict.ca_bundle))
    # Which of the two depends on whether the server's alert or its reset of the connection comes first.
    with pytest.raises((AccessDenied, Unavailable)):
        await vault.get_secret("one")
    await vault.aclose()
    assert strict.requests == []


async def test_an_unknown_authority_is_told_with_the_way_out(tmp_path: Path) -> None:
    async with AnyApi(tls=True) as server:
        vault = vault_of(server, {"type": "bearer", "token": server.token})
        [finding] = await vault.check([])
        assert "can not be verified" in finding.detail
        assert "ca_bundle" in finding.detail
        await vault.aclose()
        assert server.requests == []


@pytest.mark.parametrize("setting", ["ca_bundle", "client_cert"])
def test_a_certificate_file_that_can_not_be_used_is_an_error_at_once(tmp_path: Path, setting: str) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (empty, tmp_path / "none.pem"):
        settings = Settings(
            kind="http_api",
            base_url="https://api.example",
            auth={"type": "none"},
            operations=ETAG,
            **{setting: str(path)},
        )
        with pytest.raises(ConfigError, match=f"legacy: the file given as {setting}"):
            connect("legacy", settings)
