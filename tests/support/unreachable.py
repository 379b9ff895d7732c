"""What ``import`` needs for a grant at a server that does not exist."""

from typing import Any, Final

__all__ = ["LIVE", "UNREACHABLE"]

UNREACHABLE: Final[dict[str, Any]] = {
    "token_endpoint": "http://127.0.0.1:9/token",
    "client_id": "client",
    "refresh_token": "a-refresh-token-of-nobody",
    "server_url": "https://mcp.example/mcp",
}

LIVE: Final[dict[str, Any]] = {**UNREACHABLE, "access_token": "an-access-token-of-nobody", "expires_in": 3600}
"""The same with an access token that is valid for an hour: nothing is due."""
