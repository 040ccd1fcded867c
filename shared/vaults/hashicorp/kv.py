"""KV version 1 and 2. API: https://developer.hashicorp.com/vault/api-docs/secret/kv

A KV v2 fingerprint is `version@created/deletion/destroyed` of the newest version, and a hash of the secret's custom
metadata where it has any: the same text whether it comes from a metadata read, a value or the answer to a write, and another
one after a write, a delete, an undelete, a change of custom metadata (which makes no version), and after a key was wiped and
written anew (its version 1 has another time). The key's own times are not part of it: a value read does not carry them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from hvac.api.secrets_engines import KvV1, KvV2

from shared.errors import AccessDenied, Conflict, InvalidSecret, MountNotFound, SecretNotFound, Unsupported
from shared.model import Entry, Expect, Secret, canonical_json
from shared.notices import AuditNotice, Hint
from shared.vault import Capabilities, Finding, FingerprintCost, Use, check_name
from shared.vaults.hashicorp.adapter import MAX_REQUEST_BYTES, encode
from shared.vaults.hashicorp.base import PROBE, HashicorpVault
from shared.vaults.hashicorp.failures import Answer, Forbidden
from shared.vaults.hashicorp.numbers import survives
from shared.vaults.hashicorp.settings import METADATA, Settings

_VERBS = frozenset({"data", "metadata", "delete", "undelete", "destroy"})
"""Behind which a KV v2 path goes on with the name of a secret."""
# https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#custom_metadata
_MAX_TAGS = 64
_MAX_TAG_BYTES = 128
_MAX_TAG_VALUE_BYTES = 512
_V1 = Capabilities(FingerprintCost.VALUE, max_bytes=MAX_REQUEST_BYTES)
_V2 = Capabilities(
    FingerprintCost.PER_SECRET,
    compare_and_set=True,
    metadata=METADATA,
    time_resolution=timedelta(microseconds=1),
    max_bytes=MAX_REQUEST_BYTES,
)


class KvVault(HashicorpVault):
    """The secrets of one KV mount."""

    engine = "mount"

    def __init__(self, vault_id: str, settings: Settings) -> None:
        super().__init__(vault_id, settings)
        self._mount = settings.mount
        self._v1 = KvV1(self.adapter)
        self._v2 = KvV2(self.adapter)
        self._version: Literal[1, 2] | None = None if settings.kv_version == "auto" else settings.kv_version
        self._opened = False

    @property
    def capabilities(self) -> Capabilities:
        if self._version is None:
            raise Unsupported("the vault was not opened, so its KV version is unknown", vault=self.id)
        return _V2 if self._version == 2 else _V1

    async def open(self) -> None:
        """Log in, and ask for the mount's version. Where that can not be asked, `kv_version` is believed."""
        if self.login.due():
            await self.login.refresh()
        if not self._opened:
            told = await self._ask_version()
            given = self.settings.kv_version
            if told and given not in ("auto", told):
                # Version 2's paths on a mount of version 1 would look like one without secrets.
                raise MountNotFound(
                    f"{self._mount!r} is of KV version {told}, and kv_version says {given}", vault=self.id
                )
            self._version = told or self._version or await self._version_by_config()
            self._opened = True

    async def _ask_version(self) -> Literal[1, 2] | None:
        # This path asks for no permission but some use of the mount: sys/mounts would want one of its own.
        path = f"/v1/sys/internal/ui/mounts/{quote(self._mount)}"
        try:
            answer = await self.call(lambda: self.adapter.request("get", path))
        except (Forbidden, SecretNotFound, MountNotFound, InvalidSecret):
            return None
        mount = answer.get("data") or {}
        if not isinstance(mount, dict):
            self.not_understood(None)
        if str(mount.get("path", "")).strip("/") != self._mount:
            raise MountNotFound(
                f"there is no mount {self._mount!r}; the nearest one is {mount.get('path')!r}", vault=self.id
            )
        if mount.get("type") not in ("kv", "generic"):
            raise MountNotFound(f"{self._mount!r} is a {mount.get('type')} engine, not kv", vault=self.id)
        options = mount.get("options")
        return 2 if isinstance(options, dict) and str(options.get("version")) == "2" else 1

    async def _version_by_config(self) -> Literal[1, 2]:
        """Vault refuses the question about a mount that does not exist with the 403 of one that is forbidden."""
        try:
            await self.call(lambda: self._v2.read_configuration(mount_point=self._mount))
        except SecretNotFound:
            return 1
        except Forbidden:
            pass
        else:
            return 2
        raise AccessDenied(
            f"the token may not look at the mount {self._mount!r}: is it there? Grant the token any access to it, or set "
            "kv_version",
            vault=self.id,
        )

    # reading

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        if prefix:
            if not prefix.endswith("/"):
                raise InvalidSecret("a prefix ends with '/'", vault=self.id, path=prefix[:200])
            self._check(prefix[:-1])
        waiting = [prefix]
        running: dict[asyncio.Task[list[str]], str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.pacer.concurrency:
                    # The newest first: depth before breadth keeps the list of what waits short.
                    folder = waiting.pop()
                    running[asyncio.ensure_future(self._list_folder(folder))] = folder
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    folder = running.pop(task)
                    for key in task.result():
                        if key.endswith("/") and self._enterable(folder + key[:-1]):
                            waiting.append(folder + key)
                        else:
                            # Also a folder that no URL may be built for: its name is refused where it is used.
                            yield Entry(folder + key)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _list_folder(self, folder: str) -> list[str]:
        engine = self._v2 if self._version == 2 else self._v1
        try:
            answer = await self.call(lambda: engine.list_secrets(folder, mount_point=self._mount), folder or None)
        except SecretNotFound:
            # Vault has no empty folders: one without secrets is not there.
            return []
        try:
            return [str(key) for key in answer["data"]["keys"]]
        except (KeyError, TypeError):
            self.not_understood(folder)

    def _enterable(self, folder: str) -> bool:
        try:
            self._check(folder)
        except InvalidSecret:
            return False
        return True

    async def describe_secret(self, name: str) -> Entry:
        if self._version != 2:
            raise Unsupported("KV version 1 tells nothing about a secret but its value", vault=self.id, path=name)
        self._check(name)
        answer = await self.call(lambda: self._v2.read_secret_metadata(name, mount_point=self._mount), name)
        try:
            metadata = answer["data"]
            version = metadata["current_version"]
            if version == 0:
                # Metadata was written, but never a value.
                return Entry(name, fingerprint="0", version="0", live=False)
            return self._entry(name, version, metadata["versions"][str(version)], metadata.get("custom_metadata"))
        except (KeyError, TypeError, ValueError):
            self.not_understood(name)

    async def get_secret(self, name: str) -> Secret:
        self._check(name)
        if self._version == 2:
            answer = await self.call(
                lambda: self._v2.read_secret_version(name, mount_point=self._mount, raise_on_deleted_version=True), name
            )
        else:
            answer = await self.call(lambda: self._v1.read_secret(name, mount_point=self._mount), name)
        try:
            fields = answer["data"]["data"] if self._version == 2 else answer["data"]
            metadata = answer["data"]["metadata"] if self._version == 2 else None
            custom = metadata.get("custom_metadata") if metadata else None
            entry = self._entry(name, metadata["version"], metadata, custom) if metadata else Entry(name)
            tags = dict(custom or {}) if self._version == 2 else None
        except (KeyError, TypeError, ValueError):
            self.not_understood(name)
        if not isinstance(fields, dict):
            raise InvalidSecret("it does not hold a map of fields", vault=self.id, path=name)
        return Secret(fields, tags=tags, entry=entry)

    def _entry(self, name: str, version: int, metadata: dict[str, Any], custom: Mapping[str, str] | None) -> Entry:
        created, deletion, destroyed = metadata["created_time"], metadata["deletion_time"], metadata["destroyed"]
        live = not destroyed
        if deletion and live:
            # It may lie ahead: what expires is live until then, by the server's clock.
            live = _moment(deletion).timestamp() > self.adapter.server_time()
        return Entry(
            name,
            fingerprint=f"{version}@{created}/{deletion}/{'destroyed' if destroyed else ''}{_hashed(custom)}",
            version=str(version),
            updated_at=_moment(created),
            live=live,
        )

    # writing

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        self._check(name)
        if self._version != 2 and expect is not Expect.ANY:
            raise Unsupported("KV version 1 can not compare and set", vault=self.id, path=name)
        fields = self._checked_fields(name, secret)
        if secret.tags is not None:
            await self._put_tags(name, secret.tags, expect)
        attempt: Callable[[], Awaitable[Answer]]
        if self._version == 2:
            version = _version(expect)

            def attempt() -> Awaitable[Answer]:
                call: Awaitable[Answer] = self._v2.create_or_update_secret(
                    name, fields, cas=version, mount_point=self._mount
                )
                return call

            answer = await self.call(attempt, name, write=True)
            try:
                data = answer["data"]
                return self._entry(name, data["version"], data, data.get("custom_metadata"))
            except (KeyError, TypeError, ValueError):
                self.not_understood(name)

        await self.call(
            lambda: self._v1.create_or_update_secret(name, fields, method="POST", mount_point=self._mount),
            name,
            write=True,
        )
        return Entry(name)

    async def _put_tags(self, name: str, tags: Mapping[str, str], expect: str | Expect) -> None:
        """Replace the custom metadata, before the value: where the token may not, no version is made in vain, run after run.

        What the write is going to expect is looked at first, as nothing compares here.
        """
        if self._version != 2:
            raise Unsupported("KV version 1 has no custom metadata", vault=self.id, path=name)
        self._check_tags(name, tags)
        try:
            answer = await self.call(lambda: self._v2.read_secret_metadata(name, mount_point=self._mount), name)
            found = answer["data"]
            version, before = int(found["current_version"]), dict(found.get("custom_metadata") or {})
        except SecretNotFound:
            version, before = 0, {}
        except (KeyError, TypeError, ValueError):
            self.not_understood(name)
        if _version(expect) not in (None, version):
            raise Conflict(f"it is in version {version}, not the expected one", vault=self.id, path=name)
        if before == dict(tags):
            return
        path = f"/v1/{quote(self._mount)}/metadata/{quote(name)}"
        # hvac's own method would also reset delete_version_after.
        body = {"custom_metadata": dict(tags)}
        try:
            await self.call(lambda: self.adapter.request("post", path, json=body), name, write=True)
        except Forbidden as error:
            error.message += f"; to carry tags, the token needs 'create' and 'update' on {self._mount}/metadata/"
            raise

    def _check_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Raises InvalidSecret for what Vault would refuse."""

        def refuse(why: str) -> InvalidSecret:
            return InvalidSecret(why, vault=self.id, path=name)

        if len(tags) > _MAX_TAGS:
            raise refuse(f"it has {len(tags)} tags; KV version 2 keeps at most {_MAX_TAGS} as custom metadata")
        for texts, most, what in (
            (tags.keys(), _MAX_TAG_BYTES, "name"),
            (tags.values(), _MAX_TAG_VALUE_BYTES, "value"),
        ):
            if any(not 0 < len(text.encode(errors="replace")) <= most for text in texts):
                raise refuse(
                    f"the {what} of a tag has more than {most} bytes, or none: custom metadata can not hold that"
                )
            if any(not text.isprintable() for text in texts):
                raise refuse(f"the {what} of a tag has unprintable characters, which custom metadata can not hold")

    def _checked_fields(self, name: str, secret: Secret) -> dict[str, Any]:
        fields = dict(secret.fields)
        if any(not isinstance(key, str) for key in fields):
            raise InvalidSecret("the names of fields must be text", vault=self.id, path=name)
        if self._version == 1 and not fields:
            raise InvalidSecret("KV version 1 can not hold a secret without fields", vault=self.id, path=name)
        try:
            encode(fields, self.id)
            exact = survives(fields, as_float64=self._version == 2)
        except InvalidSecret as error:
            error.path = name
            raise
        except RecursionError:
            # Python versions differ in what their encoder takes. Vault itself takes 300 levels.
            raise InvalidSecret("its value is nested too deeply", vault=self.id, path=name) from None
        if not exact:
            raise InvalidSecret(
                f"it holds a number that KV version {self._version} can not carry exactly; store it as text",
                vault=self.id,
                path=name,
            )
        return fields

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        """KV v2: the one version that was seen, never the metadata. A version written while this goes on stays live."""
        self._check(name)
        if self._version != 2:
            if expect is not Expect.ANY:
                raise Unsupported("KV version 1 can not compare and delete", vault=self.id, path=name)
            # Deleting what is not there succeeds without a word, so it has to be looked for.
            await self.get_secret(name)
            await self.call(lambda: self._v1.delete_secret(name, mount_point=self._mount), name, write=True)
            return
        now = await self.describe_secret(name)
        if expect is Expect.ABSENT or (isinstance(expect, str) and expect != now.version):
            raise Conflict(f"it is in version {now.version}, not the expected one", vault=self.id, path=name)
        if not now.live:
            raise SecretNotFound(f"its newest version, {now.version}, is deleted already", vault=self.id, path=name)
        versions = [int(now.version or 0)]
        await self.call(
            lambda: self._v2.delete_secret_versions(name, versions, mount_point=self._mount), name, write=True
        )

    def _check(self, name: str) -> None:
        check_name(self.id, name)
        if not name.isprintable():
            raise InvalidSecret(
                "Vault refuses names with unprintable characters", vault=self.id, path=ascii(name)[:200]
            )
        if self._version == 1 and ".." in name:
            # The storage below takes it for a relative path; KV v2 hides names from it.
            raise InvalidSecret("KV version 1 can not store names with '..'", vault=self.id, path=name)

    # what is told of it

    def _heard(self, notice: AuditNotice) -> Hint | None:
        if not self._is_on(self._mount, notice):
            return None
        verb, name = "", notice.path
        if self._version == 2:
            verb, _, name = notice.path.partition("/")
            if verb not in _VERBS:
                return None
        try:
            # A folder is none: it ends with a slash.
            self._check(name)
        except InvalidSecret:
            return None
        # Of the others, the number would be that of an older version, or none at all.
        return Hint(name, str(notice.version) if verb == "data" and notice.version else None)

    # check

    async def _check_engine(self) -> Finding:
        await self.open()
        # Where kv_version is given, nobody has looked at the mount yet.
        await self._probe_mount()
        return Finding(self.engine, True, f"{self._mount}/, KV version {self._version}")

    async def _probe_mount(self) -> None:
        try:
            await self._list_folder(f"{PROBE}/")
        except Forbidden:
            # What may be listed is looked at prefix by prefix.
            return

    def _needs(self, use: Use) -> list[tuple[str, str, str]]:
        name = f"{use.prefix}{PROBE}"
        if self._version == 2:
            data, metadata = f"{self._mount}/data/{name}", f"{self._mount}/metadata/"
            needs = [
                (f"{metadata}{use.prefix}", "list", "list"),
                (f"{metadata}{name}", "read", "see changes"),
                (data, "read", "read"),
            ]
            if use.metadata:
                needs += [(f"{metadata}{name}", "create", "write tags"), (f"{metadata}{name}", "update", "write tags")]
            if use.write:
                needs += [(data, "create", "write"), (data, "update", "write")]
            if use.delete:
                needs.append((f"{self._mount}/delete/{name}", "update", "delete"))
            return needs
        path = f"{self._mount}/{name}"
        needs = [(f"{self._mount}/{use.prefix}", "list", "list"), (path, "read", "read")]
        if use.write:
            needs += [(path, "create", "write"), (path, "update", "write")]
        if use.delete:
            needs.append((path, "delete", "delete"))
        return needs


def _hashed(custom: Mapping[str, str] | None) -> str:
    return f"/{hashlib.sha256(canonical_json(dict(custom)).encode()).hexdigest()[:16]}" if custom else ""


def _version(expect: str | Expect) -> int | None:
    """What KV v2's `cas` takes; 0 means that there was never a version."""
    if isinstance(expect, Expect):
        return 0 if expect is Expect.ABSENT else None
    return int(expect)


def _moment(text: str) -> datetime:
    # Vault gives nanoseconds, Python keeps microseconds.
    return datetime.fromisoformat(text).astimezone(UTC)
