"""The token file, version 1: the contract for agents in any language."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim._token import STATES, Problem, TokenFile, is_name, parse, render
from shim.errors import TokenFileError, UnsupportedVersion

FIELDS = {
    "version": 1,
    "name": "linear",
    "grant_id": "0123",
    "generation": 7,
    "state": "failing",
    "access_token": "an-access-token",
    "token_type": "Bearer",
    "issued_at": 1800000000.5,
    "expires_at": 1800003600.5,
    "scope": "read write",
    "origins": ["https://mcp.example"],
    "error": {"code": "temporarily_unavailable", "description": "503", "at": 1800000100.0, "retry_at": 1800000110.0},
}
TOKEN = TokenFile(
    name="linear",
    grant_id="0123",
    generation=7,
    state="failing",
    access_token="an-access-token",
    token_type="Bearer",
    issued_at=1800000000.5,
    expires_at=1800003600.5,
    scope="read write",
    origins=("https://mcp.example",),
    error=Problem("temporarily_unavailable", "503", 1800000100.0, 1800000110.0),
)


def test_the_fields_and_their_types() -> None:
    """If it failed, programs in other languages that read the file would break."""
    assert json.loads(render(TOKEN)) == FIELDS
    assert parse(render(TOKEN)) == TOKEN
    with_server = TOKEN._replace(server_url="https://mcp.example/mcp")
    assert json.loads(render(with_server)) == FIELDS | {"server_url": "https://mcp.example/mcp"}
    assert parse(render(with_server)) == with_server


def test_equal_tokens_render_to_equal_bytes() -> None:
    """If it failed, each cron run would rewrite an up-to-date token file."""
    assert render(TOKEN) == render(TOKEN)
    assert render(TOKEN).count(b"\n") == 1
    assert render(TOKEN).endswith(b"\n")


@pytest.mark.parametrize(
    "token", ["plain", 'with "quotes" and \\', "ümläut \u2028", "a line\nand\ta tab", "\U0001f511"]
)
@pytest.mark.parametrize("expires_at", [None, 1800003600, 1800003600.125])
@pytest.mark.parametrize("error", [None, TOKEN.error])
def test_any_text_renders_to_json(token: str, expires_at: float | None, error: Problem | None) -> None:
    """If it failed, a server with an unusual scope would make every agent reject its token file."""
    strange = TOKEN._replace(
        access_token=token, scope=token, expires_at=expires_at, origins=(token, "b"), error=error, server_url=token
    )
    fields = strange._asdict() | {"error": None if error is None else error._asdict()}
    assert render(strange) == json.dumps({"version": 1} | fields).encode("ascii") + b"\n"


def test_unknown_keys_are_ignored() -> None:
    """If it failed, a new field would break every installed agent."""
    assert parse(json.dumps(FIELDS | {"new": {"deep": [1]}}).encode()) == TOKEN


@pytest.mark.parametrize("field", ["expires_at", "scope", "error", "access_token"])
def test_fields_that_may_be_null(field: str) -> None:
    """If it failed, tokens of unknown lifetime, and grants without an error, could not be published."""
    assert getattr(parse(json.dumps(FIELDS | {field: None}).encode()), field) is None


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_another_version_is_an_error_that_asks_for_an_upgrade(version: Any) -> None:
    """If it failed, an old agent would misread a new file instead of asking for an upgrade."""
    with pytest.raises(UnsupportedVersion, match="upgrade"):
        parse(json.dumps(FIELDS | {"version": version}).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../etc"},
        {"name": 5},
        {"generation": -1},
        {"generation": True},
        {"generation": 1.0},
        {"state": "fine"},
        {"origins": []},
        {"origins": "https://mcp.example"},
        {"origins": [1]},
        {"issued_at": None},
        {"issued_at": "now"},
        {"expires_at": float("nan")},
        {"expires_at": 10**400},
        {"access_token": 5},
        {"access_token": "a-token\n"},
        {"access_token": "a token"},
        {"access_token": "tok\u00e9n"},
        {"access_token": "\ud800"},
        {"token_type": "Bearer\r\nX: y"},
        {"token_type": ""},
        {"error": "bad"},
        {"error": {"code": "x"}},
        {"token_type": None},
    ],
)
def test_an_invalid_field_is_a_token_file_error(changes: dict[str, Any]) -> None:
    """If it failed, a damaged file would crash an agent, or be used."""
    with pytest.raises(TokenFileError):
        parse(json.dumps(FIELDS | changes).encode())


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_raise_only_token_file_errors(data: bytes) -> None:
    """If it failed, a damaged file would end an agent with a traceback."""
    with pytest.raises(TokenFileError):
        parse(data)


def test_printing_a_token_file_does_not_print_the_token() -> None:
    """If it failed, one debug line in an agent would leak its token."""
    assert "an-access-token" not in repr(TOKEN)
    assert "an-access-token" not in f"{[TOKEN]}"


def test_the_states_of_the_contract() -> None:
    """If it failed, agents that branch on the state would get one they do not know."""
    assert {"active", "failing", "reauthorization_required", "removed"} == STATES


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("linear", True),
        ("0.a-b_c", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        (".hidden", False),
        ("-option", False),
        ("A", False),
        ("a/b", False),
        ("..", False),
        ("a\n", False),
        ("ä", False),
    ],
)
def test_a_name_can_never_be_a_path(name: str, good: bool) -> None:
    """If it failed, a name could lead out of its directory."""
    assert is_name(name) is good
    assert not good or Path("/d", f"{name}.json").parent == Path("/d")
