"""The errors of shim: each message says what a person can do, and contains no token.

::

    ShimError                         the base class of what shim raises and of what source.problem() returns
    +-- TokenFileError                the token file is missing, unreadable, damaged, or of another name
    |   +-- UnsupportedVersion        the token file has a version that this library does not support
    +-- TokenUnavailable              no token is valid for long enough
    +-- TokenRejected                 the server rejects the newest token
    +-- InsufficientScope             the server does not permit a request without another scope
    +-- ReauthorizationRequired       a person must log in again; also an event of source.changes()
    +-- Removed                       a person removed the grant; also an event of source.changes()
    +-- ServerAway                    (shim.mcp) no connection to the server within the patience of the call
    +-- OutcomeUnknown                (shim.mcp) the response to a call was lost: the call may have been executed
"""

import copyreg
import re
from typing import Any

__all__ = [
    "InsufficientScope",
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

_COMMANDS = re.compile(
    r"'(refresher (?:login [a-z0-9._-]+(?: --scope openid)?"
    r"|import [a-z0-9._-]+ --replace --from FILE|run-once [a-z0-9._-]+ --force))'"
)


class ShimError(Exception):
    """The base class of all errors of ``shim``."""

    server: str | None = None
    login_command: str | None = None
    retry = True
    """Whether the same call can succeed later."""
    _explanation: str | None = None
    """What a model reads instead of the message."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, also of errors whose constructor does not take the message."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def as_json(self) -> str:
        """Return JSON for a model: what happened, whether to retry, and the command that a person must run."""
        import json  # as in shim._token

        return json.dumps(
            {
                "error": self._explanation or str(self),
                "needs_reauth": self.login_command is not None,
                "server": self.server,
                "login_command": self.login_command,
                "retry": self.retry and self.login_command is None,
            }
        )


class TokenFileError(ShimError):
    """The token file cannot be used."""


class UnsupportedVersion(TokenFileError):
    """A newer refresher wrote the token file; upgrade the package in this agent."""


class TokenUnavailable(ShimError):
    """No token is valid for long enough."""


class TokenRejected(ShimError):
    """The server rejects the newest token."""


class InsufficientScope(ShimError):
    """The server accepts the token of the grant ``name``, but does not permit the request without other ``scopes``.

    ``scopes`` are those that the server names (RFC 6750 section 3.1); empty if it names none. ``server`` is its origin.
    """

    retry = False
    server: str

    def __init__(self, name: str, *, scopes: tuple[str, ...], server: str, description: str = "") -> None:
        import shlex  # a server names the scopes, and a person pastes the command into a shell

        self.name = name
        self.scopes = scopes
        self.server = server
        self.login_command = f"refresher login {name} --scope {shlex.quote(' '.join(scopes)) if scopes else 'SCOPE'}"
        missing = f"the scope {' '.join(scopes)!r}" if scopes else f"a scope ({description or 'the server names none'})"
        super().__init__(f"{server} requires {missing}, which the login of {name} lacks; run: {self.login_command}")
        self._explanation = (
            f"{server} does not permit this with the login of {name}: it requires {missing}. Retrying does not help: a "
            "person must log in with that scope"
        )


class ServerAway(ShimError):
    """The server could not be reached within the patience of the call; no write was executed."""


class OutcomeUnknown(ShimError):
    """A call was sent and its response was lost: it was executed once, or not at all.

    The caller knows what the call does, and decides whether to repeat it.
    """

    retry = False


class Removed(ShimError):
    """A person removed the grant ``name``."""

    def __init__(self, name: str) -> None:
        self.login_command = f"refresher login {name} URL"
        super().__init__(f"the grant {name} was removed; to create it again, a person runs: {self.login_command}")
        self.name = name


class ReauthorizationRequired(ShimError):
    """The authorization server ended the grant ``name``: retrying is useless, a person must log in again.

    ``code`` and ``description`` come from that server (RFC 6749 section 5.2). ``server`` is the origin of the token.
    """

    server: str

    def __init__(self, name: str, *, code: str, description: str, server: str) -> None:
        self.name = name
        self.code = code
        self.description = description
        self.server = server
        if code == "access_denied" and description.startswith("blocked by an administrator"):
            self.retry = False
            super().__init__(f"{name} is {description}; no login helps: ask those who run the identity provider")
            return
        named = None
        if code.startswith("source_"):
            # A grant that needs the token of another one names what brings that back, after what a server wrote.
            named = next(iter(_COMMANDS.findall(description)[::-1]), None)
            if named is not None and named.startswith("refresher run-once"):  # an administrator does not allow it
                self.retry = False
                super().__init__(f"{name} cannot be refreshed: {description}")
                return
        self.login_command = f"refresher login {name}" if named is None else named
        super().__init__(f"{name} needs a new login by a person ({description}); run: {self.login_command}")
        if code.startswith("source_"):
            return  # that server was not asked
        self._explanation = (
            f"{server} does not accept the login of {name} any more ({description}). Retrying does not help: a person "
            "must log in again"
        )
