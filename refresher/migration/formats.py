"""What other programs keep: one parser for each program, from the JSON of its files to its logins.

Each shape was read from a file that the program itself wrote: Claude Code 2.1, mcp-remote 0.15, opencode 1.18,
Hermes 0.19, FastMCP 4.2, codex 0.171 and Gemini CLI 0.61. ``mcp-sdk`` is what programs write that keep the SDK's own
models in files, for which the SDK has only an interface.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from refresher.migration.kept_login import (
    KeptLogin,
    Source,
    epoch_seconds,
    number,
    secret,
    table,
    text,
)

__all__ = ["FORMATS", "Format", "recognised"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One program: how its files are recognised and read, and how it stops refreshing a login."""

    key: str
    title: str
    fits: Callable[[Path, Any], bool]
    """Whether a file of this name with this content is one of the program's."""
    logins: Callable[[Source], Iterator[KeptLogin]]
    is_file: Callable[[str], bool]
    """Whether a name in a directory of the program is that of a file with tokens."""
    stop: str
    """What a person does so that the program uses the login no more; it may name ``{entry}`` and ``{file}``."""
    warning: str = ""
    """What would end the login for refresher too."""
    client: str | None = None
    """The key of the program in 'refresher connect'."""
    folder: Callable[[str], bool] | None = None
    """Whether a name in a directory of the program is that of a directory with such files."""


def recognised(path: Path, document: Any) -> Format | None:
    """Return the format of a file, ``None`` if it is none of these."""
    return next((each for each in FORMATS.values() if each.fits(path, document)), None)


def _claude_code(source: Source) -> Iterator[KeptLogin]:
    secrets = table(source.document, "mcpOAuthClientConfig")
    for key, value in table(source.document, "mcpOAuth").items():
        entry = table(value)
        state = table(entry, "discoveryState")
        if not (text(entry, "accessToken") or text(entry, "refreshToken")):
            continue  # a client without tokens
        yield KeptLogin(
            program="claude-code",
            file=source.path,
            entry=text(entry, "serverName"),
            server_url=text(entry, "serverUrl"),
            client_id=text(entry, "clientId"),
            client_secret=secret(entry, "clientSecret") or secret(table(secrets, key), "clientSecret"),
            access_token=secret(entry, "accessToken"),
            refresh_token=secret(entry, "refreshToken"),
            expires_at=epoch_seconds(number(entry, "expiresAt")),
            scope=text(entry, "scope"),
            # What is kept with the tokens is who issued them; the other is found anew now and then.
            issuer=text(entry, "issuer") or _discovered(state, text(entry, "serverUrl")),
        )


def _discovered(state: Mapping[str, Any], server_url: str | None) -> str | None:
    """Return the issuer that Claude Code found; without metadata, it keeps the origin of the MCP server as one."""
    found = text(state, "authorizationServerUrl")
    is_origin = found is not None and server_url is not None and server_url.startswith(f"{found.rstrip('/')}/")
    return None if is_origin and state.get("oauthMetadataFound") is not True else found


def _codex(source: Source) -> Iterator[KeptLogin]:
    for value in table(source.document).values():
        entry = table(value)
        scopes = entry.get("scopes")
        words = [word for word in scopes if isinstance(word, str)] if isinstance(scopes, list) else []
        yield KeptLogin(
            program="codex",
            file=source.path,
            entry=text(entry, "server_name"),
            server_url=text(entry, "server_url"),
            client_id=text(entry, "client_id"),
            access_token=secret(entry, "access_token"),
            refresh_token=secret(entry, "refresh_token"),
            expires_at=epoch_seconds(number(entry, "expires_at")),
            scope=" ".join(words) or None,
            issuer=text(entry, "issuer"),
        )


def _opencode(source: Source) -> Iterator[KeptLogin]:
    for name, value in table(source.document).items():
        entry = table(value)
        tokens, client = table(entry, "tokens"), table(entry, "clientInfo")
        if not tokens:
            continue  # a client without tokens
        yield KeptLogin(
            program="opencode",
            file=source.path,
            entry=name,
            server_url=text(entry, "serverUrl"),
            client_id=text(client, "clientId"),
            client_secret=secret(client, "clientSecret"),
            access_token=secret(tokens, "accessToken"),
            refresh_token=secret(tokens, "refreshToken"),
            expires_at=epoch_seconds(number(tokens, "expiresAt")),
            scope=text(tokens, "scope"),
        )


def _gemini_cli(source: Source) -> Iterator[KeptLogin]:
    for value in source.document if isinstance(source.document, list) else []:
        entry = table(value)
        tokens = table(entry, "token")
        yield KeptLogin(
            program="gemini-cli",
            file=source.path,
            entry=text(entry, "serverName"),
            server_url=text(entry, "mcpServerUrl"),
            client_id=text(entry, "clientId"),
            access_token=secret(tokens, "accessToken"),
            refresh_token=secret(tokens, "refreshToken"),
            token_type=text(tokens, "tokenType"),
            expires_at=epoch_seconds(number(tokens, "expiresAt")),
            scope=text(tokens, "scope"),
            token_endpoint=text(entry, "tokenUrl"),
        )


def _mcp_remote(source: Source) -> Iterator[KeptLogin]:
    known = source.path.name.removesuffix("_tokens.json")
    client = table(source.read(source.path.with_name(f"{known}_client_info.json")))

    def is_of(url: str) -> bool:
        return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest() == known

    yield _of_models(source, "mcp-remote", table(source.document), client, is_of=is_of)


def _hermes(source: Source) -> Iterator[KeptLogin]:
    client = table(source.read(source.path.with_suffix(".client.json")))
    server = table(source.read(source.path.with_suffix(".meta.json")))
    known = {"entry": source.path.stem, "token_endpoint": text(server, "token_endpoint")}
    issuer = {} if text(server, "issuer") is None else {"issuer": server["issuer"]}
    yield _of_models(source, "hermes", table(source.document), {**client, **issuer}, **known)


def _fastmcp(source: Source) -> Iterator[KeptLogin]:
    stem, _, mark = source.path.stem.rpartition("-")
    client: Mapping[str, Any] = {}
    store = source.path.parent.parent
    for folder in source.names(store):
        if not folder.startswith("S_mcp_oauth_client_info-") or folder.endswith(".json"):
            continue
        beginning = f"{stem.removesuffix('_tokens')}_client_info-"
        # Two servers whose names differ only in signs cannot be told apart here.
        beside = [name for name in source.names(store / folder) if name.startswith(beginning)]
        if len(beside) == 1:
            client = table(source.read(store / folder / beside[0]), "value")

    def is_of(url: str) -> bool:
        return any(hashlib.sha256(f"{each}/tokens".encode()).hexdigest()[:8] == mark for each in (url, url.rstrip("/")))

    yield _of_models(source, "fastmcp", table(source.document, "value"), client, is_of=is_of)


def _mcp_sdk(source: Source) -> Iterator[KeptLogin]:
    document = table(source.document)
    tokens = table(document, "tokens")
    if tokens:
        client = table(document, "client_info") or table(document, "client")
    else:
        tokens = document
        begin, _, end = source.path.name.rpartition("tokens")
        beside = (source.path.with_name(f"{begin}{name}{end}") for name in ("client_info", "client"))
        client = table(next(filter(None, map(source.read, beside)), None))
    yield _of_models(source, "mcp-sdk", tokens, client, server_url=text(document, "server_url"))


def _of_models(
    source: Source, program: str, tokens: Mapping[str, Any], client: Mapping[str, Any], **known: Any
) -> KeptLogin:
    """Return the login of an ``OAuthToken`` and an ``OAuthClientInformationFull``, as the SDK's models are written."""
    expires_at, expires_in = epoch_seconds(number(tokens, "expires_at")), number(tokens, "expires_in")
    if expires_at is None and expires_in is not None:
        expires_at = _written(source) + expires_in
    method = text(client, "token_endpoint_auth_method")
    return KeptLogin(
        program=program,
        file=source.path,
        client_id=text(client, "client_id"),
        # Some servers issue a secret to a client that does not use it.
        client_secret=None if method == "none" else secret(client, "client_secret"),
        auth_method=method,
        access_token=secret(tokens, "access_token"),
        refresh_token=secret(tokens, "refresh_token"),
        token_type=text(tokens, "token_type"),
        id_token=secret(tokens, "id_token"),
        expires_at=expires_at,
        scope=text(tokens, "scope"),
        issuer=text(client, "issuer") or text(tokens, "issuer"),
        **known,
    )


def _written(source: Source) -> float:
    """Return when the tokens were written: what the file says, else its time."""
    try:
        return datetime.fromisoformat(text(table(source.document), "created_at") or "").timestamp()
    except (ValueError, OverflowError):
        return source.modified


def _is_object_of(document: Any, *keys: str) -> bool:
    """Whether it is an object of objects that have all these members."""
    values = list(document.values()) if isinstance(document, dict) else []
    return bool(values) and all(isinstance(value, dict) and all(key in value for key in keys) for value in values)


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _none(_: str) -> bool:
    return False


_MCP_REMOTE_FILE: Final = re.compile(r"[0-9a-f]{32}_tokens\.json")

FORMATS: Final[Mapping[str, Format]] = {
    each.key: each
    for each in (
        Format(
            key="claude-code",
            title="Claude Code",
            fits=lambda _, document: isinstance(document, dict) and "mcpOAuth" in document,
            logins=_claude_code,
            is_file=_none,
            stop="quit Claude Code, then run 'claude mcp remove {entry}'",
            warning="Do not use 'claude mcp logout', and neither 'Clear authentication' nor 'Re-authenticate' in "
            "Claude Code: they revoke this login at the server, for refresher too.",
            client="claude-code",
        ),
        Format(
            key="mcp-remote",
            title="mcp-remote",
            fits=lambda path, _: _MCP_REMOTE_FILE.fullmatch(path.name) is not None,
            logins=_mcp_remote,
            is_file=lambda name: _MCP_REMOTE_FILE.fullmatch(name) is not None,
            folder=lambda name: name.startswith("mcp-remote-"),
            stop="quit each program that starts mcp-remote for this server, take mcp-remote out of its configuration, "
            "then delete {file}",
            client="mcp-remote",
        ),
        Format(
            key="opencode",
            title="opencode",
            fits=lambda _, document: _is_object_of(document, "tokens", "serverUrl"),
            logins=_opencode,
            is_file=_none,
            stop="quit opencode, then run 'opencode mcp logout {entry}', which revokes nothing at the server",
            client="opencode",
        ),
        Format(
            key="hermes",
            title="Hermes",
            fits=lambda path, document: path.parent.name == "mcp-tokens" and "access_token" in table(document),
            logins=_hermes,
            is_file=lambda name: _is_json(name) and not name.endswith((".client.json", ".meta.json")),
            stop="quit Hermes, then run 'hermes mcp remove {entry}', which revokes nothing at the server",
        ),
        Format(
            key="fastmcp",
            title="FastMCP",
            fits=lambda path, document: (
                path.parent.name.startswith("S_mcp_oauth_token-") and "access_token" in table(document, "value")
            ),
            logins=_fastmcp,
            is_file=_is_json,
            folder=lambda name: name.startswith("S_mcp_oauth_token-") and not _is_json(name),
            stop="stop the programs that use this store, then delete {file}",
            client="fastmcp",
        ),
        Format(
            key="codex",
            title="codex",
            fits=lambda _, document: _is_object_of(document, "server_name", "server_url", "access_token"),
            logins=_codex,
            is_file=_none,
            stop="quit codex, then run 'codex mcp logout {entry}', which revokes nothing at the server",
            client="codex",
        ),
        Format(
            key="mcp-sdk",
            title="the program with the MCP SDK",
            fits=lambda path, document: (
                "access_token" in table(document, "tokens")
                or (path.name.endswith("tokens.json") and "access_token" in table(document))
            ),
            logins=_mcp_sdk,
            is_file=lambda name: name.endswith("tokens.json"),
            stop="stop the program that uses {file}, then delete that file",
            client="mcp-sdk",
        ),
        Format(
            key="gemini-cli",
            title="Gemini CLI",
            fits=lambda _, document: (
                isinstance(document, list) and bool(document) and all("serverName" in table(each) for each in document)
            ),
            logins=_gemini_cli,
            is_file=_none,
            stop="quit Gemini CLI, run 'gemini mcp remove {entry}', then delete the entry of {entry} in {file}",
            client="gemini-cli",
        ),
    )
}
