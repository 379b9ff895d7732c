"""Commands that begin and end a grant at its authorization server: login, logout."""

import logging
from functools import partial
from typing import Any, Final, get_args

import click

from refresher.cli.completion import complete_name
from refresher.cli.options import DURATION, Asked, warn_of_bars
from refresher.common.errors import ConfigError, Interrupted
from refresher.common.signals import Stopping
from refresher.common.terminal import say
from refresher.common.text import clock_time
from refresher.grants.record import AuthMethod, Grant
from refresher.operations.import_request import check_name
from refresher.storage import startup_checks

__all__ = ["login", "logout"]

log = logging.getLogger(__name__)

_METHODS: Final = get_args(AuthMethod)

_NOTHING_TO_RENEW_WITH: Final = (
    "the server gave no refresh token: {name} works until {until}, and then needs a new login. What usually helps: "
    "--scope '... offline_access'; at Google, --param access_type=offline --param prompt=consent; at others, a client "
    "that may use the grant type refresh_token"
)


class _Param(click.ParamType[tuple[str, str]]):
    """``KEY=VALUE``."""

    name = "param"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return key and value."""
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail("it must be KEY=VALUE", param, ctx)
        return key, text


@click.command(short_help="Log in at an MCP server or API, and keep that login fresh.")
@click.argument("name", shell_complete=complete_name)
@click.argument("url", required=False)
@click.option("--scope", help="What to ask for.  [default: what the server names]")
@click.option("--no-browser", is_flag=True, help="Print the address; take the redirect's, pasted, if it comes so.")
@click.option("--browser", "way", flag_value="browser", help="By a browser again, after a login by other means.")
@click.option("--device", "way", flag_value="device", help="Show a code to type in on another device (RFC 8628).")
@click.option(
    "--client-credentials",
    "way",
    flag_value="client_credentials",
    help="Without a person, for a client that proves itself (RFC 6749 section 4.4).",
)
@click.option("--wait", type=DURATION, default="5m", metavar="DURATION", help="For the person.  [default: 5m]")
@click.option("--no-verify", is_flag=True, help="Do not try the new token at the server before it is stored.")
@click.option("--replace", is_flag=True, help="Give up a grant of that name for another server.")
@click.option("--client-id", metavar="ID", help="A client that the server knows, instead of one registered now.")
@click.option("--client-secret-file", metavar="FILE", help="Holds its secret, and nothing else.")
@click.option(
    "--client-metadata",
    metavar="URL",
    envvar="REFRESHER_CLIENT_METADATA",
    show_envvar=True,
    help="A client metadata document of yours, where the server takes one.",
)
@click.option("--new-client", is_flag=True, help="Register a new client, whatever is stored.")
@click.option("--auth-method", type=click.Choice(_METHODS), help="How the client proves itself.  [default: what fits]")
@click.option("--private-key-file", metavar="PEM", help="Signs the assertion of private_key_jwt.")
@click.option("--private-key-id", metavar="KID", help="Names that key.")
@click.option("--client-cert", metavar="PEM", help="For mTLS (RFC 8705); with --client-key.")
@click.option("--client-key", metavar="PEM")
@click.option("--port", type=click.IntRange(1, 65535), help="Where the browser comes back to.  [default: any free one]")
@click.option("--redirect-uri", metavar="URL", help="The same, as the client was registered: http://localhost:8765/x.")
@click.option(
    "--param",
    "params",
    type=_Param(),
    multiple=True,
    metavar="KEY=VALUE",
    help="More for the authorization request, e.g. access_type=offline.",
)
@click.option("--resource", metavar="URI", help="RFC 8707; 'none' leaves it out.  [default: what the server names]")
@click.option("--issuer", metavar="URL", help="The authorization server of an API that is no MCP server.")
@click.option("--authorization-endpoint", metavar="URL", help="Where there is no metadata to find it by.")
@click.option("--token-endpoint", metavar="URL")
@click.option("--device-authorization-endpoint", metavar="URL")
@click.option("--revocation-endpoint", metavar="URL")
@click.pass_obj
def login(
    asked: Asked,
    /,
    name: str,
    no_browser: bool,
    wait: float,
    no_verify: bool,
    replace: bool,
    port: int | None,
    **said: Any,
) -> int | None:
    """Log in at URL, an MCP server, and keep that login as the grant NAME.

    Opens your browser, where you say yes. The grant that was there before is replaced only when the new one is whole
    and the server takes its token: a login that fails, or that you give up, changes nothing. NAME alone logs in again
    as it was done before.

    \b
    Examples:
      refresher login linear https://mcp.linear.app/mcp
      refresher login linear                       once more, as before
      refresher login linear --no-browser          over ssh
    \b
    For an API that is no MCP server, URL is the API's address, and the client is
    one that you have made there:
      refresher login google https://www.googleapis.com \\
        --issuer https://accounts.google.com --client-id ID \\
        --client-secret-file FILE --scope ... --param access_type=offline
    \b
    Exit codes: 0 logged in; 2 the address, the client or an option is wrong; 3 you
    said no, or did not come to the end; 4 a server or the disk fails just now.
    """
    check_name(name)
    if port is not None and said["redirect_uri"]:
        raise ConfigError("--port and --redirect-uri exclude each other: the port is in the address")
    try:
        from refresher import login as entering  # the MCP SDK takes a second to load
    except ModuleNotFoundError as error:
        raise ConfigError(f"login needs the MCP SDK (no {error.name}): in the checkout, pip install '.[all]'") from None

    if port is not None:
        said["redirect_uri"] = f"http://127.0.0.1:{port}/callback"
    settings = asked.settings()
    manner = entering.Manner(wait=wait, open_browser=not no_browser, verify=not no_verify, replace=replace)
    try:
        done = entering.log_in(settings, name, entering.Asked(**said), manner)
    except KeyboardInterrupt:
        # Only until there are tokens: what is done with them comes to its end.
        raise Interrupted("interrupted; nothing was changed") from None
    warn_of_bars(settings)
    startup_checks.tell(settings.directories)
    for warning in done.admitted.warnings:
        log.warning("warning: %s", warning)
    _tell(done.admitted.grant, done.proof)
    return done.exit_code


def _tell(grant: Grant, proof: str | None) -> None:
    if not grant.renewable:
        until = "it is refused" if grant.expires_at is None else clock_time(grant.expires_at)
        log.warning("warning: %s", _NOTHING_TO_RENEW_WITH.format(name=grant.name, until=until))
    if proof is not None:
        say(proof)
    follows = "; 'refresher run', or cron, keeps it fresh" if grant.renewable else ""
    say(f"logged in: {grant.name} (generation {grant.generation}){follows}")


@click.command(short_help="Revoke a grant at its server, and forget it.")
@click.argument("name", shell_complete=complete_name)
@click.option("--keep-at-server", is_flag=True, help="Forget it here alone, as 'refresher remove' does.")
@click.pass_obj
def logout(asked: Asked, name: str, keep_at_server: bool) -> int | None:
    """Revoke the grant NAME at its authorization server (RFC 7009), then forget it and tell its readers.

    Where the server cannot be reached, the grant stands (exit code 4). Where it does not revoke, that is said, and the
    grant is forgotten here all the same.
    """
    from refresher.oauth.revocation import revoke
    from refresher.operations.remove import remove

    settings = asked.settings()
    ending = None if keep_at_server else partial(revoke, ca_file=settings.ca_file)
    with Stopping() as stopping:
        words = remove(settings.directories, name, stopping=stopping, revoke=ending)
    say(f"logged out: {name}; {words}")
    return stopping.exit_code
