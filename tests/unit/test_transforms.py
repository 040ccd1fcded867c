"""Steps on values: what each does, what it refuses, and what encryption means for runs that follow."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, InvalidSecret, Unavailable
from shared.mapping import Mapper
from shared.model import DeletePolicy, Entry, Granularity, ObjectStatus, OnExisting, Source, Sync, Target
from shared.notices import AuditNotice
from shared.rules import Base64, Build, Decrypt, Encrypt, Ends, FieldRules, Fill, Form, JsonPick, Step, Trim
from shared.transforms import Transformed, check_expression, check_recipients, read_identities, transform
from shared.vault import Capabilities, FingerprintCost, NameRule
from tests.integration.canaries import Searcher
from tests.memory_vault import MemoryVault
from tests.world import one_way, world

CANARY = "s3cret-canary"
IDENTITY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
PUBLIC = str(IDENTITY.to_public())


def done(steps: tuple[Step, ...], fields: dict[str, Any], path: str = "apps/db") -> Transformed:
    return transform(steps, path, fields, lambda rule, what: None)


@pytest.mark.parametrize(
    ("step", "value", "expected"),
    [
        (Base64(), "é", "w6k="),
        (Base64(decode=True), " w6\nk= ", "é"),
        (Trim(), " a b\n", "a b"),
        (Trim(Ends.START), " a ", "a "),
        (Trim(Ends.END), " a\n", " a"),
        (JsonPick("data.password"), '{"data": {"password": "p"}}', "p"),
        (JsonPick("a[0]"), {"a": [{"b": 1}]}, {"b": 1}),
        (JsonPick("a"), '{"a": false}', False),
        (JsonPick("a"), '{"a": 12345678901234567890123}', 12345678901234567890123),
        (JsonPick("a"), '{"a": 1.50}', 1.5),
        (Fill("Bearer {value}"), "t", "Bearer t"),
        (Fill("{name}/{field}: {value | upper}"), {"a": 1}, 'db/f: {"A":1}'),
    ],
)
def test_a_step_does_what_it_says(step: Step, value: Any, expected: Any) -> None:
    assert done((step,), {"f": value}).fields == {"f": expected}


def test_steps_follow_one_another_and_concern_the_fields_they_name() -> None:
    steps = (Trim(fields=("a*",)), Base64(fields=("ab",)))
    assert done(steps, {"a": " x ", "ab": " y ", "c": " z "}).fields == {"a": "x", "ab": "eQ==", "c": " z "}


@pytest.mark.parametrize(
    ("step", "value", "message"),
    [
        (Base64(decode=True), CANARY + "!", r"'f' is not text in base64 \(transform\[0\].base64\)"),
        (Base64(decode=True), base64.b64encode(b"\xff\xfe").decode(), "'f' is not text in base64 .*binary"),
        (Base64(), {"a": CANARY}, "'f' is not text .*narrow the step"),
        (Base64(), "\ud800", "half a character"),
        (Encrypt((PUBLIC,)), CANARY + "\ud800", "half a character"),
        (Trim(), 5, "'f' is not text"),
        (JsonPick("a"), CANARY, "'f' is not JSON"),
        (JsonPick("a"), f'{{"b": "{CANARY}"}}', "'f' holds nothing at that place"),
        (JsonPick("length(a)"), '{"a": 5}', "'f' does not fit the expression"),
        (JsonPick("a > `1`"), f'{{"a": "{CANARY}"}}', "'f' does not fit the expression"),
        (JsonPick("avg(a)"), f'{{"a": [{"9" * 400}]}}', "'f' does not fit the expression"),
        (JsonPick("a[::0]"), f'{{"a": ["{CANARY}"]}}', "'f' does not fit the expression"),
        (
            JsonPick("a"),
            f'{{"a": 1e400, "b": "{CANARY}"}}',
            "'f' holds a number that can not be carried exactly; as text",
        ),
        (JsonPick("a"), '{"a": 0.12345678901234567891}', "'f' holds a number that can not be carried exactly"),
        (JsonPick("a"), f'{{"a": "{CANARY}", "a": 2}}', "'f' holds JSON with one key twice"),
        (Decrypt((str(IDENTITY),)), CANARY, "'f' can not be decrypted"),
    ],
)
def test_what_does_not_fit_is_said_with_field_and_step_and_no_value(step: Step, value: Any, message: str) -> None:
    with pytest.raises(InvalidSecret, match=message) as caught:
        done((step,), {"f": value})
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


@given(st.text(st.characters(codec="utf-8")))
def test_what_is_encrypted_comes_back(text: str) -> None:
    sealed = done((Encrypt((PUBLIC, str(OTHER.to_public()))),), {"f": text})
    assert sealed.meant == {"f": text}
    assert sealed.sealed == {"f"}
    for identity in (IDENTITY, OTHER):
        assert done((Decrypt((str(identity),)),), dict(sealed.fields)).fields == {"f": text}


def test_the_wrong_key_opens_nothing() -> None:
    sealed = done((Encrypt((PUBLIC,)),), {"f": "x"}).fields
    with pytest.raises(InvalidSecret, match="can not be decrypted"):
        done((Decrypt((str(OTHER),)),), dict(sealed))
    assert done((Decrypt((str(OTHER), str(IDENTITY))),), dict(sealed)).fields == {"f": "x"}


def test_keys_are_read_as_age_writes_them() -> None:
    text = f"# created: 2026-01-01\n# public key: {PUBLIC}\n{IDENTITY}\n"
    assert read_identities(text) == (str(IDENTITY),)
    for wrong in ("", "# only\n", CANARY, str(IDENTITY)[:-1]):
        with pytest.raises(ConfigError, match="expected a private key") as caught:
            read_identities(wrong)
        assert caught.value.__context__ is None
    with pytest.raises(ConfigError, match="expected public keys"):
        check_recipients([CANARY])


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a[", "not a JMESPath expression"),
        ("nosuch(a)", "an unknown function; there are abs, "),
        ("a.b[?nosuch(@)].c", "an unknown function"),
        ("{x: length(a, b)}", "length takes 1, not 2"),
        ("length()", "length takes 1, not 0"),
        ("merge()", "merge takes at least 1, not 0"),
        ("sort_by(a, &length())", "length takes 1, not 0"),
    ],
)
def test_an_expression_that_could_never_work_is_refused_before_any_value_is_seen(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_expression(expression)


@pytest.mark.parametrize(
    "expression", ["a.b", "merge(a, b, c)", "not_null(a)", "sort_by(a, &b)[0]", "a[?b > `1`] | [0]"]
)
def test_an_expression_that_may_work_is_taken(expression: str) -> None:
    check_expression(expression)


def test_keys_are_in_no_repr() -> None:
    assert str(IDENTITY) not in repr(Target("t", "t", transform=(Decrypt((str(IDENTITY),)),)))


def test_every_step_is_part_of_the_recipe() -> None:
    values: list[dict[str, Any]] = [
        {},
        {"fields": FieldRules(include=("a",))},
        {"fields": FieldRules(exclude=("a",))},
        {"fields": FieldRules(split=("a",))},
        {"fields": FieldRules(rename={"a": "b"})},
        {"fields": FieldRules(constants={"a": "b"})},
        {"fields": FieldRules(constants={"a": "c"})},
        {"fields": FieldRules(build=(Build("a", Form.JSON, ("b",)),))},
        {"fields": FieldRules(build=(Build("a", Form.DOTENV, ("b",)),))},
        {"fields": FieldRules(build=(Build("a", Form.DOTENV, ("b",), keep=True),))},
        {"fields": FieldRules(build=(Build("a", Form.TEMPLATE, template="x{fields.b}"),))},
        {"fields": FieldRules(build=(Build("a", Form.TEMPLATE, template="y{fields.b}"),))},
        {"fields": FieldRules(build=(Build("a", Form.TEMPLATE, template="x{fields.c}"),))},
        {"transform": (Base64(),)},
        {"transform": (Base64(decode=True),)},
        {"transform": (Base64(fields=("a",)),)},
        {"transform": (Trim(),)},
        {"transform": (Trim(), Base64())},
        {"transform": (Base64(), Trim())},
        {"transform": (Trim(Ends.END),)},
        {"transform": (JsonPick("a"),)},
        {"transform": (Fill("{value}"),)},
        {"transform": (Encrypt((PUBLIC,)),)},
        {"transform": (Encrypt((str(OTHER.to_public()),)),)},
        {"transform": (Decrypt((str(IDENTITY),)),)},
        {"transform": (Decrypt((str(OTHER),)),)},
    ]
    recipes = [Mapper(Target("t", "t", **options), NameRule()).recipe for options in values]
    assert len(set(recipes)) == len(values)


# --- on targets -------------------------------------------------------------------------------------------------------

SEALING = (Encrypt((PUBLIC,)),)


class Killed(BaseException):
    """The worker is gone."""


class Young(MemoryVault):
    """What was written a moment ago could still change unseen, so it has no fingerprint yet."""

    async def set_secret(self, *arguments: Any, **options: Any) -> Entry:
        return replace(await super().set_secret(*arguments, **options), fingerprint=None)


def v2(kind: type[MemoryVault] = MemoryVault) -> MemoryVault:
    return kind("target", Capabilities(FingerprintCost.PER_SECRET, compare_and_set=True))


def v1() -> MemoryVault:
    return MemoryVault("target", Capabilities(FingerprintCost.VALUE))


def listing(kind: type[MemoryVault] = MemoryVault) -> MemoryVault:
    return kind("target", Capabilities(FingerprintCost.LISTED, tags=True))


TARGETS = {"v2": v2, "v1": v1, "listing": listing, "young": lambda: v2(Young), "young listing": lambda: listing(Young)}
every_target = pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())


def opened(text: str) -> str:
    return pyrage.decrypt(text.encode(), [IDENTITY]).decode()


def texts(target: MemoryVault) -> list[str]:
    return sorted(opened(text) for fields in target.values().values() for text in fields.values())


def sealing(steps: tuple[Step, ...] = SEALING, by_field: bool = False, **options: Any) -> Sync:
    shape = {"granularity": Granularity.FIELD, "name": "{path}-{field}"} if by_field else {}
    return one_way(Target("target", "target", transform=steps, **shape), **options)  # type: ignore[arg-type]


def source_with(**fields: str) -> MemoryVault:
    source = MemoryVault("source")
    source.put("db", fields)
    return source


@every_target
@pytest.mark.parametrize("by_field", [False, True])
async def test_an_unchanged_secret_is_not_encrypted_anew(tmp_path: Path, make: Any, by_field: bool) -> None:
    source, target = source_with(user="u", password=CANARY), make()
    async with world(tmp_path, [source, target], sealing(by_field=by_field)) as here:
        assert (await here.sync()).written == 1
        before = target.values()
        assert CANARY not in str(before)
        for _ in range(3):
            run = await here.sync()
            assert (run.written, run.drifted, run.unchanged, run.failed) == (0, 0, 1, 0)
        assert target.values() == before
        source.put("db", {"user": "u", "password": "new"})
        assert (await here.sync()).written == 1
        assert texts(target) == ["new", "u"]
        assert len(target.writes) == (3 if by_field else 2)


@every_target
async def test_what_others_put_in_place_of_an_encrypted_value_is_repaired(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing()) as here:
        await here.sync()
        await here.sync()
        target.put("db", {"password": "tampered"})
        assert (await here.sync()).drifted == 1
        assert texts(target) == [CANARY]
        assert (await here.sync()).unchanged == 1


@every_target
async def test_other_recipients_are_given_what_has_not_changed(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing(())) as here:
        await here.sync()
        assert target.values() == {"db": {"password": CANARY}}
        for steps in (SEALING, (Encrypt((PUBLIC, str(OTHER.to_public()))),), ()):
            here.syncs["s"] = sealing(steps)
            before = target.values()
            assert (await here.sync()).written == 1
            assert target.values() != before
            assert (await here.sync()).unchanged == 1
        assert target.values() == {"db": {"password": CANARY}}


@every_target
async def test_a_write_whose_answer_was_lost_is_recognised(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing(on_existing=OnExisting.FAIL)) as here:
        target.faults.add("set", Unavailable("no answer", vault="target", ambiguous=True), after=True)
        assert (await here.sync()).failed == 0
        assert len(target.writes) == 1
        assert (await here.sync()).unchanged == 1


@every_target
async def test_a_job_that_dies_behind_its_write_leaves_nothing_foreign(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing(on_existing=OnExisting.FAIL)) as here:

        async def die(vault: str, operation: str, name: str) -> None:
            if (vault, operation) == ("target", "set done"):
                target.hook = None
                raise Killed

        target.hook = die
        run = await here.engine.runs.start("s", trigger="manual")
        with pytest.raises(Killed):
            await here.drain()
        (written,) = here.queues.sent[-1:]
        here.queues.messages.append(written)
        here.clock.advance(hours=1)
        await here.drain()
        assert (await here.engine.runs.view(run.run_id)).failed == 0
        assert texts(target) == [CANARY]
        assert (await here.sync()).unchanged == 1


@every_target
async def test_an_encrypted_secret_is_deleted_as_ours_unless_it_was_changed(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    source.put("other", {"password": "x"})
    async with world(tmp_path, [source, target], sealing(delete=DeletePolicy(propagate=True))) as here:
        await here.sync()
        await here.sync()
        target.put("other", {"password": "theirs"})
        source.remove("db")
        source.remove("other")
        await here.sync()
        assert target.values() == {"other": {"password": "theirs"}}


@every_target
async def test_another_digest_key_encrypts_once_more_and_no_more(tmp_path: Path, make: Any) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing()) as here:
        await here.sync()
        here.key = "another-digest-key-of-thirty-two-characters"
        source.put("db", {"password": "new"})
        await here.sync()
        before = target.values()
        assert texts(target) == ["new"]
        assert (await here.sync()).unchanged == 1
        assert target.values() == before


@every_target
@pytest.mark.parametrize("by_field", [False, True])
async def test_an_event_encrypts_what_changed_and_leaves_the_rest(tmp_path: Path, make: Any, by_field: bool) -> None:
    source, target = source_with(password=CANARY), make()
    async with world(tmp_path, [source, target], sealing(by_field=by_field)) as here:

        async def told(*names: str) -> None:
            await here.engine.events.take([AuditNotice("source/", name) for name in names])
            await here.drain()

        await told("db")
        assert texts(target) == [CANARY]
        await told("db", "db")
        assert len(target.writes) == 1
        source.put("db", {"password": "new"})
        await told("db")
        assert texts(target) == ["new"]
        assert len(target.writes) == 2
        assert (await here.sync()).unchanged == 1


async def test_what_is_encrypted_here_is_decrypted_there(tmp_path: Path) -> None:
    source, target, far = source_with(password=CANARY, user="u"), v2(), MemoryVault("far")
    there = Target("far", "far", transform=(Decrypt((str(IDENTITY),)),))
    here_sync = sealing()
    there_sync = one_way(there, id="t", source=Source("target"))
    async with world(tmp_path, [source, target, far], here_sync, there_sync) as here:
        await here.sync("s")
        assert (await here.sync("t")).written == 1
        assert far.values() == source.values()
        target.put("db", {"password": "not ours"})
        run = await here.sync("t")
        assert run.failed == 1
        states = await here.states("t")
        assert "'password' can not be decrypted" in states["far", "db"].error  # type: ignore[attr-defined]
        assert far.values() == source.values()


async def test_rules_that_change_are_applied_to_secrets_that_did_not(tmp_path: Path) -> None:
    source, target = source_with(user="u", password=" p "), v2()
    async with world(tmp_path, [source, target], one_way()) as here:
        await here.sync()
        rules = FieldRules(rename={"user": "login"}, constants={"env": "prod"})
        here.syncs["s"] = one_way(Target("target", "target", fields=rules, transform=(Trim(),)))
        assert (await here.sync()).written == 1
        assert target.values() == {"db": {"login": "u", "password": "p", "env": "prod"}}
        assert (await here.sync()).unchanged == 1


@pytest.mark.parametrize("by_field", [False, True])
async def test_a_step_that_changes_renames_nothing_and_waits_for_no_approval(tmp_path: Path, by_field: bool) -> None:
    source, target = MemoryVault("source"), v2()
    for number in range(30):
        source.put(f"s{number}", {"user": "u", "password": "p"})
    async with world(tmp_path, [source, target], sealing(by_field=by_field)) as here:
        await here.sync()
        for steps in ((Trim(), *SEALING), (Encrypt((str(OTHER.to_public()),)),), ()):
            here.syncs["s"] = sealing(steps, by_field=by_field, delete=DeletePolicy(propagate=True))
            run = await here.sync()
            assert (str(run.status), run.written, run.deleted) == ("succeeded", 30, 0)
        assert len(target.values()) == (60 if by_field else 30)


async def test_fields_of_a_value_become_secrets_and_go_with_it(tmp_path: Path) -> None:
    source, target = MemoryVault("source"), v2()
    source.put("db", {"config": '{"host": "h", "port": 5}', "debug": "d"})
    rules = FieldRules(split=("config",), exclude=("debug",))
    shape = Target("target", "target", granularity=Granularity.FIELD, name="{path}-{field}", fields=rules)
    async with world(tmp_path, [source, target], one_way(shape, delete=DeletePolicy(propagate=True))) as here:
        await here.sync()
        assert target.values() == {"db-host": {"value": "h"}, "db-port": {"value": 5}}
        source.put("db", {"config": '{"host": "h"}'})
        await here.sync()
        assert target.values() == {"db-host": {"value": "h"}}
        source.remove("db")
        await here.sync()
        assert target.values() == {}


async def test_a_secret_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    source, target = source_with(password="p"), v2()
    source.put("web", {"token": CANARY})
    shape = Target("target", "target", fields=FieldRules(build=(Build("value", Form.JSON, ("password",)),)))
    async with world(tmp_path, [source, target], one_way(shape)) as here:
        run = await here.sync()
        assert (run.written, run.failed) == (1, 1)
        states = await here.states()
        failed = states["target", "web"]
        assert failed.status is ObjectStatus.FAILED  # type: ignore[attr-defined]
        assert failed.error == "target:web: it has no field 'password' (fields.build.value)"  # type: ignore[attr-defined]
        assert target.values() == {"db": {"value": '{"password":"p"}'}}


async def test_no_value_constant_or_key_is_in_the_store_or_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    values = {"plain": CANARY, "json": f'{{"inner": "{CANARY}"}}', "packed": base64.b64encode(CANARY.encode()).decode()}
    source = source_with(**values)
    constant = f"constant-{CANARY}"
    rules = [
        FieldRules(constants={"c": constant}, build=(Build("all", Form.DOTENV, ("*",), keep=True),)),
        FieldRules(split=("plain",)),
        FieldRules(split=("json",), build=(Build("x", Form.TEMPLATE, template=f"{CANARY}{{fields.inner}}"),)),
        FieldRules(build=(Build("x", Form.JSON, ("absent",)),)),
    ]
    steps: list[tuple[Step, ...]] = [
        (Base64(decode=True),),
        (JsonPick("inner"),),
        (JsonPick("length(inner)", ("json",)), Trim()),
        (Decrypt((str(IDENTITY),)),),
        (Fill(f"{CANARY}{{value}}"), *SEALING),
    ]
    async with world(tmp_path, [source, v2()], one_way()) as here:
        for shape in [*({"fields": each} for each in rules), *({"transform": each} for each in steps)]:
            here.syncs["s"] = one_way(Target("target", "target", **shape))  # type: ignore[arg-type]
            await here.sync()
            await here.sync()
        searcher = Searcher([CANARY, str(IDENTITY)])
        searcher.add("log", caplog.text)
        searcher.add_files(tmp_path)
        assert searcher.found() == []
        rows = (await here.store.page_history("s", limit=100)).items
        assert any("(fields.build.x)" in (row.error or "") for row in rows)
