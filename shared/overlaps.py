"""Pure: syncs that get in each other's way, as far as their configuration alone can tell.

Two answers, kept apart. What is *certain* is shown by a name: it is followed through the mappings, and ends where another
sync puts its own, or where the first one reads. What is *possible* is that two parts of a vault have names in common, by
what those begin with; a name there may never exist.

A two-way sync writes its source as well, and reads its targets.

Names are compared as a vault takes them: `Shop/db` and `shop-db` are one name in a Key Vault. And vaults are told apart by
where they are, not by their ids, as far as their settings say it.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from shared.errors import InvalidSecret
from shared.mapping import PLACEHOLDERS, Mapper, fitted, path_below, why_left_out
from shared.model import Granularity, NameEncoding, Sync, Target
from shared.templates import Placeholder, of_path, parse
from shared.vault import NameRule


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known of a vault before anybody asks it."""

    place: Hashable
    """Equal for the same vault under another id."""
    names: NameRule = field(default_factory=NameRule)
    known: bool = True
    """Whether `names` is what it takes: else nobody can tell how names are encoded there."""


Grounds: TypeAlias = Mapping[tuple[str, str], Ground]
"""By vault and resource. One that is not in here is a vault of its own that takes any name."""

_NOWHERE: Grounds = MappingProxyType({})
_WILDCARD = re.compile(r"[*?]")
_AS_IT_IS = (Placeholder("path"), Placeholder("dir"))


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One target of one sync. Equal to itself alone."""

    sync: Sync
    index: int
    back: bool = False
    """From the target to the source, as a two-way sync carries too."""
    grounds: Grounds = field(default_factory=dict, repr=False)

    @property
    def target(self) -> Target:
        return self.sync.targets[self.index]

    @property
    def resource(self) -> str:
        return self.sync.source.resource

    @property
    def reads(self) -> str:
        """The vault that it reads from."""
        return self.target.vault if self.back else self.sync.source.vault

    @property
    def writes(self) -> str:
        return self.sync.source.vault if self.back else self.target.vault

    @property
    def read_at(self) -> Ground:
        return self._ground(self.reads)

    @property
    def written_at(self) -> Ground:
        return self._ground(self.writes)

    @property
    def source_at(self) -> Ground:
        return self._ground(self.sync.source.vault)

    def _ground(self, vault: str) -> Ground:
        return self.grounds.get((vault, self.resource)) or Ground(vault, known=False)

    def fit(self, plain: str) -> str:
        """A name, or the beginning of one, as the vault that is written knows it."""
        rule = self.written_at.names
        if self.back:
            return rule.key(plain)
        try:
            return rule.key(fitted(self.target, rule, plain))
        except InvalidSecret:
            return rule.key(plain)  # It can not be encoded: nothing is ever written.

    def begins_like(self, other: Route) -> bool:
        """Whether both begin at one side of one sync."""
        return self.sync is other.sync and self.back is other.back and (self.index == other.index or not self.back)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two ends that write the same names."""

    one: Route
    other: Route
    certain: bool


@dataclass(frozen=True, slots=True)
class Cycle:
    """Ways each of which writes what the next one reads, and the last what the first reads."""

    routes: tuple[Route, ...]
    certain: bool


def find_overlaps(syncs: Iterable[Sync], grounds: Grounds = _NOWHERE) -> Iterator[Overlap]:
    """Pairs of ends that write, or may write, the same names. Of one sync's targets, only those that surely do."""
    by_vault: dict[tuple[Hashable, str], list[Route]] = defaultdict(list)
    for route in _routes(syncs, grounds):
        if not route.back or route.index == 0:  # However many targets there are, the source is written once.
            by_vault[route.written_at.place, route.resource].append(route)
    for routes in by_vault.values():
        regions = [_written(route) for route in routes]
        for at, to in _near(regions):
            one, other = routes[at], routes[to]
            if one.sync is other.sync and (one.back or other.back):
                continue
            certain = _same_names(one, other)
            if certain or (one.sync is not other.sync and regions[at].meets(regions[to])):
                yield Overlap(one, other, certain)


def find_cycles(syncs: Iterable[Sync], grounds: Grounds = _NOWHERE) -> Iterator[Cycle]:
    """The shortest cycles of several syncs, each told once. (A sync that reads what it writes itself is refused alone.)"""
    routes = list(_routes(syncs, grounds))
    following: dict[Route, list[Route]] = {route: [] for route in routes}
    for vault in {(route.written_at.place, route.resource) for route in routes}:
        writers = [route for route in routes if (route.written_at.place, route.resource) == vault]
        readers = [route for route in routes if (route.read_at.place, route.resource) == vault]
        if not readers:
            continue
        regions = [*map(_written, writers), *map(_read, readers)]
        for at, to in _near(regions):
            if at < len(writers) <= to and regions[at].meets(regions[to]):
                writer, reader = writers[at], readers[to - len(writers)]
                if writer.sync is not reader.sync:
                    following[writer].append(reader)
    told: set[frozenset[str]] = set()
    for route in routes:
        cycle = _shortest(route, following)
        if cycle and (ids := frozenset(each.sync.id for each in cycle)) not in told:
            told.add(ids)
            yield Cycle(cycle, _comes_back(cycle))


def _routes(syncs: Iterable[Sync], grounds: Grounds) -> Iterator[Route]:
    for sync in syncs:
        for index in range(len(sync.targets)):
            yield Route(sync, index, grounds=grounds)
            if sync.two_way:
                yield Route(sync, index, back=True, grounds=grounds)


def _shortest(start: Route, following: Mapping[Route, Sequence[Route]]) -> tuple[Route, ...]:
    """The shortest way from a route back to where it begins; empty: there is none."""
    waiting: deque[tuple[Route, ...]] = deque([(start,)])
    seen = {start}
    while waiting:
        way = waiting.popleft()
        for each in following[way[-1]]:
            if each.begins_like(start) and len(way) > 1:
                return way
            if each not in seen:
                seen.add(each)
                waiting.append((*way, each))
    return ()


# --- by a name that goes all the way ----------------------------------------------------------------------------------


def _same_names(one: Route, other: Route) -> bool:
    """Whether a secret of one source is given one name by both."""
    a, b = one.sync.source, other.sync.source
    alike = one.back is other.back and (one.back or one.target.granularity is other.target.granularity)
    if not one.back and one.target.name_encoding is not other.target.name_encoding:
        alike = alike and one.written_at.known
    by_field = one.target.granularity is Granularity.FIELD
    if a.resource != b.resource or one.source_at.place != other.source_at.place or not alike:
        return False
    if by_field and one.target.fields != other.target.fields:
        # They may each take fields of their own.
        return False
    names = [one.sync.source.prefix + path for path in _samples(one.sync)]
    names += [other.sync.source.prefix + path for path in _samples(other.sync)]
    for name in names:
        paths = _covered(one, name), _covered(other, name)
        if None not in paths and _name(one, str(paths[0])) == _name(other, str(paths[1])):
            return True
    return False


def _comes_back(cycle: Sequence[Route]) -> bool:
    """Whether a secret that one of them carries is carried on by all, and ends where the first reads it again."""
    encoded = (route.target.name_encoding is NameEncoding.REVERSIBLE for route in cycle)
    if any(encoded) and not all(route.written_at.known for route in cycle):
        return False
    for at in range(len(cycle)):
        order = (*cycle[at:], *cycle[:at])
        for sample in _samples(order[0].sync):
            path: str | None = sample
            for route, then in zip(order, (*order[1:], order[0]), strict=True):
                path = _path(then, _name(route, path)) if path is not None else None
            if path is not None:
                return True
    return False


def _samples(sync: Sync) -> list[str]:
    """Paths that the sync covers, one for each include pattern that is no expression."""
    globs = [pattern for pattern in sync.include if not pattern.startswith("regex:")]
    paths = [re.sub(r"\*+|\?", "x", glob.replace("**/", "")) for glob in globs]
    return [path for path in paths if why_left_out(sync, path) is None]


def _covered(route: Route, name: str) -> str | None:
    """A source's name as the sync's path; None: the sync leaves it alone."""
    sync = route.sync
    path = path_below(sync.source.prefix, name, route.source_at.names)
    return path if path and why_left_out(sync, path) is None else None


def _path(route: Route, name: str) -> str | None:
    """What is read there, as the sync's path; None: the sync leaves it alone."""
    if not route.back:
        return _covered(route, name)
    path = Mapper(route.target, route.read_at.names).path_of(name)
    return path if path is not None and why_left_out(route.sync, path) is None else None


def _name(route: Route, path: str) -> str:
    """What it is called where it is written."""
    target = route.target
    if route.back:
        return route.fit(route.sync.source.prefix + path)
    template = parse(target.rename.get(path, target.name), PLACEHOLDERS)
    return route.fit(target.prefix + template.render(of_path(path, "x").__getitem__))


# --- by what names begin with -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Names that begin with a text, or the one name that is the text."""

    text: str
    whole: bool = False

    def within(self, other: _Part) -> bool:
        return self.text == other.text if other.whole else self.text.startswith(other.text)


@dataclass(frozen=True, slots=True)
class _Region:
    """A part of a vault: names that are in one of the parts and in none of the holes. It may well hold fewer."""

    parts: tuple[_Part, ...]
    holes: tuple[_Part, ...]

    def meets(self, other: _Region) -> bool:
        return any(
            self._has(inner) and other._has(inner)
            for one in self.parts
            for two in other.parts
            for inner in ([one] if one.within(two) else [two] if two.within(one) else [])
        )

    def told(self, fit: Callable[[str], str]) -> _Region:
        """The same, with each text as the vault knows it."""
        return _Region(
            tuple(_Part(fit(part.text), part.whole) for part in self.parts),
            tuple(_Part(fit(hole.text), hole.whole) for hole in self.holes),
        )

    def _has(self, part: _Part) -> bool:
        return not any(part.within(hole) and (part.whole or not hole.whole) for hole in self.holes)


def _near(regions: Sequence[_Region]) -> list[tuple[int, int]]:
    """Which regions, by their places in the list, have parts of which one begins with the other: few, where there are many
    side by side. None that meet are left out."""
    found: set[tuple[int, int]] = set()
    around: list[tuple[str, int]] = []
    for text, at in sorted((part.text, at) for at, region in enumerate(regions) for part in region.parts):
        while around and not text.startswith(around[-1][0]):
            around.pop()
        found.update((min(at, other), max(at, other)) for _, other in around if other != at)
        around.append((text, at))
    return sorted(found)


def _read(route: Route) -> _Region:
    if route.back:
        return _at_target(route).told(Route(route.sync, route.index, grounds=route.grounds).fit)
    return _at_source(route.sync).told(route.read_at.names.key)


def _written(route: Route) -> _Region:
    return (_at_source(route.sync) if route.back else _at_target(route)).told(route.fit)


def _at_source(sync: Sync) -> _Region:
    return _below(sync.source.prefix, sync, whole=True)


def _at_target(route: Route) -> _Region:
    target = route.target
    template = parse(target.name, PLACEHOLDERS)
    begins = target.prefix + template.head
    rest = template.pieces[1:] if template.head else template.pieces
    renamed = tuple(_beginning(target, name) for name in target.rename.values())
    if not rest or rest[0] not in _AS_IT_IS or (rest[0] == Placeholder("dir") and not template.keeps("path")):
        return _Region((_beginning(target, target.name), *renamed), ())
    region = _below(begins, route.sync, whole=len(rest) == 1)
    # A name of the table may well lie where `exclude` leaves a hole.
    return _Region((*region.parts, *renamed), () if renamed else region.holes)


def _beginning(target: Target, text: str) -> _Part:
    template = parse(text, PLACEHOLDERS)
    return _Part(target.prefix + template.head, whole=not template.placeholders)


def _below(prefix: str, sync: Sync, *, whole: bool) -> _Region:
    """The paths that a sync covers, behind a prefix. `whole`: nothing follows them."""
    parts = tuple(_Part(prefix + part.text, part.whole and whole) for part in map(_head, sync.include))
    # Only an exclude pattern that leaves out everything below it makes a hole for certain.
    holes = tuple(
        _Part(prefix + head.text, head.whole)
        for pattern, head in ((each, _head(each)) for each in sync.exclude)
        if (head.whole and whole) or pattern == f"{head.text}**"
    )
    return _Region(parts, holes)


def _head(pattern: str) -> _Part:
    """What the paths that a pattern matches begin with."""
    if pattern.startswith("regex:"):
        return _Part("")
    found = _WILDCARD.search(pattern)
    return _Part(pattern[: found.start()]) if found else _Part(pattern, whole=True)
