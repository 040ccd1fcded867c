"""Pure: which paths a sync covers, and what each is called and holds on a target."""

from __future__ import annotations

import hashlib
import hmac
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from shared import fields as field_rules
from shared import transforms
from shared.errors import InvalidSecret, VaultError
from shared.model import Fields, Granularity, NameEncoding, Secret, Sync, Target, canonical_json
from shared.name_encoding import decode, encode
from shared.patterns import matching
from shared.rules import Encrypt, FieldRules, MetadataRules
from shared.templates import Template, of_path, parse
from shared.vault import NameRule, check_name

FORMAT = 1
"""Part of every recipe. Raised when the same options would give another result than before."""

_SHARED_NAME = "would both be written to"
APART = "name one of them under `rename`, or all with `name_encoding: reversible`"
PLACEHOLDERS = ("path", "name", "dir", "field")
"""What a target's name may be made from; `name` is a path's last segment, `dir` what stands before it."""


# --- which paths ---------------------------------------------------------------------------------------------------


def why_left_out(sync: Sync, path: str) -> str | None:
    """Which rule keeps this path out of the sync, in words; None: it is covered. Exclude wins."""
    if (pattern := matching(sync.exclude, path)) is not None:
        return f"excluded by {pattern!r}"
    if matching(sync.include, path) is None:
        return "no include rule matches"
    return None


def path_below(prefix: str, name: str, rule: NameRule) -> str | None:
    """A vault's name as a path below a sync's prefix; None: it is not below it."""
    return name[len(prefix) :] if rule.key(name[: len(prefix)]) == rule.key(prefix) else None


def fitted(target: Target, rule: NameRule, plain: str) -> str:
    """A name, or the beginning of one, with the characters that the target's vault takes. Raises InvalidSecret where it
    takes too few to encode it."""
    return encode(rule, plain) if target.name_encoding is NameEncoding.REVERSIBLE else rule.fit(plain)


# --- what they are called and hold -----------------------------------------------------------------------------------


class Mapper:
    """How one target of a sync names and shapes what it is given."""

    def __init__(self, target: Target, rule: NameRule) -> None:
        self.target = target
        self.rule = rule
        self._reversible = target.name_encoding is NameEncoding.REVERSIBLE
        self._template = parse(target.name, PLACEHOLDERS)
        says = any(field_rules.texts(target.fields)) or target.transform or target.metadata != MetadataRules()
        self._values = _values_recipe(target) if says else ""
        self._shapes = target.fields != FieldRules()
        naming = short_hash(
            [
                FORMAT,
                target.prefix,
                target.name,
                str(target.granularity),
                rule.allowed.pattern if rule.allowed else None,
                # Only where they are not the usual ones: the recipes of all other rows stay what they were.
                *([rule.replacement, rule.upper_case] if (rule.replacement, rule.upper_case) != ("-", False) else []),
                *([{"rename": target.rename}] if target.rename else []),
                *([{"name_encoding": target.name_encoding, "folds": rule.ignores_case}] if self._reversible else []),
                *([{"fields": field_rules.recipe(target.fields)}] if self._shapes else []),
            ]
        )
        self.recipe = f"{naming}.{self._values}" if self._values else naming
        """Identifies this mapping: a state row with another recipe is due again. What stands before the dot tells of names
        and fields, what stands behind it of values and of what goes with them."""

    @property
    def by_field(self) -> bool:
        return self.target.granularity is Granularity.FIELD

    def may_rename(self, recipe: str | None) -> bool:
        """Whether a row with this recipe may have other names, or names of other fields, than this mapping yields."""
        return recipe is not None and recipe.partition(".")[0] != self.recipe.partition(".")[0]

    @property
    def seals(self) -> bool:
        """Whether what is written can not be told again from the source alone: it is encrypted on the way."""
        return any(isinstance(step, Encrypt) for step in self.target.transform)

    @property
    def injective(self) -> bool:
        """Whether no two paths can share a name, whatever they are. (Names of fields are reserved one by one instead.)"""
        folds = self.rule.ignores_case or self.rule.upper_case
        exact = self._reversible or (self.rule.allowed is None and not folds)
        return self.by_field or (exact and self._template.keeps("path") and not self.target.rename)

    @property
    def prefix(self) -> str:
        """What the names in the target's vault begin with. Raises InvalidSecret where it can not be encoded."""
        return self._fit(self.target.prefix)

    def template(self, path: str) -> Template:
        """What a path's name is made from: its own line of the `rename` table, or the `name` of all."""
        own = self.target.rename.get(path)
        return self._template if own is None else parse(own, PLACEHOLDERS)

    def name(self, path: str, field: str = "") -> str:
        """The full name in the target's vault. Raises InvalidSecret for what that vault can not take."""
        values = of_path(path, field)
        plain = self.target.prefix + self.template(path).render(values.__getitem__)
        name = self._fit(plain)
        if self._reversible:
            check_name(self.target.vault, plain)
        if self._reversible and name != plain and len(name) > (self.rule.max_length or len(name)):
            raise InvalidSecret(
                f"the name has {len(name)} characters once it is encoded (name_encoding: reversible); at most "
                f"{self.rule.max_length} are allowed",
                vault=self.target.vault,
                path=path,
            )
        check_name(self.target.vault, name, self.rule)
        return name

    def path_of(self, name: str) -> str | None:
        """The path whose name this is; None: no path has it. Says so for any name, however foreign.

        Where the vault ignores case, the name may be written in any. Whether the source takes such a path is another
        question, and so is whether it is another's there: a source that ignores case knows `DB` and `db` as one.
        """
        if self.by_field:
            return None
        if (renamed := self._renamed.get(self.rule.key(name))) is not None:
            return renamed
        try:
            path = self._between(name)
            same = bool(path) and self.rule.key(self.name(path)) == self.rule.key(name)
        except InvalidSecret:
            return None
        return path if same else None

    def _between(self, name: str) -> str:
        """What stands where a name has its path; empty: nothing. Raises InvalidSecret for what was not encoded."""
        around = self._template.around_path
        if around is None:
            return ""
        begins, ends = self.target.prefix + around[0], around[1]
        if self._reversible:
            name = decode(self.rule, name)
        else:
            begins, ends = self.rule.fit(begins), self.rule.fit(ends)
        end = len(name) - len(ends)
        if end < len(begins):
            return ""
        key = str if self._reversible else self.rule.key
        known = key(name[: len(begins)]) == key(begins) and key(name[end:]) == key(ends)
        return name[len(begins) : end] if known else ""

    @cached_property
    def _renamed(self) -> Mapping[str, str]:
        """The paths of the `rename` table, by the keys of their names."""
        paths: dict[str, str] = {}
        for path in self.target.rename:
            try:
                paths[self.rule.key(self.name(path))] = path
            except InvalidSecret:
                continue  # It is refused where it is to be written.
        return paths

    def _fit(self, plain: str) -> str:
        return fitted(self.target, self.rule, plain)

    def names(self, path: str, fields: Fields) -> list[str]:
        """All names of a path: one, or one a field of what `fields` become. Raises InvalidSecret, also when two fields
        share a name."""
        if not self.by_field:
            return [self.name(path)]
        return list(self.by_name(path, fields))

    def by_name(self, path: str, fields: Fields) -> dict[str, str]:
        """With granularity `field`: the field that each name holds. Raises InvalidSecret, as `names` does."""
        return self._named(path, self._chosen(path, fields, _nobody)) if self.by_field else {}

    def render(self, path: str, fields: Fields, note: field_rules.Note | None = None) -> dict[str, Rendered]:
        """What is to be written, by name; `note` is told each rule that did something. Raises InvalidSecret."""
        note = note or _nobody
        chosen = self._chosen(path, fields, note)
        try:
            done = transforms.transform(self.target.transform, path, chosen, note)
        except InvalidSecret as error:
            raise self._of(path, error) from None
        if not self.by_field:
            return {self.name(path): self._rendered(done.fields, done.meant, bool(done.sealed))}
        return {
            name: self._rendered({"value": done.fields[each]}, {"value": done.meant[each]}, each in done.sealed)
            for name, each in self._named(path, done.fields).items()
        }

    def _chosen(self, path: str, fields: Fields, note: field_rules.Note) -> Fields:
        if not self._shapes:
            return fields
        try:
            return field_rules.shape(self.target.fields, path, fields, note)
        except InvalidSecret as error:
            raise self._of(path, error) from None

    def _of(self, path: str, error: InvalidSecret) -> InvalidSecret:
        return InvalidSecret(error.message, vault=self.target.vault, path=path)

    def _rendered(self, fields: Fields, meant: Fields, sealed: bool) -> Rendered:
        if not sealed:
            return Rendered(Secret(fields=dict(fields)))
        # With the recipe, so that another recipient is another secret.
        return Rendered(Secret(fields=dict(fields)), {"fields": dict(meant), "recipe": self._values})

    def _named(self, path: str, fields: Iterable[str]) -> dict[str, str]:
        """Fields by name."""
        names: dict[str, tuple[str, str]] = {}
        for each in sorted(fields):
            name = self.name(path, each)
            other = names.setdefault(self.rule.key(name), (name, each))
            if other[1] != each:
                raise InvalidSecret(
                    f"its fields {other[1]!r} and {each!r} would both be written to {name!r}",
                    vault=self.target.vault,
                    path=path,
                )
        return dict(names.values())


def why_not_reversible(target: Target, source: NameRule | None, to: NameRule | None) -> str | None:
    """Why a name on the target would not tell its path again, in words; None: it is proven that it does.

    `source` and `to` are what the source's vault and the target's take. Where one of them is not known yet (None), only
    what does not depend on it is looked at.
    """
    if target.granularity is Granularity.FIELD:
        return "with granularity 'field' a path has several names, and a name holds a part of its value"
    if parse(target.name, PLACEHOLDERS).around_path is None:
        return (
            "a `name` can be read backwards only where it is text around one {path}, or around {dir}/{name}, unfiltered"
        )
    if target.name_encoding is NameEncoding.REVERSIBLE:
        return _why_not_encoded(to) if to is not None else None
    return _why_not_readable(source, to) if source is not None and to is not None else None


def _why_not_encoded(to: NameRule) -> str | None:
    try:
        encode(to, "")
    except InvalidSecret as error:
        return error.message
    return None


@lru_cache(maxsize=256)
def _why_not_readable(source: NameRule, to: NameRule) -> str | None:
    """Why a name that is written as `to` has it is not the same secret's in the source any more."""
    folds = to.ignores_case or to.upper_case
    if folds and not source.upper_case and (to.upper_case or not source.ignores_case):
        return "the source's vault tells capital from small letters in a name, and the target's does not"
    if to.allowed is None or source.allowed == to.allowed:
        return None
    if source.allowed is None:
        return f"the source's vault takes {source.wording}, the target's only {to.wording}"
    for char in _taken(source.allowed):
        if source.key(to.fit(char)) != source.key(char):
            return f"the source's vault takes {char!r} in a name, and the target's does not"
    return None


@lru_cache(maxsize=64)
def _taken(allowed: re.Pattern[str]) -> Sequence[str]:
    """All characters that match."""
    return [char for char in map(chr, range(sys.maxunicode + 1)) if allowed.fullmatch(char)]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one name of a target is to hold."""

    secret: Secret
    meaning: Fields | None = field(default=None, repr=False)
    """What tells it from another value, where what is stored does not: encryption gives another text each time."""


def _nobody(rule: str, what: str) -> None:
    """Is told what the rules did, where nobody asked."""


def _values_recipe(target: Target) -> str:
    """Identifies what changes values alone. Dear to compute, for keys and constants of people's choosing are part of it."""
    says: list[object] = [field_rules.texts(target.fields), transforms.recipe(target.transform)]
    if target.metadata != MetadataRules():
        carry = target.metadata
        says.append({"carry": sorted(carry.carry), "include": carry.include_tags, "exclude": carry.exclude_tags})
    return _slow_hash(canonical_json(says))


@lru_cache(maxsize=256)
def _slow_hash(text: str) -> str:
    # A recipe stands in the store for everybody to read: whoever guesses at a constant pays for each guess.
    return hashlib.scrypt(text.encode(), salt=b"vaultferry recipe", n=2**14, r=8, p=1, dklen=6).hex()


@dataclass(frozen=True, slots=True)
class Naming:
    """The target names of all paths, and what is wrong with some."""

    names: Mapping[str, Sequence[str]]
    """By path; a path whose names depend on its value, or that is refused, is not in here."""
    refused: Mapping[str, str]
    """By path: why it can not be written."""


def name_all(mapper: Mapper, paths: Iterable[str]) -> Naming:
    """Name every path before anything is written, so that two that would share a target name are both refused.

    With granularity `field` only a value tells the names: those are checked when they are written.
    """
    names: dict[str, Sequence[str]] = {}
    refused: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path in paths:
        try:
            if mapper.by_field:
                mapper.name(path, "x")
                continue
            name = mapper.name(path)
        except VaultError as error:
            refused[path] = error.message
            continue
        other = taken.setdefault(mapper.rule.key(name), path)
        if other != path:
            refused[path] = f"{other!r} and {path!r} {_SHARED_NAME} {name!r}: {APART}"
            refused[other] = f"{path!r} and {other!r} {_SHARED_NAME} {name!r}: {APART}"
            continue
        names[path] = [name]
    for path in refused:
        names.pop(path, None)
    return Naming(names, refused)


def is_shared_name(error: str | None) -> bool:
    """Whether this is why a path was refused: only who sees all paths can tell that it is over."""
    return error is not None and _SHARED_NAME in error


# --- digests -------------------------------------------------------------------------------------------------------


class Digester:
    """Keyed digests of what secrets hold: equal ones mean the same, and nobody without the key can guess at weak values."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self.key_id = hmac.new(self._key, b"vaultferry digest key id", hashlib.sha256).hexdigest()[:16]

    def digest(self, fields: Fields | Sequence[Any]) -> str:
        """HMAC-SHA256 of the canonical JSON, in hex. Raises InvalidSecret for what is not JSON."""
        try:
            data = canonical_json(_as_read_back(fields)).encode()
        except (ValueError, TypeError, RecursionError):
            raise InvalidSecret("its value is not JSON") from None
        return hmac.new(self._key, data, hashlib.sha256).hexdigest()

    def fingerprint(self, fields: Fields) -> str:
        """A fingerprint for vaults where only the value tells; another key gives another one."""
        return f"{self.key_id}:{self.digest(fields)}"


def _as_read_back(value: Any) -> Any:
    """A value with whole floats as integers: 1.0 and 1 are one number, and KV v2 gives the former back as the latter."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    if isinstance(value, Mapping):
        return {key: _as_read_back(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_read_back(each) for each in value]
    return value


def owner_mark(sync: Sync, source_address: str) -> str:
    """Who wrote a secret, for a target's tags: the sync and where its values come from.

    It names no installation on purpose: a lost store, or a second installation of the same sync, is no stranger.
    """
    origin = short_hash([source_address, sync.source.prefix, sync.source.resource])
    return f"{sync.id}@{origin}"


def short_hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:12]
