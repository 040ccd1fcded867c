"""The site: built as CI builds it, and on it each page is what it is on GitHub."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.markdown import ROOT, pages

COUNTED = {"li", "tr", "pre", "a", "h1", "h2", "h3", "h4", "blockquote"}


class Article(HTMLParser):
    """What a page holds, without the theme around it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.anchors: list[str] = []
        self.fetched: list[str] = []
        self._depth = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") or given.get("rel") in ("stylesheet", "preconnect", "preload"):
            self.fetched.append(given.get("src") or given.get("href") or "")
        if tag == "article":
            self._depth += 1
        if self._depth and tag in COUNTED and "headerlink" not in (given.get("class") or ""):
            self.tags[tag] += 1
            if tag[0] == "h":
                self.anchors.append(given.get("id") or "")

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "article"


@dataclass
class Site:
    folder: Path
    warnings: list[str]
    """What `mkdocs build --strict` would fail with."""

    def page(self, name: str) -> Article:
        at = name.removesuffix(".md").removesuffix("README").removesuffix("index")
        return Article((self.folder / at / "index.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), [])
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: site.warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mkdocs")
    with pytest.MonkeyPatch.context() as patched:
        # What the theme's makers say about its future is not a fault of a page.
        patched.setenv("NO_MKDOCS_2_WARNING", "1")
        logger.addHandler(handler)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site.folder)))
        yield site
        logger.removeHandler(handler)


def named(nav: Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named(each)


def test_every_page_is_in_the_navigation_once() -> None:
    found = Counter(named(load_config(str(ROOT / "mkdocs.yml")).nav))
    missing = sorted(set(pages()) - set(found))
    assert not missing, f"say in mkdocs.yml where these belong: {', '.join(missing)}"
    assert max(found.values()) == 1


def test_the_site_is_built_without_a_warning(site: Site) -> None:
    assert not site.warnings, "\n".join(site.warnings)
    assert (site.folder / "search" / "search_index.json").is_file()


@pytest.mark.parametrize("name", pages())
def test_a_page_is_on_the_site_what_it_is_on_github(site: Site, name: str) -> None:
    there, here = site.page(name), pages()[name]
    assert there.tags == here.tags
    assert there.anchors == here.anchors


def test_nothing_is_fetched_from_other_hosts(site: Site) -> None:
    for path in site.folder.rglob("*.html"):
        fetched = Article(path.read_text("utf-8")).fetched
        assert [address for address in fetched if "//" in address] == [], path


def test_what_python_leaves_beside_the_hooks_is_not_published() -> None:
    left_out = load_config(str(ROOT / "mkdocs.yml")).exclude_docs
    assert left_out is not None
    assert all(left_out.match_file(name) for name in ("hooks.py", "__pycache__/hooks.cpython-312.pyc"))
    assert not left_out.match_file("vaults/file.md")


def test_nothing_is_published_but_pages_and_what_they_link_to(site: Site) -> None:
    found = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob("*") if path.is_file()}
    rest = {name for name in found if not name.startswith(("assets/", "search/")) and not name.endswith(".html")}
    linked = {
        (ROOT / page.name).parent.joinpath(link.text).resolve() for page in pages().values() for link in page.links
    }
    assert {ROOT / name for name in rest - {"sitemap.xml", "sitemap.xml.gz"}} <= linked
    assert (site.folder / "examples" / "policies.yaml").read_bytes() == (
        ROOT / "examples" / "policies.yaml"
    ).read_bytes()
