"""Pure: which fields of a secret a target gets, under which names. Messages name fields and rules, never values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from shared.errors import InvalidSecret
from shared.model import Fields
from shared.numbers import InexactNumber, exact_float
from shared.onestring import to_json
from shared.patterns import matching
from shared.rules import Build, FieldRules, Form
from shared.templates import Template, of_path, parse

Note: TypeAlias = Callable[[str, str], None]
"""Is told each rule that did something, and what, in names alone."""

TEMPLATE_PLACEHOLDERS = ("path", "name", "dir")
TEMPLATE_FIELD = "fields."
"""Before a field's name in a built field's template, as in {fields.user}."""
_WILD = re.compile(r"[*?]|\Aregex:")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+=,-]+")


def shape(rules: FieldRules, path: str, fields: Fields, note: Note) -> dict[str, Any]:
    """A secret's fields as a target is to get them. Raises InvalidSecret."""
    found = dict(fields)
    for name in rules.split:
        if name in found:
            found = _split(name, found, note)
    found = _chosen(rules, found, note)
    found = _renamed(rules.rename, found, note)
    for name, value in rules.constants.items():
        note(f"fields.set.{name}", f"{name!r} is set" if name not in found else f"{name!r} is set to another value")
        found[name] = value
    found = _built(rules.build, path, found, note)
    if fields and not found:
        raise InvalidSecret("no field is left of it; widen fields.include, or leave the path out of the sync")
    return found


def as_text(value: Any) -> str:
    """A field's value as text: what is no text as canonical JSON. Raises InvalidSecret for what JSON can not hold."""
    return value if isinstance(value, str) else to_json({"value": value})[len('{"value":') : -1]


class NotJson(Exception):
    """A text that can not be taken for JSON: why, in words that quote nothing of it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def json_of(value: Any) -> Any:
    """What a field's text says as JSON, or the value itself where it is no text. Raises NotJson, also for JSON of which
    something would be lost without a word: a number that is rounded, a key that stands there twice."""
    if not isinstance(value, str):
        return value
    try:
        return _READER.decode(value)
    except InexactNumber:
        why = "holds a number that can not be carried exactly; as text it can"
    except (ValueError, RecursionError):
        why = "is not JSON"
    raise NotJson(why)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotJson("holds JSON with one key twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_READER = json.JSONDecoder(parse_float=exact_float, parse_constant=_refuse, object_pairs_hook=_once)


# --- one rule after the other -------------------------------------------------------------------------------------


def _split(name: str, fields: Mapping[str, Any], note: Note) -> dict[str, Any]:
    why = "is not a JSON object"
    try:
        parts = json_of(fields[name])
    except NotJson as error:
        parts, why = None, error.why
    if not isinstance(parts, dict):
        raise InvalidSecret(f"its field {name!r} {why}, so it can not be taken apart (fields.split)")
    rest = {key: value for key, value in fields.items() if key != name}
    for key in parts:
        if key in rest:
            raise InvalidSecret(f"its field {name!r} holds {key!r}, which is there already (fields.split)")
    note(f"fields.split.{name}", f"{name!r} becomes {_listed(parts)}")
    return rest | parts


def _chosen(rules: FieldRules, fields: Mapping[str, Any], note: Note) -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        if (by := matching(rules.exclude, name)) is not None:
            note("fields.exclude", f"{name!r} is left out by {by!r}")
        elif matching(rules.include, name) is None:
            note("fields.include", f"{name!r} is left out: no pattern matches")
        else:
            found[name] = value
    return found


def _renamed(table: Mapping[str, str], fields: Mapping[str, Any], note: Note) -> dict[str, Any]:
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in fields.items():
        new = table.get(name, name)
        if new in found:
            raise InvalidSecret(f"its fields {origin[new]!r} and {name!r} would both be called {new!r} (fields.rename)")
        if new != name:
            note(f"fields.rename.{name}", f"{name!r} is called {new!r}")
        found[new], origin[new] = value, name
    return found


def _built(builds: Sequence[Build], path: str, fields: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """All are made from what is there before the first of them; what they are made from goes, but for what is kept."""
    made: dict[str, Any] = {}
    used: set[str] = set()
    kept: set[str] = set()
    for build in builds:
        rule = f"fields.build.{build.name}"
        if build.form is Form.TEMPLATE:
            template = build_template(build.template)
            names = [piece.key.removeprefix(TEMPLATE_FIELD) for piece in template.placeholders if _is_field(piece.key)]
            _all_there(names, fields, rule)
            value = template.render({**of_path(path), **_texts(names, fields)}.__getitem__)
        else:
            names = _named(build.fields, fields, rule)
            parts = {name: fields[name] for name in names}
            value = to_json(parts) if build.form is Form.JSON else _dotenv(parts, rule)
        made[build.name] = value
        used.update(names)
        kept.update(names if build.keep else ())
        note(rule, f"{build.name!r} is made ({build.form}) from {_listed(names) or 'no field'}")
    found = {name: value for name, value in fields.items() if name not in used or name in kept}
    for name in made:
        if name in found:
            raise InvalidSecret(f"it has a field {name!r} already (fields.build.{name})")
    return found | made


def build_template(text: str) -> Template:
    """A built field's template. Raises TemplateError."""
    return parse(text, TEMPLATE_PLACEHOLDERS, TEMPLATE_FIELD)


def _is_field(key: str) -> bool:
    return key.startswith(TEMPLATE_FIELD)


def _texts(names: Iterable[str], fields: Mapping[str, Any]) -> dict[str, str]:
    return {TEMPLATE_FIELD + name: as_text(fields[name]) for name in names}


def _named(patterns: Sequence[str], fields: Mapping[str, Any], rule: str) -> list[str]:
    """The fields that patterns name, in their order, and in the alphabet's where one names several."""
    _all_there([pattern for pattern in patterns if not _WILD.search(pattern)], fields, rule)
    names: dict[str, None] = {}
    for pattern in patterns:
        names |= dict.fromkeys(name for name in sorted(fields) if name == pattern or matching([pattern], name))
    return list(names)


def _all_there(names: Iterable[str], fields: Mapping[str, Any], rule: str) -> None:
    for name in names:
        if name not in fields:
            raise InvalidSecret(f"it has no field {name!r} ({rule})")


def _dotenv(fields: Mapping[str, Any], rule: str) -> str:
    """Lines NAME=value as shells and dotenv libraries read them, each ended by a newline."""
    for name in fields:
        if not _VARIABLE.fullmatch(name):
            raise InvalidSecret(
                f"its field {name!r} can not be a variable's name: letters, digits and '_' ({rule}); rename it first"
            )
    return "".join(f"{name}={_quoted(as_text(value))}\n" for name, value in fields.items())


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    if "'" not in text and "\n" not in text and "\r" not in text and "\\" not in text:
        return f"'{text}'"
    escaped = text
    for char, code in (("\\", "\\\\"), ('"', '\\"'), ("$", "\\$"), ("`", "\\`"), ("\n", "\\n"), ("\r", "\\r")):
        escaped = escaped.replace(char, code)
    return f'"{escaped}"'


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def recipe(rules: FieldRules) -> list[Any]:
    """All that changes which fields `shape` gives, as JSON."""
    return [
        rules.split,
        rules.include,
        rules.exclude,
        # As an object: the order of `rename` and `set` tells nothing, that of `build` does.
        rules.rename,
        sorted(rules.constants),
        [[each.name, each.form, each.fields, _placeholders(each), each.keep] for each in rules.build],
    ]


def texts(rules: FieldRules) -> list[Any]:
    """What people wrote to stand in values, as JSON: constants and templates."""
    return [rules.constants, {each.name: each.template for each in rules.build if each.template}]


def _placeholders(build: Build) -> list[str]:
    return [each.key for each in build_template(build.template).placeholders]
