"""A task that is nobody's child.

One in a task group of its caller could only be left by the same task, in the order of entering.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["begin"]


def begin(run: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Run it in the event loop there is, on its own; return what must be held while it runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.spawn_system_task(run)
    return loop.create_task(run())
