"""The command status."""

import click

from refresher.cli import tables
from refresher.cli.options import Options, command, complete_name, print_no_grants
from refresher.common.terminal import say
from refresher.operations.inspection import list_grants

__all__ = ["status"]


@command(
    short_help="Show each grant: state, time left, next rotation.",
    exit_codes={0: "shown, in any state", 2: "wrong usage or configuration, or unknown name"},
    note="For alarms, use the exit code of 'refresher run-once'.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.pass_obj
def status(options: Options, names: tuple[str, ...], as_json: bool) -> None:
    """Show each grant: its state, the time left of its token, its next rotation, its last error.

    \b
    States:
      active                    all is well
      failing                   the last attempt failed; retried automatically
      reauthorization_required  a person must log in again
      invalid_grant_file        the record is damaged; the error says what to do
    """
    settings = options.settings()
    entries = list_grants(settings.directories, names)
    if not entries:
        print_no_grants(settings)
    if as_json:
        say(tables.status_json(entries))
    elif entries:
        say(tables.status_table(entries))
