"""Commands about what is there: status, remove."""

import click

from refresher.cli import tables
from refresher.cli.completion import complete_name
from refresher.cli.options import Asked, no_grants
from refresher.common.signals import Stopping
from refresher.common.terminal import say
from refresher.operations.inventory import overview
from refresher.operations.remove import remove

__all__ = ["remove_", "status"]


@click.command(short_help="Show each grant: state, time left, next rotation.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.pass_obj
def status(asked: Asked, names: tuple[str, ...], as_json: bool) -> None:
    """Show each grant: its state, its token's time left, its next rotation, its last error.

    \b
    States:
      active                    all is well
      failing                   the last attempt failed; it is repeated by itself
      reauthorization_required  only a person can help: log in again
      invalid_grant_file        the record is damaged; its error says what to do
    """
    settings = asked.settings()
    entries = overview(settings.directories, names)
    if not entries:
        no_grants(settings)
    if as_json:
        say(tables.status_json(entries))
    elif entries:
        say(tables.status_table(entries))


@click.command("remove", short_help="Forget a grant here alone, and tell its readers.")
@click.argument("name", shell_complete=complete_name)
@click.pass_obj
def remove_(asked: Asked, name: str) -> int | None:
    """Forget the grant NAME and tell its readers; its refresh token is deleted here.

    Nothing is revoked at the authorization server: 'refresher logout' does that.
    """
    settings = asked.settings()
    with Stopping() as stopping:
        remove(settings.directories, name, stopping=stopping)
    say(f"removed {name}; at the authorization server the authorization lives until you revoke it there")
    return stopping.exit_code
