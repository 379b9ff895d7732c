"""What a response says about the token; requests with an expired token, or without one; the clients of MCP."""

import time
from typing import Any

import httpx
import pytest
from mcp.shared._httpx_utils import create_mcp_http_client

import shim._challenge
import shim.httpx
import shim.httpx2
from shim import InsufficientScope, TokenFileError, TokenRejected, TokenUnavailable
from tests.support.published import DEAD, Published
from tests.unit.shim.flow import BEARER, ORIGIN, Clock, rejection, response, sent, start, wait_to_the_end


def test_a_hostile_challenge_is_parsed_in_linear_time(published: Published) -> None:
    """If it failed, one header could block an event loop for seconds."""
    # A quadratic parser would not finish within the time of the test.
    hostile = 'Bearer "' + '\\"' * 2_000_000
    for header in (
        hostile,
        hostile + "\\",
        "," * 4_000_000,
        "Bearer " + "a=" * 2_000_000,
        'Bearer x="' + "a" * 4_000_000,
    ):
        assert len(list(shim._challenge._parsed([header]))) <= 1


@pytest.mark.parametrize(
    ("challenges", "ours"),
    [
        ((), True),
        (("Bearer",), True),
        (('Bearer realm="a, b", error="invalid_token"',), True),
        (('Bearer error="invalid_token", Basic realm="x"',), True),
        (("Basic realm=x", "Bearer"), True),
        (("Basic realm=x",), False),
        (("Negotiate",), False),
        (("DPoP algs=ES256",), False),
        (('Digest realm="Bearer x"',), False),
        (('Bearer realm="\\"x, Basic"',), True),
        (('Digest realm="x, Bearer"',), False),
    ],
)
def test_a_401_with_a_challenge_for_another_scheme_is_ignored(
    published: Published, challenges: tuple[str, ...], ours: bool
) -> None:
    """If it failed, a proxy that asks for a password would cause demands."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    if ours:
        assert isinstance(steps.send(rejection(BEARER.format(1), *challenges)), float)
    else:
        with pytest.raises(StopIteration):
            steps.send(rejection(BEARER.format(1), *challenges))
    assert bool(published.demanded()) is ours


@pytest.mark.parametrize("status", [400, 403])
def test_invalid_token_in_a_challenge_is_a_rejection_at_another_status_too(
    published: Published, clock: Clock, status: int
) -> None:
    """If it failed, agents would never recover from an expired token at a server that answers 400 or 403 to it."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    answer = response(status, BEARER.format(1), 'Basic realm="x"', 'Bearer realm="a", error="invalid_token"')
    assert isinstance(steps.send(answer), float)
    assert published.demanded() == ["linear.1"]
    published.put(2)
    assert sent(steps.send(None)) == BEARER.format(2)


@pytest.mark.parametrize(
    ("status", "challenge"),
    [
        (403, "Bearer"),
        (403, 'Bearer error="invalid_request"'),
        (403, 'DPoP error="invalid_token"'),
        (403, 'Digest realm="Bearer error=invalid_token"'),
        (404, 'Bearer error="invalid_token"'),
        (500, 'Bearer error="invalid_token"'),
    ],
)
def test_another_challenge_is_no_rejection(published: Published, status: int, challenge: str) -> None:
    """If it failed, an answer about something else would cost rotations."""
    published.put(1)
    source = published.source()
    steps = start(source, raise_errors=True)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(response(status, BEARER.format(1), challenge))
    assert published.demanded() == []
    assert source.problem() is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_scope_is_an_error_of_its_own_without_a_demand(published: Published, status: int) -> None:
    """If it failed, an agent would ask for new tokens, which lack the scope too, and no person would learn of it."""
    published.put(1)
    source = published.source()
    answer = response(status, BEARER.format(1), 'Bearer error="insufficient_scope", scope="files:read files:write"')
    steps = start(source)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer)
    steps = start(source, raise_errors=True)
    next(steps)
    with pytest.raises(InsufficientScope) as caught:
        steps.send(answer)
    for error in (caught.value, source.problem()):
        assert isinstance(error, InsufficientScope)
        assert (error.scopes, error.server) == (("files:read", "files:write"), ORIGIN)
        assert error.login_command == "refresher login linear --scope 'files:read files:write'"
    assert published.demanded() == []
    published.put(2)
    assert source.problem() is None


def test_after_a_missing_scope_a_newer_token_is_sent_at_once(published: Published) -> None:
    """If it failed, a request that began before a person logged in with the scope would fail after that."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    published.put(2)
    answer = response(403, BEARER.format(1), 'Bearer error="insufficient_scope"')
    assert sent(steps.send(answer)) == BEARER.format(2)


def test_a_missing_scope_is_less_serious_than_other_problems(published: Published, clock: Clock) -> None:
    """If it failed, a person would log in for a scope, although the token has expired or is rejected."""
    published.put(1)
    source = published.source()
    steps = start(source)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(response(403, BEARER.format(1), 'Bearer error="insufficient_scope", scope="x"'))
    with pytest.raises(TokenUnavailable, match="valid for less than"):
        source.token(min_valid=7200)
    steps = start(source, wait=0.0)
    next(steps)
    wait_to_the_end(steps, clock, rejection(BEARER.format(1)))
    assert isinstance(source.problem(), TokenRejected)


def test_an_expired_token_is_demanded_before_it_is_sent(published: Published) -> None:
    """If it failed, refresher would learn only after one more round trip that a token is needed."""
    published.put(1, expires_at=time.time() - 1)
    steps = start(published.source())
    assert sent(next(steps)) == BEARER.format(1), "a clock that is wrong must not keep a good token back"
    assert published.demanded() == ["linear.1"]


def test_a_token_that_does_not_leave_or_cannot_be_renewed_is_not_demanded(published: Published) -> None:
    """If it failed, requests to other servers, or with a dead login, would cause demands."""
    published.put(1, expires_at=time.time() - 1)
    next(start(published.source(), origin="https://other.example"))
    published.put(1, expires_at=time.time() - 1, state="reauthorization_required", error=DEAD)
    next(start(published.source()))
    assert published.demanded() == []


@pytest.mark.parametrize("answer", [response(403, BEARER.format(1)), response(407, BEARER.format(1)), response(500, BEARER.format(1)), rejection(None), rejection("Basic x")])  # fmt: skip
def test_only_a_401_to_our_token_starts_a_recovery(published: Published, answer: httpx.Response) -> None:
    """If it failed, the 401 of a redirect or the 407 of a proxy would count as a rejected token."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer)
    assert published.demanded() == []


def test_a_name_without_a_token_is_one_warning(published: Published, caplog: pytest.LogCaptureFixture) -> None:
    """If it failed, a wrong name would be a silent 401, or one warning for each request."""
    source = published.source()
    for _ in range(3):
        assert sent(next(start(source))) is None
        assert source.headers(ORIGIN) == {}
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("shim", "WARNING")
    assert record.getMessage().startswith(f"linear: requests carry no token: cannot read {published.path}: ")
    published.put(1, state="removed", access_token=None)
    source = published.source()
    source.headers("not a url")
    assert len(caplog.records) == 1
    next(start(source))
    assert "refresher login linear URL" in caplog.records[1].getMessage()
    published.put(1)
    next(start(published.source()))
    next(start(published.source(), origin="https://other.example"))
    assert len(caplog.records) == 2


def test_a_name_without_a_token_is_no_warning_where_it_is_an_error(
    published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """If it failed, a program would report the same problem twice."""
    with pytest.raises(TokenFileError):
        next(start(published.source(), raise_errors=True))
    assert caplog.records == []


def test_headers_demand_a_newer_token_if_this_one_has_expired(published: Published) -> None:
    """If it failed, a program that sets the header itself would send an expired token until the next rotation."""
    published.put(1, expires_at=time.time() - 1)
    source = published.source()
    assert source.headers("https://other.example") == {}
    assert published.demanded() == []
    assert source.headers(ORIGIN) == {"Authorization": BEARER.format(1)}
    assert published.demanded() == ["linear.1"]


@pytest.mark.parametrize("package", [shim.httpx, shim.httpx2], ids=["httpx", "httpx2"])
def test_the_clients_are_as_the_mcp_sdk_makes_them(published: Published, package: Any) -> None:
    """If it failed, each tool call that takes longer than 5 s would fail, or redirects would change a request."""
    sdk = create_mcp_http_client()
    for make in (package.async_client, package.client):
        made = make(published.source(), wait=1.5, raise_errors=True)
        assert made.timeout.as_dict() == sdk.timeout.as_dict()
        assert made.follow_redirects == sdk.follow_redirects
        assert isinstance(made.auth, package.BearerAuth)
        assert (made.auth._wait, made.auth._raise_errors) == (1.5, True)
        assert make("linear", timeout=7, follow_redirects=True).timeout.read == 7
        with pytest.raises(TypeError, match="auth"):
            make("linear", auth=None)
