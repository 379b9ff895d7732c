"""The command demo."""

import click

from refresher.cli.options import DURATION
from refresher.common.errors import ConfigError
from refresher.common.signals import Stopping

__all__ = ["demo"]

_LEAST = 5.0
_MOST = 3600.0


@click.command(short_help="Watch it work: no account, no network.")
@click.option(
    "--seconds", type=DURATION, default="30s", metavar="DURATION", help="How long to show it.  [default: 30s]"
)
def demo(seconds: float) -> int:
    """Show on this machine what refresher does: no account and no network needed.

    A real authorization server, a real MCP server whose tokens die every few seconds, 'refresher run', and an agent
    that calls a tool all the time. Half way its token is revoked, and later somebody rotates by hand. It touches none
    of your grants. Exits 0 if no call failed.
    """
    from refresher.demo import play

    if not _LEAST <= seconds <= _MOST:
        raise ConfigError(f"--seconds must be from {_LEAST:.0f} to {_MOST:.0f}")
    with Stopping(quietly=True) as stopping:
        code = play(seconds, stopping=stopping)
    return code if stopping.exit_code is None else stopping.exit_code
