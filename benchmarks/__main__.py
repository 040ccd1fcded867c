"""`make bench`: every benchmark, each in a process of its own. They report; they never fail on a time."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("cold_start", "memory", "throughput", "events", "two_way", "vaultwarden", "relay")

if __name__ == "__main__":
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
