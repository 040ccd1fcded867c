"""What each status and each exception of aiohttp means, in the project's words."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

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

_TRANSIENT = frozenset({408, 425, 429})
# Nothing was done yet: https://www.rfc-editor.org/rfc/rfc9110#status.503 and https://www.rfc-editor.org/rfc/rfc6585#section-4
_WITHOUT_EFFECT = frozenset({425, 429, 503})
_LONGEST_WAIT = 24 * 3600.0
"""Seconds: who asks for more is asked again all the same."""
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class Absent(SecretNotFound):
    """A 404 that may mean the secret, or what should hold it: the caller finds out."""


class Unauthorized(AccessDenied):
    """401: another token may help."""


def refusal(
    status: int,
    headers: Mapping[str, str],
    *,
    operation: str,
    transient: bool | None = None,
) -> VaultError:
    """The error for a status that is no success. `transient`: what the configuration says of it; None: nothing.

    Nothing of the answer's text is told: what an API says about a request may quote it.
    """
    on = f"({status} on {operation})"
    if transient or (transient is None and (status in _TRANSIENT or status >= 500)):
        text = "too many requests" if status == 429 else "the server can not answer now"
        return Unavailable(f"{text} {on}", retry_after=_retry_after(headers), ambiguous=status not in _WITHOUT_EFFECT)
    if 300 <= status < 400:
        return Unsupported(f"the server sends the request {_elsewhere(headers)} {on}; redirects are not followed")
    if status == 401:
        return Unauthorized(f"the credentials are missing, wrong or have expired {on}: see `auth`")
    if status in (403, 407):
        return AccessDenied(f"the credentials do not allow this {on}")
    if status in (404, 410):
        if operation in ("list", "find"):
            return MountNotFound(f"there is nothing to list {on}: check base_url, and the operation's path and query")
        return Absent(f"there is no such secret {on}")
    if status in (409, 412):
        return Conflict(f"the secret is not as it was expected to be {on}")
    if status in (405, 406, 415, 501):
        return Unsupported(f"the server does not take such a request {on}: check the operation's method and body")
    if status in (400, 413, 414, 422, 431):
        return InvalidSecret(f"the API refuses this name or value, or the request as such {on}")
    return InvalidSecret(f"the API refuses the request {on}")


def _elsewhere(headers: Mapping[str, str]) -> str:
    """Where a redirect leads, without the path: that may have a name, or a key, in it."""
    try:
        parts = urlsplit(headers.get("Location", ""))
        place = f"{parts.scheme}://{parts.netloc}" if parts.netloc and "@" not in parts.netloc else ""
    except ValueError:
        place = ""
    return f"to {place}" if place and _HOST.fullmatch(place.partition("://")[2]) else "elsewhere"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from either form; a date is held against the server's own clock.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    asked = headers.get("Retry-After")
    if not asked:
        return None
    try:
        seconds = float(asked)
    except ValueError:
        then, now = _http_date(asked), _http_date(headers.get("Date"))
        seconds = math.nan if then is None else (then - (now or datetime.now(UTC))).total_seconds()
        seconds = max(0.0, seconds) if not math.isnan(seconds) else seconds
    return min(seconds, _LONGEST_WAIT) if math.isfinite(seconds) and seconds >= 0 else None


def _http_date(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text) if text else None
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


# --- what never came to an answer ---------------------------------------------------------------------------------


def explain(error: BaseException, url: str) -> VaultError:
    """What an exception on the way to the server of `url` means."""
    known = breakdowns()
    return next(known[cls] for cls in type(error).__mro__ if cls in known)(error, origin_of(url))


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@cache
def breakdowns() -> dict[type[BaseException], Callable[[Any, str], VaultError]]:
    """How each exception of aiohttp is told; the most derived class counts. A test holds this against aiohttp."""
    import aiohttp

    return {
        aiohttp.ClientError: _torn,
        aiohttp.ClientConnectorError: _not_reached,
        aiohttp.ClientConnectorDNSError: _unknown_name,
        aiohttp.ClientConnectorCertificateError: _certificate,
        aiohttp.ClientConnectorSSLError: _tls,
        aiohttp.ClientSSLError: _tls,
        aiohttp.ServerFingerprintMismatch: _certificate,
        aiohttp.ClientProxyConnectionError: _proxy,
        aiohttp.ClientHttpProxyError: _proxy,
        aiohttp.ConnectionTimeoutError: _not_in_time,
        aiohttp.InvalidURL: _not_sendable,
        aiohttp.NonHttpUrlClientError: _not_sendable,
        TimeoutError: _no_answer,
        OSError: _torn,
        # A line break in a header, half a character in an address.
        ValueError: _not_sendable,
    }


def _unknown_name(error: Any, where: str) -> VaultError:
    return Unavailable(f"the name of {where} is not known (DNS): is base_url right?")


def _certificate(error: Any, where: str) -> VaultError:
    broken = getattr(error, "certificate_error", None)
    reason = getattr(broken, "verify_message", None) or "wrong name or authority"
    return AccessDenied(
        f"the certificate of {where} can not be verified ({reason}): a private authority belongs in ca_bundle"
    )


def _tls(error: Any, where: str) -> VaultError:
    return AccessDenied(f"TLS with {where} failed: does it speak https, and want another client certificate?")


def _not_reached(error: Any, where: str) -> VaultError:
    return Unavailable(f"no connection to {where} ({getattr(error, 'strerror', None) or 'refused'})")


def _proxy(error: Any, where: str) -> VaultError:
    return Unavailable(f"the proxy on the way to {where} does not let the request through")


def _not_in_time(error: Any, where: str) -> VaultError:
    return Unavailable(f"no connection to {where} in time")


def _no_answer(error: Any, where: str) -> VaultError:
    return Unavailable(f"{where} did not answer in time", ambiguous=True)


def _torn(error: Any, where: str) -> VaultError:
    # With TLS 1.3 a server turns a client's certificate down only after the handshake.
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(each, ssl.SSLError) and "CERTIFICATE" in str(each).upper() for each in causes):
        return AccessDenied(f"{where} wants another client certificate: see client_cert and client_key")
    return Unavailable(
        f"the connection to {where} broke, or the answer was cut ({type(error).__name__})", ambiguous=True
    )


def _not_sendable(error: Any, where: str) -> VaultError:
    return InvalidSecret("no request can be made of this name")
