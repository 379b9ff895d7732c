"""Read the access tokens that refresher publishes; an agent never gets a refresh token.

::

    from shim.httpx2 import async_client        # or shim.httpx
    client = async_client("linear")

``BearerAuth("linear")`` is for a client of your own, and for a framework that takes an ``auth``. A program that sets
the ``Authorization`` header itself uses ``FileTokenSource``. ``README.md`` beside this file has the whole API and
recipes.
"""

from typing import TYPE_CHECKING, Any

from shim._changes import Changes, Event, Restored, Rotated
from shim._source import FileTokenSource
from shim._token import Problem, TokenFile
from shim.errors import (
    InsufficientScope,
    ReauthorizationRequired,
    Removed,
    ShimError,
    TokenFileError,
    TokenRejected,
    TokenUnavailable,
    UnsupportedVersion,
)

if TYPE_CHECKING:
    from shim._auth import BearerAuth

__all__ = [
    "BearerAuth",
    "Changes",
    "Event",
    "FileTokenSource",
    "InsufficientScope",
    "Problem",
    "ReauthorizationRequired",
    "Removed",
    "Restored",
    "Rotated",
    "ShimError",
    "TokenFile",
    "TokenFileError",
    "TokenRejected",
    "TokenUnavailable",
    "UnsupportedVersion",
]

if not TYPE_CHECKING:  # a type checker would believe that each name exists

    def __getattr__(name: str) -> Any:
        """Import ``BearerAuth`` when it is used: a program that only reads tokens does not need it."""
        if name == "BearerAuth":
            from shim._auth import BearerAuth

            return BearerAuth
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
