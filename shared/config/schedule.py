"""Cron expressions as both the Functions host and croniter understand them.

Checked here and not by croniter, whose import is a third of a cold start, and which takes more than NCRONTAB does
(https://github.com/atifaziz/NCrontab/wiki/Crontab-Expression).
"""

from __future__ import annotations

from dataclasses import dataclass

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def number(self, text: str) -> int | None:
        if text.lower() in self.names:
            return self.names.index(text.lower()) + self.low
        if not (text.isascii() and text.isdigit() and len(text) <= 2):
            return None
        return int(text) if self.low <= int(text) <= self.high else None

    def values(self, text: str) -> set[int] | None:
        """What `text` stands for, or None where it is not valid."""
        found: set[int] = set()
        for part in text.split(","):
            span, slash, step_text = part.partition("/")
            first, dash, last = span.partition("-")
            if span == "*":
                low, high = self.low, self.high
            else:
                one, two = self.number(first), self.number(last if dash else first)
                if one is None or two is None or two < one or (slash and not dash):
                    return None
                low, high = one, two
            step = 1
            if slash:
                if not (step_text.isascii() and step_text.isdigit() and 0 < int(step_text[:9]) <= self.high):
                    return None
                step = int(step_text[:9])
            found.update(range(low, high + 1, step))
        return found


_FIELDS = (
    _Field("seconds", 0, 59),
    _Field("minutes", 0, 59),
    _Field("hours", 0, 23),
    _Field("days of the month", 1, 31),
    _Field("months", 1, 12, _MONTHS),
    _Field("days of the week", 0, 6, _DAYS),
)
_LONGEST = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


def normalise_schedule(text: str) -> str:
    """The schedule in six fields, seconds first. Raises ValueError, which does not repeat the text."""
    fields = text.split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        count = len(fields)
        raise ValueError(f"expected 5 or 6 cron fields, not {count}, as in '0 */6 * * *' (every six hours)")
    parsed = []
    for field, given in zip(_FIELDS, fields, strict=True):
        values = field.values(given)
        if values is None:
            sunday = " (Sunday is 0)" if field.high == 6 else ""
            raise ValueError(
                f"the {field.name} are not valid: expected '*', '*/n', or numbers from {field.low} to {field.high}"
                f"{sunday}, ranges 'a-b' and 'a-b/n', separated by ','"
            )
        parsed.append(values)
    if min(parsed[3]) > max(_LONGEST.get(month, 31) for month in parsed[4]):
        raise ValueError("there is no such day in these months, so this never fires")
    return " ".join(fields)
