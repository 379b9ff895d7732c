"""What can go wrong for a reader of published tokens.

::

    ShimError                         whatever ``shim`` raises, or tells as ``source.problem()``
    +-- TokenFileError                the token file is missing, unreadable, torn, or another name's
    |   +-- UnsupportedVersion        it follows a newer contract than this library knows
    +-- TokenUnavailable              there is no token with enough life in it right now
    +-- TokenRejected                 the server refuses the newest token there is
    +-- ReauthorizationRequired       only a person can help; also an event of ``source.changes()``
    +-- Removed                       the grant was removed; also an event of ``source.changes()``
    +-- ServerAway                    (``shim.mcp``) no connection to the server within the patience of the call
    +-- OutcomeUnknown                (``shim.mcp``) a call whose answer was lost: it may have been executed

Every message says what a person can do, and holds no token.
"""

from typing import Any

__all__ = [
    "OutcomeUnknown",
    "ReauthorizationRequired",
    "Removed",
    "ServerAway",
    "ShimError",
    "TokenFileError",
    "TokenRejected",
    "TokenUnavailable",
    "UnsupportedVersion",
]


class ShimError(Exception):
    """Anything that ``shim`` raises."""

    server: str | None = None
    login_command: str | None = None
    retry = True
    """Whether to try again later makes sense."""

    def as_json(self) -> str:
        """Return what a model needs to know, as JSON: what happened, whether to retry, what a person runs."""
        import json  # as in shim._token

        return json.dumps(
            {
                "error": self._told(),
                "needs_reauth": self.login_command is not None,
                "server": self.server,
                "login_command": self.login_command,
                "retry": self.retry and self.login_command is None,
            }
        )

    def _told(self) -> str:
        return str(self)


class TokenFileError(ShimError):
    """A token file cannot be used."""


class UnsupportedVersion(TokenFileError):
    """A token file was written by a newer refresher; upgrade the library in this agent."""


class TokenUnavailable(ShimError):
    """There is no token with enough life in it."""


class TokenRejected(ShimError):
    """The server refuses the newest token there is."""


class ServerAway(ShimError):
    """The server could not be reached for as long as the caller was ready to wait; nothing that writes was executed."""


class OutcomeUnknown(ShimError):
    """A call was sent and its answer was lost: it may have been executed, once.

    Whether to call again is for the caller to decide, who knows what the call does.
    """

    retry = False


class Removed(ShimError):
    """The grant ``name`` was removed by a person."""

    def __init__(self, name: str) -> None:
        self.login_command = f"refresher login {name} URL"
        super().__init__(f"the grant {name} was removed; a person can make it anew: {self.login_command}")
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        """Come back whole from a process pool."""
        return Removed, (self.name,)


class ReauthorizationRequired(ShimError):
    """The authorization server gave its verdict on the grant ``name``: retrying is useless, a person must log in.

    ``code`` and ``description`` are the server's (RFC 6749 section 5.2), ``server`` is where the token was good.
    """

    def __init__(self, name: str, *, code: str, description: str, server: str) -> None:
        self.name = name
        self.code = code
        self.description = description
        self.server = server
        self.login_command = f"refresher login {name}"
        super().__init__(f"{name} needs a new login by a person ({description}): {self.login_command}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Come back whole from a process pool."""
        return _reauthorization_required, (self.name, self.code, self.description, self.server)

    def _told(self) -> str:
        return f"{self.server} needs a new authorization of {self.name}: {self.description}"


def _reauthorization_required(name: str, code: str, description: str, server: str) -> ReauthorizationRequired:
    return ReauthorizationRequired(name, code=code, description=description, server=server)
