"""How a listing goes on: the next request from the last answer, until there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin, urlsplit

from shared.errors import AccessDenied, Unavailable, Unsupported
from shared.vaults.http_api import answers
from shared.vaults.http_api.answers import Answer
from shared.vaults.http_api.settings import Pages

_PARAMETERS = {"page": "page", "offset": "offset", "cursor": "cursor"}
# https://www.rfc-editor.org/rfc/rfc8288#section-3, read leniently: a link that is missed ends a listing too early.
_QUOTED = r"\"(?:[^\"\\]|\\.)*\""
_LINK = re.compile(rf"<([^<>]*)>((?:{_QUOTED}|[^,\"])*)")
_PARAMETER = re.compile(rf";\s*([^\s=;,]+)\s*(?:=\s*({_QUOTED}|[^\s;,]*))?")


@dataclass(frozen=True, slots=True)
class Step:
    """What the next request has that the first one had not."""

    query: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    """A whole address, already found to be of the API's own host."""


class Walk:
    """The pages of one listing. Every step is new, and there are at most `max_pages` of them."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._taken = 1
        self._items = 0
        self._seen: set[str] = set()

    def first(self) -> Step:
        if self._pages.type == "page":
            return Step({self._parameter: str(self._pages.first)})
        return Step({self._parameter: "0"}) if self._pages.type == "offset" else Step()

    @property
    def _parameter(self) -> str:
        return self._pages.parameter or _PARAMETERS[self._pages.type]

    def next(self, answer: Answer, count: int, new: int, url: str) -> Step | None:
        """The step after an answer with `count` items, `new` of them not seen before, from `url`; None: the end.

        Raises Unavailable for a listing that goes round in circles, Unsupported for one of too many pages,
        AccessDenied for one that goes on elsewhere.
        """
        step = self._next(answer, count, url)
        if step is None:
            return None
        if count and not new:
            raise Unavailable("the listing goes round in circles: a page brought nothing new. Is `list.pages` right?")
        mark = step.url or "&".join(f"{key}={value}" for key, value in step.query.items())
        if mark in self._seen:
            raise Unavailable("the listing goes round in circles: an answer names a page that was read already")
        self._seen.add(mark)
        self._taken += 1
        if self._taken > self._pages.max_pages:
            raise Unsupported(f"the listing has more than {self._pages.max_pages} pages: see `list.pages.max_pages`")
        return step

    def _next(self, answer: Answer, count: int, url: str) -> Step | None:
        pages = self._pages
        self._items += count
        if pages.type in ("page", "offset"):
            if not count or (pages.more is not None and not answers.truthy(pages.more, answer.body)):
                return None
            number = pages.first + self._taken if pages.type == "page" else self._items
            return Step({self._parameter: str(number)})
        if pages.type == "cursor":
            cursor = answers.find(pages.next, answer.body)
            text = answers.scalar(cursor)
            if text is None and cursor not in (None, "", False, [], {}):
                raise answers.Unmapped("`list.pages.next` finds something that is no cursor")
            return None if text is None else Step({self._parameter: text})
        if pages.type == "link":
            target = answers.find(pages.next, answer.body) if pages.next else next_link(answer.link)
            if target in (None, "", False):
                return None
            if not isinstance(target, str):
                raise answers.Unmapped("`list.pages.next` finds something that is no address")
            return Step(url=_same_origin(target, url))
        if next_link(answer.link) is not None:
            raise Unsupported("the listing goes on (header Link), and half of it is none: give `list.pages` type: link")
        return None


def next_link(header: str | None) -> str | None:
    """The target of relation `next` in a Link header."""
    for match in _LINK.finditer(header or ""):
        for name, value in _PARAMETER.findall(match[2]):
            if name.lower() == "rel" and "next" in value.strip("\"'").lower().split():
                return match[1]
    return None


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: https://www.rfc-editor.org/rfc/rfc6454#section-4. Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _same_origin(target: str, url: str) -> str:
    whole = ""
    try:
        whole = urljoin(url, target)
        same = origin(whole) == origin(url) and "@" not in urlsplit(whole).netloc
    except ValueError:
        same = False
    if not answers.sendable(whole):
        raise answers.Unmapped("`list.pages.next` finds something that is no address")
    if not same:
        raise AccessDenied(
            "the listing's next page is on another host, where credentials are not sent; see `list.pages`"
        )
    # As it is, but for what can not stand in a request: some write spaces and letters as they are.
    return quote(whole, safe="!#$%&'()*+,/:;=?@[]~")
