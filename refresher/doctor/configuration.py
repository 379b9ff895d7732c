"""What the configuration names: the commands of hooks, the token of the page, and the outputs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from refresher.common.errors import ConfigError
from refresher.config import Settings
from refresher.doctor.finding import Finding, found, from_message

__all__ = ["check"]


def check(settings: Settings, *, offline: bool = True) -> Iterator[Finding]:
    """Find hooks that would not run, a page token or a key that cannot be used, and outputs that are not up to date.

    Nothing is run or written. Without ``offline``, the API of the cluster is asked whether its outputs are allowed.
    """
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
    for problem in settings.directories.keys.problems():
        yield found("key_unavailable", problem)
    yield from _outputs(settings, offline=offline)


def _outputs(settings: Settings, *, offline: bool) -> Iterator[Finding]:
    if not settings.outputs:
        return
    from refresher.grants.outputs import FileOutput
    from refresher.observers import outputs

    for output in settings.outputs:
        if not settings.directories.token(output.grant).exists():
            what = f"the output {output.target} is for {output.grant}, which has no token file"
            yield found("output_unknown", what, name=output.grant)
    checked = [each for each in settings.outputs if isinstance(each, FileOutput) or not offline]
    for output, problem in outputs.problems(checked, settings.directories, partial(outputs.look, claimed={})):
        if problem is not None:
            message = f"the output {output.target} is not up to date: {problem}"
            yield from_message("output_unusable", message, name=output.grant)
