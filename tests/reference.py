"""docs/configuration-reference.md, made from the settings' models: `make reference` after every change to one of them.

The JSON schema for editors is written along, since both come from the same descriptions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shared.config.json_schema import build_schema

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration-reference.md"
SCHEMA = ROOT / "examples" / "vaultferry.schema.json"

INTRODUCTION = """\
# Configuration reference

<!-- Made by `make reference` from the models of the settings; what is written here by hand is lost. -->

Every key of the configuration file, and every variable of the environment. What they are for, with examples, is told in
[configuration.md](configuration.md). An editor that knows YAML schemas shows the same while you type:
[examples](../examples/README.md) begin with the line that it needs. `vaultferry validate --schema` prints that schema.

Any value may be `"${NAME}"` or `"${NAME:-default}"`, taken from the environment. A key with *required* for its default has
to be there. Where no default is told, there is none, or the meaning tells it.
"""

ENVIRONMENT = """\
## The environment

Besides what the file itself refers to, these variables are read. `vaultferry serve` and Azure Functions read the same.
On one machine, [local.settings.json](local.md#what-reads-localsettingsjson) stands for variables that are not set.

| variable | meaning |
| --- | --- |
"""


class Variable(NamedTuple):
    name: str
    meaning: str


VARIABLES = (
    Variable(
        "VAULTFERRY_CONFIG",
        "Where the configuration is, when `-c` does not say it: a path, or the https address of a blob. Default: "
        "vaultferry.yaml in the current folder, then beside function_app.py.",
    ),
    Variable(
        "VAULTFERRY_STORE",
        "Where runs, state, history and queues are: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `tables` for the "
        "storage account of AzureWebJobsStorage. Default: `tables` if that is set, else `sqlite:///vaultferry.db`.",
    ),
    Variable(
        "VAULTFERRY_DIGEST_KEY",
        "Keys the digests by which values are compared; at least 32 characters. With SQLite, one is made beside the file; "
        "with `tables`, it is required, and the same for all that use the account.",
    ),
    Variable(
        "VAULTFERRY_API_KEY",
        "The key that `vaultferry serve` asks for, and that the relay sends. Without it, `serve` binds to loopback alone.",
    ),
    Variable(
        "VAULTFERRY_AUDIT_SECRET",
        "Signs what the relay sends to /audit; at least 16 characters. Two, separated by a comma, while it is changed.",
    ),
    Variable("VAULTFERRY_API_KEY_FILE", "For the relay: a file that holds the key; it goes first."),
    Variable("VAULTFERRY_AUDIT_SECRET_FILE", "For the relay: a file that holds the secret; it goes first."),
    Variable("VAULTFERRY_LOG_LEVEL", "`debug`, `info`, `warning` or `error`, where `--log-level` does not say it."),
    Variable("VAULTFERRY_COMMIT", "What `--version` and /health tell of the build; images have it set."),
    Variable("VAULTFERRY_BUILD_DATE", "When it was built, told in the same places."),
    Variable(
        "AzureWebJobsStorage",
        "The storage account, by a connection string. By an identity instead: `AzureWebJobsStorage__accountName`, or an "
        "address for each of `AzureWebJobsStorage__blobServiceUri`, `AzureWebJobsStorage__queueServiceUri` and "
        "`AzureWebJobsStorage__tableServiceUri`; `AzureWebJobsStorage__credential` (`managedidentity`) and "
        "`AzureWebJobsStorage__clientId` pick the identity.",
    ),
    Variable(
        "APPLICATIONINSIGHTS_CONNECTION_STRING",
        "Traces and logs go to Application Insights; needs the extra `telemetry`.",
    ),
    Variable("VAULT_ADDR", "Default of `address` of hashicorp vaults, as Vault's own command line has it."),
    Variable("VAULT_TOKEN", "Default of their `auth.token`."),
    Variable("VAULT_NAMESPACE", "Default of their `namespace`."),
    Variable("VAULT_CACERT", "Default of their `ca_bundle`."),
    Variable("VAULT_CLIENT_CERT", "Default of their `client_cert`."),
    Variable("VAULT_CLIENT_KEY", "Default of their `client_key`."),
    Variable("HTTPS_PROXY", "With `HTTP_PROXY` and `NO_PROXY`: proxies, as everywhere."),
    Variable("SSL_CERT_FILE", "A PEM file of authorities, instead of the system's."),
)

Node = dict[str, Any]


class Schema:
    """The JSON schema, without what only editors need."""

    def __init__(self) -> None:
        self.whole = build_schema()

    def resolve(self, node: Node) -> Node:
        """What a node stands for; what is said beside a reference goes before what is said there."""
        node = self.single(node)
        if "$ref" not in node:
            return node
        found: Node = self.single(self.whole["$defs"][node["$ref"].rpartition("/")[2]])
        return {**found, **{key: value for key, value in node.items() if key != "$ref"}}

    def single(self, node: Node) -> Node:
        """Without the alternatives "nothing" and "a value from the environment", which any key has."""
        if "anyOf" not in node:
            return node
        forms = [each for each in node["anyOf"] if each.get("type") != "null" and each.get("pattern") != r"\$\{"]
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        return self.single({**forms[0], **rest}) if len(forms) == 1 else {**rest, "anyOf": forms}

    def parts(self, node: Node) -> list[Node]:
        """The objects that are below a key: what it holds, or what each of its elements or values is."""
        # What an object is says more than what it is for here.
        node = self.resolve({key: value for key, value in node.items() if key != "description"})
        if "properties" in node:
            return [node]
        within = [*node.get("oneOf", []), *node.get("anyOf", [])]
        within += [node[key] for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)]
        return [part for each in within for part in self.parts(each)]


def page() -> str:
    schema = Schema()
    top = schema.whole["properties"]
    kinds = schema.parts(top["vaults"])
    (sync,) = schema.parts(top["syncs"])
    common = [
        key for key in kinds[0]["properties"] if all(key in each["properties"] for each in kinds) and key != "kind"
    ]
    shared = {key: kinds[0]["properties"][key] for key in common}
    write = partial(_section, schema)
    texts = [
        INTRODUCTION,
        _text("## The file", "", _table(schema, schema.whole, "")),
        *write("## `history`", "history", schema.parts(top["history"])[0], top["history"]["description"]),
        _text(
            "## `vaults`",
            "Vaults by id: a lower-case letter, then up to 39 lower-case letters, digits and '-'. Each has a `kind`, which "
            "says what else it takes, and any of them:",
            _table(schema, {"properties": shared}, ""),
        ),
    ]
    for kind in sorted(kinds, key=_kind):
        rest = {key: node for key, node in kind["properties"].items() if key not in (*common, "kind")}
        name = _kind(kind)
        texts += write(f"## `kind: {name}`", name, {**kind, "properties": rest}, _sentence(kind))
    texts += write("## `syncs`", "syncs", sync, "Syncs by id, which are made up like those of vaults.")
    rows = [f"| `{each.name}` | {_cell(each.meaning)} |" for each in VARIABLES]
    return "\n".join([*texts, ENVIRONMENT + "\n".join(rows) + "\n"])


def _kind(node: Node) -> str:
    kind: str = node["properties"]["kind"]["const"]
    return kind


def _section(schema: Schema, heading: str, at: str, node: Node, says: str) -> Iterator[str]:
    """A heading, the keys, and a section for each key below which there are more."""
    yield _text(heading, says, _table(schema, node, at))
    done: dict[str, str] = {}
    for key, child in node["properties"].items():
        parts = schema.parts(child)
        name = f"{at}.{key}"
        says = _sentence(schema.resolve(child))
        if len(parts) > 1:
            yield _text(f"### `{name}`", says, *(_variant(schema, part, name) for part in parts))
        for part in parts[:1] if len(parts) == 1 else ():
            keys = json.dumps(part["properties"])
            if keys in done:
                yield _text(f"### `{name}`", says, f"It takes the keys of [`{done[keys]}`](#{anchor(done[keys])}).\n")
            else:
                done[keys] = name
                yield from _section(schema, f"### `{name}`", name, part, _sentence(part) or says)


def _variant(schema: Schema, node: Node, at: str) -> str:
    """One of several forms that an object may have, picked by the one key that is a constant."""
    (chosen,) = [key for key, each in node["properties"].items() if "const" in each]
    rest = {key: each for key, each in node["properties"].items() if key != chosen}
    text = f"**`{chosen}: {node['properties'][chosen]['const']}`** {_sentence(node)}\n"
    return f"{text}\n{_table(schema, {**node, 'properties': rest}, at)}" if rest else text


def _table(schema: Schema, node: Node, at: str) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = node.get("required", ())
    for key, child in node["properties"].items():
        below = f"{at}.{key}" if at else key
        resolved = schema.resolve(child)
        default = "*required*" if key in required else _default(schema, resolved)
        type_ = _type(schema, child)
        if at and schema.parts(child):
            type_ = f"[{type_}](#{anchor(below)})"
        elif not at and key in ("history", "vaults", "syncs"):
            type_ = f"[{type_}](#{anchor(key)})"
        lines.append(f"| `{key}` | {type_} | {default} | {_cell(resolved.get('description', ''))} |")
    return "\n".join(lines) + "\n"


def _type(schema: Schema, node: Node) -> str:
    node = schema.resolve(node)
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        choices = dict.fromkeys(str(each) for each in node["enum"])
        return " or ".join([", ".join(f"`{each}`" for each in [*choices][:-1]), f"`{[*choices][-1]}`"]).removeprefix(
            " or "
        )
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(schema, each) for each in node["anyOf"]))
    if "oneOf" in node or "properties" in node:
        return "keys"
    kind = node.get("type")
    if kind == "array":
        each = re.sub(r"^(integer|text)", r"\1s", _type(schema, node["items"]))
        return f"list of {each}" + (", not empty" if node.get("minItems") else "")
    if kind == "object":
        values = node.get("additionalProperties")
        return f"names → {_type(schema, values)}" if isinstance(values, dict) else "names → anything"
    if kind in ("integer", "number"):
        return _number(node)
    if node.get("format") == "password":
        return "text (secret)"
    return {"string": "text", "boolean": "`true` or `false`"}.get(str(kind), "anything")


def _number(node: Node) -> str:
    kind, low, high = node["type"], node.get("minimum"), node.get("maximum")
    if low is None and "exclusiveMinimum" in node:
        low, kind = None, f"{kind} over {node['exclusiveMinimum']:g}"
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return f"{kind}, at least {low}" if low is not None else f"{kind}, at most {high}" if high is not None else kind


def _default(schema: Schema, node: Node) -> str:
    """Empty where there is none, where the description tells it, or where the keys below have theirs."""
    default = node.get("default")
    if default is None or "properties" in node:
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _sentence(node: Node) -> str:
    return _cell(node.get("description", ""))


def _cell(text: str) -> str:
    """Text of a model, as it may stand in a table: no Markdown but for code and addresses."""
    written = []
    for part in re.split(r"(`[^`]*`|https?://[^\s;,)]+)", text):
        if part.startswith("http"):
            # A bare address is a link on GitHub only, and one that is made up is better none.
            made_up = re.search(r"\.example|NAME", part)
            written.append(f"`{part}`" if made_up else f"<{part}>")
        else:
            written.append(part if part.startswith("`") else re.sub(r"([*|<>\[\]])", r"\\\1", part))
    return "".join(written)


def anchor(heading: str) -> str:
    """What GitHub makes of a heading, and the site as well."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _text(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    SCHEMA.write_text(json.dumps(build_schema(), ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
