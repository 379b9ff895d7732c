"""HTTP clients and ``BearerAuth`` for httpx2: ``async_client("linear")`` sends the current token with each request."""

from typing import Any

import httpx2

from shim._bearer import CONNECT_TIMEOUT, DEFAULT_WAIT, READ_TIMEOUT, BearerFlow
from shim._source import FileTokenSource

__all__ = ["BearerAuth", "async_client", "client"]

_TIMEOUT = httpx2.Timeout(CONNECT_TIMEOUT, read=READ_TIMEOUT)


class BearerAuth(BearerFlow, httpx2.Auth):  # noqa: D101  the next line
    __doc__ = BearerFlow.__doc__
    _byte_stream = httpx2.ByteStream


def async_client(
    source: FileTokenSource | str, *, wait: float = DEFAULT_WAIT, raise_errors: bool = False, **options: Any
) -> httpx2.AsyncClient:
    """Return an ``httpx2.AsyncClient`` with ``BearerAuth`` and the time-outs of the MCP SDK's own client.

    A response may take 300 s, everything else 30 s. As in that client, redirects are not followed. ``options`` are
    those of ``httpx2.AsyncClient``.
    """
    auth = BearerAuth(source, wait=wait, raise_errors=raise_errors)
    return httpx2.AsyncClient(auth=auth, **{"timeout": _TIMEOUT, **options})


def client(
    source: FileTokenSource | str, *, wait: float = DEFAULT_WAIT, raise_errors: bool = False, **options: Any
) -> httpx2.Client:
    """Return an ``httpx2.Client``; as ``async_client``."""
    auth = BearerAuth(source, wait=wait, raise_errors=raise_errors)
    return httpx2.Client(auth=auth, **{"timeout": _TIMEOUT, **options})
