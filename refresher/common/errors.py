"""What can go wrong for the owner of grants.

::

    RefresherError               one line for a person; carries the exit code of the command it ends
    +-- ConfigError              an option, environment variable or configuration file is wrong       2
    +-- DirectoryError           a directory is unreadable, unsafe or of the wrong owner              2
    +-- UnknownName              no grant of that name                                                2
    +-- ImportRefused            what was to be imported is incomplete, unknown or already known      2
    |   +-- AlreadySpent         its refresh token was used up under this very name                  2
    +-- LoginRefused             a login cannot come to anything with this address or this client     2
    |   +-- ClientUnknown        the authorization server does not know the client                    2
    +-- GrantFileError           a grant file is damaged, or of a version this program cannot read    2
    |   +-- ExposedGrantFile     others could have read or changed it; its content may be good        2
    +-- StorageError             the disk refused, before anything was spent                          4
    +-- ServerAway               an authorization server or MCP server gives no usable answer         4
    +-- NotInTime                no token that lives long enough came within the wait                 4
    +-- NeedsPerson              the grant is dead or removed                                         3
    +-- LoginNotGiven            the person said no, or did not come to the end in time               3
    +-- LockBusy                 somebody else held the lock for the whole wait                       6
    +-- Interrupted              a signal came before anything was spent                            130

No message holds a secret; each says what to do next.
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
    "LockBusy",
    "LoginNotGiven",
    "LoginRefused",
    "NeedsPerson",
    "NotInTime",
    "RefresherError",
    "ServerAway",
    "StorageError",
    "UnknownName",
]


class RefresherError(Exception):
    """Anything that ends a command with one line."""

    exit_code: int = 2


class ConfigError(RefresherError):
    """An option, an environment variable or the configuration file is wrong."""


class DirectoryError(RefresherError):
    """A directory cannot be read, or others could read or change what is in it."""


class UnknownName(RefresherError):
    """There is no grant of that name."""


class ImportRefused(RefresherError):
    """What was to be imported would not work, or would do harm."""


class AlreadySpent(ImportRefused):
    """The refresh token was used up under the very name that it was brought for: an old copy."""


class LoginRefused(RefresherError):
    """A login cannot come to anything with this address or this client; nothing was changed."""


class ClientUnknown(LoginRefused):
    """The authorization server does not know the client, or not its authentication."""


class GrantFileError(RefresherError):
    """A grant file cannot be used; it is left as it is."""


class ExposedGrantFile(GrantFileError):
    """Others could have read or changed a grant file: whether it is good, only a person can say."""


class StorageError(RefresherError):
    """The disk refused before anything was spent."""

    exit_code = 4


class ServerAway(RefresherError):
    """A server cannot be reached, or gives no usable answer; nothing was changed."""

    exit_code = 4


class NotInTime(RefresherError):
    """No token that lives long enough came within the wait."""

    exit_code = 4


class NeedsPerson(RefresherError):
    """The grant is dead or removed."""

    exit_code = 3


class LoginNotGiven(RefresherError):
    """The person said no, or did not come to the end in time; nothing was changed."""

    exit_code = 3


class LockBusy(RefresherError):
    """Another process held the lock for the whole wait."""

    exit_code = 6


class Interrupted(RefresherError):
    """A signal came before anything was spent."""

    exit_code = 130
