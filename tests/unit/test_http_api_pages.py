"""Listings go on until they end: complete, bounded, never round in circles, and never elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.http_apis import AnyApi
from shared.errors import AccessDenied, Unavailable, Unsupported, VaultError
from shared.vault import Vault
from shared.vaults.http_api import Settings, connect
from shared.vaults.http_api.answers import Answer
from shared.vaults.http_api.pages import Walk, next_link, origin
from shared.vaults.http_api.settings import Pages

GET = {"path": "/secrets/{name}", "fields": "fields"}


@pytest.fixture
async def api() -> AsyncIterator[AnyApi]:
    async with AnyApi() as server:
        yield server


def listing(api: AnyApi, pages: dict[str, Any], **more: Any) -> Vault:
    operations = {"list": {"path": "/secrets", "items": "data", "name": "name", "pages": pages} | more, "get": GET}
    return connect(
        "legacy",
        Settings(
            kind="http_api",
            base_url=f"{api.url}/v1",
            auth={"type": "bearer", "token": api.token},
            operations=operations,
        ),
    )


async def names(vault: Vault, prefix: str = "") -> list[str]:
    try:
        return [entry.name async for entry in vault.list_secrets(prefix)]
    finally:
        await vault.aclose()


WAYS: dict[str, dict[str, Any]] = {
    "page": {"type": "page"},
    "page-more": {"type": "page", "more": "more"},
    "offset": {"type": "offset"},
    "cursor": {"type": "cursor", "next": "next"},
    "link": {"type": "link"},
}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 30])
@pytest.mark.parametrize("way", WAYS)
async def test_every_sort_of_pages_brings_everything_once(api: AnyApi, way: str, count: int) -> None:
    wanted = [f"n{number:02}" for number in range(count)]
    for name in wanted:
        api.put(name, {"value": "x"})
    assert await names(listing(api, WAYS[way])) == wanted
    assert api.calls["list"] <= count // api.page_size + 2


async def test_an_address_in_the_answer_is_followed(api: AnyApi) -> None:
    for number in range(20):
        api.put(f"n{number:02}", {"value": "x"})
    pages = {"type": "link", "next": "next && join('', ['/v1/secrets?cursor=', next])"}
    assert len(await names(listing(api, pages))) == 20


async def test_what_where_leaves_out_does_not_end_a_listing(api: AnyApi) -> None:
    for number in range(20):
        api.put(f"n{number:02}", {"value": "x"})
    found = await names(listing(api, {"type": "page"}, where="name == 'n19'"))
    assert found == ["n19"]


async def test_a_prefix_is_asked_for_where_the_api_takes_one_and_kept_to_anyhow(api: AnyApi) -> None:
    for number in range(20):
        api.put(f"apps/n{number:02}", {"value": "x"})
        api.put(f"other/n{number:02}", {"value": "x"})
    assert len(await names(listing(api, WAYS["cursor"]), "apps/")) == 20
    everything = api.calls["list"]
    api.reset_calls()
    assert len(await names(listing(api, WAYS["cursor"], query={"prefix": "{prefix}"}), "apps/")) == 20
    assert api.calls["list"] < everything


async def test_more_pages_than_are_allowed_are_an_error(api: AnyApi) -> None:
    for number in range(30):
        api.put(f"n{number:02}", {"value": "x"})
    with pytest.raises(Unsupported, match="more than 3 pages"):
        await names(listing(api, WAYS["cursor"] | {"max_pages": 3}))


async def test_a_server_that_pays_no_heed_to_the_page_is_found_out(api: AnyApi) -> None:
    api.put("one", {"value": "x"})
    with pytest.raises(Unavailable, match="circles"):
        await names(listing(api, {"type": "page", "parameter": "seite"}))


async def test_a_cursor_that_comes_again_is_an_error(api: AnyApi) -> None:
    for number in range(20):
        api.put(f"n{number:02}", {"value": "x"})
    with pytest.raises(Unavailable, match="circles"):
        await names(listing(api, {"type": "cursor", "next": "'after-7'"}))


async def test_a_next_page_on_another_host_is_not_asked_for(api: AnyApi) -> None:
    api.put("one", {"value": "x"})
    async with AnyApi() as elsewhere:
        pages = {"type": "link", "next": f"'{elsewhere.url}/v1/secrets'"}
        with pytest.raises(AccessDenied, match="another host"):
            await names(listing(api, pages))
        assert elsewhere.requests == []


async def test_a_mapping_that_finds_no_list_says_what_is_there_instead(api: AnyApi) -> None:
    api.put("one", {"value": "canary"})
    with pytest.raises(Unsupported) as caught:
        await names(listing(api, {"type": "none"}, items="secrets"))
    assert "keys and values: data, next, more" in str(caught.value)
    with pytest.raises(
        Unsupported, match=r"`list.name` finds no name in an item, which is keys and values: name, version"
    ):
        await names(listing(api, {"type": "none"}, name="title"))


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
FOUND = SCALARS | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


@given(
    st.sampled_from(["page", "offset", "cursor", "link"]),
    st.lists(st.tuples(FOUND, st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.integers(1, 12),
)
def test_no_answer_makes_a_listing_endless(kind: Any, told: list[tuple[Any, int, int]], most: int) -> None:
    find = {"next": "next"} if kind in ("cursor", "link") else {}
    walk = Walk(Pages(type=kind, max_pages=most, **find))
    steps = [walk.first()]
    # Whatever was told last is told for ever.
    told = [*told, *([told[-1]] if told else [(None, 0, 0)]) * 40]
    for following, count, new in told:
        try:
            step = walk.next(Answer({"next": following}), count, min(count, new), "https://api.example/v1/secrets")
        except VaultError:
            return
        if step is None:
            return
        assert step not in steps
        if step.url is not None:
            assert origin(step.url) == ("https", "api.example", 443)
        steps.append(step)
        assert len(steps) <= most
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('<https://a.example/x?page=2>; rel="next"', "https://a.example/x?page=2"),
        ('<https://a/1>; rel="first", <https://a/2,3>; rel=next', "https://a/2,3"),
        ('<a>; title="x, y; rel=next"; rel="prev next"', "a"),
        ('<a>; rel="prev", <b>; REL="NEXT"', "b"),
        ('<a>; rel="prev"', None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_link_header_is_read_as_rfc_8288_has_it(header: str | None, target: str | None) -> None:
    assert next_link(header) == target


@given(st.text())
def test_no_link_header_breaks_it(header: str) -> None:
    next_link(header)
    assert next_link(f"<t>; rel=next, {header}") == "t"
