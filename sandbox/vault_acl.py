"""Vault's ACL policies: the part of HCL that they are written in, and which rule decides a request.

Capabilities are enforced; parameter constraints and wrapping limits are read and left aside.
Rules of precedence: https://developer.hashicorp.com/vault/docs/concepts/policies#priority-matching
"""

import json
import re
from dataclasses import dataclass
from typing import Any

CAPABILITIES = ("create", "read", "update", "patch", "delete", "list", "sudo", "deny", "subscribe", "recover")
_SHORTHANDS = {
    "deny": ["deny"],
    "read": ["read", "list"],
    "write": ["create", "read", "update", "delete", "list"],
    "sudo": ["create", "read", "update", "delete", "list", "sudo"],
}
_TOKEN = re.compile(
    r'\s+|\#[^\n]*|//[^\n]*|/\*.*?\*/|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_.-]+)|(?P<mark>[{}\[\]=,:])',
    re.DOTALL,
)

DEFAULT_POLICY = """
# Allow tokens to look up their own properties
path "auth/token/lookup-self" {
    capabilities = ["read"]
}

# Allow tokens to renew themselves
path "auth/token/renew-self" {
    capabilities = ["update"]
}

# Allow tokens to revoke themselves
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# Allow a token to look up its own capabilities on a path
path "sys/capabilities-self" {
    capabilities = ["update"]
}
"""


class BadPolicy(ValueError):
    """A policy text that Vault would refuse, with the reason."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One `path` block."""

    path: str
    capabilities: frozenset[str]

    def matches(self, path: str) -> bool:
        if not self.wild:
            return path == self.path
        pattern = "[^/]+".join(map(re.escape, self.path.removesuffix("*").split("+")))
        return re.fullmatch(pattern + (".*" if self.path.endswith("*") else ""), path, re.DOTALL) is not None

    @property
    def wild(self) -> bool:
        return self.path.endswith("*") or "+" in self.path.split("/")

    @property
    def literal(self) -> str:
        """What comes before the first wildcard."""
        return re.split(r"[+*]", self.path, maxsplit=1)[0] if self.wild else self.path

    @property
    def rank(self) -> tuple[int, bool, int, int, str]:
        """Greater wins: a later first wildcard, no glob at the end, fewer `+`, longer, last in the alphabet."""
        glob = self.path.endswith("*")
        return (len(self.literal), not glob, -self.path.count("+"), len(self.path), self.path)


def parse_policy(text: str) -> list[Rule]:
    """The rules of a policy in HCL or JSON. Raises BadPolicy."""
    if text.lstrip().startswith("{"):
        try:
            blocks = list(json.loads(text).get("path", {}).items())
        except (ValueError, AttributeError) as error:
            raise BadPolicy(str(error)) from None
    else:
        blocks = _Parser(text).blocks()
    return [_rule(path, body) for path, body in blocks]


def capabilities(rules: list[Rule], path: str, *, listing: bool = False) -> frozenset[str]:
    """What these rules together allow on a path; equal paths of several policies add up, and deny wins over all."""
    exact = {path, path.rstrip("/")} if listing else {path}
    deciding = [rule for rule in rules if not rule.wild and rule.path in exact]
    if not deciding:
        # A folder is looked for without its slash first, so that rules below it say nothing about listing it.
        for name in (path.rstrip("/"), path) if listing else (path,):
            matching = [rule for rule in rules if rule.wild and rule.matches(name)]
            if matching:
                best = max(rule.rank for rule in matching)
                deciding = [rule for rule in matching if rule.rank == best]
                break
    together = frozenset[str]().union(*(rule.capabilities for rule in deciding))
    return frozenset({"deny"}) if not together or "deny" in together else together


def reaches(rules: list[Rule], mount: str) -> bool:
    """Whether any rule allows anything at all below a mount ("secret/")."""
    return any(
        "deny" not in rule.capabilities
        and (rule.literal.startswith(mount) or (rule.wild and mount.startswith(rule.literal)))
        for rule in rules
    )


def _rule(path: str, body: dict[str, Any]) -> Rule:
    if not isinstance(body, dict):
        raise BadPolicy(f'path "{path}": expected a block')
    if "policy" in body:
        if body["policy"] not in _SHORTHANDS:
            raise BadPolicy(f'path "{path}": invalid policy "{body["policy"]}"')
        named = _SHORTHANDS[body["policy"]]
    else:
        named = body.get("capabilities", [])
    for each in named:
        if each not in CAPABILITIES:
            raise BadPolicy(f'path "{path}": invalid capability "{each}"')
    if "+*" in path:
        raise BadPolicy(f"path \"{path}\": invalid use of wildcards ('+*' is forbidden)")
    return Rule(path.removeprefix("/"), frozenset({"deny"} if "deny" in named else named))


class _Parser:
    """`path "x" { name = value }` and nothing else of HCL."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise BadPolicy(f"At {text.count(chr(10), 0, position) + 1}: illegal character")
            if match.lastgroup:
                self._tokens.append(match[0])
            position = match.end()
        self._tokens.reverse()

    def blocks(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        while self._tokens:
            kind = self._next()
            if kind != "path":
                raise BadPolicy(f"invalid key {kind}")
            path = self._value()
            self._expect("{")
            found.append((str(path), self._members()))
        return found

    def _members(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while (name := self._next()) != "}":
            if name == ",":
                continue
            if self._peek() != "{":
                self._expect("=", ":")
            members[name.strip('"')] = self._value()
        return members

    def _value(self) -> Any:
        token = self._next()
        if token == "{":
            return self._members()
        if token == "[":
            values = []
            while self._peek() != "]":
                values.append(self._value())
                if self._peek() == ",":
                    self._next()
            self._next()
            return values
        return json.loads(token) if token.startswith('"') else token

    def _expect(self, *tokens: str) -> None:
        found = self._next()
        if found not in tokens:
            raise BadPolicy(f"object expected {tokens[0]} got: {found}")

    def _peek(self) -> str:
        return self._tokens[-1] if self._tokens else ""

    def _next(self) -> str:
        if not self._tokens:
            raise BadPolicy("object expected closing RBRACE got: EOF")
        return self._tokens.pop()
