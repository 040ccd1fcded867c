"""A Bitwarden-compatible server, as Vaultwarden is one: the official `bw` client works on it. Https, on loopback.

    async with BitwardenServer() as server:
        ada = server.register("ada@example.org", "correct horse battery")
        ada.add_login("db/prod", username="app", password="s3cret")

Registration by a client, Sends, policies and mails are left out. A path that the server does not
know is answered with 404 and kept in `unknown`: a test of a client ends with a look there.
`python -m sandbox.bitwarden --port N` runs it with one account and an organisation.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
import signal
import sys
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from sandbox.bitwarden_people import PBKDF2, Person
from sandbox.bitwarden_state import (
    OWNER,
    Account,
    BitwardenError,
    Clock,
    Item,
    State,
    account_keys_document,
    attachment_document,
    collection_document,
    date,
    folder_document,
    item_document,
    profile_document,
    unpadded,
)
from sandbox.server import SandboxServer
from shared.vaults.vaultwarden import crypto

_LOGIN_WINDOW = 60.0
_CLIENTS = frozenset({"web", "browser", "desktop", "mobile", "cli"})
_ID = r"(?P<{}>[^/]+)"


@dataclass(frozen=True, slots=True)
class _Session:
    account: Account
    device: str
    stamp: str
    client_id: str
    expires: float
    refresh: bool = False


@dataclass(slots=True)
class _Call:
    """One request, taken apart. `account` is set where a token is needed."""

    request: web.Request
    match: Mapping[str, str]
    account: Account = field(init=False)
    body: dict[str, Any] = field(default_factory=dict)


class BitwardenServer(SandboxServer):
    """One installation. `url` is what `bw config server` takes, `ca_bundle` what NODE_EXTRA_CA_CERTS takes.

    Counted operations: prelogin, login, api_key_login, refresh, sync, revision_date, profile, get, list, create, update,
    partial, share, collections, trash, restore, delete; attach, upload, attachment, download; those of folders,
    collections and members (`folder_create` …); "unknown". The path that is logged, and that faults match, is the id of
    the item, folder or collection, else "".

    What tests may change at any time: `clock`; `state` (see sandbox.bitwarden_state); `state.max_note_size`, in
    characters of the EncString: 100,000 as with Vaultwarden's INCREASE_NOTE_SIZE_LIMIT, without it 10,000;
    `login_burst`, the logins allowed in any 60 seconds (Vaultwarden: 10), None for any number; `token_seconds`.
    """

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(port=port, tls=True)
        self.clock = Clock()
        self.state = State(self.clock)
        self.login_burst: int | None = None
        self.token_seconds = 7200
        self.unknown: list[tuple[str, str]] = []
        self._logins: deque[float] = deque()
        self._sessions: dict[str, _Session] = {}
        self._signing_key = secrets.token_bytes(32)

    def register(self, email: str, password: str, kdf: crypto.Kdf = PBKDF2) -> Person:
        """A new account, and what its owner knows. Raises ValueError when the e-mail is taken."""
        return Person.new(self.state, email, password, kdf)

    def forget_access_tokens(self) -> None:
        """Every client has to refresh its token now, or to log in again where it has none to refresh."""
        self._sessions = {token: session for token, session in self._sessions.items() if session.refresh}

    # The protocol.

    def add_routes(self, app: web.Application) -> None:
        app.router.add_route("*", "/{anything:.*}", self._answer)

    def classify(self, request: web.Request) -> tuple[str, str]:
        route, match = _route(request)
        if route is None:
            return "unknown", request.path
        operation = route.operation
        if operation == "login" and b"grant_type=refresh_token" in _read(request):
            operation = "refresh"
        elif operation == "login" and b"grant_type=client_credentials" in _read(request):
            operation = "api_key_login"
        return operation, match.get("id", "")

    def error_answer(self, status: int, message: str) -> web.Response:
        return _error(BitwardenError("Too many login requests" if status == 429 else message, status=status))

    async def _answer(self, request: web.Request) -> web.Response:
        answer = await self._handle(request)
        answer.headers["Date"] = formatdate(self.clock().timestamp(), usegmt=True)
        return answer

    async def _handle(self, request: web.Request) -> web.Response:
        route, match = _route(request)
        if route is None:
            self.unknown.append((request.method, request.path_qs))
            return _plain_error(404, "Not Found", "The requested resource could not be found.")
        call = _Call(request, match)
        try:
            if not route.open:
                account = self._who_asks(request)
                if account is None:
                    return _plain_error(401, "Unauthorized", "The request requires user authentication.")
                call.account = account
            if route.body:
                call.body = _json_object(request)
            answer = route.handler(self, call)
        except BitwardenError as error:
            return _error(error)
        if isinstance(answer, web.Response):
            return answer
        return web.Response(status=200) if answer is _NOTHING else web.json_response(answer)

    # Logging in.

    def _prelogin(self, call: _Call) -> Any:
        account = self.state.account(_text(call.body, "email"))
        # An unknown e-mail is not told: it gets the usual numbers.
        kdf = account.kdf if account else {"kdfType": 0, "iterations": 600_000, "memory": None, "parallelism": None}
        return {
            "kdf": kdf["kdfType"],
            "kdfIterations": kdf["iterations"],
            "kdfMemory": kdf["memory"],
            "kdfParallelism": kdf["parallelism"],
            "kdfSettings": dict(kdf),
            "salt": None,
        }

    def _token(self, call: _Call) -> Any:
        if call.request.content_type != "application/x-www-form-urlencoded":
            raise BitwardenError("The request was well-formed but was unable to be followed", status=422)
        form = {key.lower().replace("_", ""): value for key, value in _form(call.request).items()}
        match form.get("granttype"):
            case "password":
                return self._password_login(call, form)
            case "client_credentials":
                return self._api_key_login(form)
            case "refresh_token":
                return self._refresh(form)
        raise BitwardenError("Invalid type")

    def _password_login(self, call: _Call, form: dict[str, str]) -> Any:
        _blank(form, "client_id", "password", "scope", "username", "device_identifier", "device_name", "device_type")
        if form["scope"] != "api offline_access":
            raise BitwardenError("Scope not supported")
        self._count_login()
        if form["clientid"] not in _CLIENTS:
            raise BitwardenError("invalid_client", document={"error": "invalid_client"})
        account = self.state.account(form["username"])
        if not _names(call.request.headers.get("Auth-Email"), form["username"]):
            raise BitwardenError("Auth-Email header invalid.")
        if account is None:
            raise BitwardenError("Username or password is incorrect. Try again")
        if not account.enabled:
            raise BitwardenError("This user has been disabled")
        if not account.knows(form["password"]):
            raise BitwardenError("Username or password is incorrect. Try again")
        _check_device(form)
        if account.two_factor and not (
            account.two_factor_code
            and hmac.compare_digest(form.get("twofactortoken", "").encode(), account.two_factor_code.encode())
        ):
            raise BitwardenError("Two factor required.", document=_two_factor_document(account))
        return {
            **self._login_document(account, form, "api offline_access"),
            "refresh_token": self._session(account, form, refresh=True),
            "MasterPasswordPolicy": {"Object": "masterPasswordPolicy"},
        }

    def _api_key_login(self, form: dict[str, str]) -> Any:
        _blank(form, "client_id", "client_secret", "scope", "device_identifier", "device_name", "device_type")
        self._count_login()
        if form["scope"] != "api":
            raise BitwardenError("Scope not supported")
        if not form["clientid"].startswith("user."):
            raise BitwardenError("Malformed client_id")
        account = self.state.accounts.get(form["clientid"].removeprefix("user."))
        if account is None:
            raise BitwardenError("Invalid client_id")
        if not account.enabled:
            raise BitwardenError("This user has been disabled (API key login)")
        if not hmac.compare_digest(form["clientsecret"].encode(), account.api_key.encode()):
            raise BitwardenError("Incorrect client_secret")
        _check_device(form)
        return self._login_document(account, form, "api")

    def _refresh(self, form: dict[str, str]) -> Any:
        token = form.get("refreshtoken", "")
        session = self._live(token)
        if session is None or not session.refresh:
            raise BitwardenError("Unable to refresh login credentials", document={"error": "invalid_grant"})
        again = {"clientid": session.client_id, "deviceidentifier": session.device}
        return {
            "refresh_token": token,
            "access_token": self._session(session.account, again),
            "expires_in": self.token_seconds,
            "token_type": "Bearer",
            "scope": "api offline_access",
        }

    def _login_document(self, account: Account, form: dict[str, str], scope: str) -> dict[str, Any]:
        account.devices.add(form["deviceidentifier"])
        return {
            "access_token": self._session(account, form),
            "expires_in": self.token_seconds,
            "token_type": "Bearer",
            "Key": account.key,
            "PrivateKey": account.private_key,
            "Kdf": account.kdf["kdfType"],
            "KdfIterations": account.kdf["iterations"],
            "KdfMemory": account.kdf["memory"],
            "KdfParallelism": account.kdf["parallelism"],
            "ResetMasterPassword": False,
            "ForcePasswordReset": False,
            "scope": scope,
            "AccountKeys": account_keys_document(account),
            "UserDecryptionOptions": {
                "HasMasterPassword": True,
                "MasterPasswordUnlock": {
                    "Kdf": {key[0].upper() + key[1:]: value for key, value in account.kdf.items()},
                    "MasterKeyEncryptedUserKey": account.key,
                    "MasterKeyWrappedUserKey": account.key,
                    "Salt": account.email,
                },
                "Object": "userDecryptionOptions",
            },
        }

    def _session(self, account: Account, form: dict[str, str], *, refresh: bool = False) -> str:
        now = self.clock().timestamp()
        seconds = 30 * 86_400 if refresh else self.token_seconds
        claims = {
            "nbf": int(now),
            "exp": int(now) + seconds,
            "iss": f"{self.url}|login",
            "sub": account.id,
            "premium": True,
            "name": account.email,
            "email": account.email,
            "email_verified": True,
            "sstamp": account.security_stamp,
            "device": form["deviceidentifier"],
            "scope": ["api", "offline_access"],
            "amr": ["Application"],
            "client_id": form["clientid"],
            "jti": str(uuid.uuid4()),
        }
        token = _jwt(claims, self._signing_key)
        self._sessions[token] = _Session(
            account, form["deviceidentifier"], account.security_stamp, form["clientid"], now + seconds, refresh
        )
        return token

    def _live(self, token: str) -> _Session | None:
        session = self._sessions.get(token)
        if session is None or session.expires <= self.clock().timestamp():
            return None
        return session if session.stamp == session.account.security_stamp else None

    def _who_asks(self, request: web.Request) -> Account | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        session = self._live(token) if scheme == "Bearer" else None
        return None if session is None or session.refresh else session.account

    def _count_login(self) -> None:
        if self.login_burst is None:
            return
        now = self.clock().timestamp()
        while self._logins and not now - _LOGIN_WINDOW < self._logins[0] <= now:
            self._logins.popleft()
        if len(self._logins) >= self.login_burst:
            raise BitwardenError("Too many login requests", status=429)
        self._logins.append(now)

    def _known_device(self, call: _Call) -> Any:
        try:
            email = unpadded(call.request.headers.get("X-Request-Email", ""))
        except ValueError:
            raise BitwardenError("X-Request-Email value failed to decode") from None
        account = self.state.account(email)
        return account is not None and call.request.headers.get("X-Device-Identifier") in account.devices

    # The account.

    def _config(self, call: _Call) -> Any:
        return {
            "version": "2026.6.0",
            "gitHash": None,
            "server": {"name": "Vaultwarden", "url": "https://github.com/dani-garcia/vaultwarden"},
            "settings": {"disableUserRegistration": True},
            "environment": {
                "vault": self.url,
                "api": f"{self.url}/api",
                "identity": f"{self.url}/identity",
                "notifications": f"{self.url}/notifications",
                "sso": "",
                "cloudRegion": None,
            },
            "push": {"pushTechnology": 0, "vapidPublicKey": None},
            "featureStates": {},
            "object": "config",
        }

    def _sync(self, call: _Call) -> Any:
        state, account = self.state, call.account
        # Clients that do not say their version are taken for old ones, which fail on SSH keys.
        ssh_keys = "Bitwarden-Client-Version" in call.request.headers
        items = [item for item in state.visible_items(account) if ssh_keys or item.body["type"] != 5]
        domains = {"equivalentDomains": [], "globalEquivalentDomains": [], "object": "domains"}
        return {
            "profile": profile_document(state, account),
            "folders": [folder_document(each) for each in self._folders_of(account)],
            "collections": [collection_document(state, each, account) for each in state.visible_collections(account)],
            "policies": [],
            "ciphers": [item_document(state, item, account, self.url) for item in items],
            "domains": None if call.request.query.get("excludeDomains") == "true" else domains,
            "sends": [],
            "userDecryption": {
                "masterPasswordUnlock": {
                    "kdf": dict(account.kdf),
                    "masterKeyEncryptedUserKey": account.key,
                    "masterKeyWrappedUserKey": account.key,
                    "salt": account.email,
                }
            },
            "object": "sync",
        }

    def _revision_date(self, call: _Call) -> Any:
        return int(call.account.updated.timestamp() * 1000)

    def _profile(self, call: _Call) -> Any:
        return profile_document(self.state, call.account)

    def _keys(self, call: _Call) -> Any:
        account = call.account
        return {
            "privateKey": account.private_key,
            "publicKey": account.public_key,
            "key": account.key,
            "object": "keys",
        }

    def _api_key(self, call: _Call) -> Any:
        self._check_password(call)
        return {"apiKey": call.account.api_key, "revisionDate": date(call.account.updated), "object": "apiKey"}

    def _verify_password(self, call: _Call) -> Any:
        self._check_password(call)
        return {"object": "masterPasswordPolicy"}

    def _check_password(self, call: _Call) -> None:
        if not call.account.knows(_text(call.body, "masterPasswordHash")):
            raise BitwardenError("Invalid password")

    # Items.

    def _item(self, call: _Call, item: Item) -> Any:
        return item_document(self.state, item, call.account, self.url)

    def _get(self, call: _Call) -> Any:
        return self._item(call, self.state.readable(call.match["id"], call.account))

    def _list(self, call: _Call) -> Any:
        return _page([self._item(call, item) for item in self.state.visible_items(call.account)])

    def _create(self, call: _Call) -> Any:
        return self._item(call, self.state.create_item(call.account, call.body))

    def _create_shared(self, call: _Call) -> Any:
        data, collections = _shared(call.body)
        return self._item(call, self.state.create_item(call.account, data, collections))

    def _update(self, call: _Call) -> Any:
        return self._item(call, self.state.update_item(call.account, call.match["id"], call.body))

    def _partial(self, call: _Call) -> Any:
        item = self.state.readable(call.match["id"], call.account)
        favorite = call.body.get("favorite")
        if not isinstance(favorite, bool):
            raise BitwardenError("favorite is not what it should be", status=422)
        self.state.place_item(item, call.account, call.body.get("folderId"), favorite)
        return self._item(call, item)

    def _share(self, call: _Call) -> Any:
        data, collections = _shared(call.body)
        return self._item(call, self.state.share_item(call.account, call.match["id"], data, collections))

    def _collections_of(self, call: _Call) -> Any:
        wanted = _texts(call.body, "collectionIds")
        return self._item(call, self.state.set_collections(call.account, call.match["id"], wanted))

    def _collections_of_2(self, call: _Call) -> Any:
        return {"object": "optionalCipherDetails", "unavailable": False, "cipher": self._collections_of(call)}

    def _trash(self, call: _Call) -> Any:
        self.state.trash_item(call.account, call.match["id"])
        return _NOTHING

    def _restore(self, call: _Call) -> Any:
        return self._item(call, self.state.restore_item(call.account, call.match["id"]))

    def _delete(self, call: _Call) -> Any:
        self.state.delete_item(call.account, call.match["id"])
        return _NOTHING

    # Attachments, in the three steps of current clients: announce, upload, download.

    def _announce(self, call: _Call) -> Any:
        item = self.state.writable(call.match["id"], call.account)
        name, key, size = _text(call.body, "fileName"), _text(call.body, "key"), call.body.get("fileSize")
        attachment_id = self.state.attach(item, name, key, int(size or 0))
        return {
            "object": "attachment-fileUpload",
            "attachmentId": attachment_id,
            "url": f"/ciphers/{item.id}/attachment/{attachment_id}",
            "fileUploadType": 0,
            "cipherResponse": self._item(call, item),
        }

    def _upload(self, call: _Call) -> Any:
        attachment = self._attachment(call, self.state.writable(call.match["id"], call.account))
        self.state.uploads[attachment["id"]].content = _file(call.request)
        return _NOTHING

    def _attachment_told(self, call: _Call) -> Any:
        item = self.state.readable(call.match["id"], call.account)
        return attachment_document(self.state, item, self._attachment(call, item), self.url)

    def _attachment(self, call: _Call, item: Item) -> dict[str, Any]:
        for each in item.attachments:
            if each["id"] == call.match["attachment"]:
                return each
        raise BitwardenError("Attachment doesn't exist")

    def _download(self, call: _Call) -> Any:
        upload = self.state.uploads.get(call.match["attachment"])
        if upload is None or not hmac.compare_digest(call.request.query.get("token", ""), upload.token):
            raise BitwardenError("Attachment doesn't exist", status=404)
        return web.Response(body=upload.content, content_type="application/octet-stream")

    # Folders.

    def _folders_of(self, account: Account) -> list[Any]:
        return [each for each in self.state.folders.values() if each.account_id == account.id]

    def _folders(self, call: _Call) -> Any:
        return _page([folder_document(each) for each in self._folders_of(call.account)])

    def _folder(self, call: _Call) -> Any:
        return folder_document(self.state.folder(call.account, call.match["id"]))

    def _save_folder(self, call: _Call) -> Any:
        name = _text(call.body, "name")
        return folder_document(self.state.save_folder(call.account, name, call.match.get("id")))

    def _delete_folder(self, call: _Call) -> Any:
        self.state.delete_folder(call.account, call.match["id"])
        return _NOTHING

    # Organisations.

    def _collections(self, call: _Call) -> Any:
        seen = self.state.visible_collections(call.account, call.match.get("org"))
        return _page([collection_document(self.state, each, call.account) for each in seen])

    def _collection(self, call: _Call) -> Any:
        seen = self.state.visible_collections(call.account, call.match["org"])
        for each in seen:
            if each.id == call.match["id"]:
                groups_and_users = {"groups": [], "users": [], "assigned": True, "unmanaged": False}
                document = collection_document(self.state, each, call.account)
                return {**document, **groups_and_users, "object": "collectionAccessDetails"}
        raise BitwardenError("Collection not found", status=404)

    def _save_collection(self, call: _Call) -> Any:
        self._owner(call)
        external = call.body.get("externalId")
        name = _text(call.body, "name")
        saved = self.state.save_collection(call.match["org"], name, external, call.match.get("id"))
        return collection_document(self.state, saved, call.account)

    def _delete_collection(self, call: _Call) -> Any:
        self._owner(call)
        self.state.delete_collection(call.match["org"], call.match["id"])
        return _NOTHING

    def _members(self, call: _Call) -> Any:
        self._owner(call)
        members = self.state.organizations[call.match["org"]].members.values()
        return _page(
            [
                {
                    "id": each.id,
                    "userId": each.account_id,
                    "name": self.state.accounts[each.account_id].email,
                    "email": self.state.accounts[each.account_id].email,
                    "status": 2,
                    "type": each.role,
                    "twoFactorEnabled": bool(self.state.accounts[each.account_id].two_factor),
                    "object": "organizationUserUserDetails",
                }
                for each in members
            ]
        )

    def _owner(self, call: _Call) -> None:
        member = self.state.member(call.account, call.match["org"])
        if member is None or member.role != OWNER:
            raise BitwardenError("The current user isn't a manager for this collection", status=401)


# Routes.


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    path: re.Pattern[str]
    operation: str
    handler: Callable[[BitwardenServer, _Call], Any]
    body: bool
    open: bool


def _r(
    line: str,
    operation: str,
    handler: Callable[[BitwardenServer, _Call], Any],
    *,
    body: bool = False,
    anyone: bool = False,
) -> _Route:
    """`line` as in "GET /api/ciphers/{id}"; `body`: a JSON object is needed; `anyone`: no token is."""
    method, _, path = line.partition(" ")
    pattern = re.sub(r"\{(\w+)\}", lambda found: _ID.format(found[1]), path)
    return _Route(method, re.compile(pattern), operation, handler, body, anyone)


_S = BitwardenServer
_ROUTES = (
    _r("POST /identity/accounts/prelogin", "prelogin", _S._prelogin, body=True, anyone=True),
    _r("POST /identity/accounts/prelogin/password", "prelogin", _S._prelogin, body=True, anyone=True),
    _r("POST /identity/connect/token", "login", _S._token, anyone=True),
    _r("GET /api/config", "config", _S._config, anyone=True),
    _r("GET /api/devices/knowndevice", "known_device", _S._known_device, anyone=True),
    _r("GET /api/sync", "sync", _S._sync),
    _r("GET /api/accounts/revision-date", "revision_date", _S._revision_date),
    _r("GET /api/accounts/profile", "profile", _S._profile),
    _r("GET /api/accounts/keys", "keys", _S._keys),
    _r("POST /api/accounts/api-key", "api_key", _S._api_key, body=True),
    _r("POST /api/accounts/verify-password", "verify_password", _S._verify_password, body=True),
    _r("GET /api/ciphers", "list", _S._list),
    _r("POST /api/ciphers", "create", _S._create, body=True),
    _r("POST /api/ciphers/create", "create", _S._create_shared, body=True),
    _r("GET /api/ciphers/{id}", "get", _S._get),
    _r("GET /api/ciphers/{id}/details", "get", _S._get),
    _r("PUT /api/ciphers/{id}", "update", _S._update, body=True),
    _r("PUT /api/ciphers/{id}/partial", "partial", _S._partial, body=True),
    _r("PUT /api/ciphers/{id}/share", "share", _S._share, body=True),
    _r("PUT /api/ciphers/{id}/collections", "collections", _S._collections_of, body=True),
    _r("PUT /api/ciphers/{id}/collections_v2", "collections", _S._collections_of_2, body=True),
    _r("PUT /api/ciphers/{id}/delete", "trash", _S._trash),
    _r("PUT /api/ciphers/{id}/restore", "restore", _S._restore),
    _r("DELETE /api/ciphers/{id}", "delete", _S._delete),
    _r("POST /api/ciphers/{id}/attachment/v2", "attach", _S._announce, body=True),
    _r("POST /api/ciphers/{id}/attachment/{attachment}", "upload", _S._upload),
    _r("GET /api/ciphers/{id}/attachment/{attachment}", "attachment", _S._attachment_told),
    _r("GET /attachments/{id}/{attachment}", "download", _S._download, anyone=True),
    _r("GET /api/folders", "folder_list", _S._folders),
    _r("POST /api/folders", "folder_create", _S._save_folder, body=True),
    _r("GET /api/folders/{id}", "folder_get", _S._folder),
    _r("PUT /api/folders/{id}", "folder_update", _S._save_folder, body=True),
    _r("DELETE /api/folders/{id}", "folder_delete", _S._delete_folder),
    _r("GET /api/collections", "collection_list", _S._collections),
    _r("GET /api/organizations/{org}/collections", "collection_list", _S._collections),
    _r("POST /api/organizations/{org}/collections", "collection_create", _S._save_collection, body=True),
    _r("GET /api/organizations/{org}/collections/{id}/details", "collection_get", _S._collection),
    _r("PUT /api/organizations/{org}/collections/{id}", "collection_update", _S._save_collection, body=True),
    _r("DELETE /api/organizations/{org}/collections/{id}", "collection_delete", _S._delete_collection),
    _r("GET /api/organizations/{org}/users", "member_list", _S._members),
)
_NOTHING = object()


def _route(request: web.Request) -> tuple[_Route | None, Mapping[str, str]]:
    for route in _ROUTES:
        match = route.path.fullmatch(request.path)
        if match and route.method == request.method:
            return route, match.groupdict()
    return None, {}


# Requests and answers.


def _read(request: web.Request) -> bytes:
    # The middleware has read it, and `classify` can not await it again.
    return request._read_bytes or b""


def _form(request: web.Request) -> dict[str, str]:
    return dict(parse_qsl(_read(request).decode("utf-8", "replace"), keep_blank_values=True))


def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        document = json.loads(_read(request))
    except ValueError:
        raise BitwardenError("The body is no JSON") from None
    if not isinstance(document, dict):
        raise BitwardenError("The body is no JSON object", status=422)
    return document


def _file(request: web.Request) -> bytes:
    """What a form uploads as "data": the clients send that part alone."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    for part in message_from_bytes(head + _read(request), policy=policy.HTTP).iter_parts():
        content = part.get_payload(decode=True)
        if part.get_param("name", header="content-disposition") == "data" and isinstance(content, bytes):
            return content
    raise BitwardenError("data is not what it should be", status=422)


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise BitwardenError(f"{key} is not what it should be", status=422)
    return value


def _texts(body: Mapping[str, Any], key: str) -> list[str]:
    value = body.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BitwardenError(f"{key} is not what it should be", status=422)
    return value


def _shared(body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    data = body.get("cipher")
    if not isinstance(data, dict):
        raise BitwardenError("cipher is not what it should be", status=422)
    return data, _texts(body, "collectionIds")


def _blank(form: Mapping[str, str], *names: str) -> None:
    for name in names:
        if name.replace("_", "") not in form:
            raise BitwardenError(f"{name} cannot be blank")


def _check_device(form: Mapping[str, str]) -> None:
    # Vaultwarden takes anything; Bitwarden's own server wants a number of its list and a proper identifier.
    try:
        fine = 0 <= int(form["devicetype"]) <= 26 and str(uuid.UUID(form["deviceidentifier"])) != ""
    except ValueError:
        fine = False
    if not fine or not form["devicename"]:
        raise BitwardenError("No device information provided.")


def _names(header: str | None, email: str) -> bool:
    # Older clients send it, Vaultwarden does not look at it, Bitwarden's own server did: it may be missing, not wrong.
    try:
        return header is None or unpadded(header).strip().lower() == email.strip().lower()
    except ValueError:
        return False


def _two_factor_document(account: Account) -> dict[str, Any]:
    return {
        "error": "invalid_grant",
        "error_description": "Two factor required.",
        "TwoFactorProviders": [str(each) for each in account.two_factor],
        "TwoFactorProviders2": {str(each): None for each in account.two_factor},
        "MasterPasswordPolicy": {"Object": "masterPasswordPolicy"},
    }


def _page(data: list[Any]) -> dict[str, Any]:
    return {"data": data, "object": "list", "continuationToken": None}


def _error(error: BitwardenError) -> web.Response:
    if error.status in (401, 422):
        return _plain_error(
            error.status, "Unauthorized" if error.status == 401 else "Unprocessable Entity", error.message
        )
    document = error.document or {
        "message": error.message,
        "error": "",
        "error_description": "",
        "validationErrors": {"": [error.message]},
        "errorModel": {"message": error.message, "object": "error"},
        "exceptionMessage": None,
        "exceptionStackTrace": None,
        "innerExceptionMessage": None,
        "object": "error",
    }
    return web.json_response(document, status=error.status)


def _plain_error(status: int, reason: str, description: str) -> web.Response:
    """What Vaultwarden's framework answers before a handler is reached."""
    document = {"error": {"code": status, "reason": reason, "description": description}}
    return web.json_response(document, status=status)


def _jwt(claims: dict[str, Any], key: bytes) -> str:
    def part(document: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    signed = f"{part({'typ': 'JWT', 'alg': 'HS256'})}.{part(claims)}"
    mac = hmac.digest(key, signed.encode(), hashlib.sha256)
    return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


async def _serve(port: int, email: str, password: str) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with BitwardenServer(port=port) as server:
        owner = server.register(email, password)
        ops = owner.found("Ops")
        owner.add_collection(ops, "Prod")
        ready = {
            "url": server.url,
            "ca_bundle": str(server.ca_bundle),
            "email": email,
            "client_id": owner.account.client_id,
            "client_secret": owner.account.api_key,
            "organization": ops.name,
            "collection": "Prod",
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Serves until SIGINT or SIGTERM; prints a line of JSON when it listens."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.bitwarden", description="A throw-away Bitwarden server.")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--email", default="demo@example.org")
    parser.add_argument("--password", default="correct horse battery staple")
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.email, given.password))


if __name__ == "__main__":
    main()
