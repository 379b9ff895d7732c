"""What is known of a server that refuses the access tokens of a grant, which its authorization server renews. Pure."""

import msgspec

from refresher.common.clocks import Moment
from refresher.grants.record import Grant, TokenRejected
from shim._source import EXPIRING

__all__ = ["after_rotation", "explain"]


def after_rotation(
    grant: Grant, rotated: Grant, now: Moment, *, demanded: bool, forced: bool, reason: str | None
) -> Grant:
    """Return ``rotated``, which replaces ``grant``, with what the rotation says about the tokens of ``grant``.

    A rotation that was forced says nothing: the token before may have had no use. ``reason``: what the demand holds; an
    origin, ``EXPIRING`` or nothing.
    """
    rejected = grant.token_rejected
    refused = demanded and reason != EXPIRING
    if refused and rotated.demanded > 1:
        rejected = rejected or TokenRejected(at=now.wall)
        if reason is not None:
            rejected = msgspec.structs.replace(rejected, origin=reason)
    elif not refused and not forced:
        rejected = None
    return msgspec.structs.replace(rotated, token_rejected=rejected)


def explain(grant: Grant) -> str | None:
    """Return who refuses the tokens of ``grant`` and what to do; ``None`` if they are not refused."""
    if (rejected := grant.token_rejected) is None:
        return None
    possible = grant.login is not None or grant.server_url is not None
    command = f"login {grant.name}" if possible else f"import {grant.name} --replace --from FILE"
    refused = f"refused by {rejected.origin}" if rejected.origin is not None else "refused"
    why = "" if rejected.origin is not None else " (agents demand each new one before it is due)"
    return f"{grant.name}'s tokens are {refused}{why}; 'refresher {command}' usually helps"
