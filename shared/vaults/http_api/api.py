"""The vault that a configuration describes.

Statuses mean what they mean everywhere (failures.py), but for 404: from most APIs it may also mean that the project,
the folder or the whole API is not there. So a secret is only said to be missing where the operation's `absent` finds
that in the answer, or where the listing, asked after it, still answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, NoReturn

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
from shared.model import Entry, Expect, Secret
from shared.pacing import Pacer
from shared.vault import Capabilities, Finding, FingerprintCost, NameRule, Use, Vault, check_name
from shared.vaults.http_api import answers, requests, templates
from shared.vaults.http_api.answers import Answer, Item, Unmapped
from shared.vaults.http_api.auth import Auth, Credentials
from shared.vaults.http_api.client import Client, Refused
from shared.vaults.http_api.failures import Absent, Unauthorized
from shared.vaults.http_api.identity import Ids
from shared.vaults.http_api.pages import Step, Walk
from shared.vaults.http_api.settings import Listing, Operation, Setting, Settings
from shared.vaults.http_api.shape import Shape

CONCURRENCY = 8
"""Who runs a public API counts requests: most have limits by the minute."""

_LONG = 200
"""Characters of a version, past which its fingerprint is a hash."""
_DEEPEST = 64


class HttpApi(Vault):
    """One API with one set of credentials."""

    kind: ClassVar[str] = "http_api"

    def __init__(self, vault_id: str, settings: Settings) -> None:
        pacer = Pacer(
            vault_id,
            concurrency=settings.concurrency or CONCURRENCY,
            requests_per_second=settings.requests_per_second,
        )
        super().__init__(vault_id, pacer)
        self._settings = settings
        self._operations = settings.operations
        self._client = Client(vault_id, settings)
        self._auth = Auth(settings, self._client, self._paced)
        self._names = settings.name_rule("secrets")
        self._ids = Ids(self._names.key)
        self._shape = Shape(settings)
        self._look = asyncio.Lock()
        self._looks_begun = 0
        self._looks_well = 0

    @property
    def capabilities(self) -> Capabilities:
        operations = self._operations
        listing, get, write = operations.list, operations.get, operations.set
        teller = operations.describe or get
        if listing is not None and listing.version:
            cost = FingerprintCost.LISTED
        elif teller is not None and (teller.etag or teller.version):
            cost = FingerprintCost.PER_SECRET
        else:
            cost = FingerprintCost.VALUE
        several = write.carries() != "value" if write else get is not None and get.fields is not None
        return Capabilities(
            fingerprint=cost,
            compare_and_set=write is not None and write.etag,
            write=write is not None,
            delete=operations.delete is not None,
            fields=several,
            time_resolution=timedelta(seconds=1) if get is not None and get.updated_at else None,
            max_bytes=self._settings.max_bytes,
            names=self._names,
        )

    # reading

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        if prefix:
            check_name(self.id, prefix.removesuffix("/"))
        listing = self._operations.list
        if listing is None:
            self._lacks("list")
        seen: dict[str, Item] = {}
        several: list[Item] = []
        wanted = self._names.key(prefix)
        folders = [prefix] if listing.tree else [""]
        told = {"prefix": prefix}
        while folders:
            folder = folders.pop()
            if listing.tree:
                told = {"prefix": folder}
            async for item in self._walk(listing, "list", told, folder if listing.tree else ""):
                if listing.tree and item.name.endswith("/"):
                    if item.name.count("/") > _DEEPEST:
                        raise Unsupported(f"the folders are nested deeper than {_DEEPEST} levels", vault=self.id)
                    if item.wanted and self._enterable(item.name):
                        folders.append(item.name)
                    continue
                if not item.wanted or not self._names.key(item.name).startswith(wanted):
                    continue
                several.append(item)
                if item.name not in seen:
                    seen[item.name] = item
                    yield self._entry(item.name, item.version, item.updated_at)
        self._ids.learn(several)

    async def _walk(
        self, listing: Listing, word: str, values: Mapping[str, str], folder: str = ""
    ) -> AsyncIterator[Item]:
        """Every item of every page, those that `where` leaves out included."""
        walk = Walk(listing.pages)
        step: Step | None = walk.first()
        seen: set[tuple[str, str | None]] = set()
        while step is not None:
            page, answer, url = await self._page(listing, word, values, step, folder)
            before = len(seen)
            for item in page:
                seen.add((item.name, item.id))
                yield item
            try:
                step = walk.next(answer, len(page), len(seen) - before, url)
            except VaultError as error:
                raise self._placed(error, None) from None

    async def _page(
        self, listing: Listing, word: str, values: Mapping[str, str], step: Step, folder: str
    ) -> tuple[list[Item], Answer, str]:
        url = step.url or self._url(listing, values, step.query)

        async def attempt(credentials: Credentials) -> tuple[list[Item], Answer]:
            try:
                answer = await self._send(listing, word, url, credentials, values)
            except Refused as refused:
                empty = refused.status == 404 and answers.says(listing.empty, refused.content)
                if not empty:
                    raise
                return [], Answer(None)
            return list(answers.items(listing, answer.body, folder)), answer

        page, answer = await self._call(attempt, None)
        return page, answer, url

    async def describe_secret(self, name: str) -> Entry:
        check_name(self.id, name, self._names)
        if self.capabilities.fingerprint is FingerprintCost.VALUE:
            raise Unsupported("this API tells nothing about a secret but its value", vault=self.id, path=name)
        teller = self._operations.describe
        if teller is None:
            return (await self._get(name))[1]
        answer = await self._one(teller, "describe", name)
        return self._told(name, teller, answer)

    async def get_secret(self, name: str) -> Secret:
        check_name(self.id, name, self._names)
        answer, entry = await self._get(name)
        getting = self._operations.get
        assert getting is not None  # noqa: S101 - _get has looked
        try:
            return replace(self._shape.secret(getting, answer), entry=entry)
        except VaultError as error:
            failure = self._placed(error, name)
        raise failure

    async def _get(self, name: str) -> tuple[Answer, Entry]:
        getting = self._operations.get
        if getting is None:
            self._lacks("get", name)
        answer = await self._one(getting, "get", name)
        if self._another(answer, name):
            # The listing told this id, and since then the secret was given another name.
            self._ids.forget(name)
            answer = await self._one(getting, "get", name)
            if self._another(answer, name):
                raise Unavailable(
                    "what is found under this name says that it has another one", vault=self.id, path=name
                )
        return answer, self._told(name, getting, answer)

    def _another(self, answer: Answer, name: str) -> bool:
        """Whether an answer is about a secret of another name."""
        getting = self._operations.get
        if getting is None or getting.name is None:
            return False
        try:
            found = answers.find(getting.name, answer.body)
            mine = {self._names.key(each) for each in (name, templates.locators(name)["base"])}
            return not isinstance(found, str) or self._names.key(found) not in mine
        except VaultError as error:
            failure = self._placed(error, name)
        raise failure

    def _told(self, name: str, teller: Any, answer: Answer) -> Entry:
        """What an answer says of a secret: settings.Answered, perhaps with `etag`."""
        try:
            version = answer.etag if getattr(teller, "etag", False) else None
            if teller.version:
                version = answers.scalar(answers.find(teller.version, answer.body))
            elif self.capabilities.compare_and_set and (version is None or version.startswith("W/")):
                if not isinstance(teller, Setting):
                    # https://www.rfc-editor.org/rfc/rfc9110#section-13.1.1: a weak one never matches.
                    what = "the answer has no ETag" if version is None else "the API's ETags are weak"
                    raise Unmapped(f"{what}, and no write can be bound to that: leave `etag` off `set`")
                version = None
            return self._entry(name, version, answers.moment(answers.find(teller.updated_at, answer.body)))
        except VaultError as error:
            failure = self._placed(error, name)
        raise failure

    def _entry(self, name: str, version: str | None, updated_at: Any) -> Entry:
        # It is kept for every secret, and nobody bounds what an API calls a version.
        long = version is not None and len(version) > _LONG
        fingerprint = hashlib.sha256(version.encode()).hexdigest() if version is not None and long else version
        return Entry(name, fingerprint=fingerprint, version=version, updated_at=updated_at)

    # writing

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        check_name(self.id, name, self._names)
        write, create = self._operations.set, self._operations.create
        if write is None:
            self._lacks("set", name)
        self._comparable(expect, name)
        values = self._packed(name, secret, write)
        conditions = requests.conditions(expect)
        if create is not None and expect is Expect.ABSENT:
            return await self._write(create, "create", name, values, conditions)
        try:
            return await self._write(write, "set", name, values, conditions)
        except SecretNotFound:
            # Out here: where it is created, the error of this try is no part of what may fail then.
            pass
        if expect is not Expect.ANY:
            await self._still_there()
            raise Conflict("it is not there, and a version of it was expected", vault=self.id, path=name)
        if create is not None:
            return await self._write(create, "create", name, values, {})
        raise MountNotFound("there is nothing to write to (404 on set): see `create`", vault=self.id, path=name)

    async def _write(
        self, write: Setting, word: str, name: str, values: dict[str, Any], conditions: Mapping[str, str]
    ) -> Entry:
        looked_into = bool(write.version or write.updated_at)
        answer = await self._one(write, word, name, values=values, conditions=conditions, parse=looked_into)
        return self._told(name, write, answer)

    def _packed(self, name: str, secret: Secret, write: Setting) -> dict[str, Any]:
        """What the body's placeholders stand for. Raises InvalidSecret for what the API could not give back."""
        try:
            return self._shape.values(secret, write)
        except InvalidSecret as error:
            failure = self._placed(error, name)
        raise failure

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        check_name(self.id, name, self._names)
        deleting = self._operations.delete
        if deleting is None:
            self._lacks("delete", name)
        self._comparable(expect, name)
        if deleting.look_first or expect is Expect.ABSENT:
            await self._get(name)
        if expect is Expect.ABSENT:
            raise Conflict("it is there, and was expected not to be", vault=self.id, path=name)
        await self._one(deleting, "delete", name, conditions=requests.conditions(expect), parse=False)
        self._ids.forget(name)

    def _comparable(self, expect: str | Expect, name: str) -> None:
        if expect is not Expect.ANY and not self.capabilities.compare_and_set:
            raise Unsupported("this API can not compare before it writes or deletes", vault=self.id, path=name)

    # one operation on one secret

    async def _one(
        self,
        operation: Any,
        word: str,
        name: str,
        *,
        values: Mapping[str, Any] | None = None,
        conditions: Mapping[str, str] | None = None,
        parse: bool = True,
    ) -> Answer:
        """Raises SecretNotFound only where it is the secret that is missing."""
        writes = word in ("set", "create", "delete")
        known = "id" in operation.uses
        locators: dict[str, str] = templates.locators(name)
        if known:
            locators["id"] = await self._id(name, asked_for=not writes)
        try:
            return await self._perform(operation, word, name, locators, values or {}, conditions or {}, parse)
        except Absent as absent:
            self._ids.forget(name)
            missing = SecretNotFound(absent.message, vault=self.id, path=name)
        if known and not writes and await self._id(name, asked_for=False) != locators["id"]:
            # What the listing told was old: under this name there is another one now.
            return await self._one(operation, word, name, values=values, conditions=conditions, parse=parse)
        if word == "create":
            raise MountNotFound("there is nothing to create it in (404 on create)", vault=self.id, path=name)
        raise missing

    async def _perform(
        self,
        operation: Any,
        word: str,
        name: str,
        locators: Mapping[str, str],
        values: Mapping[str, Any],
        conditions: Mapping[str, str],
        parse: bool,
    ) -> Answer:
        url, body = self._made(operation, name, locators, values)

        async def attempt(credentials: Credentials) -> Answer:
            return await self._send(
                operation, word, url, credentials, locators, body=body, conditions=conditions, parse=parse
            )

        try:
            answer: Answer = await self._call(attempt, name, write=word in ("set", "create", "delete"))
            return answer
        except _Doubtful as doubtful:
            content, absent = doubtful.content, doubtful.failure
        if operation.absent is not None:
            if not answers.says(operation.absent, content):
                raise MountNotFound(
                    f"what should hold it is not there (404 on {word}, without what `absent` looks for)",
                    vault=self.id,
                    path=name,
                )
        elif word not in ("set", "create"):
            await self._still_there()
        raise absent

    def _made(
        self, operation: Operation, name: str, locators: Mapping[str, str], values: Mapping[str, Any]
    ) -> tuple[str, bytes | None]:
        """Address and body. Raises InvalidSecret for what none can be made of."""
        try:
            return self._url(operation, locators, {}), requests.body(operation, {**locators, **values})
        except VaultError as error:
            failure = self._placed(error, name)
        raise failure

    async def _id(self, name: str, *, asked_for: bool) -> str:
        """The id of a name. `asked_for`: one that a listing told a moment ago will do. Raises SecretNotFound."""
        try:
            known = self._ids.known(name) if asked_for else None
            if known is None:
                self._ids.forget(name)
                listing = self._operations.find or self._operations.list
                assert listing is not None  # noqa: S101 - the settings hold this
                word = "find" if listing is self._operations.find else "list"
                parent = name[: name.rfind("/") + 1] if listing.tree else ""
                told = templates.locators(name) if word == "find" else {"prefix": parent}
                found = [item async for item in self._walk(listing, word, told, parent)]
                # A search may find more than was asked for, and then not all of that.
                whole = word == "list"
                key = self._names.key
                self._ids.learn(item for item in found if item.wanted and (whole or key(item.name) == key(name)))
                known = self._ids.known(name)
        except VaultError as error:
            failure = self._placed(error, name)
        else:
            if known is not None:
                return known
            failure = SecretNotFound("there is no such secret in the listing", vault=self.id, path=name)
        raise failure

    async def _still_there(self) -> None:
        """Whether the listing still answers: asked after the 404 that wants to know, and once for many of them."""
        listing = self._operations.list
        if listing is None:
            return
        mine = self._looks_begun + 1
        async with self._look:
            if self._looks_well >= mine:
                return
            self._looks_begun += 1
            number = self._looks_begun
            await self._page(listing, "list", {"prefix": ""}, Walk(listing.pages).first(), "")
            self._looks_well = number

    # every request passes here

    def _url(self, operation: Operation, locators: Mapping[str, str], more: Mapping[str, str]) -> str:
        return requests.url(self._settings.base_url, operation, locators, more)

    async def _send(
        self,
        operation: Operation,
        word: str,
        url: str,
        credentials: Credentials,
        locators: Mapping[str, str],
        *,
        body: bytes | None = None,
        conditions: Mapping[str, str] | None = None,
        parse: bool = True,
    ) -> Answer:
        from multidict import CIMultiDict

        if body is None:
            body = requests.body(operation, locators)
        # Whatever case they are written in, a header that is given takes the place of ours.
        headers = CIMultiDict(Accept="*/*" if getattr(operation, "answer", "json") == "text" else "application/json")
        if body is not None:
            headers["Content-Type"] = requests.CONTENT_TYPES[operation.body_type]
        headers.update(self._settings.headers)
        headers.update({key: templates.text(value, locators) for key, value in operation.headers.items()})
        headers.update(conditions or {})
        headers.update(credentials.headers)
        if credentials.query:
            url += ("&" if "?" in url else "?") + requests.query_string(credentials.query)
        return await self._client.call(operation, word, url, headers=headers, body=body, parse=parse)

    async def _call(
        self, attempt: Callable[[Credentials], Awaitable[Any]], name: str | None, *, write: bool = False
    ) -> Any:
        """At the vault's pace, with credentials; a token that is refused is replaced once."""
        try:
            credentials = await self._auth.current()
            try:
                return await self._attempt(attempt, credentials, write=write)
            except Unauthorized:
                if not self._auth.renewable:
                    raise
            return await self._attempt(attempt, await self._auth.current(credentials), write=write)
        except VaultError as error:
            failure = self._placed(error, name)
        raise failure

    async def _attempt(
        self, attempt: Callable[[Credentials], Awaitable[Any]], credentials: Credentials, *, write: bool
    ) -> Any:
        async def once() -> Any:
            failure: VaultError
            try:
                return await attempt(credentials)
            except Refused as refused:
                failure = refused.failure
                if isinstance(failure, Absent):
                    failure = _Doubtful(failure, refused.content)
            raise failure

        return await self.pacer.call(once, write=write)

    async def _paced(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        return await self.pacer.call(attempt)

    def _placed(self, error: VaultError, name: str | None) -> VaultError:
        error.vault, error.path = self.id, name
        # What it came from may hold an answer, and with it a value.
        error.__cause__ = error.__context__ = None
        return error

    def _lacks(self, word: str, name: str | None = None) -> NoReturn:
        raise Unsupported(f"no operation `{word}` is configured", vault=self.id, path=name)

    def _enterable(self, folder: str) -> bool:
        try:
            check_name(self.id, folder.removesuffix("/"))
        except InvalidSecret:
            return False
        return True

    # check

    async def check(self, uses: list[Use]) -> list[Finding]:
        """Lists a page and reads one secret, whose value is dropped: a mapping can only be tried on an answer."""
        findings: list[Finding] = []
        sample: Item | None = None
        listing, getting = self._operations.list, self._operations.get
        if listing is not None:
            try:
                page, _, _ = await self._page(listing, "list", {"prefix": ""}, Walk(listing.pages).first(), "")
            except VaultError as error:
                return [_wrong("list", error)]
            mine = [item for item in page if item.wanted and not item.name.endswith("/")]
            sample = next((item for item in mine if _takes(self._names, item.name)), None)
            findings.append(Finding("list", True, f"answered, with {len(mine)} secret(s) on the first page"))
        if getting is not None:
            findings.append(await self._check_get(sample))
        for word, wanted in (("set", any(use.write for use in uses)), ("delete", any(use.delete for use in uses))):
            if not wanted:
                continue
            there = getattr(self._operations, word) is not None
            detail = "is configured; only a write would show whether it is allowed" if there else "is not configured"
            findings.append(Finding(word, there, detail, "" if there else f"add `operations.{word}`"))
        return findings

    async def _check_get(self, sample: Item | None) -> Finding:
        made_up = f"VAULTFERRY_CHECK_{random.getrandbits(64):016X}"
        try:
            found = await self.get_secret(sample.name if sample else self._names.fit(made_up)[: self._names.max_length])
        except SecretNotFound:
            if sample is None:
                return Finding("get", True, "answered; there is no secret to try the mapping on")
            return Finding("get", False, "a secret that is listed is not found", "check the path of `get`")
        except VaultError as error:
            return _wrong("get", error)
        version = found.entry.version if found.entry else None
        cost = self.capabilities.fingerprint
        if cost is not FingerprintCost.VALUE and version is None:
            return Finding(
                "get", False, "the mapping: the answer has no version", "correct `version` (or `etag`) of `get`"
            )
        if cost is FingerprintCost.LISTED and sample is not None and sample.version != version:
            hint = "let `version` find the same in both, or leave it out of `list`"
            return Finding("get", False, "the mapping: `list` and `get` tell different versions of one secret", hint)
        return Finding("get", True, "answered, and the value is where the mapping says")

    async def aclose(self) -> None:
        await self._client.aclose()


class _Doubtful(SecretNotFound):
    """A 404 with its answer, on the way out of the pacer. Nobody but `_perform` sees it."""

    def __init__(self, failure: Absent, content: bytes) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.content = content


def _takes(rule: NameRule, name: str) -> bool:
    try:
        check_name("", name, rule)
    except InvalidSecret:
        return False
    return True


def _wrong(subject: str, error: VaultError) -> Finding:
    """Which of connection, credentials, path and mapping it is that is wrong."""
    if isinstance(error, Unmapped):
        return Finding(
            subject, False, f"the mapping: {error.message}", f"correct the JMESPath of `operations.{subject}`"
        )
    if isinstance(error, AccessDenied):
        return Finding(subject, False, f"credentials: {error.message}")
    if isinstance(error, MountNotFound):
        return Finding(subject, False, f"the path: {error.message}")
    if isinstance(error, Unavailable):
        return Finding(subject, False, f"the connection: {error.message}", "is the server up and reachable?")
    return Finding(subject, False, error.message)
