"""The command line: what a person types, and what the exit code means."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from refresher import __version__, clocks, config, logs, report, store
from refresher.admission import Admitted, admit, check_name, parse
from refresher.config import Settings
from refresher.errors import ConfigError, GrantFileError, RefresherError, UnknownName
from refresher.grant import Grant
from refresher.harden import harden
from refresher.removal import remove
from refresher.result import exit_code
from refresher.run_once import run_once
from refresher.signals import Stopping
from refresher.urls import is_loopback
from shim._token import is_name

__all__ = ["cli", "run"]

_LARGEST_IMPORT: Final = 1024 * 1024
_WORTH_TELLING: Final = 1.0

_EXIT_CODES: Final = """\b
Exit codes:
  0  all is well (rotated, adopted, not_due, too_early)
  2  usage, configuration, unknown name, unreadable directory or grant file
  3  reauthorization_required: only a person can help
  4  transient, client_rejected, storage_failed: tried again later by itself
  5  in_doubt: a request was sent and its answer was lost
  6  lock_busy: another process has been rotating it for 30 s
  130, 143  interrupted; nothing is lost
The gravest of several wins: 3, 5, 2, 4, 6."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with 'refresher import --help'. Agents read the tokens with the Python package 'shim'.",
)
@click.version_option(__version__, prog_name="refresher")
@click.option(
    "--state-dir",
    envvar="REFRESHER_STATE_DIR",
    type=click.Path(),
    show_envvar=True,
    help="Holds grants/.  [default: $XDG_STATE_HOME/refresher or ~/.local/state/refresher]",
)
@click.option(
    "--tokens-dir",
    envvar="REFRESHER_TOKENS_DIR",
    type=click.Path(),
    show_envvar=True,
    help="Where access tokens are published.  [default: tokens/ in the state directory]",
)
@click.option(
    "--tokens-group",
    envvar="REFRESHER_TOKENS_GROUP",
    metavar="GROUP",
    show_envvar=True,
    help="A group of agents that may read the tokens and demand rotations.",
)
@click.option(
    "--demands-dir",
    envvar="REFRESHER_DEMANDS_DIR",
    type=click.Path(),
    show_envvar=True,
    help="Where agents ask for a rotation.  [default: demands/ in the state directory]",
)
@click.option(
    "--spill-dir",
    envvar="REFRESHER_SPILL_DIR",
    type=click.Path(),
    show_envvar=True,
    help="Takes a new token when grants/ cannot.  [default: /var/tmp/refresher-UID]",
)
@click.option(
    "--ca-file",
    envvar="REFRESHER_CA_FILE",
    type=click.Path(),
    show_envvar=True,
    help="Certificates to trust, in place of SSL_CERT_FILE or the built-in ones.",
)
@click.option(
    "--config",
    "config_file",
    envvar="REFRESHER_CONFIG",
    type=click.Path(),
    show_envvar=True,
    help="A TOML file with these options as keys.  [default: ~/.config/refresher/config.toml]",
)
@click.option(
    "-v",
    "--verbose",
    count=True,
    envvar="REFRESHER_VERBOSE",
    show_envvar=True,
    help="Tell what is done; twice: everything.",
)
@click.option(
    "--log-format",
    envvar="REFRESHER_LOG_FORMAT",
    type=click.Choice(["text", "json"]),
    show_envvar=True,
    help="How logs look on stderr.  [default: text]",
)
@click.pass_context
def cli(context: click.Context, /, config_file: str | None, **given: Any) -> None:
    """Keep OAuth tokens fresh: one owner refreshes, everybody else reads.

    A grant is what you once authorized. refresher holds its refresh token, rotates it before it is needed, and
    publishes access tokens as files that agents read without a restart.
    """
    # Resolved when a command asks, so that --help works whatever the configuration says.
    given["verbose"] = given["verbose"] or None
    context.obj = lambda: _settings(given, config_file)


def _settings(given: dict[str, Any], config_file: str | None) -> Settings:
    settings = config.resolve(given, config_file)
    logs.setup(settings.log_format, settings.verbose)
    return settings


@cli.command("import")
@click.argument("name")
@click.option("--from", "source", required=True, metavar="FILE|-", help="The JSON to import; '-' is standard input.")
@click.option("--replace", is_flag=True, help="Put it in the place of an existing grant; the generation goes on.")
@click.option("--if-absent", is_flag=True, help="Leave an existing grant alone and exit 0 (for start-up scripts).")
@click.pass_obj
def import_(settings: Callable[[], Settings], name: str, source: str, replace: bool, if_absent: bool) -> int | None:
    """Import a grant as NAME: a refresh token and where to use it, as JSON.

    \b
    Required:
      token_endpoint   https://... of the authorization server
      client_id        of the client that the refresh token was issued to
      refresh_token    from now on refresher's alone: use it nowhere else
      server_url       the MCP server or API that takes the access token
                       (or origins: ["https://host", ...])
    Optional:
      client_secret, token_endpoint_auth_method (none, client_secret_basic,
      client_secret_post), access_token with expires_in or expires_at, scope,
      issuer, resource, send_resource (true where there is a resource),
      replay ("none", "unlimited", or a grace such as "30s"),
      max_age (of a token of unknown lifetime; seconds or "30m")

    \b
    Example:
      refresher import linear --from linear.json && rm linear.json
      refresher run-once linear
    """
    if replace and if_absent:
        raise ConfigError("--replace and --if-absent exclude each other")
    check_name(name)
    resolved = settings()
    data = _read_import(source)
    with Stopping() as stopping:
        brought = parse(name, data, clocks.now())
        admitted = admit(resolved.directories, brought, replace=replace, if_absent=if_absent, stopping=stopping)
        for warning in (*admitted.warnings, *_cautions(admitted)):
            click.echo(f"refresher: warning: {warning}", err=True)
        if not admitted.stored:
            click.echo(f"{name} is there already (generation {admitted.grant.generation}); left as it is")
        else:
            click.echo(
                f"imported {name} (generation {admitted.grant.generation}); 'refresher run-once' rotates it when due"
            )
    return stopping.exit_code


@cli.command("run-once", epilog=_EXIT_CODES)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--force", is_flag=True, help="Rotate beyond the present generation, due or not.")
@click.option(
    "--horizon",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Time to the next run: rotate what would fall due before it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def run_once_(
    settings: Callable[[], Settings], names: tuple[str, ...], force: bool, horizon: float, as_json: bool
) -> int:
    """Rotate what is due or demanded, of all grants or of those named.

    Safe to run at any time, as often as you like and several at once: each grant is rotated by one process, the
    others adopt what it fetched. Under cron, give --horizon a little more than the interval.

    --force asks for a token newer than the one that was there when the command began. It skips a backoff, and tries
    once more where the server has refused the grant; it does not skip the wait of a grant in doubt.
    """
    resolved = settings()
    with Stopping() as stopping:
        results = run_once(resolved, names, force=force, horizon=horizon, stopping=stopping, waiting=_Progress())
    code = exit_code(results) if stopping.exit_code is None else stopping.exit_code
    if as_json:
        click.echo(report.results_json(results, code))
    elif results:
        click.echo(report.results_table(results))
    else:
        _no_grants(resolved)
    return code


@cli.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.pass_obj
def status(settings: Callable[[], Settings], names: tuple[str, ...], as_json: bool) -> None:
    """Show each grant: its state, its token's time left, its next rotation, its last error.

    \b
    States:
      active                    all is well
      failing                   the last attempt failed; it is repeated by itself
      reauthorization_required  only a person can help: import it anew
      invalid_grant_file        the record is damaged; its error says what to do
    """
    resolved = settings()
    entries = _entries(resolved, names)
    if as_json:
        click.echo(report.status_json(entries))
    elif entries:
        click.echo(report.status_table(entries))
    else:
        _no_grants(resolved)


@cli.command("remove")
@click.argument("name")
@click.pass_obj
def remove_(settings: Callable[[], Settings], name: str) -> int | None:
    """Forget the grant NAME and tell its readers; its refresh token is deleted here.

    Nothing is revoked at the authorization server: do that in your account there.
    """
    resolved = settings()
    with Stopping() as stopping:
        remove(resolved.directories, name, stopping=stopping)
        click.echo(f"removed {name}; at the authorization server the authorization lives until you revoke it there")
    return stopping.exit_code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no error a person can cause ends in a traceback."""
    harden()
    try:
        code = cli.main(arguments, prog_name="refresher", standalone_mode=False)
        sys.stdout.flush()
    except RefresherError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "refresher"
        return _fail(f"{error.format_message()} (see '{path} --help')", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was changed", 130)
    except BrokenPipeError:
        # The reader of a pipe left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    click.echo(f"refresher: {line}", err=True)
    return code


def _entries(settings: Settings, names: tuple[str, ...]) -> list[report.Entry]:
    directories = settings.directories
    listing = directories.listing()
    entries: list[report.Entry] = []
    for name in dict.fromkeys(names or listing.names):
        if not is_name(name) or name not in listing.names:
            if names:
                raise UnknownName(f"there is no grant named {name!r}")
            continue
        try:
            record = store.load(directories, name).record
        except GrantFileError as error:
            entries.append((name, error))
            continue
        if isinstance(record, Grant):
            entries.append((name, record))
        elif names:
            raise UnknownName(f"{name} was removed")
    return entries


def _cautions(admitted: Admitted) -> list[str]:
    """Return what a person should know about a grant that works all the same."""
    return [
        f"{origin} is not https: the access token crosses the network in the clear"
        for origin in admitted.grant.origins
        if origin.startswith("http:") and not is_loopback(urlsplit(origin).hostname or "")
    ]


class _Progress:
    """Tells a person at a terminal what a run is waiting for, once it takes longer than a second."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told: list[str] = []

    def __call__(self, names: list[str]) -> None:
        if names != self._told and time.monotonic() - self._began > _WORTH_TELLING and sys.stderr.isatty():
            self._told = names
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            click.echo(f"refresher: waiting for {shown}", err=True)


def _no_grants(settings: Settings) -> None:
    click.echo(f"no grants in {settings.directories.grants} yet; see 'refresher import --help'", err=True)


def _read_import(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read(_LARGEST_IMPORT)
    path = Path(source)
    try:
        if path.stat().st_mode & 0o077:
            click.echo(
                f"refresher: warning: others can read {path}: chmod 600 it, or delete it once imported", err=True
            )
        with path.open("rb") as file:
            return file.read(_LARGEST_IMPORT)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
