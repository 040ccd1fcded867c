"""What each exception of the SDK means, in the project's words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from shared.errors import (
    AccessDenied,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)

DELETED = "ObjectIsDeletedButRecoverable"
BUSY_FOR = 10.0
"""Seconds that a deletion or recovery may still take."""


class SecretDisabled(AccessDenied):
    """The secret is there and listed, but its value is not handed out."""


class Forbidden(AccessDenied):
    """The vault was reached and knows who asks, but does not let them: `by_role` for want of a permission."""

    by_role = False


class Busy(Unavailable):
    """409: the name is between existing and being deleted."""

    deleted = False


def explain(error: BaseException, path: str | None, url: str) -> VaultError:
    """What an exception of the SDK means for the secret `path` (None: the vault as a whole) of the vault at `url`."""
    known = failures()
    failure = next(known[cls] for cls in type(error).__mro__ if cls in known)(error, path)
    if isinstance(failure, AccessDenied) and _from_elsewhere(error, url):
        failure.message = f"signing in failed: {failure.message}"
    return failure


@cache
def failures() -> dict[type[BaseException], Callable[[Any, str | None], VaultError]]:
    """How each exception of the SDK is told; the most derived class counts. A test holds this against azure.core."""
    from azure.core import exceptions as core
    from azure.identity import AuthenticationRequiredError, CredentialUnavailableError

    return {
        core.AzureError: _garbled,
        core.ServiceRequestError: _not_sent,
        core.ServiceRequestTimeoutError: _not_sent,
        core.ServiceResponseError: _no_answer,
        core.ServiceResponseTimeoutError: _no_answer,
        core.HttpResponseError: _refused,
        core.ClientAuthenticationError: _not_authenticated,
        CredentialUnavailableError: _no_credential,
        AuthenticationRequiredError: _no_credential,
        core.DecodeError: _garbled,
        core.IncompleteReadError: _no_answer,
        core.ResourceExistsError: _refused,
        core.ResourceNotFoundError: _refused,
        core.ResourceModifiedError: _refused,
        core.ResourceNotModifiedError: _refused,
        core.TooManyRedirectsError: _refused,
        core.ODataV4Error: _refused,
        core.StreamConsumedError: _garbled,
        core.StreamClosedError: _garbled,
        core.ResponseNotReadError: _garbled,
        core.SerializationError: _garbled,
        core.DeserializationError: _garbled,
        TimeoutError: _no_answer,
        OSError: _no_answer,
        # What the SDK lets through when an answer is JSON of another shape than Key Vault's.
        ValueError: _misunderstood,
        AttributeError: _garbled,
        KeyError: _garbled,
        TypeError: _garbled,
    }


def _garbled(error: Any, path: str | None) -> VaultError:
    return Unavailable("the answer is not one of Key Vault's, or was cut", ambiguous=True)


def _no_answer(error: Any, path: str | None) -> VaultError:
    return Unavailable("no complete answer came in time", ambiguous=True)


def _misunderstood(error: Any, path: str | None) -> VaultError:
    if str(error).startswith("The challenge"):
        return AccessDenied(
            "the server asks for a token of another domain than its own; nothing was sent. Is this url a Key Vault's?"
        )
    return _garbled(error, path)


def _not_sent(error: Any, path: str | None) -> VaultError:
    """aiohttp's client errors: only those of the connection's making mean that nothing was sent."""
    import aiohttp

    cause = error.inner_exception
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        return Unavailable(f"the name {cause.host} is not known; does the vault exist, and is its url right?")
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return AccessDenied(f"the certificate of {cause.host} is not trusted; a private authority belongs in ca_bundle")
    if isinstance(cause, aiohttp.ClientConnectorError):
        return Unavailable(f"no connection to {cause.host}:{cause.port}")
    if isinstance(cause, aiohttp.ConnectionTimeoutError):
        return Unavailable("no connection in time; is the vault behind a firewall or a private endpoint?")
    return Unavailable("the connection was closed before an answer came", ambiguous=True)


def _no_credential(error: Any, path: str | None) -> VaultError:
    return AccessDenied(
        "no Azure identity was found; assign a managed identity to the app, set AZURE_TENANT_ID, AZURE_CLIENT_ID and "
        "AZURE_CLIENT_SECRET, sign in with `az login`, or configure auth.method service_principal"
    )


def _not_authenticated(error: Any, path: str | None) -> VaultError:
    status = error.status_code
    if status is not None and (status == 429 or status >= 500):
        return Unavailable(f"the source of tokens answered {status}", retry_after=_retry_after(error.response))
    code = re.search(r"\b(?:AADSTS|AKV)\d+", str(error.message))
    if code is None and error.response is None:
        return _no_credential(error, path)
    return AccessDenied(
        f"the identity was not accepted{f' ({code[0]})' if code else ''}; look at the tenant, the client id and "
        "whether the client secret has expired"
    )


def _refused(error: Any, path: str | None) -> VaultError:
    status, (code, inner) = error.status_code or 0, codes(error)
    if status == 401:
        return _not_authenticated(error, path)
    if status == 403:
        return _forbidden(inner)
    if status == 404:
        if path is not None and code == "SecretNotFound":
            return SecretNotFound("there is no such secret")
        return MountNotFound("there is no Key Vault behind this url (404)")
    if status == 409:
        busy = Busy("it is just being deleted or recovered", retry_after=_retry_after(error.response) or BUSY_FOR)
        busy.deleted = inner in ("ObjectIsBeingDeleted", DELETED)
        return busy
    if status in (408, 429) or status >= 500:
        text = "too many requests" if status == 429 else f"the service answered {status}"
        return Unavailable(text, retry_after=_retry_after(error.response), ambiguous=status not in (429, 503))
    if status >= 400 and path is not None:
        return InvalidSecret(f"Key Vault refuses this name or value ({status}{f' {code}' if code else ''})")
    return Unsupported(f"the server answered {status}{f' {code}' if code else ''}, which a Key Vault does not")


def _forbidden(inner: str | None) -> VaultError:
    match inner:
        case "SecretDisabled":
            return SecretDisabled("it is disabled, so its value is not handed out; enable it, or exclude it")
        case "ForbiddenByFirewall":
            return Forbidden("the vault's firewall refuses this address; allow it, or use a private endpoint")
        case "ForbiddenByConnection":
            return Forbidden("the vault takes no public connections; use its private endpoint")
    denied = Forbidden(
        "the permission is missing; grant the role Key Vault Secrets Officer (to read only: Key Vault Secrets User). "
        "A new grant takes minutes to work. Secrets that belong to a certificate can not be written at all"
    )
    denied.by_role = True
    return denied


def codes(error: Any) -> tuple[str | None, str | None]:
    """(code, inner code) of an error answer."""
    document = error.error
    inner = getattr(document, "innererror", None)
    return getattr(document, "code", None), inner.get("code") if isinstance(inner, dict) else None


def _from_elsewhere(error: Any, url: str) -> bool:
    request = getattr(getattr(error, "response", None), "request", None)
    return request is not None and not str(request.url).lower().startswith(url.lower())


def _retry_after(response: Any) -> float | None:
    """Seconds, from either form of the header; the date is held against the server's own clock."""
    headers = getattr(response, "headers", None) or {}
    text = headers.get("Retry-After")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        then, now = http_date(text), http_date(headers.get("Date"))
        return max(0.0, (then - now).total_seconds()) if then is not None and now is not None else None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def http_date(text: str | None) -> datetime | None:
    """The moment that an HTTP header names, or None for none and nonsense."""
    try:
        moment = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
