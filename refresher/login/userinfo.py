"""Asks the server whose login it is (OpenID Connect Core section 5.3), once at a login."""

import json

import httpx2

from refresher.common.errors import RefresherError
from refresher.common.secret import Secret
from refresher.grants import accounts
from refresher.grants.record import Account
from refresher.login.discovery import Server
from refresher.login.http_client import NAMED_BY, Connections

__all__ = ["ask_account"]


def ask_account(server: Server, access_token: Secret, connections: Connections) -> Account | None:
    """Return the account of the access token; ``None`` if the server does not say: no login fails because of that."""
    if server.userinfo_url is None:
        return None
    request = httpx2.Request(
        "GET",
        server.userinfo_url,
        headers={"Authorization": f"Bearer {access_token.reveal()}", "Accept": "application/json"},
        extensions={NAMED_BY: server.issuer or server.token_endpoint},
    )
    try:
        response = connections.run(connections.fetch, request)
        claims = json.loads(response.content) if response.status_code == httpx2.codes.OK else None
    except (RefresherError, ValueError, RecursionError):
        return None
    return accounts.from_claims(claims, server.issuer) if isinstance(claims, dict) else None
