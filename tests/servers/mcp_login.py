"""An MCP server that is its own authorization server, for logins (both of the SDK).

    python -m tests.servers.mcp_login '{"consent": "none", "discovery": "resource"}'

- ``consent``: ``none`` (approves at once), ``page`` (a page with a button) or ``auto`` (the page presses its button).
- ``discovery``: ``resource`` (protected resource metadata), ``server`` (only the metadata of the authorization server,
  as in 2025-03) or ``nothing`` (no metadata; the default addresses of 2025-03).
- ``registration``, ``refresh_tokens``: whether the server supports them.
- ``life``: the seconds that an access token lives.
- ``names_issuer``: whether each redirect contains ``iss`` (RFC 9207).

Listens on a free port of 127.0.0.1, prints one line of JSON when it is ready, and exits when its stdin closes.
``GET /test/log`` returns the number of requests by kind, ``POST /test/forget`` forgets the clients.
"""

import json
import secrets
import socket
import sys
import time
from collections import Counter
from typing import Any

import anyio
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.servers.serving import serve

_AUTO = "<script>document.querySelector('button').click()</script>"
_PAGE = """<!DOCTYPE html><title>Consent</title><h1>Consent</h1>
<form method="post"><input type="hidden" name="request" value="{request}">
<button name="answer" value="allow">Allow</button><button name="answer" value="deny">Deny</button></form>{script}"""


class Open(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Registers every client. A refresh token works once; its reuse ends the login of the client."""

    def __init__(self, consent: str, *, refresh_tokens: bool, life: int, issuer: str | None = None) -> None:
        self._issuer = issuer
        self._consent = consent
        self._refresh_tokens = refresh_tokens
        self._life = life
        self._asked: dict[str, tuple[str, AuthorizationParams]] = {}
        self._codes: dict[str, AuthorizationCode] = {}
        self._refresh: dict[str, RefreshToken] = {}
        self._access: dict[str, AccessToken] = {}
        self._spent: dict[str, str] = {}
        self._clients: dict[str, OAuthClientInformationFull] = {}
        self._seen: Counter[str] = Counter()

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self._clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self._seen["registered"] += 1
        self._clients[client_info.client_id or ""] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        self._seen["authorized"] += 1
        request = secrets.token_urlsafe(16)
        self._asked[request] = (client.client_id or "", params)
        return self._answer(request, allowed=True) if self._consent == "none" else f"/consent?request={request}"

    async def log(self, request: Request) -> Response:
        """Return the number of requests by kind."""
        return JSONResponse(self._seen)

    async def forget(self, request: Request) -> Response:
        """Forget the registered clients."""
        self._clients.clear()
        return JSONResponse({})

    async def consent(self, request: Request) -> Response:
        """Show the page, or handle the pressed button."""
        if request.method == "GET":
            script = _AUTO if self._consent == "auto" else ""
            return HTMLResponse(_PAGE.format(request=request.query_params["request"], script=script))
        form = await request.form()
        return RedirectResponse(self._answer(str(form["request"]), allowed=form.get("answer") == "allow"), 303)

    def _answer(self, request: str, *, allowed: bool) -> str:
        client_id, params = self._asked.pop(request)
        where = str(params.redirect_uri)
        if not allowed:
            return construct_redirect_uri(where, error="access_denied", state=params.state)
        code = AuthorizationCode(
            code=secrets.token_urlsafe(32),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client_id,
            subject="a person",
            **params.model_dump(exclude={"state", "scopes"}),
        )
        self._codes[code.code] = code
        return construct_redirect_uri(where, code=code.code, state=params.state, iss=self._issuer)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self._codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        self._seen["exchanged"] += 1
        del self._codes[authorization_code.code]
        return self._tokens(authorization_code, authorization_code.scopes)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        if refresh_token in self._spent:
            self._seen["reused"] += 1
            self._end(self._spent[refresh_token])
        return self._refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        self._seen["refreshed"] += 1
        self._spent[refresh_token.token] = refresh_token.client_id
        del self._refresh[refresh_token.token]
        return self._tokens(refresh_token, scopes)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self._access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self._seen["revoked"] += 1
        self._end(token.client_id)

    def _end(self, client_id: str) -> None:
        self._refresh = {token: known for token, known in self._refresh.items() if known.client_id != client_id}
        self._access = {token: known for token, known in self._access.items() if known.client_id != client_id}

    def _tokens(self, source: AuthorizationCode | RefreshToken, scopes: list[str]) -> OAuthToken:
        whose: dict[str, Any] = source.model_dump(include={"client_id", "resource", "subject"}) | {"scopes": scopes}
        access = AccessToken(token=secrets.token_urlsafe(32), expires_at=int(time.time()) + self._life, **whose)
        refresh = RefreshToken(token=secrets.token_urlsafe(32), **whose)
        self._access[access.token] = access
        if self._refresh_tokens:
            self._refresh[refresh.token] = refresh
        return OAuthToken(
            access_token=access.token,
            expires_in=self._life,
            scope=" ".join(scopes) or None,
            refresh_token=refresh.token if self._refresh_tokens else None,
        )


class Undiscovered:
    """Hides all metadata."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/.well-known/"):
            await Response(status_code=404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def main(
    *,
    consent: str = "none",
    discovery: str = "resource",
    registration: bool = True,
    refresh_tokens: bool = True,
    life: int = 3600,
    names_issuer: bool = False,
) -> None:
    """Serve until stdin ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        provider = Open(
            consent, refresh_tokens=refresh_tokens, life=life, issuer=f"{issuer}/" if names_issuer else None
        )
        mcp = MCPServer(
            "login",
            log_level="WARNING",
            auth_server_provider=provider,
            auth=AuthSettings(
                issuer_url=AnyHttpUrl(issuer),
                resource_server_url=AnyHttpUrl(f"{issuer}/mcp") if discovery == "resource" else None,
                validate_token_resource=discovery == "resource",
                client_registration_options=ClientRegistrationOptions(enabled=registration),
                revocation_options=RevocationOptions(enabled=True),
            ),
        )
        mcp.custom_route("/consent", ["GET", "POST"])(provider.consent)
        mcp.custom_route("/test/log", ["GET"])(provider.log)
        mcp.custom_route("/test/forget", ["POST"])(provider.forget)

        @mcp.tool()
        def add(a: int, b: int) -> int:
            return a + b

        app = mcp.streamable_http_app()
        await serve(Undiscovered(app) if discovery == "nothing" else app, listener, f"{issuer}/mcp")


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    anyio.run(lambda: main(**options))
