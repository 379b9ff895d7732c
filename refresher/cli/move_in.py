"""The part of ``import`` for logins of other programs: shows them, chooses one, and says how its program stops."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refresher.cli.arguments import name_from, name_of_host
from refresher.common import clocks
from refresher.common.errors import ConfigError, ImportRefused
from refresher.common.terminal import say, show
from refresher.common.text import clock_time, one_line
from refresher.config import Settings
from refresher.grants import accounts
from refresher.grants.record import Grant
from refresher.migration.formats import FORMATS
from refresher.migration.holders import holders
from refresher.migration.kept_login import Damaged, KeptLogin, without_query
from refresher.migration.places import Found, logins_at, logins_here
from refresher.oauth import urls
from refresher.operations import import_request

__all__ = ["Choice", "chosen", "grant_of", "how_it_stops", "require_unchanged", "show_logins"]


class Choice(NamedTuple):
    """What a person gave to choose a login."""

    key: str | None
    file: Path | None
    server: str | None

    def found(self) -> list[Found]:
        """Return what is there. Raises ``ConfigError``."""
        found = logins_here(os.environ, self.key) if self.file is None else logins_at(self.file, self.key)
        return [each for each in found if self.server is None or isinstance(each, Damaged) or each.matches(self.server)]


def show_logins(settings: Settings, choice: Choice, *, as_json: bool) -> None:
    """Print the logins, without secrets."""
    rows = _rows(settings, choice.found(), choice)
    if as_json:
        show(json.dumps({"logins": rows}))
    elif rows:
        show("\n".join(map(_text_of, rows)))
        say(
            "Quit a program before you import its login; the import says what to do before it starts again.",
            err=True,
        )
    else:
        where = "on this machine" if choice.file is None else f"in {choice.file}"
        say(f"no logins of other programs were found {where}", err=True)


def chosen(settings: Settings, name: str, choice: Choice) -> KeptLogin:
    """Return the one login that a person can mean; print them if there are several. Raises ``ConfigError``."""
    found = choice.found()
    logins = [each for each in found if isinstance(each, KeptLogin)]
    if choice.file is not None and choice.server is not None and not logins:
        # mcp-remote hashes its other arguments too, so the hash of the URL alone may be another. The issuer decides.
        everything = choice._replace(server=None).found()
        logins = [each for each in everything if isinstance(each, KeptLogin) and each.is_of is not None]
        logins = logins if len(everything) == 1 else []
        if len(logins) == 1 and logins[0].issuer is None:
            raise ConfigError(
                f"{logins[0].file} is not for {without_query(choice.server)}, as far as its name says; nothing was "
                "changed. Give the address exactly as the program had it"
            )
    _refuse_guess(logins, choice, name)
    if len(logins) == 1:
        return logins[0]
    where = "on this machine" if choice.file is None else f"in {choice.file}"
    if logins:
        say("\n".join(map(_text_of, _rows(settings, logins, choice, name))), err=True)
        raise ConfigError(
            f"{len(logins)} logins were found {where}: choose one of them with --server (its address, or its name "
            "there) and --format"
        )
    for each in found:
        if isinstance(each, Damaged):
            raise ConfigError(f"{each.file}: {one_line(each.problem)}")
    program = "other programs" if choice.key is None else FORMATS[choice.key].title
    asked = "" if choice.server is None else f" for {without_query(choice.server)}"
    raise ConfigError(
        f"no login of {program}{asked} was found {where}: 'refresher import --list' shows what is there"
        f"{_elsewhere(choice)}"
    )


def _refuse_guess(logins: Sequence[KeptLogin], choice: Choice, name: str) -> None:
    """Refuse a login that names no server, if there are others: the address could be that of another one."""
    unnamed = [each for each in logins if each.server_url is None and each.is_of is None]
    if choice.server is None or not unnamed:
        return
    others = [each for each in choice._replace(server=None).found() if isinstance(each, KeptLogin)]
    if len(others) > 1:
        entries = ", ".join(_entry(each) for each in unnamed)
        raise ConfigError(
            f"{unnamed[0].file} does not say for which server {entries} is, and there are other logins: refresher "
            "would have to guess where its refresh token belongs. Make a login of its own: "
            f"'refresher login {name} {without_query(choice.server)}'"
        )


def require_unchanged(name: str, choice: Choice, login: KeptLogin) -> None:
    """Raise ``ImportRefused`` if the program has changed ``login`` since it was read: its token may be spent."""
    now = [each for each in choice._replace(server=None).found() if isinstance(each, KeptLogin)]
    if any(each.file == login.file and each.refresh_token == login.refresh_token for each in now):
        return
    title = FORMATS[login.program].title
    raise ImportRefused(
        f"{title} has changed this login in {login.file} meanwhile, or ended it; nothing was changed here. Quit "
        f"{title}, then import {name} again"
    )


def _elsewhere(choice: Choice) -> str:
    """Return where such a program may keep its logins instead, which refresher does not read."""
    match choice.key if choice.file is None else None:
        case "claude-code" if sys.platform == "darwin":
            return ". On macOS, Claude Code keeps its logins in the keychain, which refresher does not read"
        case "codex":
            return '. codex uses the keyring, unless its config.toml has mcp_oauth_credentials_store = "file"'
        case "gemini-cli":
            return ". refresher cannot read what Gemini CLI encrypts with GEMINI_FORCE_ENCRYPTED_FILE_STORAGE"
        case _:
            return ""


def grant_of(settings: Settings, name: str, login: KeptLogin, choice: Choice) -> Grant:
    """Return the grant of a login, completed by discovery. Raises ``RefresherError`` if it cannot be one."""
    title = FORMATS[login.program].title
    url = login.server_url or choice.server
    if url is None:
        raise ConfigError(f"{login.file} does not name the MCP server of this login: give its address with --server")
    try:
        urls.parse_origin(url)
    except urls.InvalidURL as error:
        raise ConfigError(f"the address of the server {error}; give it as --server https://...") from None
    for value, what in ((login.refresh_token, "refresh token"), (login.client_id, "client_id")):
        if value is None:
            raise ImportRefused(
                f"{title} keeps no {what} for this login in {login.file}: it cannot be refreshed elsewhere; make a "
                f"login of its own: 'refresher login {name} {login.shown_url or without_query(url)}'"
            )
    try:
        from refresher.migration.completion import import_request_of  # the MCP SDK takes a second to load
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"import --format needs the MCP SDK (no {error.name}): in the checkout, pip install '.[all]'"
        ) from None
    try:
        return import_request.parse(name, import_request_of(login, url, settings.ca_file), clocks.now())
    except ImportRefused as error:
        raise ImportRefused(f"{login.file}: {error}") from None


def how_it_stops(name: str, login: KeptLogin) -> str:
    """Return the sentences that a person must read after the import."""
    form = FORMATS[login.program]
    stop = form.stop.format(entry=_entry(login), file=shlex.quote(str(login.file)))
    lines = [
        f"{form.title} must not use this login any more: if two programs send one refresh token, both lose the login.",
        f"Now, before one of them refreshes it: {stop}.",
        *([form.warning] if form.warning else []),
    ]
    if form.client is not None:
        lines.append(f"Then 'refresher connect {name} --for {form.client}' shows how it uses the tokens of refresher.")
    return "\n".join(lines)


def _rows(settings: Settings, found: Sequence[Found], choice: Choice, name: str | None = None) -> list[dict[str, Any]]:
    tokens = [each.refresh_token for each in found if isinstance(each, KeptLogin) and each.refresh_token is not None]
    held = holders(settings.open_store(), {token.fingerprint() for token in tokens})
    return [_row(each, held, choice, name, found) for each in found]


def _row(each: Found, held: dict[str, str], choice: Choice, name: str | None, found: Sequence[Found]) -> dict[str, Any]:
    if isinstance(each, Damaged):
        nothing = dict.fromkeys(("entry", "server_url", "account", "scope", "expires_at", "grant", "command"))
        return {
            "program": each.program,
            "file": str(each.file),
            **nothing,
            "refresh_token": False,
            "problem": each.problem,
        }
    token = each.refresh_token
    grant = None if token is None else held.get(token.fingerprint())
    account = accounts.account_of(each.id_token, each.access_token, issuer=each.issuer, client_id=each.client_id or "")
    problem = "it has no refresh token" if token is None else "it has no client_id" if each.client_id is None else None
    return {
        "program": each.program,
        "file": str(each.file),
        "entry": each.entry,
        "server_url": each.shown_url,
        "account": None if account is None else accounts.shown(account),
        "scope": each.scope,
        "expires_at": each.expires_at,
        "grant": grant,
        "command": None if problem or grant else _command(each, choice, name, found),
        "refresh_token": token is not None,
        "problem": problem,
    }


def _command(login: KeptLogin, choice: Choice, name: str | None, found: Sequence[Found]) -> str:
    url = login.shown_url or choice.server
    same = [each for each in found if isinstance(each, KeptLogin) and each.program == login.program]
    server = url
    if url is not None and login.entry is not None and sum(each.matches(url) for each in same) > 1:
        server = login.entry  # two logins of one address
    name = name or name_from(login.entry or (name_of_host(url) if url else "")) or "NAME"
    named = [] if choice.file is None and login.server_url else ["--file", str(login.file)]
    return shlex.join(
        ["refresher", "import", name, "--format", login.program, *named, "--server", one_line(server or "URL")]
    )


def _text_of(row: dict[str, Any]) -> str:
    lines = [f"{row['program']} {row['server_url'] or 'an unknown server'}"]
    if row["entry"]:
        lines[0] += f" ({row['entry']})"
    about = [f"file {row['file']}"]
    about += [f"{key} {row[key]}" for key in ("account", "scope") if row[key]]
    if (expires := row["expires_at"]) is not None:
        tense = "expired" if expires < clocks.now().wall else "expires"
        about.append(f"the access token {tense} {clock_time(expires)}")
    lines.append("; ".join(about))
    if row["problem"]:
        lines.append(f"cannot be imported: {row['problem']}")
    elif row["grant"]:
        lines.append(f"refresher has it already, as {row['grant']}")
    else:
        lines.append(row["command"])
    return "\n  ".join(map(one_line, lines))


def _entry(login: KeptLogin) -> str:
    return shlex.quote(one_line(login.entry or "NAME"))
