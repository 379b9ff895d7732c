"""The parsers of what other programs keep, and the places of these programs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refresher.cli.connect import CLIENTS
from refresher.cli.move_in import how_it_stops
from refresher.common.errors import ConfigError
from refresher.migration.formats import FORMATS, recognised
from refresher.migration.kept_login import Damaged, KeptLogin, Source, epoch_seconds, without_query
from refresher.migration.places import logins_at, logins_here, places
from tests.support.kept_logins import FIXTURES

_WRITTEN = {
    "claude-code": "claude-code.json",
    "codex": "codex.json",
    "opencode": "opencode.json",
    "gemini-cli": "gemini-cli.json",
    "mcp-remote": "mcp-remote/757a0bdb75e561c57e2f6f5fe5d07066_tokens.json",
    "fastmcp": "fastmcp/S_mcp_oauth_token-3a009b34/S_http_127_0_0_1_38089_mcp_tokens-f10d02e3.json",
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["mcpOAuth", "tokens", "token", "value", "clientInfo", "discoveryState", "scopes", "created_at"]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def parsed(program: str, document: Any) -> list[KeptLogin]:
    """Parse a document of a program without other files."""
    path = Path("/nowhere/0123456789abcdef0123456789abcdef_tokens.json")
    return list(FORMATS[program].logins(Source(path=path, document=document, modified=0.0, read=lambda _: None, names=lambda _: ())))  # fmt: skip


@pytest.mark.parametrize("program", _WRITTEN)
def test_a_file_of_a_program_is_recognised(program: str) -> None:
    """If it failed, a person would have to know the format of a file, or it would be read as another one."""
    found = logins_at(FIXTURES / _WRITTEN[program], None)
    assert [each.program for each in found] == [program]
    (login,) = found
    assert isinstance(login, KeptLogin)
    assert login.client_id == "CLIENT_ID"
    assert login.refresh_token is not None
    assert login.refresh_token.reveal() == "REFRESH_TOKEN"
    assert "REFRESH_TOKEN" not in repr(login)
    assert "ACCESS_TOKEN" not in repr(login)


@given(document=_JSON)
def test_no_content_breaks_a_parser(document: Any) -> None:
    """If it failed, a strange file of another program would end the list in a traceback."""
    for program in FORMATS:
        parsed(program, document)
    recognised(Path("/nowhere/tokens.json"), document)


@pytest.mark.parametrize(
    ("written", "seconds"), [(1795912154.521, 1795912154.521), (1795912186492, 1795912186.492), (None, None), (0, 0)]
)
def test_times_in_seconds_and_milliseconds(written: float | None, seconds: float | None) -> None:
    """If it failed, an access token would count as valid for thousands of years, or as expired in 1970."""
    assert epoch_seconds(written) == seconds


def test_claude_code_keeps_secrets_and_issuers_apart() -> None:
    """If it failed, a client with a secret could not refresh, or the origin of the MCP server would count as issuer."""
    entry: dict[str, Any] = {"serverUrl": "https://mcp.example/mcp", "accessToken": "a", "clientId": "c"}
    entry |= {"discoveryState": {"authorizationServerUrl": "https://mcp.example", "oauthMetadataFound": False}}
    cleared = {"serverUrl": "https://other.example/mcp", "accessToken": "", "clientId": "c"}
    document = {
        "mcpOAuth": {"x|1": entry, "y|2": cleared},
        "mcpOAuthClientConfig": {"x|1": {"clientSecret": "a-secret-of-it"}},
    }
    (login,) = parsed("claude-code", document)
    assert login.client_secret is not None
    assert login.client_secret.reveal() == "a-secret-of-it"
    assert login.issuer is None


@pytest.mark.parametrize(
    ("issuer", "found", "has_metadata", "known"),
    [
        ("https://as.example", "https://other.example", True, "https://as.example"),
        ("https://as.example", None, False, "https://as.example"),
        (None, "https://as.example", False, "https://as.example"),
        (None, "https://mcp.example", False, None),
        (None, "https://mcp.example", True, "https://mcp.example"),
    ],
)
def test_claude_code_names_who_issued_the_tokens(
    issuer: str | None, found: str | None, has_metadata: bool, known: str | None
) -> None:
    """If it failed, a refresh token would be sent to another server than the one that issued it (I8)."""
    entry: dict[str, Any] = {"serverUrl": "https://mcp.example/mcp", "accessToken": "a", "clientId": "c"}
    entry |= {} if issuer is None else {"issuer": issuer}
    state = {"oauthMetadataFound": has_metadata} | ({} if found is None else {"authorizationServerUrl": found})
    (login,) = parsed("claude-code", {"mcpOAuth": {"x|1": entry | {"discoveryState": state}}})
    assert login.issuer == known


def test_the_places_follow_the_variables_of_the_programs() -> None:
    """If it failed, logins would not be found where a person has moved them."""
    moved = {
        "CLAUDE_CONFIG_DIR": "/m/claude",
        "CODEX_HOME": "/m/codex",
        "XDG_DATA_HOME": "/m/data",
        "GEMINI_CLI_HOME": "/m/gemini",
        "MCP_REMOTE_CONFIG_DIR": "/m/remote",
        "HERMES_HOME": "/m/hermes",
    }
    assert {key: str(path) for key, path in places({"HOME": "/h", **moved}).items()} == {
        "claude-code": "/m/claude/.credentials.json",
        "codex": "/m/codex/.credentials.json",
        "opencode": "/m/data/opencode/mcp-auth.json",
        "gemini-cli": "/m/gemini/.gemini/mcp-oauth-tokens.json",
        "mcp-remote": "/m/remote",
        "hermes": "/m/hermes/mcp-tokens",
    }
    assert all(str(path).startswith("/h/.") for path in places({"HOME": "/h", **dict.fromkeys(moved, "")}).values())


def test_what_is_no_file_is_a_row(tmp_path: Path) -> None:
    """If it failed, a FIFO at the place of a program would hang the list, or a link into nothing end it."""
    (tmp_path / ".codex").mkdir()
    os.mkfifo(tmp_path / ".codex/.credentials.json")
    (found,) = logins_here({"HOME": str(tmp_path)}, None)
    assert isinstance(found, Damaged)
    assert "not a regular file" in found.problem


def test_a_directory_is_recognised_or_refused(tmp_path: Path) -> None:
    """If it failed, a directory would be read as that of another program, or silently hold nothing."""
    assert [each.program for each in logins_at(FIXTURES / "fastmcp", None)] == ["fastmcp"]
    assert [each.program for each in logins_at(FIXTURES / "mcp-remote", None)] == ["mcp-remote"]
    with pytest.raises(ConfigError, match="--format"):
        logins_at(tmp_path, None)
    with pytest.raises(ConfigError, match="no such file"):
        logins_at(tmp_path / "absent", "hermes")


def test_files_of_the_sdk_with_a_lifetime_alone(tmp_path: Path) -> None:
    """If it failed, the access token would count as just issued, however old the file is."""
    path = tmp_path / "oauth.json"
    path.write_text(json.dumps({"tokens": {"access_token": "a", "expires_in": 300}, "client_info": {"client_id": "c"}}))
    os.utime(path, (1000.0, 1000.0))
    (login,) = logins_at(path, None)
    assert isinstance(login, KeptLogin)
    assert (login.program, login.expires_at, login.client_id) == ("mcp-sdk", 1300.0, "c")


@pytest.mark.parametrize("program", FORMATS)
def test_each_program_is_told_apart_and_stopped(program: str) -> None:
    """If it failed, a person would not learn how the program stops, or 'connect' would not know the client."""
    form = FORMATS[program]
    text = how_it_stops("linear", KeptLogin(program=program, file=Path("/a file"), entry="my server"))
    assert "must not use this login any more" in text
    assert "{" not in text
    assert "'my server'" in text or "'/a file'" in text
    assert form.client is None or form.client in {client.key for client in CLIENTS}


def test_an_address_is_shown_without_what_can_be_secret() -> None:
    """If it failed, the list would show a key in a query, or a password."""
    assert without_query("https://user:password@mcp.example/mcp?key=k#f") == "https://mcp.example/mcp"
    assert without_query("https://[") == "an invalid address"
