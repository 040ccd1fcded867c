"""What pages speak of is there: links and anchors, commands and their options, targets, routes, variables, files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
import typer

from shared.api import ROUTES
from shared.cli import app
from tests.markdown import ROOT, Page, Piece, commands, pages, split
from tests.reference import VARIABLES
from tests.unit.test_releases import targets

COMMANDS = typer.main.get_command(app)
UsageError = typer.BadParameter.__bases__[0]
IMAGES = {"vaultferry": "serve", "vaultferry-relay": "relay"}
"""What containers of our images run."""
OTHERS = {"infra/relay/README.md": {"--build-arg"}, "docs/coming-from.md": {"--once"}}
"""Options of other programs that stand alone in a sentence about these."""


# --- links ----------------------------------------------------------------------------------------------------------


def links() -> Iterator[Piece]:
    """Those within the repository."""
    for page in pages().values():
        yield from (each for each in page.links if not re.match(r"[a-z]+:", each.text))


def aim(link: Piece) -> tuple[str, str]:
    """The file that a link leads to, from the top of the repository, and the place in it."""
    path, _, anchor = link.text.partition("#")
    if not path:
        return link.page, anchor
    found = (ROOT / link.page).parent.joinpath(path).resolve()
    return (found.relative_to(ROOT).as_posix() if found.is_relative_to(ROOT) else str(found)), anchor


def test_every_link_leads_to_a_file() -> None:
    # A folder is no page of the site: name a file in it.
    wrong = [str(link) for link in links() if not (ROOT / aim(link)[0]).is_file()]
    assert not wrong, "\n".join(wrong)


def test_every_anchor_is_a_heading_of_its_page() -> None:
    wrong = []
    for link in links():
        name, anchor = aim(link)
        if anchor and (name not in pages() or anchor not in pages()[name].anchors):
            wrong.append(str(link))
    assert not wrong, "\n".join(wrong)


def test_the_first_page_leads_to_every_other() -> None:
    reached = {aim(link)[0] for link in pages()["docs/index.md"].links}
    missing = sorted(set(pages()) - reached - {"docs/index.md"})
    assert not missing, f"docs/index.md leads not to {', '.join(missing)}"


@pytest.mark.parametrize("page", pages().values(), ids=lambda page: page.name)
def test_headings_that_are_linked_to_have_names_of_their_own(page: Page) -> None:
    # The second of two is called otherwise on GitHub than on the site.
    linked = {aim(link)[1] for link in links() if aim(link)[0] == page.name}
    assert {
        anchor for anchor in linked if re.search(r"-\d+$", anchor) and re.sub(r"-\d+$", "", anchor) in page.anchors
    } == set()


def test_files_that_commands_name_are_there() -> None:
    wrong = []
    for piece, words in commands():
        for word in words:
            named = re.fullmatch(r"(?:docs|infra|examples|tests|sandbox|shared)/[\w./-]+\.\w+", word)
            if named and not (ROOT / named[0]).is_file():
                wrong.append(str(piece))
    assert not wrong, "\n".join(wrong)


# --- commands -------------------------------------------------------------------------------------------------------


def ours() -> Iterator[tuple[Piece, list[str], bool]]:
    """What `vaultferry` is called with, and whether it is to be typed as it stands."""
    for piece, words in commands():
        typed = piece.text not in {span.text for span in pages()[piece.page].spans}
        for arguments in _ours(words):
            yield piece, arguments, typed


def _ours(words: list[str]) -> Iterator[list[str]]:
    program, *arguments = words
    if PurePosixPath(program).name == "vaultferry":
        yield arguments
    elif program == "docker" and "exec" in arguments and "vaultferry" in arguments:
        yield from _ours(arguments[len(arguments) - arguments[::-1].index("vaultferry") - 1 :])
    elif program == "docker" and "run" in arguments and (image := IMAGES.keys() & {*arguments}):
        (name,) = image
        at = len(arguments) - arguments[::-1].index(name)
        yield [IMAGES[name], *arguments[at:]]
    elif "-c" in arguments and any(PurePosixPath(each).name == "sh" for each in words):
        for inner in split(words[-1]):
            yield from _ours(inner)


def complaint(arguments: list[str], *, typed: bool) -> str | None:
    """What the command line would say to these arguments, if it would refuse them."""
    if arguments in ([], ["--version"], ["-h"]):
        return None
    try:
        context = COMMANDS.make_context("vaultferry", list(arguments))
        name, command, rest = COMMANDS.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, rest, parent=context)
    except UsageError as error:
        # A page may speak of a command without saying what it is given.
        unfinished = type(error).__name__ in ("MissingParameter", "BadOptionUsage")
        return None if unfinished and not typed else f"{type(error).__name__}: {error}"
    return None


def test_every_command_is_one_that_the_command_line_takes() -> None:
    found = list(ours())
    assert len(found) > 50
    wrong = {
        str(piece): why
        for piece, arguments, typed in found
        # What may be left out, or repeated, stands in brackets or has dots behind it: for a reader, not for a shell.
        if not re.search(r"[\[\]…|]", " ".join(arguments)) or not typed
        if (why := complaint([re.sub(r"[\[\]…]", "", each) or "X" for each in arguments], typed=typed))
    }
    assert not wrong, "\n".join(f"{where}: {why}" for where, why in wrong.items())


def test_every_option_in_a_sentence_is_one_of_ours() -> None:
    every = set().union(*(set(each.opts) for command in COMMANDS.commands.values() for each in command.params))
    every |= {"--version", "--help", "-h"}
    wrong = []
    for page in pages().values():
        for span in page.spans:
            words = re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", span.text)
            first = span.text.split()[0] if span.text.split() else ""
            if first.startswith("--"):
                wrong += [str(span) for word in words[:1] if word not in every | OTHERS.get(page.name, set())]
            elif first in COMMANDS.commands and words and (why := complaint(shlex.split(span.text), typed=False)):
                wrong.append(f"{span}: {why}")
    assert not wrong, "\n".join(wrong)


def test_a_wrong_command_is_noticed() -> None:
    assert complaint(["plan", "--explain", "P"], typed=True) is None
    assert complaint(["plan", "--explian", "P"], typed=False) is not None
    assert complaint(["paln"], typed=False) is not None
    assert complaint(["setup"], typed=True) is not None
    assert complaint(["setup"], typed=False) is None
    assert list(_ours(["docker", "exec", "vaultferry", "vaultferry", "status"])) == [["status"]]
    assert list(_ours(["sh", "-c", "/opt/bin/vaultferry status -c x"])) == [["status", "-c", "x"]]


def test_every_target_of_make_exists() -> None:
    made = {
        (str(piece), word) for piece, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word
    }
    assert len(made) > 10
    assert [where for where, word in made if word not in targets()] == []


def test_every_module_that_python_runs_exists() -> None:
    run = [
        (str(piece), words[2])
        for piece, words in commands()
        if re.match(r"python3?$", words[0]) and words[1:2] == ["-m"]
    ]
    own = [(where, name) for where, name in run if name.split(".")[0] in ("sandbox", "tests", "shared", "benchmarks")]
    assert own
    for where, name in own:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), where


# --- routes and variables -------------------------------------------------------------------------------------------

FIRST = {route.template.split("/")[0] for route in ROUTES}


def test_every_route_exists() -> None:
    templates = {(route.method, re.sub(r"\{\w+\}", "{}", f"/{route.template}")) for route in ROUTES}
    wrong, right = [], 0
    for page in pages().values():
        for span in page.spans:
            method, _, path = span.text.partition(" ")
            path = re.split(r"[?\s]", path)[0]
            if method not in ("GET", "POST", "PUT", "DELETE", "PATCH") or not path.startswith("/"):
                continue
            known = (method, re.sub(r"\{\w+\}", "{}", path)) in templates
            right += known
            # Pages about vaults speak of the vaults' own APIs.
            if not known and (path.split("/")[1] in FIRST or not page.name.startswith("docs/vaults/")):
                wrong.append(str(span))
    assert right > 10
    assert not wrong, "\n".join(wrong)


def test_every_variable_of_ours_is_one_that_is_read() -> None:
    told = {each.name for each in VARIABLES}
    for page in pages():
        named = set(re.findall(r"\bVAULTFERRY_[A-Z_]*[A-Z]\b", (ROOT / page).read_text("utf-8")))
        assert named <= told, page
