"""The errors of refresher, each with the exit code of the command that it ends.

Each is a ``RefresherError``: it ends a command with one line for a person, and with exit code 2 unless it has another.
No message contains a secret; each says what happened, to what, and what to do next.
"""

__all__ = [
    "AlreadySpent",
    "ClientUnknown",
    "ConfigError",
    "DirectoryError",
    "ExposedGrantFile",
    "GrantFileError",
    "ImportRefused",
    "Interrupted",
    "KeyUnavailable",
    "LockBusy",
    "LoginNotGiven",
    "LoginRefused",
    "NeedsPerson",
    "NotInTime",
    "OtherAccount",
    "RefresherError",
    "ServerAway",
    "StorageError",
    "UnknownName",
]


class RefresherError(Exception):
    """Any error that ends a command with one line for a person."""

    exit_code: int = 2

    def __init_subclass__(cls, *, exit_code: int | None = None) -> None:
        cls.exit_code = cls.exit_code if exit_code is None else exit_code


class ConfigError(RefresherError):
    """An option, an environment variable or the configuration file is wrong."""


class DirectoryError(RefresherError):
    """A directory cannot be read, or other users could read or change its content."""


class UnknownName(RefresherError):
    """There is no grant of that name."""


class ImportRefused(RefresherError):
    """The imported grant would not work, or would revoke another login."""


class AlreadySpent(ImportRefused):
    """The grant of this name has already used this refresh token: the import is an old copy."""


class OtherAccount(ImportRefused):
    """The login is for another account than the stored grant of this name."""


class LoginRefused(RefresherError):
    """A login is impossible with this address or this client; nothing was changed."""


class ClientUnknown(LoginRefused):
    """The authorization server does not know the client, or rejects its authentication."""


class GrantFileError(RefresherError):
    """A grant file is damaged, or of a newer version; it is left as it is."""


class ExposedGrantFile(GrantFileError):
    """Other users could have read or changed a grant file: a person must decide whether to trust it."""


class KeyUnavailable(GrantFileError):
    """A grant is sealed, or must be, and its key is not here: it is left as it is."""


class StorageError(RefresherError, exit_code=4):
    """A disk or a database failed before a refresh token was used, or before an outcome without a new one was saved."""


class ServerAway(RefresherError, exit_code=4):
    """A server cannot be reached, or gives no usable answer; nothing was changed."""


class NotInTime(RefresherError, exit_code=4):
    """No token with enough time left was available within the wait."""


class NeedsPerson(RefresherError, exit_code=3):
    """The grant was rejected by its server, or removed."""


class LoginNotGiven(RefresherError, exit_code=3):
    """The person denied access, or did not complete the login in time; nothing was changed."""


class LockBusy(RefresherError, exit_code=6):
    """Another process held the lock for the whole wait."""


class Interrupted(RefresherError, exit_code=130):
    """A signal came before a refresh token was used."""
