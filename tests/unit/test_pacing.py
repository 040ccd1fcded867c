"""The pacer: spacing, quick tries, and what it counts."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from shared.errors import AccessDenied, Unavailable
from shared.pacing import QUICK_TRIES, QUICK_WAIT, Pacer, Rate, counting


class Sleeps:
    """A sleep that takes no time and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


class Server:
    """Answers a call with the next of these; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def __call__(self) -> object:
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def down(*, retry_after: float | None = None, ambiguous: bool = False) -> Unavailable:
    return Unavailable("down", retry_after=retry_after, ambiguous=ambiguous)


def test_a_rate_lets_a_burst_through_and_then_spaces_evenly() -> None:
    rate = Rate(10, burst=3)
    assert [round(rate.delay(100.0), 6) for _ in range(6)] == [0, 0, 0, 0.1, 0.2, 0.3]


def test_a_rate_never_lets_more_through_than_its_burst_and_its_pace_allow() -> None:
    rate = Rate(10, burst=5)
    now, starts = 0.0, []
    for _ in range(300):
        starts.append(now + rate.delay(now))
        now += 0.03
    for start in starts:
        assert sum(start <= other < start + 1.0 - 1e-9 for other in starts) <= 10 + 5


def test_time_without_calls_earns_no_more_than_the_burst() -> None:
    rate = Rate(10, burst=2)
    assert rate.delay(0.0) == 0
    assert [round(rate.delay(1000.0), 6) for _ in range(4)] == [0, 0, 0.1, 0.2]


async def test_calls_are_spaced_by_the_configured_rate() -> None:
    sleeps = Sleeps()
    pacer = Pacer("hub", requests_per_second=4, sleep=sleeps)
    for _ in range(5):
        await pacer.call(Server("fine"))
    assert len(sleeps.asked) == 3
    assert sleeps.asked == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


async def test_the_rate_of_writes_does_not_slow_reads() -> None:
    sleeps = Sleeps()
    pacer = Pacer("hub", writes_per_second=2, sleep=sleeps)
    for _ in range(50):
        await pacer.call(Server("fine"))
    assert sleeps.asked == []
    await pacer.call(Server("fine"), write=True)
    await pacer.call(Server("fine"), write=True)
    assert sleeps.asked == pytest.approx([0.5], abs=0.1)


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    running = most = 0

    async def attempt() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    pacer = Pacer("hub", concurrency=3)
    await asyncio.gather(*(pacer.call(attempt) for _ in range(20)))
    assert most == 3


async def test_a_failing_call_frees_its_place() -> None:
    pacer = Pacer("hub", concurrency=1, sleep=Sleeps())
    with pytest.raises(AccessDenied):
        await pacer.call(Server(AccessDenied("no")))
    assert await asyncio.wait_for(pacer.call(Server("fine")), 5) == "fine"


async def test_a_transient_failure_is_tried_again_until_it_works() -> None:
    sleeps, server = Sleeps(), Server(down(), down(ambiguous=True), "fine")
    assert await Pacer("hub", sleep=sleeps).call(server) == "fine"
    assert server.calls == 3
    assert len(sleeps.asked) == 2
    assert all(0 <= seconds <= QUICK_WAIT for seconds in sleeps.asked)


async def test_the_last_failure_is_raised_when_the_tries_are_used_up() -> None:
    failures = [down() for _ in range(QUICK_TRIES + 1)]
    server = Server(*failures)
    with pytest.raises(Unavailable) as caught:
        await Pacer("hub", sleep=Sleeps()).call(server)
    assert server.calls == QUICK_TRIES
    assert caught.value is failures[QUICK_TRIES - 1]


@pytest.mark.parametrize("failures_before", [0, 1])
async def test_a_permanent_failure_is_never_tried_again(failures_before: int) -> None:
    server = Server(*[down() for _ in range(failures_before)], AccessDenied("no"), "never")
    with pytest.raises(AccessDenied):
        await Pacer("hub", sleep=Sleeps()).call(server)
    assert server.calls == failures_before + 1


@pytest.mark.parametrize("failures_before", [0, 1])
async def test_a_write_that_may_have_happened_is_not_repeated(failures_before: int) -> None:
    server = Server(*[down() for _ in range(failures_before)], down(ambiguous=True), "never")
    with pytest.raises(Unavailable) as caught:
        await Pacer("hub", sleep=Sleeps()).call(server, write=True)
    assert caught.value.ambiguous
    assert server.calls == failures_before + 1


async def test_a_write_that_surely_did_not_happen_is_repeated() -> None:
    server = Server(down(), "fine")
    assert await Pacer("hub", sleep=Sleeps()).call(server, write=True) == "fine"


async def test_the_server_says_how_long_to_wait() -> None:
    sleeps = Sleeps()
    assert await Pacer("hub", sleep=sleeps).call(Server(down(retry_after=0.7), "fine")) == "fine"
    assert sleeps.asked[0] == 0.7


async def test_a_server_that_wants_a_long_rest_is_left_alone() -> None:
    sleeps, server = Sleeps(), Server(down(retry_after=QUICK_WAIT + 1), "never")
    with pytest.raises(Unavailable) as caught:
        await Pacer("hub", sleep=sleeps).call(server)
    assert (server.calls, sleeps.asked) == (1, [])
    assert caught.value.retry_after == QUICK_WAIT + 1


async def test_when_the_server_asks_one_call_to_wait_the_others_wait_too() -> None:
    async def never(_seconds: float) -> None:
        await asyncio.Event().wait()

    pacer = Pacer("hub", sleep=never)
    waiting = asyncio.ensure_future(pacer.call(Server(down(retry_after=1.0), "fine")))
    await asyncio.sleep(0)
    other = Server("fine")
    late = asyncio.ensure_future(pacer.call(other))
    for _ in range(5):
        await asyncio.sleep(0)
    assert other.calls == 0
    for task in (waiting, late):
        task.cancel()
    await asyncio.gather(waiting, late, return_exceptions=True)


async def test_every_try_is_counted_for_the_task_and_those_it_starts() -> None:
    hub, prod = Pacer("hub", sleep=Sleeps()), Pacer("prod", sleep=Sleeps())
    with counting() as calls:
        await hub.call(Server(down(), "fine"))
        await asyncio.gather(prod.call(Server("fine")), prod.call(Server("fine")))
    await hub.call(Server("fine"))
    assert calls == {"hub": 2, "prod": 2}


async def test_what_the_server_answered_is_counted_also_where_it_says_no() -> None:
    hub = Pacer("hub", sleep=Sleeps())
    await hub.call(Server(down(), "fine"))
    assert hub.answered == 1
    with pytest.raises(AccessDenied):
        await hub.call(Server(AccessDenied("403", vault="hub")))
    assert hub.answered == 2
    with pytest.raises(Unavailable):
        await hub.call(Server(*[down()] * QUICK_TRIES))
    assert hub.answered == 2


async def test_countings_side_by_side_do_not_mix() -> None:
    pacer = Pacer("hub")

    async def count(times: int) -> int:
        with counting() as calls:
            for _ in range(times):
                await pacer.call(Server("fine"))
                await asyncio.sleep(0)
        return calls["hub"]

    assert await asyncio.gather(count(2), count(5)) == [2, 5]


async def test_a_cancelled_call_frees_its_place() -> None:
    pacer = Pacer("hub", concurrency=1)
    hanging: Callable[[], Awaitable[None]] = asyncio.Event().wait  # type: ignore[assignment]
    task = asyncio.ensure_future(pacer.call(hanging))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.wait_for(pacer.call(Server("fine")), 5) == "fine"


async def test_what_was_slow_to_fail_is_not_quickly_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, sleeps = asyncio.get_running_loop(), Sleeps()
    pacer, tried, now = Pacer("v", sleep=sleeps), 0, loop.time()

    async def times_out() -> None:
        nonlocal tried, now
        tried += 1
        now += 30
        raise down()

    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: now)
        with pytest.raises(Unavailable):
            await pacer.call(times_out)
    assert (tried, sleeps.asked) == (1, [])


async def test_a_server_is_silent_from_the_last_answer_on_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, pacer = asyncio.get_running_loop(), Pacer("v")
    now = loop.time()
    first, second = loop.create_future(), loop.create_future()
    assert pacer.silence() == 0
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: now)
        calls = [asyncio.create_task(pacer.call(partial(asyncio.shield, asked))) for asked in (first, second)]
        await asyncio.sleep(0)
        now += 5
        assert pacer.silence() == 5
        first.set_result("here")
        assert await calls[0] == "here"
        now += 2
        assert pacer.silence() == 2, "the other one still waits, and the server has answered since"
        second.set_exception(AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await calls[1]
    assert pacer.silence() == 0, "nobody waits"
