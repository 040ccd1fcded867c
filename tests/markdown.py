"""Every page of the repository, as GitHub reads it: headings, links, fenced blocks and code spans, each with its line."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "examples/*.md", "infra/**/*.md")


@dataclass(frozen=True)
class Piece:
    """A part of a page. `kind`: of a block, its language; of a link, nothing."""

    page: str
    line: int
    text: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass
class Page:
    """`name` is its path in the repository."""

    name: str
    anchors: list[str] = field(default_factory=list)
    links: list[Piece] = field(default_factory=list)
    blocks: list[Piece] = field(default_factory=list)
    spans: list[Piece] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)
    """How many list items, table rows, code blocks and so on there are."""


@cache
def pages() -> dict[str, Page]:
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
    return {name: read(path, name) for path in paths for name in [path.relative_to(ROOT).as_posix()]}


def read(path: Path, name: str) -> Page:
    page = Page(name)
    # GitHub turns bare addresses into links too, but which is which, only a page that says so makes sure of.
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(path.read_text("utf-8"))
    line = 1
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        line = token.map[0] + 1 if token.map else line
        if token.type == "heading_open" and following is not None:
            page.anchors.append(_anchor(_plain(following), page.anchors))
        if token.type in ("fence", "code_block"):
            page.blocks.append(Piece(name, line, token.content, token.info.split(" ")[0]))
        if token.type in ("list_item_open", "tr_open", "fence", "code_block", "blockquote_open", "heading_open"):
            page.tags[token.tag.replace("code", "pre")] += 1
        for child in token.children or ():
            if child.type == "code_inline":
                page.spans.append(Piece(name, line, child.content))
            elif child.type in ("link_open", "image"):
                page.tags[child.tag] += 1
                page.links.append(Piece(name, line, str(child.attrs.get("href") or child.attrs.get("src"))))
    return page


def _plain(token: Token) -> str:
    return "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))


def _anchor(heading: str, earlier: list[str]) -> str:
    """https://github.com/gjtorikian/html-pipeline: what GitHub makes of a heading."""
    slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    taken = sum(each == slug or bool(re.fullmatch(rf"{re.escape(slug)}-\d+", each)) for each in earlier)
    return f"{slug}-{taken}" if taken else slug


# --- commands -------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[Piece, list[str]]]:
    """Everything on the pages that is typed into a shell, one command at a time, without prompts and redirections."""
    for page in pages().values():
        for block in page.blocks:
            if block.kind in ("console", "sh", "bash", "shell"):
                for line, text in _typed(block):
                    yield from ((Piece(page.name, line, text), words) for words in split(text))
        for span in page.spans:
            yield from ((span, words) for words in split(span.text))


def _typed(block: Piece) -> Iterator[tuple[int, str]]:
    """Lines with a prompt, those that they go on in included; without any prompt, all."""
    lines = block.text.splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    waiting, start = "", 0
    for number, line in enumerate(lines, block.line + 1):
        if not waiting and prompted and not line.startswith("$ "):
            continue
        start = start if waiting else number
        waiting += line.removeprefix("$ ")
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        yield start, waiting
        waiting = ""


def split(text: str) -> Iterator[list[str]]:
    """The commands of one line, in words. Nothing for what no shell could read."""
    # A number in front of a redirection belongs to it.
    lexer = shlex.shlex(re.sub(r"(?<=\s)\d(?=[<>])", "", text), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return
    command: list[str] = []
    skip = False
    for word in words:
        if word.startswith("#"):
            break
        if word in ("|", "||", "&&", "&", ";"):
            yield from _bare(command)
            command = []
        elif set(word) <= set("<>&"):
            skip = True
        elif skip:
            skip = False
        else:
            command.append(word)
    yield from _bare(command)


def _bare(words: list[str]) -> Iterator[list[str]]:
    """Without what stands in front of the program: variables, sudo and the like."""
    while words and (re.match(r"[A-Za-z_]\w*=", words[0]) or words[0] in ("sudo", "time", "exec", "nohup")):
        words = words[1:]
    if words:
        yield words
