"""Bitwarden's cryptography, as clients do it: pure functions on bytes, which neither ask a server nor keep anything.

From the master password to a field (https://bitwarden.com/help/bitwarden-security-white-paper/):

    password, e-mail --PBKDF2 or Argon2id--> master key --1 round of PBKDF2--> what the server checks at a login
    master key --HKDF-Expand--> stretched key, opens --> user key, opens --> fields of one's own items, private RSA key
    private RSA key, opens --> organisation key, opens --> fields of its items
    An item may have a key of its own, which the user's or organisation's key opens.

What is encrypted travels as text, an *EncString*: `type.part|part|part`, the parts in base64. Type 2 (AES-256-CBC and
HMAC-SHA256 over IV and ciphertext) is what all current clients write. Type 0 has no MAC, so that who can write to the
server can change it unseen; it is refused, as official clients refuse it. Type 7 (XChaCha20-Poly1305 in COSE) belongs
to a newer account format and is told apart from damage.

Everything here raises InvalidSecret for what can not be opened; the caller, which knows the vault and the item, fills
in where. No message quotes what was given.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import secrets as random
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import load_der_private_key

from shared.errors import InvalidSecret

_KEY = 32
_BLOCK = 16
_TAG = 32
# The types whose single part RSA opens; of 5 and 6, a MAC follows that no client checks (it never had a key of its own).
# https://contributing.bitwarden.com/architecture/cryptography/crypto-guide
_RSA_SHA256 = ("3", "5")
_RSA_SHA1 = ("4", "6")
_NEWER = "it is encrypted in Bitwarden's newer account format (XChaCha20, type 7), which is not supported here"


# --- from the password to a key -----------------------------------------------------------------------------------


class KdfKind(enum.IntEnum):
    """How a master key is made, in the numbers of the prelogin."""

    PBKDF2 = 0
    ARGON2ID = 1


@dataclass(frozen=True, slots=True)
class Kdf:
    """What the prelogin says about an account. `memory` in MiB; `memory` and `parallelism` are Argon2id's only."""

    kind: KdfKind
    iterations: int
    memory: int = 0
    parallelism: int = 0

    def flaw(self) -> str | None:
        """Why a client should not follow this, or None.

        The server chooses these numbers before it has proved anything: too weak ones would let it guess the password
        from the login's hash, too strong ones would stop this process. Bounds: what official clients enforce.
        https://bitwarden.com/help/kdf-algorithms/
        """
        bounds = {"iterations": (self.iterations, 5_000, 2_000_000)}
        if self.kind is KdfKind.ARGON2ID:
            bounds = {
                "iterations": (self.iterations, 2, 10),
                "memory": (self.memory, 16, 1024),
                "parallelism": (self.parallelism, 1, 16),
            }
        for name, (given, least, most) in bounds.items():
            if not least <= given <= most:
                return f"{self.kind.name} with {name} {given} (expected {least} to {most})"
        return None


def master_key(password: str, email: str, kdf: Kdf) -> bytes:
    """The root of all keys. Takes up to seconds and `kdf.memory`: not for the event loop."""
    salt = email.strip().lower().encode()
    if kdf.kind is KdfKind.PBKDF2:
        return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, kdf.iterations, _KEY)

    # A salt of fixed length, since an e-mail may be shorter than Argon2 takes.
    return Argon2id(
        salt=hashlib.sha256(salt).digest(),
        length=_KEY,
        iterations=kdf.iterations,
        lanes=kdf.parallelism,
        memory_cost=kdf.memory * 1024,
    ).derive(password.encode())


def login_hash(key: bytes, password: str) -> str:
    """What the server is shown instead of the password."""
    return base64.b64encode(hashlib.pbkdf2_hmac("sha256", key, password.encode(), 1, _KEY)).decode()


# --- keys ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SymmetricKey:
    """One key for AES-256-CBC and one for its HMAC-SHA256. Its repr tells nothing."""

    encryption: bytes = field(repr=False)
    authentication: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SymmetricKey:
        return cls(random.token_bytes(_KEY), random.token_bytes(_KEY))

    @classmethod
    def of(cls, raw: bytes) -> SymmetricKey:
        """The key in these 64 bytes. Raises InvalidSecret for keys of older and newer account formats."""
        if len(raw) == 2 * _KEY:
            return cls(raw[:_KEY], raw[_KEY:])
        if len(raw) > 2 * _KEY:
            raise InvalidSecret(_NEWER)
        raise InvalidSecret("its key has no part for a MAC: an old format that a login to the web vault upgrades")

    def raw(self) -> bytes:
        return self.encryption + self.authentication


def stretched(key: bytes) -> SymmetricKey:
    """The master key, made into a pair that opens the user key."""
    return SymmetricKey(
        HKDFExpand(SHA256(), _KEY, b"enc").derive(key),
        HKDFExpand(SHA256(), _KEY, b"mac").derive(key),
    )


def wrap(key: SymmetricKey, by: SymmetricKey) -> str:
    """A key as an EncString that another key opens."""
    return encrypt(key.raw(), by)


def unwrap(wrapped: str, by: SymmetricKey) -> SymmetricKey:
    return SymmetricKey.of(decrypt(wrapped, by))


def private_key(wrapped: str, by: SymmetricKey) -> RSAPrivateKey:
    """An account's private key (PKCS 8)."""
    der = decrypt(wrapped, by)
    try:
        key = load_der_private_key(der, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise InvalidSecret("what should be a private RSA key is none")
    return key


def unwrap_shared(wrapped: str, by: RSAPrivateKey) -> SymmetricKey:
    """A key that somebody encrypted for this account: an organisation's."""
    kind, parts = _split(wrapped)
    if kind not in (*_RSA_SHA1, *_RSA_SHA256):
        raise InvalidSecret(_unknown(kind))
    if len(parts) != (1 if kind in ("3", "4") else 2):
        raise InvalidSecret(_DAMAGED)
    digest = SHA1 if kind in _RSA_SHA1 else SHA256
    data = _bytes(parts[0])
    try:
        raw = by.decrypt(data, OAEP(MGF1(digest()), digest(), None))
    except ValueError:
        raw = None
    if raw is None:
        raise InvalidSecret("it was not encrypted for this account, or is damaged")
    return SymmetricKey.of(raw)


# --- EncStrings ---------------------------------------------------------------------------------------------------

_DAMAGED = "its encrypted text is cut or damaged"
_FORGED = "its MAC is wrong: damaged, changed by somebody, or encrypted with another key"


def encrypt(content: str | bytes, key: SymmetricKey) -> str:
    """An EncString of type 2. Raises InvalidSecret for text that is not unicode (a lone surrogate)."""
    plain = content if isinstance(content, bytes) else _utf8(content)
    # PKCS 7.
    missing = _BLOCK - len(plain) % _BLOCK
    iv = random.token_bytes(_BLOCK)
    encryptor = Cipher(AES256(key.encryption), CBC(iv)).encryptor()
    data = encryptor.update(plain + bytes([missing]) * missing) + encryptor.finalize()
    mac = hmac.digest(key.authentication, iv + data, "sha256")
    return f"2.{_text(iv)}|{_text(data)}|{_text(mac)}"


def decrypt(enc_string: str, key: SymmetricKey) -> bytes:
    """What an EncString of type 2 holds. Its MAC is checked first, in constant time."""
    kind, parts = _split(enc_string)
    if kind != "2":
        raise InvalidSecret(_unknown(kind))
    if len(parts) != 3:
        raise InvalidSecret(_DAMAGED)
    iv, data, mac = map(_bytes, parts)
    if len(iv) != _BLOCK or len(mac) != _TAG or not data or len(data) % _BLOCK:
        raise InvalidSecret(_DAMAGED)
    if not hmac.compare_digest(hmac.digest(key.authentication, iv + data, "sha256"), mac):
        raise InvalidSecret(_FORGED)
    decryptor = Cipher(AES256(key.encryption), CBC(iv)).decryptor()
    plain = decryptor.update(data) + decryptor.finalize()
    missing = plain[-1]
    # What a wrong padding tells is only told to who has made a right MAC.
    if not 1 <= missing <= _BLOCK or plain[-missing:] != bytes([missing]) * missing:
        raise InvalidSecret(_DAMAGED)
    return plain[:-missing]


def decrypt_text(enc_string: str, key: SymmetricKey) -> str:
    plain = decrypt(enc_string, key)
    try:
        return plain.decode()
    except UnicodeDecodeError:
        pass
    raise InvalidSecret("it was decrypted, but is not text")


def _split(enc_string: str) -> tuple[str, list[str]]:
    kind, dot, rest = enc_string.partition(".")
    if not dot:
        raise InvalidSecret("it is not encrypted as Bitwarden's clients do it")
    return kind, rest.split("|")


def _unknown(kind: str) -> str:
    if kind == "7":
        return _NEWER
    if kind in ("0", "1"):
        return f"it is encrypted in an old way (type {kind}) that is not safe; edit and save it in the web vault"
    if kind in (*_RSA_SHA1, *_RSA_SHA256, "2"):
        return f"it is encrypted in a way (type {kind}) that does not belong here"
    return "it is encrypted in an unknown way"


def _bytes(part: str) -> bytes:
    try:
        return base64.b64decode(part, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidSecret(_DAMAGED)


def _text(part: bytes) -> str:
    return base64.b64encode(part).decode()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    raise InvalidSecret("it holds half a character (a lone surrogate), which can not be encrypted")
