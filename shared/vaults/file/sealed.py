"""One encrypted file: read whole, replaced whole, never half.

    vaultferry-vault 1 {"check":…,"kdf":…,"salt":…}⏎   nonce (12 bytes)   AES-256-GCM of the content

The first line is authenticated with the content. `check` tells a wrong key from a damaged file: it is derived from the
key beside the one that encrypts, and gives nothing away that a try at decrypting would not. The salt, and so the
derived key, stays with the file; every write has a fresh nonce.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hmac
import json
import os
import secrets as random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shared.errors import AccessDenied, InvalidSecret, MountNotFound, Unavailable, VaultError
from shared.model import canonical_json

Stamp: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size, time of change: another file has another one."""

MAGIC = b"vaultferry-vault 1 "
MIN_PASSPHRASE = 20
LOCK_PATIENCE = 10.0
"""Seconds to wait for another process that writes."""

_NONCE_BYTES = 12
_MAX_HEADER = 1_000
_INFO = b"vaultferry file vault 1"
# 64 MiB and two rounds, as https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#scrypt
_SCRYPT = {"n": 2**16, "r": 8, "p": 2}
# A file that asks for more than this was not written here, and would only stop the machine.
_MAX_SCRYPT_MEMORY = 2**30
_DAMAGED = "the file is damaged or cut; it was left as it is: put a good copy in its place"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def raw_key(text: str) -> bytes | None:
    """The 32 bytes that `text` holds in base64 (either alphabet), or None: a passphrase."""
    try:
        decoded = base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if len(decoded) == 32 else None


@dataclass(frozen=True, slots=True)
class _Lock:
    """A header, and the key that opens what is under it."""

    header: bytes
    key: bytes


class SealedFile:
    """Blocking, and for one thread at a time. Its errors are VaultErrors that do not name the vault yet."""

    def __init__(self, path: Path, key: str) -> None:
        # A link is followed once: replacing it would leave the file that it names behind.
        self._path = Path(os.path.realpath(path.expanduser()))
        self._key = key
        self._lock: _Lock | None = None

    def stamp(self) -> Stamp | None:
        """What `read` would read now; None: there is no file."""
        try:
            return _stamp(os.stat(self._path))
        except FileNotFoundError:
            self._require_folder()
            return None
        except OSError as error:
            failure = _explain(error)
        raise failure

    def read(self) -> tuple[Stamp, bytes]:
        """The content. Raises AccessDenied for a wrong key, InvalidSecret for a file that is no longer whole."""
        try:
            with open(self._path, "rb") as file:
                stamp, data = _stamp(os.fstat(file.fileno())), file.read()
        except OSError as error:
            failure = _explain(error)
        else:
            return stamp, self._open(data)
        raise failure

    def write(self, content: bytes) -> Stamp:
        """Replace the file in one step: whoever reads finds the old or the new content, also after a crash.

        Raises Unavailable, AccessDenied or MountNotFound; the old file is then still there and whole. Only where
        `ambiguous` is set is the new one already in its place.
        """
        lock = self._lock or self._new_lock()
        sealed = lock.header + _seal(lock, content)
        # One name is enough, because whoever writes holds the lock; and what a crash leaves is overwritten.
        draft = self._path.with_name(f".{self._path.name}.tmp")
        try:
            stamp = _write_through(draft, sealed)
            os.replace(draft, self._path)
        except OSError as error:
            failure = _explain(error)
            with contextlib.suppress(OSError):
                draft.unlink()
        else:
            self._lock = lock
            self._keep_name()
            return stamp
        raise failure

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers out, of this process and others. Raises Unavailable when it takes too long."""
        import fcntl

        self._require_folder()
        try:
            descriptor = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            failure = _explain(error)
        else:
            try:
                deadline = time.monotonic() + LOCK_PATIENCE
                while not _try_lock(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    if time.monotonic() > deadline:
                        raise Unavailable("another process keeps the file locked")
                    time.sleep(0.02)
                yield
            finally:
                os.close(descriptor)
            return
        raise failure

    def writable(self) -> str | None:
        """Why a write would fail, as far as that can be said without one; None: it should work."""
        folder = self._path.parent
        if not folder.is_dir():
            return f"the folder {folder} does not exist"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"the folder {folder} can not be written to"
        return None

    def _require_folder(self) -> None:
        if not self._path.parent.is_dir():
            raise MountNotFound(f"the folder {self._path.parent} does not exist")

    def _open(self, data: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        end = data.find(b"\n", 0, _MAX_HEADER) + 1
        if not data.startswith(MAGIC) or not end:
            raise InvalidSecret(f"this is no vault of Vaultferry's, or {_DAMAGED}")
        header, nonce, sealed = data[:end], data[end : end + _NONCE_BYTES], data[end + _NONCE_BYTES :]
        if self._lock is None or self._lock.header != header:
            self._lock = self._unlock(header)
        content = None
        # A nonce or tag that is cut short is a ValueError.
        with contextlib.suppress(InvalidTag, ValueError):
            content = AESGCM(self._lock.key).decrypt(nonce, sealed, header)
        if content is None:
            raise InvalidSecret(_DAMAGED)
        return content

    def _unlock(self, header: bytes) -> _Lock:
        derived = None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            asked = json.loads(header[len(MAGIC) :])
            check = base64.b64decode(asked["check"], validate=True)
            derived = self._derive(asked)
        if derived is None:
            raise InvalidSecret(_DAMAGED)
        key, own_check = derived
        if not key or not hmac.compare_digest(check, own_check):
            raise AccessDenied("the key does not open this file")
        return _Lock(header, key)

    def _new_lock(self) -> _Lock:
        asked: dict[str, Any] = {"kdf": "hkdf", "salt": _text(random.token_bytes(16))}
        if raw_key(self._key) is None:
            asked |= {"kdf": "scrypt", **_SCRYPT}
        key, check = self._derive(asked)
        return _Lock(MAGIC + canonical_json(asked | {"check": _text(check)}).encode() + b"\n", key)

    def _derive(self, asked: dict[str, Any]) -> tuple[bytes, bytes]:
        """The key and its check, by the rule of a header; both empty where the rule is for another sort of key.

        Raises ValueError, KeyError or TypeError for a rule that nobody wrote.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        salt = base64.b64decode(asked["salt"], validate=True)
        master = raw_key(self._key)
        if asked["kdf"] not in ("hkdf", "scrypt"):
            raise ValueError
        if (asked["kdf"] == "scrypt") != (master is None):
            return b"", b""
        if master is None:
            n, r, p = asked["n"], asked["r"], asked["p"]
            if 128 * n * r > _MAX_SCRYPT_MEMORY or p > 16:
                raise ValueError
            master = Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(self._key.encode())
        derived = HKDF(algorithm=SHA256(), length=48, salt=salt, info=_INFO).derive(master)
        return derived[:32], derived[32:]

    def _keep_name(self) -> None:
        """Make the new name survive a power cut. Where that fails, the new file may or may not be there after one."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            failed = Unavailable("the folder could not be written through to the disk", ambiguous=True)
        else:
            return
        raise failed


def _seal(lock: _Lock, content: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = random.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(lock.key).encrypt(nonce, content, lock.header)


def _write_through(path: Path, data: bytes) -> Stamp:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _stamp(os.fstat(file.fileno()))


def _try_lock(flock: Any, descriptor: int, flags: int) -> bool:
    try:
        flock(descriptor, flags)
    except BlockingIOError:
        return False
    except OSError as error:
        failure = _explain(error)
    else:
        return True
    raise failure


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _explain(error: OSError) -> VaultError:
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in _FULL:
        return Unavailable(f"there is no room left to write the file ({reason}); the old one is whole")
    if error.errno in _FORBIDDEN:
        return AccessDenied(f"this user may not do that to the file ({reason})")
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return MountNotFound(f"the path leads to no file ({reason})")
    return Unavailable(f"the file can not be read or written ({reason})")
