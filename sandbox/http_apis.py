"""Small HTTP APIs that hold secrets: four with the shapes that their public documentation gives, and one that can all.

Doppler: https://docs.doppler.com/reference/secrets-list · Infisical: https://infisical.com/docs/api-reference ·
GitLab: https://docs.gitlab.com/api/project_level_variables · 1Password Connect:
https://developer.1password.com/docs/connect/api-reference. Each serves what `examples/http-api-*.yaml` use.
"""

import base64
import re
import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from sandbox.server import SandboxServer


class HttpApi(SandboxServer):
    """What they have in common: one token, and calls counted as list, read, write, delete, "token" and "other"."""

    def __init__(self, *, port: int = 0, tls: bool = False) -> None:
        super().__init__(port=port, tls=tls)
        self.token = secrets.token_urlsafe(18)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path with query, headers of each request, as they came."""

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/{anything:.*}", self._enter)

    def classify(self, request: web.Request) -> tuple[str, str]:
        return self.operation(request), request.path

    def operation(self, request: web.Request) -> str:
        """The word that a request is counted under."""
        raise NotImplementedError

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path, dict(request.headers)))
        if not self.admits(request):
            return self.error_answer(401, "Unauthorized")
        body = await request.json() if _is_json(request) and await request.read() else {}
        return self.answer(request, [unquote(part) for part in _raw_path(request).split("/")[1:]], body)

    def admits(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        """What is answered to an admitted request, whose path comes in decoded segments."""
        raise NotImplementedError


def _is_json(request: web.Request) -> bool:
    return request.content_type == "application/json"


def _raw_path(request: web.Request) -> str:
    return request.raw_path.partition("?")[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _nothing() -> web.Response:
    return web.Response(status=204)


# --- one that can all ---------------------------------------------------------------------------------------------


class AnyApi(HttpApi):
    """`/v1/secrets` and `/v1/secrets/NAME`, with versions, ETags, conditions and every sort of pages.

    Takes its token as bearer, basic (user "ferry"), `X-API-Key`, or `?key=`. `POST /token` gives tokens of `lifetime`
    seconds to client "ferry", whose secret is the same token; `/form/NAME` takes a form, `/text/NAME` plain text.
    """

    page_size = 7

    def __init__(self, *, port: int = 0, tls: bool = False) -> None:
        super().__init__(port=port, tls=tls)
        self.secrets: dict[str, dict[str, Any]] = {}
        self.lifetime: float | None = 3600
        self.issued: set[str] = set()
        self.envelope = False
        """Whether failures come as 200 with an `error` inside."""

    def operation(self, request: web.Request) -> str:
        parts = _raw_path(request).split("/")[1:]
        if parts == ["token"]:
            return "token"
        if len(parts) < 2:
            return "other"
        if len(parts) == 2:
            return "list" if request.method == "GET" else "write"
        return {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(request.method, "write")

    def admits(self, request: web.Request) -> bool:
        if _raw_path(request) == "/token":
            return True
        given = request.headers.get("Authorization", "")
        basic = base64.b64encode(f"ferry:{self.token}".encode()).decode()
        return (
            given in (f"Bearer {self.token}", f"Basic {basic}")
            or given.removeprefix("Bearer ") in self.issued
            or self.token in (request.headers.get("X-API-Key"), request.query.get("key"))
        )

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        if _raw_path(request) == "/token":
            return await self._grant(request)
        if request.method == "PUT" and not _is_json(request) and self.admits(request):
            form = dict(await request.post()) if "form" in request.content_type else {"value": await request.text()}
            name = unquote(_raw_path(request).split("/")[2])
            return self._stored(name, {"value": str(form["value"])}, None)
        answer = await super()._enter(request)
        if self.envelope and answer.status >= 400:
            return web.json_response({"error": {"status": answer.status}})
        return answer

    async def _grant(self, request: web.Request) -> web.Response:
        form = await request.post()
        basic = "Basic " + base64.b64encode(f"ferry:{self.token}".encode()).decode()
        by_form = form.get("client_id") == "ferry" and form.get("client_secret") == self.token
        if form.get("grant_type") != "client_credentials":
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        if not by_form and request.headers.get("Authorization") != basic:
            return web.json_response({"error": "invalid_client"}, status=401)
        token = secrets.token_urlsafe(12)
        self.issued.add(token)
        told = {} if self.lifetime is None else {"expires_in": self.lifetime}
        return web.json_response({"access_token": token, "token_type": "Bearer", **told})

    def put(self, name: str, fields: Mapping[str, Any], content_type: str | None = None) -> dict[str, Any]:
        """Write by hand."""
        version = uuid.uuid4().hex
        self.secrets[name] = {
            "name": name,
            "fields": dict(fields),
            "content_type": content_type,
            "version": version,
            "etag": f'"{version}"',
            "updated_at": _now(),
        }
        return self.secrets[name]

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        match parts:
            case ["v1", "secrets"] if request.method == "GET":
                return self._listing(request)
            case ["v1", "secrets"] if request.method == "POST":
                if body["name"] in self.secrets:
                    return self.error_answer(409, "there is such a secret")
                return self._stored(body["name"], body["fields"], body.get("content_type"))
            case ["v1", "secrets", name]:
                return self._secret(request, name, body)
            case ["text", name] if name in self.secrets:
                return web.Response(text=self.secrets[name]["fields"]["value"])
        return self.error_answer(404, "no such page")

    def _listing(self, request: web.Request) -> web.Response:
        names = sorted(name for name in self.secrets if name.startswith(request.query.get("prefix", "")))
        size = int(request.query.get("limit", self.page_size))
        start = int(request.query.get("offset", 0)) + (int(request.query.get("page", 1)) - 1) * size
        cursor = request.query.get("cursor")
        if cursor is not None:
            start = int(cursor.removeprefix("after-"))
        end = start + size
        hidden = ("fields", "content_type")
        shown = [
            {key: value for key, value in self.secrets[name].items() if key not in hidden} for name in names[start:end]
        ]
        more = end < len(names)
        answer = web.json_response({"data": shown, "next": f"after-{end}" if more else None, "more": more})
        if more:
            target = request.rel_url.update_query(cursor=f"after-{end}")
            answer.headers["Link"] = f'</v1/secrets>; rel="first", <{target}>; title="a, b"; rel=next'
        return answer

    def _secret(self, request: web.Request, name: str, body: Any) -> web.Response:
        there = self.secrets.get(name)
        etag = there["etag"] if there else None
        wanted, unwanted = request.headers.get("If-Match"), request.headers.get("If-None-Match")
        if (wanted is not None and wanted != etag) or (unwanted == "*" and there):
            return self.error_answer(412, "another version")
        if request.method in ("PUT", "PATCH"):
            if request.method == "PATCH" and there is None:
                return self.error_answer(404, "no such secret")
            return self._stored(name, body["fields"], body.get("content_type"))
        if there is None:
            return self.error_answer(404, "no such secret")
        if request.method == "DELETE":
            del self.secrets[name]
            return _nothing()
        return web.json_response(there, headers={"ETag": there["etag"]})

    def _stored(self, name: str, fields: Mapping[str, Any], content_type: str | None) -> web.Response:
        stored = self.put(name, fields, content_type)
        told = {"version": stored["version"], "updated_at": stored["updated_at"]}
        return web.json_response(told, headers={"ETag": stored["etag"]})


# --- as documented ------------------------------------------------------------------------------------------------


class DopplerApi(HttpApi):
    """One config of one project."""

    def __init__(self, *, port: int = 0, project: str = "backend", config: str = "prd") -> None:
        super().__init__(port=port)
        self.project, self.config = project, config
        self.values: dict[str, str] = {}

    def operation(self, request: web.Request) -> str:
        if request.path.endswith("/secrets"):
            return "list" if request.method == "GET" else "write"
        return "delete" if request.method == "DELETE" else "read"

    def error_answer(self, status: int, message: str) -> web.Response:
        return web.json_response({"messages": [message], "success": False}, status=status)

    def _shown(self, value: str) -> dict[str, Any]:
        kind = {"type": "string"}
        return {
            "raw": value,
            "computed": value,
            "note": "",
            "rawVisibility": "masked",
            "computedVisibility": "masked",
            "rawValueType": kind,
            "computedValueType": kind,
        }

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        told = body if request.method == "POST" else request.query
        if parts[:3] != ["v3", "configs", "config"]:
            return self.error_answer(404, "Not found")
        if (told.get("project"), told.get("config")) != (self.project, self.config):
            return self.error_answer(404, f"Could not find requested config '{told.get('config')}'")
        name = request.query.get("name", "")
        match request.method, parts[3:]:
            case "GET", ["secrets"]:
                shown = {each: self._shown(value) for each, value in sorted(self.values.items())}
                if request.query.get("include_managed_secrets") != "false":
                    managed = {"PROJECT": self.project, "ENVIRONMENT": self.config, "CONFIG": self.config}
                    shown |= {f"DOPPLER_{key}": self._shown(value) for key, value in managed.items()}
                return web.json_response({"secrets": shown, "success": True})
            case "POST", ["secrets"]:
                if any(not re.fullmatch(r"[A-Z_][A-Z0-9_]*", each) for each in body["secrets"]):
                    return self.error_answer(400, "Secret names may only contain uppercase letters, numbers, and _")
                if any(not isinstance(each, str) for each in body["secrets"].values()):
                    return self.error_answer(400, "Secret values must be strings")
                self.values |= body["secrets"]
                written = {each: self._shown(self.values[each]) for each in body["secrets"]}
                return web.json_response({"secrets": written, "success": True})
            case "GET", ["secret"] if name in self.values:
                return web.json_response({"name": name, "value": self._shown(self.values[name]), "success": True})
            case "DELETE", ["secret"]:
                self.values.pop(name, None)
                return _nothing()
        return self.error_answer(404, f"Could not find requested secret: {name}")


class InfisicalApi(HttpApi):
    """One project and environment, with folders; `POST` creates only, `PATCH` updates only."""

    def __init__(self, *, port: int = 0, project: str = "0b2f9f33", environment: str = "prod") -> None:
        super().__init__(port=port)
        self.project, self.environment = project, environment
        self.secrets: dict[tuple[str, str], dict[str, Any]] = {}

    def operation(self, request: web.Request) -> str:
        if request.path.endswith("/secrets"):
            return "list"
        return {"GET": "read", "DELETE": "delete"}.get(request.method, "write")

    def error_answer(self, status: int, message: str) -> web.Response:
        error = {401: "UnauthorizedError", 404: "NotFound", 400: "BadRequest"}.get(status, "Error")
        document = {"reqId": "req-1", "statusCode": status, "message": message, "error": error}
        return web.json_response(document, status=status)

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        if parts[:3] != ["api", "v4", "secrets"]:
            return self.error_answer(404, f"Route {request.method}:{request.path} not found")
        told = request.query if request.method == "GET" else body
        if told.get("projectId") != self.project or told.get("environment") != self.environment:
            return self.error_answer(404, f"Project with ID '{told.get('projectId')}' not found")
        folder = str(told.get("secretPath", "/"))
        if len(parts) == 3:
            everywhere = request.query.get("recursive") == "true"
            shown = [each for (within, _), each in sorted(self.secrets.items()) if everywhere or within == folder]
            return web.json_response({"secrets": shown, "imports": []})
        key = folder, parts[3]
        if request.method == "POST":
            if key in self.secrets:
                return self.error_answer(400, "Secret already exist")
            self.put(parts[3], body["secretValue"], folder)
            return web.json_response({"secret": self.secrets[key]})
        if key not in self.secrets:
            return self.error_answer(404, f"Secret with name '{parts[3]}' not found")
        if request.method == "PATCH":
            self.put(parts[3], body["secretValue"], folder)
        stored = self.secrets.pop(key) if request.method == "DELETE" else self.secrets[key]
        return web.json_response({"secret": stored})

    def put(self, name: str, value: str, folder: str = "/") -> None:
        before = self.secrets.get((folder, name))
        identity = before["id"] if before else str(uuid.uuid4())
        self.secrets[folder, name] = {
            "id": identity,
            "_id": identity,
            "workspace": self.project,
            "environment": self.environment,
            "version": before["version"] + 1 if before else 1,
            "type": "shared",
            "secretKey": name,
            "secretValue": value,
            "secretComment": "",
            "secretPath": folder,
            "secretValueHidden": False,
            "tags": [],
            "secretMetadata": [],
            "createdAt": before["createdAt"] if before else _now(),
            "updatedAt": _now(),
        }


class GitLabApi(HttpApi):
    """The CI/CD variables of one project; `page` and Link headers, 20 a page unless asked for more."""

    def __init__(self, *, port: int = 0, project: str = "42") -> None:
        super().__init__(port=port)
        self.project = project
        self.variables: list[dict[str, Any]] = []

    def operation(self, request: web.Request) -> str:
        if request.path.endswith("/variables"):
            return "list" if request.method == "GET" else "write"
        return {"GET": "read", "DELETE": "delete"}.get(request.method, "write")

    def admits(self, request: web.Request) -> bool:
        return request.headers.get("PRIVATE-TOKEN") == self.token

    def error_answer(self, status: int, message: str) -> web.Response:
        return web.json_response({"message": f"{status} {message}"}, status=status)

    def put(self, key: str, value: str, scope: str = "*", **more: Any) -> dict[str, Any]:
        """Write by hand."""
        variable = {
            "variable_type": "env_var",
            "key": key,
            "value": value,
            "protected": False,
            "masked": False,
            "hidden": False,
            "raw": False,
            "environment_scope": scope,
            "description": None,
        } | more
        self.variables = [each for each in self.variables if (each["key"], each["environment_scope"]) != (key, scope)]
        self.variables.append(variable)
        return variable

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        if parts[:3] != ["api", "v4", "projects"] or parts[4:5] != ["variables"]:
            return self.error_answer(404, "Not Found")
        if parts[3] != self.project:
            return self.error_answer(404, "Project Not Found")
        if len(parts) == 5:
            return self._page(request) if request.method == "GET" else self._create(body)
        scope = request.query.get("filter[environment_scope]")
        found = [
            each for each in self.variables if each["key"] == parts[5] and scope in (None, each["environment_scope"])
        ]
        if not found:
            return self.error_answer(404, "Variable Not Found")
        if len(found) > 1:
            return self.error_answer(409, "There are multiple variables with provided parameters")
        match request.method:
            case "PUT":
                found[0].update({key: value for key, value in body.items() if key in found[0]})
            case "DELETE":
                self.variables.remove(found[0])
                return _nothing()
        return web.json_response(found[0] | ({"value": None} if found[0]["hidden"] else {}))

    def _create(self, body: Any) -> web.Response:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,255}", str(body.get("key"))):
            return web.json_response({"message": {"key": ["can contain only letters, digits and '_'."]}}, status=400)
        scope = body.get("environment_scope", "*")
        if any((each["key"], each["environment_scope"]) == (body["key"], scope) for each in self.variables):
            return web.json_response({"message": {"key": [f"({body['key']}) has already been taken"]}}, status=400)
        known = {key: value for key, value in body.items() if key in ("protected", "masked", "raw", "description")}
        return web.json_response(self.put(body["key"], body["value"], scope, **known), status=201)

    def _page(self, request: web.Request) -> web.Response:
        size, page = int(request.query.get("per_page", 20)), int(request.query.get("page", 1))
        start = (page - 1) * size
        shown = [each | ({"value": None} if each["hidden"] else {}) for each in self.variables[start : start + size]]
        answer = web.json_response(shown)
        answer.headers["X-Page"] = str(page)
        if start + size < len(self.variables):
            target = request.url.update_query(page=str(page + 1))
            answer.headers["Link"] = f'<{target}>; rel="next", <{request.url}>; rel="first"'
        return answer


class OnePasswordApi(HttpApi):
    """One vault of a Connect server. Items have ids; titles need not be unique."""

    def __init__(self, *, port: int = 0, vault: str = "ftz4pm2xxwmwrsd7rjqn7grzfz") -> None:
        super().__init__(port=port)
        self.vault = vault
        self.items: dict[str, dict[str, Any]] = {}

    def operation(self, request: web.Request) -> str:
        if request.path.endswith("/items"):
            return "list" if request.method == "GET" else "write"
        return {"GET": "read", "DELETE": "delete"}.get(request.method, "write")

    def error_answer(self, status: int, message: str) -> web.Response:
        return web.json_response({"status": status, "message": message}, status=status)

    def put(self, title: str, fields: Mapping[str, str], identity: str | None = None) -> str:
        """Write by hand; the item's id."""
        shown = [{"label": label, "value": value, "type": "CONCEALED"} for label, value in fields.items()]
        return self._store({"title": title, "category": "LOGIN", "fields": shown}, identity)

    def _store(self, body: Mapping[str, Any], identity: str | None = None) -> str:
        before = self.items.get(identity or "")
        identity = identity or secrets.token_hex(13)
        self.items[identity] = {
            "id": identity,
            "title": body["title"],
            "vault": {"id": self.vault},
            "category": body["category"],
            "version": before["version"] + 1 if before else 1,
            "tags": body.get("tags", []),
            "sections": body.get("sections", []),
            "fields": [{"id": secrets.token_hex(13), "type": "STRING", **each} for each in body.get("fields", [])],
            "createdAt": before["createdAt"] if before else _now(),
            "updatedAt": _now(),
            "lastEditedBy": "Q4SYS3LKVJ",
        }
        return identity

    def answer(self, request: web.Request, parts: list[str], body: Any) -> web.StreamResponse:
        if parts[:2] != ["v1", "vaults"] or parts[3:4] != ["items"]:
            return self.error_answer(404, "Not found")
        if parts[2] != self.vault:
            return self.error_answer(404, "Vault not found")
        if request.method in ("POST", "PUT"):
            values = [field.get("value") for field in body.get("fields", [])]
            if body.get("vault", {}).get("id") != self.vault or not all(isinstance(each, str) for each in values):
                return self.error_answer(400, "Invalid item")
        if len(parts) == 4:
            if request.method == "POST":
                return web.json_response(self.items[self._store(body)])
            wanted = re.fullmatch(r'title eq "(.*)"', request.query.get("filter", ""))
            hidden = ("fields", "sections")
            shown = [
                {key: value for key, value in item.items() if key not in hidden}
                for item in self.items.values()
                if wanted is None or item["title"] == wanted[1]
            ]
            return web.json_response(shown)
        if parts[4] not in self.items:
            return self.error_answer(404, "Item not found")
        match request.method:
            case "PUT":
                if body.get("id") != parts[4]:
                    return self.error_answer(400, "Invalid item UUID")
                self._store(body, parts[4])
            case "DELETE":
                del self.items[parts[4]]
                return _nothing()
        return web.json_response(self.items[parts[4]])
