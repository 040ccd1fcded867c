"""One file per `kind:`. A file's name is its kind; `config` builds the union of settings from this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def kinds() -> dict[str, ModuleType]:
    """Every kind there is: its name and its module (with `Settings` and `connect`)."""
    return {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
