"""An event loop whose clock runs fast, so that the pauses of a client under test take little time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["TIMES", "run_fast"]

TIMES: Final = 20
"""How many times as fast its clock runs."""

_Result = TypeVar("_Result")


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout and timeout / TIMES)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def time(self) -> float:
        return super().time() * TIMES


def run_fast(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run ``main`` in an event loop where every second takes 50 ms. The clocks of the system stay as they are."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
