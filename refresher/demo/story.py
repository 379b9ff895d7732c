"""What has happened in the demo so far, put together from what each part of it says; knows no clock and no process."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

__all__ = ["WIDEST", "Happening", "Party", "Story", "Tone", "Why"]

WIDEST: Final = 100
"""No line for a person is longer, whatever the terminal."""

Tone = Literal["plain", "good", "notice", "bad"]
Why = Literal["schedule", "revoked", "late", "forced"]

_PLANNED: Final[dict[Why, str]] = {
    "schedule": "a rotation on schedule",
    "revoked": "a rotation after the token was revoked",
    "forced": "a rotation by run-once",
}


class Happening(NamedTuple):
    """A line for a person; ``at`` is seconds since the agent's first call."""

    at: float
    text: str
    tone: Tone


class Party(NamedTuple):
    """Who takes part, where, and what it does."""

    name: str
    where: str
    does: str


class Story:
    """The demo as a person sees it. ``now`` and ``left`` are set by whoever has a clock."""

    def __init__(self, seconds: float, life: int) -> None:
        self.seconds = seconds
        """How long it is meant to last, from the first call on."""
        self.life = life
        """Seconds that an access token lives."""
        self.now = 0.0
        """Seconds since the agent's first call."""
        self.left = 0.0
        """Seconds that the access token has left."""
        self.parties: list[Party] = []
        self.calls = self.failed = self.sessions = 0
        self.slowest = 0.0
        """Seconds of the slowest call."""
        self.failure = ""
        """Why the last call failed that did."""
        self.generation = 0
        self.revoking = 0
        """The generation that somebody is about to revoke."""
        self.revoked = False
        """The present token is no good, though it has time left."""
        self.rotations: Counter[Why] = Counter()
        self.reused = 0
        self.troubles: list[str] = []
        """What should not have happened, beyond calls, sessions and refresh tokens."""
        self.happenings: list[Happening] = []
        self.forcing = False
        """A run-once is under way."""
        self._forced: int | None = None
        self._unexplained: list[tuple[int, float]] = []
        self._refused_at: float | None = None

    @property
    def begun(self) -> bool:
        """Whether the agent has made its first call."""
        return self.calls > 0

    def happened(self, text: str, tone: Tone) -> None:
        """Note what a person should see."""
        self.happenings.append(Happening(self.now, text, tone))

    def troubled(self, text: str) -> None:
        """Note what should not have happened."""
        self.troubles.append(text)
        self.happened(text, "bad")

    def server_said(self, event: str, at: float) -> None:
        """Hear of a happening at the servers, in epoch seconds."""
        match event:
            case "revoked":
                self.revoked = self.revoking == self.generation
                self.happened(f"somebody revokes access token {self.revoking} at the authorization server", "notice")
            case "refused" if self._refused_at is None:
                self._refused_at = at
                self.happened("the MCP server refuses it (401): the agent asks refresher for another", "notice")
            case "reused":
                self.reused += 1
                self.happened("a refresh token came twice: the authorization server ends the login", "bad")
            case _:
                pass  # a rotation shows in the token file, more 401s of one token are no news

    def agent_said(self, said: Mapping[str, Any]) -> None:
        """Hear how the agent fares."""
        failed = self.failed
        begins = self.sessions == 0 and said["sessions"] > 0
        self.calls, self.failed, self.sessions = said["calls"], said["failed"], said["sessions"]
        self.slowest, self.failure = said["slowest"], said["failure"]
        if begins:
            self.happened("the agent opens its session and starts to call", "good")
        if failed == 0 and self.failed > 0:
            self.happened(f"a call failed: {self.failure}", "bad")

    def token_seen(self, generation: int, at: float) -> None:
        """Hear which generation is published, since when in epoch seconds."""
        if generation <= self.generation:
            return
        if self.generation == 0:
            self.happened(f"refresher fetches access token {generation} with the refresh token of a login", "good")
        else:
            self._unexplained += [(number, at) for number in range(self.generation + 1, generation + 1)]
        self.generation = generation
        self._explain()

    def forced(self, generation: int | None) -> None:
        """Hear which generation a run-once has made; ``None`` for none."""
        self.forcing = False
        self._forced = generation
        self._explain()

    def missing(self) -> list[str]:
        """Return what was planned and has not happened."""
        return [what for why, what in _PLANNED.items() if self.rotations[why] == 0]

    def _explain(self) -> None:
        # Until it has ended, nobody knows whether a new generation is the run-once's.
        if self.forcing:
            return
        for generation, at in self._unexplained:
            why = self._why(generation)
            self.rotations[why] += 1
            self.happened(f"access token {generation}, {self._told(why, at)}", "good")
            self.revoked, self._refused_at = False, None
        self._unexplained.clear()

    def _why(self, generation: int) -> Why:
        if generation == self._forced:
            return "forced"
        if self._refused_at is None:
            return "schedule"
        return "revoked" if self.revoked else "late"

    def _told(self, why: Why, at: float) -> str:
        if why == "forced":
            return "by 'refresher run-once --force' from another process"
        if self._refused_at is None:
            return "on schedule, before the old one ends"
        return f"{at - self._refused_at:.2f} s later: the agent sends its call again"
