"""The command login."""

import logging
from typing import Any, Final, get_args

import click

from refresher.cli.arguments import check_login
from refresher.cli.options import command, complete_name, duration_option, warn_of_closed_directories
from refresher.common.errors import ConfigError, Interrupted
from refresher.common.terminal import say
from refresher.common.text import clock_time
from refresher.grants import accounts
from refresher.grants.record import AuthMethod
from refresher.observers.hub import observing
from refresher.storage import startup_checks
from refresher.storage.health_socket import is_served

__all__ = ["login"]

log = logging.getLogger(__name__)

_METHODS: Final = get_args(AuthMethod)

_CANNOT_RENEW: Final = (
    "%s: warning: the server gave no refresh token: the grant works until %s, and then needs a new login. What usually "
    "helps: --scope '... offline_access'; at Google, --param access_type=offline --param prompt=consent; at others, a "
    "client that may use the grant type refresh_token"
)


def _key_and_value(param: str) -> tuple[str, str]:
    key, equals, value = param.partition("=")
    if not key or not equals:
        raise click.BadParameter("it must be KEY=VALUE")
    return key, value


@command(
    short_help="Log in at an MCP server or API, and keep that login fresh.",
    exit_codes={
        0: "logged in",
        2: "the URL, the client or an option is wrong",
        3: "access was denied, the time was over, or another login is needed first",
        4: "a server or the disk fails; try again later",
        6: "another process has held the lock of the grant for 30 s",
        130: "Ctrl-C; if the tokens have arrived, the login completes first",
    },
)
@click.argument("name", shell_complete=complete_name)
@click.argument("url", required=False)
@click.option(
    "--scope",
    help="The scopes to request, besides those that a stored grant has.  [default: what the server names]",
)
@click.option("--scope-only", is_flag=True, help="Request exactly --scope, without what a stored grant has.")
@click.option(
    "--no-browser", is_flag=True, help="Print the address instead of opening a browser; paste the redirect if asked."
)
@click.option(
    "--browser",
    "way",
    flag_value="browser",
    help="Switch back to a browser login, after a login in another way.",
)
@click.option("--device", "way", flag_value="device", help="Show a code to enter on another device (RFC 8628).")
@click.option(
    "--client-credentials",
    "way",
    flag_value="client_credentials",
    help="Log in without a person, with a client that authenticates itself (RFC 6749 section 4.4).",
)
@click.option(
    "--jwt-bearer",
    "assertion_file",
    metavar="FILE",
    help="Log in without a person, with the token of a workload that FILE holds (RFC 7523).",
)
@click.option(
    "--enterprise",
    "idp",
    metavar="IDP",
    help="Log in by the grant IDP, which is a login at the identity provider of your company.",
)
@duration_option("--wait", "5m", help="How long to wait for you to log in.")
@click.option("--no-verify", is_flag=True, help="Store the new token without trying it at the server.")
@click.option("--replace", is_flag=True, help="Replace a grant of this name that is for another server or account.")
@click.option("--client-id", metavar="ID", help="A client that is registered at the server already.")
@click.option("--client-secret-file", metavar="FILE", help="Contains the client secret and nothing else.")
@click.option(
    "--client-metadata",
    metavar="URL",
    envvar="REFRESHER_CLIENT_METADATA",
    show_envvar=True,
    help="Your client metadata document, for servers that accept one.",
)
@click.option("--new-client", is_flag=True, help="Register a new client, even if one is stored.")
@click.option(
    "--auth-method",
    type=click.Choice(_METHODS),
    metavar="METHOD",
    help=f"How the client authenticates: {', '.join(_METHODS)}.  [default: what fits]",
)
@click.option("--private-key-file", metavar="PEM", help="The key that signs the assertion of private_key_jwt.")
@click.option("--private-key-id", metavar="KID", help="The key ID of that key.")
@click.option(
    "--client-assertion-file", metavar="FILE", help="An assertion of private_key_jwt that somebody else keeps fresh."
)
@click.option("--client-cert", metavar="PEM", help="The client certificate for mTLS (RFC 8705).")
@click.option("--client-key", metavar="PEM", help="The key of the client certificate.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="The port of this machine that the browser returns to.  [default: any free port]",
)
@click.option(
    "--redirect-uri",
    metavar="URL",
    help="The redirect address the client was registered with, for example http://localhost:8765/x.",
)
@click.option(
    "--param",
    "params",
    type=_key_and_value,
    multiple=True,
    metavar="KEY=VALUE",
    help="Another parameter of the authorization request, for example access_type=offline; an empty VALUE leaves out "
    "one that refresher would add.",
)
@click.option(
    "--refresh-param",
    "refresh_params",
    type=_key_and_value,
    multiple=True,
    metavar="KEY=VALUE",
    help="Another parameter of each refresh, for example audience=https://api.example.",
)
@click.option("--resource", metavar="URI", help="RFC 8707; 'none' omits it.  [default: what the server names]")
@click.option(
    "--assume-pkce",
    is_flag=True,
    help="Log in although the metadata of the server does not say that it supports PKCE with S256.",
)
@click.option("--issuer", metavar="URL", help="The authorization server of an API that is not an MCP server.")
@click.option("--authorization-endpoint", metavar="URL", help="For a server without metadata.")
@click.option("--token-endpoint", metavar="URL", help="For a server without metadata.")
@click.option("--device-authorization-endpoint", metavar="URL", help="For a server without metadata.")
@click.option("--revocation-endpoint", metavar="URL", help="For a server without metadata.")
@click.pass_context
def login(ctx: click.Context, /, name: str, port: int | None, **given: Any) -> int | None:
    """Log in at URL, an MCP server, and keep that login as the grant NAME.

    Opens your browser, where you approve access. An existing grant is replaced only after the server has accepted the
    new token: a login that fails or is cancelled changes nothing. With NAME alone, login repeats the last login.

    \b
    Examples:
      refresher login linear https://mcp.linear.app/mcp
      refresher login linear                       again, as before
      refresher login linear --no-browser          over ssh
    \b
    For an API that is not an MCP server, URL is the address of the API, and you
    register the client there yourself:
      refresher login google https://www.googleapis.com \\
        --issuer https://accounts.google.com --client-id ID \\
        --client-secret-file FILE --scope ... --param access_type=offline
    """
    check_login(ctx, name, given["url"])
    for option, way in (("assertion_file", "jwt_bearer"), ("idp", "enterprise")):
        if given[option] is not None and given["way"] is None:
            given["way"] = way
    if port is not None:
        if given["redirect_uri"]:
            raise ConfigError("--port and --redirect-uri exclude each other: the port is in the address")
        given["redirect_uri"] = f"http://127.0.0.1:{port}/callback"
    try:
        from refresher.login.flow import log_in  # the MCP SDK takes a second to load
        from refresher.login.options import LoginOptions
    except ModuleNotFoundError as error:
        raise ConfigError(f"login needs the MCP SDK (no {error.name}): in the checkout, pip install '.[all]'") from None

    settings = ctx.obj.settings()
    try:
        with observing(settings, "login") as observers:
            imported, verified, exit_code = log_in(settings, name, LoginOptions(**given), observers.emit)
    except KeyboardInterrupt:
        # Before the tokens arrive: afterwards the login completes.
        raise Interrupted("interrupted; nothing was changed") from None
    warn_of_closed_directories(settings)
    startup_checks.warn(settings.directories, set())
    for warning in imported.warnings:
        log.warning("%s: warning: %s", name, warning)
    grant = imported.grant
    if not grant.renewable:
        until = "the server refuses it" if grant.expires_at is None else clock_time(grant.expires_at)
        log.warning(_CANNOT_RENEW, name, until)
    if verified is not None:
        say(verified)
    whose = "" if grant.account is None else f" for {accounts.shown(grant.account)}"
    next_step = ""
    if grant.renewable and is_served(settings.directories.health_socket):
        next_step = "; 'refresher run' keeps it fresh"
    elif grant.renewable and settings.store is not None:
        next_step = "; any 'refresher run' with this store keeps it fresh"
    elif grant.renewable:
        next_step = "; 'refresher run' is not running here: start it, or run 'refresher run-once' from cron"
    say(f"logged in: {name}{whose} (generation {grant.generation}){next_step}")
    return exit_code
