"""A task that belongs to no task group, on asyncio or trio."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["start_task"]


def start_task(run: Callable[[], Coroutine[Any, Any, None]]) -> object:
    """Run ``run`` in a task of its own; return an object that the caller must keep.

    A task group would not do: only the task that entered it may leave it, and in reverse order.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.spawn_system_task(run)
    return loop.create_task(run())
