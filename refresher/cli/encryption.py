"""The commands encryption enable, rekey, disable, status and show: grants that are sealed with a key."""

import json
import logging
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from refresher.cli.options import STOPPED, CommandGroup, Options, command, complete_name
from refresher.common.errors import ConfigError, RefresherError
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.config import Settings

if TYPE_CHECKING:
    from refresher.operations.encryption import Change, Scope
    from refresher.storage.directories import Directories
    from refresher.storage.store import Store

__all__ = ["encryption"]

log = logging.getLogger(__name__)

_EXIT_CODES: Final[dict[int | str, str]] = {
    0: "all grants are as the configuration says",
    2: "wrong usage or configuration; a key cannot be read, or a file cannot be opened; the other grants are done",
    4: "the disk or the database fails; run it again",
    6: "another process has held a grant for 30 s; run it again",
    **STOPPED,
}


@click.group(cls=CommandGroup, short_help="Seal the grants with a key, change the key, or end that.")
def encryption() -> None:
    """Seal refresh tokens and the other secrets of grants with a key of yours (AES-256-GCM).

    Without a key, grants are files in clear text that only this user can read. A key protects copies of them: backups,
    snapshots and disks that leave the machine. It does not protect them from who can run refresher, or read the key.

    \b
    To begin:
      (umask 077; openssl rand -base64 32 > /etc/refresher/key)
      encryption_key = "file:/etc/refresher/key"   in the configuration file
      restart 'refresher run', or send it SIGHUP; restart 'refresher mirror'
      refresher encryption enable

    Keep a copy of the key elsewhere: without it, each grant needs a new login. A refresher that runs without the key
    cannot rotate what is sealed, so give the key to all of them first.
    """


def _changing(name: "Change", short: str, done: str, text: str) -> click.Command:
    """Return the command ``name``: all three do the same, and differ in what the configuration must say."""

    @command(short_help=short, exit_codes=_EXIT_CODES)
    @click.pass_obj
    def change(options: Options) -> int:
        from refresher.operations.encryption import check

        settings = options.settings()
        store = settings.open_store()
        scope = check(store, name)
        what = f"{done}, what is published" if scope == "published" else done
        return _reseal_all(settings, store, scope, f"encryption {name}", what)

    change.name = name
    change.help = text
    return change


def _reseal_all(settings: Settings, store: "Store", scope: "Scope", program: str, done: str) -> int:
    """Bring each grant to the form that is configured; say what was changed; return an exit code."""
    from refresher.observers.hub import observing
    from refresher.operations.encryption import names, reseal

    codes: set[int] = set()
    changed = grants = 0
    with StopSignals() as stopping, observing(settings, program) as observers:
        store.prepare()
        for name in names(store, scope):
            if stopping():
                break
            try:
                count = reseal(store, name, scope, stopping=stopping, emit=observers.emit)
            except RefresherError as error:
                log.error("%s: %s", name, error)  # noqa: TRY400  a mistake of a person needs no traceback
                codes.add(error.exit_code)
                continue
            changed += count > 0
            grants += 1
    total = f"{grants} grant{'' if grants == 1 else 's'}"
    if stopping.exit_code is None:
        say(f"{done}: {total}, {changed} of them by this run")
        if not codes:
            say("earlier copies stay as they were: in backups, snapshots and freed blocks of the disk", err=True)
    return stopping.exit_code or max(codes, default=0)


@command(
    short_help="Show which grants are sealed, and with which key.",
    exit_codes={
        0: "all are as the configuration says",
        1: "some are not: run enable, rekey or disable",
        2: "a key cannot be read, or is not here; or wrong usage or configuration",
    },
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(options: Options, names: tuple[str, ...], as_json: bool) -> int:
    """Show for each grant whether it is plain, or sealed with the current, the previous or an unknown key.

    A key is shown by its id, which says nothing of the key. Files that were kept for a person count too.
    """
    from refresher.operations.encryption import seals

    settings = options.settings()
    keys = settings.directories.keys
    store = settings.open_store()
    problems = keys.problems(published=store.publishes_apart)
    found = [*seals(store, names)]
    wanted = "sealed" if keys.has_current else "plain"
    unknown = any(form in ("unknown", "damaged") for seal in found for _, form in seal.holdings)
    if as_json:
        roles = {role: key_id for key_id, role in keys.known().items()}
        grants = [
            {
                "name": seal.name,
                "form": seal.form,
                "as_configured": seal.as_configured,
                "holds": [
                    {"what": each.what, "form": form, "key_id": each.key_id, "problem": each.problem}
                    for each, form in seal.holdings
                ],
            }
            for seal in found
        ]
        keys_shown = {"current": roles.get("current"), "previous": roles.get("previous")}
        say(json.dumps({"configured": wanted, "keys": keys_shown, "problems": problems, "grants": grants}))
    else:
        for seal in found:
            say(f"{seal.name}  {_words(seal.form)}")
            for each, form in seal.holdings:
                if seal.form in ("mixed", "damaged", "unknown"):
                    say(f"  {each.what}: {each.problem or _words(form)}{'' if not each.key_id else f' {each.key_id}'}")
        if not found:
            say("no grants that hold a secret")
        for problem in problems:
            log.error("%s", problem)
    if problems or unknown:
        return 2
    return 0 if all(seal.as_configured for seal in found) else 1


def _words(form: str) -> str:
    return form if form in ("plain", "damaged", "mixed") else f"sealed, {form} key"


@command(
    short_help="Open an answer that was kept.",
    exit_codes={0: "printed", 2: "there is no such file or orphan, or its key is not here", 4: "the database is away"},
)
@click.argument("file", metavar="NAME.answer.TIME|ATTEMPT")
@click.pass_obj
def show(options: Options, file: str) -> None:
    """Print what is in NAME.answer.TIME, or in a file that was set aside: it may hold the new tokens.

    The message of the failure names the file. In a database, give the ATTEMPT of an orphan, which 'refresher store
    check' lists. What this prints is secret.
    """
    from refresher.storage.sealing import opened_copy

    settings = options.settings()
    if settings.store is not None and (attempt := _uuid(file)) is not None:
        data = settings.open_database().opened_orphan(attempt)
    else:
        data = opened_copy(settings.directories, _kept_name(settings.directories, file))
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _kept_name(directories: "Directories", file: str) -> str:
    """Return the name of a file that is given by its name, or by its path as messages show it."""
    path = Path(file)
    if path.name != file and path.parent not in (directories.grants, directories.spill):
        places = f"{directories.grants} or {directories.spill}"
        raise ConfigError(f"{file} is not in {places}: give a file that is kept there")
    return path.name


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


encryption.add_command(
    _changing(
        "enable",
        "Seal all grants with the key that is configured.",
        "sealed",
        "Seal every grant with encryption_key. It can be interrupted, and run again.\n\n"
        "First give the key to every refresher that uses these grants, and restart 'refresher run' or send it SIGHUP "
        "('refresher mirror' needs a restart): one without the key cannot rotate what is sealed.",
    )
)
encryption.add_command(
    _changing(
        "rekey",
        "Seal all grants with a new key.",
        "sealed with the new key",
        "Seal every grant with encryption_key that is sealed with previous_encryption_key, or plain. It can be "
        "interrupted, and run again.\n\n"
        "First give both keys to every refresher that uses these grants, and restart 'refresher run' or send it "
        "SIGHUP ('refresher mirror' needs a restart). Afterwards, remove previous_encryption_key. Backups still "
        "need the old key.",
    )
)
encryption.add_command(
    _changing(
        "disable",
        "Store all grants in clear text again.",
        "plain",
        "Store every grant in clear text again, as before 'enable'. It can be interrupted, and run again.\n\n"
        "First rename encryption_key to previous_encryption_key for every refresher that uses these grants, and "
        "restart 'refresher run' or send it SIGHUP ('refresher mirror' needs a restart).",
    )
)
encryption.add_command(status)
encryption.add_command(show)
