"""Misbehaviour on demand: what a sandbox server is told to do wrong, to which calls, and how often."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

FaultKind = Literal[
    "status",  # an error answer instead of the effect; with retry_after, the header Retry-After
    "timeout_before",  # nothing happens and no answer ever comes; ends when the client hangs up
    "timeout_after",  # the effect happens, but no answer ever comes
    "slow",  # effect and answer come `seconds` late
    "torn_before",  # the connection is closed before the effect, without a byte of an answer
    "torn_after",  # the effect happens, and the connection is closed in the middle of the answer
    "cut_body",  # the effect happens, and the answer is complete HTTP around half of its JSON
]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of misbehaviour and the calls that it befalls.

    operation: the server's own word ("read", "list", "write" ...), None for every call.
    path: a glob in which `*` also crosses `/`, matched against the path that the server logs; None for every path.
    times: how many calls are hit before the fault is used up; None: until it is cleared.
    skip: how many matching calls pass unharmed first. `operation="list", skip=1` breaks a listing after its first page.
    retry_after: seconds, sent as they are with a "status" fault.
    seconds: how late a "slow" answer is.
    """

    kind: FaultKind
    operation: str | None = None
    path: str | None = None
    times: int | None = 1
    skip: int = 0
    status: int = 503
    retry_after: float | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"unknown kind of fault {self.kind!r}; known: {', '.join(get_args(FaultKind))}")

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Fault":
        """A fault from the control route's JSON; raises ValueError with the names that it knows."""
        known = {field.name for field in fields(cls)}
        unknown = document.keys() - known
        if unknown or "kind" not in document:
            raise ValueError(f"a fault has a kind and only these keys: {', '.join(sorted(known))}")
        return cls(**document)

    def befalls(self, operation: str, path: str) -> bool:
        """Whether this call is one that the fault speaks of, its counts aside."""
        if self.operation is not None and self.operation != operation:
            return False
        return self.path is None or fnmatch.fnmatchcase(path, self.path)


class Faults:
    """The faults that are armed on one server. The first one added that matches a call is the one that hits it."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, *faults: Fault) -> None:
        """Arm these, behind those that are armed already."""
        self._armed.extend(_Armed(fault, fault.skip, fault.times) for fault in faults)

    def clear(self) -> None:
        """Behave again. A call that hangs already hangs on until its client gives up."""
        self._armed.clear()

    def take(self, operation: str, path: str) -> Fault | None:
        """The fault for this call, counted down, or None."""
        for armed in self._armed:
            if armed.times == 0 or not armed.fault.befalls(operation, path):
                continue
            if armed.skip > 0:
                armed.skip -= 1
                continue
            if armed.times is not None:
                armed.times -= 1
            return armed.fault
        return None

    def __iter__(self) -> Iterator[Fault]:
        return (armed.fault for armed in self._armed if armed.times != 0)


@dataclass(slots=True)
class _Armed:
    fault: Fault
    skip: int
    times: int | None
