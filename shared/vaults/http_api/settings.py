"""What the configuration may say about an `http_api` vault: its operations, credentials and limits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from shared.settings import Settings as Part
from shared.settings import VaultSettings
from shared.vault import NameRule
from shared.vaults.http_api import templates
from shared.vaults.http_api.templates import LISTING, LOCATORS, REPEATED, VALUES

_CREDENTIAL_HEADERS = frozenset(
    {
        "authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "apikey", "x-apikey", "x-auth-key",
        "x-auth-token", "x-access-token", "x-vault-token", "x-gitlab-token", "private-token", "job-token", "deploy-token",
        "x-functions-key", "ocp-apim-subscription-key",
    }
)  # fmt: skip
_CREDENTIAL_PARAMETERS = frozenset({"api_key", "apikey", "api-key", "access_token", "private_token", "client_secret"})
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _expression(text: str) -> str:
    """https://jmespath.org/specification.html; the message never repeats the expression."""
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        parsed = jmespath.compile(text).parsed
    except JMESPathError as error:
        place = getattr(error, "lex_position", None)
    else:
        if not all(map(_is_function, _functions(parsed))):
            raise ValueError("JMESPath has no function of that name; see jmespath.org/specification.html")
        return text
    where = "" if place is None else f", from its character {place + 1} on"
    raise ValueError(f"not a JMESPath expression{where}; see jmespath.org")


def _functions(node: Any) -> Iterator[str]:
    """The names of the functions that a parsed expression calls."""
    if isinstance(node, dict):
        if node.get("type") == "function_expression":
            yield node["value"]
        for child in node.get("children", []):
            yield from _functions(child)


def _is_function(name: str) -> bool:
    from jmespath.functions import Functions

    return name in Functions.FUNCTION_TABLE


def _address(text: str) -> str:
    problem = "expected an address such as https://secrets.example/v1"
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or text != text.strip():
        raise ValueError(problem)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("expected only scheme, host, port and perhaps a path: credentials belong under auth")
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        raise ValueError("expected a path without '.' and '..' segments")
    return text.rstrip("/")


def _header(text: str) -> str:
    if not _HEADER.fullmatch(text):
        raise ValueError("expected the name of a header, such as X-API-Key")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
        return text
    except (re.error, RecursionError, OverflowError):
        pass
    raise ValueError("not a regular expression as Python's `re` has them; it must match one allowed character")


def _json_text(given: Any) -> Any:
    """A body may be written as JSON: the file's own scalars are all text, and JSON's are not."""
    if not isinstance(given, str) or not given.lstrip().startswith(("{", "[")):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, (str, int)) else given


def _sendable(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("expected printable ASCII, as a header takes it: is there a line break at its end?")
    return secret


def _without_colon(username: str) -> str:
    if ":" in username:
        raise ValueError("expected a name without ':', which ends it: https://www.rfc-editor.org/rfc/rfc7617#section-2")
    return username


HeaderSecret = Annotated[SecretStr, AfterValidator(_sendable)]


def _cutting(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except (re.error, RecursionError, OverflowError):
        groups = 0
    if groups != 1:
        raise ValueError("expected a regular expression with one group, as in '/secrets/([^/]+)$'")
    return text


Expression = Annotated[str, AfterValidator(_expression)]
Address = Annotated[str, AfterValidator(_address)]
HeaderName = Annotated[str, AfterValidator(_header)]
Status = Annotated[int, Field(ge=100, le=599)]
Statuses = Annotated[list[Status], BeforeValidator(_as_list)]


# --- credentials --------------------------------------------------------------------------------------------------


class NoAuth(Part):
    """No credentials but perhaps a client certificate."""

    type: Literal["none"]


class MtlsAuth(Part):
    """A client certificate. It may also stand beside another `auth`, as `client_cert` and `client_key` of the vault."""

    type: Literal["mtls"]
    client_cert: str = Field(description="A PEM file, perhaps with the key in it.")
    client_key: str | None = Field(None, description="A PEM file.")


class BearerAuth(Part):
    """`Authorization: Bearer …`"""

    type: Literal["bearer"]
    token: HeaderSecret = Field(description="The token.")


class BasicAuth(Part):
    """https://www.rfc-editor.org/rfc/rfc7617"""

    type: Literal["basic"]
    username: Annotated[str, AfterValidator(_without_colon)] = Field(description="The name, without ':'.")
    password: SecretStr = Field(description="The password.")


class ApiKeyAuth(Part):
    """A key in a header, or in the query where the API has it there."""

    type: Literal["api_key"]
    key: HeaderSecret = Field(description="The key.")
    header: HeaderName | None = Field(None, description="Default: X-API-Key, where `query` is not given.")
    query: str | None = Field(None, min_length=1, description="The parameter that takes the key.")

    @model_validator(mode="after")
    def _one_place(self) -> ApiKeyAuth:
        if self.header and self.query:
            raise ValueError("give `header` or `query`, not both")
        return self


class HeadersAuth(Part):
    """Any headers."""

    type: Literal["headers"]
    headers: dict[HeaderName, HeaderSecret] = Field(min_length=1, description="Their names and values.")


class OAuth2Auth(Part):
    """Client credentials: https://www.rfc-editor.org/rfc/rfc6749#section-4.4"""

    type: Literal["oauth2_client_credentials"]
    token_url: Address = Field(description="Where tokens are issued.")
    client_id: str = Field(min_length=1, description="The client's id.")
    client_secret: SecretStr = Field(min_length=1, description="The client's secret.")
    scope: str | None = Field(None, description="What is asked for, if the issuer wants to know.")
    audience: str | None = Field(None, description="Whom the token is for, if the issuer wants to know.")
    client_auth: Literal["body", "header"] = Field(
        "body", description="Where the client's id and secret go: into the form, or into a Basic header."
    )


Auth = Annotated[
    NoAuth | MtlsAuth | BearerAuth | BasicAuth | ApiKeyAuth | HeadersAuth | OAuth2Auth, Field(discriminator="type")
]


# --- operations ---------------------------------------------------------------------------------------------------


class Operation(Part):
    """One request. A path is put behind `base_url`."""

    method: str = Field(pattern=r"^[A-Z]+$", description="The request's method.")
    path: str = Field(description="Begins with a '/'; may hold placeholders.")
    query: dict[str, str] = Field({}, description="Parameters; nothing of a value can be in them.")
    headers: dict[HeaderName, str] = Field({}, description="Sent besides those of the vault.")
    body: Annotated[Any, BeforeValidator(_json_text)] = Field(
        None, description="Keys and values, or JSON as text where there are numbers and booleans in it."
    )
    body_type: Literal["json", "form", "text"] = Field("json", description="How the body is sent.")
    expect: Statuses = Field([], description="The statuses of success. Default: 200 to 299.")
    error: Expression | None = Field(None, description="JMESPath: truthy in the answer to a success that is none.")

    def known(self) -> Mapping[str, str]:
        """The placeholders of its path, query and headers."""
        return LOCATORS

    def known_in_body(self) -> Mapping[str, str]:
        return self.known()

    @cached_property
    def uses(self) -> frozenset[str]:
        """Every placeholder in the operation."""
        parts = (self.path, self.query, dict(self.headers), self.body)
        return frozenset(found.partition("|")[0] for part in parts for found in templates.placeholders(part))

    @model_validator(mode="after")
    def _sound(self) -> Operation:
        if not self.path.startswith("/") or "?" in self.path or "#" in self.path:
            raise ValueError("`path` begins with a '/', and parameters belong under `query`")
        if any(segment in (".", "..") for segment in self.path.split("/")):
            raise ValueError("`path` can not have '.' or '..' segments")
        if _CREDENTIAL_HEADERS & {name.lower() for name in self.headers}:
            raise ValueError("`headers` of an operation can not hold credentials: they belong under `auth`")
        if _CREDENTIAL_PARAMETERS & {name.lower() for name in self.query}:
            raise ValueError("`query` can not hold credentials: they belong under `auth`, type api_key with `query`")
        wrong = templates.wrong_placeholder(self.path, self.known(), in_path=True)
        if wrong:
            raise ValueError(f"`path` has {wrong}")
        for key, part in (("query", self.query), ("headers", dict(self.headers))):
            wrong = templates.wrong_placeholder(part, self.known())
            if wrong:
                raise ValueError(f"`{key}` has {wrong}")
        wrong = templates.wrong_placeholder(self.body, self.known_in_body())
        if wrong:
            raise ValueError(f"`body` has {wrong}")
        self._sound_body()
        return self

    def _sound_body(self) -> None:
        if self.body is None:
            return
        if self.body_type == "text" and not isinstance(self.body, str):
            raise ValueError("with body_type text, `body` is one text")
        if self.body_type == "form" and not (
            isinstance(self.body, dict) and all(isinstance(value, str) for value in self.body.values())
        ):
            raise ValueError("with body_type form, `body` is keys and texts")
        if self.body_type == "json" and isinstance(self.body, str):
            raise ValueError("`body` looks like neither keys and values nor JSON; for plain text add `body_type: text`")
        inside = "{fields}" in _parts_of_texts(self.body) if self.body_type == "json" else "fields" in self.uses
        if inside:
            raise ValueError("{fields} is an object: it stands alone as a value of a JSON body")
        if REPEATED & set(_outside_lists(self.body)) or (self.body_type != "json" and REPEATED & self.uses):
            raise ValueError("{field} and {field_value} stand in the elements of a list of a JSON body")


def _parts_of_texts(body: Any) -> str:
    """The texts of a body that are more than one placeholder, and its keys: where no structure fits."""
    if isinstance(body, str):
        return "" if re.fullmatch(r"\{[^{}]*\}", body) else body
    if isinstance(body, dict):
        return "\n".join(part for key, value in body.items() for part in (key, _parts_of_texts(value)))
    return "\n".join(map(_parts_of_texts, body)) if isinstance(body, list) else ""


def _outside_lists(body: Any) -> list[str]:
    if isinstance(body, str):
        return list(templates.placeholders(body))
    if isinstance(body, dict):
        return [found for key, value in body.items() for part in (key, value) for found in _outside_lists(part)]
    return []


class Pages(Part):
    """How a listing goes on. It ends at a page without items, or as `next` or `more` say."""

    type: Literal["none", "page", "offset", "cursor", "link"] = Field(
        "none",
        description="page: numbers; offset: items so far; cursor: `next` of an answer is the next request's parameter; "
        "link: `next` is an address, or else the header Link (RFC 8288) has it.",
    )
    parameter: str = Field("", description="What takes number, offset or cursor. Default: page, offset, cursor.")
    first: int = Field(1, ge=0, description="The number of the first page.")
    next: Expression | None = Field(None, description="JMESPath: the next cursor or address; nothing: the end.")
    more: Expression | None = Field(None, description="JMESPath, for page and offset: falsy on the last page.")
    max_pages: int = Field(1_000, ge=1, le=100_000, description="A listing of more pages is an error.")

    @model_validator(mode="after")
    def _whole(self) -> Pages:
        if self.type == "cursor" and self.next is None:
            raise ValueError("pages of type cursor need `next`: where in an answer the next cursor is")
        if self.next is not None and self.type not in ("cursor", "link"):
            raise ValueError("`next` belongs to pages of type cursor or link")
        if self.more is not None and self.type not in ("page", "offset"):
            raise ValueError("`more` belongs to pages of type page or offset")
        return self


class Answered(Part):
    """What an answer tells besides the value."""

    version: Expression | None = Field(None, description="JMESPath: changes with each write. The fingerprint.")
    updated_at: Expression | None = Field(None, description="JMESPath: a time (ISO 8601, or seconds since 1970).")


class Listing(Operation, Answered):
    """The secrets' names."""

    method: str = Field("GET", pattern=r"^[A-Z]+$", description="The request's method.")
    items: Expression = Field(
        "@", description="JMESPath: a list, or keys and values, where each key is the name of a secret."
    )
    where: Expression | None = Field(None, description="JMESPath, in an item: falsy for what is to be left out.")
    name: Expression | None = Field(None, description="JMESPath, in an item. Default: the item itself, or its key.")
    name_pattern: Annotated[str, AfterValidator(_cutting)] | None = Field(
        None, description="A regular expression whose group is the name, where `name` finds more than that."
    )
    folder: Expression | None = Field(None, description="JMESPath, in an item: the folder that its name is in.")
    id: Expression | None = Field(None, description="JMESPath, in an item: what {id} stands for in other operations.")
    tree: bool = Field(
        False, description="Names are relative to {prefix}, and one that ends at a '/' is a folder, listed in turn."
    )
    empty: Expression | None = Field(
        None, description="JMESPath: truthy in the answer to a 404 that only says that there are no secrets."
    )
    pages: Pages = Field(Pages(), description="How the listing goes on.")

    def known(self) -> Mapping[str, str]:
        return LISTING

    @model_validator(mode="after")
    def _reaches_folders(self) -> Listing:
        if self.tree and "prefix" not in self.uses:
            raise ValueError("with `tree`, {prefix} says which folder is listed")
        if "[?" in self.items and self.pages.type in ("page", "offset"):
            # A page of which nothing is left would look like the end.
            raise ValueError("`items` can not filter where pages are counted: put the condition into `where`")
        return self


class Finding(Listing):
    """A listing of what is called {name}: saves whole listings where other operations need {id}."""

    def known(self) -> Mapping[str, str]:
        return {word: meaning for word, meaning in LOCATORS.items() if word != "id"}


class OnOne(Operation):
    """An operation on one secret."""

    absent: Expression | None = Field(
        None,
        description="JMESPath: truthy in the answer to a 404 that means the secret, not what should hold it. "
        "Default: the listing is asked whether it still answers.",
    )


class Getting(OnOne, Answered):
    """A secret's value: one text, or several fields."""

    method: str = Field("GET", pattern=r"^[A-Z]+$", description="The request's method.")
    name: Expression | None = Field(
        None, description="JMESPath: the secret's name, to make sure that {id} still leads to it."
    )
    answer: Literal["json", "text"] = Field("json", description="text: the whole answer is the value.")
    value: Expression | None = Field(None, description="JMESPath: the secret as one text.")
    content_type: Expression | None = Field(
        None, description="JMESPath: what set put there for {content_type}. Then several fields fit into one text."
    )
    fields: Expression | None = Field(None, description="JMESPath: keys and values, or a list of {name: …, value: …}.")
    etag: bool = Field(False, description="The header ETag is the version.")

    @model_validator(mode="after")
    def _something(self) -> Getting:
        given = [self.value is not None or self.answer == "text", self.fields is not None]
        if sum(given) != 1 or (self.answer == "text" and self.value is not None):
            raise ValueError("give one of `value` (one text), `fields` (several) and `answer: text`")
        if self.content_type is not None and self.value is None:
            raise ValueError("`content_type` goes with `value`")
        if self.etag and self.version:
            raise ValueError("give `version` or `etag`, not both")
        return self


class Describing(OnOne, Answered):
    """What tells whether a secret has changed, without its value."""

    method: str = Field("HEAD", pattern=r"^[A-Z]+$", description="The request's method.")
    etag: bool = Field(False, description="The header ETag is the version.")

    @model_validator(mode="after")
    def _something(self) -> Describing:
        if self.etag == (self.version is not None):
            raise ValueError("give `version` or `etag`: without one there is nothing to tell")
        if self.method == "HEAD" and (self.version or self.updated_at or self.absent):
            raise ValueError("the answer to HEAD has no body to find anything in: give `etag`, or `method: GET`")
        return self


class Setting(OnOne, Answered):
    """A write."""

    method: str = Field("PUT", pattern=r"^[A-Z]+$", description="The request's method.")
    etag: bool = Field(False, description="If-Match and If-None-Match are honoured: compare-and-set.")

    def known_in_body(self) -> Mapping[str, str]:
        return {**LOCATORS, **VALUES}

    def carries(self) -> Literal["value", "fields", "named", ""]:
        """What of a secret the body takes."""
        used = self.uses
        if "value" in used:
            return "value"
        if "fields" in used or "field_value" in used:
            return "fields"
        return "named" if any(word.startswith("field:") for word in used) else ""

    def named(self) -> set[str]:
        """The fields that the body names one by one."""
        return {word.removeprefix("field:") for word in self.uses if word.startswith("field:")}

    @model_validator(mode="after")
    def _carries_one(self) -> Setting:
        used = self.uses
        kinds = ("value" in used, bool({"fields", "field_value"} & used), bool(self.named()))
        if sum(kinds) != 1:
            raise ValueError(
                "`body` needs one of {value}, {fields}, a list with {field} and {field_value}, {field:NAME}"
            )
        if self.method in ("GET", "HEAD"):
            raise ValueError("`method` of a write is POST, PUT or PATCH, say: values never go into an address")
        return self


class Creating(Setting):
    """The first write of a secret, where that is another request than the later ones."""

    method: str = Field("POST", pattern=r"^[A-Z]+$", description="The request's method.")

    def known(self) -> Mapping[str, str]:
        return {word: meaning for word, meaning in LOCATORS.items() if word != "id"}

    def known_in_body(self) -> Mapping[str, str]:
        return {**self.known(), **VALUES}


class Deleting(OnOne):
    """A delete."""

    method: str = Field("DELETE", pattern=r"^[A-Z]+$", description="The request's method.")
    etag: bool = Field(False, description="If-Match is honoured.")
    look_first: bool = Field(
        False, description="Read it before: for an API whose delete succeeds on what is not there."
    )


class Operations(Part):
    """What the API can do. What is not configured is a capability that the vault lacks."""

    list: Listing | None = Field(None, description="The secrets' names. Every sync needs this and `get`.")
    find: Finding | None = Field(None, description="What is called {name}, instead of a whole listing, for its {id}.")
    get: Getting | None = Field(None, description="One secret's value.")
    describe: Describing | None = Field(None, description="Whether one has changed, without its value.")
    set: Setting | None = Field(None, description="A write.")
    create: Creating | None = Field(None, description="The first write, where it is another request.")
    delete: Deleting | None = Field(None, description="A delete.")

    @model_validator(mode="after")
    def _fit_together(self) -> Operations:
        if self.list is None and self.get is None:
            raise ValueError("expected at least `list` and `get`")
        if self.create and not self.set:
            raise ValueError("`create` needs `set`, which writes what is there already")
        if self.find and self.find.id is None:
            raise ValueError("`find` needs `id`: it is there to find out {id}")
        for key, operation in (self._on_one() | {"create": self.create, "find": self.find}).items():
            if operation is not None and not {"name", "base", "id"} & operation.uses:
                raise ValueError(f"`{key}` says nowhere which secret is meant: it needs {{name}}, {{base}} or {{id}}")
        for key, operation in self._on_one().items():
            if "id" in operation.uses and (self.list is None or self.list.id is None):
                raise ValueError(f"`{key}` has {{id}}, and `list` does not say where an item's `id` is")
        self._values_fit()
        self._versions_fit()
        return self

    def _on_one(self) -> dict[str, Operation]:
        each = {"get": self.get, "describe": self.describe, "set": self.set, "delete": self.delete}
        return {key: operation for key, operation in each.items() if operation is not None}

    def _values_fit(self) -> None:
        for key, write in (("set", self.set), ("create", self.create)):
            if write is None or self.get is None:
                continue
            if (write.carries() == "value") == (self.get.fields is not None):
                raise ValueError(f"`get` and `{key}` differ: one has one text (value), the other several fields")
            if ("content_type" in write.uses) != (self.get.content_type is not None):
                raise ValueError(f"`content_type` of `get` and {{content_type}} of `{key}` go together")
        if self.create and self.set and self.create.named() != self.set.named():
            raise ValueError("`set` and `create` name different fields")

    def _versions_fit(self) -> None:
        told_by = self.describe or self.get
        tells = told_by is not None and (told_by.etag or told_by.version is not None)
        if self.list and self.list.version and not tells:
            raise ValueError("`list` has `version`, so `get` (or `describe`) needs it or `etag` as well")
        if self.get and self.describe and bool(self.get.version or self.get.etag) != tells:
            raise ValueError("`describe` tells a version, so `get` needs `version` or `etag` as well")
        if self.set and self.set.etag:
            others = [told_by.etag if told_by else False, self.get.etag if self.get else False]
            others += [write.etag for write in (self.create, self.delete) if write is not None]
            if not all(others):
                raise ValueError("with `etag` on `set`, every other operation on one secret needs it as well")
        elif (self.delete and self.delete.etag) or (self.create and self.create.etag):
            raise ValueError("`etag` on `delete` or `create` goes with `etag` on `set`")


# --- the vault ----------------------------------------------------------------------------------------------------


class Names(Part):
    """Which names the API takes. What does not fit is made to, on the way there."""

    allowed: Annotated[str, AfterValidator(_pattern)] | None = Field(
        None, description="A regular expression for one allowed character, such as [A-Z0-9_]. Default: any."
    )
    replacement: str = Field("-", max_length=1, description="What stands for each other character.")
    upper_case: bool = Field(False, description="Names are written in capital letters.")
    max_length: int | None = Field(None, ge=1, description="Characters that a name may have.")
    ignores_case: bool = Field(False, description="Names that differ by case alone are one secret.")

    @model_validator(mode="after")
    def _replacement_fits(self) -> Names:
        if self.allowed is not None and not re.fullmatch(self.allowed, self.replacement):
            raise ValueError("`replacement` is not an allowed character itself")
        return self


class Settings(VaultSettings):
    """Any API over HTTP that lists, reads and writes secrets."""

    kind: Literal["http_api"]
    base_url: Address = Field(description="What every path is put behind.")
    auth: Auth = Field(description="How requests say who they are; `type: none` for not at all.")
    operations: Operations = Field(description="What the API can do, and how it is asked.")
    headers: dict[HeaderName, str] = Field({}, description="Sent with every request. Credentials belong under auth.")
    ca_bundle: str | None = Field(None, description="A PEM file of authorities to trust besides the system's.")
    client_cert: str | None = Field(None, description="A PEM file, perhaps with the key in it.")
    client_key: str | None = Field(None, description="A PEM file.")
    field_mapping: dict[str, str] = Field({}, description="A field of ours: what the API calls it. Both ways.")
    names: Names = Field(Names(), description="Which names the API takes.")
    max_bytes: int | None = Field(None, ge=1, description="Of one secret's text or fields, as the API limits it.")
    error: Expression | None = Field(
        None, description="JMESPath: truthy in any answer to a success that is none. Operations may have their own."
    )
    transient: Statuses = Field([], description="Statuses to try again later, besides 408, 425, 429 and 5xx.")
    permanent: Statuses = Field([], description="Statuses not to try again, although they look transient.")
    max_answer_bytes: int = Field(16 * 1024 * 1024, ge=1_024, description="A longer answer is an error.")
    timeout: float = Field(30.0, gt=0, le=600, description="Seconds that the server may be silent for.")

    def can(self) -> frozenset[str]:
        configured = self.operations
        return frozenset(name for name in ("list", "get", "set", "delete") if getattr(configured, name) is not None)

    def name_rule(self, resource: str) -> NameRule:
        names = self.names
        if names.allowed is None:
            wording = "any name"
        else:
            wording = f"names of the characters {names.allowed}" + (" in capital letters" if names.upper_case else "")
        return NameRule(
            allowed=re.compile(names.allowed) if names.allowed else None,
            max_length=names.max_length,
            ignores_case=names.ignores_case,
            wording=wording,
            replacement=names.replacement,
            upper_case=names.upper_case,
        )

    @model_validator(mode="after")
    def _sound(self) -> Settings:
        if self.client_key and not self.client_cert:
            raise ValueError("client_key is given without client_cert")
        if isinstance(self.auth, MtlsAuth) and self.client_cert:
            raise ValueError("the client certificate is given twice: under auth, and beside it")
        if _CREDENTIAL_HEADERS & {name.lower() for name in self.headers}:
            raise ValueError("`headers` can not hold credentials: they belong under `auth`")
        if set(self.transient) & set(self.permanent):
            raise ValueError("a status is both `transient` and `permanent`")
        self._sound_mapping()
        return self

    def _sound_mapping(self) -> None:
        theirs = list(self.field_mapping.values())
        if len(set(theirs)) < len(theirs):
            raise ValueError("`field_mapping` has two fields that the API would call the same")
        operations = self.operations
        if theirs and operations.get and operations.get.fields is None:
            raise ValueError("`field_mapping` is of no use here: the API's secrets are one text, not fields")
        named = operations.set.named() if operations.set else set()
        if named and not set(theirs) <= named:
            raise ValueError(
                "`field_mapping` leads to fields that `set` does not carry: {field:NAME} has the API's names"
            )
