"""What requests, answers and routes are to those who deal with them, whatever the host.

Errors are problem+json (https://www.rfc-editor.org/rfc/rfc9457). None of them repeats a request's body.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from shared.app import App
    from shared.shapes import ProblemDetails

MAX_LIMIT = 1000
"""Items of one answer."""
RETRY_AFTER = "5"
"""Seconds, for a store that failed."""
JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Request:
    """`route_params` and `params` (the query's) are decoded; names in `headers` are in lower case."""

    path: str
    method: str = "GET"
    route_params: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    headers: Mapping[str, str]


class Apps(Protocol):
    """Where a handler gets the app from."""

    async def get(self) -> App:
        """Raises ConfigError and StoreError when there is none."""
        ...


Handler: TypeAlias = Callable[[Apps, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    method: str
    template: str
    """Without a slash in front; `{name}` stands for one segment."""
    handler: Handler
    needs_key: bool = True
    needs_config: bool = True
    """Whether it is there only where the configuration can be read."""


class Problem(Exception):
    """What a request is answered with when it can not be granted."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(status, body, {"Content-Type": JSON_TYPE, "Cache-Control": "no-store", **(headers or {})})


def problem_response(problem: Problem, request: Request) -> Response:
    content: ProblemDetails = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.path,
    }
    return json_response(content, problem.status, {"Content-Type": PROBLEM_TYPE, **problem.headers})
