"""The reference of the configuration: made from the models, whole, and the variables that are read are those it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.config import schema
from tests import reference

ROOT = Path(__file__).resolve().parents[2]


def properties(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield from node.get("properties", {}).items()
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from properties(child)


def test_the_committed_page_is_what_the_models_say() -> None:
    committed = reference.PAGE.read_text("utf-8")
    assert committed == reference.page(), "the settings have changed; write it anew: make reference"


def test_every_key_of_the_schema_has_a_meaning() -> None:
    unsaid = {key for key, node in properties(schema()) if "description" not in node and "const" not in node}
    assert unsaid == set()


def test_every_key_of_the_schema_is_in_the_reference() -> None:
    page = reference.page()
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    chosen = set(re.findall(r"^(?:\*\*|## )`(\w+): \w+`", page, re.MULTILINE))
    assert {key for key, _ in properties(schema())} == (rows | chosen) - {each.name for each in reference.VARIABLES}


def test_each_link_leads_to_a_heading_of_its_own() -> None:
    page = reference.page()
    headings = [reference.anchor(line) for line in re.findall(r"^##+ (.*)$", page, re.MULTILINE)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(headings)


def test_the_variables_that_are_read_are_those_that_are_told() -> None:
    told = {each.name for each in reference.VARIABLES}
    texts = set()
    for path in [ROOT / "function_app.py", *(ROOT / "shared").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    read = {text for text in texts if re.fullmatch(r"(VAULT|VAULTFERRY|APPLICATIONINSIGHTS)_[A-Z_]*[A-Z]", text)}
    # The relay takes its credentials from files as well.
    read |= {f"{name}_FILE" for name in ("VAULTFERRY_API_KEY", "VAULTFERRY_AUDIT_SECRET")} & told
    assert {name for name in told if name.startswith(("VAULT", "APPLICATION"))} == read


def test_the_example_of_an_environment_names_no_other_variables() -> None:
    named = re.findall(r"^#?([A-Za-z_]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)
    assert named
    assert set(named) <= {each.name for each in reference.VARIABLES}
