"""The command import."""

import codecs
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from refresher.cli import move_in
from refresher.cli.arguments import check_new_name, name_from
from refresher.cli.options import STOPPED, command, complete_name, did_you_mean, warn_of_closed_directories
from refresher.common import clocks
from refresher.common.errors import AlreadySpent, ConfigError, ImportRefused, Interrupted, RefresherError
from refresher.common.reading import list_named, read_named
from refresher.common.signals import StopSignals
from refresher.common.terminal import say
from refresher.config import Settings
from refresher.grants.record import Grant
from refresher.migration.formats import FORMATS
from refresher.observers.hub import Observers, observing
from refresher.operations import import_grant, import_request
from refresher.storage import startup_checks
from refresher.storage.store import Store
from shim._token import is_name

__all__ = ["import_"]

log = logging.getLogger(__name__)

_LARGEST_IMPORT: Final = 1024 * 1024
_EXCLUSIVE: Final = "--replace and --if-absent exclude each other"


@command(
    short_help="Import a grant: a refresh token and where to use it.",
    exit_codes={
        0: "imported; with --if-absent also: the grant exists",
        2: "wrong usage, configuration, file or content",
        4: "the disk fails",
        6: "another process has held the lock of the grant for 30 s",
        **STOPPED,
    },
)
@click.argument("name", required=False, shell_complete=complete_name)
@click.option(
    "--from",
    "source",
    metavar="FILE|DIR|-",
    help="The JSON to import; '-' is standard input. From a directory, without NAME, each NAME.json.",
)
@click.option(
    "--format",
    "key",
    type=click.Choice(FORMATS),
    metavar="PROGRAM",
    help=f"Take over a login of this program: {', '.join(FORMATS)}.",
)
@click.option("--file", metavar="FILE|DIR", help="What that program keeps.  [default: its place on this machine]")
@click.option(
    "--server", metavar="URL", help="Which login of that program: the address of its MCP server, or its name there."
)
@click.option("--list", "listed", is_flag=True, help="Show the logins of other programs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="With --list, print JSON; times are epoch seconds.")
@click.option("--replace", is_flag=True, help="Replace an existing grant; its generation keeps counting.")
@click.option("--if-absent", is_flag=True, help="Keep an existing grant and exit 0; for start-up scripts.")
@click.pass_context
def import_(
    ctx: click.Context,
    name: str | None,
    source: str | None,
    key: str | None,
    file: str | None,
    server: str | None,
    listed: bool,
    as_json: bool,
    replace: bool,
    if_absent: bool,
) -> int | None:
    """Import a grant as NAME: a refresh token and where to use it, as JSON. (For a new login: 'refresher login'.)

    \b
    Required:
      token_endpoint   https://... of the authorization server
      client_id        of the client that the refresh token was issued to
      refresh_token    from now on for refresher only: use it nowhere else
      server_url       the MCP server or API that accepts the access token
                       (or origins: ["https://host", ...])
    Optional:
      client_secret, token_endpoint_auth_method (none, client_secret_basic,
      client_secret_post, private_key_jwt, tls_client_auth,
      self_signed_tls_client_auth), private_key_file (PEM), private_key_id,
      token_endpoint_auth_signing_alg, client_cert and client_key (PEM files),
      access_token with expires_in or expires_at, token_type, scope,
      id_token (says whose login it is), issuer, resource, send_resource,
      revocation_endpoint (for logout),
      refresh_token_expires_in (also refresh_expires_in,
      x_refresh_token_expires_in) or refresh_token_expires_at,
      refresh_params (added to each refresh: {"KEY": "VALUE"}),
      replay ("none", "unlimited", or a grace period such as "30s"),
      max_age (of a token of unknown lifetime; seconds or "30m")
    Instead of a refresh_token:
      grant_type "client_credentials", for a client that authenticates itself
      grant_type "jwt_bearer", with assertion_file, assertion_grant, or idp (the
      grant at the identity provider of your company)
      grant_type "token_exchange", with subject_file or subject_grant, and
      subject_token_type, actor_file, actor_grant, actor_token_type, audience,
      requested_token_type
      With these two, client_id can be absent. For any: client_assertion_file

    \b
    Example, linear.json:
      {"token_endpoint": "https://as.example/token", "client_id": "abc",
       "refresh_token": "...", "server_url": "https://mcp.example/mcp"}
    \b
      refresher import linear --from linear.json && rm linear.json
      refresher run-once linear

    With --if-absent, a start-up script can run it each time, also with a directory of such files (a mounted Secret). It
    skips a grant that exists, and one that has used this refresh token and was removed since.

    \b
    Instead, to take over a login of another program; quit that program first:
      refresher import --list
      refresher import linear --format claude-code --server URL
    """
    if as_json and not listed:
        raise click.UsageError("--json is for --list")
    if listed or key is not None or file is not None or server is not None:
        if source is not None:
            raise ConfigError("--from is for a file of refresher's own format: omit it with --format and --list")
        choice = move_in.Choice(key, None if file is None else Path(file).expanduser().absolute(), server)
        if listed:
            if name is not None or replace or if_absent:
                raise click.UsageError(
                    "--list shows what can be imported: give no NAME, --replace or --if-absent with it"
                )
            move_in.show_logins(ctx.obj.settings(), choice, as_json=as_json)
            return None
        return _from_program(ctx, name, choice, replace=replace, if_absent=if_absent)
    if source is None:
        raise ConfigError(
            "give --from FILE, or --format for a login of another program ('refresher import --list' shows them)"
        )
    if replace and if_absent:
        raise ConfigError(_EXCLUSIVE)
    entries = None
    try:
        entries = None if source == "-" else list_named(source)
    except FileNotFoundError:
        if name is None:
            raise ConfigError(f"cannot read {source}: there is no such file or directory") from None
    except NotADirectoryError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from None
    if entries is not None:
        if name is not None or replace:
            raise ConfigError(f"{source} is a directory, which is imported as a whole: omit NAME and --replace")
        settings = ctx.obj.settings()
        with observing(settings, "import") as observers:
            return _import_directory(settings, Path(source), entries, if_absent, observers)
    if name is None:
        meant = name_from(Path(source).stem.removesuffix(".import")) or "NAME"
        raise ConfigError(f"NAME is missing; did you mean: {did_you_mean(ctx, meant)}")
    check_new_name(ctx, name)
    settings = ctx.obj.settings()
    with observing(settings, "import") as observers:
        return _import(
            settings, settings.open_store(), name, source, observers, replace=replace, if_absent=if_absent, warned=set()
        )


def _import_directory(
    settings: Settings, directory: Path, entries: Iterable[str], if_absent: bool, observers: Observers
) -> int | None:
    """Import each NAME.json; report a file that cannot be imported, and import the others anyway."""
    # Files that begin with a dot belong to the mount of a Secret.
    credentials = settings.directories.keys.credentials  # of systemd: a key can lie beside the grants
    files = sorted(directory / entry for entry in entries if not entry.startswith(".") and entry not in credentials)
    # Also without files: agents can mount these directories, which only refresher creates with the right owner.
    if (trouble := settings.directories.prepare()) is not None:
        log.warning("warning: cannot accept demands from agents: %s", trouble)
    if not files:
        say(f"nothing to import in {directory}")
    codes = set()
    warned: set[str] = set()
    store = settings.open_store()
    store.expect_imports(_fingerprints(files))
    for file in files:
        if file.suffix != ".json" or not is_name(file.stem):
            log.warning("warning: %s is skipped: its name must be the name of a grant and '.json'", file)
            continue
        try:
            code = _import(
                settings,
                store,
                file.stem,
                str(file),
                observers,
                replace=False,
                if_absent=if_absent,
                warned=warned,
            )
            if code is not None:
                return code
        except Interrupted:
            raise
        except RefresherError as error:
            log.error("%s: %s", file.stem, error)  # noqa: TRY400  a mistake of a person needs no traceback
            codes.add(error.exit_code)
    return min(codes, default=None)


def _fingerprints(files: Iterable[Path]) -> set[str]:
    """Return the fingerprints of the refresh tokens in ``files``; what cannot be read is reported at its import."""
    found = set()
    for file in files:
        with suppress(OSError):
            if fingerprint := import_request.fingerprint_in(read_named(file, _LARGEST_IMPORT).data):
                found.add(fingerprint)
    return found


def _import(
    settings: Settings,
    store: Store,
    name: str,
    source: str,
    observers: Observers,
    *,
    replace: bool,
    if_absent: bool,
    warned: set[str],
) -> int | None:
    if if_absent and import_grant.exists(store, name):
        # Before the file is read: it may be deleted after the first start.
        say(f"{name} exists already; it is kept")
        return None
    # Outside the context below: Ctrl-C ends at once while a person pastes.
    data = _read_import(source)
    try:
        grant = import_request.parse(name, data, clocks.now())
    except ImportRefused as error:
        raise ImportRefused(f"{_shown(source)}: {error}") from None
    _, code = _store(settings, store, grant, observers, replace=replace, if_absent=if_absent, warned=warned)
    return code


def _store(
    settings: Settings,
    store: Store,
    grant: Grant,
    observers: Observers,
    *,
    replace: bool,
    if_absent: bool,
    warned: set[str],
) -> tuple[bool, int | None]:
    """Store a grant and say so; return whether it is stored, and an exit code after a signal."""
    name = grant.name
    try:
        with StopSignals() as stopping:
            admitted = import_grant.store_grant(
                store,
                grant,
                replace=replace,
                if_absent=if_absent,
                stopping=stopping,
                emit=observers.emit,
            )
    except AlreadySpent as error:
        if not if_absent:
            raise
        # The grant was removed, and each start imports its old copy.
        log.warning("%s: warning: %s; it is skipped", name, error)
        return False, None
    warn_of_closed_directories(settings)
    startup_checks.warn(settings.directories, warned)
    for warning in admitted.warnings:
        log.warning("%s: warning: %s", name, warning)
    if admitted.stored:
        follows = "fetches its first token" if admitted.grant.access_token is None else "rotates it when due"
        say(f"imported {name} (generation {admitted.grant.generation}); 'refresher run-once' {follows}")
    else:
        say(f"{name} exists already; it is kept")
    return admitted.stored, stopping.exit_code


def _from_program(
    ctx: click.Context, name: str | None, choice: move_in.Choice, *, replace: bool, if_absent: bool
) -> int | None:
    """Take over a login of another program."""
    settings = ctx.obj.settings()
    if name is None:
        raise ConfigError(f"NAME is missing; did you mean: {did_you_mean(ctx, 'NAME')}")
    if replace and if_absent:
        raise ConfigError(_EXCLUSIVE)
    check_new_name(ctx, name)
    store = settings.open_store()
    if if_absent and import_grant.exists(store, name):
        say(f"{name} exists already; it is kept")
        return None
    login = move_in.chosen(settings, name, choice)
    grant = move_in.grant_of(settings, name, login, choice)
    move_in.require_unchanged(name, choice, login)  # the server may have taken long to answer
    with observing(settings, "import") as observers:
        stored, code = _store(settings, store, grant, observers, replace=replace, if_absent=if_absent, warned=set())
    if stored:
        say(move_in.how_it_stops(name, login))
    return code


def _read_import(source: str) -> bytes:
    if source == "-":
        data = sys.stdin.buffer.read(_LARGEST_IMPORT + 1)
        if len(data) > _LARGEST_IMPORT:
            raise ImportRefused(f"standard input is larger than {_LARGEST_IMPORT} bytes: it is not a grant")
    else:
        try:
            data, status = read_named(source, _LARGEST_IMPORT)
        except OSError as error:
            raise ConfigError(f"cannot read {source}: {error.strerror}") from None
        if status.st_mode & 0o077 and data:
            log.warning("warning: others can read %s: run 'chmod 600' on it, or delete it after the import", source)
    if not data.strip():
        raise ImportRefused(f"{_shown(source)} is empty; see 'refresher import --help'")
    return data.removeprefix(codecs.BOM_UTF8)


def _shown(source: str) -> str:
    return "standard input" if source == "-" else source
