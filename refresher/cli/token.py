"""The commands token and headers, for programs that cannot import the shim."""

import json
from collections.abc import Callable
from typing import Any, Final

import click

from refresher.cli.options import DURATION, STOPPED, Options, command, complete_name
from refresher.common.signals import StopSignals
from refresher.common.terminal import Progress
from shim._token import TokenFile

__all__ = ["headers", "token"]

_EXIT_CODES: Final[dict[int | str, str]] = {
    0: "printed",
    2: "wrong usage or configuration, or unknown name",
    3: "a person must log in again",
    4: "no token in time, or the server cannot be reached; try later",
    **STOPPED,
}


def _token_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what both commands accept."""
    for parameter in (
        click.option(
            "--wait",
            type=DURATION,
            default="15s",
            metavar="DURATION",
            help="How long to wait for a new token.  [default: 15s]",
        ),
        click.option(
            "--min-valid",
            type=DURATION,
            metavar="DURATION",
            help="The least time left that the token must have.  [default: 10s, or a quarter of a shorter life]",
        ),
        click.argument("name", shell_complete=complete_name),
    ):
        function = parameter(function)
    return function


@command(short_help="Print an access token, for scripts.", exit_codes=_EXIT_CODES)
@_token_options
@click.pass_obj
def token(options: Options, name: str, min_valid: float | None, wait: float) -> int | None:
    """Print the access token of NAME and nothing else.

    If the token has less than --min-valid left, token rotates the grant first. A user who cannot read the grants
    requests a rotation instead, and waits for --wait. A refresh in progress always completes, within 20 s.

    Do not pass the token as an argument: 'curl -H "Authorization: Bearer $(refresher token NAME)"' shows it in the list
    of processes.
    """
    found, code = _obtain(options, name, min_valid, wait)
    if found is not None:
        click.echo(found.access_token)
    return code


@command(short_help="Print the Authorization header as JSON.", exit_codes=_EXIT_CODES)
@_token_options
@click.pass_obj
def headers(options: Options, name: str, min_valid: float | None, wait: float) -> int | None:
    """Print {"Authorization": "Bearer ..."} for NAME, for programs that run a command for their headers.

    It obtains the token as 'refresher token' does. Configure the program to send the header only to the server that the
    token is for.
    """
    found, code = _obtain(options, name, min_valid, wait)
    if found is not None:
        from shim import FileTokenSource

        click.echo(json.dumps({"Authorization": FileTokenSource.authorization(found, found.origins[0])}))
    return code


def _obtain(options: Options, name: str, min_valid: float | None, wait: float) -> tuple[TokenFile | None, int | None]:
    from refresher.operations.obtain_token import obtain_token  # --help does not need the shim's source

    settings = options.settings()
    with StopSignals() as stopping:
        found = obtain_token(settings, name, min_valid=min_valid, wait=wait, stopping=stopping, progress=Progress())
    return found, stopping.exit_code
