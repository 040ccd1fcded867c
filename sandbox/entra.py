"""Tokens for the sandbox's Key Vault without Microsoft: an OAuth2 token endpoint and App Service's managed identity.

Sources: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow and
https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
import uuid
from typing import Any

from aiohttp import web

from sandbox.server import SandboxServer

VAULT_RESOURCE = "https://vault.azure.net"
# One tenant for all: the SDK remembers a vault's tenant by host and port for as long as the process lives, and the next
# test may get the same port.
TENANT_ID = "7e571e57-0000-4000-8000-5a4db0c5e77e"


class InvalidTokenError(ValueError):
    """A bearer token that a resource must refuse; its text is the error_description of the challenge."""


class TokenAuthority:
    """What signs and checks tokens: one tenant, one service principal, one user-assigned managed identity.

    `lifetime` (seconds) applies to the tokens issued from then on, and is measured on real time, because clients
    compare it with theirs. Tokens look like Entra's JWTs; the signature is a keyed hash that only this object knows.
    """

    def __init__(self) -> None:
        self.tenant_id = TENANT_ID
        self.client_id = str(uuid.uuid4())
        self.client_secret = secrets.token_urlsafe(24)
        self.lifetime = 86_400
        self._key = secrets.token_bytes(32)

    def issue(self, resource: str = VAULT_RESOURCE, *, client_id: str | None = None) -> tuple[str, int]:
        """A token and the second of its expiry."""
        now = int(time.time())
        claims = {
            "aud": resource,
            "iss": f"https://sts.windows.net/{self.tenant_id}/",
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime,
            "appid": client_id or self.client_id,
            "oid": str(uuid.uuid5(uuid.NAMESPACE_URL, client_id or self.client_id)),
            "tid": self.tenant_id,
            "uti": secrets.token_urlsafe(8),
            "ver": "1.0",
        }
        signed = f"{_segment({'typ': 'JWT', 'alg': 'HS256'})}.{_segment(claims)}"
        return f"{signed}.{self._signature(signed)}", now + self.lifetime

    def check(self, token: str, resource: str = VAULT_RESOURCE) -> dict[str, Any]:
        """The claims of a token that is good for a resource. Raises InvalidTokenError."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            raise InvalidTokenError("AKV10046: Unable to resolve the key used for signature validation.")
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        if claims["aud"].rstrip("/") != resource:
            raise InvalidTokenError(f"AKV10022: Invalid audience. Expected {resource}, found: {claims['aud']}.")
        if claims["exp"] <= time.time():
            raise InvalidTokenError("Error validating token: the token is expired.")
        return claims

    def revoke_all(self) -> None:
        """Makes every token issued so far invalid, as when the signing keys were rolled."""
        self._key = secrets.token_bytes(32)

    def _signature(self, signed: str) -> str:
        return _base64(hmac.new(self._key, signed.encode(), hashlib.sha256).digest())


class EntraServer(SandboxServer):
    """login.microsoftonline.com for one tenant: discovery documents and the client credentials grant, over TLS.

    Counts "token", "discovery" and "other".
    """

    def __init__(self, authority: TokenAuthority, *, port: int = 0) -> None:
        super().__init__(port=port, tls=True)
        self.authority = authority

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._token)
        app.router.add_get("/{tenant}/v2.0/.well-known/openid-configuration", self._configuration)
        app.router.add_get("/common/discovery/instance", self._instance)
        app.router.add_get("/{tenant}/discovery/v2.0/keys", self._keys)

    def classify(self, request: web.Request) -> tuple[str, str]:
        if request.path.endswith("/oauth2/v2.0/token"):
            return "token", request.path
        known = "discovery" in request.path or ".well-known" in request.path
        return ("discovery" if known else "other"), request.path

    def error_answer(self, status: int, message: str) -> web.Response:
        code = "temporarily_unavailable" if status >= 500 or status == 429 else "invalid_request"
        return _oauth_error(status, code, message)

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if request.match_info["tenant"] != self.authority.tenant_id:
            return _oauth_error(400, "invalid_request", "AADSTS90002: Tenant not found.")
        if form.get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "AADSTS70003: The grant type is not supported.")
        if form.get("client_id") != self.authority.client_id:
            return _oauth_error(400, "unauthorized_client", "AADSTS700016: The application was not found.")
        if form.get("client_secret") != self.authority.client_secret:
            return _oauth_error(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        scope = str(form.get("scope", ""))
        if not scope.endswith("/.default") or " " in scope:
            return _oauth_error(400, "invalid_scope", "AADSTS70011: The scope is not valid.")
        token, _ = self.authority.issue(scope.removesuffix("/.default"))
        lifetime = self.authority.lifetime
        return web.json_response(
            {"token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime, "access_token": token}
        )

    async def _configuration(self, request: web.Request) -> web.Response:
        base = f"{self.url}/{request.match_info['tenant']}"
        return web.json_response(
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
                "response_types_supported": ["code", "id_token", "token"],
                "subject_types_supported": ["pairwise"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "cloud_instance_name": "microsoftonline.com",
            }
        )

    async def _instance(self, request: web.Request) -> web.Response:
        tenant = self.authority.tenant_id
        host = f"127.0.0.1:{self.port}"
        return web.json_response(
            {
                "tenant_discovery_endpoint": f"{self.url}/{tenant}/v2.0/.well-known/openid-configuration",
                "api-version": "1.1",
                "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
            }
        )

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": []})


class ManagedIdentityServer(SandboxServer):
    """The endpoint that App Service and Functions offer inside an app, over plain http as there.

    Give `environment` to the process whose identity it is. Counts "token".
    """

    def __init__(self, authority: TokenAuthority, *, port: int = 0) -> None:
        super().__init__(port=port)
        self.authority = authority
        self.header = secrets.token_hex(16)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which azure-identity finds this endpoint."""
        return {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": self.header}

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/msi/token", self._token)

    def classify(self, request: web.Request) -> tuple[str, str]:
        return "token", request.query.get("resource", "")

    def error_answer(self, status: int, message: str) -> web.Response:
        document = {"statusCode": status, "message": message, "correlationId": str(uuid.uuid4())}
        return web.json_response(document, status=status)

    async def _token(self, request: web.Request) -> web.Response:
        if request.headers.get("X-IDENTITY-HEADER") != self.header:
            return self.error_answer(401, "The X-IDENTITY-HEADER header is missing or wrong.")
        if request.query.get("api-version") != "2019-08-01":
            return self.error_answer(400, "The parameter api-version is missing or not supported.")
        resource = request.query.get("resource")
        if not resource:
            return self.error_answer(400, "The parameter resource is missing.")
        client_id = request.query.get("client_id", self.authority.client_id)
        if client_id != self.authority.client_id:
            return self.error_answer(400, "Unable to load the proper Managed Identity.")
        token, expires_on = self.authority.issue(resource, client_id=client_id)
        return web.json_response(
            {
                "access_token": token,
                "client_id": client_id,
                "expires_on": str(expires_on),
                "resource": resource,
                "token_type": "Bearer",
            }
        )


def _oauth_error(status: int, error: str, description: str) -> web.Response:
    document = {"error": error, "error_description": description, "correlation_id": str(uuid.uuid4())}
    return web.json_response(document, status=status)


def _segment(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
