"""An agent to try it with: in one MCP session it asks for the list of tools, again and again."""

import asyncio
import os
import signal

from shim import ShimError
from shim.mcp import ReconnectingClient

GRANT, URL = os.environ["GRANT"], os.environ["MCP_URL"]
EACH = float(os.environ.get("EACH", "10"))


async def main() -> None:
    """Call, and say what came of it; no token ever ends it."""
    async with ReconnectingClient(URL, GRANT) as client:
        while True:
            try:
                tools = (await client.list_tools()).tools
                print(f"{GRANT}: {len(tools)} tools", flush=True)
            except ShimError as problem:
                print(f"{GRANT}: {problem}", flush=True)
            await asyncio.sleep(EACH)


async def until_stopped() -> None:
    """End at SIGTERM, which a container's first process has to ask for: what its sidecar has left to finish counts."""
    working = asyncio.create_task(main())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        print("stopped", flush=True)


asyncio.run(until_stopped())
