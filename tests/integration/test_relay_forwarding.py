"""A relay and an app that misbehaves: nothing is lost, nothing goes round for ever, and every request can be verified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared.errors import ConfigError
from shared.notices import GapNotice
from shared.relay import forwarder, process
from shared.relay.addresses import parse_listen
from shared.relay.counters import Counters
from shared.relay.http_forward import HttpForward, check_url
from shared.relay.relay import START, Relay
from shared.relay.spool import Spool
from shared.signing import sign
from tests.event_stack import free_port
from tests.integration.relay_world import FakeApp, line, send_datagram, status, until

HUB = {"vault": "hub"}


@pytest.fixture
async def app() -> AsyncIterator[FakeApp]:
    async with FakeApp() as app:
        yield app


@asynccontextmanager
async def relaying(app: FakeApp, folder: Path, **more: Any) -> AsyncIterator[Relay]:
    settings = {"key": "the-key", "secret": "the-secret", "timeout": 5.0}
    async with (
        HttpForward(app.url, **settings) as forward,
        Relay([parse_listen("udp://127.0.0.1:0")], folder, forward, vault="hub", hold=0.0, **more) as relay,
    ):
        yield relay


def hear(relay: Relay, *paths: str) -> None:
    for path in paths:
        relay.line(line(path, 2))


async def test_what_is_heard_arrives_signed_and_named(app: FakeApp, tmp_path: Path) -> None:
    async with relaying(app, tmp_path) as relay:
        send_datagram(relay.addresses[0], line("apps/db", 3))
        await app.until(lambda: "apps/db" in app.paths)
    assert {"vaultferry": "change", "mount": "secret/", "path": "data/apps/db", "version": 3, **HUB} in app.taken
    assert {"vaultferry": "gap", "why": START, **HUB} in app.taken
    for request in app.requests:
        headers = request.headers
        assert headers["x-functions-key"] == "the-key"
        assert headers["Content-Type"] == "application/json"
        signature = sign("the-secret", int(headers["X-Vaultferry-Timestamp"]), request.batch, request.body)
        assert headers["X-Vaultferry-Signature"] == signature


async def test_many_records_go_packed_in_few_requests(app: FakeApp, tmp_path: Path) -> None:
    async with relaying(app, tmp_path) as relay:
        hear(relay, *(f"p{number}" for number in range(5000)))
        await app.until(lambda: len(app.paths) == 5000)
        # The app has them before the relay knows: the last answers are still on their way.
        await until(lambda: relay.waiting == 0)
        assert await relay.spool.oldest(10_000, 1 << 30) == []
    assert len(app.requests) <= 8
    largest = max(app.requests, key=lambda request: len(request.records))
    assert len(largest.records) <= forwarder.BATCH_RECORDS
    assert largest.headers["Content-Encoding"] == "gzip"


def hung_up(request: web.Request) -> Any:
    assert request.transport is not None
    request.transport.abort()
    return web.Response(status=500)


async def half_an_answer(request: web.Request) -> Any:
    answer = web.StreamResponse(status=202, headers={"Content-Length": "100"})
    await answer.prepare(request)
    await answer.write(b'{"accepted": 1')
    assert request.transport is not None
    request.transport.abort()
    return answer


@pytest.mark.parametrize(
    "answer",
    [
        status(500),
        status(503),
        status(429),
        status(401),
        status(403),
        status(404),
        status(302, Location="/elsewhere"),
        status(200),
        lambda _: web.Response(status=202, text="<html>"),
        hung_up,
        half_an_answer,
    ],
    ids=["500", "503", "429", "401", "403", "404", "302", "200", "a proxy's 202", "hung up", "half an answer"],
)
async def test_the_same_batch_is_sent_until_it_is_answered(app: FakeApp, tmp_path: Path, answer: Any) -> None:
    app.answers.extend([answer] * 3)
    async with relaying(app, tmp_path) as relay:
        await app.until(lambda: app.taken != [])
        hear(relay, "a")
        await app.until(lambda: "a" in app.paths)
        first = app.requests[:4]
        assert len({(request.batch, request.body) for request in first}) == 1
        assert relay.counters.forward_failures == 3
        assert len({request.batch for request in app.requests[3:]}) == len(app.requests[3:])


@pytest.mark.parametrize(
    ("code", "health", "why"),
    [(401, "error", "VAULTFERRY_API_KEY"), (403, "error", "what may reach the app"), (404, "error", "ends in /audit"),
     (302, "error", "a redirect"), (503, "degraded", "the app answers 503")],
)  # fmt: skip
async def test_what_somebody_must_see_to_is_told_from_what_passes(
    app: FakeApp, tmp_path: Path, code: int, health: str, why: str
) -> None:
    app.always = status(code)
    async with relaying(app, tmp_path) as relay:
        await until(lambda: relay.counters.forward_failures > 0)
        told = relay.health()
        assert (told["status"], why in told["checks"]["forwarding"]) == (health, True), told


async def test_an_app_that_is_not_there_is_told_as_such(app: FakeApp, tmp_path: Path) -> None:
    nobody = FakeApp()
    nobody.port = free_port()
    async with relaying(nobody, tmp_path) as relay:
        await until(lambda: relay.counters.forward_failures > 0)
        told = relay.health()
    assert told["status"] == "degraded"
    assert told["checks"]["forwarding"].startswith("the app can not be reached (")


async def test_another_reason_is_logged_at_once(app: FakeApp, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app.always = status(503)
    async with relaying(app, tmp_path) as relay:
        await until(lambda: relay.counters.forward_failures > 1)
        app.always = status(401)
        await until(lambda: "401" in (relay.health()["checks"]["forwarding"]))
        failures = relay.counters.forward_failures
        await until(lambda: relay.counters.forward_failures > failures)
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    # Another test's handler may repeat them in another form.
    told = [each for each in told if each.startswith("nothing is forwarded: the app answers ")]
    assert [each.split()[6][:3] for each in told] == ["503", "401"], told


async def test_how_long_to_wait_is_the_apps_word(app: FakeApp, tmp_path: Path) -> None:
    app.answers.append(status(429, **{"Retry-After": "1"}))
    begin = asyncio.get_running_loop().time()
    async with relaying(app, tmp_path):
        await app.until(lambda: app.taken != [])
    assert asyncio.get_running_loop().time() - begin >= 1.0


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_what_is_refused_is_found_by_halves_and_becomes_a_gap(app: FakeApp, tmp_path: Path, code: int) -> None:
    def choosy(_: web.Request) -> Any:
        refused = any(record.get("path") == "data/p7" for record in app.requests[-1].records)
        return web.Response(status=code) if refused else None

    app.always = choosy
    async with relaying(app, tmp_path) as relay:
        hear(relay, *(f"p{number}" for number in range(50)))
        await app.until(lambda: forwarder.REFUSED in app.gaps)
        assert set(app.paths) == {f"p{number}" for number in range(50)} - {"p7"}
        assert relay.counters.refused == 1
    assert relay.spool.rows == 0


async def test_gap_marks_that_are_refused_stay_and_are_no_endless_loop(app: FakeApp, tmp_path: Path) -> None:
    app.always = status(400)
    async with relaying(app, tmp_path) as relay:
        hear(relay, "a")
        await app.until(lambda: len(app.requests) >= 3)
        await until(lambda: relay.counters.refused == 3)
        assert relay.health()["status"] == "degraded"
    assert len(app.requests) < 12
    assert relay.spool.rows == 2
    app.always = None
    async with relaying(app, tmp_path):
        await app.until(lambda: {START, forwarder.REFUSED} <= set(app.gaps))


async def test_records_that_the_app_could_not_read_become_a_gap(app: FakeApp, tmp_path: Path) -> None:
    async with relaying(app, tmp_path) as relay:
        await app.until(lambda: app.gaps == [START])
        counts = {"accepted": 0, "ignored": 0, "duplicate": 0, "invalid": 1}
        app.answers.append(lambda _: web.json_response(counts, status=202))
        hear(relay, "a")
        await app.until(lambda: forwarder.REFUSED in app.gaps)


async def test_what_changes_while_it_is_on_its_way_is_sent_again(app: FakeApp, tmp_path: Path) -> None:
    async with relaying(app, tmp_path) as relay:
        await app.until(lambda: app.gaps == [START])

        async def slowly(_: web.Request) -> None:
            relay.line(line("a", 3))
            await until(lambda: relay.counters.merged == 1)

        app.answers.append(slowly)
        relay.line(line("a", 2))
        await app.until(lambda: app.paths.get("a") == 3)


async def test_a_stopped_relay_tries_once_more_and_keeps_the_rest(app: FakeApp, tmp_path: Path) -> None:
    app.always = status(503, **{"Retry-After": "100"})
    async with relaying(app, tmp_path) as relay:
        await app.until(lambda: len(app.requests) == 1)
        hear(relay, "a")
    assert len(app.requests) == 2
    assert relay.spool.rows == 2
    app.always = None
    async with relaying(app, tmp_path):
        await app.until(lambda: "a" in app.paths)


async def test_what_was_heard_last_is_forwarded_before_it_stops(app: FakeApp, tmp_path: Path) -> None:
    async with relaying(app, tmp_path) as relay:
        send_datagram(relay.addresses[0], line("last"))
    assert "last" in app.paths


async def test_equal_gap_marks_keep_their_distance(tmp_path: Path) -> None:
    sent: list[str] = []

    async def take(batch: forwarder.Batch) -> forwarder.Answer:
        sent.extend(notice.why for notice in batch.notices)  # type: ignore[union-attr]
        arrived.set()
        return forwarder.Answer()

    arrived = asyncio.Event()
    async with Relay([], tmp_path, take, hold=0.3) as relay:
        for why in ("one", "one", "two", "one"):
            arrived.clear()
            relay.gap(why)
            await asyncio.wait_for(arrived.wait(), 10)
        begin = asyncio.get_running_loop().time()
        arrived.clear()
        relay.gap("one")
        await asyncio.wait_for(arrived.wait(), 10)
        assert asyncio.get_running_loop().time() - begin > 0.2


async def test_marks_that_keep_coming_are_ever_further_apart(tmp_path: Path) -> None:
    async def take(_: forwarder.Batch) -> forwarder.Answer:
        return forwarder.Answer()

    one = forwarder.Forwarder(Spool(tmp_path), take, Counters())
    gap, other = GapNotice("again"), GapNotice("once")
    lengths = []
    for _ in range(8):
        one._hold_back(gap)
        lengths.append(one._held[gap].seconds)
    one._hold_back(other)
    assert lengths == [10, 20, 40, 80, 160, 320, 600, 600]
    assert one._held[other].seconds == 10
    assert one._waiting_gaps() == {gap, other}


async def test_a_mark_that_comes_due_while_the_spool_is_looked_into_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(_: forwarder.Batch) -> forwarder.Answer:
        return forwarder.Answer()

    loop = asyncio.get_running_loop()
    real, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: real() + ahead)
    one, gap = forwarder.Forwarder(Spool(tmp_path), take, Counters()), GapNotice("again")
    one._hold_back(gap)
    assert one._waiting_gaps() == {gap}
    ahead = forwarder.HOLD + 1
    async with asyncio.timeout(5):
        await one._something_new()
    assert one._waiting_gaps() == set()


async def test_a_vault_that_the_app_knows_nothing_of_is_told(app: FakeApp, tmp_path: Path) -> None:
    counts = {"accepted": 0, "ignored": 1, "duplicate": 0, "invalid": 0}
    app.always = lambda _: web.json_response(counts, status=202)
    async with relaying(app, tmp_path) as relay:
        await until(lambda: relay.counters.forwarded == 1)
        told = relay.health()
        assert (told["status"], "check --vault" in told["checks"]["vault"]) == ("error", True), told
        hear(relay, "a")
        await until(lambda: relay.counters.forwarded == 2)
        assert relay.health()["status"] == "error"
        app.always = None
        hear(relay, "of a sync that is there now")
        await until(lambda: relay.health()["status"] == "ok")
        # A path that no sync covers says nothing of the vault.
        app.always = lambda _: web.json_response(counts, status=202)
        hear(relay, "b")
        await until(lambda: relay.counters.forwarded == 4)
        assert relay.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("detail", "told"),
    [("X-Vaultferry-Timestamp is 900 seconds old", "the app answers 401: X-Vaultferry-Timestamp is 900 seconds old"),
     ("two\nlines", "the app answers 401: check VAULTFERRY_API_KEY"), (3, "the app answers 401: check VAULTFERRY_API_KEY")],
)  # fmt: skip
async def test_what_the_app_says_of_its_refusal_is_told(
    app: FakeApp, tmp_path: Path, detail: object, told: str
) -> None:
    app.always = lambda _: web.json_response({"title": "Unauthorized", "detail": detail}, status=401)
    async with relaying(app, tmp_path) as relay:
        await until(lambda: relay.counters.forward_failures > 0)
        assert relay.health()["checks"]["forwarding"].startswith(told)


def test_a_secret_that_the_app_would_not_take_is_refused() -> None:
    def options(secret: str) -> process.Options:
        env = {"VAULTFERRY_AUDIT_SECRET": secret}
        return process.read_options(["tcp://127.0.0.1:1269"], "https://x/audit", "spool", None, None, env)

    assert options("x" * 16).secret == "x" * 16
    for short in ("short", "short, and then the older one"):
        with pytest.raises(ConfigError, match="VAULTFERRY_AUDIT_SECRET is too short"):
            options(short)


@pytest.mark.parametrize(
    "url",
    ["http://example.com/audit", "http://10.0.0.1/audit", "ftp://x/audit", "example.com", "https://", "https://u:p@x/audit",
     "https://x:port/audit", "https://x/audit#here", "http://localhost.example.com/audit", "https://x", "https://x/"],
)  # fmt: skip
def test_nothing_is_sent_in_the_clear_over_a_network(url: str) -> None:
    with pytest.raises(ConfigError, match="--forward"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://x/audit", "http://127.0.0.1:7071/audit", "http://[::1]/a", "http://localhost/a"]
)
def test_https_and_this_machine_are_fine(url: str) -> None:
    assert check_url(url) == url
