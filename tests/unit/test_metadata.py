"""Content type, expiry and tags: what of them goes with a secret, when, and what is said where they can not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.config import InvalidConfig
from shared.config.build import parse
from shared.engine.document import read_plan
from shared.explanation import explain
from shared.mapping import Digester, Mapper
from shared.metadata import carried, content, differing
from shared.model import Run, RunStatus, Secret, Target
from shared.onestring import CONTENT_TYPE
from shared.rules import Aspect, MetadataRules
from shared.vault import NameRule, Vault
from shared.vaults.file import Settings, connect
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

ALL = MetadataRules(tuple(Aspect))
LATER = datetime(2126, 1, 1, tzinfo=UTC)
FULL = Secret({"value": "1"}, "text/plain", {"team": "ops", "tmp-x": "1"}, LATER)


def vault(folder: Path, vault_id: str) -> Vault:
    return connect(vault_id, Settings(kind="file", path=str(folder / vault_id), key="a passphrase that is long enough"))  # type: ignore[arg-type]


def to(rules: MetadataRules, **options: Any) -> Target:
    return Target("target", "target", metadata=rules, **options)


def counts(run: Run) -> tuple[RunStatus, int, int]:
    return run.status, run.written, run.drifted


async def held(world: World, name: str = "db") -> tuple[object, ...]:
    secret = await world.vaults["target"].get_secret(name)
    return secret.fields, secret.content_type, dict(secret.tags or {}), secret.expires_at


# --- what is carried -----------------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_carried() -> None:
    assert carried(MetadataRules(), FULL) == Secret({"value": "1"})
    assert carried(MetadataRules((Aspect.CONTENT_TYPE,)), FULL) == Secret({"value": "1"}, "text/plain")
    assert carried(MetadataRules((Aspect.EXPIRES,)), FULL) == Secret({"value": "1"}, expires_at=LATER)
    some = MetadataRules((Aspect.TAGS,), ("t*",), ("tmp-*",))
    assert carried(some, FULL) == Secret({"value": "1"}, tags={"team": "ops"})


def test_our_own_marks_are_never_carried_and_count_for_nothing() -> None:
    ours = replace(FULL, content_type=CONTENT_TYPE, tags={"vaultferry": "a/b", "VaultFerry": "c", "team": "ops"})
    assert carried(ALL, ours) == Secret({"value": "1"}, None, {"team": "ops"}, LATER)
    assert content(ALL, ours) == content(ALL, replace(ours, tags={"team": "ops"}, content_type=None))


def test_expiry_is_compared_in_whole_seconds() -> None:
    assert differing(ALL, FULL, replace(FULL, expires_at=LATER + timedelta(microseconds=999_999))) == []
    assert differing(ALL, FULL, replace(FULL, expires_at=LATER + timedelta(seconds=1))) == ["expires"]


def test_without_a_say_digests_and_recipes_are_what_they_were() -> None:
    digester = Digester("k" * 40)
    assert digester.digest(content(MetadataRules(), FULL)) == digester.digest(FULL.fields)
    recipes = [
        Mapper(to(rules), NameRule()).recipe
        for rules in (
            MetadataRules(),
            ALL,
            MetadataRules((Aspect.TAGS,)),
            MetadataRules((Aspect.TAGS,), ("t*",)),
            MetadataRules((Aspect.TAGS,), exclude_tags=("t*",)),
        )
    ]
    assert len(set(recipes)) == 5
    assert "." not in recipes[0]
    assert not Mapper(to(ALL), NameRule()).may_rename(recipes[0])


def test_the_rules_are_told_without_a_value() -> None:
    rules = MetadataRules((Aspect.EXPIRES, Aspect.TAGS), ("team", "eu-*"), ("tmp-*",))
    told = explain(Mapper(to(rules), NameRule()), "db", {"value": "1"}).rules[-1]
    assert (told.rule, told.what) == (
        "metadata.carry",
        "expires, tags; of the tags 'team', 'eu-*'; no tags 'tmp-*' go with it",
    )


# --- a sync ----------------------------------------------------------------------------------------------------------


async def test_what_is_asked_for_arrives_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    async with world(tmp_path, [source, vault(tmp_path, "target")], one_way(to(ALL))) as w:
        await w.sync()
        assert await held(w) == ({"value": "1"}, "text/plain", {"team": "ops", "tmp-x": "1"}, LATER)
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"tags": {"team": "dev"}},
        {"tags": {}},
        {"content_type": "x/y"},
        {"content_type": None},
        {"expires_at": LATER + timedelta(days=1)},
        {"expires_at": None},
    ],
)
async def test_a_change_of_metadata_alone_is_carried_and_one_in_the_target_is_put_right(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    source, target = vault(tmp_path, "source"), vault(tmp_path, "target")
    await source.set_secret("db", FULL)
    async with world(tmp_path, [source, target], one_way(to(ALL))) as w:
        await w.sync()
        before = await held(w)
        await target.set_secret("db", replace(FULL, **change))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 1, 1)
        assert await held(w) == before
        await source.set_secret("db", replace(FULL, **change))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 1, 0)
        expected = replace(FULL, **change)
        assert await held(w) == (
            expected.fields,
            expected.content_type,
            dict(expected.tags or {}),
            expected.expires_at,
        )
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)


async def test_metadata_that_nobody_asked_for_make_no_write(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    async with world(tmp_path, [source, vault(tmp_path, "target")], one_way(to(MetadataRules()))) as w:
        await w.sync()
        assert await held(w) == ({"value": "1"}, None, {}, None)
        await source.set_secret("db", replace(FULL, tags={"team": "dev"}, expires_at=None))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)


async def test_tags_that_are_left_out_make_no_write(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    rules = MetadataRules((Aspect.TAGS,), exclude_tags=("tmp-*",))
    async with world(tmp_path, [source, vault(tmp_path, "target")], one_way(to(rules))) as w:
        await w.sync()
        assert await held(w) == ({"value": "1"}, None, {"team": "ops"}, None)
        await source.set_secret("db", replace(FULL, tags={"team": "ops", "tmp-x": "2"}))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)


async def test_a_changed_say_is_applied_to_what_did_not_change_and_writes_only_where_it_differs(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    await source.set_secret("plain", Secret({"value": "2"}))
    async with world(tmp_path, [source, vault(tmp_path, "target")], one_way(to(MetadataRules()))) as w:
        await w.sync()
        w.syncs["s"] = one_way(to(ALL))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 1, 0)
        assert await held(w) == ({"value": "1"}, "text/plain", {"team": "ops", "tmp-x": "1"}, LATER)
        w.syncs["s"] = one_way(to(MetadataRules((Aspect.TAGS,))))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)
        await source.set_secret("db", replace(FULL, fields={"value": "2"}))
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 1, 0)
        assert await held(w) == ({"value": "2"}, None, {"team": "ops", "tmp-x": "1"}, None)


async def test_what_has_expired_on_both_sides_is_not_written_again(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    source, target = vault(tmp_path, "source"), vault(tmp_path, "target")
    for each in (source, target):
        each._now = lambda: now[0]  # type: ignore[attr-defined]
    await source.set_secret("db", replace(FULL, expires_at=now[0] + timedelta(hours=1)))
    async with world(tmp_path, [source, target], one_way(to(ALL))) as w:
        await w.sync()
        now[0] += timedelta(hours=2)
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)
        assert counts(await w.sync()) == (RunStatus.SUCCEEDED, 0, 0)


async def test_a_plan_names_what_of_the_metadata_changes(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    async with world(tmp_path, [source, vault(tmp_path, "target")], one_way(to(ALL))) as w:
        await w.sync()
        await source.set_secret("db", replace(FULL, tags={"team": "CANARY"}, expires_at=None))
        run = await w.sync(dry_run=True)
        plan = str(await read_plan(w.store, run.run_id))
        assert "metadata changes: expires, tags" in plan
        assert "CANARY" not in plan


async def test_a_vault_that_turns_out_not_to_keep_them_fails_with_both_ends_in_the_message(tmp_path: Path) -> None:
    source = vault(tmp_path, "source")
    await source.set_secret("db", FULL)
    target = MemoryVault("target")
    async with world(tmp_path, [source, target], one_way(to(ALL))) as w:
        run = await w.sync()
        assert (run.failed, run.written) == (1, 0)
        state: Any = (await w.states())["target", "db"]
        assert "metadata can not be carried from 'source' to 'target': content_type" in state.error
        assert target.values() == {}


# --- the file ------------------------------------------------------------------------------------------------------

FILE = """\
vaults:
  hub: {kind: hashicorp, address: "https://vault.example:8200", auth: {method: token, token: "${KEY}"}}
  old: {kind: hashicorp, address: "https://vault.example:8200", kv_version: 1, auth: {method: token, token: "${KEY}"}}
  prod: {kind: azure_key_vault, url: "https://contoso.vault.azure.net"}
  west: {kind: file, path: b, key: "${KEY}"}
syncs:
  nightly:
    source: {vault: SOURCE}
    targets:
      - {vault: TARGET, metadata: METADATA}
"""


def loaded(source: str, target: str, metadata: str, more: str = "") -> Target:
    text = FILE.replace("SOURCE", source).replace("TARGET", target).replace("METADATA", metadata) + more
    return parse(text.encode(), {"KEY": "A" * 43 + "="}, "f").syncs["nightly"].targets[0]


def test_the_file_says_what_is_carried() -> None:
    rules = loaded("prod", "west", "{carry: [tags, expires], include_tags: ['t*'], exclude_tags: [tmp]}").metadata
    assert rules == MetadataRules((Aspect.TAGS, Aspect.EXPIRES), ("t*",), ("tmp",))
    assert loaded("hub", "prod", "{carry: [tags]}").metadata == MetadataRules((Aspect.TAGS,))


@pytest.mark.parametrize(
    ("source", "target", "metadata", "more", "message"),
    [
        ("hub", "prod", "{carry: [tags, expires]}", "", "can not be carried from 'hub' to 'prod': expires"),
        ("old", "prod", "{carry: [tags]}", "", r"tags \(not kept by 'old'\)"),
        ("prod", "hub", "{carry: [content_type]}", "", r"content_type \(not kept by 'hub'\)"),
        ("prod", "west", "{exclude_tags: [a]}", "", "says nothing here: no tags are carried"),
        ("prod", "west", "{carry: [tags, tags]}", "", "named twice"),
        ("prod", "west", "{carry: [enabled]}", "", "content_type"),
        ("prod", "west", "{carry: [tags]}", "    type: bidirectional\n", "a two-way sync carries values alone"),
    ],
)
def test_what_can_not_be_is_refused(source: str, target: str, metadata: str, more: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        loaded(source, target, metadata, more)
