"""ACL policies as secrets of one field, `value`. API: https://developer.hashicorp.com/vault/api-docs/system/policies"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

from shared.errors import InvalidSecret, Unsupported
from shared.model import Entry, Expect, Secret
from shared.notices import AuditNotice, Hint
from shared.vault import Capabilities, Finding, FingerprintCost, Use, check_name
from shared.vaults.hashicorp.adapter import MAX_REQUEST_BYTES
from shared.vaults.hashicorp.base import PROBE, HashicorpVault
from shared.vaults.hashicorp.settings import POLICY_NAMES

_FIELD = "value"
_EVERY_SERVERS_OWN = frozenset({"root", "default"})
"""Left alone, as source and as target: the first has no text; the second is in every token's policies, and Vault does not
delete it."""
_PLACES = ("policies/acl/", "policy/")
"""Below `sys/`: two paths of one thing."""
_CAPABILITIES = Capabilities(
    FingerprintCost.VALUE,
    fields=False,
    max_bytes=MAX_REQUEST_BYTES,
    names=POLICY_NAMES,
)


class PolicyVault(HashicorpVault):
    """The ACL policies of one server or namespace. Vault keeps their names in lower case."""

    engine = "policies"

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    async def open(self) -> None:
        if self.login.due():
            await self.login.refresh()

    async def list_secrets(self, prefix: str = "") -> AsyncIterator[Entry]:
        prefix = prefix.lower()
        answer = await self.call(self.system.list_acl_policies)
        try:
            names = [str(each) for each in answer["data"]["keys"]]
        except (KeyError, TypeError):
            self.not_understood(None)
        for name in names:
            if name.startswith(prefix) and name not in _EVERY_SERVERS_OWN:
                yield Entry(name)

    async def describe_secret(self, name: str) -> Entry:
        raise Unsupported("Vault tells nothing about a policy but its text", vault=self.id, path=name)

    async def get_secret(self, name: str) -> Secret:
        name = self._checked(name)
        answer = await self.call(lambda: self.system.read_acl_policy(name), name)
        try:
            text = answer["data"]["policy"]
        except (KeyError, TypeError):
            self.not_understood(name)
        return Secret({_FIELD: text}, entry=Entry(name))

    async def set_secret(
        self, name: str, secret: Secret, *, expect: str | Expect = Expect.ANY, owner: str | None = None
    ) -> Entry:
        name = self._checked(name)
        if expect is not Expect.ANY:
            raise Unsupported("policies can not be compared and set", vault=self.id, path=name)
        text = secret.fields.get(_FIELD)
        if set(secret.fields) != {_FIELD} or not isinstance(text, str) or not text.strip():
            raise InvalidSecret(f"a policy is one field {_FIELD!r} with its text", vault=self.id, path=name)
        path = f"/v1/sys/policies/acl/{quote(name)}"
        body = {"policy": text}
        await self.call(lambda: self.adapter.request("put", path, json=body), name, write=True)
        return Entry(name)

    async def delete_secret(self, name: str, *, expect: str | Expect = Expect.ANY) -> None:
        name = self._checked(name)
        if expect is not Expect.ANY:
            raise Unsupported("policies can not be compared and deleted", vault=self.id, path=name)
        # Deleting what is not there succeeds without a word, so it has to be looked for.
        await self.get_secret(name)
        await self.call(lambda: self.system.delete_acl_policy(name), name, write=True)

    def _checked(self, name: str) -> str:
        """The name as Vault keeps it."""
        check_name(self.id, name)
        name = name.lower()
        if not name.isprintable() or name != name.strip():
            raise InvalidSecret("this is no name for a policy", vault=self.id, path=ascii(name)[:200])
        if name in _EVERY_SERVERS_OWN:
            raise InvalidSecret("every server has this policy of its own: it is left alone", vault=self.id, path=name)
        return name

    def _heard(self, notice: AuditNotice) -> Hint | None:
        place = next((place for place in _PLACES if notice.path.startswith(place)), None)
        if place is None or not self._is_on("sys", notice):
            return None
        try:
            return Hint(self._checked(notice.path.removeprefix(place)))
        except InvalidSecret:
            return None

    async def _check_engine(self) -> Finding:
        await self.open()
        return Finding(self.engine, True, "sys/policies/acl")

    def _needs(self, use: Use) -> list[tuple[str, str, str]]:
        path = f"sys/policies/acl/{use.prefix}{PROBE}"
        needs = [("sys/policies/acl", "list", "list"), (path, "read", "read")]
        if use.write:
            # Every write of a policy is an update to Vault, the first one too.
            needs.append((path, "update", "write"))
        if use.delete:
            needs.append((path, "delete", "delete"))
        return needs
