"""The commands that rotate: run and run-once."""

from typing import Final

import click
import msgspec

from refresher.cli.options import (
    LISTEN,
    LISTEN_HOST,
    PAGE_TOKEN_FILE,
    STOPPED,
    Options,
    command,
    complete_name,
    duration_option,
    warn_of_closed_directories,
)
from refresher.cli.tables import print_rows
from refresher.common.errors import ConfigError
from refresher.common.signals import DaemonSignals, StopSignals
from refresher.common.terminal import Progress, say
from refresher.config import DEFAULT_GATEWAY
from refresher.observers.hub import observing
from refresher.operations import run_once as operation
from refresher.operations.result import exit_code

__all__ = ["run", "run_once"]

_SHORTEST_GRACE: Final = 10.0


@command(
    short_help="Rotate every grant in time, until stopped.",
    exit_codes={0: "stopped by SIGTERM or Ctrl-C", 2: "wrong usage, configuration or directory"},
)
@duration_option(
    "--grace",
    "25s",
    help="How long a stop may take. A request to an authorization server may take 5 s less, and at most 20 s.",
)
@LISTEN
@LISTEN_HOST
@PAGE_TOKEN_FILE
@click.option(
    "--gateway",
    metavar="[HOST:PORT|unix:PATH]",
    is_flag=False,
    flag_value=DEFAULT_GATEWAY,
    envvar="REFRESHER_GATEWAY",
    show_envvar=True,
    help=f"Start 'refresher gateway' too, at this address, else at {DEFAULT_GATEWAY}.",
)
@click.pass_obj
def run(
    options: Options,
    grace: float,
    listen: str | None,
    listen_hosts: tuple[str, ...],
    page_token_file: str | None,
    gateway: str | None,
) -> int:
    """Rotate every grant in time, and when an agent demands it, until stopped.

    run notices grants that are imported, changed or removed. Any number of 'refresher run' and 'refresher run-once' can
    run at the same time: one process rotates a grant, the others use its result.

    On SIGTERM or Ctrl-C, run starts nothing new and completes what is in progress. On SIGHUP, it reads the
    configuration again. It logs on stderr what it does.

    'refresher health' can check it. With --listen, HTTP probes can too, and a browser shows a page of all grants. If
    the address of --listen is taken, run warns, rotates, and tries again. A systemd service of Type=notify needs no
    --listen.
    """
    options.add(listen=listen, listen_hosts=listen_hosts or None, page_token_file=page_token_file, gateway=gateway)
    if grace < _SHORTEST_GRACE:
        raise ConfigError(f"--grace must be {_SHORTEST_GRACE:.0f} s or more: a request needs time to complete")
    settings = options.settings()
    warn_of_closed_directories(settings)
    with observing(settings, "run") as observers, DaemonSignals() as signals:
        # APScheduler and httpcore: no other command needs both.
        if settings.store is not None:
            from refresher.daemon.database_loop import DatabaseDaemon

            return DatabaseDaemon(options.resolve, signals, observers, grace=grace).run()
        from refresher.daemon.loop import Daemon

        return Daemon(options.resolve, signals, observers, grace=grace).run()


@command(
    short_help="Rotate what is due or demanded, once.",
    exit_codes={
        0: "all is well (rotated, adopted, not_due, too_early)",
        2: "wrong usage, configuration, name, directory or grant file",
        3: "reauthorization_required: a person must log in again",
        4: "transient, client_rejected, storage_failed (retried), token_rejected",
        5: "in_doubt: a request was sent and its answer was lost",
        6: "lock_busy: another process has held the lock of a grant for 30 s",
        **STOPPED,
    },
    note="If grants differ, the most serious outcome sets the exit code: 3, 5, 2, 4, 6.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--force", is_flag=True, help="Rotate now, even if it is not due.")
@duration_option("--horizon", help="The time to the next run: rotate also what is due before it.")
@click.option(
    "--metrics-file",
    metavar="FILE",
    envvar="REFRESHER_METRICS_FILE",
    show_envvar=True,
    help="Write metrics to this file, for the textfile collector of node_exporter.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def run_once(
    options: Options,
    names: tuple[str, ...],
    force: bool,
    horizon: float | None,
    metrics_file: str | None,
    as_json: bool,
) -> int:
    """Rotate what is due or demanded, of all grants or of those named.

    You can run it at any time, as often as you like, and several at once: one process rotates a grant, the others use
    its result. Under cron, give --horizon a little more than the interval.

    --force fetches a token that is newer than the one at the start of the command. It skips a backoff, and tries again
    if the server has refused the grant. It does not skip the wait of a grant in doubt.
    """
    options.add(metrics_file=metrics_file)
    settings = options.settings()
    warn_of_closed_directories(settings)
    # The signals last: one that comes while the observers complete ends that wait, and not the process.
    with StopSignals() as stopping:
        with observing(settings, "run-once") as observers:
            if settings.metrics_file is not None:
                from refresher.observers.metrics import Counts

                observers.add(counts := Counts())
            results = operation.run_once(
                settings,
                names,
                force=force,
                horizon=horizon or 0.0,
                stopping=stopping,
                progress=Progress(),
                emit=observers.emit,
            )
            observers.check_outputs()
            code = exit_code(results) if stopping.exit_code is None else stopping.exit_code
            rows = [
                (each.name, each.outcome, "-" if each.generation is None else str(each.generation), each.detail)
                for each in results
            ]
            fields = {"results": [msgspec.structs.asdict(each) for each in results], "exit_code": code}
            # Before the observers complete: the command of a hook can be slow.
            if rows or as_json or settings.store is None:
                print_rows(settings, ("NAME", "OUTCOME", "GENERATION", "DETAIL"), rows, fields if as_json else None)
            else:
                say("nothing was due", err=True)
        if settings.metrics_file is not None:
            from refresher.observers import metrics_file as file  # most runs have none, and do not pay for it

            failed = observers.hook_failures()
            file.write(settings.metrics_file, settings.directories, counts, observers.dropped(), failed, stopping)
    return code
