"""The command status."""

import shutil
import sys
from collections.abc import Callable, Collection
from typing import Final

import click

from refresher.cli.options import Options, command, complete_name
from refresher.cli.tables import check_state, print_rows
from refresher.common import clocks, text
from refresher.common.errors import GrantFileError
from refresher.common.terminal import say, show
from refresher.config import Settings
from refresher.grants import accounts, policy
from refresher.grants.forecast import EndKind, first_hard_end
from refresher.grants.record import Grant, Moved
from refresher.grants.token_file import state_of
from refresher.operations import certificates
from refresher.operations import names as names_of
from refresher.operations.grant_report import (
    INVALID,
    ending_soon,
    ends_of,
    fields_of,
    is_overdue,
    last_error,
    next_rotation_at,
)
from refresher.operations.inspection import ListedGrant, list_grants, usable
from refresher.storage import last_run

__all__ = ["status"]

_Column = Callable[[Grant], str]

_WIDEST_ACCOUNT: Final = 24
_SUFFIXES: Final[dict[EndKind, str]] = {"client_secret": " (client)", "certificate": " (certificate)"}
_OVERDUE: Final = "overdue: is 'refresher run' or cron running?"


@command(
    short_help="Show each grant: state, time left, next rotation.",
    exit_codes={
        0: "shown, in any state (with --exit-code: all is well)",
        1: "with --exit-code: overdue, failing, or LOGIN ENDS within 7 days",
        2: "wrong usage, configuration or name; with --exit-code, a bad grant file",
        3: "with --exit-code: a person must log in again",
    },
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.option("--exit-code", is_flag=True, help="Exit with 1, 2 or 3 if not all is well.")
@click.option("--watch", "-w", "live", is_flag=True, help="Show it live in the terminal, until Ctrl-C.")
@click.pass_obj
def status(options: Options, names: tuple[str, ...], as_json: bool, exit_code: bool, live: bool) -> int:
    """Show each grant: its state, the time left of its token, its next rotation, its last error.

    If a login, its client or its certificate ends at a known time, it shows that time. If nobody refreshes, a grant is
    overdue.

    \b
    States:
      active                    all is well
      failing                   the last attempt failed; retried automatically; or
                                a server refuses each new token
      reauthorization_required  a person must log in again
      invalid_grant_file        the grant file is damaged or readable by others,
                                or its key is missing; the error says what to do
    """
    if live and (as_json or exit_code):
        raise click.UsageError(f"--watch does not work with {'--json' if as_json else '--exit-code'}: give one of them")
    settings = options.settings()
    if live:
        return _watch(settings, names)
    moved: list[Moved] = []
    store = settings.open_store()
    found = list_grants(store, names, moved=None if names else moved)
    entries = [(name, usable(store, grant)) for name, grant in found]
    # On a terminal, a row of the table is a line; one that was named is shown whole.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() and not names else None
    with certificates.reading(grant for _, grant in entries if isinstance(grant, Grant)):
        return _show(settings, entries, moved, width, as_json=as_json, exit_code=exit_code)


def _watch(settings: Settings, names: tuple[str, ...]) -> int:
    if names:
        list_grants(settings.open_store(), names)  # raises for an unknown name
    else:
        settings.open_store().listing()
        check_state(settings)
    from refresher.cli.watch import watch  # rich: 60 ms

    return watch(settings, names)


def _show(
    settings: Settings,
    entries: list[ListedGrant],
    moved: list[Moved],
    width: int | None,
    *,
    as_json: bool,
    exit_code: bool,
) -> int:
    late = last_run.is_overdue(settings.directories, clocks.now().wall)
    overdue = {name for name, grant in entries if isinstance(grant, Grant) and is_overdue(grant, late)}
    fields = {"grants": [fields_of(name, grant, name in overdue) for name, grant in entries]} if as_json else None
    if fields is not None and moved:
        fields["moved"] = [
            {"name": each.name, "place": each.place, "arriving": each.arriving is not None} for each in moved
        ]
    # Most servers name neither an account nor an end: without one, the table stays narrow.
    grants = [grant for _, grant in entries if isinstance(grant, Grant)]
    columns: dict[str, _Column] = {}
    if any(grant.account is not None for grant in grants):
        columns["ACCOUNT"] = _account
    if any(first_hard_end(ends_of(grant)) is not None for grant in grants):
        columns["LOGIN ENDS"] = _login_ends
    rows = [_row(name, grant, columns.values(), name in overdue) for name, grant in entries]
    titles = ("NAME", "STATE", "GENERATION", "TIME LEFT", "NEXT ROTATION", *columns, "LAST ERROR")
    print_rows(settings, titles, rows, fields, show, warned=overdue, width=width, hint=not moved)
    if not as_json:
        for line in _moves(moved):
            say(line, err=True)
    codes = {_exit_code(grant, name in overdue) for name, grant in entries} if exit_code else {0}
    return max(codes, default=0)


def _moves(moved: list[Moved]) -> list[str]:
    """Return a line for each place where grants are now, and for each grant whose move is not complete."""
    left: dict[str, list[str]] = {}
    for each in moved:
        if each.arriving is None:
            left.setdefault(each.place, []).append(each.name)
    lines = [f"moved to {place}: {text.names(there)}" for place, there in left.items()]
    return lines + [str(names_of.moved(each)) for each in moved if each.arriving is not None]


def _exit_code(grant: Grant | GrantFileError, overdue: bool) -> int:
    if isinstance(grant, GrantFileError):
        return 2
    if (state := state_of(grant)) == "reauthorization_required":
        return 3
    ending = ending_soon(ends_of(grant)) is not None
    return 1 if overdue or ending or state != "active" or grant.doubt is not None else 0


def _row(name: str, grant: Grant | GrantFileError, columns: Collection[_Column], overdue: bool) -> tuple[str, ...]:
    if isinstance(grant, GrantFileError):
        return (name, INVALID, "-", "-", "-", *("-" for _ in columns), str(grant))
    now = clocks.now().wall
    return (
        name,
        state_of(grant),
        str(grant.generation),
        _time_left(grant, now),
        _OVERDUE if overdue else _next_rotation(grant, now),
        *(column(grant) for column in columns),
        "-" if (error := last_error(grant)) is None else error.description,
    )


def _account(grant: Grant) -> str:
    shown = "-" if grant.account is None else accounts.shown(grant.account)
    return shown if len(shown) <= _WIDEST_ACCOUNT else f"{shown[: _WIDEST_ACCOUNT - 3]}..."


def _next_rotation(grant: Grant, now: float) -> str:
    planned = next_rotation_at(grant)
    if planned is None:
        return "-"
    return "now" if planned <= now else f"in {text.span(planned - now)}"


def _time_left(grant: Grant, now: float) -> str:
    if not policy.has_access_token(grant):
        return "no token yet"
    if grant.expires_at is None:
        return "unknown"
    left = grant.expires_at - now
    return text.span(left) if left > 0 else f"expired {text.span(left)} ago"


def _login_ends(grant: Grant) -> str:
    if (end := first_hard_end(ends_of(grant))) is None:
        return "-"
    left = end.at - clocks.now().wall
    return (f"in {text.span(left)}" if left > 0 else f"{text.span(left)} ago") + _SUFFIXES.get(end.kind, "")
