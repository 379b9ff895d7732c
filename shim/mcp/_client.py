"""``ReconnectingClient``: an MCP client that reconnects by itself."""

import functools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Self, TypedDict, TypeVar, Unpack

import anyio
import mcp_types
from mcp import Client, ClientSession, MCPError, StdioServerParameters
from mcp.client import CacheConfig, ClientExtension
from mcp.client.client import ConnectMode
from mcp.client.session import ElicitationFnT, ListRootsFnT, LoggingFnT, MessageHandlerFnT, SamplingFnT

from shim._bearer import DEFAULT_WAIT
from shim._source import FileTokenSource
from shim.httpx2 import BearerAuth
from shim.mcp._client_events import ClientEvent, Listener
from shim.mcp._connection import CURRENT_CALL
from shim.mcp._endpoint import Endpoint, HTTPEndpoint, ProcessEndpoint
from shim.mcp._failure import failure_kind
from shim.mcp._listening import LastingSubscription
from shim.mcp._retry import RetryingCaller
from shim.mcp._status import State
from shim.mcp._supervisor import Supervisor

__all__ = ["ReconnectingClient", "TokenSources"]

_ENTER_TIMEOUT = 10.0
_DEFAULT_PATIENCE = 60.0
_RESTORED_AT_ONCE = 10

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Options(TypedDict, total=False):
    """The options of ``mcp.Client``, which each session gets."""

    raise_exceptions: bool
    read_timeout_seconds: float | None
    sampling_callback: SamplingFnT | None
    sampling_capabilities: mcp_types.SamplingCapability | None
    list_roots_callback: ListRootsFnT | None
    logging_callback: LoggingFnT | None
    log_level: mcp_types.LoggingLevel | None
    message_handler: MessageHandlerFnT | None
    client_info: mcp_types.Implementation | None
    mode: ConnectMode
    prior_discover: mcp_types.DiscoverResult | None
    elicitation_callback: ElicitationFnT | None
    input_required_max_rounds: int
    extensions: Sequence[ClientExtension] | None
    cache: CacheConfig | None


def _forwarded(
    method: Callable[Concatenate[Client, _Parameters], Awaitable[_Result]],
    changing: Callable[..., str | None] = lambda *_args, **_kwargs: None,
    docstring: str | None = None,
    setting: Callable[..., object] = lambda *_args, **_kwargs: None,
    unset: Callable[..., object] = lambda *_args, **_kwargs: None,
) -> Callable[Concatenate["ReconnectingClient", _Parameters], Coroutine[Any, Any, _Result]]:
    """Return a method that calls ``method`` of ``mcp.Client``, and repeats the call if that is safe.

    ``changing`` returns the name of a call that may change something, else ``None``. ``docstring``: the default is that
    of ``method``. ``setting`` returns what the call sets in the session: a new session gets the last such call.
    ``unset`` returns what a new session does not get any more.
    """

    @functools.wraps(method)
    async def call(self: "ReconnectingClient", /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        def operation(client: Client) -> Awaitable[_Result]:
            return method(client, *args, **kwargs)

        self._settings.pop(unset(*args, **kwargs), None)  # even if the call fails
        result = await self._caller.call(operation, changing(self, *args, **kwargs))
        if (key := setting(*args, **kwargs)) is not None:
            self._settings[key] = operation
        if isinstance(result, mcp_types.ListToolsResult):
            for tool in result.tools:
                self._read_only_hints[tool.name] = bool(tool.annotations and tool.annotations.read_only_hint)
        return result

    call.__doc__ = docstring or method.__doc__
    return call


@functools.wraps(Client.send_ping)
async def _ping(client: Client, *, meta: mcp_types.RequestParamsMeta | None = None) -> mcp_types.EmptyResult:
    try:
        return await client.send_ping(meta=meta)
    except MCPError as error:
        call = CURRENT_CALL.get()
        if failure_kind(error) == "lost" and call is not None and call.executed:
            return mcp_types.EmptyResult()  # some servers answer 200 with an empty stream: they are there
        raise


class ReconnectingClient:
    """An ``mcp.Client`` whose session reconnects by itself.

    ::

        async with ReconnectingClient("https://mcp.example/mcp", "linear") as client:
            result = await client.call_tool("search", {"query": "refresher"})

    - ``server``: the URL of a streamable HTTP server, or ``StdioServerParameters`` with ``token_variable``, the
      environment variable in which the process expects its token.
    - ``source``: the name of a grant, or a ``FileTokenSource``.
    - ``patience``: seconds that a call waits for a server that is not available.
    - ``wait``: seconds that the requests of a rejected token wait for a newer one.
    - ``is_auth_failure``: a function that returns whether an answer of the server, a result or an ``MCPError``, is
      really an error about the token. If no other token comes, the caller gets that answer.
    - ``reads``: a function that returns whether a tool, given by its name, only reads. Default: the ``readOnlyHint``
      from the last ``list_tools``.
    - ``headers`` and ``verify`` are for HTTP. All other options are those of ``mcp.Client``.

    Calls raise the errors of ``mcp.Client``, and ``ReauthorizationRequired``, ``Removed``, ``TokenRejected``,
    ``TokenUnavailable`` or ``TokenFileError`` if a new token is needed, ``InsufficientScope`` if the token lacks a
    scope, ``ServerAway`` after ``patience``, and ``OutcomeUnknown`` if a call that may change something was sent and
    its response was lost. ``as_json()`` of each explains it to a model.

    After a reconnect, the client sets the logging level and subscribes to resources again.

    A client belongs to the event loop in which it was entered. All tasks of this loop may call it at the same time,
    cancel their calls, and leave it.
    """

    def __init__(
        self,
        server: str | StdioServerParameters,
        source: FileTokenSource | str,
        *,
        token_variable: str | None = None,
        patience: float = _DEFAULT_PATIENCE,
        wait: float = DEFAULT_WAIT,
        is_auth_failure: Callable[[object], bool] | None = None,
        reads: Callable[[str], bool] | None = None,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not (patience >= 0 and wait >= 0):
            raise ValueError("patience and wait must be numbers of seconds, 0 or more")
        self.source = FileTokenSource(source) if isinstance(source, str) else source
        target: Endpoint
        if isinstance(server, str):
            if token_variable is not None:
                raise ValueError("token_variable is for a stdio server; an HTTP server gets the token in a header")
            identity, target = server, HTTPEndpoint(server, BearerAuth(self.source, wait=wait), headers or {}, verify)
        elif token_variable is None:
            raise ValueError("token_variable must name the environment variable in which the process expects its token")
        else:
            identity, target = server.model_dump_json(), ProcessEndpoint(server, token_variable)
        Client("http://127.0.0.1/", **options)  # raises here, and not in a task, if an option is wrong
        cache = options.get("cache")
        if cache is not None and cache.target_id is None:
            # The SDK cannot name the server of a custom transport, and servers must not share cached responses.
            options["cache"] = replace(cache, target_id=identity)
        self._supervisor = Supervisor(
            target,
            self.source,
            options,
            self._restore,
            lambda *failed: self._caller.recover_handshake(*failed),
            lambda expired: self._caller.wait_for_another_token(expired),
            patience,
        )
        self._caller = RetryingCaller(self._supervisor, self.source, patience, wait, is_auth_failure)
        self._settings: dict[object, Callable[[Client], Awaitable[object]]] = {}
        """The calls that a new session gets, by what they set."""
        self._read_only_hints: dict[str, bool] = {}
        self._reads = (lambda name: self._read_only_hints.get(name, False)) if reads is None else reads

    async def __aenter__(self) -> Self:
        """Start to connect; return when connected, or when the first attempt has failed; then calls raise."""
        self._supervisor.start()
        try:
            await self._supervisor.wait_for_first_attempt(anyio.current_time() + _ENTER_TIMEOUT)
        except BaseException:
            await self.__aexit__()  # after a cancellation, Python does not call it
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """End the session at the server, and close. Any task may do this."""
        try:
            await self._supervisor.close()
        finally:
            # Even after a cancellation, which lasts a few seconds: a child process must not outlive its client.
            with anyio.CancelScope(shield=True):
                await self._supervisor.wait_until_ended()

    async def aclose(self) -> None:
        """Close, from any task: all waits and all calls under way end with an error."""
        await self._supervisor.close()

    @property
    def state(self) -> State:
        """The state of the client; the README of ``shim`` explains each."""
        return self._supervisor.status.state

    def events(self) -> AsyncIterator[ClientEvent]:
        """Return the events from now on, each with its reason. The iteration ends when the client is closed."""
        return Listener(self._supervisor.status.events)

    # What the server said in the current session.

    @property
    def session(self) -> ClientSession:
        """The current session of the SDK. It may be replaced at any time."""
        return self._supervisor.client().session

    @property
    def protocol_version(self) -> str:
        """The negotiated protocol version."""
        return self._supervisor.client().protocol_version

    @property
    def server_info(self) -> mcp_types.Implementation | None:
        """The name and version of the server, if the server gives them."""
        return self._supervisor.client().server_info

    @property
    def server_capabilities(self) -> mcp_types.ServerCapabilities:
        """The capabilities of the server."""
        return self._supervisor.client().server_capabilities

    @property
    def instructions(self) -> str | None:
        """The instructions of the server, if the server gives any."""
        return self._supervisor.client().instructions

    # Calls that change nothing.

    list_tools = _forwarded(Client.list_tools)
    list_resources = _forwarded(Client.list_resources)
    list_resource_templates = _forwarded(Client.list_resource_templates)
    read_resource = _forwarded(Client.read_resource)
    list_prompts = _forwarded(Client.list_prompts)
    get_prompt = _forwarded(Client.get_prompt)
    complete = _forwarded(Client.complete)
    send_ping = _forwarded(_ping)
    set_logging_level = _forwarded(Client.set_logging_level, setting=lambda *_args, **_kwargs: "logging level")
    subscribe_resource = _forwarded(Client.subscribe_resource, setting=lambda uri, **_kwargs: uri)
    unsubscribe_resource = _forwarded(Client.unsubscribe_resource, unset=lambda uri, **_kwargs: uri)

    def _changing_tool(self, name: str, *_args: object, **_kwargs: object) -> str | None:
        return None if self._reads(name) else f"tools/call {name}"

    call_tool = _forwarded(
        Client.call_tool,
        _changing_tool,
        "Call a tool, as ``mcp.Client.call_tool`` does. A tool that does not only read is executed at most once.",
    )

    async def _restore(self, client: Client) -> None:
        """Make the calls that set something in the session; a call that the server refuses is left out."""
        limiter = anyio.CapacityLimiter(_RESTORED_AT_ONCE)

        async def restore(operation: Callable[[Client], Awaitable[object]]) -> None:
            async with limiter:
                try:
                    await operation(client)
                except MCPError as error:
                    if failure_kind(error) not in (None, "insufficient_scope"):
                        raise

        async with anyio.create_task_group() as tasks:
            for operation in list(self._settings.values()):
                tasks.start_soon(restore, operation)

    # These send to the current session only.

    async def send_progress_notification(
        self, progress_token: str | int, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Send to the current session, as ``mcp.Client.send_progress_notification`` does."""
        await self._supervisor.client().send_progress_notification(progress_token, progress, total, message)

    async def send_roots_list_changed(self) -> None:
        """Send to the current session, as ``mcp.Client.send_roots_list_changed`` does."""
        await self._supervisor.client().send_roots_list_changed()

    @asynccontextmanager
    async def listen(
        self,
        *,
        tools_list_changed: bool = False,
        prompts_list_changed: bool = False,
        resources_list_changed: bool = False,
        resource_subscriptions: Sequence[str] = (),
    ) -> AsyncIterator[LastingSubscription]:
        """Listen, as ``mcp.Client.listen`` does; the subscription is opened again whenever it ends.

        ::

            async with client.listen(tools_list_changed=True) as subscription:
                async for event in subscription:
                    tools = await client.list_tools()

        After each interruption, the iteration yields an event of each kind, because some may have been lost. Entering
        and iterating raise like a call; iterate again to go on waiting. Raises
        ``mcp.client.subscriptions.ListenNotSupportedError`` if the server speaks an older protocol than 2026-07-28.
        """
        subscription = LastingSubscription(
            self._caller,
            lambda client: client.listen(
                tools_list_changed=tools_list_changed,
                prompts_list_changed=prompts_list_changed,
                resources_list_changed=resources_list_changed,
                resource_subscriptions=resource_subscriptions,
            ),
        )
        try:
            await subscription.open()
            yield subscription
        finally:
            await subscription.aclose()


class TokenSources:
    """The token sources of one process, made when first used; clients of the same name share one source.

    ``tokens_dir`` and ``demands_dir`` are those of ``FileTokenSource``. Raises ``ValueError`` for an invalid name.
    """

    def __init__(
        self,
        *,
        tokens_dir: "str | os.PathLike[str] | None" = None,
        demands_dir: "str | os.PathLike[str] | None" = None,
    ) -> None:
        self._new = functools.partial(FileTokenSource, tokens_dir=tokens_dir, demands_dir=demands_dir)
        self._sources: dict[str, FileTokenSource] = {}

    def __getitem__(self, name: str) -> FileTokenSource:
        return self._sources.get(name) or self._sources.setdefault(name, self._new(name))

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def drop(self, name: str) -> None:
        """Forget the source of a name that is not used any more; clients that have it keep it."""
        self._sources.pop(name, None)
