"""What every kind of queues promises (`shared.jobs.Queues`)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from shared.errors import StoreError
from shared.jobs import MAX_BODY, Message, Queues, write_queue

HOSTILE = [
    '{"job":"plan"}',
    "",
    " ",
    "line\nbreak\r\n",
    "<&>\"'",
    "ключ 🔑",
    "\x00\x01\x1f",
    "=?utf-8?b?",
    "a" * MAX_BODY,
]


async def take(queues: Queues, queue: str, *, visibility: float = 60, seconds: float = 10) -> Message:
    """The next message, as a worker takes it: ask, then wait to be woken."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if messages := await queues.receive(queue, limit=1, visibility=visibility):
            return messages[0]
        await queues.wait(queue, deadline - time.monotonic())
    raise AssertionError("no message came")


@pytest.mark.parametrize("body", HOSTILE, ids=[repr(body[:12]) for body in HOSTILE])
async def test_a_body_arrives_as_it_was_sent(queues: Queues, queue: str, body: str) -> None:
    await queues.send(queue, body)
    (message,) = await queues.receive(queue)
    assert (message.queue, message.body, message.dequeue_count) == (queue, body, 1)


async def test_a_body_that_no_queue_could_carry_is_refused_and_not_retried(queues: Queues, queue: str) -> None:
    for body in ("a" * (MAX_BODY + 1), "ä" * (MAX_BODY // 2 + 1)):
        with pytest.raises(StoreError, match=f"{queue} is larger than 49152 bytes") as caught:
            await queues.send(queue, body)
        assert not caught.value.transient
    assert await queues.depth(queue) == 0


async def test_a_received_message_is_invisible_to_everybody_else(queues: Queues, other: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    assert await queues.receive(queue)
    assert await queues.receive(queue) == []
    assert await other.receive(queue) == []


async def test_two_readers_never_get_the_same_message(queues: Queues, other: Queues, queue: str) -> None:
    await asyncio.gather(*(queues.send(queue, str(n)) for n in range(20)))
    batches = await asyncio.gather(*(reader.receive(queue, limit=5) for reader in (queues, other) * 4))
    bodies = [message.body for batch in batches for message in batch]
    while more := await queues.receive(queue, limit=32):
        bodies += [message.body for message in more]
    assert sorted(bodies) == sorted(str(n) for n in range(20))


async def test_no_more_messages_are_taken_than_asked_for(queues: Queues, queue: str) -> None:
    for n in range(5):
        await queues.send(queue, str(n))
    assert len(await queues.receive(queue, limit=3)) == 3
    assert len(await queues.receive(queue, limit=100)) == 2


async def test_a_message_comes_back_after_its_visibility_time_out_and_the_count_grows(
    queues: Queues, queue: str
) -> None:
    await queues.send(queue, "x")
    first = await take(queues, queue, visibility=1)
    assert await queues.receive(queue) == []
    second = await take(queues, queue)
    assert (second.message_id, second.body, second.dequeue_count) == (first.message_id, "x", 2)


async def test_who_took_too_long_can_neither_renew_delete_nor_release(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    first = await take(queues, queue, visibility=1)
    second = await take(queues, queue)
    assert await queues.renew(first, 60) is None
    await queues.release(first)
    await queues.delete(first)
    assert await queues.receive(queue) == []
    assert await queues.renew(second, 60) is not None


async def test_a_deleted_message_is_gone_and_deleting_it_again_is_harmless(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    message = await take(queues, queue)
    await queues.delete(message)
    await queues.delete(message)
    await queues.release(message)
    assert await queues.renew(message, 60) is None
    assert await queues.depth(queue) == 0


async def test_renewing_keeps_the_message_and_asks_for_its_new_receipt(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    message = await take(queues, queue, visibility=1)
    renewed = await queues.renew(message, 60)
    assert renewed is not None
    assert replace(renewed, receipt=message.receipt) == message
    await queues.wait(queue, 1.2)
    assert await queues.receive(queue) == []
    assert await queues.renew(message, 60) is None
    await queues.delete(renewed)
    assert await queues.depth(queue) == 0


async def test_a_renewed_message_keeps_its_body(queues: Queues, queue: str) -> None:
    await queues.send(queue, "ключ")
    renewed = await queues.renew(await take(queues, queue), 60)
    assert renewed is not None
    await queues.release(renewed)
    assert (await take(queues, queue)).body == "ключ"


async def test_a_released_message_is_there_at_once_and_was_received_twice(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    await queues.release(await take(queues, queue))
    assert (await take(queues, queue)).dequeue_count == 2


async def test_a_message_released_with_a_delay_comes_later(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    await queues.release(await take(queues, queue), delay=1)
    assert await queues.receive(queue) == []
    assert (await take(queues, queue)).dequeue_count == 2


async def test_a_delayed_message_is_counted_but_comes_later(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x", delay=1)
    assert await queues.receive(queue) == []
    assert await queues.depth(queue) == 1
    assert (await take(queues, queue)).body == "x"


async def test_sending_wakes_who_waits_in_this_process_at_once(queues: Queues, queue: str) -> None:
    assert await queues.receive(queue) == []
    waiting = asyncio.create_task(queues.wait(queue, 30))
    await queues.send(queue, "x")
    await asyncio.wait_for(waiting, 5)
    assert (await queues.receive(queue))[0].body == "x"


async def test_a_message_sent_between_looking_and_waiting_is_not_missed(queues: Queues, queue: str) -> None:
    assert await queues.receive(queue) == []
    await queues.send(queue, "x")
    await asyncio.wait_for(queues.wait(queue, 30), 5)


async def test_a_message_of_another_process_is_noticed(queues: Queues, other: Queues, queue: str) -> None:
    assert await queues.receive(queue) == []
    await other.send(queue, "x")
    assert (await take(queues, queue)).body == "x"


async def test_waiting_ends_at_its_time_out(queues: Queues, queue: str) -> None:
    await asyncio.wait_for(queues.wait(queue, 0.05), 5)


async def test_sending_makes_a_missing_queue(queues: Queues, queue: str) -> None:
    missing = f"{queue}-late"
    assert await queues.depth(missing) == 0
    assert await queues.receive(missing) == []
    await asyncio.gather(*(queues.send(missing, "x") for _ in range(4)))
    assert await queues.depth(missing) == 4


async def test_ensuring_twice_and_at_once_keeps_what_is_there(queues: Queues, other: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    await asyncio.gather(queues.ensure([queue, f"{queue}-poison"]), other.ensure([queue, f"{queue}-poison"]))
    assert await queues.depth(queue) == 1


async def test_the_longest_name_carries_messages(queues: Queues) -> None:
    name = f"{write_queue('v' * 39 + '1')}"[:56] + "-poison"
    await queues.send(name, "x")
    message = await take(queues, name)
    await queues.delete(message)


async def test_messages_survive_closing_and_opening(queues: Queues, queue: str) -> None:
    await queues.send(queue, "x")
    await queues.aclose()
    await queues.open()
    assert (await take(queues, queue)).body == "x"
