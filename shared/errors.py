"""Everything that Vaultferry raises on purpose.

    SyncError
    ├── ConfigError            the configuration or its use is wrong; a person must change it
    ├── VaultError             one vault said no; names the vault and the path
    │   ├── SecretNotFound     the vault answered, and the secret is not there
    │   ├── MountNotFound      the vault answered, and there is no such engine: never read as "the secret is gone"
    │   ├── AccessDenied       credentials are missing, wrong or too weak
    │   ├── Conflict           the secret is not in the version that was expected
    │   ├── InvalidSecret      this name or value can not be stored there, whatever is tried
    │   ├── Unsupported        this vault can not do that at all
    │   └── Unavailable        try again later: time-outs, torn connections, 429, 5xx
    ├── Refused                not now: the sync is paused or disabled, the run is not in that state, there is no such thing
    └── StoreError             the history store or a queue failed; the job is delivered again

Only `Unavailable` and `StoreError` are transient. No message ever holds a secret value; nothing is chained to a
cause that could quote one.
"""


class SyncError(Exception):
    """The root: catch this to catch all that Vaultferry raises."""

    transient = False


class ConfigError(SyncError):
    """The configuration, the environment or the way a command was used is wrong."""


class VaultError(SyncError):
    """A vault refused or could not answer: `vault` is its id, `path` the secret's name, where there is one."""

    def __init__(self, message: str, *, vault: str = "", path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.vault = vault
        self.path = path

    def __str__(self) -> str:
        where = self.vault if self.path is None else f"{self.vault}:{self.path}"
        return f"{where}: {self.message}" if where else self.message


class SecretNotFound(VaultError):
    """The vault answered, and the secret is not there (never was, deleted, or past its expiry)."""


class MountNotFound(VaultError):
    """The vault answered, and the engine or container that should hold the secrets does not exist."""


class AccessDenied(VaultError):
    """Credentials are missing, wrong, expired or lack the permission."""


class Conflict(VaultError):
    """The secret is not in the version that `expect` named."""


class InvalidSecret(VaultError):
    """This name or this value can never be stored in, or carried from, that vault."""


class Unsupported(VaultError):
    """The vault's capabilities say that it can not do this."""


class Unavailable(VaultError):
    """Try again later. `retry_after` (seconds) is what the server asked for, if it did.

    `ambiguous` is true where the call may have had its effect all the same (a time-out, a connection torn after the
    request was sent): a write must then be read back before it is tried again. `waited` is how many seconds it took to fail,
    where that is known.
    """

    transient = True

    def __init__(
        self,
        message: str,
        *,
        vault: str = "",
        path: str | None = None,
        retry_after: float | None = None,
        ambiguous: bool = False,
    ) -> None:
        super().__init__(message, vault=vault, path=path)
        self.retry_after = retry_after
        self.ambiguous = ambiguous
        self.waited = 0.0


class Refused(SyncError):
    """What was asked for can not be done as things are. `unknown` is true where what was named does not exist."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class StoreError(SyncError):
    """The history store or a queue failed. What was under way is delivered again."""

    transient = True


def permanent(message: str) -> StoreError:
    """A failure of a store or a queue that no second try mends."""
    error = StoreError(message)
    error.transient = False
    return error
