"""From which token of somebody else an access token is obtained, instead of from a refresh token. Pure.

The token is presented as an assertion (RFC 7523 section 2.1) or as a subject token (RFC 8693). For enterprise-managed
authorization, the ``id_token`` of a grant at the identity provider is first exchanged there for an identity assertion
(``ID_JAG``), which is the assertion then (draft-ietf-oauth-identity-assertion-authz-grant).
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from refresher.grants.tokens import is_token, jwt_claims

__all__ = [
    "ACCESS_TOKEN",
    "GRANT_TYPES",
    "ID_JAG",
    "ID_TOKEN",
    "JWT",
    "REFRESH_TOKEN",
    "TOKEN_TYPE",
    "Assertion",
    "AssertionGrantType",
    "TokenSource",
    "foreign_audience",
]

AssertionGrantType = Literal["jwt_bearer", "token_exchange"]

GRANT_TYPES: Final[dict[AssertionGrantType, str]] = {
    "jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}
"""The ``grant_type`` of a request."""

TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:"  # noqa: S105  a prefix, no password
ACCESS_TOKEN: Final = f"{TOKEN_TYPE}access_token"
ID_TOKEN: Final = f"{TOKEN_TYPE}id_token"
JWT: Final = f"{TOKEN_TYPE}jwt"
REFRESH_TOKEN: Final = f"{TOKEN_TYPE}refresh_token"
ID_JAG: Final = f"{TOKEN_TYPE}id-jag"

_LONGEST_AUDIENCE: Final = 200


class TokenSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a token comes from: a file that somebody else keeps fresh, or another grant. One of both is set."""

    file: str | None = None
    """An absolute path; the file is read for each request."""
    grant: str | None = None
    """The NAME of another grant."""
    token_type: str
    """RFC 8693 section 3. Of another grant, ``ID_TOKEN`` is its ``id_token``, anything else its access token."""

    @property
    def is_jwt(self) -> bool:
        """Whether the token must be a JWT (RFC 7519)."""
        return self.token_type in (ID_TOKEN, JWT)


class Assertion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an access token is obtained from a token of somebody else."""

    grant_type: AssertionGrantType
    subject: TokenSource
    """The assertion, or the subject token."""
    actor: TokenSource | None = None
    """Who acts for the subject (RFC 8693 section 1.1)."""
    audience: str | None = None
    """RFC 8693 section 2.1; with ``ID_JAG``, the issuer of the server that accepts the assertion."""
    requested_token_type: str | None = None
    source_generations: tuple[int, ...] = ()
    """The generations of ``sources`` at the last attempt, -1 for one that was missing; empty until there was one."""
    source_due_at: float | None = None
    """When the first of ``sources`` was due for its next rotation at that time, epoch seconds."""
    dead_sources: tuple[str, ...] = ()
    """The NAMEs of ``sources`` that needed a person at the last attempt."""
    repair: str | None = None
    """The command that brings back the source without which the last attempt had nothing to present, if that needs a
    person. It is made of NAMEs alone: a message can hold what a server wrote."""

    @property
    def idp(self) -> str | None:
        """The NAME of the grant at the identity provider; ``None`` unless the authorization is enterprise-managed."""
        return self.subject.grant if (self.grant_type, self.requested_token_type) == ("jwt_bearer", ID_JAG) else None

    @property
    def tokens(self) -> tuple[TokenSource, ...]:
        """The subject and the actor."""
        return (self.subject,) if self.actor is None else (self.subject, self.actor)

    @property
    def sources(self) -> tuple[str, ...]:
        """The NAMEs of the grants that it needs."""
        return tuple(dict.fromkeys(token.grant for token in self.tokens if token.grant is not None))

    @property
    def seen(self) -> dict[str, int]:
        """The generation of each of ``sources`` at the last attempt; empty until there was one."""
        return dict(zip(self.sources, self.source_generations, strict=False))

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files that it needs."""
        return tuple(token.file for token in self.tokens if token.file is not None)


def foreign_audience(token: str, usual: Iterable[str | None]) -> str | None:
    """Return the audience of an assertion, for a person, if it is a JWT for none of the ``usual`` ones.

    "" if it names none. Servers may agree on other values (RFC 7523 section 3), so it can still be accepted.
    """
    audience = jwt_claims(token).get("aud")
    named = [each for each in (audience if isinstance(audience, list) else [audience]) if is_token(each)]
    return None if set(named) & {*usual} else ", ".join(named)[:_LONGEST_AUDIENCE]
