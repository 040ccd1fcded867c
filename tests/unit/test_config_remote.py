"""A configuration at a blob's address: what is retried, what is kept, what is said when it is away."""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from shared.config import ConfigError, InvalidConfig, load, outline, remote
from shared.config.yaml_source import MAX_BYTES

GOOD = b"""\
vaults:
  hub: {kind: azure_key_vault, url: https://hub.vault.azure.net}
  prod: {kind: azure_key_vault, url: https://prod.vault.azure.net}
syncs:
  nightly: {source: {vault: hub}, targets: [{vault: prod}], schedule: 0 1 * * *}
"""
CANARY = "CANARY5d1f"
COPY = "/account/vaultferry/config/last-good.yaml"
CONFIG = "/account/configs/vaultferry.yaml"


class Blobs:
    """Just enough of blob storage: blobs in containers, ranged reads, and answers that are told in advance."""

    def __init__(self) -> None:
        self.containers = {"/account/configs"}
        self.blobs: dict[str, bytes] = {}
        self.answers: list[int] = []
        """Statuses for the next reads of the configuration; 0 tears the connection."""
        self.reads: list[str] = []
        self.down: set[str] = set()
        """Paths that are always answered by 503."""
        self.base = ""

    @property
    def url(self) -> str:
        return f"{self.base}{CONFIG}?sv=2026-02-06&sp=r&sig={CANARY}"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AzureWebJobsStorage": "DefaultEndpointsProtocol=http;AccountName=account;AccountKey=a2V5;"
            f"BlobEndpoint={self.base}/account;"
        }


@pytest.fixture
def blobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))
    state = Blobs()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            state.reads.append(path)
            told = state.answers.pop(0) if path == CONFIG and state.answers else 503 if path in state.down else None
            if told == 0:
                self.close_connection = True
                self.connection.close()
            elif told is not None:
                self.answer(told)
            elif path not in state.blobs:
                self.answer(404, x_ms_error_code="BlobNotFound")
            elif not state.blobs[path]:
                self.answer(416, x_ms_error_code="InvalidRange")
            else:
                first, last = self.headers["x-ms-range"].removeprefix("bytes=").split("-")
                whole = state.blobs[path]
                part = whole[int(first) : int(last) + 1]
                span = f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"
                self.answer(206, part, Content_Range=span, ETag='"1"', x_ms_blob_type="BlockBlob")

        def do_PUT(self) -> None:
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path in state.down:
                self.answer(503)
            elif "restype=container" in self.path:
                state.containers.add(path)
                self.answer(201, ETag='"1"')
            elif not any(path.startswith(f"{container}/") for container in state.containers):
                self.answer(404, x_ms_error_code="ContainerNotFound")
            else:
                state.blobs[path] = body
                self.answer(201, ETag='"1"')

        def log_message(self, *args: object) -> None:
            pass

        def handle_one_request(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle_one_request()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def test_a_valid_configuration_is_used_and_a_copy_is_kept(blobs: Blobs) -> None:
    blobs.blobs[CONFIG] = GOOD
    config = load(blobs.url, blobs.env)
    assert (list(config.syncs), config.warnings, config.origin) == (["nightly"], (), f"{blobs.base}{CONFIG}")
    assert blobs.blobs[COPY] == GOOD


async def test_it_works_where_an_event_loop_runs_already(blobs: Blobs) -> None:
    blobs.blobs[CONFIG] = GOOD
    assert asyncio.get_running_loop().is_running()
    assert outline(blobs.url, blobs.env).schedules == {"nightly": "0 0 1 * * *"}


@pytest.mark.parametrize("fault", [0, 408, 429, 500, 503])
def test_a_passing_fault_is_tried_again(blobs: Blobs, fault: int) -> None:
    blobs.blobs[CONFIG] = GOOD
    blobs.answers = [fault, fault]
    config = load(blobs.url, {})
    assert (list(config.syncs), config.warnings) == (["nightly"], ())
    assert blobs.reads == [CONFIG] * 3


@pytest.mark.parametrize(
    ("fault", "tries", "reason"),
    [
        (503, 3, "HTTP 503"),
        (0, 3, "no answer"),
        (404, 1, "there is no such blob"),
        (403, 1, "needs Storage Blob Data Reader"),
        (401, 1, "was not accepted"),
        (400, 1, "HTTP 400"),
    ],
)
def test_without_an_answer_the_last_good_copy_is_used_and_said(
    blobs: Blobs, fault: int, tries: int, reason: str
) -> None:
    blobs.blobs[COPY] = GOOD
    blobs.answers = [fault] * 9
    config = load(blobs.url, blobs.env)
    assert list(config.syncs) == ["nightly"]
    # The HTTP client itself asks once more after a torn connection.
    assert blobs.reads == [CONFIG] * (tries if fault else 2 * tries) + [COPY]
    (warning,) = config.warnings
    assert warning.startswith(f"{blobs.base}{CONFIG}: the configuration could not be read: ")
    assert reason in warning
    assert warning.endswith("the last good copy, vaultferry/config/last-good.yaml, is used instead")
    assert CANARY not in warning


@pytest.mark.parametrize("account", ["none", "no copy", "down"])
def test_with_neither_the_reasons_for_both_are_told(
    blobs: Blobs, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_LAST_GOOD_READ", 0.5)
    blobs.down = {CONFIG, COPY} if account == "down" else {CONFIG}
    with pytest.raises(InvalidConfig) as caught:
        load(blobs.url, {} if account == "none" else blobs.env)
    text = str(caught.value)
    assert "the configuration could not be read: HTTP 503" in text
    expected = {
        "none": "AzureWebJobsStorage is not set",
        "no copy": "there is no such blob",
        "down": "no answer from the storage account",
    }
    assert expected[account] in text
    assert CANARY not in text + "".join(traceback.format_exception(caught.value))


def test_an_invalid_configuration_is_an_error_and_leaves_the_copy_alone(blobs: Blobs) -> None:
    blobs.blobs |= {CONFIG: b"vaults: {hub: {kind: nonsense}}", COPY: GOOD}
    with pytest.raises(InvalidConfig, match=r"vaultferry\.yaml:1: vaults\.hub\.kind"):
        outline(blobs.url, blobs.env)
    assert blobs.blobs[COPY] == GOOD


def test_a_copy_that_can_not_be_kept_is_a_warning(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LAST_GOOD_WRITE", 0.5)
    blobs.blobs[CONFIG] = GOOD
    blobs.down = {COPY}
    (warning,) = load(blobs.url, blobs.env).warnings
    assert warning.startswith("no copy of the configuration could be kept in the storage account")
    (warning,) = load(blobs.url, {"AzureWebJobsStorage": f"AccountKey={CANARY}"}).warnings
    assert CANARY not in warning


def test_an_empty_and_a_huge_blob_are_refused(blobs: Blobs) -> None:
    blobs.blobs[CONFIG] = b""
    with pytest.raises(InvalidConfig, match="the file is empty"):
        load(blobs.url, {})
    blobs.blobs[CONFIG] = b"x" * (MAX_BYTES * 5)
    with pytest.raises(InvalidConfig, match="larger than 1,000,000 bytes"):
        load(blobs.url, {})


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_only_https_is_followed_off_this_machine(scheme: str) -> None:
    with pytest.raises(ConfigError, match="expected a path, or the https address of a blob") as caught:
        load(f"{scheme}://user:{CANARY}@account.blob.core.windows.net/a/b?sig={CANARY}", {})
    assert CANARY not in str(caught.value)


def test_an_address_that_is_no_blob_is_said_to_be_none(blobs: Blobs) -> None:
    with pytest.raises(InvalidConfig, match=r"this is not the address of a blob|no such blob"):
        load(f"{blobs.base}/?sig={CANARY}", {})


@pytest.mark.real
def test_azurite_serves_keeps_and_gives_back(azurite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime, timedelta
    from uuid import uuid4

    from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

    monkeypatch.setattr(remote, "CONFIG_CONTAINER", f"vaultferry-{uuid4().hex}")
    env = {"AzureWebJobsStorage": azurite}
    with BlobServiceClient.from_connection_string(azurite) as service:
        container = service.create_container(f"configs-{uuid4().hex}")
        blob = container.upload_blob("vaultferry.yaml", GOOD)
        signature = generate_blob_sas(
            str(service.account_name),
            container.container_name,
            "vaultferry.yaml",
            account_key=service.credential.account_key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        address = f"{blob.url}?{signature}"
        assert load(address, env).warnings == ()
        blob.delete_blob()
        config = load(address, env)
        assert list(config.syncs) == ["nightly"]
        assert "there is no such blob" in config.warnings[0]
        container.delete_container()
        service.delete_container(remote.CONFIG_CONTAINER)
