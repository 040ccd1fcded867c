"""The shape of the configuration file. Descriptions and defaults here are what editors and messages show.

A file's scalars arrive as text and are typed here, so a choice between numbers is a `Literal` of text.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from shared.config.problems import closest, listed, presentable
from shared.config.schedule import normalise_schedule
from shared.errors import ConfigError
from shared.fields import TEMPLATE_FIELD, TEMPLATE_PLACEHOLDERS
from shared.mapping import PLACEHOLDERS
from shared.model import Granularity, NameEncoding, OnExisting
from shared.rules import KEYS, Aspect, Ends
from shared.settings import Settings
from shared.templates import Template, TemplateError, of_path, parse
from shared.transforms import FILL_PLACEHOLDERS, check_expression, check_recipients, read_identities

ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
ID_WORDING = "expected a lower-case letter, then up to 39 lower-case letters, digits and '-'"
_RETENTION = re.compile(r"[1-9][0-9]{0,5}[dh]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WEEK = 7 * 24 * 3600 * 1000


def invalid(message: str, hint: str = "", *, at: str = "") -> PydanticCustomError:
    """What a validator here finds. `at` is the key, below the one that is validated, that is wrong."""
    return PydanticCustomError("vaultferry", "invalid", {"message": message, "hint": hint, "at": at})


def _id(text: str) -> str:
    if not ID.fullmatch(text):
        raise invalid(ID_WORDING)
    return text


def _vault(text: str, info: ValidationInfo) -> str:
    vaults = (info.context or {}).get("vaults")
    if vaults is not None and text not in vaults:
        hint = closest(text, vaults) or (f"there are: {listed(vaults)}" if vaults else "there are none")
        raise invalid("expected the id of one of the `vaults`", hint)
    return text


def _prefix(text: str) -> str:
    if not text:
        return text
    if text.startswith("/"):
        raise invalid("expected a prefix that does not begin with '/'", "leave the first '/' out")
    if not text.endswith("/"):
        raise invalid(
            "expected an empty prefix or one that ends at a '/'", "did you mean the same with a '/' behind it?"
        )
    _segments(text[:-1], "a prefix")
    return text


def _segments(text: str, what: str) -> None:
    if _CONTROL.search(text):
        raise invalid(f"{what} can not hold control characters")
    if _leads_elsewhere(text):
        raise invalid(f"{what} can not have empty, '.' or '..' segments")


def _leads_elsewhere(text: str) -> bool:
    return any(segment in ("", ".", "..") for segment in text.split("/"))


def template(text: str, known: tuple[str, ...], prefix: str | None = None) -> Template:
    """A template as it is used later. Raises what a validator raises."""
    try:
        return parse(text, known, prefix)
    except TemplateError as error:
        raise invalid(error.message, error.hint) from None


def _name(text: str) -> str:
    _segments(template(text, PLACEHOLDERS).render(lambda key: "x"), "a name")
    return text


def _pattern(text: str) -> str:
    if text.startswith("regex:"):
        try:
            re.compile(text.removeprefix("regex:"))
            return text
        except re.error as error:
            at = "" if error.pos is None else f", from its character {error.pos + 1} on"
        except (RecursionError, OverflowError):
            at = ""
        raise invalid(f"not a regular expression as Python's `re` has them{at}")
    if not text:
        raise invalid("expected a pattern, not empty text", "'**' is everything")
    if text.startswith("/"):
        raise invalid("paths do not begin with '/', so this pattern matches nothing", "leave the first '/' out")
    return text


def _retention(text: str) -> str:
    if not _RETENTION.fullmatch(text):
        raise invalid("expected a number of days or hours, as in 365d or 12h", "leave it out to keep all for ever")
    return text


VaultId = Annotated[str, AfterValidator(_vault)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Name = Annotated[str, AfterValidator(_name)]


class SourceSettings(Settings):
    vault: VaultId = Field(description="The vault that secrets are read from: an id under `vaults`.")
    prefix: Prefix = Field("", description="Only secrets below it; ends at a '/'. A path is what follows it.")
    resource: Literal["secrets", "policies"] = Field("secrets", description="What is carried.")


def _field(text: str) -> str:
    if not text:
        raise invalid("expected a field's name, not empty text")
    if _CONTROL.search(text):
        raise invalid("a field's name can not hold control characters")
    return text


def _expression(text: str) -> str:
    try:
        check_expression(text)
        return text
    except ConfigError as error:
        raise invalid(str(error), "as in data.password or items[0].value: https://jmespath.org") from None


def _recipients(texts: list[str]) -> list[str]:
    try:
        check_recipients(texts)
        return texts
    except ConfigError as error:
        raise invalid(str(error)) from None


def _identities(text: SecretStr) -> SecretStr:
    try:
        read_identities(text.get_secret_value())
        return text
    except ConfigError as error:
        raise invalid(str(error)) from None


FieldName = Annotated[str, AfterValidator(_field)]


class BuildSettings(Settings):
    """One way in which a field is made from others."""

    json_: list[Pattern] | None = Field(
        None, alias="json", min_length=1, description="Fields, or patterns of them, as one JSON object."
    )
    dotenv: list[Pattern] | None = Field(
        None, min_length=1, description="Fields, or patterns of them, as lines NAME=value."
    )
    template: str | None = Field(None, description="Text with {fields.NAME}, {path}, {dir} and {name}.")
    keep: bool = Field(False, description="Carry the fields that it is made from, too.")

    @model_validator(mode="after")
    def _one_form(self) -> BuildSettings:
        given = [name for name in ("json_", "dotenv", "template") if getattr(self, name) is not None]
        if len(given) != 1:
            raise invalid("expected one of 'json', 'dotenv' and 'template'")
        return self

    @field_validator("template")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        if text is not None:
            template(text, TEMPLATE_PLACEHOLDERS, TEMPLATE_FIELD)
        return text


class FieldsSettings(Settings):
    """Which fields a target gets. The rules are applied in the order of these keys."""

    split: dict[FieldName, Literal["json"]] = Field(
        {}, description="Fields that hold a JSON object, each replaced by that object's fields."
    )
    include: list[Pattern] = Field(
        ["**"], min_length=1, description="Names or patterns of the fields that are carried."
    )
    exclude: list[Pattern] = Field([], description="Names or patterns of those that are not; exclude wins.")
    rename: dict[FieldName, FieldName] = Field({}, description="Other names, by the name so far.")
    set: dict[FieldName, str] = Field({}, description="Fields with a constant value.")
    build: dict[FieldName, BuildSettings] = Field(
        {}, description="Fields that are made from others, which they take the place of."
    )

    @model_validator(mode="after")
    def _one_field_each(self) -> FieldsSettings:
        to = list(self.rename.values())
        if len(set(to)) < len(to):
            raise invalid("two fields would get one name", "give each a name of its own", at="rename")
        for rule, names in (("set", self.set), ("build", self.build)):
            if both := sorted({*to} & {*names}):
                hint = f"rename and {rule} both make {listed(each for each in both if presentable(each)) or 'one'}"
                raise invalid("a field is made twice", hint, at=rule)
        if both := sorted({*self.set} & {*self.build}):
            raise invalid("a field is made twice", f"set and build both make {listed(both[:1])}", at="build")
        return self


class EncryptSettings(Settings):
    age: Annotated[list[str], AfterValidator(_recipients)] = Field(
        min_length=1, description="Public keys of age; whoever has a private key to one of them can read it."
    )


class DecryptSettings(Settings):
    age: Annotated[SecretStr, AfterValidator(_identities)] = Field(
        description="Private keys of age, from the environment: '${NAME}'."
    )


class StepSettings(Settings):
    """One step, and the fields that it concerns."""

    base64: Literal["encode", "decode"] | None = Field(None, description="To base64, or from it.")
    trim: Ends | None = Field(None, description="Without blanks and newlines at its ends.")
    json_pick: Annotated[str, AfterValidator(_expression)] | None = Field(
        None, description="What a JMESPath expression finds in a value that is JSON."
    )
    template: str | None = Field(None, description="Text with {value}, {field}, {path}, {dir} and {name}.")
    encrypt: EncryptSettings | None = Field(None, description="To a text that this program can not read again.")
    decrypt: DecryptSettings | None = Field(None, description="What `encrypt`, or the program age, has encrypted.")
    fields: list[Pattern] = Field(["**"], min_length=1, description="Names or patterns of fields. Default: all.")

    @model_validator(mode="after")
    def _one_step(self) -> StepSettings:
        given = [name for name in KEYS.values() if getattr(self, name) is not None]
        if len(given) != 1:
            raise invalid(f"expected one of {listed(KEYS.values())}", f"here are {listed(given)}" if given else "")
        return self

    @field_validator("template")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        if text is not None:
            template(text, FILL_PLACEHOLDERS)
        return text


class MetadataSettings(Settings):
    """What is carried beside the fields."""

    carry: list[Aspect] = Field([], description="What goes with the fields; the vaults of both sides must keep it.")
    include_tags: list[Pattern] = Field(
        ["**"], min_length=1, description="Names or patterns of the tags that are carried."
    )
    exclude_tags: list[Pattern] = Field([], description="Names or patterns of those that are not; exclude wins.")

    @model_validator(mode="after")
    def _tags_are_carried(self) -> MetadataSettings:
        if len(set(self.carry)) < len(self.carry):
            raise invalid("something is named twice", at="carry")
        for at in ("include_tags", "exclude_tags"):
            if at in self.model_fields_set and Aspect.TAGS not in self.carry:
                raise invalid("says nothing here: no tags are carried", "add `tags` to `carry`", at=at)
        return self


class TargetSettings(Settings):
    id: Annotated[str, AfterValidator(_id)] | None = Field(
        None, description="Names this target in the history. Default: the vault's id."
    )
    vault: VaultId = Field(description="The vault that secrets are written to: an id under `vaults`.")
    prefix: Prefix = Field("", description="Put before each name; ends at a '/'.")
    name: Name | None = Field(
        None,
        description="What a secret is called there, from {path}, {dir}, {name} and, with granularity field, {field}, with "
        "filters as in {path | replace(\"/\", \"--\") | upper}. Default: '{path}', or '{path}-{field}'.",
    )
    granularity: Granularity = Field(
        Granularity.SECRET, description="One target secret per secret, or one per field of it."
    )
    rename: dict[str, Name] = Field({}, description="Names of single secrets, by path; the others are named by `name`.")
    name_encoding: NameEncoding = Field(
        NameEncoding.READABLE,
        description="What becomes of characters that the vault does not take: another one in their place, or a code that "
        "can be read back.",
    )
    fields: FieldsSettings = Field(FieldsSettings(), description="Which fields it gets, and under which names.")
    transform: list[StepSettings] = Field([], description="What becomes of their values, one step after the other.")

    metadata: MetadataSettings = Field(
        MetadataSettings(),
        description="Content type, expiry and tags, where both sides' vaults keep them. Default: none.",
    )

    @model_validator(mode="after")
    def _names_fit_granularity(self) -> TargetSettings:
        by_field = self.granularity is Granularity.FIELD
        given: list[tuple[str, str | None]] = [
            ("name", self.name),
            *(("rename", name) for name in self.rename.values()),
        ]
        for at, name in given:
            if name is None:
                continue
            has_field = any(each.key == "field" for each in template(name, PLACEHOLDERS).placeholders)
            if by_field and not has_field:
                raise invalid("with granularity 'field', a name needs {field}", "as in '{path}-{field}'", at=at)
            if not by_field and has_field:
                raise invalid("{field} is only known with granularity 'field'", "add `granularity: field`", at=at)
        renamed = [
            template(name, PLACEHOLDERS).render(of_path(path, "x").__getitem__) for path, name in self.rename.items()
        ]
        if len(set(renamed)) < len(renamed):
            raise invalid("two paths would get one name", "give each a name of its own", at="rename")
        if any(path.startswith("/") for path in self.rename):
            raise invalid(
                "paths do not begin with '/', so this one is never met", "leave the first '/' out", at="rename"
            )
        if any(map(_leads_elsewhere, self.rename)):
            raise invalid("a path has no empty, '.' or '..' segments, so this one is never met", at="rename")
        return self


class DeleteSettings(Settings):
    propagate: bool = Field(False, description="Delete on the targets what was deleted at the source.")
    max_percent: float = Field(
        25, ge=0, le=100, description="A run that would delete more of a target than this waits for approval."
    )
    min_count: int = Field(5, ge=0, description="Up to as many deletes never wait for approval.")


class RetrySettings(Settings):
    max_retries: int = Field(3, ge=0, le=100, description="How often a path is delivered again.")
    initial_backoff: int = Field(1_000, ge=0, le=_WEEK, description="Milliseconds before the first redelivery.")
    max_backoff: int = Field(60_000, ge=0, le=_WEEK, description="Milliseconds, at most, before any redelivery.")
    multiplier: float = Field(2.0, ge=1, le=100, description="By which the wait grows each time.")

    @model_validator(mode="after")
    def _ordered(self) -> RetrySettings:
        if self.max_backoff < self.initial_backoff:
            raise invalid("expected at least as much as `initial_backoff`", at="max_backoff")
        return self


class SyncSettings(Settings):
    type: Literal["unidirectional", "bidirectional"] = Field(
        "unidirectional",
        description="Whether changes go from the source to the targets, or both ways. Two-way, the source is the hub: what "
        "changes on any side reaches all others.",
    )
    schedule: Annotated[str, AfterValidator(normalise_schedule)] | None = Field(
        None, description="When to run, in UTC: 5 cron fields, or 6 with the seconds first. Default: by hand only."
    )
    enabled: bool = Field(True, description="Whether it runs on its schedule, and when no sync is named.")
    source: SourceSettings = Field(description="Where secrets come from.")
    targets: list[TargetSettings] = Field(min_length=1, description="Where they go, side by side.")
    include: list[Pattern] = Field(
        ["**"], min_length=1, description="Globs ('*' stops at '/', '**' does not) or 'regex:…' for a whole path."
    )
    exclude: list[Pattern] = Field([], description="Patterns like those of `include`; exclude wins.")
    verify_targets: bool = Field(True, description="Look at the targets for what was changed there by others.")
    on_existing: OnExisting = Field(
        OnExisting.OVERWRITE, description="What to do about another value that is there already, not ours."
    )
    delete: DeleteSettings = Field(DeleteSettings(), description="What becomes of secrets that the source lost.")
    conflict: Literal["newest", "source", "target", "manual"] = Field(
        "newest", description="Two-way syncs: whose value all get where several sides changed; manual: nobody's."
    )
    retry_policy: RetrySettings = Field(RetrySettings(), description="How a path that failed for now is tried again.")


class HistorySettings(Settings):
    retention: Annotated[str, AfterValidator(_retention)] | None = Field(
        None, description="How long runs and history are kept, as in 365d or 12h. Default: for ever."
    )


class FileSettings(Settings):
    """The file's top level. What stands in `vaults` and `syncs` is validated one by one."""

    history: HistorySettings = Field(HistorySettings(), description="What was done, and for how long that is kept.")
    vaults: dict[str, Any] = Field(min_length=1, description="The vaults, by id.")
    syncs: dict[str, Any] = Field({}, description="The syncs, by id.")
