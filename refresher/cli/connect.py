"""The command connect: the text with which a client uses a token."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from refresher.cli.clients.client import Client, Values
from refresher.cli.clients.frameworks import FRAMEWORKS
from refresher.cli.clients.programs import PROGRAMS
from refresher.cli.gateway import gateway_address
from refresher.cli.options import Options, command, complete_name
from refresher.common.addresses import shown_address
from refresher.common.errors import ConfigError, UnknownName
from refresher.common.terminal import say, show
from refresher.config import DEFAULT_GATEWAY, Settings
from shim._changes import permanent_error
from shim._origins import origin_of_url
from shim._source import FileTokenSource, default_state_dir
from shim._token import TokenFile, is_name
from shim.errors import Removed, TokenFileError

__all__ = ["CLIENTS", "connect"]

CLIENTS: Final = (*FRAMEWORKS, *PROGRAMS)
_BY_KEY: Final = {client.key: client for client in CLIENTS}

_USES: Final = {
    "auth": "shim.BearerAuth",
    "client": "shim.httpx2.async_client",
    "fetch": "refresher-fetch.ts",
    "headers": "refresher headers",
    "stdio": "refresher stdio",
    "gateway": "refresher gateway",
}


@command(
    short_help="Print the lines with which a client uses a token.",
    exit_codes={0: "printed", 2: "wrong usage or configuration, unknown name, or the server is unknown"},
)
@click.option("--for", "key", metavar="CLIENT", help="The client; --list shows all.", type=click.Choice([*_BY_KEY]))
@click.option("--url", metavar="URL", help="The address of the MCP server.  [default: that of the grant]")
@click.option("--list", "listed", is_flag=True, help="Show the clients, and what each one uses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("name", required=False, shell_complete=complete_name)
@click.pass_obj
def connect(options: Options, name: str | None, key: str | None, url: str | None, listed: bool, as_json: bool) -> None:
    """Print what to paste so that a CLIENT uses the tokens of NAME.

    Standard output holds the lines and nothing else; standard error says where they belong, and when the client uses a
    new token. The lines contain no token. deploy/agents/README.md has the lines for all clients.

    \b
    Examples:
      refresher connect --list
      refresher connect linear --for openai-agents
    """
    if listed:
        _show_clients(as_json=as_json)
        return
    if name is None or key is None:
        raise click.UsageError("give NAME and --for CLIENT: 'refresher connect --list' shows the clients")
    if not is_name(name):
        raise UnknownName(f"{name!r} is not a valid name of a grant")
    if url is not None and origin_of_url(url) is None:
        raise ConfigError("--url is not an address such as https://mcp.example/mcp")
    settings, client = options.settings(), _BY_KEY[key]
    token = _source(settings, name).current()
    values = Values(
        name,
        url or _server_url(settings, name),
        _command(),
        str(settings.directories.state),
        _more_options(options, settings),
        is_default_url=url is None or (token is not None and url == token.server_url),
    )
    _check_origin(token, values)
    if client.by == "gateway":
        values = values._replace(gateway=_gateway(settings), host=_host_in_path(token, values))
    text = client.text(values)
    environment = _environment(settings, client)
    if as_json:
        shown = {field: getattr(values, field) for field in ("name", "server_url", "refresher", "state_dir")}
        fields = {field: getattr(client, field) for field in ("by", "where", "picked_up", "language")}
        show(json.dumps({"client": key, **shown, **fields, "environment": environment, "snippet": text}))
        return
    say(f"Put this into {client.where}. {client.picked_up}", err=True)
    if environment:
        say("Where it runs, set these environment variables:", err=True)
        for variable, value in environment.items():
            say(f"  {variable}={shlex.quote(value)}", err=True)
    show(text.removesuffix("\n"))


def _show_clients(*, as_json: bool) -> None:
    if as_json:
        show(json.dumps({"clients": [{"client": each.key, "title": each.title, "by": each.by} for each in CLIENTS]}))
        return
    width = max(map(len, _BY_KEY))
    titles = max(len(client.title) for client in CLIENTS)
    show("\n".join(f"{each.key:{width}}  {each.title:{titles}}  {_USES[each.by]}" for each in CLIENTS))


def _source(settings: Settings, name: str) -> FileTokenSource:
    return FileTokenSource(name, tokens_dir=settings.directories.tokens, demands_dir=settings.directories.demands)


def _server_url(settings: Settings, name: str) -> str:
    """Return the address of the server in the token file, which an agent's user can read too."""
    source = _source(settings, name)
    token = source.current()
    if token is not None and token.server_url is not None:
        return token.server_url
    if token is not None and isinstance(removed := permanent_error(token), Removed):
        raise UnknownName(str(removed))
    if token is None and isinstance(problem := source.problem(), TokenFileError):
        raise UnknownName(f"{problem} (before the login of {name}, give the address of its server with --url)")
    raise ConfigError(f"the token file of {name} does not name its server: give its address with --url")


def _gateway(settings: Settings) -> str:
    """Return the host and the port at which a program of this machine reaches the gateway."""
    address = gateway_address(os.environ.get("REFRESHER_GATEWAY") or settings.gateway or DEFAULT_GATEWAY)
    if isinstance(address, Path):
        raise ConfigError(
            f"the gateway is at the unix socket {address}, which this client cannot use: give the gateway HOST:PORT, "
            "or use 'refresher stdio' (see connect --list)"
        )
    host, port = address
    return shown_address(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port))  # noqa: S104


def _check_origin(token: TokenFile | None, values: Values) -> None:
    """Refuse an address to which the token is not sent; the next login can be at any."""
    origin = origin_of_url(values.server_url)
    if token is not None and token.state != "removed" and origin not in token.origins:
        allowed = " or ".join(token.origins)
        raise ConfigError(f"the token of {values.name} is not for {origin}: give --url an address at {allowed}")


def _host_in_path(token: TokenFile | None, values: Values) -> str:
    """Return the host of the address, if the gateway takes another one by itself; empty if it takes this one."""
    origin = origin_of_url(values.server_url) or ""
    by_itself = not urlsplit(values.server_url).path.startswith("/@")  # what would be a host for the gateway
    if token is not None:  # not before the login
        by_itself &= len(token.origins) == 1 or origin == origin_of_url(token.server_url or "")
    return "" if by_itself else origin.partition("://")[2]


def _command() -> str:
    """Return the absolute path of the command, which a client can start in any directory and with any PATH."""
    beside = Path(sys.executable).absolute().parent / "refresher"
    return str(beside) if beside.exists() else os.path.abspath(shutil.which("refresher") or sys.argv[0])  # noqa: PTH100


def _more_options(options: Options, settings: Settings) -> tuple[str, ...]:
    """Return what a command of refresher needs besides its state directory to find the same tokens."""
    directories = settings.directories
    words = []
    if (config := options.given("config_file")) is not None:
        words += ["--config", str(Path(config).absolute())]
    for key, directory in (("tokens", directories.tokens), ("demands", directories.demands)):
        if options.given(f"{key}_dir") is not None or directory != directories.state / key:
            words += [f"--{key}-dir", str(directory)]
    return tuple(words)


def _environment(settings: Settings, client: Client) -> dict[str, str]:
    """Return the variables that a client needs where the directories are not at their defaults."""
    # A command line has options, and the gateway knows its directories.
    if client.by not in ("auth", "client", "fetch"):
        return {}
    directories = settings.directories
    found = {}
    if str(directories.state) != default_state_dir():
        found["REFRESHER_STATE_DIR"] = str(directories.state)
    for variable, directory in (("TOKENS", directories.tokens), ("DEMANDS", directories.demands)):
        if directory != directories.state / variable.lower():
            found[f"REFRESHER_{variable}_DIR"] = str(directory)
    return found
