"""The common ground of the sandbox servers: a loopback port, TLS if wanted, counted calls, misbehaviour on demand.

A server of its own protocol subclasses `SandboxServer` and says three things: its routes (`add_routes`), what a
request is called (`classify`), and what its error answers look like (`error_answer`).
"""

import asyncio
import datetime
import ipaddress
import json
import re
import signal
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.faults import Fault, Faults

# Says that a request came with a method which aiohttp's parser does not know; see _MethodAwareProtocol.
METHOD_HEADER = "X-Sandbox-Method"
_CONTROL = "/_sandbox/"
_MIB = 1024 * 1024


class SandboxServer:
    """A throw-away server on 127.0.0.1, living in the event loop that started it.

    `async with Server(tls=True) as server:` or `start()` and `close()`. Port 0 picks a free one; `url` is known after
    the start. `calls` counts what arrived at the server by operation, `log` keeps (operation, path) in order of
    arrival; a call that a fault hit is counted too. `faults` is where a test arms them; another process does it over
    HTTP:

        POST   /_sandbox/faults   one fault or a list of them (see sandbox.faults.Fault)
        DELETE /_sandbox/faults   behave again
        GET    /_sandbox/calls    {"calls": {operation: count}, "log": [[operation, path], ...]}
        DELETE /_sandbox/calls    count from zero
    """

    max_body = 32 * _MIB

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, tls: bool = False) -> None:
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self.ca_bundle: Path | None = None
        self._host = host
        self._port = port
        self._tls = tls
        self._closing = asyncio.Event()
        self._certificates: tempfile.TemporaryDirectory[str] | None = None
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    # What a subclass says.

    def add_routes(self, app: web.Application) -> None:
        """Add the protocol's own routes."""
        raise NotImplementedError

    def classify(self, request: web.Request) -> tuple[str, str]:
        """(operation, path) of a request, as counted, logged and matched by faults. The body is read already."""
        raise NotImplementedError

    def error_answer(self, status: int, message: str) -> web.Response:
        """An error in the protocol's own shape; "status" faults are answered with it."""
        return web.json_response({"error": message}, status=status)

    # Life.

    async def start(self) -> Self:
        """Listen. Raises OSError when a given port is taken."""
        app = web.Application(client_max_size=self.max_body, middlewares=[self._middleware()])
        app.router.add_post(_CONTROL + "faults", self._control_add)
        app.router.add_delete(_CONTROL + "faults", self._control_clear)
        app.router.add_get(_CONTROL + "calls", self._control_calls)
        app.router.add_delete(_CONTROL + "calls", self._control_reset)
        self.add_routes(app)
        self._closing.clear()
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        new_connection = cast("Callable[[], asyncio.Protocol]", self._runner.server)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                lambda: _MethodAwareProtocol(new_connection()), self._host, self._port, ssl=self._server_tls()
            )
        except BaseException:
            await self.close()
            raise
        self._port = self._listener.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and end every connection, the hanging ones too. Harmless when done twice."""
        self._closing.set()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._certificates is not None:
            self._certificates.cleanup()
            self._certificates = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The port in use; the one asked for before the start."""
        return self._port

    @property
    def url(self) -> str:
        """Base address, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def reset_calls(self) -> None:
        """Count from zero; faults stay armed."""
        self.calls.clear()
        self.log.clear()

    def client_tls(self) -> ssl.SSLContext:
        """A client context that trusts this server's certificate and nothing else."""
        return ssl.create_default_context(cafile=str(self.ca_bundle))

    def _server_tls(self) -> ssl.SSLContext | None:
        if not self._tls:
            return None
        self._certificates = tempfile.TemporaryDirectory(prefix="vaultferry-sandbox-")
        folder = Path(self._certificates.name)
        self.ca_bundle = write_certificates(folder, self._host)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        return context

    # Every call passes here.

    def _middleware(self) -> Any:
        @web.middleware
        async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith(_CONTROL):
                return await handler(request)
            try:
                await request.read()
            except web.HTTPRequestEntityTooLarge:
                return self.error_answer(413, "http: request body too large")
            operation, path = self.classify(request)
            self.calls[operation] += 1
            self.log.append((operation, path))
            fault = self.faults.take(operation, path)
            if fault is None:
                return await handler(request)
            return await self._misbehave(fault, request, handler)

        return observe

    async def _misbehave(self, fault: Fault, request: web.Request, handler: Handler) -> web.StreamResponse:
        match fault.kind:
            case "status":
                answer = self.error_answer(fault.status, f"sandbox: told to answer {fault.status}")
                if fault.retry_after is not None:
                    answer.headers["Retry-After"] = f"{fault.retry_after:g}"
                return answer
            case "timeout_before":
                return await self._hang(request)
            case "timeout_after":
                await handler(request)
                return await self._hang(request)
            case "slow":
                await asyncio.sleep(fault.seconds)
                return await handler(request)
            case "torn_before":
                return _hang_up(request)
            case "torn_after":
                return await self._tear(await handler(request), request)
            case "cut_body":
                return _cut(await handler(request))

    async def _hang(self, request: web.Request) -> web.StreamResponse:
        # A client that gives up closes the connection, which cancels this handler.
        await self._closing.wait()
        return _hang_up(request)

    async def _tear(self, answer: web.StreamResponse, request: web.Request) -> web.StreamResponse:
        body = _body(answer)
        if not body:
            return _hang_up(request)
        torn = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
        torn.content_length = len(body)
        await torn.prepare(request)
        await torn.write(body[: len(body) // 2])
        return _hang_up(request, torn)

    # The same over HTTP, for another process.

    async def _control_add(self, request: web.Request) -> web.Response:
        try:
            document = await request.json()
            faults = [Fault.from_json(each) for each in (document if isinstance(document, list) else [document])]
        except (ValueError, TypeError, AttributeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        self.faults.add(*faults)
        return web.Response(status=204)

    async def _control_clear(self, request: web.Request) -> web.Response:
        self.faults.clear()
        return web.Response(status=204)

    async def _control_calls(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": self.calls, "log": self.log})

    async def _control_reset(self, request: web.Request) -> web.Response:
        self.reset_calls()
        return web.Response(status=204)


def method_of(request: web.Request) -> str:
    """The method as the client sent it, LIST included."""
    return request.headers.get(METHOD_HEADER, request.method)


def run_forever(server: SandboxServer) -> None:
    """Serve until SIGINT or SIGTERM: the body of `python -m sandbox.<server>`.

    Prints one line of JSON once it listens: `{"url": ..., "ca_bundle": path or null}`.
    """
    asyncio.run(_run_forever(server))


async def _run_forever(server: SandboxServer) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with server:
        ready = {"url": server.url, "ca_bundle": str(server.ca_bundle) if server.ca_bundle else None}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()


def write_certificates(folder: Path, host: str) -> Path:
    """A fresh authority and a certificate of its making for `host` and localhost, as PEM files: `ca.pem` (returned),
    `server.pem`, `server.key`. With the key identifiers and usages that Python 3.13's strict verification asks for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def usage(*, authority: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=authority,
            crl_sign=authority,
            encipher_only=False,
            decipher_only=False,
        )

    # Room on both sides: a container's clock may be off.
    now = datetime.datetime.now(datetime.UTC)
    begin, end = now - datetime.timedelta(days=1), now + datetime.timedelta(days=30)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Vaultferry sandbox authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Vaultferry sandbox")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    authority = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(authority=True), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(host))])
    certificate = (
        x509.CertificateBuilder(ca_name, name, key.public_key(), x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem"


def _body(answer: web.StreamResponse) -> bytes:
    body = answer.body if isinstance(answer, web.Response) else None
    return body if isinstance(body, bytes) else b""


def _cut(answer: web.StreamResponse) -> web.StreamResponse:
    body = _body(answer)
    return web.Response(status=answer.status, body=body[: len(body) // 2], content_type="application/json")


def _hang_up(request: web.Request, answer: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    return answer or web.Response()


class _MethodAwareProtocol(asyncio.Protocol):
    """Lets Vault's method LIST past aiohttp's parser, which knows registered methods only: the request line becomes a
    GET, and METHOD_HEADER says what it was. A JSON body cannot hold such a line, since it has no raw line breaks inside
    its strings, and the clients write a request's head in one piece, so that looking at the start of a piece is enough.
    """

    _LINE = re.compile(rb"LIST (\S+) HTTP/1\.1\r\n")

    def __init__(self, http: asyncio.Protocol) -> None:
        self._http = http

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        line = self._LINE.match(data)
        if line:
            head = b"GET " + line[1] + b" HTTP/1.1\r\n" + METHOD_HEADER.encode() + b": LIST\r\n"
            data = head + data[line.end() :]
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()
