"""An MCP client whose session survives rotations and restarts."""

import math
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import mcp_types
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client import CacheMode
from mcp.client.subscriptions import Subscription
from mcp.shared.dispatcher import ProgressFnT

from shim._flow import DEFAULT_WAIT
from shim._source import FileTokenSource
from shim.mcp._client_events import ClientEvent
from shim.mcp._endpoint import Endpoint, endpoint
from shim.mcp._options import Options
from shim.mcp._retry import RetryingCaller
from shim.mcp._supervisor import State, Supervisor

__all__ = ["ReconnectingClient"]

_FIRST_ATTEMPT_TIMEOUT = 10.0
_PATIENCE = 60.0


class ReconnectingClient:
    """An ``mcp.Client`` that rebuilds its session by itself.

    ::

        async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
            result = await client.call_tool("search", {"query": "refresher"})

    ``server``: the URL of a streamable HTTP server, or ``StdioServerParameters`` with ``token_variable``, the
    environment variable in which the process expects the token. ``source``: the name of a grant, or a token source.
    ``patience``: seconds for which a call waits for a server that does not answer. ``wait``: seconds for which the
    requests of a rejected token wait for a newer one. ``is_auth_failure``: tells whether a successful-looking result is
    really a token error; if no other token comes, the caller gets that result. ``reads``: tells whether the tool of
    that name changes nothing; by default its ``readOnlyHint`` does, once it was listed. ``headers`` and ``verify`` are
    for HTTP. All other options are those of ``mcp.Client``.

    Calls raise, besides the errors of ``mcp.Client``: ``ReauthorizationRequired``, ``Removed``, ``TokenRejected``,
    ``TokenUnavailable`` and ``TokenFileError`` if a new token is needed, ``ServerAway`` after ``patience``, and
    ``OutcomeUnknown`` if a call that may change something was sent and its answer was lost. Each has ``as_json()`` for
    a model.

    The client belongs to the event loop in which it is entered. Any task of that loop may call it, be cancelled in a
    call, and leave the client.
    """

    def __init__(
        self,
        server: str | StdioServerParameters,
        source: FileTokenSource | str,
        *,
        token_variable: str | None = None,
        patience: float = _PATIENCE,
        wait: float = DEFAULT_WAIT,
        is_auth_failure: Callable[[object], bool] | None = None,
        reads: Callable[[str], bool] | None = None,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not (patience >= 0 and wait >= 0):
            raise ValueError("patience and wait must be seconds, 0 or more")
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        target = endpoint(server, self.source, token_variable, wait=wait, headers=headers or {}, verify=verify)
        Client("http://127.0.0.1/", **options)  # so that a wrong option is an error here, and not in a task
        self._supervisor = Supervisor(target, self.source, _with_target_id(target, options))
        self._caller = RetryingCaller(
            self._supervisor, self.source, patience=patience, wait=wait, is_auth_failure=is_auth_failure
        )
        self._reads = reads
        self._read_only_tools: set[str] = set()

    async def __aenter__(self) -> Self:
        """Start to connect, and return when there is a session or the first attempt has failed."""
        self._supervisor.start()
        try:
            await self._supervisor.wait_for_first_attempt(anyio.current_time() + _FIRST_ATTEMPT_TIMEOUT)
        except BaseException:
            await self._leave()  # __aexit__ is not called
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session, within seconds. Any task may do it."""
        await self._leave()

    async def _leave(self) -> None:
        try:
            await self._supervisor.close()
        finally:
            # Also when cancelled: a server process must not outlive its client. This takes seconds at most.
            with anyio.CancelScope(shield=True):
                await self._supervisor.wait_until_ended()

    async def aclose(self) -> None:
        """Close the client, from any task. Waiting and running calls end with an error."""
        await self._supervisor.close()

    @property
    def state(self) -> State:
        """The state of the session."""
        return self._supervisor.state

    def events(self) -> AsyncIterator[ClientEvent]:
        """Return an iterator over the events from now on. It ends when the client is closed."""
        return self._supervisor.events.subscribe()

    # What the server reports about itself in the current session.

    @property
    def session(self) -> ClientSession:
        """The current session, for what only a session can do. Another one may replace it at any time."""
        return self._client.session

    @property
    def protocol_version(self) -> str:
        """The negotiated protocol version."""
        return self._client.protocol_version

    @property
    def server_info(self) -> mcp_types.Implementation | None:
        """The name and version of the server, if it reports them."""
        return self._client.server_info

    @property
    def server_capabilities(self) -> mcp_types.ServerCapabilities:
        """The capabilities of the server."""
        return self._client.server_capabilities

    @property
    def instructions(self) -> str | None:
        """The instructions of the server, if there are any."""
        return self._client.instructions

    @property
    def _client(self) -> Client:
        return self._supervisor.client()

    # Calls that only read.

    async def list_tools(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListToolsResult:
        """As ``mcp.Client.list_tools``."""
        listed = await self._caller.call(
            "tools/list",
            lambda client: client.list_tools(cursor=cursor, meta=meta, cache_mode=cache_mode),
            read_only=True,
        )
        for tool in listed.tools:
            if tool.annotations is not None and tool.annotations.read_only_hint:
                self._read_only_tools.add(tool.name)
            else:
                self._read_only_tools.discard(tool.name)
        return listed

    async def list_resources(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListResourcesResult:
        """As ``mcp.Client.list_resources``."""
        return await self._caller.call(
            "resources/list",
            lambda client: client.list_resources(cursor=cursor, meta=meta, cache_mode=cache_mode),
            read_only=True,
        )

    async def list_resource_templates(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListResourceTemplatesResult:
        """As ``mcp.Client.list_resource_templates``."""
        return await self._caller.call(
            "resources/templates/list",
            lambda client: client.list_resource_templates(cursor=cursor, meta=meta, cache_mode=cache_mode),
            read_only=True,
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
        return await self._caller.call(
            f"resources/read {uri}",
            lambda client: client.read_resource(
                uri, input_responses=input_responses, request_state=request_state, meta=meta, cache_mode=cache_mode
            ),
            read_only=True,
        )

    async def list_prompts(
        self,
        *,
        cursor: str | None = None,
        meta: mcp_types.RequestParamsMeta | None = None,
        cache_mode: CacheMode = "use",
    ) -> mcp_types.ListPromptsResult:
        """As ``mcp.Client.list_prompts``."""
        return await self._caller.call(
            "prompts/list",
            lambda client: client.list_prompts(cursor=cursor, meta=meta, cache_mode=cache_mode),
            read_only=True,
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
        return await self._caller.call(
            f"prompts/get {name}",
            lambda client: client.get_prompt(
                name, arguments, input_responses=input_responses, request_state=request_state, meta=meta
            ),
            read_only=True,
        )

    async def complete(
        self,
        ref: mcp_types.ResourceTemplateReference | mcp_types.PromptReference,
        argument: dict[str, str],
        context_arguments: dict[str, str] | None = None,
    ) -> mcp_types.CompleteResult:
        """As ``mcp.Client.complete``."""
        return await self._caller.call(
            "completion/complete", lambda client: client.complete(ref, argument, context_arguments), read_only=True
        )

    async def send_ping(self, *, meta: mcp_types.RequestParamsMeta | None = None) -> mcp_types.EmptyResult:
        """As ``mcp.Client.send_ping``."""
        return await self._caller.call("ping", lambda client: client.send_ping(meta=meta), read_only=True)

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
        """As ``mcp.Client.call_tool``; the tool is executed at most once, unless it changes nothing."""
        return await self._caller.call(
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
            read_only=name in self._read_only_tools if self._reads is None else self._reads(name),
        )

    async def set_logging_level(
        self, level: mcp_types.LoggingLevel, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.set_logging_level``; the next session does not know of it."""
        return await self._caller.call(
            "logging/setLevel", lambda client: client.set_logging_level(level, meta=meta), read_only=True
        )

    async def subscribe_resource(
        self, uri: str, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.subscribe_resource``; the next session does not have the subscription."""
        return await self._caller.call(
            "resources/subscribe", lambda client: client.subscribe_resource(uri, meta=meta), read_only=True
        )

    async def unsubscribe_resource(
        self, uri: str, *, meta: mcp_types.RequestParamsMeta | None = None
    ) -> mcp_types.EmptyResult:
        """As ``mcp.Client.unsubscribe_resource``."""
        return await self._caller.call(
            "resources/unsubscribe", lambda client: client.unsubscribe_resource(uri, meta=meta), read_only=True
        )

    async def send_progress_notification(
        self, progress_token: str | int, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """As ``mcp.Client.send_progress_notification``, in the current session."""
        await self._client.send_progress_notification(progress_token, progress, total, message)

    async def send_roots_list_changed(self) -> None:
        """As ``mcp.Client.send_roots_list_changed``, in the current session."""
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
        """As ``mcp.Client.listen``. It ends with its session, and the caller starts it again."""
        connection = await self._supervisor.connection(0, anyio.current_time() + math.inf)
        # Without "in use": an endless call would keep a server process from being replaced.
        async with connection.ready_client().listen(
            tools_list_changed=tools_list_changed,
            prompts_list_changed=prompts_list_changed,
            resources_list_changed=resources_list_changed,
            resource_subscriptions=resource_subscriptions,
        ) as subscription:
            yield subscription


def _with_target_id(target: Endpoint, options: Options) -> Options:
    """Give a shared cache the identity of the server: the SDK knows none for this transport."""
    cache = options.get("cache")
    if cache is None or cache.target_id is not None:
        return options
    return Options(**{**options, "cache": replace(cache, target_id=target.identity)})
