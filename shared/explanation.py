"""Pure: how a secret comes from its name and fields in the source to those on a target, rule by rule. Names only."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from shared.errors import InvalidSecret
from shared.mapping import Mapper, why_left_out
from shared.metadata import described
from shared.model import Fields, NameEncoding, Sync
from shared.patterns import matching
from shared.templates import of_path
from shared.vault import check_name


@dataclass(frozen=True, slots=True)
class Told:
    """A rule that did something, by its key in the file, and what it did."""

    rule: str
    what: str


@dataclass(frozen=True, slots=True)
class Named:
    """A name on the target, and the fields that are stored there; None: nobody knows the source's fields."""

    name: str
    fields: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of one path on one target."""

    rules: tuple[Told, ...]
    names: tuple[Named, ...] = ()
    error: str | None = None
    """Why it can not be written there."""


def coverage(sync: Sync, path: str) -> tuple[bool, Told]:
    """Whether a sync covers a path, and by which rule."""
    left_out = why_left_out(sync, path)
    if left_out is not None:
        return False, Told("exclude" if matching(sync.exclude, path) else "include", left_out)
    return True, Told("include", f"included by {matching(sync.include, path)!r}")


def explain(mapper: Mapper, path: str, fields: Fields | None) -> Explanation:
    """How a target names and shapes a secret. `fields` None: they are not known, so only its name is told."""
    told: list[Told] = []
    names: list[Named] = []
    try:
        check_name(mapper.target.vault, path)
    except InvalidSecret as error:
        return Explanation((), (), error.message)
    try:
        if fields is None:
            _naming(mapper, path, "FIELD", told)
            if not mapper.by_field:
                names.append(Named(mapper.name(path), None))
        else:
            rendered = mapper.render(path, fields, lambda rule, what: told.append(Told(rule, what)))
            of_field = mapper.by_name(path, fields)
            for name, each in rendered.items():
                _naming(mapper, path, of_field.get(name, ""), told)
                names.append(Named(name, (of_field[name],) if name in of_field else tuple(sorted(each.secret.fields))))
    except InvalidSecret as error:
        if not mapper.by_field:
            # Whatever was refused: this is the name that it would have, or how it came to one that is refused.
            with contextlib.suppress(InvalidSecret):
                _naming(mapper, path, "", told)
        return Explanation(tuple(dict.fromkeys(told)), (), error.message)
    if mapper.target.metadata.carry:
        told.append(Told("metadata.carry", f"{described(mapper.target.metadata)} go with it"))
    return Explanation(tuple(dict.fromkeys(told)), tuple(names))


def _naming(mapper: Mapper, path: str, field: str, told: list[Told]) -> None:
    """From a path to a name: the template, the prefix, and what the vault's characters ask for. Raises InvalidSecret for a
    name that is refused, with what led to it told."""
    target = mapper.target
    template = mapper.template(path)
    plain = template.render(of_path(path, field).__getitem__)
    key = f"rename.{path}" if path in target.rename else "name"
    told.append(Told(key, f"{template.text} gives {plain!r}"))
    if target.prefix:
        told.append(Told("prefix", f"{target.prefix!r} before it gives {target.prefix + plain!r}"))
    name = mapper.name(path, field)
    if name != target.prefix + plain:
        how = "reversible" if target.name_encoding is NameEncoding.REVERSIBLE else "readable"
        told.append(Told("name_encoding", f"{how}, for this vault takes {mapper.rule.wording}: {name!r}"))
