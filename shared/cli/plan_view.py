"""A plan as a person reads it: what would change on each target, sorted, with the reason of each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from shared.cli.output import BAD, GOOD, QUIET, STRONG, UNSURE, plural, printable
from shared.plan import ChangeKind

if TYPE_CHECKING:
    from shared.cli.session import Session
    from shared.model import Sync

WIDEST = 60
"""Columns that a name may take before it pushes its reason aside."""

STYLES = {"+": GOOD, "~": UNSURE, "-": BAD, "!": BAD}
WORDS = {
    ChangeKind.CREATE: "to create",
    ChangeKind.UPDATE: "to update",
    ChangeKind.DRIFT: "to repair",
    ChangeKind.DELETE: "to delete",
    ChangeKind.FAIL: "can not be carried",
    ChangeKind.KEEP: "kept",
    ChangeKind.SKIP: "skipped",
}


def show_plan(session: Session, sync: Sync, document: dict[str, Any]) -> None:
    from rich.cells import cell_len

    out = session.out
    for target in sync.targets:
        items = [item for item in document["items"] if item["target"] == target.id]
        out.line((f"{sync.id}: {sync.source.vault} → {target.id}", STRONG))
        if document["error"] is None and not items:
            out.line("  no changes")
        cells = [_cells(item, target.prefix) for item in items]
        widths = [min(WIDEST, max((cell_len(cell[column]) for cell in cells), default=0)) for column in (0, 1)]
        for item, cell in zip(items, cells, strict=True):
            path, names = (text + " " * (width - cell_len(text)) for text, width in zip(cell, widths, strict=True))
            sign = ChangeKind(item["change"]).sign
            named = f"  {names}" if widths[1] else ""
            out.line((f"  {sign} ", STYLES.get(sign, QUIET)), path, named, (f"  {item['reason']}", QUIET))
        if held := document.get("blocked", {}).get(target.id):
            out.line(("  the deletes would wait for approval: ", UNSURE), held)
            out.line(f"  `{session.command(f'sync {sync.id} --allow-deletes')}` would delete them all the same")
    if document["error"]:
        out.line(("error: ", BAD), document["error"])
    out.line((_summary(document), STRONG))


def _cells(item: dict[str, Any], prefix: str) -> tuple[str, str]:
    """The path, and what it is called on the target where that is not the path itself."""
    path, names = printable(item["path"]), [printable(name) for name in item["names"]]
    return path, "" if names in ([], [prefix + path]) else f"→ {', '.join(names)}"


def _summary(document: dict[str, Any]) -> str:
    counts = Counter(ChangeKind(item["change"]) for item in document["items"])
    parts = [f"{counts[kind]:,} {words}" for kind, words in WORDS.items() if counts[kind]]
    unchanged = document.get("unchanged", 0) - counts[ChangeKind.SKIP]
    if not parts:
        return f"Plan: nothing to do; {plural(unchanged, 'secret')} as they should be."
    return f"Plan: {', '.join(parts)}; {unchanged:,} unchanged."
