"""Azure Key Vault's secrets, through the official asynchronous client.

What shapes this file, from https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups:
- There is no conditional write; each set makes a version that stays.
- A listing (25 a page) shows times in whole seconds, tags and attributes, but neither values nor version ids.
- A deleted name stays taken until it is recovered or purged.

The fingerprint is a hash of what the listing shows. Two writes in one second would look the same, so each of ours
carries the tag `vaultferry` with a nonce: a foreign version lacks that nonce, and ours is settled the moment it is
written. An entry without a nonce gets no fingerprint while it is as young as the clock is coarse.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets as random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from shared import onestring
from shared.errors import (
    AccessDenied,
    ConfigError,
    InvalidSecret,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.model import Entry, Expect, Secret, canonical_json
from shared.notices import GapNotice, Hint, KeyVaultNotice, Notice
from shared.pacing import Pacer
from shared.vault import OWN_TAG, Capabilities, Finding, FingerprintCost, Use, Vault, check_name
from shared.vaults.azure_key_vault.client import Client
from shared.vaults.azure_key_vault.failures import (
    BUSY_FOR,
    DELETED,
    Busy,
    Forbidden,
    SecretDisabled,
    codes,
    explain,
    failures,
    http_date,
)
from shared.vaults.azure_key_vault.settings import METADATA, NAMES, Settings

if TYPE_CHECKING:
    from azure.keyvault.secrets import SecretProperties
    from azure.keyvault.secrets.aio import SecretClient

T = TypeVar("T")

NONCE_TAG = OWN_TAG
"""`<owner>/<nonce>` on every version that Vaultferry writes; `-` for a write without an owner."""

_NONCE = re.compile(r"(.*)/[0-9a-f]{16}", re.DOTALL)
_RESOLUTION = timedelta(seconds=1)
# Twice the resolution: the service's machines need not agree on the second.
_SETTLED_AFTER = timedelta(seconds=2)
# https://learn.microsoft.com/azure/key-vault/secrets/about-secrets and, for tags and content type, the REST reference.
_MAX_BYTES = 25 * 1024
_MAX_TAGS = 15
_MAX_TAG_CHARACTERS = 256
_MAX_CONTENT_TYPE_CHARACTERS = 255
# Seconds between the tries to write a name that is being recovered: some 15 in all, as recoveries take.
_RECOVERY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
# 300 creates and 4,000 other calls per vault and 10 seconds; a tenth is left to everybody else.
# https://learn.microsoft.com/azure/key-vault/general/service-limits#secrets-managed-storage-account-keys-and-vault-transactions
_CREATES_PER_SECOND = 30 * 0.9
_REQUESTS_PER_SECOND = 400 * 0.9


def connect(vault_id: str, settings: Settings, resource: str = "secrets") -> KeyVault:
    """A vault that signs in and opens its first socket when it is first used.

    Raises ConfigError for a resource other than secrets and for a CA bundle that can not be read.
    """
    if resource != "secrets":
        raise ConfigError(f"{vault_id}: a Key Vault holds secrets, not {resource}")
    return KeyVault(vault_id, settings)


class KeyVault(Vault):
    """One Key Vault. `timeout` (seconds) is what the server may be silent for; a whole call may take twice that."""

    kind: ClassVar[str] = "azure_key_vault"

    def __init__(
        self,
        vault_id: str,
        settings: Settings,
        *,
        timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        pacer = Pacer(
            vault_id,
            concurrency=settings.concurrency or 16,
            # Who states a limit knows of a special one: it then counts for writes too.
            requests_per_second=settings.requests_per_second or _REQUESTS_PER_SECOND,
            writes_per_second=settings.requests_per_second or _CREATES_PER_SECOND,
            sleep=sleep,
        )
        super().__init__(vault_id, pacer)
        self._settings = settings
        self._timeout = timeout
        self._sleep = sleep
        self._client = Client(vault_id, settings, timeout)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            fingerprint=FingerprintCost.LISTED,
            compare_and_set=False,
            fields=False,
            tags=True,
            metadata=METADATA,
            time_resolution=_RESOLUTION,
            max_bytes=_MAX_BYTES,
            names=NAMES,
        )

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        if prefix:
            check_name(self.id, prefix.removesuffix("/"))
        wanted = NAMES.key(prefix)
        token: str | None = None
        while True:
            page, following = await self._page(token)
            for entry, managed in page:
                # Those that belong to a certificate can be neither written nor meaningfully carried elsewhere.
                if not managed and NAMES.key(entry.name).startswith(wanted):
                    yield entry
            if following is None:
                return
            if following == token:
                raise Unavailable("the listing goes round in circles", vault=self.id)
            token = following

    # Each attempt makes its entries itself: an answer of another shape may break as late as there.

    async def _page(self, token: str | None) -> tuple[list[tuple[Entry, bool]], str | None]:
        async def attempt(client: SecretClient, seen: _Seen) -> tuple[list[tuple[Entry, bool]], str | None]:
            # A new iterator for every try: one that failed on its first page would just end when asked again.
            pages: Any = client.list_properties_of_secrets(raw_response_hook=seen).by_page(token)
            page = [(_entry(properties, seen.now), bool(properties.managed)) async for properties in await anext(pages)]
            return page, pages.continuation_token

        return await self._call(attempt)

    async def describe_secret(self, name: str) -> Entry:
        """One get whose value is dropped: the current version has no read of its own that leaves the value out."""
        check_name(self.id, name, NAMES)
        try:
            return (await self._get(name))[2]
        except SecretDisabled:
            return Entry(name, enabled=False)

    async def get_secret(self, name: str) -> Secret:
        check_name(self.id, name, NAMES)
        properties, text, entry = await self._get(name)
        if not entry.live:
            raise SecretNotFound("it has expired", vault=self.id, path=name)
        marked = properties.content_type == onestring.CONTENT_TYPE
        try:
            fields = onestring.unpack(text, properties.content_type)
        except InvalidSecret as error:
            error.vault, error.path = self.id, name
            raise
        return Secret(
            fields=fields,
            content_type=None if marked else properties.content_type,
            tags={key: value for key, value in (properties.tags or {}).items() if key != NONCE_TAG},
            expires_at=properties.expires_on,
            entry=entry,
        )

    async def _get(self, name: str) -> tuple[SecretProperties, str, Entry]:
        async def attempt(client: SecretClient, seen: _Seen) -> tuple[SecretProperties, str, Entry]:
            secret = await client.get_secret(name, raw_response_hook=seen)
            return secret.properties, secret.value or "", _entry(secret.properties, seen.now)

        properties, text, entry = await self._call(attempt, path=name)
        if properties.managed or properties.key_id:
            raise InvalidSecret("it belongs to a certificate, which manages it", vault=self.id, path=name)
        return properties, text, entry

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        self._refuse_expectation(expect, name)
        check_name(self.id, name, NAMES)
        text, options = self._packed(name, secret, owner)
        asked = False
        for wait in (*_RECOVERY_WAITS, None):
            written = await self._put(name, text, options, patient=asked)
            if isinstance(written, Entry):
                return written
            if wait is None:
                break
            if written == DELETED:
                await self._recover(name)
                asked = True
            await self._sleep(wait)
        raise Unavailable("it is still being recovered", vault=self.id, path=name, retry_after=BUSY_FOR)

    async def _put(self, name: str, text: str, options: dict[str, Any], *, patient: bool) -> Entry | str:
        """What was written, or why the name is taken. `patient`: a recovery under way is ours to wait for."""
        from azure.core.exceptions import HttpResponseError

        reasons = {DELETED, "ObjectIsBeingRecovered"} if patient else {DELETED}

        async def attempt(client: SecretClient, seen: _Seen) -> Entry | str:
            try:
                answer = await client.set_secret(name, text, raw_response_hook=seen, **options)
                return _entry(answer.properties, seen.now)
            except HttpResponseError as error:
                code = codes(error)[1]
                if error.status_code != 409 or code not in reasons:
                    raise
            return code

        return await self._call(attempt, path=name, write=True)

    async def _recover(self, name: str) -> None:
        """Ask for a deleted secret back. Not there, or on its way already, is well: the next write will tell."""
        try:
            await self._send("POST", f"/deletedsecrets/{name}/recover", name)
        except (SecretNotFound, Busy):
            return
        except AccessDenied:
            denied = AccessDenied(
                "its name is taken by a deleted secret, and recovering that was refused; "
                "grant the role Key Vault Secrets Officer, or the permission 'recover'",
                vault=self.id,
                path=name,
            )
        else:
            return
        raise denied

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        """Soft-delete, recoverably for as long as the vault says. Ends with the answer: the rest takes seconds."""
        self._refuse_expectation(expect, name)
        check_name(self.id, name, NAMES)
        try:
            # Not `client.delete_secret`: that one polls until the deletion is through.
            await self._send("DELETE", f"/secrets/{name}", name, write=True)
            return
        except Busy as error:
            if not error.deleted:
                raise
        raise SecretNotFound("it is deleted already", vault=self.id, path=name)

    async def _send(
        self, method: str, url: str, path: str, *, body: dict[str, Any] | None = None, write: bool = False
    ) -> None:
        from azure.core.rest import HttpRequest

        async def attempt(client: SecretClient, seen: _Seen) -> None:
            answer: Any = await client.send_request(HttpRequest(method, url, json=body), raw_response_hook=seen)
            answer.raise_for_status()

        await self._call(attempt, path=path, write=write)

    def heard(self, notice: Notice) -> Hint | None:
        if isinstance(notice, GapNotice):
            # What tells of Vaults, and does not say which, tells nothing of a Key Vault.
            return Hint("") if notice.vault == self.id else None
        if not isinstance(notice, KeyVaultNotice):
            return None
        host = urlsplit(self._settings.url).hostname or ""
        if notice.host.lower() not in (host, host.partition(".")[0]):
            return None
        try:
            check_name(self.id, notice.name, NAMES)
        except InvalidSecret:
            return None
        return Hint(notice.name, notice.version)

    async def check(self, uses: list[Use]) -> list[Finding]:
        """Asks for a secret that can not exist: permissions are looked at before names, so 404 means allowed."""
        name = f"vaultferry-check-{random.token_hex(16)}"
        listing, reached = await self._finding("list", self._page(None), "list")
        if not reached:
            return [listing]
        # An update is granted by the same role and access policy as a write, and has no effect on what is not there.
        unknown, deleted = f"/secrets/{name}", f"/deletedsecrets/{name}"
        asked: list[tuple[str, str, str, str, Any]] = [("read", "get", "GET", unknown, None)]
        if any(use.write for use in uses):
            asked.append(("write", "set", "PATCH", f"{unknown}/{'0' * 32}", {"tags": {}}))
            asked.append(("recover", "recover", "POST", f"{deleted}/recover", None))
        if any(use.delete for use in uses):
            asked.append(("delete", "delete", "DELETE", unknown, None))
        findings = [listing]
        for subject, permission, method, url, body in asked:
            finding, _ = await self._finding(subject, self._send(method, url, name, body=body), permission)
            findings.append(finding)
        return findings

    async def _finding(self, subject: str, call: Awaitable[object], permission: str) -> tuple[Finding, bool]:
        """What came of a call, and whether the vault was reached at all."""
        role = "Key Vault Secrets User" if permission in ("get", "list") else "Key Vault Secrets Officer"
        try:
            await call
        except SecretNotFound:
            pass
        except Forbidden as error:
            hint = f"grant the role {role}, or the permission '{permission}' in the access policy"
            return Finding(subject, ok=False, detail=error.message, hint=hint if error.by_role else ""), True
        except VaultError as error:
            return Finding(subject, ok=False, detail=error.message, hint="try again later" * error.transient), False
        return Finding(subject, ok=True, detail="allowed"), True

    async def aclose(self) -> None:
        await self._client.aclose()

    # Before anything is sent.

    def _refuse_expectation(self, expect: str | Expect, name: str) -> None:
        if expect is not Expect.ANY:
            raise Unsupported("Key Vault can not compare before it writes or deletes", vault=self.id, path=name)

    def _packed(self, name: str, secret: Secret, owner: str | None) -> tuple[str, dict[str, Any]]:
        """The value, and what else goes with it. Raises InvalidSecret for what Key Vault would refuse."""

        def refuse(why: str) -> InvalidSecret:
            return InvalidSecret(why, vault=self.id, path=name)

        try:
            text, mark = onestring.pack(secret.fields)
        except InvalidSecret as error:
            error.vault, error.path = self.id, name
            raise
        size = _utf8_length(text)
        if size is None:
            raise refuse("its value holds half a character (a lone surrogate), which can not be sent")
        if size > _MAX_BYTES:
            raise refuse(f"its value takes {size:,} bytes; Key Vault stores at most {_MAX_BYTES:,}")
        # A raw value must not look like one of ours when it is read again.
        own = secret.content_type if secret.content_type != onestring.CONTENT_TYPE else None
        if own is not None and (_utf8_length(own) is None or len(own) > _MAX_CONTENT_TYPE_CHARACTERS):
            raise refuse(f"its content type has more than {_MAX_CONTENT_TYPE_CHARACTERS} characters")
        tags = {**(secret.tags or {}), NONCE_TAG: f"{owner or '-'}/{random.token_hex(8)}"}
        if len(tags) > _MAX_TAGS:
            raise refuse(f"it has {len(tags)} tags, Vaultferry's own included; Key Vault stores at most {_MAX_TAGS}")
        if any(len(part) > _MAX_TAG_CHARACTERS or _utf8_length(part) is None for pair in tags.items() for part in pair):
            raise refuse(f"a tag's name or value has more than {_MAX_TAG_CHARACTERS} characters")
        expires = secret.expires_at and secret.expires_at.astimezone(UTC).replace(microsecond=0)
        return text, {"content_type": mark or own, "tags": tags, "expires_on": expires}

    # Every call passes here.

    async def _call(
        self,
        attempt: Callable[[SecretClient, _Seen], Awaitable[T]],
        *,
        path: str | None = None,
        write: bool = False,
    ) -> T:
        async def once() -> T:
            seen = _Seen()
            try:
                async with asyncio.timeout(2 * self._timeout):
                    answer = await attempt(self._client.get(), seen)
            except tuple(failures()) as error:
                failure = explain(error, path, self._settings.url)
                failure.vault, failure.path = self.id, path
            else:
                return answer
            # Raised out here: what the SDK raised may hold the answer, and with it the value.
            raise failure

        return await self.pacer.call(once, write=write)


class _Seen:
    """Keeps the time of the last answer: handed to the SDK as raw_response_hook."""

    def __init__(self) -> None:
        self.now: datetime | None = None

    def __call__(self, answer: Any) -> None:
        self.now = http_date(answer.http_response.headers.get("Date"))


# --- what an entry says -------------------------------------------------------------------------------------------


def _entry(properties: SecretProperties, now: datetime | None) -> Entry:
    """`now` is the server's time; None: unknown, then only what carries our nonce is settled."""
    tags = dict(properties.tags or {})
    mark = _NONCE.fullmatch(tags.get(NONCE_TAG, ""))
    updated, expires = properties.updated_on, properties.expires_on
    settled = mark is not None or (now is not None and updated is not None and now - updated >= _SETTLED_AFTER)
    shown = {
        "updated": _seconds(updated),
        "enabled": properties.enabled is not False,
        "content_type": properties.content_type,
        "tags": tags,
        "expires": _seconds(expires),
        "not_before": _seconds(properties.not_before),
    }
    return Entry(
        name=properties.name or "",
        fingerprint=hashlib.sha256(canonical_json(shown).encode()).hexdigest()[:32] if settled else None,
        # A listing has none.
        version=properties.version,
        # Of this version: tags and dates that are set on it later make no newer value of it.
        updated_at=properties.created_on or updated,
        live=expires is None or now is None or expires > now,
        enabled=properties.enabled is not False,
        owner=mark[1] if mark and mark[1] != "-" else None,
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _utf8_length(text: str) -> int | None:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
