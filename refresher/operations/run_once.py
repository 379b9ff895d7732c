"""Run once: look at every grant, and rotate what is due or demanded."""

import logging
from collections.abc import Callable, Sequence

from refresher.common.errors import GrantFileError
from refresher.config import Settings
from refresher.grants.policy import Rest
from refresher.grants.record import Grant, Tombstone
from refresher.operations import explanation
from refresher.operations.inspection import Look, look
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage import demands, records
from refresher.storage.directories import Directories, Listing
from shim._token import is_name

__all__ = ["run_once"]

log = logging.getLogger(__name__)


def run_once(
    settings: Settings,
    names: Sequence[str],
    *,
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None] = lambda _: None,
) -> list[Result]:
    """Rotate what is due or demanded of ``names``, or of all grants where none is named.

    ``horizon``: seconds to the next run. ``waiting`` hears now and then which names are under way. Raises
    ``UnknownName``, ``DirectoryError`` and ``ConfigError``, all before anything is done.
    """
    directories = settings.directories
    listing = directories.listing()
    chosen = _chosen(directories, names, listing)
    asked = demands.pending(directories)
    work: list[Look] = []
    results: dict[str, Result] = {}
    with directories.opened() as opened:
        for name in chosen:
            try:
                seen = look(
                    directories,
                    name,
                    unfinished=name in listing.unfinished,
                    asked=asked,
                    force=force,
                    horizon=horizon,
                    opened=opened,
                )
            except GrantFileError as error:
                # At each run: it never mends itself, and cron mails what stands on stderr.
                log.warning("%s: invalid_grant_file: %s", name, error)
                results[name] = Result(name=name, outcome="invalid_grant_file", generation=None, detail=str(error))
                continue
            if isinstance(seen.record, Tombstone) and name in names:
                raise records.removed(name)
            if seen.needs_lock:
                work.append(seen)
            elif isinstance(seen.record, Grant) and isinstance(seen.decision, Rest):
                results[name] = explanation.rested(seen.record, seen.decision)
    if work:
        for result in _do(settings, work, force, horizon, stopping, waiting):
            if result is not None:
                # On stderr at once where something went wrong: cron mails what is printed, not exit codes. Only what
                # has just happened: a grant that waits for a person is no news a minute later.
                level = logging.INFO if EXIT_CODES[result.outcome] == 0 else logging.WARNING
                log.log(level, "%s: %s: %s", result.name, result.outcome, result.detail)
                results[result.name] = result
    if gone := [name for name in names if name not in results]:
        raise records.removed(gone[0])
    return [results[name] for name in chosen if name in results]


def _chosen(directories: Directories, names: Sequence[str], listing: Listing) -> list[str]:
    # An import that was cut off has left no record yet, but something to settle.
    there = sorted(name for name in {*listing.names, *listing.unfinished} if is_name(name))
    for name in names:
        if name not in there:
            raise records.unknown(directories, name)
    return list(dict.fromkeys(names)) or there


def _do(
    settings: Settings,
    work: list[Look],
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> list[Result | None]:
    # The one deferred import: httpx costs six times what a run with nothing due may cost.
    from refresher.oauth.tls import trusted
    from refresher.operations.rotate import Order, Terms, rotate
    from refresher.operations.work_queue import run_all
    from refresher.storage import startup_checks

    if (trouble := settings.directories.prepare()) is not None:
        log.warning("no demands are heard: %s", trouble)
    # Cron mails what is a warning, each time; import and the daemon say it to a person.
    startup_checks.tell(settings.directories, logging.INFO)
    if any(seen.server.startswith("https:") for seen in work):
        trusted(settings.ca_file)

    terms = Terms(ca_file=settings.ca_file, stopping=stopping)

    def carry_out(seen: Look) -> Result | None:
        order = Order(name=seen.name, seen=seen.generation, force=force, horizon=horizon)
        return rotate(settings.directories, order, terms)

    return run_all(
        [(seen.server, seen) for seen in work],
        carry_out,
        stopping=stopping,
        waiting=lambda under_way: waiting([seen.name for seen in under_way]),
    )
