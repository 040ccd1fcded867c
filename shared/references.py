"""Key Vault references in the settings of a function app.

One that could not be resolved reaches the app as the text of the reference itself, which anybody can guess
(https://learn.microsoft.com/azure/app-service/app-service-key-vault-references#troubleshoot-key-vault-references).
"""

from __future__ import annotations

WHAT_TO_DO = "create the secret, let the app's identity read it, then restart the app"


def is_unresolved(value: str) -> bool:
    """Whether a setting holds a reference in place of the secret that it refers to."""
    return value.strip().lower().startswith("@microsoft.keyvault(")
