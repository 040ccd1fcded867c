"""A plan in a file: written by `plan --out`, carried out by `sync --plan`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.model import Run

FORMAT = "plan 1"


def write_plan(place: str, plan: dict[str, Any], run: Run) -> None:
    """Write a whole plan, or leave what is there as it is. Raises ConfigError, also where something else is there."""
    from shared.model import iso

    check_place(place)
    document = {"vaultferry": FORMAT, "created_at": iso(run.created_at), **plan}
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    path = Path(place)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        # For its owner alone: names of secrets are in there.
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        problem = f"{place} can not be written: {error.strerror}"
    else:
        return
    raise ConfigError(problem)


def check_place(place: str) -> None:
    """Raises ConfigError where something else than a plan would be replaced."""
    if Path(place).exists() and not _is_plan(place):
        raise ConfigError(f"{place} is there and is no saved plan, so it is not replaced; name another file")


def _is_plan(place: str) -> bool:
    """Whether a plan of any version was saved there, or nothing yet."""
    # Neither a folder nor a device: those would be replaced as well.
    if not Path(place).is_file():
        return False
    try:
        text = Path(place).read_bytes()
        if not text:
            return True
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and str(found.get("vaultferry", "")).startswith("plan ")


def read_plan_file(place: str) -> dict[str, Any]:
    """The plan in a file. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    from shared.shapes import SavedPlan

    problem = f"{place} is no plan that this version has written; `vaultferry plan SYNC --out FILE` makes one"
    try:
        plan: dict[str, Any] = TypeAdapter(SavedPlan).validate_python(json.loads(Path(place).read_bytes()))  # type: ignore[assignment]
    except OSError as error:
        problem = f"{place} can not be read: {error.strerror}"
    except (ValueError, RecursionError, ValidationError):
        # What it says instead is nobody's business: it may be any file.
        pass
    else:
        return plan
    raise ConfigError(problem)
