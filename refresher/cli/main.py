"""The command line: finds the command, runs it, and returns its exit code."""

import errno
import logging
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from refresher import __version__
from refresher.cli.options import ARGUMENTS_BEFORE, GLOBAL_OPTIONS, Options
from refresher.common import logs, text
from refresher.common.errors import RefresherError
from refresher.common.terminal import flush, say

__all__ = ["cli", "run"]

# Under cron the program starts every minute, so it imports only the module of the command that runs.
_COMMANDS: Final = {
    "login": ("login", "login"),
    "run": ("run", "run"),
    "run-once": ("run", "run_once"),
    "status": ("status", "status"),
    "mirror": ("mirror", "mirror"),
    "events": ("events", "events"),
    "health": ("health", "health"),
    "doctor": ("doctor", "doctor"),
    "token": ("token", "token"),
    "headers": ("token", "headers"),
    "stdio": ("stdio", "stdio"),
    "gateway": ("gateway", "gateway"),
    "store": ("store", "store"),
    "encryption": ("encryption", "encryption"),
    "connect": ("connect", "connect"),
    "logout": ("logout", "logout"),
    "import": ("import_", "import_"),
    "remove": ("logout", "remove"),
    "demo": ("demo", "demo"),
    "completion": ("completion", "completion"),
}
# What refresher starts itself; the help does not list it.
_INTERNAL: Final = {"rotate-detached": ("token", "rotate_detached")}

_PR_SET_DUMPABLE: Final = 4

log = logging.getLogger(__name__)


class _Group(click.Group):
    """Lists the commands in the order in which people need them, and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  likewise
        if (place := _COMMANDS.get(cmd_name) or _INTERNAL.get(cmd_name)) is None:
            return None
        module, name = place
        command: click.Command = getattr(import_module(f"refresher.cli.{module}"), name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            after = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = next((word for word in given if word in _COMMANDS), "")
            command = self.get_command(ctx, name)
            if command is None or all(error.option_name not in parameter.opts for parameter in command.params):
                raise
            ctx.fail(f"{error.option_name} is an option of {name}: give it after {name!r}")
        ctx.meta[ARGUMENTS_BEFORE] = given[: len(given) - len(after) - 1]
        return after

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS | _INTERNAL and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            meant = next((f"; did you mean {name!r}?" for name in get_close_matches(args[0], _COMMANDS, 1)), "")
            ctx.fail(f"no such command {args[0]!r}{meant}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Group,
    params=[*GLOBAL_OPTIONS],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with 'refresher demo', then 'refresher login NAME URL'. "
    "Agents read the tokens with the Python package 'shim'.",
)
@click.version_option(__version__, prog_name="refresher")
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Keep OAuth tokens fresh: one process refreshes them, all agents read them.

    A grant is what you once authorized. refresher holds its refresh token, rotates it before it expires, and publishes
    access tokens as files that agents read without a restart.

    The options below are accepted before and after the command: 'refresher --state-dir DIR status' and 'refresher
    status --state-dir DIR' do the same. If an option is given twice, the last one counts.
    """
    context.obj = Options({**given, "verbose": given["verbose"] or None})


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no error that a person can cause ends in a traceback."""
    _harden()
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
        return _fail(_usage_error(error), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except OSError as error:
        # --help, --version, token and headers print without say(): they are of no use without their output.
        why = "standard output is closed" if error.errno == errno.EBADF else error.strerror
        return _fail(f"cannot write: {why}", 1)
    return code if isinstance(code, int) else 0


def _usage_error(error: click.UsageError) -> str:
    """Return the message of a usage error as refresher's own: without a capital letter, and with what to do next."""
    message = error.format_message().removesuffix(".")
    usage = ""
    if isinstance(error, click.MissingParameter) and error.ctx is not None:
        usage = f"; usage: {' '.join((error.ctx.command_path, *error.ctx.command.collect_usage_pieces(error.ctx)))}"
    path = error.ctx.command_path if error.ctx is not None else "refresher"
    return f"{message[:1].lower()}{message[1:]}{usage} (see '{path} --help')"


def _fail(message: str, code: int) -> int:
    # A message can quote a server: print one line, without control characters for the terminal.
    log.error("%s", text.one_line(message))
    return code


def _harden() -> None:
    """Open closed standard streams, create private files only, and forbid memory dumps."""
    # A file would get the number of a stream that the parent has closed: a message to stderr would go into a grant.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Standard output stays closed for those who write, and so for scripts.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  a descriptor, for the life of the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            # What the encoding of a terminal does not contain is replaced: it must not end a command.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    os.umask(0o077)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # RLIMIT_CORE does not stop a collector behind a pipe. Only ctypes, 3 ms to import, can call prctl.
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
