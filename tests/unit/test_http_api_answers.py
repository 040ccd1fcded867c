"""What an API answers: statuses, envelopes, redirects, sizes; what a 404 means; what `check` makes of it all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sandbox.faults import Fault
from sandbox.http_apis import AnyApi, InfisicalApi
from shared.errors import (
    AccessDenied,
    Conflict,
    InvalidSecret,
    MountNotFound,
    SecretNotFound,
    Unavailable,
    Unsupported,
    VaultError,
)
from shared.mapping import Mapper
from shared.model import Expect, Secret, Target
from shared.pacing import Pacer
from shared.vault import Finding, NameRule, Use, Vault, check_name
from shared.vaults.http_api import Settings, answers, connect, failures
from tests.contract.vaults.harness import everything_told_by
from tests.contract.vaults.http_api import ETAG, TEXT

CANARY = "canary-7f0a41-do-not-show"


@pytest.fixture
async def api() -> AsyncIterator[AnyApi]:
    async with AnyApi() as server:
        server.put("one", {"value": CANARY})
        yield server


def vault_of(api: Any, operations: dict[str, Any] = ETAG, **more: Any) -> Vault:
    given = {"base_url": f"{api.url}/v1", "auth": {"type": "bearer", "token": getattr(api, "token", "x")}} | more
    vault = connect("legacy", Settings(kind="http_api", operations=operations, **given))

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0)

    vault.pacer = Pacer(vault.id, sleep=at_once)
    return vault


def changed(name: str, **more: Any) -> dict[str, Any]:
    return ETAG | {name: {**ETAG[name], **more}}


# statuses

READ = {
    400: InvalidSecret, 401: AccessDenied, 402: InvalidSecret, 403: AccessDenied, 404: SecretNotFound, 405: Unsupported,
    407: AccessDenied, 408: Unavailable, 409: Conflict, 410: SecretNotFound, 412: Conflict, 413: InvalidSecret,
    415: Unsupported, 422: InvalidSecret, 425: Unavailable, 429: Unavailable, 500: Unavailable, 501: Unavailable,
    502: Unavailable, 503: Unavailable, 504: Unavailable, 599: Unavailable,
}  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), READ.items())
async def test_each_status_is_sorted(api: AnyApi, status: int, kind: type[VaultError]) -> None:
    api.faults.add(Fault("status", operation="read", status=status, times=3))
    api.faults.add(Fault("status", operation="list", status=status, times=3 if status != 404 else 0))
    vault = vault_of(api)
    with pytest.raises(VaultError) as caught:
        await vault.get_secret("one")
    await vault.aclose()
    if status == 410:
        # The listing, asked whether it still answers, did not: then nothing is known of the secret.
        assert type(caught.value) is MountNotFound
        return
    assert isinstance(caught.value, kind)
    assert str(status) in str(caught.value)
    assert CANARY not in everything_told_by(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:05 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 5.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:05 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_either_form_of_retry_after_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    failure = failures.refusal(429, headers, operation="get")
    assert isinstance(failure, Unavailable)
    assert failure.retry_after == seconds


async def test_what_is_transient_and_permanent_can_be_said(api: AnyApi) -> None:
    vault = vault_of(api, transient=["423", "409"], permanent=[500])
    for status, transient in ((423, True), (409, True), (500, False), (503, True)):
        api.faults.add(Fault("status", operation="read", status=status, times=3))
        with pytest.raises(VaultError) as caught:
            await vault.get_secret("one")
        assert caught.value.transient is transient
        api.faults.clear()
    await vault.aclose()


@pytest.mark.parametrize(
    ("status", "ambiguous"),
    [(408, True), (425, False), (429, False), (500, True), (502, True), (503, False), (504, True)],
)
async def test_a_write_is_in_doubt_only_where_it_may_have_been_done(api: AnyApi, status: int, ambiguous: bool) -> None:
    api.faults.add(Fault("status", operation="write", status=status, times=None))
    vault = vault_of(api)
    before = api.calls["write"]
    with pytest.raises(Unavailable) as caught:
        await vault.set_secret("one", Secret({"value": CANARY}))
    await vault.aclose()
    assert caught.value.ambiguous is ambiguous
    assert (api.calls["write"] - before == 1) is ambiguous


async def test_an_expected_status_is_no_failure_and_an_unexpected_success_is_none(api: AnyApi) -> None:
    strict, wide = (vault_of(api, changed("set", expect=expect)) for expect in ([201], ["200", "201"]))
    with pytest.raises(Unavailable, match="not in its `expect`") as caught:
        await strict.set_secret("two", Secret({"value": "x"}))
    assert caught.value.ambiguous
    await wide.set_secret("three", Secret({"value": "x"}))
    for vault in (strict, wide):
        await vault.aclose()


async def test_a_failure_inside_of_a_success_is_a_failure(api: AnyApi) -> None:
    api.envelope = True
    vault = vault_of(api, error="error")
    with pytest.raises(InvalidSecret, match="says in it"):
        await vault.get_secret("none")
    with pytest.raises(InvalidSecret, match="says in it"):
        await vault.delete_secret("none")
    assert (await vault.get_secret("one")).fields == {"value": CANARY}
    api.token = "another"
    with pytest.raises(MountNotFound, match="says in it"):
        [entry async for entry in vault.list_secrets()]
    await vault.aclose()


# 404


async def test_a_404_means_the_secret_only_while_the_listing_answers(api: AnyApi) -> None:
    vault = vault_of(api)
    with pytest.raises(SecretNotFound):
        await vault.get_secret("none")
    api.faults.add(Fault("status", operation="list", status=404, times=None))
    for call in (vault.get_secret("none"), vault.delete_secret("none"), vault.describe_secret("none")):
        with pytest.raises(MountNotFound):
            await call
    await vault.aclose()


async def test_many_404s_ask_the_listing_a_few_times_only(api: AnyApi) -> None:
    vault = vault_of(api)
    told = await asyncio.gather(*(vault.get_secret(f"none{number}") for number in range(40)), return_exceptions=True)
    assert {type(each).__name__ for each in told} <= {"SecretNotFound", "Absent"}
    assert api.calls["list"] < 20
    await vault.aclose()


async def test_the_answer_to_a_404_may_tell_what_is_missing(api: AnyApi) -> None:
    says = "error == 'no such secret'"
    vault = vault_of(api, changed("get", absent=says))
    with pytest.raises(SecretNotFound):
        await vault.get_secret("none")
    assert api.calls["list"] == 0
    elsewhere = vault_of(api, changed("get", absent=says), base_url=f"{api.url}/v0")
    with pytest.raises(MountNotFound):
        await elsewhere.get_secret("none")
    for each in (vault, elsewhere):
        await each.aclose()


async def test_a_proxys_page_is_not_a_missing_secret(api: AnyApi) -> None:
    # It answers 404 to everything, in its own words.
    vault = vault_of(api, base_url=f"{api.url}/v0")
    for call in (vault.get_secret("one"), vault.delete_secret("one"), vault.set_secret("one", Secret({"value": "x"}))):
        with pytest.raises((MountNotFound, Unavailable)) as caught:
            await call
        assert not isinstance(caught.value, SecretNotFound)
    await vault.aclose()


# redirects, sizes, shapes


class Scripted:
    """A server that answers as a test says, on a loopback port."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[web.Request] = []
        self.answer: Callable[[web.Request], web.StreamResponse] = lambda request: web.json_response({})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return self.answer(request)


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    server = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_credentials_do_not_follow_a_redirect(api: AnyApi, scripted: Scripted, status: int) -> None:
    target = f"{api.url}/v1/secrets/one?secret={CANARY}"
    scripted.answer = lambda request: web.Response(status=status, headers={"Location": target})
    vault = vault_of(scripted)
    for call in (vault.get_secret("one"), vault.set_secret("one", Secret({"value": CANARY}))):
        with pytest.raises(Unsupported, match="redirects are not followed") as caught:
            await call
        assert api.url in str(caught.value)
        assert CANARY not in everything_told_by(caught.value)
    await vault.aclose()
    assert api.requests == []
    assert len(scripted.seen) == 2


async def test_an_answer_that_is_too_long_is_not_read_to_its_end(scripted: Scripted) -> None:
    scripted.answer = lambda request: web.json_response({"fields": {"value": "x" * 100_000}})
    vault = vault_of(scripted, max_answer_bytes=10_000)
    with pytest.raises(Unsupported, match="longer than 10,000 bytes"):
        await vault.get_secret("one")
    await vault.aclose()


async def test_a_cookie_is_not_sent_back(scripted: Scripted) -> None:
    def answer(request: web.Request) -> web.Response:
        response = web.json_response({"fields": {"value": "x"}}, headers={"ETag": '"1"'})
        response.set_cookie("session", "x")
        return response

    scripted.answer = answer
    vault = vault_of(scripted)
    for _ in range(2):
        await vault.get_secret("one")
    await vault.aclose()
    assert "Cookie" not in scripted.seen[1].headers


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<html>sign in</html>", Unavailable),
        ("", Unavailable),
        ('{"fields": ', Unavailable),
        ("[]", Unsupported),
        ('{"fields": "x"}', Unsupported),
        ('{"fields": null}', Unsupported),
        ('{"fields": [{"name": "a", "value": 1}, {"name": "a", "value": 2}]}', InvalidSecret),
        ('{"fields": [{"name": 1, "value": 1}]}', Unsupported),
        ('{"fields": {"a": NaN}}', InvalidSecret),
        ('{"fields": {"a": 1e999}}', InvalidSecret),
        ('{"fields": {"a": ' + "9" * 5000 + "}}", InvalidSecret),
        ('{"fields": ' + "[" * 100_000 + "]" * 100_000 + "}", InvalidSecret),
        (b"\xff\xfe", Unavailable),
    ],
)
async def test_an_answer_of_another_shape_is_told_as_such(
    scripted: Scripted, body: str | bytes, kind: type[VaultError]
) -> None:
    content = body.encode() if isinstance(body, str) else body
    etag = {"ETag": '"1"'}
    scripted.answer = lambda request: web.Response(body=content, content_type="application/json", headers=etag)
    vault = vault_of(scripted)
    with pytest.raises(kind) as caught:
        await vault.get_secret("one")
    await vault.aclose()
    assert caught.value.path == "one"


async def test_fields_may_come_as_a_list(scripted: Scripted) -> None:
    shown = [{"label": "user", "value": "ferry", "id": 1}, {"label": "pw", "value": "x", "id": 2}]
    scripted.answer = lambda request: web.json_response({"fields": shown}, headers={"ETag": '"1"'})
    operations = changed("get", fields="fields[].{name: label, value: value}", etag=True)
    vault = vault_of(scripted, operations, field_mapping={"password": "pw"})
    assert (await vault.get_secret("one")).fields == {"user": "ferry", "password": "x"}
    await vault.aclose()


def test_messages_name_keys_and_never_values() -> None:
    shown = answers.keys_of({"data": CANARY, CANARY + "!": 1, "meta": {"x": CANARY}})
    assert shown == "keys and values: data, meta and 1 more"
    assert CANARY not in answers.keys_of([CANARY]) + answers.keys_of(CANARY) + answers.keys_of([{CANARY + "\n": 1}])


# fields both ways


async def test_fields_are_renamed_both_ways(api: AnyApi) -> None:
    vault = vault_of(api, field_mapping={"password": "pw", "user": "login"})
    await vault.set_secret("two", Secret({"password": "x", "user": "ferry", "note": "n"}))
    assert api.secrets["two"]["fields"] == {"pw": "x", "login": "ferry", "note": "n"}
    assert (await vault.get_secret("two")).fields == {"password": "x", "user": "ferry", "note": "n"}
    with pytest.raises(InvalidSecret, match="'pw' would come back as 'password'"):
        await vault.set_secret("two", Secret({"password": "x", "pw": "y"}))
    api.put("two", {"pw": "x", "password": "y"})
    with pytest.raises(InvalidSecret, match="two fields called 'password'"):
        await vault.get_secret("two")
    await vault.aclose()


async def test_an_api_with_named_fields_takes_those_and_no_others(api: AnyApi) -> None:
    operations = {
        "list": ETAG["list"] | {"version": None},
        "get": {"path": "/secrets/{name}", "fields": "{login: fields.login, pw: fields.pw}"},
        "set": {"path": "/secrets/{name}", "body": {"fields": {"login": "{field:login}", "pw": "{field:pw}"}}},
    }
    vault = vault_of(api, operations, field_mapping={"password": "pw"})
    await vault.set_secret("two", Secret({"login": "ferry", "password": "x"}))
    assert (await vault.get_secret("two")).fields == {"login": "ferry", "password": "x"}
    with pytest.raises(InvalidSecret, match="no place for; it takes 'login', 'password'"):
        await vault.set_secret("two", Secret({"login": "ferry", "password": "x", "note": "n"}))
    with pytest.raises(InvalidSecret, match="no field 'pw'"):
        await vault.set_secret("two", Secret({"login": "ferry"}))
    api.put("three", {"login": "ferry"})
    assert (await vault.get_secret("three")).fields == {"login": "ferry"}
    await vault.aclose()


async def test_one_text_without_a_place_for_a_mark_holds_one_text_only(api: AnyApi) -> None:
    operations = {
        "list": TEXT["list"],
        "get": {"path": "/secrets/{name}", "value": "fields.value"},
        "set": {"path": "/secrets/{name}", "body": {"fields": {"value": "{value}"}}},
    }
    vault = vault_of(api, operations, max_bytes=10)
    await vault.set_secret("two", Secret({"value": "x"}))
    with pytest.raises(InvalidSecret, match="granularity: field"):
        await vault.set_secret("two", Secret({"password": "x"}))
    with pytest.raises(InvalidSecret, match="takes 11 bytes; max_bytes allows 10"):
        await vault.set_secret("two", Secret({"value": "x" * 11}))
    await vault.aclose()


@pytest.mark.parametrize(
    "body", [{"body_type": "form", "body": {"value": "{value}"}}, {"body_type": "text", "body": "{value}"}]
)
async def test_forms_and_plain_text_carry_a_value_as_it_is(api: AnyApi, body: dict[str, Any]) -> None:
    folder = body["body_type"]
    operations = {
        "get": {"path": "/text/{name}", "answer": "text"},
        "list": {"path": "/v1/secrets", "items": "data", "name": "name"},
        "set": {"path": f"/{folder}/{{name}}", **body},
    }
    vault = vault_of(api, operations, base_url=api.url)
    value = 'a&b=c+d %41 "{name}" žluť\n\U0001f98a'
    await vault.set_secret("two", Secret({"value": value}))
    assert api.secrets["two"]["fields"] == {"value": value}
    assert (await vault.get_secret("two")).fields == {"value": value}
    await vault.aclose()


# conditions


async def test_a_weak_etag_can_not_guard_a_write(scripted: Scripted) -> None:
    scripted.answer = lambda request: web.json_response({"fields": {"value": "x"}}, headers={"ETag": 'W/"1"'})
    vault = vault_of(scripted)
    with pytest.raises(Unsupported, match="ETags are weak"):
        await vault.get_secret("one")
    await vault.aclose()


async def test_a_conditional_write_to_what_is_gone_is_a_conflict(scripted: Scripted) -> None:
    scripted.answer = lambda request: (
        web.json_response({"data": []}) if request.path == "/v1/secrets" else web.json_response({}, status=404)
    )
    vault = vault_of(scripted)
    with pytest.raises(Conflict):
        await vault.set_secret("one", Secret({"value": "x"}), expect='"1"')
    with pytest.raises(MountNotFound, match="see `create`"):
        await vault.set_secret("one", Secret({"value": "x"}), expect=Expect.ANY)
    await vault.aclose()


async def test_a_description_costs_no_value(api: AnyApi) -> None:
    operations = ETAG | {"describe": {"path": "/secrets/{name}", "etag": True}}
    operations = {
        key: {name: each for name, each in value.items() if name != "updated_at"} for key, value in operations.items()
    }
    vault = vault_of(api, operations)
    described = await vault.describe_secret("one")
    assert described == (await vault.get_secret("one")).entry
    assert described.version == api.secrets["one"]["etag"]
    assert [method for method, _, _ in api.requests] == ["HEAD", "GET"]
    with pytest.raises(SecretNotFound):
        await vault.describe_secret("none")
    await vault.aclose()


async def test_a_long_version_is_kept_as_a_hash(scripted: Scripted) -> None:
    tag = '"' + "x" * 5_000 + '"'
    scripted.answer = lambda request: web.json_response({"fields": {"value": "x"}}, headers={"ETag": tag})
    vault = vault_of(scripted)
    entry = (await vault.get_secret("one")).entry
    await vault.aclose()
    assert entry is not None
    assert entry.version == tag
    assert len(entry.fingerprint or "") == 64


# folders


async def test_an_api_with_folders_of_its_own() -> None:
    async with InfisicalApi() as server:
        where = {"projectId": server.project, "environment": server.environment}
        one = where | {"secretPath": "/{folder}"}
        body = one | {"secretValue": "{value}", "type": "shared"}
        operations = {
            "list": {
                "path": "/secrets",
                "query": where | {"recursive": "true"},
                "items": "secrets",
                "name": "secretKey",
                "folder": "secretPath",
            },
            "get": {"path": "/secrets/{base}", "query": one, "value": "secret.secretValue"},
            "set": {"method": "PATCH", "path": "/secrets/{base}", "body": body},
            "create": {"path": "/secrets/{base}", "body": body},
            "delete": {"path": "/secrets/{base}", "body": one},
        }
        vault = vault_of(server, operations, base_url=f"{server.url}/api/v4")
        for name in ("KEY", "apps/KEY", "apps/shop/KEY", "appsx/KEY"):
            await vault.set_secret(name, Secret({"value": name}))
        assert ("/apps/shop", "KEY") in server.secrets
        assert sorted([entry.name async for entry in vault.list_secrets("apps/")]) == ["apps/KEY", "apps/shop/KEY"]
        assert (await vault.get_secret("apps/shop/KEY")).fields == {"value": "apps/shop/KEY"}
        await vault.delete_secret("apps/KEY")
        assert sorted([entry.name async for entry in vault.list_secrets()]) == ["KEY", "apps/shop/KEY", "appsx/KEY"]
        await vault.aclose()


async def test_a_tree_is_walked_folder_by_folder(scripted: Scripted) -> None:
    tree = {"": ["one", "a/", "../", "//"], "a/": ["two", "b/"], "a/b/": ["three"]}

    def answer(request: web.Request) -> web.Response:
        return web.json_response({"keys": tree[request.path.removeprefix("/v1/list/")]})

    scripted.answer = answer
    operations = {
        "list": {"path": "/list/{prefix|path}", "items": "keys", "tree": True},
        "get": {"path": "/{name}", "fields": "@"},
    }
    vault = vault_of(scripted, operations)
    assert sorted([entry.name async for entry in vault.list_secrets()]) == ["a/b/three", "a/two", "one"]
    assert sorted([entry.name async for entry in vault.list_secrets("a/b/")]) == ["a/b/three"]
    scripted.answer = lambda request: web.json_response({"keys": ["deeper/"]})
    with pytest.raises(Unsupported, match="deeper than 64 levels"):
        [entry async for entry in vault.list_secrets()]
    await vault.aclose()


# names


def test_names_are_fitted_and_a_change_of_the_rule_makes_them_due() -> None:
    rule = NameRule(re.compile("[A-Z_]"), replacement="_", upper_case=True)
    assert rule.fit("apps/db-pässword") == "APPS_DB_P_SSWORD"
    assert rule.fit(rule.fit("apps/db")) == rule.fit("apps/db")
    target = Target("prod", "prod")
    rules = [
        NameRule(),
        NameRule(upper_case=True),
        NameRule(re.compile("[A-Z_]")),
        NameRule(re.compile("[A-Z_]"), replacement="_"),
        rule,
    ]
    assert len({Mapper(target, each).recipe for each in rules}) == 5
    assert not Mapper(target, NameRule(upper_case=True)).injective
    with pytest.raises(InvalidSecret):
        check_name("legacy", "lower", NameRule(upper_case=True))


# on the way


def test_every_exception_of_aiohttp_is_told() -> None:
    known = failures.breakdowns()
    raised = [each for each in vars(aiohttp).values() if isinstance(each, type) and issubclass(each, Exception)]
    unknown = {each.__name__ for each in raised if not any(cls in known for cls in each.__mro__)}
    # Of web sockets, multipart bodies and streams: none of them is used.
    elsewhere = {"WSMessageTypeError", "WebSocketError", "BadContentDispositionHeader", "BadContentDispositionParam"}
    assert unknown - elsewhere == {"EofStream"}


async def test_a_name_that_is_not_known_is_told_as_such() -> None:
    class Nowhere:
        url = "https://no-such-host.invalid"

    vault = vault_of(Nowhere())
    [finding] = await vault.check([])
    assert "the connection: the name of https://no-such-host.invalid is not known (DNS)" in finding.detail
    await vault.aclose()


async def test_https_to_a_server_without_it_is_told_as_such(api: AnyApi) -> None:
    vault = vault_of(api, base_url=api.url.replace("http://", "https://"))
    [finding] = await vault.check([])
    assert "TLS with https://" in finding.detail
    await vault.aclose()


# check


async def found(vault: Vault, *uses: Use) -> dict[str, Finding]:
    findings = await vault.check(list(uses))
    await vault.aclose()
    assert CANARY not in repr(findings)
    return {finding.subject: finding for finding in findings}


async def test_check_tells_path_mapping_and_missing_operation_apart(api: AnyApi) -> None:
    well = await found(vault_of(api), Use("", write=True, delete=True))
    assert all(finding.ok for finding in well.values())
    assert set(well) == {"list", "get", "set", "delete"}
    assert api.calls["write"] == api.calls["delete"] == 0

    path = await found(vault_of(api, base_url=f"{api.url}/v0"))
    assert path["list"].detail.startswith("the path: there is nothing to list (404 on list)")

    items = await found(vault_of(api, changed("list", items="secrets")))
    assert "the mapping: `list.items` finds no list" in items["list"].detail
    assert "data, next, more" in items["list"].detail

    value = await found(vault_of(api, changed("get", fields="data")))
    assert value["list"].ok
    assert "the mapping: `get.fields` finds no fields" in value["get"].detail
    assert "name, fields, content_type, version" in value["get"].detail

    reading = {key: each for key, each in ETAG.items() if key in ("list", "get")}
    lacking = await found(vault_of(api, reading), Use("", write=True))
    assert not lacking["set"].ok
    assert lacking["set"].hint == "add `operations.set`"


async def test_check_reads_a_secret_that_does_not_exist_where_there_is_none(api: AnyApi) -> None:
    api.secrets.clear()
    findings = await found(vault_of(api))
    assert findings["get"].ok
    assert "no secret to try the mapping on" in findings["get"].detail


async def test_check_finds_a_version_that_is_not_there(api: AnyApi) -> None:
    operations = changed("get", etag=False, version="revision")
    operations["list"] = operations["list"] | {"version": None}
    for name in ("set", "delete"):
        operations[name] = operations[name] | {"etag": False}
    findings = await found(vault_of(api, operations))
    assert "no version" in findings["get"].detail


async def test_check_finds_versions_that_are_not_the_same(api: AnyApi) -> None:
    findings = await found(vault_of(api, changed("list", version="version")))
    assert "different versions of one secret" in findings["get"].detail


# the pace


async def test_a_rate_limit_is_kept(api: AnyApi) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    vault = vault_of(api)
    settings = Settings(
        kind="http_api",
        base_url=f"{api.url}/v1",
        auth={"type": "none"},
        operations=ETAG,
        requests_per_second=2,
        concurrency=3,
    )
    assert connect("legacy", settings).pacer.concurrency == 3
    vault.pacer = Pacer("legacy", requests_per_second=2, sleep=sleep)
    for _ in range(5):
        await vault.get_secret("one")
    await vault.aclose()
    assert len(waits) == 4
    assert 1.5 < max(waits) <= 2.0
