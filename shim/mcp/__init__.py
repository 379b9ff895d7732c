"""For agents on the MCP Python SDK 2.x: a client whose session survives rotations and restarts.

::

    from shim.mcp import ReconnectingClient

    async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
        ...  # as mcp.Client

Agents on mcp 1.x use ``shim.httpx.BearerAuth``.
"""

from shim.errors import OutcomeUnknown, ServerAway
from shim.mcp._client import ReconnectingClient
from shim.mcp._client_events import ClientEvent
from shim.mcp._token_sources import TokenSources

__all__ = ["ClientEvent", "Happening", "OutcomeUnknown", "ReconnectingClient", "ServerAway", "TokenSources"]

Happening = ClientEvent
"""The older name of ``ClientEvent``."""
