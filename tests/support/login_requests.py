"""The requests of a login, sent without a client library."""

import base64
import hashlib
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.support.listener import Listener

__all__ = [
    "DEVICE",
    "NATIVE",
    "STATE",
    "WELCOME",
    "Loopback",
    "asking",
    "code",
    "discovered",
    "exchange",
    "register",
    "taken",
]

DEVICE: Final = "urn:ietf:params:oauth:grant-type:device_code"
STATE: Final = "state-of-this-login"
_VERIFIER: Final = secrets.token_urlsafe(48)
_CHALLENGE: Final = base64.urlsafe_b64encode(hashlib.sha256(_VERIFIER.encode()).digest()).decode().rstrip("=")
WELCOME: Final = "You may close this page"
NATIVE: Final = {
    "redirect_uris": ["http://127.0.0.1/callback"],
    "token_endpoint_auth_method": "none",
    "grant_types": ["authorization_code", "refresh_token", DEVICE],
    "application_type": "native",
}


class Loopback:
    """A redirect address that records the redirects."""

    def __init__(self) -> None:
        self.came: list[dict[str, str]] = []
        came = self.came

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                split = urlsplit(self.path)
                if split.path == "/callback":
                    came.append({name: values[0] for name, values in parse_qs(split.query).items()})
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<title>x</title><h1>You may close this page</h1>")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's signature
                return

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.redirect_uri = f"http://127.0.0.1:{self._server.server_address[1]}/callback"

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Answer requests until the context ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield self
        self._server.shutdown()
        thread.join()
        self._server.server_close()


def discovered(mcp_url: str) -> dict[str, Any]:
    """Return the metadata of an MCP server's authorization server."""
    challenge = httpx.post(mcp_url, json={}, trust_env=False, verify=False, timeout=60).headers["WWW-Authenticate"]
    named = re.search('resource_metadata="([^"]*)"', challenge)
    where = mcp_url
    if named is not None:
        (where,) = httpx.get(named[1], trust_env=False, verify=False, timeout=60).json()["authorization_servers"]
    split = urlsplit(where)
    well_known = f"{split.scheme}://{split.netloc}/.well-known/oauth-authorization-server"
    metadata: dict[str, Any] = (
        httpx.get(well_known, trust_env=False, verify=False, timeout=60).raise_for_status().json()
    )
    return metadata


def register(metadata: dict[str, Any], loopback: Loopback) -> str:
    """Register a public native client."""
    registration = {**NATIVE, "redirect_uris": [loopback.redirect_uri]}
    answer = (
        httpx.post(metadata["registration_endpoint"], json=registration, trust_env=False, verify=False, timeout=60)
        .raise_for_status()
        .json()
    )
    return str(answer["client_id"])


def asking(metadata: dict[str, Any], client_id: str, loopback: Loopback, resource: str) -> str:
    """Return the authorization URL."""
    parameters = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": loopback.redirect_uri,
        "state": STATE,
        "code_challenge": _CHALLENGE,
        "code_challenge_method": "S256",
        "resource": resource,
    }
    if "offline_access" in metadata.get("scopes_supported", ()):
        parameters |= {"scope": "offline_access", "prompt": "consent"}
    return f"{metadata['authorization_endpoint']}?{urlencode(parameters)}"


def exchange(metadata: dict[str, Any], fields: dict[str, str], auth: httpx.BasicAuth | None = None) -> dict[str, Any]:
    """Send a token request."""
    tokens: dict[str, Any] = httpx.post(
        metadata["token_endpoint"], data=fields, auth=auth, trust_env=False, timeout=60
    ).json()
    return tokens


def code(loopback: Loopback, resource: str) -> dict[str, str]:
    """Return the token request for the last code."""
    return {
        "grant_type": "authorization_code",
        "code": loopback.came[-1]["code"],
        "redirect_uri": loopback.redirect_uri,
        "code_verifier": _VERIFIER,
        "resource": resource,
    }


def taken(mcp_url: str, token: str) -> bool:
    """Whether an MCP server accepts a token."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    return httpx.post(mcp_url, json={}, headers=headers, trust_env=False, verify=False, timeout=60).status_code != 401
