"""resources: what a deployment has to create, and whether its parameters fit the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.output import BAD, GOOD, STRONG
from shared.cli.session import FAILED, FINE, ConfigOption, JsonOption, LevelOption, Session, begin
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config import Config

QUEUE_PREFIX_OF_BICEP = "vaultferry-to-"
"""What infra/main.bicep puts before a vault's id. It can not hash, so other names have to be told to it."""


def register(app: typer.Typer) -> None:
    app.command()(resources)


def resources(
    context: typer.Context,
    parameters: Annotated[
        str | None,
        typer.Option(
            "--parameters",
            metavar="FILE",
            help="A parameter file of infra/main.bicep, as JSON: fail when it does not fit the configuration.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Print the queues, tables and containers that the configuration needs in a storage account."""
    session = begin(context, config, as_json, log_level)
    with session.failures_told():
        found = session.config()
        differences = None if parameters is None else compare(found, _read(parameters))
        _show(session, found, parameters, differences)
        raise typer.Exit(FAILED if differences else FINE)


def expected(config: Config) -> dict[str, Any]:
    """The parameters of infra/main.bicep that follow from a configuration."""
    from shared.config.sketch import outline_of
    from shared.jobs import write_queue

    written = outline_of(config).written_vaults
    hashed = {vault: name for vault in written if (name := write_queue(vault)) != f"{QUEUE_PREFIX_OF_BICEP}{vault}"}
    return {"writtenVaults": sorted(written), "queueNames": hashed}


def compare(config: Config, given: dict[str, Any]) -> list[str]:
    """What is wrong with the values of a parameter file, each with what to do. Raises ConfigError."""
    wanted = expected(config)
    written = _names(given, "writtenVaults")
    names = given.get("queueNames") or {}
    if not isinstance(names, dict):
        raise ConfigError("queueNames is not an object of queue names by vault")
    differences = [
        f"writtenVaults lacks {vault!r}, which a sync writes: add it"
        for vault in wanted["writtenVaults"]
        if vault not in written
    ]
    differences += [
        f"writtenVaults has {vault!r}, which no sync writes: remove it"
        for vault in written
        if vault not in wanted["writtenVaults"]
    ]
    differences += [
        f"queueNames must say {name!r} for {vault!r}"
        for vault, name in wanted["queueNames"].items()
        if names.get(vault) != name
    ]
    differences += [
        f"queueNames has {vault!r}, whose queue needs no name: remove it"
        for vault in names
        if vault not in wanted["queueNames"]
    ]
    differences += [
        f"alwaysReadyVaults has {vault!r}, which no sync writes: remove it"
        for vault in _names(given, "alwaysReadyVaults")
        if vault not in wanted["writtenVaults"]
    ]
    differences += [
        f"watchedSyncs has {sync!r}, which is no sync of the configuration: remove it"
        for sync in _names(given, "watchedSyncs")
        if sync not in config.syncs
    ]
    return differences


def _names(given: dict[str, Any], parameter: str) -> list[str]:
    found = given.get(parameter, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"{parameter} is not a list of ids")
    return found


def _read(path: str) -> dict[str, Any]:
    """The values of a parameter file. Raises ConfigError."""
    import json
    from pathlib import Path

    try:
        document = json.loads(Path(path).read_text("utf-8"))
        return {name: value["value"] for name, value in document["parameters"].items() if "value" in value}
    except OSError as error:
        problem = f"{path} can not be read: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError):
        problem = f'{path} is not a parameter file: expected JSON with "parameters", and "value" in each of them'
    raise ConfigError(problem)


def _show(session: Session, config: Config, parameters: str | None, differences: list[str] | None) -> None:
    from shared.config.sketch import outline_of
    from shared.resources import resources as needed

    out = session.out
    names = needed(outline_of(config).written_vaults)
    if out.as_json:
        document: dict[str, Any] = {
            "queues": list(names.queues),
            "tables": list(names.tables),
            "containers": list(names.containers),
            "parameters": expected(config),
        }
        if differences is not None:
            document |= {"fits": not differences, "differences": differences}
        out.json(document)
    for title, group in (("Queues", names.queues), ("Tables", names.tables), ("Containers", names.containers)):
        out.line((title, STRONG))
        for name in group:
            out.line("  ", name)
    if differences is None:
        return
    for difference in differences:
        out.line(("differs: ", BAD), difference)
    if not differences:
        out.line(str(parameters), " ", ("fits", GOOD), f" {config.origin}.")
