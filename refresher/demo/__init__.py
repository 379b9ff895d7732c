"""A demonstration without account and network: real servers, a real daemon, a real agent, on loopback."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from refresher.common.errors import ConfigError

__all__ = ["play"]

_NEEDED: Final = ("mcp", "httpx2", "uvicorn")


def play(seconds: float, *, stopping: Callable[[], bool]) -> int:
    """Play for about ``seconds``; return 0 if all went as it should, 1 if a call failed or anything else went wrong.

    Ends early, in order and with what has been seen so far, when ``stopping`` says so. Raises ``ConfigError`` where
    the MCP SDK is not installed.
    """
    if not all(map(find_spec, _NEEDED)):
        raise ConfigError("the demo needs the MCP SDK: in the checkout, pip install '.[all]'")
    from refresher.demo.course import perform  # other commands need not load it

    return perform(seconds, stopping=stopping)
