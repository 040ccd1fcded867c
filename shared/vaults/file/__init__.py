"""An encrypted file as a vault: for laptops, the demo and backups. Unix-like systems only (it locks with flock).

The whole file is one unit: it is decrypted into memory, changed there, and replaced. So that many small writes do not
rewrite it as many times, all that arrive while one rewrite is under way share the next. A file that is not there reads
as an empty vault; the first write makes it.

Versions count up by name from 1 and are never given twice: a deleted or expired secret leaves a tombstone with its
version. The folder must be writable: the new file, and the lock `<file>.lock`, are made beside the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import secrets as random
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, SecretStr, field_validator

from shared.errors import ConfigError, Conflict, InvalidSecret, SecretNotFound, VaultError
from shared.model import Entry, Expect, Secret, canonical_json, from_iso, iso, strictly_after, utcnow
from shared.onestring import to_json
from shared.pacing import Pacer
from shared.rules import Aspect
from shared.settings import VaultSettings
from shared.vault import Capabilities, Finding, FingerprintCost, NameRule, Use, Vault, check_name
from shared.vaults.file.sealed import MIN_PASSPHRASE, SealedFile, Stamp, raw_key

T = TypeVar("T")


class Settings(VaultSettings):
    """An encrypted file on this machine."""

    kind: Literal["file"]
    path: str = Field(min_length=1, description="Where the file is; it is made by the first write.")
    key: SecretStr = Field(description="32 bytes in base64, or a passphrase of at least 20 characters.")

    @field_validator("key")
    @classmethod
    def _strong_enough(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if raw_key(text) is None and len(text) < MIN_PASSPHRASE:
            raise ValueError(f"expected 32 bytes in base64, or a passphrase of at least {MIN_PASSPHRASE} characters")
        return key

    @property
    def place(self) -> tuple[str]:
        return (os.path.realpath(self.path),)

    def name_rule(self, resource: str) -> NameRule:
        return NameRule()

    def metadata(self, resource: str) -> frozenset[Aspect]:
        return frozenset(Aspect)


def connect(vault_id: str, settings: Settings, resource: str = "secrets") -> FileVault:
    """A vault that touches its file when it is first used. Raises ConfigError where there can be none."""
    if sys.platform == "win32":
        raise ConfigError(f"{vault_id}: a file vault needs a Unix-like system; Windows is not supported")
    if resource != "secrets":
        raise ConfigError(f"{vault_id}: a file vault holds secrets, not {resource}")
    return FileVault(vault_id, settings)


@dataclass(frozen=True, slots=True)
class _Record:
    """One name: what a listing needs, and its line in the file, which holds the value too."""

    entry: Entry
    """As it was written: an expiry that has come since is not in it."""
    expires_at: datetime | None
    line: str = field(repr=False)


Records = dict[str, _Record]


@dataclass(slots=True, eq=False)
class _Job:
    """Something to do with the records, and who waits for it."""

    work: Callable[[Records], Any]
    writes: bool
    path: str | None
    done: asyncio.Future[Any]


class FileVault(Vault):
    """One file. All that touches the disk or the cipher happens in a worker thread, one batch of jobs at a time."""

    kind: ClassVar[str] = "file"

    def __init__(self, vault_id: str, settings: Settings, *, now: Callable[[], datetime] = utcnow) -> None:
        # As many as may wait for one rewrite.
        pacer = Pacer(
            vault_id, concurrency=settings.concurrency or 256, requests_per_second=settings.requests_per_second
        )
        super().__init__(vault_id, pacer)
        self._file = SealedFile(Path(settings.path), settings.key.get_secret_value())
        self._now = now
        self._records: Records = {}
        self._stamp: Stamp | None = None
        self._waiting: list[_Job] = []
        self._worker: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            fingerprint=FingerprintCost.LISTED,
            compare_and_set=True,
            fields=True,
            tags=True,
            metadata=frozenset(Aspect),
            time_resolution=timedelta(microseconds=1),
        )

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        if prefix:
            check_name(self.id, prefix.removesuffix("/"))

        def entries(records: Records) -> list[Entry]:
            now = self._now()
            return [_seen(records[name], now) for name in sorted(records) if name.startswith(prefix)]

        for entry in await self._do(entries):
            yield entry

    async def describe_secret(self, name: str) -> Entry:
        check_name(self.id, name)
        return await self._do(lambda records: _seen(self._known(records, name), self._now()), name)

    async def get_secret(self, name: str) -> Secret:
        check_name(self.id, name)

        def read(records: Records) -> Secret:
            record = self._known(records, name)
            entry = _seen(record, self._now())
            if not entry.live:
                raise SecretNotFound("it was deleted, or has expired")
            # Parsed anew each time, so that no caller can change what another one gets.
            document = json.loads(record.line)
            return Secret(
                fields=document["fields"],
                content_type=document["content_type"],
                tags=document["tags"],
                expires_at=record.expires_at,
                entry=entry,
            )

        return await self._do(read, name)

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        check_name(self.id, name)
        kept = self._kept(name, secret)
        expires_at = secret.expires_at and secret.expires_at.astimezone(UTC)

        def write(records: Records) -> Entry:
            earlier = records.get(name)
            _meet(expect, earlier)
            entry = self._next(name, earlier, owner=owner)
            records[name] = _record(entry, expires_at, kept)
            return _seen(records[name], self._now())

        return await self._do(write, name, writes=True)

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        check_name(self.id, name)

        def delete(records: Records) -> None:
            earlier = self._known(records, name)
            if not _seen(earlier, self._now()).live:
                raise SecretNotFound("it was deleted already, or has expired")
            _meet(expect, earlier)
            records[name] = _record(self._next(name, earlier, live=False), None, None)

        await self._do(delete, name, writes=True)

    async def check(self, uses: list[Use]) -> list[Finding]:
        findings = [await self._openable()]
        if any(use.write or use.delete for use in uses):
            obstacle = await asyncio.to_thread(self._file.writable)
            findings.append(Finding("write", ok=obstacle is None, detail=obstacle or "the folder can be written to"))
        return findings

    async def _openable(self) -> Finding:
        try:
            count = await self._do(lambda records: sum(_seen(record, self._now()).live for record in records.values()))
        except VaultError as error:
            return Finding("open", ok=False, detail=error.message)
        if self._stamp is None:
            return Finding("open", ok=True, detail="there is no file yet; the first write makes it")
        return Finding("open", ok=True, detail=f"the key opens it; {count} secrets")

    async def aclose(self) -> None:
        if self._worker is not None:
            await self._worker

    # What is written.

    def _kept(self, name: str, secret: Secret) -> str:
        """What a line holds of a secret besides its entry. Raises InvalidSecret for what JSON can not hold."""
        try:
            fields = to_json(secret.fields)
            rest = to_json({"content_type": secret.content_type, "tags": dict(secret.tags or {})})
        except InvalidSecret as error:
            error.vault, error.path = self.id, name
            raise
        kept = f'{rest[:-1]},"fields":{fields}}}'
        with contextlib.suppress(UnicodeEncodeError):
            kept.encode()
            return kept
        raise InvalidSecret("it holds half a character (a lone surrogate)", vault=self.id, path=name)

    def _next(self, name: str, earlier: _Record | None, *, live: bool = True, owner: str | None = None) -> Entry:
        """A deletion keeps the version, as a tombstone; but not the fingerprint."""
        last = int(earlier.entry.version or 0) if earlier else 0
        version = last + 1 if live else last
        return Entry(
            name,
            # A number alone would come again when an older copy of the file is put back.
            fingerprint=f"{version}-{random.token_hex(8)}",
            version=str(version),
            updated_at=strictly_after(self._now(), earlier.entry.updated_at if earlier else None),
            live=live,
            owner=owner,
        )

    def _known(self, records: Mapping[str, _Record], name: str) -> _Record:
        record = records.get(name)
        if record is None:
            raise SecretNotFound("there is no such secret")
        return record

    # The batches.

    async def _do(self, work: Callable[[Records], T], path: str | None = None, *, writes: bool = False) -> T:
        async def attempt() -> T:
            job = _Job(work, writes, path, asyncio.get_running_loop().create_future())
            self._waiting.append(job)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._drain())
            outcome: T = await job.done
            return outcome

        return await self.pacer.call(attempt, write=writes)

    async def _drain(self) -> None:
        while self._waiting:
            jobs = [job for job in self._waiting if not job.done.cancelled()]
            self._waiting = []
            try:
                outcomes = await asyncio.to_thread(self._perform, jobs)
            except asyncio.CancelledError:
                for job in (*jobs, *self._waiting):
                    job.done.cancel()
                self._waiting = []
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
                outcomes = dict.fromkeys(jobs, error)
            for job in jobs:
                _settle(job, outcomes[job])

    def _perform(self, jobs: list[_Job]) -> dict[_Job, Any]:
        """Every job's result or VaultError. Writes come first, so that no read sees what then fails to be written."""
        writes = [job for job in jobs if job.writes]
        reads = [job for job in jobs if not job.writes]
        outcomes: dict[_Job, Any] = {}
        for batch, run in ((writes, self._write), (reads, self._read)):
            if batch:
                try:
                    outcomes |= run(batch)
                except VaultError as error:
                    outcomes |= dict.fromkeys(batch, error)
        return {job: self._located(outcome, job) for job, outcome in outcomes.items()}

    def _write(self, jobs: list[_Job]) -> dict[_Job, Any]:
        with self._file.locked():
            self._refresh()
            draft = dict(self._records)
            outcomes = {job: _outcome(job, draft) for job in jobs}
            if any(not isinstance(outcome, VaultError) for outcome in outcomes.values()):
                content = "\n".join(record.line for record in draft.values())
                self._stamp = self._file.write(content.encode())
                self._records = draft
        return outcomes

    def _read(self, jobs: list[_Job]) -> dict[_Job, Any]:
        self._refresh()
        return {job: _outcome(job, self._records) for job in jobs}

    def _refresh(self) -> None:
        """Read the file again if it is another one than the last time."""
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        if stamp is None:
            self._stamp, self._records = None, {}
            return
        stamp, content = self._file.read()
        records = None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            records = _parse(content.decode())
        if records is None:
            raise InvalidSecret("the file was opened, but holds something that Vaultferry did not write")
        self._stamp, self._records = stamp, records

    def _located(self, outcome: Any, job: _Job) -> Any:
        if not isinstance(outcome, VaultError):
            return outcome
        # Several jobs may fail of one cause: each gets an error of its own, with its own path and traceback.
        error = copy.copy(outcome)
        error.vault, error.path = self.id, job.path
        return error


def _outcome(job: _Job, records: Records) -> Any:
    try:
        return job.work(records)
    except VaultError as error:
        return error


def _settle(job: _Job, outcome: Any) -> None:
    if job.done.done():
        return
    if isinstance(outcome, Exception):
        job.done.set_exception(outcome)
    else:
        job.done.set_result(outcome)


def _meet(expect: str | Expect, earlier: _Record | None) -> None:
    """Raise Conflict unless what is there (a tombstone too) is what is expected."""
    version = earlier.entry.version if earlier else None
    if expect is Expect.ANY or (expect is Expect.ABSENT and version is None) or expect == version:
        return
    raise Conflict("nothing is there" if version is None else f"version {version} is there")


def _seen(record: _Record, now: datetime) -> Entry:
    if record.expires_at is None or record.expires_at > now or not record.entry.live:
        return record.entry
    entry = record.entry
    return Entry(entry.name, entry.fingerprint, entry.version, entry.updated_at, live=False, owner=entry.owner)


# --- a line in the file -------------------------------------------------------------------------------------------


def _record(entry: Entry, expires_at: datetime | None, kept: str | None) -> _Record:
    """`kept`: the JSON object with the value; None: a tombstone."""
    shown = {
        "name": entry.name,
        "fingerprint": entry.fingerprint,
        "version": entry.version,
        "updated_at": iso(entry.updated_at),
        "expires_at": iso(expires_at),
        "owner": entry.owner,
        "live": entry.live,
    }
    text = canonical_json(shown)
    return _Record(entry, expires_at, text if kept is None else f"{text[:-1]},{kept[1:]}")


def _parse(content: str) -> Records:
    # Not splitlines, which also breaks at characters that JSON leaves as they are.
    return {record.entry.name: record for record in map(_parse_line, filter(None, content.split("\n")))}


def _parse_line(line: str) -> _Record:
    document = json.loads(line)
    entry = Entry(
        document["name"],
        fingerprint=document["fingerprint"],
        version=str(int(document["version"])),
        updated_at=from_iso(document["updated_at"]),
        live=document["live"],
        owner=document["owner"],
    )
    return _Record(entry, from_iso(document["expires_at"]), line)
