"""What KV secrets and policies have in common: one adapter, one login, one way to make a call, and `check`."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, NoReturn

import hvac.exceptions
from hvac.api import SystemBackend

from shared.errors import AccessDenied, MountNotFound, Unavailable, VaultError
from shared.notices import AuditNotice, GapNotice, Hint, KeyVaultNotice, Notice
from shared.pacing import Pacer
from shared.vault import Finding, Use, Vault
from shared.vaults.hashicorp.adapter import AsyncAdapter
from shared.vaults.hashicorp.failures import Answer, Forbidden, TokenRefused, hvac_failure
from shared.vaults.hashicorp.login import Login
from shared.vaults.hashicorp.settings import Settings

CONCURRENCY = 32
"""A Vault on two cores answers fastest with about as many calls in flight."""


class HashicorpVault(Vault):
    """A client of one server in one namespace."""

    kind = "hashicorp"
    engine: ClassVar[str]
    """What holds the secrets, as `check` calls it."""

    def __init__(self, vault_id: str, settings: Settings) -> None:
        pacer = Pacer(
            vault_id,
            concurrency=settings.concurrency or CONCURRENCY,
            requests_per_second=settings.requests_per_second,
        )
        super().__init__(vault_id, pacer)
        self.settings = settings
        self.adapter = AsyncAdapter(vault_id, settings)
        self.login = Login(vault_id, settings.auth, self.adapter, self._paced)
        self.system = SystemBackend(self.adapter)

    async def aclose(self) -> None:
        await self.adapter.aclose()

    async def call(
        self, attempt: Callable[[], Awaitable[Answer]], name: str | None = None, *, write: bool = False
    ) -> Answer:
        """Make a call at the vault's pace with a valid token; a login that turns out to be over is renewed once.

        Raises VaultErrors that name the secret.
        """
        try:
            if self.login.due():
                await self.login.refresh()
            token = self.adapter.token
            try:
                return await self.pacer.call(attempt, write=write)
            except (Forbidden, TokenRefused) as error:
                denied: AccessDenied = error
            if await self.login.again(token, denied):
                return await self.pacer.call(attempt, write=write)
            raise denied
        except VaultError as error:
            error.path = name
            raise
        except hvac.exceptions.VaultError as error:
            failure = hvac_failure(error, self.id)
            failure.path = name
        raise failure

    async def _paced(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        return await self.pacer.call(attempt)

    def not_understood(self, name: str | None) -> NoReturn:
        """For a success whose answer lacks what every version of Vault puts there."""
        raise Unavailable(
            "the answer is not one that Vault gives: check the address", vault=self.id, path=name
        ) from None

    # what is told of it

    def heard(self, notice: Notice) -> Hint | None:
        if isinstance(notice, KeyVaultNotice) or notice.vault not in (None, self.id):
            return None
        return Hint("") if isinstance(notice, GapNotice) else self._heard(notice)

    @abstractmethod
    def _heard(self, notice: AuditNotice) -> Hint | None:
        """Which secret an entry of this server's audit log speaks of."""

    def _is_on(self, mount: str, notice: AuditNotice) -> bool:
        # A namespace may also be a mount's first segments: `team/kv` is `kv` in `team`, whoever asks for it how.
        there = f"{notice.namespace.strip('/')}/{notice.mount.strip('/')}"
        return there.strip("/") == f"{self.settings.namespace or ''}/{mount}".strip("/")

    # check

    @abstractmethod
    async def _check_engine(self) -> Finding:
        """Whether what holds the secrets is there."""

    @abstractmethod
    def _needs(self, use: Use) -> list[tuple[str, str, str]]:
        """(path, capability, what for) of all that a use asks of the token."""

    async def check(self, uses: list[Use]) -> list[Finding]:
        findings: list[Finding] = []
        steps: tuple[tuple[str, Callable[[], Awaitable[Finding | None]]], ...] = (
            ("server", self._check_server),
            ("login", self._check_login),
            ("namespace", self._check_namespace),
            (self.engine, self._check_engine),
        )
        for subject, step in steps:
            try:
                finding = await step()
            except VaultError as error:
                hint = "" if isinstance(error, AccessDenied | MountNotFound) else "is the server up and reachable?"
                findings.append(Finding(subject, False, error.message, hint))
                return findings
            if finding is not None:
                findings.append(finding)
        for use in uses:
            findings.extend(await self._check_use(use))
        return findings

    async def _health(self) -> Answer:
        # In the root namespace: the endpoint is in no other. All states are answers here.
        return await self.adapter.request(
            "get",
            "/v1/sys/health",
            headers=self.adapter.rootwards,
            params={"standbyok": True, "perfstandbyok": True, "sealedcode": 200, "uninitcode": 200},
        )

    async def _check_server(self) -> Finding:
        health = await self._paced(self._health)
        where = f"{self.settings.url}, version {health.get('version', 'unknown')}"
        if not health.get("initialized", True):
            return Finding("server", False, f"{where}, is not initialised", "run `vault operator init`")
        if health.get("sealed"):
            return Finding("server", False, f"{where}, is sealed", "run `vault operator unseal`")
        return Finding("server", True, where)

    async def _check_login(self) -> Finding:
        await self.login.refresh()
        try:
            data = await self.login.lookup()
        except Forbidden:
            return Finding("login", True, f"{self.login.method}; the token may not look at itself")
        policies = ", ".join(str(each) for each in data.get("policies") or ()) or "none"
        ttl = data.get("ttl")
        lifetime = f"valid for {ttl} s" if ttl else "without an end"
        return Finding("login", True, f"{self.login.method}, {lifetime}, policies: {policies}")

    async def _check_namespace(self) -> Finding | None:
        """Community editions ignore the header, and would sync from or into the wrong secrets without a word.

        So the server is asked in a namespace that can not exist: one that answers all the same does not look at it.
        """
        namespace = self.settings.namespace
        if namespace is None:
            return None
        hint = "remove `namespace`, or use a server that has namespaces (Vault Enterprise, OpenBao 2.3)"
        ignored = Finding("namespace", False, f"{namespace!r} is ignored by this server: it has no namespaces", hint)
        nowhere = self.adapter.headers_for(self.adapter.token or "", f"vaultferry-{secrets.token_hex(8)}")
        try:
            await self._paced(lambda: self.adapter.request("get", "/v1/auth/token/lookup-self", headers=nowhere))
        except Unavailable:
            raise
        except VaultError:
            # Refused there. Was it the namespace, or may the token not look at itself anywhere?
            health = await self._paced(self._health)
            if health.get("enterprise") is False:
                return ignored
            return Finding("namespace", True, namespace)
        return ignored

    async def _check_use(self, use: Use) -> list[Finding]:
        subject = f"permissions on {use.prefix or 'everything'}"
        needs = self._needs(use)
        paths = list(dict.fromkeys(path for path, _, _ in needs))
        try:
            answer = await self.call(lambda: self.system.get_capabilities(paths))
        except Forbidden:
            hint = _policy({"sys/capabilities-self": {"update"}})
            return [Finding(subject, False, "the token may not ask what it is allowed to do", hint)]
        except VaultError as error:
            return [Finding(subject, False, error.message)]
        data = answer.get("data")
        granted: dict[str, Any] = data if isinstance(data, dict) else {}
        missing: dict[str, set[str]] = {}
        purposes: list[str] = []
        for path, capability, purpose in needs:
            if not {"root", capability} & set(granted.get(path) or ()):
                missing.setdefault(path, set()).add(capability)
                purposes.append(f"{capability} on {path} (to {purpose})")
        if missing:
            return [Finding(subject, False, f"missing: {'; '.join(purposes)}", _policy(missing))]
        return [Finding(subject, True, ", ".join(dict.fromkeys(purpose for _, _, purpose in needs)))]


PROBE = "vaultferry-check"
"""Stands for any secret under a prefix when permissions are asked for. Nothing of this name is read or written."""


def _policy(missing: dict[str, set[str]]) -> str:
    """The lines of policy that would grant it."""
    lines = []
    for path, capabilities in missing.items():
        glob = f"{path.removesuffix(PROBE)}*" if path.endswith(("/", PROBE)) else path
        wanted = ", ".join(f'"{each}"' for each in sorted(capabilities))
        lines.append(f'path "{glob}" {{ capabilities = [{wanted}] }}')
    return "add to a policy of the token: " + " ".join(lines)
