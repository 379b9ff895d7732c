"""The command run-once."""

import click
import msgspec

from refresher.cli.options import (
    STOPPED,
    Options,
    command,
    complete_name,
    duration_option,
    warn_of_closed_directories,
)
from refresher.cli.tables import print_rows
from refresher.common.signals import StopSignals
from refresher.common.terminal import Progress
from refresher.operations import run_once as operation
from refresher.operations.result import exit_code

__all__ = ["run_once"]


@command(
    short_help="Rotate what is due or requested, once.",
    exit_codes={
        0: "all is well (rotated, adopted, not_due, too_early)",
        2: "wrong usage, configuration, name, directory or grant file",
        3: "reauthorization_required: a person must log in again",
        4: "transient, client_rejected, storage_failed: retried automatically",
        5: "in_doubt: a request was sent and its answer was lost",
        6: "lock_busy: another process has held the lock of a grant for 30 s",
        **STOPPED,
    },
    note="If grants differ, the most serious outcome sets it: 3, 5, 2, 4, 6.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--force", is_flag=True, help="Rotate now, even if it is not due.")
@duration_option("--horizon", help="The time to the next run: rotate also what is due before it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def run_once(options: Options, names: tuple[str, ...], force: bool, horizon: float | None, as_json: bool) -> int:
    """Rotate what is due or requested, of all grants or of those named.

    You can run it at any time, as often as you like, and several at once: one process rotates a grant, the others use
    its result. Under cron, give --horizon a little more than the interval.

    --force fetches a token that is newer than the one at the start of the command. It skips a backoff, and tries again
    if the server has refused the grant. It does not skip the wait of a grant in doubt.
    """
    settings = options.settings()
    warn_of_closed_directories(settings)
    with StopSignals() as stopping:
        results = operation.run_once(
            settings, names, force=force, horizon=horizon or 0.0, stopping=stopping, progress=Progress()
        )
    code = exit_code(results) if stopping.exit_code is None else stopping.exit_code
    rows = [
        (each.name, each.outcome, "-" if each.generation is None else str(each.generation), each.detail)
        for each in results
    ]
    fields = {"results": [msgspec.structs.asdict(result) for result in results], "exit_code": code} if as_json else None
    print_rows(settings, ("NAME", "OUTCOME", "GENERATION", "DETAIL"), rows, fields)
    return code
