"""What must be true of a two-way sync, told without a plan: who wrote which value where, and when in true time.

A `Side` is a vault whose clock may be off. It tells the `Ledger` what people do there, and what is done there by calls. The
ledger knows nothing of states, fingerprints or policies: once it is quiet, it is shown what is left, what is listed as a
conflict and which digests the history names, and says what is wrong with that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.errors import SecretNotFound
from shared.model import Entry
from shared.vault import Capabilities
from tests.memory_vault import Kept, MemoryVault

SECOND = timedelta(seconds=1)
SURE = timedelta(seconds=122)
"""Two clocks, each off by a minute at most, and steps of a second: beyond this, times say what came later."""


@dataclass(frozen=True)
class Deed:
    """What a person did to a path on a side; `value` None: deleted it."""

    number: int
    at: datetime
    side: str
    path: str
    value: str | None
    restored: bool = False


@dataclass(frozen=True)
class Loss:
    """What a call took away: overwrote, or deleted."""

    number: int
    side: str
    path: str
    value: str
    deleted: bool
    elsewhere: bool
    """Whether another side ever held it: only then can it have been agreed on."""
    unseen: bool
    """It was put there after the last look at it, by a vault that can not compare: nobody could have known."""


@dataclass
class Ledger:
    now: Callable[[], datetime]
    sides: tuple[str, ...]
    deeds: dict[str, list[Deed]] = field(default_factory=lambda: defaultdict(list))
    held: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By path and value: the sides that have ever held it."""
    losses: list[Loss] = field(default_factory=list)
    decided: set[str] = field(default_factory=set)
    """Paths that a person has settled."""
    strange: list[str] = field(default_factory=list)
    count: int = 0
    disturbed: bool = False
    """Whether a call failed, or a job was killed, or somebody edited in the middle of one."""

    def next(self) -> int:
        self.count += 1
        return self.count

    def did(self, side: str, path: str, value: str | None, *, restored: bool = False) -> None:
        self.deeds[path].append(Deed(self.next(), self.now(), side, path, value, restored))
        if value is not None:
            self.held[path, value].add(side)

    def was_set(self, side: str, path: str, before: str | None, value: str, *, unseen: bool) -> None:
        if all(deed.value != value for deed in self.deeds[path]):
            self.strange.append(f"{side}:{path} was given {value!r}, which nobody wrote")
        if before is None and not self.disturbed:
            self._brought_back(side, path, value)
        if before is not None and before != value:
            self._lost(side, path, before, False, unseen)
        self.held[path, value].add(side)

    def was_deleted(self, side: str, path: str, before: str, *, unseen: bool) -> None:
        self._lost(side, path, before, True, unseen)

    def _lost(self, side: str, path: str, value: str, deleted: bool, unseen: bool) -> None:
        elsewhere = bool(self.held[path, value] - {side})
        self.losses.append(Loss(self.next(), side, path, value, deleted, elsewhere, unseen))

    def _brought_back(self, side: str, path: str, value: str) -> None:
        here = [deed for deed in self.deeds[path] if deed.side == side]
        if not here or here[-1].value is not None or path in self.decided:
            return
        if side not in self.held[path, value]:
            return
        # Written once, and on another side by now: it was carried, so it was agreed on.
        if sum(deed.value == value for deed in self.deeds[path]) == 1:
            self.strange.append(f"{side}:{path} was given back {value!r}, which was deleted there")

    def newest(self, path: str) -> Deed:
        return self.deeds[path][-1]

    # what must be true once it is quiet -----------------------------------------------------------------------------

    def complaints(
        self,
        left: Mapping[str, Mapping[str, str]],
        *,
        listed: Collection[str],
        recorded: Collection[tuple[str, str]],
        propagate: bool,
        by_time: bool,
    ) -> list[str]:
        """What is wrong. `left`: by side, what each path holds; `listed`: paths that are said to be in conflict;
        `recorded`: path and value of all that the history says has lost; `by_time`: the newest shall win, and all
        sides tell times."""
        found = list(self.strange)
        for path in self.deeds:
            values = {side: left[side].get(path) for side in self.sides}
            if path not in listed:
                found += self._disagreement(path, values, propagate)
                found += self._newest_lost(path, values, recorded, by_time)
        for loss in self.losses:
            found += self._loss(loss, recorded)
        found += [
            f"{side}:{path} is there, and nobody wrote it"
            for side in self.sides
            for path, value in left[side].items()
            if side not in self.held[path, value]
        ]
        return found

    def _disagreement(self, path: str, values: Mapping[str, str | None], propagate: bool) -> list[str]:
        there = {value for value in values.values() if value is not None}
        if len(there) > 1:
            return [f"{path}: the sides hold {values}, and no conflict is listed"]
        gone = [side for side, value in values.items() if value is None]
        if not there or not gone:
            return []
        # A deletion that is not carried stays, and so does what a side had missed before it.
        deleted = [side for side in gone if self._deleted_by_hand(side, path)]
        missed = all(side in deleted or not any(side in self.held[path, value] for value in there) for side in gone)
        kept = not propagate and deleted and missed
        return [] if kept else [f"{path}: {values}, and no conflict is listed"]

    def _deleted_by_hand(self, side: str, path: str) -> bool:
        here = [deed for deed in self.deeds[path] if deed.side == side]
        return bool(here) and here[-1].value is None

    def _newest_lost(
        self, path: str, values: Mapping[str, str | None], recorded: Collection[tuple[str, str]], by_time: bool
    ) -> list[str]:
        newest = self.newest(path)
        there = {value for value in values.values() if value is not None}
        if newest.value is None or there == {newest.value}:
            return []
        told = (path, newest.value) in recorded
        if told and by_time and self._beyond_doubt(newest):
            return [f"{path}: {newest} is the newest by far, and {values} was taken"]
        # What is written a second time may be what the sides agreed on: then nothing has changed.
        repeated = len(self.held[path, newest.value]) > 1 and self._repeated(newest)
        unseen = any(
            loss.unseen and (loss.side, loss.path, loss.value) == (newest.side, path, newest.value)
            for loss in self.losses
        )
        if told or repeated or unseen:
            return []
        return [f"{path}: {newest} is the newest, {values} is left, and the history does not tell"]

    def _repeated(self, deed: Deed) -> bool:
        return deed.restored or any(
            other.value == deed.value and other.number < deed.number for other in self.deeds[deed.path]
        )

    def _beyond_doubt(self, newest: Deed) -> bool:
        """Whether the vaults' own times must say that it is the newest. A deletion has none, and neither has a restored
        value of its own."""
        others = [deed for deed in self.deeds[newest.path] if deed.number != newest.number]
        if newest.restored or newest.path in self.decided:
            return False
        if any(deed.value is None or deed.restored for deed in others):
            return False
        return all(newest.at - deed.at > SURE for deed in others if deed.side != newest.side)

    def _loss(self, loss: Loss, recorded: Collection[tuple[str, str]]) -> list[str]:
        if loss.unseen or (loss.path, loss.value) in recorded:
            return []
        if not loss.elsewhere:
            return [f"{loss} was on no other side, and the history does not tell"]
        if not loss.deleted:
            return []
        before = [deed for deed in self.deeds[loss.path] if deed.number < loss.number]
        written = [deed.number for deed in before if deed.value == loss.value and not self._unheard(deed)]
        if any(deed.value is None and deed.number > max(written, default=0) for deed in before):
            return []
        return [f"{loss}, and nobody deleted it since it was written"]

    def _unheard(self, restored: Deed) -> bool:
        """Whether a restored value is none that was written, to anybody but the one who did it: it is what the sides had in
        common, and another one's deletion, from before, has been carried to nobody."""
        if not restored.restored:
            return False
        for side in self.sides:
            here = [deed for deed in self.deeds[restored.path] if deed.side == side]
            if side != restored.side and here and here[-1].value is None and here[-1].number < restored.number:
                since = range(here[-1].number, restored.number)
                if not any(
                    loss.deleted and loss.path == restored.path and loss.number in since for loss in self.losses
                ):
                    return True
        return False


class Side(MemoryVault):
    """One of the vaults of a two-way sync. Paths are the names below `prefix`."""

    def __init__(
        self,
        side: str,
        capabilities: Capabilities,
        ledger: Ledger,
        *,
        prefix: str = "",
        skew: float = 0,
        tombstones: bool = False,
        tells_times: bool = True,
    ) -> None:
        clock = (lambda: ledger.now() + timedelta(seconds=skew)) if tells_times else None
        super().__init__(side, capabilities, clock=clock, tombstones=tombstones)
        self.ledger = ledger
        self.prefix = prefix
        self.job = 0
        """Counts the jobs that were begun: what was seen in an earlier one was not seen."""
        self._ours: dict[str, int] = {}
        self._dirty: dict[str, int] = {}
        """By name: the job count when a person last changed it and nobody has looked since."""
        self._looked: dict[str, int] = {}

    # what people do ---------------------------------------------------------------------------------------------------

    def write(self, path: str, value: str) -> None:
        self.put(self.prefix + path, value)
        self._by_hand(path, value)

    def delete(self, path: str) -> bool:
        if self.value(path) is None:
            return False
        self.remove(self.prefix + path)
        self._by_hand(path, None)
        return True

    def bring_back(self, path: str) -> bool:
        if not self.restore(self.prefix + path):
            return False
        self._by_hand(path, self.value(path), restored=True)
        return True

    def _by_hand(self, path: str, value: str | None, *, restored: bool = False) -> None:
        self._dirty[self.prefix + path] = self.job
        self.ledger.did(self.id, path, value, restored=restored)

    def value(self, path: str) -> str | None:
        kept = self.kept.get(self.prefix + path)
        return str(kept.fields["value"]) if kept is not None and kept.live else None

    def paths(self) -> dict[str, str]:
        return {
            name.removeprefix(self.prefix): str(kept.fields["value"])
            for name, kept in self.kept.items()
            if kept.live and name.startswith(self.prefix)
        }

    # what calls do ----------------------------------------------------------------------------------------------------

    async def _call(self, operation: str, name: str, effect: Callable[[], Any], *, write: bool = False) -> Any:
        def told() -> Any:
            path = name.removeprefix(self.prefix)
            if operation in ("get", "describe"):
                self._looked[name] = self.job
                self._dirty.pop(name, None)
            if not write:
                return effect()
            before = self.value(path)
            # With compare-and-set, whoever writes must say what he expects: then nothing can happen unseen.
            unseen = (
                not self.capabilities.compare_and_set and name in self._dirty and self._looked.get(name) == self.job
            )
            try:
                result = effect()
            except SecretNotFound:
                self._dirty.pop(name, None)
                raise
            if operation == "set":
                self._ours[name] = self.kept[name].version
                self.ledger.was_set(self.id, path, before, str(self.value(path)), unseen=unseen)
            elif before is not None:
                self.ledger.was_deleted(self.id, path, before, unseen=unseen)
            return result

        return await super()._call(operation, name, told, write=write)

    def _entry(self, name: str, kept: Kept, *, listed: bool = False) -> Entry:
        entry = super()._entry(name, kept, listed=listed)
        step = self.capabilities.time_resolution
        if entry.fingerprint is None or step is None or step < SECOND or kept.updated_at is None or self._clock is None:
            return entry
        # As where only times tell: what is not ours is settled once another write would have another time.
        ours = self._ours.get(name) == kept.version
        if not ours and self._clock() - kept.updated_at < 2 * step:
            return Entry(name, None, None, kept.updated_at, entry.live, entry.enabled, entry.owner)
        text = f"{kept.updated_at:%H:%M:%S}-{kept.version if ours else ''}-{kept.owner}"
        return Entry(name, text, entry.version, kept.updated_at, entry.live, entry.enabled, entry.owner)


def beginning() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)
