"""Requests on one session: TLS, limits, and what is a success. Redirects are not followed.

On aiohttp rather than httpx: with 16 calls in flight it was many times as fast in our measurements, it can be given an
address that nobody normalises, and its errors tell what was never sent from what may have been.
"""

from __future__ import annotations

import io
import re
import ssl
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.errors import ConfigError, InvalidSecret, MountNotFound, Unavailable, Unsupported, VaultError
from shared.vaults.http_api import answers, failures
from shared.vaults.http_api.answers import Answer
from shared.vaults.http_api.settings import MtlsAuth, Operation, Settings

if TYPE_CHECKING:
    import aiohttp
    from multidict import CIMultiDictProxy

_CONNECT_TIMEOUT = 10.0
"""Seconds."""
_LARGE = 512 * 1024
_PAGE = re.compile(r"\s*<(?:!doctype\s+html|html)\b", re.IGNORECASE)


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
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        timeout = self._settings.timeout
        self._session = aiohttp.ClientSession(
            # The pacer bounds the calls; a second bound here would only hide its queue from it.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls or True),
            # What a server sets is no session of ours.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each silence is bounded, and the whole: a server that drips does not hold a place for ever.
            timeout=aiohttp.ClientTimeout(
                total=2 * timeout, sock_connect=min(_CONNECT_TIMEOUT, timeout), sock_read=timeout
            ),
            headers={"User-Agent": "vaultferry", "Accept-Encoding": "identity"},
        )
        # aiohttp sends PUT and DELETE again by itself when a kept connection breaks. Whether a write is repeated is for
        # the caller to decide; reads are repeated, and counted, by the pacer. There is no public switch.
        self._session._retry_connection = False
        return self._session

    def _proxy(self, url: str) -> str | None:
        """Where the environment sends requests to this host through.

        Not aiohttp's `trust_env`: it would look for other credentials in a .netrc, before each request.
        """
        origin = failures.origin_of(url)
        if origin not in self._proxies:
            parts = urlsplit(url)
            bypassed = urllib.request.proxy_bypass(parts.hostname or "")
            self._proxies[origin] = None if bypassed else _usable(urllib.request.getproxies().get(parts.scheme))
        return self._proxies[origin]

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        """Status, headers and body. Raises `VaultError`s, never aiohttp's own."""
        from yarl import URL

        session = self._session or self._open()
        proxy = self._proxy(url)
        most = self._settings.max_answer_bytes
        failure: VaultError
        try:
            async with session.request(
                method,
                # As it is: whoever normalised it would let names out of their place.
                URL(url, encoded=True),
                headers=headers,
                data=_payload(body),
                allow_redirects=False,
                proxy=proxy,
            ) as response:
                content = bytearray()
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) > most:
                        break
                else:
                    return response.status, response.headers, bytes(content)
                response.close()
            failure = Unsupported(f"the answer is longer than {most:,} bytes: see max_answer_bytes")
        except tuple(failures.breakdowns()) as error:
            failure = failures.explain(error, url)
        # Outside of the except clause, so that nothing of aiohttp's hangs on to it.
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
        # Nobody asks for a part of an answer: 206 has only that.
        expected = status in operation.expect if operation.expect else 200 <= status < 300 and status != 206
        if not expected:
            raise Refused(self._failure(status, got, word), status, content)
        error = operation.error or self._settings.error
        if operation.method == "HEAD":
            return Answer(None, got.get("ETag"))
        parsed: Any = None
        if getattr(operation, "answer", "json") == "text":
            parsed = _text(status, got, content)
            failed = error is not None and answers.says(error, content)
        else:
            if (parse and status != 204) or (error is not None and content):
                parsed = answers.parse(content)
            failed = answers.truthy(error, parsed)
        if failed:
            kind = MountNotFound if word in ("list", "find") else InvalidSecret
            raise kind(f"the API answers {status} to {word}, and says in it (`error`) that the request failed")
        # Several headers of that name are one list: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
        return Answer(parsed, got.get("ETag"), ", ".join(got.getall("Link", [])) or None)

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
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


def _usable(proxy: str | None) -> str | None:
    if proxy is None:
        return None
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Unsupported("the environment's HTTP_PROXY or HTTPS_PROXY is no address such as http://proxy.example:3128")
    return proxy


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    # aiohttp writes bytes in one go, and warns where that would hold up everything else.
    return io.BytesIO(body) if body is not None and len(body) > _LARGE else body


def _text(status: int, headers: Mapping[str, str], content: bytes) -> str:
    """An answer that is the value. Whatever is not, would be carried as one to every target."""
    if status == 204:
        raise InvalidSecret("the server answers 204 (no content) to get: there is no value in that")
    told = Message()
    told["Content-Type"] = headers.get("Content-Type", "")
    try:
        text = content.decode()
        readable = (told.get_content_charset() or "utf-8") in ("utf-8", "utf8", "us-ascii")
    except UnicodeDecodeError:
        readable = False
    if not readable:
        raise InvalidSecret("the answer is not text in UTF-8")
    if told.get_content_type() == "text/html" and _PAGE.match(text):
        raise Unavailable("the answer is a web page, perhaps to sign in: check base_url, and the proxies on the way")
    return text


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
            # Without a password OpenSSL would ask for one, on the terminal, and wait.
            context.load_cert_chain(certificate, key, password="")
        return context
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    raise ConfigError(
        f"{vault_id}: the file given as {setting} can not be used: {reason or 'not a PEM file of these, or encrypted'}"
    )
