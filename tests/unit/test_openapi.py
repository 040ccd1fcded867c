"""GET /openapi.json: a valid document, which says of every route what the route does.

That answers are as described is checked wherever a test asks a route: `tests.openapi.hold`, in `tests.unit.apps.Client`.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import api
from shared.api import ROUTES
from shared.audit import to_record
from shared.http import Request, Response, Route
from shared.notices import AuditNotice, GapNotice
from shared.openapi import OPERATIONS, document
from tests import http_reference, openapi
from tests.examples import examples
from tests.openapi import closed, operation, problems
from tests.unit.apps import TWO_WAY, Client, contest, make_app, seed, working

ROOT = Path(__file__).resolve().parents[2]
SYNC = "/syncs/hub-to-prod"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with make_app(tmp_path) as app:
        yield Client(app)


def by_name(name: str) -> Route:
    return next(route for route in ROUTES if route.name == name)


def takes_json() -> list[Route]:
    """Routes whose body is checked against a model of `bodies`."""
    return [route for route in ROUTES if hasattr(OPERATIONS[route.name].body, "model_fields")]


def model(route: Route) -> dict[str, Any]:
    reference: str = operation(route)["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = document(ROUTES)["components"]["schemas"][reference.rpartition("/")[2]]
    return found


# --- the document -------------------------------------------------------------------------------------------------


def test_the_document_is_valid() -> None:
    assert document(ROUTES)["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document(ROUTES))


def test_every_route_is_described_and_nothing_else() -> None:
    assert {route.name for route in ROUTES} == set(OPERATIONS), "describe each route in shared/openapi.py"
    described = {
        (method, path): about["operationId"]
        for path, methods in document(ROUTES)["paths"].items()
        for method, about in methods.items()
    }
    assert described == {(route.method.lower(), f"/{route.template}"): route.name for route in ROUTES}


def test_what_wants_no_key_says_so_and_a_key_goes_in_either_place() -> None:
    found = document(ROUTES)
    assert found["security"] == [{"functionKey": []}, {"functionKeyInQuery": []}]
    schemes = found["components"]["securitySchemes"]
    assert {(each["in"], each["name"]) for each in schemes.values()} == {
        ("header", "x-functions-key"),
        ("query", "code"),
    }
    for route in ROUTES:
        about = operation(route)
        assert about.get("security") == (None if route.needs_key else [])
        assert ("401" in about["responses"]) == route.needs_key


async def test_it_is_served_without_a_key_and_is_the_same_for_every_installation(client: Client) -> None:
    response = await client.call("GET", "/openapi.json")
    assert json.loads(response.body) == document(ROUTES)
    assert not by_name("openapi").needs_key
    text = response.body.decode()
    for name in ("hub-to-prod", "by-hand", "resting", str(Path.home()), "localhost", "127.0.0.1"):
        assert name not in text.replace(json.dumps(OPERATIONS["events"].example["sync"]), "")


def test_it_speaks_to_people_who_have_no_source_code() -> None:
    assert re.findall(r"`?shared[./]\w+", json.dumps(document(ROUTES))) == []


def test_each_reference_leads_somewhere_and_each_schema_is_used() -> None:
    found = document(ROUTES)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert names == set(found["components"]["schemas"])


def test_nothing_of_it_is_made_before_it_is_asked_for() -> None:
    script = "import sys, function_app; print([name for name in sys.modules if name in " + repr(
        ("shared.openapi", "shared.shapes", "typing_extensions", "pydantic")
    )
    ended = subprocess.run([sys.executable, "-c", script + "])"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_page_is_made_from_it() -> None:
    committed = http_reference.PAGE.read_text("utf-8")
    assert committed == http_reference.page(), "the HTTP interface has changed; write the page anew: make reference"


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", takes_json(), ids=lambda route: route.name)
async def test_a_body_has_the_keys_that_are_described_and_no_others(client: Client, route: Route) -> None:
    path = "/" + route.template.replace("{id}", "hub-to-prod").replace("{run_id}", "no-such-run")
    told = await client.json(route.method, path, 400, body={"no_such_key": 1})
    assert "unknown key" in told["detail"]
    for key in model(route).get("properties", {}):
        told = await client.json(route.method, path, 400, body={key: {"of": "the wrong type"}})
        assert f"{key}:" in told["detail"]


def test_every_route_that_changes_something_has_its_body_described() -> None:
    assert {route.name for route in ROUTES if route.method == "POST"} == {
        name for name, about in OPERATIONS.items() if about.body is not None
    }
    assert {route.name for route in ROUTES if route.method == "POST"} - {route.name for route in takes_json()} == {
        "audit",
        "events",
    }


async def test_query_parameters_are_those_that_are_described(client: Client) -> None:
    def described(name: str, place: str = "query") -> dict[str, Any]:
        parameters = operation(by_name(name)).get("parameters", [])
        return {each["name"]: each["schema"] for each in parameters if each["in"] == place}

    told = await client.json("GET", f"{SYNC}/history", 400, params={"no-such": "1"})
    assert set(re.findall(r"'(\w+)'", told["detail"].partition("there are")[2])) == set(described("history"))
    told = await client.json("GET", f"{SYNC}/history", 400, params={"status": "none-of-them"})
    assert set(re.findall(r"'(\w+)'", told["detail"].partition("there are")[2])) == set(
        described("history")["status"]["enum"]
    )
    limits = described("history")["limit"]
    for limit, status in ((limits["minimum"] - 1, 400), (limits["minimum"], 200), (limits["maximum"] + 1, 400)):
        await client.json("GET", f"{SYNC}/history", status, params={"limit": str(limit)})
    for form in described("metrics")["format"]["enum"]:
        assert (await client.call("GET", "/metrics", params={"format": form})).status == 200
    told = await client.json("POST", "/audit", 400, params={"no-such": "1"}, body=[{}])
    assert f"the only query parameter is {next(iter(described('audit')))}" in told["detail"]


@pytest.mark.parametrize("name", [name for name, about in OPERATIONS.items() if about.example is not None])
def test_examples_are_such_as_the_schema_takes(name: str) -> None:
    content = operation(by_name(name))["requestBody"]["content"]["application/json"]
    assert problems(content["schema"], content["example"]) == []


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
vaults = st.none() | names


@given(
    st.builds(
        AuditNotice, names.map(lambda name: f"{name}/"), names, names, st.none() | st.integers(1, 9), st.none() | names
    )
    | st.builds(GapNotice, names, st.none() | names)
)
def test_what_the_relay_sends_is_described(notice: AuditNotice | GapNotice) -> None:
    record = to_record(notice)
    schema = operation(by_name("audit"))["requestBody"]["content"]["application/x-ndjson"]["schema"]
    ours = [each for each in schema["anyOf"] if "$ref" in each]
    assert len(ours) == 2
    assert [problems(each, record) == [] for each in ours].count(True) == 1


# --- answers ------------------------------------------------------------------------------------------------------


async def test_each_answer_that_is_described_is_given(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tour of all routes: with `hold`, it finds an answer that is described and never given, or given otherwise."""
    seen: set[tuple[str, str, str]] = set()

    def note(route: Route, request: Request, response: Response) -> None:
        openapi.hold(route, request, response)
        seen.add((route.name, str(response.status), response.headers["Content-Type"].partition(";")[0]))

    monkeypatch.setattr("tests.unit.apps.hold", note)
    app = client.app
    await seed(app, "hub", {f"apps/{number}": "1" for number in range(10)})
    async with working(app):
        begun = await client.json("POST", f"{SYNC}/execute", 202)
        await client.ended(begun["run_id"])
        hub = await app.vaults.get("hub")
        for number in range(8):
            await hub.delete_secret(f"apps/{number}")
        held = await client.json("POST", f"{SYNC}/execute", 202)
        await client.ended(held["run_id"])
        planned = await client.json("POST", f"{SYNC}/plan", 202)
        await client.ended(planned["run_id"])
        assert (await client.json("GET", f"{SYNC}/plan"))["items"]
        assert (await client.json("GET", f"{SYNC}/history", params={"limit": "3"}))["next_cursor"]
        approved = await client.json("POST", f"/runs/{held['run_id']}/approve", 202)
        await client.ended(approved["run_id"])
    await client.json("POST", f"{SYNC}/replay", 202, body={"path": "9"})
    active = await client.json("POST", f"{SYNC}/execute", 202)
    for path in ("/syncs", SYNC, f"{SYNC}/status", f"/runs/{active['run_id']}", "/metrics", "/health", "/openapi.json"):
        await client.json("GET", path)
    await client.call("GET", "/metrics", params={"format": "prometheus"})
    await client.json("POST", f"/runs/{active['run_id']}/cancel")
    await client.json("POST", f"{SYNC}/pause")
    await client.json("POST", f"{SYNC}/resume")
    (tmp_path / "two-way").mkdir()
    async with make_app(tmp_path / "two-way", TWO_WAY) as other:
        await contest(other, "both-ways", "9", source="1", prod=None)
        there = Client(other)
        assert (await there.json("GET", "/syncs/both-ways/history"))["items"][0]["detail"]["sides"]
        assert (await there.json("GET", "/syncs/both-ways/conflicts"))["items"][0]["sides"]
        await there.json("POST", "/syncs/both-ways/resolve", 202, body={"path": "9", "take": "source"})
    await client.json("POST", "/events", 202, body={"sync": "hub-to-prod", "path": "9"})
    await client.json("POST", "/audit", 202, body=[{"vaultferry": "gap", "why": "a test"}])
    assert (await client.call("GET", "/health")).status == 200
    missing = {
        (route.name, status, kind)
        for route in ROUTES
        for status, about in operation(route)["responses"].items()
        for kind in about["content"]
        if int(status) < 400
    } - seen
    assert missing == set(), "call it here, so that its answer is held to what is described"


def test_an_answer_that_is_not_as_described_is_found() -> None:
    route, request = by_name("pause"), Request("/syncs/s/pause", "POST")
    fine = {"sync_id": "s", "paused": True}
    openapi.hold(route, request, api.json_response(fine))
    for status, content, headers in (
        (201, fine, {}),
        (200, fine | {"more": 1}, {}),
        (200, {"sync_id": "s"}, {}),
        (200, fine | {"paused": "yes"}, {}),
        (200, fine, {"X-More": "1"}),
        (200, fine, {"Content-Type": "text/html"}),
    ):
        with pytest.raises(AssertionError, match="described"):
            openapi.hold(route, request, api.json_response(content, status, headers))


def test_steps_and_settings_that_hold_keys_are_not_described() -> None:
    schemas = closed()["components"]["schemas"]
    assert set(schemas["Decrypt"]["properties"]) == {"step", "fields"}
    assert "constants" not in schemas["FieldRules"]["properties"]
    assert "template" not in schemas["Build"]["properties"]


# --- whatever is asked ----------------------------------------------------------------------------------------------

texts = st.text(max_size=12) | st.sampled_from(["hub-to-prod", "resting", "prod", "9", "2026-01-01", "json", "in_sync"])
known_keys = st.sampled_from(
    sorted(
        {key for schema in document(ROUTES)["components"]["schemas"].values() for key in schema.get("properties", {})}
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | known_keys, inner, max_size=3),
    max_leaves=6,
)
known_parameters = st.sampled_from(
    sorted({each["name"] for route in ROUTES for each in operation(route).get("parameters", ())})
)
asked = st.tuples(
    st.sampled_from(ROUTES),
    st.dictionaries(st.sampled_from(["id", "run_id"]), texts),
    st.dictionaries(texts | known_parameters, texts, max_size=3),
    st.dictionaries(texts | known_parameters.map(str.lower), texts, max_size=2),
    st.binary(max_size=20) | json_values.map(lambda value: json.dumps(value).encode()),
)


@given(st.lists(asked, min_size=10, max_size=40))
@settings(max_examples=examples(25))
def test_whatever_is_asked_is_answered_as_described_and_nothing_breaks(requests: list[Any]) -> None:
    async def ask(folder: Path) -> None:
        async with make_app(folder) as app:
            client = Client(app)
            for route, named, params, headers, body in requests:
                given = {"id": "hub-to-prod", "run_id": "r", **named}
                request = Request(f"/{route.template}", route.method, given, params, headers, body)
                response = await api.answer(route, client, request)
                openapi.hold(route, request, response)
                assert response.status != 500, request

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(ask(Path(folder)))
