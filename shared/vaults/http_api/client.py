"""Requests on one httpx client: TLS, limits, and what is a success. Redirects are not followed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode

from shared.errors import ConfigError, InvalidSecret, MountNotFound, Unavailable, Unsupported, VaultError
from shared.vaults.http_api import answers, failures
from shared.vaults.http_api.answers import Answer
from shared.vaults.http_api.settings import MtlsAuth, Operation, Settings

if TYPE_CHECKING:
    import httpx

_CONNECT_TIMEOUT = 10.0
"""Seconds."""


class Refused(Exception):
    """A status that is no success, with what was answered: some say there what is missing."""

    def __init__(self, failure: VaultError, status: int, content: bytes) -> None:
        super().__init__(status)
        self.failure = failure
        self.status = status
        self.content = content


class Client:
    """Opens on first use, in the event loop that uses it. Raises ConfigError for certificates that can not be read."""

    def __init__(self, vault_id: str, settings: Settings) -> None:
        self._settings = settings
        self._tls = _context(vault_id, settings)
        self._http: httpx.AsyncClient | None = None

    def _open(self) -> httpx.AsyncClient:
        import httpx

        # They tell of every request with its address, and of the headers of answers: an API may have its key in there.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        timeout = self._settings.timeout
        self._http = httpx.AsyncClient(
            verify=self._tls or ssl.create_default_context(),
            timeout=httpx.Timeout(timeout, connect=min(_CONNECT_TIMEOUT, timeout)),
            # The pacer bounds the calls; a second bound here would only hide its queue from it.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
            headers={"User-Agent": "vaultferry", "Accept-Encoding": "identity"},
        )
        return self._http

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. Raises `VaultError`s, never httpx's own."""
        http = self._http or self._open()
        failure: VaultError
        try:
            # httpx bounds each silence, this the whole: a server that drips does not hold a place for ever.
            async with (
                asyncio.timeout(2 * self._settings.timeout),
                http.stream(method, url, headers=dict(headers), content=body) as response,
                contextlib.aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as pieces,
            ):
                content = bytearray()
                async for piece in pieces:
                    content += piece
                    if len(content) > self._settings.max_answer_bytes:
                        break
                # What the server set is no session of ours.
                http.cookies.clear()
            if len(content) <= self._settings.max_answer_bytes:
                return response.status_code, response.headers, bytes(content)
            failure = Unsupported(
                f"the answer is longer than {self._settings.max_answer_bytes:,} bytes: see max_answer_bytes"
            )
        except tuple(failures.breakdowns()) as error:
            failure = failures.explain(error, url)
        # Outside of the except clause, so that nothing of httpx's hangs on to it.
        raise failure

    async def call(
        self,
        operation: Operation,
        word: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        parse: bool = True,
    ) -> Answer:
        """One configured operation. Raises Refused for a status that is none of success, and VaultErrors.

        `parse` is false where nobody looks into the answer.
        """
        status, got, content = await self.fetch(operation.method, url, headers=headers, body=body)
        expected = status in operation.expect if operation.expect else 200 <= status < 300
        if not expected:
            raise Refused(self._failure(status, got, word), status, content)
        error = operation.error or self._settings.error
        if operation.method == "HEAD":
            return Answer(None, got.get("ETag"))
        parsed: Any = None
        if getattr(operation, "answer", "json") == "text":
            parsed = _text(content)
        elif (parse and status != 204) or (error is not None and content):
            parsed = answers.parse(content)
            if answers.truthy(error, parsed):
                kind = MountNotFound if word in ("list", "find") else InvalidSecret
                raise kind(f"the API answers {status} to {word}, and says in it (`error`) that the request failed")
        return Answer(parsed, got.get("ETag"), got.get("Link"))

    def _failure(self, status: int, headers: Mapping[str, str], word: str) -> VaultError:
        configured = None
        if status in self._settings.transient:
            configured = True
        elif status in self._settings.permanent:
            configured = False
        if 200 <= status < 300:
            return Unavailable(f"the server answered {status} to {word}, which is not in its `expect`", ambiguous=True)
        return failures.refusal(status, headers, operation=word, transient=configured)

    async def aclose(self) -> None:
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass
    raise InvalidSecret("the answer is not text in UTF-8")


def _context(vault_id: str, settings: Settings) -> ssl.SSLContext | None:
    """None: as the system has it."""
    auth = settings.auth
    certificate, key = settings.client_cert, settings.client_key
    if isinstance(auth, MtlsAuth):
        certificate, key = auth.client_cert, auth.client_key
    if settings.ca_bundle is None and certificate is None:
        return None
    context = ssl.create_default_context()
    setting = "ca_bundle"
    try:
        if settings.ca_bundle is not None:
            context.load_verify_locations(settings.ca_bundle)
        if certificate is not None:
            setting = "client_cert or client_key"
            context.load_cert_chain(certificate, key)
        return context
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    raise ConfigError(f"{vault_id}: the file given as {setting} can not be used: {reason or 'not a PEM file of these'}")


def query_string(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, quote_via=quote, safe="")
