"""Answers of the routes, held to the OpenAPI document: whatever a test calls is checked along the way."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from shared.api import ROUTES
from shared.http import Request, Response, Route
from shared.openapi import document

ADVICE = "say so in shared/openapi.py or shared/shapes.py, then `make reference`"


@cache
def closed() -> dict[str, Any]:
    """The document, but with schemas that take no key which they do not name."""
    found = copy.deepcopy(document(ROUTES))
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found


def problems(schema: Any, instance: Any) -> list[str]:
    """What is wrong with a value, by a schema that the document holds. No value is quoted."""
    # As one JSON Schema with the document around it, so that its references lead somewhere.
    whole = {**closed(), "allOf": [schema]}
    found = Draft202012Validator(whole).iter_errors(instance)
    named = ("additionalProperties", "required")
    return [f"{each.json_path}: {each.message if each.validator in named else each.validator}" for each in found]


def operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = closed()["paths"][f"/{route.template}"][route.method.lower()]
    return found


def hold(route: Route, request: Request, response: Response) -> None:
    """Fails where an answer is another than the document says."""
    if request.method != route.method:
        return
    place = f"{route.method} /{route.template}: {response.status}"
    described = operation(route)["responses"].get(str(response.status))
    assert described is not None, f"{place} is not described: {ADVICE}"
    kind = response.headers["Content-Type"].partition(";")[0]
    assert kind in described["content"], f"{place} as {kind} is not described: {ADVICE}"
    told = set(response.headers) - {"Content-Type", "Cache-Control", *described.get("headers", ())}
    assert told == set(), f"{place} has headers that are not described: {ADVICE}"
    if kind.endswith("json"):
        wrong = problems(described["content"][kind]["schema"], json.loads(response.body))
        assert wrong == [], f"{place} is not as described ({'; '.join(wrong[:5])}): {ADVICE}"
