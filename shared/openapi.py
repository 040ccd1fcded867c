"""The HTTP interface as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0): what GET /openapi.json answers.

Made from the routes, from the models that requests are checked against, from the shapes that answers are built to and from
the frozen settings that they show. What those do not say stands in `OPERATIONS`; a route that is not there has no place in
the document, and a test says so. Nothing of an installation is in it: neither its names nor its address.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from shared import VERSION, bodies, shapes
from shared.http import JSON_TYPE, MAX_LIMIT, PROBLEM_TYPE, RETRY_AFTER, Route
from shared.intake import BATCH, MAX_ENTRIES, MAX_SENT, MAX_UNPACKED, SIGNATURE, TIMESTAMP, Counts
from shared.model import ObjectStatus, Sync
from shared.rules import KEYS

LINES_TYPE = "application/x-ndjson"
TEXT_TYPE = "text/plain"

Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a request may say beside its body."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route does, and what code does not tell of it."""

    tag: str
    summary: str
    answers: Mapping[int, Any]
    """Types of answers, by status."""
    description: str = ""
    body: Any = None
    """The type of a request's body."""
    also_lines: Any = None
    """Where a body may be JSON Lines as well: the type of a line."""
    example: Any = None
    parameters: tuple[Parameter, ...] = ()
    problems: Mapping[int, str] = field(default_factory=dict)
    """Why a request is not granted, by status, beside what any route may answer."""
    located: bool = False
    """Whether the answer says where what was begun is found."""
    also_text: bool = False
    """Whether the answer may be text."""


_BODY = {
    400: "The body is no JSON object, or has a key that is unknown or of the wrong type.",
    413: "The body is too large.",
}
_BEGINS = {409: "The sync is paused or disabled."}
_QUERY = {400: "A query parameter that is unknown, or a value that is none of those it takes."}
_PAGED = (
    Parameter("limit", "Rows of one answer.", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100}),
    Parameter("cursor", "`next_cursor` of the answer before."),
)
_PATH = Parameter("path", "Of this secret only: its path below the source's prefix.")
_GZIP = Parameter("Content-Encoding", "How the body is packed.", {"enum": ["gzip", "identity"]}, "header")
_TOLD = {
    400: "Nothing of the body can be read.",
    404: "There is no such sync or vault in the configuration.",
    413: f"The body has more than {MAX_SENT >> 20} MiB, unpacks to more than {MAX_UNPACKED >> 20} MiB, or has more than "
    f"{MAX_ENTRIES:,} entries: send smaller batches.",
    415: "A Content-Encoding other than gzip.",
}

OPERATIONS: Mapping[str, Operation] = {
    "health": Operation(
        "Monitoring",
        "Whether all is well",
        {200: shapes.HealthReport, 503: shapes.HealthReport},
        description="200: it works, or it works with something to look after. 503: nothing can be carried. Monitors can "
        "go by the status code.",
    ),
    "openapi": Operation("Monitoring", "This document", {200: shapes.Document}, description="OpenAPI 3.1."),
    "metrics": Operation(
        "Monitoring",
        "Numbers, as JSON or as Prometheus reads them",
        {200: shapes.MetricsReport},
        parameters=(
            Parameter(
                "format",
                "Default: as `Accept` says, else json.",
                {"type": "string", "enum": ["json", "prometheus"]},
            ),
        ),
        problems={400: "No such format."},
        also_text=True,
    ),
    "syncs": Operation("Syncs", "All syncs, as they are configured", {200: shapes.SyncList}),
    "sync": Operation("Syncs", "One sync, as it is configured", {200: shapes.SyncReport}),
    "status": Operation("Syncs", "How a sync is doing", {200: shapes.StatusReport}),
    "execute": Operation(
        "Syncs",
        "Start a run",
        {202: shapes.RunBegun},
        description="While a run of the sync is on its way, that one is the answer.",
        body=bodies.Execute,
        example={"dry_run": True},
        problems=_BODY | _BEGINS,
        located=True,
    ),
    "make_plan": Operation(
        "Syncs",
        "Make a plan",
        {202: shapes.RunBegun},
        description="A run that writes nothing: the same as execute with `dry_run`.",
        body=bodies.Nothing,
        problems=_BODY | {409: "The sync is disabled."},
        located=True,
    ),
    "plan": Operation(
        "Syncs",
        "The newest finished plan",
        {200: shapes.PlanReport},
        problems={404: "There is no such sync, or it has no finished plan."},
    ),
    "history": Operation(
        "Syncs",
        "What was done, newest first",
        {200: shapes.HistoryPage},
        parameters=(
            _PATH,
            Parameter(
                "status", "Rows of this status only.", {"type": "string", "enum": [str(each) for each in ObjectStatus]}
            ),
            Parameter(
                "since",
                "Not older than this: a date or a time in ISO 8601, in UTC unless it says otherwise.",
            ),
            *_PAGED,
        ),
        problems=_QUERY,
    ),
    "conflicts": Operation(
        "Syncs",
        "What is in conflict",
        {200: shapes.ConflictPage},
        description="By target, then by path.",
        parameters=_PAGED,
        problems=_QUERY,
    ),
    "pause": Operation(
        "Syncs",
        "Begin no more runs",
        {200: shapes.PauseReport},
        description="What is on its way ends as usual. Events are kept until it is resumed.",
        body=bodies.Nothing,
        problems=_BODY,
    ),
    "resume": Operation("Syncs", "Begin runs again", {200: shapes.PauseReport}, body=bodies.Nothing, problems=_BODY),
    "replay": Operation(
        "Syncs",
        "Try again what failed, or one secret",
        {202: shapes.RunBegun},
        body=bodies.Replay,
        example={"path": "shop/db"},
        problems=_BODY | {409: "The sync is paused or disabled, or nothing failed."},
        located=True,
    ),
    "resolve": Operation(
        "Syncs",
        "Settle a conflict of a two-way sync",
        {202: shapes.RunBegun},
        description="All sides get what the side that is taken held when the conflict was found. The answer is the run that "
        "carries it out, or the one that is on its way: then another follows it. It lapses where another side has changed "
        "since.",
        body=bodies.Resolve,
        example={"path": "shop/db", "take": "source"},
        problems=_BODY
        | {
            404: "There is no such sync, or it has no such target.",
            409: "The sync is paused, disabled or one-way, the secret is not in conflict, or `target` must say which is "
            "meant.",
        },
        located=True,
    ),
    "run": Operation("Runs", "A run", {200: shapes.RunReport}),
    "cancel": Operation(
        "Runs",
        "Stop a run",
        {200: shapes.RunReport},
        description="What is being written this moment is still written.",
        body=bodies.Nothing,
        problems=_BODY | {409: "It has ended already."},
    ),
    "approve": Operation(
        "Runs",
        "Carry out the deletes that a run holds back",
        {202: shapes.RunBegun},
        description="Exactly the recorded ones; each is looked at again before.",
        body=bodies.Nothing,
        problems=_BODY | {409: "It holds none back, or something else is in the way."},
        located=True,
    ),
    "audit": Operation(
        "Events",
        "What Vault's audit log says, or the relay",
        {202: Counts},
        description="Takes the relay's records or entries of Vault's audit log: a JSON array, one object, or one a line. "
        "The answer comes when all that was accepted is durably queued. With VAULTFERRY_AUDIT_SECRET set, requests are "
        "signed, and the three headers are required. A batch that was taken is known for a day.",
        body=list[shapes.ChangeRecord | shapes.GapRecord | shapes.Document],
        also_lines=shapes.ChangeRecord | shapes.GapRecord | shapes.Document,
        parameters=(
            Parameter("vault", "The vault of the configuration that all entries come from."),
            _GZIP,
            Parameter(TIMESTAMP, "Whole seconds since 1970, at most five minutes off.", {"type": "integer"}, "header"),
            Parameter(
                BATCH,
                "The sender's id for the batch. One that was taken before is counted as duplicate.",
                {"type": "string", "pattern": "^[!-~]{1,100}$"},
                "header",
            ),
            Parameter(
                SIGNATURE,
                "HMAC-SHA256 of `timestamp.batch.body`, the body as it is sent, in hex.",
                {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
                "header",
            ),
        ),
        problems=_TOLD | {401: "The function key or the signature is missing or wrong, or its time is too far off."},
    ),
    "events": Operation(
        "Events",
        "Something may have changed: look there",
        {202: Counts},
        description="The answer comes when all that was accepted is durably queued.",
        body=bodies.Look | list[bodies.Look],
        example={"sync": "hub-to-prod", "path": "shop/db"},
        parameters=(_GZIP,),
        problems=_TOLD | {409: "The sync is disabled."},
    ),
}
"""By the names of routes."""

TAGS = {
    "Monitoring": "How the installation is doing.",
    "Syncs": "What is carried where.",
    "Runs": "One execution of a sync.",
    "Events": "Hints that something changed.",
}
IN_PATHS = {"id": "The id of a sync, as the configuration has it.", "run_id": "The id of a run."}
DESCRIPTION = """\
Version 1: what is added keeps everything as it was; a change that breaks something would come under /v2.

Each route but /health and this document wants the function key. On Azure it is a key of the function app, and the host \
itself answers a wrong one; `vaultferry serve` compares with VAULTFERRY_API_KEY, and without that answers this machine \
only. Lists are `items` with a `next_cursor`. Times are UTC. What is not granted is answered with a problem (RFC 9457) \
that says what to do. No answer holds the value of a secret."""


@cache
def document(routes: tuple[Route, ...]) -> Node:
    """The whole document of an interface with these routes. Not to be changed."""
    operations = {route.name: OPERATIONS[route.name] for route in routes}
    schemas, components = _schemas(list(operations.values()))
    paths: dict[str, Node] = {}
    for route in routes:
        path = paths.setdefault(f"/{route.template}", {})
        path[route.method.lower()] = _operation(route, operations[route.name], schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vaultferry",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "security": [{"functionKey": []}, {"functionKeyInQuery": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "functionKey": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
                "functionKeyInQuery": {"type": "apiKey", "in": "query", "name": "code"},
            },
        },
    }


# --- operations ---------------------------------------------------------------------------------------------------


def _operation(route: Route, about: Operation, schemas: Mapping[str, Node]) -> Node:
    parameters = [
        {"name": name, "in": "path", "required": True, "description": IN_PATHS[name], "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ]
    parameters += [
        {"name": each.name, "in": each.place, "description": each.description, "schema": dict(each.schema)}
        for each in about.parameters
    ]
    found: Node = {
        "operationId": route.name,
        "tags": [about.tag],
        "summary": about.summary,
        **({"description": about.description} if about.description else {}),
        **({"parameters": parameters} if parameters else {}),
        "responses": _responses(route, about, schemas),
    }
    if about.body is not None:
        content: Node = {JSON_TYPE: {"schema": schemas[_key(about.body)]}}
        if about.example is not None:
            content[JSON_TYPE]["example"] = about.example
        if about.also_lines is not None:
            content[LINES_TYPE] = {"schema": schemas[_key(about.also_lines)]}
        found["requestBody"] = {"required": _needed(about.body), "content": content}
    if not route.needs_key:
        found["security"] = []
    return found


def _responses(route: Route, about: Operation, schemas: Mapping[str, Node]) -> Node:
    problems = {
        **({401: "The function key is missing or wrong."} if route.needs_key else {}),
        **({404: "There is no such sync."} if "{id}" in route.template else {}),
        **({404: "There is no such run."} if "{run_id}" in route.template else {}),
        500: "Something unexpected; the log says more.",
        **({503: "The store does not answer, or the configuration can not be used."} if route.needs_key else {}),
        **about.problems,
    }
    found: Node = {}
    for status, type_ in about.answers.items():
        content: Node = {JSON_TYPE: {"schema": schemas[_key(type_)]}}
        if about.also_text:
            content[TEXT_TYPE] = {"schema": {"type": "string"}}
        found[str(status)] = {"description": f"{HTTPStatus(status).phrase}.", "content": content}
        if about.located:
            described = "Where to look how it is going: /runs/{run_id}."
            found[str(status)]["headers"] = {"Location": {"description": described, "schema": {"type": "string"}}}
    for status, why in sorted(problems.items()):
        content = {PROBLEM_TYPE: {"schema": schemas[_key(shapes.ProblemDetails)]}}
        found[str(status)] = {"description": why, "content": content, **_with_headers(status)}
    return found


def _with_headers(status: int) -> Node:
    told = {
        415: ("Accept-Encoding", "What is taken."),
        503: ("Retry-After", f"Seconds to wait, where waiting helps: {RETRY_AFTER}."),
    }
    if status not in told:
        return {}
    name, described = told[status]
    return {"headers": {name: {"description": described, "schema": {"type": "string"}}}}


def _needed(body: Any) -> bool:
    """Whether a request without a body says too little."""
    fields = getattr(body, "model_fields", None)
    return fields is None or any(each.is_required() for each in fields.values())


# --- schemas ------------------------------------------------------------------------------------------------------


class _Schemas(GenerateJsonSchema):
    """What a program that reads the document wants to know, and no more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        """As `shared.api` shows settings: without what their repr leaves out, and steps with their names."""
        found = super().dataclass_schema(schema)
        steps: Mapping[Any, str] = KEYS
        shown = {each.name: found["properties"][each.name] for each in dataclasses.fields(schema["cls"]) if each.repr}
        for node in shown.values():
            node.pop("default", None)
        if schema["cls"] in steps:
            shown = {"step": {"const": steps[schema["cls"]]}, **shown}
        return found | {"properties": shown, "required": list(shown)}


def _schemas(operations: list[Operation]) -> tuple[dict[str, Node], Node]:
    """References to the schemas of all types, by `_key`, and what they refer to."""
    read = [each for about in operations for each in (about.body, about.also_lines) if each is not None]
    built = [shapes.ProblemDetails, Sync, *(each for about in operations for each in about.answers.values())]
    inputs = {_key(each): _input(each, "validation") for each in read}
    inputs |= {_key(each): _input(each, "serialization") for each in built}
    found, whole = TypeAdapter.json_schemas(
        list(inputs.values()), ref_template="#/components/schemas/{model}", schema_generator=_Schemas
    )
    components = whole["$defs"]
    settings = components.pop("Sync")
    settings["properties"].pop("id")
    report = components["SyncReport"]
    report["properties"] |= settings["properties"]
    report["required"] = list(report["properties"])
    return {key: node["items"] for (key, _), node in found.items()}, dict(sorted(components.items()))


def _input(type_: Any, mode: JsonSchemaMode) -> tuple[str, JsonSchemaMode, TypeAdapter[Any]]:
    # A list of it, because a dataclass of its own would take no configuration.
    return _key(type_), mode, TypeAdapter(list[type_], config=ConfigDict(use_attribute_docstrings=True))


def _key(type_: Any) -> str:
    return repr(type_)
