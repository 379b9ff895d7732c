"""The global options, and what several commands share."""

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from refresher import config
from refresher.common import durations, logs
from refresher.common.errors import RefresherError, UnknownName
from refresher.config import Settings
from shim._source import default_state_dir

__all__ = [
    "ARGUMENTS_BEFORE",
    "GLOBAL_OPTIONS",
    "LISTEN",
    "LISTEN_HOST",
    "PAGE_TOKEN_FILE",
    "STOPPED",
    "Options",
    "command",
    "complete_name",
    "did_you_mean",
    "duration_option",
    "program_for",
    "seconds",
    "warn_of_closed_directories",
]

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])

STOPPED: Final[dict[int | str, str]] = {"128+N": "stopped by signal N: 129 is SIGHUP, 130 Ctrl-C, 143 SIGTERM"}
"""The exit codes after a signal, for the help of a command."""

ARGUMENTS_BEFORE: Final = "refresher.arguments_before"
_ARGUMENTS: Final = "refresher.arguments"


def _option(name: str, metavar: str | None, help: str, *names: str, **settings: Any) -> click.Option:  # noqa: A002
    """Return a global option with its environment variable; ``names`` are its other names."""
    variable = f"REFRESHER_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.Option((name, *names), metavar=metavar, help=help, envvar=variable, show_envvar=True, **settings)


def _level(value: Any) -> int:
    """Return how much to log: how often -v is given, or the number in the environment."""
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter("it must be a number: 1 logs each action, 2 logs more") from None


_ENCRYPTION_KEY: Final = (
    "Where the key that seals grants comes from: file:PATH, systemd:NAME, keyring:SERVICE or command:ARGV.  "
    "[default: grants are plain files that only this user can read]"
)

GLOBAL_OPTIONS: Final = (
    _option(
        "--state-dir", "DIR", "Contains grants/.  [default: $XDG_STATE_HOME/refresher or ~/.local/state/refresher]"
    ),
    _option("--tokens-dir", "DIR", "Where access tokens are published.  [default: tokens/ in the state directory]"),
    _option("--tokens-group", "GROUP", "A group of agents that can read tokens and demand rotations."),
    _option("--demands-dir", "DIR", "Where agents demand rotations.  [default: demands/ in the state directory]"),
    _option("--spill-dir", "DIR", "Receives a new token if grants/ cannot.  [default: /var/tmp/refresher-UID]"),
    _option(
        "--store", "URL", "A PostgreSQL database that holds the grants of many hosts.  [default: files in grants/]"
    ),
    _option("--encryption-key", "SOURCE", _ENCRYPTION_KEY),
    _option("--previous-encryption-key", "SOURCE", "The key before that one: what it has sealed can be read."),
    _option("--published-key", "SOURCE", "Seals the tokens in the database of --store.  [default: --encryption-key]"),
    _option("--previous-published-key", "SOURCE", "The key before that one."),
    _option("--ca-file", "FILE", "Certificates to trust, instead of SSL_CERT_FILE or the built-in ones."),
    _option(
        "--config",
        "FILE",
        "TOML with these options as keys (state_dir = ...).  [default: ~/.config/refresher/config.toml]",
        "config_file",
    ),
    _option("--verbose", None, "Log each action; -vv logs more.", "-v", count=True, type=_level),
    _option(
        "--log-format", None, "The format of log lines on stderr.  [default: text]", type=click.Choice(["text", "json"])
    ),
)

# After the command they are hidden, and their environment variables have been read already.
_GLOBAL_AFTER: Final = tuple(map(copy, GLOBAL_OPTIONS))
for _hidden in _GLOBAL_AFTER:
    _hidden.hidden, _hidden.envvar = True, None

_GLOBAL_NAMES: Final = [option.name for option in GLOBAL_OPTIONS if option.name]


class Options:
    """The options as given; resolved when a command needs them, so that --help works with a broken configuration."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)

    def add(self, **given: Any) -> None:
        """Add options by their names in a configuration file.

        ``None`` means that the option was not given; for ``verbose``, 0 means the same.
        """
        if (verbose := given.pop("verbose", 0)) > 0:
            self._given["verbose"] = verbose + (self._given.get("verbose") or 0)
        self._given |= {name: value for name, value in given.items() if value is not None}

    def given(self, name: str) -> Any:
        """Return an option as given, also in the environment; ``None`` if it was not."""
        return self._given.get(name)

    def arguments(self) -> list[str]:
        """Return the options as given, also those of the environment, for another command."""
        given = [(option, self._given.get(option.name or "")) for option in GLOBAL_OPTIONS]
        words = [f"{option.opts[0]}={value}" for option, value in given if value is not None and not option.count]
        return [*words, *["-v"] * (self._given.get("verbose") or 0)]

    def resolve(self) -> Settings:
        """Return the settings; each call reads the configuration file again. Raises ``ConfigError``."""
        given = dict(self._given)
        return config.resolve(given, given.pop("config_file", None))

    def settings(self) -> Settings:
        """Return the settings and set up the logs accordingly. Raises ``ConfigError``."""
        settings = self.resolve()
        # A log line can be written while a grant's lock is held: a stalled stderr must not prolong that.
        logs.setup(settings.log_format, settings.verbose, nonblocking=True)
        return settings


class Command(click.Command):
    """A command that also accepts the global options after its name, and suggests the names of grants."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_GLOBAL_AFTER]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("Global options, such as -v, are accepted here too: see 'refresher --help'.")

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj.add(**{name: ctx.params.pop(name) for name in _GLOBAL_NAMES})
        try:
            return super().invoke(ctx)
        except UnknownName as error:
            if (command_line := _with_known_names(ctx)) is None:
                raise
            raise UnknownName(f"{error}; did you mean: {command_line}") from None


class CommandGroup(Command, click.Group):
    """A command with commands of its own."""


def command(
    *, short_help: str, exit_codes: Mapping[int | str, str], note: str = ""
) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that makes a command; its help ends with ``exit_codes`` and a ``note`` on them."""
    width = max(len(str(code)) for code in exit_codes)
    lines = (f"  {code!s:{width}}  {meaning}" for code, meaning in exit_codes.items())
    epilog = "\n".join(("\b", "Exit codes:", *lines, *([note] if note else ())))
    return click.command(cls=Command, short_help=short_help, epilog=epilog)


def did_you_mean(ctx: click.Context, *arguments: str, instead_of: tuple[str, ...] = ()) -> str:
    """Return the command line with ``arguments`` first, and without those that they replace (``instead_of``)."""
    rest = list(ctx.meta[_ARGUMENTS])
    for wrong in instead_of:
        rest.remove(wrong)
    return shlex.join(["refresher", *ctx.meta.get(ARGUMENTS_BEFORE, ()), ctx.info_name or "", *arguments, *rest])


def _with_known_names(ctx: click.Context) -> str | None:
    """Return the command line with the names of grants that were probably meant; ``None`` if there are none."""
    from difflib import get_close_matches

    known = _names(ctx.obj)
    given = [*ctx.params.get("names", ()), *filter(None, [ctx.params.get("name")])]
    meant = [next(iter(get_close_matches(name.strip().lower(), known, 1)), name) for name in given]
    return None if meant == given else did_you_mean(ctx, *meant, instead_of=tuple(given))


def complete_name(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of grants that begin with ``incomplete``; none if they cannot be read."""
    options = Options(context.find_root().params)
    options.add(**{name: context.params[name] for name in _GLOBAL_NAMES if name in context.params})
    return [name for name in _names(options) if name.startswith(incomplete)]


def _names(options: Options) -> Sequence[str]:
    try:
        return options.resolve().open_store().listing().names
    except RefresherError:
        return []


def seconds(value: str) -> float:
    """Return the seconds of an option: a number, or a duration such as ``30s``."""
    try:
        return durations.parse(value if value[-1:].isalpha() else float(value))
    except ValueError:
        raise click.BadParameter("it must be seconds, or a duration such as '30s', '10m', '8h'") from None


def duration_option(name: str, default: str | None = None, *, help: str) -> Callable[[_F], _F]:  # noqa: A002
    """Return the decorator of an option that is a duration."""
    return click.option(name, type=seconds, default=default, show_default=True, metavar="DURATION", help=help)


def program_for(settings: Settings) -> str:
    """Return how a command begins that finds these directories: ``refresher``, with options where they need some."""
    directories = settings.directories
    given = (
        ("--state-dir", directories.state, Path(default_state_dir())),
        ("--tokens-dir", directories.tokens, directories.state / "tokens"),
        ("--demands-dir", directories.demands, directories.state / "demands"),
    )
    options = [word for option, found, default in given if found != default for word in (option, str(found))]
    return shlex.join(["refresher", *options])


LISTEN: Final = click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="REFRESHER_LISTEN",
    show_envvar=True,
    help="The address where 'refresher run' serves a page for a browser, /healthz and /readyz.",
)

LISTEN_HOST: Final = click.option(
    "--listen-host",
    "listen_hosts",
    metavar="NAME",
    multiple=True,
    envvar="REFRESHER_LISTEN_HOST",
    show_envvar=True,
    help="A name by which requests may address these pages, besides IP addresses and localhost. Can be repeated.",
)

PAGE_TOKEN_FILE: Final = click.option(
    "--page-token-file",
    metavar="FILE",
    envvar="REFRESHER_PAGE_TOKEN_FILE",
    show_envvar=True,
    help="Holds the token that a browser must give for the page; needed if --listen is no loopback address.",
)


def warn_of_closed_directories(settings: Settings) -> None:
    """Warn of directories that the agents' group cannot enter on the way to its tokens."""
    for directory in settings.directories.closed_to_group():
        log.warning(
            "warning: group %s cannot enter %s, so its agents cannot reach their tokens: run 'chmod o+x' on it",
            settings.directories.group,
            directory,
        )
