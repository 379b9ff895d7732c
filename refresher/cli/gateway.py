"""The commands gateway and gateway key: agents that hold no token."""

import json
import os
import shlex
from pathlib import Path
from typing import Any, Final

import click

from refresher.cli.options import LISTEN_HOST, Command, CommandGroup, Options, program_for
from refresher.common.addresses import Address, parse_address
from refresher.common.errors import ConfigError, StorageError
from refresher.common.terminal import say
from refresher.common.text import clock_time
from refresher.config import DEFAULT_GATEWAY, Settings

__all__ = ["gateway", "gateway_address"]

_KEYS_FILE: Final = click.option(
    "--keys-file",
    "gateway_keys_file",
    metavar="FILE",
    envvar="REFRESHER_GATEWAY_KEYS_FILE",
    show_envvar=True,
    help="Holds the keys of agents, hashed.  [default: gateway-keys.json in the state directory]",
)


def gateway_address(given: str) -> Address | Path:
    """Return the address in ``--listen``: host and port, or the path of a unix socket. Raises ``ConfigError``."""
    if given.startswith("unix:"):
        if not Path(path := given.removeprefix("unix:")).is_absolute():
            raise ConfigError("the gateway's unix socket must be an absolute path: unix:/PATH")
        return Path(path)
    try:
        return parse_address(given)
    except ConfigError:
        raise ConfigError(
            f"the gateway's address must be HOST:PORT or unix:/PATH, for example {DEFAULT_GATEWAY}"
        ) from None


@click.group(
    cls=CommandGroup,
    invoke_without_command=True,
    short_help="Forward the requests of agents, with the token.",
    epilog="\b\nExit codes:\n  0  stopped by SIGTERM or Ctrl-C\n  2  wrong usage or configuration, no key, or a taken "
    "address",
)
@click.option(
    "--listen",
    "gateway",
    metavar="HOST:PORT|unix:PATH",
    envvar="REFRESHER_GATEWAY",
    show_envvar=True,
    help=f"The address.  [default: {DEFAULT_GATEWAY}]",
)
@LISTEN_HOST
@click.option(
    "--allow-uid",
    "users",
    metavar="UID",
    type=click.IntRange(0),
    multiple=True,
    envvar="REFRESHER_GATEWAY_ALLOW_UID",
    show_envvar=True,
    help="Another user who may use the unix socket. Can be repeated.",
)
@_KEYS_FILE
@click.pass_context
def gateway(
    context: click.Context,
    gateway: str | None,
    listen_hosts: tuple[str, ...],
    users: tuple[int, ...],
    gateway_keys_file: str | None,
) -> int:
    """Forward the requests of agents to the servers of grants, each with the current token.

    http://127.0.0.1:8765/NAME/mcp is the path /mcp of the server of the grant NAME. An agent needs no token: it gives
    its key, as 'Authorization: Bearer KEY' or in the path, /KEY/NAME/mcp. 'refresher gateway key add AGENT' makes a
    key. A unix socket needs no key, and asks the system which user is at its other end.

    The gateway reads the published tokens and demands rotations as agents do. It never reads refresh tokens, so it can
    run as a user who cannot. 'refresher run --gateway' starts it too, as a process of its own.
    """
    options: Options = context.obj
    options.add(gateway=gateway, listen_hosts=listen_hosts or None, gateway_keys_file=gateway_keys_file)
    if context.invoked_subcommand is not None:
        return 0
    from refresher.common import logs

    settings = options.settings()
    address = gateway_address(settings.gateway or DEFAULT_GATEWAY)
    logs.setup(settings.log_format, settings.verbose + 1, nonblocking=True)
    # `run` sets it: the gateway ends when its standard input ends.
    _serve(settings, address, users, 0 if os.environ.pop("REFRESHER_GATEWAY_CHILD", "") else None)
    return 0


def _serve(settings: Settings, address: Address | Path, users: tuple[int, ...], lifeline: int | None) -> None:
    from functools import lru_cache, partial

    from refresher.oauth.proxies import proxy_for
    from refresher.oauth.tls import ssl_context
    from shim import FileTokenSource

    try:
        from refresher.gateway.server import Plan, serve  # aiohttp takes 0.2 s, and no other command needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the gateway needs the package {error.name}: run pip install '.[service,gateway]' in the checkout"
        ) from None
    directories = settings.directories
    program, keys_option = _program(settings)
    names = {"localhost", *settings.listen_hosts} | ({address[0].lower()} if isinstance(address, tuple) else set())
    serve(
        Plan(
            address=address,
            keys_file=str(settings.gateway_keys_file),
            hosts=frozenset(names),
            users=frozenset(users),
            source=partial(FileTokenSource, tokens_dir=directories.tokens, demands_dir=directories.demands),
            tls=ssl_context(settings.ca_file),
            proxy=lru_cache(maxsize=1024)(proxy_for),
            program=program,
            add_key=f"refresher gateway key add AGENT{keys_option}",
            lifeline=lifeline,
        )
    )


def _program(settings: Settings) -> tuple[str, str]:
    """Return how a command line for these directories begins, and the option for the keys with a space before it."""
    keys = settings.gateway_keys_file
    is_default = keys == settings.directories.state / "gateway-keys.json"
    return program_for(settings), "" if is_default else f" --keys-file {shlex.quote(str(keys))}"


@gateway.group(cls=CommandGroup, short_help="Add, list and remove the keys of agents.")
def key() -> None:
    """Add, list and remove the keys of agents. A running gateway notices a change by itself."""


@key.command("add", cls=Command, short_help="Make a key, and print it once.")
@click.argument("agent")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_KEYS_FILE
@click.pass_obj
def add(options: Options, agent: str, names: tuple[str, ...], gateway_keys_file: str | None) -> None:
    """Make a key for AGENT, print it once, and store its hash. With NAMEs, the key is for these grants only."""
    from refresher.gateway import keys
    from shim._token import is_name

    for name in (agent, *names):
        if not is_name(name):
            raise ConfigError(f"{name!r} is no valid name: use lower-case letters, digits, '.', '_' and '-'")

    def change(known: tuple[keys.Key, ...]) -> tuple[keys.Key, ...]:
        if any(each.agent == agent for each in known):
            raise ConfigError(f"{agent} has a key already: run '{_key_command(options, 'remove')} {agent}' first")
        return (*known, made)

    text, made = keys.make(agent, names)
    settings = _edit(options, gateway_keys_file, change)
    for name in names:
        if not os.path.exists(path := settings.directories.token(name)):  # noqa: PTH110  others may not look there
            say(f"warning: there is no {path}; the key works for {name} once there is", err=True)
    say(f"the key of {agent}; it is not shown again:", err=True)
    click.echo(text)


@key.command("list", cls=Command, short_help="List the agents that have a key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_KEYS_FILE
@click.pass_obj
def list_(options: Options, as_json: bool, gateway_keys_file: str | None) -> None:
    """List the agents that have a key, and the grants that they may use."""
    from refresher.gateway import keys

    options.add(gateway_keys_file=gateway_keys_file)
    known = keys.load(str(options.settings().gateway_keys_file))
    rows = [(each.agent, ", ".join(each.names) or "all grants", clock_time(each.created_at)) for each in known]
    fields: dict[str, Any] = {
        "keys": [
            {"agent": each.agent, "names": list(each.names) or None, "created_at": each.created_at} for each in known
        ]
    }
    if as_json:
        say(json.dumps(fields))
    elif not rows:
        say(f"there are no keys yet; run '{_key_command(options, 'add')} AGENT'", err=True)
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            say("  ".join(map(str.ljust, row, (*widths[:-1], 0))))


@key.command("remove", cls=Command, short_help="Remove the key of an agent.")
@click.argument("agent")
@_KEYS_FILE
@click.pass_obj
def remove(options: Options, agent: str, gateway_keys_file: str | None) -> None:
    """Remove the key of AGENT. A running gateway refuses its next request."""
    from refresher.gateway import keys

    def change(known: tuple[keys.Key, ...]) -> tuple[keys.Key, ...]:
        if all(each.agent != agent for each in known):
            raise ConfigError(f"{agent} has no key: '{_key_command(options, 'list')}' shows who has one")
        return tuple(each for each in known if each.agent != agent)

    _edit(options, gateway_keys_file, change)
    say(f"removed the key of {agent}")


def _key_command(options: Options, verb: str) -> str:
    program, keys_option = _program(options.resolve())
    return f"{program} gateway key {verb}{keys_option}"


def _edit(options: Options, given: str | None, change: Any) -> Settings:
    """Replace the keys in the file by what ``change`` returns for them, under a lock."""
    from refresher.gateway import keys
    from refresher.storage import files
    from refresher.storage.lock import held

    options.add(gateway_keys_file=given)
    settings = options.settings()
    path = settings.gateway_keys_file
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with held(path.with_name(f".{path.name}.lock"), stopping=lambda: False):
            data = keys.render(change(keys.load(str(path))))
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                files.replace(directory, path.name, data, mode=0o600, group=None)
            finally:
                os.close(directory)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {(error.strerror or 'the disk fails').lower()}") from None
    return settings
