"""Servers and proxies that answer as none should: what is half, foreign or doubtful is never taken for a secret, nor for the
end of a listing."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.errors import AccessDenied, ConfigError, InvalidSecret, SecretNotFound, Unavailable, Unsupported
from shared.model import Secret
from shared.pacing import Pacer
from shared.vault import Vault
from shared.vaults.http_api import Settings, answers, connect, failures
from shared.vaults.http_api.pages import next_link
from shared.vaults.http_api.settings import Getting
from tests.contract.vaults.harness import everything_told_by

CANARY = "canary-3b91-do-not-show"
LIST: dict[str, Any] = {"path": "/s", "items": "d", "name": "name"}
TEXT: dict[str, Any] = {"list": LIST, "get": {"path": "/s/{name}", "answer": "text"}}
LINKED: dict[str, Any] = {"list": {"path": "/s", "name": "@", "pages": {"type": "link"}}, "get": TEXT["get"]}
WITH_ETAGS: dict[str, Any] = {
    "list": LIST,
    "get": {"path": "/s/{name}", "fields": "fields", "etag": True},
    "set": {"path": "/s/{name}", "body": {"fields": "{fields}"}, "etag": True},
}


class Raw:
    """A server that answers with bytes, whatever they are. `seen` are the requests' first lines."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[str] = []
        self.heads: list[str] = []
        self.answer: Callable[[str], bytes] = lambda line: http()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n")[0].decode()
        self.seen.append(line)
        self.heads.append(head.decode())
        writer.write(self.answer(line))
        writer.close()


def http(body: str | bytes = "", *headers: str, status: str = "200 OK") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    server = Raw()
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        yield server


class Opened:
    """A vault that waits for nothing, and is closed at the end."""

    def __init__(self, raw: Raw, operations: dict[str, Any], **more: Any) -> None:
        given = {"base_url": raw.url, "auth": {"type": "none"}} | more
        self.vault = connect("legacy", Settings(kind="http_api", operations=operations, **given))
        self.vault.pacer = Pacer(self.vault.id, sleep=self._at_once)

    async def _at_once(self, seconds: float) -> None:
        await asyncio.sleep(0)

    async def __aenter__(self) -> Vault:
        return self.vault

    async def __aexit__(self, *told: object) -> None:
        await self.vault.aclose()


async def names(vault: Vault) -> list[str]:
    return [entry.name async for entry in vault.list_secrets()]


# whole answers are the value


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (http("<!DOCTYPE html><html>sign in", "Content-Type: text/html; charset=utf-8"), Unavailable, "a web page"),
        (http(" \n<HTML>sign in", "Content-Type: text/html"), Unavailable, "a web page"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", InvalidSecret, "no value in that"),
        (http("half", "Content-Range: bytes 0-3/9", status="206 Partial Content"), Unavailable, "206 to get"),
        (http("é".encode("latin-1")), InvalidSecret, "not text in UTF-8"),
        (http("h\0a\0", "Content-Type: text/plain; charset=utf-16le"), InvalidSecret, "not text in UTF-8"),
        (http('{"error": "maintenance"}'), InvalidSecret, "`error`"),
    ],
)  # fmt: skip
async def test_what_is_no_value_is_not_carried_as_one(
    raw: Raw, answer: bytes, kind: type[Exception], told: str
) -> None:
    raw.answer = lambda line: answer
    async with Opened(raw, TEXT, error="error") as vault:
        with pytest.raises(kind, match=told):
            await vault.get_secret("one")


@pytest.mark.parametrize(
    "kind", ["text/html", "text/plain", "application/octet-stream", "text/plain; charset=US-ASCII"]
)
@pytest.mark.parametrize("value", ["", "v\n", "<b>x</b>", '{"a": 1}', "null"])
async def test_any_other_text_is_the_value_as_it_is(raw: Raw, kind: str, value: str) -> None:
    # Some frameworks call every text they answer text/html.
    raw.answer = lambda line: http(value, f"Content-Type: {kind}")
    async with Opened(raw, TEXT, error="error") as vault:
        assert (await vault.get_secret("one")).fields == {"value": value}


async def test_a_compressed_answer_is_bounded_by_what_it_unpacks_to(raw: Raw) -> None:
    bomb = gzip.compress(b"\0" * 30_000_000)
    raw.answer = lambda line: http(bomb, "Content-Encoding: gzip")
    async with Opened(raw, TEXT, max_answer_bytes=100_000) as vault:
        with pytest.raises(Unsupported, match="longer than 100,000 bytes"):
            await vault.get_secret("one")
    raw.answer = lambda line: http(gzip.compress(b"value"), "Content-Encoding: gzip")
    async with Opened(raw, TEXT) as vault:
        assert (await vault.get_secret("one")).fields == {"value": "value"}
    raw.answer = lambda line: http("no gzip", "Content-Encoding: gzip")
    async with Opened(raw, TEXT) as vault:
        with pytest.raises(Unavailable, match="broke, or the answer was cut"):
            await vault.get_secret("one")


async def test_a_broken_answer_is_no_refused_certificate_whatever_the_secret_is_called(raw: Raw) -> None:
    raw.answer = lambda line: b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"
    async with Opened(raw, WITH_ETAGS) as vault:
        with pytest.raises(Unavailable) as caught:
            await vault.set_secret("tls-certificate", Secret({"value": CANARY}))
    assert caught.value.ambiguous
    assert CANARY not in everything_told_by(caught.value)


# listings that go on


@pytest.mark.parametrize(
    "headers",
    [
        ('Link: </s>; rel="first"', 'Link: </s?p=2>; rel="next"'),
        ('Link: </s>; rel="first", </s?p=2>; rel="next"',),
        ('Link: </s?p=2>; rel="next";',),
        ('Link: </s?p=2>; title="a\\"b, c"; rel="next"',),
        ("Link: </s?p=2>; rel='next'",),
        ('Link: </s?p=2>; x.y=1; rel="next"',),
        ('Link: <s?p=2> ; rel = "last next"',),
    ],
)
async def test_no_way_of_writing_a_link_ends_a_listing_early(raw: Raw, headers: tuple[str, ...]) -> None:
    raw.answer = lambda line: http('["b"]') if "p=2" in line else http('["a"]', *headers)
    async with Opened(raw, LINKED) as vault:
        assert await names(vault) == ["a", "b"]


def test_only_the_relation_of_a_link_makes_it_the_next() -> None:
    assert next_link('<a>; title="; rel=next"') is None
    assert next_link('<a>; xrel="next"') is None
    assert next_link('<a>; rel="nextish"') is None


async def test_a_listing_that_says_it_goes_on_is_not_whole_without_pages(raw: Raw) -> None:
    raw.answer = lambda line: http('{"d": [{"name": "a"}]}', 'Link: </s?p=2>; rel="next"')
    async with Opened(raw, TEXT) as vault:
        with pytest.raises(Unsupported, match=r"`list\.pages` type: link"):
            await names(vault)


async def test_an_address_that_is_not_quite_one_is_asked_for_as_one(raw: Raw) -> None:
    listing = {**LINKED["list"], "items": "d", "pages": {"type": "link", "next": "n"}}
    first = http('{"d": ["a"], "n": "/s?after=a é%20b\\r\\nX: y"}')
    raw.answer = lambda line: http('{"d": ["b"]}') if "after" in line else first
    async with Opened(raw, {**LINKED, "list": listing}) as vault:
        assert await names(vault) == ["a", "b"]
    assert raw.seen[1] == "GET /s?after=a%20%C3%A9%20bX:%20y HTTP/1.1"


@pytest.mark.parametrize(
    ("pages", "asked"),
    [
        ({"type": "page", "first": 0}, ["page=0", "page=1"]),
        ({"type": "page", "parameter": "p"}, ["p=1", "p=2"]),
        ({"type": "offset"}, ["offset=0", "offset=1"]),
    ],
)
async def test_the_first_page_is_asked_for_by_its_number(raw: Raw, pages: dict[str, Any], asked: list[str]) -> None:
    raw.answer = lambda line: http('["a"]' if len(raw.seen) == 1 else "[]")
    async with Opened(raw, LINKED | {"list": {"path": "/s", "name": "@", "pages": pages}}) as vault:
        assert await names(vault) == ["a"]
    assert raw.seen == [f"GET /s?{each} HTTP/1.1" for each in asked]


async def test_an_empty_page_with_a_cursor_is_not_the_end(raw: Raw) -> None:
    listing = {**LIST, "name": "@", "pages": {"type": "cursor", "next": "n"}}
    told = {
        "GET /s HTTP/1.1": '{"d": [], "n": 1}',
        "GET /s?cursor=1 HTTP/1.1": '{"d": [], "n": 2}',
        "GET /s?cursor=2 HTTP/1.1": '{"d": ["a"]}',
    }
    raw.answer = lambda line: http(told[line])
    async with Opened(raw, TEXT | {"list": listing}) as vault:
        assert await names(vault) == ["a"]
    listing["pages"]["max_pages"] = 3
    async with Opened(raw, TEXT | {"list": listing}) as vault:
        assert await names(vault) == ["a"]
    listing["pages"]["max_pages"] = 2
    async with Opened(raw, TEXT | {"list": listing}) as vault:
        with pytest.raises(Unsupported, match="more than 2 pages"):
            await names(vault)


async def test_no_address_of_an_answer_brings_credentials_of_its_own(raw: Raw) -> None:
    listing = {**LINKED["list"], "items": "d", "pages": {"type": "link", "next": "n"}}
    place = raw.url.removeprefix("http://")
    raw.answer = lambda line: http(f'{{"d": ["a"], "n": "http://ferry:x@{place}/s?p=2"}}')
    async with Opened(raw, {**LINKED, "list": listing}) as vault:
        with pytest.raises(AccessDenied, match="credentials are not sent"):
            await names(vault)
    assert len(raw.seen) == 1


HALF = '"\\ud800"'


@pytest.mark.parametrize(
    ("pages", "body"),
    [
        ({"type": "cursor", "next": "n"}, '{"d": ["a"], "n": ' + HALF + "}"),
        ({"type": "link", "next": "n"}, '{"d": ["a"], "n": ' + HALF + "}"),
    ],
)
async def test_half_a_character_is_no_next_page(raw: Raw, pages: dict[str, str], body: str) -> None:
    raw.answer = lambda line: http(body)
    async with Opened(raw, {**LINKED, "list": {**LINKED["list"], "items": "d", "pages": pages}}) as vault:
        with pytest.raises(Unsupported, match=r"`list\.pages\.next` finds something"):
            await names(vault)


async def test_half_a_character_is_neither_version_nor_id(raw: Raw) -> None:
    versions = {"list": LIST | {"version": "v"}, "get": {"path": "/s/{name}", "value": "value", "version": "v"}}
    raw.answer = lambda line: http('{"d": [{"name": "one", "v": "' + "\\ud800" * 300 + '"}]}')
    async with Opened(raw, versions) as vault:
        assert [entry.fingerprint async for entry in vault.list_secrets()] == [None]
    ids = {"list": LIST | {"id": "v"}, "get": {"path": "/s/{id}", "value": "value"}}
    async with Opened(raw, ids) as vault:
        with pytest.raises(Unsupported, match=r"`list\.id` finds nothing"):
            await vault.get_secret("one")


async def test_a_version_may_be_any_number(raw: Raw) -> None:
    versions = {"list": LIST | {"version": "v"}, "get": {"path": "/s/{name}", "value": "value", "version": "v"}}
    raw.answer = lambda line: http('{"d": [{"name": "a", "v": 1.5}, {"name": "b", "v": 0}, {"name": "c", "v": true}]}')
    async with Opened(raw, versions) as vault:
        assert [entry.version async for entry in vault.list_secrets()] == ["1.5", "0", None]


@pytest.mark.parametrize("found", ["https://api.example/secrets/", "https://api.example/keys/db"])
async def test_a_name_that_its_pattern_does_not_find_is_no_name(raw: Raw, found: str) -> None:
    raw.answer = lambda line: http(f'{{"d": [{{"name": "{found}"}}]}}')
    async with Opened(raw, TEXT | {"list": LIST | {"name_pattern": "/secrets/([^/]*)$"}}) as vault:
        with pytest.raises(Unsupported, match=r"`list\.name_pattern` finds nothing"):
            await names(vault)


@pytest.mark.parametrize("name", ["true", "null", '""', "1.5", "[]", "{}"])
async def test_what_is_neither_text_nor_whole_number_is_no_name(raw: Raw, name: str) -> None:
    raw.answer = lambda line: http(f'{{"d": [{{"name": {name}}}]}}')
    async with Opened(raw, TEXT) as vault:
        with pytest.raises(Unsupported, match=r"`list\.name` finds no name"):
            await names(vault)


@pytest.mark.parametrize(
    ("told", "moment"),
    [
        ("2024-03-01T12:00:00", datetime(2024, 3, 1, 12, tzinfo=UTC)),
        ("2024-03-01T12:00:00+02:00", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        (1_709_287_200, datetime(2024, 3, 1, 10, tzinfo=UTC)),
        (1_709_287_200_000, datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("0001-01-01T00:00:00+14:00", None),
        (1e300, None),
        (10**400, None),
        ("yesterday", None),
        (True, None),
    ],
)
def test_a_time_is_one_of_utc_or_none(told: Any, moment: datetime | None) -> None:
    found = answers.moment(told)
    assert found == moment
    assert found is None or found.tzinfo is UTC


@pytest.mark.parametrize("kind", ["text/plain\nX: y", "no media type", "", 7])
def test_what_is_no_media_type_is_no_content_type(kind: Any) -> None:
    getting = Getting(path="/{name}", value="value", content_type="kind")
    assert answers.one_text(getting, {"value": "x", "kind": kind}) == ("x", None)
    assert answers.one_text(getting, {"value": "x", "kind": "text/plain"}) == ("x", "text/plain")


# ids


async def test_an_id_in_a_folder_is_found_without_a_listing_before(raw: Raw) -> None:
    operations = {
        "list": {"path": "/list/{prefix|path}", "items": "d", "name": "name", "id": "id", "tree": True},
        "get": {"path": "/s/{id}", "value": "value"},
    }
    told = {
        "GET /list/ HTTP/1.1": '{"d": [{"name": "shop/", "id": 0}]}',
        "GET /list/shop/ HTTP/1.1": '{"d": [{"name": "db", "id": 7}]}',
        "GET /s/7 HTTP/1.1": '{"value": "x"}',
    }
    raw.answer = lambda line: http(told[line])
    async with Opened(raw, operations) as vault:
        assert (await vault.get_secret("shop/db")).fields == {"value": "x"}
        with pytest.raises(SecretNotFound):
            await vault.get_secret("shop/other")
        with pytest.raises(SecretNotFound):
            await vault.get_secret("shop")


async def test_an_id_is_found_under_a_name_that_differs_by_case_alone(raw: Raw) -> None:
    operations = {
        "list": LIST | {"id": "id"},
        "get": {"path": "/s/{id}", "value": "value", "name": "name"},
    }
    raw.answer = lambda line: (
        http('{"name": "Db", "value": "x"}') if "/7" in line else http('{"d": [{"name": "Db", "id": 7}]}')
    )
    async with Opened(raw, operations, names={"ignores_case": True}) as vault:
        assert (await vault.get_secret("dB")).fields == {"value": "x"}
    async with Opened(raw, operations) as vault:
        with pytest.raises(SecretNotFound):
            await vault.get_secret("dB")


async def test_a_search_may_ask_for_folder_and_base(raw: Raw) -> None:
    operations = {
        "list": LIST | {"id": "id"},
        "find": LIST | {"path": "/find/{folder}", "query": {"called": "{base}"}, "folder": "within", "id": "id"},
        "get": {"path": "/s/{id}", "value": "value"},
    }
    told = {
        "GET /find/shop?called=db HTTP/1.1": '{"d": [{"name": "db", "within": "shop", "id": 7}]}',
        "GET /s/7 HTTP/1.1": '{"value": "x"}',
    }
    raw.answer = lambda line: http(told[line])
    async with Opened(raw, operations) as vault:
        assert (await vault.get_secret("shop/db")).fields == {"value": "x"}


# ETags


async def test_an_answer_without_an_etag_can_not_guard_a_write(raw: Raw) -> None:
    raw.answer = lambda line: http('{"fields": {"value": "x"}}')
    async with Opened(raw, WITH_ETAGS) as vault:
        with pytest.raises(Unsupported, match="the answer has no ETag"):
            await vault.get_secret("one")


@pytest.mark.parametrize("headers", [(), ('ETag: W/"2"',)])
async def test_a_write_that_is_answered_without_a_usable_etag_was_made_all_the_same(
    raw: Raw, headers: tuple[str, ...]
) -> None:
    raw.answer = lambda line: http("{}", *headers)
    async with Opened(raw, WITH_ETAGS) as vault:
        assert (await vault.set_secret("one", Secret({"value": "x"}))).version is None


# fields


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"db_password": "x"}, "'db_password' would come back as 'password'"),
        ({"password": "x", "db_password": "y"}, "'db_password' would come back as 'password'"),
    ],
)
async def test_a_field_that_would_come_back_under_another_name_is_refused(
    raw: Raw, fields: dict[str, Any], told: str
) -> None:
    async with Opened(raw, WITH_ETAGS, field_mapping={"password": "db_password"}) as vault:
        with pytest.raises(InvalidSecret, match=told):
            await vault.set_secret("one", Secret(fields))
    assert raw.seen == []


@pytest.mark.parametrize("found", ["", [], {}, False, None])
def test_what_is_empty_says_nothing(found: Any) -> None:
    assert not answers.truthy("x", {"x": found})
    assert answers.truthy("x", {"x": 0})


@pytest.mark.parametrize(("value", "taken"), [(2**53, True), (-(2**53), True), (2**53 + 1, False), ("x" * 93, False)])
async def test_what_is_too_large_is_refused_and_nothing_smaller(raw: Raw, value: Any, taken: bool) -> None:
    raw.answer = lambda line: http("{}")
    async with Opened(raw, WITH_ETAGS, max_bytes=len('{"v":""}') + 92) as vault:
        await vault.set_secret("one", Secret({"v": "x" * 92}))
        if taken:
            await vault.set_secret("two", Secret({"v": value}))
        else:
            with pytest.raises(InvalidSecret):
                await vault.set_secret("two", Secret({"v": value}))
    assert len(raw.seen) == 1 + taken


async def test_two_fields_may_change_names(raw: Raw) -> None:
    raw.answer = lambda line: http("{}")
    async with Opened(raw, WITH_ETAGS, field_mapping={"a": "b", "b": "a"}) as vault:
        await vault.set_secret("one", Secret({"a": "x", "b": "y"}))
    assert raw.seen == ["PUT /s/one HTTP/1.1"]


async def test_a_named_field_without_a_value_is_refused(raw: Raw) -> None:
    operations = {
        "list": LIST,
        "get": {"path": "/s/{name}", "fields": "@"},
        "set": {"path": "/s/{name}", "body": {"user": "{field:user}"}},
    }
    async with Opened(raw, operations) as vault:
        with pytest.raises(InvalidSecret, match="'user' is null"):
            await vault.set_secret("one", Secret({"user": None}))


@pytest.mark.parametrize("body_type", ["json", "form"])
async def test_a_name_can_not_take_the_place_of_another_key(raw: Raw, body_type: str) -> None:
    operations = TEXT | {
        "get": {"path": "/s/{name}", "value": "value"},
        "set": {"path": "/s", "body": {"project": "shop", "{name}": "{value}"}, "body_type": body_type},
    }
    raw.answer = lambda line: http("{}")
    async with Opened(raw, operations) as vault:
        with pytest.raises(InvalidSecret, match="that of another key"):
            await vault.set_secret("project", Secret({"value": CANARY}))
        assert raw.seen == []
        await vault.set_secret("projects", Secret({"value": CANARY}))


async def test_a_mapping_the_wrong_way_round_shows_no_value(raw: Raw) -> None:
    raw.answer = lambda line: http(
        f'{{"fields": [{{"k": "a", "v": "{CANARY}"}}, {{"k": "b", "v": "{CANARY}"}}]}}', 'ETag: "1"'
    )
    operations = WITH_ETAGS | {"get": WITH_ETAGS["get"] | {"fields": "fields[].{name: v, value: k}"}}
    async with Opened(raw, operations) as vault:
        with pytest.raises(InvalidSecret, match="two fields of one name") as caught:
            await vault.get_secret("one")
    assert CANARY not in everything_told_by(caught.value)


# headers


@pytest.mark.parametrize("given", ["settings", "operation"])
async def test_a_header_that_is_given_takes_the_place_of_ours_in_any_case(raw: Raw, given: str) -> None:
    headers = {"accept": "application/vnd.x+json", "CONTENT-type": "application/vnd.y+json"}
    write = {"path": "/s/{name}", "body": {"fields": "{fields}"}, "etag": True}
    operations = WITH_ETAGS | {"set": write | ({"headers": headers} if given == "operation" else {})}
    raw.answer = lambda line: http("{}")
    async with Opened(raw, operations, headers=headers if given == "settings" else {}) as vault:
        await vault.set_secret("one", Secret({"value": "x"}))
    told = [line.lower() for line in raw.heads[0].splitlines()]
    assert [line for line in told if line.startswith(("accept:", "content-type:"))] == [
        "accept: application/vnd.x+json",
        "content-type: application/vnd.y+json",
    ]


# the way there


@pytest.mark.parametrize("proxy", ["proxy.example:3128", "socks5://127.0.0.1:1", "http://127.0.0.1:99999", "nonsense"])
async def test_a_proxy_that_is_none_is_told_as_such(raw: Raw, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    async with Opened(raw, TEXT) as vault:
        with pytest.raises(Unsupported, match="HTTP_PROXY"):
            await vault.get_secret("one")


async def test_a_proxys_credentials_are_sent_to_it_and_shown_to_nobody(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = raw.url.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://ferry:{CANARY}@{place}")
    raw.answer = lambda line: http("no", status="407 Proxy Authentication Required")
    async with Opened(raw, TEXT, base_url="http://api.example") as vault:
        with pytest.raises(AccessDenied) as caught:
            await vault.get_secret("one")
    assert raw.seen == ["GET http://api.example/s/one HTTP/1.1"]
    assert CANARY not in everything_told_by(caught.value)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("Fri, 01 Jan 2021 00:00:00 +99999999999999999", None),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", None),
        ("1e300", 86_400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
    ],
)
def test_no_time_to_wait_is_beyond_reason(asked: str, seconds: float | None) -> None:
    failure = failures.refusal(503, {"Retry-After": asked}, operation="get")
    assert isinstance(failure, Unavailable)
    assert failure.retry_after == seconds


def test_a_key_with_a_password_is_an_error_and_no_question(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ferry")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "client.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(CANARY.encode()),
        )
    )
    auth = {"type": "mtls", "client_cert": str(path)}
    with pytest.raises(ConfigError, match="client_cert or client_key can not be used"):
        connect("legacy", Settings(kind="http_api", base_url="https://api.example", auth=auth, operations=TEXT))


async def test_check_tries_a_name_that_is_short_enough(raw: Raw) -> None:
    raw.answer = lambda line: http('{"d": []}') if line.startswith("GET /s HTTP") else http("", status="404 Not Found")
    async with Opened(raw, TEXT, names={"max_length": 12}) as vault:
        assert all(finding.ok for finding in await vault.check([]))
