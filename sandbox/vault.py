"""A throw-away HashiCorp Vault: the HTTP protocol of Vault 1.21 Community, as far as secrets, policies and tokens go.

Behaviour and texts are those observed on the real server, and `tests/servers/test_sandbox_parity.py` sends both the
same requests. Not here: response wrapping, namespaces (their header is ignored, as Community does), subkeys,
identity, leases of dynamic secrets, parameter constraints in policies.

    async with VaultSandbox() as vault:
        vault.put("secret", "apps/db", {"password": "..."})
        ...  # a client at vault.url with vault.root_token
        assert vault.calls["read"] == 1

As a process of its own: `python -m sandbox.vault --port 8200`.
"""

import argparse
import posixpath
import re
import uuid
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from sandbox.server import SandboxServer, run_forever
from sandbox.vault_acl import capabilities
from sandbox.vault_audit import AuditFailed, Device
from sandbox.vault_auth import Token
from sandbox.vault_auth_api import answer_auth, answer_login
from sandbox.vault_calls import (
    UNSUPPORTED,
    Answer,
    Call,
    InvalidPath,
    NoBody,
    client_id,
    empty_answer,
    envelope,
    json_answer,
    operation_of,
    parse,
    respond,
)
from sandbox.vault_json import BadJSON
from sandbox.vault_kv import DeletedVersion, VaultError, rfc3339
from sandbox.vault_kv_api import answer_kv
from sandbox.vault_state import VaultState
from sandbox.vault_sys_api import VERSION, answer_health, answer_sys

ROOT_TOKEN = "sandbox-root"
_SECOND = 1_000_000_000
_DENIED = "1 error occurred:\n\t* permission denied\n\n"
_BAD_TOKEN = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"
_SUDO = re.compile(r"sys/(audit$|audit/|auth/|remount$)")
"""Paths for which a policy must grant `sudo` as well."""
_UNCLEAN = re.compile(r"//|/\.\.?(/|$)")


class VaultSandbox(SandboxServer, VaultState):
    """A Vault with `secret/` (KV v2) and `kv1/` (KV v1), unsealed, and a root token.

    Operations, as `calls` and faults name them: read, list, metadata, write, patch, delete, undelete, metadata_write,
    config, login, token, mounts, capabilities, policy_read, policy_list, policy_write, policy_delete, audit, health,
    other. The path is what follows `/v1/`, decoded ("secret/data/apps/db").
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: bool = False, root_token: str = ROOT_TOKEN
    ) -> None:
        SandboxServer.__init__(self, host=host, port=port, tls=tls)
        VaultState.__init__(self, root_token)

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", r"/{path:[\s\S]*}", self._serve)

    async def close(self) -> None:
        await super().close()
        await self.audit.close()

    def error_answer(self, status: int, message: str) -> web.Response:
        return json_answer({"errors": [message] if message else []}, status)

    def classify(self, request: web.Request) -> tuple[str, str]:
        path = unquote(request.raw_path.partition("?")[0]).removeprefix("/v1/")
        operation = operation_of(request)
        return self._name(operation, path), path

    def _name(self, operation: str, path: str) -> str:
        reading, listing = operation == "read", operation == "list"
        match path.split("/"):
            case ["sys", "policies" | "policy", *_]:
                named = {"read": "policy_read", "list": "policy_list", "delete": "policy_delete"}
                return "policy_list" if path == "sys/policy" and reading else named.get(operation, "policy_write")
            case ["sys", "mounts" | "auth" | "remount" | "internal", *_]:
                return "mounts"
            case ["sys", "audit" | "audit-hash", *_]:
                return "audit"
            case ["sys", "capabilities-self", *_]:
                return "capabilities"
            case ["sys", "health" | "seal-status" | "leader" | "init", *_]:
                return "health"
            case ["auth", "token", *_]:
                return "token"
            case ["auth", *_, "login"]:
                return "login"
        found = self.find_mount(path)
        if found is None:
            return "other"
        if listing:
            return "list"
        part = "data" if found[1].version == 1 else path[len(found[0]) :].partition("/")[0]
        verb = {"read": "read", "delete": "delete", "patch": "patch"}.get(operation, "write")
        match part:
            case "data":
                return verb
            case "metadata":
                return {"read": "metadata", "delete": "delete"}.get(verb, "metadata_write")
            case "delete" | "destroy":
                return "delete"
            case "undelete" | "config":
                return part
        return "other"

    async def _serve(self, request: web.Request) -> web.Response:
        answer = await self._respond(request)
        # What a client takes for this server's clock: it tells by it what has expired.
        answer.headers["Date"] = formatdate(self.now() / 1e9, usegmt=True)
        return answer

    async def _respond(self, request: web.Request) -> web.Response:
        raw_path, _, query = request.raw_path.partition("?")
        if _UNCLEAN.search(raw_path):
            clean = posixpath.normpath("/" + raw_path.lstrip("/")) + ("/" if raw_path.endswith("/") else "")
            location = clean + (f"?{query}" if query else "")
            page = f'<a href="{location}">Temporary Redirect</a>.\n\n' if request.method == "GET" else ""
            headers = {"Location": location, "Content-Type": "text/html; charset=utf-8"}
            if not page:
                del headers["Content-Type"]
            return web.Response(status=307, headers=headers, body=page.encode())
        path = unquote(raw_path)
        if not path.removeprefix("/v1/").isprintable():
            return web.Response(status=400)
        if not path.startswith("/v1/"):
            return self.error_answer(404, "")
        try:
            return respond(await self._call(await parse(request, path.removeprefix("/v1/"))))
        except BadJSON as error:
            return self.error_answer(500, str(error))
        except AuditFailed:
            return self.error_answer(500, "internal error")
        except DeletedVersion as gone:
            return json_answer(envelope(Answer(gone.data)), 404)
        except InvalidPath as invalid:
            return json_answer(envelope(Answer(warnings=[invalid.warning])), 404)
        except NoBody as empty:
            return empty_answer(empty.status)
        except VaultError as error:
            return json_answer({"errors": error.errors}, error.status)

    async def _call(self, call: Call) -> Answer:
        if call.operation == "read" and call.path in ("sys/health", "sys/seal-status", "sys/leader"):
            return answer_health(self, call.path)
        if self.sealed:
            raise VaultError(503, "Vault is sealed")
        login = self.logins.find(call.path.removeprefix("auth/")) if call.path.startswith("auth/") else None
        if login and call.path == f"auth/{login[0]}login" and call.operation == "update":
            return await self._audited(call, lambda: answer_login(self, call))
        if not call.token_id:
            if call.path == "sys/internal/ui/mounts":
                return Answer({"auth": {}, "secret": {}})
            raise VaultError(403, "permission denied")
        call.token = self.tokens.find(call.token_id)
        if call.operation == "update" and self.creates(call.path):
            call.operation = "create"
        if call.token is None:
            await self._refuse(call, _BAD_TOKEN)
        elif not self._allowed(call):
            await self._refuse(call, _DENIED)
        if call.path.startswith("sys/audit/"):
            return await self._audit_device(call)
        return await self._audited(call, lambda: self._act(call))

    async def _audited(self, call: Call, act: Callable[[], Answer]) -> Answer:
        await self._log(call, "request")
        try:
            answer = act()
        except DeletedVersion:
            await self._log(
                call,
                "response",
                Answer({"http_content_type": "application/json", "http_raw_body": "", "http_status_code": 404}),
            )
            raise
        except VaultError as error:
            if error.errors and call.path.startswith(("auth/", "sys/audit-hash/")):
                await self._log(call, "response", Answer({"error": error.errors[0]}))
            elif error.errors:
                wording = "unsupported path" if error.status == 404 else "invalid request"
                failed = f"1 error occurred:\n\t* {wording}\n\n"
                await self._log(call, "response", Answer({"error": error.errors[0]}), failed)
            else:
                await self._log(call, "response")
            raise
        if call.wrap_ttl and answer.status == 200:
            answer = self._wrapped(call)
        await self._log(call, "response", answer)
        return answer

    def _wrapped(self, call: Call) -> Answer:
        """What stands for an answer that was asked to be wrapped. The answer itself is lost: nobody unwraps here."""
        made = {"creation_time": rfc3339(self.now()), "creation_path": call.path}
        handle = {"token": f"hvs.{uuid.uuid4().hex}", "accessor": uuid.uuid4().hex[:24]}
        return Answer(wrap_info={**handle, "ttl": call.wrap_ttl, **made})

    async def _refuse(self, call: Call, error: str) -> None:
        await self._log(call, "request", error=error)
        await self._log(call, "response", Answer({"error": error}), error)
        raise VaultError(403, error)

    def _act(self, call: Call) -> Answer:
        if call.path.startswith("sys/"):
            return answer_sys(self, call, call.path.removeprefix("sys/"))
        if call.path.startswith("auth/"):
            return answer_auth(self, call, call.path.removeprefix("auth/"))
        return answer_kv(self, call)

    def _allowed(self, call: Call) -> bool:
        assert call.token is not None  # noqa: S101 - said by the caller
        # The mount table of the UI answers to any token, and filters by itself.
        if call.token.root or call.path.startswith("sys/internal/ui/mounts"):
            return True
        listing = call.operation == "list"
        path = f"{call.path.rstrip('/')}/" if listing else call.path
        granted = capabilities(self.rules_of(call.token), path, listing=listing)
        return call.operation in granted and ("sudo" in granted or not _SUDO.match(call.path))

    async def _audit_device(self, call: Call) -> Answer:
        # Enabled last and disabled first: a device sees the response of its enabling and the request of its end.
        if call.operation not in ("update", "delete"):
            raise VaultError(405, UNSUPPORTED)
        path = call.path.removeprefix("sys/audit/").strip("/") + "/"
        await self._log(call, "request")
        try:
            if call.operation == "update":
                options = {key: str(each) for key, each in (call.data.get("options") or {}).items()}
                kind, description = str(call.data.get("type")), str(call.data.get("description") or "")
                await self.audit.enable(Device(path, kind, description, options), self._test_entry())
            else:
                await self.audit.disable(path)
        except VaultError as error:
            failed = "1 error occurred:\n\t* invalid request\n\n"
            await self._log(call, "response", Answer({"error": error.errors[0]}), failed)
            raise
        await self._log(call, "response")
        return Answer(status=204)

    def _test_entry(self) -> dict[str, Any]:
        request = {
            "id": str(uuid.uuid4()),
            "namespace": {"id": "root"},
            "operation": "update",
            "path": "sys/audit/test",
        }
        return {"request": request, "time": rfc3339(self.now()), "type": "request"}

    async def _log(self, call: Call, kind: str, answer: Answer | None = None, error: str = "") -> None:
        if not self.audit.devices:
            return
        mount, tuning = self._mount_fields(call.path)
        token = call.token
        identity = {"client_token": call.token_id} if call.token_id else {}
        if token is not None:
            identity |= {"client_id": client_id(token), "client_token_accessor": token.accessor}
        request: dict[str, Any] = {
            **identity,
            **({"data": call.data} if call.data else {}),
            "headers": {"user-agent": [call.user_agent]},
            "id": call.id,
            **mount,
            "namespace": {"id": "root"},
            "operation": call.operation,
            "path": call.path,
            "remote_address": call.remote[0],
            "remote_port": call.remote[1],
            **({"wrap_ttl": call.wrap_ttl} if call.wrap_ttl else {}),
        }
        entry: dict[str, Any] = {
            **({"auth": self._auth_fields(token, refused=error == _DENIED)} if token else {}),
            **({"error": error} if error else {}),
            "request": request,
            "time": rfc3339(self.now()),
            "type": kind,
            "_clear_keys": (
                tuning.get("audit_non_hmac_request_keys", ()),
                tuning.get("audit_non_hmac_response_keys", ()),
            ),
        }
        if answer is not None and answer.status != 204:
            entry["response"] = {
                **({"auth": self._granted(answer.auth)} if answer.auth else {}),
                **({"data": answer.data} if answer.data is not None else {}),
                **mount,
                **({"secret": {}} if answer.lease else {}),
                **({"warnings": answer.warnings} if answer.warnings else {}),
                **({"wrap_info": answer.wrap_info} if answer.wrap_info else {}),
            }
        await self.audit.log(entry)

    def _mount_fields(self, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found = self.find_mount(path)
        if found is not None:
            point, kind, handle, group = found[0], "kv", found[1].accessor, "secret"
        elif path.startswith("sys/"):
            point, kind, handle, group = "sys/", "system", f"system_{self.cluster[:8]}", "secret"
        elif path.startswith("auth/token/"):
            point, kind, handle, group = "auth/token/", "token", f"auth_token_{self.cluster[:8]}", "auth"
        elif path.startswith("auth/") and (login := self.logins.find(path.removeprefix("auth/"))):
            point, kind, handle, group = f"auth/{login[0]}", login[1].kind, login[1].accessor, "auth"
        else:
            return {}, {}
        version = "v0.25.0+builtin" if kind == "kv" else f"v{VERSION}+builtin.vault"
        fields = {
            "mount_accessor": handle,
            "mount_class": group,
            "mount_point": point,
            "mount_running_version": version,
        }
        return {**fields, "mount_type": kind}, found[1].tuning if found else {}

    def _granted(self, auth: dict[str, Any]) -> dict[str, Any]:
        token = self.tokens.find(auth["client_token"])
        fields = self._auth_fields(token, refused=False) if token else {}
        return {key: each for key, each in fields.items() if key not in ("policy_results", "token_issue_time")}

    @staticmethod
    def _auth_fields(token: Token, *, refused: bool) -> dict[str, Any]:
        granting = [{"type": ""}, *({"name": each, "namespace_id": "root", "type": "acl"} for each in token.policies)]
        return {
            "accessor": token.accessor,
            "client_token": token.id,
            "display_name": token.display_name,
            "policies": token.policies,
            "policy_results": {"allowed": False} if refused else {"allowed": True, "granting_policies": granting},
            "token_policies": token.policies,
            "token_issue_time": rfc3339(token.created // _SECOND * _SECOND),
            **({"token_ttl": token.ttl} if token.ttl else {}),
            "token_type": "service",
        }


def main() -> None:
    """`python -m sandbox.vault`: serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.vault", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one (default)")
    parser.add_argument("--tls", action="store_true", help="https with a certificate made at start")
    parser.add_argument("--root-token", default=ROOT_TOKEN)
    options = parser.parse_args()
    run_forever(VaultSandbox(port=options.port, tls=options.tls, root_token=options.root_token))


if __name__ == "__main__":
    main()
