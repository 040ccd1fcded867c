"""What a secret looks like in one API: one text or several fields, under the API's names, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import onestring
from shared.errors import InvalidSecret
from shared.model import Secret
from shared.vaults.http_api import answers
from shared.vaults.http_api.answers import Answer
from shared.vaults.http_api.requests import utf8_length
from shared.vaults.http_api.settings import Getting, Setting, Settings


class Shape:
    """Both ways. Raises InvalidSecret for what the API could not give back as it was."""

    def __init__(self, settings: Settings) -> None:
        write = settings.operations.set
        self._most = settings.max_bytes
        self._theirs = dict(settings.field_mapping)
        self._ours = {theirs: ours for ours, theirs in settings.field_mapping.items()}
        self._named = tuple(sorted(write.named())) if write else ()

    def values(self, secret: Secret, write: Setting) -> dict[str, Any]:
        """What the placeholders of a body stand for."""
        return self._one_text(secret, write) if write.carries() == "value" else self._several(secret)

    def secret(self, getting: Getting, answer: Answer) -> Secret:
        """The secret in an answer. Raises Unmapped where the mapping finds none."""
        if getting.fields is not None:
            return Secret(answers.fields(getting, answer.body, self._ours, self._named))
        text, content_type = answers.one_text(getting, answer.body)
        marked = content_type == onestring.CONTENT_TYPE
        return Secret(onestring.unpack(text, content_type), content_type=None if marked else content_type)

    def _one_text(self, secret: Secret, write: Setting) -> dict[str, Any]:
        text, mark = onestring.pack(secret.fields)
        if mark and "content_type" not in write.uses:
            raise InvalidSecret(
                "it has other fields than one text called 'value', and this API holds one text without a mark: "
                "use `granularity: field`, or give `content_type` a place"
            )
        self._fits(text)
        own = secret.content_type if secret.content_type != onestring.CONTENT_TYPE else None
        return {"value": text, "content_type": mark or own, "fields": {}}

    def _several(self, secret: Secret) -> dict[str, Any]:
        fields = self._renamed(secret)
        self._fits(onestring.to_json(fields))
        if not _interoperable(fields):
            raise InvalidSecret("it holds a number past 2^53, which APIs round without a word: store it as text")
        return {"fields": fields, "value": None, "content_type": secret.content_type}

    def _fits(self, text: str) -> None:
        size, most = utf8_length(text), self._most
        if size is None:
            raise InvalidSecret("it holds half a character (a lone surrogate), which can not be sent")
        if most is not None and size > most:
            raise InvalidSecret(f"it takes {size:,} bytes; max_bytes allows {most:,}")

    def _renamed(self, secret: Secret) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for field, value in secret.fields.items():
            theirs = self._theirs.get(field, field)
            if field in self._ours and field not in self._theirs:
                raise InvalidSecret(
                    f"its field {field!r} would come back as {self._ours[field]!r}: that is what field_mapping makes of it"
                )
            if value is None and self._named:
                raise InvalidSecret(f"its field {field!r} is null, which this API can not tell from no such field")
            fields[theirs] = value
        unknown = set(fields) - set(self._named) if self._named else set()
        if unknown:
            takes = ", ".join(repr(self._ours.get(each, each)) for each in self._named)
            raise InvalidSecret(f"it has {len(unknown)} field(s) that this API has no place for; it takes {takes}")
        return fields


def _interoperable(value: Any) -> bool:
    """Whether every number in it comes through others' JSON: https://www.rfc-editor.org/rfc/rfc8259#section-6

    Raises InvalidSecret for what is nested too deeply.
    """
    try:
        if isinstance(value, Mapping):
            return all(map(_interoperable, value.values()))
        if isinstance(value, list | tuple):
            return all(map(_interoperable, value))
        return not isinstance(value, int) or abs(value) <= 2**53
    except RecursionError:
        pass
    raise InvalidSecret("its value is nested too deeply")
