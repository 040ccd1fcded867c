"""What pydantic found → problems. Its own messages are not passed on, for some of them quote the file."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shared.config.problems import Place, closest, listed, presentable

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} character(s)",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "url_type": "a URL",
    "url_parsing": "a URL",
    "url_scheme": "a URL that starts with {expected_schemes}",
}


def explain(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[Place, str, str]]:
    """Place (below `data`), message and hint of each error."""
    details = error.errors(include_url=False, include_input=False)
    if error.title != model.__name__:
        # A default could not be made: its errors do not say where in `model` it belongs.
        return [((), message, hint) for _, message, hint in (_explain(detail, model, {}) for detail in details)]
    return [_explain(detail, model, data) for detail in details]


def _explain(detail: ErrorDetails, model: type[BaseModel], data: Any) -> tuple[Place, str, str]:
    place, within, field = _locate(detail["loc"], model)
    kind = detail["type"]
    context = detail.get("ctx", {})
    given = _at(data, place)
    if kind == "vaultferry":
        at = context["at"]
        return (*place, at) if at else place, context["message"], context["hint"]
    if kind == "extra_forbidden":
        known = within.model_fields.items() if within else ()
        return _unknown(place, given, [field.alias or name for name, field in known])
    if kind == "missing":
        return place, "is required", field.description or "" if field else ""
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = context["discriminator"].strip("'")
        choices = _choices(field, discriminator)
        tag = given.get(discriminator) if isinstance(given, Mapping) else None
        message = f"is required: one of {listed(choices)}" if tag is None else f"expected one of {listed(choices)}"
        return (*place, discriminator), message, closest(tag, choices) if tag is not None else _slip(given)
    if kind in ("literal_error", "enum"):
        return place, f"expected {context['expected']}", closest(given, context["expected"].split("'")[1::2])
    if kind == "value_error":
        return place, _own(str(context["error"]), given), ""
    expected = _EXPECTED.get(kind)
    bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    message = f"expected {expected.format_map(bounds)}" if expected else f"is not what is expected here ({kind})"
    hint = "a list is written [one, another]" if kind == "list_type" and isinstance(given, str) else ""
    return place, message + _instead(kind, given), hint


def _unknown(place: Place, given: Any, known: list[str]) -> tuple[Place, str, str]:
    key = str(place[-1])
    hint = closest(key, known)
    if presentable(key) and (hint or given is not None):
        return place, "unknown key", hint or (f"known here: {', '.join(known)}" if known else "")
    return place[:-1], "an unknown key, not shown for it may be a value", _slip([key]) or "is a ':' missing?"


def _slip(keys: Any) -> str:
    """A hint for keys such as `token:abc`, which YAML reads as one word."""
    slipped = isinstance(keys, list | dict) and any(":" in str(key) for key in keys)
    return "is a space missing after a ':'?" if slipped else ""


def _own(message: str, given: Any) -> str:
    """A validator's own message, unless it repeats what was given."""
    if isinstance(given, str) and len(given) >= 3 and given in message:
        return "is not what is expected here"
    return message


def _instead(kind: str, given: Any) -> str:
    if not kind.endswith("_type"):
        return ""
    if given is None:
        return ", but nothing is given"
    if isinstance(given, list):
        return ", but this is a list"
    if isinstance(given, Mapping):
        return ", but these are keys and values"
    return ", but this is text" if isinstance(given, str) else ""


# --- pydantic's location → the file's ----------------------------------------------------------------------------


def _locate(
    loc: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[Place, type[BaseModel] | None, FieldInfo | None]:
    """The place in the file, the model around it and its field there.

    Pydantic's location also holds the tags of unions, between the keys.
    """
    place: Place = ()
    candidates: list[Any] = [model]
    within: type[BaseModel] | None = None
    field: FieldInfo | None = None
    for step in loc:
        models = [candidate for candidate in candidates if isinstance(candidate, type)]
        models = [candidate for candidate in models if issubclass(candidate, BaseModel)]
        if len(models) > 1:
            candidates = [candidate for candidate in models if step in _tags(candidate)] or models[:1]
            continue
        containers = [candidate for candidate in candidates if get_origin(candidate) in (list, tuple, dict, Mapping)]
        if models:
            within = models[0]
            place = (*place, step)
            field = within.model_fields.get(str(step))
            candidates = _leaves(field.annotation) if field else []
        elif containers:
            place = (*place, step)
            candidates = _leaves(get_args(containers[0])[-1])
        elif not candidates:
            place = (*place, step)
        # Else the name of a plain union's member: in pydantic's location only.
    return place, within, field


def _leaves(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _leaves(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [leaf for member in get_args(annotation) for leaf in _leaves(member) if leaf is not types.NoneType]
    return [annotation]


def _tags(model: type[BaseModel]) -> list[str]:
    return [
        tag
        for field in model.model_fields.values()
        if get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    ]


def _choices(field: FieldInfo | None, discriminator: str) -> list[str]:
    choices: list[str] = []
    for leaf in _leaves(field.annotation) if field else []:
        if isinstance(leaf, type) and issubclass(leaf, BaseModel) and discriminator in leaf.model_fields:
            tags = get_args(leaf.model_fields[discriminator].annotation)
            choices += [str(tag.value if isinstance(tag, enum.Enum) else tag) for tag in tags]
    return choices


def _at(data: Any, place: Place) -> Any:
    for step in place:
        if isinstance(data, Mapping):
            data = data.get(str(step))
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data
