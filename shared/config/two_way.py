"""Pure: what a two-way sync can not have, and what it says for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from shared.config.problems import Place
from shared.mapping import PLACEHOLDERS, why_not_reversible
from shared.model import SOURCE_SIDE, Granularity, NameEncoding, OnExisting, Sync, Target
from shared.name_encoding import encode
from shared.rules import FieldRules, MetadataRules
from shared.settings import VaultSettings
from shared.templates import parse
from shared.vault import NameRule

_BACK = "what is changed there could not be carried back"


def refusals(sync: Sync, configured: Mapping[str, VaultSettings | None]) -> Iterator[tuple[Place, str, str]]:
    """What a two-way sync can not do: place below the sync, message, hint. A vault that is not right itself (None) is
    taken for one that takes any names."""
    if sync.on_existing is not OnExisting.OVERWRITE:
        yield (
            ("on_existing",),
            "has no meaning in a two-way sync: where both sides hold a secret at first, `conflict` decides",
            "leave it out",
        )
    if not sync.verify_targets:
        yield ("verify_targets",), "a two-way sync looks at all its sides in every run", "leave it out"
    for index, target in enumerate(sync.targets):
        rules = _rule(sync, sync.source.vault, configured), _rule(sync, target.vault, configured)
        for key, message, hint in _of_target(sync, target, *rules):
            yield ("targets", index, key), message, hint
    for (one, a), (other, b) in combinations(enumerate(sync.targets), 2):
        if a.vault == b.vault and _meet(a, b, _rule(sync, a.vault, configured)):
            yield (
                ("targets", other, "vault"),
                f"a loop: this target would take what is carried to targets[{one}] for its own, for both are in one vault "
                "and the names of one begin as those of the other do",
                "choose prefixes side by side",
            )


def _of_target(
    sync: Sync, target: Target, source: NameRule | None, to: NameRule | None
) -> Iterator[tuple[str, str, str]]:
    if target.id in (SOURCE_SIDE, sync.source.vault):
        which = "the source is called so" if target.id == SOURCE_SIDE else "it is the id of the source's vault"
        yield "id", f"{which} in a two-way sync", "give this target another `id`"
    if target.fields != FieldRules():
        yield "fields", f"a two-way sync carries all fields as they are: {_BACK}", "use a one-way sync"
    if target.transform:
        yield "transform", f"a two-way sync carries values as they are: {_BACK}", "use a one-way sync"
    if target.metadata != MetadataRules():
        yield (
            "metadata",
            "a two-way sync carries values alone: what it compares and settles are those",
            "leave it out, or use a one-way sync",
        )
    if target.granularity is Granularity.FIELD:
        why = why_not_reversible(target, None, None)
        yield "granularity", f"{why}: {_BACK}", "leave it out, or use a one-way sync"
    elif why := why_not_reversible(target, None, None):
        yield "name", f"{why}: {_BACK}", "use '{path}', perhaps with text around it"
    elif why := why_not_reversible(target, source, to):
        readable = target.name_encoding is NameEncoding.READABLE
        yield (
            "name_encoding",
            f"{why}: {_BACK}",
            "add `name_encoding: reversible`" if readable else "use a one-way sync",
        )


def _rule(sync: Sync, vault_id: str, configured: Mapping[str, VaultSettings | None]) -> NameRule | None:
    settings = configured.get(vault_id)
    return settings.name_rule(sync.source.resource) if settings is not None else None


def _meet(one: Target, other: Target, rule: NameRule | None) -> bool:
    """Whether names of two targets begin and end alike, so that one would read what the other has written."""
    a, b = _around(one, rule or NameRule()), _around(other, rule or NameRule())
    if a is None or b is None:
        return False
    begin = a[0].startswith(b[0]) or b[0].startswith(a[0])
    end = a[1].endswith(b[1]) or b[1].endswith(a[1])
    return begin and end


def _around(target: Target, rule: NameRule) -> tuple[str, str] | None:
    """What the target's names surely begin and end with; None: it is refused anyway."""
    found = parse(target.name, PLACEHOLDERS).around_path
    if found is None or why_not_reversible(target, None, rule):
        return None
    # A name of the table begins with the prefix, and ends as it likes.
    begins, ends = ("", "") if target.rename else found
    if target.name_encoding is NameEncoding.REVERSIBLE:
        return rule.key(encode(rule, target.prefix + begins)), ""
    return rule.key(rule.fit(target.prefix + begins)), rule.key(rule.fit(ends))
