"""The commands token and headers, for programs that cannot import the shim."""

import json
from collections.abc import Callable
from functools import wraps
from typing import Final

import click

from refresher.cli.options import STOPPED, Options, command, complete_name, duration_option
from refresher.common.signals import StopSignals
from refresher.common.terminal import Progress
from shim._token import TokenFile

__all__ = ["headers", "token"]

_TIME_TO_OBSERVE: Final = 5.0


def _token_command(short_help: str) -> Callable[[Callable[[TokenFile], str | None]], click.Command]:
    """Return a decorator that turns a function into a command, which prints what the function returns for a token."""

    def decorate(written: Callable[[TokenFile], str | None]) -> click.Command:
        @command(
            short_help=short_help,
            exit_codes={
                0: "printed",
                2: "wrong usage or configuration, or unknown name",
                3: "a person must log in again",
                4: "no token in time, or the server cannot be reached; try later",
                **STOPPED,
            },
        )
        @duration_option(
            "--min-valid",
            help="The least time left that the token must have.  [default: 10s, or a quarter of a shorter lifetime]",
        )
        @duration_option("--wait", "15s", help="How long to wait for a new token.")
        @click.argument("name", shell_complete=complete_name)
        @click.pass_obj
        @wraps(written)
        def run(options: Options, name: str, min_valid: float | None, wait: float) -> int | None:
            from refresher.observers.hub import observing  # --help does not need them
            from refresher.operations.obtain_token import obtain_token

            settings = options.settings()
            # A caller waits for the end of the process, so a slow hook is ended soon.
            with StopSignals() as stopping, observing(settings, written.__name__, _TIME_TO_OBSERVE) as observers:
                found = obtain_token(
                    settings,
                    name,
                    min_valid=min_valid,
                    wait=wait,
                    stopping=stopping,
                    progress=Progress(),
                    emit=observers.emit,
                )
                click.echo(written(found))
            return stopping.exit_code

        return run

    return decorate


@_token_command("Print an access token, for scripts.")
def token(found: TokenFile) -> str | None:
    """Print the access token of NAME and nothing else.

    If the token has less than --min-valid left, token rotates the grant first. A user who cannot read the grants
    demands a rotation instead, and waits for --wait. A refresh in progress always completes, within 20 s.

    Do not pass the token as an argument: 'curl -H "Authorization: Bearer $(refresher token NAME)"' shows it in the list
    of processes.
    """
    return found.access_token


@_token_command("Print the Authorization header as JSON.")
def headers(found: TokenFile) -> str:
    """Print {"Authorization": "Bearer ..."} for NAME, for programs that run a command for their headers.

    It obtains the token as 'refresher token' does. Configure the program to send the header only to the server that the
    token is for.
    """
    from shim import FileTokenSource

    return json.dumps({"Authorization": FileTokenSource.authorization(found, found.origins[0])})
