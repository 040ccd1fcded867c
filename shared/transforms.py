"""What becomes of the values of a target's fields, step by step. Messages name the field and the step, never a value.

Encryption is by age (https://age-encryption.org): many can be given the right to read, and none of them needs this program.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from shared.errors import ConfigError, InvalidSecret
from shared.fields import Note, NotJson, as_text, json_of
from shared.model import Fields
from shared.patterns import matching
from shared.rules import KEYS, Base64, Decrypt, Encrypt, Ends, Fill, JsonPick, Step, Trim
from shared.templates import of_path, parse

FILL_PLACEHOLDERS = ("value", "field", "path", "name", "dir")
"""What the step `template` knows: a field's value and name, and the secret's path with its parts."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """Fields after all steps."""

    fields: Mapping[str, Any] = field(repr=False)
    meant: Mapping[str, Any] = field(repr=False)
    """As they were before the first encryption, which never gives the same text twice."""
    sealed: frozenset[str] = frozenset()
    """The fields that were encrypted."""


def transform(steps: Sequence[Step], path: str, fields: Fields, note: Note) -> Transformed:
    """Carry out all steps. Raises InvalidSecret."""
    found = dict(fields)
    meant: dict[str, Any] | None = None
    sealed: set[str] = set()
    for number, step in enumerate(steps):
        rule = f"transform[{number}].{KEYS[type(step)]}"
        chosen = [name for name in found if matching(step.fields, name) is not None]
        if isinstance(step, Encrypt):
            meant = dict(found) if meant is None else meant
            sealed.update(chosen)
        for name in chosen:
            found[name] = _carried_out(step, path, name, found[name], rule)
        note(rule, f"changes {', '.join(map(repr, chosen))}" if chosen else "concerns no field of it")
    return Transformed(found, found if meant is None else meant, frozenset(sealed))


def _carried_out(step: Step, path: str, name: str, value: Any, rule: str) -> Any:
    where = f"({rule})"
    match step:
        case JsonPick():
            return _pick(step.expression, name, value, where)
        case Encrypt():
            return _encrypt(step.recipients, _bytes(as_text(value), name, where))
        case Fill():
            values = {**of_path(path, name), "value": as_text(value)}
            return parse(step.template, FILL_PLACEHOLDERS).render(values.__getitem__)
        case _ if not isinstance(value, str):
            raise InvalidSecret(f"its field {name!r} is not text {where}; narrow the step with `fields`")
        case Base64(decode=True):
            return _text(_from_base64(value), f"its field {name!r} is not text in base64 {where}")
        case Base64():
            return base64.b64encode(_bytes(value, name, where)).decode()
        case Trim(ends=Ends.BOTH):
            return value.strip()
        case Trim(ends=Ends.START):
            return value.lstrip()
        case Trim():
            return value.rstrip()
        case Decrypt():
            why = f"its field {name!r} can not be decrypted with the key that is given {where}"
            return _text(_decrypt(step.identities, _bytes(value, name, where)), why)


def _bytes(text: str, name: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    raise InvalidSecret(f"its field {name!r} holds half a character {where}")


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _text(data: bytes | None, why: str) -> str:
    text = None
    if data is not None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            why += ": what comes out is binary"
    # Raised out here: the errors of the codecs hold the value.
    if text is None:
        raise InvalidSecret(why)
    return text


def _pick(expression: str, name: str, value: Any, where: str) -> Any:
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        found = jmespath.search(expression, json_of(value))
    except NotJson as error:
        why = error.why
    except (JMESPathError, *_OF_PYTHON):
        why = "does not fit the expression"
    else:
        if found is not None:
            return found
        why = "holds nothing at that place"
    raise InvalidSecret(f"its field {name!r} {why} {where}")


_OF_PYTHON = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What jmespath lets through where a value is not what an expression expects, as in `a > `1`` with a text."""


def check_expression(text: str) -> None:
    """Raises ConfigError for what is no JMESPath expression, or calls a function that there is not, or calls one wrongly."""
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        parsed = jmespath.compile(text).parsed
    except JMESPathError:
        parsed = None
    if parsed is None:
        raise ConfigError("not a JMESPath expression")
    for name, given in _calls(parsed):
        _check_call(name, given)


def _calls(node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The functions that a parsed expression calls, each with the number of its arguments."""
    if node["type"] == "function_expression":
        yield node["value"], len(node["children"])
    for child in node["children"]:
        if isinstance(child, Mapping):
            yield from _calls(child)


def _check_call(name: str, given: int) -> None:
    from jmespath.functions import Functions

    known = Functions.FUNCTION_TABLE
    if name not in known:
        raise ConfigError(f"an unknown function; there are {', '.join(sorted(known))}")
    signature = known[name]["signature"]
    many = bool(signature[-1].get("variadic"))
    if given < len(signature) or (given > len(signature) and not many):
        expected = f"{'at least ' if many else ''}{len(signature)}"
        raise ConfigError(f"a wrong number of arguments: {name} takes {expected}, not {given}")


# --- age ----------------------------------------------------------------------------------------------------------


def _encrypt(recipients: tuple[str, ...], data: bytes) -> str:
    import pyrage

    # Armored, for vaults hold text.
    sealed: bytes = pyrage.encrypt(data, _recipients(recipients), armored=True)
    return sealed.decode()


def _decrypt(identities: tuple[str, ...], data: bytes) -> bytes | None:
    import pyrage

    try:
        opened: bytes = pyrage.decrypt(data, _identities(identities))
    except pyrage.DecryptError:
        return None
    return opened


@lru_cache(maxsize=64)
def _recipients(texts: tuple[str, ...]) -> list[Any]:
    import pyrage

    return [pyrage.x25519.Recipient.from_str(text) for text in texts]


@lru_cache(maxsize=64)
def _identities(texts: tuple[str, ...]) -> list[Any]:
    import pyrage

    return [pyrage.x25519.Identity.from_str(text) for text in texts]


def check_recipients(texts: Sequence[str]) -> None:
    """Raises ConfigError for what is no public key of age."""
    import pyrage

    try:
        _recipients(tuple(texts))
    except pyrage.RecipientError:
        wrong = True
    else:
        wrong = False
    if wrong:
        raise ConfigError("expected public keys of age, as `age-keygen -y` prints them: age1 and 58 letters and digits")


def read_identities(text: str) -> tuple[str, ...]:
    """The private keys in a text, such as the whole file that `age-keygen` writes. Raises ConfigError."""
    import pyrage

    found = tuple(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
    try:
        _identities(found)
    except pyrage.IdentityError:
        found = ()
    if not found:
        raise ConfigError("expected a private key of age, as `age-keygen` writes it: AGE-SECRET-KEY-1 and more")
    return found


# --- the recipe ---------------------------------------------------------------------------------------------------


def recipe(steps: Sequence[Step]) -> list[Any]:
    """All that changes what `transform` gives, as JSON. Holds keys: only ever to be hashed."""
    return [_recipe(step) for step in steps]


def _recipe(step: Step) -> list[Any]:
    match step:
        case Base64():
            how: Any = step.decode
        case Trim():
            how = step.ends
        case JsonPick():
            how = step.expression
        case Fill():
            how = step.template
        case Encrypt():
            how = sorted(step.recipients)
        case Decrypt():
            how = sorted(step.identities)
    return [KEYS[type(step)], how, step.fields]
