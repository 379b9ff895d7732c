"""The authorization of one request: attach the token, and recover from a rejection."""

import pytest

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import TokensIssued
from refresher.grants.policy import Rotate
from refresher.grants.transition import apply
from shim import ReauthorizationRequired, Removed, TokenFileError, TokenRejected
from tests.support.published import DEAD, Published
from tests.support.samples import NOON, at, grant
from tests.unit.shim.flow import BEARER, Clock, Step, rejection, response, sent, start, wait_to_the_end


def test_a_successful_response_ends_the_flow(published: Published) -> None:
    """If it failed, good requests would be sent twice."""
    published.put(1)
    steps = start(published.source())
    assert sent(next(steps)) == BEARER.format(1)
    with pytest.raises(StopIteration):
        steps.send(response(200, BEARER.format(1)))
    assert published.demanded() == []


def test_a_newer_token_is_sent_at_once_without_a_demand(published: Published) -> None:
    """If it failed, a slow caller with an older token would cost a rotation."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    published.put(2)
    assert sent(steps.send(rejection(BEARER.format(1)))) == BEARER.format(2)
    assert published.demanded() == []


def test_a_rejected_token_is_demanded_once_and_awaited(published: Published, clock: Clock) -> None:
    """If it failed, a revoked token would need a restart, or a rotation for each request."""
    published.put(1)
    source = published.source()
    several = [start(source) for _ in range(3)]
    for steps in several:
        next(steps)
        step = steps.send(rejection(BEARER.format(1)))
        assert isinstance(step, float)
        assert step < 1, "it would wait longer than the rotation takes"
    assert published.demanded() == ["linear.1"]
    clock.now += 3
    published.put(2)
    for steps in several:
        assert sent(steps.send(None)) == BEARER.format(2)


def test_all_requests_of_a_rejected_token_share_one_wait(published: Published, clock: Clock) -> None:
    """If it failed, a server that rejects everything would slow down each request forever."""
    published.put(1)
    source = published.source()
    first = start(source)
    next(first)
    assert wait_to_the_end(first, clock, rejection(BEARER.format(1))) == pytest.approx(15.0)
    for _ in range(3):
        steps = start(source)
        next(steps)
        assert wait_to_the_end(steps, clock, rejection(BEARER.format(1))) == 0
    assert published.demanded() == ["linear.1"]
    assert isinstance(source.problem(), TokenRejected)
    published.put(2)
    steps = start(source)
    assert sent(next(steps)) == BEARER.format(2)
    assert isinstance(steps.send(rejection(BEARER.format(2))), float), "the next token has a wait of its own"


def test_a_request_waits_no_longer_than_wait_in_total(published: Published, clock: Clock) -> None:
    """If it failed, a server that rejects every new token would delay a request for minutes."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    began, generation, sends = clock.now, 1, 1
    step: Step = steps.send(rejection(BEARER.format(1)))
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
                step = steps.send(rejection(sent(step)))
    except StopIteration:
        pass
    assert clock.now - began == pytest.approx(15.0)
    assert sends <= 4


def test_the_last_rejection_demands_a_token_but_does_not_wait_for_it(published: Published, clock: Clock) -> None:
    """If it failed, a request would wait for a token that it does not send."""
    published.put(1)
    steps = start(published.source())
    step = next(steps)
    waits = []
    try:
        for generation in range(2, 100):
            step = steps.send(rejection(sent(step)))
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
        (response(401, ours), 15.0),
        (response(500, ours), 0.0),
        (response(302, ours), 0.0),
        (response(200, None), 0.0),  # from another origin, after a redirect that dropped the header
        (response(401, ours), 0.0),
        (response(204, ours), 0.0),
        (response(401, ours), 15.0),
    ):
        steps = start(source)
        next(steps)
        assert wait_to_the_end(steps, clock, answer) == pytest.approx(wait)


def test_each_caller_has_its_own_wait_for_one_token(published: Published, clock: Clock) -> None:
    """If it failed, one client with a short wait would make all clients of a source give up."""
    published.put(1)
    source = published.source()
    hasty = start(source, wait=0.0)
    next(hasty)
    assert wait_to_the_end(hasty, clock, rejection(BEARER.format(1))) == 0
    steps = start(source)
    next(steps)
    assert wait_to_the_end(steps, clock, rejection(BEARER.format(1))) == pytest.approx(15.0)


def test_an_accepted_token_gets_a_new_wait(published: Published, clock: Clock) -> None:
    """If it failed, one stray 401 would make a real rejection an hour later fail at once."""
    published.put(1)
    source = published.source()
    for _ in range(2):
        steps = start(source)
        next(steps)
        assert wait_to_the_end(steps, clock, rejection(BEARER.format(1))) == pytest.approx(15.0)
        steps = start(source)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send(response(200, BEARER.format(1)))


def test_the_current_generation_is_demanded_even_if_an_older_one_had_the_same_token(
    published: Published, clock: Clock
) -> None:
    """If it failed, refresher would treat the demand as outdated and not rotate."""
    published.put(1, access_token="the-same")
    steps = start(published.source())
    next(steps)
    published.put(2, access_token="the-same")
    assert isinstance(steps.send(rejection("Bearer the-same")), float)
    assert published.demanded() == ["linear.2"]


@pytest.mark.parametrize("origin", ["http://mcp.example", "https://mcp.example:8443", "https://other.example"])
def test_no_token_leaves_for_another_origin(published: Published, origin: str) -> None:
    """If it failed, a token would be sent to any origin that a client connects to (I8)."""
    published.put(1)
    steps = start(published.source(), origin=origin, raise_errors=True)
    assert sent(next(steps)) is None
    with pytest.raises(StopIteration):
        steps.send(rejection(None))
    assert published.demanded() == []


def test_a_token_is_not_sent_to_an_origin_that_it_no_longer_has(published: Published, clock: Clock) -> None:
    """If it failed, a replaced grant would leak its token to the previous server."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    published.put(2, origins=("https://other.example",))
    with pytest.raises(StopIteration):
        steps.send(rejection(BEARER.format(1)))


def test_a_streamed_body_is_not_sent_again_but_the_token_is_demanded(published: Published, clock: Clock) -> None:
    """If it failed, an upload would arrive empty, or the other requests would not recover."""
    published.put(1)
    steps = start(published.source(), replayable=False)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(rejection(BEARER.format(1)))
    assert published.demanded() == ["linear.1"]


def test_after_a_permanent_error_requests_do_not_wait(published: Published, clock: Clock) -> None:
    """If it failed, every request with a dead login would hang for fifteen seconds."""
    published.put(1, state="reauthorization_required", error=DEAD)
    steps = start(published.source())
    next(steps)
    assert wait_to_the_end(steps, clock, rejection(BEARER.format(1))) == 0
    assert published.demanded() == []


def test_a_permanent_error_ends_the_wait(published: Published, clock: Clock) -> None:
    """If it failed, requests would wait to the end for a token that cannot come."""
    published.put(1)
    steps = start(published.source())
    next(steps)
    assert isinstance(steps.send(rejection(BEARER.format(1))), float)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(StopIteration):
        steps.send(None)


def test_errors_are_raised_only_with_raise_errors(published: Published, clock: Clock) -> None:
    """If it failed, an exception in an auth flow would end a whole MCP session, or nobody could opt in."""
    source = published.source()
    assert sent(next(start(source))) is None
    with pytest.raises(TokenFileError):
        next(start(source, raise_errors=True))
    published.put(1)
    steps = start(source, raise_errors=True)
    next(steps)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(ReauthorizationRequired):
        steps.send(rejection(BEARER.format(1)))
    published.put(1)
    steps = start(source, replayable=False, raise_errors=True)
    next(steps)
    published.put(2)
    with pytest.raises(TokenRejected):
        steps.send(rejection(BEARER.format(1)))
    published.put(2, state="removed", access_token=None)
    with pytest.raises(Removed):
        next(start(source, raise_errors=True))


def test_a_server_that_rejects_every_token_causes_few_rotations_in_two_minutes(published: Published) -> None:
    """If it failed, a misconfigured server would cause a rotation every second."""
    # Simulated time: one request each second, then one decision of refresher; the server answers 401 to all.
    owned = grant(generation=1, issued_at=NOON, last_rotation_at=NOON, expires_at=NOON + 3600)
    published.put(1)
    source = published.source()
    rotations: list[float] = []
    for second in range(120):
        now: Moment = at(NOON + second)
        steps = start(source, wait=0.0)
        header = sent(next(steps))
        with pytest.raises(StopIteration):
            steps.send(rejection(header))
        demanded = f"linear.{owned.generation}" in published.demanded()
        if isinstance(policy.decide(owned, now, demanded=demanded), Rotate):
            answer = TokensIssued(access_token=Secret("x"), token_type="Bearer", expires_in=3600.0, expires_at=None, refresh_token=None, scope=None)  # fmt: skip
            owned = apply(owned, answer, sent=now, now=now, demanded=demanded, generation=owned.generation + 1)  # fmt: skip
            published.put(owned.generation)
            rotations.append(second)
    assert rotations == [1, 31, 91]
