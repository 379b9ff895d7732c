"""What the global options of one command line ask for, and what every command does with it."""

import logging
from collections.abc import Mapping
from typing import Any

import click

from refresher import config
from refresher.common import durations, logs
from refresher.common.errors import DirectoryError
from refresher.common.terminal import say
from refresher.config import Settings

__all__ = ["DURATION", "LISTEN", "Asked", "no_grants", "warn_of_bars"]

log = logging.getLogger(__name__)


class Asked:
    """The options as they were given: resolved when a command asks, so that --help works whatever is configured."""

    def __init__(self, given: Mapping[str, Any], config_file: str | None) -> None:
        self._given = given
        self._config_file = config_file

    def add(self, **given: Any) -> None:
        """Take what a command's own options say, by the names of the file's keys; ``None`` is unsaid."""
        self._given = {**self._given, **given}

    def resolve(self) -> Settings:
        """Return the settings, read again at each call. Raises ``ConfigError``."""
        return config.resolve(self._given, self._config_file)

    def settings(self) -> Settings:
        """Return the settings, and have logs follow them. Raises ``ConfigError``."""
        settings = self.resolve()
        # A grant's lock may be held while something is told: by nobody longer than its work takes.
        logs.setup(settings.log_format, settings.verbose, unhindered=True)
        return settings


class _Duration(click.ParamType[float]):
    """Seconds, or a duration such as ``30s``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        try:
            return durations.parse(float(value))
        except ValueError:
            pass
        try:
            return durations.parse(str(value))
        except ValueError:
            self.fail("it must be seconds, or a duration such as '30s', '10m', '8h'", param, ctx)


DURATION = _Duration()

LISTEN = click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="REFRESHER_LISTEN",
    show_envvar=True,
    help="Where the daemon tells how it is, over HTTP: /healthz and /readyz.",
)


def warn_of_bars(settings: Settings) -> None:
    """Warn of directories through which the agents' group cannot pass."""
    for directory in settings.directories.barring():
        log.warning(
            "warning: group %s cannot pass %s to its tokens: chmod o+x it", settings.directories.group, directory
        )


def no_grants(settings: Settings) -> None:
    """Say that there are none. Raises ``DirectoryError`` where somebody named a state directory that is not there."""
    if settings.state_given and not settings.directories.state.exists():
        raise DirectoryError(f"there is no state directory {settings.directories.state}; 'refresher login' makes it")
    say(f"no grants in {settings.directories.grants} yet; begin with 'refresher login NAME URL'", err=True)
