"""The life of a login, from the browser to the logout, at MCP servers and authorization servers that others made."""

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.conftest import need
from tests.support import fastmcp_login
from tests.support import oidc as oidc_module
from tests.support.browser import as_browser
from tests.support.command import Command, Done
from tests.support.fastmcp_login import FastMCPLogin
from tests.support.mcp_login import MCPLogin
from tests.support.mcp_server import MCPServerProcess
from tests.support.oidc import OIDC
from tests.support.published import Published
from tests.support.vault import Vault

PERSON = as_browser("person")
PROXY = "FastMCP's OAuth proxy"


class Server(NamedTuple):
    """An MCP server, and the authorization server behind it if that is another one."""

    url: str
    behind: OIDC | None = None


@pytest.fixture(scope="module")
def oidc_provider() -> Iterator[OIDC]:
    need(oidc_module.missing())
    with OIDC(Vault()) as oidc:
        yield oidc


@pytest.fixture(scope="module", params=["oidc-provider", "the SDK's", "FastMCP in memory", PROXY])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "oidc-provider":
        oidc = request.getfixturevalue("oidc_provider")
        with MCPServerProcess(oidc) as mcp:
            yield Server(mcp.url, oidc)
    elif request.param == "the SDK's":
        with MCPLogin() as sdk:
            yield Server(sdk.url)
    else:
        need(fastmcp_login.missing())
        upstream = request.getfixturevalue("oidc_provider") if request.param == PROXY else None
        with FastMCPLogin(upstream) as fastmcp:
            yield Server(fastmcp.url, upstream)


def logged_in(done: Done) -> Done:
    """Check that the server has accepted the token of a login."""
    assert done.code == 0, (done.stdout, done.stderr)
    assert "accepted the new token (1 tool" in done.stdout or "accepted the new token (2 tools" in done.stdout
    return done


def accepts(server: Server, token: str | None) -> bool:
    """Whether the MCP server accepts a token."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    return httpx.post(server.url, json={}, headers=headers, trust_env=False, timeout=60).status_code != 401


def forced(refresher: Command) -> Done:
    return refresher("run-once", "--force", "--json", "linear")


def copied(refresher: Command) -> Command:
    """Return the command in a copy of its home: the same login on another machine."""
    home = refresher.home.with_name("elsewhere")
    shutil.copytree(refresher.home, home)
    return Command(home, refresher.vault)


def test_a_login_is_repeated_rotated_and_logged_out(refresher: Command, server: Server) -> None:
    """If it failed, a login at a server of this kind could not be made, kept or ended."""
    logged_in(refresher("login", "linear", server.url, environment=PERSON))
    first = refresher.grant("linear")
    assert first.resource == server.url
    assert first.renewable
    done = logged_in(refresher("login", "linear", environment=PERSON))
    assert "no longer knows" not in done.stderr
    again = refresher.grant("linear")
    assert (again.generation, again.client_id) == (1, first.client_id)
    for generation in (2, 3, 4):
        before = refresher.token("linear"), refresher.refresh_token("linear")
        assert accepts(server, before[0].access_token)
        done = forced(refresher)
        assert (done.code, done.outcome) == (0, "rotated"), done
        after = refresher.token("linear"), refresher.refresh_token("linear")
        assert (after[0].generation, after[0].state) == (generation, "active")
        assert before[0].access_token != after[0].access_token
        assert before[1] != after[1], "every one of these servers rotates"
        assert after[0].scope == before[0].scope
        assert after[0].expires_at is not None
        assert 3500 < after[0].expires_at - refresher.grant("linear").issued_at <= 3600
    published = refresher.token("linear").access_token
    assert accepts(server, published)
    elsewhere = copied(refresher)
    done = refresher("logout", "linear")
    assert (done.code, done.stdout) == (0, "logged out: linear; it is revoked at the server\n")
    assert not accepts(server, published)
    assert refresher.token("linear").state == "removed"
    assert (forced(elsewhere).code, elsewhere.token("linear").state) == (3, "reauthorization_required")


def test_a_login_that_the_server_has_ended_is_made_again(refresher: Command, server: Server) -> None:
    """If it failed, a person would not learn that a login is dead, or could not repair it by its name."""
    logged_in(refresher("login", "linear", server.url, environment=PERSON))
    assert copied(refresher)("logout", "linear").code == 0
    done = forced(refresher)
    assert (done.code, done.outcome) == (3, "reauthorization_required"), done
    assert "log in again with 'refresher login linear'" in done.stderr
    assert refresher.token("linear").state == "reauthorization_required"
    logged_in(refresher("login", "linear", environment=PERSON))
    token = refresher.token("linear")
    assert (token.generation, token.state) == (1, "active")
    assert accepts(server, token.access_token)
    assert (forced(refresher).outcome, refresher.token("linear").generation) == ("rotated", 2)


def check_verify(refresher: Command, url: str) -> None:
    """Check that ``headers --verify`` accepts the token of a login, and sees that another one is refused."""
    demands = refresher.state / "demands"
    done = refresher("headers", "linear", "--verify")
    assert (done.code, done.stderr, [*demands.iterdir()]) == (0, "", [])
    published = Published(refresher.home / "shared", url.removesuffix("/mcp"))
    published.put(server_url=url)
    reader = {"HOME": str(refresher.home / "shared")}  # an agent of another user, who has no grants
    reader |= {"REFRESHER_TOKENS_DIR": str(published.tokens), "REFRESHER_DEMANDS_DIR": str(published.demands)}
    done = refresher("headers", "linear", "--verify", "--wait", "0.2", environment=reader)
    assert f"linear: {url.removesuffix('/mcp')} refuses its newest token (generation 1)" in done.stderr
    assert published.demanded() == ["linear.1"]


def test_headers_verify_sees_a_refused_token(refresher: Command, server: Server) -> None:
    """If it failed, a helper would print a revoked token again, or use up tokens that a server of this kind accepts."""
    logged_in(refresher("login", "linear", server.url, environment=PERSON))
    check_verify(refresher, server.url)


def test_headers_verify_sees_a_refused_token_without_sessions(refresher: Command) -> None:
    """If it failed, a helper would print a revoked token again, for a server that answers a GET before it looks at the token."""
    need(fastmcp_login.missing())
    with FastMCPLogin(stateless=True) as fastmcp:
        logged_in(refresher("login", "linear", fastmcp.url, environment=PERSON))
        get = httpx.get(fastmcp.url, headers={"Authorization": "Bearer wrong"}, trust_env=False, timeout=60)
        assert get.status_code == 405, "it does not look at the token"
        check_verify(refresher, fastmcp.url)


@pytest.mark.parametrize("server", ["oidc-provider"], indirect=True)
def test_headers_verify_opens_no_session(refresher: Command, server: Server) -> None:
    """If it failed, each helper would leave a session in the memory of the server."""
    logged_in(refresher("login", "linear", server.url, environment=PERSON))
    log = server.url.replace("/mcp", "/test/log")
    before = Counter(httpx.get(log, trust_env=False, timeout=60).json()["answers"])
    assert refresher("headers", "linear", "--verify").code == 0
    after = Counter(httpx.get(log, trust_env=False, timeout=60).json()["answers"])
    assert after - before == {"404": 1}, "the session of the request is unknown"


@pytest.mark.parametrize("server", [PROXY], indirect=True)
@pytest.mark.parametrize(
    ("behind", "code", "outcome"),
    [
        # The proxy answers 500, which does not say whether it has spent its refresh token.
        ({"status": 503}, 5, "in_doubt"),
        ({"status": 400, "body": {"error": "invalid_grant"}}, 3, "reauthorization_required"),
    ],
    ids=["away", "revoked"],
)
def test_a_failure_behind_a_proxy(
    refresher: Command, server: Server, behind: dict[str, Any], code: int, outcome: str
) -> None:
    """If it failed, an outage behind a proxy would end a login, or a login that was revoked there would look alive."""
    assert server.behind is not None
    logged_in(refresher("login", "linear", server.url, environment=PERSON))
    server.behind.script(**behind)
    done = forced(refresher)
    assert (done.code, done.outcome) == (code, outcome), done
    token = refresher.token("linear")
    assert (token.generation, token.state) == (0, "failing" if outcome == "in_doubt" else outcome)
    assert accepts(server, token.access_token), "a live token is withdrawn"
    logged_in(refresher("login", "linear", environment=PERSON))
    assert (forced(refresher).outcome, refresher.token("linear").generation) == ("rotated", 2)
