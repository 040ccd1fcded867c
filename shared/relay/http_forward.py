"""A batch → POST /audit of another Vaultferry: a JSON array, packed with gzip, signed."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.audit import to_record
from shared.errors import AccessDenied, ConfigError, Refused, Unavailable
from shared.notices import AuditNotice, GapNotice
from shared.relay.addresses import is_loopback
from shared.relay.forwarder import Answer, Batch
from shared.signing import sign

if TYPE_CHECKING:
    import aiohttp

TIMEOUT = 60.0
"""Seconds for a whole request. An app on Azure that has to be woken takes some of them."""
CONNECT_TIMEOUT = 10.0
PACK_FROM = 1_024
"""Bytes from which packing pays."""
ASIDE_FROM = 500
"""Records from which encoding would keep the sockets waiting."""
LONGEST_ANSWER = 64 * 1024
BROKEN = (400, 409, 413, 415, 422)
"""Answers that mean this very body."""
DENIED = {
    401: "check VAULTFERRY_API_KEY, VAULTFERRY_AUDIT_SECRET and this machine's clock",
    403: "check VAULTFERRY_API_KEY, and what may reach the app",
    404: "check the address in --forward: it ends in /audit",
    405: "check the address in --forward: it ends in /audit",
}


def check_url(url: str) -> str:
    """The address to forward to. Raises ConfigError for plain http to anywhere but this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("https", "http") or parts.username or parts.password or parts.fragment:
        raise ConfigError("--forward: expected the address of the app, such as https://example.azurewebsites.net/audit")
    if parts.path in ("", "/"):
        raise ConfigError(f"--forward: {url} has no path: it ends in /audit")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(f"--forward: plain http goes to this machine only; use https for {host}")
    return url


class HttpForward:
    """Calling it sends a batch. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        secret: str | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = check_url(url)
        self._key = key
        self._secret = secret
        self._timeout = timeout
        self._clock = clock
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> HttpForward:
        import aiohttp

        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_TIMEOUT),
            # A proxy for plain http would see the key.
            trust_env=self._url.startswith("https:"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def __call__(self, batch: Batch) -> Answer:
        """Raises as `Forward` says."""
        if len(batch.notices) < ASIDE_FROM:
            body, headers = pack(batch.notices)
        else:
            body, headers = await asyncio.to_thread(pack, batch.notices)
        status, retry_after, answer = await self._post(batch.id, body, headers)
        if status == 202:
            return _counts(answer)
        if status in DENIED:
            raise AccessDenied(f"the app answers {status}: {_detail(answer) or DENIED[status]}")
        if status in BROKEN:
            raise Refused(f"the app answers {status}: {_detail(answer) or 'it does not say why'}")
        if 300 <= status < 400:
            raise AccessDenied(f"the app answers {status}, a redirect, which is not followed: check --forward")
        raise Unavailable(f"the app answers {status}", retry_after=retry_after)

    async def _post(self, batch_id: str, body: bytes, headers: dict[str, str]) -> tuple[int, float | None, bytes]:
        import aiohttp

        timestamp = int(self._clock())
        headers |= {"X-Vaultferry-Timestamp": str(timestamp), "X-Vaultferry-Batch": batch_id}
        if self._key:
            headers["x-functions-key"] = self._key
        if self._secret:
            headers["X-Vaultferry-Signature"] = sign(self._secret, timestamp, batch_id, body)
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False, raise_for_status=False
            ) as response:
                answer = await response.content.read(LONGEST_ANSWER) if response.status != 202 else await _all(response)
                return response.status, _seconds(response.headers.get("Retry-After")), answer
        except TimeoutError:
            why = f"the app does not answer within {self._timeout:g} seconds"
        except aiohttp.ClientConnectorCertificateError:
            why = "the app's certificate is not trusted: SSL_CERT_FILE names further authorities"
        except aiohttp.ClientConnectorError as error:
            why = f"the app can not be reached ({error.os_error.strerror or type(error).__name__})"
        except (aiohttp.ClientError, OSError) as error:
            why = f"the app's answer was cut off ({type(error).__name__})"
        raise Unavailable(why, ambiguous=True)


def pack(notices: Sequence[AuditNotice | GapNotice]) -> tuple[bytes, dict[str, str]]:
    """Body and headers; the same for the same notices, whenever it is asked for."""
    body = _ENCODER.encode([to_record(notice) for notice in notices]).encode()
    headers = {"Content-Type": "application/json"}
    if len(body) >= PACK_FROM:
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return body, headers


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


async def _all(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer: half a 202 is none."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size <= LONGEST_ANSWER:
            parts.append(part)
    return b"".join(parts)


def _counts(answer: bytes) -> Answer:
    """What `{"accepted", "ignored", "duplicate", "invalid"}` says. Raises Unavailable for another answer."""
    counts = _object(answer)
    accepted, duplicate, invalid = (counts.get(name) for name in ("accepted", "duplicate", "invalid"))
    if type(accepted) is not int or type(duplicate) is not int or type(invalid) is not int:
        # Somebody else's 202, a proxy's for one, is no promise.
        raise Unavailable("what answers 202 is not Vaultferry's /audit: check --forward")
    return Answer(invalid, heeded=accepted + duplicate > 0)


def _detail(answer: bytes) -> str | None:
    """What a problem (https://www.rfc-editor.org/rfc/rfc9457) says to a person, where it is fit for a log."""
    detail = _object(answer).get("detail")
    return detail[:300] if isinstance(detail, str) and detail.isprintable() else None


def _object(answer: bytes) -> dict[str, Any]:
    """The JSON object that an answer is; an empty one where it is none."""
    try:
        content: Any = json.loads(answer)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _seconds(retry_after: str | None) -> float | None:
    """Only whole seconds: a date would need both clocks to be right."""
    return float(retry_after) if retry_after and retry_after.isdecimal() and len(retry_after) < 10 else None
