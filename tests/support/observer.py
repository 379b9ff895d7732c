"""An observer of network, disk, server and true time, which knows what a perfect client would do with one login."""

import json
from typing import NamedTuple

from refresher.common.clocks import Moment
from refresher.common.secret import Secret
from refresher.grants import policy, server_behavior
from refresher.grants.record import Grant
from refresher.oauth.http_client import DEADLINE
from tests.support.model_server import Answer, ModelServer
from tests.support.samples import NOON
from tests.support.simulated_clock import EPSILON, SimulatedClock

__all__ = ["SLOWEST", "Holding", "Observer"]

SLOWEST = 0.4
"""The longest transfer of a request in seconds: less than ``policy`` allows for it."""

_REFUSALS_FOR_A_PERSON = 10


class Holding(NamedTuple):
    """The durable state of a client: the last answer that arrived completely and was saved."""

    generation: int
    refresh: str
    access: str | None
    issued_at: float
    expires_at: float | None

    @classmethod
    def of(cls, grant: Grant) -> "Holding":
        """Return the state in a record."""
        refresh, access = _text(grant.refresh_token), _text(grant.access_token)
        assert refresh is not None
        return cls(grant.generation, refresh, access, grant.issued_at, grant.expires_at)


class Observer:
    """Gets each event and collects violations in ``wrong``; it raises nothing, because the product could catch it."""

    def __init__(self, server: ModelServer, clock: SimulatedClock, first: Grant) -> None:
        self.wrong: list[str] = []
        self.holding = Holding.of(first)
        self.issued = clock.read()
        """When the request for the current access token was sent."""
        self._knows_issue = first.issued is not None
        self.in_doubt: dict[str, Moment] = {}
        """Refresh tokens that were sent without a conclusive answer, and when the first such request was sent."""
        self.misled = False
        """Whether the server gave a wrong refusal that the client had a reason to believe."""
        self.disturbed = True
        """Whether an event since the last exchange allows an early next one."""
        self._server = server
        self._clock = clock
        self._replaced: set[str] = set()
        self._refusals = 0
        self._last: tuple[float, float, bool] | None = None
        self._tries = 0
        self._open = False
        self._delivered: Answer | None = None
        self._was_in_doubt = False

    def claim(self, holds: bool, otherwise: str) -> None:
        """Record a violation unless ``holds``."""
        if not holds:
            self.wrong.append(otherwise)

    # The events of an exchange, in order.

    def begins(self, grant: Grant, *, demanded: bool, forced: bool) -> None:
        """An exchange begins: check that it is not too early, and not one that the server is known to refuse."""
        self._grant, self._demanded = grant, demanded
        self._began, self._tries, self._open, self._delivered = self._clock.t, 0, False, None
        self.claim(Holding.of(grant) == self.holding, "I6: an exchange began with an older state than the saved one")
        now = self._clock.read()
        if self._last is not None and not forced and not self.disturbed:
            began, ended, failed = self._last
            # If agents have no valid token, the first waits after a failure are short.
            # So are those before the end of a refresh token.
            hurries = demanded or self._server.ways.refresh_life is not None
            since, least = (ended, 1.0 if hurries else 5.0) if failed else (began, 1.0)
            self.claim(self._began >= since + least - EPSILON, f"{self._began - since:.2f} s after another exchange")
            if grant.demanded and grant.failure is None and now.wall < policy.due_at(grant):
                gap = min(30.0, self._server.ways.life / 4)
                self.claim(self._began >= began + gap - 1, "demands alone use up one token after another")
        unasked = not forced and not demanded and grant.failure is None and grant.access_token is not None
        ends_first = policy.due_at(grant) < policy.expected_expiry(grant)  # the refresh token, before the access token
        if unasked and server_behavior.refuses_early(grant) and self.knows_the_time() and not ends_first:
            self.claim(
                now.wall >= policy.expected_expiry(grant) - EPSILON,
                "a request was sent early to a server that refuses it",
            )
        self.disturbed = False

    def connects(self, fields: dict[str, str], limit: float) -> None:
        """A request is tried, for at most ``limit`` seconds: check that it is allowed before a connection is made."""
        self._tries += 1
        self.claim(self._tries <= 2, "an exchange of more than two requests")
        halved = self._tries == 1 and server_behavior.grace_period(self._grant) == 0 and limit < DEADLINE
        self.claim(not halved, "time is reserved for a replay that is not allowed")
        if (token := fields["refresh_token"]) in self.in_doubt:
            self._sends_again(self.in_doubt[token])

    def sends(self, fields: dict[str, str]) -> None:
        """A request is sent: check I1 and I3."""
        token, now = fields["refresh_token"], self._clock.read()
        self.claim(token not in self._replaced, "I3: a replaced refresh token was sent")
        self._was_in_doubt = token in self.in_doubt
        if self._was_in_doubt:
            self._sends_again(self.in_doubt[token])
        else:
            self.in_doubt[token] = now
        self.sent, self._open = now, True

    def _sends_again(self, since: Moment) -> None:
        """Check I1 for a refresh token that is sent again and may have been spent ``since``."""
        ways, t = self._server.ways, self._clock.t
        if not ways.rotates or ways.grace is None or t + SLOWEST - self._clock.true(since) <= ways.grace:
            return  # a replay that the server allows
        access = self.holding.access
        if access is None or self._demanded or not self._server.lives(access, t + EPSILON):
            return  # no access token is at risk
        left = self._clock.true(self.issued) + ways.life - t
        # A doubt with a future date gets a new date, from which the client counts.
        counted = since if self._grant.doubt is None else self._grant.doubt.since
        self.claim(left <= self._deceived_by(counted), f"I1: used in doubt, with {left:.1f} s of the access token left")

    def _deceived_by(self, since: Moment) -> float:
        """Return the seconds by which a client with only its own clocks may assume the expiry of a token too early.

        In the boot in which the access token was issued: none. In another boot there is only the wall clock: from the
        issue to the doubt, and after the doubt.
        """
        now = self._clock.read()
        if self._counts_from_issue(now):
            return EPSILON
        between = 0.0 if self._counts_from_issue(since) else max(0.0, self._gained(self.issued, since))
        return EPSILON + between + (0.0 if since.same_boot(now) else max(0.0, self._gained(since, now)))

    def _counts_from_issue(self, at: Moment) -> bool:
        """Whether the client knew the age of its access token at a moment, independent of the wall clock."""
        return self._knows_issue and self.issued.same_boot(at)

    def arrives(self, fields: dict[str, str]) -> Answer:
        """A request arrives: return the answer of the server."""
        before = self._server.ended_by
        answer = self._server.answer(fields, self._clock.t)
        if before is None and self._server.ended_by == "reuse":
            self.claim(self._was_in_doubt, "a login was lost although no answer was lost")
        if before is None and self._server.ended_by == "early use":
            self.claim(self._is_ahead(), "a login was lost because its refresh token was used too early")
        return answer

    def delivers(self, answer: Answer) -> None:
        """An answer arrives completely."""
        self._delivered = answer
        self._open = answer.code == "invalid_target"
        if answer.code == "invalid_grant" and self._server.ended_by is None:
            # It means: too early. A client believes the refusal if its clock was set ahead in another boot, so that the
            # token seems to have expired long ago, or if the live token was in an answer that was lost.
            gained = 0.0 if self._counts_from_issue(self.sent) else self._gained(self.issued, self.sent)
            set_ahead = gained > policy.CLOCK_TOLERANCE - EPSILON
            unseen = self._was_in_doubt and self._server.newest != self.holding.access
            self.misled |= set_ahead or unseen

    def keeps(self, record: Grant) -> None:
        """The record of an answer becomes durable."""
        answer, self._delivered = self._delivered, None
        if answer is None:
            return
        token = self.holding.refresh
        if answer.status == 200:
            self._holds(json.loads(answer.body))
        elif answer.code == "invalid_grant" and record.dead:
            self.in_doubt.pop(token, None)
        elif answer.code != "invalid_target" and not self._was_in_doubt:
            del self.in_doubt[token]
        self._refusals = 0 if answer.status == 200 else self._refusals + (answer.status != 503)

    def _holds(self, answer: dict[str, str]) -> None:
        before, ways = self.holding, self._server.ways
        self.holding = Holding(
            generation=before.generation + 1,
            refresh=answer.get("refresh_token", before.refresh),
            access=answer["access_token"],
            issued_at=self.sent.wall,
            expires_at=self.sent.wall + ways.life if ways.tells_life else None,
        )
        if self.holding.refresh != before.refresh:
            self._replaced.add(before.refresh)
        self.in_doubt.clear()
        self.misled = False
        self.issued, self._knows_issue = self.sent, True

    def ends(self, before: Grant, after: Grant) -> None:
        """An exchange ends, and its process continues."""
        self._last = self._began, self._clock.t, after.failure is not None
        self.claim(self._delivered is None, "I6: an answer was not saved")
        alone = self._tries == 1 and self._open and before.doubt is None and not before.dead and not self.disturbed
        self.claim(not alone or not self.may_replay(after), "the exchange did not make its own replay")

    def is_killed(self) -> None:
        """A process is killed during an exchange."""
        self._last = self._began, self._clock.t, True
        self._delivered, self.disturbed = None, True

    # Checks of a record.

    def compare(self, record: Grant) -> None:
        """Check the record between two exchanges."""
        self.claim(Holding.of(record) == self.holding, "I6: the record does not have the last saved state")
        doubtful = self.holding.refresh in self.in_doubt
        # After a refusal, only --force sends the refresh token again, and no access token is at risk.
        forgotten = (record.doubt is not None) != doubtful and not record.dead
        self.claim(not forgotten, "the record has a wrong doubt")
        person = policy.needs_person(record) and not record.dead
        self.claim(
            not person or self._refusals >= _REFUSALS_FOR_A_PERSON, "a person is required after too few refusals"
        )

    # Decisions of a perfect client.

    def may_replay(self, grant: Grant, wait: float = 0.0) -> bool:
        """Whether the client can know that the server still accepts a refresh token in doubt in ``wait`` seconds."""
        replay = server_behavior.grace_period(grant)
        if replay is None or grant.doubt is None:
            return replay is None
        # After a kill, only the start of the attempt is known: earlier than its request, and by a clock that was set since.
        left, now = self.in_doubt[self.holding.refresh], self._clock.read()
        since = min(grant.doubt.since, left, key=lambda moment: moment.boottime)
        if not left.same_boot(now) or abs(self._gained(since, now)) > EPSILON:
            return False
        # A part of the time is needed for the transfer.
        return now.boottime - since.boottime + wait < replay - min(1.0, replay / 10) - EPSILON

    def can_be_kept(self, grant: Grant, wait: float) -> bool:
        """Whether a client that sends a request in ``wait`` seconds, without further faults, keeps this login."""
        ways = self._server.ways
        if grant.dead or self._server.ended_by is not None:
            return False
        if ways.resource == "refused once spent" and server_behavior.sends_resource(grant):
            return False  # a client cannot know this behavior in advance
        if ways.early == "ends the login" and self._is_ahead():
            return False
        if ways.refresh_life is not None and not self._can_outlive(grant, wait):
            return False
        lost = self._server.is_spent(self.holding.refresh) and ways.grace is not None
        return not lost or self.may_replay(grant, wait)

    def _can_outlive(self, grant: Grant, wait: float) -> bool:
        """Whether a client certainly rotates before the end of its refresh token: nothing else makes it wait."""
        ways, now = self._server.ways, self._clock.read()
        waits = grant.failure is not None or self.holding.refresh in self.in_doubt
        odd = ways.early != "allowed" or ways.resource != "ignored" or grant.refuses_early
        knows = self._counts_from_issue(now) or (self.knows_the_time() and self._clock.shift == 0)
        return (
            not waits
            and not odd
            and knows
            and self._server.refresh_ends(self.holding.refresh) > self._clock.t + wait + 5
        )

    def seconds_until_usable(self) -> float:
        """Return the seconds until the refresh token may be used, by each clock, including one that was set back."""
        at = self._server.usable_from(self.holding.refresh)
        by_wall = at + NOON - self._clock.read().wall
        return max(by_wall, at - self._clock.t + max(0.0, -self._ahead_at_issue()))

    def _is_ahead(self) -> bool:
        """Whether a refresh token seems usable too early: by a clock that was ahead then, or is since, in another boot."""
        now = self._clock.read()
        since = not self._counts_from_issue(now) and max(self._clock.shift, self._gained(self.issued, now)) > 0
        return since or self._ahead_at_issue() > 0

    def _ahead_at_issue(self) -> float:
        """Return the seconds by which the wall clock was ahead when the access token was issued."""
        return self.issued.wall - NOON - self._clock.true(self.issued)

    def is_behind_by(self) -> float:
        """Return the seconds by which the wall clock is behind the server, or was set back since the token was issued."""
        return max(0.0, -self._clock.shift, -self._gained(self.issued, self._clock.read()))

    def knows_the_time(self) -> bool:
        """Whether the wall clock has not been set since the access token was issued."""
        return self._gained(self.issued, self._clock.read()) == 0

    def _gained(self, since: Moment, until: Moment) -> float:
        return self._clock.gained(since, until)


def _text(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
