"""The command run."""

from typing import Final

import click

from refresher.cli.options import LISTEN, Options, command, duration_option, warn_of_closed_directories
from refresher.common.errors import ConfigError
from refresher.common.signals import DaemonSignals

__all__ = ["run"]

_SHORTEST_GRACE: Final = 10.0


@command(
    short_help="Rotate every grant in time, until stopped.",
    exit_codes={0: "stopped by SIGTERM or Ctrl-C", 2: "wrong usage, configuration or directory"},
)
@duration_option("--grace", "25s", help="How long a stop may take; each request gets 5 s less, and 20 s at most.")
@LISTEN
@click.pass_obj
def run(options: Options, grace: float, listen: str | None) -> int:
    """Rotate every grant in time, and when an agent requests it, until stopped.

    run notices grants that are imported, changed or removed. Any number of 'refresher run' and 'refresher run-once' can
    run at the same time: one process rotates a grant, the others use its result.

    On SIGTERM or Ctrl-C, run starts nothing new and completes what is in progress. On SIGHUP, it reads the
    configuration again. It logs on stderr what it does.

    With --listen, 'refresher health' and probes can check it. A systemd service of Type=notify needs no --listen.
    """
    options.add(listen=listen)
    if grace < _SHORTEST_GRACE:
        raise ConfigError(f"--grace must be {_SHORTEST_GRACE:.0f} s or more: a request needs time to complete")
    warn_of_closed_directories(options.settings())
    with DaemonSignals() as signals:
        from refresher.daemon.loop import Daemon  # APScheduler and httpx: no other command needs both

        return Daemon(options.resolve, signals, grace=grace).run()
