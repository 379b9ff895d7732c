"""How the server of one grant behaves: what was seen of it, else what its grant says, else what is known of its kind.

Pure: a function of the grant.
"""

from refresher.grants.providers import Profile, profile_of
from refresher.grants.record import Grant

__all__ = ["access_life", "ends_access", "refuses_early", "replay", "scope", "sends_resource"]


def replay(grant: Grant) -> float | None:
    """Return the seconds for which the server takes the previous refresh token again; ``None`` for ever."""
    if grant.refresh_token is None:
        return None  # client credentials are not used up
    if isinstance(grant.replay, float | int) or grant.replay is None:
        return grant.replay
    return _profile(grant).replay


def refuses_early(grant: Grant) -> bool:
    """Whether the server refuses a refresh while the access token lives."""
    return grant.refuses_early or _profile(grant).refuses_early


def sends_resource(grant: Grant) -> bool:
    """Whether RFC 8707's ``resource`` goes along."""
    if grant.resource is None or grant.resource_refused:
        return False
    return _profile(grant).send_resource if grant.send_resource is None else grant.send_resource


def scope(grant: Grant) -> str | None:
    """Return the ``scope`` to send: where there is no earlier grant to inherit it from, and where a server wants it."""
    asked = grant.scope if grant.asked_scope is None else grant.asked_scope
    if not asked:
        return None
    if grant.refresh_token is None:
        return asked
    if not _profile(grant).send_scope:
        return None
    # Entra's answers do not list it, and without it no refresh token comes with the next one.
    return asked if "offline_access" in asked.split() else f"{asked} offline_access"


def ends_access(grant: Grant) -> bool:
    """Whether a rotation ends the previous access token at once."""
    return _profile(grant).ends_access


def access_life(grant: Grant) -> float | None:
    """Return the seconds that an access token lives where no answer tells; ``None`` where nobody knows."""
    return _profile(grant).access_life if grant.max_age is None else grant.max_age


def _profile(grant: Grant) -> Profile:
    return profile_of(grant.token_endpoint, grant.issuer)
