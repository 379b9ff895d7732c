"""Run once: inspect every grant, and rotate those that are due or demanded."""

import logging
from collections.abc import Callable, Sequence

from refresher.common.errors import GrantFileError
from refresher.config import Settings
from refresher.grants.policy import Wait
from refresher.grants.record import Grant, Moved, Tombstone
from refresher.operations import names as unknown_names
from refresher.operations.events import Emit, happened, ignore
from refresher.operations.inspection import Inspection, inspect
from refresher.operations.rest import Resting
from refresher.operations.result import EXIT_CODES, Result
from refresher.storage import demands, last_run, rest_index
from refresher.storage.file_store import FileStore

__all__ = ["run_once"]

log = logging.getLogger(__name__)


def run_once(
    settings: Settings,
    names: Sequence[str],
    *,
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    progress: Callable[[list[str]], None] = lambda _: None,
    emit: Emit = ignore,
) -> list[Result]:
    """Rotate what is due or demanded of the grants ``names``, or of all grants.

    ``horizon``: seconds to the next run. ``progress`` is called repeatedly with the names in progress. Raises
    ``UnknownName``, ``DirectoryError`` and ``ConfigError``, all before any rotation starts.
    """
    if settings.store is not None:
        from refresher.operations.run_once_database import run_once_in_database

        return run_once_in_database(
            settings.open_database(),
            settings,
            names,
            force=force,
            horizon=horizon,
            stopping=stopping,
            progress=progress,
            emit=emit,
        )
    store = FileStore(settings.directories)
    directories = store.directories
    listing = directories.listing(names)
    existing = listing.all
    if unknown := [name for name in names if name not in existing]:
        raise unknown_names.unknown(store, unknown[0])
    selected = list(dict.fromkeys(names)) or existing
    pending = demands.pending(directories, selected)
    pending.warn(set(), logging.INFO)  # cron would mail a warning at each run
    work: list[Inspection] = []
    results: dict[str, Result] = {}
    # A few names, or force, need no index.
    resting = None if names or force or len(existing) < rest_index.FEWEST else Resting(directories, listing, pending)
    for name in selected:
        if resting is not None and (known := resting.find(name, horizon)) is not None:
            results[name] = known
            continue
        try:
            found = inspect(store.publisher, name, listing=listing, demands=pending, force=force, horizon=horizon)
        except GrantFileError as error:
            # Logged at each run: only a person can repair the file, and cron sends stderr as mail.
            log.warning("%s: invalid_grant_file: %s", name, error)
            results[name] = Result(name, "invalid_grant_file", None, str(error))
            emit(happened(name, "failed", str(error), outcome="invalid_grant_file"))
            continue
        if isinstance(found.record, Tombstone | Moved) and name in names:
            raise unknown_names.gone(name, found.record)
        if found.needs_lock:
            work.append(found)
        elif isinstance(found.record, Grant) and isinstance(found.decision, Wait):
            results[name] = Result.from_decision(found.record, found.decision)
            if resting is not None:
                resting.add(found.record, found.decision)
    if resting is not None:
        resting.save()
    if work:
        for result in _rotate_all(settings, store, work, force, horizon, stopping, progress, emit):
            # Only what this run did is logged: cron would mail the same state at each run.
            level = logging.INFO if EXIT_CODES[result.outcome] == 0 else logging.WARNING
            log.log(level, "%s: %s: %s", result.name, result.outcome, result.detail)
            results[result.name] = result
    last_run.note(directories, 2 * horizon)
    if missing := [name for name in names if name not in results]:
        raise unknown_names.removed(missing[0])
    return [results[name] for name in selected if name in results]


def _rotate_all(
    settings: Settings,
    store: FileStore,
    work: list[Inspection],
    force: bool,
    horizon: float,
    stopping: Callable[[], bool],
    progress: Callable[[list[str]], None],
    emit: Emit,
) -> list[Result]:
    """Rotate in parallel; return a result for each grant that still exists."""
    # These load httpcore, which costs six times as much as a run with nothing due.
    from refresher.oauth.tls import ssl_context
    from refresher.operations.rotate import Order, Terms, rotate
    from refresher.operations.work_queue import run_all
    from refresher.storage import startup_checks

    if (problem := settings.directories.prepare()) is not None:
        log.warning("cannot accept demands from agents: %s", problem)
    # Not as a warning, which cron would mail at each run: login, import and run warn.
    startup_checks.warn(settings.directories, set(), logging.INFO)
    if any(found.server.startswith("https:") for found in work):
        ssl_context(settings.ca_file)

    terms = Terms(ca_file=settings.ca_file, stopping=stopping, emit=emit)

    def rotate_one(found: Inspection) -> Result | None:
        return rotate(store, Order.after(found, force=force, horizon=horizon), terms)

    results = run_all(
        [(found.server, found) for found in work],
        rotate_one,
        stopping=stopping,
        progress=lambda running: progress([found.name for found in running]),
    )
    return [result for result in results if result is not None]
