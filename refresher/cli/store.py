"""The commands store init, store check and store move: where the grants are."""

import json

import click

from refresher.cli.options import Command, Options, command
from refresher.common.errors import ConfigError
from refresher.common.terminal import say
from refresher.config import Settings

__all__ = ["store"]


class _Group(Command, click.Group):
    """A command with commands of its own."""


@click.group(cls=_Group, short_help="Prepare, check and move to a database of grants.")
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


store.add_command(init)
store.add_command(check)


def _with_database(options: Options) -> Settings:
    """Return the settings. Raises ``ConfigError`` if they name no database, or psycopg is not installed."""
    settings = options.settings()
    if settings.store is None:
        raise ConfigError("no database is named: give --store postgresql://USER@HOST/DATABASE, or set REFRESHER_STORE")
    settings.open_store()  # says what is not installed; it does not connect
    return settings
