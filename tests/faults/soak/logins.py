"""The history of one login, as its server and the network saw it, and the checks of it.

Pure: no clock, disk or network. Times are epoch seconds of a clock that is never set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Demand", "Login", "Presentation", "Terms", "losses", "violations"]

_SLACK: Final = 1.0
_IN_FLIGHT: Final = 5.0


@dataclass(frozen=True)
class Terms:
    """The lifetime of access tokens of a server, and its grace period for spent refresh tokens, in seconds."""

    life: float
    grace: float = 0.0


@dataclass(frozen=True)
class Demand:
    """A demand of an agent: the token of a generation is refused."""

    at: float
    generation: int


@dataclass
class Presentation:
    """A refresh token that was sent to the token endpoint."""

    at: float
    fingerprint: str
    fault: str = ""
    """The fault of its connection; empty if there was none."""
    delivers: bool = True
    """Whether refresher gets an answer that it can use."""
    status: int | None = None
    """The status of the answer; ``None`` if there was none."""
    code: str = ""
    """The error code in the answer."""
    issued: str | None = None
    """The fingerprint of the new refresh token: the old one is spent."""


@dataclass
class Login:
    """One authorization by a person: a family of refresh tokens."""

    name: str
    terms: Terms
    chain: list[str]
    """Fingerprints of its refresh tokens, in order."""
    presented: list[Presentation] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    """When a process was killed after it sent the token with this fingerprint and before it saved the answer."""
    forced: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each ``run-once --force``."""
    demands: list[Demand] = field(default_factory=list)
    clock_set: list[float] = field(default_factory=list)
    retired_at: float | None = None
    """When a person had replaced or removed it."""
    generations: dict[str, int] = field(default_factory=dict)
    """The generation at which each refresh token was stored."""
    doubted: bool = False
    """Whether refresher has published that it is in doubt."""
    ended_at: float | None = None


def _was_lost(login: Login, presentation: Presentation, until: float = float("inf")) -> bool:
    """Whether refresher cannot know the result of a presentation."""
    # A request of a killed process may reach the server later.
    return not presentation.delivers or any(
        fingerprint == presentation.fingerprint and presentation.at - _IN_FLIGHT <= at <= until
        for at, fingerprint in login.kills
    )


def losses(login: Login, until: float = float("inf")) -> Iterator[Presentation]:
    """Yield the presentations that lost the login: the refresh token was spent, and no answer was saved."""
    # A refresh token that was sent had been saved.
    known_tokens = login.generations.keys() | {known.fingerprint for known in login.presented}
    saved = {known.fingerprint for known in login.presented if known.issued in known_tokens}
    for known in login.presented:
        spent = known.issued is not None and known.at <= until
        if spent and known.fingerprint not in saved and _was_lost(login, known, until):
            yield known


def violations(login: Login, presentation: Presentation) -> Iterator[str]:
    """Yield the violations of ``presentation``: by earlier events (I1, I3), and by the answer (I4)."""
    if login.retired_at is not None and presentation.at > login.retired_at + _IN_FLIGHT:
        yield "a refresh token was sent after a person had replaced or removed it"
    earlier = [
        known
        for known in login.presented
        if known is not presentation and known.fingerprint == presentation.fingerprint and known.at <= presentation.at
    ]
    doubts = [known for known in earlier if _was_lost(login, known, presentation.at)]
    for known in earlier:
        if known in doubts:
            continue
        if known.issued is not None:
            yield "I3: a refresh token was sent again although it was spent and its answer arrived"
        if known.code == "invalid_grant" and not any(
            begun <= presentation.at <= ended for begun, ended in login.forced
        ):
            yield "the refresh token of an ended grant was sent again without --force"
    if doubts and not _may_be_sent_again(login, presentation, doubts):
        yield "I1: a refresh token in doubt was sent again while its live access token was endangered"
    if (
        presentation.code == "invalid_grant"
        and not _was_lost(login, presentation)
        and not any(losses(login, presentation.at))
    ):
        yield "UNACCOUNTED: the server refuses the grant, and no fault has lost it"


def _may_be_sent_again(login: Login, presentation: Presentation, doubts: Sequence[Presentation]) -> bool:
    if presentation.at - min(known.at for known in doubts) <= login.terms.grace:
        return True
    # The current access token was issued with this refresh token, or there is none.
    produced = next((known for known in login.presented if known.issued == presentation.fingerprint), None)
    if produced is None or presentation.at >= produced.at + login.terms.life - _SLACK:
        return True
    generation = login.generations.get(presentation.fingerprint, 0)
    demanded = any(known.generation >= generation and known.at <= presentation.at for known in login.demands)
    return demanded or any(produced.at - _SLACK <= at <= presentation.at for at in login.clock_set)
