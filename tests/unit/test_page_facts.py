"""Figures and lists on the pages of vaults, and of cost and limits, are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from shared import intake, jobs
from shared.config import models, yaml_source
from shared.pacing import QUICK_TRIES
from shared.relay import spool
from shared.vaults import azure_key_vault, file
from shared.vaults.azure_key_vault import settings as key_vault_settings
from shared.vaults.file import sealed
from shared.vaults.hashicorp import base, login
from shared.vaults.hashicorp import settings as hashicorp_settings
from shared.vaults.hashicorp.adapter import MAX_REQUEST_BYTES
from shared.vaults.http_api import settings as http_api_settings

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def page(name: str) -> str:
    return " ".join((ROOT / "docs" / f"{name}.md").read_text("utf-8").split())


def methods(auth: Any) -> dict[str, set[str]]:
    """By method: the keys that it takes besides."""
    union = get_args(auth)[0]
    kinds = get_args(union)
    return {get_args(kind.model_fields["method"].annotation)[0]: {*kind.model_fields} - {"method"} for kind in kinds}


@pytest.mark.parametrize(
    ("name", "auth"),
    [("vaults/azure-key-vault", key_vault_settings.Auth), ("vaults/hashicorp", hashicorp_settings.Auth)],
)
def test_each_way_to_sign_in_is_in_the_table_with_its_keys(name: str, auth: Any) -> None:
    lines = (ROOT / "docs" / f"{name}.md").read_text("utf-8").splitlines()
    for method, keys in methods(auth).items():
        (row,) = [line for line in lines if line.startswith(f"| `{method}`")]
        assert keys <= set(re.findall(r"`(\w+)`", row)), method


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vaults/azure-key-vault", azure_key_vault.Settings),
        ("vaults/hashicorp", hashicorp_settings.Settings),
        ("vaults/file", file.Settings),
    ],
)
def test_each_key_of_a_kind_is_on_its_page(name: str, settings: Any) -> None:
    text = page(name)
    shared = {"concurrency", "requests_per_second"} if name.endswith("file") else set()
    assert {key for key in settings.model_fields if key not in text} <= shared


def test_key_vaults_figures() -> None:
    text = page("vaults/azure-key-vault")
    vault = azure_key_vault.connect("prod", azure_key_vault.Settings(kind="azure_key_vault", url="https://x.example"))
    limits = vault.capabilities
    assert f"{limits.max_bytes:,} bytes of UTF-8" in text
    assert f"1 to {limits.names.max_length} of" in text
    assert f"{azure_key_vault._MAX_TAGS} of {azure_key_vault._MAX_TAG_CHARACTERS} characters each" in text
    assert f"{azure_key_vault._MAX_CONTENT_TYPE_CHARACTERS} characters" in text
    creates, others = azure_key_vault._CREATES_PER_SECOND, azure_key_vault._REQUESTS_PER_SECOND
    assert f"paced to {creates:g} creates and {others:g} calls a second" in text
    assert f"{vault.pacer.concurrency} calls" in text
    assert 15 <= sum(azure_key_vault._RECOVERY_WAITS) < 16
    assert "for some 15 seconds at most" in text
    assert azure_key_vault.NONCE_TAG == "vaultferry"


def test_hashicorps_figures() -> None:
    text = page("vaults/hashicorp")
    assert f"{MAX_REQUEST_BYTES // MIB} MiB" in text
    assert f"{base.CONCURRENCY} calls in flight" in text
    assert round(login.RENEW_AT * 3, 6) == 2
    assert "after two thirds of its life" in text


def test_a_files_figures() -> None:
    text = page("vaults/file")
    assert f"{sealed.MIN_PASSPHRASE} characters or more" in text
    memory = 128 * sealed._SCRYPT["n"] * sealed._SCRYPT["r"] // MIB
    assert f"scrypt with {memory} MiB of memory" in text


def test_limits() -> None:
    text = page("cost")
    host = json.loads((ROOT / "host.json").read_text())
    assert f"{jobs.MAX_BODY:,} bytes before base64 (64 KiB with it), at most {jobs.MAX_PATHS} paths" in text
    assert -(-jobs.MAX_BODY // 3) * 4 == 64 * 1024
    assert f"at most {intake.MAX_PATH:,} characters to arrive by event" in text
    assert f"{intake.MAX_SENT // MIB} MiB as sent, {intake.MAX_UNPACKED // MIB} MiB unpacked" in text
    assert f"{intake.MAX_ENTRIES:,} entries" in text
    assert f"{spool.MAX_ROWS:,} changed paths" in text
    assert f"{yaml_source.MAX_BYTES:,} bytes, {yaml_source.MAX_DEPTH} levels, {yaml_source.MAX_NODES:,} keys" in text
    assert host["functionTimeout"] == "00:10:00"
    assert "10 minutes (`functionTimeout`)" in text
    assert host["extensions"]["queues"]["maxPollingInterval"] == "00:00:02"
    assert 24 * 3600 // 2 == 43_200
    assert re.fullmatch(models.ID.pattern, "a" * 40)
    assert not re.fullmatch(models.ID.pattern, "a" * 41)
    defaults = http_api_settings.Settings.model_fields
    assert defaults["max_answer_bytes"].default == 16 * MIB
    assert "27 a second" in text
    assert "10,000 new secrets take at least 333 s" in text
    assert int(10_000 / 300 * 10) == 333


def test_tries() -> None:
    assert QUICK_TRIES == 3
    assert "up to three quick tries within a call" in page("troubleshooting")
    host = json.loads((ROOT / "host.json").read_text())
    assert host["extensions"]["queues"]["maxDequeueCount"] == 5
    assert "delivered again, five times" in page("troubleshooting")
