"""What one login has been through, as its server and the network saw it, and what that allows.

Pure: no clock, disk or network. Times are epoch seconds of one clock that nobody sets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Demand", "Login", "Presentation", "Terms", "losses", "objections"]

_SLACK: Final = 1.0
_IN_FLIGHT: Final = 5.0


@dataclass(frozen=True)
class Terms:
    """How a server treats its clients: how long its access tokens live, and for how long it takes a spent token again."""

    life: float
    grace: float = 0.0


@dataclass(frozen=True)
class Demand:
    """An agent said that the token of a generation is refused."""

    at: float
    generation: int


@dataclass
class Presentation:
    """A refresh token came to the token endpoint's door."""

    at: float
    fingerprint: str
    fault: str = ""
    """What happened to it on the way; nothing where all went well."""
    delivers: bool = True
    """Whether the refresher gets an answer that it can act upon."""
    status: int | None = None
    """What the server, or somebody in its place, answered; ``None`` where the server never saw it."""
    code: str = ""
    """The error in the answer."""
    brought: str | None = None
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
    """When a process was killed that had sent the token with this fingerprint, and not saved the answer."""
    forced: list[tuple[float, float]] = field(default_factory=list)
    """From when to when a person's command asked for an attempt in any case."""
    demands: list[Demand] = field(default_factory=list)
    clock_set: list[float] = field(default_factory=list)
    retired_at: float | None = None
    """When a person had put another login in its place, or removed it."""
    generations: dict[str, int] = field(default_factory=dict)
    """The generation at which each refresh token was stored."""
    doubted: bool = False
    """refresher has said that it is in doubt."""
    dead_at: float | None = None


def _was_lost(login: Login, presentation: Presentation, until: float = float("inf")) -> bool:
    """Whether the refresher cannot know how a presentation ended."""
    # What a killed process had sent may reach the server a moment later.
    return not presentation.delivers or any(
        fingerprint == presentation.fingerprint and presentation.at - _IN_FLIGHT <= at <= until
        for at, fingerprint in login.kills
    )


def losses(login: Login, until: float = float("inf")) -> Iterator[Presentation]:
    """Yield the presentations in which the login was lost by nature: spent, and no answer ever saved."""
    # A process that sends a refresh token has it.
    had = login.generations.keys() | {known.fingerprint for known in login.presented}
    saved = {known.fingerprint for known in login.presented if known.brought in had}
    for known in login.presented:
        spent = known.brought is not None and known.at <= until
        if spent and known.fingerprint not in saved and _was_lost(login, known, until):
            yield known


def objections(login: Login, presentation: Presentation) -> Iterator[str]:
    """Yield why ``presentation`` must not have been, by what came before it (I1, I3), and by its verdict (I4)."""
    if login.retired_at is not None and presentation.at > login.retired_at + _SLACK:
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
        if known.brought is not None:
            yield "I3: a refresh token was sent again though it was spent and its answer arrived"
        if known.code == "invalid_grant" and not any(
            begun <= presentation.at <= ended for begun, ended in login.forced
        ):
            yield "a dead refresh token was sent again though nobody had forced it"
    if doubts and not _may_be_sent_again(login, presentation, doubts):
        yield "I1: a refresh token in doubt was sent again while its live access token was endangered"
    if (
        presentation.code == "invalid_grant"
        and not _was_lost(login, presentation)
        and not any(losses(login, presentation.at))
    ):
        yield "UNACCOUNTED: the server calls the grant dead, and no fault has lost it"


def _may_be_sent_again(login: Login, presentation: Presentation, doubts: Sequence[Presentation]) -> bool:
    if presentation.at - min(known.at for known in doubts) <= login.terms.grace:
        return True
    # The access token in use came with this very refresh token, or there is none.
    produced = next((known for known in login.presented if known.brought == presentation.fingerprint), None)
    if produced is None or presentation.at >= produced.at + login.terms.life - _SLACK:
        return True
    generation = login.generations.get(presentation.fingerprint, 0)
    demanded = any(known.generation >= generation and known.at <= presentation.at for known in login.demands)
    return demanded or any(produced.at - _SLACK <= at <= presentation.at for at in login.clock_set)
