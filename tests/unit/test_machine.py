"""One login, many troubles: a state machine over grant, policy, exchange and a model of an authorization server.

The product's own code decides, exchanges and keeps (``rotation._locked`` and all below it); only its clocks, its disk
and its network are played here, so that hours pass in no time and a process can be killed between any two steps.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Final, Literal, NamedTuple, cast, get_args
from unittest.mock import patch
from urllib.parse import parse_qsl

import httpx
import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from refresher import conduct, leftovers, policy, rotation
from refresher.answer import jwt_time
from refresher.attempt import Intent, Mark
from refresher.clocks import Moment
from refresher.demands import Demands
from refresher.directories import Directories
from refresher.grant import Grant, Record, Stored, decode, encode
from refresher.policy import Decision, Rest, Rotate
from refresher.rotation import Order, Terms
from refresher.secret import Secret
from tests.support.model_server import Answer, Early, ModelServer, Resource, Ways
from tests.support.samples import NOON, grant

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86400.0
EPSILON: Final = 0.01
"""Seconds that floating point may cost, so far from 1970."""
ON_THE_WAY: Final = 0.1
"""Seconds that a request travels: less than what ``policy`` allows for it."""


class Killed(BaseException):
    """The process is gone: nothing may catch it."""


class Happening(NamedTuple):
    """What becomes of the clocks meanwhile."""

    what: Literal["passes", "sleeps", "is set"] = "passes"
    seconds: float = ON_THE_WAY


Fault = Literal[
    "none",
    "unreachable",
    "lost on the way there",
    "lost on the way back",
    "error before",
    "error after",
    "garbled",
    "busy",
    "refused",
    "killed before its mark",
    "killed after its mark",
    "killed before its answer",
    "killed before it saved",
    "killed once it saved",
]


class Trouble(NamedTuple):
    """What befalls one request."""

    fault: Fault = "none"
    connecting: Happening = Happening()
    waiting: Happening = Happening()


class Clock:
    """The time of one machine, and the true time ``t``, in seconds since noon."""

    def __init__(self, *, knows_boot: bool) -> None:
        self.t = 0.0
        self.shift = 0.0
        self.boots = 1
        self._knows_boot = knows_boot
        self._asleep = 0.0
        self._booted_at = -5000.0
        self._true: dict[Moment, float] = {}

    def read(self) -> Moment:
        """Return what the product takes for now."""
        boottime = self.t - self._booted_at
        monotonic = boottime - self._asleep
        moment = Moment(
            wall=NOON + self.t + self.shift,
            monotonic=monotonic,
            # macOS has neither a boot id nor a clock that counts a suspended machine.
            boottime=boottime if self._knows_boot else monotonic,
            boot_id=f"boot-{self.boots}" if self._knows_boot else "",
        )
        self._true[moment] = self.t
        return moment

    def happen(self, happening: Happening) -> None:
        """Let time pass, be slept through, or be set."""
        if happening.what == "is set":
            self.shift += happening.seconds
            return
        self.t += abs(happening.seconds)
        if happening.what == "sleeps":
            self._asleep += abs(happening.seconds)

    def reboot(self, seconds: float) -> None:
        """Be off for a while."""
        self.t += seconds
        self.boots += 1
        self._asleep, self._booted_at = 0.0, self.t

    def true(self, moment: Moment) -> float:
        """Return when a moment was read."""
        return self._true[moment]

    def gained(self, since: Moment, until: Moment) -> float:
        """Return by how much the wall clock was set ahead between two moments; less than 0: back."""
        return (until.wall - since.wall) - (self.true(until) - self.true(since))


class Asked(Demands, frozen=True):
    """Demands that lie in a set instead of a directory."""

    remove: Callable[[int], None]

    def settle(self, directories: Directories, name: str, keep: int | None) -> None:
        """As the original."""
        for generation in self.by_name.get(name, ()):
            if keep is None or generation < keep:
                self.remove(generation)


class Host:
    """A machine with its disk and its network: what the product would otherwise ask the kernel for."""

    def __init__(self, server: ModelServer, clock: Clock, first: Grant) -> None:
        self.server = server
        self.clock = clock
        self.wrong: list[str] = []
        """What was found while the product's code was running, which may catch an exception."""
        self.demands: set[int] = set()
        self.misled = False
        """Whether the server gave a mistaken verdict when the client had a reason to believe it."""
        self.left: tuple[Intent, Mark] | None = None
        self.troubles: list[Trouble] = []
        self.forced = False
        self.disturbed = True
        """Whether something has happened since the last exchange that excuses an early next one."""
        self.tries = 0
        """How many requests the present exchange has tried."""
        self.in_doubt: dict[str, Moment] = {}
        """Refresh tokens that left and got no conclusive answer, and when the first such request left."""
        self.replaced: set[str] = set()
        self.answered: dict[str, Any] | None = None
        """The last success that arrived whole and has not been saved yet."""
        self._now = Trouble()
        self._began: float | None = None
        self._open = False
        self._last: tuple[float, float, bool] | None = None
        self._stored = Stored(first, "")
        self._write(first)
        self.issued = clock.read()
        """When the access token of the record came."""

    # The disk.

    @property
    def grant(self) -> Grant:
        """The record as any process reads it."""
        record = decode(self._bytes, self._name).record
        assert isinstance(record, Grant)
        return record

    def _write(self, record: Record) -> None:
        self._name = record.name
        self._bytes, checksum = encode(msgspec.structs.replace(record, begun_from=self._stored.checksum))
        self._stored = decode(self._bytes, record.name)
        assert self._stored.checksum == checksum

    def write_record(self, directories: Directories, name: str, stored: Stored, record: Record) -> Stored:
        """As ``attempt.write_record``."""
        self.save(record)
        return self._stored

    def save(self, record: Record) -> None:
        """Make ``record`` the durable one, after a look at what it would change."""
        assert isinstance(record, Grant)
        before, answer = self.grant, self.answered
        access, refresh = _secret(record.access_token), _secret(record.refresh_token)
        self.answered = None
        if answer is None:
            self._claim(refresh == _secret(before.refresh_token), "I6: a failure changed the refresh token")
            self._claim(
                (access, record.expires_at) == (_secret(before.access_token), before.expires_at),
                "I5: a failure withdrew or changed an access token",
            )
            self._claim(record.generation == before.generation, "a failure changed the generation")
            self._claim(record.resource_refused >= before.resource_refused, "what was learnt was forgotten")
        else:
            kept = answer.get("refresh_token", _secret(before.refresh_token))
            self._claim((access, refresh) == (answer["access_token"], kept), "I6: an answer was not saved as it came")
            self._claim(record.generation == before.generation + 1, "a rotation is not one generation")
            if refresh != _secret(before.refresh_token):
                self.replaced.add(_secret(before.refresh_token))
            self.in_doubt.clear()
            self.misled = False
            self.issued = self._sent
        self._write(record)

    def _claim(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    def resolve(self, directories: Directories, name: str, now: Moment) -> Stored:
        """As ``leftovers.resolve``, where no copy of an answer lies about: those are adopted whole or not at all."""
        if self.left is not None:
            intent, mark = self.left
            begun = leftovers._Begun(intent=intent, mark=mark)
            leftovers._settle(directories, name, self._stored, begun, now)
            self._claim(self.left is None, "what an attempt left behind was not settled")
        return self._stored

    def intent(self, name: str) -> Any:
        """As ``Directories.intent``, for what ``leftovers._settle`` does with it."""

        def unlink(*, missing_ok: bool) -> None:
            self.left = None

        return SimpleNamespace(unlink=unlink)

    def load(self, directories: Directories, name: str) -> Stored:
        """As ``store.load``."""
        return self._stored

    def pending(self, directories: Directories) -> Demands:
        """As ``demands.pending``."""
        return Asked({self._name: frozenset(self.demands)}, self.demands.discard)

    # One attempt (``attempt.Attempt``).

    def attempt(self, directories: Directories, name: str, stored: Stored) -> "Host":
        """Begin one."""
        return self

    def reserve(self, grant: Grant, at: Moment) -> None:
        """Declare it."""
        self._begins(grant)
        intent = Intent(
            grant_id=grant.grant_id,
            generation=grant.generation,
            fingerprint="" if grant.refresh_token is None else grant.refresh_token.fingerprint(),
            begun_from=self._stored.checksum,
            at=at,
            spill="",
        )
        self.left = intent, Mark.UNSENT

    def before_first_byte(self) -> None:
        """Mark it as sent."""
        assert self.left is not None
        self.left = self.left[0], Mark.SENT

    def keep_answer(self, answer: bytes, at: float) -> str:
        """Keep an answer that cannot be read, where no program looks at it again."""
        return "it is kept"

    def persist(self, record: Record, *, until_saved: bool) -> None:
        """Save what it ended with."""
        fault = self._now.fault
        if fault == "killed before it saved":
            raise Killed
        self._claim(until_saved == (self.answered is not None), "not every success is saved at any price")
        self.save(record)
        if fault == "killed once it saved":
            raise Killed
        self.left = None

    def abandon(self) -> None:
        """Take it back: only where somebody writes without the lock."""
        raise NotImplementedError

    close = abandon

    # The network.

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return what the product makes its requests with, connected to the model."""
        return _CLIENT(**options, transport=_Wire(self.carry))

    async def carry(self, request: httpx.Request) -> httpx.Response:
        """Carry one request there and its answer back, as far as its trouble lets it."""
        trouble = self._now = self.troubles[self.tries] if self.tries < len(self.troubles) else Trouble()
        self.tries += 1
        remaining = cast(float, request.extensions["timeout"]["read"])
        remaining = self._wait(trouble.connecting, remaining, httpx.ConnectTimeout)
        if trouble.fault == "unreachable":
            raise httpx.ConnectError("nobody is there")
        if trouble.fault == "killed before its mark":
            raise Killed
        await request.extensions["trace"]("http11.send_request_headers.started", {"request": _POST})
        fields = dict(parse_qsl(request.content.decode()))
        token = fields["refresh_token"]
        was_in_doubt = token in self.in_doubt
        self._sends(token)
        self._sent = self.clock.read()
        self._open = True
        if trouble.fault == "killed after its mark":
            raise Killed
        if trouble.fault == "lost on the way there":
            self._wait(trouble.waiting, remaining, httpx.ReadTimeout)
            raise httpx.ReadError("reset")
        if trouble.fault == "busy":
            answer = Answer(503, b"", retry_after=trouble.waiting.seconds * 100)
        elif trouble.fault == "error before":
            answer = Answer(500, b"")
        elif trouble.fault == "refused":
            answer = Answer(400, b'{"error": "access_denied"}')
        else:
            answer = self._arrives(fields, was_in_doubt=was_in_doubt)
        self._wait(trouble.waiting, remaining, httpx.ReadTimeout)
        if trouble.fault == "killed before its answer":
            raise Killed
        if trouble.fault == "lost on the way back":
            raise httpx.ReadError("reset")
        if trouble.fault == "error after":
            answer = Answer(502, b"<html>")
        elif trouble.fault == "garbled":
            answer = Answer(200, b"<html>")
        elif trouble.fault == "error before":
            pass
        else:
            self._open = False
            if answer.status == 200:
                self.answered = msgspec.json.decode(answer.body)
            elif b"invalid_target" not in answer.body and not was_in_doubt:
                del self.in_doubt[token]
        headers = {} if answer.retry_after is None else {"Retry-After": str(int(abs(answer.retry_after)))}
        return httpx.Response(answer.status, headers=headers, stream=httpx.ByteStream(answer.body))

    def _wait(self, happening: Happening, remaining: float, late: type[httpx.TimeoutException]) -> float:
        if happening.what != "passes":
            self.disturbed = True
        elif happening.seconds >= remaining:
            self.clock.happen(Happening("passes", remaining))
            raise late("too slow")
        self.clock.happen(happening)
        return remaining - happening.seconds if happening.what == "passes" else remaining

    def _arrives(self, fields: dict[str, str], *, was_in_doubt: bool) -> Answer:
        self.clock.happen(Happening())
        before = self.server.ended_by
        answer = self.server.answer(fields, self.clock.t)
        if before is None and self.server.ended_by == "reuse":
            self._claim(was_in_doubt, "a login was lost although no answer was")
        if before is None and self.server.ended_by == "early use":
            # B
            gained = self.clock.gained(self.issued, self.clock.read())
            set_anew = self.clock.shift > 0 or abs(gained) > policy.CLOCK_TOLERANCE - EPSILON
            self._claim(set_anew, f"a login was lost by a refresh token that was used before its time {gained}")
        if answer.body.startswith(b'{"error": "invalid_grant"') and self.server.ended_by is None:
            grant, now = self.grant, self.clock.read()
            # C
            set_ahead = self.clock.gained(self.issued, now) > policy.CLOCK_TOLERANCE - EPSILON
            # D: was_in_doubt
            # E: self._now.waiting
            set_ahead |= self._now.waiting.what != "passes"
            self.misled |= (
                was_in_doubt or set_ahead or any(generation >= grant.generation for generation in self.demands)
            )
        return answer

    # What must hold whenever something is sent.

    def _begins(self, grant: Grant) -> None:
        """No hot loop: a second between any two exchanges, five after a failure."""
        if self._last is not None and not self.forced and not self.disturbed:
            began, ended, failed = self._last
            least, since = (5.0, ended) if failed else (1.0, began)
            self._claim(
                self.clock.t >= since + least - EPSILON, f"an exchange {self.clock.t - since:.2f} s after another"
            )
            if grant.demanded and grant.failure is None and self.clock.read().wall < policy.due_at(grant):
                gap = min(30.0, self.server.ways.life / 4)
                self._claim(self.clock.t >= began + gap - 1, "demands alone burn one token after another")
        self.tries = 0
        self._now, self._open = Trouble(), False
        self._began = self.clock.t
        self.disturbed = False

    def _sends(self, token: str) -> None:
        """I1 and I3."""
        self._claim(token not in self.replaced, "I3: a refresh token was sent that had been answered and replaced")
        self._claim(self.tries <= 2, "an exchange of more than two requests")
        if token not in self.in_doubt:
            self.in_doubt[token] = self.clock.read()
            return
        if not self.server.ways.rotates:
            return
        first = self.clock.true(self.in_doubt[token])
        grace = self.server.ways.grace
        if grace is None or self.clock.t + ON_THE_WAY - first <= grace:
            return  # a replay
        grant = self.grant
        if grant.access_token is None or any(generation >= grant.generation for generation in self.demands):
            return
        access = grant.access_token.reveal()
        if self.server.lives(access, self.clock.t + EPSILON):
            left = self.server.ends_at(access) - ON_THE_WAY - self.clock.t  # as a client reckons, from when it asked
            if left > self._fooled(self.in_doubt[token] if grant.doubt is None else grant.doubt.since):
                self.wrong.append(
                    f"I1: a refresh token in doubt was sent while a live access token had {left:.1f} s left"
                )

    def _fooled(self, since: Moment) -> float:
        """Return by how many seconds the best of clients may think a token ended too early."""
        now = self.clock.read()
        # A
        before = max(0.0, self.clock.gained(self.issued, since))
        return EPSILON + before + (0.0 if since.same_boot(now) else max(0.0, self.clock.gained(since, now)))

    # What the product is asked to do.

    def act(
        self,
        *,
        force: bool = False,
        horizon: float = 0.0,
        seen: int | None = None,
        troubles: tuple[Trouble, ...] = (),
    ) -> None:
        """Let one process carry out one order under the lock."""
        self.troubles, self.forced, self._began = list(troubles), force, None
        before = self.grant
        must = self._must_replay()
        order = Order(name=self._name, seen=before.generation if seen is None else seen, force=force, horizon=horizon)
        killed = False
        try:
            rotation._locked(cast(Directories, self), order, Terms(ca_file=None, stopping=lambda: False))
        except Killed:
            killed = self.disturbed = True
            self.answered = None
        self._claim(not must or self._began is not None, "nobody replayed although the server would have taken it")
        if self._began is not None:
            self._last = self._began, self.clock.t, self.grant.failure is not None
            self._claim(killed or not self._missed_replay(before), "the exchange did not make its own replay")
        assert not self.wrong, self.wrong[0]
        assert self.answered is None, "an answer was not saved"
        assert killed or self.left is None, "an attempt was left behind by a process that lives"

    def _must_replay(self) -> bool:
        """Whether this is the time for a replay: the server takes it, nothing speaks against it, and it may be the last."""
        cut_off = self.left is not None
        grant = leftover = self.grant
        if cut_off:
            self.resolve(cast(Directories, self), grant.name, self.clock.read())
            grant = self.grant
        if grant.doubt is None or grant.dead or grant.failure is None or self.server.ways.early == "ends the login":
            return False
        patience = self.clock.read().wall < (grant.failure.retry_at or 0.0)
        # Cut off anew, it waits for nothing.
        return self._replayable(grant) and (not patience or (cut_off and grant.failures > leftover.failures))

    def _replayable(self, grant: Grant, wait: float = 0.0) -> bool:
        replay = conduct.replay(grant)
        if replay is None or grant.doubt is None:
            return replay is None
        since, now = grant.doubt.since, self.clock.read()
        lasted = now.boottime - since.boottime + wait
        settled = abs(self.clock.gained(since, now)) < EPSILON
        return since.same_boot(now) and settled and lasted < replay - min(1.0, replay / 10) - EPSILON

    def is_lost(self) -> bool:
        """Whether the refresh token of the record may be used up for good, so that nobody could keep the login."""
        cut_off = self.left is not None
        self.resolve(cast(Directories, self), self._name, self.clock.read())
        grant = self.grant
        if not self.server.is_spent(_secret(grant.refresh_token)) or self.server.ways.grace is None:
            return False
        if grant.failure is None or grant.failure.retry_at is None or cut_off:
            return not self._replayable(grant)
        wait = grant.failure.retry_at - self.clock.read().wall
        return not self._replayable(grant, max(wait, 0.0))

    def _missed_replay(self, before: Grant) -> bool:
        """Whether an answer was lost, and there were time and leave to ask again within the exchange."""
        if before.doubt is not None or before.dead or self.tries != 1 or not self._open or self.disturbed:
            return False
        assert self._began is not None
        return self.clock.t - self._began < 18.9 and self._replayable(self.grant)


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, carry: Any) -> None:
        self._carry = carry

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._carry(request)
        return response


_CLIENT: Final = httpx.AsyncClient
_POST: Final = SimpleNamespace(method=b"POST")


def _secret(secret: Secret | None) -> str:
    return "" if secret is None else secret.reveal()


# What can happen.

spans = st.sampled_from([0.4, 3.0, 7.0, 15.0, 29.5, 61.0, 400.0, 950.0, 2000.0, HOUR, 8 * HOUR, DAY]) | st.floats(
    0.1, DAY
)
settings_of_clocks = st.sampled_from([-30.0, 30.0, -61.0, 61.0, -HOUR, HOUR, -DAY, DAY]) | st.floats(-DAY, DAY)
happenings = st.one_of(
    st.just(Happening()),
    st.builds(Happening, st.just("passes"), st.sampled_from([4.0, 9.0, 12.0, 30.0])),
    st.builds(Happening, st.just("sleeps"), spans),
    st.builds(Happening, st.just("is set"), settings_of_clocks),
)
faults: st.SearchStrategy[Fault] = st.sampled_from(cast(tuple[Fault, ...], get_args(Fault)))
troubles = st.lists(st.builds(Trouble, faults, happenings, happenings), max_size=3).map(tuple)
horizons = st.sampled_from([MINUTE, 5 * MINUTE, HOUR])


@st.composite
def logins(draw: st.DrawFn) -> tuple[Ways, dict[str, Any]]:
    """Return a server and an honest configuration of a grant there: it promises nothing that the server does not do."""
    rotates = draw(st.integers(0, 4)) > 0
    grace = draw(st.sampled_from([0.0, 5.0, 30.0, 1800.0, None])) if rotates else None
    life = draw(st.sampled_from([HOUR, 5.0, MINUTE, 600.0, 8 * HOUR, 2 * DAY]))
    tells_life = draw(st.booleans())
    early: Early = draw(st.sampled_from(("allowed", "allowed", "refused", "mistaken for dead", "ends the login")))
    if not rotates and early == "ends the login":
        early = "allowed"
    resource: Resource = draw(st.sampled_from(("ignored", "ignored", "refused", "refused once spent")))
    ways = Ways(rotates, grace, life, tells_life, draw(st.booleans()), early, resource)
    replays: list[Any] = [0.0, msgspec.UNSET]
    if grace is None:
        replays += [None, 30.0, None]
    elif grace > 0:
        replays += [grace, grace / 2, grace]
    ages = [life, 2 * life] + ([None] if tells_life or life <= HOUR else [])
    return ways, {
        "name": draw(st.sampled_from(["linear", "notion", "slack"])),
        "replay": draw(st.sampled_from(replays)),
        "max_age": draw(st.sampled_from(ages)),
        "refuses_early": early == "mistaken for dead" or (early == "refused" and draw(st.booleans())),
        "resource": draw(st.sampled_from([None, "https://mcp.example/mcp"])),
        "send_resource": None,
    }


class Login(RuleBasedStateMachine):
    """A login, a server, and all who want something of them."""

    def __init__(self) -> None:
        super().__init__()
        self._patches = ExitStack()

    @initialize(login=logins(), knows_boot=st.integers(0, 5), with_access=st.integers(0, 5))
    def is_imported(self, login: tuple[Ways, dict[str, Any]], knows_boot: int, with_access: int) -> None:
        """Log in by other means, and import what came of it."""
        ways, configured = login
        self.server = ModelServer(ways)
        self.clock = Clock(knows_boot=knows_boot < 5)
        refresh, access = self.server.log_in(0.0)
        known = with_access < 5
        first = grant(
            token_endpoint="http://127.0.0.1:9/token",
            refresh_token=Secret(refresh),
            not_before=jwt_time(refresh, "nbf"),
            access_token=Secret(access) if known else None,
            expires_at=NOON + ways.life if known and ways.tells_life else None,
            last_rotation_at=None,
            **(configured if known else configured | {"max_age": ways.life}),
        )
        self.host = host = Host(self.server, self.clock, first)
        self.false_alarm = False
        enter = self._patches.enter_context
        enter(patch("refresher.clocks.now", self.clock.read))
        enter(patch("refresher.exchange.time", SimpleNamespace(monotonic=lambda: self.clock.read().monotonic)))
        enter(patch("httpx.AsyncClient", host.client))
        enter(patch("refresher.leftovers.write_record", host.write_record))
        enter(
            patch.multiple(
                "refresher.rotation",
                leftovers=SimpleNamespace(resolve=host.resolve),
                demands=SimpleNamespace(pending=host.pending),
                store=SimpleNamespace(load=host.load),
                write_record=host.write_record,
                publish=lambda *_, **__: True,
                published_generation=lambda *_: 0,
                Attempt=host.attempt,
            )
        )

    def teardown(self) -> None:
        """Give the product its clocks, disk and network back."""
        self._patches.close()

    # Time.

    @rule(seconds=spans)
    def time_passes(self, seconds: float) -> None:
        """Nothing else."""
        self.clock.happen(Happening("passes", seconds))

    @rule(seconds=spans)
    def the_machine_sleeps(self, seconds: float) -> None:
        """A lid is closed."""
        self.clock.happen(Happening("sleeps", seconds))

    @rule(seconds=settings_of_clocks)
    def the_clock_is_set(self, seconds: float) -> None:
        """By hand, by NTP, by a dead battery."""
        self.clock.happen(Happening("is set", seconds))
        self.host.disturbed = True

    @rule(seconds=spans, mark_is_lost=st.booleans())
    def the_machine_reboots(self, seconds: float, mark_is_lost: bool) -> None:
        """An unsynced mark may be lost with the power."""
        self.clock.reboot(seconds)
        self.host.disturbed = True
        if self.host.left is not None and mark_is_lost:
            self.host.left = self.host.left[0], Mark.UNSENT

    # Those who rotate.

    @rule(troubles=troubles)
    def the_daemon_wakes_when_it_planned_to(self, troubles: tuple[Trouble, ...]) -> None:
        """The timetable rings."""
        decision = self._decide()
        if isinstance(decision, Rest):
            if decision.until is None:
                return
            self.clock.happen(Happening("passes", max(decision.until - self.clock.read().wall, 0.0)))
        self.host.act(troubles=troubles)

    @rule(troubles=troubles, horizon=horizons | st.just(0.0))
    def somebody_runs_once(self, troubles: tuple[Trouble, ...], horizon: float) -> None:
        """Cron, or a person."""
        self.host.act(troubles=troubles, horizon=horizon)

    @rule(troubles=troubles)
    def somebody_forces_it(self, troubles: tuple[Trouble, ...]) -> None:
        """An impatient person."""
        self.host.act(troubles=troubles, force=True)

    @rule(troubles=troubles, force=st.booleans(), horizon=horizons)
    def all_want_it_at_once(self, troubles: tuple[Trouble, ...], force: bool, horizon: float) -> None:
        """Three processes look at the same instant, and wait for the lock one after another."""
        seen = self.host.grant.generation
        self.host.act(troubles=troubles, force=force, seen=seen)
        rotated, undisturbed = self.host.grant.generation, not self.host.disturbed
        for _ in range(2):
            self.host.act(force=force, seen=seen, horizon=horizon)
            if rotated > seen and undisturbed and self.server.ways.life >= MINUTE:
                assert self.host.grant.generation == rotated, "I3: two exchanges for one generation"

    # Those who use it.

    @rule()
    def an_agent_calls(self) -> None:
        """A 401 makes a demand."""
        self._call()

    def _call(self) -> None:
        grant = self.host.grant
        if grant.access_token is None:
            return
        if self.false_alarm or not self.server.lives(grant.access_token.reveal(), self.clock.t):
            self.host.demands.add(grant.generation)

    # The server.

    @rule(rejects=st.booleans())
    def the_client_is_rejected_or_known_again(self, rejects: bool) -> None:
        """A registration is lost, or brought back."""
        self.server.rejects_client = rejects

    @rule(false_alarm=st.booleans())
    def the_resource_server_refuses_what_is_good_or_comes_to_its_senses(self, false_alarm: bool) -> None:
        """Its keys are out of date."""
        self.false_alarm = false_alarm

    @rule()
    def the_access_token_dies_early(self) -> None:
        """Its server has its reasons."""
        if (access := self.host.grant.access_token) is not None:
            self.server.end(access.reveal(), self.clock.t)

    @rule(sure=st.integers(0, 3))
    def a_person_revokes_it(self, sure: int) -> None:
        """Then it is rightly lost."""
        if sure == 3:
            self.server.revoke()

    # What must hold.

    def _decide(self, **how: Any) -> Decision:
        grant = self.host.grant
        demanded = any(generation >= grant.generation for generation in self.host.demands)
        return policy.decide(grant, self.clock.read(), demanded=demanded, **how)

    @invariant()
    def all_decide_alike(self) -> None:
        """I9, and a horizon only ever makes a rotation earlier."""
        decision, now = self._decide(), self.clock.read()
        assert self._decide() == decision, "I9: two processes decide differently"
        for horizon in (MINUTE, HOUR):
            with_horizon = self._decide(horizon=horizon)
            if with_horizon == decision:
                continue
            assert isinstance(decision, Rest), "a horizon kept a rotation from being made"
            assert decision.because == "not_due", "a horizon shortened a wait that has a reason"
            assert decision.until is not None
            assert decision.until - horizon <= now.wall, "a horizon reaches further than it is long"
        forced = self._decide(force=True)
        if isinstance(decision, Rotate):
            assert isinstance(forced, Rotate), "force keeps a rotation from being made"

    @invariant()
    def each_wait_ends(self) -> None:
        """No wait has passed already, nor is it longer than its own maximum."""
        decision, record, now = self._decide(), self.host.grant, self.clock.read()
        life = policy.end_of_life(record) - record.issued_at
        if isinstance(decision, Rest) and decision.until is not None:
            most = {"transient": HOUR, "client_rejected": HOUR, "not_due": max(DAY, life) + 61}
            wait = decision.until - now.wall
            assert -EPSILON < wait <= most.get(decision.because, max(HOUR, life) + 121) + EPSILON, (decision, wait)
        if record.failure is not None and record.failure.retry_at is not None:
            longest = max(life, 450.0) if record.failure.outcome == "too_early" else HOUR
            assert record.failure.retry_at - record.failure.at <= longest + EPSILON, "a stored wait exceeds its maximum"

    @invariant()
    def only_the_dead_are_dead(self) -> None:
        """A person is called only where nobody else can help."""
        if self.host.grant.dead:
            excused = self.server.ended_by is not None or self.host.misled
            assert excused, "a login was given up that its server has not ended"

    @rule(cron=st.booleans())
    def all_is_well_for_a_while(self, cron: bool) -> None:
        """What is not lost mends itself, in bounded time, under a daemon and under cron."""
        self.server.rejects_client = self.false_alarm = False
        host, ways = self.host, self.server.ways
        lost = host.is_lost()
        acts, began, generation = 0, self.clock.t, host.grant.generation
        each = max(5 * MINUTE, ways.life / 8)
        while True:
            self._call()
            host.act(horizon=each if cron else 0.0)
            record, decision = host.grant, self._decide()
            live = record.access_token is not None and self.server.lives(record.access_token.reveal(), self.clock.t)
            if record.dead or (record.generation > generation and record.failure is None and live):
                break
            acts += 1
            assert acts < 2000, f"it never rests: {decision}"
            assert self.clock.t - began < 3 * (2 * ways.life + DAY), f"it does not mend itself: {decision}"
            wait = each
            if not cron and isinstance(decision, Rest) and decision.until is not None:
                wait = max(decision.until - self.clock.read().wall, 0.2)
            self.clock.happen(Happening("passes", wait))
        if self.server.ended_by is None and not lost:
            assert not record.dead or host.misled, "a login was lost that a perfect client would have kept"


def test_no_login_is_lost_that_could_be_kept() -> None:
    """If it failed, some order of troubles would cost a person a new login, or agents their live access token."""
    run_state_machine_as_test(
        Login, settings=settings(stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow])
    )
