"""A plan as a person reads it: what would change on each target, sorted, with the reason of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.cli.output import BAD, GOOD, QUIET, STRONG, UNSURE, Part, plural, printable
from shared.model import SOURCE_SIDE
from shared.plan import ChangeKind

if TYPE_CHECKING:
    from shared.cli.session import Session
    from shared.model import Sync

WIDEST = 60
"""Columns that a name may take before it pushes its reason aside."""
FIELDS_SHOWN = 8
"""Names of one sort, for each secret; the rest is counted."""

STYLES = {"+": GOOD, "~": UNSURE, "-": BAD, "!": BAD}
WORDS = {
    ChangeKind.CREATE: "to create",
    ChangeKind.UPDATE: "to update",
    ChangeKind.DRIFT: "to repair",
    ChangeKind.DELETE: "to delete",
    ChangeKind.CONFLICT: "in conflict",
    ChangeKind.FAIL: "can not be carried",
    ChangeKind.KEEP: "kept",
    ChangeKind.SKIP: "skipped",
}
FIELD_SIGNS = (("added", "+"), ("changed", "~"), ("removed", "-"))


def show_plan(session: Session, sync: Sync, document: Mapping[str, Any]) -> None:
    out = session.out
    for unit in sync.units:
        items = [item for item in document["items"] if item["target"] == unit.id]
        if document["error"] and not items:
            continue
        others = ", ".join(target.id for target in sync.targets)
        title = f"{sync.source.vault} ⇄ {others}" if sync.two_way else f"{sync.source.vault} → {unit.id}"
        out.line((f"{sync.id}: {title}", STRONG))
        if not items:
            out.line("  no changes")
        _show_items(session, sync, items)
        if held := document["blocked"].get(unit.id):
            out.line(("  the deletes would wait for approval: ", UNSURE), held)
            out.line(f"  `{session.command(f'sync {sync.id} --allow-deletes')}` would delete them all the same")
    if document["error"]:
        out.line(("error: ", BAD), f"{sync.id}: {document['error']}")
    out.line((_summary(sync, document), STRONG))
    for target, why in document["unseen"].items():
        out.line((f"{target}: ", UNSURE), why)


def _show_items(session: Session, sync: Sync, items: Sequence[Mapping[str, Any]]) -> None:
    from rich.cells import cell_len

    cells = [_cells(item, sync) for item in items]
    widths = [min(WIDEST, max((cell_len(cell[column]) for cell in cells), default=0)) for column in (0, 1)]
    for item, cell in zip(items, cells, strict=True):
        path, names = (text + " " * (width - cell_len(text)) for text, width in zip(cell, widths, strict=True))
        sign = ChangeKind(item["change"]).sign
        named = f"  {names}" if widths[1] else ""
        held = [("; waits for approval", UNSURE)] if item["held"] else []
        session.out.line((f"  {sign} ", STYLES.get(sign, QUIET)), path, named, (f"  {item['reason']}", QUIET), *held)
        if fields := _fields(item["fields"]):
            session.out.line("      ", *fields)


def _cells(item: Mapping[str, Any], sync: Sync) -> tuple[str, str]:
    """The path, and where that is to be: on which side of a two-way sync, and as what where that is not the path itself."""
    path, names = printable(item["path"]), [printable(name) for name in item["names"]]
    if item["side"] == SOURCE_SIDE:
        side, prefix = sync.source.vault, sync.source.prefix
    else:
        target = sync.target(item["side"] or item["target"])
        side, prefix = item["side"] or "", target.prefix if target else ""
    named = "" if names in ([], [prefix + path]) else ", ".join(names)
    told = " ".join(each for each in (side, named) if each)
    return path, f"→ {told}" if told else ""


def _fields(fields: Mapping[str, Sequence[str]] | None) -> list[Part]:
    """Which fields change, by name. Of a secret that is one text, its sign says it."""
    parts: list[Part] = []
    if fields and [name for key, _ in FIELD_SIGNS for name in fields[key]] == ["value"]:
        return parts
    for key, sign in FIELD_SIGNS:
        names = fields[key] if fields else []
        if not names:
            continue
        more = f" and {len(names) - FIELDS_SHOWN} more" if len(names) > FIELDS_SHOWN else ""
        shown = ", ".join(map(printable, names[:FIELDS_SHOWN]))
        parts += [f"{'  ' if parts else ''}", (f"{sign} ", STYLES[sign]), f"{shown}{more}"]
    return parts


def covers_nothing(sync: Sync) -> str:
    """What to say where neither source nor memory has anything: that may be meant, or a slip."""
    below = f"below {sync.source.prefix!r} " if sync.source.prefix else ""
    return f"{sync.source.vault} has no secret {below}that {sync.id} covers"


def _summary(sync: Sync, document: Mapping[str, Any]) -> str:
    counts = Counter(ChangeKind(item["change"]) for item in document["items"])
    parts = [f"{counts[kind]:,} {words}" for kind, words in WORDS.items() if counts[kind]]
    unchanged = document["unchanged"] - counts[ChangeKind.SKIP]
    if document["error"]:
        return f"Plan, as far as it could be made: {', '.join(parts)}." if parts else "Plan: it could not be made."
    if document["unseen"]:
        known = ", ".join(parts) or "nothing to do"
        return f"Plan, as far as can be seen: {known}."
    if not document["items"] and not document["unchanged"]:
        return f"Plan: nothing to do; {covers_nothing(sync)}."
    if not parts:
        return f"Plan: nothing to do; {plural(unchanged, 'secret')} as they should be."
    return f"Plan: {', '.join(parts)}; {unchanged:,} unchanged."
