"""What happens in the demo, from the reports of its processes, and its summary."""

from collections import Counter
from typing import Final, Literal, NamedTuple

import click
import msgspec

__all__ = ["MAX_WIDTH", "PARTICIPANTS", "AgentReport", "Event", "Reason", "Timeline", "Tone"]

MAX_WIDTH: Final = 100
"""The longest line, also on a wider terminal."""

PARTICIPANTS: Final = {
    "authorization server": "a refresh token works once",
    "MCP server": "checks each call's token",
    "refresher run": "refreshes, publishes tokens",
    "agent": "calls a tool all the time",
}

Tone = Literal["plain", "good", "notice", "bad"]
Reason = Literal["schedule", "revoked", "late", "forced"]

_REASONS: Final[dict[Reason, str]] = {
    "schedule": "on schedule, before it expired",
    "revoked": "after it was revoked: the refused call was sent again, and succeeded",
    "late": "after it had expired: refresher was late",
    "forced": "by 'refresher run-once --force' from another process",
}


class AgentReport(msgspec.Struct):
    """What the agent has done so far."""

    calls: int = 0
    failed: int = 0
    failure: str = ""
    """Why the last failed call failed."""
    sessions: int = 0
    slowest: float = 0.0
    """Seconds of the slowest call."""


class Event(NamedTuple):
    """A line of the timeline; ``at`` is seconds since the agent's first call."""

    at: float
    text: str
    tone: Tone


class Timeline(msgspec.Struct):
    """The events of one demo. The caller sets ``now`` and ``left``."""

    seconds: float
    """How long the demo lasts, from the agent's first call on."""
    lifetime: int
    """The lifetime of an access token in seconds."""
    now: float = 0.0
    """Seconds since the agent's first call."""
    left: float = 0.0
    """Seconds until the access token expires."""
    addresses: dict[str, str] = {}
    """The address or process of each participant that has started."""
    agent: AgentReport = msgspec.field(default_factory=AgentReport)
    generation: int = 0
    revoking: int = 0
    """The generation that the demo revokes."""
    revoked: bool = False
    """Whether the current token is revoked."""
    rotations: Counter[Reason] = msgspec.field(default_factory=Counter)
    reused: int = 0
    """How many refresh tokens were sent twice."""
    failures: list[str] = []
    """Failures besides those of calls, sessions and refresh tokens."""
    events: list[Event] = []
    forcing: bool = False
    """Whether a ``run-once --force`` is running."""
    _forced: int | None = None
    _unexplained: list[tuple[int, float]] = []
    _refused_at: float | None = None

    def note(self, text: str, tone: Tone) -> None:
        """Add an event."""
        self.events.append(Event(self.now, text, tone))

    def fail(self, text: str) -> None:
        """Add a failure."""
        self.failures.append(text)
        self.note(text, "bad")

    def on_server_event(self, event: str, at: float) -> None:
        """Add an event of the servers; ``at`` is in epoch seconds."""
        match event:
            case "revoked":
                self.revoked = self.revoking == self.generation
                self.note(f"access token {self.revoking} is revoked at the authorization server", "notice")
            case "refused" if self._refused_at is None:
                self._refused_at = at
                self.note("the MCP server refuses it (401); the agent demands another one", "notice")
            case "reused":
                self.reused += 1
                self.note("a refresh token was sent twice; the authorization server revokes the login", "bad")
            case _:
                pass  # a rotation shows in the token file, and another 401 for the same token adds nothing

    def on_agent_report(self, report: AgentReport) -> None:
        """Replace the report of the agent."""
        previous, self.agent = self.agent, report
        if previous.sessions == 0 and report.sessions > 0:
            self.note("the agent opens its session and starts to call", "good")
        if previous.failed == 0 and report.failed > 0:
            self.note(f"a call failed: {report.failure}", "bad")

    def on_token(self, generation: int, at: float) -> None:
        """Take the published generation, and its time in epoch seconds."""
        if generation <= self.generation:
            return
        if self.generation == 0:
            self.note(f"access token {generation}: refresher got it with the refresh token of a login", "good")
        else:
            self._unexplained += [(number, at) for number in range(self.generation + 1, generation + 1)]
        self.generation = generation
        self._explain()

    def on_forced(self, generation: int | None) -> None:
        """Take the generation of a finished ``run-once --force``; ``None`` if it did not rotate."""
        self.forcing = False
        self._forced = generation
        self._explain()

    def missing(self) -> list[str]:
        """Return what is planned and has not happened."""
        never = [reason for reason in _REASONS if reason != "late" and not self.rotations[reason]]
        return [f"no token was replaced {_REASONS[reason]}" for reason in never]

    def problems(self, *, stopped: bool) -> list[str]:
        """Return what went wrong; a demo that the person ``stopped`` need not have shown everything."""
        agent, found = self.agent, []
        if agent.failed:
            found.append(f"{agent.failed:,} of {_count(agent.calls, 'call')} failed; the last: {agent.failure}")
        if agent.sessions > 1:
            found.append(f"the agent lost its session and opened {agent.sessions}")
        if self.reused:
            found.append(f"refresh tokens sent twice: {self.reused}; another program has used refresher's token")
        found += self.failures
        return found or ([] if stopped else self.missing())

    def summary(self, *, stopped: bool) -> list[str]:
        """Return the lines at the end of the demo."""
        problems, lost = self.problems(stopped=stopped), max(self.agent.sessions - 1, 0)
        calls = f"{_count(self.agent.calls, 'call')} in {_count(self.agent.sessions, 'MCP session')}"
        if problems:
            lines = [click.style(f"The demo failed ({calls}):", fg="red", bold=True)]
            lines += [f"  - {problem}" for problem in problems]
        elif stopped:
            lines = [click.style(f"Stopped after {self.now:.0f} s: {calls}, none failed.", bold=True)]
        else:
            lines = [click.style(f"{calls}, and not one call failed.", fg="green", bold=True)]
        if self.rotations:
            replaced = _count(self.rotations.total(), "time")
            lines += ["", f"An access token is valid for {self.lifetime} s. The agent's token was replaced {replaced}:"]
            lines += [f"  {times:>2}  {why}" for reason, why in _REASONS.items() if (times := self.rotations[reason])]
            lines += [f"Refresh tokens sent twice: {self.reused}. MCP sessions lost: {lost}."]
        if not problems and not stopped:
            lines += ["", "Next, log in with your own account: 'refresher login NAME URL'."]
        return lines

    def _explain(self) -> None:
        # Until run-once has ended, a new generation may be its own.
        if self.forcing:
            return
        for generation, at in self._unexplained:
            reason: Reason = "schedule"
            why = "on schedule, before the previous one expired"
            if generation == self._forced:
                reason, why = "forced", _REASONS["forced"]
            elif self._refused_at is not None:
                reason = "revoked" if self.revoked else "late"
                why = f"{at - self._refused_at:.2f} s later; the agent repeats its call"
            self.rotations[reason] += 1
            self.note(f"access token {generation}: {why}", "good")
            self.revoked, self._refused_at = False, None
        self._unexplained.clear()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
