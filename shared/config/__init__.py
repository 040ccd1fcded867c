"""YAML and the environment → validated settings. pydantic stays in here and in the settings of vaults.

`load(find_config(argument, env), env)` is what a command starts with. function_app.py, whose import is a cold start,
takes `outline` first: pydantic alone would cost as much as azure.functions. All errors are `ConfigError`s; those
of a file are `InvalidConfig`, whose `problems` name file, line and key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.config.problems import InvalidConfig, Problem
from shared.config.result import Config, Outline
from shared.errors import ConfigError

__all__ = ["Config", "InvalidConfig", "Outline", "Problem", "find_config", "load", "outline", "schema"]

FILE_NAME = "vaultferry.yaml"
SETTING = "VAULTFERRY_CONFIG"


def find_config(argument: str | None, env: Mapping[str, str]) -> str:
    """Where the configuration is: the argument, else the environment, else the usual places. Raises ConfigError."""
    if argument:
        return argument
    if named := env.get(SETTING):
        return named
    beside_app = Path(__file__).resolve().parents[2] / FILE_NAME
    for candidate in (Path(FILE_NAME), beside_app):
        if candidate.is_file():
            return str(candidate)
    raise ConfigError(
        f"there is no configuration: -c was not given, {SETTING} is not set, and neither ./{FILE_NAME} nor "
        f"{beside_app} exists. `vaultferry init` writes a first one"
    )


def load(origin: str, env: Mapping[str, str]) -> Config:
    """Read and validate the configuration at a path, or at the https address of a blob. Raises ConfigError.

    Blocks, whether or not an event loop runs; for an address, half a minute at most.
    """
    from shared.config.build import parse

    if "://" in origin:
        from shared.config.remote import load_blob

        return load_blob(origin, env)
    return parse(_read(origin), env, origin)


def outline(origin: str, env: Mapping[str, str]) -> Outline:
    """Just what triggers are made from. Raises ConfigError where the file is too wrong even for that.

    A file at an address is validated whole: a broken one must not take the place of the last good copy.
    """
    from shared.config.sketch import outline_of, sketch

    if "://" not in origin:
        from shared.config.yaml_source import read_document

        found = sketch(read_document(_read(origin), env, origin))
        if found is not None:
            return found
    return outline_of(load(origin, env))


def schema() -> dict[str, Any]:
    """The file's JSON Schema (draft 2020-12), for editors."""
    from shared.config.json_schema import build_schema

    return build_schema()


def _read(path: str) -> bytes:
    from shared.config.yaml_source import MAX_BYTES

    try:
        if Path(path).is_dir():
            problem = "is a folder; expected a YAML file"
        else:
            with open(path, "rb") as file:
                # One byte more than is allowed shows that it is too large, whatever its size.
                return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        problem = "does not exist; `vaultferry init` writes a first file"
    except OSError as error:
        problem = f"can not be read ({error.strerror})"
    except ValueError:
        problem = "is not a path"
    raise InvalidConfig([Problem(path, None, "", problem)])
