"""The commands that end a grant: logout and remove."""

from functools import partial
from typing import Final

import click

from refresher.cli.options import STOPPED, Options, command, complete_name
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.observers.hub import observing
from refresher.operations.remove import remove as remove_grant

__all__ = ["logout", "remove"]

_EXIT_CODES: Final[dict[int | str, str]] = {
    0: "removed",
    2: "wrong usage or configuration, unknown name, damaged record",
    4: "the disk or the database fails",
    6: "another process has held the lock of the grant for 30 s",
    **STOPPED,
}


@command(
    short_help="Revoke a grant at its server, then remove it.",
    exit_codes=_EXIT_CODES | {0: "logged out", 4: "the server is away, or the disk or the database fails; it is kept"},
)
@click.argument("name", shell_complete=complete_name)
@click.option("--keep-at-server", is_flag=True, help="Do not revoke it: the same as 'refresher remove'.")
@click.pass_obj
def logout(options: Options, name: str, keep_at_server: bool) -> int | None:
    """Revoke the grant NAME at its authorization server (RFC 7009), then remove it and notify its readers.

    If the server cannot be reached, the grant is kept. If the server refuses to revoke it, logout says so and removes
    the grant here.
    """
    from refresher.oauth.revocation import revoke
    from refresher.operations.sources import files_read, read_unheld

    settings = options.settings()
    revoking = None if keep_at_server else partial(revoke, ca_file=settings.ca_file)
    with (
        StopSignals() as stopping,
        observing(settings, "logout") as observers,
        files_read(store := settings.open_store(), read_unheld(store, name), settings.ca_file),
    ):
        words = remove_grant(store, name, stopping=stopping, revoke=revoking, emit=observers.emit)
    say(f"logged out: {name}; {words}")
    return stopping.exit_code


@command(short_help="Remove a grant here only, and notify its readers.", exit_codes=_EXIT_CODES)
@click.argument("name", shell_complete=complete_name)
@click.pass_obj
def remove(options: Options, name: str) -> int | None:
    """Delete the refresh token of the grant NAME and notify its readers.

    It is not revoked at the authorization server: 'refresher logout' does that.
    """
    settings = options.settings()
    with StopSignals() as stopping, observing(settings, "remove") as observers:
        words = remove_grant(settings.open_store(), name, stopping=stopping, emit=observers.emit)
    say(f"removed {name}; {words}")
    return stopping.exit_code
