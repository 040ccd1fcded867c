"""An item's document, as it travels encrypted, and the fields of the secret that it holds. No I/O.

Fields with a place of their own go there: `username`, `password`, `totp`, `uri` (then `uri2`, `uri3` …) of a login, and
`notes`; a card's, an identity's and an SSH key's parts are fields under their API names. All others are custom fields,
hidden ones unless a person has made them otherwise. Text stays as it is; any other JSON value becomes canonical JSON
behind the mark below, so that it comes back as what it was.

People write notes and add URIs to items that belong to a sync. So that an update neither removes what is theirs nor
leaves behind what the source has lost, a text field `vaultferry:places` lists which of these places hold fields of the
secret. It is only there when such a place is in use. Without it, all that is in an item belongs to the secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from shared import onestring
from shared.errors import InvalidSecret
from shared.model import Entry, Fields, canonical_json
from shared.vaults.vaultwarden import crypto
from shared.vaults.vaultwarden.crypto import SymmetricKey

Document = Mapping[str, Any]

MARK = f"data:{onestring.CONTENT_TYPE},"
"""Before a custom field's JSON. Never change it: it is in other people's vaults."""
PLACES = "vaultferry:places"
"""The text field that lists which notes and URIs are fields. Never change it either."""

LOGIN, NOTE, SSH_KEY = 1, 2, 5
TEXT, HIDDEN, BOOLEAN, LINKED = 0, 1, 2, 3
# https://github.com/bitwarden/clients/tree/main/libs/common/src/vault/models/api
_PARTS: dict[int, tuple[str, tuple[str, ...]]] = {
    LOGIN: ("login", ("username", "password", "totp")),
    NOTE: ("secureNote", ()),
    3: ("card", ("cardholderName", "brand", "number", "expMonth", "expYear", "code")),
    4: (
        "identity",
        (
            *("title", "firstName", "middleName", "lastName", "address1", "address2", "address3", "city", "state"),
            *("postalCode", "country", "company", "email", "phone", "ssn", "username", "passportNumber"),
            "licenseNumber",
        ),
    ),
    SSH_KEY: ("sshKey", ("privateKey", "publicKey", "keyFingerprint")),
}
_HISTORY = 5
"""How many earlier values official clients keep."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the vault. Its document is ciphertext; its key is not."""

    document: Document = field(repr=False)
    entry: Entry
    prefix: str
    """Of its place; the entry's name has it in front."""
    key: SymmetricKey

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def name(self) -> str:
        return self.entry.name


class _Custom(NamedTuple):
    kind: int
    name: str
    value: str


def opened(document: Document, prefix: str, key: SymmetricKey) -> Item:
    """An item whose name can be read. `key`: the account's or organisation's. Raises InvalidSecret."""
    wrapped = document.get("key")
    own = crypto.unwrap(wrapped, key) if isinstance(wrapped, str) else key
    entry = Entry(
        prefix + _read(document.get("name"), own),
        fingerprint=fingerprint(document),
        updated_at=moment(document.get("revisionDate")),
        # False: the organisation hides passwords from this account.
        enabled=document.get("viewPassword") is not False,
    )
    return Item(document, entry, prefix, own)


def fingerprint(document: Document) -> str:
    """What changes whenever an item is saved, by whatever client.

    Not `revisionDate` itself: servers on MySQL count whole seconds, and tell more digits in the answer to a write than
    ever after. Each save encrypts anew, with another IV, and ciphertext is what says so without doubt.
    """
    parts = ("key", "name", "notes", "fields", *(part for part, _ in _PARTS.values()))
    digest = hashlib.sha256()
    for text in _ciphertexts([document.get(part) for part in parts]):
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:32]


def _ciphertexts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value[1:2] == ".":
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _ciphertexts(each)
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _ciphertexts(value[name])


# --- reading ------------------------------------------------------------------------------------------------------


def fields_of(item: Item) -> dict[str, Any]:
    """What the item holds. Raises InvalidSecret for what can not be decrypted, and for two fields of one name."""
    document, key = item.document, item.key
    own, names = _own(document)
    customs = list(_customs(document, key))
    ours = _ours(customs)
    found = [(name, _read(own[name], key)) for name in names if own.get(name) is not None]
    for name, text in _shared_places(document, own):
        if text is not None and (ours is None or name in ours):
            found.append((name, _read(text, key)))
    found += [(each.name, _value(each.value)) for each in customs if each.kind != LINKED and each.name != PLACES]
    fields = dict(found)
    if len(fields) != len(found):
        raise InvalidSecret("two of its fields have the same name: rename one of them")
    return fields


def _own(document: Document) -> tuple[dict[str, Any], tuple[str, ...]]:
    kind = document.get("type")
    if not isinstance(kind, int) or kind not in _PARTS:
        raise InvalidSecret("it is an item of a kind that is not known here")
    part, names = _PARTS[kind]
    own = document.get(part)
    if own is None and kind == SSH_KEY:
        # What Vaultwarden says of one that is not whole. Read as empty, it would empty its copies.
        raise InvalidSecret("it is an SSH key of which the server hands out nothing, since a part of it is missing")
    return (dict(own) if isinstance(own, dict) else {}), names


def _customs(document: Document, key: SymmetricKey) -> Iterator[_Custom]:
    for each in _documents(document.get("fields")):
        name, value, kind = each.get("name"), each.get("value"), each.get("type")
        # Official clients leave out what is empty.
        yield _Custom(
            kind if kind in (TEXT, BOOLEAN, LINKED) else HIDDEN,
            "" if name is None else _read(name, key),
            "" if value is None else _read(value, key),
        )


def _ours(customs: list[_Custom]) -> frozenset[str] | None:
    """Which notes and URIs are fields of the secret; None: nobody has said, so all are."""
    for each in customs:
        if each.name == PLACES:
            return frozenset(each.value.split())
    return None


def _shared_places(document: Document, own: Document) -> Iterator[tuple[str, Any]]:
    """The places that people use beside us: their field names, and what is encrypted in them."""
    yield "notes", document.get("notes")
    if document.get("type") == LOGIN:
        for number, each in enumerate(_documents(own.get("uris"))):
            yield _uri_name(number), each.get("uri")


def _documents(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InvalidSecret("it is not shaped as an item is")
    return value


def _uri_name(number: int) -> str:
    return "uri" if number == 0 else f"uri{number + 1}"


def _read(text: Any, key: SymmetricKey) -> str:
    if not isinstance(text, str):
        raise InvalidSecret("a part of it is not text, as everything encrypted is")
    return crypto.decrypt_text(text, key)


def _value(text: str) -> Any:
    if not text.startswith(MARK):
        return text
    try:
        return json.loads(text.removeprefix(MARK), parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    raise InvalidSecret("a field is marked as JSON, but is none")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# --- writing ------------------------------------------------------------------------------------------------------


def check_fields(fields: Fields) -> None:
    """Raises InvalidSecret for what could not be brought back as it was, before anything is sent."""
    onestring.to_json(fields)
    for name, value in fields.items():
        for text in (name, value):
            if isinstance(text, str) and not _is_unicode(text):
                raise InvalidSecret("it holds half a character (a lone surrogate), which can not be encrypted")
    if PLACES in fields:
        raise InvalidSecret(f"a field can not be called {PLACES}, which is what Vaultferry keeps its own notes in")


def created(name: str, fields: Fields, key: SymmetricKey) -> dict[str, Any]:
    """A request that makes an item: a login if a field has its place there, else a secure note.

    As newer clients do, it gets a key of its own, which `key` (the account's or organisation's) opens.
    """
    own_key = SymmetricKey.generate()
    login = any(isinstance(fields.get(each), str) for each in (*_PARTS[LOGIN][1], "uri"))
    document: dict[str, Any] = {
        "type": LOGIN if login else NOTE,
        "key": crypto.wrap(own_key, key),
        "login" if login else "secureNote": {"autofillOnPageLoad": None} if login else {"type": 0},
        "favorite": False,
        "reprompt": 0,
        "passwordHistory": None,
        "lastKnownRevisionDate": None,
    }
    return {**document, **_content(document, name, fields, own_key)}


def updated(item: Item, fields: Fields, now: datetime) -> dict[str, Any]:
    """A request that saves other fields in an item and keeps whatever else is in it."""
    document = item.document
    request = {
        "type": document["type"],
        "key": document.get("key"),
        "organizationId": document.get("organizationId"),
        "folderId": document.get("folderId"),
        "favorite": bool(document.get("favorite")),
        "reprompt": document.get("reprompt") or 0,
        "passwordHistory": document.get("passwordHistory") or None,
        # The server refuses to save over what was saved since.
        "lastKnownRevisionDate": document.get("revisionDate"),
        **_content(document, item.name.removeprefix(item.prefix), fields, item.key),
    }
    if document.get("archivedDate") is not None:
        request["archivedDate"] = document["archivedDate"]
    earlier = _replaced(item, fields)
    if earlier:
        date = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03}Z"
        entries = [{"password": crypto.encrypt(text, item.key), "lastUsedDate": date} for _, text in earlier]
        request["passwordHistory"] = [*entries, *_documents(document.get("passwordHistory"))][:_HISTORY]
        if any(name == "password" for name, _ in earlier) and document["type"] == LOGIN:
            request["login"]["passwordRevisionDate"] = date
    return request


def _replaced(item: Item, fields: Fields) -> list[tuple[str, str]]:
    """What goes into the password history, as official clients do it: another password, other or lost hidden fields."""
    document, key = item.document, item.key
    own, _ = _own(document)
    earlier = [
        (each.name, f"{each.name}: {each.value}")
        for each in _customs(document, key)
        if each.kind == HIDDEN and each.name and each.value and _stored(fields.get(each.name)) != each.value
    ]
    if document["type"] == LOGIN and own.get("password") is not None:
        password = _read(own["password"], key)
        if password and fields.get("password") != password:
            earlier.insert(0, ("password", password))
    return earlier


def _content(document: Document, name: str, fields: Fields, key: SymmetricKey) -> dict[str, Any]:
    """The encrypted parts of a request: everything that is ours anew, everything else as it is."""
    own, names = _own(document)
    customs = list(_customs(document, key))
    said = _ours(customs)
    marked, ours = said is not None, said or frozenset()
    texts = {each: value for each, value in fields.items() if isinstance(value, str)}
    rest = dict(fields)
    if document["type"] == SSH_KEY and not all(texts.get(each) for each in names):
        # Vaultwarden stores another one, and never hands it out again.
        raise InvalidSecret(f"the item is an SSH key, which needs {', '.join(names)}: give all, or delete the item")
    for each in names:
        own[each] = crypto.encrypt(texts[each], key) if each in texts else None
        if each in texts:
            del rest[each]
    placed, kept = [], False
    notes = document.get("notes")
    if "notes" in texts:
        notes = crypto.encrypt(rest.pop("notes"), key)
        placed.append("notes")
    elif "notes" in ours:
        notes = None
    else:
        kept = notes is not None
    if document["type"] == LOGIN:
        before = _documents(own.pop("uris", None))
        # Who has not said what is ours (a person's item, taken over) may find it replaced.
        theirs = [
            each
            for number, each in enumerate(before)
            if _uri_name(number) not in (ours if marked else frozenset(texts))
        ]
        own.pop("uri", None)
        own["uris"] = []
        while (place := _uri_name(len(own["uris"]))) in texts:
            number = len(own["uris"])
            there = before[number] if number < len(before) and before[number] not in theirs else {}
            own["uris"].append(_uri(rest.pop(place), there, key))
            placed.append(place)
        own["uris"] += theirs
        kept = kept or bool(theirs)
    part, _ = _PARTS[document["type"]]
    if placed or kept:
        rest[PLACES] = " ".join(placed)
    return {
        "name": crypto.encrypt(name, key),
        "notes": notes,
        part: own,
        "fields": _custom_fields(document, customs, rest, key),
    }


def _uri(text: str, there: Document, key: SymmetricKey) -> dict[str, Any]:
    # Clients drop a URI of an item with its own key whose checksum is not that of its text.
    checksum = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"match": None, **there, "uri": crypto.encrypt(text, key), "uriChecksum": crypto.encrypt(checksum, key)}


def _custom_fields(
    document: Document, customs: list[_Custom], rest: dict[str, Any], key: SymmetricKey
) -> list[dict[str, Any]]:
    """Those that are there stay in their order and of their kind; what is new is hidden; what is gone is left out."""
    written = []
    for raw, each in zip(_documents(document.get("fields")), customs, strict=True):
        if each.kind == LINKED:
            written.append(dict(raw))
        elif each.name in rest:
            written.append(_custom(each.kind, each.name, rest.pop(each.name), key))
    for name, value in rest.items():
        written.append(_custom(TEXT if name == PLACES else HIDDEN, name, value, key))
    return written


def _custom(kind: int, name: str, value: Any, key: SymmetricKey) -> dict[str, Any]:
    text = _stored(value)
    if kind == BOOLEAN and text not in ("true", "false"):
        kind = HIDDEN
    return {
        "type": kind,
        "name": crypto.encrypt(name, key),
        "value": crypto.encrypt(text, key),
        "linkedId": None,
    }


def _stored(value: Any) -> str:
    """A value as the text of a custom field."""
    if isinstance(value, str) and not value.startswith(MARK):
        return value
    return MARK + canonical_json(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def moment(text: Any) -> datetime | None:
    """A date of the API."""
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
