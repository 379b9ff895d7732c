"""For agents on the MCP Python SDK 2.x: a client whose session survives what happens to tokens and servers.

::

    from shim.mcp import ReconnectingClient

    async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
        ...  # as mcp.Client

For agents on mcp 1.x, ``shim.httpx.BearerAuth`` serves alone.
"""

from shim.errors import OutcomeUnknown, ServerAway
from shim.mcp._client import ReconnectingClient
from shim.mcp._client_events import Happening
from shim.mcp._token_sources import TokenSources

__all__ = ["Happening", "OutcomeUnknown", "ReconnectingClient", "ServerAway", "TokenSources"]
