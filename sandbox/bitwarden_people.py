"""People with accounts on the sandbox's Bitwarden: what a client knows and the server does not.

`Person.new` makes the keys, `Person.open_*` and `seal` use them, so that tests can put items behind the service's back
and look into what lies on the server.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sandbox.bitwarden_state import Access, Account, Collection, Folder, Item, Member, Organization, State
from shared.vaults.vaultwarden import crypto

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

# As little as clients accept: a test should not wait for a password to be hard to guess.
PBKDF2 = crypto.Kdf(crypto.KdfKind.PBKDF2, 5_000)
ARGON2ID = crypto.Kdf(crypto.KdfKind.ARGON2ID, 2, memory=16, parallelism=1)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account, and the keys that the password opens."""

    state: State = field(repr=False)
    account: Account = field(repr=False)
    email: str
    password: str = field(repr=False)
    user_key: crypto.SymmetricKey = field(repr=False)
    rsa_key: RSAPrivateKey = field(repr=False)

    @classmethod
    def new(cls, state: State, email: str, password: str, kdf: crypto.Kdf = PBKDF2) -> Person:
        """Registers an account. Raises ValueError when there is one with this e-mail."""
        if state.account(email) is not None:
            raise ValueError(f"there is an account {email} already")
        user_key, (rsa_key, rsa_der, public) = crypto.SymmetricKey.generate(), _rsa()
        argon = kdf.kind is crypto.KdfKind.ARGON2ID
        account = Account(
            id=str(uuid.uuid4()),
            email=email.strip().lower(),
            kdf={
                "kdfType": int(kdf.kind),
                "iterations": kdf.iterations,
                "memory": kdf.memory if argon else None,
                "parallelism": kdf.parallelism if argon else None,
            },
            key="",
            private_key=crypto.encrypt(rsa_der, user_key),
            public_key=public,
            updated=state.clock(),
        )
        _lock(account, email, password, kdf, user_key)
        state.accounts[account.id] = account
        return cls(state, account, email, password, user_key, rsa_key)

    # Organisations.

    def found(self, name: str) -> Organization:
        """A new organisation that this person owns."""
        key, (_, der, public) = crypto.SymmetricKey.generate(), _rsa()
        organization = Organization(str(uuid.uuid4()), name, public, crypto.encrypt(der, key))
        self.state.organizations[organization.id] = organization
        self._admit(organization, self.account, key, Member(str(uuid.uuid4()), self.account.id, organization.id, ""))
        return organization

    def invite(self, organization: Organization, guest: Person, access: Mapping[str, Access]) -> Member:
        """Makes a member who is no owner, with this access, by collection."""
        member = Member(str(uuid.uuid4()), guest.account.id, organization.id, "", role=2, access=dict(access))
        self._admit(organization, guest.account, self.organization_key(organization.id), member)
        return member

    def add_collection(self, organization: Organization, name: str) -> Collection:
        """`name` may be nested: "Ops/Prod" lies in "Ops", as the clients show it."""
        return self.state.save_collection(organization.id, crypto.encrypt(name, self.organization_key(organization.id)))

    def organization_key(self, organization_id: str) -> crypto.SymmetricKey:
        member = self.state.organizations[organization_id].members[self.account.id]
        return crypto.unwrap_shared(member.key, self.rsa_key)

    def _admit(self, organization: Organization, account: Account, key: crypto.SymmetricKey, member: Member) -> None:
        from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
        from cryptography.hazmat.primitives.hashes import SHA1
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        public = cast("RSAPublicKey", load_der_public_key(base64.b64decode(account.public_key)))
        wrapped = public.encrypt(key.raw(), OAEP(MGF1(SHA1()), SHA1(), None))  # noqa: S303 - the protocol's
        member.key = f"4.{base64.b64encode(wrapped).decode()}"
        organization.members[account.id] = member
        self.state.touch([account.id])

    # Folders and items.

    def add_folder(self, name: str) -> Folder:
        return self.state.save_folder(self.account, crypto.encrypt(name, self.user_key))

    def add_login(
        self,
        name: str,
        *,
        username: str | None = None,
        password: str | None = None,
        totp: str | None = None,
        uris: Sequence[str] = (),
        **rest: Any,
    ) -> Item:
        own = {
            "username": username,
            "password": password,
            "totp": totp,
            "uris": [{"uri": uri, "match": None} for uri in uris],
        }
        return self._add(1, name, "login", own, **rest)

    def add_note(self, name: str, notes: str | None = None, **rest: Any) -> Item:
        return self._add(2, name, "secureNote", {"type": 0}, notes=notes, **rest)

    def _add(
        self,
        kind: int,
        name: str,
        part: str,
        own: dict[str, Any],
        *,
        notes: str | None = None,
        fields: Mapping[str, str] | None = None,
        folder: Folder | None = None,
        collections: Sequence[Collection] = (),
        own_key: bool = False,
    ) -> Item:
        """`fields` become hidden custom fields; `own_key` gives the item a key of its own, as newer clients do."""
        organization_id = collections[0].organization_id if collections else None
        key = self.user_key if organization_id is None else self.organization_key(organization_id)
        wrapped = None
        if own_key:
            item_key = crypto.SymmetricKey.generate()
            wrapped, key = crypto.wrap(item_key, key), item_key
        data = {
            "type": kind,
            "name": name,
            "notes": notes,
            part: own,
            "fields": [{"type": 1, "name": each, "value": value} for each, value in (fields or {}).items()],
        }
        data = {
            **seal(data, key),
            "key": wrapped,
            "organizationId": organization_id,
            "folderId": folder.id if folder else None,
        }
        return self.state.create_item(self.account, data, [each.id for each in collections] if collections else None)

    def read(self, item: Item) -> dict[str, Any]:
        """An item's body, decrypted: name, notes, fields, `data` (the type's own) and so on."""
        key = self.user_key
        if item.organization_id is not None:
            key = self.organization_key(item.organization_id)
        if item.body["key"] is not None:
            key = crypto.unwrap(item.body["key"], key)
        opened: dict[str, Any] = _open({each: value for each, value in item.body.items() if each != "key"}, key)
        return opened

    def resealed(self, item: Item, **changes: Any) -> dict[str, Any]:
        """The request that saves an item with other texts at its top (name, notes), as a client would send it."""
        body = item.body
        key = self.user_key if item.organization_id is None else self.organization_key(item.organization_id)
        key = key if body["key"] is None else crypto.unwrap(body["key"], key)
        own = {1: "login", 2: "secureNote"}[body["type"]]
        sent = {each: value for each, value in body.items() if each != "data"}
        return {
            **sent,
            own: body["data"],
            **seal(changes, key),
            "organizationId": item.organization_id,
            "folderId": item.folders.get(self.account.id),
            "encryptedFor": self.account.id,
        }

    def items(self) -> dict[str, Item]:
        """What this person sees outside the trash, by decrypted name."""
        seen = self.state.visible_items(self.account)
        return {self.read(item)["name"]: item for item in seen if item.deleted is None}

    def change_password(self, password: str, kdf: crypto.Kdf = PBKDF2) -> Person:
        """The same person with another password; sessions end, as on a real server."""
        _lock(self.account, self.email, password, kdf, self.user_key)
        self.account.security_stamp = str(uuid.uuid4())
        return Person(self.state, self.account, self.email, password, self.user_key, self.rsa_key)


_CLEAR = frozenset({"lastUsedDate", "revisionDate", "passwordRevisionDate"})


def seal(value: Any, key: crypto.SymmetricKey) -> Any:
    """Every text in a document, encrypted; numbers, dates and nulls as they are."""
    if isinstance(value, dict):
        return {name: inner if name in _CLEAR else seal(inner, key) for name, inner in value.items()}
    if isinstance(value, list):
        return [seal(each, key) for each in value]
    return crypto.encrypt(value, key) if isinstance(value, str) else value


def _open(value: Any, key: crypto.SymmetricKey) -> Any:
    if isinstance(value, dict):
        return {name: inner if name in _CLEAR else _open(inner, key) for name, inner in value.items()}
    if isinstance(value, list):
        return [_open(each, key) for each in value]
    return crypto.decrypt_text(value, key) if isinstance(value, str) else value


def _lock(account: Account, email: str, password: str, kdf: crypto.Kdf, user_key: crypto.SymmetricKey) -> None:
    master = crypto.master_key(password, email, kdf)
    account.key = crypto.wrap(user_key, crypto.stretched(master))
    account.set_password(crypto.login_hash(master, password))


def _rsa() -> tuple[RSAPrivateKey, bytes, str]:
    """A new key: itself, as PKCS 8, and its public half in base64."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key, der, base64.b64encode(public).decode()
