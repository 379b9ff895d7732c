"""What a grant with an assertion takes from its sources, the other grants whose tokens it needs. Pure."""

from collections.abc import Mapping
from typing import Final

from refresher.common.clocks import Moment
from refresher.grants.assertion import ID_TOKEN
from refresher.grants.record import Grant

__all__ = [
    "REFUSED_CODES",
    "SOURCE_CODES",
    "Sources",
    "awaited",
    "id_token_has_expired",
    "is_refused",
    "is_renewed",
    "may_be_revoked",
    "may_bring_id_token",
    "needs_id_token",
]

SOURCE_CODES: Final = ("source_missing", "source_failing", "source_reauthorization_required", "source_cycle")
"""The error codes of a grant whose source is the cause."""

REFUSED_CODES: Final = ("invalid_grant", "invalid_request", "invalid_token")
"""How servers say that they do not accept the token that a grant presents (RFC 7523 section 3.1, RFC 8693 section
2.2.2)."""

Sources = Mapping[str, Grant | None]
"""The sources of a grant, by NAME; ``None`` for one that does not exist or cannot be read."""

_ABOUT_TO_EXPIRE: Final = 30.0
"""Seconds: an ``id_token`` that is valid for less time may expire on its way."""


def is_renewed(grant: Grant, sources: Sources) -> bool:
    """Whether a source has a newer token than the one that ``grant`` was made from, or has changed since it failed."""
    assertion, failure = grant.assertion, grant.failure
    if assertion is None or not sources:
        return False
    noted = assertion.source_generations or (-1,) * len(sources)
    pairs = [(each, seen) for each, seen in zip(sources.values(), noted, strict=False) if each is not None]
    if failure is not None:
        # Each attempt notes them, also one that failed: what it has seen is no reason for the next one.
        if failure.code == "source_failing" and any(
            each.dead and each.name not in assertion.dead_sources for each, _ in pairs
        ):
            return True  # the next attempt says which login helps
        return bool(awaited(grant)) and any(not each.dead and each.generation > seen for each, seen in pairs)
    if not assertion.source_generations or not awaited(grant):
        return False
    return any(each.generation > seen for each, seen in pairs)


def awaited(grant: Grant) -> tuple[str, ...]:
    """Return the NAMEs of the sources whose next token ``grant`` uses at once, instead of at its own schedule."""
    assertion, failure = grant.assertion, grant.failure
    if assertion is None:
        return ()
    if failure is not None:
        return assertion.sources if failure.code in (*SOURCE_CODES, *REFUSED_CODES) else ()
    # The access token of another server does not depend on an id_token that it was made from.
    return () if grant.dead or assertion.idp is not None else assertion.sources


def may_be_revoked(grant: Grant, source: Grant) -> bool:
    """Whether the server has just refused the token that ``source`` still has: it may have been revoked before its end.

    A newer one is tried once. If that is refused as well, the cause is another one, and a rotation more does not help.
    """
    return grant.refusals == 1 and is_refused(grant, source)


def is_refused(grant: Grant, source: Grant) -> bool:
    """Whether the server refused the token that ``source`` still has, at the last attempt of ``grant``."""
    assertion, failure = grant.assertion, grant.failure
    if assertion is None or failure is None or failure.code not in REFUSED_CODES:
        return False
    return assertion.seen.get(source.name) == source.generation


def needs_id_token(grant: Grant, name: str) -> bool:
    """Whether ``grant`` needs the ``id_token`` of its source ``name``."""
    tokens = () if grant.assertion is None else grant.assertion.tokens
    return any(token.grant == name and token.token_type == ID_TOKEN for token in tokens)


def id_token_has_expired(source: Grant, now: Moment, *, margin: float = 0.0) -> bool:
    """Whether the ``id_token`` of ``source`` is valid for ``margin`` seconds at most."""
    return source.id_token_expires_at is not None and source.id_token_expires_at - now.wall <= margin


def may_bring_id_token(source: Grant, now: Moment) -> bool:
    """Whether the ``id_token`` of ``source`` has expired, or will at once, and a refresh can bring another.

    It cannot if one since then brought none.
    """
    expires_at = source.id_token_expires_at
    if source.id_token is None or expires_at is None:
        return False
    margin = _ABOUT_TO_EXPIRE
    if source.id_token_issued_at is not None:
        # Half of a short life, so that the rotation that brought it is not taken for one that brought none.
        margin = min(margin, max(expires_at - source.id_token_issued_at, 0.0) / 2)
    tried = source.last_rotation_at is not None and source.last_rotation_at >= expires_at - margin
    can_refresh = source.renewable and source.refresh_token is not None and not source.dead
    return id_token_has_expired(source, now, margin=margin) and can_refresh and not tried
