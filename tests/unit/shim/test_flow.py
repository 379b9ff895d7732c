"""What happens around one request, step by step, with a clock of the test's own."""

from collections.abc import Generator
from pathlib import Path

import pytest

import shim._flow
import shim._source
from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy
from refresher.grants.outcome import Rotated
from refresher.grants.policy import Rotate
from refresher.grants.transition import after
from shim import ReauthorizationRequired, Removed, TokenFileError, TokenRejected
from shim._flow import Answer, Send, Step, Wait, flow
from tests.support.published import DEAD, Published
from tests.support.samples import NOON, at, grant

ORIGIN = "https://mcp.example"
BEARER = "Bearer access-token-{}"


class Clock:
    """A monotonic clock that only waiting moves: a fake, for a quarter of a minute is long in a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (shim._flow, shim._source):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


def _refused(authorization: str | None, *challenges: str) -> Answer:
    return Answer(401, challenges, authorization)


def _start(source: shim._source.FileTokenSource, *, origin: str = ORIGIN, replayable: bool = True, raise_errors: bool = False) -> Generator[Step, Answer | None, None]:  # fmt: skip
    return flow(source, origin, wait=15.0, replayable=replayable, raise_errors=raise_errors)


def _sent(step: Step) -> str | None:
    assert isinstance(step, Send)
    return step.authorization


def _run_out(steps: Generator[Step, Answer | None, None], clock: Clock, answer: Answer) -> float:
    """Wait as told until the caller gets its answer; return the seconds."""
    began = clock.now
    try:
        step = steps.send(answer)
        while True:
            assert isinstance(step, Wait), "it sent the refused token again"
            assert step.seconds > 0
            clock.now += step.seconds
            step = steps.send(None)
    except StopIteration:
        return clock.now - began


def test_success_ends_it(published: Published) -> None:
    """If it failed, good requests would be sent twice."""
    published.put(1)
    steps = _start(published.source())
    assert _sent(next(steps)) == BEARER.format(1)
    with pytest.raises(StopIteration):
        steps.send(Answer(200, (), BEARER.format(1)))
    assert published.demanded() == []


def test_a_newer_token_is_tried_at_once_and_demands_nothing(published: Published) -> None:
    """If it failed, a late caller with an older token would cost a rotation (compare what was sent)."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    published.put(2)
    assert _sent(steps.send(_refused(BEARER.format(1)))) == BEARER.format(2)
    assert published.demanded() == []


def test_the_same_token_is_demanded_once_and_awaited(published: Published, clock: Clock) -> None:
    """If it failed, a revoked token would need a restart, or each request its own rotation."""
    published.put(1)
    source = published.source()
    several = [_start(source) for _ in range(3)]
    for steps in several:
        next(steps)
        step = steps.send(_refused(BEARER.format(1)))
        assert isinstance(step, Wait)
        assert step.seconds < 1, "it would sleep through the rotation"
    assert published.demanded() == ["linear.1"]
    clock.now += 3
    published.put(2)
    for steps in several:
        assert _sent(steps.send(None)) == BEARER.format(2)


def test_the_wait_belongs_to_the_token_and_is_spent_once(published: Published, clock: Clock) -> None:
    """If it failed, a server that refuses everything would slow each request down for ever."""
    published.put(1)
    source = published.source()
    first = _start(source)
    next(first)
    assert _run_out(first, clock, _refused(BEARER.format(1))) == pytest.approx(15.0)
    for _ in range(3):
        steps = _start(source)
        next(steps)
        assert _run_out(steps, clock, _refused(BEARER.format(1))) == 0
    assert published.demanded() == ["linear.1"]
    assert isinstance(source.problem(), TokenRejected)
    published.put(2)
    steps = _start(source)
    assert _sent(next(steps)) == BEARER.format(2)
    assert isinstance(steps.send(_refused(BEARER.format(2))), Wait), "the next token has a budget of its own"


def test_one_request_waits_no_longer_than_one_budget(published: Published, clock: Clock) -> None:
    """If it failed, a server that refuses every new token would hold a request for minutes."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    began, generation, sends = clock.now, 1, 1
    step: Step = steps.send(_refused(BEARER.format(1)))
    try:
        while True:
            if isinstance(step, Wait):
                clock.now += step.seconds
                if clock.now - began > 7 * generation:
                    generation += 1
                    published.put(generation)
                step = steps.send(None)
            else:
                sends += 1
                step = steps.send(_refused(step.authorization))
    except StopIteration:
        pass
    assert clock.now - began == pytest.approx(15.0)
    assert sends <= 4


def test_the_last_refusal_demands_and_does_not_wait_for_what_it_would_not_try(
    published: Published, clock: Clock
) -> None:
    """If it failed, a request would wait for a token only to throw it away."""
    published.put(1)
    steps = _start(published.source())
    step = next(steps)
    waits = []
    try:
        for generation in range(2, 100):
            step = steps.send(_refused(_sent(step)))
            waits.append(isinstance(step, Wait))
            clock.now += 0.1
            published.put(generation)
            while isinstance(step, Wait):
                step = steps.send(None)
    except StopIteration:
        pass
    assert waits == [True, True, True]
    assert published.demanded()[-1] == "linear.4"


def test_only_a_success_says_that_a_token_is_good(published: Published, clock: Clock) -> None:
    """If it failed, a server in trouble would give a refused token another wait with each of its errors."""
    published.put(1)
    source = published.source()
    ours = BEARER.format(1)
    for answer, wait in (
        (Answer(401, (), ours), 15.0),
        (Answer(500, (), ours), 0.0),
        (Answer(302, (), ours), 0.0),
        (Answer(200, (), None), 0.0),  # another origin's, after a redirect that dropped the header
        (Answer(401, (), ours), 0.0),
        (Answer(204, (), ours), 0.0),
        (Answer(401, (), ours), 15.0),
    ):
        steps = _start(source)
        next(steps)
        assert _run_out(steps, clock, answer) == pytest.approx(wait)


def test_each_caller_has_its_own_patience_with_one_token(published: Published, clock: Clock) -> None:
    """If it failed, one impatient client would make all others of a source give up at once."""
    published.put(1)
    source = published.source()
    hasty = flow(source, ORIGIN, wait=0.0, replayable=True, raise_errors=False)
    next(hasty)
    assert _run_out(hasty, clock, _refused(BEARER.format(1))) == 0
    steps = _start(source)
    next(steps)
    assert _run_out(steps, clock, _refused(BEARER.format(1))) == pytest.approx(15.0)


def test_a_token_that_is_taken_again_gets_its_wait_back(published: Published, clock: Clock) -> None:
    """If it failed, a real refusal would not be waited out because of a stray one an hour before."""
    published.put(1)
    source = published.source()
    for _ in range(2):
        steps = _start(source)
        next(steps)
        assert _run_out(steps, clock, _refused(BEARER.format(1))) == pytest.approx(15.0)
        steps = _start(source)
        next(steps)
        with pytest.raises(StopIteration):
            steps.send(Answer(200, (), BEARER.format(1)))


def test_the_current_generation_is_demanded_though_an_older_one_bore_the_same_token(
    published: Published, clock: Clock
) -> None:
    """If it failed, the refresher would take the demand for an old one, and nobody would rotate."""
    published.put(1, access_token="the-same")
    steps = _start(published.source())
    next(steps)
    published.put(2, access_token="the-same")
    assert isinstance(steps.send(_refused("Bearer the-same")), Wait)
    assert published.demanded() == ["linear.2"]


def test_a_hostile_challenge_costs_nothing(published: Published) -> None:
    """If it failed, one header could hold up every task of an event loop for seconds."""
    # Quadratic, this would not come to an end within the test's life.
    hostile = 'Bearer "' + '\\"' * 2_000_000
    assert list(shim._flow._schemes([hostile])) == ["bearer"]


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
    ],
)
def test_a_401_about_something_else_is_left_alone(
    published: Published, challenges: tuple[str, ...], ours: bool
) -> None:
    """If it failed, a proxy that wants a password would burn the grant with demands."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    if ours:
        assert isinstance(steps.send(_refused(BEARER.format(1), *challenges)), Wait)
    else:
        with pytest.raises(StopIteration):
            steps.send(_refused(BEARER.format(1), *challenges))
    assert bool(published.demanded()) is ours


@pytest.mark.parametrize("answer", [Answer(403, (), BEARER.format(1)), Answer(407, (), BEARER.format(1)), Answer(500, (), BEARER.format(1)), _refused(None), _refused("Basic x")])  # fmt: skip
def test_only_a_401_to_our_token_starts_anything(published: Published, answer: Answer) -> None:
    """If it failed, a redirect's 401 or a proxy's 407 would be taken for a dead token."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(answer)
    assert published.demanded() == []


@pytest.mark.parametrize("origin", ["http://mcp.example", "https://mcp.example:8443", "https://other.example"])
def test_no_token_leaves_for_another_origin(published: Published, origin: str) -> None:
    """If it failed, a token would be sent wherever a client is pointed (I8)."""
    published.put(1)
    steps = _start(published.source(), origin=origin, raise_errors=True)
    assert _sent(next(steps)) is None
    with pytest.raises(StopIteration):
        steps.send(_refused(None))
    assert published.demanded() == []


def test_a_token_whose_origins_changed_is_not_sent_to_the_old_one(published: Published, clock: Clock) -> None:
    """If it failed, a replaced grant would leak its token to the server before."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    published.put(2, origins=("https://other.example",))
    with pytest.raises(StopIteration):
        steps.send(_refused(BEARER.format(1)))


def test_a_body_that_cannot_be_sent_again_is_not(published: Published, clock: Clock) -> None:
    """If it failed, an upload would arrive empty; but the others' recovery must start all the same."""
    published.put(1)
    steps = _start(published.source(), replayable=False)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(_refused(BEARER.format(1)))
    assert published.demanded() == ["linear.1"]


def test_what_only_a_person_can_help_is_not_waited_for(published: Published, clock: Clock) -> None:
    """If it failed, every request to a dead login would hang for fifteen seconds."""
    published.put(1, state="reauthorization_required", error=DEAD)
    steps = _start(published.source())
    next(steps)
    assert _run_out(steps, clock, _refused(BEARER.format(1))) == 0
    assert published.demanded() == []


def test_a_grant_that_dies_while_requests_wait_lets_them_go(published: Published, clock: Clock) -> None:
    """If it failed, requests would wait to the end for a token that cannot come."""
    published.put(1)
    steps = _start(published.source())
    next(steps)
    assert isinstance(steps.send(_refused(BEARER.format(1))), Wait)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(StopIteration):
        steps.send(None)


def test_errors_are_raised_only_where_asked_for(published: Published, clock: Clock) -> None:
    """If it failed, an exception in an auth flow would kill a whole MCP session, or nobody could opt in."""
    source = published.source()
    assert _sent(next(_start(source))) is None
    with pytest.raises(TokenFileError):
        next(_start(source, raise_errors=True))
    published.put(1)
    steps = _start(source, raise_errors=True)
    next(steps)
    published.put(1, state="reauthorization_required", error=DEAD)
    with pytest.raises(ReauthorizationRequired):
        steps.send(_refused(BEARER.format(1)))
    published.put(1)
    steps = _start(source, replayable=False, raise_errors=True)
    next(steps)
    published.put(2)
    with pytest.raises(TokenRejected):
        steps.send(_refused(BEARER.format(1)))
    published.put(2, state="removed", access_token=None)
    with pytest.raises(Removed):
        next(_start(source, raise_errors=True))


def test_a_server_that_refuses_every_token_costs_few_rotations_in_two_minutes(published: Published) -> None:
    """If it failed, a misconfigured server would burn a grant with a rotation per second."""
    # Simulated time: requests all the time, a refresher that looks every second, a server that says 401 to all.
    owned = grant(generation=1, issued_at=NOON, last_rotation_at=NOON, expires_at=NOON + 3600)
    published.put(1)
    source = published.source()
    rotations: list[float] = []
    for second in range(120):
        now: Moment = at(NOON + second)
        steps = flow(source, ORIGIN, wait=0.0, replayable=True, raise_errors=False)
        sent = _sent(next(steps))
        with pytest.raises(StopIteration):
            steps.send(_refused(sent))
        demanded = f"linear.{owned.generation}" in published.demanded()
        if isinstance(policy.decide(owned, now, demanded=demanded), Rotate):
            answer = Rotated(access_token=Secret("x"), token_type="Bearer", expires_in=3600.0, expires_at=None, refresh_token=None, scope=None)  # fmt: skip
            owned = after(owned, answer, first_sent=now, last_sent=now, now=now, demanded=demanded, generation=owned.generation + 1)  # fmt: skip
            published.put(owned.generation)
            rotations.append(second)
    assert rotations == [1, 31, 91]
