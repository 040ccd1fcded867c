"""How long importing function_app.py takes, as a ratio to importing azure.functions alone: a cold start waits for it.

Fresh interpreters in turn, medians; two hashicorp vaults and a Key Vault are configured. `python -m benchmarks.cold_start`
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIES = 11
LIMIT = 2.0
CONFIG = """
vaults:
  east: {kind: hashicorp, address: "http://127.0.0.1:8200", auth: {method: token, token: "${TOKEN}"}}
  west: {kind: hashicorp, address: "http://127.0.0.1:8201", auth: {method: token, token: "${TOKEN}"}}
  prod: {kind: azure_key_vault, url: "https://contoso.vault.azure.net"}
syncs:
  east-to-all:
    schedule: "0 */6 * * *"
    source: {vault: east, prefix: apps/}
    targets: [{vault: west}, {vault: prod}]
"""
TIMED = "import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vaultferry.yaml"
        config.write_text(CONFIG)
        env = {**os.environ, "VAULTFERRY_CONFIG": str(config), "TOKEN": "not-a-token", "PYTHONPATH": str(ROOT)}
        modules = ("azure.functions", "function_app")
        for module in modules:
            _seconds(module, env)  # writes the .pyc files
        # Alternating, so that a busy moment of the machine hits both.
        times = [[_seconds(module, env) for module in modules] for _ in range(TRIES)]
    alone, ours = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"import azure.functions  {alone * 1000:7.0f} ms")
    print(f"import function_app     {ours * 1000:7.0f} ms")
    print(f"ratio                   {ours / alone:7.2f}  (to stay under {LIMIT:g})")


def _seconds(module: str, env: dict[str, str]) -> float:
    command = [sys.executable, "-c", TIMED.format(module=module)]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
