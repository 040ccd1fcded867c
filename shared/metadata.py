"""Pure: which of a secret's metadata a target gets, in the one form that all vaults can hold, and how two are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.model import Fields, Secret, iso
from shared.onestring import CONTENT_TYPE, pack
from shared.patterns import matching
from shared.rules import Aspect, MetadataRules
from shared.vault import OWN_TAG, Capabilities


def carried(rules: MetadataRules, secret: Secret) -> Secret:
    """A secret with its fields and nothing but what is carried with them."""
    chosen = rules.carry
    # What marks several fields in one text is the form of the value, and not the source's word about it.
    content_type = secret.content_type if secret.content_type != CONTENT_TYPE else None
    # Key Vault counts whole seconds.
    expires_at = secret.expires_at.replace(microsecond=0) if secret.expires_at else None
    return Secret(
        secret.fields,
        (content_type or None) if Aspect.CONTENT_TYPE in chosen else None,
        _tags(rules, secret.tags or {}) if Aspect.TAGS in chosen else None,
        expires_at if Aspect.EXPIRES in chosen else None,
    )


def content(rules: MetadataRules, secret: Secret, meaning: Fields | None = None) -> Any:
    """What a digest covers: the fields (or what they mean), and what is carried with them."""
    fields = secret.fields if meaning is None else meaning
    return [fields, _told(rules, secret)] if rules.carry else fields


def differing(rules: MetadataRules, before: Secret, after: Secret) -> list[str]:
    """Which of what is carried differs, by its name in the file."""
    had, has = _told(rules, before), _told(rules, after)
    return [name for name in has if had[name] != has[name]]


def why_not(rules: MetadataRules, source: tuple[str, frozenset[Aspect]], target: tuple[str, frozenset[Aspect]]) -> str:
    """What can not be carried between two vaults (each by its id, and what it can hold), in words; empty: all can."""
    lacks = []
    for aspect in rules.carry:
        without = [vault_id for vault_id, can in (source, target) if aspect not in can]
        if without:
            lacks.append(f"{aspect} (not kept by {' and '.join(map(repr, without))})")
    return f"can not be carried from {source[0]!r} to {target[0]!r}: {', '.join(lacks)}" if lacks else ""


def why_hidden(secret: Secret, target: Capabilities) -> str:
    """Why a secret's content type would not be seen on a target, in words; empty: it would be."""
    if secret.content_type is None or target.fields or pack(secret.fields)[1] is None:
        return ""
    return (
        "its content type can not be carried: this vault holds one text, and the content type says how several fields "
        "are kept in it; leave content_type out of metadata.carry, or build one field 'value'"
    )


def described(rules: MetadataRules) -> str:
    """The rules, in words."""
    tags = [f"{pattern!r}" for pattern in rules.include_tags if pattern != "**"]
    said = ", ".join(rules.carry)
    said += f"; of the tags {', '.join(tags)}" if tags else ""
    return said + (f"; no tags {', '.join(map(repr, rules.exclude_tags))}" if rules.exclude_tags else "")


def _told(rules: MetadataRules, secret: Secret) -> Mapping[str, Any]:
    kept = carried(rules, secret)
    values = {
        Aspect.CONTENT_TYPE: kept.content_type,
        Aspect.EXPIRES: iso(kept.expires_at),
        Aspect.TAGS: dict(kept.tags or {}),
    }
    return {str(aspect): values[aspect] for aspect in sorted(rules.carry)}


def _tags(rules: MetadataRules, tags: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in tags.items()
        if name.casefold() != OWN_TAG
        and matching(rules.include_tags, name) is not None
        and matching(rules.exclude_tags, name) is None
    }
