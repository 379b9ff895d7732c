"""Commands that rotate: run, and run-once."""

from typing import Final

import click

from refresher.cli import tables
from refresher.cli.completion import complete_name
from refresher.cli.options import DURATION, LISTEN, Asked, no_grants, warn_of_bars
from refresher.common.errors import ConfigError
from refresher.common.signals import Listening, Stopping
from refresher.common.terminal import Progress, say
from refresher.operations.result import exit_code
from refresher.operations.run_once import run_once

__all__ = ["run_", "run_once_"]

_LEAST_GRACE: Final = 10.0

_EXIT_CODES: Final = """\b
Exit codes:
  0  all is well (rotated, adopted, not_due, too_early)
  2  usage, configuration, unknown name, unreadable directory or grant file
  3  reauthorization_required: only a person can help
  4  transient, client_rejected, storage_failed: tried again later by itself
  5  in_doubt: a request was sent and its answer was lost
  6  lock_busy: another process has been rotating it for 30 s
  129, 130, 143  stopped by a signal (hang-up, Ctrl-C, SIGTERM); nothing is lost
The gravest of several wins: 3, 5, 2, 4, 6."""


@click.command("run", short_help="Rotate every grant in time, until stopped.")
@click.option(
    "--grace",
    type=DURATION,
    default="25s",
    metavar="DURATION",
    help="How long a stop may take; exchanges are given 5 s less, 20 s at most.  [default: 25s]",
)
@LISTEN
@click.pass_obj
def run_(asked: Asked, grace: float, listen: str | None) -> int:
    """Rotate every grant in time, and whenever an agent demands it, until stopped.

    Imported, changed and removed grants are noticed by themselves. Any number of these, and of run-once besides, do no
    harm to each other: each grant is rotated by one process, the others adopt what it fetched.

    SIGTERM and Ctrl-C: nothing new is begun, what is under way is finished, and the exit code is 0. SIGHUP: the
    configuration is read again. What it does is told on stderr.

    With --listen, 'refresher health' and probes can ask how it is. A systemd service of Type=notify is told by itself.
    """
    asked.add(listen=listen)
    if grace < _LEAST_GRACE:
        raise ConfigError(f"--grace must be {_LEAST_GRACE:.0f} s or more: an exchange needs its time")
    warn_of_bars(asked.settings())
    with Listening() as signals:
        from refresher.daemon.loop import Daemon  # APScheduler and httpx: no other command needs both

        return Daemon(asked.resolve, signals, grace=grace).run()


@click.command("run-once", epilog=_EXIT_CODES, short_help="Rotate what is due or demanded, once.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--force", is_flag=True, help="Rotate beyond the present generation, due or not.")
@click.option(
    "--horizon",
    type=DURATION,
    default=0.0,
    metavar="DURATION",
    help="Time to the next run: rotate what would fall due before it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def run_once_(asked: Asked, names: tuple[str, ...], force: bool, horizon: float, as_json: bool) -> int:
    """Rotate what is due or demanded, of all grants or of those named.

    Safe to run at any time, as often as you like and several at once: each grant is rotated by one process, the
    others adopt what it fetched. Under cron, give --horizon a little more than the interval.

    --force asks for a token newer than the one that was there when the command began. It skips a backoff, and tries
    once more where the server has refused the grant; it does not skip the wait of a grant in doubt.
    """
    settings = asked.settings()
    warn_of_bars(settings)
    with Stopping() as stopping:
        results = run_once(settings, names, force=force, horizon=horizon, stopping=stopping, waiting=Progress())
    code = exit_code(results) if stopping.exit_code is None else stopping.exit_code
    if not results:
        no_grants(settings)
    if as_json:
        say(tables.results_json(results, code))
    elif results:
        say(tables.results_table(results))
    return code
