"""The commands token and headers, for programs that cannot import the shim."""

import json
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from refresher.cli.options import STOPPED, Options, command, complete_name, duration_option
from refresher.common.errors import ConfigError
from refresher.common.signals import StopSignals
from refresher.common.terminal import Progress
from shim._source import FileTokenSource
from shim._token import TokenFile

__all__ = ["headers", "rotate_detached", "token"]

_TIME_TO_OBSERVE: Final = 2.0
"""Seconds for the observers: a command waits for the end of the process, so a slow hook is ended soon."""

_SHORTEST_PROBE: Final = 0.5
_YEAR_10000: Final = 253402300800

_F = TypeVar("_F", bound=Callable[..., Any])

_CODES: Final[dict[int | str, str]] = {
    0: "printed",
    2: "wrong usage or configuration, or unknown name",
    3: "a person must log in again",
    4: "no token in time, or the server cannot be reached; try later",
    **STOPPED,
}


def _token_options(function: _F) -> _F:
    """Add what both commands have."""
    for add in (
        click.argument("name", shell_complete=complete_name),
        # Claude Code and codex end a helper after 10 s: a person must read the message before.
        duration_option(
            "--wait",
            "8s",
            help="How long to wait for a new token; Claude Code and codex give a helper 10 s.",
        ),
        duration_option(
            "--min-valid",
            help="The least time left that the token must have.  [default: 10s, or a quarter of a shorter lifetime]",
        ),
    ):
        function = add(function)
    return function


def _print(
    options: Options,
    name: str,
    program: str,
    written: Callable[[TokenFile], str | None],
    *,
    min_valid: float | None,
    wait: float,
    refusal: Callable[[TokenFile, float], str | None] = lambda _token, _left: None,
    stopping: StopSignals,
) -> int | None:
    """Obtain a token, and print what ``written`` returns for it; return the exit code of a signal."""
    from refresher.operations.detached_rotation import DetachedRotation  # --help does not need them
    from refresher.operations.obtain_token import obtain_token

    settings = options.settings()
    arguments = [*options.arguments(), "rotate-detached", "--", name, program]
    with stopping, DetachedRotation(name, arguments, wait) as rotation:
        found = obtain_token(
            settings,
            name,
            min_valid=min_valid,
            wait=wait,
            rotation=rotation,
            stopping=stopping,
            progress=Progress(),
            refusal=refusal,
        )
        click.echo(written(found))
    return stopping.exit_code


@command(short_help="Print an access token, for scripts.", exit_codes=_CODES)
@_token_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["raw", "header", "env", "exec-credential"]),
    help="What to print: the token (raw), a header line, a line for eval, or a credential for kubectl.  [default: raw]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def token(options: Options, name: str, min_valid: float | None, wait: float, form: str | None, as_json: bool) -> Any:
    """Print the access token of NAME and nothing else.

    If the token has less than --min-valid left, token rotates the grant first. A user who cannot read the grants
    demands a rotation instead, and waits for --wait. A refresh in progress always completes, also if this command is
    killed.

    Do not pass the token as an argument: 'curl -H "Authorization: Bearer $(refresher token NAME)"' shows it in the list
    of processes. 'refresher token NAME --format header | curl -H @- URL' does not.
    """
    if as_json and form is not None:
        raise click.UsageError("--json and --format exclude each other: give one of them")
    written = _FORMATS["json" if as_json else form or "raw"]
    return _print(options, name, "token", written, min_valid=min_valid, wait=wait, stopping=StopSignals(quiet=True))


@command(short_help="Print the Authorization header as JSON.", exit_codes=_CODES)
@_token_options
@click.option(
    "--verify", is_flag=True, help="Try the token at its server first, and get another one if the server refuses it."
)
@click.option(
    "--verify-url",
    metavar="URL",
    help="Where --verify tries it: an address at an origin of the token.  [default: the server_url of the grant]",
)
@click.pass_obj
def headers(
    options: Options, name: str, min_valid: float | None, wait: float, verify: bool, verify_url: str | None
) -> Any:
    """Print {"Authorization": "Bearer ..."} for NAME, for programs that run a command for their headers.

    It obtains the token as 'refresher token' does. Configure the program to send the header only to the server that the
    token is for.

    With --verify, a program that runs the command again after a 401 gets a new token: if the server refuses the token,
    headers demands another and waits for it. If there is none in time, it warns and prints the refused one. The request
    to the server changes nothing there, and takes 3 s at most.
    """
    if verify_url is not None and not verify:
        raise click.UsageError("--verify-url is for --verify: give both, or neither")
    stopping = StopSignals(quiet=True)

    def refusal(found: TokenFile, left: float) -> str | None:
        return _refusal(options, found, verify_url, left, stopping)

    more: dict[str, Any] = {"refusal": refusal} if verify else {}
    return _print(options, name, "headers", _headers, min_valid=min_valid, wait=wait, stopping=stopping, **more)


def _refusal(options: Options, found: TokenFile, url: str | None, left: float, stopping: StopSignals) -> str | None:
    """Return the origin that refuses a token, or ``None``; ``left``: the seconds left. Raises ``ConfigError``."""
    from refresher.operations import token_probe
    from shim._origins import origin_of_url

    # An address may hold a key: no message repeats it.
    origin = origin_of_url(url or found.server_url or "")
    if origin is None and (url or found.server_url):
        raise ConfigError(f"{found.name}: {'--verify-url' if url else 'its server_url'} is not a URL: correct it")
    if origin is None:
        raise ConfigError(f"{found.name}: its server is not known: give --verify-url, or leave out --verify")
    authorization = FileTokenSource.authorization(found, origin)
    if authorization is None:
        allowed = " or ".join(found.origins)
        raise ConfigError(f"{found.name}: its token is not for {origin}: give --verify-url an address at {allowed}")
    refused = token_probe.is_refused(
        url or found.server_url or "",
        authorization,
        ca_file=options.resolve().ca_file,
        timeout=min(token_probe.LONGEST, max(left, _SHORTEST_PROBE)),
        stopping=stopping,
    )
    return origin if refused else None


def _headers(found: TokenFile) -> str:
    return json.dumps({"Authorization": FileTokenSource.authorization(found, found.origins[0])})


def _header(found: TokenFile) -> str:
    return f"Authorization: {FileTokenSource.authorization(found, found.origins[0])}"


def _env(found: TokenFile) -> str:
    import shlex

    return f"ACCESS_TOKEN={shlex.quote(found.access_token or '')}"


def _json(found: TokenFile) -> str:
    fields = ("access_token", "token_type", "expires_at", "generation", "origins")
    return json.dumps({field: getattr(found, field) for field in fields})


def _exec_credential(found: TokenFile) -> str:
    """Return what kubectl and other programs of client-go read from a credential plugin."""
    status = {"token": found.access_token}
    if found.expires_at is not None and 0 <= found.expires_at < _YEAR_10000:
        status["expirationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.expires_at))
    return json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})


_FORMATS: Final[dict[str, Callable[[TokenFile], str | None]]] = {
    "raw": lambda found: found.access_token,
    "header": _header,
    "env": _env,
    "json": _json,
    "exec-credential": _exec_credential,
}


@command(short_help="Rotate a grant for token or headers.", exit_codes={0: "reported"})
@click.argument("name")
@click.argument("program")
@click.argument("lock_until", type=float)
@click.pass_obj
def rotate_detached(options: Options, name: str, program: str, lock_until: float) -> None:
    """Rotate NAME if necessary, in a process of its own, and write the result for PROGRAM."""
    from refresher.observers.hub import observing
    from refresher.operations.detached_rotation import report
    from refresher.operations.obtain_token import rotate_if_necessary

    options.add(log_format="json")
    settings = options.settings()
    lock_wait = max(lock_until - time.monotonic(), 0.1)
    with StopSignals(quiet=True) as stopping, observing(settings, program, _TIME_TO_OBSERVE) as observers:
        report(rotate_if_necessary(settings, name, lock_wait=lock_wait, stopping=stopping, emit=observers.emit), name)
