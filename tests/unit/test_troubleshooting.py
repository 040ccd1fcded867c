"""docs/troubleshooting.md quotes messages as they are in the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
HEADS = {"message"}
WHOLE = (
    "app",
    "azure_storage",
    "fields",
    "health",
    "sqlite/__init__",
    "sqlite/failures",
    "transforms",
    "histories/tables",
    "queues/storage_queue",
    "relay/http_forward",
    "relay/listeners",
    "relay/process",
    "relay/spool",
    "vaults/azure_key_vault/failures",
    "vaults/file/sealed",
    "vaults/hashicorp/failures",
    "vaults/hashicorp/login",
)
"""Modules of which each message has to be on the page."""
ERRORS = {
    *("ConfigError", "Refused", "StoreError", "AccessDenied", "Conflict", "InvalidSecret", "MountNotFound"),
    *(
        "SecretNotFound",
        "Unavailable",
        "Unsupported",
        "Forbidden",
        "Busy",
        "SecretDisabled",
        "permanent",
        "_denied",
    ),
}
NOT_FOR_PEOPLE = {"the database … is not open", "the storage queues are not open", "…: …", "its field … … …"}
"""What only a fault of ours can bring about, and what only joins others."""


def quoted() -> list[tuple[int, str]]:
    """The first cell of each row of a table of messages, with its line."""
    found: list[tuple[int, str]] = []
    inside = False
    for number, line in enumerate(PAGE.splitlines(), 1):
        if not line.startswith("|"):
            inside = False
        elif (first := line.strip("|").split("|")[0].strip()) in HEADS:
            inside = True
        elif inside and not first.startswith("---"):
            found.append((number, first.strip("`")))
    return found


@cache
def texts() -> frozenset[str]:
    """Every text in the code; what is put in at run time is `…`."""
    found: set[str] = set()
    for path in (*(ROOT / "shared").rglob("*.py"), ROOT / "function_app.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.add(_plain("".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(_plain(node.value))
    return frozenset(found)


def _plain(text: str) -> str:
    # Values for logging's own % are put in at run time, too; and quotes around a value are a matter of its kind.
    return re.sub(r"'?(…|%[sdrg])'?", "…", text)


def test_each_message_is_in_the_code_with_this_beginning() -> None:
    messages = quoted()
    assert len(messages) > 120
    wrong = [
        f"{number}: {message}"
        for number, message in messages
        if not any(text.startswith(_plain(message).removesuffix("…")) for text in texts())
    ]
    assert not wrong, "\n".join(wrong)


def _raised(module: str) -> set[str]:
    """The messages of errors that are made in a module, and those of its tables."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "shared" / f"{module}.py").read_text("utf-8"))):
        texts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = node.args[:1] if name in ERRORS else []
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and getattr(node.elts[-2], "id", "") in ERRORS:
            texts = node.elts[-1:]
        for each in texts:
            if isinstance(each, ast.JoinedStr | ast.Constant):
                found.add(_plain(_text(each)))
    return found - NOT_FOR_PEOPLE


def _text(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


@pytest.mark.parametrize("module", WHOLE)
def test_each_message_of_a_module_is_on_the_page(module: str) -> None:
    beginnings = tuple(_plain(message).removesuffix("…") for _, message in quoted())
    assert sorted(text for text in _raised(module) if not text.startswith(beginnings)) == []


def test_no_message_stands_twice() -> None:
    messages = [message for _, message in quoted()]
    assert sorted({each for each in messages if messages.count(each) > 1}) == []


def test_what_is_not_in_the_code_is_noticed() -> None:
    assert not any(text.startswith("there is no such message in the code") for text in texts())
