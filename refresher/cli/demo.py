"""The command demo."""

from importlib.util import find_spec

from refresher.cli.options import STOPPED, command, duration_option
from refresher.common.errors import ConfigError
from refresher.common.signals import StopSignals

__all__ = ["demo"]

_SHORTEST = 5.0
_LONGEST = 3600.0
_NEEDED = ("mcp", "httpx2", "uvicorn")


@command(
    short_help="Watch it work, without account or network.",
    exit_codes={
        0: "no call of the agent failed",
        1: "a call failed, or the demo could not run",
        2: "wrong usage or configuration",
        **STOPPED,
    },
)
@duration_option("--seconds", "30s", help="How long the demo runs.")
def demo(seconds: float) -> int:
    """Show on this machine what refresher does, without account or network.

    The demo runs an authorization server, an MCP server whose tokens expire after seconds, 'refresher run', and an
    agent that calls a tool repeatedly. Halfway, the demo revokes the agent's token, and later it forces a rotation. It
    does not use your grants.
    """
    if not all(map(find_spec, _NEEDED)):
        raise ConfigError("the demo needs the MCP SDK: in the checkout, pip install '.[all]'")
    from refresher.demo.runner import run_demo  # uvicorn and the MCP SDK: no other command loads them

    if not _SHORTEST <= seconds <= _LONGEST:
        raise ConfigError(f"--seconds must be from {_SHORTEST:.0f} to {_LONGEST:.0f}")
    with StopSignals(quiet=True) as stopping:
        code = run_demo(seconds, stopping=stopping)
    return code if stopping.exit_code is None else stopping.exit_code
