"""Tokens: got, renewed, got again; on the sandbox's Vault and with a clock of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox.entra import ManagedIdentityServer, TokenAuthority
from sandbox.faults import Fault
from sandbox.vault import VaultSandbox
from shared.errors import AccessDenied, Unavailable
from shared.model import Secret
from shared.pacing import Pacer
from shared.vaults.hashicorp import Settings
from shared.vaults.hashicorp.kv import KvVault

APPS = 'path "secret/*" { capabilities = ["create", "read", "update", "delete", "list"] }'


class Clock:
    """Seconds that the test lets pass: here, and on the server."""

    def __init__(self, server: VaultSandbox) -> None:
        self.seconds = 0.0
        self._server = server

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self._server.advance(seconds)


@pytest.fixture
async def server() -> AsyncIterator[VaultSandbox]:
    async with VaultSandbox() as vault:
        vault.set_policy("apps", APPS)
        vault.put("secret", "one", {"value": "1"})
        yield vault


@pytest.fixture
def clock(server: VaultSandbox) -> Clock:
    return Clock(server)


@pytest.fixture
async def make(server: VaultSandbox, clock: Clock) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:

        def connect(auth: dict[str, Any], **settings: Any) -> KvVault:
            settings = {"kind": "hashicorp", "address": server.url, "kv_version": 2, "auth": auth, **settings}
            vault = KvVault("hub", Settings(**settings))
            vault.login._clock = clock

            async def sleep(_seconds: float) -> None:
                await asyncio.sleep(0)

            vault.pacer = Pacer("hub", concurrency=settings.get("concurrency", 32), sleep=sleep)
            stack.push_async_callback(vault.aclose)
            return vault

        yield connect


def approle(server: VaultSandbox, **role: Any) -> dict[str, Any]:
    role_id, secret_id = server.add_approle("app", "apps", **role)
    return {"method": "approle", "role_id": role_id, "secret_id": secret_id}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is the server's count that is waited for
            await asyncio.sleep(0.001)


def logins(server: VaultSandbox) -> int:
    return server.calls["login"]


def renewals(server: VaultSandbox) -> int:
    return sum(path == "auth/token/renew-self" for _, path in server.log)


async def test_every_method_logs_in(server: VaultSandbox, make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    authority = TokenAuthority()
    async with ManagedIdentityServer(authority) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        # The sandbox takes exactly the token that it was told of.
        monkeypatch.setattr(authority, "issue", lambda *_args, **_kwargs: ("the-identity-token", 2**31))
        file = tmp_path / "token"
        file.write_text("the-service-account-token\n")
        server.add_jwt_role("ferry", "the-jwt", "apps")
        server.add_jwt_role("ferry", "the-service-account-token", "apps", kind="kubernetes")
        server.add_jwt_role("ferry", "the-identity-token", "apps", kind="azure", mount="cloud/azure")
        for auth in (
            approle(server),
            {"method": "jwt", "role": "ferry", "jwt": "the-jwt"},
            {"method": "kubernetes", "role": "ferry", "token_path": str(file)},
            {"method": "azure", "role": "ferry", "mount": "cloud/azure"},
            {"method": "token", "token": server.root_token},
        ):
            assert (await make(auth).get_secret("one")).fields == {"value": "1"}, auth["method"]


@pytest.mark.parametrize(
    ("auth", "told"),
    [
        ({"method": "token", "token": "hvs.canary-5e"}, "auth.token"),
        ({"method": "approle", "role_id": "x", "secret_id": "canary-5e"}, "auth.secret_id"),
        ({"method": "approle", "role_id": "x", "secret_id": "canary-5e", "mount": "elsewhere"}, "auth.mount"),
        ({"method": "jwt", "role": "ferry", "jwt": "canary-5e"}, "auth.jwt"),
        ({"method": "kubernetes", "role": "ferry", "token_path": "/nowhere"}, "auth.token_path"),
    ],
)
async def test_a_failed_login_says_which_method_and_what_to_check(
    server: VaultSandbox, make: Any, auth: dict[str, Any], told: str
) -> None:
    approle(server)
    server.add_jwt_role("ferry", "another", "apps")
    with pytest.raises(AccessDenied) as caught:
        await make(auth).get_secret("one")
    assert f"login by {auth['method']}" in str(caught.value)
    assert told in str(caught.value)
    assert "canary-5e" not in str(caught.value)


async def test_a_denied_managed_identity_says_so(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ManagedIdentityServer(TokenAuthority()) as identity:
        for name, value in identity.environment.items():
            monkeypatch.setenv(name, value)
        vault = make({"method": "azure", "role": "ferry", "client_id": "of-somebody-else"})
        with pytest.raises(AccessDenied, match="login by azure") as caught:
            await vault.get_secret("one")
        assert "auth.client_id" in str(caught.value)


async def test_many_callers_log_in_once(server: VaultSandbox, make: Any) -> None:
    vault = make(approle(server))
    await asyncio.gather(*(vault.get_secret("one") for _ in range(20)))
    assert logins(server) == 1


async def test_many_callers_fail_to_log_in_once(server: VaultSandbox, make: Any) -> None:
    approle(server)
    vault = make({"method": "approle", "role_id": "x", "secret_id": "y"})
    failures = await asyncio.gather(*(vault.get_secret(f"n{number}") for number in range(20)), return_exceptions=True)
    assert {type(each) for each in failures} == {AccessDenied}
    assert {each.path for each in failures if isinstance(each, AccessDenied)} == {f"n{number}" for number in range(20)}
    assert logins(server) == 1


async def test_a_login_works_with_one_call_at_a_time(server: VaultSandbox, make: Any, clock: Clock) -> None:
    vault = make(approle(server, ttl=300), concurrency=1)
    for _ in range(3):
        await asyncio.wait_for(asyncio.gather(*(vault.get_secret("one") for _ in range(3))), 10)
        clock.pass_by(1000)


async def test_a_token_is_renewed_before_it_expires_and_not_sooner(
    server: VaultSandbox, make: Any, clock: Clock
) -> None:
    vault = make(approle(server, ttl=300))
    await vault.get_secret("one")
    clock.pass_by(190)
    await vault.get_secret("one")
    assert renewals(server) == 0
    clock.pass_by(20)
    await asyncio.gather(*(vault.get_secret("one") for _ in range(5)))
    assert (logins(server), renewals(server)) == (1, 1)
    clock.pass_by(210)
    await vault.get_secret("one")
    assert (logins(server), renewals(server)) == (1, 2)


async def test_nobody_waits_for_a_renewal_while_the_token_is_good(
    server: VaultSandbox, make: Any, clock: Clock
) -> None:
    vault = make(approle(server, ttl=300))
    await vault.get_secret("one")
    clock.pass_by(210)
    server.faults.add(Fault("timeout_before", operation="token"))
    renewing = asyncio.ensure_future(vault.get_secret("one"))
    await until(lambda: renewals(server) > 0)
    assert (await asyncio.wait_for(vault.get_secret("one"), 10)).fields == {"value": "1"}
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)


async def test_a_token_near_the_end_of_its_renewals_is_replaced(server: VaultSandbox, make: Any, clock: Clock) -> None:
    vault = make(approle(server, ttl=300, max_ttl=450))
    await vault.get_secret("one")
    for _ in range(10):
        clock.pass_by(210)
        assert (await vault.get_secret("one")).fields == {"value": "1"}
    assert logins(server) > 1


async def test_a_token_that_expired_unused_is_replaced(server: VaultSandbox, make: Any, clock: Clock) -> None:
    vault = make(approle(server, ttl=300))
    await vault.get_secret("one")
    clock.pass_by(10_000)
    assert (await vault.get_secret("one")).fields == {"value": "1"}
    assert (logins(server), renewals(server)) == (2, 0)


async def test_a_revoked_token_is_replaced_once_for_all_callers(server: VaultSandbox, make: Any) -> None:
    vault = make(approle(server))
    await vault.get_secret("one")
    server.expire_tokens()
    await asyncio.gather(*(vault.get_secret("one") for _ in range(10)))
    assert logins(server) == 2


async def test_a_write_with_a_revoked_token_is_done_once(server: VaultSandbox, make: Any) -> None:
    vault = make(approle(server))
    await vault.get_secret("one")
    server.expire_tokens()
    entry = await vault.set_secret("one", Secret({"value": "2"}))
    assert entry.version == "2"


async def test_a_denied_path_is_denied_without_another_login(server: VaultSandbox, make: Any, clock: Clock) -> None:
    vault = make(approle(server))
    server.set_policy("apps", 'path "secret/data/two" { capabilities = ["read"] }')
    lookups = server.calls["token"]
    for number in range(20):
        with pytest.raises(AccessDenied, match="policies do not allow") as caught:
            await vault.get_secret(f"n{number}")
        assert caught.value.path == f"n{number}"
    assert logins(server) == 1
    # Whether the token is still good is asked, but not for each path.
    assert server.calls["token"] - lookups <= 1
    clock.pass_by(60)
    with pytest.raises(AccessDenied):
        await vault.get_secret("one")
    assert logins(server) == 1


async def test_a_server_that_calls_dead_tokens_denied_is_logged_in_to_again(
    server: VaultSandbox, make: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.vault._BAD_TOKEN", "1 error occurred:\n\t* permission denied\n\n")
    vault = make(approle(server))
    await vault.get_secret("one")
    server.expire_tokens()
    clock.pass_by(60)
    assert (await vault.get_secret("one")).fields == {"value": "1"}
    assert logins(server) == 2


async def test_a_login_that_is_gone_for_good_fails_after_one_try(server: VaultSandbox, make: Any) -> None:
    vault = make(approle(server))
    await vault.get_secret("one")
    server.expire_tokens()
    server.logins.mounts.clear()
    with pytest.raises(AccessDenied, match="login by approle"):
        await vault.get_secret("one")
    assert logins(server) <= 2


async def test_a_static_token_is_renewed_but_never_replaced(server: VaultSandbox, make: Any, clock: Clock) -> None:
    token = server.create_token("apps", ttl=300)
    vault = make({"method": "token", "token": token})
    await vault.get_secret("one")
    clock.pass_by(210)
    await vault.get_secret("one")
    assert renewals(server) == 1
    clock.pass_by(210)
    await vault.get_secret("one")
    server.expire_tokens(token)
    for _ in range(2):
        with pytest.raises(AccessDenied, match=r"login by token.*expired.*a new token for auth\.token of this vault$"):
            await vault.get_secret("one")
    assert logins(server) == 0


async def test_a_token_of_the_environment_is_called_by_its_variable(
    server: VaultSandbox, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "not-one")
    with pytest.raises(AccessDenied, match=r"issue a new token for VAULT_TOKEN$"):
        await make({"method": "token"}).get_secret("one")


async def test_a_token_that_can_not_be_renewed_is_used_to_its_end(
    server: VaultSandbox, make: Any, clock: Clock
) -> None:
    vault = make({"method": "token", "token": server.create_token("apps", ttl=300, renewable=False)})
    await vault.get_secret("one")
    clock.pass_by(290)
    assert (await vault.get_secret("one")).fields == {"value": "1"}
    assert renewals(server) == 0


async def test_a_token_that_may_not_look_at_itself_is_used_all_the_same(server: VaultSandbox, make: Any) -> None:
    server.set_policy("default", "")
    vault = make({"method": "token", "token": server.create_token("apps")})
    assert (await vault.get_secret("one")).fields == {"value": "1"}


async def test_a_renewal_that_fails_is_left_for_later_while_the_token_is_good(
    server: VaultSandbox, make: Any, clock: Clock
) -> None:
    vault = make(approle(server, ttl=300))
    await vault.get_secret("one")
    clock.pass_by(210)
    server.faults.add(Fault("status", operation="token", times=3, status=503))
    assert (await vault.get_secret("one")).fields == {"value": "1"}
    await vault.get_secret("one")
    assert renewals(server) == 3
    clock.pass_by(31)
    await vault.get_secret("one")
    assert (logins(server), renewals(server)) == (1, 4)


async def test_a_server_that_is_down_during_the_login_is_unavailable_and_no_wrong_password(
    server: VaultSandbox, make: Any
) -> None:
    vault = make(approle(server))
    server.faults.add(Fault("status", operation="login", times=3, status=503))
    with pytest.raises(Unavailable):
        await vault.get_secret("one")
    assert (await vault.get_secret("one")).fields == {"value": "1"}


async def test_a_caller_that_gives_up_during_the_login_holds_up_nobody(server: VaultSandbox, make: Any) -> None:
    vault = make(approle(server))
    server.faults.add(Fault("timeout_before", operation="login"))
    first = asyncio.ensure_future(vault.get_secret("one"))
    await until(lambda: logins(server) > 0)
    second = asyncio.ensure_future(vault.get_secret("one"))
    first.cancel()
    assert (await asyncio.wait_for(second, 10)).fields == {"value": "1"}
    with pytest.raises(asyncio.CancelledError):
        await first
