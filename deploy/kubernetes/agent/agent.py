"""An example of an agent: it lists the tools of an MCP server in one session, again and again."""

import asyncio
import os
import signal

from shim import ShimError
from shim.mcp import ReconnectingClient

GRANT, URL = os.environ["GRANT"], os.environ["MCP_URL"]
EACH = float(os.environ.get("EACH", "10"))


async def main() -> None:
    """Print the result of each call. No token problem ends the loop."""
    async with ReconnectingClient(URL, GRANT) as client:
        while True:
            try:
                tools = (await client.list_tools()).tools
                print(f"{GRANT}: {len(tools)} tools", flush=True)
            except ShimError as problem:
                print(f"{GRANT}: {problem}", flush=True)
            await asyncio.sleep(EACH)


async def until_stopped() -> None:
    """End at SIGTERM. The first process of a container must handle it, so that the sidecar keeps its time to stop."""
    working = asyncio.create_task(main())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        print("stopped", flush=True)


asyncio.run(until_stopped())
