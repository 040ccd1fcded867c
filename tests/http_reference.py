"""docs/http.md, made from the OpenAPI document: `make reference` after every change to a route, a body or an answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.api import ROUTES
from shared.openapi import document
from tests.reference import anchor

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "http.md"

INTRODUCTION = """\
# HTTP reference

<!-- Made by `make reference` from the OpenAPI document; what is written here by hand is lost. -->

What a function app and `vaultferry serve` answer, without `/api` in front. The same as OpenAPI 3.1, for programs: `GET
/openapi.json`. It needs no key, because it tells what the published source tells, and nothing of an installation.

```console
$ curl -H "x-functions-key: $VAULTFERRY_API_KEY" "$URL/syncs"
$ curl -X POST -H "x-functions-key: $VAULTFERRY_API_KEY" -d '{"dry_run": true}' "$URL/syncs/hub-to-prod/execute"
```
"""
EVERYWHERE = """\
Any route may also answer with [ProblemDetails](#problemdetails) and one of these:

| status | meaning |
| --- | --- |
"""

Node = Mapping[str, Any]


def page() -> str:
    whole = document(ROUTES)
    operations = [
        (f"{method.upper()} {path}", about)
        for path, methods in whole["paths"].items()
        for method, about in methods.items()
    ]
    common = _common(operations)
    told = EVERYWHERE + "\n".join(f"| {status} | {_cell(why)} |" for status, why in sorted(common))
    parts = [INTRODUCTION, whole["info"]["description"], told, "## Routes", _routes(operations)]
    for tag in whole["tags"]:
        parts += [f"## {tag['name']}", tag["description"]]
        for title, about in operations:
            if tag["name"] in about["tags"]:
                parts += [f"### {title}", *_operation(about, common)]
    parts += [
        "## Shapes",
        "Keys that are not marked as optional are always there. A new version may add others.",
    ]
    for name, schema in whole["components"]["schemas"].items():
        if schema.get("properties"):
            parts += [f"### {name}", schema.get("description", ""), _keys(schema)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _routes(operations: list[tuple[str, Node]]) -> str:
    rows = [f"| [`{title}`](#{anchor(title)}) | {_cell(about['summary'])} |" for title, about in operations]
    return "\n".join(["| route | |", "| --- | --- |", *rows])


def _common(operations: list[tuple[str, Node]]) -> set[tuple[str, str]]:
    """What all routes but one or two may answer with: status and meaning."""
    counted = Counter(
        (status, each["description"]) for _, about in operations for status, each in about["responses"].items()
    )
    return {told for told, count in counted.items() if int(told[0]) >= 400 and count >= len(operations) - 3}


def _operation(about: Node, common: set[tuple[str, str]]) -> Iterator[str]:
    yield f"{about['summary']}." + (" No key." if about.get("security") == [] else "")
    yield about.get("description", "")
    if parameters := [each for each in about.get("parameters", ()) if each["in"] != "path"]:
        yield _table(
            ("parameter", "in", "type", "meaning"),
            [(f"`{each['name']}`", each["in"], _type(each["schema"]), each["description"]) for each in parameters],
        )
    if "requestBody" in about:
        yield _body(about["requestBody"])
    yield _table(
        ("status", "answer", "meaning"),
        [
            (status, _content(answer), answer["description"] + _headers(answer))
            for status, answer in about["responses"].items()
            if (status, answer["description"]) not in common
        ],
    )


def _body(body: Node) -> str:
    content = body["content"]["application/json"]
    text = f"Body{'' if body['required'] else ' (optional)'}: {_type(content['schema'])}"
    text += "; or one of these a line" if "application/x-ndjson" in body["content"] else ""
    if "example" in content:
        text += f", such as `{json.dumps(content['example'])}`"
    return "" if content["schema"].get("$ref", "").endswith("/Nothing") else f"{text}."


def _content(answer: Node) -> str:
    kinds = []
    for kind, held in answer["content"].items():
        kinds.append(_type(held["schema"]) if kind.endswith("json") else f"`{kind}`")
    return " or ".join(kinds)


def _headers(answer: Node) -> str:
    return "".join(f" Header `{name}`: {about['description']}" for name, about in answer.get("headers", {}).items())


def _keys(schema: Node) -> str:
    required = schema.get("required", ())
    return _table(
        ("key", "type", "meaning"),
        [
            (
                f"`{key}`" + ("" if key in required else " (optional)"),
                _type(node),
                node.get("description", "")
                + (f" Default: `{json.dumps(node['default'])}`." if "default" in node else ""),
            )
            for key, node in schema["properties"].items()
        ],
    )


def _type(node: Node) -> str:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        schema = document(ROUTES)["components"]["schemas"][name]
        return _type(schema) if "enum" in schema else f"[{name}](#{anchor(name)})"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{each}`" for each in node["enum"])
    if "anyOf" in node:
        return " or ".join(_type(each) for each in node["anyOf"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if node.get("type") == "object":
        inside = node.get("additionalProperties")
        return f"object of {_type(inside)}" if isinstance(inside, dict) else "object"
    names = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    kind = names.get(node["type"], node["type"])
    return {"date-time": "time"}.get(node.get("format", ""), kind)


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *(tuple(_cell(each) for each in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
