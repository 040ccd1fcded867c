"""Pure: text with placeholders and filters, such as `{dir}/{name | upper}`: what names are made from.

`{` and `}` that are meant as they are, are written `{{` and `}}`. A filter stands behind a `|`: `upper`, `lower`,
`slug`, `replace("a", "b")`. What a placeholder stands for is never looked into for further placeholders.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.errors import ConfigError

ARGUMENTS = {"upper": 0, "lower": 0, "slug": 0, "replace": 2}
"""The filters that there are, and how many arguments each takes."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<word>[^\W\d][\w.-]*)|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign>[|(),]))"""
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NOT_SLUG = re.compile(r"[^a-z0-9]+")


class TemplateError(ConfigError):
    """A template that can not be used: what is wrong, and what may help. Neither repeats the template."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Filter:
    name: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + (f"({', '.join(map(repr, self.arguments))})" if self.arguments else "")

    def apply(self, text: str) -> str:
        match self.name:
            case "upper":
                return text.upper()
            case "lower":
                return text.lower()
            case "replace":
                old, new = self.arguments
                return text.replace(old, new)
            case _:
                return slug(text)


@dataclass(frozen=True, slots=True)
class Placeholder:
    key: str
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was found to be right."""

    text: str
    pieces: tuple[str | Placeholder, ...]

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Placeholder))

    @property
    def head(self) -> str:
        """The text before the first placeholder."""
        return self.pieces[0] if self.pieces and isinstance(self.pieces[0], str) else ""

    def keeps(self, key: str) -> bool:
        """Whether two different values of `key` never give the same text.

        Proven only where all placeholders stand for `key` as it is: the text's length then tells the value's.
        """
        if key == "path" and self.around_path is not None:
            return True
        return bool(self.placeholders) and all(each == Placeholder(key) for each in self.placeholders)

    @property
    def around_path(self) -> tuple[str, str] | None:
        """The texts before and behind the path, where there is nothing else, so that it can be read backwards.

        `{dir}/{name}` is `{path}` in two parts.
        """
        whole = (Placeholder("path"),), (Placeholder("dir"), "/", Placeholder("name"))
        at = 1 if self.head else 0
        for path in whole:
            end = at + len(path)
            behind = self.pieces[end:]
            if self.pieces[at:end] == path and all(isinstance(piece, str) for piece in behind):
                return self.head, "".join(str(piece) for piece in behind)
        return None

    def render(self, values: Callable[[str], str]) -> str:
        """The text. Where `{dir}` is empty, the `/` behind it goes too: a secret in no folder has no folder's slash."""
        parts: list[str] = []
        bare = False
        for piece in self.pieces:
            if isinstance(piece, str):
                parts.append(piece[1:] if bare and piece.startswith("/") else piece)
                bare = False
                continue
            text = values(piece.key)
            for each in piece.filters:
                text = each.apply(text)
            # A path that begins with a slash is in a folder without a name: it is another secret than the one without.
            bare = piece.key == "dir" and not text and not values("path").startswith("/")
            parts.append(text)
        return "".join(parts)


def of_path(path: str, field: str = "") -> Mapping[str, str]:
    """What the placeholders of a name stand for."""
    folder, _, name = path.rpartition("/")
    return {"path": path, "name": name, "dir": folder, "field": field}


def slug(text: str) -> str:
    """Lower-case ASCII letters and digits, everything else one hyphen: `Café / Ops` → `cafe-ops`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _NOT_SLUG.sub("-", plain.lower()).strip("-")


@lru_cache(maxsize=1024)
def parse(text: str, known: tuple[str, ...], prefix: str | None = None) -> Template:
    """A template whose placeholders are among `known`, or anything that starts with `prefix`. Raises TemplateError."""
    pieces: list[str | Placeholder] = []
    for piece in _pieces(text, known, prefix):
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        elif piece:
            pieces.append(piece)
    return Template(text, tuple(pieces))


def _pieces(text: str, known: tuple[str, ...], prefix: str | None) -> Iterator[str | Placeholder]:
    at = 0
    while at < len(text):
        if text.startswith(("{{", "}}"), at):
            yield text[at]
            at += 2
        elif text[at] == "{":
            placeholder, at = _placeholder(text, at + 1, known, prefix)
            yield placeholder
        elif text[at] == "}":
            raise TemplateError("a '}' that belongs to no placeholder", "one that is meant as it is, is written '}}'")
        else:
            end = next((i for i in range(at, len(text)) if text[i] in "{}"), len(text))
            yield text[at:end]
            at = end


def _placeholder(text: str, at: int, known: tuple[str, ...], prefix: str | None) -> tuple[Placeholder, int]:
    """The placeholder that begins behind a `{`, and where it ends."""
    tokens: list[tuple[str, str]] = []
    while match := _TOKEN.match(text, at):
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind]))
        at = match.end()
    rest = text[at:].lstrip()
    names_field = bool(prefix and tokens and tokens[0][1].startswith(prefix))
    if not rest.startswith("}"):
        if not rest:
            raise TemplateError("a '{' that is not closed", "one that is meant as it is, is written '{{'")
        if len(tokens) == 1 and names_field:
            raise _not_a_word()
        raise TemplateError("a placeholder is a word, and filters behind '|'", f"as in {{{known[0]} | upper}}")
    at = text.index("}", at) + 1
    if not tokens or tokens[0][0] != "word":
        raise TemplateError(f"a '{{}}' without a placeholder; there are {_shown(known)}")
    key = tokens[0][1]
    if key not in known and not (prefix and key.startswith(prefix) and key != prefix):
        also = f" and {{{prefix}NAME}}" if prefix else ""
        raise TemplateError(f"an unknown placeholder; there are {_shown(known)}{also}", _closest(key, known, "{%s}"))
    if names_field and len(tokens) > 1 and tokens[1][0] == "word":
        raise _not_a_word()
    return Placeholder(key, tuple(_filters(tokens[1:]))), at


def _not_a_word() -> TemplateError:
    return TemplateError(
        "a field is named here by letters, digits, '_', '.' and '-'",
        "one of another name is renamed first: fields.rename",
    )


def _filters(tokens: Sequence[tuple[str, str]]) -> Iterator[Filter]:
    at = 0
    while at < len(tokens):
        if tokens[at] != ("sign", "|") or at + 1 == len(tokens) or tokens[at + 1][0] != "word":
            raise TemplateError("expected '|' and a filter behind a placeholder", f"filters are {_named()}")
        name = tokens[at + 1][1]
        at += 2
        if name not in ARGUMENTS:
            raise TemplateError(f"an unknown filter; there are {_named()}", _closest(name, ARGUMENTS, "%s"))
        arguments: list[str] = []
        if at < len(tokens) and tokens[at] == ("sign", "("):
            at += 1
            while at < len(tokens) and tokens[at][0] == "text":
                arguments.append(_ESCAPED.sub(r"\1", tokens[at][1][1:-1]))
                at += 2 if at + 1 < len(tokens) and tokens[at + 1] == ("sign", ",") else 1
            if at == len(tokens) or tokens[at] != ("sign", ")"):
                raise TemplateError(f"the arguments of {name} are not right", _USAGE)
            at += 1
        if len(arguments) != ARGUMENTS[name] or (name == "replace" and not arguments[0]):
            raise TemplateError(f"the arguments of {name} are not right", _USAGE)
        yield Filter(name, tuple(arguments))


_USAGE = 'replace takes two texts, the first not empty, as in {path | replace("/", "--")}; the others take none'


def _shown(known: Sequence[str]) -> str:
    return ", ".join(f"{{{each}}}" for each in known)


def _named() -> str:
    return 'upper, lower, slug, replace("a", "b")'


def _closest(given: str, known: Sequence[str] | Mapping[str, int], form: str) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(given.lower(), list(known), n=1)
    return f"did you mean {form % matches[0]}?" if matches else ""
