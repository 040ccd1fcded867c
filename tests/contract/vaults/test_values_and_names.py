"""What is stored comes back as it was, or is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import InvalidSecret, SecretNotFound
from shared.model import Expect, Secret
from shared.vault import Vault, check_name
from tests.contract.vaults.harness import Harness

PEM = (
    "-----BEGIN CERTIFICATE-----\n"
    + "\n".join(["MIIBszCCAVmgAwIBAgIUEjRWeJ/+" * 2] * 12)
    + "\n-----END CERTIFICATE-----\n"
)


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


# These every vault must be able to hold.
ORDINARY: dict[str, dict[str, Any]] = {
    "one text": {"value": "s3cr3t"},
    "several fields": {"user": "app", "password": "p w", "url": "https://x/?a=b&c=<d>"},
    "a lone field of another name": {"password": "x"},
    "an empty text": {"value": "", "other": "x"},
    "unicode": {"value": "žluťoučký 🦊 \u202e‮ \ufeff\u2028 e\u0301"},
    "many lines": {"value": PEM, "key": PEM},
    "windows lines": {"value": "a\r\nb\r\n\tc "},
    "text that looks like JSON": {"value": '{"a": 1}', "b": "[]", "c": "null", "d": '"quoted"', "e": "1e400"},
    "only text that looks like JSON": {"value": '{"value":"x"}'},
    "white space": {"value": "  \n ", " ": " x "},
    "control characters": {"value": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f", "b": "x"},
    "hostile field names": {"": "empty", "a/b": "1", "../x": "2", "Ä ö": "3", "data": "4", "options": "5", "ttl": "60"},
    "numbers": {"port": 5432, "ratio": 0.1, "small": 1.5e-7, "minus": -3, "zero": 0, "large": 2**53},
    "other JSON": {"yes": True, "no": False, "none": None, "list": [1, "a", None, [True]], "map": {"a": {"b": [{}]}}},
    "a long text": {"value": "k" * 20_000, "b": "x"},
}

# These may be too much for some: then they are refused, and nothing is sent.
HOSTILE: dict[str, dict[str, Any]] = {
    "no fields": {},
    "a lone empty text": {"value": ""},
    "25 KB": {"value": "ž" * 12_800},
    "700 KB": {"value": "x" * 700_000},
    "NUL": {"value": "a\0b"},
    "two thousand fields": {f"field{number}": "x" for number in range(2_000)},
    "a hundred levels": {"value": nested(100)},
    "an integer past 2^53": {"value": 2**53 + 1},
    "a 64-bit integer": {"value": 18_446_744_073_709_551_615},
    "an enormous integer": {"value": 10**400},
    "a float with a large exponent": {"value": 1.5e300},
    "infinity": {"value": float("inf")},
    "not a number": {"value": float("nan")},
    "half a surrogate pair": {"value": "\ud800"},
    "half a pair as a field": {"\udc00": "x"},
    "bytes": {"value": b"x"},
    "a number as a field": {1: "x"},
    "five thousand levels": {"value": nested(5_000)},
}


@pytest.mark.parametrize("fields", ORDINARY.values(), ids=ORDINARY.keys())
async def test_a_value_comes_back_as_it_was(vault: Vault, fields: dict[str, Any]) -> None:
    await vault.set_secret("one", Secret(fields))
    got = (await vault.get_secret("one")).fields
    assert got == fields
    assert {key: type(value) for key, value in got.items()} == {key: type(value) for key, value in fields.items()}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_value_comes_back_as_it_was_or_is_refused_before_anything_is_sent(
    harness: Harness, fields: dict[str, Any]
) -> None:
    vault, before = harness.vault, harness.calls()
    try:
        await vault.set_secret("one", Secret(fields))
    except InvalidSecret as error:
        refused = error.path
        assert harness.calls() == before
        assert refused == "one"
        assert await harness.look("one") is None
    else:
        assert (await vault.get_secret("one")).fields == fields


async def test_writing_replaces_all_fields(vault: Vault) -> None:
    await vault.set_secret("one", Secret({"a": "1", "b": "2"}))
    await vault.set_secret("one", Secret({"b": "3"}))
    assert (await vault.get_secret("one")).fields == {"b": "3"}


async def test_what_others_wrote_is_read(harness: Harness) -> None:
    await harness.put("one", {"value": "by hand"})
    assert (await harness.vault.get_secret("one")).fields == {"value": "by hand"}


async def test_what_is_written_can_be_read_by_others(harness: Harness) -> None:
    await harness.vault.set_secret("one", Secret({"value": "by the ferry"}))
    assert await harness.look("one") == {"value": "by the ferry"}


LEAVING = [
    "",
    ".",
    "..",
    "/",
    "a//b",
    "../x",
    "a/../../x",
    "a/./b",
    "/a",
    "a/",
    "a/..",
    "./a",
    "a\nb",
    "a\0b",
    "a\x7fb",
]


@pytest.mark.parametrize("name", LEAVING)
async def test_a_name_that_could_leave_its_prefix_never_leaves_this_machine(harness: Harness, name: str) -> None:
    vault, before = harness.vault, harness.calls()
    with pytest.raises(InvalidSecret):
        await vault.get_secret(name)
    with pytest.raises(InvalidSecret):
        await vault.set_secret(name, Secret({"value": "x"}))
    with pytest.raises(InvalidSecret):
        await vault.delete_secret(name)
    assert harness.calls() == before


@pytest.mark.parametrize("prefix", ["../", "a/../", "a//", "./", "a\n/", "/"])
async def test_nor_does_such_a_prefix(harness: Harness, prefix: str) -> None:
    before = harness.calls()
    with pytest.raises(InvalidSecret):
        [entry async for entry in harness.vault.list_secrets(prefix)]
    assert harness.calls() == before


HOSTILE_NAMES = [
    "plain",
    "with space",
    " led by one",
    "followed by one ",
    "%2e%2e",
    "%2e%2e/x",
    "%2F",
    "%",
    "%zz",
    "a%20b",
    "...",
    "a..b",
    ".hidden",
    "a.",
    "a#b",
    "a?b",
    "a?version=1",
    "a&b=c",
    "a+b",
    "a;b",
    "a:b",
    "a\\b",
    "a*",
    "{x}",
    "{path}",
    '"quoted"',
    "žluťoučký",
    "🦊",
    "e\u0301",
    "no-break\u00a0space",
    "zero\u200bwidth",
    "\u3000",
    "private\ue000use",
    "data/metadata",
    "UPPER",
    "a_b",
    "deep/" * 20 + "x",
    "n" * 127,
    "n" * 500,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_a_hostile_name_is_stored_as_it_is_or_refused_before_anything_is_sent(
    harness: Harness, name: str
) -> None:
    vault, before = harness.vault, harness.calls()
    try:
        await vault.set_secret(name, Secret({"value": "x"}))
    except InvalidSecret:
        for call in (vault.get_secret(name), vault.delete_secret(name)):
            with pytest.raises(InvalidSecret):
                await call
        assert harness.calls() == before
        return
    assert (await vault.get_secret(name)).fields == {"value": "x"}
    assert await harness.look(name) == {"value": "x"}
    assert [entry.name async for entry in vault.list_secrets()] == [name]
    await vault.delete_secret(name)
    with pytest.raises(SecretNotFound):
        await vault.get_secret(name)


async def test_the_names_that_the_vault_says_it_takes_are_taken(vault: Vault) -> None:
    rule = vault.capabilities.names
    name = rule.fit("Apps_one/db password.v1")
    check_name(vault.id, name, rule)
    await vault.set_secret(name, Secret({"value": "x"}))
    assert (await vault.get_secret(name)).fields == {"value": "x"}


async def test_names_that_differ_by_case_are_what_the_vault_says_they_are(vault: Vault) -> None:
    await vault.set_secret("Name", Secret({"value": "1"}))
    await vault.set_secret("name", Secret({"value": "2"}))
    upper = (await vault.get_secret("Name")).fields
    assert upper == ({"value": "2"} if vault.capabilities.names.ignores_case else {"value": "1"})


async def test_the_longest_name_that_is_allowed_is_taken_and_a_longer_one_refused(harness: Harness) -> None:
    longest = harness.vault.capabilities.names.max_length
    if longest is None:
        longest = 500
        await harness.vault.set_secret("n" * longest, Secret({"value": "x"}))
        return
    await harness.vault.set_secret("n" * longest, Secret({"value": "x"}))
    before = harness.calls()
    with pytest.raises(InvalidSecret, match=str(longest)):
        await harness.vault.set_secret("n" * (longest + 1), Secret({"value": "x"}), expect=Expect.ANY)
    assert harness.calls() == before
