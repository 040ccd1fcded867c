"""A secret's fields and an item's document: the same both ways, and nothing lost of what is not ours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidSecret
from shared.vaults.vaultwarden import crypto, items
from shared.vaults.vaultwarden.crypto import SymmetricKey

KEY = SymmetricKey.generate()
NOW = datetime(2026, 5, 4, 3, 2, 1, 987654, UTC)
ENCRYPTED = ("name", "notes", "value", "username", "password", "totp", "uri", "number", "code", "privateKey")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    st.sampled_from(["username", "password", "totp", "uri", "uri2", "uri3", "notes", "value", "", items.MARK]) | TEXT
)
# Hypothesis takes texts out of the code that it tests, and this one is refused.
NAMES = NAMES.filter(lambda name: name != items.PLACES)
FIELDS = st.dictionaries(NAMES, JSON | TEXT.map(lambda text: items.MARK + text), max_size=6)


def by_hand(document: Mapping[str, Any], key: SymmetricKey = KEY) -> dict[str, Any]:
    """A document as a person's client makes it: texts under the names that are encrypted, encrypted."""

    def seal(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {each: seal(each, inner) for each, inner in value.items()}
        if isinstance(value, list):
            return [seal(name, each) for each in value]
        return crypto.encrypt(value, key) if name in ENCRYPTED and isinstance(value, str) else value

    sealed: dict[str, Any] = seal("", {"id": "1", "revisionDate": "2026-01-01T00:00:00.000000Z", **document})
    return sealed


def stored(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as the server keeps it."""
    return {"id": "1", "revisionDate": "2026-01-01T00:00:00.000000Z", **request}


def opened(document: Mapping[str, Any]) -> items.Item:
    return items.opened(document, "", KEY)


def read(document: Mapping[str, Any]) -> dict[str, Any]:
    return items.fields_of(opened(document))


def login(**more: Any) -> dict[str, Any]:
    return by_hand({"type": 1, "name": "db", "login": {"username": "app", "password": "old"}, **more})


def field(name: str, value: str, kind: int = items.HIDDEN) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": value, "linkedId": None}


def plain(text: str, item: items.Item) -> str:
    return crypto.decrypt_text(text, item.key)


# --- both ways ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(FIELDS)
def test_what_is_written_comes_back_as_it_was(fields: dict[str, Any]) -> None:
    items.check_fields(fields)
    got = read(stored(items.created("db", fields, KEY)))
    assert got == fields
    assert {name: type(value) for name, value in got.items()} == {name: type(value) for name, value in fields.items()}


@settings(deadline=None)
@given(FIELDS, FIELDS)
def test_an_update_leaves_exactly_the_new_fields(before: dict[str, Any], after: dict[str, Any]) -> None:
    document = stored(items.created("db", before, KEY))
    assert read(stored(items.updated(opened(document), after, NOW))) == after


@settings(deadline=None)
@given(FIELDS)
def test_a_persons_item_that_is_taken_over_reads_as_what_was_written(fields: dict[str, Any]) -> None:
    uris = [{"uri": "https://one", "match": 3}, {"uri": "https://two", "match": None}]
    mine = login(notes="by hand", login={"username": "x", "uris": uris}, fields=[field("colour", "red", items.TEXT)])
    assert read(stored(items.updated(opened(mine), fields, NOW))) == fields


def test_fields_go_where_a_person_looks_for_them() -> None:
    fields = {
        "username": "app",
        "password": "s3cret",
        "totp": "JBSWY3DP",
        "uri": "https://db.example",
        "uri2": "https://db2.example",
        "notes": "n",
        "port": 5432,
        "host": "db",
    }
    request = items.created("db", fields, KEY)
    item = opened(stored(request))
    own = request["login"]
    assert request["type"] == items.LOGIN
    assert [plain(own[name], item) for name in ("username", "password", "totp")] == ["app", "s3cret", "JBSWY3DP"]
    assert [plain(each["uri"], item) for each in own["uris"]] == ["https://db.example", "https://db2.example"]
    assert plain(request["notes"], item) == "n"
    custom = {plain(each["name"], item): (each["type"], plain(each["value"], item)) for each in request["fields"]}
    assert custom == {
        "host": (items.HIDDEN, "db"),
        "port": (items.HIDDEN, f"{items.MARK}5432"),
        items.PLACES: (items.TEXT, "notes uri uri2"),
    }


def test_a_lone_value_is_a_hidden_field_of_a_secure_note() -> None:
    request = items.created("token", {"value": "s3cret"}, KEY)
    item = opened(stored(request))
    assert request["type"] == items.NOTE
    assert request["secureNote"] == {"type": 0}
    assert [(each["type"], plain(each["name"], item)) for each in request["fields"]] == [(items.HIDDEN, "value")]


def test_a_new_item_has_a_key_of_its_own() -> None:
    request = items.created("db", {"value": "x"}, KEY)
    item = opened(stored(request))
    assert item.key != KEY
    assert crypto.unwrap(request["key"], KEY) == item.key


def test_a_uri_comes_with_the_checksum_without_which_clients_drop_it() -> None:
    request = items.created("db", {"uri": "https://ž.example"}, KEY)
    item = opened(stored(request))
    checksum = base64.b64encode(hashlib.sha256("https://ž.example".encode()).digest()).decode()
    assert plain(request["login"]["uris"][0]["uriChecksum"], item) == checksum


def test_a_persons_items_are_read() -> None:
    uris = [{"uri": "https://one"}, {"uri": "https://two"}]
    fields = [field("pin", "1234"), field("yes", "true", items.BOOLEAN), field("free", "text", items.TEXT)]
    fields += [{"type": items.LINKED, "name": "user", "value": None, "linkedId": 100}]
    fields += [{"type": items.TEXT, "name": "empty", "value": None}]
    document = login(
        notes="a\nb", login={"username": "app", "password": None, "totp": "T", "uris": uris}, fields=fields
    )
    assert read(document) == {
        "username": "app",
        "totp": "T",
        "uri": "https://one",
        "uri2": "https://two",
        "notes": "a\nb",
        "pin": "1234",
        "yes": "true",
        "free": "text",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("kind", "part", "own", "expected"),
    [
        (3, "card", {"number": "4111", "code": "123", "brand": None}, {"number": "4111", "code": "123"}),
        (4, "identity", {"username": "ada"}, {"username": "ada"}),
    ],
)
def test_cards_and_identities_are_read_and_written(
    kind: int, part: str, own: dict[str, Any], expected: dict[str, Any]
) -> None:
    document = by_hand({"type": kind, "name": "x", part: own})
    assert read(document) == expected
    name = next(iter(expected))
    again = stored(items.updated(opened(document), {name: "new", "other": "y"}, NOW))
    assert again["type"] == kind
    assert read(again) == {name: "new", "other": "y"}


SSH = {"privateKey": "-----BEGIN", "publicKey": "ssh-ed25519 AAAA", "keyFingerprint": "SHA256:x"}


def ssh_key(own: Mapping[str, str] | None) -> dict[str, Any]:
    sealed = {name: crypto.encrypt(text, KEY) for name, text in own.items()} if own else None
    return {**by_hand({"type": 5, "name": "x"}), "sshKey": sealed}


def test_an_ssh_key_is_read_and_written() -> None:
    assert read(ssh_key(SSH)) == SSH
    again = stored(items.updated(opened(ssh_key(SSH)), {**SSH, "privateKey": "new", "other": "y"}, NOW))
    assert again["type"] == 5
    assert read(again) == {**SSH, "privateKey": "new", "other": "y"}


@pytest.mark.parametrize("lost", SSH)
@pytest.mark.parametrize("how", ["gone", "empty", "no text"])
def test_an_ssh_key_that_the_server_would_never_hand_out_again_is_not_written(lost: str, how: str) -> None:
    fields: dict[str, Any] = {**SSH, "other": "y"}
    if how == "gone":
        del fields[lost]
    else:
        fields[lost] = "" if how == "empty" else 7
    with pytest.raises(InvalidSecret, match="needs privateKey, publicKey, keyFingerprint"):
        items.updated(opened(ssh_key(SSH)), fields, NOW)


def test_an_ssh_key_that_the_server_does_not_hand_out_is_not_empty() -> None:
    with pytest.raises(InvalidSecret, match="hands out nothing"):
        read(ssh_key(None))


def test_an_old_item_without_fields_is_read() -> None:
    assert read(by_hand({"type": 2, "name": "x", "notes": None, "fields": None, "secureNote": {"type": 0}})) == {}


# --- what is not ours ---------------------------------------------------------------------------------------------


def test_an_update_keeps_what_it_does_not_know() -> None:
    passkey = {"credentialId": "2.x", "creationDate": "2026-01-01T00:00:00Z"}
    uris = [{"uri": "https://one", "match": 3}]
    own = {
        "username": "app",
        "password": "old",
        "uris": uris,
        "autofillOnPageLoad": True,
        "fido2Credentials": [passkey],
    }
    linked = {"type": items.LINKED, "name": "user", "value": None, "linkedId": 100}
    document = login(
        login=own,
        notes="by hand",
        fields=[linked],
        favorite=True,
        reprompt=1,
        folderId="f",
        organizationId="o",
        archivedDate="2026-02-02T00:00:00Z",
        passwordHistory=[{"password": "older", "lastUsedDate": "2025-01-01T00:00:00Z"}],
    )
    request = items.updated(opened(document), {"username": "app", "password": "old"}, NOW)
    for name in ("notes", "favorite", "reprompt", "folderId", "organizationId", "archivedDate", "passwordHistory"):
        assert request[name] == document[name]
    assert request["login"]["uris"] == document["login"]["uris"]
    assert request["login"]["fido2Credentials"] == [passkey]
    assert request["login"]["autofillOnPageLoad"] is True
    assert request["fields"][0] == document["fields"][0]
    assert request["lastKnownRevisionDate"] == document["revisionDate"]
    assert read(stored(request)) == {"username": "app", "password": "old"}


def test_notes_and_uris_that_a_person_adds_stay_and_those_that_the_source_loses_go() -> None:
    document = stored(items.created("db", {"password": "1", "uri": "https://ours", "notes": "ours"}, KEY))
    item = opened(document)
    document["login"]["uris"].append({"uri": crypto.encrypt("https://theirs", item.key), "match": 1})
    assert read(document) == {"password": "1", "uri": "https://ours", "notes": "ours"}
    after = stored(items.updated(opened(document), {"password": "2"}, NOW))
    assert [plain(each["uri"], item) for each in after["login"]["uris"]] == ["https://theirs"]
    assert after["notes"] is None
    assert read(after) == {"password": "2"}
    back = stored(items.updated(opened(after), {"password": "2", "uri": "https://new"}, NOW))
    assert [plain(each["uri"], item) for each in back["login"]["uris"]] == ["https://new", "https://theirs"]
    assert read(back) == {"password": "2", "uri": "https://new"}


def test_a_field_stays_of_the_kind_that_a_person_gave_it() -> None:
    fields = [field("free", "a", items.TEXT), field("on", "true", items.BOOLEAN), field("off", "true", items.BOOLEAN)]
    request = items.updated(opened(login(fields=fields)), {"on": "false", "free": "b", "off": "maybe"}, NOW)
    assert [each["type"] for each in request["fields"]] == [items.TEXT, items.BOOLEAN, items.HIDDEN]
    assert read(stored(request)) == {"free": "b", "on": "false", "off": "maybe"}


# --- password history ---------------------------------------------------------------------------------------------


def history(request: Mapping[str, Any]) -> list[str]:
    return [crypto.decrypt_text(each["password"], KEY) for each in request["passwordHistory"] or []]


def test_another_password_goes_into_the_history_with_its_date() -> None:
    request = items.updated(opened(login()), {"username": "app", "password": "new"}, NOW)
    assert history(request) == ["old"]
    assert request["passwordHistory"][0]["lastUsedDate"] == "2026-05-04T03:02:01.987Z"
    assert request["login"]["passwordRevisionDate"] == "2026-05-04T03:02:01.987Z"


def test_the_same_password_does_not() -> None:
    request = items.updated(opened(login()), {"username": "other", "password": "old"}, NOW)
    assert request["passwordHistory"] is None
    assert "passwordRevisionDate" not in request["login"]


def test_hidden_fields_do_as_with_official_clients_and_text_does_not() -> None:
    document = login(fields=[field("pin", "1"), field("lost", "2"), field("free", "3", items.TEXT), field("same", "4")])
    request = items.updated(opened(document), {"password": "old", "pin": "9", "free": "9", "same": "4"}, NOW)
    assert history(request) == ["pin: 1", "lost: 2"]


def test_the_history_keeps_five() -> None:
    earlier = [{"password": str(number), "lastUsedDate": "2025-01-01T00:00:00Z"} for number in range(5)]
    request = items.updated(opened(login(passwordHistory=earlier)), {"password": "new"}, NOW)
    assert history(request) == ["old", "0", "1", "2", "3"]


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_each_save_is_another_fingerprint_and_a_move_is_none() -> None:
    document = login()
    again = stored(items.updated(opened(document), {"username": "app", "password": "old"}, NOW))
    assert items.fingerprint(again) != items.fingerprint(document)
    moved = {
        **document,
        "folderId": "f",
        "favorite": True,
        "revisionDate": "2027-01-01T00:00:00Z",
        "collectionIds": ["c"],
    }
    assert items.fingerprint(moved) == items.fingerprint(document)


# --- damage -------------------------------------------------------------------------------------------------------


def test_two_fields_of_one_name_are_an_error_and_no_guess() -> None:
    for document in (login(fields=[field("x", "1"), field("x", "2")]), login(fields=[field("username", "other")])):
        with pytest.raises(InvalidSecret, match="same name"):
            read(document)


def test_what_is_marked_as_json_and_is_none_is_an_error() -> None:
    for text in ("{", "NaN", "[" * 5000):
        with pytest.raises(InvalidSecret, match="marked as JSON") as caught:
            read(login(fields=[field("x", items.MARK + text)]))
        assert caught.value.__context__ is None


def test_the_numbers_of_kinds_are_those_of_the_api() -> None:
    assert (items.TEXT, items.HIDDEN, items.BOOLEAN, items.LINKED) == (0, 1, 2, 3)
    assert (items.LOGIN, items.NOTE, items.SSH_KEY) == (1, 2, 5)


@pytest.mark.parametrize("value", [float("nan"), {"deep": [float("inf")]}, b"bytes"])
def test_what_is_not_json_is_refused_before_anything_is_sent(value: Any) -> None:
    with pytest.raises(InvalidSecret):
        items.check_fields({"x": value})


@pytest.mark.parametrize("fields", [{"a\ud800": "x"}, {"x": "a\ud800"}], ids=["name", "value"])
def test_half_a_character_is_refused_before_anything_is_sent(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidSecret, match="half a character"):
        items.check_fields(fields)


def test_a_field_can_not_take_the_name_of_our_own_notes() -> None:
    with pytest.raises(InvalidSecret, match="places"):
        items.check_fields({items.PLACES: "x"})


def test_an_unknown_kind_of_item_is_told() -> None:
    with pytest.raises(InvalidSecret, match="kind that is not known"):
        read(by_hand({"type": 9, "name": "x", "passport": {}}))


DAMAGE = st.sampled_from(
    ["", "x", "0.AA==|AA==", "2.AA==|AA==|AA==", "7.AA==", "9.x", crypto.encrypt("x", SymmetricKey.generate())]
)


@settings(deadline=None)
@given(st.data())
def test_whatever_the_server_sends_is_an_item_or_an_error_about_it(data: st.DataObject) -> None:
    junk = st.none() | st.integers() | st.booleans() | st.lists(st.none()) | st.dictionaries(TEXT, TEXT) | DAMAGE
    document = login(notes="n", fields=[field("a", "1")], login={"username": "u", "uris": [{"uri": "https://x"}]})
    parts: list[tuple[Any, ...]] = [
        ("name",),
        ("notes",),
        ("key",),
        ("type",),
        ("fields",),
        ("login",),
        ("passwordHistory",),
        ("fields", 0),
    ]
    parts += [("fields", 0, "name"), ("fields", 0, "value"), ("fields", 0, "type"), ("login", "username")]
    parts += [("login", "uris"), ("login", "uris", 0), ("login", "uris", 0, "uri")]
    path = data.draw(st.sampled_from(parts))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = data.draw(junk)
    try:
        item = opened(document)
        items.fields_of(item)
        items.updated(item, {"a": "2"}, NOW)
    except InvalidSecret:
        pass
