"""Pure: names written with the characters that a vault takes, so that they can be read back exactly.

Letters (small ones, where the vault ignores case) and digits stay as they are. Everything else follows the vault's escape
character, the first of `-`, `_` and `.` that it takes. With `-`:

    --          -                        -s   /        -u   _        -p   .        -w   a space
    -k          from here on letters are capital ones, until the next -k (only where the vault ignores case)
    -1f512-     any other character: its code point in hexadecimal digits

`apps/DB_main` is `apps-s-kdb-u-kmain`. Two names never become one, and a name that begins another still does.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.errors import InvalidSecret
from shared.vault import NameRule

ESCAPES = "-_."
"""The characters that may introduce what can not be written as it is, in the order in which they are tried."""
SHORT = {"/": "s", "_": "u", ".": "p", " ": "w"}
CAPITALS = "k"
_LONG = {code: char for char, code in SHORT.items()}
_NEEDED = "abcdef0123456789" + CAPITALS + "".join(SHORT.values())


def encode(rule: NameRule, name: str) -> str:
    """A name with `rule`'s characters alone; the same name where it takes any. Raises InvalidSecret where it takes too
    few to tell names apart."""
    folds = rule.ignores_case or rule.upper_case
    if rule.allowed is None and not folds:
        return name
    escape = _escape(rule)
    written = "".join(_pieces(rule, name, escape, folds))
    return written.upper() if rule.upper_case else written


def decode(rule: NameRule, name: str) -> str:
    """What `encode` was given. Raises InvalidSecret for a name that it never gives."""
    folds = rule.ignores_case or rule.upper_case
    if rule.allowed is None and not folds:
        return name
    escape = _escape(rule)
    found = "".join(_characters(name.lower() if folds else name, escape))
    if rule.key(encode(rule, found)) != rule.key(name):
        raise _not_ours()
    return found


def _escape(rule: NameRule) -> str:
    for char in ESCAPES:
        if rule.fit(char) == char and all(rule.fit(each).lower() == each for each in _NEEDED):
            return char
    raise InvalidSecret(
        f"this vault takes {rule.wording}: too few characters for name_encoding: reversible; use readable"
    )


def _pieces(rule: NameRule, name: str, escape: str, folds: bool) -> Iterator[str]:
    capitals = False
    for char in name:
        if char == escape:
            yield escape * 2
        elif folds and char.isascii() and char.isalpha():
            if char.isupper() is not capitals:
                yield escape + CAPITALS
                capitals = not capitals
            yield char.lower()
        elif _stays(rule, char):
            yield char
        elif char in SHORT:
            yield escape + SHORT[char]
        else:
            yield f"{escape}{ord(char):x}{escape}"


def _stays(rule: NameRule, char: str) -> bool:
    """Whether a character that is no ASCII letter of a folding vault is written as it is, and read back so."""
    if rule.ignores_case or rule.upper_case:
        # Beyond ASCII, letters fold in ways that can not be taken back: ß becomes SS, and the Kelvin sign k.
        return char.isascii() and rule.fit(char) == char
    return rule.fit(char) == char


def _characters(name: str, escape: str) -> Iterator[str]:
    at = 0
    capitals = False
    while at < len(name):
        char = name[at]
        if char != escape:
            yield char.upper() if capitals else char
            at += 1
            continue
        code = name[at + 1 : at + 2]
        at += 2
        if code == escape:
            yield escape
        elif code == CAPITALS:
            capitals = not capitals
        elif code in _LONG:
            yield _LONG[code]
        else:
            end = name.find(escape, at)
            yield _from_hex(name[at - 1 : end] if end > 0 else "")
            at = end + 1


def _from_hex(digits: str) -> str:
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        pass
    raise _not_ours()


def _not_ours() -> InvalidSecret:
    return InvalidSecret("this name was not written with name_encoding: reversible")
