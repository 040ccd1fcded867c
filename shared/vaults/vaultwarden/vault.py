"""The contract, on a copy of the account that is kept for as long as the server's revision date proves it.

One `/sync` brings everything, however many items there are. What asks first (a listing, a read) asks for the account's
revision date, which is one cheap call that all who ask at the same time share. Our own writes move that date too; from
then on an item that is known is read by its id, until the next listing.

There is no compare-and-set: `lastKnownRevisionDate` makes the server refuse to save over what was saved since, but only
where the two are more than a second apart (Vaultwarden, src/api/core/ciphers.rs). It is always sent; it is not enough
to promise anything.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from shared.errors import (
    AccessDenied,
    Conflict,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.model import Entry, Expect, Secret, utcnow
from shared.pacing import Pacer
from shared.vault import Capabilities, Finding, FingerprintCost, Use, Vault, check_name
from shared.vaults.vaultwarden import crypto, items
from shared.vaults.vaultwarden.account import Account, item_path
from shared.vaults.vaultwarden.crypto import SymmetricKey
from shared.vaults.vaultwarden.failures import NO_SERVER, not_bitwarden
from shared.vaults.vaultwarden.items import Item
from shared.vaults.vaultwarden.places import Places, membership, places
from shared.vaults.vaultwarden.settings import Settings

T = TypeVar("T")

_SLICE = 200
"""Items that are opened before others get their turn in the event loop: some ten milliseconds."""
_SETTLED_AFTER = 2.0
"""Seconds: servers on MySQL keep dates in whole seconds, so that a younger date may be that of two changes."""
_ABSENT_FOR = 2.0
"""Seconds that a copy which only our own writes have outdated is believed about what is not in it."""
_SEEN_FOR = 2.0
"""Seconds that an item is saved over without another look. The server refuses to save over what somebody saved since we
looked, but not within about a second of what we know, however long ago that was."""
_TRIES = 3
"""How often an item is saved that somebody else keeps saving."""
_UNREADABLE = re.compile(r"(?:.*/)?unreadable item ([^/]+)", re.DOTALL)


@dataclass(slots=True)
class _Copy:
    """What the account held when it was last synced, and what we have written since."""

    began: float
    """When the sync was asked for, in the event loop's seconds."""
    revision: int | None
    """The account's revision date, in milliseconds; None: it proves nothing."""
    user_id: str
    places: Places
    key: SymmetricKey = field(repr=False)
    """That opens the items, or their own keys: the account's or the organisation's."""
    items: dict[str, Item] = field(default_factory=dict, repr=False)
    seen: dict[str, float] = field(default_factory=dict, repr=False)
    """When each item was as it is here, in the event loop's seconds."""
    names: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Ids by name: more than one where people gave the same name twice."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why, by the id of an item whose name can not be read."""
    ours: bool = False
    """We have written since, so that the server's revision date can not prove it any more."""
    doubtful: bool = False
    """We have written since, and do not know what came of it."""

    def believed(self, now: float) -> bool:
        """Whether what it does not have may be taken for absent, without a sync for each secret that we make."""
        return self.ours and not self.doubtful and now - self.began < _ABSENT_FOR

    def put(self, item: Item, seen: float) -> None:
        self.drop(item.id)
        self.items[item.id], self.seen[item.id] = item, seen
        self.names.setdefault(item.name, set()).add(item.id)

    def drop(self, item_id: str) -> None:
        self.unreadable.pop(item_id, None)
        earlier = self.items.pop(item_id, None)
        if earlier is not None:
            self.names[earlier.name].discard(item_id)
            if not self.names[earlier.name]:
                del self.names[earlier.name]

    def find(self, name: str) -> Item | None:
        """The one item of this name. Raises InvalidSecret where there are several, or nobody can tell."""
        found = sorted(self.names.get(name, ()))
        if len(found) > 1:
            raise InvalidSecret(f"{len(found)} items have this name, rename or delete one: {', '.join(found)}")
        if found:
            return self.items[found[0]]
        if (asked := _UNREADABLE.fullmatch(name)) and asked[1] in self.unreadable:
            raise InvalidSecret(f"the name of this item can not be read: {self.unreadable[asked[1]]}")
        if self.unreadable:
            # Taken for absent, it would be deleted on the targets, or made a second time.
            some = ", ".join(sorted(self.unreadable)[:5])
            raise InvalidSecret(
                f"it is not there under its name, but {len(self.unreadable)} items have names that can not be read, and it "
                f"may be one of them; save or delete these in the web vault: {some}"
            )
        return None


class VaultwardenVault(Vault):
    """One account's own vault, or one collection. `timeout` (seconds) is what the server may be silent for."""

    kind: ClassVar[str] = "vaultwarden"

    def __init__(self, vault_id: str, settings: Settings, *, timeout: float = 30.0) -> None:
        pacer = Pacer(vault_id, concurrency=settings.concurrency or 8, requests_per_second=settings.requests_per_second)
        super().__init__(vault_id, pacer)
        self._settings = settings
        self._account = Account(
            vault_id, settings, lambda attempt, *, write=False: self.pacer.call(attempt, write=write), timeout=timeout
        )
        self._copy: _Copy | None = None
        self._written: dict[str, tuple[float, Item | None]] = {}
        self._synced = _Shared(self._sync)
        self._proven = _Shared(self._prove)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(fingerprint=FingerprintCost.LISTED, time_resolution=timedelta(seconds=1))

    async def open(self) -> None:
        """Log in, and find the organisation, collection or folder. Raises MountNotFound naming what there is."""
        with self._located(None):
            await self._synced()

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        if prefix:
            check_name(self.id, prefix.removesuffix("/"))
        with self._located(None):
            copied = await self._fresh()
            entries = []
            for number, name in enumerate(sorted(copied.names)):
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
                ids = copied.names.get(name, ())
                if not name.startswith(prefix) or not ids:
                    continue
                # Of two with one name, none is meant: the read that follows says so.
                entries.append(copied.items[next(iter(ids))].entry if len(ids) == 1 else Entry(name))
            entries += [Entry(f"{prefix}unreadable item {each}") for each in sorted(copied.unreadable)]
        for entry in entries:
            yield entry

    async def describe_secret(self, name: str) -> Entry:
        check_name(self.id, name)
        with self._located(name):
            return (await self._current(name)).entry

    async def get_secret(self, name: str) -> Secret:
        check_name(self.id, name)
        with self._located(name):
            item = await self._current(name)
            entry = item.entry
            if not entry.enabled:
                raise AccessDenied("the collection hides its passwords from this account")
            return Secret(fields=items.fields_of(item), entry=entry)

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        self._refuse_expectation(expect, name)
        check_name(self.id, name)
        with self._located(name):
            items.check_fields(secret.fields)
            for _ in range(_TRIES):
                copied = self._copy or await self._synced()
                item = copied.find(name)
                seen = copied.seen[item.id] if item is not None and item.entry.enabled else float("-inf")
                if asyncio.get_running_loop().time() - seen >= _SEEN_FOR:
                    item = await self._find(name)
                if item is not None and not item.entry.enabled:
                    # Bitwarden's own server takes such a write, and keeps the password that was there.
                    raise AccessDenied(
                        "the collection hides its passwords from this account, which so can not save them"
                    )
                saved = await (self._create(name, secret) if item is None else self._update(item, secret))
                if saved is not None:
                    return saved.entry
                await self._synced()
            raise Unavailable("somebody else keeps changing this item or its place")

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        """Into the trash, from where the web vault restores it for 30 days; or for good (`delete_mode: permanent`)."""
        self._refuse_expectation(expect, name)
        check_name(self.id, name)
        with self._located(name):
            item = await self._current(name)
            path = item_path(item.id)
            if self._settings.delete_mode == "permanent":
                await self._write(self._account.send("DELETE", path, answers=False))
            else:
                await self._write(self._account.send("PUT", f"{path}/delete", answers=False))
            self._remember(item.id, None)

    async def aclose(self) -> None:
        await self._account.aclose()

    # What is there.

    async def _fresh(self) -> _Copy:
        """A copy of all that is there now."""
        copied = self._copy
        if copied is not None and copied.revision is not None and await self._proven():
            return self._copy or copied
        return await self._synced()

    async def _current(self, name: str) -> Item:
        """An item as it is now. Raises SecretNotFound."""
        item = await self._find(name)
        if item is None:
            raise SecretNotFound("there is no such item")
        return item

    async def _find(self, name: str) -> Item | None:
        """An item as it is now; None: it is not there."""
        copied = self._copy or await self._synced()
        if copied.revision is not None and await self._proven():
            return (self._copy or copied).find(name)
        ids = copied.names.get(name, set())
        # Asked for one item, Vaultwarden leaves out the collections that the account may only read.
        if len(ids) == 1 and not copied.places.read_only:
            item = await self._fetch(next(iter(ids)))
            if item is not None and item.name == name:
                return item
        elif not ids and copied.believed(asyncio.get_running_loop().time()):
            return copied.find(name)
        return (await self._synced()).find(name)

    async def _prove(self) -> bool:
        """Whether the copy is what the server holds."""
        before = self._copy
        revision = await self._revision()
        copied = self._copy
        return copied is not None and copied is before and copied.revision == revision

    async def _revision(self) -> int:
        revision = await self._whole("/accounts/revision-date")
        if isinstance(revision, bool) or not isinstance(revision, int):
            raise not_bitwarden()
        return revision

    async def _whole(self, path: str) -> Any:
        """What every account has: that it is "not found" says nothing about a secret."""
        try:
            return await self._account.get(path)
        except SecretNotFound:
            pass
        raise AccessDenied(NO_SERVER)

    async def _fetch(self, item_id: str) -> Item | None:
        """One item from the server; None: it is not in this vault any more."""
        copied = self._copy or await self._synced()
        asked = asyncio.get_running_loop().time()
        try:
            # Without `details`, Bitwarden's own server leaves out the collections.
            document = await self._account.get(f"{item_path(item_id)}/details")
        except SecretNotFound:
            document = {}
        if not isinstance(document, dict):
            raise not_bitwarden()
        if not document or document.get("deletedDate") or (prefix := copied.places.prefix_of(document)) is None:
            copied.drop(item_id)
            return None
        item = items.opened(_lean(document), prefix, copied.key)
        copied.put(item, asked)
        return item

    async def _sync(self) -> _Copy:
        began = asyncio.get_running_loop().time()
        # Before the sync: what changes in between then shows in the next revision date.
        revision: int | None = await self._revision()
        now = self._account.server_time()
        if now is None or now - (revision or 0) / 1000 < _SETTLED_AFTER:
            revision = None
        document = await self._whole("/sync?excludeDomains=true")
        user_key = await self._account.user_key()
        _check_shape(document)
        copied = self._empty_copy(document, user_key, began, revision)
        await self._fill(copied, document["ciphers"])
        # What we wrote while the sync was under way may not be in it.
        self._written = {each: written for each, written in self._written.items() if written[0] >= began}
        self._copy = copied
        for item_id, (written, item) in self._written.items():
            self._apply(item_id, item, written)
        return copied

    def _empty_copy(
        self, document: Mapping[str, Any], user_key: SymmetricKey, began: float, revision: int | None
    ) -> _Copy:
        profile = document["profile"]
        keys = {}
        if self._settings.organization is not None:
            organization = membership(self._settings, document)
            try:
                private = crypto.private_key(str(profile.get("privateKey")), user_key)
                keys[organization["id"]] = crypto.unwrap_shared(str(organization["key"]), private)
            except InvalidSecret as error:
                why = error.message
            else:
                why = ""
            if why:
                raise MountNotFound(
                    f"the key of the organisation {self._settings.organization!r} can not be opened: {why}"
                )
        found = places(self._settings, document, user_key, keys)
        key = user_key if found.organization_id is None else keys[found.organization_id]
        return _Copy(began, revision, profile["id"], found, key)

    async def _fill(self, copied: _Copy, documents: list[Mapping[str, Any]]) -> None:
        earlier = self._copy
        for number, whole in enumerate(documents):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            if whole.get("deletedDate"):
                continue
            document = _lean(whole)
            try:
                prefix = copied.places.prefix_of(document)
                if prefix is None:
                    continue
                known = earlier.items.get(document["id"]) if earlier is not None else None
                same = known is not None and known.document == document and known.prefix == prefix
                if known is not None and same and earlier is not None and earlier.key == copied.key:
                    copied.put(known, copied.began)
                else:
                    copied.put(items.opened(document, prefix, copied.key), copied.began)
            except InvalidSecret as error:
                copied.unreadable[document["id"]] = error.message

    # What is written.

    async def _create(self, name: str, secret: Secret) -> Item | None:
        """None: its folder or collection is not there any more; look again."""
        copied = self._copy or await self._synced()
        place, own_name = copied.places.home(name)
        request = {
            **items.created(own_name, secret.fields, copied.key),
            "encryptedFor": copied.user_id,
            "organizationId": copied.places.organization_id,
            "folderId": place if copied.places.organization_id is None else None,
        }
        if copied.places.organization_id is None:
            sent = self._account.send("POST", "/ciphers", request, key=copied.key)
        else:
            sent = self._account.send("POST", "/ciphers/create", {"cipher": request, "collectionIds": [place]})
        try:
            document = await self._write(sent)
        except (Conflict, SecretNotFound):
            return None
        return self._saved(document, name.removesuffix(own_name), copied)

    async def _update(self, item: Item, secret: Secret) -> Item | None:
        """None: somebody else was there first, or it is in the trash; look again."""
        copied = self._copy or await self._synced()
        request = {**items.updated(item, secret.fields, utcnow()), "encryptedFor": copied.user_id}
        try:
            key = copied.key if copied.places.organization_id is None else None
            document = await self._write(self._account.send("PUT", item_path(item.id), request, key=key))
        except (Conflict, SecretNotFound):
            return None
        if document.get("deletedDate") or self._is_elsewhere(document, copied):
            return None
        return self._saved(document, item.prefix, copied)

    def _is_elsewhere(self, document: Mapping[str, Any], copied: _Copy) -> bool:
        # What answers a write tells the collections of an item with Vaultwarden, but not all of them to one who may only
        # read some, and none with Bitwarden's own server.
        told = copied.places.organization_id is None or document.get("collectionIds") is not None
        if copied.places.read_only or not told:
            return False
        try:
            return copied.places.prefix_of(document) is None
        except InvalidSecret:
            return True

    async def _write(self, sent: Awaitable[Any]) -> Any:
        try:
            document = await sent
        except BaseException:
            # It may have had its effect: what the copy does not have is not absent for sure.
            if self._copy is not None:
                self._copy.revision, self._copy.doubtful = None, True
            raise
        if document is not None and (not isinstance(document, dict) or not isinstance(document.get("id"), str)):
            raise not_bitwarden()
        return document

    def _saved(self, document: Mapping[str, Any], prefix: str, copied: _Copy) -> Item:
        try:
            item = items.opened(_lean(document), prefix, copied.key)
        except InvalidSecret:
            item = None
        if item is None:
            raise not_bitwarden()
        self._remember(item.id, item)
        return item

    def _remember(self, item_id: str, item: Item | None) -> None:
        written = asyncio.get_running_loop().time()
        self._written[item_id] = (written, item)
        self._apply(item_id, item, written)

    def _apply(self, item_id: str, item: Item | None, written: float) -> None:
        if self._copy is None:
            return
        if item is None:
            self._copy.drop(item_id)
        else:
            self._copy.put(item, written)
        # Whether it was only us who moved the date, nobody can say.
        self._copy.revision, self._copy.ours = None, True

    def _refuse_expectation(self, expect: str | Expect, name: str) -> None:
        if expect is not Expect.ANY:
            raise Unsupported("Vaultwarden can not compare before it writes or deletes", vault=self.id, path=name)

    # check

    async def check(self, uses: list[Use]) -> list[Finding]:
        account = f"{self._settings.email} at {self._settings.url}"
        with_key = " with the API key" if self._settings.client_id else ""
        try:
            with self._located(None):
                await self._account.user_key()
        except VaultError as error:
            return [Finding("login", ok=False, detail=error.message, hint="try again later" * error.transient)]
        findings = [Finding("login", ok=True, detail=f"{account}{with_key}; the master password opens it")]
        where = self._where()
        try:
            with self._located(None):
                copied = await self._synced()
        except VaultError as error:
            return [*findings, Finding(where, ok=False, detail=error.message, hint="try again later" * error.transient)]
        findings.append(Finding(where, ok=True, detail=f"{len(copied.items)} items"))
        findings += self._doubts(copied)
        if any(use.write or use.delete for use in uses) and copied.places.organization_id is not None:
            root = next(str(place) for place, prefix in copied.places.prefixes.items() if not prefix)
            readable = root in copied.places.read_only
            detail = "the account may only read this collection" if readable else "allowed"
            hint = "give the account the right 'Edit items' in the collection" if readable else ""
            findings.append(Finding("write", ok=not readable, detail=detail, hint=hint))
        return findings

    def _where(self) -> str:
        settings = self._settings
        if settings.organization is not None:
            return f"collection {settings.organization}/{settings.collection}"
        return "own vault" if settings.folder is None else f"folder {settings.folder}"

    def _doubts(self, copied: _Copy) -> Iterator[Finding]:
        for item_id, why in sorted(copied.unreadable.items())[:20]:
            yield Finding(f"item {item_id}", ok=False, detail=why, hint="save it anew or delete it in the web vault")
        hidden = sum(not item.entry.enabled for item in copied.items.values())
        if hidden:
            hint = "give the account the collection without hidden passwords"
            yield Finding(
                "passwords", ok=False, detail=f"those of {hidden} items are hidden from the account", hint=hint
            )
        for name, ids in sorted(copied.names.items()):
            if len(ids) > 1:
                several = f"{len(ids)} items have this name: {', '.join(sorted(ids))}"
                yield Finding(f"name {name}", ok=False, detail=several, hint="rename or delete one of them")

    @contextmanager
    def _located(self, name: str | None) -> Iterator[None]:
        """Errors from inside say which vault and secret they are about."""
        try:
            yield
        except VaultError as error:
            error.vault, error.path = self.id, name
            raise


def _check_shape(sync: Any) -> None:
    """Raises Unavailable for an answer that a half-working proxy or another kind of server may have made up.

    Raises AccessDenied for one of an old Vaultwarden, whose names begin with capital letters.
    """
    if isinstance(sync, dict) and "Profile" in sync and "profile" not in sync:
        raise AccessDenied("the server speaks as Vaultwarden did until the summer of 2024: update it")
    profile = sync.get("profile") if isinstance(sync, dict) else None
    if not isinstance(profile, dict) or not isinstance(sync.get("ciphers"), list):
        raise not_bitwarden()
    for documents in (
        [profile],
        sync["ciphers"],
        sync.get("folders"),
        sync.get("collections"),
        profile.get("organizations"),
    ):
        if documents is None:
            continue
        if not isinstance(documents, list) or not all(
            isinstance(each, dict) and isinstance(each.get("id"), str) for each in documents
        ):
            raise not_bitwarden()


def _lean(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without `data`, where servers repeat the whole item for old clients."""
    return {name: value for name, value in document.items() if name != "data"}


class _Shared(Generic[T]):
    """Work that many ask for at once and that is done once for all of them: by a run that began after they asked."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._one = asyncio.Lock()
        self._begun = 0
        self._last: tuple[int, T | None, VaultError | None] = (0, None, None)

    async def __call__(self) -> T:
        asked = self._begun
        async with self._one:
            number, result, error = self._last
            if number <= asked:
                self._begun = number = self._begun + 1
                try:
                    result, error = await self._work(), None
                except VaultError as raised:
                    error = raised
                self._last = (number, result, error)
        if error is not None:
            # Each who asked gets one of its own: it is told where.
            raise copy.copy(error)
        return result  # type: ignore[return-value]
