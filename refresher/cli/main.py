"""The command line: what a person types, and what the exit code means."""

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final

import click

from refresher import __version__
from refresher.cli.hardening import harden
from refresher.cli.options import Asked
from refresher.common import logs
from refresher.common.errors import RefresherError
from refresher.common.terminal import flush, say

__all__ = ["cli", "run"]

# A run each minute pays for what it loads: its own command alone.
_COMMANDS: Final = {
    "login": ("login", "login"),
    "run": ("run", "run_"),
    "run-once": ("run", "run_once_"),
    "status": ("status", "status"),
    "health": ("health", "health"),
    "token": ("token", "token"),
    "headers": ("token", "headers"),
    "logout": ("login", "logout"),
    "import": ("import_", "import_"),
    "remove": ("status", "remove_"),
    "demo": ("demo", "demo"),
    "completion": ("completion", "completion"),
}

log = logging.getLogger(__name__)


def _option(name: str, *more: Any, help: str, **rest: Any) -> Callable[[Any], Any]:  # noqa: A002  click's own word
    """Return a global option with its environment variable."""
    variable = f"REFRESHER_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, *more, envvar=variable, show_envvar=True, help=help, **rest)


class _Group(click.Group):
    """Lists the commands in the order in which a person meets them, and loads the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  likewise
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"refresher.cli.{module}"), name)
        return command


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with 'refresher demo', then 'refresher login NAME URL'. "
    "Agents read the tokens with the Python package 'shim'.",
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
    context.obj = Asked({**given, "verbose": given["verbose"] or None}, config_file)


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
        # --help and --version print without say(), and so do those whose output is all they are for.
        return _fail(f"cannot write: {error.strerror}", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    # Servers' words are in it: one line, and nothing that a terminal obeys.
    log.error("%s", " ".join("".join(char if char.isprintable() else " " for char in message).split()))
    return code
