"""Every way in which Vault, aiohttp and hvac say no has its error."""

from __future__ import annotations

import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import hvac.exceptions
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from shared.errors import (
    AccessDenied,
    Conflict,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.model import Secret
from shared.vaults.hashicorp import Settings
from shared.vaults.hashicorp.adapter import tls_context
from shared.vaults.hashicorp.failures import (
    BREAKDOWNS,
    HVAC_ERRORS,
    Forbidden,
    TokenRefused,
    breakdown,
    hvac_failure,
    refusal,
)
from shared.vaults.hashicorp.kv import KvVault
from tests.contract.vaults.harness import everything_told_by


def classes(module: object, root: type[Exception]) -> list[type[Exception]]:
    return sorted(
        {each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, root)},
        key=lambda each: each.__name__,
    )


@pytest.mark.parametrize("kind", classes(hvac.exceptions, Exception))
def test_every_exception_of_hvac_is_mapped(kind: type[Exception]) -> None:
    assert kind in HVAC_ERRORS
    error = hvac_failure(kind("quotes canary-11"), "hub")
    assert isinstance(error, VaultError)
    assert "canary-11" not in everything_told_by(error)


# What the adapter can not meet: it opens no web sockets, no Unix sockets, follows no redirects and asks no proxy.
ELSEWHERE = {
    "ClientHttpProxyError",
    "ClientProxyConnectionError",
    "ContentTypeError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlRedirectClientError",
    "RedirectClientError",
    "TooManyRedirects",
    "UnixClientConnectorError",
    "WSServerHandshakeError",
}
# The rest, and what each must become: (error, may the call have had its effect).
MET: dict[str, tuple[type[VaultError], bool]] = {
    "ClientConnectionError": (Unavailable, True),
    "ClientConnectionResetError": (Unavailable, True),
    "ClientConnectorCertificateError": (AccessDenied, False),
    "ClientConnectorDNSError": (Unavailable, False),
    "ClientConnectorError": (Unavailable, False),
    "ClientConnectorSSLError": (AccessDenied, False),
    "ClientError": (Unavailable, True),
    "ClientOSError": (Unavailable, True),
    "ClientPayloadError": (Unavailable, True),
    "ClientResponseError": (Unavailable, True),
    "ClientSSLError": (AccessDenied, False),
    "ConnectionTimeoutError": (Unavailable, False),
    "InvalidURL": (InvalidSecret, False),
    "InvalidUrlClientError": (InvalidSecret, False),
    "NonHttpUrlClientError": (InvalidSecret, False),
    "ServerConnectionError": (Unavailable, True),
    "ServerDisconnectedError": (Unavailable, True),
    "ServerFingerprintMismatch": (AccessDenied, False),
    "ServerTimeoutError": (Unavailable, True),
    "SocketTimeoutError": (Unavailable, True),
    "UploadAbortedError": (Unavailable, True),
}


def test_every_exception_of_aiohttp_is_accounted_for() -> None:
    from aiohttp import client_exceptions

    assert {each.__name__ for each in classes(client_exceptions, aiohttp.ClientError)} == MET.keys() | ELSEWHERE


@pytest.mark.parametrize("name", MET)
def test_an_exception_of_aiohttp_becomes_the_error_that_it_is(name: str) -> None:
    from aiohttp import client_exceptions

    kind, ambiguous = MET[name]
    error = breakdown(_made(getattr(client_exceptions, name)), "hub", "https://vault.example")
    assert type(error) is kind
    assert getattr(error, "ambiguous", False) == ambiguous


def _made(kind: type[Exception]) -> Exception:
    key = ConnectionKey("vault.example", 443, True, True, None, None, None)
    if kind is aiohttp.ClientConnectorCertificateError:
        return kind(key, ssl.SSLCertVerificationError(1, "nope"))
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(key, OSError(1, "nope"))
    if issubclass(kind, aiohttp.ClientResponseError):
        return kind(cast("Any", SimpleNamespace(real_url="https://vault.example")), ())
    if kind is aiohttp.ServerFingerprintMismatch:
        return kind(b"a", b"b", "vault.example", 443)
    if issubclass(kind, aiohttp.InvalidURL):
        return kind("http://x")
    return kind()


@pytest.mark.parametrize(
    ("error", "kind", "ambiguous"),
    [
        (TimeoutError(), Unavailable, True),
        (OSError("torn"), Unavailable, True),
        (ssl.SSLCertVerificationError("x"), AccessDenied, False),
        (
            aiohttp.ClientOSError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] certificate required"),
            AccessDenied,
            False,
        ),
    ],
)
def test_what_the_system_raises_is_mapped(error: Exception, kind: type[VaultError], ambiguous: bool) -> None:
    made = breakdown(error, "hub", "https://vault.example")
    assert type(made) is kind
    assert getattr(made, "ambiguous", False) == ambiguous


def test_the_closer_kinds_come_first() -> None:
    seen: list[type[Exception]] = []
    for kind, _ in BREAKDOWNS:
        assert not any(issubclass(kind, earlier) for earlier in seen)
        seen.append(kind)


@pytest.mark.parametrize(
    ("status", "errors", "kind", "ambiguous"),
    [
        (400, ["check-and-set parameter did not match the current version"], Conflict, False),
        (400, ["check-and-set parameter required for this call"], Unsupported, False),
        (400, ["Upgrading from non-versioned to versioned data."], Unavailable, False),
        (400, ["anything"], InvalidSecret, False),
        (401, [], AccessDenied, False),
        (403, ["1 error occurred:\n\t* permission denied\n\n"], Forbidden, False),
        (403, ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"], TokenRefused, False),
        (404, [], SecretNotFound, False),
        (404, ["namespace not found"], MountNotFound, False),
        (404, ['no handler for route "nope/data/x". route entry not found.'], MountNotFound, False),
        (405, ["1 error occurred:\n\t* unsupported operation\n\n"], Unsupported, False),
        (412, [], Unavailable, False),
        (413, ["http: request body too large"], InvalidSecret, False),
        (500, ["failed to write: put failed due to key being too large, max key size is 32768"], InvalidSecret, False),
        (500, ["put failed due to value being too large; got 2097152 bytes, max: 1048576 bytes"], InvalidSecret, False),
        (414, [], InvalidSecret, False),
        (418, [], InvalidSecret, False),
        (429, [], Unavailable, False),
        (431, [], InvalidSecret, False),
        (472, [], Unavailable, False),
        (473, [], Unavailable, False),
        (500, ["JSON input exceeds allowed nesting depth"], InvalidSecret, False),
        (500, ["malformed JSON, invalid number syntax for '1e400'"], InvalidSecret, False),
        (500, ["1 error occurred:\n\t* internal error\n\n"], Unavailable, True),
        (501, [], Unavailable, False),
        (502, [], Unavailable, True),
        (503, ["Vault is sealed"], Unavailable, False),
        (504, [], Unavailable, True),
        (599, [], Unavailable, False),
        (307, [], AccessDenied, False),
    ],
)
def test_a_refusal_becomes_the_error_that_it_is(
    status: int, errors: list[str], kind: type[VaultError], ambiguous: bool
) -> None:
    body = json.dumps({"errors": errors}).encode()
    made = refusal(status, {}, body, vault_id="hub", call="GET secret/data/x", quotable=False)
    assert type(made) is kind
    assert getattr(made, "ambiguous", False) == ambiguous


def test_every_status_that_hvac_knows_is_known_here() -> None:
    for status in (400, 401, 403, 404, 429, 500, 501, 502, 503):
        theirs = type(hvac.exceptions.VaultError.from_status(status))
        ours = refusal(status, {}, b'{"errors": []}', vault_id="hub", call="GET x", quotable=True)
        assert isinstance(ours, HVAC_ERRORS[theirs])


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("", None)])
def test_retry_after_is_seconds(header: str, seconds: float | None) -> None:
    made = refusal(429, {"Retry-After": header}, b"", vault_id="hub", call="GET x", quotable=True)
    assert isinstance(made, Unavailable)
    assert made.retry_after == seconds


def test_retry_after_may_be_a_date() -> None:
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    made = refusal(503, past, b"", vault_id="hub", call="GET x", quotable=True)
    assert isinstance(made, Unavailable)
    assert made.retry_after == 0.0


def test_a_parser_that_quotes_a_value_is_not_quoted() -> None:
    body = json.dumps({"errors": ["failed to parse policy: canary-9: object expected closing RBRACE"]}).encode()
    for quotable in (True, False):
        made = refusal(400, {}, body, vault_id="hub", call="PUT x", quotable=quotable)
        assert ("canary-9" in str(made)) == quotable


# On a server that says what it is told to.

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[KvVault]:
    auth = {"method": "token", "token": "hvs.canary-token"}
    vault = KvVault("hub", Settings(kind="hashicorp", address=address, kv_version=2, auth=auth))
    try:
        yield vault
    finally:
        await vault.aclose()


async def test_a_redirect_is_refused_and_the_token_goes_nowhere_else() -> None:
    visitors: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        visitors.append(request.path)
        return web.json_response({})

    async with served(elsewhere) as target:

        async def standby(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{target}{request.path}"})

        async with served(standby) as address, connected(address) as vault:
            with pytest.raises(AccessDenied, match="check the address"):
                await vault.get_secret("one")
            with pytest.raises(AccessDenied, match="check the address"):
                await vault.set_secret("one", Secret({"value": "x"}))
    assert visitors == []


@pytest.mark.parametrize(
    "body", ["<html>Sign in</html>", "[]", '"x"', "{", "{}", '{"data": null}', '{"data": {"data": {}}}']
)
async def test_success_from_something_that_is_not_vault_is_no_success(body: str) -> None:
    async def portal(_request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    async with served(portal) as address, connected(address) as vault:
        vault.adapter.token = "hvs.x"
        vault.login._due = float("inf")
        for call in (
            vault.get_secret("one"),
            vault.describe_secret("one"),
            vault.set_secret("one", Secret({"a": "b"})),
        ):
            with pytest.raises(Unavailable, match="check the address"):
                await call


@pytest.mark.parametrize("data", ["null", "[]", '"text"', "5"])
async def test_what_is_no_map_of_fields_is_not_carried(data: str) -> None:
    metadata = '{"created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": false, "version": 1}'

    async def answer(_request: web.Request) -> web.Response:
        text = f'{{"data": {{"data": {data}, "metadata": {metadata}}}}}'
        return web.Response(text=text, content_type="application/json")

    async with served(answer) as address, connected(address) as vault:
        with pytest.raises(InvalidSecret, match="map of fields"):
            await vault.get_secret("one")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("default backend - 404", Unavailable),
        ("", Unavailable),
        ("{}", MountNotFound),
        ('{"errors": ["namespace not found"]}', MountNotFound),
        ('{"data": null, "warnings": ["Invalid path for a versioned K/V secrets engine."]}', MountNotFound),
    ],
)
async def test_only_vaults_own_404_means_that_a_secret_is_gone(body: str, kind: type[VaultError]) -> None:
    async def answer(request: web.Request) -> web.Response:
        if "lookup-self" in request.path:
            return web.json_response({"data": {"ttl": 0}})
        return web.Response(status=404, text=body)

    async with served(answer) as address, connected(address) as vault:
        for call in (vault.get_secret("one"), vault.describe_secret("one"), anext(aiter(vault.list_secrets()))):
            with pytest.raises(kind):
                await call


async def test_a_missing_namespace_is_no_missing_secret() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"errors": []}, status=404)

    async with served(answer) as address, connected(address) as vault:
        with pytest.raises(AccessDenied, match="login by token"):
            await vault.get_secret("one")


async def test_names_arrive_as_they_were_sent() -> None:
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if "lookup-self" in request.path:
            return web.json_response({"data": {"ttl": 0}})
        paths.append(request.raw_path)
        return web.json_response({"errors": []}, status=404)

    async with served(answer) as address, connected(f"{address}/behind/a proxy".replace(" ", "%20")) as vault:
        for name in ("%2e%2e/x", "a b#c?d", "ü"):
            with pytest.raises(SecretNotFound):
                await vault.get_secret(name)
    assert [path.partition("/secret/data/")[2] for path in paths] == [
        "%252e%252e/x",
        "a%20b%23c%3Fd",
        "%C3%BC",
    ]
    assert all(path.startswith("/behind/a%20proxy/v1/") for path in paths)


def test_an_encrypted_client_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ferry")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    lock = serialization.BestAvailableEncryption(b"a password")
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    for file, content in (
        ("cert.pem", builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)),
        ("key.pem", private),
    ):
        tmp_path.joinpath(file).write_bytes(content)
    settings = Settings(
        kind="hashicorp",
        address="https://127.0.0.1:1",
        client_cert=str(tmp_path / "cert.pem"),
        client_key=str(tmp_path / "key.pem"),
        auth={"method": "token", "token": "t"},
    )
    with pytest.raises(AccessDenied, match="client_cert or client_key"):
        tls_context(settings, "hub")
