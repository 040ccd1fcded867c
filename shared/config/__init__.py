"""YAML and the environment → validated settings. pydantic stays in here and in the settings of vaults.

`load(find_config(argument, env), env)` is what everything starts with. All errors are `ConfigError`s; those of a file
are `InvalidConfig`, whose `problems` name file, line and key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shared.config.build import Config, parse
from shared.config.problems import InvalidConfig, Problem
from shared.config.yaml_source import MAX_BYTES
from shared.errors import ConfigError

__all__ = ["Config", "InvalidConfig", "Problem", "find_config", "load", "parse"]

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
    """Read and validate the configuration at a path or an https address of a blob. Raises ConfigError.

    Safe at import time: blocks, whether or not an event loop runs, and for an address at most half a minute.
    """
    if "://" in origin:
        from shared.config.remote import load_blob

        return load_blob(origin, env)
    return parse(_read(origin), env, origin)


def _read(path: str) -> bytes:
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
    raise InvalidConfig([Problem(path, None, "", problem)])
