"""Bicep without its compiler: what a file declares and uses, and the values of simple expressions.

Only the subset that infra/ is written in. `az bicep build` alone knows the types of resources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser

_PARSER = Parser(Language(tree_sitter_bicep.language()))


def text(node: Node | None) -> str:
    assert node is not None
    assert node.text is not None
    return node.text.decode()


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def plain(node: Node) -> str:
    """The text of a string without interpolation."""
    assert node.type == "string", node.type
    assert all(part.type in ("'", "string_content", "escape_sequence") for part in node.children), text(node)
    return text(node)[1:-1].replace("\\'", "'")


@dataclass(frozen=True)
class Parameter:
    type: str
    required: bool
    secure: bool
    described: bool


@dataclass(frozen=True)
class Resource:
    type: str
    version: str
    existing: bool
    body: Node


@dataclass(frozen=True)
class Module:
    path: str
    given: dict[str, Node]
    body: Node


class Bicep:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.read_text("utf-8")
        self.root = _PARSER.parse(self.source.encode()).root_node

    @property
    def broken(self) -> list[str]:
        return [f"line {node.start_point[0] + 1}" for node in walk(self.root) if node.is_error or node.is_missing]

    def _declarations(self, kind: str) -> Iterator[tuple[Node, Node | None]]:
        decorators: Node | None = None
        for node in self.root.children:
            if node.type == f"{kind}_declaration":
                yield node, decorators
            decorators = node if node.type == "decorators" else None

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        return {
            text(node.children[1]): Parameter(
                text(node.children[2]),
                not any(child.type == "=" for child in node.children),
                decorators is not None and "@secure()" in text(decorators),
                decorators is not None and "@description(" in text(decorators),
            )
            for node, decorators in self._declarations("parameter")
        }

    @cached_property
    def defaults(self) -> dict[str, Node]:
        return {
            text(node.children[1]): node.children[-1]
            for node, _ in self._declarations("parameter")
            if any(child.type == "=" for child in node.children)
        }

    @cached_property
    def variables(self) -> dict[str, Node]:
        return {text(node.children[1]): node.children[-1] for node, _ in self._declarations("variable")}

    @cached_property
    def outputs(self) -> dict[str, Node]:
        return {text(node.children[1]): node.children[-1] for node, _ in self._declarations("output")}

    @cached_property
    def resources(self) -> dict[str, Resource]:
        found = {}
        for node, _ in self._declarations("resource"):
            kind, _, version = plain(node.children[2]).partition("@")
            existing = any(child.type == "existing" for child in node.children)
            found[text(node.children[1])] = Resource(kind, version, existing, body(node.children[-1]))
        return found

    @cached_property
    def modules(self) -> dict[str, Module]:
        found = {}
        for node, _ in self._declarations("module"):
            inside = body(node.children[-1])
            given = properties(properties(inside)["params"])
            found[text(node.children[1])] = Module(plain(node.children[2]), given, inside)
        return found

    @property
    def declared(self) -> list[str]:
        return [*self.parameters, *self.variables, *self.resources, *self.modules]

    def used(self) -> set[str]:
        """Names that expressions speak of, without functions and without what loops and lambdas bring along."""
        found: set[str] = set()
        for node in self.root.children:
            if node.type.endswith("_declaration"):
                # The first name is the declared one itself.
                for child in node.children[2:]:
                    found |= _names(child, frozenset())
            elif node.type == "decorators":
                found |= _names(node, frozenset())
        return found

    def value(self, node: Node, given: Mapping[str, Any]) -> Any:
        """What an expression comes to. `given` has the values of parameters, and of resources and modules if needed."""
        return _Evaluation(self, given).of(node)


def body(node: Node) -> Node:
    """The object of a declaration: behind its condition, within its loop."""
    while node.type != "object":
        node = next(
            child for child in reversed(node.children) if child.type in ("object", "if_statement", "for_statement")
        )
    return node


def properties(node: Node) -> dict[str, Node]:
    assert node.type == "object", node.type
    found = {}
    for child in node.children:
        if child.type == "object_property":
            key = child.children[0]
            found[text(key) if key.type == "identifier" else text(key)[1:-1]] = child.children[-1]
    return found


def at(node: Node, *path: str) -> Node | None:
    """What an object holds at a path of keys."""
    found: Node | None = node
    for key in path:
        if found is None or found.type != "object":
            return None
        found = properties(found).get(key)
    return found


def _bound(node: Node) -> set[str]:
    """What a loop or a lambda brings along."""
    if node.type == "lambda_expression":
        return {text(node.children[0])}
    parameters = node.children[2]
    if parameters.type == "for_loop_parameters":
        return {text(child) for child in parameters.children if child.type in ("loop_variable", "loop_enumerator")}
    return {text(parameters)}


def _names(node: Node, bound: frozenset[str]) -> set[str]:
    if node.type == "identifier":
        return {text(node)} - bound
    if node.type == "type":
        return set()
    children = list(node.children)
    if node.type in ("call_expression", "object_property") and children[0].type == "identifier":
        children = children[1:]
    if node.type in ("for_statement", "lambda_expression"):
        bound |= _bound(node)
    return {name for child in children for name in _names(child, bound)}


class _Evaluation:
    def __init__(self, file: Bicep, given: Mapping[str, Any]) -> None:
        self._file = file
        self._given = given

    def of(self, node: Node) -> Any:
        return getattr(self, f"_{node.type}")(node)

    def within(self, **names: Any) -> _Evaluation:
        return _Evaluation(self._file, {**self._given, **names})

    def _identifier(self, node: Node) -> Any:
        name = text(node)
        if name in self._given:
            return self._given[name]
        known = self._file.variables | self._file.defaults
        return self.of(known[name])

    def _string(self, node: Node) -> str:
        parts = [
            str(self.of(part.children[1])) if part.type == "interpolation" else text(part).replace("\\'", "'")
            for part in node.children[1:-1]
        ]
        return "".join(parts)

    def _number(self, node: Node) -> int:
        return int(text(node))

    def _boolean(self, node: Node) -> bool:
        return text(node) == "true"

    def _null(self, _: Node) -> None:
        return None

    def _array(self, node: Node) -> list[Any]:
        return [self.of(child) for child in node.named_children if child.type != "comment"]

    def _object(self, node: Node) -> dict[str, Any]:
        return {key: self.of(value) for key, value in properties(node).items()}

    def _parenthesized_expression(self, node: Node) -> Any:
        return self.of(node.children[1])

    def _for_statement(self, node: Node) -> list[Any]:
        (name,) = _bound(node)
        items = self.of(node.children[node.children.index(next(c for c in node.children if c.type == "in")) + 1])
        return [self.within(**{name: item}).of(node.children[-2]) for item in items]

    def _ternary_expression(self, node: Node) -> Any:
        return self.of(node.children[2] if self.of(node.children[0]) else node.children[4])

    def _unary_expression(self, node: Node) -> bool:
        assert text(node.children[0]) == "!"
        return not self.of(node.children[1])

    def _binary_expression(self, node: Node) -> Any:
        left, operator, right = node.children
        match text(operator):
            case "&&":
                return self.of(left) and self.of(right)
            case "==":
                return self.of(left) == self.of(right)
        raise NotImplementedError(text(operator))

    def _subscript_expression(self, node: Node) -> Any:
        return self.of(node.children[0])[self.of(node.children[2])]

    def _member_expression(self, node: Node) -> Any:
        if node.children[0].type == "lambda_expression":
            # The parser takes `x => x.key` for `(x => x).key`.
            function = self.of(node.children[0])
            return lambda item: function(item)[text(node.children[-1])]
        return self.of(node.children[0])[text(node.children[-1])]

    def _lambda_expression(self, node: Node) -> Any:
        name = text(node.children[0])
        return lambda item: self.within(**{name: item}).of(node.children[-1])

    def _call_expression(self, node: Node) -> Any:
        function, arguments = node.children
        values = [self.of(child) for child in arguments.named_children if child.type != "comment"]
        match text(function), values:
            case "concat", lists:
                return [item for each in lists for item in each]
            case "union", objects:
                return {key: value for each in objects for key, value in each.items()}
            case "contains", [there, what]:
                return what in there
            case "empty", [what]:
                return not what
            case "items", [mapping]:
                return [{"key": key, "value": mapping[key]} for key in sorted(mapping)]
            case "toObject", [items, key, value]:
                return {key(item): value(item) for item in items}
            case "replace", [where, old, new]:
                return where.replace(old, new)
            case "string", [what]:
                return json.dumps(what, separators=(",", ":"))
            case "loadJsonContent", [path]:
                return json.loads((self._file.path.parent / path).read_text("utf-8"))
            case "environment", []:
                return self._given["environment"]
            case "guid" | "uniqueString" | "resourceGroup" | "subscription", _:
                return {"id": "id", "location": "westeurope", "tenantId": "tenant"} if not values else "token"
        raise NotImplementedError(text(function))
