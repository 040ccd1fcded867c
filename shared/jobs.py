"""Jobs, and the contract of the queues that carry them.

A job carries references, never values. Queues deliver at least once and in any order. A job's field names are none of a
queue trigger's metadata (`id`, `dequeueCount`, `expirationTime`, …), which a JSON body would overwrite.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from shared.errors import StoreError

PLAN_QUEUE = "vaultferry-plan"
EVENTS_QUEUE = "vaultferry-events"
"""Where Event Grid delivers what it has to say of Key Vaults."""
WRITE_QUEUE_PREFIX = "vaultferry-to-"
POISON_SUFFIX = "-poison"
MAX_BODY = 48 * 1024
"""Bytes of a message before base64: what fits a storage queue's 64 KiB
(https://learn.microsoft.com/azure/storage/queues/scalability-targets)."""
MAX_PATHS = 250
"""Paths in one write job: small enough to spread over instances, large enough to share one read of the state."""


def write_queue(vault_id: str) -> str:
    """The queue of a written vault: with `-poison` at most 63 characters, as a storage queue's name may have.

    It takes no two hyphens in a row (https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata):
    ids with those are hashed.
    """
    if "--" in vault_id or vault_id.endswith("-"):
        return f"{WRITE_QUEUE_PREFIX}{hashlib.sha256(vault_id.encode()).hexdigest()[:32]}"
    return f"{WRITE_QUEUE_PREFIX}{vault_id}"


T = TypeVar("T")

ROOM = 2048
"""Bytes of a message that are not its paths."""


def cut(items: Iterable[T], size: Callable[[T], int]) -> Iterator[tuple[T, ...]]:
    """Items in parts that fit one message each, by their encoded `size` in bytes and by their number."""
    part: list[T] = []
    total = 0
    for item in items:
        bytes_more = size(item)
        if part and (len(part) >= MAX_PATHS or total + bytes_more > MAX_BODY - ROOM):
            yield tuple(part)
            part, total = [], 0
        part.append(item)
        total += bytes_more
    if part:
        yield tuple(part)


def path_size(path: str) -> int:
    """The bytes of a path in a message, at most: quotes and backslashes are escaped."""
    return len(path.encode()) * 2 + 4


@dataclass(frozen=True, slots=True)
class PlanJob:
    """Plan this run from its cursor on. `attempt` counts failures of the listings."""

    run: str
    sync: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class WriteJob:
    """Bring these paths of one target up to date. `attempt` counts redeliveries of these paths."""

    run: str
    sync: str
    vault: str
    target: str
    chunk: str
    paths: tuple[str, ...]
    attempt: int = 0
    split: bool = False
    """It is one half of a job that came back from poison: the next time, its paths are given up."""


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """See whether a vault answers again, and put back what failed on it meanwhile. `attempt` makes the wait longer."""

    vault: str
    attempt: int = 0
    holder: str = ""
    """Who holds the lease that keeps a second probe away: this probe and those that follow it."""


@dataclass(frozen=True, slots=True)
class EventJob:
    """Look at these paths of one target: something says that they may have changed. It belongs to no run."""

    sync: str
    vault: str
    target: str
    hints: tuple[tuple[str, str | None], ...]
    """Paths, and the version that each was told of: whoever has it already has nothing to do. None: look in any case."""
    attempt: int = 0
    split: bool = False
    told: tuple[str, int] | None = None
    """By which process the hints were taken, and when by that process's own count (`shared.engine.shared_reads`)."""


Job: TypeAlias = PlanJob | WriteJob | EventJob | ProbeJob


def encode(job: Job) -> str:
    """A job as the JSON text of its message."""
    match job:
        case PlanJob():
            body = {"job": "plan", "run": job.run, "sync": job.sync, "attempt": job.attempt}
        case WriteJob():
            body = {
                "job": "write",
                "run": job.run,
                "sync": job.sync,
                "vault": job.vault,
                "target": job.target,
                "chunk": job.chunk,
                "paths": job.paths,
                "attempt": job.attempt,
                "split": job.split,
            }
        case EventJob():
            body = {
                "job": "event",
                "sync": job.sync,
                "vault": job.vault,
                "target": job.target,
                "hints": job.hints,
                "attempt": job.attempt,
                "split": job.split,
                "told": job.told,
            }
        case ProbeJob():
            body = {"job": "probe", "vault": job.vault, "attempt": job.attempt, "holder": job.holder}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def decode(text: str | bytes) -> Job:
    """The job in a message. Raises StoreError on anything else: such a message ends in the poison queue."""
    try:
        body = json.loads(text)
        match body.pop("job"):
            case "plan":
                return PlanJob(**body)
            case "write":
                return WriteJob(**{**body, "paths": tuple(body["paths"])})
            case "event":
                hints = tuple((str(path), None if version is None else str(version)) for path, version in body["hints"])
                told = body.get("told") and (str(body["told"][0]), int(body["told"][1]))
                return EventJob(**{**body, "hints": hints, "told": told})
            case "probe":
                return ProbeJob(**body)
    except (ValueError, TypeError, LookupError, AttributeError):
        pass
    raise StoreError("a queue message is not one of Vaultferry's jobs")


@dataclass(frozen=True, slots=True)
class Message:
    """A delivered message: this delivery's until its visibility time-out, or until it is deleted or released."""

    queue: str
    message_id: str
    receipt: str
    body: str
    dequeue_count: int


class Queues(ABC):
    """All queues of one installation. Messages live for ever, in the poison queues too."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def aclose(self) -> None: ...

    @abstractmethod
    async def ensure(self, names: Sequence[str]) -> None:
        """Create those queues that do not exist yet."""

    @abstractmethod
    async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
        """Add a message (at most `MAX_BODY` bytes), invisible for `delay` seconds. The queue is made when missing."""

    @abstractmethod
    async def receive(self, queue: str, *, limit: int = 16, visibility: float = 300) -> list[Message]:
        """Take up to `limit` visible messages, or none; each stays invisible to others for `visibility` seconds."""

    @abstractmethod
    async def wait(self, queue: str, timeout: float) -> None:
        """Return when a message may be there (or after `timeout` seconds)."""

    @abstractmethod
    async def renew(self, message: Message, visibility: float) -> Message | None:
        """Keep it invisible for longer. None: it is no longer this delivery's."""

    @abstractmethod
    async def delete(self, message: Message) -> None:
        """It was dealt with. Nothing happens when it is no longer this delivery's."""

    @abstractmethod
    async def release(self, message: Message, *, delay: float = 0) -> None:
        """Put it back, visible after `delay` seconds. Its dequeue count stays as it is."""

    @abstractmethod
    async def depth(self, queue: str) -> int:
        """About how many messages there are, invisible ones included; 0 for a queue that does not exist."""
