"""The commands store init, store check and store move: where the grants are."""

import json
import logging
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from refresher.cli.options import STOPPED, CommandGroup, Options, command, complete_name
from refresher.common.errors import ConfigError, RefresherError
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.config import Settings, parse_store

if TYPE_CHECKING:
    from refresher.observers.hub import Observers
    from refresher.operations.move import Outcome
    from refresher.storage.store import Store

__all__ = ["store"]

log = logging.getLogger(__name__)


@click.group(cls=CommandGroup, short_help="Prepare, check and move to a database of grants.")
def store() -> None:
    """Prepare and check a PostgreSQL database that holds the grants of many hosts, and move grants to it.

    The database is that of --store or REFRESHER_STORE. Its address holds no password: libpq takes it from ~/.pgpass,
    from the file in ?passfile=PATH, or from PGPASSWORD.
    """


@command(
    short_help="Make the tables that refresher needs, or bring them up to date.",
    exit_codes={
        0: "the schema is up to date",
        2: "wrong usage or configuration",
        4: "the database is away or refuses, or its schema is newer; nothing was changed",
    },
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def init(options: Options, as_json: bool) -> None:
    """Make the tables that refresher needs in the schema "refresher" of the database, or bring them up to date.

    It can run at each start, and at several hosts at once: one of them makes the tables. A schema that is newer than
    this refresher is refused.
    """
    settings = _with_database(options)
    from refresher.storage.postgres import migrations
    from refresher.storage.postgres.database import Database

    database = Database(settings.store or "")
    try:
        applied = migrations.migrate(database)
    finally:
        database.close()
    if as_json:
        say(json.dumps({"version": migrations.LATEST, "applied": applied}))
    elif applied:
        say(f"{database.place} has version {migrations.LATEST} of the schema now; 'refresher store check' checks it")
    else:
        say(f"{database.place} has version {migrations.LATEST} of the schema already")


@command(
    short_help="Find what is wrong with the database, and say how to mend it.",
    exit_codes={
        0: "nothing found",
        1: "something needs attention",
        2: "something is broken, or the database is away; or wrong usage or configuration",
    },
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(options: Options, as_json: bool) -> int:
    """Find what is wrong with the database, the way to it, the rights of its role, and the grants in it.

    For each finding, it says what is wrong, why that matters, and what mends it. It reads only. Of many grants, it
    looks at a sample of 1,000 records.
    """
    settings = _with_database(options)
    from refresher.cli.doctor import print_parts
    from refresher.doctor import database

    return print_parts(database.check(settings)[0], as_json=as_json)


@command(
    short_help="Move grants between files and databases.",
    exit_codes={
        0: "all are moved, or were moved already",
        2: "wrong usage, configuration or name; another grant, or a damaged one, is in the way",
        4: "a disk or a database fails; run it again",
        6: "another process has held a grant for 30 s; run it again",
        **STOPPED,
    },
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--to", "to", metavar="URL|files", required=True, help="A database, or files in the state directory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def move(options: Options, names: tuple[str, ...], to: str, as_json: bool) -> int:
    """Move the grants NAMES, or all, from the store that is configured to another one.

    The refresh token leaves the one store before the other one may use it. If the command is interrupted, at most one
    of them can rotate the grant; run the command again, and it completes what it began. Agents keep their tokens.

    \b
    Examples:
      refresher store move --to postgresql://refresher@db.example/refresher
      refresher --store postgresql://refresher@db.example/refresher store move --to files linear
    """
    settings = options.settings()
    target_settings = msgspec.structs.replace(settings, store=None if to == "files" else parse_store(to))
    if to != "files" and target_settings.store is None:
        raise ConfigError("--to must be 'files' or the URL of a database: postgresql://USER@HOST/DATABASE")
    source, target = settings.open_store(), target_settings.open_store()
    if _is_one(source, target):
        raise ConfigError(
            "both stores are the same: --store or REFRESHER_STORE names the one to move from ('--store=' for files), "
            "--to the other one"
        )
    from refresher.observers.hub import observing
    from refresher.operations.move import place_of

    codes: set[int] = set()
    moves: list[_Move] = []
    with StopSignals() as stopping, observing(settings, "store move") as observers:
        for name in names or _movable(source):
            if stopping():
                break
            done, code = _move(source, target, name, stopping, observers)
            moves.append(done)
            codes.add(code)
            if done.outcome is not None and not as_json:
                said = {"moved": "moved", "completed": "completed the move of", "there": "already moved:"}[done.outcome]
                say(f"{said} {name}" + (f" to {place_of(target)}" if done.outcome == "moved" else ""))
    count = sum(each.outcome is not None for each in moves)
    if as_json:
        say(json.dumps({"to": place_of(target), "grants": [each._asdict() for each in moves]}))
    elif count:
        with_it = "" if target_settings.store is None else " --store URL"
        say(
            f"{count} grant{'' if count == 1 else 's'} in {place_of(target)}; 'refresher{with_it} run' keeps them fresh"
        )
    return stopping.exit_code or max(codes, default=0)


class _Move(NamedTuple):
    """What became of the move of one grant; the names of the fields are JSON keys."""

    name: str
    outcome: "Outcome | None"
    error: str | None


def _move(
    source: "Store", target: "Store", name: str, stopping: StopSignals, observers: "Observers"
) -> tuple[_Move, int]:
    """Move one grant; return what became of it, and an exit code."""
    from refresher.operations.move import move as move_grant

    try:
        return _Move(name, move_grant(source, target, name, stopping=stopping, emit=observers.emit), None), 0
    except RefresherError as error:
        log.error("%s: %s", name, error)  # noqa: TRY400  a mistake of a person needs no traceback
        return _Move(name, None, str(error)), error.exit_code


def _movable(store: "Store") -> list[str]:
    """Return the names of all grants that are here, or have left from here."""
    from refresher.common.errors import GrantFileError
    from refresher.grants.record import Grant, Moved

    found = []
    for name, stored in store.load_each(store.listing().all):
        record = None if isinstance(stored, GrantFileError) else stored.record
        # What cannot be read is tried too, so that its error is shown.
        left = isinstance(record, Moved) and record.arriving is None
        if record is None or isinstance(record, Grant) or left:
            found.append(name)
    return found


def _is_one(source: "Store", target: "Store") -> bool:
    """Whether both are the same store. Raises ``StorageError``."""
    identities = [each.identity() if hasattr(each, "identity") else each.place for each in (source, target)]
    return bool(identities[0] == identities[1])


def _with_database(options: Options) -> Settings:
    """Return the settings. Raises ``ConfigError`` if they name no database, or psycopg is not installed."""
    settings = options.settings()
    if settings.store is None:
        raise ConfigError("no database is named: give --store postgresql://USER@HOST/DATABASE, or set REFRESHER_STORE")
    settings.open_store()  # says what is not installed; it does not connect
    return settings


store.add_command(init)
store.add_command(check)
store.add_command(move)
