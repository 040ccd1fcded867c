"""setup: what is to be done on a vault itself, so that it tells what was written and allows what is needed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.output import BAD, GOOD, QUIET, STRONG, Part
from shared.cli.session import FAILED, FINE, ConfigOption, JsonOption, LevelOption, Session, begin
from shared.errors import ConfigError, Refused

if TYPE_CHECKING:
    from types import ModuleType

    from shared.config import Config
    from shared.vaults.hashicorp.audit_device import AuditDevices, Device


def register(app: typer.Typer) -> None:
    app.command()(setup)


def setup(
    context: typer.Context,
    vault: Annotated[str, typer.Argument(metavar="VAULT", help="A vault of the configuration.")],
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Where the relay listens, as Vault reaches it; the path of a socket with --type unix.",
            show_default=False,
        ),
    ] = None,
    socket_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="tcp, udp or unix. Default: tcp.", show_default=False),
    ] = None,
    add_file: Annotated[
        str | None,
        typer.Option(
            "--add-file",
            metavar="PATH",
            help="Where Vault has no other audit device, first add one that writes to this file on its machine, or to "
            "stdout.",
            show_default=False,
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Disable our audit device; others stay.")] = False,
    print_policy: Annotated[
        bool, typer.Option("--print-policy", help="Print the least policies that the vault's syncs need.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    log_level: LevelOption = None,
) -> None:
    """Enable, show or remove the audit device by which a HashiCorp Vault tells what was written."""
    session = begin(context, config, as_json, log_level)

    async def body(found: Config) -> int:
        kind = _kind(found, vault)
        if print_policy:
            if address or socket_type or add_file or remove:
                raise ConfigError("--print-policy changes nothing, and stands alone")
            return await _print_policies(session, found, vault)
        if remove and add_file:
            raise ConfigError("--remove adds nothing: leave --add-file out")
        if socket_type and not address:
            raise ConfigError("--type says how --address is meant: give that too")
        if add_file and not address:
            raise ConfigError("--add-file prepares for the relay's device: give its --address too")
        devices: AuditDevices = kind.audit_devices(vault, found.vaults[vault])
        try:
            return await _Setup(session, vault, devices).run(address, socket_type, add_file, remove=remove)
        finally:
            await devices.aclose()

    session.with_config(body)


def _kind(config: Config, vault_id: str) -> ModuleType:
    """The module of the vault's kind. Raises ConfigError where there is nothing to set up."""
    from shared import vaults
    from shared.config.problems import closest, listed

    if vault_id not in config.vaults:
        hint = closest(vault_id, config.vaults) or f"there are: {listed(config.vaults)}"
        raise ConfigError(f"there is no vault {vault_id!r} in the configuration ({hint})")
    name = _kind_name(config, vault_id)
    kind = vaults.kinds()[name]
    if not hasattr(kind, "audit_devices"):
        able = listed(name for name, module in vaults.kinds().items() if hasattr(module, "audit_devices"))
        raise ConfigError(f"{vault_id} is of kind {name}, which has no audit devices: setup is for {able}")
    return kind


def _kind_name(config: Config, vault_id: str) -> str:
    settings: Any = config.vaults[vault_id]
    return str(settings.kind)


# --- the audit device ---------------------------------------------------------------------------------------------------


class _Setup:
    """One `setup`: what was done so far is told even where the next step fails."""

    def __init__(self, session: Session, vault_id: str, devices: AuditDevices) -> None:
        self._session = session
        self._out = session.out
        self._id = vault_id
        self._devices = devices
        self._done: list[str] = []

    async def run(self, address: str | None, socket_type: str | None, add_file: str | None, *, remove: bool) -> int:
        wanted = self._devices.for_relay(address, socket_type) if address else None
        file = self._devices.for_file(add_file) if add_file else None
        before = await self._devices.found()
        ours = _ours(before)
        if remove:
            await self._remove(ours, wanted)
        elif wanted is not None and ours is None:
            await self._enable(before, wanted, file)
        elif wanted is not None and ours is not None:
            self._compare(ours, wanted)
        after = await self._devices.found() if self._done else before
        return self._show(after)

    async def _enable(self, before: list[Device], wanted: Device, file: Device | None) -> None:
        if _ends_there_alone(before, wanted):
            if file is None:
                same = ", ".join(device.path for device in before)
                but = f" but {same}, at {wanted.place} too" if same else ""
                raise Refused(
                    f"Vault {self._id} has no other audit device{but}, and with the relay's alone it would answer nothing "
                    "any more as soon as the relay does not. Add another one first; this adds a file: "
                    + self._command(f"--add-file /var/log/vault/audit.log {_arguments(wanted)}")
                )
            await self._devices.enable(file)
            self._did(f"enabled {file.path}", f": Vault writes every request to {file.place}.")
        elif file is not None:
            others = ", ".join(device.path for device in before)
            self._out.line(f"There is another audit device already ({others}), so none was added.")
        try:
            await self._devices.enable(wanted)
        except Refused as error:
            raise Refused(f"{error}. What was {' and '.join(self._done)} stays" if self._done else str(error)) from None
        self._did(f"enabled {wanted.path}", f": Vault tells {wanted.place} what is written.")

    async def _remove(self, ours: Device | None, wanted: Device | None) -> None:
        if ours is None:
            self._out.line("There is no audit device of ours; nothing was done.")
            return
        if wanted is not None and wanted.place != ours.place:
            raise Refused(
                f"the device {ours.path} of {self._id} sends to {ours.place}, not to {wanted.place}; without --address, "
                "it is removed all the same"
            )
        await self._devices.disable(ours)
        self._did(f"removed {ours.path}", ": changes are now found by schedule, or by hand.")

    def _compare(self, ours: Device, wanted: Device) -> None:
        if ours.place != wanted.place:
            raise Refused(
                f"Vault {self._id} has a device {ours.path} already, which sends to {ours.place}, not to {wanted.place}. "
                f"To change it: {self._command('--remove')}, then {self._command(_arguments(wanted))}"
            )
        self._out.line(("Nothing to do: ", GOOD), f"{ours.path} is there already, and sends to {ours.place}.")

    def _did(self, what: str, consequence: str) -> None:
        self._done.append(what)
        self._out.line((what[0].upper() + what[1:], GOOD), consequence)

    def _show(self, found: list[Device]) -> int:
        ours = _ours(found)
        warnings = list(ours.doubts) if ours else []
        if ours and _ends_there_alone(found, ours):
            warnings.append(
                f"{ours.path} is the only audit device: when its relay does not answer, Vault answers nothing; add another"
                if len(found) == 1
                else f"Vault has no other audit device than what sends to {ours.place}: when nobody answers there, Vault "
                "answers nothing; add another"
            )
        if not found and self._done:
            warnings.append("Vault has no audit device any more: nobody writes down who did what")
        useless = f"{ours.path}: {ours.useless}" if ours and ours.useless else None
        if self._out.as_json:
            devices = [
                {"path": device.path, "type": device.type, "place": device.place, "ours": device.ours}
                for device in found
            ]
            document = {"vault": self._id, "done": self._done, "devices": devices, "warnings": warnings}
            self._out.json({**document, "error": useless})
        if found:
            rows: list[list[Part]] = [
                [(device.path, STRONG if device.ours else ""), device.type, device.place] for device in found
            ]
            self._out.table(("Audit device", "Type", "Where"), rows, wide=("Where",))
        else:
            self._out.line(f"{self._id} has no audit devices.")
        if ours is None and not self._done:
            self._out.line("None is Vaultferry's; this enables it: ", self._command("--address HOST:PORT"))
        for warning in warnings:
            self._session.warn(warning)
        if useless:
            again = f"{self._command('--remove')}, then setup with --address again"
            self._out.note(("error: ", BAD), f"{useless}: {again}")
        return FAILED if useless else FINE

    def _command(self, arguments: str) -> str:
        return f"`{self._session.command(f'setup {self._id} {arguments}')}`"


def _ours(found: list[Device]) -> Device | None:
    return next((device for device in found if device.ours), None)


def _ends_there_alone(found: list[Device], device: Device) -> bool:
    """Whether all of Vault's devices stop taking entries with whatever listens for this one."""
    return all(each.place == device.place for each in found)


def _arguments(device: Device) -> str:
    kind, _, address = device.place.partition("://")
    return f"--address {shlex.quote(address)}" + ("" if kind == "tcp" else f" --type {kind}")


# --- policies -----------------------------------------------------------------------------------------------------------


async def _print_policies(session: Session, config: Config, vault_id: str) -> int:
    """One policy for each vault that the syncs of this one use: whole, for a vault has one token."""
    from shared import vaults

    named = [sync for sync in config.syncs.values() if vault_id in _vaults_of(sync)]
    if not named:
        raise ConfigError(f"no sync uses {vault_id}, so it needs no policy")
    concerned = list(dict.fromkeys([vault_id, *(each for sync in named for each in _vaults_of(sync))]))
    documents: list[dict[str, Any]] = []
    others: list[str] = []
    for each in concerned:
        kind = vaults.kinds()[_kind_name(config, each)]
        if not hasattr(kind, "least_policy"):
            others.append(f"{each} is of kind {_kind_name(config, each)}: its permissions are no policies of Vault's")
            continue
        settings: Any = config.vaults[each]
        syncs = [sync for sync in config.syncs.values() if each in _vaults_of(sync)]
        text = await kind.least_policy(each, settings, syncs)
        documents.append({"vault": each, "name": f"vaultferry-{each}", "namespace": settings.namespace, "policy": text})
    if session.out.as_json:
        session.out.json({"policies": documents})
    for document in documents:
        for line in document["policy"].splitlines():
            session.out.line((line, QUIET if line.startswith("#") else ""))
        session.out.line()
    for other in others:
        session.out.line((f"# {other}", QUIET))
    return FINE


def _vaults_of(sync: Any) -> list[str]:
    return [sync.source.vault, *(target.vault for target in sync.targets)]
