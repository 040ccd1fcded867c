"""Bitwarden's cryptography against vectors that its own clients publish, and against whatever a server could send."""

from __future__ import annotations

import base64
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.vaults.vaultwarden import crypto
from shared.vaults.vaultwarden.crypto import Kdf, KdfKind, SymmetricKey

KEY = SymmetricKey(bytes(range(32)), bytes(range(32, 64)))
PBKDF2 = Kdf(KdfKind.PBKDF2, 10_000)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_pbkdf2_gives_the_published_master_key() -> None:
    key = crypto.master_key("67t9b5g67$%Dh89n", "test_key", PBKDF2)
    assert base64.b64encode(key) == b"H09o4pZHsVrCUKzREYGEUYqnRaf+lQIbJ8VAKhbDVks="


def test_argon2id_gives_the_published_master_key() -> None:
    key = crypto.master_key("67t9b5g67$%Dh89n", "test_key", Kdf(KdfKind.ARGON2ID, 4, 32, 2))
    assert base64.b64encode(key) == b"z/DhsaITo0xiarOv4AkR8BST7S/2lo24PuGD8jM14fI="


@pytest.mark.parametrize(
    ("email", "kdf", "expected"),
    [
        ("test@bitwarden.com", Kdf(KdfKind.PBKDF2, 100_000), "wmyadRMyBZOH7P/a/ucTCbSghKgdzDpPqUnu/DAVtSw="),
        (" TEST@bitwarden.com", Kdf(KdfKind.PBKDF2, 100_000), "wmyadRMyBZOH7P/a/ucTCbSghKgdzDpPqUnu/DAVtSw="),
        ("test_salt", Kdf(KdfKind.ARGON2ID, 4, 32, 2), "PR6UjYmjmppTYcdyTiNbAhPJuQQOmynKbdEl1oyi/iQ="),
    ],
)
def test_the_login_hash_is_the_published_one(email: str, kdf: Kdf, expected: str) -> None:
    assert crypto.login_hash(crypto.master_key("asdfasdf", email, kdf), "asdfasdf") == expected


@pytest.mark.parametrize("kdf", [PBKDF2, Kdf(KdfKind.ARGON2ID, 2, 16, 1)], ids=["pbkdf2", "argon2id"])
def test_an_email_counts_trimmed_and_in_lower_case(kdf: Kdf) -> None:
    assert crypto.master_key("p", " Me@Example.COM ", kdf) == crypto.master_key("p", "me@example.com", kdf)


@pytest.mark.parametrize(
    "kdf",
    [
        Kdf(KdfKind.PBKDF2, 4_999),
        Kdf(KdfKind.PBKDF2, 2_000_001),
        Kdf(KdfKind.PBKDF2, -1),
        Kdf(KdfKind.ARGON2ID, 1, 64, 4),
        Kdf(KdfKind.ARGON2ID, 11, 64, 4),
        Kdf(KdfKind.ARGON2ID, 3, 15, 4),
        Kdf(KdfKind.ARGON2ID, 3, 1025, 4),
        Kdf(KdfKind.ARGON2ID, 3, 64, 0),
        Kdf(KdfKind.ARGON2ID, 3, 64, 17),
    ],
)
def test_a_server_can_weaken_neither_the_login_nor_this_machine(kdf: Kdf) -> None:
    assert kdf.flaw()


@pytest.mark.parametrize("kdf", [Kdf(KdfKind.PBKDF2, 600_000), Kdf(KdfKind.ARGON2ID, 3, 64, 4)])
def test_the_usual_settings_are_followed(kdf: Kdf) -> None:
    assert kdf.flaw() is None


def test_a_stretched_key_is_two_keys_and_opens_what_it_closed() -> None:
    key = crypto.stretched(bytes(32))
    assert key.encryption != key.authentication
    assert crypto.unwrap(crypto.wrap(KEY, key), key) == KEY


def test_no_key_tells_itself() -> None:
    for shown in (repr(KEY), str(KEY), f"{KEY}"):
        assert shown == "SymmetricKey()"


def test_a_key_of_the_newer_format_is_told_as_such() -> None:
    with pytest.raises(InvalidSecret, match="newer account format"):
        SymmetricKey.of(bytes(96))
    with pytest.raises(InvalidSecret, match="upgrades"):
        SymmetricKey.of(bytes(32))


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(("kind", "digest"), [("3", SHA256), ("4", SHA1), ("5", SHA256), ("6", SHA1)])
def test_an_organisation_key_is_opened_with_the_private_key(
    rsa_key: rsa.RSAPrivateKey, kind: str, digest: type[SHA1 | SHA256]
) -> None:
    oaep = padding.OAEP(padding.MGF1(digest()), digest(), None)
    shared = f"{kind}.{base64.b64encode(rsa_key.public_key().encrypt(KEY.raw(), oaep)).decode()}"
    if kind in "56":
        shared += f"|{base64.b64encode(bytes(32)).decode()}"
    der = rsa_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    opened = crypto.private_key(crypto.encrypt(der, KEY), KEY)
    assert crypto.unwrap_shared(shared, opened) == KEY


@pytest.mark.parametrize("wrapped", ["4.AAAA", "4.", "4.AA==|AA==|AA==", "4.!", "2.AA==|AA==|AA==", "7.AA==", "", "9"])
def test_what_is_no_organisation_key_is_told_without_a_trace(rsa_key: rsa.RSAPrivateKey, wrapped: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        crypto.unwrap_shared(wrapped, rsa_key)
    assert caught.value.__context__ is None


def test_a_shared_key_of_another_shape_is_not_opened(rsa_key: rsa.RSAPrivateKey) -> None:
    oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), None)
    data = base64.b64encode(rsa_key.public_key().encrypt(KEY.raw(), oaep)).decode()
    for text, message in (
        (f"4.{data}|AA==", "cut or damaged"),
        (f"6.{data}", "cut or damaged"),
        (f"6.{data}|AA==|AA==", "cut or damaged"),
        (f"2.{data}", "does not belong here"),
        (f"7.{data}", "newer account format"),
        (f"9.{data}", "unknown way"),
    ):
        with pytest.raises(InvalidSecret, match=message):
            crypto.unwrap_shared(text, rsa_key)


def test_a_private_key_that_is_none_is_told() -> None:
    with pytest.raises(InvalidSecret, match="private RSA key"):
        crypto.private_key(crypto.encrypt(b"no key", KEY), KEY)


# --- EncStrings ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert crypto.decrypt_text(crypto.encrypt(text, KEY), KEY) == text


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_come_back(content: bytes) -> None:
    assert crypto.decrypt(crypto.encrypt(content, KEY), KEY) == content


def test_the_same_text_never_looks_the_same() -> None:
    assert crypto.encrypt("same", KEY) != crypto.encrypt("same", KEY)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidSecret, match="half a character") as caught:
        crypto.encrypt("a\ud800", KEY)
    assert caught.value.__context__ is None


@settings(deadline=None)
@given(st.data())
def test_no_changed_bit_passes(data: st.DataObject) -> None:
    parts = [bytearray(base64.b64decode(part)) for part in crypto.encrypt("secret value", KEY)[2:].split("|")]
    part = data.draw(st.sampled_from(parts))
    part[data.draw(st.integers(0, len(part) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InvalidSecret, match="MAC is wrong"):
        crypto.decrypt("2." + "|".join(base64.b64encode(part).decode() for part in parts), KEY)


@settings(deadline=None)
@given(st.text("0123456789.|=+/AZaz "))
def test_anything_else_is_refused_as_a_secret_and_not_as_a_defect(text: str) -> None:
    with pytest.raises(InvalidSecret):
        crypto.decrypt(text, KEY)


@settings(deadline=None)
@given(st.integers(0))
def test_a_cut_text_is_refused(length: int) -> None:
    whole = crypto.encrypt("a secret value of some length", KEY)
    with pytest.raises(InvalidSecret):
        crypto.decrypt(whole[: length % len(whole)], KEY)


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(InvalidSecret, match="MAC is wrong"):
        crypto.decrypt(crypto.encrypt("value", SymmetricKey.generate()), KEY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.AAAAAAAAAAAAAAAAAAAAAA==|AAAAAAAAAAAAAAAAAAAAAA==", "old way"),
        ("1.AA==|AA==|AA==", "old way"),
        ("4.AAAA", "does not belong here"),
        ("7.g1gcowE6AAERb", "newer account format"),
        ("8.AA==", "unknown way"),
        ("plain text", "not encrypted"),
        ("2.AA==|AA==", "cut or damaged"),
        ("2.AA==|AA==|AA==", "cut or damaged"),
        ("2.??|??|??", "cut or damaged"),
    ],
)
def test_each_way_of_being_wrong_has_its_words(text: str, message: str) -> None:
    with pytest.raises(InvalidSecret, match=message) as caught:
        crypto.decrypt(text, KEY)
    assert caught.value.__context__ is None


def test_a_wrong_padding_behind_a_right_mac_is_damage() -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES256(KEY.encryption), modes.CBC(bytes(16))).encryptor()
    data = encryptor.update(bytes(16)) + encryptor.finalize()
    mac = hmac.digest(KEY.authentication, bytes(16) + data, "sha256")
    text = "2." + "|".join(base64.b64encode(part).decode() for part in (bytes(16), data, mac))
    with pytest.raises(InvalidSecret, match="damaged"):
        crypto.decrypt(text, KEY)


def test_what_is_not_text_is_told() -> None:
    with pytest.raises(InvalidSecret, match="not text"):
        crypto.decrypt_text(crypto.encrypt(b"\xff", KEY), KEY)
