"""The command line: what a person types, and what the exit code means."""

import logging
import math
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from refresher import __version__, clocks, config, logs, report
from refresher.config import Settings
from refresher.errors import ConfigError, DirectoryError, ImportRefused, RefresherError
from refresher.harden import harden
from refresher.overview import overview
from refresher.result import exit_code
from refresher.run_once import run_once
from refresher.signals import Stopping
from refresher.terminal import Progress, flush, say

__all__ = ["cli", "run"]

log = logging.getLogger(__name__)

_LARGEST_IMPORT: Final = 1024 * 1024

_EXIT_CODES: Final = """\b
Exit codes:
  0  all is well (rotated, adopted, not_due, too_early)
  2  usage, configuration, unknown name, unreadable directory or grant file
  3  reauthorization_required: only a person can help
  4  transient, client_rejected, storage_failed: tried again later by itself
  5  in_doubt: a request was sent and its answer was lost
  6  lock_busy: another process has been rotating it for 30 s
  129, 130, 143  stopped by a signal (hang-up, Ctrl-C, SIGTERM); nothing is lost
The gravest of several wins: 3, 5, 2, 4, 6."""


def _option(name: str, *more: Any, help: str, **rest: Any) -> Callable[[Any], Any]:  # noqa: A002  click's own word
    """Return a global option with its environment variable."""
    variable = f"REFRESHER_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, *more, envvar=variable, show_envvar=True, help=help, **rest)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with 'refresher import --help'. Agents read the tokens with the Python package 'shim'.",
)
@click.version_option(__version__, prog_name="refresher")
@_option(
    "--state-dir",
    metavar="DIR",
    help="Holds grants/.  [default: $XDG_STATE_HOME/refresher or ~/.local/state/refresher]",
)
@_option("--tokens-dir", metavar="DIR", help="Where access tokens are published.  [default: tokens/ in the state dir]")
@_option("--tokens-group", metavar="GROUP", help="A group of agents that may read the tokens and demand rotations.")
@_option("--demands-dir", metavar="DIR", help="Where agents ask for a rotation.  [default: demands/ in the state dir]")
@_option(
    "--spill-dir",
    metavar="DIR",
    help="Takes a new token when grants/ cannot.  [default: /var/tmp/refresher-UID]",
)
@_option("--ca-file", metavar="FILE", help="Certificates to trust instead of SSL_CERT_FILE or the built-in ones.")
@_option(
    "--config",
    "config_file",
    metavar="FILE",
    help="TOML with these options as keys (state_dir = ...).  [default: ~/.config/refresher/config.toml]",
)
@_option("--verbose", "-v", count=True, help="Tell what is done.")
@_option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="How logs look on stderr.  [default: text]",
)
@click.pass_context
def cli(context: click.Context, /, config_file: str | None, **given: Any) -> None:
    """Keep OAuth tokens fresh: one owner refreshes, everybody else reads.

    A grant is what you once authorized. refresher holds its refresh token, rotates it before it is needed, and
    publishes access tokens as files that agents read without a restart.

    The options below stand before the command: refresher --state-dir DIR status.
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
      client_secret_post), access_token with expires_in or expires_at,
      token_type (and id_token, which is ignored), scope, issuer,
      resource, send_resource (true where there is a resource),
      replay ("none", "unlimited", or a grace such as "30s"),
      max_age (of a token of unknown lifetime; seconds or "30m")

    \b
    Example, linear.json:
      {"token_endpoint": "https://as.example/token", "client_id": "abc",
       "refresh_token": "...", "server_url": "https://mcp.example/mcp"}
    \b
      refresher import linear --from linear.json && rm linear.json
      refresher run-once linear
    """
    from refresher import admission  # a run-once need not load what only an import needs

    if replace and if_absent:
        raise ConfigError("--replace and --if-absent exclude each other")
    admission.check_name(name)
    resolved = settings()
    if if_absent and admission.is_there(resolved.directories, name):
        # Before the file is read: start-up scripts may find it deleted after the first start.
        say(f"{name} is there already; left as it is")
        return None
    # Outside the context below: Ctrl-C while a person pastes ends at once.
    brought = admission.parse(name, _read_import(source), clocks.now())
    with Stopping() as stopping:
        admitted = admission.admit(
            resolved.directories, brought, replace=replace, if_absent=if_absent, stopping=stopping
        )
    _warn_of_bars(resolved)
    for warning in admitted.warnings:
        log.warning("warning: %s", warning)
    if admitted.stored:
        follows = "fetches its first token" if admitted.grant.access_token is None else "rotates it when due"
        say(f"imported {name} (generation {admitted.grant.generation}); 'refresher run-once' {follows}")
    else:
        say(f"{name} is there already; left as it is")
    return stopping.exit_code


@cli.command("run-once", epilog=_EXIT_CODES)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--force", is_flag=True, help="Rotate beyond the present generation, due or not.")
@click.option(
    "--horizon",
    type=float,
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
    if not 0 <= horizon < math.inf:
        raise ConfigError("--horizon must be a number of seconds, 0 or more")
    resolved = settings()
    _warn_of_bars(resolved)
    with Stopping() as stopping:
        results = run_once(resolved, names, force=force, horizon=horizon, stopping=stopping, waiting=Progress())
    code = exit_code(results) if stopping.exit_code is None else stopping.exit_code
    if not results:
        _no_grants(resolved)
    if as_json:
        say(report.results_json(results, code))
    elif results:
        say(report.results_table(results))
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
    entries = overview(resolved.directories, names)
    if not entries:
        _no_grants(resolved)
    if as_json:
        say(report.status_json(entries))
    elif entries:
        say(report.status_table(entries))


@cli.command("remove")
@click.argument("name")
@click.pass_obj
def remove_(settings: Callable[[], Settings], name: str) -> int | None:
    """Forget the grant NAME and tell its readers; its refresh token is deleted here.

    Nothing is revoked at the authorization server: do that in your account there.
    """
    from refresher.removal import remove  # as above

    resolved = settings()
    with Stopping() as stopping:
        remove(resolved.directories, name, stopping=stopping)
    say(f"removed {name}; at the authorization server the authorization lives until you revoke it there")
    return stopping.exit_code


def _warn_of_bars(settings: Settings) -> None:
    for directory in settings.directories.barring():
        log.warning(
            "warning: group %s cannot pass %s to its tokens: chmod o+x it", settings.directories.group, directory
        )


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no error a person can cause ends in a traceback."""
    harden()
    logs.setup("text", 0)
    try:
        return _run(arguments)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    finally:
        flush()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name="refresher", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except RefresherError as error:
        return _fail(str(error), error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "refresher"
        return _fail(f"{error.format_message()} (see '{path} --help')", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except OSError as error:
        # --help and --version print without say().
        return _fail(f"cannot write: {error.strerror}", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    log.error("%s", " ".join(message.split()))
    return code


def _no_grants(settings: Settings) -> None:
    if settings.state_given and not settings.directories.state.exists():
        raise DirectoryError(f"there is no state directory {settings.directories.state}; 'refresher import' makes it")
    say(f"no grants in {settings.directories.grants} yet; see 'refresher import --help'", err=True)


def _read_import(source: str) -> bytes:
    path = Path(source)
    try:
        if source == "-":
            data = sys.stdin.buffer.read(_LARGEST_IMPORT + 1)
        else:
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                log.warning("warning: others can read %s: chmod 600 it, or delete it once imported", path)
            with path.open("rb") as file:
                data = file.read(_LARGEST_IMPORT + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {source}: {getattr(error, 'strerror', None) or 'not a path'}") from None
    if len(data) > _LARGEST_IMPORT:
        raise ImportRefused(f"{source} is larger than 1 MiB: that is no grant")
    if not data.strip():
        raise ImportRefused(f"{'standard input' if source == '-' else source} is empty; see 'refresher import --help'")
    return data
