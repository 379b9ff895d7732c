"""The command that takes over grants from elsewhere: import."""

import logging
import stat
import sys
from pathlib import Path
from typing import Final

import click

from refresher.cli.completion import complete_name
from refresher.cli.options import Asked, warn_of_bars
from refresher.common import clocks
from refresher.common.errors import AlreadySpent, ConfigError, ImportRefused, Interrupted, RefresherError
from refresher.common.signals import Stopping
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.operations import import_grant, import_request
from refresher.storage import startup_checks
from shim._token import is_name

__all__ = ["import_"]

log = logging.getLogger(__name__)

_LARGEST_IMPORT: Final = 1024 * 1024


@click.command("import", short_help="Take over a grant from elsewhere: a refresh token and where to use it.")
@click.argument("name", required=False, shell_complete=complete_name)
@click.option(
    "--from",
    "source",
    required=True,
    metavar="FILE|DIR|-",
    help="The JSON to import; '-' is standard input. Of a directory, without NAME, each NAME.json.",
)
@click.option("--replace", is_flag=True, help="Put it in the place of an existing grant; the generation goes on.")
@click.option("--if-absent", is_flag=True, help="Leave an existing grant alone and exit 0; for start-up.")
@click.pass_obj
def import_(asked: Asked, name: str | None, source: str, replace: bool, if_absent: bool) -> int | None:
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

    With --if-absent, start-up scripts may run it each time, also with a directory of such files (a mounted Secret): a
    grant that is there, or that has spent this very refresh token and was removed since, is left as it is.
    """
    if replace and if_absent:
        raise ConfigError("--replace and --if-absent exclude each other")
    if source != "-" and Path(source).is_dir():
        if name is not None or replace:
            raise ConfigError(f"{source} is a directory, imported whole: leave NAME and --replace out")
        return _import_all(asked.settings(), Path(source), if_absent)
    if name is None and source != "-" and not Path(source).exists():
        raise ConfigError(f"cannot read {source}: there is no such file or directory")
    if name is None:
        raise ConfigError("say the NAME of the grant: 'refresher import NAME --from FILE'")
    import_request.check_name(name)
    return _import(asked.settings(), name, source, replace=replace, if_absent=if_absent)


def _import_all(settings: Settings, directory: Path, if_absent: bool) -> int | None:
    """Import each NAME.json; one that cannot be is told, and keeps the others from nothing."""
    try:
        # What begins with a dot is how a mounted Secret is replaced, and no grant.
        files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"cannot read {directory}: {error.strerror}") from None
    # Also where there is nothing to take over: agents may mount what only refresher makes with the right owner.
    settings.directories.ensure()
    if not files:
        say(f"nothing to import in {directory}")
    codes = set()
    for file in files:
        if file.suffix != ".json" or not is_name(file.stem):
            log.warning("warning: %s is left out: its name is not that of a grant and '.json'", file)
            continue
        try:
            code = _import(settings, file.stem, str(file), replace=False, if_absent=if_absent)
        except Interrupted:
            raise
        except RefresherError as error:
            log.error("%s: %s", file.stem, error)  # noqa: TRY400  a person's mistake, no fault
            codes.add(error.exit_code)
            continue
        if code is not None:
            return code
    return min(codes, default=None)


def _import(settings: Settings, name: str, source: str, *, replace: bool, if_absent: bool) -> int | None:
    if if_absent and import_grant.is_there(settings.directories, name):
        # Before the file is read: start-up scripts may find it deleted after the first start.
        say(f"{name} is there already; left as it is")
        return None
    # Outside the context below: Ctrl-C while a person pastes ends at once.
    grant = import_request.parse(name, _read_import(source), clocks.now())
    try:
        with Stopping() as stopping:
            admitted = import_grant.admit(
                settings.directories, grant, replace=replace, if_absent=if_absent, stopping=stopping
            )
    except AlreadySpent as error:
        if not if_absent:
            raise
        # It was here, was removed, and its old copy comes with each start.
        log.warning("warning: %s; left as it is", error)
        return None
    warn_of_bars(settings)
    startup_checks.tell(settings.directories)
    for warning in admitted.warnings:
        log.warning("warning: %s", warning)
    if admitted.stored:
        follows = "fetches its first token" if admitted.grant.access_token is None else "rotates it when due"
        say(f"imported {name} (generation {admitted.grant.generation}); 'refresher run-once' {follows}")
    else:
        say(f"{name} is there already; left as it is")
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
