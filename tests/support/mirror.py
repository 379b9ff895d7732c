"""An agent that keeps a copy of what a server has, and fetches it again when it hears that something has changed."""

from collections import Counter
from typing import Any

import anyio
import mcp_types
from mcp import MCPError
from mcp.client.subscriptions import SubscriptionLost

from shim import ShimError
from shim.mcp import ReconnectingClient

__all__ = ["Mirror"]


class Mirror:
    """A copy of the version of a ``Counterpart``; give ``on_message`` to its client, and run it in a task.

    With ``listens``, it hears by ``listen``, else by the stream of notifications of the older protocol.

    It fetches the version only after a notification, and after a gap in the notifications that the client announces.
    """

    def __init__(self, *, listens: bool) -> None:
        self._listens = listens
        self.version = -1
        self.heard = 0
        """The number of notifications; with ``listen``, also those that announce a gap."""
        self.events: Counter[str] = Counter()
        """The events of the client."""
        self.errors: Counter[str] = Counter()
        """The errors of ``listen`` and of fetching."""
        self.is_fetching = False
        """Whether it has something to fetch."""
        self._stale = anyio.Event()

    async def on_message(self, message: object) -> None:
        """Take what the server sends on the stream of the older protocol."""
        if not self._listens and isinstance(message, mcp_types.ToolListChangedNotification):
            self._hear()

    async def run(self, client: ReconnectingClient) -> None:
        """Listen until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, client)
            if self._listens:
                tasks.start_soon(self._listen, client)
            tasks.start_soon(self._fetch, client)

    def _hear(self) -> None:
        self.heard += 1
        self._wants()

    def _wants(self) -> None:
        self.is_fetching = True
        self._stale.set()

    async def _watch(self, client: ReconnectingClient) -> None:
        async for what, _ in client.events():
            self.events[what] += 1
            if what == "connected" and not self._listens:
                self._wants()

    async def _listen(self, client: ReconnectingClient) -> None:
        while True:
            try:
                async with client.listen(tools_list_changed=True) as subscription:
                    self._wants()  # what came before the first subscription
                    while await self._next(subscription):
                        pass
            except (ShimError, MCPError, SubscriptionLost) as error:
                self._note(error)
                await anyio.sleep(0.1)

    async def _next(self, subscription: Any) -> bool:
        """Hear one notification; return whether there can be more."""
        try:
            if await anext(subscription, None) is None:
                return False
            self._hear()
        except ShimError as error:  # "iterating again goes on"
            self._note(error)
            await anyio.sleep(0.1)
        return True

    async def _fetch(self, client: ReconnectingClient) -> None:
        self._wants()
        while True:
            await self._stale.wait()
            self._stale = anyio.Event()
            try:
                result = await client.call_tool("version", {})
                self.version = (result.structured_content or {})["result"]
                self.is_fetching = self._stale.is_set()
            except (ShimError, MCPError) as error:
                self._note(error)
                self._wants()
                await anyio.sleep(0.1)

    def _note(self, error: BaseException) -> None:
        self.errors[type(error).__name__] += 1
