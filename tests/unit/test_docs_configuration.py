"""Configuration on the pages is configuration: whole files are valid, and parts are parts of some valid file."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
import yaml

from shared.config import InvalidConfig, schema
from shared.config.build import parse
from tests.markdown import Piece, pages

OTHERS = {"apiVersion", "services", "jobs", "on"}
"""What YAML of other programs begins with."""
ENVIRONMENT = {
    "AGE_RECIPIENT": "age199jv5jcdprx58s7j838zf7wu8804l7aklnpqemnhqjx3vafr4e8su333dl",
    "VAULT_ADDR": "https://vault.example:8200",
    "VW_CLIENT_ID": "user.1",
}
"""Values that have to be of some shape; the others are any text."""


def blocks() -> Iterator[tuple[Piece, Any]]:
    for page in pages().values():
        for block in page.blocks:
            if block.kind in ("yaml", "yml"):
                content = yaml.safe_load(textwrap.dedent(block.text))
                if not OTHERS & set(content):
                    yield block, content


WHOLE = [block for block, content in blocks() if "vaults" in content]
PARTS = [(block, content) for block, content in blocks() if "vaults" not in content]


def spans() -> Iterator[tuple[Piece, Any]]:
    """Keys with their values in a sentence, such as `granularity: field`."""
    for page in pages().values():
        for span in page.spans:
            if re.match(r"[a-z_]+: \S|\{[a-z_]+: \S", span.text) and "…" not in span.text:
                yield span, yaml.safe_load(span.text)


@cache
def whole() -> dict[str, Any]:
    return schema()


@cache
def shapes() -> dict[str, jsonschema.Draft202012Validator]:
    """What a part may be a part of: every object that the schema has, with none of its keys required."""
    relaxed = _relaxed(whole())
    parts = {name: node for name, node in relaxed["$defs"].items() if "properties" in node}
    parts |= {key: relaxed["properties"][key] for key in ("vaults", "syncs")} | {"": relaxed}
    definitions = {"$defs": relaxed["$defs"]}
    return {name: jsonschema.Draft202012Validator({**node, **definitions}) for name, node in parts.items()}


def _relaxed(node: Any) -> Any:
    if isinstance(node, list):
        return [_relaxed(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        {"oneOf": "anyOf"}.get(key, key): value if key in ("default", "enum", "const") else _relaxed(value)
        for key, value in node.items()
        if key not in ("required", "minProperties") or isinstance(value, dict)
    }


def misfit(content: Any) -> str | None:
    """Why this is no part of a configuration; None: it is one."""
    found = {name: list(shape.iter_errors(content)) for name, shape in shapes().items()}
    if not all(found.values()):
        return None
    known = {name: errors for name, errors in found.items() if set(content) & _keys(name)}
    if not known:
        return f"no part of the configuration has the keys {sorted(content)}"
    closest = min(known, key=lambda name: len(known[name]))
    return f"{closest}: " + "; ".join(error.message for error in known[closest])


def _keys(name: str) -> set[str]:
    node = whole()["$defs"].get(name, whole() if not name else {})
    return set(node.get("properties", {}))


@pytest.mark.parametrize("block", WHOLE, ids=lambda block: f"{block.page}:{block.line}")
def test_a_whole_file_is_valid(block: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "the default of a token")
    given = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.text), "some value that is long enough") | ENVIRONMENT
    config = parse(block.text.encode(), given, f"{block.page}:{block.line}")
    assert config.warnings == ()


@pytest.mark.parametrize(("block", "content"), PARTS, ids=[f"{block.page}:{block.line}" for block, _ in PARTS])
def test_a_part_is_part_of_a_valid_file(block: Piece, content: Any) -> None:
    assert misfit(content) is None


def test_keys_that_are_commented_out_are_keys() -> None:
    known = {key for name in (*whole()["$defs"], "") for key in _keys(name)}
    found = [(block, key) for block in WHOLE for key in re.findall(r"^ *# *([a-z_]+): ", block.text, re.MULTILINE)]
    assert found
    assert [f"{block.page}:{block.line}: {key}" for block, key in found if key not in known] == []


def test_keys_in_sentences_are_keys() -> None:
    found = list(spans())
    assert len(found) > 10
    wrong = [f"{span}: {why}" for span, content in found if (why := misfit(content))]
    assert not wrong, "\n".join(wrong)


def test_what_is_no_configuration_is_noticed() -> None:
    assert misfit({"granularity": "field"}) is None
    assert misfit({"targets": [{"vault": "prod", "transform": [{"base64": "encode"}]}]}) is None
    assert "'feild'" in (misfit({"granularity": "feild"}) or "")
    assert "granularty" in (misfit({"targets": [{"vault": "prod", "granularty": "field"}]}) or "")
    assert "no part" in (misfit({"granularty": "field"}) or "")
    with pytest.raises(InvalidConfig):
        parse(b"vaults: {hub: {kind: hashicop}}", {}, "page")


def test_paths_of_keys_lead_to_keys() -> None:
    """`delete.propagate` and the like, wherever they begin."""
    below: dict[str, set[str]] = defaultdict(set)
    for node in whole()["$defs"].values():
        for key, child in node.get("properties", {}).items():
            for name in re.findall(r"'#/\$defs/([^']+)'", str(child)):
                below[key] |= set(whole()["$defs"][name].get("properties", {}))
    assert "propagate" in below["delete"]
    wrong = []
    for page in pages().values():
        for span in page.spans:
            if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(?<!\.py)(?<!\.json)(?<!\.yaml)", span.text):
                keys = span.text.split(".")
                # What begins with no key of ours is a file or another program's.
                own = pairwise(keys) if keys[0] in below else ()
                wrong += [str(span) for key, child in own if key in below and child not in below[key]]
    assert not wrong, "\n".join(wrong)
