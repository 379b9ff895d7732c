"""The command completion: a script for the shell."""

import click

from refresher.cli.options import command
from refresher.common.terminal import show

__all__ = ["completion"]


@command(
    short_help="Print a script that completes commands and names in your shell.",
    exit_codes={0: "printed", 2: "the shell is not one of these"},
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and names of grants in SHELL.

    \b
    Try it in the current shell:
      eval "$(refresher completion bash)"
      eval "$(refresher completion zsh)"
      refresher completion fish | source
    \b
    Keep it:
      bash:  refresher completion bash >> ~/.bashrc
      zsh:   refresher completion zsh >> ~/.zshrc
      fish:  refresher completion fish > ~/.config/fish/completions/refresher.fish
    """
    from click.shell_completion import get_completion_class  # no other command needs it

    made = get_completion_class(shell)
    if made is not None:
        show(made(context.find_root().command, {}, "refresher", "_REFRESHER_COMPLETE").source())
