"""``FileTokenSource``: ``token()``, ``headers()``, ``problem()`` and demands."""

import os
import threading
import time

import pytest

from shim import (
    Problem,
    ReauthorizationRequired,
    Removed,
    ShimError,
    TokenFileError,
    TokenRejected,
    TokenUnavailable,
)
from tests.support.command import wait_until
from tests.support.published import DEAD, Published


def test_a_token_that_lives_long_enough_is_returned(published: Published) -> None:
    """If it failed, programs that build their own header would have no token."""
    published.put(1)
    assert published.source().token(min_valid=60) == "access-token-1"
    published.put(2, expires_at=None)
    assert published.source().token(min_valid=1e9) == "access-token-2"
    assert published.demanded() == []


def test_a_token_that_expires_too_soon_is_demanded_and_reported(published: Published) -> None:
    """If it failed, a program would start long work with a token that expires during it."""
    published.put(1, expires_at=time.time() + 30)
    with pytest.raises(TokenUnavailable, match="60"):
        published.source().token(min_valid=60)
    assert published.demanded() == ["linear.1"]


def test_a_missing_or_expired_token_is_reported(published: Published) -> None:
    """If it failed, a program without a token would get an AttributeError or a wrong reason."""
    with pytest.raises(TokenFileError):
        published.source().token()
    published.put(1, state="failing", access_token=None, expires_at=None, error=DEAD)
    with pytest.raises(TokenUnavailable, match="no token yet: the user left"):
        published.source().token()
    published.put(2, expires_at=1.0)
    with pytest.raises(TokenUnavailable, match="expired"):
        published.source().token()


def test_a_live_token_of_a_grant_in_doubt_is_not_demanded(published: Published) -> None:
    """If it failed, a program that needs a longer lifetime would make refresher send a used refresh token, and lose the live token (I1)."""
    doubt = Problem("in_doubt", "an answer was lost", 1.0, None)
    published.put(expires_at=time.time() + 30, state="failing", error=doubt)
    with pytest.raises(TokenUnavailable):
        published.source().token(min_valid=60)
    assert published.demanded() == []
    published.put(expires_at=time.time() - 1, state="failing", error=doubt)
    with pytest.raises(TokenUnavailable):
        published.source().token(min_valid=60)
    assert published.demanded() == ["linear.1"], "no live token is at risk, but nothing is demanded"


def test_a_program_can_wait_for_the_rotation_that_it_demanded(published: Published) -> None:
    """If it failed, every program would need its own loop around token()."""
    published.put(1, expires_at=time.time() - 1)
    returned: list[str] = []
    waiting = threading.Thread(target=lambda: returned.append(published.source().token(wait=90)))
    waiting.start()
    wait_until(lambda: published.demanded() == ["linear.1"], "the demand is there")
    published.put(2)
    waiting.join(90)
    assert returned == ["access-token-2"]


def test_a_permanent_error_is_raised_at_once(published: Published) -> None:
    """If it failed, a program would wait for a token that nobody will publish."""
    published.put(1, expires_at=1.0, state="reauthorization_required", error=DEAD)
    with pytest.raises(ReauthorizationRequired, match="refresher login linear"):
        published.source().token(wait=3600)
    published.put(2, state="removed", access_token=None)
    with pytest.raises(Removed):
        published.source().token(wait=3600)
    assert published.demanded() == []


def test_the_live_token_of_a_rejected_grant_is_still_returned(published: Published) -> None:
    """If it failed, agents would stop up to an hour too early (I5)."""
    published.put(1, state="reauthorization_required", error=DEAD)
    assert published.source().token(min_valid=60) == "access-token-1"


def test_headers_are_only_for_the_origins_of_the_token(published: Published) -> None:
    """If it failed, a token would go to any URL that a model invents."""
    published.put(1, origins=("https://mcp.example", "http://[::1]:8080"))
    source = published.source()
    good = {"Authorization": "Bearer access-token-1"}
    for url in ("https://mcp.example/x", "https://MCP.Example:443/", "http://[::1]:8080/x?y"):
        assert source.headers(url) == good
    for url in ("http://mcp.example/", "https://mcp.example:444/", "https://mcp.example.evil.example/",
                "https://mcp.example@evil.example/", "https://evil.example/https://mcp.example", "//mcp.example", "", "https://[::1",
                "https://evil.example\\@mcp.example/", "https://evil.example\t@mcp.example/", "https://user@mcp.example/",
                "https://mcp.example\n/", "https://mcp.exämple/", "https://mcp.example:/"):  # fmt: skip
        assert source.headers(url) == {}, url


@pytest.mark.parametrize(("token_type", "scheme"), [("Bearer", "Bearer"), ("bearer", "Bearer"), ("DPoP", "DPoP")])
def test_the_scheme_is_spelled_as_servers_expect(published: Published, token_type: str, scheme: str) -> None:
    """If it failed, a server that issues "bearer" and accepts only "Bearer" would reject every request."""
    published.put(1, token_type=token_type)
    assert published.source().headers("https://mcp.example/")["Authorization"].split()[0] == scheme


def test_each_problem_has_its_own_type(published: Published) -> None:
    """If it failed, a program could not decide what to do about a problem."""
    source = published.source()
    assert type(source.problem()) is TokenFileError
    made = published.put(1)
    assert source.problem() is None
    source.rejected(made, "https://mcp.example")
    assert type(source.problem()) is TokenRejected
    published.put(2)
    assert source.problem() is None
    published.put(3, expires_at=1.0)
    assert type(source.problem()) is TokenUnavailable
    published.put(4, state="reauthorization_required", error=DEAD)
    problem = source.problem()
    assert isinstance(problem, ReauthorizationRequired)
    assert (problem.code, problem.description, problem.server) == (
        "invalid_grant",
        "the user left",
        "https://mcp.example",
    )
    published.put(5, state="removed", access_token=None)
    assert type(source.problem()) is Removed
    assert isinstance(problem, ShimError)


def test_an_accepted_token_is_no_problem(published: Published) -> None:
    """If it failed, one stray 401 would be reported until the next rotation, and use up the wait of the token."""
    made = published.put(1)
    source = published.source()
    source.rejected(made, "https://mcp.example")
    source.accepted(made)
    assert source.problem() is None


def test_an_older_token_does_not_replace_a_newer_rejected_one(published: Published) -> None:
    """If it failed, a slow request with an old token would give the rejected new token another wait."""
    old, new = published.put(1), published.put(2)
    source = published.source()
    since = source.rejected(new, "https://mcp.example")
    source.rejected(old, "https://mcp.example")
    source.accepted(old)
    assert source.rejected(new, "https://mcp.example") == since
    assert type(source.problem()) is TokenRejected


def test_a_newer_token_replaces_an_older_rejected_one(published: Published) -> None:
    """If it failed, only the first rejected token of a process would be known as rejected."""
    old, new = published.put(1), published.put(2)
    source = published.source()
    source.rejected(old, "https://mcp.example")
    assert source.problem() is None
    source.rejected(new, "https://mcp.example")
    assert type(source.problem()) is TokenRejected


def test_a_permanent_error_stays_after_the_file_is_deleted(published: Published) -> None:
    """If it failed, a program would wait in vain for a token that needs a person."""
    published.put(1, expires_at=1.0, state="reauthorization_required", error=DEAD)
    source = published.source()
    source.current()
    published.path.unlink()
    assert isinstance(source.problem(), ReauthorizationRequired)
    with pytest.raises(ReauthorizationRequired):
        source.token(wait=3600)
    assert isinstance(source.changes().poll(), ReauthorizationRequired)


@pytest.mark.parametrize("wait", [float("nan"), -1.0])
def test_an_invalid_wait_is_an_error(published: Published, wait: float) -> None:
    """If it failed, a program would wait forever."""
    with pytest.raises(ValueError, match="wait"):
        published.source().token(wait=wait)


def test_a_demand_is_one_empty_private_file(published: Published) -> None:
    """If it failed, refresher would not recognise the demand, or a thousand threads would make a thousand demands."""
    made = published.put(7)
    source = published.source()
    assert source.demand(made)
    assert source.demand(made)
    (path,) = published.demands.iterdir()
    assert path.name == "linear.7"
    assert path.stat().st_size == 0
    assert path.stat().st_mode & 0o077 == 0


def test_a_demand_says_why_to_the_group(published: Published) -> None:
    """If it failed, refresher, which may be another user, would report a token that expires too soon as refused."""
    source = published.source()
    published.put(1)
    before = os.umask(0o077)
    try:
        with pytest.raises(TokenUnavailable):
            source.token(min_valid=7200)
        token = published.put(2)
        source.rejected(token, "https://mcp.example")
        source.demand(token, expiring=True)
    finally:
        os.umask(before)
    texts = {path.name: (path.read_text(), path.stat().st_mode & 0o777) for path in published.demands.iterdir()}
    assert texts == {"linear.1": ("expiring", 0o640), "linear.2": ("https://mcp.example", 0o640)}


def test_a_missing_demands_directory_is_no_error(published: Published) -> None:
    """If it failed, requests would fail with an exception because a directory is missing."""
    published.demands.rmdir()
    assert not published.source().demand(published.put(1))
