"""Frameworks for Python and TypeScript, which take an auth object or a ``fetch``."""

from typing import Final

from refresher.cli.clients.client import Client

__all__ = ["FRAMEWORKS"]

_EACH_REQUEST: Final = (
    "A new token is used from the next request on. A revoked token is replaced within the request, which then succeeds."
)

FRAMEWORKS: Final = (
    Client(
        key="openai-agents",
        title="OpenAI Agents SDK",
        by="auth",
        picked_up=_EACH_REQUEST,
        snippet="""\
from agents.mcp import MCPServerStreamableHttp
from shim import BearerAuth

server = MCPServerStreamableHttp(params={"url": "{server_url}", "auth": BearerAuth("{name}")})
""",
    ),
)
