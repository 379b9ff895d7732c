"""Programs that run a command for their headers, start a server, or connect to an address."""

from typing import Final

from refresher.cli.clients.client import Client

__all__ = ["PROGRAMS"]

PROGRAMS: Final[tuple[Client, ...]] = ()
