"""What the contract suite needs of each kind: a vault on a server of its own, and hands that go behind its back."""

from __future__ import annotations

import asyncio
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from sandbox.faults import FaultKind
from shared.pacing import Pacer
from shared.vault import Vault

Operation = Literal["read", "write", "list"]


Trait = Literal[
    "fingerprints",  # there are some without reading values
    "listed",  # and the listing has them
    "compare-and-set",
    "folders",  # names may have slashes
    "soft-delete",  # `soft_delete` and `undelete`
    "expiry",  # `put` takes a lifetime
    "write-answers",  # a write is answered with something that can be cut short
    "faults",  # `misbehave` and `unplug`
    "metadata",  # some of content type, expiry and tags
    "metadata-limits",  # and not any number of tags, of any length
]

_Test = TypeVar("_Test", bound=Callable[..., Any])


def needs(*traits: Trait) -> Callable[[_Test], _Test]:
    """Run a test only on the kinds that have all of these traits."""

    def mark(test: _Test) -> _Test:
        test.__dict__["needs"] = frozenset(traits)
        return test

    return mark


def lacks(*traits: Trait) -> Callable[[_Test], _Test]:
    """Run a test only on the kinds that have none of these traits."""

    def mark(test: _Test) -> _Test:
        test.__dict__["lacks"] = frozenset(traits)
        return test

    return mark


class Harness(ABC):
    """One kind on one server, empty at first. Everything but `vault` goes past the code under test."""

    vault: Vault
    """Opened, and never waiting between tries; what it would have waited is in `waits`."""
    traits: ClassVar[frozenset[Trait]]

    def __init__(self) -> None:
        self.waits: list[float] = []

    @abstractmethod
    async def start(self) -> None:
        """Prepare the server, and connect and open `vault`."""

    async def stop(self) -> None:
        await self.vault.aclose()

    @abstractmethod
    def connect(self, *, credentials: bool = True, container: bool = True, patient: bool = True) -> Vault:
        """Another vault on the same secrets, not opened: with wrong credentials, in a mount or vault that does not
        exist, or giving up on a silent server after a fraction of a second."""

    @abstractmethod
    def calls(self) -> int:
        """How many calls have been made, the server's word where it can be asked."""

    @abstractmethod
    async def put(self, name: str, fields: Mapping[str, Any], *, lifetime: str = "") -> None:
        """Write by hand. `lifetime`: "moment" is over at once, "hour" is not during a test."""

    @abstractmethod
    async def look(self, name: str) -> dict[str, Any] | None:
        """The fields that are there, or None."""

    @abstractmethod
    async def wipe(self, name: str) -> None:
        """Remove by hand with all that the vault remembers of it."""

    async def soft_delete(self, name: str) -> None:
        raise NotImplementedError

    async def undelete(self, name: str) -> None:
        raise NotImplementedError

    def misbehave(
        self,
        kind: FaultKind,
        operation: Operation,
        *,
        times: int | None = 1,
        skip: int = 0,
        status: int = 503,
        retry_after: float | None = None,
    ) -> None:
        raise NotImplementedError

    async def unplug(self) -> None:
        """Stop the server, for good."""
        raise NotImplementedError

    def hasty(self, vault: Vault) -> Vault:
        """The vault, with a pacer that writes its waits down instead of waiting."""

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            await asyncio.sleep(0)

        vault.pacer = Pacer(vault.id, concurrency=vault.pacer.concurrency, sleep=sleep)
        return vault


def everything_told_by(error: BaseException) -> str:
    """All that a log could make of an error: its traceback with each cause and context, and their attributes."""
    told = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            told += [str(each), repr(each), repr(each.args), repr(vars(each))]
            waiting += [each.__cause__, each.__context__]
    return "\n".join(told)
