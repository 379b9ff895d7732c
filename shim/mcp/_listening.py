"""A subscription to the server's notifications (``subscriptions/listen``) that comes back by itself."""

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

from shim.errors import ServerAway, ShimError
from shim.mcp._backoff import StreamPauses
from shim.mcp._retry import RetryingCaller

__all__ = ["LastingSubscription"]


class LastingSubscription(Subscription):
    """A subscription of the SDK that is opened again whenever it ends.

    Events may be lost meanwhile. So after that the iteration yields one event of each kind that the server agreed to
    send: each means that something may have changed.

    Raises what a call raises: ``ServerAway`` after the client's ``patience``, ``ReauthorizationRequired`` and the other
    problems of the token, and the server's own ``MCPError``. To iterate again waits until the problem is over. The
    iteration ends when the client is closed, or if the server agreed to send nothing and ends the subscription.
    """

    def __init__(
        self, caller: RetryingCaller, listen: Callable[[Client], AbstractAsyncContextManager[Subscription]]
    ) -> None:  # without that of the SDK's class, which has one stream only
        self._caller = caller
        self._listen = listen
        self._pauses = StreamPauses()
        self._subscription: Subscription | None = None
        """The SDK's subscription; ``None`` while there is none."""
        self._context: AbstractAsyncContextManager[Subscription] | None = None
        self._missed: deque[ServerEvent] = deque()
        self._interrupted = False
        """Whether the next subscription follows an earlier one."""
        self._waits_for_token = False
        self._opening = anyio.Lock()
        self.honored = mcp_types.SubscriptionFilter()
        """What the server agreed to send."""
        self.subscription_id: mcp_types.RequestId = ""
        """The id of the current subscription at the server."""

    async def open(self) -> None:
        """Open the subscription. Raises like a call."""
        self._pauses.opened()
        await self._caller.call(self._open, None)

    async def _open(self, client: Client) -> mcp_types.EmptyResult:
        await self._end()
        context = self._listen(client)
        try:
            subscription = await context.__aenter__()
        except SubscriptionLost:
            raise MCPError(mcp_types.CONNECTION_CLOSED, "the server ended the subscription") from None
        self._context, self._subscription = context, subscription
        self.honored, self.subscription_id = subscription.honored, subscription.subscription_id
        if self._interrupted:
            self._missed.extend(_events(self.honored))
        self._interrupted = True
        return mcp_types.EmptyResult()

    async def aclose(self) -> None:
        """End the subscription."""
        await self._end()
        self._caller.supervisor.status.stream_changed(self, None)

    async def _end(self) -> None:
        context, self._context, self._subscription = self._context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)

    async def __anext__(self) -> ServerEvent:
        while not self._missed:
            if (subscription := self._subscription) is None:
                async with self._opening:
                    if self._subscription is None:
                        await self._open_again()
                continue
            try:
                event = await anext(subscription)
            except StopAsyncIteration:
                if not _events(self.honored):
                    raise
                reason = "the server ended the subscription"
            except SubscriptionLost as error:
                cause = error.__cause__
                reason = cause.message if isinstance(cause, MCPError) else "the subscription ended"
            else:
                self._pauses.worked()
                return event
            if self._subscription is subscription:
                await self._end()
                self._caller.supervisor.status.stream_changed(self, reason)
        return self._missed.popleft()

    async def _open_again(self) -> None:
        supervisor = self._caller.supervisor
        try:
            if self._waits_for_token:
                await supervisor.wait_for_usable_token()
            await supervisor.sleep(self._pauses.next())
            await self.open()
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None
        except ShimError as problem:
            self._waits_for_token = not isinstance(problem, ServerAway)
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
