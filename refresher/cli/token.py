"""Commands for programs that cannot import the shim: token, and headers."""

import json
from collections.abc import Callable
from typing import Any

import click

from refresher.cli.completion import complete_name
from refresher.cli.options import DURATION, Asked
from refresher.common.signals import Stopping
from refresher.common.terminal import Progress
from shim._token import TokenFile

__all__ = ["headers", "token"]

_EXIT_CODES = """\b
Exit codes:
  0  printed
  2  usage, configuration, unknown name
  3  only a person can help
  4  not in time, or the server is away; try again later"""


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what both commands take."""
    command = click.option(
        "--wait",
        type=DURATION,
        default="15s",
        metavar="DURATION",
        help="How long to wait for another token.  [default: 15s]",
    )(command)
    command = click.option(
        "--min-valid",
        type=DURATION,
        metavar="DURATION",
        help="The least that the token must have to live.  [default: 10s, or a quarter of a shorter life]",
    )(command)
    return click.argument("name", shell_complete=complete_name)(command)


@click.command(epilog=_EXIT_CODES, short_help="Print an access token, for scripts.")
@_options
@click.pass_obj
def token(asked: Asked, name: str, min_valid: float | None, wait: float) -> int | None:
    """Print the access token of NAME, and nothing else.

    Where it has less than --min-valid to live, it is rotated first, if the grant is this user's; else the refresher is
    asked to, and given --wait to do it. An exchange that has begun is finished whatever happens, 20 s at most.

    Mind where it goes: 'curl -H "Authorization: Bearer $(refresher token NAME)"' shows it in the list of processes.
    """
    found, code = _found(asked, name, min_valid, wait)
    if found is not None:
        click.echo(found.access_token)
    return code


@click.command(epilog=_EXIT_CODES, short_help="Print the Authorization header as JSON.")
@_options
@click.pass_obj
def headers(asked: Asked, name: str, min_valid: float | None, wait: float) -> int | None:
    """Print {"Authorization": "Bearer ..."} for NAME, for programs that take a command for their headers.

    As 'refresher token', in JSON. Such a program sends them where it is configured to; see to it that this is the
    server the token is for.
    """
    found, code = _found(asked, name, min_valid, wait)
    if found is not None:
        from shim import FileTokenSource

        click.echo(json.dumps({"Authorization": FileTokenSource.authorization(found, found.origins[0])}))
    return code


def _found(asked: Asked, name: str, min_valid: float | None, wait: float) -> tuple[TokenFile | None, int | None]:
    from refresher.operations.obtain_token import hand_out  # a run-once need not load the shim's source

    settings = asked.settings()
    with Stopping() as stopping:
        found = hand_out(settings, name, min_valid=min_valid, wait=wait, stopping=stopping, waiting=Progress())
    return found, stopping.exit_code
