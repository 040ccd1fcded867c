"""Pure: which paths a sync covers, and what each is called and holds on a target."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.errors import InvalidSecret, VaultError
from shared.model import Fields, Granularity, NameEncoding, Secret, Sync, Target, canonical_json
from shared.name_encoding import encode
from shared.templates import Template, of_path, parse
from shared.vault import NameRule, check_name

FORMAT = 1
"""Part of every recipe. Raised when the same options would give another result than before."""

_SHARED_NAME = "would both be written to"
PLACEHOLDERS = ("path", "name", "dir", "field")
"""What a target's name may be made from; `name` is a path's last segment, `dir` what stands before it."""


# --- which paths ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A filter as a regular expression for the whole path.

    `*` and `?` stop at `/`, `**` does not; `**/` also stands for no folder. `regex:` gives an expression as it is.
    Raises re.error.
    """
    if pattern.startswith("regex:"):
        return re.compile(pattern.removeprefix("regex:"))
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        else:
            char = pattern[at]
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
            at += 1
    return re.compile("".join(parts), re.DOTALL)


def why_left_out(sync: Sync, path: str) -> str | None:
    """Which rule keeps this path out of the sync, in words; None: it is covered. Exclude wins."""
    for pattern in sync.exclude:
        if compile_pattern(pattern).fullmatch(path):
            return f"excluded by {pattern!r}"
    if not any(compile_pattern(pattern).fullmatch(path) for pattern in sync.include):
        return "no include rule matches"
    return None


def path_below(prefix: str, name: str, rule: NameRule) -> str | None:
    """A vault's name as a path below a sync's prefix; None: it is not below it."""
    return name[len(prefix) :] if rule.key(name[: len(prefix)]) == rule.key(prefix) else None


# --- what they are called and hold -----------------------------------------------------------------------------------


class Mapper:
    """How one target of a sync names and shapes what it is given."""

    def __init__(self, target: Target, rule: NameRule) -> None:
        self.target = target
        self.rule = rule
        self._reversible = target.name_encoding is NameEncoding.REVERSIBLE
        self._template = parse(target.name, PLACEHOLDERS)
        self.recipe = _short_hash(
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
            ]
        )
        """Identifies this mapping: a state row with another recipe is due again."""

    @property
    def by_field(self) -> bool:
        return self.target.granularity is Granularity.FIELD

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

    def _fit(self, plain: str) -> str:
        return encode(self.rule, plain) if self._reversible else self.rule.fit(plain)

    def names(self, path: str, fields: Iterable[str] = ()) -> list[str]:
        """All names of a path: one, or one a field. Raises InvalidSecret, also when two fields share a name."""
        if not self.by_field:
            return [self.name(path)]
        names: dict[str, tuple[str, str]] = {}
        for field in sorted(fields):
            name = self.name(path, field)
            other = names.setdefault(self.rule.key(name), (name, field))
            if other[1] != field:
                raise InvalidSecret(
                    f"its fields {other[1]!r} and {field!r} would both be written to {name!r}",
                    vault=self.target.vault,
                    path=path,
                )
        return [name for name, _ in names.values()]

    def render(self, path: str, fields: Fields) -> dict[str, Secret]:
        """What is to be written, by name. Raises InvalidSecret."""
        if not self.by_field:
            return {self.name(path): Secret(fields=dict(fields))}
        names = self.names(path, fields)
        return {
            name: Secret(fields={"value": fields[field]}) for name, field in zip(names, sorted(fields), strict=True)
        }


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
            refused[path] = f"{other!r} and {path!r} {_SHARED_NAME} {name!r}"
            refused[other] = f"{path!r} and {other!r} {_SHARED_NAME} {name!r}"
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
    """Keyed digests of fields: equal ones mean equal secrets, and nobody without the key can guess at weak values."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()
        self.key_id = hmac.new(self._key, b"vaultferry digest key id", hashlib.sha256).hexdigest()[:16]

    def digest(self, fields: Fields) -> str:
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
    origin = _short_hash([source_address, sync.source.prefix, sync.source.resource])
    return f"{sync.id}@{origin}"


def _short_hash(parts: Sequence[object]) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:12]
