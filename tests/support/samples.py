"""Grants and moments for the tests of pure code."""

import base64
import json
from typing import Any

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants.outcome import TokensIssued
from refresher.grants.record import NO_RECORD, Doubt, Failure, Grant

__all__ = ["ISSUED", "NOON", "REFRESH", "at", "doubt", "failure", "grant", "jwt"]

NOON = 1_800_000_000.0
REFRESH = Secret("refresh-token-of-generation-3")

ISSUED = TokensIssued(
    access_token=Secret("new-access"),
    token_type="Bearer",
    expires_in=3600.0,
    expires_at=None,
    refresh_token=Secret("new-refresh"),
    scope=None,
)
"""The outcome of an exchange that issues new tokens for an hour."""


def at(wall: float = NOON, *, lasted: float | None = None, boot: str = "boot-1") -> Moment:
    """Return a moment; ``lasted``: the seconds since noon on the other two clocks, if they differ from the wall clock."""
    steady = 5000.0 + (wall - NOON if lasted is None else lasted)
    return Moment(wall=wall, monotonic=steady, boottime=steady, boot_id=boot)


def grant(**changes: Any) -> Grant:
    """Return a valid grant with a token for an hour that was issued at noon; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "name": "linear",
        "grant_id": "0123",
        "generation": 3,
        "begun_from": NO_RECORD,
        "issuer": None,
        "token_endpoint": "https://as.example/token",
        "client_id": "client",
        "client_secret": None,
        "token_endpoint_auth_method": "none",
        "refresh_token": REFRESH,
        "scope": "read",
        "resource": None,
        "send_resource": False,
        "server_url": "https://mcp.example/mcp",
        "origins": ("https://mcp.example",),
        "replay": 0.0,
        "max_age": None,
        "access_token": Secret("access-token-of-generation-3"),
        "token_type": "Bearer",
        "issued_at": NOON,
        "expires_at": NOON + 3600,
        "authorized_at": NOON - 86400,
        "last_rotation_at": NOON,
    }
    return Grant(**(fields | changes))


def failure(**changes: Any) -> Failure:
    """Return a transient failure that is retried 100 seconds after noon."""
    fields: dict[str, Any] = {
        "outcome": "transient",
        "code": "temporarily_unavailable",
        "description": "the token endpoint answered 503",
        "at": NOON,
        "retry_at": NOON + 100,
    }
    return Failure(**(fields | changes))


def doubt(since: Moment | None = None) -> Doubt:
    """Return a doubt that began at noon."""
    return Doubt(since=since or at())


def jwt(**claims: Any) -> str:
    """Return an unsigned JWT."""
    parts = (b"{}", json.dumps(claims).encode(), b"s")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
