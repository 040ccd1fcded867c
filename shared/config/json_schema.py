"""The configuration's JSON Schema, for editors: https://json-schema.org/draft/2020-12."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, create_model

from shared import vaults
from shared.config.models import ID, FileSettings, SyncSettings

_REFERENCE = {"type": "string", "pattern": r"\$\{", "description": "A value from the environment."}
_KEYS = {"pattern": f"^{ID.pattern}$"}


def build_schema() -> dict[str, Any]:
    """What `vaultferry validate --schema` prints. Where a number, a boolean or a choice is expected, `${NAME}` fits too."""
    kinds: Any = reduce(or_, (module.Settings for module in vaults.kinds().values()))
    vault = Annotated[kinds, Field(discriminator="kind")]
    fields = FileSettings.model_fields
    model = create_model(
        "Configuration",
        __base__=FileSettings,
        vaults=(dict[str, vault], fields["vaults"]),
        syncs=(dict[str, SyncSettings], fields["syncs"]),
    )
    schema = model.model_json_schema()
    schema["properties"]["vaults"]["propertyNames"] = _KEYS
    schema["properties"]["syncs"]["propertyNames"] = _KEYS
    tidy: dict[str, Any] = _tidy(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vaultferry configuration",
        **{key: value for key, value in tidy.items() if key not in ("title", "description")},
    }


def _tidy(node: Any, *, names: bool = False) -> Any:
    """Without generated titles, and open to references. `names`: the keys of `node` are names, not JSON Schema's words."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    tidy = {
        key: _tidy(value, names=key in ("properties", "$defs") and not names)
        if key not in _VERBATIM or names
        else value
        for key, value in node.items()
        if names or key not in ("title", "discriminator")
    }
    return tidy if names else _open(tidy)


_VERBATIM = ("default", "enum", "const", "pattern", "examples", "required")


def _open(node: dict[str, Any]) -> dict[str, Any]:
    choices = node.get("enum")
    if choices is not None:
        # YAML in an editor knows numbers where a choice is between texts of digits.
        digits = [int(choice) for choice in choices if isinstance(choice, str) and choice.isdigit()]
        node = {key: value for key, value in node.items() if key != "type"} | {"enum": [*choices, *digits]}
    elif node.get("type") not in ("integer", "number", "boolean"):
        return node
    outside = {key: value for key, value in node.items() if key in ("description", "default")}
    inside = {key: value for key, value in node.items() if key not in outside}
    return {"anyOf": [inside, _REFERENCE], **outside}
