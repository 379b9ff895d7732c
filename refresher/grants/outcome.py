"""What an exchange can end with: a closed union, matched exhaustively (DESIGN section 5).

Descriptions are already masked.
"""

import msgspec

from refresher.common.secret import Secret

__all__ = [
    "Ambiguous",
    "ClientRejected",
    "GrantDead",
    "NotSent",
    "Outcome",
    "ResourceRefused",
    "Rotated",
    "TooEarly",
    "Transient",
    "Unintelligible",
    "code_of",
    "words_of",
]


class Rotated(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 6749 section 5.1; ``expires_in`` seconds, or ``expires_at`` epoch seconds from a JWT's ``exp``."""

    access_token: Secret
    token_type: str
    expires_in: float | None
    expires_at: float | None
    refresh_token: Secret | None
    scope: str | None
    clock_ahead: float = 0.0
    """Seconds by which the server's clock is ahead of ours: what it dates counts by that one."""


class NotSent(msgspec.Struct, frozen=True, kw_only=True):
    """No byte of the request left this machine."""

    description: str


class Transient(msgspec.Struct, frozen=True, kw_only=True):
    """The server answered, and gave no verdict; ``retry_after`` are seconds.

    ``refusal``: it did not only ask for patience, but refused for a reason that may last.
    """

    code: str
    description: str
    retry_after: float | None = None
    refusal: bool = False


class TooEarly(msgspec.Struct, frozen=True, kw_only=True):
    """Refused because the access token still lives.

    ``refusal``: or so it seems, by a verdict on the grant that agents' demand bears out.
    """

    code: str
    description: str
    refusal: bool = False


class Ambiguous(msgspec.Struct, frozen=True, kw_only=True):
    """Something left, nothing conclusive came back: the refresh token may be spent."""

    description: str


class Unintelligible(msgspec.Struct, frozen=True, kw_only=True):
    """Success that cannot be read; ``answer`` is the raw body, one character for each byte (latin-1)."""

    description: str
    answer: Secret
    kept: str | None = None
    """Where the answer lies now, in words."""


class ResourceRefused(msgspec.Struct, frozen=True, kw_only=True):
    """The server does not want RFC 8707's ``resource``; nobody knows whether it had spent the refresh token by then."""

    code: str
    description: str


class ClientRejected(msgspec.Struct, frozen=True, kw_only=True):
    """The server does not know this client, or not its authentication; that says nothing about the grant."""

    code: str
    description: str


class GrantDead(msgspec.Struct, frozen=True, kw_only=True):
    """The server's verdict on the grant."""

    code: str
    description: str


def code_of(outcome: "Outcome") -> str:
    """Return the error code of an answer (RFC 6749 section 5.2), nothing where it has none."""
    return str(getattr(outcome, "code", ""))


def words_of(outcome: "Outcome", *, of: str = "the server") -> str:
    """Return what an answer said, where it was ``of`` another place than the token endpoint."""
    return str(getattr(outcome, "description", "it gave tokens that nobody asked for")).replace(
        "the token endpoint", of, 1
    )


Outcome = (
    Rotated | NotSent | Transient | TooEarly | Ambiguous | Unintelligible | ResourceRefused | ClientRejected | GrantDead
)
