"""MkDocs sees the repository as GitHub does: pages lie where they lie there, and README.md is the first of them.

MkDocs knows the pages of docs/ alone, at the top of the site. Here they move to docs/, and what they link to outside
joins them, so that no link has to be written in two ways.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/*.md", "infra/*/*.md")
"""Those that are not in docs/."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File, InclusionLevel

    root, docs = Path(config.config_file_path).parent.resolve(), Path(config.docs_dir).resolve()
    for file in list(files):
        if file.src_dir == config.docs_dir and file.inclusion.is_included():
            files.remove(file)
            files.append(File.generated(config, f"{docs.name}/{file.src_uri}", abs_src_path=str(docs / file.src_uri)))
    for path in _outside(root, docs):
        # Said to be included, because a name that begins with a dot is left out otherwise.
        uri = path.relative_to(root).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED))
    return files


def _outside(root: Path, docs: Path) -> list[Path]:
    """The pages that are not in docs/, and the files that a page links to: nothing else is published."""
    pages = [*docs.rglob("*.md"), *(path for pattern in PAGES for path in root.glob(pattern))]
    linked = [
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    ]
    return sorted(
        path for path in {*pages, *linked}
        if path.is_file() and path.is_relative_to(root) and not path.is_relative_to(docs)
    )  # fmt: skip
