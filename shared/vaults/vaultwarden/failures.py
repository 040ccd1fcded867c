"""What a Bitwarden server refuses, and what breaks on the way to it, as shared.errors.

Texts and statuses are those of Vaultwarden 1.34 (nearly all refusals are 400 with a text) and of Bitwarden's own server.
The server knows ciphertext only, so its texts can not quote a value; they are cut and cleaned all the same.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from shared.errors import AccessDenied, Conflict, InvalidSecret, SecretNotFound, Unavailable, VaultError
from shared.model import utcnow

LOGIN_REST = 60.0
"""Seconds that a server which has had enough of logins is left alone, unless it says how long: Vaultwarden's window."""

NO_SERVER = "no Bitwarden server answers there: look at `url` and at the proxies on the way"


class TokenRefused(AccessDenied):
    """The access token is not, or no longer, valid."""


class WrongCredentials(AccessDenied):
    """The password or the API key is wrong, and stays wrong however often it is tried."""


_PHRASES: tuple[tuple[str, type[VaultError], str], ...] = (
    ("out of date", Conflict, "somebody else has just saved this item"),
    ("Organization mismatch", Conflict, "somebody else has just moved this item"),
    ("Invalid folder", Conflict, "its folder is not there any more"),
    ("Invalid collection", Conflict, "its collection is not there any more"),
    ("doesn't exist", SecretNotFound, "there is no such item any more"),
    ("is not owned by user", SecretNotFound, "the account does not see this item any more"),
    ("not write accessible", AccessDenied, "the account may only read this item"),
    ("can't be deleted by user", AccessDenied, "the account may only read this item"),
    ("do not have permission", AccessDenied, "the account may not change this item"),
    ("No rights to modify", AccessDenied, "the account may not write to this collection"),
    ("don't have permission", AccessDenied, "the account may not write to this collection"),
    (
        "Enterprise Policy",
        AccessDenied,
        "a policy of the organisation forbids items in the own vault: set `organization`",
    ),
)


def refusal(status: int, headers: httpx.Headers, content: bytes, *, write: bool) -> VaultError:
    """The error for an answer that is no success to a call about items."""
    if status == 401:
        return TokenRefused("the server does not accept the access token")
    if status == 429 or status >= 500:
        # Only 429 and 503 say that nothing was done.
        doubt = status not in (429, 503)
        return Unavailable(f"the server answered {status}", retry_after=_retry_after(headers), ambiguous=doubt)
    if 300 <= status < 400:
        return AccessDenied("the server redirects to another address: write the one that it leads to as `url`")
    text = message(content)
    for phrase, kind, words in _PHRASES:
        if phrase.lower() in text.lower():
            return kind(words)
    if status == 403:
        return AccessDenied("the server refused the call" + (f": {text}" if text else ""))
    if status == 404:
        # A proxy's 404, or that of another kind of server, says nothing about an item.
        return SecretNotFound("there is no such item any more") if text else AccessDenied(NO_SERVER)
    if status == 413 or write:
        return InvalidSecret("the server does not take this item" + (f": {text}" if text else f" ({status})"))
    return AccessDenied(f"the server refused the call ({status})" + (f": {text}" if text else ""))


def login_refusal(status: int, headers: httpx.Headers, content: bytes, *, by_key: bool) -> VaultError:
    """The error for a login that failed: says which of the many reasons it was."""
    if status == 429:
        return Unavailable(
            "locked out for now: the server has seen too many logins, of this account or from this address",
            retry_after=_retry_after(headers) or LOGIN_REST,
        )
    if status >= 500:
        return Unavailable(f"the server answered a login with {status}", retry_after=_retry_after(headers))
    document = _object(content)
    text = message(content)
    lowered = f"{text} {document.get('error_description', '')} {document.get('error', '')}".lower()
    if any(key.lower().startswith("twofactorproviders") for key in document) or "two factor required" in lowered:
        return AccessDenied(
            "the account has two-step login, which nobody can answer here: give client_id and client_secret, the "
            "account's API key (web vault: Settings, Security, Keys), beside the password"
        )
    if "device" in lowered and "verif" in lowered:
        return AccessDenied(
            "the server wants this new device to be verified: give client_id and client_secret, the account's API key"
        )
    if "disabled" in lowered or "locked" in lowered:
        return AccessDenied("the account is disabled or locked: an administrator of the server can change that")
    if by_key and ("client_id" in lowered or "client_secret" in lowered or "invalid_client" in lowered):
        return WrongCredentials(
            "the API key is wrong: look at client_id and client_secret (it changes when it is rotated)"
        )
    if "username or password" in lowered or "invalid_username_or_password" in lowered or "invalid_grant" in lowered:
        return WrongCredentials("e-mail or master password are wrong")
    if status in (404, 405) or not document:
        return AccessDenied(NO_SERVER)
    return AccessDenied("the login was refused" + (f": {text}" if text else f" ({status})"))


def breakdown(error: httpx.HTTPError | httpx.InvalidURL | TimeoutError, url: str) -> VaultError:
    """The error for a call that got no answer, or half of one."""
    if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return AccessDenied(f"the certificate of {url} is not trusted: give its authority as ca_bundle")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return Unavailable(f"{url} can not be reached")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return Unavailable("no answer in time", ambiguous=True)
    return Unavailable("the connection broke", ambiguous=True)


def not_bitwarden() -> Unavailable:
    """For an answer that reads like success and is not what a Bitwarden server says."""
    return Unavailable(
        "the answer was cut short, or is not a Bitwarden server's: check the url and the proxies on the way",
        ambiguous=True,
    )


def message(content: bytes) -> str:
    """What a refusal says, in one short line; empty: nothing that can be shown."""
    document = _object(content)
    model = document.get("errorModel") or document.get("ErrorModel")
    texts = [document.get("message")]
    if isinstance(model, dict):
        texts = [model.get("message"), model.get("Message"), *texts]
    details = document.get("validationErrors")
    if isinstance(details, dict):
        texts = [each for errors in details.values() if isinstance(errors, list) for each in errors] + texts
    text = next((each for each in texts if isinstance(each, str) and each), "")
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200]


def _object(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(headers: httpx.Headers) -> float | None:
    text = headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - utcnow()).total_seconds())
    except (ValueError, TypeError):
        return None
