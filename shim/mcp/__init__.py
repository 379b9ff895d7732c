"""For agents on the MCP Python SDK 2.x: a client that reconnects by itself.

::

    from shim.mcp import ReconnectingClient

    async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
        ...  # as mcp.Client

Agents on version 1.x of the SDK use ``shim.httpx.BearerAuth``. ``Happening`` is the older name of ``ClientEvent``.
"""

from shim.errors import OutcomeUnknown, ServerAway
from shim.mcp._client import ReconnectingClient, TokenSources
from shim.mcp._client_events import ClientEvent
from shim.mcp._listening import LastingSubscription

__all__ = [
    "ClientEvent",
    "Happening",
    "LastingSubscription",
    "OutcomeUnknown",
    "ReconnectingClient",
    "ServerAway",
    "TokenSources",
]

Happening = ClientEvent
