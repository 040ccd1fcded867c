"""What was last synced, and the names it took, in every store."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from shared.history import Save, Store
from shared.model import Action, Contested, ObjectState, ObjectStatus, Outcome, Part, Sight
from tests.contract.stores.conftest import Clock
from tests.contract.stores.helpers import HOSTILE, SYNC, TARGET, all_pages, event, every, saved, state

STORE_SETS = {"revision": None, "updated_at": None, "history_count": 0, "history_hash": None, "history_at": None}

FULL = ObjectState(
    SYNC,
    TARGET,
    "apps/db",
    parts=(Part("apps-db-user", "f", "3", "d" * 64), Part("apps-db-password", None, None, None, owned=False)),
    source_fingerprint="['2026', 3]",
    source_version="3",
    digest_key_id="k1",
    recipe="r" * 40,
    status=ObjectStatus.CONFLICT,
    direction="target_to_source",
    error='prod:apps-db-user: it\'s "denied"',
    transient=True,
    run_id="run-1",
    outcome=Outcome.CONFLICT,
    claim="0123456789abcd:1",
)


@pytest.mark.parametrize(
    "parts", [(), FULL.parts[:1], FULL.parts, tuple(Part(f"n-{i}", "f" * 40) for i in range(1_500))]
)
async def test_an_object_comes_back_as_it_was_saved(store: Store, clock: Clock, parts: tuple[Part, ...]) -> None:
    new = replace(
        FULL, parts=parts, last_sync_at=clock.now, claim_expires_at=clock.now + timedelta(minutes=5, microseconds=1)
    )
    one = await saved(store, new)
    assert replace(one, **STORE_SETS) == new
    assert one.updated_at == clock.now
    assert await store.get_objects(SYNC, TARGET, [new.path]) == {new.path: one}


@pytest.mark.parametrize(
    "contested",
    [
        Contested((Sight("source", "f", "3", "d" * 64, "2026-05-01T12:00:00.000000Z"), Sight(TARGET))),
        Contested(
            (Sight("source", "f"), Sight("zweites/ziel 🔑", digest='it\'s "one"')),
            take="zweites/ziel 🔑",
            taken="source",
        ),
        Contested(tuple(Sight(f"spoke-{n}", "f" * 400, f"{n}", "d" * 64) for n in range(200)), take="source"),
        Contested(()),
    ],
    ids=["two", "decided", "many", "none"],
)
async def test_a_conflict_comes_back_as_it_was_found_and_goes_when_it_is_settled(
    store: Store, contested: Contested
) -> None:
    found = await saved(store, replace(FULL, contested=contested), event(Action.CONFLICT, ObjectStatus.CONFLICT))
    assert found.contested == contested
    assert await store.get_objects(SYNC, TARGET, [FULL.path]) == {FULL.path: found}
    assert list((await store.page_objects(SYNC, status=ObjectStatus.CONFLICT)).items) == [found]
    assert await every(store.list_objects(SYNC)) == [found]
    taken = await saved(store, replace(found, contested=replace(contested, take=TARGET)))
    assert await store.save_objects([Save(replace(found, contested=replace(contested, take="source")))]) == [None]
    assert (await store.get_objects(SYNC, TARGET, [FULL.path]))[FULL.path] == taken
    assert taken.contested is not None
    assert taken.contested.take == TARGET
    settled = await saved(store, replace(taken, status=ObjectStatus.IN_SYNC, contested=None))
    assert await store.get_objects(SYNC, TARGET, [FULL.path]) == {FULL.path: settled}
    assert settled.contested is None
    assert (await store.page_objects(SYNC, status=ObjectStatus.CONFLICT)).items == []


async def test_hostile_paths_are_kept_apart(store: Store) -> None:
    answers = await store.save_objects([Save(state(path), event(error=path)) for path in HOSTILE])
    found = await store.get_objects(SYNC, TARGET, [*HOSTILE, "not there"])
    assert found == {answer.path: answer for answer in answers if answer is not None}
    assert set(found) == set(HOSTILE)
    for path in HOSTILE:
        page = await store.page_history(SYNC, path=path)
        assert [(row.path, row.error) for row in page.items] == [(path, path)]
    assert not (await store.verify_history(SYNC)).broken


async def test_only_what_was_asked_for_is_returned(store: Store) -> None:
    await store.save_objects([Save(state("a")), Save(state("a", target="backup")), Save(state("a", sync_id="second"))])
    assert set(await store.get_objects(SYNC, TARGET, ["a", "b"])) == {"a"}
    assert (await store.get_objects("second", TARGET, ["a"]))["a"].sync_id == "second"
    assert await store.get_objects(SYNC, TARGET, []) == {}
    assert await store.save_objects([]) == []
    assert [one.target for one in await every(store.list_objects(SYNC, target="backup"))] == ["backup"]
    assert len(await every(store.list_objects(SYNC))) == 2


async def test_of_two_writers_of_an_object_one_loses_and_the_rest_of_the_batch_is_saved(
    store: Store, other: Store
) -> None:
    paths = [f"p{n}" for n in range(8)]
    first = await store.save_objects([Save(state(path), event()) for path in paths])
    assert await other.save_objects([Save(state(path)) for path in paths]) == [None] * 8
    assert await other.save_objects([Save(replace(first[2], error="mine")), Save(state("new"))]) != [None, None]
    second = await store.save_objects([Save(replace(one, run_id="run-2"), event()) for one in first if one])
    assert [answer is None for answer in second] == [path == "p2" for path in paths]
    found = await store.get_objects(SYNC, TARGET, paths)
    assert [found[path] for path in paths if path != "p2"] == [one for one in second if one]
    assert found["p2"].error == "mine"


async def test_writers_side_by_side_lose_nothing(store: Store, other: Store) -> None:
    await saved(store, state("counter", error="0"))

    async def add(where: Store) -> None:
        while True:
            current = (await where.get_objects(SYNC, TARGET, ["counter"]))["counter"]
            (answer,) = await where.save_objects(
                [Save(replace(current, error=str(int(current.error or 0) + 1)), event())]
            )
            if answer is not None:
                return

    await asyncio.gather(*(add(one) for one in (store, other) for _ in range(5)))
    counter = (await store.get_objects(SYNC, TARGET, ["counter"]))["counter"]
    assert counter.error == "10"
    assert counter.history_count >= 10
    assert not (await store.verify_history(SYNC)).broken


async def test_an_object_twice_in_one_call_is_saved_once(store: Store) -> None:
    answers = await store.save_objects([Save(state("a", run_id="1"), event()), Save(state("a", run_id="2"), event())])
    assert [answer is None for answer in answers] == [False, True]
    assert (await store.get_objects(SYNC, TARGET, ["a"]))["a"].run_id == "1"


async def test_objects_are_listed_counted_and_paged_by_status(store: Store) -> None:
    statuses = list(ObjectStatus)
    wanted = [state(f"p{n:03d}", statuses[n % 6], target=f"t{n % 2}") for n in range(60)]
    await store.save_objects([Save(one) for one in wanted])
    await store.save_objects([Save(state("x", ObjectStatus.FAILED, sync_id="second"))])
    assert await store.count_objects(SYNC) == Counter(one.status for one in wanted)
    assert await store.count_objects("nothing") == {}
    for status in (None, *statuses):
        expected = {one.object_id for one in wanted if status in (None, one.status)}
        paged = await all_pages(lambda cursor, s=status: store.page_objects(SYNC, status=s, limit=4, cursor=cursor))
        assert sorted(one.object_id for one in paged) == sorted(expected)
        assert {one.object_id for one in await every(store.list_objects(SYNC, status=status))} == expected
        at_one = {one.object_id for one in wanted if status in (None, one.status) and one.target == "t1"}
        assert {one.object_id for one in await every(store.list_objects(SYNC, target="t1", status=status))} == at_one


async def test_an_object_is_found_under_its_latest_status_only(store: Store) -> None:
    one = await saved(store, state("a"))
    for status in (*ObjectStatus, ObjectStatus.FAILED, ObjectStatus.FAILED, ObjectStatus.IN_SYNC):
        one = await saved(store, replace(one, status=status), event(status=status))
        for asked in ObjectStatus:
            assert await every(store.list_objects(SYNC, status=asked)) == ([one] if asked is status else [])
        assert await store.count_objects(SYNC) == {status: 1}


async def test_what_is_listed_can_be_saved(store: Store) -> None:
    await store.save_objects([Save(state(f"p{n}", ObjectStatus.FAILED)) for n in range(3)])
    listed = await every(store.list_objects(SYNC, status=ObjectStatus.FAILED))
    again = await store.save_objects([Save(replace(one, status=ObjectStatus.IN_SYNC), event()) for one in listed])
    assert None not in again
    assert (await store.page_objects(SYNC, status=ObjectStatus.FAILED)).items == []


async def test_a_large_batch_is_saved_and_pages_are_complete_while_more_arrives(store: Store) -> None:
    saves = [Save(state(f"p{n:04d}"), event()) for n in range(250)]
    assert None not in await store.save_objects(saves)
    page = await store.page_objects(SYNC, limit=60)
    seen = [one.path for one in page.items]
    number = 0
    while page.cursor is not None:
        number += 1
        await store.save_objects([Save(state(f"{letter}{number}")) for letter in "aqz"])
        page = await store.page_objects(SYNC, limit=60, cursor=page.cursor)
        seen += [one.path for one in page.items]
    assert len(seen) == len(set(seen))
    assert {path for path in seen if path.startswith("p")} == {f"p{n:04d}" for n in range(250)}


async def test_a_listing_fetches_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("sqlite", "table_storage"):
        monkeypatch.setattr(f"shared.histories.{kind}.PAGE", 50)
    await store.save_objects([Save(state(f"p{n:05d}")) for n in range(180)])
    listing = store.list_objects(SYNC)
    seen = {(await anext(listing)).path}
    # What is changed now and still met as changed had not been fetched beforehand.
    rest = [one for one in await every(store.list_objects(SYNC)) if one.path not in seen]
    await store.save_objects([Save(replace(one, error="later")) for one in rest])
    late = 0
    async for one in listing:
        seen.add(one.path)
        late += one.error == "later"
    assert len(seen) == 180
    assert late == 130


# --- names --------------------------------------------------------------------------------------------------------


async def test_a_name_is_its_first_paths_for_good(store: Store, other: Store) -> None:
    assert await store.reserve_names(SYNC, TARGET, {"a-b": "A_B", "c": "c"}) == {}
    assert await other.reserve_names(SYNC, TARGET, {"a-b": "A-B", "c": "c", "d": "d"}) == {"a-b": "A_B"}
    assert await store.reserve_names(SYNC, "backup", {"a-b": "A-B"}) == {}
    await store.release_names(SYNC, TARGET, {"a-b": "A-B", "c": "c", "never": "there"})
    assert await store.reserve_names(SYNC, TARGET, {"a-b": "A-B", "c": "other"}) == {"a-b": "A_B"}
    assert await store.reserve_names(SYNC, TARGET, {}) == {}
    await store.release_names(SYNC, TARGET, {})


async def test_hostile_names_are_reserved_and_released(store: Store) -> None:
    names = {name: f"path of {name}" for name in HOSTILE}
    assert await store.reserve_names(SYNC, TARGET, names) == {}
    assert await store.reserve_names(SYNC, TARGET, dict.fromkeys(HOSTILE, "other")) == names
    await store.release_names(SYNC, TARGET, names)
    assert await store.reserve_names(SYNC, TARGET, dict.fromkeys(HOSTILE, "other")) == {}


async def test_many_names_are_reserved_by_many_at_once(store: Store, other: Store) -> None:
    answers = await asyncio.gather(
        *(
            one.reserve_names(SYNC, TARGET, {f"n{n}": f"{who}" for n in range(150)})
            for who, one in enumerate((store, other))
        )
    )
    taken = [set(answer) for answer in answers]
    assert taken[0] | taken[1] == {f"n{n}" for n in range(150)}
    assert not taken[0] & taken[1]
