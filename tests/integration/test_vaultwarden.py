"""A Vaultwarden under the real engine: what is damaged, doubled or half told is never taken for deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.bitwarden import BitwardenServer
from sandbox.bitwarden_people import Person
from shared.model import DeletePolicy, RunStatus, Secret
from shared.vaults import vaultwarden
from shared.vaults.vaultwarden import crypto
from shared.vaults.vaultwarden.crypto import SymmetricKey
from tests.memory_vault import MemoryVault
from tests.world import World, one_way, world

PASSWORD = "correct horse battery staple"
DELETE = DeletePolicy(propagate=True, max_percent=100)


@asynccontextmanager
async def sides(folder: Path, vaultwarden_id: str) -> AsyncIterator[tuple[World, Person]]:
    """A Vaultwarden as `source` or `target`, and a vault in memory as the other."""
    other = MemoryVault("target" if vaultwarden_id == "source" else "source")
    async with BitwardenServer() as server:
        ada = server.register("ada@example.org", PASSWORD)
        settings = vaultwarden.Settings(
            kind="vaultwarden",
            url=server.url,
            email="ada@example.org",
            password=PASSWORD,
            ca_bundle=str(server.ca_bundle),
        )
        vault = vaultwarden.connect(vaultwarden_id, settings)
        async with world(folder, [vault, other], one_way(delete=DELETE)) as here:
            yield here, ada
        await vault.aclose()


@pytest.mark.parametrize("part", ["name", "key"])
async def test_a_name_that_can_not_be_read_any_more_is_no_deletion(tmp_path: Path, part: str) -> None:
    async with sides(tmp_path, "source") as (here, ada):
        for number in range(5):
            ada.add_login(f"n{number}", password=str(number), own_key=True)
        assert (await here.sync()).written == 5
        broken = ada.items()["n0"]
        broken.body[part] = crypto.encrypt("x", SymmetricKey.generate())
        ada.state.touch([ada.account.id])
        run = await here.sync()
        assert run.deleted == 0
        assert run.status is RunStatus.PARTIAL
        target = here.vaults["target"]
        assert [entry.name async for entry in target.list_secrets()] == [f"n{number}" for number in range(5)]
        assert (await target.get_secret("n0")).fields == {"password": "0"}


async def test_a_second_item_of_a_name_holds_up_that_name_only(tmp_path: Path) -> None:
    async with sides(tmp_path, "source") as (here, ada):
        for number in range(3):
            ada.add_login(f"n{number}", password=str(number))
        await here.sync()
        ada.add_login("n0", password="another")
        ada.add_login("n3", password="3")
        run = await here.sync()
        assert (run.written, run.deleted, run.status) == (1, 0, RunStatus.PARTIAL)
        assert (await here.vaults["target"].get_secret("n0")).fields == {"password": "0"}
        assert (await here.vaults["target"].get_secret("n3")).fields == {"password": "3"}


async def test_what_is_in_the_trash_is_deleted(tmp_path: Path) -> None:
    async with sides(tmp_path, "source") as (here, ada):
        ada.add_login("n0", password="0")
        ada.add_login("n1", password="1")
        await here.sync()
        ada.state.trash_item(ada.account, ada.items()["n0"].id)
        assert (await here.sync()).deleted == 1
        ada.state.restore_item(ada.account, next(each.id for each in ada.state.items.values() if each.deleted))
        assert (await here.sync()).written == 1


async def test_an_unchanged_run_writes_nothing_and_a_persons_notes_are_not_fought_over(tmp_path: Path) -> None:
    async with sides(tmp_path, "target") as (here, ada):
        source = here.vaults["source"]
        for number in range(5):
            await source.set_secret(
                f"apps/n{number}", Secret({"username": "app", "password": str(number), "port": number})
            )
        assert (await here.sync()).written == 5
        assert (await here.sync()).written == 0
        assert {item.writes for item in ada.items().values()} == {1}
        item = ada.items()["apps/n0"]
        key = crypto.unwrap(item.body["key"], ada.user_key)
        item.body = {**item.body, "notes": crypto.encrypt("by hand", key)}
        item.updated = ada.state.clock()
        ada.state.touch([ada.account.id])
        # The notes are taken for a change once, and told apart from the secret's own fields then.
        await here.sync()
        writes = item.writes
        assert (await here.sync()).written == 0
        assert item.writes == writes
        assert ada.read(item)["notes"] == "by hand"
        assert not any(ada.read(each)["passwordHistory"] for each in ada.items().values())


async def test_a_deletion_at_the_source_goes_into_the_trash(tmp_path: Path) -> None:
    async with sides(tmp_path, "target") as (here, ada):
        source = here.vaults["source"]
        for number in range(3):
            await source.set_secret(f"n{number}", Secret({"value": str(number)}))
        await here.sync()
        await source.delete_secret("n1")
        run = await here.sync()
        assert (run.deleted, run.status) == (1, RunStatus.SUCCEEDED)
        assert set(ada.items()) == {"n0", "n2"}
        assert len(ada.state.items) == 3
