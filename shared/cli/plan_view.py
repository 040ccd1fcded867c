"""A plan as a person reads it: what would change on each target, sorted, with the reason of each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from shared.cli.output import BAD, GOOD, QUIET, STRONG, UNSURE, Part, plural, printable
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
    out = session.out
    for target in sync.targets:
        items = [item for item in document["items"] if item["target"] == target.id]
        out.line((f"{sync.id}: {sync.source.vault} → {target.id}", STRONG))
        if document["error"] is None and not items:
            out.line("  no changes")
        paths = [printable(item["path"]) for item in items]
        width = min(WIDEST, max(map(len, paths), default=0))
        for item, path in zip(items, paths, strict=True):
            out.line(*_line(item, path.ljust(width), target.prefix))
        if held := document.get("blocked", {}).get(target.id):
            out.line(("  the deletes would wait for approval: ", UNSURE), held)
            out.line(f"  `{session.command(f'sync {sync.id} --allow-deletes')}` would delete them all the same")
    if document["error"]:
        out.line(("error: ", BAD), document["error"])
    out.line((_summary(document), STRONG))
    out.line()


def _line(item: dict[str, Any], path: str, prefix: str) -> list[Part]:
    kind = ChangeKind(item["change"])
    names = [printable(name) for name in item["names"]]
    # A name that is only the path below the target's prefix tells nothing new.
    shown = "" if names in ([], [prefix + path.rstrip()]) else f"→ {', '.join(names)}  "
    style = STYLES.get(kind.sign, QUIET)
    return [("  " + kind.sign + " ", style), path + "  ", (shown, ""), (item["reason"], QUIET)]


def _summary(document: dict[str, Any]) -> str:
    counts = Counter(ChangeKind(item["change"]) for item in document["items"])
    parts = [f"{counts[kind]:,} {words}" for kind, words in WORDS.items() if counts[kind]]
    unchanged = document.get("unchanged", 0) - counts[ChangeKind.SKIP]
    if not parts:
        return f"Plan: nothing to do; {plural(unchanged, 'secret')} as they should be."
    return f"Plan: {', '.join(parts)}; {unchanged:,} unchanged."
