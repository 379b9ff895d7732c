"""What the configuration names: the commands of hooks, and the token of the page."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from refresher.common.errors import ConfigError
from refresher.config import Settings
from refresher.doctor.finding import Finding, found, from_message

__all__ = ["check"]


def check(settings: Settings) -> Iterator[Finding]:
    """Find hooks that would not run, and a page token that would not be accepted; nothing is run."""
    if settings.hooks is not None:
        from refresher.observers import hooks

        for hook, command in settings.hooks.commands.items():
            try:
                hooks.check(msgspec.structs.replace(settings.hooks, commands={hook: command}))
            except ConfigError as error:
                yield from_message("hook_unusable", str(error), (Path(command[0]),))
    if (path := settings.page_token_file) is not None:
        from refresher.daemon.page_access import read_token

        try:
            read_token(path)
        except OSError as error:
            yield found("page_token_unusable", f"cannot read the page token in {path}: {error.strerror}")
        except ValueError as error:
            yield found("page_token_unusable", f"cannot use the page token in {path}: {error}")
