"""What the sandbox's Bitwarden keeps: accounts, items, folders, organisations. Ciphertext only, and who may do what.

The rules and documents are those of Vaultwarden (https://github.com/dani-garcia/vaultwarden); where Bitwarden's own
server is stricter (EncStrings, `encryptedFor`), its rule holds: what passes here passes on both.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

OWNER, USER = 0, 2
_TYPES = {1: "login", 2: "secureNote", 3: "card", 4: "identity", 5: "sshKey"}
# What is encrypted wherever it stands in an item. Links between fields and numbers are not.
_ENCRYPTED = frozenset(
    {"name", "notes", "value", "username", "password", "totp", "uri", "uriChecksum", "key"}
    | {"cardholderName", "brand", "number", "expMonth", "expYear", "code"}
)
_PART = r"[A-Za-z0-9+/]+={0,2}"
_ENC_STRING = re.compile(
    rf"(0\.)?{_PART}\|{_PART}|[12]\.{_PART}\|{_PART}\|{_PART}|[3456]\.{_PART}(\|{_PART})?|7\.{_PART}"
)
_STALE_SECONDS = 2


class BitwardenError(Exception):
    """A refusal: the status, and what the server says about it. `document` replaces the usual error document."""

    def __init__(self, message: str, *, status: int = 400, document: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.document = document


class Clock:
    """The server's clock, in UTC with microseconds; a test may move it, or stop it."""

    def __init__(self) -> None:
        self._offset = timedelta()
        self._frozen: datetime | None = None

    def __call__(self) -> datetime:
        return self._frozen if self._frozen is not None else datetime.now(UTC) + self._offset

    def advance(self, seconds: float) -> None:
        """Moves on by so many seconds, or back."""
        if self._frozen is not None:
            self._frozen += timedelta(seconds=seconds)
        self._offset += timedelta(seconds=seconds)

    def freeze(self) -> None:
        """Stands still until it is advanced."""
        self._frozen = self()


def date(moment: datetime | None) -> str | None:
    """As Vaultwarden writes times: always six digits of a second, and a Z."""
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True)
class Account:
    """What the server knows of a person. `key` and `private_key` are EncStrings, `public_key` is base64 (SPKI)."""

    id: str
    email: str
    kdf: dict[str, int | None]
    """`kdfType`, `iterations`, `memory` (MiB), `parallelism`."""
    key: str
    private_key: str
    public_key: str
    updated: datetime
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24)[:30])
    enabled: bool = True
    two_factor: tuple[int, ...] = ()
    """Numbers of the providers that a password login asks for: 0 authenticator, 1 e-mail, 7 WebAuthn."""
    two_factor_code: str = ""
    devices: set[str] = field(default_factory=set)
    security_stamp: str = field(default_factory=lambda: str(uuid.uuid4()))
    _salt: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)
    _digest: bytes = field(default=b"", repr=False)

    @property
    def client_id(self) -> str:
        """What the API key belongs to."""
        return f"user.{self.id}"

    def set_password(self, login_hash: str) -> None:
        """The hash that logins must show from now on; a digest of it is kept."""
        self._digest = hashlib.sha256(self._salt + login_hash.encode()).digest()

    def knows(self, login_hash: str) -> bool:
        return hmac.compare_digest(self._digest, hashlib.sha256(self._salt + login_hash.encode()).digest())


@dataclass(slots=True)
class Folder:
    id: str
    account_id: str
    name: str
    updated: datetime


@dataclass(slots=True)
class Access:
    """What a member who is no owner may do in a collection."""

    read_only: bool = False
    hide_passwords: bool = False


@dataclass(slots=True)
class Member:
    id: str
    account_id: str
    organization_id: str
    key: str
    """The organisation's key, encrypted with the account's public one."""
    role: int = OWNER
    access: dict[str, Access] = field(default_factory=dict)
    """By collection; an owner has access to all."""


@dataclass(slots=True)
class Organization:
    id: str
    name: str
    public_key: str
    private_key: str
    members: dict[str, Member] = field(default_factory=dict)
    """By account."""


@dataclass(slots=True)
class Collection:
    id: str
    organization_id: str
    name: str
    external_id: str | None = None


@dataclass(slots=True)
class Upload:
    """An attachment's content, encrypted with the attachment's key."""

    content: bytes = field(default=b"", repr=False)
    token: str = field(default_factory=secrets.token_urlsafe, repr=False)
    """What a download has to show."""


@dataclass(slots=True)
class Item:
    """A *cipher*, as Bitwarden calls it. Belongs to an account or to an organisation."""

    id: str
    created: datetime
    updated: datetime
    account_id: str | None
    organization_id: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    """type, name, notes, fields, key, passwordHistory, reprompt, and `data`: what is the type's own."""
    deleted: datetime | None = None
    collections: set[str] = field(default_factory=set)
    folders: dict[str, str] = field(default_factory=dict)
    """Each account's folder for it."""
    favorites: set[str] = field(default_factory=set)
    attachments: list[dict[str, Any]] = field(default_factory=list)
    """Their documents, but for the address of a download."""
    writes: int = 0
    """How often its content was saved, its making included: an unchanged sync does not raise it."""


class State:
    """Everything on one server. Methods take the account that asks; they raise BitwardenError."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.max_note_size = 100_000
        self.accounts: dict[str, Account] = {}
        self.folders: dict[str, Folder] = {}
        self.organizations: dict[str, Organization] = {}
        self.collections: dict[str, Collection] = {}
        self.items: dict[str, Item] = {}
        self.uploads: dict[str, Upload] = {}
        """By attachment."""

    # Accounts.

    def account(self, email: str) -> Account | None:
        """The one with this e-mail, in whatever case."""
        wanted = email.strip().lower()
        return next((each for each in self.accounts.values() if each.email == wanted), None)

    def touch(self, account_ids: Iterable[str]) -> None:
        """Moves the revision date of these accounts."""
        for each in account_ids:
            self.accounts[each].updated = self.clock()

    # Items.

    def visible_items(self, account: Account) -> list[Item]:
        return [item for item in self.items.values() if self.restrictions(item, account) is not None]

    def restrictions(self, item: Item, account: Account) -> Access | None:
        """What the account may not do with an item; None: it does not even see it."""
        if item.account_id == account.id:
            return Access()
        member = self.member(account, item.organization_id)
        if member is None:
            return None
        if member.role == OWNER:
            return Access()
        granted = [member.access[each] for each in item.collections if each in member.access]
        if not granted:
            return None
        return Access(
            read_only=all(each.read_only for each in granted),
            hide_passwords=all(each.hide_passwords for each in granted),
        )

    def readable(self, item_id: str, account: Account) -> Item:
        item = self.items.get(item_id)
        if item is None or self.restrictions(item, account) is None:
            raise BitwardenError("Cipher doesn't exist")
        return item

    def writable(self, item_id: str, account: Account, refusal: str = "Cipher is not write accessible") -> Item:
        item = self.items.get(item_id)
        if item is None:
            raise BitwardenError("Cipher doesn't exist")
        access = self.restrictions(item, account)
        if access is None or access.read_only:
            raise BitwardenError(refusal)
        return item

    def create_item(self, account: Account, data: Mapping[str, Any], collections: Iterable[str] | None = None) -> Item:
        """`collections`: None for a personal item's request, else those of the request for organisations."""
        now = self.clock()
        item = Item(str(uuid.uuid4()), now, now, account.id)
        fresh = {**data, "lastKnownRevisionDate": None}
        if collections is None:
            self._save(item, account, fresh, into=False)
        else:
            chosen = list(collections)
            if data.get("organizationId") and not chosen:
                raise BitwardenError("You must select at least one collection.")
            self._save_into(item, account, fresh, chosen)
        self.items[item.id] = item
        return item

    def update_item(self, account: Account, item_id: str, data: Mapping[str, Any]) -> Item:
        item = self.writable(item_id, account)
        self._save(item, account, data, into=False)
        return item

    def share_item(self, account: Account, item_id: str, data: Mapping[str, Any], collections: Iterable[str]) -> Item:
        """Moves a personal item into an organisation's collections."""
        item = self.writable(item_id, account)
        self._save_into(item, account, data, list(collections))
        return item

    def _save_into(self, item: Item, account: Account, data: Mapping[str, Any], collections: list[str]) -> None:
        if data.get("organizationId"):
            for each in collections:
                self._writable_collection(account, each, str(data["organizationId"]))
        self._save(item, account, data, into=bool(collections))
        if item.organization_id is not None:
            item.collections.update(collections)
        self.touch(self.who_sees(item))

    def _save(self, item: Item, account: Account, data: Mapping[str, Any], *, into: bool) -> None:
        """`into`: collections were chosen that the account may write to."""
        check_item(data, self.max_note_size)
        if data.get("encryptedFor") not in (None, account.id):
            raise BitwardenError("Cipher was not encrypted for the current user. Please try again.")
        known = _moment(data.get("lastKnownRevisionDate"))
        if known is not None and (item.updated - known).total_seconds() >= _STALE_SECONDS:
            raise BitwardenError("The client copy of this cipher is out of date. Resync the client and try again.")
        organization_id = data.get("organizationId")
        if item.organization_id is not None and item.organization_id != organization_id:
            raise BitwardenError("Organization mismatch. Please resync the client before updating the cipher")
        if organization_id is not None:
            member = self.member(account, organization_id)
            if member is None:
                raise BitwardenError("You don't have permission to add item to organization")
            known_here = item.id in self.items and item.organization_id is not None
            if not into and member.role != OWNER and not known_here:
                raise BitwardenError("You don't have permission to add cipher directly to organization")
        self._check_folder(account, data.get("folderId"))
        own = data.get(_TYPES[data["type"]])
        if not isinstance(own, dict):
            raise BitwardenError("Data missing")
        item.organization_id = organization_id
        item.account_id = None if organization_id is not None else account.id
        item.body = {
            "type": data["type"],
            "name": data["name"],
            "notes": data.get("notes"),
            "fields": _without_response(data.get("fields") or []),
            "key": data.get("key"),
            "passwordHistory": _without_response(data.get("passwordHistory") or []),
            "reprompt": data.get("reprompt") or 0,
            "data": _without_response(own),
        }
        item.updated = self.clock()
        item.writes += 1
        self.place_item(item, account, data.get("folderId"), data.get("favorite"))
        self.touch(self.who_sees(item))

    def place_item(self, item: Item, account: Account, folder_id: str | None, favorite: bool | None) -> None:
        """What each account has for itself: no folder means out of its folder; a favourite stays one unless told."""
        self._check_folder(account, folder_id)
        if folder_id is None:
            item.folders.pop(account.id, None)
        else:
            item.folders[account.id] = folder_id
        if favorite is not None:
            (item.favorites.add if favorite else item.favorites.discard)(account.id)
        self.touch([account.id])

    def set_collections(self, account: Account, item_id: str, collections: Iterable[str]) -> Item:
        item = self.writable(item_id, account)
        if item.organization_id is None:
            raise BitwardenError("Invalid collection ID provided")
        wanted = set(collections)
        for each in wanted ^ item.collections:
            self._writable_collection(account, each, item.organization_id)
        before = self.who_sees(item)
        item.collections = wanted
        self.touch(before | self.who_sees(item))
        return item

    def trash_item(self, account: Account, item_id: str) -> Item:
        item = self.writable(item_id, account, "Cipher can't be deleted by user")
        item.deleted = item.updated = self.clock()
        self.touch(self.who_sees(item))
        return item

    def restore_item(self, account: Account, item_id: str) -> Item:
        item = self.writable(item_id, account)
        item.deleted, item.updated = None, self.clock()
        self.touch(self.who_sees(item))
        return item

    def delete_item(self, account: Account, item_id: str) -> None:
        """For good."""
        item = self.writable(item_id, account, "Cipher can't be deleted by user")
        self.touch(self.who_sees(item))
        del self.items[item_id]

    def attach(self, item: Item, name: str, key: str, size: int) -> str:
        """Announces an attachment, whose id it gives. `name` and `key`, its own, are EncStrings."""
        _check_enc_string("fileName", name)
        _check_enc_string("key", key)
        attachment_id = secrets.token_hex(10)
        told = {"id": attachment_id, "fileName": name, "size": str(size), "sizeName": f"{size} bytes", "key": key}
        item.attachments.append({**told, "object": "attachment"})
        self.uploads[attachment_id] = Upload()
        item.updated = self.clock()
        self.touch(self.who_sees(item))
        return attachment_id

    def who_sees(self, item: Item) -> set[str]:
        return {each.id for each in self.accounts.values() if self.restrictions(item, each) is not None}

    # Folders.

    def folder(self, account: Account, folder_id: str) -> Folder:
        found = self.folders.get(folder_id)
        if found is None or found.account_id != account.id:
            raise BitwardenError("Invalid folder")
        return found

    def save_folder(self, account: Account, name: str, folder_id: str | None = None) -> Folder:
        _check_enc_string("Name", name)
        if folder_id is None:
            found = Folder(str(uuid.uuid4()), account.id, name, self.clock())
            self.folders[found.id] = found
        else:
            found = self.folder(account, folder_id)
            found.name, found.updated = name, self.clock()
        self.touch([account.id])
        return found

    def delete_folder(self, account: Account, folder_id: str) -> None:
        """Its items stay, in no folder."""
        del self.folders[self.folder(account, folder_id).id]
        for item in self.items.values():
            if item.folders.get(account.id) == folder_id:
                del item.folders[account.id]
        self.touch([account.id])

    def _check_folder(self, account: Account, folder_id: str | None) -> None:
        if folder_id is not None:
            self.folder(account, folder_id)

    # Organisations.

    def member(self, account: Account, organization_id: str | None) -> Member | None:
        organization = self.organizations.get(organization_id or "")
        return None if organization is None else organization.members.get(account.id)

    def memberships(self, account: Account) -> Iterator[tuple[Organization, Member]]:
        for organization in self.organizations.values():
            if account.id in organization.members:
                yield organization, organization.members[account.id]

    def visible_collections(self, account: Account, organization_id: str | None = None) -> list[Collection]:
        found = []
        for each in self.collections.values():
            member = self.member(account, each.organization_id)
            wanted = organization_id in (None, each.organization_id)
            if wanted and member is not None and (member.role == OWNER or each.id in member.access):
                found.append(each)
        return found

    def save_collection(
        self,
        organization_id: str,
        name: str,
        external_id: str | None = None,
        collection_id: str | None = None,
    ) -> Collection:
        _check_enc_string("Name", name)
        found = self.collections.get(collection_id or "")
        if collection_id is None:
            found = Collection(str(uuid.uuid4()), organization_id, name)
            self.collections[found.id] = found
        if found is None or found.organization_id != organization_id:
            raise BitwardenError("Collection not found")
        found.name, found.external_id = name, external_id or None
        self.touch(self.organizations[organization_id].members)
        return found

    def delete_collection(self, organization_id: str, collection_id: str) -> None:
        found = self.collections.get(collection_id)
        if found is None or found.organization_id != organization_id:
            raise BitwardenError("Collection not found")
        del self.collections[collection_id]
        for item in self.items.values():
            item.collections.discard(collection_id)
        for member in self.organizations[organization_id].members.values():
            member.access.pop(collection_id, None)
        self.touch(self.organizations[organization_id].members)

    def access(self, account: Account, collection: Collection) -> Access:
        """What the account may not do in a collection that it sees."""
        member = self.member(account, collection.organization_id)
        if member is None:
            return Access(read_only=True, hide_passwords=True)
        return Access() if member.role == OWNER else member.access.get(collection.id, Access())

    def _writable_collection(self, account: Account, collection_id: str, organization_id: str) -> None:
        found = self.collections.get(collection_id)
        if found is None or found.organization_id != organization_id:
            raise BitwardenError("Invalid collection ID provided")
        if found not in self.visible_collections(account) or self.access(account, found).read_only:
            raise BitwardenError("No rights to modify the collection")


# Documents.


def item_document(state: State, item: Item, account: Account, url: str = "") -> dict[str, Any]:
    """`url`: the server's, which downloads begin with."""
    body = item.body
    access = state.restrictions(item, account) or Access(read_only=True, hide_passwords=True)
    own = dict(body["data"])
    if body["type"] == 1:
        uris = own.get("uris") or []
        own["uri"] = uris[0].get("uri") if uris else None
    return {
        "object": "cipherDetails",
        "id": item.id,
        "type": body["type"],
        "creationDate": date(item.created),
        "revisionDate": date(item.updated),
        "deletedDate": date(item.deleted),
        "archivedDate": None,
        "reprompt": body["reprompt"],
        "organizationId": item.organization_id,
        "key": body["key"],
        "attachments": [attachment_document(state, item, each, url) for each in item.attachments] or None,
        "organizationUseTotp": True,
        "collectionIds": sorted(item.collections),
        **{key: body[key] for key in ("name", "notes", "fields", "passwordHistory")},
        **dict.fromkeys((*_TYPES.values(), "bankAccount", "driversLicense", "passport")),
        _TYPES[body["type"]]: own,
        "folderId": item.folders.get(account.id),
        "favorite": account.id in item.favorites,
        "edit": not access.read_only,
        "viewPassword": not access.hide_passwords,
        "permissions": {"delete": not access.read_only, "restore": not access.read_only},
    }


def attachment_document(state: State, item: Item, attachment: Mapping[str, Any], url: str) -> dict[str, Any]:
    upload = state.uploads.get(attachment["id"], Upload())
    return {**attachment, "url": f"{url}/attachments/{item.id}/{attachment['id']}?token={upload.token}"}


def folder_document(folder: Folder) -> dict[str, Any]:
    return {"id": folder.id, "revisionDate": date(folder.updated), "name": folder.name, "object": "folder"}


def collection_document(state: State, collection: Collection, account: Account) -> dict[str, Any]:
    access = state.access(account, collection)
    member = state.member(account, collection.organization_id)
    return {
        "externalId": collection.external_id,
        "id": collection.id,
        "organizationId": collection.organization_id,
        "name": collection.name,
        "type": 0,
        "defaultUserCollectionEmail": None,
        "object": "collectionDetails",
        "readOnly": access.read_only,
        "hidePasswords": access.hide_passwords,
        "manage": member is not None and member.role == OWNER,
    }


def account_keys_document(account: Account) -> dict[str, Any]:
    return {
        "publicKeyEncryptionKeyPair": {
            "wrappedPrivateKey": account.private_key,
            "publicKey": account.public_key,
            "Object": "publicKeyEncryptionKeyPair",
        },
        "Object": "privateKeys",
    }


def profile_document(state: State, account: Account) -> dict[str, Any]:
    return {
        "_status": 0,
        "id": account.id,
        "name": account.email,
        "email": account.email,
        "emailVerified": True,
        "premium": True,
        "premiumFromOrganization": False,
        "culture": "en-US",
        "twoFactorEnabled": bool(account.two_factor),
        "key": account.key,
        "privateKey": account.private_key,
        "accountKeys": account_keys_document(account),
        "securityStamp": account.security_stamp,
        "organizations": [_membership_document(*each) for each in state.memberships(account)],
        "providers": [],
        "providerOrganizations": [],
        "forcePasswordReset": False,
        "avatarColor": None,
        "usesKeyConnector": False,
        "creationDate": date(account.updated),
        "object": "profile",
    }


def _membership_document(organization: Organization, member: Member) -> dict[str, Any]:
    owner = member.role == OWNER
    rights = (
        "accessEventLogs accessImportExport accessReports createNewCollections editAnyCollection deleteAnyCollection "
        "manageGroups managePolicies manageSso manageUsers manageResetPassword manageScim"
    )
    yes = ("usersGetPremium", "use2fa", "useTotp", "usePolicies", "useApi", "selfHost", "hasPublicAndPrivateKeys")
    no = (
        "useDirectory useEvents useGroups useScim resetPasswordEnrolled useResetPassword ssoBound useSso "
        "useKeyConnector useSecretsManager useActivateAutofillPolicy useAdminSponsoredFamilies "
        "useRiskInsights useOrganizationDomains familySponsorshipAvailable keyConnectorEnabled accessSecretsManager "
        "userIsManagedByOrganization userIsClaimedByOrganization isAdminInitiated"
    )
    nothing = (
        "identifier seats maxCollections providerId providerName providerType familySponsorshipFriendlyName "
        "keyConnectorUrl familySponsorshipLastSyncDate familySponsorshipValidUntil familySponsorshipToDelete"
    )
    return {
        "id": organization.id,
        "name": organization.name,
        **dict.fromkeys(yes, True),
        **dict.fromkeys(no.split(), False),
        **dict.fromkeys(nothing.split()),
        "usePasswordManager": True,
        "useCustomPermissions": True,
        "organizationUserId": member.id,
        "planProductType": 3,
        "productTierType": 3,
        "limitCollectionCreation": not owner,
        "limitCollectionDeletion": True,
        "limitItemDeletion": False,
        "allowAdminAccessToAllCollectionItems": True,
        "permissions": dict.fromkeys(rights.split(), False),
        "maxStorageGb": 32767,
        "userId": member.account_id,
        "key": member.key,
        "status": 2,
        "type": member.role,
        "enabled": True,
        "object": "profileOrganization",
    }


# What a request must look like.


def check_item(data: Mapping[str, Any], max_note_size: int) -> None:
    """Refuses an item that a server would not store: shapes as Vaultwarden, EncStrings as Bitwarden's own server."""
    _expect(data, "type", int)
    _expect(data, "name", str)
    for key, kind in (
        ("notes", str), ("fields", list), ("folderId", str), ("organizationId", str), ("key", str), ("reprompt", int),
        ("favorite", bool), ("passwordHistory", list), ("lastKnownRevisionDate", str), ("encryptedFor", str),
    ):  # fmt: skip
        if data.get(key) is not None:
            _expect(data, key, kind)
    if data["type"] not in _TYPES:
        raise BitwardenError("Invalid type")
    parts = {key: data.get(key) for key in ("name", "notes", "key", "fields", "passwordHistory")}
    _check_encrypted("", {**parts, "own": data.get(_TYPES[data["type"]])})
    notes = data.get("notes")
    if notes is not None and len(notes) > max_note_size:
        message = f"The field Notes exceeds the maximum encrypted value length of {max_note_size} characters."
        raise BitwardenError(message)


def _expect(data: Mapping[str, Any], key: str, kind: type) -> None:
    value = data.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BitwardenError(f"{key} is not what it should be", status=422)


def _check_encrypted(path: str, value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _ENCRYPTED and isinstance(inner, str):
                _check_enc_string(f"{path}{key}", inner)
            else:
                _check_encrypted(f"{path}{key}.", inner)
    elif isinstance(value, list):
        for each in value:
            _check_encrypted(path, each)


def _check_enc_string(name: str, value: str) -> None:
    if not _ENC_STRING.fullmatch(value):
        raise BitwardenError(f"{name} is not a valid encrypted string.")


def _without_response(value: Any) -> Any:
    """The clients' JavaScript sends a `response` with each part, which no server keeps."""
    if isinstance(value, dict):
        return {key: _without_response(inner) for key, inner in value.items() if key != "response"}
    if isinstance(value, list):
        return [_without_response(each) for each in value]
    return value


def _moment(text: str | None) -> datetime | None:
    """What can not be read is not compared."""
    try:
        found = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found is None or found.tzinfo is not None else found.replace(tzinfo=UTC)


def unpadded(text: str) -> str:
    """What is in base64 for URLs, with or without its padding. Raises ValueError."""
    return base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)).decode()
