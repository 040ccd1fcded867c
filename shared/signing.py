"""The signature of what is sent to POST /audit: shared by the relay that signs and the app that verifies."""

from __future__ import annotations

import hashlib
import hmac

MIN_SECRET = 16
"""Characters of the secret, on both sides."""


def sign(secret: str, timestamp: int, batch: str, body: bytes) -> str:
    """HMAC-SHA256 in hex of `timestamp.batch.` and the body as it is sent. `timestamp` is in seconds since the epoch."""
    return hmac.new(secret.encode(), f"{timestamp}.{batch}.".encode() + body, hashlib.sha256).hexdigest()
