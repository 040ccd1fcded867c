"""Which folders or collections belong to a vault, and the prefixes that their names stand for.

The configured one (for an own vault without `folder`: everything) is the vault's root. What is nested below it, by its
name as the web vault shows it, stands for a prefix: below the collection `Prod`, items of `Prod/apps` are `apps/…`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import InvalidSecret, MountNotFound, VaultError
from shared.vaults.vaultwarden import crypto
from shared.vaults.vaultwarden.crypto import SymmetricKey
from shared.vaults.vaultwarden.settings import Settings

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Places:
    """`prefixes`: by the id of a folder or collection; None: items of the own vault that are in no folder."""

    organization_id: str | None
    prefixes: Mapping[str | None, str]
    unreadable: frozenset[str] = frozenset()
    """Ids of those whose names can not be decrypted: what is in them may belong to the vault or not."""
    read_only: frozenset[str] = frozenset()
    """Of those of the vault."""
    elsewhere: frozenset[str] = frozenset()
    """Folders that do not belong to the vault."""

    def prefix_of(self, item: Document) -> str | None:
        """None: the item is not in this vault. Raises InvalidSecret where nobody can tell."""
        if item.get("organizationId") != self.organization_id:
            return None
        if self.organization_id is not None and item.get("collectionIds") is None:
            raise InvalidSecret("the server has told nothing of its collections")
        places: Sequence[str | None] = [item.get("folderId")] if self.organization_id is None else item["collectionIds"]
        if not isinstance(places, list) or not all(place is None or isinstance(place, str) for place in places):
            raise InvalidSecret("it is not shaped as an item is")
        # An item may be in several collections, and has one name all the same: the shortest.
        found = sorted(
            (self.prefixes[place] for place in places if place in self.prefixes), key=lambda each: (len(each), each)
        )
        if found:
            return found[0]
        if any(place in self.unreadable for place in places):
            raise InvalidSecret("the name of its folder or collection can not be read")
        if self.organization_id is None and places[0] is not None and places[0] not in self.elsewhere:
            raise InvalidSecret("the server has told nothing of its folder")
        return None

    def home(self, name: str) -> tuple[str | None, str]:
        """Where a new item belongs, and what it is called there: in the deepest place that stands for its prefix."""
        prefix, place = max(
            (prefix, str(place or ""))
            for place, prefix in self.prefixes.items()
            if name.startswith(prefix) and (not prefix or place not in self.read_only)
        )
        return place or None, name.removeprefix(prefix)


def places(settings: Settings, sync: Document, user_key: SymmetricKey, keys: Mapping[str, SymmetricKey]) -> Places:
    """The places of this vault. `keys`: of the organisations, by id.

    Raises MountNotFound naming what there is, where the folder or collection does not exist.
    """
    if settings.organization is None:
        names, unreadable = _names(sync.get("folders"), user_key)
        if settings.folder is None:
            return Places(None, {None: "", **{each: f"{name}/" for each, name in names.items()}}, unreadable)
        prefixes = _below(settings.folder, names, unreadable, "folder", "in this account")
        return Places(None, prefixes, unreadable, elsewhere=frozenset(names) - frozenset(prefixes))
    organization = membership(settings, sync)
    collections = [each for each in sync.get("collections") or [] if each.get("organizationId") == organization["id"]]
    names, unreadable = _names(collections, keys[organization["id"]])
    where = f"of {settings.organization!r} that this account sees"
    prefixes = _below(settings.collection or "", names, unreadable, "collection", where)
    read_only = frozenset(each["id"] for each in collections if each.get("readOnly") and each["id"] in prefixes)
    return Places(organization["id"], prefixes, unreadable, read_only)


def membership(settings: Settings, sync: Document) -> Document:
    """The organisation that is configured, as the account's profile has it. Raises MountNotFound."""
    known = sync["profile"].get("organizations") or []
    found = [each for each in known if each.get("name") == settings.organization]
    # 2: confirmed. Until an owner has confirmed a member, there is no key for it.
    confirmed = [each for each in found if each.get("status", 2) == 2 and each.get("enabled", True) and each.get("key")]
    if len(confirmed) == 1:
        return dict(confirmed[0])
    if confirmed:
        ids = ", ".join(sorted(str(each.get("id")) for each in confirmed))
        raise MountNotFound(f"this account is in several organisations called {settings.organization!r}: {ids}")
    if found:
        raise MountNotFound(
            f"the organisation {settings.organization!r} is disabled, or has not confirmed this account yet"
        )
    raise MountNotFound(
        f"this account is in no organisation {settings.organization!r}; {_listed(each.get('name') for each in known)}"
    )


def _names(documents: Any, key: SymmetricKey) -> tuple[dict[str, str], frozenset[str]]:
    names, unreadable = {}, set()
    for each in documents or []:
        try:
            names[str(each["id"])] = crypto.decrypt_text(str(each.get("name")), key)
        except VaultError:
            unreadable.add(str(each["id"]))
    return names, frozenset(unreadable)


def _below(
    root: str, names: Mapping[str, str], unreadable: frozenset[str], what: str, where: str
) -> dict[str | None, str]:
    """The root itself and what is nested in it: by id, the prefix."""
    roots = sorted(each for each, name in names.items() if name == root)
    if len(roots) > 1:
        raise MountNotFound(f"there are several {what}s called {root!r}, rename one: {', '.join(roots)}")
    if not roots:
        damaged = f"; the names of {len(unreadable)} can not be read" if unreadable else ""
        raise MountNotFound(f"there is no {what} {root!r} {where}; {_listed(names.values())}{damaged}")
    nested: dict[str | None, str] = {
        each: f"{name.removeprefix(root + '/')}/" for each, name in names.items() if name.startswith(root + "/")
    }
    return {roots[0]: "", **nested}


def _listed(names: Any) -> str:
    shown = sorted({repr(str(name)[:60]) for name in names})
    if not shown:
        return "there are none"
    rest = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return f"there are: {', '.join(shown[:10])}{rest}"
