"""Logout: the grant is revoked at its server, and then removed here."""

from collections.abc import Callable

import pytest

from refresher.grants.record import Tombstone
from tests.support.answering import Answer, Answering
from tests.support.browser import as_browser
from tests.support.command import Command, without_times
from tests.support.mcp_login import MCPLogin
from tests.support.oidc import OIDC

Start = Callable[..., OIDC]
PERSON = as_browser("person")
API = "https://api.example"


def logged_in(refresher: Command, oidc: OIDC) -> None:
    """Log in at a server that can revoke."""
    options = ("--issuer", oidc.endpoints["issuer"], "--client-id", "public", "--scope", "openid offline_access")
    done = refresher("login", "linear", API, *options, environment=PERSON)
    assert done.code == 0, done.stderr


def tokens(refresher: Command) -> tuple[str, str]:
    """Return the refresh token and the access token."""
    access = refresher.token("linear").access_token
    assert access is not None
    return refresher.refresh_token("linear"), access


def test_logout_revokes_the_grant_and_publishes_its_removal(refresher: Command, own_oidc: Start) -> None:
    """If it failed, copies of the tokens would stay valid after logout."""
    oidc = own_oidc()
    logged_in(refresher, oidc)
    held = tokens(refresher)
    assert all(oidc.introspect(token)["active"] for token in held)
    done = refresher("logout", "linear")
    assert (done.code, done.stdout, done.stderr) == (0, "logged out: linear; it is revoked at the server\n", "")
    assert not any(oidc.introspect(token)["active"] for token in held)
    assert isinstance(refresher.record("linear"), Tombstone)
    assert refresher.token("linear").state == "removed"
    fields = {
        "token_endpoint": oidc.endpoints["token_endpoint"],
        "client_id": "public",
        "refresh_token": held[0],
        "server_url": API,
    }
    for name in ("linear", "another"):
        path = str(refresher.write_import(name, fields))
        done = refresher("import", name, "--from", path)
        assert done.code == 2
        assert "linear has already spent this refresh token" in done.stderr
    done = refresher("logout", "linear")
    assert (done.code, done.stdout) == (2, "")
    assert "linear was removed; to log in again: 'refresher login linear URL'" in done.stderr
    done = refresher("logout", "nobody")
    assert (done.code, done.stdout) == (2, "")
    assert "there is no grant named 'nobody'" in done.stderr


def test_a_server_of_the_mcp_sdk_revokes(refresher: Command) -> None:
    """If it failed, grants of servers made with the MCP SDK could not be revoked."""
    with MCPLogin() as mcp:
        assert refresher("login", "linear", mcp.url, environment=PERSON).code == 0
        done = refresher("logout", "linear")
        assert (done.code, done.stdout) == (0, "logged out: linear; it is revoked at the server\n")
        assert mcp.seen()["revoked"] == 1
        assert refresher("login", "linear", mcp.url, environment=PERSON).code == 0
        done = refresher("logout", "linear", "--keep-at-server")
        assert (done.code, done.stdout) == (
            0,
            "logged out: linear; it stays valid at the server until you revoke it there\n",
        )
        assert mcp.seen()["revoked"] == 1
        assert refresher.token("linear").state == "removed"


def test_without_a_revocation_endpoint_logout_says_that_the_grant_stays_valid(
    refresher: Command, own_oidc: Start
) -> None:
    """If it failed, such a grant could not be removed, or logout would claim that it is revoked."""
    oidc = own_oidc()
    fields = oidc.mint("public", live=True)
    refresher.import_grant("linear", fields)
    done = refresher("logout", "linear")
    assert done.code == 0
    assert "the server's revocation endpoint is not known; it stays valid at the server until" in done.stdout
    assert oidc.introspect(fields["refresh_token"])["active"]
    assert isinstance(refresher.record("linear"), Tombstone)


@pytest.mark.parametrize("how", ["away", "busy", "broken"])
def test_logout_keeps_the_grant_if_the_server_is_not_available(refresher: Command, own_oidc: Start, how: str) -> None:
    """If it failed, logout would remove a grant that stays valid at the server."""
    oidc = own_oidc()
    with Answering() as server:
        server.answers["/revoke"] = [Answer({"away": None, "busy": 503, "broken": 500}[how])]
        fields = oidc.mint("public", live=True) | {"revocation_endpoint": f"{server.url}/revoke"}
        refresher.import_grant("linear", fields)
        before = {path: path.read_bytes() for path in refresher.state.rglob("*.json")}
        done = refresher("logout", "linear")
        assert (done.code, done.stdout) == (4, "")
        assert without_times(done.stderr).startswith("refresher: cannot revoke linear: ")
        assert "the grant is unchanged. Try again later, or remove it only here with --keep-at-server" in done.stderr
        assert {path: path.read_bytes() for path in refresher.state.rglob("*.json")} == before
        assert oidc.introspect(refresher.token("linear").access_token)["active"]
        if how != "busy":
            return
        # The server revokes the refresh token and fails at the access token: the grant cannot be used any more.
        server.answers["/revoke"] = [Answer(200), Answer(503)]
        done = refresher("logout", "linear")
        assert (done.code, done.stdout) == (0, "logged out: linear; it is revoked at the server\n")
        assert isinstance(refresher.record("linear"), Tombstone)
