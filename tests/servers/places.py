"""Where the real servers lie: outside the tree, so that a fresh clone and `make clean` keep them."""

import os
from pathlib import Path

VAULT_VERSION = "1.21.0"
AZURITE_VERSION = "3.37.0"
BW_VERSION = "2026.6.0"


def cache() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/vaultferry`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vaultferry"


def vault_binary() -> Path:
    """HashiCorp Vault's one executable."""
    return cache() / f"vault-{VAULT_VERSION}"


def azurite_folder() -> Path:
    """The npm prefix that Azurite is installed into."""
    return cache() / f"azurite-{AZURITE_VERSION}"


def azurite_script(folder: Path | None = None) -> Path:
    """What node runs: blob, queue and table service in one process."""
    return (folder or azurite_folder()) / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"


def bw_folder() -> Path:
    """The npm prefix that the Bitwarden command line is installed into."""
    return cache() / f"bw-{BW_VERSION}"


def bw_script(folder: Path | None = None) -> Path:
    """What node runs as `bw`."""
    return (folder or bw_folder()) / "node_modules" / "@bitwarden" / "cli" / "build" / "bw.js"
