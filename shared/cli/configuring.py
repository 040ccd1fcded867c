"""init, validate, check: a configuration's first days."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.output import BAD, GOOD, QUIET, STRONG, UNSURE, Part, plural
from shared.cli.progress import LINE_EVERY, LONGEST_PAUSE
from shared.cli.session import FAILED, FINE, ConfigOption, JsonOption, LevelOption, Session, begin
from shared.errors import ConfigError, VaultError

if TYPE_CHECKING:
    from shared.config import Config
    from shared.vault import Finding, Use


def register(app: typer.Typer) -> None:
    for function in (init, validate, check):
        app.command()(function)


# --- init ---------------------------------------------------------------------------------------------------------


def init(
    context: typer.Context,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="ADDRESS", help="Where secrets come from: KIND=ADDRESS, a URL, or a file."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="ADDRESS,…", help="Where they go: one, or several with commas."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Write a first configuration, such as: init --source http://127.0.0.1:8200 --target http://127.0.0.1:8201,backup.vault"""
    session = begin(context, config, as_json, log_level)
    with session.failures_told():
        from shared.config import FILE_NAME
        from shared.config.scaffold import scaffold

        text = scaffold(source or [], target or [])
        place = session.config_option or FILE_NAME
        _write_new(place, text)
        if session.out.as_json:
            session.out.json({"config": place})
        session.out.line(("Wrote ", GOOD), place, ". Next:")
        for number, step in enumerate(_first_steps(session, text), 1):
            session.out.line(f"  {number}. ", step)


def _write_new(place: str, text: str) -> None:
    try:
        with open(place, "x", encoding="utf-8") as file:
            file.write(text)
            return
    except FileExistsError:
        problem = f"{place} is there already, and is left as it is; -c FILE writes another"
    except OSError as error:
        problem = f"{place} can not be written: {error.strerror}"
    raise ConfigError(problem)


def _first_steps(session: Session, text: str) -> list[str]:
    import re

    body = "\n".join(line.partition("#")[0] for line in text.splitlines())
    variables = list(dict.fromkeys(re.findall(r"(?<!\$)\$\{(\w+)\}", body)))
    width = len(session.command("validate"))
    steps = [f"put {' and '.join(variables)} into the environment"] if variables else []
    for command, what in (
        ("validate", "is the file right?"),
        ("check", "do the vaults answer, and allow what is needed?"),
        ("plan", "what would be done"),
        ("sync", "do it"),
    ):
        steps.append(f"{session.command(command):{width}}   # {what}")
    return steps


# --- validate -----------------------------------------------------------------------------------------------------


def validate(
    context: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON Schema, for editors.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Say whether the configuration is right, and if not, all that is wrong with it."""
    session = begin(context, config, as_json, log_level)
    with session.failures_told():
        if schema:
            from shared.config import schema as config_schema

            session.out.json(config_schema())
            return
        _show_valid(session, session.config())


def _show_valid(session: Session, config: Config) -> None:
    out = session.out
    if out.as_json:
        out.json(
            {
                "valid": True,
                "config": config.origin,
                "vaults": {
                    vault_id: str(getattr(settings, "kind", "")) for vault_id, settings in config.vaults.items()
                },
                "syncs": list(config.syncs),
                "warnings": list(config.warnings),
            }
        )
    out.line(
        (config.origin, STRONG),
        " is ",
        ("valid", GOOD),
        f": {plural(len(config.vaults), 'vault')}, {plural(len(config.syncs), 'sync')}.",
    )
    for sync in config.syncs.values():
        targets = ", ".join(target.id for target in sync.targets)
        when = f"at {sync.schedule} UTC" if sync.schedule else "by hand only"
        way = "⇄" if sync.two_way else "→"
        out.line(f"  {sync.id}: {sync.source.vault} {way} {targets}, ", when if sync.enabled else "disabled")
    for warning in config.warnings:
        session.warn(warning)


# --- check --------------------------------------------------------------------------------------------------------


def check(
    context: typer.Context,
    vaults: Annotated[
        list[str] | None, typer.Argument(metavar="VAULT", help="Default: all of them.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Connect to vaults and say what is missing for the syncs that use them. Nothing is written."""
    session = begin(context, config, as_json, log_level)
    session.with_config(lambda found: _check(session, found, vaults))


async def _check(session: Session, config: Config, names: list[str] | None) -> int:
    asked = list(dict.fromkeys(names or config.vaults))
    for name in asked:
        if name not in config.vaults:
            from shared.config.problems import closest, listed

            hint = closest(name, config.vaults) or f"there are: {listed(config.vaults)}"
            raise ConfigError(f"there is no vault {name!r} in the configuration ({hint})")
    wanted = [(name, resource, found) for name in asked for resource, found in uses(config, name).items()]
    answers = await _ask_all(session, config, wanted)
    several = {name for name in asked if len(uses(config, name)) > 1}
    findings = [
        (f"{name} ({resource})" if name in several else name, finding)
        for (name, resource, _), answer in zip(wanted, answers, strict=True)
        for finding in answer
    ]
    _show_findings(session, findings)
    for warning in config.warnings:
        session.warn(warning)
    return FINE if all(finding.ok for _, finding in findings) else FAILED


def uses(config: Config, vault_id: str) -> dict[str, list[Use]]:
    """What the syncs want of a vault, by resource."""
    from shared.vault import Use

    wanted: dict[str, dict[Use, None]] = {}
    for sync in config.syncs.values():
        of_resource = wanted.setdefault(sync.source.resource, {})
        if sync.source.vault == vault_id:
            of_resource[Use(sync.source.prefix, write=sync.two_way, delete=sync.two_way and sync.delete.propagate)] = (
                None
            )
        for target in sync.targets:
            if target.vault == vault_id:
                carries = bool(target.metadata.carry)
                of_resource[Use(target.prefix, write=True, delete=sync.delete.propagate, metadata=carries)] = None
    return {resource: list(found) for resource, found in wanted.items() if found} or {"secrets": []}


async def _ask_all(session: Session, config: Config, wanted: list[tuple[str, str, list[Use]]]) -> list[list[Finding]]:
    """What `_ask` finds, side by side; and meanwhile, which vaults have not answered yet."""
    import asyncio

    tasks = {asyncio.create_task(_ask(config, *one)): one[0] for one in wanted}
    begun, pause = time.monotonic(), LINE_EVERY
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=pause)
        if pending:
            silent = ", ".join(dict.fromkeys(name for task, name in tasks.items() if task in pending))
            session.out.note((f"waiting for {silent}, {time.monotonic() - begun:.0f} s", QUIET))
            pause = min(2 * pause, LONGEST_PAUSE)
    return [task.result() for task in tasks]


async def _ask(config: Config, name: str, resource: str, wanted: list[Use]) -> list[Finding]:
    from shared import vaults
    from shared.vault import Finding

    settings: Any = config.vaults[name]
    try:
        # Not opened first: that could only fail with less to say.
        vault = vaults.kinds()[settings.kind].connect(name, settings, resource)
    except (VaultError, ConfigError) as error:
        return [Finding("settings", False, str(error))]
    try:
        found: list[Finding] = await vault.check(wanted)
    finally:
        await vault.aclose()
    return found


def _show_findings(session: Session, findings: list[tuple[str, Finding]]) -> None:
    out = session.out
    bad = [finding for _, finding in findings if not finding.ok]
    if out.as_json:
        items = [
            {"vault": v, "subject": f.subject, "ok": f.ok, "detail": f.detail, "hint": f.hint} for v, f in findings
        ]
        out.json({"ok": not bad, "items": items})
    rows: list[list[Part]] = [
        [vault, finding.subject, ("ok", GOOD) if finding.ok else ("not ok", BAD), finding.detail]
        for vault, finding in findings
    ]
    out.table(("Vault", "What", "", "Detail"), rows, wide=("Detail",))
    for vault, finding in findings:
        if not finding.ok and finding.hint:
            out.line((f"{vault}, {finding.subject}: ", UNSURE), finding.hint)
    if bad:
        out.line((f"{plural(len(bad), 'thing')} to see to.", BAD))
    else:
        out.line(("All is well.", GOOD), ("" if findings else " There was nothing to look at.", QUIET))
