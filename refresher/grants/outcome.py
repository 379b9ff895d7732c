"""The outcomes of a token request: a closed union, matched exhaustively.

This code uses two words with one meaning each. A **rejection** is a clear statement of the server that the grant or the
client is not valid; only ``GrantRejected`` ends a grant. A **refusal** is any other error answer that may last: it is
counted and retried. ``refresher/ARCHITECTURE.md`` ("States of a grant") says what follows each outcome. Descriptions
contain no secrets: they are masked.
"""

import msgspec

from refresher.common.secret import Secret

__all__ = [
    "Ambiguous",
    "ClientRejected",
    "Failed",
    "GrantRejected",
    "Lost",
    "NotSent",
    "Outcome",
    "ResourceRefused",
    "TokensIssued",
    "TooEarly",
    "Transient",
    "Unreadable",
    "describe",
    "error_code",
]


class TokensIssued(msgspec.Struct, frozen=True, kw_only=True):
    """A successful answer (RFC 6749 section 5.1)."""

    access_token: Secret
    token_type: str
    expires_in: float | None
    """Seconds."""
    expires_at: float | None
    """Epoch seconds, from ``exp`` of a JWT or from a field of the server's own."""
    refresh_token: Secret | None
    scope: str | None
    refresh_token_expires_in: float | None = None
    """Seconds after which the refresh token ends if it is not used, announced or from ``exp`` of a JWT."""
    id_token: Secret | None = None
    """The identity of the person (OpenID Connect Core section 3.1.3.3), if it is readable."""
    issued_token_type: str | None = None
    """RFC 8693 section 2.2.1; only token exchange names it."""
    clock_skew: float = 0.0
    """Seconds by which the server's clock is ahead of the local one."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """What every outcome but a success has."""

    description: str
    code: str = "server_error"
    """The error code of an answer (RFC 6749 section 5.2), or one that fits."""
    refusal: bool = False
    """Whether it counts as a refusal."""


class NotSent(Failed, frozen=True, kw_only=True):
    """No byte of the request was sent."""

    code: str = "temporarily_unavailable"


class Transient(Failed, frozen=True, kw_only=True):
    """An error answer that does not reject the grant: retry later."""

    retry_after: float | None = None
    """Seconds. If the answer is not a refusal, the server only asked for a later request."""
    from_provider: bool = False
    """Whether the identity provider answered: other grants of the server of this one can be exchanged."""


class TooEarly(Failed, frozen=True, kw_only=True):
    """The server refused because the access token is still valid: retry when it expires.

    It counts as a refusal if the server rejected the grant and an agent reports that the token is not valid.
    """


class Ambiguous(Failed, frozen=True, kw_only=True):
    """A request was sent and no conclusive answer came back: the refresh token may be spent."""


class Unreadable(Failed, frozen=True, kw_only=True):
    """A success that cannot be read; it may contain the only copy of a new refresh token."""

    body: Secret
    """The raw body, one character for each byte (latin-1)."""
    kept: str | None = None
    """Where the body was saved, as text for a person."""


class ResourceRefused(Failed, frozen=True, kw_only=True):
    """The server refuses ``resource`` (RFC 8707). It may have spent the refresh token before."""

    refusal: bool = True


class ClientRejected(Failed, frozen=True, kw_only=True):
    """The server rejects the client or its authentication. This says nothing about the grant."""

    refusal: bool = True


class GrantRejected(Failed, frozen=True, kw_only=True):
    """The server rejects the grant (``invalid_grant`` and its dialects): a person must log in again."""

    retry_after: float | None = None
    """Seconds after which the rejection can have ended without a login here; ``None``: never."""


Lost = Ambiguous | Unreadable | ResourceRefused
"""After these, the refresh token may be spent."""

Outcome = TokensIssued | NotSent | Transient | TooEarly | Lost | ClientRejected | GrantRejected


def error_code(outcome: Outcome) -> str:
    """Return the error code of an answer (RFC 6749 section 5.2); empty if it has none."""
    return str(getattr(outcome, "code", ""))


def describe(outcome: Outcome, *, sender: str = "the server") -> str:
    """Return the description of an answer that came from ``sender`` instead of the token endpoint."""
    return str(getattr(outcome, "description", "it issued tokens that nobody asked for")).replace(
        "the token endpoint", sender, 1
    )
