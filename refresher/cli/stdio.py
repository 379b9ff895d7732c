"""The command stdio, for MCP clients that only start programs."""

import click

from refresher.cli.options import Options, command, complete_name, duration_option, program_for
from refresher.common.errors import ConfigError

__all__ = ["stdio"]


@command(
    short_help="Connect an MCP client on stdin and stdout to the server of a grant.",
    exit_codes={
        0: "the client has closed stdin, or SIGTERM or Ctrl-C stopped it",
        2: "wrong usage or configuration, or an address that the token is not for",
    },
)
@click.option("--url", metavar="URL", help="The address of the MCP server.  [default: that of the login]")
@duration_option(
    "--wait", "25s", help="How long a request waits for a server that cannot be reached, before it gets an error."
)
@click.argument("name", shell_complete=complete_name)
@click.pass_obj
def stdio(options: Options, name: str, url: str | None, wait: float) -> int:
    """Connect an MCP client on stdin and stdout to the server of NAME, for clients that only start programs.

    Each request carries the current token. The client notices neither rotations nor restarts of the server. If NAME
    needs a new login, requests get an error that names the command; after the login, they succeed again.

    stdio needs only tokens/ and demands/, and the extra 'mcp'. It logs on stderr.
    """
    settings = options.settings()
    from shim import FileTokenSource
    from shim._origins import origin_of_url

    directories = settings.directories
    try:
        source = FileTokenSource(name, tokens_dir=directories.tokens, demands_dir=directories.demands)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    token = source.current()
    if url is not None and (origin := origin_of_url(url)) is None:
        raise ConfigError("--url must be an address such as https://mcp.example/mcp, without a user name")
    if url is not None and token is not None and origin not in token.origins:
        raise ConfigError(f"the token of {name} is for {', '.join(token.origins)}, and not for {origin}: change --url")
    if url is None and token is not None and token.server_url is None:
        raise ConfigError(f"the token of {name} does not name its server: give --url URL")
    try:
        import httpx2  # noqa: F401  the import is the test
    except ImportError:
        raise ConfigError("stdio needs the extra 'mcp': in the checkout, pip install '.[all]'") from None
    from refresher.stdio.bridge import run

    run(source, url, settings.ca_file, wait, program_for(settings))
    return 0
