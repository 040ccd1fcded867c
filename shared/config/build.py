"""A document → the validated configuration. All that is wrong with a file is found in one go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from shared import vaults
from shared.config.explain import explain
from shared.config.models import (
    ID,
    ID_WORDING,
    BuildSettings,
    FieldsSettings,
    FileSettings,
    StepSettings,
    SyncSettings,
    TargetSettings,
)
from shared.config.problems import InvalidConfig, Place, Problem, closest, dotted, listed
from shared.config.result import Config
from shared.config.two_way import refusals
from shared.config.yaml_source import Document, read_document
from shared.mapping import why_left_out
from shared.metadata import why_not
from shared.model import ConflictPolicy, DeletePolicy, Granularity, RetryPolicy, Source, Sync, Target
from shared.overlaps import Ground, Grounds, Route, find_cycles, find_overlaps
from shared.rules import Base64, Build, Decrypt, Encrypt, FieldRules, Fill, Form, JsonPick, MetadataRules, Step, Trim
from shared.settings import VaultSettings
from shared.transforms import read_identities
from shared.vault import NameRule

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def parse(raw: bytes, environment: Mapping[str, str], origin: str) -> Config:
    """The configuration in a file's bytes. Raises InvalidConfig with all that is wrong."""
    return _Builder(read_document(raw, environment, origin), origin).build()


class _Builder:
    def __init__(self, document: Document, origin: str) -> None:
        self.document = document
        self.origin = origin
        self.problems = list(document.problems)
        self.warnings: list[str] = []

    def build(self) -> Config:
        file = self.validate(FileSettings, self.document.data, ())
        given_vaults = self.section("vaults")
        configured = {vault_id: self.vault(vault_id, given) for vault_id, given in given_vaults.items()}
        syncs = {sync_id: self.sync(sync_id, given, given_vaults) for sync_id, given in self.section("syncs").items()}
        for sync in syncs.values():
            if sync is not None:
                self.look_for_lacks(sync, configured)
                self.look_at_ways(sync, configured)
                self.look_at_metadata(sync, configured)
        known = [sync for sync in syncs.values() if sync is not None]
        grounds = _grounds(known, configured)
        for sync in known:
            self.look_for_loops(sync, grounds)
        self.look_for_clashes(known, grounds)
        if self.problems or file is None:
            raise InvalidConfig(dict.fromkeys(self.problems))
        return Config(
            MappingProxyType({vault_id: vault for vault_id, vault in configured.items() if vault}),
            MappingProxyType({sync_id: sync for sync_id, sync in syncs.items() if sync}),
            _duration(file.history.retention),
            self.origin,
            tuple(self.warnings),
        )

    def section(self, name: str) -> dict[str, Any]:
        given = self.document.data.get(name)
        if not isinstance(given, dict):
            return {}
        for key in given:
            if not ID.fullmatch(key):
                self.report((name, key), f"not an id: {ID_WORDING}")
        return given

    def report(self, place: Place, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.origin, self.document.line(place), dotted(place), message, hint))

    def validate(
        self, model: type[SettingsT], given: Any, place: Place, context: dict[str, Any] | None = None
    ) -> SettingsT | None:
        try:
            return model.model_validate(_with_numbers(model, given), context=context)
        except ValidationError as error:
            found = explain(error, model, given)
        for below, message, hint in found:
            if (*place, *below) not in self.document.reported:
                self.report((*place, *below), message, hint)
        return None

    def vault(self, vault_id: str, given: Any) -> VaultSettings | None:
        place: Place = ("vaults", vault_id)
        kinds = vaults.kinds()
        if not isinstance(given, dict):
            self.report(place, "expected keys and values, such as `kind`")
            return None
        kind = given.get("kind")
        if (*place, "kind") in self.document.reported:
            return None
        if kind is None:
            self.report((*place, "kind"), f"is required: one of {listed(kinds)}")
            return None
        if not isinstance(kind, str) or kind not in kinds:
            self.report((*place, "kind"), f"expected a kind that there is: {listed(kinds)}", closest(kind, kinds))
            return None
        model: type[VaultSettings] = kinds[kind].Settings
        settings = self.validate(model, given, place)
        if settings is not None:
            self.look_for_risks(settings, place)
        return settings

    def look_for_lacks(self, sync: Sync, configured: Mapping[str, VaultSettings | None]) -> None:
        """What a sync needs of its vaults, and they can not do: at night it would be too late."""
        written = ["list", "get", "set", *(["delete"] if sync.delete.propagate else [])]
        read = (sync.source.vault, "reads from", ["list", "get"])
        needs: list[tuple[Place, str, str, list[str]]] = [
            (("source", "vault"), *((sync.source.vault, "writes to", written) if sync.two_way else read))
        ]
        for index, target in enumerate(sync.targets):
            needs.append((("targets", index, "vault"), target.vault, "writes to", written))
        for place, vault_id, does, wanted in needs:
            settings = configured.get(vault_id)
            lacking = [each for each in wanted if settings is not None and each not in settings.can()]
            if lacking:
                self.report(
                    ("syncs", sync.id, *place),
                    f"sync '{sync.id}' {does} vault '{vault_id}', which has no operation {listed(lacking)}",
                    f"add it to vaults.{vault_id}.operations"
                    + (", or set delete.propagate to false" if lacking == ["delete"] else ""),
                )

    def look_at_ways(self, sync: Sync, configured: Mapping[str, VaultSettings | None]) -> None:
        place: Place = ("syncs", sync.id)
        if sync.two_way:
            for below, message, hint in refusals(sync, configured):
                self.report((*place, *below), message, hint)
        elif sync.conflict is not ConflictPolicy.NEWEST:
            self.warn(
                (*place, "conflict"), "says nothing here: only two-way syncs (`type: bidirectional`) have conflicts"
            )

    def look_at_metadata(self, sync: Sync, configured: Mapping[str, VaultSettings | None]) -> None:
        source = configured.get(sync.source.vault)
        for index, target in enumerate(sync.targets):
            settings = configured.get(target.vault)
            if source is None or settings is None:
                continue
            one = (sync.source.vault, source.metadata(sync.source.resource))
            if why := why_not(target.metadata, one, (target.vault, settings.metadata(sync.source.resource))):
                place: Place = ("syncs", sync.id, "targets", index, "metadata", "carry")
                self.report(place, why, "carry only what both keep")

    def look_for_loops(self, sync: Sync, grounds: Grounds) -> None:
        source = grounds[sync.source.vault, sync.source.resource]
        for index, target in enumerate(sync.targets):
            to = grounds[target.vault, sync.source.resource]
            if to.place != source.place:
                continue
            prefixes = to.names.key(sync.source.prefix), to.names.key(target.prefix)
            if _overlap(*prefixes) or _overlap(prefixes[0], to.names.key(to.names.fit(target.prefix))):
                one = (
                    "one vault"
                    if target.vault == sync.source.vault
                    else f"one vault ({sync.source.vault!r} is {target.vault!r})"
                )
                self.report(
                    ("syncs", sync.id, "targets", index, "vault"),
                    f"a loop: this sync would read what it has written, for both sides are in {one} and one prefix "
                    "holds the other",
                    "choose another vault, or prefixes side by side",
                )

    def look_for_clashes(self, syncs: Sequence[Sync], grounds: Grounds) -> None:
        """Syncs that get in each other's way. What only may be is a warning, and so is what no schedule brings about."""
        for overlap in find_overlaps(syncs, grounds):
            one, other = overlap.one, overlap.other
            if one.sync is other.sync:
                if one.target.id != other.target.id:
                    message = f"writes the same names as target '{one.target.id}' of this sync"
                    self.report(_place(other), message, "give one of them another `prefix` or `name`")
                continue
            two_ways = [each.sync.two_way for each in (other, one)]
            both = " and ".join(
                f"{'two-way ' if each.sync.two_way else ''}sync '{each.sync.id}'" for each in (other, one)
            )
            hint = "give one of them another `prefix` or `name`, or leave out in one what the other carries"
            if all(two_ways) and one.back and other.back:
                hint += ", or make all targets those of one sync"
            vault = f"'{one.writes}'"
            if other.writes != one.writes:
                vault = f"'{other.writes}', which is {vault} as well"
            if overlap.certain and one.sync.enabled and other.sync.enabled:
                self.report(_place(other), f"{both} would write the same names to vault {vault}", hint)
            else:
                taken = ": each takes what the other writes there for an edit by hand" if any(two_ways) else ""
                self.warn(_place(other), f"{both} may write the same names to vault {vault}{taken}; {hint}")
        for cycle in find_cycles(syncs, grounds):
            ways = [f"'{each.sync.id}' ({each.reads} to {each.writes})" for each in cycle.routes]
            way = ", ".join([*ways, f"and '{cycle.routes[0].sync.id}' again"])
            hint = "choose prefixes side by side, or leave out in one what another has written"
            if cycle.certain and all(each.sync.enabled for each in cycle.routes):
                self.report(_place(cycle.routes[0]), f"a cycle: what one of these writes, the next reads: {way}", hint)
            else:
                self.warn(_place(cycle.routes[0]), f"what one of these writes, the next may read: {way}; {hint}")

    def look_for_risks(self, settings: BaseModel | Mapping[str, Any], place: Place) -> None:
        names = settings.model_fields_set if isinstance(settings, BaseModel) else settings
        for name in names:
            value = getattr(settings, name) if isinstance(settings, BaseModel) else settings[name]
            here = (*place, name)
            if isinstance(value, BaseModel | Mapping):
                self.look_for_risks(value, here)
            elif here not in self.document.from_environment and _is_credential(here, value):
                self.warn(here, "a credential stands in the file; put it in the environment and write ${NAME}")
            elif isinstance(value, str) and value.lower().startswith("http://") and not _is_loopback(value):
                self.warn(here, "plain http: secrets and credentials cross the network unencrypted")

    def warn(self, place: Place, message: str) -> None:
        self.warnings.append(str(Problem(self.origin, self.document.line(place), dotted(place), message)))

    def sync(self, sync_id: str, given: Any, known_vaults: Mapping[str, Any]) -> Sync | None:
        place: Place = ("syncs", sync_id)
        settings = self.validate(SyncSettings, given, place, {"vaults": tuple(known_vaults)})
        if settings is None:
            return None
        source = Source(settings.source.vault, settings.source.prefix, settings.source.resource)
        targets = tuple(_target(target) for target in settings.targets)
        for index, target in enumerate(settings.targets):
            for number, step in enumerate(target.transform):
                private: Place = (*place, "targets", index, "transform", number, "decrypt", "age")
                if step.decrypt is not None and private not in self.document.from_environment:
                    self.report(
                        private, "a private key can not stand in the file", "put it in the environment: '${NAME}'"
                    )
        for message, index, key, hint in _conflicts(targets):
            self.report((*place, "targets", index, key), message, hint)
        sync = Sync(
            id=sync_id,
            source=source,
            targets=targets,
            type=settings.type,
            schedule=settings.schedule,
            enabled=settings.enabled,
            include=tuple(settings.include),
            exclude=tuple(settings.exclude),
            verify_targets=settings.verify_targets,
            on_existing=settings.on_existing,
            delete=DeletePolicy(**settings.delete.model_dump()),
            conflict=ConflictPolicy(settings.conflict),
            retry_policy=RetryPolicy(**settings.retry_policy.model_dump()),
        )
        for index, renamed in enumerate(target.rename for target in targets):
            for path in renamed:
                if why := why_left_out(sync, path):
                    self.warn((*place, "targets", index, "rename", path), f"this path is not carried: {why}")
        return sync


def _with_numbers(model: type[BaseModel], given: Any) -> Any:
    """Scalars are text, which pydantic takes for a number everywhere but in a `Literal` of numbers."""
    if not isinstance(given, dict):
        return given
    typed = dict(given)
    for name, field in model.model_fields.items():
        numbers = {str(choice): choice for choice in get_args(field.annotation) if type(choice) is int}
        if isinstance(typed.get(name), str):
            typed[name] = numbers.get(typed[name], typed[name])
    return typed


def _target(settings: TargetSettings) -> Target:
    name = settings.name or ("{path}-{field}" if settings.granularity is Granularity.FIELD else "{path}")
    return Target(
        settings.id or settings.vault,
        settings.vault,
        settings.prefix,
        name,
        settings.granularity,
        dict(settings.rename),
        settings.name_encoding,
        _field_rules(settings.fields),
        tuple(_step(step) for step in settings.transform),
        MetadataRules(
            tuple(settings.metadata.carry), tuple(settings.metadata.include_tags), tuple(settings.metadata.exclude_tags)
        ),
    )


def _field_rules(settings: FieldsSettings) -> FieldRules:
    return FieldRules(
        split=tuple(settings.split),
        include=tuple(settings.include),
        exclude=tuple(settings.exclude),
        rename=dict(settings.rename),
        constants=dict(settings.set),
        build=tuple(_build(name, build) for name, build in settings.build.items()),
    )


def _build(name: str, settings: BuildSettings) -> Build:
    if settings.template is not None:
        return Build(name, Form.TEMPLATE, template=settings.template, keep=settings.keep)
    form = Form.JSON if settings.json_ is not None else Form.DOTENV
    return Build(name, form, tuple(settings.json_ or settings.dotenv or ()), keep=settings.keep)


def _step(settings: StepSettings) -> Step:
    fields = tuple(settings.fields)
    if settings.base64 is not None:
        return Base64(settings.base64 == "decode", fields)
    if settings.trim is not None:
        return Trim(settings.trim, fields)
    if settings.json_pick is not None:
        return JsonPick(settings.json_pick, fields)
    if settings.template is not None:
        return Fill(settings.template, fields)
    if settings.encrypt is not None:
        return Encrypt(tuple(settings.encrypt.age), fields)
    if settings.decrypt is not None:
        return Decrypt(read_identities(settings.decrypt.age.get_secret_value()), fields)
    raise AssertionError("a step without a key is refused when it is read")


def _conflicts(targets: tuple[Target, ...]) -> Iterator[tuple[str, int, str, str]]:
    """What is wrong between targets: message, index of the target, key, hint."""
    seen: dict[str, int] = {}
    for index, target in enumerate(targets):
        if target.id in seen:
            yield (
                f"this target has the same id as targets[{seen[target.id]}] of this sync",
                index,
                "id",
                "give one of them an `id` of its own",
            )
        seen.setdefault(target.id, index)


def _grounds(syncs: Iterable[Sync], configured: Mapping[str, VaultSettings | None]) -> Grounds:
    """What the settings tell of each vault that a sync names."""
    found: dict[tuple[str, str], Ground] = {}
    for sync in syncs:
        for vault in (sync.source.vault, *(target.vault for target in sync.targets)):
            settings = configured.get(vault)
            place = settings.place if settings is not None else None
            rule = settings.name_rule(sync.source.resource) if settings is not None else None
            kind = getattr(settings, "kind", None)
            found[vault, sync.source.resource] = Ground(
                (kind, *place) if place else vault, rule or NameRule(), known=rule is not None
            )
    return found


def _place(route: Route) -> Place:
    if route.back:
        return ("syncs", route.sync.id, "source", "vault")
    return ("syncs", route.sync.id, "targets", route.index, "vault")


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    return timedelta(days=int(text[:-1])) if text.endswith("d") else timedelta(hours=int(text[:-1]))


_REQUEST = frozenset({"headers", "query", "body"})
_CREDENTIAL = re.compile(r"(?:^|[-_.])(?:token|secret|passw(?:or)?d|api[-_]?key|authorization)$", re.IGNORECASE)


def _is_credential(place: Place, value: Any) -> bool:
    """Whether it is one, or is called like one in a request that the file describes. A placeholder is none."""
    if isinstance(value, SecretStr):
        return True
    called_so = _REQUEST & {*place[:-1]} and isinstance(place[-1], str) and _CREDENTIAL.search(place[-1])
    return bool(called_so) and isinstance(value, str) and bool(value) and "{" not in value


def _is_loopback(url: str) -> bool:
    import ipaddress
    from urllib.parse import urlsplit

    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
