"""What Vault refuses, and what breaks on the way to it, as shared.errors.

Texts and statuses are those seen on Vault 1.21; https://developer.hashicorp.com/vault/api-docs#http-status-codes
"""

from __future__ import annotations

import json
import ssl
import textwrap
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import hvac.exceptions

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

Answer = dict[str, Any]
MOST_QUOTED = 600
"""Characters of a server's own words."""


class Forbidden(AccessDenied):
    """The server knows the token, and its policies do not allow the call."""


class TokenRefused(AccessDenied):
    """The server says that the token itself is not (or no longer) valid."""


def not_vault(vault_id: str) -> Unavailable:
    """For an answer that reads like success and is not Vault's. A write may well have had its effect."""
    message = "the answer was cut short, or is not Vault's: check the address and the proxies on the way"
    return Unavailable(message, vault=vault_id, ambiguous=True)


# --- what the server refused --------------------------------------------------------------------------------------

# Phrases by which Vault says more than its status does; seen on 1.21, and in the sources of OpenBao 2.
_PHRASES: tuple[tuple[str, type[VaultError], str], ...] = (
    ("check-and-set parameter did not match", Conflict, "the secret is not in the version that was expected"),
    (
        "check-and-set parameter required",
        Unsupported,
        "this secret or its mount demands check-and-set, and the write named no version",
    ),
    ("no handler for route", MountNotFound, "there is no such mount: check `mount` (and `namespace`)"),
    ("key being too large", InvalidSecret, "the name is longer than this Vault's storage takes"),
    ("too large", InvalidSecret, "the value is larger than this Vault or its storage takes"),
    ("Value exceeds", InvalidSecret, "the value is larger than this Vault's storage takes"),
    ("exceeds allowed", InvalidSecret, "the value passes one of this Vault's limits on JSON (depth, length, entries)"),
    ("malformed JSON", InvalidSecret, "this Vault does not take the value as JSON"),
    ("Upgrading from non-versioned", Unavailable, "the mount is being upgraded to KV version 2"),
    ("Vault is sealed", Unavailable, "Vault is sealed: unseal it"),
    ("HTTP request to an HTTPS server", AccessDenied, "this server speaks TLS: write https:// in its address"),
    ("invalid token", TokenRefused, "the token is not valid, expired or revoked"),
)

# https://developer.hashicorp.com/vault/api-docs#http-status-codes
_STATUSES: dict[int, tuple[type[VaultError], str]] = {
    400: (InvalidSecret, "Vault refused the request as invalid"),
    401: (AccessDenied, "something before Vault asks for other credentials"),
    403: (Forbidden, "the token's policies do not allow it"),
    405: (Unsupported, "this Vault can not do that"),
    412: (Unavailable, "this node has not caught up with its leader"),
    413: (InvalidSecret, "the value is larger than this Vault takes"),
    414: (InvalidSecret, "the name is longer than this Vault takes"),
    429: (Unavailable, "Vault asks for fewer requests"),
    431: (InvalidSecret, "the name is longer than this Vault takes"),
    472: (Unavailable, "this node is a disaster-recovery standby"),
    473: (Unavailable, "this node is a performance standby"),
    501: (Unavailable, "Vault is not initialised"),
    503: (Unavailable, "Vault is sealed, or down for maintenance"),
}
# Vault answers 500 when it could not log a call that it has carried out; a gateway may give up on one under way.
_AMBIGUOUS = frozenset({500, 502, 504})


def refusal(
    status: int, headers: Mapping[str, str], content: bytes, *, vault_id: str, call: str, quotable: bool
) -> VaultError:
    """The error for an answer that is not a success.

    Vault's own words are repeated only where the request had no body (`quotable`): parsers like to quote their input.
    """
    answer = _parsed(content)
    errors = _errors(answer, content)
    for phrase, kind, message in _PHRASES:
        if phrase in errors:
            return _build(kind, f"{message} ({status} on {call})", vault_id, status, headers)
    if status == 404:
        return _not_found(answer, errors if quotable else "", vault_id, call)
    if 300 <= status < 400:
        return AccessDenied(
            f"the server sends {call} elsewhere ({status}), and tokens are not sent after: check the address",
            vault=vault_id,
        )
    kind, message = _STATUSES.get(
        status, (Unavailable, "Vault failed") if status >= 500 else (InvalidSecret, "Vault refused the request")
    )
    words = textwrap.shorten(errors, MOST_QUOTED, placeholder=" …") if quotable else ""
    return _build(kind, f"{message} ({status} on {call}){f': {words}' if words else ''}", vault_id, status, headers)


def _build(kind: type[VaultError], message: str, vault_id: str, status: int, headers: Mapping[str, str]) -> VaultError:
    if issubclass(kind, Unavailable):
        return kind(message, vault=vault_id, retry_after=_retry_after(headers), ambiguous=status in _AMBIGUOUS)
    return kind(message, vault=vault_id)


def _not_found(answer: Answer | None, errors: str, vault_id: str, call: str) -> VaultError:
    """Only Vault's own way of saying so means that a secret is gone: the secrets of others are deleted after it."""
    if answer is None:
        return not_vault(vault_id)
    data = answer.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if isinstance(metadata, dict):
        state = "destroyed" if metadata.get("destroyed") else "deleted"
        return SecretNotFound(f"its newest version, {metadata.get('version')}, is {state}", vault=vault_id)
    if answer.get("errors") == []:
        return SecretNotFound(f"there is no such secret (404 on {call})", vault=vault_id)
    if answer.get("warnings"):
        # KV v2 answers so to the paths of version 1.
        return MountNotFound(
            f"the mount is not of the expected KV version: check kv_version (404 on {call})", vault=vault_id
        )
    return MountNotFound(
        f"nothing there answers: check `mount` and `namespace` (404 on {call}): {errors[:300]}", vault=vault_id
    )


def _parsed(content: bytes) -> Answer | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _errors(answer: Answer | None, content: bytes) -> str:
    """The strings in `errors`, or a proxy's text."""
    if answer is None:
        return content[:2000].decode(errors="replace")
    errors = answer.get("errors")
    return "; ".join(str(each) for each in errors) if isinstance(errors, list) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds or a date: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    asked = headers.get("Retry-After")
    if not asked:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


# --- what never came to an answer ---------------------------------------------------------------------------------

_REFUSED_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNKNOWN_CA",
    "CERTIFICATE_EXPIRED",
    "HANDSHAKE_FAILURE",
)


def breakdown(error: Exception, vault_id: str, address: str) -> VaultError:
    """The error for what aiohttp or the system raised."""
    for kind, translate in BREAKDOWNS:
        if isinstance(error, kind):
            return translate(error, vault_id, address)
    raise AssertionError(f"nothing is known about {type(error).__name__}") from None


def _certificate(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = getattr(error, "verify_message", None) or getattr(
        getattr(error, "certificate_error", None), "verify_message", None
    )
    return AccessDenied(
        f"the certificate of {address} can not be verified ({reason or 'wrong name or authority'}): "
        "give the authority's PEM file as ca_bundle",
        vault=vault_id,
    )


def _tls(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = str(getattr(error, "reason", "") or getattr(error, "os_error", ""))
    return AccessDenied(
        f"TLS with {address} failed ({reason[:100] or 'no reason given'}): does it speak https?", vault=vault_id
    )


def _not_reached(error: Exception, vault_id: str, address: str) -> VaultError:
    reason = "in time" if isinstance(error, TimeoutError) else f"({getattr(error, 'strerror', None) or 'refused'})"
    return Unavailable(f"{address} can not be reached {reason}", vault=vault_id)


def _no_answer(error: Exception, vault_id: str, address: str) -> VaultError:
    return Unavailable(f"{address} did not answer in time", vault=vault_id, ambiguous=True)


def _torn(error: Exception, vault_id: str, address: str) -> VaultError:
    # With TLS 1.3 a server turns a client's certificate down only after the handshake.
    cause = error.__cause__ or error.__context__ or error
    reason = str(getattr(cause, "reason", None) or error)
    if any(each in reason.upper().replace(" ", "_") for each in _REFUSED_CERTIFICATE):
        return AccessDenied(f"{address} wants another client certificate: see client_cert, client_key", vault=vault_id)
    return Unavailable(f"the connection to {address} broke ({type(error).__name__})", vault=vault_id, ambiguous=True)


def _bad_url(error: Exception, vault_id: str, address: str) -> VaultError:
    return InvalidSecret("no URL can be made of this name and the vault's address", vault=vault_id)


# The first that fits: the closer kinds come before those that they derive from.
BREAKDOWNS: tuple[tuple[type[Exception], Callable[[Exception, str, str], VaultError]], ...] = (
    (aiohttp.ClientConnectorCertificateError, _certificate),
    (aiohttp.ServerFingerprintMismatch, _certificate),
    (ssl.SSLCertVerificationError, _certificate),
    (aiohttp.ClientConnectorSSLError, _tls),
    (aiohttp.ClientSSLError, _tls),
    (aiohttp.ClientConnectorError, _not_reached),
    (aiohttp.ConnectionTimeoutError, _not_reached),
    (aiohttp.InvalidURL, _bad_url),
    (aiohttp.NonHttpUrlClientError, _bad_url),
    (TimeoutError, _no_answer),
    (aiohttp.ClientError, _torn),
    (OSError, _torn),
)

HVAC_ERRORS: dict[type[Exception], type[VaultError]] = {
    hvac.exceptions.InvalidRequest: InvalidSecret,
    hvac.exceptions.ParamValidationError: InvalidSecret,
    hvac.exceptions.Unauthorized: AccessDenied,
    hvac.exceptions.Forbidden: AccessDenied,
    hvac.exceptions.InvalidPath: SecretNotFound,
    hvac.exceptions.UnsupportedOperation: Unsupported,
    hvac.exceptions.PreconditionFailed: Unavailable,
    hvac.exceptions.RateLimitExceeded: Unavailable,
    hvac.exceptions.InternalServerError: Unavailable,
    hvac.exceptions.VaultNotInitialized: Unavailable,
    hvac.exceptions.VaultDown: Unavailable,
    hvac.exceptions.BadGateway: Unavailable,
    hvac.exceptions.UnexpectedError: Unavailable,
    hvac.exceptions.VaultError: Unavailable,
}
"""hvac raises by itself only where it dislikes a parameter: the adapter's own errors go past it. All the same."""


def hvac_failure(error: hvac.exceptions.VaultError, vault_id: str) -> VaultError:
    """The error for what hvac raised. Its text is left out: it may quote a parameter."""
    kind = HVAC_ERRORS[type(error)]
    return kind(f"the client library refused the call ({type(error).__name__})", vault=vault_id)
