"""Read the access tokens that refresher publishes; an agent never gets a refresh token.

::

    from shim.httpx2 import async_client        # or shim.httpx
    client = async_client("linear")

A program that sets the ``Authorization`` header itself uses ``FileTokenSource``. ``README.md`` beside this file has the
whole API and recipes.
"""

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

__all__ = [
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
