"""The database that holds the grants: its settings, the way to it, its rights, and what waits in it for a person."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from refresher.common import text
from refresher.common.errors import ConfigError, StorageError
from refresher.config import Settings
from refresher.doctor.finding import Finding, Part, found, from_message
from refresher.storage.postgres import facts, migrations, spills
from refresher.storage.postgres.database import Database
from refresher.storage.postgres.facts import Content, ServerFacts

__all__ = ["check", "judge_content", "judge_server", "judge_spills"]

_MOST_DIFFERENCE: Final = 30.0
_SOME_DIFFERENCE: Final = 5.0


def check(settings: Settings) -> tuple[list[Part], bool]:
    """Check the database, and the files of this host that wait for it; return also whether its grants can be read."""
    waiting = list(spills.find(settings.directories))
    rest = [Part("spills", f"{len(waiting)} on this host", [*judge_spills(waiting)])] if waiting else []
    try:
        database = Database(settings.store or "")
        try:
            server, content = facts.look(database)
        finally:
            database.close()
    except ConfigError as error:
        return [Part("database", "not checked", [from_message("database_away", str(error))]), *rest], False
    except StorageError as error:
        return [Part("database", "not checked", [found("database_away", str(error))]), *rest], False
    parts = [
        Part("database", _described(server), [*judge_server(server)]),
        Part("roles", _roles(server), []),
    ]
    if content is not None:
        parts.append(Part("records", _counted(content), [*judge_content(content)]))
    return [*parts, *rest], content is not None


def judge_server(server: ServerFacts) -> Iterator[Finding]:
    """Return what is wrong with the server, the way to it, and the rights of its role."""
    place = f"{server.place}, database {server.database},"
    if server.schema == 0:
        yield found("database_schema", f"{place} has no schema of refresher")
    elif server.schema is not None and server.schema < migrations.LATEST:
        yield found("database_schema", f"{place} has version {server.schema} of {migrations.LATEST} of the schema")
    elif server.schema is not None and server.schema > migrations.LATEST:
        what = f"{place} has version {server.schema} of the schema, this refresher knows {migrations.LATEST}"
        yield found("database_schema", what, "use the newer refresher")
    if server.missing_rights and server.role not in server.mirrors:
        some = text.names(server.missing_rights)
        mend = f"GRANT {server.owner} TO {server.role}, or use the role {server.owner}"
        yield found("database_rights", f"the role {server.role} lacks {some}", mend)
    for name, on in (("fsync", server.fsync), ("full_page_writes", server.full_page_writes)):
        if not on:
            yield found("database_unsafe", f"{place} has {name} = off", f"set {name} = on in postgresql.conf")
    if server.logs_parameters:
        yield found(
            "database_log",
            f"{place} can write the parameters of statements into its log",
            f"as a superuser: ALTER ROLE {server.role} SET log_parameter_max_length = 0; "
            f"ALTER ROLE {server.role} SET log_parameter_max_length_on_error = 0; then start refresher again, "
            "and delete the logs that exist",
        )
    if server.recovering:
        yield found("database_read_only", f"{place} is a standby")
    elif server.read_only:
        yield found(
            "database_read_only",
            f"{place} is read-only: default_transaction_read_only = on",
            "set default_transaction_read_only = off for the role and the database",
        )
    if not server.synchronous_standbys and not server.recovering:
        those = "none" if server.standbys == 0 else f"{server.standbys} that may be behind"
        yield found("database_asynchronous", f"{place} waits for no standby before it confirms a commit ({those})")
    if not server.local and not server.tls:
        yield found("database_tls", f"the connection to {server.place} is not encrypted")
    elif not server.local and not server.verified:
        yield found("database_tls", f"nobody checks that {server.place} has the certificate of its host")
    if abs(server.clock_difference) > _SOME_DIFFERENCE:
        wrong = abs(server.clock_difference) > _MOST_DIFFERENCE
        ahead = "ahead of" if server.clock_difference > 0 else "behind"
        yield found(
            "database_clock" if wrong else "clock_differs",
            f"the clock of this host is {text.span(abs(server.clock_difference))} {ahead} that of {server.place}",
        )
    if server.pooled:
        yield found("database_pooler", f"a pooler answers in the place of {server.place}")


def judge_content(content: Content) -> Iterator[Finding]:
    """Return what waits in the database for a person."""
    for name, message in content.contradictions:
        what, _, mend = message.partition(". Restore it")
        yield found(
            "record_contradicts", what, f"restore it{mend}" if mend else f"refresher login {name} URL", name=name
        )
    for orphan in content.orphans:
        what = f"{orphan.name}: a token that fits no record is in refresher.orphan for {text.span(orphan.seconds)}"
        delete = f"DELETE FROM refresher.orphan WHERE attempt = '{orphan.attempt}'"  # noqa: S608  for a person
        mend = f"if 'refresher status {orphan.name}' shows that all is well: {delete}"
        yield found("orphaned_token", f"{what} ({orphan.why})", mend, name=orphan.name)


def judge_spills(waiting: list[Path]) -> Iterator[Finding]:
    """Return the new tokens that only this host has, because the database did not take them."""
    for path in waiting:
        name = path.name.rsplit(".", 2)[0]
        yield found(
            "spilled_token",
            f"{path} waits for the database",
            f"refresher run-once {name}",
            name=name,
        )


def _described(server: ServerFacts) -> str:
    way = "TLS" if server.tls else "this machine" if server.local else "no TLS"
    commits = server.synchronous_commit if server.synchronous_commit == "remote_apply" else "on"
    commits = f"synchronous_commit {commits}, synchronous standbys: {server.synchronous_standbys or 'none'}"
    schema = "" if not server.schema else f", schema {server.schema}"
    return f"{server.place} (version {server.version}, {way}{schema}), {commits}"


def _roles(server: ServerFacts) -> str:
    what = "a mirror" if server.role in server.mirrors else "this one"
    others = [role for role in server.refreshers if role != server.role]
    refreshing = f", {text.names(others)} can rotate too" if others else ""
    mirrors = [role for role in server.mirrors if role != server.role]
    mirroring = f"; mirrors: {text.names(mirrors)}" if mirrors else ""
    return f"{server.role} ({what}){refreshing}{mirroring}"


def _counted(content: Content) -> str:
    doubts = f"{content.in_doubt} in doubt"
    if content.sampled < content.grants + content.moved:
        doubts += f" of {content.sampled} looked at"
    parts = [f"{content.grants} grant{'' if content.grants == 1 else 's'}"]
    parts += [f"{content.due} due", f"{content.held} held", doubts]
    if content.moved:
        parts.append(f"{content.moved} moved")
    if content.heartbeat_seconds is None:
        beat = "no refresher has been here yet"
    else:
        beat = f"a refresher was here {text.span(content.heartbeat_seconds)} ago"
    if not content.epoch_known and content.heartbeat_seconds is not None:
        beat += "; the server is another one since, and the next refresher begins an epoch"
    return f"{', '.join(parts)}; {beat}"
