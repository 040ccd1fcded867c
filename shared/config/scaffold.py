"""The first file that `vaultferry init` writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from urllib.parse import urlsplit

from shared import vaults
from shared.config.problems import closest, listed
from shared.errors import ConfigError

_SHORT = {
    "vault": "hashicorp",
    "hcv": "hashicorp",
    "openbao": "hashicorp",
    "bao": "hashicorp",
    "akv": "azure_key_vault",
    "azure": "azure_key_vault",
    "key-vault": "azure_key_vault",
    "key_vault": "azure_key_vault",
    "keyvault": "azure_key_vault",
    "azure-key-vault": "azure_key_vault",
}
_KEY_VAULT_HOSTS = (".vault.azure.net", ".vault.azure.cn", ".vault.usgovcloudapi.net")
_KEYS = {
    "hashicorp": """\
    address: {address}
    mount: secret                   # where the KV engine is; its version is found out
    auth: {{method: token, token: "${{VAULT_TOKEN}}"}}   # or approle, kubernetes, jwt, azure
""",
    "azure_key_vault": """\
    url: {address}
    auth: {{method: default}}         # environment, managed identity or Azure CLI; or managed_identity, service_principal
""",
    "file": """\
    path: {address}
    key: "${{{variable}}}"            # 32 bytes in base64, or a passphrase of at least 20 characters
""",
}


def scaffold(sources: Sequence[str], targets: Sequence[str]) -> str:
    """A commented configuration: one sync per source, to all targets. Credentials are references to the environment.

    Each side is `KIND=ADDRESS`, `KIND` perhaps shortened, or an address that tells its kind. Raises ConfigError.
    """
    if not sources or not targets:
        raise ConfigError(
            "init needs at least one --source and one --target, as in --source hashicorp=http://127.0.0.1:8200"
        )
    ids: dict[tuple[str, str], str] = {}
    for kind, address in map(_side, (*sources, *targets)):
        if (kind, address) not in ids:
            ids[kind, address] = _unique(_id(kind, address), ids.values())
    source_ids = [ids[_side(source)] for source in sources]
    target_ids = list(dict.fromkeys(ids[_side(target)] for target in targets))
    for source_id in source_ids:
        if source_id in target_ids:
            raise ConfigError("a source can not be a target of the same sync: it would read what it has written")
    vaults_text = "".join(
        f"  {vault_id}:\n    kind: {kind}\n"
        + _KEYS[kind].format(address=_quoted(address), variable=_variable(vault_id))
        for (kind, address), vault_id in ids.items()
    )
    syncs_text = "".join(_sync(source_id, target_ids, several=len(source_ids) > 1) for source_id in source_ids)
    return f"""\
# Vaultferry's configuration. `vaultferry validate` checks it, `vaultferry check` connects to the vaults,
# `vaultferry plan` shows what a sync would do, `vaultferry sync` does it.
# ${{NAME}} and ${{NAME:-default}} come from the environment: no credential belongs in here.

vaults:
{vaults_text}
syncs:
{syncs_text}"""


def _sync(source_id: str, target_ids: list[str], *, several: bool) -> str:
    targets = "".join(f'      - {{vault: {target}, prefix: ""}}\n' for target in target_ids)
    sync_id = f"{source_id}-to-{target_ids[0]}" if len(target_ids) == 1 else f"{source_id}-to-all"
    # With several sources on one target, each gets a prefix of its own: two secrets of one path would collide.
    targets = targets.replace('prefix: ""', f"prefix: {source_id}/") if several else targets
    return f"""\
  {sync_id[:40].rstrip("-")}:
    # schedule: "0 */6 * * *"       # UTC; without one, `vaultferry sync` runs it
    source: {{vault: {source_id}, prefix: ""}}   # a prefix ends at a '/'
    targets:
{targets}\
    include: ["**"]                 # '*' stops at '/', '**' does not
    exclude: []
    delete: {{propagate: false}}      # true: what is deleted at the source is deleted on the targets
"""


def _side(text: str) -> tuple[str, str]:
    """Kind and address of one `--source` or `--target`."""
    if not text.isprintable():
        raise ConfigError("an address can not hold control characters")
    kind, equals, address = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_-]+", kind):
        return _guess(text), text
    known = [name for name in vaults.kinds() if name in _KEYS]
    name = kind.lower()
    name = _SHORT.get(name, name)
    if name not in known:
        hint = closest(kind, [*known, *_SHORT])
        raise ConfigError(f"init knows no such kind; expected one of {listed(known)}" + (f" ({hint})" if hint else ""))
    if not address:
        raise ConfigError(f"expected an address behind '{kind}='")
    return name, address


def _guess(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return "azure_key_vault" if (parts.hostname or "").endswith(_KEY_VAULT_HOSTS) else "hashicorp"
    if (parts.scheme and "://" in address) or not address:
        raise ConfigError("expected KIND=ADDRESS, a URL or the path of a file")
    return "file"


def _id(kind: str, address: str) -> str:
    if kind == "hashicorp":
        return "hub"
    word = PurePath(address).stem if kind == "file" else (urlsplit(address).hostname or kind).partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-0123456789")[:30].rstrip("-") or "vault"


def _unique(wanted: str, taken: Iterable[str]) -> str:
    used = set(taken)
    number = 2
    candidate = wanted
    while candidate in used:
        candidate = f"{wanted}-{number}"
        number += 1
    return candidate


def _variable(vault_id: str) -> str:
    return f"{vault_id.upper().replace('-', '_')}_KEY"


def _quoted(text: str) -> str:
    """Single quotes keep everything as it is, but a reference to the environment is one in YAML's quotes too."""
    return "'" + text.replace("'", "''").replace("${", "$${") + "'"
