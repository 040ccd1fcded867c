"""Requests made of templates: addresses, bodies, conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from shared import onestring
from shared.errors import InvalidSecret
from shared.model import Expect
from shared.vaults.http_api import templates
from shared.vaults.http_api.settings import Operation

CONTENT_TYPES = {
    "json": "application/json",
    "form": "application/x-www-form-urlencoded",
    "text": "text/plain; charset=utf-8",
}


def body(operation: Operation, values: Mapping[str, Any]) -> bytes | None:
    """A request's body, None for none. Raises InvalidSecret for what can not be sent."""
    if operation.body is None:
        return None
    if operation.body_type == "form":
        pairs = ((templates.text(key, values), templates.text(value, values)) for key, value in operation.body.items())
        made = urlencode(templates.keyed(pairs))
    elif operation.body_type == "text":
        made = templates.text(operation.body, values)
    else:
        made = onestring.to_json(templates.structure(operation.body, values))
    if utf8_length(made) is None:
        raise InvalidSecret("it holds half a character (a lone surrogate), which can not be sent")
    return made.encode()


def url(base: str, operation: Operation, locators: Mapping[str, str], more: Mapping[str, str]) -> str:
    """An operation's address. `more` are parameters that no template has. Raises InvalidSecret."""
    made = base + templates.path(operation.path, locators)
    given = ((templates.text(key, locators), templates.text(value, locators)) for key, value in operation.query.items())
    told = templates.keyed(given) | dict(more)
    return f"{made}?{query_string(told)}" if told else made


def query_string(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, quote_via=quote, safe="")


def conditions(expect: str | Expect) -> dict[str, str]:
    """https://www.rfc-editor.org/rfc/rfc9110#section-13.1"""
    if expect is Expect.ANY:
        return {}
    return {"If-None-Match": "*"} if isinstance(expect, Expect) else {"If-Match": expect}


def utf8_length(text: str) -> int | None:
    """None: it holds half a character."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None
