"""What an agent imports to use tokens that a refresher publishes; it never sees a refresh token.

::

    from shim.httpx2 import BearerAuth          # or shim.httpx
    client = httpx2.AsyncClient(auth=BearerAuth("linear"))

``FileTokenSource`` is for programs that build their own header.
"""

from shim._changes import Changes, Event, Restored, Rotated
from shim._source import FileTokenSource
from shim._token import Problem, TokenFile
from shim.errors import (
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
