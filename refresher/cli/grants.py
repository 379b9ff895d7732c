"""Commands about what is there: import, status, remove."""

import logging
import stat
import sys
from pathlib import Path
from typing import Final

import click

from refresher import cautions, clocks, report
from refresher.cli.asked import Asked, no_grants, warn_of_bars
from refresher.cli.completing import complete_name
from refresher.errors import ConfigError, ImportRefused
from refresher.overview import overview
from refresher.signals import Stopping
from refresher.terminal import say

__all__ = ["import_", "remove_", "status"]

log = logging.getLogger(__name__)

_LARGEST_IMPORT: Final = 1024 * 1024


@click.command("import", short_help="Take over a grant from elsewhere: a refresh token and where to use it.")
@click.argument("name", shell_complete=complete_name)
@click.option("--from", "source", required=True, metavar="FILE|-", help="The JSON to import; '-' is standard input.")
@click.option("--replace", is_flag=True, help="Put it in the place of an existing grant; the generation goes on.")
@click.option("--if-absent", is_flag=True, help="Leave an existing grant alone and exit 0 (for start-up scripts).")
@click.pass_obj
def import_(asked: Asked, name: str, source: str, replace: bool, if_absent: bool) -> int | None:
    """Import a grant as NAME: a refresh token and where to use it, as JSON. (To log in anew: 'refresher login'.)

    \b
    Required:
      token_endpoint   https://... of the authorization server
      client_id        of the client that the refresh token was issued to
      refresh_token    from now on refresher's alone: use it nowhere else
      server_url       the MCP server or API that takes the access token
                       (or origins: ["https://host", ...])
    Optional:
      client_secret, token_endpoint_auth_method (none, client_secret_basic,
      client_secret_post, private_key_jwt, tls_client_auth,
      self_signed_tls_client_auth), private_key_file (PEM), private_key_id,
      token_endpoint_auth_signing_alg, client_cert and client_key (PEM files),
      access_token with expires_in or expires_at, token_type (and id_token,
      which is ignored), scope, issuer, resource, send_resource,
      revocation_endpoint (for logout),
      replay ("none", "unlimited", or a grace such as "30s"),
      max_age (of a token of unknown lifetime; seconds or "30m")
    Instead of a refresh_token:
      grant_type "client_credentials", for a client that proves itself

    \b
    Example, linear.json:
      {"token_endpoint": "https://as.example/token", "client_id": "abc",
       "refresh_token": "...", "server_url": "https://mcp.example/mcp"}
    \b
      refresher import linear --from linear.json && rm linear.json
      refresher run-once linear
    """
    from refresher import admission, brought  # a run-once need not load what only an import needs

    if replace and if_absent:
        raise ConfigError("--replace and --if-absent exclude each other")
    brought.check_name(name)
    settings = asked.settings()
    if if_absent and admission.is_there(settings.directories, name):
        # Before the file is read: start-up scripts may find it deleted after the first start.
        say(f"{name} is there already; left as it is")
        return None
    # Outside the context below: Ctrl-C while a person pastes ends at once.
    grant = brought.parse(name, _read_import(source), clocks.now())
    with Stopping() as stopping:
        admitted = admission.admit(settings.directories, grant, replace=replace, if_absent=if_absent, stopping=stopping)
    warn_of_bars(settings)
    cautions.tell(settings.directories)
    for warning in admitted.warnings:
        log.warning("warning: %s", warning)
    if admitted.stored:
        follows = "fetches its first token" if admitted.grant.access_token is None else "rotates it when due"
        say(f"imported {name} (generation {admitted.grant.generation}); 'refresher run-once' {follows}")
    else:
        say(f"{name} is there already; left as it is")
    return stopping.exit_code


@click.command(short_help="Show each grant: state, time left, next rotation.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times are epoch seconds.")
@click.pass_obj
def status(asked: Asked, names: tuple[str, ...], as_json: bool) -> None:
    """Show each grant: its state, its token's time left, its next rotation, its last error.

    \b
    States:
      active                    all is well
      failing                   the last attempt failed; it is repeated by itself
      reauthorization_required  only a person can help: log in again
      invalid_grant_file        the record is damaged; its error says what to do
    """
    settings = asked.settings()
    entries = overview(settings.directories, names)
    if not entries:
        no_grants(settings)
    if as_json:
        say(report.status_json(entries))
    elif entries:
        say(report.status_table(entries))


@click.command("remove", short_help="Forget a grant here alone, and tell its readers.")
@click.argument("name", shell_complete=complete_name)
@click.pass_obj
def remove_(asked: Asked, name: str) -> int | None:
    """Forget the grant NAME and tell its readers; its refresh token is deleted here.

    Nothing is revoked at the authorization server: 'refresher logout' does that.
    """
    from refresher.removal import remove  # as above

    settings = asked.settings()
    with Stopping() as stopping:
        remove(settings.directories, name, stopping=stopping)
    say(f"removed {name}; at the authorization server the authorization lives until you revoke it there")
    return stopping.exit_code


def _read_import(source: str) -> bytes:
    path = Path(source)
    try:
        if source == "-":
            data = sys.stdin.buffer.read(_LARGEST_IMPORT + 1)
        else:
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                log.warning("warning: others can read %s: chmod 600 it, or delete it once imported", path)
            with path.open("rb") as file:
                data = file.read(_LARGEST_IMPORT + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {source}: {getattr(error, 'strerror', None) or 'not a path'}") from None
    if len(data) > _LARGEST_IMPORT:
        raise ImportRefused(f"{source} is larger than 1 MiB: that is no grant")
    if not data.strip():
        raise ImportRefused(f"{'standard input' if source == '-' else source} is empty; see 'refresher import --help'")
    return data
