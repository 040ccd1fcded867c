"""What a target's configuration says about values: which fields, under which names, changed how, and which metadata go
with them. Frozen, no I/O.

The rules for fields come first, in the order of `FieldRules`; then the steps, in the order of the file.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

EVERY = ("**",)


# --- which fields -------------------------------------------------------------------------------------------------


class Form(enum.StrEnum):
    """What one field is built as from several."""

    JSON = "json"
    DOTENV = "dotenv"
    TEMPLATE = "template"


@dataclass(frozen=True, slots=True)
class Build:
    """A field that is made from others, which it takes the place of."""

    name: str
    form: Form
    fields: tuple[str, ...] = ()
    """Names or patterns, for JSON and dotenv. A name without wildcards must be there."""
    template: str = field(default="", repr=False)
    keep: bool = False
    """Whether the fields that it is made from are carried beside it."""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """In the order in which they are applied: each works on what the one before it left."""

    split: tuple[str, ...] = ()
    """Fields that hold a JSON object, each replaced by that object's fields."""
    include: tuple[str, ...] = EVERY
    exclude: tuple[str, ...] = ()
    """Patterns of names; exclude wins."""
    rename: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`set` in the file: fields of this value, whatever the source has."""
    build: tuple[Build, ...] = ()


# --- what becomes of their values ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Base64:
    decode: bool = False
    fields: tuple[str, ...] = EVERY


class Ends(enum.StrEnum):
    BOTH = "both"
    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True)
class Trim:
    ends: Ends = Ends.BOTH
    fields: tuple[str, ...] = EVERY


@dataclass(frozen=True, slots=True)
class JsonPick:
    expression: str
    """JMESPath (https://jmespath.org)."""
    fields: tuple[str, ...] = EVERY


@dataclass(frozen=True, slots=True)
class Fill:
    template: str = field(repr=False)
    fields: tuple[str, ...] = EVERY


@dataclass(frozen=True, slots=True)
class Encrypt:
    recipients: tuple[str, ...]
    """Public keys of age (https://age-encryption.org), as in age1…"""
    fields: tuple[str, ...] = EVERY


@dataclass(frozen=True, slots=True)
class Decrypt:
    identities: tuple[str, ...] = field(repr=False)
    """Private keys of age."""
    fields: tuple[str, ...] = EVERY


Step: TypeAlias = Base64 | Trim | JsonPick | Fill | Encrypt | Decrypt

KEYS: Mapping[type[Step], str] = {
    Base64: "base64",
    Trim: "trim",
    JsonPick: "json_pick",
    Fill: "template",
    Encrypt: "encrypt",
    Decrypt: "decrypt",
}
"""What each step is called in the file and in messages."""


# --- what goes with them ------------------------------------------------------------------------------------------


class Aspect(enum.StrEnum):
    """A kind of metadata, by its name in the file."""

    CONTENT_TYPE = "content_type"
    EXPIRES = "expires"
    TAGS = "tags"
    """Key Vault's tags, KV v2's custom_metadata."""


@dataclass(frozen=True, slots=True)
class MetadataRules:
    """What a target gets of a secret besides its fields. By default nothing: what is there is left to its vault."""

    carry: tuple[Aspect, ...] = ()
    include_tags: tuple[str, ...] = EVERY
    exclude_tags: tuple[str, ...] = ()
    """Patterns of names; exclude wins."""
