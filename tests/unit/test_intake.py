"""POST /audit and POST /events, and what Event Grid delivers: read, counted, queued, refused."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.vault import VaultSandbox
from shared import intake, jobs
from shared.app import App
from shared.config.build import parse
from shared.errors import StoreError
from shared.http import Problem, Request, Response
from shared.intake import MAX_ENTRIES, MAX_SENT, MAX_UNPACKED, MAX_VALUES
from shared.jobs import EventJob
from shared.signing import sign
from tests.examples import examples
from tests.unit.apps import Client, environment, make_app

CANARY = "canary-8d21f7"
NEW, OLD, OTHER = "n" * 32, "o" * 16, "x" * 32
CONFIG = """
vaults:
  hub: {{kind: hashicorp, address: "{url}", mount: secret, auth: {{method: token, token: "${{TOKEN}}"}}}}
  grid: {{kind: azure_key_vault, url: "https://contoso.vault.azure.net"}}
  prod: {{kind: file, path: "{folder}/prod.vault", key: "${{KEY}}"}}
syncs:
  s:
    source: {{vault: hub, prefix: apps/}}
    targets: [{{vault: prod}}]
    exclude: ["left-out/**"]
  k:
    source: {{vault: grid}}
    targets: [{{vault: prod, prefix: grid/}}]
  off:
    enabled: false
    source: {{vault: hub, prefix: off/}}
    targets: [{{vault: prod, prefix: off/}}]
"""
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class Sender(Client):
    """Posts to /audit and /events, and sees what is queued then."""

    now: datetime = NOON
    taken: list[EventJob] = field(default_factory=list)

    async def post(self, body: Any, path: str = "/audit", *, params: Any = None, **headers: str) -> Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.call("POST", path, body=raw, params=params, **given)

    async def counts(self, body: Any, path: str = "/audit", **given: Any) -> tuple[int, int, int, int]:
        """Accepted, ignored, duplicate, invalid."""
        response = await self.post(body, path, **given)
        assert response.status == 202, response.body
        content = json.loads(response.body)
        assert list(content) == ["accepted", "ignored", "duplicate", "invalid"]
        return tuple(content.values())  # type: ignore[return-value]

    async def problem(self, status: int, body: Any, path: str = "/audit", **given: Any) -> str:
        response = await self.post(body, path, **given)
        content = json.loads(response.body)
        assert (response.status, content["status"]) == (status, status), response.body
        assert response.headers["Content-Type"] == "application/problem+json"
        assert CANARY not in response.body.decode()
        return str(content["detail"])

    async def queued(self) -> dict[str, str | None]:
        """The hints that came into the queue since the last time."""
        hints: dict[str, str | None] = {}
        while messages := await self.app.queues.receive(jobs.write_queue("prod"), limit=16):
            for message in messages:
                assert CANARY not in message.body
                job = jobs.decode(message.body)
                assert isinstance(job, EventJob)
                hints |= dict(job.hints)
                await self.app.queues.delete(message)
        return hints

    def signed(self, secret: str, body: bytes, *, batch: str = "b1", at: datetime | None = None) -> dict[str, str]:
        seconds = int((at or self.now).timestamp())
        return {
            "x_vaultferry_timestamp": str(seconds),
            "x_vaultferry_batch": batch,
            "x_vaultferry_signature": sign(secret, seconds, batch, body),
        }


@pytest.fixture
async def sender(tmp_path: Path) -> AsyncIterator[Sender]:
    async with VaultSandbox() as server:
        sender = Sender(None)  # type: ignore[arg-type]
        env = {**environment(tmp_path), "TOKEN": server.root_token}
        text = CONFIG.format(url=server.url, folder=tmp_path)
        async with App(parse(text.encode(), env, "test.yaml"), env, clock=lambda: sender.now) as app:
            sender.app = app
            yield sender


@pytest.fixture
def strict(sender: Sender) -> Sender:
    """It asks for signatures, by a new secret or the old one."""
    sender.app.audit_secrets = (NEW, OLD)
    return sender


def change(path: str = "apps/db", version: int | None = None, **more: Any) -> dict[str, Any]:
    record = {"vaultferry": "change", "mount": "secret/", "path": f"data/{path}", **more}
    return record if version is None else {**record, "version": version}


def entry(path: str = "apps/db", operation: str = "update", *, kind: str = "response", **more: Any) -> dict[str, Any]:
    """As Vault logs it."""
    request = {
        "id": "4c2c",
        "operation": operation,
        "mount_point": "secret/",
        "mount_type": "kv",
        "namespace": {"id": "root"},
        "path": f"secret/data/{path}",
        "data": {"data": {"password": CANARY}, "options": {}},
    }
    response = {"mount_type": "kv", "data": {"version": 3, "created_time": f"hmac-sha256:{CANARY}", "destroyed": False}}
    return {"time": "2026-05-01T12:00:00Z", "type": kind, "request": request, "response": response, **more}


def lines(*entries: Any, prefix: str = "") -> bytes:
    return b"".join(prefix.encode() + json.dumps(one).encode() + b"\n" for one in entries)


# --- what is taken --------------------------------------------------------------------------------------------------


async def test_each_entry_is_counted_as_what_became_of_it(sender: Sender) -> None:
    body = (
        lines(
            change("apps/a", 3),
            change("apps/b"),
            change("apps/a", 5),
            change("apps/a", 4),
            change("elsewhere/c"),
            change("elsewhere/c"),
            change("apps/left-out/x"),
            change("apps/x", mount="other/"),
            entry("apps/d", "create"),
            entry("apps/d", kind="request"),
            entry("apps/e", error="permission denied"),
            entry("apps/f", "read"),
            change("apps/../../g"),
            entry("apps//h"),
            {"vaultferry": "unheard of"},
            7,
        )
        + b"\nnothing\n<json:object/>\n"
    )
    assert await sender.counts(body) == (3, 7, 2, 6)
    assert await sender.queued() == {"a": "5", "b": None, "d": None}


@pytest.mark.parametrize(
    "body",
    [
        lines(change("apps/a"), change("apps/b")),
        lines(change("apps/a"), change("apps/b")).replace(b"\n", b"\r\n\n"),
        lines(change("apps/a"), change("apps/b"), prefix="vault-1: "),
        lines(change("apps/a"), change("apps/b"), prefix="[audit] "),
        lines(change("apps/a"), change("apps/b")).strip(),
        json.dumps([change("apps/a"), change("apps/b")]).encode(),
        json.dumps([change("apps/a"), change("apps/b")], indent=4).encode(),
        json.dumps([change("apps/a"), entry("apps/b", "create")]).encode("utf-8-sig"),
    ],
)
async def test_lines_and_arrays_are_read(sender: Sender, body: bytes) -> None:
    for headers in ({}, {"content_encoding": "identity"}):
        assert await sender.counts(body, **headers) == (2, 0, 0, 0)
        assert await sender.queued() == {"a": None, "b": None}
    assert await sender.counts(gzip.compress(body), content_encoding="GZIP") == (2, 0, 0, 0)
    assert await sender.queued() == {"a": None, "b": None}


@pytest.mark.parametrize("body", [json.dumps(entry("apps/ä 秘"), indent=2).encode(), lines(entry("apps/ä 秘"))])
async def test_one_object_is_one_entry(sender: Sender, body: bytes) -> None:
    assert await sender.counts(body) == (1, 0, 0, 0)
    assert await sender.queued() == {"ä 秘": "3"}


async def test_the_longest_paths_fit_the_queue(sender: Sender) -> None:
    paths = [f"{number}{letter * 8180}" for number, letter in enumerate("x\"'é秘🔑")]
    assert await sender.counts([change(f"apps/{path}") for path in paths]) == (6, 0, 0, 0)
    assert sorted(await sender.queued()) == sorted(paths)


async def test_an_empty_array_is_nothing(sender: Sender) -> None:
    assert await sender.counts([]) == (0, 0, 0, 0)


async def test_a_gap_makes_a_run_of_the_syncs_concerned(sender: Sender) -> None:
    gap = {"vaultferry": "gap", "why": "overflow"}
    assert await sender.counts([gap, {**gap, "why": "cut"}, change("apps/a")]) == (2, 0, 1, 0)
    runs = (await sender.app.store.list_runs()).items
    assert [(run.sync_id, run.trigger) for run in runs] == [("s", "event")]


async def test_the_vault_of_all_entries_can_be_named(sender: Sender) -> None:
    assert await sender.counts([entry("apps/a")], params={"vault": "hub"}) == (1, 0, 0, 0)
    assert await sender.counts([entry("apps/a")], params={"vault": "prod"}) == (0, 1, 0, 0)
    # A record's own word goes first.
    assert await sender.counts([change(vault="hub"), change()], params={"vault": "prod", "code": "k"}) == (1, 1, 0, 0)
    assert "did you mean 'hub'" in await sender.problem(404, [entry()], params={"vault": "hubb"})
    assert CANARY not in await sender.problem(404, [entry()], params={"vault": f"{CANARY} "})
    assert "vault" in await sender.problem(400, [entry()], params={"valt": "hub"})


async def test_nothing_of_a_value_is_kept_or_told(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert await sender.counts([entry("apps/a"), entry("apps/..", "create", extra=CANARY), [CANARY]]) == (1, 0, 0, 2)
    await sender.problem(400, lines([CANARY], {"vaultferry": CANARY}) + CANARY.encode())
    await sender.problem(400, {"sync": "s", "path": {"x": CANARY}, f"{CANARY} x": 1}, "/events")
    await sender.queued()
    assert CANARY not in caplog.text


# --- batches --------------------------------------------------------------------------------------------------------


async def test_a_batch_that_was_taken_is_duplicate_for_a_day(sender: Sender) -> None:
    body = lines(change("apps/a"), change("apps/a"), change("elsewhere/b"), change("apps/.."))
    assert await sender.counts(body, x_vaultferry_batch="b1") == (1, 1, 1, 1)
    assert await sender.queued() == {"a": None}
    sender.now += timedelta(hours=23)
    assert await sender.counts(body, x_vaultferry_batch="b1") == (0, 0, 3, 1)
    assert await sender.queued() == {}
    assert await sender.counts(body, x_vaultferry_batch="B1") == (1, 1, 1, 1)
    sender.now += timedelta(hours=2)
    assert await sender.counts(body, x_vaultferry_batch="b1") == (1, 1, 1, 1)


async def test_a_batch_is_known_only_once_it_is_queued(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    send = sender.app.queues.send

    async def refuse(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(sender.app.queues, "send", refuse)
    response = await sender.post([change()], x_vaultferry_batch="b1")
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    monkeypatch.setattr(sender.app.queues, "send", send)
    assert await sender.counts([change()], x_vaultferry_batch="b1") == (1, 0, 0, 0)
    assert await sender.queued() == {"db": None}


async def test_a_batch_that_was_refused_is_not_known(sender: Sender) -> None:
    await sender.problem(400, b"{", x_vaultferry_batch="b1")
    assert await sender.counts([change()], x_vaultferry_batch="b1") == (1, 0, 0, 0)


@pytest.mark.parametrize("batch", ["", "x" * 101, "a b", "a\nb", "a\x00", "ä", "a\x7f"])
async def test_an_odd_batch_id_is_refused(sender: Sender, batch: str) -> None:
    assert "X-Vaultferry-Batch" in await sender.problem(400, [change()], x_vaultferry_batch=batch)


async def test_the_same_batch_twice_at_once_is_queued_at_least_once(sender: Sender) -> None:
    answers = await asyncio.gather(*(sender.counts([change()], x_vaultferry_batch="b1") for _ in range(4)))
    assert {sum(answer) for answer in answers} == {1}
    assert await sender.queued() == {"db": None}


# --- signatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [NEW, OLD])
@pytest.mark.parametrize("skew", [-300, 0, 300])
async def test_what_either_secret_signed_is_taken(strict: Sender, secret: str, skew: int) -> None:
    body = gzip.compress(lines(change()))
    headers = strict.signed(secret, body, at=strict.now - timedelta(seconds=skew))
    assert await strict.counts(body, **headers, content_encoding="gzip") == (1, 0, 0, 0)
    headers["x_vaultferry_signature"] = headers["x_vaultferry_signature"].upper()
    assert await strict.counts(body, **headers, content_encoding="gzip") == (0, 0, 1, 0)


@pytest.mark.parametrize("name", ["x_vaultferry_timestamp", "x_vaultferry_batch", "x_vaultferry_signature"])
async def test_what_is_not_signed_is_refused(strict: Sender, name: str) -> None:
    body = lines(change())
    headers = strict.signed(NEW, body)
    del headers[name]
    told = await strict.problem(401, body, **headers)
    assert name.replace("_", "-") in told.lower()
    assert "missing" in told


@pytest.mark.parametrize(
    "wrong",
    [
        {"x_vaultferry_signature": "0" * 64},
        {"x_vaultferry_signature": "kein Hex: ä\udc80"},
        {"x_vaultferry_batch": "b2"},
        {"x_vaultferry_timestamp": str(int(NOON.timestamp()) + 1)},
    ],
)
async def test_a_wrong_signature_is_refused(strict: Sender, wrong: dict[str, str]) -> None:
    body = lines(change())
    headers = strict.signed(NEW, body)
    told = await strict.problem(401, body, **{**headers, **wrong})
    assert "X-Vaultferry-Signature is wrong" in told
    assert headers["x_vaultferry_signature"] not in told
    assert await strict.queued() == {}


async def test_another_secret_or_another_body_is_a_wrong_signature(strict: Sender) -> None:
    body = lines(change())
    for headers in (
        strict.signed(OTHER, body),
        strict.signed(NEW, body + b" "),
        strict.signed(NEW, gzip.compress(body)),
    ):
        assert "wrong" in await strict.problem(401, body, **headers)
    strict.app.audit_secrets = (OTHER, NEW)
    # After the rotation the oldest one is no longer taken.
    assert "wrong" in await strict.problem(401, body, **strict.signed(OLD, body))
    assert await strict.counts(body, **strict.signed(OTHER, body)) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("seconds", "told"), [(301, "301 seconds old"), (86_400, "86400 seconds old"), (-301, "301 seconds ahead")]
)
async def test_an_old_signature_is_refused(strict: Sender, seconds: int, told: str) -> None:
    body = lines(change())
    headers = strict.signed(NEW, body, at=strict.now - timedelta(seconds=seconds))
    assert told in await strict.problem(401, body, **headers)


@pytest.mark.parametrize("text", ["soon", "1.5", "-1", "+1", "01", "1_0", "١", "1" * 13, " 1"])
async def test_a_timestamp_that_is_none_is_refused(strict: Sender, text: str) -> None:
    headers = strict.signed(NEW, b"{}") | {"x_vaultferry_timestamp": text}
    assert "whole seconds" in await strict.problem(401, b"{}", **headers)


async def test_the_size_is_looked_at_before_the_signature_and_the_signature_before_the_body(strict: Sender) -> None:
    await strict.problem(413, b" " * (MAX_SENT + 1))
    await strict.problem(401, b"{", content_encoding="br")
    await strict.problem(401, b"")


# --- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/audit", "/events"])
async def test_bodies_are_bounded(sender: Sender, path: str) -> None:
    assert str(MAX_SENT) in await sender.problem(413, b"x" * (MAX_SENT + 1), path)
    bomb = gzip.compress(b" " * (MAX_UNPACKED + 1))
    assert len(bomb) < 20_000
    assert str(MAX_UNPACKED) in await sender.problem(413, bomb, path, content_encoding="gzip")


def test_a_bomb_is_unpacked_no_further_than_its_bound() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(128)) + packer.flush()
    assert len(bomb) < MAX_SENT
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as caught:
            intake.unpack(Request("/audit", headers={"content-encoding": "gzip"}, body=bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 4 * MAX_UNPACKED


@pytest.mark.parametrize("path", ["/audit", "/events"])
@pytest.mark.parametrize("inner", [b"[],", b"{},", b"1,"])
async def test_the_number_of_values_is_bounded(sender: Sender, inner: bytes, path: str) -> None:
    body = gzip.compress(b'{"a": [' + inner * (MAX_VALUES + 1) + b"0]}")
    assert "JSON values" in await sender.problem(413, body, path, content_encoding="gzip")


@pytest.mark.parametrize("path", ["/audit", "/events"])
async def test_the_number_of_entries_is_bounded(sender: Sender, path: str) -> None:
    await sender.problem(413, [{}] * (MAX_ENTRIES + 1), path)


async def test_the_number_of_lines_is_bounded(sender: Sender) -> None:
    await sender.problem(413, b"{}\n" * (MAX_ENTRIES + 1))
    await sender.problem(413, gzip.compress(b"\n" * (MAX_UNPACKED - 1) + b"x"), content_encoding="gzip")
    assert await sender.counts(b'{"type":"request"}\n' * MAX_ENTRIES) == (0, MAX_ENTRIES, 0, 0)


@pytest.mark.parametrize("path", ["/audit", "/events"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x1f\x8b",
        b"plain text",
        gzip.compress(b"{}", mtime=0)[:-3],
        gzip.compress(b"{}", mtime=0) + gzip.compress(b"{}", mtime=0),
    ],
)
async def test_what_is_not_one_gzip_stream_is_refused(sender: Sender, body: bytes, path: str) -> None:
    assert "gzip" in await sender.problem(400, body, path, content_encoding="gzip")


@pytest.mark.parametrize("path", ["/audit", "/events"])
@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd"])
async def test_other_encodings_are_refused(sender: Sender, encoding: str, path: str) -> None:
    response = await sender.post(b"{}", path, content_encoding=encoding)
    assert (response.status, response.headers["Accept-Encoding"]) == (415, "gzip, identity")


@pytest.mark.parametrize("path", ["/audit", "/events"])
async def test_an_empty_body_is_refused(sender: Sender, path: str) -> None:
    for body in (b"", b" \n\n"):
        assert "empty" in await sender.problem(400, body, path)
        assert "empty" in await sender.problem(400, gzip.compress(body), path, content_encoding="gzip")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "none of the 1 entries can be read: 1 × not JSON"),
        (b"nothing", "1 × no JSON object"),
        (b"<json:object/>", "1 × jsonx"),
        (b'[{"type":', "not JSON"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"[1, null]", "none of the 2 entries can be read: 2 × no audit entry"),
        (b"null", "no JSON object"),
        (b"\xff\xfe\x00", "no JSON object"),
        (lines(change("apps/../x"), change("..")), "2 × a path with empty, '.' or '..' segments"),
        (lines(change("x" * 8200), entry("apps/" + "é" * 60_000)), "2 × a path of more than 8192 characters"),
        (lines(entry("a/../../b"), change("x//y"), change("./x")), "3 × a path"),
    ],
)
async def test_a_body_of_which_nothing_can_be_read_is_refused(sender: Sender, body: bytes, told: str) -> None:
    assert told in await sender.problem(400, body)


ODD = (
    None, True, 1.5, 0, 3, -1, 10**400, [], {}, [[]], {"path": []}, "", "/", "kv", "team/", "create", "gap", "hub", "sys/",
    "sys/policy/x", "sys/remount", "data/apps/\ud800", "secret/data/apps/../x",
)  # fmt: skip
SOUND = (
    entry(), entry("apps/x", "create"), entry("apps/x", kind="request"), change(version=3, vault="hub", namespace="a/"),
    {"vaultferry": "gap", "why": "cut", "vault": "hub"}, {"sync": "s", "path": "x"}, {"vault": "hub", "path": "x"},
    [], "x", 7,
)  # fmt: skip


def _places(value: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = value.items() if isinstance(value, dict) else ()
    return [place, *(found for key, inner in below for found in _places(inner, (*place, key)))]


def _with(value: Any, place: tuple[str, ...], odd: Any) -> Any:
    if not place:
        return odd
    return {**value, place[0]: _with(value[place[0]], place[1:], odd)}


@st.composite
def _entries(draw: st.DrawFn) -> Any:
    """A sound entry, perhaps with something odd in one place."""
    sound = draw(st.sampled_from(SOUND))
    place = draw(st.none() | st.sampled_from(_places(sound)))
    return sound if place is None else _with(sound, place, draw(st.sampled_from(ODD)))


_BODY = (
    st.binary(max_size=200)
    | st.lists(_entries(), max_size=4).map(lambda items: json.dumps(items).encode())
    | st.lists(_entries(), min_size=1, max_size=4).map(lambda items: lines(*items))
    | _entries().map(lambda item: json.dumps(item).encode())
)


async def test_whatever_is_odd_in_an_entry_is_counted(sender: Sender) -> None:
    bodies = [[_with(sound, place, odd)] for sound in SOUND for place in _places(sound) for odd in ODD]
    for body in bodies:
        assert (await sender.post(body)).status in (202, 400), body
        assert (await sender.post(body, "/events")).status in (202, 400, 404), body


@given(body=_BODY, packed=st.booleans(), path=st.sampled_from(["/audit", "/events"]))
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_body_gets_an_answer(sender: Sender, body: bytes, packed: bool, path: str) -> None:
    raw = gzip.compress(body) if packed else body
    response = await sender.post(raw, path, content_encoding="gzip" if packed else "")
    content = json.loads(response.body)
    assert response.status in (202, 400, 404), content
    if response.status == 202:
        assert all(value >= 0 for value in content.values())
    else:
        assert response.headers["Content-Type"] == "application/problem+json"


@given(body=st.text(max_size=200) | _BODY.map(lambda body: body.decode(errors="replace")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_message_of_event_grid_is_dealt_with(sender: Sender, body: str) -> None:
    await intake.event_grid(sender.app, body)


# --- POST /events ---------------------------------------------------------------------------------------------------


async def test_a_path_of_a_sync_is_looked_at(sender: Sender) -> None:
    assert await sender.counts({"sync": "s", "path": "db"}, "/events") == (1, 0, 0, 0)
    assert await sender.queued() == {"db": None}
    many = [{"sync": "s", "path": path} for path in ("a", "b", "a", "left-out/c", "../d", "e//f")]
    assert await sender.counts(gzip.compress(json.dumps(many).encode()), "/events", content_encoding="gzip") == (
        2,
        1,
        1,
        2,
    )
    assert await sender.queued() == {"a": None, "b": None}


async def test_a_name_in_a_vault_is_looked_at_for_all_syncs_that_read_it(sender: Sender) -> None:
    names = ["apps/a", "apps/a", "other/b", "other/b", "apps/.."]
    assert await sender.counts([{"vault": "hub", "path": name} for name in names], "/events") == (1, 2, 1, 1)
    assert await sender.queued() == {"a": None}
    assert await sender.counts([{"vault": "grid", "path": "db"}, {"sync": "s", "path": "x"}], "/events") == (2, 0, 0, 0)
    assert await sender.queued() == {"db": None, "x": None}


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {"sync": "s"}, "path"),
        (400, {"sync": "s", "path": ""}, "path"),
        (400, {"sync": "s", "path": 3}, "path"),
        (400, {"path": "x"}, "either `sync` or `vault`"),
        (400, {"sync": "s", "vault": "hub", "path": "x"}, "either `sync` or `vault`"),
        (400, {"sync": "s", "path": "x", "version": 3}, "version"),
        (400, [{"sync": "s", "path": "x"}, {"sync": "s"}], "entry 2: path"),
        (400, "x", "array"),
        (400, [3], "array"),
        (400, b"{", "array"),
        (400, [{"sync": "s", "path": "../x"}, {"vault": "hub", "path": "a/./b"}], "none of the 2 entries"),
        (400, {"sync": "s", "path": "half \ud800"}, "path"),
        (404, {"sync": "none", "path": "x"}, "there is no sync 'none'"),
        (404, [{"sync": "s", "path": "x"}, {"vault": "hup", "path": "x"}], "did you mean 'hub'"),
        (404, {"vault": "prod", "path": "x"}, "no enabled sync reads the vault"),
        (409, {"sync": "off", "path": "x"}, "disabled"),
    ],
)
async def test_what_can_not_be_looked_at_is_refused(sender: Sender, status: int, body: Any, told: str) -> None:
    assert told in await sender.problem(status, body, "/events")
    assert await sender.queued() == {}


async def test_a_vault_that_can_not_be_opened_is_asked_for_again_later(tmp_path: Path) -> None:
    text = CONFIG.replace("{url}", "http://127.0.0.1:9")
    env = {**environment(tmp_path), "TOKEN": "t"}
    async with App(parse(text.format(folder=tmp_path).encode(), env, "test.yaml"), env) as app:
        response = await Sender(app).post({"vault": "hub", "path": "apps/x"}, "/events")
    assert (response.status, response.headers["Retry-After"]) == (503, "5")


# --- Event Grid -----------------------------------------------------------------------------------------------------

ID = "https://contoso.vault.azure.net/secrets/db/ee059b2bb5bc48398a53b168c6cdcb10"
DATA = {
    "Id": ID,
    "VaultName": "contoso",
    "ObjectType": "Secret",
    "ObjectName": "db",
    "Version": "ee059b2bb5bc48398a53b168c6cdcb10",
    "NBF": None,
    "EXP": None,
}
GRID = {
    "id": "00eccf70",
    "topic": "/subscriptions/x/resourceGroups/y/providers/Microsoft.KeyVault/vaults/contoso",
    "subject": "db",
    "eventType": "Microsoft.KeyVault.SecretNewVersionCreated",
    "eventTime": "2026-05-01T12:00:00.1Z",
    "data": DATA,
    "dataVersion": "1",
    "metadataVersion": "1",
}
CLOUD = {
    "id": "00eccf70",
    "source": GRID["topic"],
    "subject": "db",
    "type": "Microsoft.KeyVault.SecretNewVersionCreated",
    "time": "2026-05-01T12:00:00.1Z",
    "data": DATA,
    "specversion": "1.0",
}


@pytest.mark.parametrize(
    "event",
    [
        GRID,
        CLOUD,
        [GRID],
        [GRID, CLOUD],
        GRID | {"data": {key: value for key, value in DATA.items() if key != "Id"}},
        GRID | {"data": {"Id": ID}},
        GRID | {"data": {"vaultName": "CONTOSO", "objectName ": "db", "version": f" {DATA['Version']}"}},
    ],
)
async def test_a_new_version_in_a_key_vault_is_looked_at(sender: Sender, event: Any) -> None:
    counts = await intake.event_grid(sender.app, json.dumps(event))
    assert counts.accepted == 1
    assert await sender.queued() == {"db": DATA["Version"]}


@pytest.mark.parametrize(
    ("event", "ignored", "invalid"),
    [
        (GRID | {"eventType": "Microsoft.KeyVault.SecretNearExpiry"}, 1, 0),
        (CLOUD | {"type": "Microsoft.KeyVault.VaultAccessPolicyChanged"}, 1, 0),
        (GRID | {"data": DATA | {"Id": ID.replace("contoso", "another")}}, 1, 0),
        ([GRID | {"eventType": "Microsoft.KeyVault.KeyNewVersionCreated"}], 1, 0),
        ([], 0, 0),
        (GRID | {"data": None}, 0, 1),
        (GRID | {"data": {"Id": "https://[", "ObjectName": ["x"]}}, 0, 1),
        (GRID | {"data": {"ObjectName": "db"}}, 0, 1),
        (GRID | {"data": {"VaultName": "contoso"}}, 0, 1),
    ],
)
async def test_other_events_are_left_alone_and_garbage_is_an_error(
    sender: Sender, caplog: pytest.LogCaptureFixture, event: Any, ignored: int, invalid: int
) -> None:
    counts = await intake.event_grid(sender.app, json.dumps(event))
    assert (counts.accepted, counts.ignored, counts.invalid) == (0, ignored, invalid)
    assert await sender.queued() == {}
    assert ("is dropped" in caplog.text) == (not ignored)


async def test_a_version_that_can_be_none_is_left_out(sender: Sender) -> None:
    for version in ("x" * 70_000, "a b", "ä"):
        await intake.event_grid(sender.app, json.dumps(GRID | {"data": DATA | {"Id": "", "Version": version}}))
        assert await sender.queued() == {"db": None}


async def test_garbage_is_logged_without_its_text(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    for body in (CANARY, "", "{", "3", f'["{CANARY}"]'):
        caplog.clear()
        await intake.event_grid(sender.app, body)
        assert "is dropped" in caplog.text
        assert CANARY not in caplog.text


async def test_events_of_files_are_of_no_use_and_of_no_harm(tmp_path: Path) -> None:
    async with make_app(tmp_path) as app:
        assert await Sender(app).counts([change()]) == (0, 1, 0, 0)
