"""Shell completion: of commands and options, and of the names there are."""

import click

from refresher import config
from refresher.common.errors import RefresherError
from refresher.common.terminal import say

__all__ = ["complete_name", "completion"]

_GLOBAL = ("state_dir", "tokens_dir", "demands_dir", "spill_dir", "tokens_group")


def complete_name(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of grants that begin so; none where they cannot be read."""
    given = context.find_root().params
    try:
        settings = config.resolve({key: given.get(key) for key in _GLOBAL}, given.get("config_file"))
        names = settings.directories.listing().names
    except RefresherError:
        return []
    return [name for name in names if name.startswith(incomplete)]


@click.command(short_help="Print what makes your shell complete commands and names.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete refresher's commands, options and names of grants.

    \b
    bash:  refresher completion bash >> ~/.bashrc
    zsh:   refresher completion zsh >> ~/.zshrc
    fish:  refresher completion fish > ~/.config/fish/completions/refresher.fish
    """
    from click.shell_completion import get_completion_class  # no other command needs it

    made = get_completion_class(shell)
    if made is not None:
        say(made(context.find_root().command, {}, "refresher", "_REFRESHER_COMPLETE").source())
