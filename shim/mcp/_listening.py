"""A subscription to the server's notifications (``subscriptions/listen``) that is opened again whenever it ends."""

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import mcp_types
from mcp import Client, MCPError
from mcp.client.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    Subscription,
    SubscriptionLost,
    ToolsListChanged,
)

from shim._backoff import StreamPauses
from shim.errors import ServerAway, ShimError
from shim.mcp._retry import RetryingCaller

__all__ = ["LastingSubscription"]

_SHORTEST_WAIT = 1.0
"""Seconds for the server to confirm a subscription, if calls do not wait for it that long."""
_ENDED = "the server ended the subscription"


class LastingSubscription(Subscription):
    """A subscription of the SDK that is opened again whenever it ends, while the program iterates.

    Events may be lost meanwhile. So after that the iteration yields one event of each kind that the server agreed to
    send: each means that something may have changed.

    Raises what a call raises: ``ServerAway`` after the client's ``patience``, ``ReauthorizationRequired`` and the other
    problems of the token, and the server's own ``MCPError``. To iterate again waits until the problem is over. The
    iteration ends when the client or the subscription is closed, or if the server agreed to send nothing and ends the
    subscription.
    """

    def __init__(
        self, caller: RetryingCaller, listen: Callable[[Client], AbstractAsyncContextManager[Subscription]]
    ) -> None:
        # The SDK's own __init__ is for one stream.
        self._caller = caller
        self._listen = listen
        self._pauses = StreamPauses()
        self._next_attempt = -math.inf
        """When to open the next subscription (the event loop's time)."""
        self._context: AbstractAsyncContextManager[Subscription] | None = None
        self._subscription: Subscription | None = None
        """The SDK's subscription; ``None`` while there is none."""
        self._missed: deque[ServerEvent] = deque()
        self._announced: set[ServerEvent] = set()
        """The events in the SDK's queue that come from here."""
        self._was_open = False
        self._is_closed = False
        self._waits_for_token = False
        self._opening = anyio.Lock()
        self.honored = mcp_types.SubscriptionFilter()
        """What the server agreed to send."""
        self.subscription_id: mcp_types.RequestId = ""
        """The id of the current subscription at the server."""

    async def open(self) -> None:
        """Open the subscription. Raises like a call."""
        self._pauses.attempt()
        await self._caller.call(self._open, None)
        if self._is_closed:
            await self._end()

    async def _open(self, client: Client) -> mcp_types.EmptyResult:
        await self._end()
        context = self._listen(client)
        try:
            with anyio.fail_after(max(self._caller.patience, _SHORTEST_WAIT)):
                subscription = await context.__aenter__()
        except SubscriptionLost:
            raise MCPError(mcp_types.CONNECTION_CLOSED, _ENDED) from None
        except TimeoutError:
            raise MCPError(mcp_types.REQUEST_TIMEOUT, "the server did not confirm the subscription in time") from None
        self._context = context
        agreed = _events(subscription.honored)
        if self._was_open and not agreed:  # a server that shuts down
            await self._end()
            raise MCPError(mcp_types.CONNECTION_CLOSED, _ENDED)
        missed = _events(self.honored) if self._was_open else []
        self._announced.clear()
        self._subscription, self._was_open = subscription, True
        self.honored, self.subscription_id = subscription.honored, subscription.subscription_id
        self._pauses.opened()
        # The SDK's own queue joins equal events, and removes what they concern from the cache of the client.
        route = getattr(subscription, "_route", None)
        for event in missed:
            if route is not None and event in agreed:
                self._announced.add(event)
                route.deliver(event)
            else:
                self._missed.append(event)
        return mcp_types.EmptyResult()

    async def aclose(self) -> None:
        """End the subscription, and the iterations over it."""
        self._is_closed = True
        await self._end()
        self._caller.supervisor.status.stream_changed(self, None)

    async def _end(self) -> None:
        context, self._context, self._subscription = self._context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)

    async def __anext__(self) -> ServerEvent:
        while not self._is_closed:
            if (subscription := self._subscription) is None:
                async with self._opening:
                    if self._subscription is None and not self._is_closed:
                        await self._open_again()
                continue
            if self._missed:
                return self._missed.popleft()
            try:
                event = await anext(subscription)
            except StopAsyncIteration:
                if not _events(self.honored):
                    raise
                reason = _ENDED
            except SubscriptionLost as error:
                cause = error.__cause__
                reason = cause.message if isinstance(cause, MCPError) else _ENDED
            else:
                if event in self._announced:
                    self._announced.remove(event)  # it does not show that the stream works
                else:
                    self._pauses.worked()
                return event
            if self._subscription is subscription:
                await self._end()
                self._next_attempt = anyio.current_time() + self._pauses.next()
                self._caller.supervisor.status.stream_changed(self, reason)
        raise StopAsyncIteration

    async def _open_again(self) -> None:
        supervisor = self._caller.supervisor
        try:
            if self._waits_for_token:
                await supervisor.wait_for_usable_token()
            await supervisor.sleep(self._next_attempt - anyio.current_time())
            await self.open()
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None
        except (ShimError, MCPError) as problem:
            self._next_attempt = anyio.current_time() + self._pauses.next()
            self._waits_for_token = isinstance(problem, ShimError) and not isinstance(problem, ServerAway)
            raise
        self._waits_for_token = False
        supervisor.status.stream_changed(self, None)


def _events(honored: mcp_types.SubscriptionFilter) -> list[ServerEvent]:
    """Return one event of each kind in ``honored``."""
    events: list[ServerEvent] = []
    if honored.tools_list_changed:
        events.append(ToolsListChanged())
    if honored.prompts_list_changed:
        events.append(PromptsListChanged())
    if honored.resources_list_changed:
        events.append(ResourcesListChanged())
    return [*events, *map(ResourceUpdated, honored.resource_subscriptions or ())]
