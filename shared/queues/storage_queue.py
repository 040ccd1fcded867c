"""Azure Storage queues: the ones that the Functions host triggers from.

Messages are base64 on the wire, as `messageEncoding` in host.json says, and live until they are dealt with.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from shared.azure_storage import queue_service
from shared.errors import StoreError, permanent
from shared.jobs import MAX_BODY, Message, Queues

if TYPE_CHECKING:
    from azure.storage.queue import QueueMessage
    from azure.storage.queue.aio import QueueClient, QueueServiceClient

FOR_EVER = -1
WEEK = 7 * 24 * 3600
"""Seconds that a message can be invisible at most
(https://learn.microsoft.com/rest/api/storageservices/put-message)."""
LARGEST_BATCH = 32
FIRST_LOOK = 0.1
"""Seconds until an empty queue is looked at again; twice as many each time, up to `longest_wait`."""
# https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata
_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class StorageQueues(Queues):
    def __init__(self, env: Mapping[str, str], *, longest_wait: float = 2.0) -> None:
        self._env = env
        self._longest_wait = longest_wait
        self._service: QueueServiceClient | None = None
        self._clients: dict[str, QueueClient] = {}
        self._sent: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._pause: dict[str, float] = {}

    async def open(self) -> None:
        if self._service is None:
            self._service = queue_service(self._env)

    async def aclose(self) -> None:
        service, self._service = self._service, None
        self._clients.clear()
        if service is not None:
            await service.close()

    async def ensure(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._create(name) for name in names))

    async def send(self, queue: str, body: str, *, delay: float = 0) -> None:
        data = body.encode()
        if len(data) > MAX_BODY:
            raise permanent(f"a message for the queue {queue} is larger than {MAX_BODY} bytes")
        client = self._client(queue)
        text = base64.b64encode(data).decode()
        seconds = min(math.ceil(delay), WEEK)
        with _translated(queue):
            try:
                await client.send_message(text, visibility_timeout=seconds, time_to_live=FOR_EVER)
            except Exception as error:
                if _code(error) != "QueueNotFound":
                    raise
                await self._create(queue)
                await client.send_message(text, visibility_timeout=seconds, time_to_live=FOR_EVER)
        self._sent[queue].set()

    async def receive(self, queue: str, *, limit: int = 16, visibility: float = 300) -> list[Message]:
        self._sent[queue].clear()
        size = min(limit, LARGEST_BATCH)
        paged = self._client(queue).receive_messages(
            messages_per_page=size, max_messages=size, visibility_timeout=_seconds(visibility)
        )
        with _translated(queue):
            try:
                # Only the first page: a second request would take messages that nobody asked for yet.
                page: AsyncIterator[QueueMessage] = await anext(paged.by_page())
                messages = [_message(queue, message) async for message in page]
            except StopAsyncIteration:
                return []
            except Exception as error:
                if _code(error) != "QueueNotFound":
                    raise
                return []
        self._pause.pop(queue, None)
        return messages

    async def wait(self, queue: str, timeout: float) -> None:
        pause = self._pause.get(queue, FIRST_LOOK)
        self._pause[queue] = min(pause * 2, self._longest_wait)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._sent[queue].wait(), min(pause, timeout))

    async def renew(self, message: Message, visibility: float) -> Message | None:
        receipt = await self._update(message, _seconds(visibility))
        if receipt is None:
            return None
        return Message(message.queue, message.message_id, receipt, message.body, message.dequeue_count)

    async def delete(self, message: Message) -> None:
        with _translated(message.queue), _unless_lost():
            await self._client(message.queue).delete_message(message.message_id, message.receipt)

    async def release(self, message: Message, *, delay: float = 0) -> None:
        await self._update(message, min(math.ceil(delay), WEEK))
        self._sent[message.queue].set()

    async def depth(self, queue: str) -> int:
        with _translated(queue):
            try:
                properties = await self._client(queue).get_queue_properties()
            except Exception as error:
                if _code(error) != "QueueNotFound":
                    raise
                return 0
        return properties.approximate_message_count or 0

    async def _update(self, message: Message, seconds: int) -> str | None:
        """Change when the message is visible again; the new receipt, or None when it is another delivery's."""
        client = self._client(message.queue)
        with _translated(message.queue), _unless_lost():
            # Without content only the visibility changes.
            updated = await client.update_message(message.message_id, message.receipt, visibility_timeout=seconds)
            return updated.pop_receipt
        return None

    async def _create(self, name: str) -> None:
        client = self._client(name)
        with _translated(name):
            try:
                await client.create_queue()
            except Exception as error:
                if _code(error) != "QueueAlreadyExists":
                    raise

    def _client(self, name: str) -> QueueClient:
        if self._service is None:
            raise StoreError("the storage queues are not open")
        if name not in self._clients:
            if not _NAME.fullmatch(name):
                raise permanent(
                    f'a storage queue can not be called "{name}": 3 to 63 of a-z, 0-9 and single dashes inside; '
                    "give the vault another id"
                )
            self._clients[name] = self._service.get_queue_client(name)
        return self._clients[name]


def _message(queue: str, message: QueueMessage) -> Message:
    text = str(message.content or "")
    try:
        body = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        # Somebody else's: handed on as it is, refused by whoever decodes the job, and so ends as poison.
        body = text
    return Message(queue, message.id, message.pop_receipt or "", body, message.dequeue_count or 1)


def _seconds(visibility: float) -> int:
    return min(max(math.ceil(visibility), 1), WEEK)


def _code(error: BaseException) -> str:
    """The service's own error code (https://learn.microsoft.com/rest/api/storageservices/queue-service-error-codes)."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


@contextlib.contextmanager
def _unless_lost() -> Iterator[None]:
    """End quietly where the message was deleted, or delivered to somebody else."""
    try:
        yield
    except Exception as error:
        if _code(error) not in ("MessageNotFound", "PopReceiptMismatch", "QueueNotFound"):
            raise


@contextlib.contextmanager
def _translated(queue: str) -> Iterator[None]:
    """The SDK's errors as StoreError. What they say may quote a request or a token: only code and status are told."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except AzureError as error:
        status = getattr(error, "status_code", None)
        what = _code(error) or (f"HTTP {status}" if status else type(error).__name__)
        if isinstance(error, ClientAuthenticationError) or status in (401, 403):
            failure = permanent(
                f"the storage account refuses access to the queue {queue} ({what}): the identity needs the role "
                "Storage Queue Data Contributor, or the connection string a valid key"
            )
        else:
            failure = StoreError(f"the storage queue {queue} failed ({what}); it is tried again")
        raise failure from None
