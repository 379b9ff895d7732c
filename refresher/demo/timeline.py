"""What has happened in the demo so far, from the reports of its processes. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

__all__ = ["WIDEST", "Event", "Participant", "Timeline", "Tone", "Why"]

WIDEST: Final = 100
"""The longest line, whatever the width of the terminal."""

Tone = Literal["plain", "good", "notice", "bad"]
Why = Literal["schedule", "revoked", "late", "forced"]

_PLANNED: Final[dict[Why, str]] = {
    "schedule": "a rotation on schedule",
    "revoked": "a rotation after the token was revoked",
    "forced": "a rotation by run-once",
}


class Event(NamedTuple):
    """A line of the timeline; ``at`` is seconds since the agent's first call."""

    at: float
    text: str
    tone: Tone


class Participant(NamedTuple):
    """A process of the demo: its name, its place, and what it does."""

    name: str
    where: str
    does: str


class Timeline:
    """The events of one demo. The caller sets ``now`` and ``left``."""

    def __init__(self, seconds: float, life: int) -> None:
        self.seconds = seconds
        """How long the demo lasts, from the first call on."""
        self.life = life
        """Seconds that an access token lives."""
        self.now = 0.0
        """Seconds since the agent's first call."""
        self.left = 0.0
        """Seconds that the access token has left."""
        self.participants: list[Participant] = []
        self.calls = self.failed = self.sessions = 0
        self.slowest = 0.0
        """Seconds of the slowest call."""
        self.failure = ""
        """Why the last failed call failed."""
        self.generation = 0
        self.revoking = 0
        """The generation that the demo revokes."""
        self.revoked = False
        """The current token is revoked."""
        self.rotations: Counter[Why] = Counter()
        self.reused = 0
        self.failures: list[str] = []
        """Failures besides those of calls, sessions and refresh tokens."""
        self.events: list[Event] = []
        self.forcing = False
        """A ``run-once --force`` is running."""
        self._forced: int | None = None
        self._unexplained: list[tuple[int, float]] = []
        self._refused_at: float | None = None

    @property
    def begun(self) -> bool:
        """Whether the agent has made its first call."""
        return self.calls > 0

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
                self.note("the MCP server refuses it (401): the agent demands another one", "notice")
            case "reused":
                self.reused += 1
                self.note("a refresh token was sent twice: the authorization server revokes the login", "bad")
            case _:
                pass  # a rotation shows in the token file, and more 401s of one token add nothing

    def on_agent_report(self, said: Mapping[str, Any]) -> None:
        """Take a report of the agent."""
        failed = self.failed
        begins = self.sessions == 0 and said["sessions"] > 0
        self.calls, self.failed, self.sessions = said["calls"], said["failed"], said["sessions"]
        self.slowest, self.failure = said["slowest"], said["failure"]
        if begins:
            self.note("the agent opens its session and starts to call", "good")
        if failed == 0 and self.failed > 0:
            self.note(f"a call failed: {self.failure}", "bad")

    def on_token(self, generation: int, at: float) -> None:
        """Take the published generation, and its time in epoch seconds."""
        if generation <= self.generation:
            return
        if self.generation == 0:
            self.note(f"refresher fetches access token {generation} with the refresh token of a login", "good")
        else:
            self._unexplained += [(number, at) for number in range(self.generation + 1, generation + 1)]
        self.generation = generation
        self._explain()

    def forced(self, generation: int | None) -> None:
        """Take the generation of a finished ``run-once --force``; ``None`` for none."""
        self.forcing = False
        self._forced = generation
        self._explain()

    def missing(self) -> list[str]:
        """Return what is planned and has not happened."""
        return [what for why, what in _PLANNED.items() if self.rotations[why] == 0]

    def _explain(self) -> None:
        # Until run-once has ended, a new generation may be its own.
        if self.forcing:
            return
        for generation, at in self._unexplained:
            why = self._why(generation)
            self.rotations[why] += 1
            self.note(f"access token {generation}, {self._explanation(why, at)}", "good")
            self.revoked, self._refused_at = False, None
        self._unexplained.clear()

    def _why(self, generation: int) -> Why:
        if generation == self._forced:
            return "forced"
        if self._refused_at is None:
            return "schedule"
        return "revoked" if self.revoked else "late"

    def _explanation(self, why: Why, at: float) -> str:
        if why == "forced":
            return "by 'refresher run-once --force' from another process"
        if self._refused_at is None:
            return "on schedule, before the old one expires"
        return f"{at - self._refused_at:.2f} s later: the agent sends its call again"
