"""The command mirror: publish on this host what a database holds."""

import click

from refresher.cli.options import LISTEN, LISTEN_HOST, PAGE_TOKEN_FILE, Options, command, warn_of_closed_directories
from refresher.common.signals import DaemonSignals

__all__ = ["mirror"]


@command(
    short_help="Publish the tokens of a database on this host.",
    exit_codes={0: "stopped by SIGTERM or Ctrl-C", 2: "wrong usage, configuration or directory"},
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    help="Publish the names that match, such as 'team-*'. Can be repeated.  [default: mirror in the configuration]",
)
@LISTEN
@LISTEN_HOST
@PAGE_TOKEN_FILE
@click.pass_obj
def mirror(
    options: Options,
    only: tuple[str, ...],
    listen: str | None,
    listen_hosts: tuple[str, ...],
    page_token_file: str | None,
) -> int:
    """Publish the tokens of the database of --store on this host, and take the demands of its agents there.

    For hosts of agents, where no refresher runs: mirror never sends a refresh token, and needs no right to read one.
    'refresher run' does the same beside its rotations.

    If the database is away, agents keep the tokens that they have. On SIGTERM or Ctrl-C, mirror stops at once.
    """
    options.add(
        listen=listen, listen_hosts=listen_hosts or None, page_token_file=page_token_file, mirror=list(only) or None
    )
    settings = options.settings()
    warn_of_closed_directories(settings)
    with DaemonSignals() as signals:
        from refresher.daemon.mirror_loop import MirrorDaemon

        return MirrorDaemon(settings, signals).run()
