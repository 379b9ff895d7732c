"""HTTP clients and ``BearerAuth`` for httpx: ``async_client("linear")`` sends the current token with each request."""

from typing import Any

import httpx

from shim._bearer import CONNECT_TIMEOUT, DEFAULT_WAIT, READ_TIMEOUT, BearerFlow
from shim._source import FileTokenSource

__all__ = ["BearerAuth", "async_client", "client"]

_TIMEOUT = httpx.Timeout(CONNECT_TIMEOUT, read=READ_TIMEOUT)


class BearerAuth(BearerFlow, httpx.Auth):  # noqa: D101  the next line
    __doc__ = BearerFlow.__doc__
    _byte_stream = httpx.ByteStream


def async_client(
    source: FileTokenSource | str, *, wait: float = DEFAULT_WAIT, raise_errors: bool = False, **options: Any
) -> httpx.AsyncClient:
    """Return an ``httpx.AsyncClient`` with ``BearerAuth`` and the time-outs of the MCP SDK's own client.

    A response may take 300 s, everything else 30 s. As in that client, redirects are not followed. ``options`` are
    those of ``httpx.AsyncClient``.
    """
    auth = BearerAuth(source, wait=wait, raise_errors=raise_errors)
    return httpx.AsyncClient(auth=auth, **{"timeout": _TIMEOUT, **options})


def client(
    source: FileTokenSource | str, *, wait: float = DEFAULT_WAIT, raise_errors: bool = False, **options: Any
) -> httpx.Client:
    """Return an ``httpx.Client``; as ``async_client``."""
    auth = BearerAuth(source, wait=wait, raise_errors=raise_errors)
    return httpx.Client(auth=auth, **{"timeout": _TIMEOUT, **options})
