"""An MCP client that stays up."""

import math
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import httpx2
import mcp_types
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client import CacheMode
from mcp.client.subscriptions import Subscription
from mcp.shared.dispatcher import ProgressFnT

from shim._flow import WAIT
from shim._source import FileTokenSource
from shim.httpx2 import BearerAuth
from shim.mcp._client_events import Happening
from shim.mcp._endpoint import Child, HTTPServer, Target
from shim.mcp._options import Options
from shim.mcp._retry import Calls
from shim.mcp._supervisor import Keeper, State

__all__ = ["ReconnectingClient"]

_TO_CONNECT_FIRST = 10.0
_PATIENCE = 60.0


class ReconnectingClient:
    """What ``mcp.Client`` is, with a session that comes back by itself.

    ::

        async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
            result = await client.call_tool("search", {"query": "refresher"})

    ``server``: the address of a streamable HTTP server, or ``StdioServerParameters`` with ``token_variable``, the
    environment variable in which its process wants the token. ``source``: the name of a grant, or a source.
    ``patience``: seconds for which a call waits for a server that is away. ``wait``: seconds for which the requests
    of a refused token wait for the next one. ``is_auth_failure``: says of a result whether it is an error about the
    token in disguise; where no other token comes, its caller gets it. ``reads``: says of a tool's name whether calling
    it changes nothing; else its ``readOnlyHint`` tells, once it was listed. ``headers`` and ``verify`` go to HTTP. All
    other options are those of ``mcp.Client``.

    Calls raise, besides what ``mcp.Client`` raises: ``ReauthorizationRequired``, ``Removed``, ``TokenRejected``,
    ``TokenUnavailable`` and ``TokenFileError`` where a new token is needed, ``ServerAway`` after ``patience``, and
    ``OutcomeUnknown`` where a call that may change something was sent and its answer lost. Each has ``as_json()`` for a
    model.

    It belongs to the event loop in which it is entered; any task of that loop may call it, at once, be cancelled, and
    leave it.
    """

    def __init__(
        self,
        server: str | StdioServerParameters,
        source: FileTokenSource | str,
        *,
        token_variable: str | None = None,
        patience: float = _PATIENCE,
        wait: float = WAIT,
        is_auth_failure: Callable[[object], bool] | None = None,
        reads: Callable[[str], bool] | None = None,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not (patience >= 0 and wait >= 0):
            raise ValueError("patience and wait must be seconds, 0 or more")
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        target = _target(server, self.source, token_variable, wait, headers or {}, verify)
        Client("http://127.0.0.1/", **options)  # so that a wrong option is told here, and not by a task
        self._keeper = Keeper(target, self.source, _with_target_id(target, options))
        self._calls = Calls(self._keeper, self.source, patience=patience, wait=wait, is_auth_failure=is_auth_failure)
        self._reads = reads
        self._known_to_read: set[str] = set()

    async def __aenter__(self) -> Self:
        """Begin to connect; return when there is a session, or the first attempt has failed: calls then say why."""
        self._keeper.begin()
        try:
            await self._keeper.first(anyio.current_time() + _TO_CONNECT_FIRST)
        except BaseException:
            await self._leave()  # cancelled: nobody will call __aexit__
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take leave of the server, if it is quick about it; any task may do it."""
        await self._leave()

    async def _leave(self) -> None:
        try:
            await self._keeper.close()
        finally:
            # Also for one who is cancelled: a child process must not outlive its client. It takes seconds at most.
            with anyio.CancelScope(shield=True):
                await self._keeper.end()

    async def aclose(self) -> None:
        """Close, from any task: who waits for a session is told, and calls under way end."""
        await self._keeper.close()

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._keeper.state

    def events(self) -> AsyncIterator[Happening]:
        """Return what happens from now on, each with its reason; ends when the client is closed."""
        return self._keeper.happenings.listen()

    # What the server said of itself, in the session there is.

    @property
    def session(self) -> ClientSession:
        """The session there is, for what only it can do; it may be another one a moment later."""
        return self._client.session

    @property
    def protocol_version(self) -> str:
        """The negotiated protocol version."""
        return self._client.protocol_version

    @property
    def server_info(self) -> mcp_types.Implementation | None:
        """The server's name and version, if it tells."""
        return self._client.server_info

    @property
    def server_capabilities(self) -> mcp_types.ServerCapabilities:
        """What the server can do."""
        return self._client.server_capabilities

    @property
    def instructions(self) -> str | None:
        """The server's instructions, if it gives any."""
        return self._client.instructions

    @property
    def _client(self) -> Client:
        return self._keeper.client()

    # Calls that only read.

    async def list_tools(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListToolsResult:
        """As ``mcp.Client.list_tools``."""
        listed = await self._calls.make(
            "tools/list",
            lambda client: client.list_tools(cursor=cursor, meta=meta, cache_mode=cache_mode),
            reads=True,
        )
        for tool in listed.tools:
            if tool.annotations is not None and tool.annotations.read_only_hint:
                self._known_to_read.add(tool.name)
            else:
                self._known_to_read.discard(tool.name)
        return listed

    async def list_resources(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListResourcesResult:
        """As ``mcp.Client.list_resources``."""
        return await self._calls.make(
            "resources/list",
            lambda client: client.list_resources(cursor=cursor, meta=meta, cache_mode=cache_mode),
            reads=True,
        )

    async def list_resource_templates(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListResourceTemplatesResult:
        """As ``mcp.Client.list_resource_templates``."""
        return await self._calls.make(
            "resources/templates/list",
            lambda client: client.list_resource_templates(cursor=cursor, meta=meta, cache_mode=cache_mode),
            reads=True,
        )

    async def read_resource(
        self,
        uri: str,
        *,
        input_responses: mcp_types.InputResponses | None = None,
        request_state: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ReadResourceResult:
        """As ``mcp.Client.read_resource``."""
        return await self._calls.make(
            f"resources/read {uri}",
            lambda client: client.read_resource(
                uri, input_responses=input_responses, request_state=request_state, meta=meta, cache_mode=cache_mode
            ),
            reads=True,
        )

    async def list_prompts(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListPromptsResult:
        """As ``mcp.Client.list_prompts``."""
        return await self._calls.make(
            "prompts/list",
            lambda client: client.list_prompts(cursor=cursor, meta=meta, cache_mode=cache_mode),
            reads=True,
        )

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str] | None = None,
        *,
        input_responses: mcp_types.InputResponses | None = None,
        request_state: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
    ) -> mcp_types.GetPromptResult:
        """As ``mcp.Client.get_prompt``."""
        return await self._calls.make(
            f"prompts/get {name}",
            lambda client: client.get_prompt(
                name, arguments, input_responses=input_responses, request_state=request_state, meta=meta
            ),
            reads=True,
        )

    async def complete(
        self,
        ref: mcp_types.ResourceTemplateReference | mcp_types.PromptReference,
        argument: dict[str, str],
        context_arguments: dict[str, str] | None = None,
    ) -> mcp_types.CompleteResult:
        """As ``mcp.Client.complete``."""
        return await self._calls.make(
            "completion/complete", lambda client: client.complete(ref, argument, context_arguments), reads=True
        )

    async def send_ping(self, *, meta: mcp_types.RequestParamsMeta | None = None) -> mcp_types.EmptyResult:
        """As ``mcp.Client.send_ping``."""
        return await self._calls.make("ping", lambda client: client.send_ping(meta=meta), reads=True)

    # Calls that may change something.

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        read_timeout_seconds: float | None = None,
        progress_callback: ProgressFnT | None = None,
        *,
        input_responses: mcp_types.InputResponses | None = None,
        request_state: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
    ) -> mcp_types.CallToolResult:
        """As ``mcp.Client.call_tool``; executed once at most, except where the tool only reads."""
        return await self._calls.make(
            f"tools/call {name}",
            lambda client: client.call_tool(
                name,
                arguments,
                read_timeout_seconds,
                progress_callback,
                input_responses=input_responses,
                request_state=request_state,
                meta=meta,
            ),
            reads=name in self._known_to_read if self._reads is None else self._reads(name),
        )

    async def set_logging_level(
        self, level: mcp_types.LoggingLevel, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.set_logging_level``; the next session does not know of it."""
        return await self._calls.make(
            "logging/setLevel", lambda client: client.set_logging_level(level, meta=meta), reads=True
        )

    async def subscribe_resource(
        self, uri: str, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.subscribe_resource``; the next session does not know of it."""
        return await self._calls.make(
            "resources/subscribe", lambda client: client.subscribe_resource(uri, meta=meta), reads=True
        )

    async def unsubscribe_resource(
        self, uri: str, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.unsubscribe_resource``."""
        return await self._calls.make(
            "resources/unsubscribe", lambda client: client.unsubscribe_resource(uri, meta=meta), reads=True
        )

    async def send_progress_notification(
        self, progress_token: str | int, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """As ``mcp.Client.send_progress_notification``; to the session there is."""
        await self._client.send_progress_notification(progress_token, progress, total, message)

    async def send_roots_list_changed(self) -> None:
        """As ``mcp.Client.send_roots_list_changed``; to the session there is."""
        await self._client.send_roots_list_changed()

    @asynccontextmanager
    async def listen(
        self,
        *,
        tools_list_changed: bool = False,
        prompts_list_changed: bool = False,
        resources_list_changed: bool = False,
        resource_subscriptions: Sequence[str] = (),
    ) -> AsyncIterator[Subscription]:
        """As ``mcp.Client.listen``: ends with its session, and is then begun anew by the caller."""
        link = await self._keeper.link(0, anyio.current_time() + math.inf)
        # Not in use by it: what has no end would keep a child from its successor.
        async with link.there().listen(
            tools_list_changed=tools_list_changed,
            prompts_list_changed=prompts_list_changed,
            resources_list_changed=resources_list_changed,
            resource_subscriptions=resource_subscriptions,
        ) as subscription:
            yield subscription


def _target(
    server: str | StdioServerParameters,
    source: FileTokenSource,
    token_variable: str | None,
    wait: float,
    headers: Mapping[str, str],
    verify: ssl.SSLContext | bool,
) -> Target:
    if isinstance(server, str):
        if token_variable is not None:
            raise ValueError("token_variable is for a process; a server that is reached by HTTP gets a header")
        if verify is True and server.startswith("https:"):
            verify = httpx2.create_ssl_context()  # once for all sessions: it takes 34 ms
        # As the SDK's own client: an answer may take five minutes.
        timeout = httpx2.Timeout(30.0, read=300.0, pool=None)
        return HTTPServer(server, BearerAuth(source, wait=wait), headers, verify, timeout)
    if token_variable is None:
        raise ValueError("token_variable must name the environment variable in which the process wants its token")
    return Child(server, token_variable)


def _with_target_id(target: Target, options: Options) -> Options:
    """Give a shared cache the name of the server: a session on a transport of ours would have none of its own."""
    cache = options.get("cache")
    if cache is None or cache.target_id is not None:
        return options
    return Options(**{**options, "cache": replace(cache, target_id=target.identity)})
