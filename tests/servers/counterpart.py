"""What the MCP servers of three libraries have in common: tokens, executions, and notifications to every session.

Each is started as ``PROGRAM PORT DIRECTORY``, listens on 127.0.0.1, prints one line of JSON when it is ready, and exits
when its stdin closes. In ``DIRECTORY``, which outlives the process:

- ``tokens.json`` has the access tokens that it accepts, with their scopes; the scope ``use`` is required
- ``version`` has the number that the tool ``version`` returns
- ``executed`` gets a line for each executed call

Its tools: ``add`` and ``version`` only read, ``write(what)``, ``slow(seconds)``, ``ask`` (a question to the person), and
``notify``. ``POST /test/notify`` does what ``notify`` does: it tells every session that the tools have changed, and the
subscribers of the resource ``stage://news`` that it was updated.
"""

import json
import os
from pathlib import Path
from typing import Any

from mcp.server.auth.provider import AccessToken
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["NEWS", "Control"]

NEWS = "stage://news"


class Control:
    """The directory of the server, and its sessions."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._sessions: dict[object, Any] = {}
        self._subscribers: set[object] = set()

    # --- what the directory says ----------------------------------------------------------------------------------

    def accepted(self, token: str) -> AccessToken | None:
        """Return the data of a token; ``None`` if it is not accepted."""
        scopes = json.loads((self._directory / "tokens.json").read_bytes()).get(token)
        return None if scopes is None else AccessToken(token=token, client_id="agent", scopes=scopes, subject="user")

    def version(self) -> int:
        """Return the number in the directory."""
        return int((self._directory / "version").read_text())

    def executed(self, what: str) -> None:
        """Record an execution, even if the process is killed at once."""
        descriptor = os.open(self._directory / "executed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{what}\n".encode())
        os.close(descriptor)

    # --- notifications --------------------------------------------------------------------------------------------

    async def meet(self, ctx: Any, call_next: Any) -> Any:
        """Remember the session of a request: a middleware of the SDK."""
        connection = ctx.session._connection
        if connection.has_standalone_channel and connection not in self._sessions:
            self._sessions[connection] = ctx.session
            connection.exit_stack.callback(self._sessions.pop, connection, None)
        if ctx.method in ("resources/subscribe", "resources/unsubscribe"):
            subscribed = ctx.method == "resources/subscribe"
            (self._subscribers.add if subscribed else self._subscribers.discard)(connection)
        return await call_next(ctx)

    async def notify(self) -> None:
        """Notify every session of the older protocol. Without a stream of notifications, it is lost."""
        for connection, session in list(self._sessions.items()):
            await session.send_tool_list_changed()
            if connection in self._subscribers:
                await session.send_resource_updated(NEWS)

    def with_test_route(self, app: ASGIApp, notify: Any) -> ASGIApp:
        """Return ``app`` with the route of the tests."""

        async def routed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/test/notify":
                await notify()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
            else:
                await app(scope, receive, send)

        return routed
