"""YAML text → plain data, with the line of everything in it, and with the environment filled in.

Narrower than YAML on purpose. Scalars stay text, for the models alone know what a key holds: `on`, `0123`, `1.10` and
`2024-01-01` mean what they say, `${N:-4}` can stand where a number is expected, and a value can never become
structure. Tags, several documents, keys given twice and aliases that multiply are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from shared.config.problems import InvalidConfig, Place, Problem, dotted, presentable
from shared.references import WHAT_TO_DO, is_unresolved

MAX_BYTES = 1_000_000
"""Of a configuration file. Checked before it is parsed."""
MAX_NODES = 100_000
"""Keys and values in a file, those that aliases repeat included."""
MAX_DEPTH = 40

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = ("", "~", "null", "Null", "NULL")
_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^}]*))?\})?")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data and where it came from."""

    data: dict[str, Any]
    lines: Mapping[Place, int]
    from_environment: frozenset[Place]
    """The scalars that took their text from the environment."""
    reported: frozenset[Place]
    """The scalars whose reference could not be resolved, and that `problems` speaks of already."""
    problems: tuple[Problem, ...]

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest thing around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place)


def read_document(raw: bytes, environment: Mapping[str, str], file: str) -> Document:
    """Parse a file's bytes. Raises InvalidConfig where there is nothing to go on with."""
    try:
        root = _top_level(_compose(_decode(raw)))
        expansion = _Expansion(environment, file)
        data = expansion.expand(root, ())
    except _Refused as refused:
        raise InvalidConfig([Problem(file, refused.line, refused.key, refused.message, refused.hint)]) from None
    return Document(
        data,
        expansion.lines,
        frozenset(expansion.from_environment),
        frozenset(expansion.reported),
        tuple(expansion.problems),
    )


class _Refused(Exception):
    def __init__(self, line: int | None, message: str, hint: str = "", key: str = "") -> None:
        self.line, self.message, self.hint, self.key = line, message, hint, key


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise _Refused(None, f"the file is larger than {MAX_BYTES:,} bytes; this is not a configuration")
    if b"\0" in raw:
        raise _Refused(None, "the file is binary or UTF-16; expected YAML in UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
    raise _Refused(line, "the file is not UTF-8")


# --- text → nodes -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Scalar:
    line: int
    text: str
    plain: bool


@dataclass(slots=True)
class _Sequence:
    line: int
    items: list[_Node] = field(default_factory=list)
    anchor: str | None = None


@dataclass(slots=True)
class _Mapping:
    line: int
    pairs: list[tuple[_Node, _Node]] = field(default_factory=list)
    key: _Node | None = None
    anchor: str | None = None


_Node: TypeAlias = "_Scalar | _Sequence | _Mapping"


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
        return
    except yaml.MarkedYAMLError as error:
        refused = _syntax(error, text)
    except yaml.YAMLError:
        refused = _Refused(None, "the file holds control characters, which YAML does not allow")
    raise refused


def _compose(text: str) -> _Node | None:
    """The file's one document. Works on events, for a recursive parser would follow any depth it is given."""
    root: _Node | None = None
    stack: list[_Sequence | _Mapping] = []
    anchors: dict[str, _Node] = {}
    nodes = 0
    for event in _events(text):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if nodes > MAX_NODES:
                raise _Refused(line, f"more than {MAX_NODES:,} keys and values; this is not a configuration")
            if getattr(event, "tag", None) not in (None, "!"):
                raise _Refused(line, "tags (a word that starts with '!') are not known here", "put such text in quotes")
        node: _Node
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _Refused(line, "this alias ('*name') has no anchor ('&name') before it")
            node = anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            node = _Scalar(line, event.value, plain=not event.style)
            if event.anchor:
                anchors[event.anchor] = node
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(stack) == MAX_DEPTH:
                raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels")
            make = _Sequence if isinstance(event, yaml.SequenceStartEvent) else _Mapping
            stack.append(make(line, anchor=event.anchor))
            continue
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            node = stack.pop()
            if node.anchor:
                anchors[node.anchor] = node
        elif isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise _Refused(line, "a second document starts here ('---'); a configuration is one document")
        else:
            continue
        if not stack:
            root = node
        elif isinstance(parent := stack[-1], _Sequence):
            parent.items.append(node)
        elif parent.key is None:
            parent.key = node
        else:
            parent.pairs.append((parent.key, node))
            parent.key = None
    return root


def _top_level(root: _Node | None) -> _Mapping:
    if root is None or (isinstance(root, _Scalar) and root.plain and root.text in _NULLS):
        raise _Refused(None, "the file is empty", "`vaultferry init` writes a first one")
    if not isinstance(root, _Mapping):
        raise _Refused(root.line, "expected keys and values, as in `vaults:`")
    return root


_SYNTAX = (
    ("mapping values", "a ':' stands where none can be", "is the line indented as those around it? Text with ': ' in "
     "it goes in quotes, and a key's ':' is followed by a space"),
    ("unexpected end of stream", "text in quotes is not closed", ""),
    ("escape character", "an unknown escape in double quotes", "use single quotes, or write \\\\ for a backslash"),
    ("cannot start any token", "a character that can not stand here", "indent with spaces, never with tabs; text that "
     "starts with @, % or ` goes in quotes"),
    ("flow sequence", "a '[' is not closed, or a ',' is missing", "within [ ] and { }, a ${NAME} goes in quotes"),
    ("flow mapping", "a '{' is not closed, or a ',' is missing", "within [ ] and { }, a ${NAME} goes in quotes"),
    ("block", "the indentation does not fit the lines above", ""),
    ("simple key", "expected a key and a ':' with a space after it", ""),
)  # fmt: skip
"""What of PyYAML's wording is recognised. It is never passed on, for parts of it quote the file."""


def _syntax(error: yaml.MarkedYAMLError, text: str) -> _Refused:
    wording = f"{error.problem} {error.context}"
    message, hint = next(((m, h) for part, m, h in _SYNTAX if part in wording), ("this is not valid YAML", ""))
    at_the_end = error.problem_mark is None or error.problem_mark.line >= text.count("\n")
    opened = "not closed" in message and at_the_end
    mark = error.context_mark if opened and error.context_mark else error.problem_mark
    return _Refused(mark.line + 1 if mark else None, message, hint)


# --- nodes → data -------------------------------------------------------------------------------------------------


class _Expansion:
    """Follows aliases, resolves references to the environment, and notes the line of everything."""

    def __init__(self, environment: Mapping[str, str], file: str) -> None:
        self.environment = environment
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[Place, int] = {}
        self.from_environment: set[Place] = set()
        self.reported: set[Place] = set()
        self.nodes = 0

    def expand(self, node: _Node, place: Place) -> Any:
        self._count(node)
        if len(place) > MAX_DEPTH:
            raise _Refused(node.line, f"nested deeper than {MAX_DEPTH} levels")
        self.lines.setdefault(place, node.line)
        if isinstance(node, _Scalar):
            return self._scalar(node, place)
        if isinstance(node, _Sequence):
            return [self.expand(item, (*place, index)) for index, item in enumerate(node.items)]
        return self._mapping(node, place)

    def _count(self, node: _Node) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Refused(node.line, f"aliases make this more than {MAX_NODES:,} keys and values")

    def _mapping(self, node: _Mapping, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for text, (line, value) in self._pairs(node, place).items():
            self.lines[*place, text] = line
            data[text] = self.expand(value, (*place, text))
        return data

    def _pairs(self, node: _Mapping, place: Place) -> dict[str, tuple[int, _Node]]:
        """Line and value by key, with YAML 1.1's `<<` followed: what is given here wins, then what is merged first
        (https://yaml.org/type/merge.html)."""
        self._count(node)
        pairs: dict[str, tuple[int, _Node]] = {}
        merged: list[_Node] = []
        for key, value in node.pairs:
            if not isinstance(key, _Scalar):
                raise _Refused(key.line, "expected a word as key, not a list or keys and values", key=dotted(place))
            if key.text == "<<" and key.plain:
                merged += value.items if isinstance(value, _Sequence) else [value]
            elif key.text in pairs:
                shown = (*place, key.text) if presentable(key.text) else place
                message = f"is given twice, first on line {pairs[key.text][0]}"
                self.problems.append(Problem(self.file, key.line, dotted(shown), message))
            else:
                pairs[key.text] = (key.line, value)
        for part in merged:
            if not isinstance(part, _Mapping):
                raise _Refused(part.line, "'<<' takes an alias of keys and values", key=dotted(place))
            for text, pair in self._pairs(part, place).items():
                pairs.setdefault(text, pair)
        return pairs

    def _scalar(self, node: _Scalar, place: Place) -> str | None:
        pieces: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(node.text):
            pieces.append(node.text[end : match.start()])
            end = match.end()
            pieces.append(self._resolve(match, node, place))
        text = "".join(pieces) + node.text[end:]
        return None if node.plain and text in _NULLS and place not in self.from_environment else text

    def _resolve(self, match: re.Match[str], node: _Scalar, place: Place) -> str:
        name, has_default, default = match.groups()
        if match.group() == "$${":
            return "${"
        if name is None:
            self._report(node, place, "expected ${NAME} or ${NAME:-default}", "a literal '${' is written '$${'")
            return ""
        value = self.environment.get(name)
        if value and is_unresolved(value):
            self._report(node, place, f"the Key Vault reference in {name} does not resolve", WHAT_TO_DO)
            return ""
        if value or (value is not None and not has_default):
            self.from_environment.add(place)
            return value
        if not has_default:
            hint = f"set it, or write ${{{name}:-default}}"
            self._report(node, place, f"the environment variable {name} is not set", hint)
        return default or ""

    def _report(self, node: _Scalar, place: Place, message: str, hint: str) -> None:
        self.reported.add(place)
        self.problems.append(Problem(self.file, node.line, dotted(place), message, hint))
