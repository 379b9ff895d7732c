"""How the tests' MCP servers serve: on a listener, until their stdin ends."""

import json
import os
import socket
from typing import Any

import anyio
import uvicorn

__all__ = ["serve"]


async def serve(app: Any, listener: socket.socket, url: str) -> None:
    """Print ``url`` as one line of JSON, and serve ``app``."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            # No idle connection closed under a client that is about to use it.
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
    )
    print(json.dumps({"url": url}), flush=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        while await anyio.to_thread.run_sync(os.read, 0, 1024, abandon_on_cancel=True):
            pass
        server.should_exit = True
