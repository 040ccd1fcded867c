"""The first file that `vaultferry init` writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    "http": "http_api",
    "http-api": "http_api",
    "vw": "vaultwarden",
    "bitwarden": "vaultwarden",
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
    "vaultwarden": """\
    url: {address}
    email: "${{VW_EMAIL}}"
    password: "${{VW_PASSWORD}}"      # the account's master password
    # client_id: "${{VW_CLIENT_ID}}"  # the account's API key, where it has two-step login; with client_secret
    # organization: Ops             # with collection; without them, the account's own vault
""",
    "http_api": """\
    base_url: {address}
    auth: {{type: bearer, token: "${{{variable}}}"}}   # or api_key, basic, headers, oauth2_client_credentials, mtls
    operations:                     # as the API has them: docs/vaults/http-api.md, examples/http-api-*.yaml
      list: {{path: /secrets, items: data, name: name}}
      get: {{path: "/secrets/{{name}}", value: value}}
      set: {{path: "/secrets/{{name}}", body: {{value: "{{value}}"}}}}
      delete: {{path: "/secrets/{{name}}"}}
""",
    "file": """\
    path: {address}
    key: "${{{variable}}}"            # 32 bytes in base64, or a passphrase of at least 20 characters
""",
}


def scaffold(sources: Sequence[str], targets: Sequence[str]) -> str:
    """A commented configuration: one sync per source, to all targets. Credentials are references to the environment.

    Each side is `KIND=ADDRESS`, `KIND` perhaps shortened, or an address that tells its kind, or several of these with
    commas between them. Raises ConfigError.
    """
    if not sources or not targets:
        raise ConfigError(
            "init needs at least one --source and one --target, as in --source hashicorp=http://127.0.0.1:8200"
        )
    from_sides, to_sides = ([_side(each) for text in texts for each in text.split(",")] for texts in (sources, targets))
    ids: dict[tuple[str, str], str] = {}
    for kind, address in (*from_sides, *to_sides):
        if (kind, address) not in ids:
            wanted = "hub" if kind == "hashicorp" and not ids else _id(kind, address)
            ids[kind, address] = _unique(wanted, ids.values())
    source_ids = list(dict.fromkeys(ids[side] for side in from_sides))
    target_ids = list(dict.fromkeys(ids[side] for side in to_sides))
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
{_advice(ids, source_ids)}
vaults:
{vaults_text}
syncs:
{syncs_text}"""


def _advice(ids: Mapping[tuple[str, str], str], source_ids: Sequence[str]) -> str:
    """What to know about Vaults: how one token serves them all, and how changes arrive without a schedule."""
    in_vault = [vault_id for (kind, _), vault_id in ids.items() if kind == "hashicorp"]
    lines = []
    if in_vault:
        lines.append(
            f"# `vaultferry setup {in_vault[0]} --print-policy` prints the least that its token has to be allowed."
        )
    if len(in_vault) > 1:
        lines.append(
            "# One VAULT_TOKEN serves all Vaults; one with a token of its own gets its own name, as ${OTHER_TOKEN}."
        )
    for source_id in source_ids:
        if source_id in in_vault:
            lines += [
                f"# Changes in {source_id} arrive in moments while `vaultferry serve --listen tcp://127.0.0.1:1269` runs on",
                f"# its machine, once `vaultferry setup {source_id} --address 127.0.0.1:1269` has made Vault tell of them.",
            ]
    return "".join(f"{line}\n" for line in lines)


def _sync(source_id: str, target_ids: list[str], *, several: bool) -> str:
    targets = "".join(f'      - {{vault: {target}, prefix: ""}}\n' for target in target_ids)
    sync_id = f"{source_id}-to-{target_ids[0]}" if len(target_ids) == 1 else f"{source_id}-to-all"
    # With several sources on one target, each gets a prefix of its own: two secrets of one path would collide.
    targets = targets.replace('prefix: ""', f"prefix: {source_id}/") if several else targets
    return f"""\
  {sync_id[:40].rstrip("-")}:
    # schedule: "0 */6 * * *"       # UTC; without one, events and `vaultferry sync` run it
    source: {{vault: {source_id}, prefix: ""}}   # a prefix ends at a '/'
    targets:
{targets}\
    include: ["**"]                 # '*' stops at '/', '**' does not
    exclude: []
    delete: {{propagate: false}}      # true: what is deleted at the source is deleted on the targets
"""


def _side(text: str) -> tuple[str, str]:
    """Kind and address of one side."""
    if not text.isprintable():
        raise ConfigError("an address can not hold control characters")
    text = text.strip()
    kind, equals, address = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_-]+", kind):
        kind, address = _guess(text), text
        return kind, address.rstrip("/") if kind != "file" else address
    known = [name for name in vaults.kinds() if name in _KEYS]
    name = kind.lower()
    name = _SHORT.get(name, name)
    if name not in known:
        hint = closest(kind, [*known, *_SHORT])
        raise ConfigError(f"init knows no kind {kind!r}; it knows {listed(known)}" + (f" ({hint})" if hint else ""))
    if not address:
        raise ConfigError(f"expected an address behind '{kind}='")
    if name != "file" and urlsplit(address).scheme not in ("http", "https"):
        # Not quoted: it may hold a password.
        raise ConfigError(f"expected a URL behind '{kind}=', as in {kind}=https://vault.example.com")
    return name, address


def _guess(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        return "azure_key_vault" if (parts.hostname or "").endswith(_KEY_VAULT_HOSTS) else "hashicorp"
    if (parts.scheme and "://" in address) or not address:
        raise ConfigError("expected KIND=ADDRESS, a URL or the path of a file")
    return "file"


def _id(kind: str, address: str) -> str:
    host = urlsplit(address).hostname or kind
    if kind == "hashicorp" and (host == "localhost" or not re.search("[a-z]", host.rpartition(".")[2])):
        host = "copy"
    word = PurePath(address).stem if kind == "file" else host.partition(".")[0]
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
