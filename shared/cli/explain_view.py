"""How one secret comes from its source to each target, rule by rule: as JSON, and as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.cli.output import BAD, QUIET, STRONG, UNSURE, printable
from shared.errors import SecretNotFound, VaultError
from shared.explanation import Explanation, coverage, explain
from shared.mapping import Mapper

if TYPE_CHECKING:
    from shared.app import App
    from shared.cli.session import Session
    from shared.model import Fields, Sync, Target


async def explained(app: App, sync: Sync, path: str) -> dict[str, Any]:
    """The document for one sync. The source is read, for the names of fields stand in values; nothing is written."""
    covered, by = coverage(sync, path)
    fields, error = await _source_fields(app, sync, path)
    return {
        "sync_id": sync.id,
        "path": path,
        "covered": covered,
        "by": by.what,
        "source": {
            "vault": sync.source.vault,
            "name": sync.source.prefix + path,
            "fields": None if fields is None else sorted(fields),
            "error": error,
        },
        "targets": [await _target(app, sync, target, path, fields) for target in sync.targets] if covered else [],
    }


async def _source_fields(app: App, sync: Sync, path: str) -> tuple[Fields | None, str | None]:
    try:
        vault = await app.vaults.get(sync.source.vault, sync.source.resource)
        return (await vault.get_secret(sync.source.prefix + path)).fields, None
    except SecretNotFound:
        prefix = sync.source.prefix
        hint = f" (a path is what follows {prefix!r})" if prefix and path.startswith(prefix) else ""
        return None, f"there is no such secret{hint}, so only its name is explained"
    except VaultError as error:
        return None, f"{error.message}, so only its name is explained"


async def _target(app: App, sync: Sync, target: Target, path: str, fields: Fields | None) -> dict[str, Any]:
    try:
        vault = await app.vaults.get(target.vault, sync.source.resource)
        found = explain(Mapper(target, vault.capabilities.names), path, fields)
    except VaultError as error:
        found = Explanation((), (), error.message)
    return {
        "target": target.id,
        "vault": target.vault,
        "rules": [{"rule": each.rule, "what": each.what} for each in found.rules],
        "names": [{"name": each.name, "fields": each.fields} for each in found.names],
        "error": found.error,
    }


def show_explained(session: Session, document: dict[str, Any]) -> None:
    out = session.out
    source = document["source"]
    out.line((f"{document['sync_id']}: {source['vault']}:{printable(source['name'])}", STRONG))
    if source["fields"] is not None:
        out.line("  fields: ", ", ".join(map(printable, source["fields"])) or "none")
    if source["error"]:
        out.line((f"  {printable(source['error'])}", UNSURE))
    out.line(f"  {printable(document['by'])}", ("" if document["covered"] else ": this sync leaves it alone", QUIET))
    for target in document["targets"]:
        out.line((f"→ {target['target']}", STRONG))
        width = max((len(each["rule"]) for each in target["rules"]), default=0)
        for each in target["rules"]:
            out.line((f"  {printable(each['rule']):<{width}}  ", QUIET), printable(each["what"]))
        for each in target["names"]:
            held = "" if each["fields"] is None else f" with {', '.join(map(printable, each['fields'])) or 'no field'}"
            out.line("  is ", (f"{target['vault']}:{printable(each['name'])}", STRONG), held)
        if target["error"]:
            out.line(("  can not be written: ", BAD), printable(target["error"]))
