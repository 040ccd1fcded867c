"""Conflicts over HTTP: what is listed, what a decision is answered with, and what the history tells of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.history import Save
from shared.model import ObjectState, ObjectStatus, RunStatus
from tests.unit.apps import TWO_WAY, Client, contest, make_app

SYNC = "/syncs/both-ways"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with make_app(tmp_path, TWO_WAY) as app:
        yield Client(app)


async def test_a_conflict_is_listed_with_what_each_side_held(client: Client) -> None:
    assert await client.json("GET", f"{SYNC}/conflicts") == {"items": [], "next_cursor": None}
    await contest(client.app, "both-ways", "shop/db", source="one", prod="two")
    (item,) = (await client.json("GET", f"{SYNC}/conflicts"))["items"]
    sides = {side.pop("side"): side for side in item.pop("sides")}
    assert item.pop("since") is not None
    assert item == {
        "sync_id": "both-ways",
        "target": "prod",
        "path": "shop/db",
        "error": "changed on several sides (conflict: manual)",
        "decided": None,
    }
    assert set(sides) == {"source", "prod"}
    assert sides["source"].pop("digest") != sides["prod"].pop("digest")
    assert sides["source"] == {"fingerprint": "f-one", "version": "3", "changed_at": "2026-01-01T00:00:00Z"}


async def test_conflicts_are_paged(client: Client) -> None:
    for path in ("a", "b", "c"):
        await contest(client.app, "both-ways", path, source="one", prod="two")
    first = await client.json("GET", f"{SYNC}/conflicts", params={"limit": "2"})
    second = await client.json("GET", f"{SYNC}/conflicts", params={"limit": "2", "cursor": first["next_cursor"]})
    assert [item["path"] for item in first["items"] + second["items"]] == ["a", "b", "c"]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"limit": "0"}, "1 to 1000"),
        ({"cursor": "%%%"}, "cursor"),
        ({"cursor": "bm9uc2Vuc2U"}, "cursor"),
        ({"status": "failed"}, "no query parameter"),
        ({"crusor": "x"}, "did you mean 'cursor'"),
    ],
)
async def test_bad_query_values_are_told_apart(client: Client, params: dict[str, str], told: str) -> None:
    assert told in (await client.json("GET", f"{SYNC}/conflicts", 400, params=params))["detail"]


async def test_a_one_way_sync_lists_its_conflicts_with_what_to_do(client: Client) -> None:
    row = ObjectState("one-way", "prod", "db", status=ObjectStatus.CONFLICT, error="delete it by hand")
    await client.app.store.save_objects([Save(row)])
    (item,) = (await client.json("GET", "/syncs/one-way/conflicts"))["items"]
    assert (item["error"], item["sides"], item["since"]) == ("delete it by hand", [], None)
    told = await client.json("POST", "/syncs/one-way/resolve", 409, body={"path": "db", "take": "source"})
    assert "one-way" in told["detail"]
    assert "delete it by hand" in told["detail"]


async def test_a_decision_begins_a_run_and_is_listed_until_that_has_carried_it_out(client: Client) -> None:
    await contest(client.app, "both-ways", "shop/db", source="one", prod="two")
    since = (await client.json("GET", f"{SYNC}/conflicts"))["items"][0]["since"]
    body = {"path": "shop/db", "take": "target"}
    begun = await client.json("POST", f"{SYNC}/resolve", 202, body=body)
    assert begun["status"] == RunStatus.QUEUED
    assert (await client.json("GET", f"/runs/{begun['run_id']}"))["trigger"] == "resolve"
    (item,) = (await client.json("GET", f"{SYNC}/conflicts"))["items"]
    assert (item["decided"], item["since"]) == ("prod", since)
    response = await client.call("POST", f"{SYNC}/resolve", body=body)
    assert (response.status, response.headers["Location"]) == (202, f"/runs/{begun['run_id']}")
    assert json.loads(response.body) == begun
    assert len((await client.app.store.list_runs()).items) == 1


async def test_of_several_targets_the_one_that_is_meant_must_be_named(client: Client) -> None:
    await contest(client.app, "wheel", "db", source="one", prod="two", west="three")
    listed = await client.json("GET", "/syncs/wheel/conflicts")
    assert [item["target"] for item in listed["items"]] == ["prod", "west"]
    told = await client.json("POST", "/syncs/wheel/resolve", 409, body={"path": "db", "take": "target"})
    assert "prod" in told["detail"]
    assert "west" in told["detail"]
    body = {"path": "db", "take": "target", "target": "north"}
    assert "'north'" in (await client.json("POST", "/syncs/wheel/resolve", 404, body=body))["detail"]
    await client.json("POST", "/syncs/wheel/resolve", 202, body=body | {"target": "west"})
    assert {item["decided"] for item in (await client.json("GET", "/syncs/wheel/conflicts"))["items"]} == {"west"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "path: "),
        ({"path": "db"}, "take: "),
        ({"path": "db", "take": "both"}, "take: "),
        ({"path": "", "take": "source"}, "path: expected at least 1"),
        ({"path": "db", "take": "source", "target": "prod"}, "`target` goes with `take: target` only"),
        ({"path": "db", "take": "source", "force": True}, "unknown"),
    ],
)
async def test_a_bad_decision_is_explained(client: Client, body: Any, told: str) -> None:
    await contest(client.app, "both-ways", "db", source="one", prod="two")
    assert told in (await client.json("POST", f"{SYNC}/resolve", 400, body=body))["detail"]
    assert (await client.app.store.list_runs()).items == []


async def test_what_is_not_in_conflict_and_what_there_is_not_are_told_apart(client: Client) -> None:
    await contest(client.app, "both-ways", "db", source="one", prod="two")
    body = {"path": "other", "take": "source"}
    assert "not in conflict" in (await client.json("POST", f"{SYNC}/resolve", 409, body=body))["detail"]
    await client.json("POST", "/syncs/nowhere/resolve", 404, body=body)
    await client.json("GET", "/syncs/nowhere/conflicts", 404)
    await client.json("POST", f"{SYNC}/pause")
    told = await client.json("POST", f"{SYNC}/resolve", 409, body={"path": "db", "take": "source"})
    assert "is paused" in told["detail"]


async def test_the_history_tells_what_a_conflict_was_about(client: Client) -> None:
    await contest(client.app, "both-ways", "db", source="one", prod=None)
    (row,) = (await client.json("GET", f"{SYNC}/history"))["items"]
    assert (row["action"], row["status"]) == ("conflict", "conflict")
    assert row["detail"]["rule"] == "changed on several sides (conflict: manual)"
    assert row["detail"]["taken"] is None
    assert [(side["side"], side["digest"] is None) for side in row["detail"]["sides"]] == [
        ("source", False),
        ("prod", True),
    ]
    assert (await client.json("GET", f"{SYNC}/history", params={"status": "conflict"}))["items"] == [row]
