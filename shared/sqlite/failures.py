"""SQLite's errors in words for a person."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from shared.errors import StoreError, permanent


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """What SQLite's error means to a person; `transient` says whether trying again may help."""
    match code_of(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(f"the database {path} is locked by another process; it is tried again")
        case sqlite3.SQLITE_FULL:
            return StoreError(f"the disk is full: the database {path} can not grow; make room")
        case sqlite3.SQLITE_IOERR:
            return StoreError(
                f"the disk failed under the database {path} ({error.sqlite_errorname}): is it full? The system's log"
                " says more"
            )
        case sqlite3.SQLITE_CORRUPT:
            return permanent(f"the database {path} is damaged; restore it from a backup")
        case sqlite3.SQLITE_NOTADB:
            return permanent(
                f"{path} is not a SQLite database; name another file: VAULTFERRY_STORE=sqlite:///FILE, with one slash more "
                "for a path that begins with one"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return permanent(f"the database {path} can not be written: check the permissions of file and folder")
        case sqlite3.SQLITE_CANTOPEN:
            if path.is_dir():
                return permanent(f"{path} is a folder, not a database; name a file in VAULTFERRY_STORE")
            return permanent(f"the database {path} can not be opened: check that its folder exists and is writable")
        case _:
            # SQLite's own messages name tables, columns and triggers, never values.
            return permanent(f"the database {path} refused: {error}")


def code_of(error: sqlite3.Error) -> int | None:
    """The primary result code (https://sqlite.org/rescode.html); None where the module itself complained."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
