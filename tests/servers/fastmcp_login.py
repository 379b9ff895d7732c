"""A FastMCP server that is its own authorization server, for logins. It runs in an environment of its own.

    .venv/fastmcp/bin/python -m tests.servers.fastmcp_login '{"upstream": null}'

``upstream``: the metadata of an oidc-provider of the tests, to which FastMCP's OAuth proxy forwards as its client
``public``; ``FASTMCP_SECRET`` is the secret of its client ``inspector``. ``null``: FastMCP's own provider in memory.
``stateless``: whether the server has no sessions.

Listens on a free port of 127.0.0.1, prints one line of JSON when it is ready, and exits when its stdin closes.
"""

import json
import os
import secrets
import socket
import sys
from typing import Any

import anyio
from fastmcp import FastMCP
from fastmcp.server.auth.auth import ClientRegistrationOptions, RevocationOptions
from fastmcp.server.auth.oauth_proxy import OAuthProxy
from fastmcp.server.auth.providers.in_memory import InMemoryOAuthProvider
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from key_value.aio.stores.memory import MemoryStore

from tests.servers.serving import serve


def in_memory(issuer: str) -> Any:
    """Return the provider that registers every client, approves at once and rotates."""
    return InMemoryOAuthProvider(
        base_url=issuer,
        client_registration_options=ClientRegistrationOptions(enabled=True),
        revocation_options=RevocationOptions(enabled=True),
    )


def proxy(issuer: str, upstream: dict[str, str]) -> Any:
    """Return the provider that logs a person in at another server, and issues tokens of its own."""
    return OAuthProxy(
        upstream_authorization_endpoint=upstream["authorization_endpoint"],
        upstream_token_endpoint=upstream["token_endpoint"],
        upstream_revocation_endpoint=upstream["revocation_endpoint"],
        upstream_client_id="public",
        token_verifier=IntrospectionTokenVerifier(
            introspection_url=upstream["introspection_endpoint"],
            client_id="inspector",
            client_secret=os.environ["FASTMCP_SECRET"],
            # For Basic, FastMCP does not encode the secret, as RFC 6749 section 2.3.1 demands.
            client_auth_method="client_secret_post",
        ),
        base_url=issuer,
        redirect_path="/callback",
        valid_scopes=["openid", "offline_access"],
        extra_authorize_params={"prompt": "consent"},  # without it, oidc-provider gives no offline_access
        client_storage=MemoryStore(),
        jwt_signing_key=secrets.token_bytes(32),
    )


async def main(*, upstream: dict[str, str] | None, stateless: bool = False) -> None:
    """Serve until stdin ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        mcp = FastMCP("login", auth=in_memory(issuer) if upstream is None else proxy(issuer, upstream))

        def add(a: int, b: int) -> int:
            return a + b

        mcp.tool(add)
        await serve(mcp.http_app(path="/mcp", stateless_http=stateless), listener, f"{issuer}/mcp")


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    anyio.run(lambda: main(**options))
