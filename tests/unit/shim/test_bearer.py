"""The authorization of one request, step by step, with a fake clock."""

import time
from collections.abc import Generator

import httpx
import pytest

import shim._bearer
import shim._challenge
import shim._source
from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import TokensIssued
from refresher.grants.policy import Rotate
from refresher.grants.transition import apply
from shim import InsufficientScope, ReauthorizationRequired, Removed, TokenFileError, TokenRejected, TokenUnavailable
from shim.httpx import BearerAuth
from tests.support.published import DEAD, Published
from tests.support.samples import NOON, at, grant

ORIGIN = "https://mcp.example"
BEARER = "Bearer access-token-{}"

Step = httpx.Request | float
"""What a flow yields: the request, to be sent; or seconds to wait."""
Steps = Generator[Step, httpx.Response | None, None]


class Clock:
    """A fake monotonic clock, which only the test moves, because the real wait is 15 seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (shim._bearer, shim._source):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _response(status: int, authorization: str | None, *challenges: str) -> httpx.Response:
    """A response to a request with the header `authorization`."""
    headers = {} if authorization is None else {"authorization": authorization}
    request = httpx.Request("GET", ORIGIN, headers=headers)
    return httpx.Response(status, headers=[("www-authenticate", each) for each in challenges], request=request)


def _rejection(authorization: str | None, *challenges: str) -> httpx.Response:
    return _response(401, authorization, *challenges)


def _start(source: shim._source.FileTokenSource, *, origin: str = ORIGIN, replayable: bool = True, raise_errors: bool = False, wait: float = 15.0) -> Steps:  # fmt: skip
    content = b"" if replayable else iter([b""])
    request = httpx.Request("POST", origin, content=content)
    return BearerAuth(source, wait=wait, raise_errors=raise_errors)._steps(request)


def _sent(step: Step) -> str | None:
    assert isinstance(step, httpx.Request)
    authorization: str | None = step.headers.get("authorization")
    return authorization


def _wait_to_the_end(steps: Steps, clock: Clock, answer: httpx.Response) -> float:
    """Do every wait until the caller gets its response; return the seconds."""
    began = clock.now
    try:
        step = steps.send(answer)
        while True:
            assert isinstance(step, float), "it sent the rejected token again"
            assert step > 0
            clock.now += step
            step = steps.send(None)
    except StopIteration:
        return clock.now - began


def test_a_successful_response_ends_the_flow(published: Published) -> None:
    """If it failed, good requests would be sent twice."""
    published.put(1)
    steps = _start(published.source())
    assert _sent(next(steps)) == BEARER.format(1)
    with pytest.raises(StopIteration):
        steps.send(_response(200, BEARER.format(1)))
    assert published.demanded() == []


def test_a_newer_token_is_sent_at_once_without_a_demand(published: Published) -> None:
    """If it failed, a slow caller with an older token would cost a rotation."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    published.put(2)
    assert _sent(steps.send(_rejection(BEARER.format(1)))) == BEARER.format(2)
    assert published.demanded() == []


def test_a_rejected_token_is_demanded_once_and_awaited(published: Published, clock: Clock) -> None:
    """If it failed, a revoked token would need a restart, or a rotation for each request."""
    published.put(1)
    source = published.source()
    several = [_start(source) for _ in range(3)]
    for steps in several:
        next(steps)
        step = steps.send(_rejection(BEARER.format(1)))
        assert isinstance(step, float)
        assert step < 1, "it would wait longer than the rotation takes"
    assert published.demanded() == ["linear.1"]
    clock.now += 3
    published.put(2)
    for steps in several:
        assert _sent(steps.send(None)) == BEARER.format(2)


def test_all_requests_of_a_rejected_token_share_one_wait(published: Published, clock: Clock) -> None:
    """If it failed, a server that rejects everything would slow down each request forever."""
    published.put(1)
    source = published.source()
    first = _start(source)
    next(first)
    assert _wait_to_the_end(first, clock, _rejection(BEARER.format(1))) == pytest.approx(15.0)
    for _ in range(3):
        steps = _start(source)
        next(steps)
        assert _wait_to_the_end(steps, clock, _rejection(BEARER.format(1))) == 0
    assert published.demanded() == ["linear.1"]
    assert isinstance(source.problem(), TokenRejected)
    published.put(2)
    steps = _start(source)
    assert _sent(next(steps)) == BEARER.format(2)
    assert isinstance(steps.send(_rejection(BEARER.format(2))), float), "the next token has a wait of its own"


def test_a_request_waits_no_longer_than_wait_in_total(published: Published, clock: Clock) -> None:
    """If it failed, a server that rejects every new token would delay a request for minutes."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    began, generation, sends = clock.now, 1, 1
    step: Step = steps.send(_rejection(BEARER.format(1)))
    try:
        while True:
            if isinstance(step, float):
                clock.now += step
                if clock.now - began > 7 * generation:
                    generation += 1
                    published.put(generation)
                step = steps.send(None)
            else:
                sends += 1
                step = steps.send(_rejection(_sent(step)))
    except StopIteration:
        pass
    assert clock.now - began == pytest.approx(15.0)
    assert sends <= 4


def test_the_last_rejection_demands_a_token_but_does_not_wait_for_it(published: Published, clock: Clock) -> None:
    """If it failed, a request would wait for a token that it does not send."""
    published.put(1)
    steps = _start(published.source())
    step = next(steps)
    waits = []
    try:
        for generation in range(2, 100):
            step = steps.send(_rejection(_sent(step)))
            waits.append(isinstance(step, float))
            clock.now += 0.1
            published.put(generation)
            while isinstance(step, float):
                step = steps.send(None)
    except StopIteration:
        pass
    assert waits == [True, True, True]
    assert published.demanded()[-1] == "linear.4"


def test_only_a_successful_response_marks_a_token_as_accepted(published: Published, clock: Clock) -> None:
    """If it failed, each error of a failing server would give a rejected token another wait."""
    published.put(1)
    source = published.source()
    ours = BEARER.format(1)
    for answer, wait in (
        (_response(401, ours), 15.0),
        (_response(500, ours), 0.0),
        (_response(302, ours), 0.0),
        (_response(200, None), 0.0),  # from another origin, after a redirect that dropped the header
        (_response(401, ours), 0.0),
        (_response(204, ours), 0.0),
        (_response(401, ours), 15.0),
    ):
        steps = _start(source)
        next(steps)
        assert _wait_to_the_end(steps, clock, answer) == pytest.approx(wait)


def test_each_caller_has_its_own_wait_for_one_token(published: Published, clock: Clock) -> None:
    """If it failed, one client with a short wait would make all clients of a source give up."""
    published.put(1)
    source = published.source()
    hasty = _start(source, wait=0.0)
    next(hasty)
    assert _wait_to_the_end(hasty, clock, _rejection(BEARER.format(1))) == 0
    steps = _start(source)
    next(steps)
    assert _wait_to_the_end(steps, clock, _rejection(BEARER.format(1))) == pytest.approx(15.0)


def test_an_accepted_token_gets_a_new_wait(published: Published, clock: Clock) -> None:
    """If it failed, one stray 401 would make a real rejection an hour later fail at once."""
    published.put(1)
    source = published.source()
    for _ in range(2):
        steps = _start(source)
        next(steps)
        assert _wait_to_the_end(steps, clock, _rejection(BEARER.format(1))) == pytest.approx(15.0)
        steps = _start(source)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send(_response(200, BEARER.format(1)))


def test_the_current_generation_is_demanded_even_if_an_older_one_had_the_same_token(
    published: Published, clock: Clock
) -> None:
    """If it failed, refresher would treat the demand as outdated and not rotate."""
    published.put(1, access_token="the-same")
    steps = _start(published.source())
    next(steps)
    published.put(2, access_token="the-same")
    assert isinstance(steps.send(_rejection("Bearer the-same")), float)
    assert published.demanded() == ["linear.2"]


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
    steps = _start(published.source())
    next(steps)
    if ours:
        assert isinstance(steps.send(_rejection(BEARER.format(1), *challenges)), float)
    else:
        with pytest.raises(StopIteration):
            steps.send(_rejection(BEARER.format(1), *challenges))
    assert bool(published.demanded()) is ours


@pytest.mark.parametrize("status", [400, 403])
def test_invalid_token_in_a_challenge_is_a_rejection_at_another_status_too(
    published: Published, clock: Clock, status: int
) -> None:
    """If it failed, agents would never recover from an expired token at a server that answers 400 or 403 to it."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    answer = _response(status, BEARER.format(1), 'Basic realm="x"', 'Bearer realm="a", error="invalid_token"')
    assert isinstance(steps.send(answer), float)
    assert published.demanded() == ["linear.1"]
    published.put(2)
    assert _sent(steps.send(None)) == BEARER.format(2)


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
    steps = _start(source, raise_errors=True)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(_response(status, BEARER.format(1), challenge))
    assert published.demanded() == []
    assert source.problem() is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_scope_is_an_error_of_its_own_without_a_demand(published: Published, status: int) -> None:
    """If it failed, an agent would ask for new tokens, which lack the scope too, and no person would learn of it."""
    published.put(1)
    source = published.source()
    answer = _response(status, BEARER.format(1), 'Bearer error="insufficient_scope", scope="files:read files:write"')
    steps = _start(source)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer)
    steps = _start(source, raise_errors=True)
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
    steps = _start(published.source())
    next(steps)
    published.put(2)
    answer = _response(403, BEARER.format(1), 'Bearer error="insufficient_scope"')
    assert _sent(steps.send(answer)) == BEARER.format(2)


def test_a_missing_scope_is_less_serious_than_other_problems(published: Published, clock: Clock) -> None:
    """If it failed, a person would log in for a scope, although the token has expired or is rejected."""
    published.put(1)
    source = published.source()
    steps = _start(source)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(_response(403, BEARER.format(1), 'Bearer error="insufficient_scope", scope="x"'))
    with pytest.raises(TokenUnavailable, match="valid for less than"):
        source.token(min_valid=7200)
    steps = _start(source, wait=0.0)
    next(steps)
    _wait_to_the_end(steps, clock, _rejection(BEARER.format(1)))
    assert isinstance(source.problem(), TokenRejected)


def test_an_expired_token_is_demanded_before_it_is_sent(published: Published) -> None:
    """If it failed, refresher would learn only after one more round trip that a token is needed."""
    published.put(1, expires_at=time.time() - 1)
    steps = _start(published.source())
    assert _sent(next(steps)) == BEARER.format(1), "a clock that is wrong must not keep a good token back"
    assert published.demanded() == ["linear.1"]


def test_a_token_that_does_not_leave_or_cannot_be_renewed_is_not_demanded(published: Published) -> None:
    """If it failed, requests to other servers, or with a dead login, would cause demands."""
    published.put(1, expires_at=time.time() - 1)
    next(_start(published.source(), origin="https://other.example"))
    published.put(1, expires_at=time.time() - 1, state="reauthorization_required", error=DEAD)
    next(_start(published.source()))
    assert published.demanded() == []


@pytest.mark.parametrize("answer", [_response(403, BEARER.format(1)), _response(407, BEARER.format(1)), _response(500, BEARER.format(1)), _rejection(None), _rejection("Basic x")])  # fmt: skip
def test_only_a_401_to_our_token_starts_a_recovery(published: Published, answer: httpx.Response) -> None:
    """If it failed, the 401 of a redirect or the 407 of a proxy would count as a rejected token."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer)
    assert published.demanded() == []


@pytest.mark.parametrize("origin", ["http://mcp.example", "https://mcp.example:8443", "https://other.example"])
def test_no_token_leaves_for_another_origin(published: Published, origin: str) -> None:
    """If it failed, a token would be sent to any origin that a client connects to (I8)."""
    published.put(1)
    steps = _start(published.source(), origin=origin, raise_errors=True)
    assert _sent(next(steps)) is None
    with pytest.raises(StopIteration):
        steps.send(_rejection(None))
    assert published.demanded() == []


def test_a_token_is_not_sent_to_an_origin_that_it_no_longer_has(published: Published, clock: Clock) -> None:
    """If it failed, a replaced grant would leak its token to the previous server."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    published.put(2, origins=("https://other.example",))
    with pytest.raises(StopIteration):
        steps.send(_rejection(BEARER.format(1)))


def test_a_streamed_body_is_not_sent_again_but_the_token_is_demanded(published: Published, clock: Clock) -> None:
    """If it failed, an upload would arrive empty, or the other requests would not recover."""
    published.put(1)
    steps = _start(published.source(), replayable=False)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(_rejection(BEARER.format(1)))
    assert published.demanded() == ["linear.1"]


def test_after_a_permanent_error_requests_do_not_wait(published: Published, clock: Clock) -> None:
    """If it failed, every request with a dead login would hang for fifteen seconds."""
    published.put(1, state="reauthorization_required", error=DEAD)
    steps = _start(published.source())
    next(steps)
    assert _wait_to_the_end(steps, clock, _rejection(BEARER.format(1))) == 0
    assert published.demanded() == []


def test_a_permanent_error_ends_the_wait(published: Published, clock: Clock) -> None:
    """If it failed, requests would wait to the end for a token that cannot come."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    assert isinstance(steps.send(_rejection(BEARER.format(1))), float)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(StopIteration):
        steps.send(None)


def test_errors_are_raised_only_with_raise_errors(published: Published, clock: Clock) -> None:
    """If it failed, an exception in an auth flow would end a whole MCP session, or nobody could opt in."""
    source = published.source()
    assert _sent(next(_start(source))) is None
    with pytest.raises(TokenFileError):
        next(_start(source, raise_errors=True))
    published.put(1)
    steps = _start(source, raise_errors=True)
    next(steps)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(ReauthorizationRequired):
        steps.send(_rejection(BEARER.format(1)))
    published.put(1)
    steps = _start(source, replayable=False, raise_errors=True)
    next(steps)
    published.put(2)
    with pytest.raises(TokenRejected):
        steps.send(_rejection(BEARER.format(1)))
    published.put(2, state="removed", access_token=None)
    with pytest.raises(Removed):
        next(_start(source, raise_errors=True))


def test_a_server_that_rejects_every_token_causes_few_rotations_in_two_minutes(published: Published) -> None:
    """If it failed, a misconfigured server would cause a rotation every second."""
    # Simulated time: one request each second, then one decision of refresher; the server answers 401 to all.
    owned = grant(generation=1, issued_at=NOON, last_rotation_at=NOON, expires_at=NOON + 3600)
    published.put(1)
    source = published.source()
    rotations: list[float] = []
    for second in range(120):
        now: Moment = at(NOON + second)
        steps = _start(source, wait=0.0)
        sent = _sent(next(steps))
        with pytest.raises(StopIteration):
            steps.send(_rejection(sent))
        demanded = f"linear.{owned.generation}" in published.demanded()
        if isinstance(policy.decide(owned, now, demanded=demanded), Rotate):
            answer = TokensIssued(access_token=Secret("x"), token_type="Bearer", expires_in=3600.0, expires_at=None, refresh_token=None, scope=None)  # fmt: skip
            owned = apply(owned, answer, sent=now, now=now, demanded=demanded, generation=owned.generation + 1)  # fmt: skip
            published.put(owned.generation)
            rotations.append(second)
    assert rotations == [1, 31, 91]
